// Two runs: settings that differ, and their numbers.
function difference() {
  const place = section("difference", "Two runs compared");
  if (runs.length < 2) return place.append(element("p", { class: "quiet" }, "There are no two runs."));
  const options = runs
    .map((run, index) => [String(index), label(run)])
    .sort((one, other) => collator.compare(one[1], other[1]));
  const [firstNode, first] = choice("first", "A", options, draw, options[0][0]);
  const [secondNode, second] = choice("second", "B", options, draw, options[1][0]);
  const others = element("input", { type: "checkbox", id: "others", onchange: draw });
  const result = element("div", { id: "differences" });
  place.append(
    element(
      "div",
      { class: "controls" },
      firstNode,
      secondNode,
      element(
        "label",
        { class: "tick" },
        others,
        "also what does not decide the result (hardware, tracking, code, versions)",
      ),
    ),
    result,
  );

  let followed = "";
  selection.listeners.push(() => {
    const ticked = [...selection.ticked].slice(0, 2).map((run) => String(runs.indexOf(run)));
    if (ticked.length === 2 && ticked.join() !== followed) {
      [first.value, second.value] = ticked;
      followed = ticked.join();
      draw();
    }
  });

  function draw() {
    const pair = [runs[first.value], runs[second.value]];
    const found = pair.map(entries),
      names = [...new Set(found.flatMap((one) => [...one.keys()]))];
    const rows = names
      .filter((name) => found[0].get(name) !== found[1].get(name))
      .map((name) => [name, found.map((one) => one.get(name))]);
    const unknown = pair.filter((run) => !run.settings);
    const numbers = pair.map((run) => ({ ...(run.metrics || {}), ...prefixed(run.profile), seconds: run.seconds }));
    result.replaceChildren(
      element(
        "h3",
        {},
        rows.length
          ? `${plural(rows.length, "setting")} ${rows.length === 1 ? "differs" : "differ"}`
          : "No setting differs",
      ),
      unknown.length
        ? element(
            "p",
            { class: "problem" },
            `The config of ${unknown.map((run) => run.name).join(" and ")} cannot be read.`,
          )
        : "",
      rows.length
        ? tableOfPair(
            pair,
            rows.map(([name, values]) => [
              element("code", {}, name),
              ...values.map((value) => element("code", {}, value === undefined ? "–" : value)),
            ]),
          )
        : "",
      element("h3", {}, "Numbers"),
      tableOfPair(
        pair,
        [...new Set(numbers.flatMap((one) => Object.keys(one)))].map((name) => {
          const [one, other] = numbers.map((values) => values[name]);
          const change = isNumber(one) && isNumber(other) ? `${other > one ? "+" : ""}${number(other - one)}` : "–";
          return [name, number(one), number(other), change];
        }),
        "B − A",
      ),
    );
  }

  function entries(run) {
    const found = new Map();
    for (const index of run.config || []) {
      const [kind, name, value] = data.pool[index];
      if (kind === "settings" || others.checked) found.set(kind === "code" ? `${name} (code)` : name, value);
    }
    return found;
  }
  draw();
}

function prefixed(profile) {
  return Object.fromEntries(
    Object.entries(profile || {}).flatMap(([name, values]) =>
      Object.entries(values).map(([key, value]) => [`profile.${name}.${key}`, value]),
    ),
  );
}

function tableOfPair(pair, rows, more) {
  const kind = more ? "number" : "differs";
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
          element("td"),
          pair.map((run, index) =>
            element("th", { scope: "col", class: kind }, "AB"[index] + ": ", runLink(run, label(run))),
          ),
          more && element("th", { scope: "col", class: kind }, more),
        ),
      ),
      element(
        "tbody",
        {},
        rows.map(([name, ...cells]) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, name),
            cells.map((cell) => element("td", { class: kind }, cell)),
          ),
        ),
      ),
    ),
  );
}
