// Letters of what changed, on a Plotly layout.

import { moment } from "./formats.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Plotly reads its texts as HTML with links, and tenants choose names.
export const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// marks: [{ at, letter, words }], times in seconds since 1970. Letters of one moment stand beside
// each other as one label.
export function addMarks(layout, marks, startS, endS) {
  const least = (endS - startS) / 60;
  const groups = [];
  for (const each of marks.toSorted((a, b) => a.at - b.at)) {
    const last = groups.at(-1);
    if (last && each.at - last.at < least) last.marks.push(each);
    else groups.push({ at: each.at, marks: [each] });
  }
  for (const { at, marks: together } of groups) {
    const x = moment(at);
    layout.shapes.push({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour("text"), width: 1, dash: "dot" }, opacity: 0.5 });
    const letters = [...new Set(together.map((each) => each.letter))].join("");
    layout.annotations.push({
      x, y: 1, yref: "paper", yanchor: "bottom", text: letters.slice(0, 4), showarrow: false,
      hovertext: together.slice(0, 6).map((each) => plain(each.words)).join("<br>"),
      font: { size: 10, color: colour("surface"), weight: 700 }, bgcolor: colour("text"), bordercolor: colour("text"), borderpad: 1.5,
    });
  }
}
