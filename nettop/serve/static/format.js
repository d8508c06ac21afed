// SPDX-License-Identifier: Apache-2.0
// Formatting of quantities, as on nettop's screens: 38.2 Mb/s, 21.4 ±3.1 ms, 3.1%.
"use strict";

export const UNKNOWN = "–";
export const NOT_AVAILABLE = "n/a";

// A value ≥ `least` (in base units) is shown as value ÷ size, then the suffix.
function decimal(noun, base = 1) {
  const steps = [["E", 1e18, 2], ["P", 1e15, 2], ["T", 1e12, 2], ["G", 1e9, 2], ["M", 1e6, 1], ["k", 1e3, 1]];
  // A value that would round up to "1000 k" is shown as "1.0 M".
  const scales = steps.map(([prefix, size, decimals]) => ({
    least: 0.9995 * size * base,
    size: size * base,
    suffix: ` ${prefix}${noun}`,
    decimals,
  }));
  return [...scales, { least: 0, size: base, suffix: noun === "" ? "" : ` ${noun}`, decimals: 0 }];
}

function durations(second) {
  const [ms, us] = [second / 1e3, second / 1e6];
  const seconds = { least: 0.9995 * second, size: second, suffix: " s", decimals: 2 };
  // Values measured in µs are mostly shown in ms, so that a column of round-trip times is easy to compare.
  if (us <= 1) {
    return [
      seconds,
      { least: 0.0995 * ms, size: ms, suffix: " ms", decimals: 1 },
      { least: 0, size: us, suffix: " µs", decimals: 0 },
    ];
  }
  return [
    seconds,
    { least: 0.9995 * ms, size: ms, suffix: " ms", decimals: 1 },
    { least: 0.9995 * us, size: us, suffix: " µs", decimals: 1 },
    { least: 0, size: 1, suffix: " ns", decimals: 0 },
  ];
}

const SCALES = {
  bytes: decimal("B"),
  "bytes/s": decimal("b/s", 1 / 8),
  packets: decimal(""),
  "packets/s": decimal("p/s"),
  "ns/s": [{ least: 0, size: 1e7, suffix: "%", decimals: 2 }],
  us: durations(1e6),
  ns: durations(1e9),
};

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

function digits(value, scale) {
  const number = value / scale.size;
  if (number >= 99.95 || number === 0 || (scale.decimals === 0 && number >= 0.95)) return number.toFixed(0);
  // Base units are integers, but a small non-zero rate must not be shown as 0.
  if (scale.decimals === 0) return number >= 0.05 ? number.toFixed(1) : "<0.1";
  return number.toFixed(number >= 9.995 ? 1 : scale.decimals);
}

function percent(value) {
  const share = value * 100;
  if (share >= 99.95) return `${share.toFixed(0)}%`;
  if (share >= 0.095 || share === 0) return `${share.toFixed(1)}%`;
  return share >= 0.005 ? `${share.toFixed(2)}%` : "<0.01%";
}

const scaleOf = (value, unit) => SCALES[unit].find((scale) => value >= scale.least) ?? SCALES[unit].at(-1);
const isKnown = (value) => value !== null && value !== undefined;

export function count(value) {
  if (!isKnown(value)) return UNKNOWN;
  return Number.isInteger(value) ? whole.format(value) : tenths.format(value);
}

// Identifiers have no thousands separators.
export const identifier = (value) => (isKnown(value) ? String(value) : UNKNOWN);

export function human(value, unit) {
  if (!isKnown(value)) return UNKNOWN;
  if (unit === "ratio") return percent(value);
  if (!(unit in SCALES)) return count(value);
  const scale = scaleOf(value, unit);
  return digits(value, scale) + scale.suffix;
}

export function spread(value, deviation, unit) {
  if (!isKnown(value) || !isKnown(deviation)) return human(value, unit);
  const scale = scaleOf(value, unit), shown = digits(value, scale);
  const around = shown.includes(".") ? digits(deviation, scale) : (deviation / scale.size).toFixed(0);
  return `${shown} ±${around}${scale.suffix}`;
}

// Format a server time in the browser's time zone.
const pad = (number, width = 2) => String(number).padStart(width, "0");
export function clock(time, { hasMillis = false } = {}) {
  if (!isKnown(time)) return UNKNOWN;
  const at = new Date(time);
  const text = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return hasMillis ? `${text}.${pad(at.getMilliseconds(), 3)}` : text;
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
  if (BYTES.has(name) || name.startsWith("bytes_")) return "bytes";
  return name.includes("packets") ? "packets" : "";
}
