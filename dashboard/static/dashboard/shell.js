// What every page has: theme, zone, keyboard, pickers that submit themselves. A page works without
// it.

const ROOT = document.documentElement;
const TWO_KEYS_MS = 1200;
const YEAR_S = 31536000;
const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;

ROOT.classList.add("has-script");

// A cookie, so that the server renders the next page right from the start.
function remember(name, value) {
  document.cookie = `${name}=${value}; path=/; max-age=${YEAR_S}; samesite=lax`;
}

function isDark() {
  const chosen = ROOT.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function toggleTheme() {
  ROOT.dataset.theme = isDark() ? "light" : "dark";
  remember("neve_theme", ROOT.dataset.theme);
  dispatchEvent(new Event("neve:theme"));
}

function showHelp() {
  document.getElementById("help").showModal();
}

export const ACTIONS = { theme: toggleTheme, help: showHelp }; // by name, for the palette

// Parts of the page are swapped while it lives, so nothing listens on a form itself.
document.addEventListener("change", ({ target }) => {
  if (target.form?.matches("[data-submit-on-change]")) target.form.requestSubmit();
});
// Empty fields are left out, so that an address says only what was chosen.
document.addEventListener("submit", ({ target }) => {
  if (target.method !== "get" || target.hasAttribute("hx-get")) return;
  for (const field of target.elements) field.disabled ||= field.value === "" && field.name !== "";
});
// Back from the page that was asked for: the fields are there again.
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form[method=get] :disabled")) field.disabled = false;
});

// All zones that the browser knows, once somebody looks for one.
function fillZones(select) {
  const known = new Set([...select.options].map((option) => option.value));
  for (const name of Intl.supportedValuesOf("timeZone")) {
    if (!known.has(name)) select.add(new Option(name));
  }
}

// Lists: the row that has focus is the current one.
function rows() {
  const first = document.activeElement?.closest("[data-list]") ?? document.querySelector("[data-list]");
  return first ? [...first.querySelectorAll("tbody tr")] : [];
}

function moveRow(by) {
  const all = rows();
  const now = all.indexOf(document.activeElement?.closest("tr"));
  const next = all[now < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(now + by, 0), all.length - 1)];
  if (!next) return;
  next.tabIndex = -1;
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

const SAYS_ZONE = ["neve_zone_kept=1", `neve_zone=${ZONE}`];
if (ZONE && !SAYS_ZONE.some((part) => document.cookie.includes(part))) remember("neve_zone", ZONE);
for (const select of document.querySelectorAll("[data-zones]")) {
  select.addEventListener("pointerdown", () => fillZones(select), { once: true });
  select.addEventListener("focus", () => fillZones(select), { once: true });
}
for (const button of document.querySelectorAll("[data-action=theme]")) {
  button.addEventListener("click", toggleTheme);
}
for (const button of document.querySelectorAll("[data-action=help]")) {
  button.addEventListener("click", showHelp);
}
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
// An open menu closes when somebody presses Escape in it or clicks elsewhere.
addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

function search(event) {
  const field = document.querySelector("[data-search]");
  if (!field) return;
  event.preventDefault();
  field.focus();
  field.select();
}

function openRow({ target }) {
  if (target.matches?.("[data-list] tbody tr")) target.querySelector("a[href]")?.click();
}

let wentAt = -Infinity; // when "g" was pressed
const KEYS = {
  g: () => { wentAt = performance.now(); },
  t: toggleTheme,
  "?": showHelp,
  j: () => moveRow(1),
  k: () => moveRow(-1),
  Enter: openRow,
  "/": search,
  ArrowLeft: (event) => moveTab(event, -1),
  ArrowRight: (event) => moveTab(event, 1),
};

// Left and right go from tab to tab.
function moveTab(event, by) {
  const tabs = [...(event.target.closest?.("[data-tabs]")?.querySelectorAll("a") ?? [])];
  if (tabs.length) tabs.at((tabs.indexOf(event.target) + by) % tabs.length).focus();
}

function isTaken(event) {
  const typing = event.target.closest?.("input, select, textarea, [contenteditable]");
  return typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]");
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement?.closest(".menu[open]")?.removeAttribute("open");
  if (isTaken(event)) return;
  if (performance.now() - wentAt < TWO_KEYS_MS) {
    wentAt = -Infinity;
    document.querySelector(`.side a[data-key="${CSS.escape(event.key)}"]`)?.click();
  } else KEYS[event.key]?.(event);
});
