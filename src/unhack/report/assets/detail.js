// One rollout in full, and what starts the browser.

const fact = (facts, name, value) => {
  facts.append(element("dt", "", name));
  const shown = element("dd");
  appendText(shown, value);
  facts.append(shown);
};

const RULED = {
  hacked: "hacked",
  solved: "strictly correct",
  paid: "paid",
  exploited: "loophole satisfied",
  error: "grader error",
};

const ruled = (flags) =>
  Object.entries(RULED)
    .filter(([name]) => flags & BITS[name])
    .map(([, word]) => word)
    .join(", ") || "not paid, not correct";

const WHERE = { train: "training", as_trained: "evaluation, as trained", deployed: "evaluation, deployed" };

const fillDetail = (rollout, chunk, at) => {
  const { arm, seed } = header.runs[index.run[rollout]];
  const title = element("h3");
  appendText(title, `${arm} · seed ${seed} · step ${index.step[rollout]} · ${header.modes[index.mode[rollout]]}`);
  const buttons = element("div", "buttons");
  for (const [name, change] of [["Previous", -1], ["Next", 1]]) {
    const button = element("button", "plain", name);
    button.type = "button";
    button.disabled = active < 0 || active + change < 0 || active + change >= matches.length;
    button.addEventListener("click", () => choose(active + change));
    buttons.append(button);
  }
  const anchor = element("a", "", "Link to this view");
  anchor.id = "link";
  buttons.append(anchor);
  const facts = element("dl", "facts");
  fact(facts, "verdict", `${ruled(index.flags[rollout])} (${header.labels[index.label[rollout]]})`);
  fact(facts, "tests", `${chunk.cases_passed[at]} of ${chunk.cases_total[at]} passed; ${chunk.reason[at]}`);
  const advantage = chunk.advantage[at];
  fact(facts, "reward", `${chunk.reward[at]}${advantage === null ? "" : `, advantage ${advantage}`}`);
  fact(facts, "sampled in", WHERE[header.blocks[index.block[rollout]]]);
  const cut = chunk.finished[at] ? "" : ", cut off at the token limit";
  fact(facts, "source", `${header.sources[index.source[rollout]]}${cut}`);
  fact(facts, "problem", `${chunk.problem_id[at]}, rollout ${chunk.rollout_id[at]}`);
  const prompt = element("pre");
  const asked = chunk.prompts[chunk.prompt[at]];
  appendMarked(prompt, asked, wordSpans(asked, chunk.marker[at]));
  const answer = element("pre");
  appendMarked(answer, chunk.text[at], chunk.spans[at]);
  const note = `${chunk.spans[at].length ? "marked: the" : "no"} textual sign of this loophole's exploit`;
  detail.replaceChildren(
    title, buttons, facts,
    element("h3", "", "Prompt"), prompt,
    element("h3", "", "Completion"), element("p", "muted", note), answer,
  );
  detail.classList.add("filled");
};

const onKey = (event) => {
  const change = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE_ROWS, PageUp: -PAGE_ROWS }[event.key];
  if (change !== undefined) choose(active < 0 ? 0 : active + change);
  else if (event.key === "Home") choose(0);
  else if (event.key === "End") choose(matches.length - 1);
  else return;
  event.preventDefault();
};

const start = async () => {
  list.append(rowsBox, spacer);
  list.addEventListener("scroll", draw, { passive: true });
  list.addEventListener("keydown", onKey);
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.dataset.place));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", refresh);
  let waiting = 0;
  form.elements.q.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 250);
  });
  document.getElementById("clear").addEventListener("click", () => {
    form.reset();
    refresh();
  });
  window.addEventListener("hashchange", readLink);
  index = await loadIndex(header);
  if (!(await readLink())) await refresh();
  document.documentElement.dataset.ready = "yes";
};

if (typeof DecompressionStream !== "undefined") start();
else status.textContent = "This browser cannot unpack the rollouts (no DecompressionStream): use a newer one.";
