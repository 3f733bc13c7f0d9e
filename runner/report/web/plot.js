// Axes and marks of the plots, inline SVG at the width of their place.
const SERIES = 8; // colours of the style sheet; further series repeat them with other dashes and shapes
const DASHES = ["", "6 3", "2 3"];

function seriesClass(index) {
  return "s" + (index % SERIES);
}
function seriesDash(index) {
  return DASHES[Math.floor(index / SERIES) % DASHES.length];
}

// One of six shapes round (x, y), told apart without colour too.
function shape(index, x, y, size = 5) {
  const points = (pairs) =>
    "M" + pairs.map(([dx, dy]) => `${(x + dx * size).toFixed(1)} ${(y + dy * size).toFixed(1)}`).join("L") + "Z";
  const kinds = [
    () =>
      `M${(x - size).toFixed(1)} ${y.toFixed(1)}` +
      `a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0Z`,
    () =>
      points([
        [-0.9, -0.9],
        [0.9, -0.9],
        [0.9, 0.9],
        [-0.9, 0.9],
      ]),
    () =>
      points([
        [0, -1.15],
        [1.1, 0.85],
        [-1.1, 0.85],
      ]),
    () =>
      points([
        [0, -1.25],
        [1.25, 0],
        [0, 1.25],
        [-1.25, 0],
      ]),
    () =>
      points([
        [0, 1.15],
        [1.1, -0.85],
        [-1.1, -0.85],
      ]),
    () =>
      points([
        [-0.4, -1.1],
        [0.4, -1.1],
        [0.4, -0.4],
        [1.1, -0.4],
        [1.1, 0.4],
        [0.4, 0.4],
        [0.4, 1.1],
        [-0.4, 1.1],
        [-0.4, 0.4],
        [-1.1, 0.4],
        [-1.1, -0.4],
        [-0.4, -0.4],
      ]),
  ];
  return kinds[index % kinds.length]();
}

function ticks([low, high], count, log) {
  if (log) {
    const from = Math.floor(Math.log10(low)),
      to = Math.ceil(Math.log10(high));
    const factors = to - from <= 2 ? [1, 2, 5] : [1];
    const found = [];
    for (let power = from; power <= to; power += Math.max(1, Math.ceil((to - from) / count))) {
      for (const factor of factors) found.push(factor * 10 ** power);
    }
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  }
  const rough = (high - low) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) found.push(index * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

// [low, high] of the values, never empty, with some room where asked.
function extent(values, log, room = 0) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values)
    if (value !== null && (!log || value > 0)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (log) {
    const factor = low === high ? 2 : (high / low) ** room;
    return [low / factor, high * factor];
  }
  const width = high - low || Math.abs(high) * 0.1 || 1;
  return low === high ? [low - width / 2, high + width / 2] : [low - room * width, high + room * width];
}

// An empty plot: {svg, x, y} with functions from values to pixels; y is null where a value cannot be drawn (log).
function frame({ width, height = 260, title, xTitle, yTitle, xs, ys, logX, logY, label: words }) {
  const margin = { left: 62, right: 22, top: title ? 26 : 10, bottom: 42 };
  const scale = ([low, high], from, to, log) => {
    const f = log ? Math.log10 : (value) => value;
    return (value) => from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
  };
  const x = scale(xs, margin.left, width - margin.right, logX),
    y = scale(ys, height - margin.bottom, margin.top, logY);
  const svg = drawing("svg", { width, height, role: "img", "aria-label": words });
  const bottom = height - margin.bottom,
    right = width - margin.right;
  for (const value of ticks(ys, 5, logY)) {
    svg.append(
      drawing("line", { class: "grid", x1: margin.left, x2: right, y1: y(value), y2: y(value) }),
      drawing("text", { x: margin.left - 6, y: y(value) + 4, "text-anchor": "end" }, tickText(value)),
    );
  }
  for (const value of ticks(xs, Math.max(2, Math.floor(width / 110)), logX)) {
    svg.append(
      drawing("line", { class: "grid", x1: x(value), x2: x(value), y1: margin.top, y2: bottom }),
      drawing("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, tickText(value)),
    );
  }
  svg.append(
    drawing("line", { class: "axis", x1: margin.left, x2: right, y1: bottom, y2: bottom }),
    drawing("line", { class: "axis", x1: margin.left, x2: margin.left, y1: margin.top, y2: bottom }),
    title && drawing("text", { class: "title", x: margin.left, y: 14 }, title),
    drawing("text", { x: (margin.left + right) / 2, y: height - 6, "text-anchor": "middle" }, xTitle),
    drawing(
      "text",
      { x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${(margin.top + bottom) / 2}) rotate(-90)` },
      yTitle,
    ),
  );
  return { svg, x, y, margin, bottom, right };
}

function tickText(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e3 && size < 1e15) {
    const [limit, unit] = [
      [1e12, "T"],
      [1e9, "G"],
      [1e6, "M"],
      [1e3, "k"],
    ].find(([least]) => size >= least);
    return Number((value / limit).toPrecision(6)) + unit;
  }
  return size < 1e-3 || size >= 1e15
    ? value.toExponential(Number.isInteger(Math.log10(size)) ? 0 : 1)
    : String(Number(value.toPrecision(6)));
}

function sample(index, kind) {
  const svg = drawing("svg", { width: 26, height: 12, "aria-hidden": "true" });
  if (kind === "line")
    svg.append(
      drawing("line", {
        class: "line " + seriesClass(index),
        x1: 0,
        x2: 26,
        y1: 6,
        y2: 6,
        "stroke-dasharray": seriesDash(index),
      }),
    );
  else svg.append(drawing("path", { class: "mark " + seriesClass(index), d: shape(index, 13, 6) }));
  return svg;
}
