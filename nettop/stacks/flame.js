// SPDX-License-Identifier: Apache-2.0
// The flame graph in a file: flame_svg.py puts flame_graph.js before this. A written frame starts at data-at and is data-of
// samples wide.
{
  const svg = document.documentElement;
  const drawn = JSON.parse(svg.dataset.layout);
  const byId = (id) => document.getElementById(id);
  const field = byId("search"), input = field.firstElementChild, details = byId("details");
  const reset = byId("reset"), legend = byId("legend"), entries = [...legend.children];
  const corners = entries.map((entry) => {
    const corner = entry.querySelector("rect");
    return [+corner.getAttribute("x"), +corner.getAttribute("y")];
  });
  let isPicking = false;

  // Return the tree of the frames as written, whose titles become the details, shown without delay.
  function written() {
    const callers = [];
    for (const { dataset, children: [title, rect] } of document.querySelectorAll(".frame")) {
      const depth = +dataset.row, label = dataset.label, parent = callers[depth - 1] ?? null;
      callers[depth] = {
        parent, depth, at: +dataset.at, samples: +dataset.of, children: [], details: title.textContent,
        name: depth < 2 ? label : label.slice(2),
        category: { label: dataset.category, letter: label[0], background: rect.getAttribute("fill") },
      };
      parent?.children.push(callers[depth]);
      title.remove();
    }
    return callers[0];
  }

  // Lay the legend out in as many columns as fit; return the height of the image.
  function drawLegend(room) {
    const columns = Math.max(Math.floor(room / drawn.legendColumn), 1);
    entries.forEach((entry, number) => {
      const [x, y] = corners[number];
      const left = drawn.left + (number % columns) * drawn.legendColumn;
      const top = corners[0][1] + Math.floor(number / columns) * drawn.legendRow;
      entry.setAttribute("transform", `translate(${left - x}, ${top - y})`);
    });
    const top = corners.length ? corners[0][1] : +svg.getAttribute("height") - drawn.foot;
    return top + Math.ceil(entries.length / columns) * drawn.legendRow + drawn.foot;
  }

  const wide = () => Math.max(window.innerWidth - 16, 480);
  const room = () => wide() - 2 * drawn.left;

  function resize() {
    const width = wide(), height = drawLegend(room());
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    field.setAttribute("x", width - drawn.left - 240);
  }

  function onShow({ zoomed, pointed, matched }) {
    const share = ((100 * matched) / Math.max(zoomed.samples, 1)).toFixed(1);
    isPicking = matched !== null;
    reset.setAttribute("visibility", zoomed.parent === null ? "hidden" : "visible");
    byId("matched").textContent = isPicking ? `matched: ${share} % (${matched.toLocaleString("en")} samples)` : "";
    const visible = svg.getBoundingClientRect();
    const bottom = Math.min(window.innerHeight, visible.bottom) - visible.top;
    details.setAttribute("transform", `translate(0, ${bottom - 26})`);
    details.querySelector("text").textContent = pointed?.details ?? "";
    details.style.visibility = pointed === null ? "hidden" : "visible";
  }

  const graph = createGraph(byId("frames"), { ...drawn, input, reset, legend, narrowest: 0.1, room, onShow });

  window.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "f") {
      event.preventDefault();
      input.focus();
      input.select();
    } else if (event.key === "Escape" && isPicking) {
      input.value = "";
      graph.search();
    } else if (event.target !== input || event.key === "Escape") {
      graph.act(event);
    }
  });
  window.addEventListener("resize", () => {
    resize();
    graph.draw();
  });
  resize();
  graph.show(written());
}
