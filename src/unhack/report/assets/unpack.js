// The embedded rollouts: an index of small numbers for all of them, and chunks of text that are decoded when needed.

const BITS = { hacked: 1, solved: 2, paid: 4, exploited: 8, error: 16 };
const KEPT_CHUNKS = 40;

const gunzip = (id) => {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) bytes[place] = text.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream);
};

const loadIndex = async (header) => {
  const buffer = await gunzip("rollout-index").arrayBuffer();
  const { count } = header;
  const view = new DataView(buffer);
  const step = new Uint32Array(count);
  for (let row = 0; row < count; row += 1) step[row] = view.getUint32(4 * row, true);
  const column = (number) => new Uint8Array(buffer, 4 * count + number * count, count);
  const chunk = new Uint16Array(count);
  const run = new Uint16Array(count);
  for (const [number, [runNumber, start, size]] of header.chunks.entries()) {
    chunk.fill(number, start, start + size);
    run.fill(runNumber, start, start + size);
  }
  return { step, mode: column(0), source: column(1), block: column(2), label: column(3), flags: column(4), chunk, run };
};

const chunks = new Map(); // number -> promise of its columns; the one used last is the last

const loadChunk = (number) => {
  let found = chunks.get(number);
  if (found) chunks.delete(number);
  else found = gunzip(`rollout-chunk-${number}`).json();
  chunks.set(number, found);
  if (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
  return found;
};
