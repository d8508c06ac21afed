// SPDX-License-Identifier: Apache-2.0
// What all panels have: they open and close, say what is wrong, have a word beside their title, and are there while
// their lens is served.
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
    // What the dashboard wants of every panel, where no panel differs.
    common: {
      isOpen: () => isOpen,
      fail: (query, problem) => showProblem(problem),
      showServed: (lenses) => (root.hidden = !lenses.includes(lens)),
    },
  };
}

// Why a table has no rows: this kernel or host cannot give them, or there are none.
export function whyEmpty(document, table, otherwise) {
  if (document.rows.length > 0) return "";
  return table in document.not_available ? `n/a here: ${document.not_available[table]}` : otherwise;
}

export function problemText({ title, detail, remedy }) {
  const sentences = [detail ?? title, remedy].filter((text) => text !== undefined && text !== "");
  return sentences.join(" — ");
}
