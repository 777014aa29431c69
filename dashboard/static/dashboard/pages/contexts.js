// The prefix tree by keyboard: arrows walk, Enter or a double click zooms, Backspace goes up. Cells
// are links, so all of it works without this script; the parts of the page are swapped in place.

const PARTS = ["tree", "selected"];
const LATER_MS = 220; // a second click within it is a double click

const chart = () => document.querySelector("[data-icicle]");
const cells = () => [...(chart()?.querySelectorAll("[role=treeitem]") ?? [])];
const level = (cell) => Number(cell.getAttribute("aria-level"));

/** One cell is in the order of Tab: the selected one, else the first. */
function rove() {
  const all = cells();
  const first = all.find((cell) => cell.getAttribute("aria-selected") === "true") ?? all[0];
  for (const cell of all) cell.setAttribute("tabindex", cell === first ? "0" : "-1");
}

/** Cells stand in the order of the tree: a parent before its children. */
function neighbour(cell, key) {
  const all = cells();
  const at = all.indexOf(cell);
  const deep = level(cell);
  const siblings = (list) => {
    for (const other of list) {
      if (level(other) < deep) return null;
      if (level(other) === deep) return other;
    }
    return null;
  };
  if (key === "ArrowRight") return siblings(all.slice(at + 1));
  if (key === "ArrowLeft") return siblings(all.slice(0, at).toReversed());
  if (key === "ArrowDown") return level(all[at + 1] ?? cell) > deep ? all[at + 1] : null;
  if (key === "ArrowUp") return all.slice(0, at).toReversed().find((other) => level(other) < deep);
  if (key === "Home") return all[0];
  return null;
}

async function open(url, focused) {
  let fetched;
  try {
    const answer = await fetch(url, { headers: { Accept: "text/html" } });
    if (!answer.ok || answer.redirected) throw new Error("not the page");
    fetched = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    location.assign(url);
    return;
  }
  for (const id of PARTS) {
    const now = document.getElementById(id);
    const then = fetched.getElementById(id);
    if (!now || !then) {
      location.assign(url);
      return;
    }
    now.replaceWith(then);
    globalThis.htmx?.process(then);
  }
  history.pushState({ icicle: true }, "", url);
  rove();
  if (focused) (document.getElementById(focused) ?? cells()[0])?.focus();
}

let waiting = 0;

document.addEventListener("click", (event) => {
  const cell = event.target.closest?.("[data-icicle] [role=treeitem]");
  if (!cell || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  clearTimeout(waiting);
  const url = cell.getAttribute(event.detail > 1 ? "data-zoom" : "href");
  if (event.detail > 1) open(url, cell.id);
  else waiting = setTimeout(() => open(url, cell.id), LATER_MS);
});

document.addEventListener("keydown", (event) => {
  const cell = event.target.closest?.("[data-icicle] [role=treeitem]");
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter") {
    event.preventDefault();
    open(cell.getAttribute("data-zoom"), cell.id);
  } else if (event.key === " ") {
    event.preventDefault();
    open(cell.getAttribute("href"), cell.id);
  } else if (event.key === "Backspace") {
    event.preventDefault();
    const up = [...document.querySelectorAll(".trail a")].at(-1);
    if (up) open(up.getAttribute("href"), cell.id);
  } else {
    const to = neighbour(cell, event.key);
    if (!to) return;
    event.preventDefault();
    for (const each of cells()) each.setAttribute("tabindex", each === to ? "0" : "-1");
    to.focus();
  }
});

addEventListener("popstate", () => location.reload());

/** Ticked rows keep their count in sight. */
document.addEventListener("change", (event) => {
  if (!event.target.matches?.('input[name="ids"]')) return;
  const count = document.querySelectorAll('input[name="ids"]:checked').length;
  const shown = document.querySelector("[data-ticked]");
  if (shown) shown.textContent = count ? `(${count})` : "";
});

document.addEventListener("neve:parts", rove);
rove();
