// SPDX-License-Identifier: Apache-2.0
// Readings of the last minutes, oldest first. Bounded by time and by number, so that a page may stay open for days.
"use strict";

const MINUTES = 5;
export const WINDOW_MS = MINUTES * 60_000;
const MOST = 3000;

export function timeline({ windowMs = WINDOW_MS, onLeave = () => {} } = {}) {
  const readings = [];

  function leave(number) {
    for (const reading of readings.splice(0, number)) onLeave(reading);
  }

  // Returns whether the reading is new: after a reconnection the newest one comes once more.
  function push(reading) {
    const last = readings.at(-1);
    if (last !== undefined && reading.time === last.time) return false;
    // The server's clock was set back, or it is another server: what is here has no place on the time axis.
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

  // The place of the reading that is nearest to a time; of the newest where that is null.
  const indexAt = (time) => (time === null ? readings.length - 1 : nearest(time));
  const readingAt = (time) => readings[indexAt(time)];

  // The time that a key goes to from another one; null for a key that goes nowhere.
  function timeByKey({ key, shiftKey }, time) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[key];
    if (step === undefined || readings.length === 0) return null;
    return readings[Math.min(Math.max(indexAt(time) + step * (shiftKey ? 10 : 1), 0), readings.length - 1)].time;
  }

  return { readings, push, readingAt, timeByKey };
}

// The minutes that an axis of this length has labels for.
export function minutesShown(length) {
  const step = length < 420 ? 2 : 1;
  return Array.from({ length: MINUTES + 1 }, (_, minute) => minute).filter((minute) => minute % step === 0);
}

// Without a reading for so long there is a gap in the lines.
export const gapMs = (reading) => Math.max(3000 * (reading.intervalS ?? 1), 3000);

export const readingOf = (document, more) => ({
  time: Date.parse(document.time),
  intervalS: document.interval_s,
  ...more,
});
