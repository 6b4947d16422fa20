// The trend's charts: goodput and the slowest call of each variant, run by run.
const LINES = [
  { ink: "served", dash: [] }, { ink: "unavailable", dash: [6, 3] },
  { ink: "dishonest", dash: [2, 3] }, { ink: "finished", dash: [9, 3, 2, 3] },
];
// Ours is the whole line, wherever it stands.
const others = DATA.variants.filter((name) => name !== DATA.ours);
const style = (name) =>
  LINES[name === DATA.ours ? 0 : 1 + (others.indexOf(name) % (LINES.length - 1))];

const SCALES = {
  goodput: () => ({
    y: { range: [0, 1.04] },
    axis: { splits: [0, 0.5, 1], values: (u, splits) => splits.map((v) => v * 100 + "%") },
  }),
  worst: () => ({
    y: { distr: 3, log: 10, range: [DATA.low, DATA.high] },
    axis: { splits: decades, filter: (u, splits) => splits, values: (u, splits) => splits.map(duration) },
  }),
};

function line(name) {
  const { ink: of, dash } = style(name);
  const ours = name === DATA.ours;
  return {
    label: name, stroke: ink(of), width: ours ? 2.2 : 1.4, dash,
    points: { show: true, size: ours ? 5 : 4, fill: ink(of), stroke: ink(of), width: 0 },
  };
}

const utc = (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC");

// Times of the day, or days where there are many.
function moments(u, splits) {
  const days = splits[splits.length - 1] - splits[0] > 2 * 86400;
  return splits.map((at) => new Date(at * 1e3).toISOString().slice(...(days ? [5, 10] : [11, 16])));
}

function trend(element) {
  const part = element.dataset.part, values = DATA.faults[element.dataset.fault][part];
  const { y, axis: more } = SCALES[part]();
  // Ours is drawn last, over the others.
  const order = [...DATA.variants.keys()].sort(
    (a, b) => (DATA.variants[a] === DATA.ours) - (DATA.variants[b] === DATA.ours));
  const [first, last] = [DATA.at[0], DATA.at[DATA.at.length - 1]];
  const pad = Math.max((last - first) * 0.03, 60);
  return (size) => new uPlot({
    ...size, legend: { show: false }, pxAlign: 0, padding: [6, 20, 0, 0],
    tzDate: utc,
    cursor: { y: false, drag: { x: true, y: false }, sync: { key: "trend", setSeries: false } },
    series: [{}, ...order.map((i) => line(DATA.variants[i]))],
    scales: { x: { range: (u, from, to) => [from - pad, to + pad] }, y },
    axes: [axis({ size: 24, space: 60, values: moments }), axis({ size: GUTTER, ...more })],
  }, [DATA.at, ...order.map((i) => values[i])], element);
}

document.querySelectorAll("#key svg").forEach((mark) => {
  const { ink: of, dash } = style(DATA.variants[mark.dataset.variant]);
  mark.firstElementChild.style.stroke = `var(--${of})`;
  mark.firstElementChild.style.strokeDasharray = dash.join(" ");
});
const table = document.querySelector(".verdicts").parentElement;
table.scrollLeft = table.scrollWidth;  // the latest run
const charts = new Map();
document.querySelectorAll(".chart[role]").forEach((element) => {
  charts.set(element, (size) => trend(element)(size));
});
show(charts);
