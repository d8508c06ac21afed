// SPDX-License-Identifier: Apache-2.0
// Readings of the last minutes, oldest first, bounded by age and number so that a page can stay open for days.
import { announce } from "./dom.js";

const MINUTES = 5;
export const WINDOW_MS = MINUTES * 60_000;
const MOST = 3000;

export function timeline({ windowMs = WINDOW_MS, onLeave = () => {} } = {}) {
  const readings = [];

  function leave(number) {
    for (const reading of readings.splice(0, number)) onLeave(reading);
  }

  // Add a reading. Return whether it is new: after a reconnect the newest one is sent again.
  function push(reading) {
    const last = readings.at(-1);
    if (last !== undefined && reading.time === last.time) return false;
    // The server's clock was set back or the server changed: drop readings that no longer fit the time axis.
    if (last !== undefined && reading.time < last.time) leave(readings.length);
    readings.push(reading);
    const first = readings.findIndex((each) => each.time > reading.time - windowMs);
    leave(Math.max(first, readings.length - MOST));
    return true;
  }

  function nearest(time) {
    let [best, distance] = [-1, Infinity];
    readings.forEach((reading, at) => {
      if (Math.abs(reading.time - time) <= distance) [best, distance] = [at, Math.abs(reading.time - time)];
    });
    return best;
  }

  // Return the index of the reading nearest to a time; of the newest if it is null.
  const indexAt = (time) => (time === null ? readings.length - 1 : nearest(time));
  const readingAt = (time) => readings[indexAt(time)];

  // Return the time to which a key moves the cursor; null for other keys.
  function timeByKey({ key, shiftKey }, time) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[key];
    if (step === undefined || readings.length === 0) return null;
    return readings[Math.min(Math.max(indexAt(time) + step * (shiftKey ? 10 : 1), 0), readings.length - 1)].time;
  }

  return { readings, push, readingAt, timeByKey };
}

// Return the time axis of a chart, now at its right end: places of times, times of places, and labels.
export function timeAxis(width, margin, now) {
  const across = width - margin.left - margin.right, step = across < 420 ? 2 : 1;
  const x = (time) => margin.left + across * (1 - (now - time) / WINDOW_MS);
  const minutes = Array.from({ length: Math.floor(MINUTES / step) + 1 }, (_, number) => number * step);
  const labels = minutes.map((minute) => ({
    x: x(now - minute * 60_000),
    text: minute === 0 ? "newest" : `−${minute} min`,
    align: minute === 0 ? "end" : minute === MINUTES ? "start" : "center",
  }));
  return { x, labels, timeAt: (place) => now - WINDOW_MS * (1 - (place - margin.left) / across) };
}

// Return the lines through the known values, each a list of [x, y]: a new one begins after a gap.
export function lines(readings, valueOf, x, y) {
  const found = [];
  let before = null;
  for (const reading of readings) {
    const value = valueOf(reading);
    if (value !== null && (before === null || reading.time - before > gapMs(reading))) found.push([]);
    if (value !== null) found.at(-1).push([x(reading.time), y(value)]);
    before = value === null ? null : reading.time;
  }
  return found;
}

export const joined = (line) => line.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
export const pathOf = (found) => found.map((line) => `M${joined(line)}`).join("");

// Follow the pointer and the arrow keys over a chart. `placeOf` returns the place of a pointer event; `move` gets a
// place with a `time`, or null, and returns a text to announce.
export function followCursor(element, past, placeOf, move) {
  let under = null;
  const go = (place) => (past.readings.length === 0 ? "" : move((under = place)));
  element.addEventListener("pointermove", (event) => past.readings.length > 0 && go(placeOf(event)));
  element.addEventListener("pointerleave", () => go(null));
  element.addEventListener("blur", () => go(null));
  element.addEventListener("keydown", (event) => {
    const time = past.timeByKey(event, under?.time ?? null);
    if (time === null) return;
    event.preventDefault();
    announce(go({ time }));
  });
}

// Milliseconds without a reading that leave a gap in the lines.
const gapMs = (reading) => Math.max(3000 * (reading.intervalS ?? 1), 3000);

export const readingOf = (document, more) => ({
  time: Date.parse(document.time),
  intervalS: document.interval_s,
  ...more,
});
