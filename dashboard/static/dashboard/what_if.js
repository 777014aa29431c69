// The curve, a slider beside each number of the form, and a look again while a simulation runs. The
// page says all of it without this.

const LOOK_AGAIN_MS = 2000;
const curve = document.getElementById("curve");
const data = curve && JSON.parse(document.getElementById("curve-data").textContent);

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// The hit rate between two points of the curve; null outside of it.
function between(gib) {
  const after = data.points.findIndex((point) => point.gib >= gib);
  if (after < 0) return null;
  const right = data.points[after];
  const left = data.points[after - 1];
  if (right.gib === gib) return right.hit;
  if (!left) return null;
  return left.hit + ((right.hit - left.hit) * (gib - left.gib)) / (right.gib - left.gib);
}

function line(name, y, tint, extra = {}) {
  return {
    x: data.points.map((point) => point.gib), y, name, type: "scatter", mode: "lines",
    line: { color: tint, width: 2 }, hovertemplate: "%{y:.1f} %", ...extra,
  };
}

function marker(name, { gib, hit }, symbol, tint, place) {
  return {
    x: [gib], y: [hit], name, type: "scatter", mode: "markers+text", text: [name],
    textposition: `${place} center`, textfont: { color: tint }, cliponaxis: false,
    marker: { symbol, size: 11, color: tint }, hovertemplate: "%{x:.2f} GiB: %{y:.1f} %",
  };
}

function draw(then = data.then) {
  const muted = colour("muted");
  const tint = colour("link");
  const edge = (sign) => data.points.map((point) => point.hit + sign * point.error);
  const none = { line: { width: 0 }, hoverinfo: "skip", hovertemplate: null };
  const traces = [
    line("low", edge(-1), tint, none),
    line("high", edge(1), tint, { ...none, fill: "tonexty", fillcolor: `${tint}22` }),
    line("hot and cold", data.points.map((point) => point.hit), tint),
    line("hot", data.points.map((point) => point.hot), colour("hot"), {
      line: { color: colour("hot"), width: 2, dash: "dot" },
    }),
    marker("now", data.now, "circle", colour("text"), "top"),
  ];
  if (then && then.hit !== null) traces.push(marker("then", then, "diamond", colour("well"), "bottom"));
  const axis = { fixedrange: true, gridcolor: colour("line"), zeroline: false, ticks: "" };
  Plotly.react(curve, traces, {
    margin: { l: 40, r: 14, t: 12, b: 34 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 11.5, color: muted },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("surface"), font: { color: colour("text"), size: 12 } },
    xaxis: { ...axis, rangemode: "tozero", title: { text: "GiB of hot quota" } },
    yaxis: { ...axis, range: [0, 100], ticksuffix: " %" },
  }, { displayModeBar: false, responsive: true });
}

// A slider beside each number. That of the hot quota moves the point along the curve; the other
// figures come from the simulation.
for (const input of document.querySelectorAll("[data-levers] input[data-most]")) {
  const label = document.querySelector(`label[for="${input.id}"]`).textContent;
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: "0", max: input.dataset.most, step: "any" });
  slider.value = input.value || input.dataset.empty;
  slider.setAttribute("aria-label", `${label}, slider`);
  slider.addEventListener("input", () => {
    input.value = String(Number(Number(slider.value).toPrecision(3)));
    input.dispatchEvent(new Event("input"));
  });
  input.addEventListener("input", () => {
    slider.value = input.value || input.dataset.empty;
    if (input.name !== "hot" || !curve) return;
    const gib = Number(input.value);
    draw(gib === data.now.gib ? null : { gib, hit: between(gib) });
  });
  input.closest(".lever").append(slider);
}

if (curve) {
  draw();
  addEventListener("neve:theme", () => draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
}
if (document.querySelector("[data-running]")) {
  // Not while somebody types: the form would lose it.
  setInterval(() => {
    if (!document.activeElement?.closest("[data-levers]")) location.reload();
  }, LOOK_AGAIN_MS);
}
