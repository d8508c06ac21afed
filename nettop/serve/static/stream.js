// SPDX-License-Identifier: Apache-2.0
// The event stream: reopened when the views change, and with backoff when it ends.

// Maximum rows per table in a stream.
export const MOST_ROWS = 1000;

const LONGEST_MS = 10_000;
const FIRST_MS = 500;

// Return the path of a view below /api/v1/.
export function viewQuery(name, parameters = {}) {
  const wanted = Object.entries(parameters).filter(([, value]) => value !== "");
  const words = wanted.map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
  return words.length === 0 ? name : `${name}?${words.join("&")}`;
}

export const lensOf = (query) => query.split(/[.?]/, 1)[0];

// Return the problem document of an error response.
async function problemOf(response) {
  const general = { title: response.statusText, status: response.status, detail: `the server returned ${response.status}` };
  try {
    return { ...general, ...(await response.json()) };
  } catch {
    return general;
  }
}

// Return the document of a view or the problem with it; the other is null. Throws if the server is unreachable.
export async function read(query) {
  const response = await fetch(`api/v1/${query}`, { cache: "no-store" });
  return response.ok
    ? { document: await response.json(), problem: null }
    : { document: null, problem: await problemOf(response) };
}

// `prepare` is awaited before each attempt and returns the queries, or none if there is nothing to stream. `onState`
// gets "connecting", "live", "waiting" (with the time of the next attempt and perhaps why) or "stopped".
export function createStream({ prepare, onView, onProblem, onState }) {
  let source = null, timer = 0, delay = FIRST_MS, attempt = 0, liveSince = null, isRunning = false;

  function close() {
    attempt += 1; // invalidates an attempt in progress
    clearTimeout(timer);
    source?.close();
    source = null;
    liveSince = null;
  }

  // Reset the backoff only after a stream that lasted, not one that broke right away.
  function retry(why) {
    if (liveSince !== null && performance.now() - liveSince > LONGEST_MS) delay = FIRST_MS;
    close();
    onState({ state: "waiting", until: Date.now() + delay, why });
    timer = setTimeout(open, delay);
    delay = Math.min(delay * 2, LONGEST_MS);
  }

  async function open() {
    close();
    const mine = attempt;
    onState({ state: "connecting" });
    try {
      const queries = await prepare();
      if (mine !== attempt) return;
      if (queries.length > 0) listen(queries);
      else onState({ state: "live" });
    } catch (error) {
      if (mine === attempt) retry(error.message);
    }
  }

  function listen(queries) {
    const mine = new EventSource(`api/v1/stream?${queries.map((query) => `view=${encodeURIComponent(query)}`).join("&")}`);
    source = mine;
    const handle = (handler) => (event) => {
      if (mine !== source) return;
      liveSince ??= performance.now();
      onState({ state: "live" });
      handler(JSON.parse(event.data));
    };
    mine.addEventListener("view", handle(onView));
    mine.addEventListener("problem", handle(onProblem));
    mine.addEventListener("error", () => mine === source && retry("lost the connection to nettop"));
  }

  return {
    start() {
      isRunning = true;
      delay = FIRST_MS;
      open();
    },
    stop() {
      isRunning = false;
      close();
      onState({ state: "stopped" });
    },
    // Reopen with changed queries.
    renew() {
      if (isRunning) open();
    },
  };
}
