// Keeps a page true while it is open: its own address is fetched again, and the parts whose HTML
// changed are swapped: the elements with `data-part`, by that name, in `main`.
//
// A part stays as it is while somebody works in it: focus, a selection, an open dialog or details,
// a changed field, or what an action just put there. Then the parts inside it are tried. An element
// with `data-keep` and an id keeps its node when the part around it is swapped. Scripts that drew
// something from a part listen for `neve:parts` on the document; its `detail` is a set of names.

import { Live } from "./live.js";

const TOKEN = 'input[name="csrfmiddlewaretoken"]';
const ACTED_MS = 10_000; // how long the result of an action stays readable
const WORK = "dialog[open], details[open], :popover-open, .htmx-request, [data-hold]";

const main = document.getElementById("main");
const token = JSON.parse(document.body.getAttribute("hx-headers") ?? "{}")["X-CSRFToken"];
const known = new WeakMap(); // part → its HTML as the server last sent it
const acted = new WeakMap(); // part → when an action last changed it
let etag = "";
let heldParts = 0;

// On a page without a chart that names no parts, these are its cards without a form.
function nameParts(root) {
  if (root.querySelector("[data-part], .chart")) return;
  const cards = root.querySelectorAll("section.card:not(:has(form, [data-keep]))");
  cards.forEach((card, i) => { card.dataset.part = `card-${i}`; });
}

nameParts(main);
const htmlOf = (part) => part.innerHTML.replace(/(name="csrfmiddlewaretoken" value=")[^"]*/g, "$1");
for (const part of main.querySelectorAll("[data-part]")) known.set(part, htmlOf(part));

document.addEventListener("htmx:afterSwap", (event) => {
  for (let at = event.detail.target; at; at = at.parentElement) {
    if (at.dataset?.part !== undefined) acted.set(at, Date.now());
  }
});

function isChanged(field) {
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  if (field.localName === "select") {
    return [...field.options].some((one) => one.selected !== one.defaultSelected)
      && [...field.options].some((one) => one.defaultSelected);
  }
  return field.type !== "hidden" && field.value !== field.defaultValue;
}

function isInUse(part) {
  if (part.contains(document.activeElement) && document.activeElement !== main) return true;
  if (part.querySelector(WORK) || Date.now() - (acted.get(part) ?? 0) < ACTED_MS) return true;
  const selection = getSelection();
  if (!selection.isCollapsed && selection.containsNode(part, true)) return true;
  return [...part.querySelectorAll("input, select, textarea")].some(isChanged);
}

function swap(part, fresh) {
  const scrolled = [...part.querySelectorAll("*")].map((one) => [one.scrollLeft, one.scrollTop]);
  for (const kept of part.querySelectorAll("[data-keep][id]")) {
    fresh.querySelector(`#${CSS.escape(kept.id)}`)?.replaceWith(kept);
  }
  for (const { name, value } of fresh.attributes) part.setAttribute(name, value);
  part.replaceChildren(...fresh.childNodes);
  for (const input of part.querySelectorAll(TOKEN)) input.value = token;
  [...part.querySelectorAll("*")].forEach((one, i) => {
    const [left, top] = scrolled[i] ?? [0, 0];
    if (left) one.scrollLeft = left;
    if (top) one.scrollTop = top;
  });
  globalThis.htmx?.process(part);
}

// The outermost parts below `root`.
function partsOf(root) {
  return [...root.querySelectorAll("[data-part]")]
    .filter((part) => (part.parentElement?.closest("[data-part]") ?? null)
      === (root.closest?.("[data-part]") ?? null));
}

function update(root, freshRoot, swapped) {
  const freshParts = new Map(partsOf(freshRoot).map((part) => [part.dataset.part, part]));
  for (const part of partsOf(root)) {
    const fresh = freshParts.get(part.dataset.part);
    if (!fresh) continue;
    const html = htmlOf(fresh);
    if (known.get(part) === html && part.className === fresh.className) continue;
    if (isInUse(part)) {
      const before = swapped.size;
      if (part.querySelector("[data-part]")) update(part, fresh, swapped);
      if (swapped.size === before) heldParts += 1;
      continue;
    }
    swap(part, fresh);
    known.set(part, html);
    for (const inner of part.querySelectorAll("[data-part]")) known.set(inner, htmlOf(inner));
    swapped.add(part.dataset.part);
  }
}

async function refresh(seq) {
  const asked = location.pathname + location.search;
  const headers = { Accept: "text/html", "Neve-Live": String(seq ?? 0) };
  if (etag) headers["If-None-Match"] = etag;
  if (main.querySelector("details[open] [data-part]")) headers["Neve-Open"] = "1";
  const answer = await fetch(asked, { headers, signal: AbortSignal.timeout(8000) });
  if (answer.status === 401) {
    signIn();
    return 0;
  }
  const ageMs = Number(answer.headers.get("Neve-Age") ?? 0);
  if (answer.status === 304) return ageMs;
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const text = await answer.text();
  if (asked !== location.pathname + location.search) return 0; // an action changed it meanwhile
  const fresh = document.createElement("template");
  fresh.innerHTML = text;
  nameParts(fresh.content);
  const swapped = new Set();
  heldParts = 0;
  update(main, fresh.content, swapped);
  etag = heldParts ? "" : answer.headers.get("ETag") ?? "";
  if (swapped.size) document.dispatchEvent(new CustomEvent("neve:parts", { detail: swapped }));
  return ageMs;
}

function signIn() {
  const next = encodeURIComponent(location.pathname + location.search);
  location.assign(`${document.body.dataset.login}?next=${next}`);
}

const mark = document.querySelector("[data-live]");
const words = document.querySelector("[data-live-words]");
if (main.querySelector("[data-part]") && document.body.dataset.socket) {
  const live = new Live({
    path: document.body.dataset.socket,
    zone: mark?.dataset.liveZone,
    refresh,
    onSignedOut: signIn,
    onState({ state, words: said }) {
      main.classList.toggle("is-stale", state === "down");
      if (!mark) return;
      const paused = heldParts && state !== "down" ? ", paused where you work" : "";
      if (mark.dataset.state !== state) mark.dataset.state = state;
      if (words.textContent !== said + paused) words.textContent = said + paused;
    },
  });
  live.start();
  main.addEventListener("toggle", () => live.want(), true); // a table that opens comes anew
}
