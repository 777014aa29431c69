// Numbers and times as words, as `dashboard/formats.py` writes them; a test compares the two.
// Unknown (null, undefined) is "—". Times are in the reader's zone, which the page names.

const NBSP = "\u00a0";
const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const COUNT_UNITS = ["", "k", "M", "G", "T"];
const SPANS = [[86_400, "d"], [3_600, "h"], [60, "min"]];

export const UNKNOWN = "—";
export const ZONE = document.documentElement.dataset.zone || "UTC";

const isUnknown = (value) => value === null || value === undefined || Number.isNaN(value);
const joined = (value, unit) => (unit ? `${value}${NBSP}${unit}` : value);

// Three significant digits, without trailing zeros after the point: 0, 4.2, 71.4, 812.
export function digits(value) {
  const magnitude = Math.abs(value);
  if (magnitude >= 100) return value.toFixed(0);
  return String(Number(value.toFixed(magnitude < 10 ? 2 : 1)));
}

// The divisor and unit under which a value reads best.
export function scale(value, step, units) {
  let divisor = 1;
  let place = 0;
  while (Math.abs(value) / divisor >= step * 0.9995 && place + 1 < units.length) {
    divisor *= step;
    place += 1;
  }
  return { divisor, unit: units[place] };
}

export function bytes(value, suffix = "") {
  if (isUnknown(value)) return UNKNOWN;
  const { divisor, unit } = scale(value, 1024, BYTE_UNITS);
  return joined(digits(value / divisor), unit + suffix);
}

export const rate = (value) => bytes(value, "/s");

export function count(value, unit = "") {
  if (isUnknown(value)) return UNKNOWN;
  if (Math.abs(value) < 10_000) {
    return joined(Number.isInteger(value) ? String(value) : digits(value), unit);
  }
  const { divisor, unit: prefix } = scale(value, 1000, COUNT_UNITS);
  return joined(digits(value / divisor) + prefix, unit);
}

// A ratio of 0…1. Only a true whole reads 100, only a true nothing reads 0.
export function percent(ratio) {
  if (isUnknown(ratio)) return UNKNOWN;
  const value = ratio * 100;
  if (value > 0 && value < 0.1) return joined("<0.1", "%");
  if (value > 99.9 && value < 100) return joined(">99.9", "%");
  return joined(value === 0 || value === 100 ? value.toFixed(0) : value.toFixed(1), "%");
}

export function milliseconds(value) {
  if (isUnknown(value)) return UNKNOWN;
  return value >= 10_000 ? joined(digits(value / 1000), "s") : joined(digits(value), "ms");
}

// 4 s, 3 min, 2 h, 5 d: rounded down, as one says an age.
export function duration(seconds) {
  if (isUnknown(seconds)) return UNKNOWN;
  const whole = Math.max(seconds, 0);
  for (const [size, unit] of SPANS) {
    if (whole >= 2 * size || (unit === "min" && whole >= size)) {
      return joined(String(Math.floor(whole / size)), unit);
    }
  }
  return joined(String(Math.floor(whole)), "s");
}

// The Swedish form is that of ISO 8601.
const WALL = new Intl.DateTimeFormat("sv-SE", {
  timeZone: ZONE, dateStyle: "short", timeStyle: "medium",
});

// Seconds since 1970 → "2026-11-30 14:05:00" in the reader's zone.
export const moment = (ts) => (isUnknown(ts) ? UNKNOWN : WALL.format(new Date(ts * 1000)));
export const clock = (ts) => (isUnknown(ts) ? UNKNOWN : moment(ts).slice(11));

// And back: what a chart's axis says is a wall time. Twice, as an offset may change in between.
export function secondsOf(wall) {
  const asked = Date.parse(`${wall.slice(0, 19).replace(" ", "T")}Z`) / 1000;
  let ts = asked;
  for (let i = 0; i < 2; i += 1) {
    ts += asked - Date.parse(`${moment(ts).replace(" ", "T")}Z`) / 1000;
  }
  return ts;
}
