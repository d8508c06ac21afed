// SPDX-License-Identifier: Apache-2.0
// The findings above the panels: a sentence each, the worst first.
import { byId, make } from "./dom.js";
import { human } from "./format.js";
import { viewQuery } from "./stream.js";

const SHOWN = 5;
const TONES = { problem: "bad", warning: "warn", hint: "dim" };

export const FINDINGS = viewQuery("findings", {
  columns: "id,severity,finding,lasted,advice",
  sort: "rank",
  limit: String(SHOWN),
});

export function createFindings() {
  const root = byId("findings");
  let newest = null;

  function draw() {
    const rows = newest?.rows ?? [];
    const more = (newest?.total ?? 0) - rows.length;
    root.replaceChildren(...rows.map(item), ...(more > 0 ? [make("li", { class: "dim" }, `and ${more} more`)] : []));
    root.hidden = rows.length === 0;
  }

  // Colour only repeats the word.
  function item(row) {
    const word = row.severity === "problem" ? "" : `${row.severity}: `;
    const age = make("span", { class: "dim" }, ` for ${human(row.lasted, "ns")}`);
    return make("li", { class: TONES[row.severity], title: row.advice ?? "" }, `▲ ${word}${row.finding}`, age);
  }

  return {
    draw,
    isOpen: () => true,
    queries: () => [FINDINGS],
    take: (query, document) => (newest = document),
    fail() {
      newest = null;
      draw();
    },
    showServed: () => {},
  };
}
