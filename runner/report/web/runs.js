// The table of runs: filters, sorting, ticks.
const metricNames = metricOrder();
const batches = [...new Set(runs.flatMap((run) => Object.keys(latencies(run))))].sort(collator.compare);
const FILTERS = {
  method: "Method",
  model: "Model",
  dataset: "Data set",
  scale: "Scale",
  seed: "Seed",
  state: "State",
  machine: "Machine",
};
const MAIN_METRICS = 3;

function latencies(run) {
  const found = {};
  for (const [name, value] of Object.entries((run.profile || {}).final || {})) {
    if (name.startsWith("latency_ms.")) found[name.slice("latency_ms.".length)] = value;
  }
  return found;
}

// Accuracy first, then by how many runs have it.
function metricOrder() {
  const counts = new Map();
  for (const run of runs)
    for (const name of Object.keys(run.metrics || {})) counts.set(name, (counts.get(name) || 0) + 1);
  return [...counts.keys()].sort(
    (one, other) =>
      (other === "accuracy") - (one === "accuracy") ||
      counts.get(other) - counts.get(one) ||
      collator.compare(one, other),
  );
}

const COLUMNS = [
  {
    id: "run",
    title: "Run",
    value: (run) => run.name,
    kind: "name",
    cell: (run) => [element("code", { title: run.name }, runLink(run, run.key)), notes(run)],
  },
  { id: "method", title: "Method", value: (run) => text(run.method) },
  { id: "model", title: "Model", value: (run) => text(run.model) },
  { id: "dataset", title: "Data set", value: (run) => text(run.dataset) },
  { id: "scale", title: "Scale", value: (run) => text(run.scale) },
  { id: "seed", title: "Seed", value: (run) => run.seed, kind: "number", cell: (run) => text(run.seed) },
  { id: "state", title: "State", value: (run) => run.state, cell: (run) => badge(run.state, STATE_KINDS[run.state]) },
  ...metricNames.map((name, index) => ({
    id: "metric " + name,
    title: name,
    value: (run) => (run.metrics || {})[name],
    kind: "number",
    extra: index >= MAIN_METRICS,
  })),
  {
    id: "flops",
    title: "FLOPs",
    value: (run) => final(run).flops,
    kind: "number",
    cell: exactly((run) => final(run).flops),
  },
  {
    id: "params",
    title: "Parameters",
    value: (run) => final(run).params,
    kind: "number",
    cell: exactly((run) => final(run).params),
  },
  ...batches.map((batch, index) => ({
    id: "latency " + batch,
    title: `Latency, batch ${batch} (ms)`,
    value: (run) => latencies(run)[batch],
    kind: "number",
    extra: index > 0,
  })),
  {
    id: "machine",
    title: "Machine",
    value: (run) => run.machine,
    kind: "machine",
    extra: countBy(runs, (run) => run.machine).length < 2,
  },
  { id: "seconds", title: "Seconds", value: (run) => run.seconds, kind: "number" },
  {
    id: "age",
    title: "Age",
    value: (run) => (isNumber(run.changed) ? data.created - run.changed : null),
    kind: "number",
    cell: (run) =>
      element(
        "span",
        { title: moment(run.changed) },
        duration(isNumber(run.changed) ? data.created - run.changed : null),
      ),
  },
  {
    id: "settings",
    title: "Changed settings",
    value: (run) => (run.settings || []).join(" "),
    kind: "settings",
    cell: settings,
  },
];
const STATE_KINDS = {
  done: "good",
  failed: "bad",
  unreadable: "bad",
  running: "open",
  stopped: "open",
  interrupted: "open",
};
const final = (run) => (run.profile || {}).final || {};

function exactly(value) {
  return (run) => element("span", { title: number(value(run)) }, compact(value(run)));
}

function badge(words, kind) {
  return element("span", { class: "badge " + (kind || "none") }, words);
}

function notes(run) {
  return [run.error && "error: " + run.error, ...run.problems]
    .filter(Boolean)
    .map((line) => element("span", { class: "problem" }, line));
}

function settings(run) {
  const all = run.settings || [];
  const lines = element("span", { class: "mono" }, all.join("  "));
  return all.length <= 5 ? lines : element("details", {}, element("summary", {}, plural(all.length, "setting")), lines);
}

function runsTable() {
  const place = section("runs", "Runs");
  if (!runs.length) return place.append(element("p", { class: "quiet" }, "None."));
  const wanted = {};
  let words = [],
    order = { id: "age", sign: 1 };
  const visible = new Set(COLUMNS.filter((column) => !column.extra).map((column) => column.id));
  const searchable = new Map(
    runs.map((run) => [
      run,
      [
        run.name,
        label(run),
        run.method,
        run.model,
        run.dataset,
        run.state,
        run.machine,
        ...(run.settings || []),
        run.error,
        ...run.problems,
      ]
        .map(text)
        .join("\n")
        .toLowerCase(),
    ]),
  );

  const search = element("input", {
    type: "search",
    id: "search",
    placeholder: "words: all must occur",
    oninput: () => {
      words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      update();
    },
  });
  const selects = Object.entries(FILTERS).map(([name, title]) => {
    const options = countBy(runs, (run) => run[name]).sort((one, other) => collator.compare(one[0], other[0]));
    return choice(
      "filter-" + name,
      title,
      [["", "all"], ...options.map(([value, count]) => [value, `${value} (${count})`])],
      (value) => {
        wanted[name] = value;
        update();
      },
    );
  });
  const reset = element(
    "button",
    {
      type: "button",
      id: "reset",
      onclick: () => {
        search.value = "";
        words = [];
        for (const [, select] of selects) select.value = "";
        for (const name of Object.keys(wanted)) delete wanted[name];
        update();
      },
    },
    "Clear filters",
  );
  const columns = element(
    "details",
    { class: "columns" },
    element("summary", {}, "Columns"),
    element(
      "div",
      {},
      COLUMNS.slice(1).map((column) =>
        element(
          "label",
          {},
          element("input", {
            type: "checkbox",
            checked: visible.has(column.id),
            onchange: (event) => {
              if (event.target.checked) visible.add(column.id);
              else visible.delete(column.id);
              build();
            },
          }),
          " ",
          column.title,
        ),
      ),
    ),
  );
  const count = element("p", { id: "count", role: "status" });
  const head = element("tr"),
    body = element("tbody");
  const table = element("table", { "aria-describedby": "count" }, element("thead", {}, head), body);
  place.append(
    element(
      "div",
      { class: "controls" },
      element("label", {}, "Text", search),
      selects.map(([node]) => node),
      reset,
      columns,
    ),
    count,
    element("div", { class: "scroll", id: "runs-table", tabindex: 0, role: "region", "aria-label": "Runs" }, table),
  );

  let rows = new Map();
  function build() {
    const shown = COLUMNS.filter((column) => visible.has(column.id));
    head.replaceChildren(
      element(
        "th",
        { scope: "col" },
        element("span", { title: "Ticked runs are drawn as curves and compared" }, "Tick"),
      ),
      ...shown.map((column) =>
        element(
          "th",
          { scope: "col", class: column.kind === "number" && "number", "data-column": column.id },
          element("button", { type: "button", onclick: () => sort(column) }, breakable(column.title)),
        ),
      ),
    );
    rows = new Map(
      runs.map((run) => [
        run,
        element(
          "tr",
          {},
          element(
            "td",
            {},
            element("input", {
              type: "checkbox",
              "aria-label": "Tick " + run.name,
              checked: selection.ticked.has(run),
              onchange: (event) => {
                if (event.target.checked) selection.ticked.add(run);
                else selection.ticked.delete(run);
                update();
              },
            }),
          ),
          shown.map((column) =>
            element("td", { class: column.kind || false }, column.cell ? column.cell(run) : number(column.value(run))),
          ),
        ),
      ]),
    );
    arrange();
  }
  function sort(column) {
    order = { id: column.id, sign: order.id === column.id ? -order.sign : 1 };
    arrange();
  }
  function arrange() {
    const column = COLUMNS.find((one) => one.id === order.id);
    const sorted = [...runs].sort((one, other) => compareValues(column.value(one), column.value(other), order.sign));
    body.replaceChildren(...sorted.map((run) => rows.get(run)));
    for (const cell of head.children) {
      if (cell.dataset.column === order.id) cell.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    update();
  }
  function update() {
    selection.shown = runs.filter(
      (run) =>
        Object.entries(wanted).every(([name, value]) => !value || text(run[name]) === value) &&
        words.every((word) => searchable.get(run).includes(word)),
    );
    const shown = new Set(selection.shown);
    for (const [run, row] of rows) row.hidden = !shown.has(run);
    count.textContent =
      `${shown.size.toLocaleString("en")} of ${plural(runs.length, "run")} shown, ${selection.ticked.size} ticked` +
      (batches.length ? "; latencies compare within one machine only" : "");
    selection.changed();
  }
  build();
}
