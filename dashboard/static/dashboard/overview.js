// Keeps the overview true while it is open: new steps are merged, rendered parts are swapped in.

import { Chart } from "./charts.js";
import { Live } from "./live.js";

const page = document.querySelector("[data-overview]");
const indicator = document.querySelector("[data-live]");
const words = document.querySelector("[data-live-words]");
const parts = new Map(
  [...page.querySelectorAll("[data-part]")].map((element) => [element.dataset.part, element]),
);
const charts = [
  new Chart(document.getElementById("token-chart"), "tokens", [
    { key: "hot_tokens", name: "hot", colour: "hot", sign: 1, fill: "cc" },
    { key: "cold_tokens", name: "cold", colour: "cold", sign: 1, fill: "cc" },
    { key: "recomputed_tokens", name: "recomputed", colour: "recomputed", sign: 1, fill: "73" },
  ], { isStacked: true }),
  new Chart(document.getElementById("byte-chart"), "bytes", [
    { key: "hot_read_bytes", name: "hot read", colour: "hot", sign: 1, fill: "26" },
    { key: "cold_read_bytes", name: "cold read", colour: "cold", sign: 1, fill: "26" },
    { key: "hot_write_bytes", name: "hot written", colour: "hot", sign: -1, fill: "26" },
    { key: "cold_write_bytes", name: "cold written", colour: "cold", sign: -1, fill: "26" },
  ]),
];
let chart = JSON.parse(document.getElementById("chart-data").textContent);

function draw() {
  if (page.classList.contains("is-empty")) return; // hidden: Plotly could not measure its room
  for (const one of charts) one.draw(chart.series, chart.start_s, chart.end_s);
}

// New steps replace those of the same time (the last one was still growing); old ones fall out.
function merge(old, fresh) {
  const keepTo = fresh.series.ts[0] ?? Infinity;
  const kept = old.series.ts.map((ts, i) => [ts, i])
    .filter(([ts]) => ts >= fresh.start_s && ts < keepTo).map(([, i]) => i);
  const series = {};
  for (const [key, column] of Object.entries(fresh.series)) {
    series[key] = [...kept.map((i) => old.series[key][i]), ...column];
  }
  return { ...fresh, series };
}

async function refresh() {
  const since = chart.series.ts.at(-1) ?? 0;
  const query = new URLSearchParams(location.search);
  // A step back: what was still growing when it came is fetched again.
  query.set("since", Math.max(since - chart.step_s, 0));
  if (page.querySelector("[data-table][open]")) query.set("tables", "1");
  const answer = await fetch(`${page.dataset.url}?${query}`, {
    headers: { Accept: "application/json" },
    signal: AbortSignal.timeout(8000),
  });
  if (answer.status === 401) return signIn();
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const { parts: fresh, is_empty: isEmpty, ...numbers } = await answer.json();
  chart = merge(chart, numbers);
  for (const [name, html] of Object.entries(fresh)) {
    const element = parts.get(name);
    if (element.contains(document.activeElement) || element.fresh === html) continue;
    element.innerHTML = html;
    element.fresh = html;
  }
  page.classList.toggle("is-empty", isEmpty);
  draw();
}

function signIn() {
  location.assign(`${page.dataset.login}?next=${encodeURIComponent(location.pathname + location.search)}`);
}

draw();
addEventListener("neve:theme", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
for (const table of page.querySelectorAll("[data-table]")) {
  table.addEventListener("toggle", () => table.open && live.want());
}
const live = new Live({
  path: page.dataset.socket,
  refresh,
  onSignedOut: signIn,
  onState({ state, words: said }) {
    indicator.dataset.state = state;
    words.textContent = said;
    page.classList.toggle("is-stale", state === "down");
  },
});
live.start();
