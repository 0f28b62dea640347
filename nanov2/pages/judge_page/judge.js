// The judging page. All content is put in as text (text.js).
"use strict";
const $ = (id) => document.getElementById(id);
let item = null, findings = [], at = 0, busy = false, undo = null;
const watch = { shown: 0, hidden: 0, since: 0, active: true };  // time spent on the item, in ms

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

function claim(i, verdict) { findings[i] = findings[i] === verdict ? null : verdict; at = i; mark(); }
function claims() {
  list($("claims"), item.claims, (li, text, i) => {
    const words = element("div"), verdict = element("div", "nv-verdict");
    show(words, text);
    verdict.append(button("confirm", () => claim(i, true), `confirm finding ${i + 1}`), button("reject", () => claim(i, false), `reject finding ${i + 1}`));
    li.append(words, verdict);
  });
  mark();
}
function mark() {  // the current finding, and what was said of each
  [...$("claims").children].forEach((li, i) => {
    const [yes, no] = li.lastChild.children;
    yes.setAttribute("aria-pressed", findings[i] === true);
    no.setAttribute("aria-pressed", findings[i] === false);
    i === at ? li.setAttribute("aria-current", "true") : li.removeAttribute("aria-current");
  });
}

function problem(node, it) {
  $("legend").hidden = true;
  if (it.goal === null) { show(node, it.problem); return; }
  const opening = element("div"), goal = element("div", "nv-goal"), entries = it.facts.map((f) => {
    const fact = element(f.used ? "mark" : "span");
    show(fact, f.text);
    return element("li", f.used ? "nv-used" : "", fact);
  });
  show(opening, it.opening); show(goal, it.goal);
  node.replaceChildren(opening, element("ul", "nv-facts", ...entries), goal);
  $("legend").hidden = !it.facts.some((f) => f.used);
}

function progress(state) {
  return state.files.map((f, i) => {
    const a = state.agreement[i];
    const kappa = a.pairs ? ` (${a.pairs} scored twice, κ ${a.kappa === null ? "undefined" : a.kappa.toFixed(2)})` : "";
    return `${f.name}: ${f.done} of ${f.all}${f.seconds === null ? "" : `, ${f.seconds} s each`}${kappa}`;
  }).join(" · ") || "no waiting file yet";
}

let before = "";
function render(state) {
  item = state.item; undo = state.undo;
  const name = item && `${item.file} ${item.id}`, changed = name !== before;
  before = name;
  $("progress").textContent = progress(state);
  $("item").hidden = !item; $("empty").hidden = !!item;
  $("elsewhere").textContent = state.elsewhere ? `${state.elsewhere} items are before other experts, or wait for a second one.` : "";
  if (item && changed) {
    findings = item.claims.map(() => null); at = 0;
    Object.assign(watch, { shown: performance.now(), hidden: 0, since: document.hidden ? performance.now() : 0 });
    $("number").textContent = `${item.number} of ${state.files.find((f) => f.name === item.file).all}`;
    problem($("problem"), item);
    list($("steps"), item.steps, show);
    $("critique-part").hidden = item.critique === null;
    if (item.critique !== null) { show($("critique"), item.critique); claims(); }
    $("rubric").textContent = item.rubric;
    $("note").value = "";
    fit($("item"));
    window.scrollTo(0, 0); $("item").focus({ preventScroll: true });
    $("item").dataset.id = item.id;
  }
  disputes(state);
}

let differences = "";
function disputes(state) {
  const now = JSON.stringify(state.disputed);
  if (now === differences) return;
  differences = now;
  $("disputes").hidden = !state.disputed.length;
  $("disputed").replaceChildren(...state.disputed.map((d) => {
    const box = element("div", "nv-dispute"), row = element("div", "nv-row");
    const texts = [d.problem, d.steps.join("\n\n"), d.critique || ""];
    box.append(...texts.filter(Boolean).map((t) => { const card = element("div", "nv-text"); show(card, t); return card; }));
    box.append(...d.votes.map((v) => element("div", "nv-text nv-plain", `${v.expert}: ${v.value} ${v.note}`)));
    for (const value of [0, 0.5, 1]) row.append(button(String(value), () => send({ id: d.id, file: d.file, action: "settle", value }), `settle as ${value}`));
    box.append(row);
    return box;
  }));
  fit($("disputed"));
}

function complain(text) { $("alert").hidden = !text; $("alert").textContent = text; }
const expert = () => $("expert").value.trim();

async function call(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error || answer.statusText), { refused: true, late: answer.status === 409, state: body });
  return body;
}

function spent() {  // seconds for which the item was in view
  const now = performance.now(), hidden = watch.hidden + (watch.since ? now - watch.since : 0);
  return Math.max(0, now - watch.shown - hidden) / 1000;
}

async function send(row) {  // kept and tried again until the server has it on disk
  if (busy) return;
  if (!expert()) { complain("Give your name first."); $("expert").focus(); return; }
  busy = true;
  const request = [...crypto.getRandomValues(new Uint32Array(3))].map((n) => n.toString(36)).join("");  // counted once
  const own = row.action === "score" || row.action === "skip";
  const about = own ? { note: $("note").value, findings: item.claims.length ? findings : null, seconds: spent() } : {};
  const body = JSON.stringify({ ...about, ...row, request, expert: expert() });
  for (;;) {
    try {
      const state = await call("/api/judge", { method: "POST", headers: { "Content-Type": "application/json", "X-Nanov2-Judge": "1" }, body });
      if (row.action === "undo") before = "";  // also where it is the item in view
      complain(state.trouble.join("\n")); render(state); break;
    } catch (e) {
      if (e.late) { render(e.state); complain(e.message); break; }
      if (e.refused) { complain(e.message); break; }
      complain("Not saved yet: the server does not answer. Start it again; this judgement is sent as soon as it does.");
      await new Promise((done) => setTimeout(done, 500));
    }
  }
  busy = false;
}

async function refresh(wanted) {
  if (!expert() || busy) return;
  const query = new URLSearchParams({ expert: expert(), ...wanted });
  try { const state = await call("/api/next?" + query); if (!busy) { complain(state.trouble.join("\n")); render(state); } }
  catch (e) { complain(e.refused ? e.message : "The server does not answer."); }
}

const STATES = { open: "open", agreed: "scored", disputed: "to settle", settled: "settled" };
async function items() {
  if (!expert()) { complain("Give your name first."); $("expert").focus(); return; }
  let rows;
  try { rows = await call("/api/items?" + new URLSearchParams({ expert: expert() })); }
  catch (e) { complain(e.refused ? e.message : "The server does not answer."); return; }
  const files = [...new Set(rows.map((r) => r.file))];
  $("items").replaceChildren(...files.flatMap((file) => [element("h3", "", file), element("ol", "nv-items", ...rows.filter((r) => r.file === file).map((r) => {
    const choose = button("", () => { $("list").close(); refresh({ file, id: r.id }); });
    const state = r.own !== null ? `you: ${r.own}` : r.state !== "open" ? STATES[r.state] : r.skipped ? "skipped" : r.open ? "open" : "with another";
    choose.append(element("span", "", String(r.number)), element("span", "", state), element("span", "", r.title));
    choose.disabled = !r.open;
    if (item && r.id === item.id && file === item.file) choose.setAttribute("aria-current", "true");
    return element("li", "", choose);
  }))]));
  $("list").showModal();
  $("items").querySelector("[aria-current]")?.scrollIntoView({ block: "center" });
}

function act(action) {
  if (action === "note") $("note").focus();
  else if (action === "help") $("help").showModal();
  else if (action === "list") items();
  else if (action === "undo") undo ? send({ action: "undo", ...undo }) : complain("There is nothing of yours to take back in this file.");
  else if (item) send({ id: item.id, file: item.file, action });
}
const score = (value) => item && send({ id: item.id, file: item.file, action: "score", value });

document.addEventListener("click", (e) => {
  const b = e.target.closest("button[data-value], button[data-action]");
  if (b) b.dataset.value !== undefined ? score(Number(b.dataset.value)) : act(b.dataset.action);
});
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.repeat) return;
  if (document.querySelector("dialog[open]")) return;
  if (e.target.matches("input, textarea")) {
    if (e.key === "Escape" || (e.key === "Enter" && e.target.matches("input"))) { e.preventDefault(); e.target.blur(); refresh(); }
    return;
  }
  const scores = { 0: 0, 5: 0.5, 1: 1 };
  if (e.key in scores) score(scores[e.key]);
  else if (e.key === "s") act("skip");
  else if (e.key === "u") act("undo");
  else if (e.key === "l") act("list");
  else if (e.key === "?") act("help");
  else if (e.key === "n") { e.preventDefault(); act("note"); }
  else if (item && item.claims.length && e.key === "c") claim(at, true);
  else if (item && item.claims.length && e.key === "x") claim(at, false);
  else if (item && item.claims.length && (e.key === "ArrowDown" || e.key === "ArrowUp")) {
    e.preventDefault();
    at = (at + (e.key === "ArrowDown" ? 1 : item.claims.length - 1)) % item.claims.length;
    mark();
    $("claims").children[at].scrollIntoView({ block: "nearest" });
  }
});
$("who").addEventListener("submit", (e) => { e.preventDefault(); refresh(); });
$("expert").addEventListener("change", () => { localStorage.setItem("expert", expert()); refresh(); });
$("expert").value = localStorage.getItem("expert") || "";
if (expert()) refresh(); else { $("empty").hidden = true; $("expert").focus(); }
for (const sign of ["keydown", "pointermove", "scroll"]) addEventListener(sign, () => { watch.active = true; }, { passive: true });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) watch.since = performance.now();
  else if (watch.since) { watch.hidden += performance.now() - watch.since; watch.since = 0; }
});
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; fit(document); } });
document.fonts.addEventListener("loadingdone", () => fit(document));  // they change what is too wide
setInterval(() => { if (!item) refresh(); }, 1000);
setInterval(() => {  // the item stays with who is at work on it
  if (item && watch.active && !document.hidden) { watch.active = false; refresh(); }
}, 20000);
