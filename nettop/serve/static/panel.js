// SPDX-License-Identifier: Apache-2.0
// Common behaviour of panels: they open and close, show problems and a note beside the title, and are hidden if their
// lens is not served.
"use strict";
import { byId, setText } from "./dom.js";
import { recall, remember } from "./store.js";

export function setUpPanel(id, lens, onToggle) {
  const root = byId(id);
  const part = (selector) => root.querySelector(selector);
  const notice = part(".notice"), aside = part(".aside"), empty = part(".empty");
  root.open = recall(`open.${id}`, true);
  let isOpen = root.open;
  root.addEventListener("toggle", () => {
    if (root.open === isOpen) return;
    isOpen = root.open;
    remember(`open.${id}`, isOpen);
    onToggle();
  });

  function showProblem(problem) {
    notice.hidden = problem === null;
    if (problem !== null) setText(notice, problemText(problem));
  }

  return {
    root,
    part,
    showProblem,
    showAside: (text) => setText(aside, text),
    showEmpty(text) {
      empty.hidden = text === "";
      setText(empty, text);
    },
    // Defaults of the interface to the dashboard.
    common: {
      isOpen: () => isOpen,
      fail: (query, problem) => showProblem(problem),
      showServed: (lenses) => (root.hidden = !lenses.includes(lens)),
    },
  };
}

// Return why a table has no rows: unavailable on this kernel or host, or empty.
export function whyEmpty(document, table, otherwise) {
  if (document.rows.length > 0) return "";
  return table in document.not_available ? `n/a here: ${document.not_available[table]}` : otherwise;
}

export function problemText({ title, detail, remedy }) {
  const sentences = [detail ?? title, remedy].filter((text) => text !== undefined && text !== "");
  return sentences.join(" — ");
}
