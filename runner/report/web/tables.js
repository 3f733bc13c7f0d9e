// Tables of papers: measured beside reported, with verdicts.
const VERDICTS = {
  reproduced: ["good", "✓"],
  holds: ["good", "✓"],
  differs: ["bad", "✗"],
  contradicted: ["bad", "✗"],
  inconclusive: ["open", "≈"],
  "not distinguishable": ["open", "≈"],
};

function verdict(words) {
  const found = text(words) || "no verdict";
  const [kind, sign] = VERDICTS[found.replaceAll("_", " ").toLowerCase()] || ["none", "○"];
  return badge(`${sign} ${found.replaceAll("_", " ")}`, kind);
}

function verdictTables() {
  if (!data.tables.length && !data.unreadable_tables.length) return;
  const place = section("tables", "Tables of papers");
  for (const file of data.unreadable_tables)
    place.append(element("p", { class: "problem" }, `${file} is torn or no table`));
  data.tables.forEach((table, index) => place.append(tableOf(table, index)));
}

function tableOf(table, index) {
  const metric = table.metric || {};
  const facts = [
    table.source,
    metric.name &&
      `${metric.name}${metric.unit ? ` (${metric.unit})` : ""}, ` +
        `${metric.higher_is_better === false ? "lower" : "higher"} is better`,
    table.created && `made ${isNumber(table.created) ? moment(table.created) : table.created}`,
    table.commit && "commit " + text(table.commit).slice(0, 12),
    table.machine,
  ];
  const demonstration = table.scale !== "paper";
  const id = "table-" + index;
  return element(
    "article",
    { class: "paper-table" },
    element(
      "h3",
      { id },
      `${text(table.title) || text(table.name)} `,
      badge("scale " + (text(table.scale) || "unknown"), demonstration ? "open" : "none"),
    ),
    element(
      "p",
      { class: "quiet" },
      element("code", {}, text(table.name)),
      " · ",
      facts.filter(Boolean).map(text).join(" · "),
    ),
    demonstration &&
      element(
        "p",
        { class: "note" },
        "Measured at this scale, not under the paper's protocol: the reported numbers stand beside for orientation " +
          "and are not what these cells reproduce.",
      ),
    element(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": id },
      element(
        "table",
        { class: "cells" },
        element(
          "thead",
          {},
          element(
            "tr",
            {},
            element("td"),
            table.columns.map((column) => element("th", { scope: "col" }, text(column))),
          ),
        ),
        element(
          "tbody",
          {},
          table.rows.map((row) =>
            element(
              "tr",
              {},
              element("th", { scope: "row" }, text(row)),
              table.columns.map((column) => {
                const found = table.cells.filter(
                  (cell) => text(cell.row) === text(row) && text(cell.column) === text(column),
                );
                return element(
                  "td",
                  {},
                  found.length ? found.map((cell) => cellOf(cell)) : element("span", { class: "quiet" }, "–"),
                );
              }),
            ),
          ),
        ),
      ),
    ),
    claimsOf(table.claims),
    element(
      "div",
      { class: "facts" },
      lines("Fidelity", pairsOf(table.fidelity)),
      lines("Deviations", pairsOf(table.deviations)),
      lines("Axes that differ between compared cells without being swept", items(table.differing_axes)),
    ),
  );
}

function cellOf(cell) {
  const reported = cell.reported,
    places = decimals(isNumber(cell.mean) ? cell.mean : 0);
  const spread = isNumber(cell.sd) ? ` ± ${fixed(cell.sd, places)}` : "";
  const measured = isNumber(cell.mean) && `${fixed(cell.mean, places)}${spread} (n = ${text(cell.n)})`;
  const interval =
    Array.isArray(cell.interval) && `95% [${cell.interval.map((value) => fixed(value, places)).join(", ")}]`;
  return element(
    "div",
    {},
    element("p", { class: "measured" }, measured || "not measured"),
    interval && element("p", { class: "quiet" }, interval),
    reported &&
      element(
        "p",
        {},
        "reported ",
        text(reported.value) || "not found",
        text(reported.spread) && ` ± ${text(reported.spread)}`,
        text(reported.note) && element("span", { class: "quiet" }, ` ${text(reported.note)}`),
      ),
    isNumber(cell.difference) &&
      element("p", { class: "quiet" }, `difference ${cell.difference > 0 ? "+" : ""}${fixed(cell.difference, places)}`),
    element("p", {}, verdict(cell.verdict)),
    cell.command && element("details", {}, element("summary", {}, "command"), element("code", {}, text(cell.command))),
    cellRuns(cell),
  );
}

function cellRuns(cell) {
  const names = Array.isArray(cell.runs) ? cell.runs.map(text) : [];
  if (!names.length) return null;
  const links = names.map((name, index) => {
    const run = runs.find((one) => one.name === name || one.place === name);
    return element("li", {}, run ? runLink(run, name) : name);
  });
  return element("details", {}, element("summary", {}, plural(names.length, "run")), element("ul", {}, links));
}

function claimsOf(claims) {
  if (!Array.isArray(claims) || !claims.length) return null;
  const heads = ["Claim", "Verdict", "Test", "Level", "n", "Difference", "Interval", "p"];
  const bounds = (found) => (Array.isArray(found) ? `[${found.map((value) => number(value, 3)).join(", ")}]` : null);
  return element(
    "div",
    { class: "scroll claims" },
    element(
      "table",
      { "aria-label": "Claims" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          heads.map((head, index) => element("th", { scope: "col", class: index > 2 && "number" }, head)),
        ),
      ),
      element(
        "tbody",
        {},
        claims
          .filter((claim) => claim && typeof claim === "object")
          .map((claim) =>
            element(
              "tr",
              {},
              element("td", {}, text(claim.text)),
              element("td", {}, verdict(claim.verdict)),
              element("td", {}, text(claim.test)),
              [text(claim.level), claim.n, number(claim.difference, 3), bounds(claim.interval), number(claim.p, 2)].map(
                (value) => element("td", { class: "number" }, number(value)),
              ),
            ),
          ),
      ),
    ),
  );
}

function items(value) {
  return Array.isArray(value) ? value.map(text) : value ? [text(value)] : [];
}

function pairsOf(value) {
  if (!value || typeof value !== "object" || Array.isArray(value)) return items(value);
  return Object.entries(value).flatMap(([name, found]) =>
    (Array.isArray(found) ? found : [found]).map((one) => `${name}: ${text(one)}`),
  );
}

function lines(title, found) {
  return found.length
    ? element(
        "div",
        {},
        element("h4", {}, title),
        element(
          "ul",
          {},
          found.map((line) => element("li", {}, line)),
        ),
      )
    : null;
}
