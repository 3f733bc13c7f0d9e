// Learning curves of the ticked runs: a plot for every phase, each with its own steps.
const AT_FIRST = 4; // so many of the latest runs are drawn while none is ticked
const AT_MOST = 24; // colours and dashes tell so many apart
const PREFERRED = ["accuracy_validation", "accuracy", "loss"];

function learningCurves() {
  const place = section("curves", "Learning curves");
  const withCurves = runs.filter((run) => run.curves.length);
  if (!withCurves.length) return place.append(element("p", { class: "quiet" }, "No run has logged a metric."));
  const [metricNode, metric] = choice("curve-metric", "Metric", [], () => draw());
  const log = element("input", { type: "checkbox", id: "curve-log", onchange: () => draw() });
  const note = element("p", { class: "quiet", id: "curve-note" }),
    legend = element("ul", { class: "legend" });
  const panels = element("div", { class: "panels" }),
    numbers = element("div");
  place.append(
    element("div", { class: "controls" }, metricNode, element("label", { class: "tick" }, log, "logarithmic scale")),
    note,
    legend,
    panels,
    element("details", {}, element("summary", {}, "The same as numbers"), numbers),
  );

  function chosenRuns() {
    const ticked = [...selection.ticked].filter((run) => run.curves.length);
    if (ticked.length)
      return {
        chosen: ticked.slice(0, AT_MOST),
        words: ticked.length > AT_MOST ? `the first ${AT_MOST} of ${ticked.length} ticked runs` : "the ticked runs",
      };
    const latest = selection.shown
      .filter((run) => run.curves.length)
      .sort((one, other) => (other.changed || 0) - (one.changed || 0));
    return {
      chosen: latest.slice(0, AT_FIRST),
      words: "the latest of the shown runs; tick runs in the table to choose",
    };
  }

  function draw() {
    const { chosen, words } = chosenRuns();
    const names = countBy(
      chosen.flatMap((run) => run.curves),
      (curve) => curve.metric,
    ).map(([name]) => name);
    const before = names.includes(metric.value)
      ? metric.value
      : PREFERRED.find((name) => names.includes(name)) || names[0];
    setOptions(metric, names, before);
    const curves = chosen.flatMap((run, index) =>
      run.curves.filter((curve) => curve.metric === before).map((curve) => ({ run, index, ...curve })),
    );
    const thinned = curves.filter((curve) => curve.values.length < curve.total);
    const broken = curves.reduce((sum, curve) => sum + curve.not_finite, 0);
    const points = (count) => thinned.reduce((sum, curve) => sum + count(curve), 0).toLocaleString("en");
    note.textContent = [
      `Drawn: ${words}.`,
      thinned.length &&
        `Thinned: ${plural(thinned.length, "curve")} of ${curves.length} show ` +
          `${points((curve) => curve.values.length)} of ${points((curve) => curve.total)} points ` +
          "(smallest and largest of equal stretches); metrics.jsonl has all.",
      broken && `${plural(broken, "value")} not finite (nan or inf): gaps.`,
    ]
      .filter(Boolean)
      .join(" ");
    legend.replaceChildren(
      ...chosen.map((run, index) => element("li", {}, sample(index, "line"), runLink(run, label(run)))),
    );
    const phases = [...new Set(curves.map((curve) => curve.phase))];
    const plots = phases.map((phase) =>
      panel(
        curves.filter((curve) => curve.phase === phase),
        before,
      ),
    );
    panels.replaceChildren(...plots.map(([host]) => host));
    for (const [, redraw] of plots) redraw();
    numbers.replaceChildren(curveNumbers(curves));
  }

  function panel(curves, name) {
    const host = element("div", { class: "panel" });
    return [host, drawIn(host, (width) => host.replaceChildren(drawCurves(curves, name, width, log.checked)))];
  }
  selection.listeners.push(draw);
}

function drawCurves(curves, name, width, logY) {
  const phase = curves[0].phase;
  const plot = frame({
    width,
    title: phase,
    xTitle: "step",
    yTitle: name,
    logY,
    xs: extent(curves.flatMap((curve) => [curve.steps[0], curve.steps.at(-1)])),
    ys: extent(
      curves.flatMap((curve) => curve.values),
      logY,
      0.03,
    ),
    label: `${name} by step of phase ${phase}, ${plural(curves.length, "curve")}; numbers below`,
  });
  for (const curve of curves) {
    let path = "",
      pen = "M";
    curve.values.forEach((value, index) => {
      if (value === null || (logY && value <= 0)) pen = "M";
      else {
        path += `${pen}${plot.x(curve.steps[index]).toFixed(1)} ${plot.y(value).toFixed(1)}`;
        pen = "L";
      }
    });
    plot.svg.append(
      drawing("path", {
        class: "line " + seriesClass(curve.index),
        d: path || "M0 0",
        "stroke-dasharray": seriesDash(curve.index),
        "data-run": curve.run.name,
      }),
    );
    if (curve.values.length === 1 && path) {
      plot.svg.append(
        drawing("path", {
          class: "dot " + seriesClass(curve.index),
          d: shape(curve.index, plot.x(curve.steps[0]), plot.y(curve.values[0]), 4),
        }),
      );
    }
  }
  const cross = drawing("line", { class: "cross", y1: plot.margin.top, y2: plot.bottom, visibility: "hidden" });
  plot.svg.append(cross);
  const all = [...new Set(curves.flatMap((curve) => curve.steps))].sort((one, other) => one - other);
  plot.svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - plot.svg.getBoundingClientRect().left;
    const step = all.reduce(
      (best, one) => (Math.abs(plot.x(one) - at) < Math.abs(plot.x(best) - at) ? one : best),
      all[0],
    );
    cross.setAttribute("x1", plot.x(step));
    cross.setAttribute("x2", plot.x(step));
    cross.setAttribute("visibility", "visible");
    const lines = curves.map((curve) => {
      const value = curve.values[curve.steps.indexOf(step)];
      return value === undefined ? null : `${number(value)}  ${label(curve.run)}`;
    });
    showTip(event, [`step ${number(step)}`, ...lines.filter(Boolean)].join("\n"));
  });
  plot.svg.addEventListener("pointerleave", () => {
    hideTip();
    cross.setAttribute("visibility", "hidden");
  });
  return plot.svg;
}

function curveNumbers(curves) {
  const heads = ["Run", "Phase", "Points", "Last step", "First", "Smallest", "Largest", "Last"];
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          heads.map((head, index) => element("th", { scope: "col", class: index > 1 && "number" }, head)),
        ),
      ),
      element(
        "tbody",
        {},
        curves.map((curve) => {
          const finite = curve.values.filter((value) => value !== null);
          const cells = [
            curve.total,
            curve.steps.at(-1),
            curve.values[0],
            ...(finite.length ? extentOf(finite) : [null, null]),
            curve.values.at(-1),
          ];
          return element(
            "tr",
            {},
            element("td", {}, label(curve.run)),
            element("td", {}, curve.phase),
            cells.map((value) => element("td", { class: "number" }, number(value))),
          );
        }),
      ),
    ),
  );
}

function extentOf(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}
