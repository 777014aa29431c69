// The Explorer's charts: lines that scope the page, letters of what changed, drag to zoom.

import { digits, moment, scale, secondsOf, ZONE } from "../formats.js";
import { addMarks, plain } from "../marks.js";
import { zoomByDragging } from "../scope.js";

const lines = document.getElementById("explorer-lines");
const reasons = document.getElementById("explorer-reasons");
const COLOURS = ["r-refused", "r-fingerprint", "cold", "hot", "gpu"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const PATTERNS = { refused: "/", fingerprint: "x", broken: "\\" };
const UNITS = {
  bytes: [1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]],
  tokens: [1000, ["", "k", "M", "G", "T"]],
  blocks: [1000, ["", "k", "M", "G", "T"]],
  ms: [1e9, ["ms"]],
  s: [1e9, ["s"]],
};
const LEFT = 52;
const TOP = 16;
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false };
let data = {};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const isNarrow = () => innerWidth < 700;

function scaled(unit, largest) {
  if (unit === "percent") return { divisor: 0.01, name: "%" };
  const found = scale(largest, ...UNITS[unit]);
  return { divisor: found.divisor, name: found.unit };
}

function layout(right) {
  const muted = colour("muted");
  const axis = { linecolor: colour("line-strong"), gridcolor: colour("line"), tickfont: { size: 11.5, color: muted }, ticks: "" };
  return {
    margin: { l: LEFT, r: right, t: TOP, b: 20 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: muted },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: "x unified",
    dragmode: "zoom",
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line-strong"), font: { color: colour("text"), size: 12 } },
    xaxis: {
      ...axis, type: "date", range: [moment(data.start), moment(data.end)], showgrid: false, zeroline: false,
      showline: true, nticks: isNarrow() ? 4 : 8, tickformat: data.end - data.start > 90_000 ? "%b %d" : "%H:%M",
      hoverformat: `%H:%M ${ZONE}`,
    },
    yaxis: { ...axis, fixedrange: true, rangemode: "tozero", nticks: 5, zeroline: false },
    shapes: [],
    annotations: [],
  };
}

const short = (name) => (name.length > 17 ? `${name.slice(0, 16)}…` : name);
const known = (values) => values.filter((value) => value !== null);

function drawLines() {
  const largest = Math.max(0, ...data.lines.flatMap((line) => known(line.values)));
  const { divisor, name } = scaled(data.unit, largest);
  const suffix = `${name}${data.is_rate ? "/s" : ""}`;
  const made = layout(isNarrow() ? 8 : 150);
  const x = data.ts.map(moment);
  let part = 0;
  const ends = [];
  const traces = data.lines.map((line) => {
    const tint = line.is_whole ? "text" : COLOURS[part % COLOURS.length];
    const dash = line.is_whole ? "solid" : DASHES[part % DASHES.length];
    if (!line.is_whole) part += 1;
    const y = line.values.map((value) => (value === null ? null : value / divisor));
    const last = known(y).at(-1);
    if (last !== undefined) ends.push({ y: last, text: `${plain(short(line.name))} ${digits(last)}`, tint, isWhole: line.is_whole });
    return {
      x, y, name: plain(line.name), type: "scatter", mode: known(y).length < 2 ? "lines+markers" : "lines", meta: line.url ?? "",
      line: { color: colour(tint), width: line.is_whole ? 2.4 : 1.8, dash }, connectgaps: false,
      text: y.map((value) => (value === null ? "—" : `${digits(value)} ${suffix}`)), hovertemplate: "%{text}",
    };
  });
  if (data.unit === "percent") {
    Object.assign(made.yaxis, { range: [0, 103], tickvals: [0, 25, 50, 75, 100], ticktext: ["0", "25", "50", "75", "100 %"] });
  } else {
    made.annotations.push({ text: suffix, showarrow: false, xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "right", yanchor: "bottom", xshift: -5, yshift: 2, font: { size: 11, color: colour("muted") } });
  }
  if (!isNarrow()) made.annotations.push(...apart(ends, data.unit === "percent" ? 103 : (largest / divisor) || 1, x.at(-1)));
  addMarks(made, data.marks, data.start, data.end);
  Plotly.react(lines, traces, made, CONFIG);
}

// Names at the ends of lines, moved so that none covers another.
function apart(ends, high, x) {
  const least = high * 0.085;
  let at = -Infinity;
  return ends.toSorted((a, b) => a.y - b.y).map((end) => {
    at = Math.max(end.y, at + least);
    return { x, y: at, xanchor: "left", xshift: 6, text: end.text, showarrow: false, font: { size: 12, color: colour(end.tint), weight: end.isWhole ? 700 : 400 } };
  });
}

function drawReasons() {
  if (!reasons) return;
  const made = layout(isNarrow() ? 8 : 150);
  const x = data.ts.map(moment);
  const traces = data.reasons.map(({ name, group, values }) => {
    const tint = colour(`r-${group}`) || colour({ cold: "cold", broken: "bad" }[group] ?? "recomputed");
    const trace = {
      x, y: values.map((value) => value ?? 0), name, type: "scatter", mode: "lines", stackgroup: "all",
      line: { width: 0.8, color: colour("surface") }, fillcolor: tint, hovertemplate: "%{y:.3~s} blocks/s",
    };
    if (PATTERNS[group]) {
      trace.fillpattern = { shape: PATTERNS[group], size: 5, solidity: 0.3, fgcolor: colour("surface"), bgcolor: tint };
    }
    return trace;
  });
  addMarks(made, data.marks, data.start, data.end);
  Plotly.react(reasons, traces, made, CONFIG);
}

function draw() {
  data = JSON.parse(document.getElementById("explorer-data").textContent);
  drawLines();
  drawReasons();
}

draw();
for (const chart of [lines, reasons]) if (chart) zoomByDragging(chart, secondsOf);
lines.on("plotly_click", ({ points }) => {
  const url = points.length === 1 ? points[0].data.meta : nearest(points);
  if (url) location.assign(url);
});

// All lines of a moment are hit at once: the one nearest to the pointer counts.
function nearest(points) {
  const y = lines.pointerY;
  if (y === undefined) return "";
  const distance = (point) => Math.abs(point.yaxis.l2p(point.y) + TOP - y);
  return points.toSorted((a, b) => distance(a) - distance(b))[0].data.meta;
}
lines.addEventListener("mousemove", (event) => {
  lines.pointerY = event.clientY - lines.getBoundingClientRect().top;
});
addEventListener("neve:theme", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.addEventListener("neve:parts", ({ detail }) => detail.has("chart") && draw());

async function copy(event) {
  if (!navigator.clipboard) return; // the link itself is what would be copied
  event.preventDefault();
  const link = event.currentTarget;
  const was = link.textContent;
  try {
    await navigator.clipboard.writeText(link.href);
  } catch {
    return location.assign(link.href);
  }
  link.textContent = "✔ Copied";
  setTimeout(() => { link.textContent = was; }, 1500);
}
document.querySelector("[data-copy-link]")?.addEventListener("click", copy);
