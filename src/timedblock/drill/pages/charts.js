// What the report and the trend share: colours, axes, sizes, printing.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const GUTTER = 62;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const drawn = new Map();

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const ink = (name) => () => colour(name);

function duration(seconds) {
  const text = (value, unit) => +value.toPrecision(3) + " " + unit;
  // Where three digits round up to the next unit, it is that one.
  if (seconds >= 0.9995) return text(seconds, "s");
  return seconds >= 0.9995e-3 ? text(seconds * 1e3, "ms") : text(seconds * 1e6, "µs");
}

// A logarithmic axis is marked at its powers of ten.
function decades() {
  const found = [];
  for (let at = Math.log10(DATA.low); at <= Math.log10(DATA.high) + 0.01; at++) {
    found.push(10 ** Math.round(at));
  }
  return found;
}

function axis(more) {
  return {
    stroke: ink("axis"), font: FONT, gap: 4,
    grid: { stroke: ink("grid"), width: 1 }, ticks: { stroke: ink("grid"), width: 1, size: 4 },
    ...more,
  };
}

// Draws a chart into its element, or draws it again in other colours or another size.
function place(element, make) {
  const size = { width: element.clientWidth, height: element.clientHeight };
  const known = drawn.get(element);
  if (known === undefined) {
    drawn.set(element, make(size));
    element.dataset.drawn = "yes";
  } else if (known.width !== size.width || known.height !== size.height) {
    known.setSize(size);
  } else {
    known.redraw(false, true);
  }
}

// Charts are drawn as they come near the screen, and all of them before the page is printed.
function show(charts) {
  const near = new IntersectionObserver(
    (entries) => entries.forEach((e) => e.isIntersecting && place(e.target, charts.get(e.target))),
    { rootMargin: "800px 0px" },
  );
  const resized = new ResizeObserver((entries) =>
    entries.forEach((e) => drawn.has(e.target) && place(e.target, charts.get(e.target))),
  );
  const all = (only) =>
    charts.forEach((make, element) => (!only || drawn.has(element)) && place(element, make));
  charts.forEach((_, element) => { near.observe(element); resized.observe(element); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all(true));
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    all(false);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    all(true);
  });
}
