// SPDX-License-Identifier: Apache-2.0
// Formatting of quantities, as on nettop's screens: 38.2 Mb/s, 21.4 ±3.1 ms, 3.1%.

export const UNKNOWN = "–";
export const NOT_AVAILABLE = "n/a";

// A value ≥ `least` (in base units) is shown as value ÷ size, then the suffix.
const scale = (least, size, suffix, decimals) => ({ least, size, suffix, decimals });

function decimal(noun, base = 1) {
  const steps = [["E", 1e18, 2], ["P", 1e15, 2], ["T", 1e12, 2], ["G", 1e9, 2], ["M", 1e6, 1], ["k", 1e3, 1]];
  // A value that would round up to "1000 k" is shown as "1.0 M".
  const scales = steps.map(([prefix, size, decimals]) => scale(0.9995 * size * base, size * base, ` ${prefix}${noun}`, decimals));
  return [...scales, scale(0, base, noun === "" ? "" : ` ${noun}`, 0)];
}

const SCALES = {
  bytes: decimal("B"),
  "bytes/s": decimal("b/s", 1 / 8),
  packets: decimal(""),
  "packets/s": decimal("p/s"),
  "ns/s": [scale(0, 1e7, "%", 2)],
  // Values measured in µs are mostly shown in ms, so that a column of round-trip times is easy to compare.
  us: [scale(999_500, 1e6, " s", 2), scale(99.5, 1e3, " ms", 1), scale(0, 1, " µs", 0)],
  ms: [scale(999.5, 1e3, " s", 2), scale(0, 1, " ms", 1)],
  ns: [scale(999_500_000, 1e9, " s", 2), scale(999_500, 1e6, " ms", 1), scale(999.5, 1e3, " µs", 1), scale(0, 1, " ns", 0)],
};

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

function digits(value, { size, decimals }) {
  const number = value / size;
  if (number >= 99.95 || number === 0 || (decimals === 0 && number >= 0.95)) return number.toFixed(0);
  // Base units are integers, but a small non-zero rate must not be shown as 0.
  if (decimals === 0) return number >= 0.05 ? number.toFixed(1) : "<0.1";
  return number.toFixed(number >= 9.995 ? 1 : decimals);
}

function percent(value) {
  const share = value * 100;
  if (share >= 99.95) return `${share.toFixed(0)}%`;
  if (share >= 0.095 || share === 0) return `${share.toFixed(1)}%`;
  return share >= 0.005 ? `${share.toFixed(2)}%` : "<0.01%";
}

const scaleOf = (value, unit) => SCALES[unit].find(({ least }) => value >= least) ?? SCALES[unit].at(-1);
const isKnown = (value) => value !== null && value !== undefined;

export function count(value) {
  if (!isKnown(value)) return UNKNOWN;
  return Number.isInteger(value) ? whole.format(value) : tenths.format(value);
}

export function human(value, unit) {
  if (!isKnown(value)) return UNKNOWN;
  if (unit === "ratio") return percent(value);
  if (!(unit in SCALES)) return count(value);
  const chosen = scaleOf(value, unit);
  return digits(value, chosen) + chosen.suffix;
}

export function spread(value, deviation, unit) {
  if (!isKnown(value) || !isKnown(deviation)) return human(value, unit);
  const chosen = scaleOf(value, unit), shown = digits(value, chosen);
  const around = shown.includes(".") ? digits(deviation, chosen) : (deviation / chosen.size).toFixed(0);
  return `${shown} ±${around}${chosen.suffix}`;
}

// Format a server time in the browser's time zone.
const pad = (number, width = 2) => String(number).padStart(width, "0");
export function clock(time, { hasMillis = false } = {}) {
  if (!isKnown(time)) return UNKNOWN;
  const at = new Date(time);
  const text = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return hasMillis ? `${text}.${pad(at.getMilliseconds(), 3)}` : text;
}

// Format a moment of a recording in UTC, as nettop replay does.
export const utc = (time) => new Date(time).toISOString().slice(0, 19).replace("T", " ");

// Return the sum of the known values of a column; null if none of the rows has one.
export function sum(rows, column) {
  const known = rows.map((row) => row[column]).filter(isKnown);
  return known.length === 0 && rows.length > 0 ? null : known.reduce((total, value) => total + value, 0);
}

export function plural(noun, number) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

// Return the unit of a column of connections, by its name.
const BYTES = new Set(["bytes", "mss", "send_queue", "receive_queue"]);
export function unitOf(name) {
  if (name.endsWith("_per_s")) return `${unitOf(name.slice(0, -"_per_s".length))}/s`;
  if (name === "delivery_rate") return "bytes/s";
  if (name.endsWith("_ratio")) return "ratio";
  if (name.endsWith("_us")) return "us";
  if (name.endsWith("_ms")) return "ms";
  if (BYTES.has(name) || name.startsWith("bytes_")) return "bytes";
  return name.includes("packets") ? "packets" : "";
}
