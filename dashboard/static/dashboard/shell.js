// What every page has: theme, keyboard, pickers that submit themselves. A page works without it.

const ROOT = document.documentElement;
const TWO_KEYS_MS = 1200;

function isDark() {
  const chosen = ROOT.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function toggleTheme() {
  ROOT.dataset.theme = isDark() ? "light" : "dark";
  // A cookie, so that the server renders the next page right from the start.
  document.cookie = `neve_theme=${ROOT.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
  dispatchEvent(new Event("neve:theme"));
}

function showHelp() {
  document.getElementById("help").showModal();
}

for (const form of document.querySelectorAll("[data-submit-on-change]")) {
  form.addEventListener("change", () => form.requestSubmit());
}
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", button.dataset.action === "theme" ? toggleTheme : showHelp);
}

let wentAt = -Infinity; // when "g" was pressed
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (performance.now() - wentAt < TWO_KEYS_MS) {
    wentAt = -Infinity;
    document.querySelector(`.side a[data-key="${CSS.escape(event.key)}"]`)?.click();
  } else if (event.key === "g") wentAt = performance.now();
  else if (event.key === "t") toggleTheme();
  else if (event.key === "?") showHelp();
});
