// SPDX-License-Identifier: Apache-2.0
// Runs before the first paint, to avoid a flash of the other theme.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("nettop.theme"));
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // Fall back to the system's theme if storage is blocked or invalid.
}
