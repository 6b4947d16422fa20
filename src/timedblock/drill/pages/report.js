// The charts of one fault: response times, outcomes, throughput and breaker of each variant.
const OUTCOME_INK = ["ok", "unavailable", "wrong", "dishonest", "hung"];
const STACK_INK = DATA.stack.map((name) => name.replace(" ", "-"));

// Shapes differ as well as colours. `r`: half a dot's size, in the canvas's pixels.
const SHAPES = [
  (path, x, y, r) => { path.moveTo(x + r * 0.8, y); path.arc(x, y, r * 0.8, 0, 2 * Math.PI); },
  (path, x, y, r) => {
    path.moveTo(x, y - r * 1.2); path.lineTo(x + r * 1.2, y); path.lineTo(x, y + r * 1.2);
    path.lineTo(x - r * 1.2, y); path.closePath();
  },
  (path, x, y, r) => {
    path.moveTo(x - r, y - r); path.lineTo(x + r, y + r);
    path.moveTo(x + r, y - r); path.lineTo(x - r, y + r);
  },
  (path, x, y, r) => path.rect(x - r, y - r, 2 * r, 2 * r),
  (path, x, y, r) => {
    path.moveTo(x, y - r * 1.6); path.lineTo(x + r * 1.5, y + r * 1.1);
    path.lineTo(x - r * 1.5, y + r * 1.1); path.closePath();
  },
];

// uPlot draws the points of a series along the path that this gives.
function points(shape, lined) {
  return (u, series, from, to) => {
    const path = new Path2D(), xs = u.data[0], ys = u.data[series];
    const r = u.series[series].points.size / 2 * devicePixelRatio;
    for (let i = from; i <= to; i++) {
      if (ys[i] != null) shape(path, u.valToPos(xs[i], "x", true), u.valToPos(ys[i], "y", true), r);
    }
    return { stroke: lined ? path : null, fill: lined ? null : path, clip: null, flags: 3 };
  };
}

function decode(load, fault) {
  const bytes = Uint8Array.from(atob(load.dots), (c) => c.charCodeAt(0)).buffer;
  const n = load.count;
  const scaled = { x: new Uint16Array(bytes, 0, n), y: new Uint16Array(bytes, 2 * n, n) };
  const kinds = new Uint8Array(bytes, 4 * n, n);
  const reach = Math.log(DATA.high / DATA.low);
  const rows = [];
  for (let i = 0; i < n; i++) {
    const at = (scaled.x[i] / 65535) * fault.end;
    const took = DATA.low * Math.exp((scaled.y[i] / 65535) * reach);
    rows.push([at, took, DATA.kinds[kinds[i]][0], kinds[i]]);
  }
  return rows;
}

// One table for uPlot: x, a column for each outcome, the limit, the learnt limit.
function table(load, fault) {
  const LIMIT = 5, LEARNT = 6;
  const rows = decode(load, fault);
  if (load.limit !== null) rows.push([0, load.limit, LIMIT], [fault.end, load.limit, LIMIT]);
  load.learnt[0].forEach((at, i) => rows.push([at, load.learnt[1][i], LEARNT]));
  rows.push([0, null, 0], [fault.end, null, 0]);
  rows.sort((a, b) => a[0] - b[0]);
  const columns = [rows.map((row) => row[0])];
  for (let c = 0; c <= LEARNT; c++) {
    columns.push(rows.map((row) => (row[2] === c ? row[1] : null)));
  }
  return { columns, kinds: rows.map((row) => row[3]) };
}

// What was on when: a band, and the fault's name if the heading doesn't say it.
function bands(fault, paint) {
  return (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
    fault.spans.forEach(([name, since, until]) => {
      const left = u.valToPos(since, "x", true), right = u.valToPos(until, "x", true);
      paint(ctx, bbox, name, left, right - left);
    });
    ctx.restore();
  };
}

function shade(ctx, bbox, name, left, width) {
  ctx.fillStyle = colour("fault");
  ctx.fillRect(left, bbox.top, width, bbox.height);
  ctx.fillStyle = colour("fault-edge");
  ctx.fillRect(left, bbox.top, devicePixelRatio, bbox.height);
  ctx.fillRect(left + width - devicePixelRatio, bbox.top, devicePixelRatio, bbox.height);
}

function write(ctx, bbox, name, left, width) {
  const pad = 5 * devicePixelRatio;
  ctx.font = FONT.replace("11px", 11 * devicePixelRatio + "px");
  ctx.fillStyle = colour("axis"); ctx.textBaseline = "bottom"; ctx.textAlign = "left";
  ctx.fillText(name, left + pad, bbox.top + bbox.height - pad / 2, width - 2 * pad);
}

// Where uPlot would show just the data, the whole load is shown; else what was dragged.
function whole(xs, end) {
  const first = xs[0], last = xs[xs.length - 1];
  return (u, from, to) => (from === first && to === last ? [0, end] : [from, to]);
}

function chart(element, fault, size, options, data) {
  return new uPlot({
    ...size, legend: { show: false }, pxAlign: 0, padding: [6, 16, 0, 0],
    cursor: {
      y: false, points: { show: false }, drag: { x: true, y: false },
      sync: { key: fault.key, setSeries: false },
    },
    ...options,
    scales: { x: { time: false, range: whole(data[0], fault.end) }, ...options.scales },
    hooks: { drawClear: [bands(fault, shade)], ...options.hooks },
  }, data, element);
}

const times = (u, splits) => splits.map((v, i) => (i === splits.length - 1 ? v + " s" : v));
const xAxis = () => axis({ values: times, size: 24, space: 40 });
const yAxis = (more) => axis({ size: GUTTER, space: 22, ...more });

function dots(element, fault, load) {
  const { columns, kinds } = table(load, fault);
  const many = load.count > 6000;
  const series = OUTCOME_INK.map((name, i) => ({
    label: DATA.outcomes[i], stroke: ink(name), paths: () => null,
    points: {
      show: true, size: i === 0 ? (many ? 2.4 : 3.4) : 4.6, width: i === 2 ? 1.7 : 0,
      stroke: ink(name), fill: ink(name), paths: points(SHAPES[i], i === 2),
    },
  }));
  const line = (name, dash, width, paths) => ({
    label: name, stroke: ink(name), width, dash, paths, spanGaps: true, points: { show: false },
  });
  return (size) => chart(element, fault, size, {
    series: [{}, ...series, line("limit", [7, 4], 1.5, uPlot.paths.linear()),
      line("learnt", [], 2, uPlot.paths.stepped({ align: 1 }))],
    scales: { y: { distr: 3, log: 10, range: [DATA.low, DATA.high] } },
    axes: [xAxis(), yAxis({
      splits: decades, filter: (u, splits) => splits, values: (u, splits) => splits.map(duration),
    })],
    hooks: { setCursor: [tip(kinds)], drawAxes: fault.named ? [bands(fault, write)] : [] },
  }, columns);
}

// The nearest call to the pointer, told in words.
function tip(kinds) {
  let box = null;
  return (u) => {
    const found = u.cursor.left >= 0 && u.cursor.event ? nearest(u, 14) : null;
    if (box === null) {
      box = u.over.appendChild(document.createElement("div"));
      box.className = "tip";
    }
    box.hidden = found === null;
    if (found === null) return;
    const [outcome, error] = DATA.kinds[kinds[found.i]];
    const at = u.data[0][found.i].toFixed(3);
    box.textContent = `${at} s: ${duration(found.y)}, ${DATA.outcomes[outcome]}` +
      (error ? ` (${error})` : "");
    const right = found.px > u.over.clientWidth / 2;
    box.style.left = right ? "" : found.px + 8 + "px";
    box.style.right = right ? u.over.clientWidth - found.px + 8 + "px" : "";
    box.style.top = Math.max(0, found.py - 26) + "px";
  };
}

function nearest(u, reach) {
  const { left, top, idx } = u.cursor;
  const xs = u.data[0];
  let best = null, least = reach;
  const look = (i) => {
    const px = u.valToPos(xs[i], "x");
    for (let s = 1; s <= OUTCOME_INK.length; s++) {
      const y = u.data[s][i];
      if (y == null) continue;
      const py = u.valToPos(y, "y"), far = Math.hypot(px - left, py - top);
      if (far < least) { least = far; best = { i, y, px, py }; }
    }
    return Math.abs(px - left) <= reach;
  };
  for (let i = idx ?? 0; i < xs.length && look(i); i++);
  for (let i = (idx ?? 0) - 1; i >= 0 && look(i); i--);
  return best;
}

const starts = (bars) => bars.finished.map((_, i) => i * bars.width);

function hatch(name) {
  return (u) => {
    const tile = document.createElement("canvas");
    const size = tile.width = tile.height = Math.round(6 * devicePixelRatio);
    const ctx = tile.getContext("2d");
    ctx.strokeStyle = colour(name); ctx.lineWidth = 1.2 * devicePixelRatio;
    ctx.beginPath();
    for (const shift of [-size, 0, size]) { ctx.moveTo(shift, size); ctx.lineTo(shift + size, 0); }
    ctx.stroke();
    return u.ctx.createPattern(tile, "repeat");
  };
}

function stack(element, fault, load) {
  const { bars } = load;
  const sums = [];
  bars.stack.reduce((below, row) => {
    const sum = row.map((v, i) => v + below[i]);
    sums.push(sum);
    return sum;
  }, bars.finished.map(() => 0));
  // The whole first, then what lies under it: each covers the lower part of the one before.
  const layers = STACK_INK.map((name, i) => ({ name, sum: sums[i], own: bars.stack[i] }))
    .reverse().filter((layer) => layer.own.some((v) => v > 0));
  return (size) => chart(element, fault, size, {
    series: [{}, ...layers.map(({ name }) => ({
      label: name, stroke: ink(name), width: 0,
      fill: name === "not-begun" ? hatch(name) : ink(name),
      paths: uPlot.paths.bars({ size: [1, Infinity], align: 1, gap: 1 }), points: { show: false },
    }))],
    scales: { y: { range: [0, fault.stack_top] } },
    axes: [xAxis(), yAxis()],
  }, [starts(bars), ...layers.map((layer) => layer.sum)]);
}

function flow(element, fault, load) {
  const { bars } = load;
  const xs = [...starts(bars), fault.end];
  const held = (row) => [...row, row[row.length - 1]];
  const step = uPlot.paths.stepped({ align: 1 });
  const line = (name, more) => ({
    label: name, stroke: ink(name), width: 1.2, paths: step, points: { show: false }, ...more,
  });
  const offered = bars.offered === null ? [] : [line("offered", { dash: [5, 3] })];
  return (size) => chart(element, fault, size, {
    series: [{}, line("served", { width: 1, fill: () => colour("served") + "55" }),
      line("finished"), ...offered],
    scales: { y: { range: [0, fault.flow_top] } },
    axes: [xAxis(), yAxis()],
  }, [xs, held(bars.served), held(bars.finished), ...offered.map(() => xs.map(() => bars.offered))]);
}

function breaker(element, fault, load) {
  const [at, states] = load.breaker;
  const xs = [0, ...at, fault.end];
  const ys = [states[0], ...states, states[states.length - 1]];
  return (size) => chart(element, fault, size, {
    series: [{}, {
      label: "breaker", stroke: ink("breaker"), width: 1.6, points: { show: false },
      fill: () => colour("breaker") + "33", paths: uPlot.paths.stepped({ align: 1 }),
    }],
    scales: { y: { range: [-0.15, 2.2] } },
    axes: [xAxis(), yAxis({
      splits: [0, 1, 2], values: (u, splits) => splits.map((v) => DATA.breaker[v]),
    })],
  }, [xs, ys]);
}

const PARTS = { dots, stack, flow, breaker };
const charts = new Map();
DATA.faults.forEach((fault, number) => { fault.key = "fault-" + number; });
document.querySelectorAll(".load").forEach((figure) => {
  const fault = DATA.faults[figure.dataset.fault], load = fault.loads[figure.dataset.load];
  figure.querySelectorAll(".chart[role]").forEach((element) => {
    charts.set(element, (size) => PARTS[element.dataset.part](element, fault, load)(size));
  });
});
show(charts);
