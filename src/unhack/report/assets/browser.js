// The rollout browser: filters, search, a virtual list, one rollout in full, and a link for each of these states.

const ROW_PX = 56; // .row in page.css
const TALLEST_PX = 4_000_000; // browsers cut off elements at 17 million or more: a longer list scrolls by share
const PAGE_ROWS = 10;
const FILTERS = ["arm", "seed", "from", "to", "mode", "block", "source", "label", "hacked", "solved", "paid", "q"];

const header = JSON.parse(document.getElementById("rollout-header").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("list");
const spacer = element("div", "spacer");
const rowsBox = element("div", "rows");
const detail = document.getElementById("detail");
const status = document.getElementById("status");
const format = new Intl.NumberFormat("en");

let index = null; // columns of all rollouts, from loadIndex
let matches = new Uint32Array(0); // rollouts that pass the filters
let active = -1; // place in matches of the selected one
let opened = null; // the rollout in the detail pane
let openedKey = ""; // how a link names it
let turn = 0; // of searches: an older one stops when a newer one began
let drawing = 0; // of rows, for the same reason

const wanted = () => Object.fromEntries(FILTERS.map((name) => [name, form.elements[name].value.trim()]));

const runAllowed = (filters) =>
  header.runs.map(({ arm, seed }) => ["", arm].includes(filters.arm) && ["", String(seed)].includes(filters.seed));

const numberOf = (names, value) => (value === "" ? -1 : names.indexOf(value) < 0 ? 255 : names.indexOf(value));

const filtered = (filters) => {
  const runs = runAllowed(filters);
  const from = filters.from === "" ? 0 : Number(filters.from);
  const to = filters.to === "" ? Infinity : Number(filters.to);
  const codes = ["mode", "block", "source", "label"]
    .map((name) => [index[name], numberOf(header[`${name}s`], filters[name])])
    .filter(([, code]) => code >= 0);
  let mask = 0;
  let bits = 0;
  for (const name of ["hacked", "solved", "paid"]) {
    if (filters[name] !== "") mask |= BITS[name];
    if (filters[name] === "yes") bits |= BITS[name];
  }
  const found = new Uint32Array(header.count);
  let count = 0;
  for (let row = 0; row < header.count; row += 1) {
    const step = index.step[row];
    if (!runs[index.run[row]] || step < from || step > to || (index.flags[row] & mask) !== bits) continue;
    if (codes.every(([column, code]) => column[row] === code)) {
      found[count] = row;
      count += 1;
    }
  }
  return found.slice(0, count);
};

const searched = async (rows, text, own) => {
  const word = text.toLowerCase();
  const found = [];
  const parts = new Set(Array.from(rows, (row) => index.chunk[row])).size;
  let part = 0;
  for (let place = 0; place < rows.length; part += 1) {
    const number = index.chunk[rows[place]];
    const chunk = await loadChunk(number);
    if (own !== turn) return null;
    const prompts = chunk.prompts.map((prompt) => prompt.toLowerCase().includes(word));
    const start = header.chunks[number][1];
    for (; place < rows.length && index.chunk[rows[place]] === number; place += 1) {
      const at = rows[place] - start;
      if (prompts[chunk.prompt[at]] || chunk.text[at].toLowerCase().includes(word)) found.push(rows[place]);
    }
    status.textContent = `Searching: part ${part + 1} of ${parts}, ${format.format(found.length)} found`;
  }
  return Uint32Array.from(found);
};

const describe = () => {
  const counts = { hacked: 0, solved: 0, paid: 0 };
  for (const row of matches) for (const name in counts) if (index.flags[row] & BITS[name]) counts[name] += 1;
  const share = (name) => `${name} ${((100 * counts[name]) / matches.length).toFixed(1)} %`;
  const rates = matches.length ? `: ${share("hacked")}, ${share("solved")}, ${share("paid")}` : "";
  return `${format.format(matches.length)} of ${format.format(header.count)} embedded rollouts${rates}`;
};

const refresh = async () => {
  turn += 1;
  const own = turn;
  const filters = wanted();
  delete list.dataset.count;
  let rows = filtered(filters);
  if (filters.q !== "") rows = await searched(rows, filters.q, own);
  if (rows === null) return;
  matches = rows;
  active = opened === null ? -1 : matches.indexOf(opened);
  spacer.style.height = `${Math.min(matches.length * ROW_PX, TALLEST_PX)}px`;
  list.scrollTop = 0;
  status.textContent = describe();
  list.dataset.count = String(matches.length);
  writeLink();
  if (active >= 0) reveal();
  await draw();
};

// Where the list stands, as a (broken) row number; exact as long as the list is not taller than TALLEST_PX.
const scrollRatio = () => {
  const full = matches.length * ROW_PX;
  return full <= TALLEST_PX ? 1 : (full - list.clientHeight) / (TALLEST_PX - list.clientHeight);
};

const snippetOf = (chunk, at) => {
  const spans = chunk.spans[at];
  const text = chunk.text[at];
  if (spans.length) return text.slice(spans[0], Math.min(spans[1], spans[0] + 160)).trim();
  return text.replace(/^\s*```\w*\s*/, "").slice(0, 160);
};

const outcome = (flags) => ["hacked", "solved", "paid", "error"].find((name) => flags & BITS[name]) ?? "failed";

const rowElement = (place) => {
  const row = matches[place];
  const { arm, seed } = header.runs[index.run[row]];
  const made = element("div", "row");
  made.id = `row-${place}`;
  made.setAttribute("role", "option");
  made.setAttribute("aria-posinset", String(place + 1));
  made.setAttribute("aria-setsize", String(matches.length));
  made.setAttribute("aria-selected", String(place === active));
  made.dataset.place = String(place);
  const kind = outcome(index.flags[row]);
  const line = element("div");
  line.append(element("span", `badge ${kind}`, kind));
  appendText(line, `${arm} · seed ${seed} · step ${index.step[row]} · ${header.modes[index.mode[row]]}`);
  made.append(line, element("div", "snippet", "…"));
  return made;
};

const draw = async () => {
  drawing += 1;
  const own = drawing;
  const top = list.scrollTop * scrollRatio();
  const first = Math.max(0, Math.floor(top / ROW_PX) - 2);
  const last = Math.min(matches.length, Math.ceil((top + list.clientHeight) / ROW_PX) + 2);
  const made = [];
  for (let place = first; place < last; place += 1) {
    const row = rowElement(place);
    row.style.top = `${place * ROW_PX - top}px`;
    made.push(row);
  }
  rowsBox.replaceChildren(...made);
  if (active >= first && active < last) list.setAttribute("aria-activedescendant", `row-${active}`);
  else list.removeAttribute("aria-activedescendant");
  for (const row of made) {
    const rollout = matches[Number(row.dataset.place)];
    const number = index.chunk[rollout];
    const chunk = await loadChunk(number);
    if (own !== drawing) return;
    const snippet = row.lastChild;
    snippet.textContent = "";
    appendText(snippet, snippetOf(chunk, rollout - header.chunks[number][1]).replace(/\s+/g, " "));
  }
};

const reveal = () => {
  const ratio = scrollRatio();
  const top = active * ROW_PX;
  const seen = list.scrollTop * ratio;
  if (top < seen) list.scrollTop = top / ratio;
  else if (top + ROW_PX > seen + list.clientHeight) list.scrollTop = (top + ROW_PX - list.clientHeight) / ratio;
};

const keyOf = (rollout, id) => {
  const { arm, seed } = header.runs[index.run[rollout]];
  return [arm, seed, header.blocks[index.block[rollout]], index.step[rollout], id].map(encodeURIComponent).join("/");
};

const link = () => {
  const filters = Object.entries(wanted()).filter(([, value]) => value !== "");
  if (openedKey) filters.push(["open", openedKey]);
  return `#rollouts?${new URLSearchParams(filters)}`;
};

const writeLink = () => {
  const state = link();
  if (state !== "#rollouts?" || location.hash.startsWith("#rollouts?")) history.replaceState(null, "", state);
  const anchor = document.getElementById("link");
  if (anchor) anchor.href = state;
};

let showing = 0; // of details: the last one asked for wins

const show = async (rollout) => {
  showing += 1;
  const own = showing;
  const number = index.chunk[rollout];
  const chunk = await loadChunk(number);
  if (own !== showing) return;
  opened = rollout;
  const at = rollout - header.chunks[number][1];
  openedKey = keyOf(rollout, chunk.rollout_id[at]);
  fillDetail(rollout, chunk, at);
  writeLink();
};

const choose = (place) => {
  if (!matches.length) return;
  active = Math.min(matches.length - 1, Math.max(0, place));
  reveal();
  draw();
  show(matches[active]);
};

// Opens the rollout that a link names: looked up in its run, among those of its step.
const openKey = async (key) => {
  const [arm, seed, block, step, id] = key.split("/").map(decodeURIComponent);
  for (let row = 0; row < header.count; row += 1) {
    const run = header.runs[index.run[row]];
    if (run.arm !== arm || String(run.seed) !== seed || String(index.step[row]) !== step) continue;
    if (header.blocks[index.block[row]] !== block) continue;
    const number = index.chunk[row];
    const chunk = await loadChunk(number);
    if (chunk.rollout_id[row - header.chunks[number][1]] !== id) continue;
    await show(row);
    active = matches.indexOf(row);
    if (active >= 0) reveal();
    await draw();
    return;
  }
  detail.textContent = "";
  appendText(detail, `Rollout ${id} of ${arm}, seed ${seed}, step ${step} is not among those embedded in this page.`);
};

const readLink = async () => {
  if (!location.hash.startsWith("#rollouts?")) return false;
  const state = new URLSearchParams(location.hash.slice("#rollouts?".length));
  for (const name of FILTERS) form.elements[name].value = state.get(name) ?? "";
  const key = state.get("open");
  opened = null;
  openedKey = key ?? "";
  await refresh();
  if (key) await openKey(key);
  document.getElementById("rollouts").scrollIntoView();
  return true;
};
