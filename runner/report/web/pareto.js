// Accuracy (or another metric) against FLOPs, parameters or latency: one data set and one scale at a time.
const LOWER_IS_BETTER = new RegExp(data.lower_is_better);

function pareto() {
  const place = section("pareto", "Accuracy against cost");
  const group = (run) => `${text(run.dataset)} · ${text(run.scale)}`;
  const measured = runs.filter(
    (run) => run.state === "done" && Object.keys(final(run)).length && Object.keys(run.metrics || {}).length,
  );
  if (!measured.length)
    return place.append(element("p", { class: "quiet" }, "No finished run has FLOPs or a latency."));
  const costs = [
    ["flops", "FLOPs"],
    ["params", "Parameters"],
    ...batches.map((batch) => ["latency_ms." + batch, `Latency, batch ${batch} (ms)`]),
  ];
  const [groupNode, groupSelect] = choice(
    "pareto-group",
    "Data set and scale",
    countBy(measured, group).map(([name, count]) => [name, `${name} (${count})`]),
    draw,
  );
  const [costNode, cost] = choice(
    "pareto-cost",
    "Cost",
    costs.filter(([name]) => measured.some((run) => isNumber(final(run)[name]))),
    draw,
  );
  const [metricNode, metric] = choice("pareto-metric", "Metric", metricNames, () => {
    better.value = guess();
    draw();
  });
  const guess = () => (LOWER_IS_BETTER.test(metric.value) ? "lower" : "higher");
  const [betterNode, better] = choice("pareto-better", "Better is", ["higher", "lower"], draw, guess());
  const [machineNode, machine] = choice("pareto-machine", "Machine", [], draw);
  const log = element("input", { type: "checkbox", id: "pareto-log", onchange: draw });
  const note = element("p", { class: "quiet", id: "pareto-note" }),
    legend = element("ul", { class: "legend" });
  const host = element("div", { class: "panel" }),
    front = element("div");
  let redraw = () => {};
  drawIn(host, () => redraw());
  place.append(
    element(
      "div",
      { class: "controls" },
      groupNode,
      costNode,
      metricNode,
      betterNode,
      machineNode,
      element("label", { class: "tick" }, log, "logarithmic cost"),
    ),
    note,
    legend,
    host,
    front,
  );

  function draw() {
    const byLatency = cost.value.startsWith("latency_ms."),
      title = costs.find(([name]) => name === cost.value)?.[1];
    let found = selection.shown.filter(
      (run) =>
        measured.includes(run) &&
        group(run) === groupSelect.value &&
        isNumber(final(run)[cost.value]) &&
        isNumber(run.metrics[metric.value]),
    );
    machineNode.hidden = !byLatency;
    if (byLatency) {
      setOptions(
        machine,
        countBy(found, (run) => run.latency_machine).map(([name]) => name),
      );
      found = found.filter((run) => text(run.latency_machine) === machine.value);
    }
    const points = found.map((run) => ({ run, cost: final(run)[cost.value], value: run.metrics[metric.value] }));
    const best = frontOf(points, better.value === "higher" ? 1 : -1);
    note.textContent =
      `${plural(points.length, "run")} that pass the filters of the table, ${best.length} on the front (dashed).` +
      (byLatency ? " Latency is of one machine." : "") +
      (text(groupSelect.value).endsWith("paper") ? "" : " Not the paper's protocol.");
    const methods = [...new Set(points.map((point) => text(point.run.method)))].sort(collator.compare);
    legend.replaceChildren(...methods.map((name, index) => element("li", {}, sample(index, "mark"), name)));
    redraw = () => host.replaceChildren(points.length ? plot(points, best, methods, title) : "");
    redraw();
    front.replaceChildren(points.length ? frontTable(best, title) : "");
  }

  function plot(points, best, methods, title) {
    const at = frame({
      width: Math.min(host.clientWidth || 600, 1000),
      height: 360,
      xTitle: title,
      yTitle: metric.value,
      logX: log.checked,
      xs: extent(
        points.map((point) => point.cost),
        log.checked,
        0.05,
      ),
      ys: extent(
        points.map((point) => point.value),
        false,
        0.06,
      ),
      label:
        `${metric.value} against ${title}, ${plural(points.length, "run")}, ${groupSelect.value}; ` +
        "the front is listed below",
    });
    let path = "";
    best.forEach((point, index) => {
      const [x, y] = [at.x(point.cost).toFixed(1), at.y(point.value).toFixed(1)];
      path += index ? `H${x}V${y}` : `M${x} ${y}`;
    });
    if (best.length) at.svg.append(drawing("path", { class: "front", d: `${path}H${at.right}` }));
    for (const point of points) {
      const index = methods.indexOf(text(point.run.method));
      const words = [
        label(point.run),
        `${text(point.run.method)} · ${text(point.run.model)} · ${group(point.run)}`,
        `${metric.value} ${number(point.value)}`,
        `${title} ${number(point.cost)}`,
        (point.run.settings || []).join("  "),
      ].join("\n");
      at.svg.append(
        drawing("path", {
          class: `mark ${seriesClass(index)}${best.includes(point) ? " chosen" : ""}`,
          d: shape(index, at.x(point.cost), at.y(point.value)),
          "data-run": point.run.name,
          onpointermove: (event) => showTip(event, words),
          onpointerleave: hideTip,
          onclick: () => {
            location.href = point.run.link;
          },
        }),
      );
    }
    return at.svg;
  }

  function frontTable(best, title) {
    return element(
      "details",
      {},
      element("summary", {}, `The front: ${plural(best.length, "run")}`),
      element(
        "div",
        { class: "scroll" },
        element(
          "table",
          { id: "front" },
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              ["Run", "Method", "Scale", title, metric.value].map((head, index) =>
                element("th", { scope: "col", class: index > 2 && "number" }, head),
              ),
            ),
          ),
          element(
            "tbody",
            {},
            best.map(({ run, cost: spent, value }) =>
              element(
                "tr",
                {},
                element("td", {}, runLink(run)),
                element("td", {}, text(run.method)),
                element("td", {}, text(run.scale)),
                element("td", { class: "number" }, number(spent)),
                element("td", { class: "number" }, number(value)),
              ),
            ),
          ),
        ),
      ),
    );
  }
  selection.listeners.push(draw);
}

// The points that no other beats in both: cheapest first. sign 1: higher is better.
function frontOf(points, sign) {
  const found = [];
  for (const point of [...points].sort((one, other) => one.cost - other.cost || sign * (other.value - one.value))) {
    const last = found.at(-1);
    if (!last || sign * (point.value - last.value) > 0 || (point.cost === last.cost && point.value === last.value))
      found.push(point);
  }
  return found;
}
