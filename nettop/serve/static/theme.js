// SPDX-License-Identifier: Apache-2.0
// Runs before the page is drawn, so that it does not flash in the other theme.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("nettop.theme"));
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage, or with something else in it, the system's theme is used.
}
