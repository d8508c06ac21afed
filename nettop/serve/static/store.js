// SPDX-License-Identifier: Apache-2.0
// Persistent settings. If storage is blocked or full, they last as long as the page.

const chosen = new Map();

export function recall(name, otherwise) {
  if (chosen.has(name)) return chosen.get(name);
  try {
    const text = localStorage.getItem(`nettop.${name}`);
    const value = text === null ? otherwise : JSON.parse(text);
    return typeof value === typeof otherwise ? value : otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  chosen.set(name, value);
  try {
    localStorage.setItem(`nettop.${name}`, JSON.stringify(value));
  } catch {
    // Kept in memory only.
  }
}
