// Values, elements, texts. Text from runs reaches the page as text nodes only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const SCALES = ["paper", "desk", "smoke"];

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false)
      node.append(child instanceof Node ? child : String(child));
  }
  return node;
}
const element = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const drawing = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function section(id, title) {
  const node = element(
    "section",
    { id, "aria-labelledby": id + "-title" },
    element("h2", { id: id + "-title" }, title),
  );
  document.getElementById("main").append(node);
  document.getElementById("sections").append(element("a", { href: "#" + id }, title));
  return node;
}

const isNumber = (value) => typeof value === "number";

function number(value, digits = 4) {
  if (value === null || value === undefined || value === "") return "–";
  if (!isNumber(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(digits - 1);
  return value.toFixed(size >= 1000 ? 1 : Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
}

// Like values of a table: as many decimals each.
const decimals = (value) => (Math.abs(value) >= 10 ? 2 : 4);
const fixed = (value, places) => (isNumber(value) ? value.toFixed(places) : number(value));

// A name that may break after its underscores.
const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, element("wbr")]);

function compact(value) {
  if (!isNumber(value)) return number(value);
  for (const [limit, unit] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (Math.abs(value) >= limit) return (value / limit).toPrecision(4) + " " + unit;
  }
  return number(value);
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  for (const [limit, unit, length] of [
    [120, "s", 1],
    [7200, "min", 60],
    [172800, "h", 3600],
  ]) {
    if (seconds < limit) return (seconds / length).toFixed(seconds < 10 ? 1 : 0) + " " + unit;
  }
  return (seconds / 86400).toFixed(1) + " d";
}

const moment = (seconds) =>
  isNumber(seconds) ? new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC" : "–";

const collator = new Intl.Collator("en", { numeric: true });
// Missing values stand last in both directions.
function compareValues(one, other, sign) {
  const missing = [one, other].map((value) => value === null || value === undefined || value === "");
  if (missing[0] || missing[1]) return missing[0] - missing[1];
  if (isNumber(one) && isNumber(other)) return sign * (one - other);
  if (isNumber(one) !== isNumber(other)) return isNumber(one) ? -1 : 1;
  return sign * collator.compare(one, other);
}

const text = (value) =>
  value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);

function countBy(items, value) {
  const counts = new Map();
  for (const item of items) {
    const found = text(value(item));
    if (found) counts.set(found, (counts.get(found) || 0) + 1);
  }
  return [...counts].sort((one, other) => other[1] - one[1] || collator.compare(one[0], other[0]));
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// A run's short name: what distinguishes it in a legend, the scale always with it.
const label = (run) =>
  `${run.name} · ${text(run.scale) || "scale unknown"}${text(run.seed) === "" ? "" : " · seed " + text(run.seed)}`;
const runLink = (run, words) => element("a", { href: run.link }, words || run.name);

function choice(id, title, options, onchange, chosen) {
  const select = element("select", { id, onchange: () => onchange(select.value) });
  setOptions(select, options, chosen);
  return [element("label", {}, title, select), select];
}

// options: [value, words] or plain texts; keeps the value that was chosen if it is still there.
function setOptions(select, options, chosen = select.value) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  select.replaceChildren(...pairs.map(([value, words]) => element("option", { value }, words)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

// What the sections share: the runs that pass the filters, and the ticked ones in the order of ticking.
const selection = {
  shown: runs,
  ticked: new Set(),
  listeners: [],
  changed() {
    for (const listener of this.listeners) listener();
  },
};

const tip = document.getElementById("tip");
function showTip(event, words) {
  tip.textContent = words;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - box.width - 10 : event.clientX + 14;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 12, innerHeight - box.height - 4)) + "px";
}
const hideTip = () => {
  tip.hidden = true;
};

// Draw now, and again when the width of the place changes.
function drawIn(place, draw) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (place.clientWidth && Math.abs(place.clientWidth - width) > 1) draw((width = place.clientWidth));
  });
  observer.observe(place);
  return () => draw((width = place.clientWidth || 600));
}
