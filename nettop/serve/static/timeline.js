// SPDX-License-Identifier: Apache-2.0
// Readings of the last minutes, oldest first, bounded by age and number so that a page can stay open for days.
"use strict";

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

// Return the minutes labelled on an axis of this length.
export function minutesShown(length) {
  const step = length < 420 ? 2 : 1;
  return Array.from({ length: MINUTES + 1 }, (_, minute) => minute).filter((minute) => minute % step === 0);
}

// Milliseconds without a reading that leave a gap in the lines.
export const gapMs = (reading) => Math.max(3000 * (reading.intervalS ?? 1), 3000);

export const readingOf = (document, more) => ({
  time: Date.parse(document.time),
  intervalS: document.interval_s,
  ...more,
});
