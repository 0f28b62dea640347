// The report as a page to explore. Without it the page is a plain document: it only shows and hides what is there.
"use strict";
const cards = [...document.querySelectorAll(".sample")];
const bar = document.getElementById("filters");
const fields = ["phase", "score", "error"];
const value = (name) => document.getElementById("f-" + name).value;
let problem = "";

function options(name) {
  const seen = [...new Set(cards.flatMap((c) => c.dataset[name].split(" ").filter(Boolean)))];
  if (name !== "phase") seen.sort();
  for (const text of seen) document.getElementById("f-" + name).add(new Option(text.replaceAll("_", " "), text));
}

function filter() {
  const words = value("text").toLowerCase();
  const active = problem || words || fields.some((f) => value(f));
  let shown = 0;
  for (const c of cards) {
    const keep = fields.every((f) => !value(f) || c.dataset[f].split(" ").includes(value(f)))
      && (!problem || c.dataset.problem === problem) && (!words || c.textContent.toLowerCase().includes(words));
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
}

if (cards.length) {
  fields.forEach(options);
  bar.hidden = false;
  bar.addEventListener("input", filter);
  document.getElementById("f-clear").addEventListener("click", () => {
    problem = "";
    for (const f of [...fields, "text"]) document.getElementById("f-" + f).value = "";
    filter();
    for (const d of document.querySelectorAll("details.samples")) d.open = false;
  });
  for (const c of cards) {
    const together = cards.filter((o) => o.dataset.problem === c.dataset.problem).length;
    if (together < 2) continue;
    const b = document.createElement("button");
    b.type = "button"; b.className = "follow"; b.textContent = `follow this problem (${together} samples)`;
    b.addEventListener("click", () => { problem = c.dataset.problem; filter(); bar.scrollIntoView(); });
    c.append(b);
  }
  filter();
  for (const d of document.querySelectorAll("details.samples")) d.parentElement.hidden = false;
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
    tip.style.left = Math.min(box.left + box.width * px / svg.viewBox.baseVal.width + 8, innerWidth - tip.offsetWidth - 4) + "px";
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
addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details.samples")) d.open = true; });
