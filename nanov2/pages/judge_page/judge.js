// The judging page. All content is put in as text; only KaTeX (trust off) builds markup, from its own parser.
"use strict";
const $ = (id) => document.getElementById(id);
let item = null, findings = [], at = 0, busy = false;

const MATH = /(\$\$[^$]+\$\$|\\\[[\s\S]+?\\\]|\\\([\s\S]+?\\\)|\$[^$\n]+\$)/;
function show(node, text) {  // text with its LaTeX rendered; broken LaTeX stays as it is written
  node.replaceChildren();
  for (const part of text.split(MATH)) {
    const display = part.startsWith("$$") || part.startsWith("\\[");
    const inner = display || part.startsWith("\\(") ? part.slice(2, -2) : part.slice(1, -1);
    if (MATH.test(part) && part.match(MATH)[0] === part) {
      const span = document.createElement("span");
      try {
        katex.render(inner, span, { displayMode: display, throwOnError: true, trust: false, maxExpand: 200, maxSize: 20, strict: "ignore" });
        node.append(span);
        continue;
      } catch { /* shown as text below */ }
    }
    node.append(part);
  }
}

function list(node, entries, build) {
  node.replaceChildren(...entries.map((entry, i) => {
    const li = document.createElement("li");
    build(li, entry, i);
    return li;
  }));
}

function button(text, press, name) {
  const b = document.createElement("button");
  b.type = "button"; b.textContent = text; b.addEventListener("click", press);
  if (name) b.setAttribute("aria-label", name);
  return b;
}

function claim(i, verdict) { findings[i] = findings[i] === verdict ? null : verdict; at = i; claims(); }
function claims() {
  list($("claims"), item.claims, (li, text, i) => {
    const words = document.createElement("span");
    show(words, text);
    const yes = button("confirm", () => claim(i, true), `confirm finding ${i + 1}`);
    const no = button("reject", () => claim(i, false), `reject finding ${i + 1}`);
    yes.setAttribute("aria-pressed", findings[i] === true);
    no.setAttribute("aria-pressed", findings[i] === false);
    if (i === at) li.setAttribute("aria-current", "true");
    li.append(words, yes, no);
  });
}

function render(state) {
  const changed = (item && item.id) !== (state.item && state.item.id);
  item = state.item;
  $("progress").textContent = state.files.map((f, i) => {
    const a = state.agreement[i];
    const kappa = a.pairs ? ` (${a.pairs} scored twice, κ ${a.kappa === null ? "undefined" : a.kappa.toFixed(2)})` : "";
    return `${f.name}: ${f.done} of ${f.all}${kappa}`;
  }).join(" · ") || "no waiting file yet";
  $("item").hidden = !item; $("empty").hidden = !!item;
  if (item && changed) {
    findings = item.claims.map(() => null); at = 0;
    $("item").dataset.id = item.id;
    show($("problem"), item.problem);
    list($("steps"), item.steps, show);
    $("critique-part").hidden = item.critique === null;
    if (item.critique !== null) { show($("critique"), item.critique); claims(); }
    $("rubric").textContent = item.rubric;
    $("note").value = "";
    window.scrollTo(0, 0); $("item").focus({ preventScroll: true });
  }
  $("disputes").hidden = !state.disputed.length;
  $("disputed").replaceChildren(...state.disputed.map((d) => {
    const box = document.createElement("div");
    box.className = "dispute";
    const texts = [d.problem, d.steps.join("\n"), d.critique || "", d.votes.map((v) => `${v.expert}: ${v.value} ${v.note}`).join("\n")];
    box.append(...texts.filter(Boolean).map((t) => { const p = document.createElement("p"); p.className = "text"; show(p, t); return p; }));
    for (const value of [0, 0.5, 1]) box.append(button(String(value), () => send({ id: d.id, action: "settle", value }), `settle as ${value}`));
    return box;
  }));
}

function complain(text) { $("alert").hidden = !text; $("alert").textContent = text; }
const expert = () => $("expert").value.trim();

async function call(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error || answer.statusText), { refused: true });
  return body;
}

async function send(row) {  // kept and tried again until the server has it on disk
  if (busy) return;
  if (!expert()) { complain("Give your name first."); $("expert").focus(); return; }
  busy = true;
  const body = JSON.stringify({ ...row, expert: expert(), note: $("note").value, findings: item && item.claims.length ? findings : null });
  for (;;) {
    try {
      const state = await call("/api/judge", { method: "POST", headers: { "Content-Type": "application/json", "X-Nanov2-Judge": "1" }, body });
      complain(""); render(state); break;
    } catch (e) {
      if (e.refused) { complain(e.message); break; }
      complain("Not saved yet: the server does not answer. Start it again; this judgement is sent as soon as it does.");
      await new Promise((done) => setTimeout(done, 500));
    }
  }
  busy = false;
}

async function refresh() {
  if (!expert() || busy) return;
  try { render(await call("/api/next?expert=" + encodeURIComponent(expert()))); complain(""); }
  catch (e) { complain(e.refused ? e.message : "The server does not answer."); }
}

function act(action) {
  if (action === "note") $("note").focus();
  else if (action === "undo") { item = item && { ...item, id: "" }; send({ action: "undo" }); }
  else if (item) send({ id: item.id, action });
}
const score = (value) => item && send({ id: item.id, action: "score", value });

document.addEventListener("click", (e) => {
  const b = e.target.closest("button[data-value], button[data-action]");
  if (b) b.dataset.value !== undefined ? score(Number(b.dataset.value)) : act(b.dataset.action);
});
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.matches("input, textarea")) {
    if (e.key === "Escape" || (e.key === "Enter" && e.target.matches("input"))) { e.preventDefault(); e.target.blur(); refresh(); }
    return;
  }
  const scores = { 0: 0, 5: 0.5, 1: 1 };
  if (e.key in scores) score(scores[e.key]);
  else if (e.key === "s") act("skip");
  else if (e.key === "u") act("undo");
  else if (e.key === "n") { e.preventDefault(); act("note"); }
  else if (item && item.claims.length && e.key === "c") claim(at, true);
  else if (item && item.claims.length && e.key === "x") claim(at, false);
  else if (item && item.claims.length && (e.key === "ArrowDown" || e.key === "ArrowUp")) {
    e.preventDefault();
    at = (at + (e.key === "ArrowDown" ? 1 : item.claims.length - 1)) % item.claims.length;
    claims();
  }
});
$("who").addEventListener("submit", (e) => { e.preventDefault(); refresh(); });
$("expert").addEventListener("change", () => { localStorage.setItem("expert", expert()); refresh(); });
$("expert").value = localStorage.getItem("expert") || "";
if (expert()) refresh(); else { $("empty").hidden = true; $("expert").focus(); }
setInterval(() => { if (!item || !item.id) refresh(); }, 1000);
