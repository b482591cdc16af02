// A small part of Markdown as elements: code, headings, lists, quotes, tables, bold, italic, code in
// lines. What is no part of it stays as it was written. Text enters as text nodes only.

import { copyButton, el } from "./dom.js";

const shown = new WeakMap();

/** Draws `text` into `into`, leaving blocks alone that have not changed since the last time. */
export function drawMarkdown(into, text) {
  const blocks = split(text);
  blocks.forEach((block, i) => {
    const old = into.children[i];
    const source = `${block.kind}\n${block.closed}\n${block.lines.join("\n")}`;
    if (old && shown.get(old) === source) return;
    const fresh = draw(block);
    shown.set(fresh, source);
    if (old) old.replaceWith(fresh);
    else into.append(fresh);
  });
  while (into.children.length > blocks.length) into.lastElementChild.remove();
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;

/** Lines to blocks: {kind, lines, …}. */
function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  let i = 0;
  const take = (kind, belongs) => {
    const from = i;
    while (i < lines.length && (i === from || belongs(lines[i]))) i += 1;
    blocks.push({ kind, lines: lines.slice(from, i) });
  };
  const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line);
  while (i < lines.length) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (fence) {
      const from = (i += 1);
      const end = (other) => other.trim().startsWith(fence[1]) && /^[`~]+$/.test(other.trim());
      while (i < lines.length && !end(lines[i])) i += 1;
      blocks.push({ kind: "code", language: fence[2].trim(), lines: lines.slice(from, i), closed: i < lines.length });
      i += 1;
    } else if (!line.trim()) i += 1;
    else if (HEADING.test(line)) take("heading", () => false);
    else if (RULE.test(line)) take("rule", () => false);
    else if (line.startsWith(">")) take("quote", (next) => next.startsWith(">"));
    else if (ITEM.test(line)) take("list", (next) => ITEM.test(next) || (/^\s+\S/.test(next) && !FENCE.test(next)));
    else if (line.includes("|") && TABLE_RULE.test(lines[i + 1] ?? "")) take("table", (next) => next.includes("|"));
    else take("paragraph", (next) => next.trim() && !starts(next) && !ITEM.test(next) && !next.startsWith(">"));
  }
  return blocks;
}

function draw(block) {
  const [first] = block.lines;
  switch (block.kind) {
    case "code": {
      const text = block.lines.join("\n");
      const head = el("div", { class: "code-head" }, el("span", {}, block.language), copyButton("Copy", () => text));
      // Long lines scroll, and the keyboard must be able to.
      return el("div", { class: "code-block" }, head, el("pre", { tabindex: "0" }, el("code", {}, text)));
    }
    case "heading": {
      const [, marks, text] = HEADING.exec(first);
      // The page has the first two levels.
      return el(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text));
    }
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...inline(block.lines.map((line) => line.replace(/^>\s?/, "")).join("\n")));
    case "list":
      return list(block.lines);
    case "table":
      return table(block.lines);
    default:
      return el("p", {}, ...inline(block.lines.join("\n")));
  }
}

/** Nested by indentation. */
function list(lines) {
  const stack = [];
  let root;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (!item) {
      stack.at(-1).list.lastElementChild.append("\n", ...inline(line.trim()));
      continue;
    }
    const [, { length: indent }, marker, text] = item;
    while (stack.length && indent < stack.at(-1).indent) stack.pop();
    if (!stack.length || indent > stack.at(-1).indent + 1) {
      const number = Number.parseInt(marker, 10);
      const made = Number.isNaN(number) ? el("ul") : el("ol", { start: number });
      if (stack.length) stack.at(-1).list.lastElementChild.append(made);
      // A list that falls back further than it began goes on at the lowest level.
      else if (root) root.append(made);
      root ??= made;
      stack.push({ indent, list: made });
    }
    stack.at(-1).list.append(el("li", {}, ...inline(text)));
  }
  return root;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
  const row = (line, tag) => el("tr", {}, ...cells(line).map((cell) => el(tag, {}, ...cell)));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return el("div", { class: "table", tabindex: "0" },
    el("table", {}, el("thead", {}, row(lines[0], "th")), el("tbody", {}, ...body)));
}

const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])[*_](?=[^\s*_])([^*_]+?)(?<=\S)[*_](?![\w*])/gs;

/** Code, bold and italic; everything else as it is. */
function inline(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, , code, bold, italic] = found;
    if (found.index > end) nodes.push(text.slice(end, found.index));
    if (code !== undefined) nodes.push(el("code", {}, code));
    else if (bold !== undefined) nodes.push(el("strong", {}, ...inline(bold)));
    else nodes.push(el("em", {}, ...inline(italic)));
    end = found.index + whole.length;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}
