// The report as a page to explore. Without it the page is a plain document: it only shows and hides what is
// there, and has KaTeX set formulas, which builds nodes from its own parser and runs nothing (trust: false).
"use strict";
const cards = [...document.querySelectorAll(".sample")];
const bar = document.getElementById("filters");
const fields = ["phase", "step", "score", "error"];
const input = (name) => document.getElementById("f-" + name);
const value = (name) => input(name).value;
let problem = "";

// Formulas: set when they come near the screen, so that a page of thousands opens at once.
function typeset(span) {
  const tex = span.textContent, options = { displayMode: span.classList.contains("display"), output: "html", throwOnError: true, trust: false, maxExpand: 200, maxSize: 20, strict: "ignore" };
  const shown = document.createElement("span");
  try {
    katex.render(tex, shown, options);
  } catch { return; } // broken TeX stays as it is written
  span.setAttribute("role", "math");
  span.setAttribute("aria-label", tex);
  span.replaceChildren(shown);
}
function typesetIn(card) {
  if (card.dataset.set || !globalThis.katex) return;
  card.dataset.set = "yes";
  card.querySelectorAll(".tex").forEach(typeset);
}
const near = new IntersectionObserver((entries) => {
  for (const e of entries) if (e.isIntersecting) { typesetIn(e.target); near.unobserve(e.target); }
}, { rootMargin: "600px" });
cards.forEach((c) => near.observe(c));

function options(name) {
  const seen = [...new Set(cards.flatMap((c) => c.dataset[name].split(" ").filter(Boolean)))];
  if (name === "error") { // the page names them all; those that no sample has are taken out
    for (const o of [...input(name).options]) if (o.value && !seen.includes(o.value)) o.remove();
    return;
  }
  if (name !== "phase") seen.sort((a, b) => a - b);
  for (const text of seen) input(name).add(new Option(text, text));
  if (!seen.length) input(name).parentElement.hidden = true;
}

// The filter is kept in the address, so that a link shows what was seen.
function remember() {
  const state = new URLSearchParams();
  for (const f of [...fields, "text"]) if (value(f)) state.set(f, value(f));
  if (problem) state.set("problem", problem);
  history.replaceState(null, "", state.size ? "#?" + state : location.pathname + location.search);
}
function recall() {
  if (!location.hash.startsWith("#?")) return false;
  const state = new URLSearchParams(location.hash.slice(2));
  for (const f of [...fields, "text"]) input(f).value = state.get(f) || "";
  problem = state.get("problem") || "";
  return true;
}

function filter() {
  const words = value("text").toLowerCase();
  const active = problem || words || fields.some((f) => value(f));
  let shown = 0;
  for (const c of cards) {
    const keep = fields.every((f) => !value(f) || c.dataset[f].split(" ").includes(value(f)))
      && (!problem || c.dataset.problem === problem) && (!words || text(c).includes(words));
    c.hidden = !keep;
    shown += keep;
  }
  for (const d of document.querySelectorAll("details.samples")) {
    const any = [...d.querySelectorAll(".sample")].some((c) => !c.hidden);
    if (active) d.open = any;
    d.parentElement.hidden = !!active && !any;
  }
  document.getElementById("f-count").textContent = `${shown} of ${cards.length} samples` + (problem ? " of one problem" : "");
  document.getElementById("f-clear").hidden = !active;
  clearance();
}
const texts = new Map(cards.map((c) => [c, c.textContent.toLowerCase()])); // as written, before formulas are set
const text = (c) => texts.get(c);

function clearance() { // headings that a link leads to come to lie under the bar, not behind it
  const sticks = !bar.hidden && getComputedStyle(bar).position === "sticky";
  document.documentElement.style.scrollPaddingTop = (sticks ? bar.offsetHeight + 8 : 8) + "px";
}

if (bar && cards.length) {
  fields.forEach(options);
  bar.hidden = false;
  bar.addEventListener("submit", (e) => e.preventDefault());
  bar.addEventListener("input", () => { filter(); remember(); });
  document.getElementById("f-clear").addEventListener("click", () => {
    problem = "";
    for (const f of [...fields, "text"]) input(f).value = "";
    filter();
    remember();
    for (const d of document.querySelectorAll("details.samples")) d.open = false;
  });
  for (const c of cards) {
    const together = cards.filter((o) => o.dataset.problem === c.dataset.problem).length;
    if (together < 2) continue;
    const b = document.createElement("button");
    b.type = "button"; b.className = "follow"; b.textContent = `follow this problem (${together} samples)`;
    b.addEventListener("click", () => { problem = c.dataset.problem; filter(); remember(); bar.scrollIntoView(); });
    c.append(b);
  }
  if (recall()) { filter(); bar.scrollIntoView(); } else filter();
  addEventListener("hashchange", () => { if (recall()) filter(); });
  addEventListener("resize", clearance);
  for (const d of document.querySelectorAll("nav a")) d.addEventListener("click", () => {
    if (document.querySelector(d.getAttribute("href")).parentElement.hidden) document.getElementById("f-clear").click();
  });
}

// Curves: the values at the step under the pointer, or under the arrow keys.
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series), [left, top, w, h, x0, x1] = JSON.parse(svg.dataset.box);
  const steps = [...new Set(series.flatMap(([, line]) => line.map(([x]) => x)))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const nearest = (list, x, of) => list.reduce((a, b) => Math.abs(of(b) - x) < Math.abs(of(a) - x) ? b : a);
  function point() {
    const x = steps[at], px = left + w * (x - x0) / ((x1 - x0) || 1);
    cursor.setAttribute("d", `M${px} ${top}v${h}`);
    svg.append(cursor);
    tip.textContent = `step ${x}\n` + series.map(([name, line]) => `${name} ${nearest(line, x, (p) => p[0])[1].toPrecision(4)}`).join("\n");
    tip.hidden = false;
    const box = svg.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(box.left + box.width * px / svg.viewBox.baseVal.width + 8, innerWidth - tip.offsetWidth - 4)) + "px";
    tip.style.top = Math.max(4, box.top - 8) + "px";
  }
  function leave() { tip.hidden = true; cursor.remove(); }
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (e) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((e.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / w * (x1 - x0);
    at = steps.indexOf(nearest(steps, x, (s) => s));
    point();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) point(); });
  svg.addEventListener("keydown", (e) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[e.key];
    if (move === undefined) return;
    e.preventDefault();
    at = Math.min(Math.max(at + move, 0), steps.length - 1);
    point();
  });
}
addEventListener("beforeprint", () => {
  for (const d of document.querySelectorAll("details.samples")) d.open = true;
  cards.forEach(typesetIn);
});
