// Counts, methods, scales, machines, time.
const UNFINISHED_NOTE = "A run whose process died is interrupted; its command goes on with it.";

function overview() {
  const place = section("overview", "Overview");
  if (!runs.length) {
    place.append(
      element(
        "p",
        {},
        "There are no runs here yet. ",
        element("code", {}, "runner method=NAME"),
        " makes one; then write this page again.",
      ),
    );
    return;
  }
  const demonstrations = runs.filter((run) => run.scale === "desk" || run.scale === "smoke").length;
  if (demonstrations) {
    place.append(
      element(
        "p",
        { class: "note" },
        `${plural(demonstrations, "run")} of ${runs.length.toLocaleString("en")} at desk or smoke scale: ` +
          "demonstrations, not the papers' protocols. The scale stands beside every number.",
      ),
    );
  }
  const own = runs.map((run) => (isNumber(run.seconds_own) ? run.seconds_own : run.seconds)).filter(isNumber);
  const total = own.reduce((sum, seconds) => sum + Math.max(0, seconds), 0);
  const states = countBy(runs, (run) => run.state);
  const tile = (title, figure, counts, note) =>
    element(
      "div",
      { class: "tile" },
      element("h3", {}, title),
      element("p", { class: "figure" }, figure),
      counts && list(counts),
      note && element("p", { class: "quiet" }, note),
    );
  const kinds = (name) => countBy(runs, (run) => run[name]);
  const [methods, models, datasets, machines] = ["method", "model", "dataset", "machine"].map(kinds);
  place.append(
    element(
      "div",
      { class: "tiles" },
      tile(
        "Runs by state",
        runs.length.toLocaleString("en"),
        states,
        states.some(([state]) => state === "interrupted") && UNFINISHED_NOTE,
      ),
      tile("Methods", methods.length, methods),
      tile("Scales", kinds("scale").length, kinds("scale")),
      tile("Models", models.length, models),
      tile("Data sets", datasets.length, datasets),
      tile("Machines", machines.length, machines),
      tile(
        "Computing time",
        duration(total),
        null,
        `Sum over ${plural(own.length, "run")} with a known time; a shared part counts once.`,
      ),
    ),
  );
}

function list(counts) {
  const most = Math.max(...counts.map(([, count]) => count));
  return element(
    "ul",
    { class: "counts" },
    counts.map(([name, count]) => {
      const bar = element("i");
      bar.style.width = (100 * count) / most + "%";
      return element(
        "li",
        {},
        element("span", {}, name),
        element("span", {}, count.toLocaleString("en")),
        element("span", { class: "bar", "aria-hidden": "true" }, bar),
      );
    }),
  );
}
