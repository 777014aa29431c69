// Ctrl-K: a combobox over pages, actions and objects. The server searches; arrows choose, Enter goes.

import { ACTIONS } from "./shell.js";

const WAIT_MS = 100;
const dialog = document.getElementById("palette");
const field = dialog.querySelector("[role=combobox]");
const list = dialog.querySelector("[role=listbox]");
const said = dialog.querySelector("[role=status]");
let options = [];
let chosen = -1;
let asked = 0; // of the newest question: answers to older ones are dropped
let timer = 0;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function choose(place) {
  options[chosen]?.setAttribute("aria-selected", "false");
  chosen = options.length ? (place + options.length) % options.length : -1;
  const option = options[chosen];
  field.setAttribute("aria-activedescendant", option?.id ?? "");
  option?.setAttribute("aria-selected", "true");
  option?.scrollIntoView({ block: "nearest" });
}

function optionOf(result, number) {
  const option = element("div", { role: "option", id: `palette-${number}`, "aria-selected": "false" },
    element("span", {}, result.label), element("small", { class: "muted" }, result.of));
  option.addEventListener("click", (event) => go(result, event.ctrlKey || event.metaKey));
  option.result = result;
  return option;
}

function show(results) {
  list.replaceChildren();
  options = results.map(optionOf);
  const groups = new Map();
  options.forEach((option) => {
    const { kind } = option.result;
    if (!groups.has(kind)) {
      const group = element("div", { role: "group", "aria-label": kind },
        element("div", { class: "group", "aria-hidden": "true" }, kind));
      groups.set(kind, group);
      list.append(group);
    }
    groups.get(kind).append(option);
  });
  said.textContent = results.length ? `${results.length} results` : "Nothing is named so.";
  said.classList.toggle("sr", results.length > 0);
  field.setAttribute("aria-expanded", String(results.length > 0));
  list.hidden = results.length === 0;
  chosen = -1;
  choose(0);
}

async function ask() {
  asked += 1;
  const mine = asked;
  const url = new URL(dialog.dataset.url, location.href);
  url.searchParams.set("q", field.value.trim());
  try {
    const answer = await fetch(url, { headers: { Accept: "application/json" } });
    if (answer.status === 401) return location.reload();
    const { results } = await answer.json();
    if (mine === asked) show(results);
  } catch {
    if (mine !== asked) return;
    show([]);
    said.textContent = "The server does not answer.";
  }
}

function go(result, isNewTab) {
  if (!result) return;
  if (isNewTab && result.url) return void open(result.url, "_blank", "noopener");
  dialog.close();
  if (result.does) ACTIONS[result.does]();
  else location.assign(result.url);
}

function toggle() {
  if (dialog.open) return dialog.close();
  field.value = "";
  dialog.showModal();
  ask();
}

const KEYS = {
  ArrowDown: () => choose(chosen + 1),
  ArrowUp: () => choose(chosen - 1),
  PageDown: () => choose(Math.min(chosen + 8, options.length - 1)),
  PageUp: () => choose(Math.max(chosen - 8, 0)),
  Enter: (event) => go(options[chosen]?.result, event.ctrlKey || event.metaKey),
};

field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT_MS);
});
field.addEventListener("keydown", (event) => {
  if (!KEYS[event.key] || event.isComposing) return;
  event.preventDefault();
  KEYS[event.key](event);
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
for (const button of document.querySelectorAll("[data-action=palette]")) {
  button.addEventListener("click", toggle);
}
addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.altKey) return;
  event.preventDefault();
  toggle();
});
