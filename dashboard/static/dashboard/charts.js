// Charts over time. Numbers come raw; units and steps come from the server's one formatter. Times
// are in the reader's zone; dragging over a chart zooms the page.

import { digits, moment, scale, secondsOf } from "./formats.js";
import { addMarks } from "./marks.js";
import { zoomByDragging } from "./scope.js";

const AXES = JSON.parse(document.getElementById("chart-axes").textContent);

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Round numbers from `low` to `high`, three to six of them.
function ticksBetween(low, high) {
  const rough = (high - low) / 5;
  if (!(rough > 0)) return [0];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n += 1) ticks.push(n * step);
  return ticks;
}

// lines: [{ key, name, colour, sign, fill, stack }]
export class Chart {
  constructor(element, axis, lines, { isStacked = false } = {}) {
    Object.assign(this, { element, axis, lines, isStacked });
  }

  draw(series, startS, endS, marks = []) {
    // What lies before the first report is unknown: no line there, not even at zero.
    const known = series.ts.findIndex((_, i) => this.lines.some(({ key }) => series[key][i] !== null));
    const first = known < 0 ? series.ts.length : known;
    const columns = this.lines.map((line) => series[line.key].slice(first));
    const times = series.ts.slice(first);
    const sumAt = (i) => columns.reduce((sum, column) => sum + (column[i] ?? 0), 0);
    let high = 0;
    let low = 0;
    times.forEach((_, i) => {
      if (this.isStacked) high = Math.max(high, sumAt(i));
      this.lines.forEach((line, n) => {
        const value = (columns[n][i] ?? 0) * line.sign;
        high = Math.max(high, value);
        low = Math.min(low, value);
      });
    });
    const { divisor, unit } = scale(Math.max(high, -low), AXES[this.axis].step, AXES[this.axis].units);
    const top = (high === 0 && low === 0 ? 1 : high) / divisor;
    const ticks = ticksBetween(low / divisor, top);
    const x = times.map(moment);
    const traces = this.lines.map((line, n) => {
      const values = columns[n].map((value) => (value === null ? null : value / divisor));
      const tint = colour(line.colour);
      return {
        x,
        y: values.map((value) => (value === null ? null : value * line.sign)),
        text: values.map((value) => (value === null ? "—" : `${digits(value)} ${unit}`)),
        name: line.name,
        type: "scatter",
        mode: times.length === 1 ? "lines+markers" : "lines", // one point makes no line
        line: { color: tint, width: 1.5, shape: "linear" },
        hovertemplate: `%{text}`,
        ...(this.isStacked
          ? { stackgroup: "all", fillcolor: `${tint}${line.fill}` }
          : { fill: "tozeroy", fillcolor: `${tint}${line.fill}` }),
      };
    });
    const muted = colour("muted");
    const layout = {
      margin: { l: 46, r: 12, t: 16, b: 20 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 11.5, color: muted },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      showlegend: false,
      dragmode: "zoom",
      hovermode: "x unified",
      hoverlabel: {
        bgcolor: colour("surface"),
        bordercolor: colour("line-strong"),
        font: { color: colour("text"), size: 12 },
      },
      xaxis: {
        type: "date",
        range: [moment(startS), moment(endS)],
        showgrid: false,
        zeroline: false,
        showline: true,
        linecolor: colour("line-strong"),
        ticks: "",
        tickangle: 0,
        nticks: Math.min(8, Math.max(2, Math.floor(this.element.clientWidth / 64))),
        tickformat: endS - startS > 90_000 ? "%b %d" : "%H:%M",
        hoverformat: "%H:%M:%S",
      },
      yaxis: {
        fixedrange: true,
        range: [(low / divisor) * 1.08, top * 1.08],
        tickvals: ticks,
        ticktext: ticks.map((tick) => digits(Math.abs(tick))), // written bytes stand below the axis
        gridcolor: colour("line"),
        zeroline: low < 0,
        zerolinecolor: colour("line-strong"),
        ticks: "",
      },
      shapes: [],
      annotations: [{
        text: unit, showarrow: false, xref: "paper", yref: "paper", x: 0, y: 1,
        xanchor: "right", yanchor: "bottom", xshift: -5, yshift: 2, font: { size: 11, color: muted },
      }],
    };
    addMarks(layout, marks, startS, endS);
    Plotly.react(this.element, traces, layout, {
      displayModeBar: false, responsive: true, doubleClick: false, scrollZoom: false,
    });
    zoomByDragging(this.element, secondsOf);
  }
}
