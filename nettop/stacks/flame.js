// SPDX-License-Identifier: Apache-2.0
// Zoom, search and details for a flame graph drawn by flame_svg.py, which puts flame_graph.js before this. A frame starts
// at data-at and is data-of samples wide.
{
  const NARROWEST = 0.1;
  const svg = document.documentElement;
  const drawn = JSON.parse(svg.dataset.layout);
  const byId = (id) => document.getElementById(id);
  const field = byId("search"), box = field.firstElementChild, details = byId("details");
  const entries = [...document.querySelectorAll(".entry")];
  const corners = entries.map((entry) => {
    const corner = entry.querySelector("rect");
    return [+corner.getAttribute("x"), +corner.getAttribute("y")];
  });
  const frames = [...document.querySelectorAll(".frame")].map((group) => ({
    group,
    box: group.querySelector("rect"),
    text: group.querySelector("text"),
    title: group.querySelector("title").textContent,
    at: +group.dataset.at,
    samples: +group.dataset.of,
    depth: +group.dataset.row,
    children: [],
    category: group.dataset.category,
    label: group.dataset.label,
  }));
  const root = frames[0], callers = [];
  for (const frame of frames) {
    frame.parent = callers[frame.depth - 1] ?? null;
    frame.parent?.children.push(frame);
    callers[frame.depth] = frame;
  }
  let zoomed = root, picked = null;

  function place(frame, x, width, isAbove) {
    frame.group.setAttribute("display", "inline");
    frame.group.classList.toggle("above", isAbove);
    frame.box.setAttribute("x", x);
    frame.box.setAttribute("width", width);
    frame.text.setAttribute("x", x + 3);
    frame.text.textContent = fitting(frame.label, Math.trunc((width - 4) / drawn.char));
  }

  // Lay the legend out in as many columns as fit; return the height of the image.
  function drawLegend(room) {
    const columns = Math.max(Math.floor(room / drawn.legendColumn), 1);
    entries.forEach((entry, number) => {
      const [x, y] = corners[number];
      const left = drawn.margin + (number % columns) * drawn.legendColumn;
      const top = corners[0][1] + Math.floor(number / columns) * drawn.legendRow;
      entry.setAttribute("transform", `translate(${left - x}, ${top - y})`);
    });
    const top = corners.length ? corners[0][1] : +svg.getAttribute("height") - drawn.foot;
    return top + Math.ceil(entries.length / columns) * drawn.legendRow + drawn.foot;
  }

  function draw() {
    const width = Math.max(window.innerWidth - 16, 480);
    const room = width - 2 * drawn.margin, height = drawLegend(room);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    field.setAttribute("x", width - drawn.margin - 240);
    for (const frame of frames) frame.group.setAttribute("display", "none");
    for (const { node, x, width, isAbove } of layout(zoomed, room, NARROWEST)) place(node, drawn.margin + x, width, isAbove);
    byId("reset").setAttribute("visibility", zoomed === root ? "hidden" : "visible");
    showMatched();
  }

  function zoom(frame) {
    zoomed = frame;
    draw();
  }

  function showMatched() {
    const samples = picked === null ? 0 : samplesOf(zoomed, picked);
    const share = ((100 * samples) / Math.max(zoomed.samples, 1)).toFixed(1);
    byId("matched").textContent = picked === null ? "" : `matched: ${share} % (${samples.toLocaleString("en")} samples)`;
  }

  function pick(test, category) {
    picked = test;
    byId("frames").classList.toggle("picking", test !== null);
    byId("legend").classList.toggle("picking", category !== undefined);
    for (const frame of frames) frame.group.classList.toggle("hit", test !== null && test(frame));
    for (const entry of entries) entry.classList.toggle("hit", entry.dataset.category === category);
    showMatched();
  }

  function show(text) {
    const visible = svg.getBoundingClientRect();
    const bottom = Math.min(window.innerHeight, visible.bottom) - visible.top;
    details.setAttribute("transform", `translate(0, ${bottom - 26})`);
    details.querySelector("text").textContent = text;
    details.style.visibility = text === "" ? "hidden" : "visible";
  }

  for (const frame of frames) {
    frame.group.querySelector("title").remove(); // the details line shows it without delay instead
    frame.group.addEventListener("click", () => zoom(frame));
    frame.group.addEventListener("mouseenter", () => show(frame.title));
    frame.group.addEventListener("mouseleave", () => show(""));
  }
  for (const entry of entries) {
    entry.addEventListener("click", () => {
      const category = entry.dataset.category, isOff = entry.classList.contains("hit");
      box.value = "";
      if (isOff) pick(null);
      else pick((frame) => frame.depth > 0 && frame.category === category, category);
    });
  }
  byId("reset").addEventListener("click", () => zoom(root));
  box.addEventListener("input", () => pick(search(box.value, (frame) => frame.label)));
  window.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "f") {
      event.preventDefault();
      box.focus();
      box.select();
    } else if (event.key === "Escape" && picked !== null) {
      box.value = "";
      pick(null);
    } else if (event.key === "Escape") {
      zoom(root);
    }
  });
  window.addEventListener("resize", draw);
  draw();
}
