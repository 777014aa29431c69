// Draws the overview's charts, again whenever their numbers or the colours change.

import { Chart } from "./charts.js";

const page = document.querySelector("[data-overview]");
const charts = [
  new Chart(document.getElementById("token-chart"), "tokens", [
    { key: "hot_tokens", name: "hot", colour: "hot", sign: 1, fill: "cc" },
    { key: "cold_tokens", name: "cold", colour: "cold", sign: 1, fill: "cc" },
    { key: "local_tokens", name: "local", colour: "local", sign: 1, fill: "cc" },
    { key: "recomputed_tokens", name: "recomputed", colour: "recomputed", sign: 1, fill: "73" },
  ], { isStacked: true }),
  new Chart(document.getElementById("byte-chart"), "bytes", [
    { key: "hot_read_bytes", name: "hot read", colour: "hot", sign: 1, fill: "26" },
    { key: "cold_read_bytes", name: "cold read", colour: "cold", sign: 1, fill: "26" },
    { key: "local_read_bytes", name: "local read", colour: "local", sign: 1, fill: "26" },
    { key: "hot_write_bytes", name: "hot written", colour: "hot", sign: -1, fill: "26" },
    { key: "cold_write_bytes", name: "cold written", colour: "cold", sign: -1, fill: "26" },
    { key: "local_write_bytes", name: "local written", colour: "local", sign: -1, fill: "26" },
  ]),
];

function draw() {
  if (page.classList.contains("is-empty")) return; // hidden: Plotly could not measure its room
  const chart = JSON.parse(document.getElementById("chart-data").textContent);
  for (const one of charts) {
    one.draw(chart.series, chart.start_s, chart.end_s, chart.marks);
  }
}

draw();
addEventListener("neve:theme", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.addEventListener("neve:parts", ({ detail }) => {
  page.classList.toggle("is-empty", document.querySelector(".first-steps h2") !== null);
  if (detail.has("chart")) draw();
});
