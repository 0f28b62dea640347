// Texts of strangers as DOM nodes: LaTeX by KaTeX (trust off) and a little Markdown. Nothing is parsed as HTML.
"use strict";

// KaTeX's time grows faster than a formula's length: what is longer stays as it is written. Numbers are characters.
const LONGEST_FORMULA = 5000, LONGEST_TEXT = 200000, MOST_MATHS = 60000;
const ENVIRONMENT = /\\begin\{((?:align|aligned|gather|equation|multline|eqnarray|alignat|cases)\*?)\}/y;
const BOX = /\\boxed\{[^{}$\n]{0,40}\}/y;  // a verdict stands outside of formulas

// Where the formula that a `$` at `at` opens ends: at the next `$` outside braces and within the paragraph.
function closingDollar(text, at) {
  let depth = 0, first = -1;
  for (let i = at + 1; i < text.length && i < at + LONGEST_FORMULA; i++) {
    const c = text[i];
    if (c === "\\") i++;
    else if (c === "{") depth++;
    else if (c === "}") depth--;
    else if (c === "$") {
      if (depth <= 0) return i;
      if (first < 0) first = i;
    } else if (c === "\n" && /^[ \t]*\n/.test(text.slice(i + 1, i + 80))) break;
  }
  return first;
}

// A text cut into { text }, { code, block } and { tex, display, source }; one pass.
function pieces(text) {
  const out = [], absent = new Set();
  let from = 0, at = 0;
  const find = (what, start) => {  // indexOf that does not look again for what is not there
    if (absent.has(what)) return -1;
    const i = text.indexOf(what, start);
    if (i < 0) absent.add(what);
    return i;
  };
  const take = (end, piece) => {
    if (at > from) out.push({ text: text.slice(from, at) });
    out.push({ ...piece, source: text.slice(at, end) });
    from = at = end;
  };
  const special = /[\\$`]/g;
  for (;;) {
    special.lastIndex = at;
    const m = special.exec(text);
    if (!m) break;
    at = m.index;
    const two = text.slice(at, at + 2);
    let end = -1;
    if (m[0] === "`") {
      const block = text.startsWith("```", at) && (at === 0 || text[at - 1] === "\n");
      const line = block ? text.indexOf("\n", at) : at + 1;
      end = line < 0 ? -1 : block ? find("\n```", line - 1) : find("`", line);
      if (end >= 0 && (block || !text.slice(line, end).includes("\n"))) {
        take(end + (block ? 4 : 1), { code: text.slice(block ? line + 1 : line, Math.max(end, line)), block });
      } else at++;
    } else if (two === "$$" || two === "\\[" || two === "\\(") {
      end = find({ "$$": "$$", "\\[": "\\]", "\\(": "\\)" }[two], at + 2);
      if (end >= 0) take(end + 2, { tex: text.slice(at + 2, end), display: two !== "\\(" });
      else at += 2;
    } else if (m[0] === "$") {
      end = closingDollar(text, at);
      if (end > at + 1) take(end + 1, { tex: text.slice(at + 1, end), display: false });
      else at++;
    } else {
      BOX.lastIndex = ENVIRONMENT.lastIndex = at;
      const begin = ENVIRONMENT.exec(text), box = BOX.exec(text);
      if (box) { take(at + box[0].length, { tex: box[0], display: false }); continue; }
      const close = begin && `\\end{${begin[1]}}`;
      end = begin ? find(close, at) : -1;
      if (end >= 0) take(end + close.length, { tex: text.slice(at, end + close.length), display: true });
      else at += 2;  // a backslash and what it escapes
    }
  }
  if (from < text.length) out.push({ text: text.slice(from) });
  return out;
}

function element(name, className, ...content) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...content);
  return node;
}

// A formula, or what was written where KaTeX does not take it.
function formula(piece) {
  if (piece.tex.length <= LONGEST_FORMULA) {
    const node = element("span", piece.display ? "nv-math nv-display" : "nv-math");
    try {
      katex.render(piece.tex, node, { displayMode: piece.display, throwOnError: true, trust: false, maxExpand: 200, maxSize: 20, strict: "ignore" });
      if (node.querySelector(".katex-tag")) node.classList.add("nv-tagged");
      return node;
    } catch { /* shown as it is written */ }
  }
  return element("span", piece.display ? "nv-source nv-display" : "nv-source", piece.source);
}

// Marks stand for formulas and code while blocks and emphasis are found: \ue000 index \ue001.
const MARK = /\ue000(\d+)\ue001/;
const EMPHASIS = /(\*\*(?=\S)[^\n]{1,2000}?\S?\*\*|__(?=\S)[^\n]{1,2000}?\S?__|(?<![\p{L}\d])\*(?=[^\s*])[^*\n]{0,2000}?[^\s*]\*(?![\p{L}\d])|(?<![\p{L}\d])_(?=[^\s_])[^_\n]{0,2000}?[^\s_]_(?![\p{L}\d]))/u;

function inline(node, text, made, depth = 0) {
  for (const part of depth < 4 ? text.split(EMPHASIS) : [text]) {
    const strong = /^(\*\*|__)[^]+\1$/.test(part) && part.length > 4;
    const em = !strong && part.length > 2 && /^([*_])[^*_][^]*\1$/.test(part) && EMPHASIS.test(part);
    if (strong || em) {
      const inner = element(strong ? "strong" : "em");
      inline(inner, strong ? part.slice(2, -2) : part.slice(1, -1), made, depth + 1);
      node.append(inner);
      continue;
    }
    part.split(MARK).forEach((piece, i) => {
      if (i % 2) node.append(made[Number(piece)] || "");
      else if (piece) node.append(piece.replace(/\\([$*_`#])/g, "$1").replace(/[^\S\n]{2,}/g, " "));
    });
  }
}

const LIST = /^(\s*)(?:([-*+•])|(\d{1,4})[.)])\s+(.*)$/;
const HEAD = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^\s*([-*_])(?:\s*\1){2,}\s*$/;

// Paragraphs, headings, lists (an indented one within another), quotations and rules.
function blocks(node, text, made) {
  let paragraph = null;
  const lists = [];  // open ones: { node, indent }
  for (const written of text.split("\n")) {
    const line = written.trimEnd();
    const item = line.match(LIST), head = line.match(HEAD);
    if (!line.trim()) paragraph = null;
    else if (RULE.test(line)) { node.append(element("hr")); paragraph = null; lists.length = 0; }
    else if (head) {  // below the page's own headings
      const heading = element("p", "nv-heading");
      inline(heading, head[2], made);
      node.append(heading); paragraph = null; lists.length = 0;
    } else if (item) {
      const indent = item[1].length;
      while (lists.length && lists.at(-1).indent > indent) lists.pop();
      if (!lists.length || lists.at(-1).indent + 1 < indent && lists.length < 5) {
        const list = element(item[3] ? "ol" : "ul", "nv-list");
        if (item[3]) list.start = Number(item[3]);
        (lists.length ? lists.at(-1).node.lastChild : node).append(list);
        lists.push({ node: list, indent });
      }
      paragraph = element("li");
      lists.at(-1).node.append(paragraph);
      inline(paragraph, item[4], made);
    } else if (lists.length && (paragraph || /^\s/.test(line))) {  // a list item goes on
      const li = lists.at(-1).node.lastChild;
      li.append(paragraph ? "\n" : document.createElement("br"));
      inline(li, line.trim(), made);
      paragraph = li;
    } else {
      lists.length = 0;
      const quote = /^\s*>\s?/.test(line);
      if (!paragraph || paragraph.matches(".nv-quote") !== quote) {
        paragraph = element("p", quote ? "nv-quote" : "nv-paragraph");
        node.append(paragraph);
      } else if (!paragraph.lastElementChild?.matches(".nv-display:last-child") || paragraph.lastChild.nodeType === Node.TEXT_NODE) paragraph.append("\n");
      inline(paragraph, quote ? line.replace(/^\s*>\s?/, "") : line, made);
    }
  }
}

// Put a text into a node, its LaTeX and Markdown set.
function show(node, text) {
  node.replaceChildren();
  if (text.length > LONGEST_TEXT) { node.append(element("p", "nv-source", text)); return; }
  const made = [];
  let maths = 0, marked = "";
  for (const piece of pieces(text.replace(/[\ue000\ue001]/g, "\ufffd"))) {
    if (piece.text !== undefined) { marked += piece.text; continue; }
    maths += piece.tex ? piece.tex.length : 0;
    if (piece.code !== undefined) made.push(element(piece.block ? "pre" : "code", "nv-code", piece.code));
    else made.push(maths > MOST_MATHS ? element("span", "nv-source", piece.source) : formula(piece));
    marked += `\ue000${made.length - 1}\ue001`;
  }
  blocks(node, marked, made);
}

// What is wider than its card scrolls inside it, also by the keyboard.
function fit(root) {
  const maths = [...root.querySelectorAll(".nv-math")];
  for (const m of maths) { m.classList.remove("nv-wide"); m.removeAttribute("tabindex"); m.removeAttribute("role"); m.removeAttribute("aria-label"); }
  const wide = maths.filter((m) => {
    const room = m.parentElement.closest(".nv-text, .nv-list li, li, p, div").getBoundingClientRect().right + 1;
    if (m.classList.contains("nv-display")) return m.scrollWidth > m.clientWidth + 1;
    return [...m.querySelectorAll(".katex-base")].some((b) => b.getBoundingClientRect().right > room);
  });
  for (const m of wide) m.classList.add("nv-wide");
  for (const s of [...wide, ...root.querySelectorAll("pre.nv-code")]) {
    if (s.scrollWidth <= s.clientWidth) continue;
    s.tabIndex = 0; s.setAttribute("role", "group"); s.setAttribute("aria-label", "wide formula, scrolls");
  }
}
