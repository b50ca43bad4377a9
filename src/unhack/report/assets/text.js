// Rollout text is hostile: it only ever gets into text nodes, and what cannot be seen or would reorder is spelled out.

const INVISIBLE = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f" +
    "\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]|\\p{Surrogate}",
  "gu",
);

const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

const codeName = (character) => {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return `U+${code}`;
};

const appendText = (parent, text) => {
  let place = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (match.index > place) parent.append(text.slice(place, match.index));
    parent.append(element("span", "control", codeName(match[0])));
    place = match.index + match[0].length;
  }
  if (place < text.length) parent.append(text.slice(place));
};

// `spans`: start, end, start, end, ... of what is marked, in order and disjoint.
const appendMarked = (parent, text, spans) => {
  let place = 0;
  for (let index = 0; index + 1 < spans.length; index += 2) {
    appendText(parent, text.slice(place, spans[index]));
    const mark = element("mark");
    appendText(mark, text.slice(spans[index], spans[index + 1]));
    parent.append(mark);
    place = spans[index + 1];
  }
  appendText(parent, text.slice(place));
};

// Where a word stands by itself in a text, as spans.
const wordSpans = (text, word) => {
  const spans = [];
  const letter = /[\p{L}\p{N}_]/u;
  for (let at = word ? text.indexOf(word) : -1; at >= 0; at = text.indexOf(word, at + word.length)) {
    const end = at + word.length;
    if (!letter.test(text[at - 1] ?? " ") && !letter.test(text[end] ?? " ")) spans.push(at, end);
  }
  return spans;
};
