"""A table's document as Markdown, CSV, LaTeX, HTML, or on the screen. Pure functions of the document."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

FORMATS = ("markdown", "csv", "latex", "html")
COLUMNS = (
    "row",
    "column",
    "metric",
    "unit",
    "n",
    "mean",
    "sd",
    "interval_low",
    "interval_high",
    "reported",
    "reported_spread",
    "reported_scale",
    "difference",
    "tolerance",
    "verdict",
    "stale",
    "error",
)


def export(document: dict[str, Any], form: str) -> str:
    """The text in one of ``FORMATS``."""
    return {"markdown": markdown, "csv": as_csv, "latex": latex, "html": as_html}[form](document)


def digits_for(value: float, digits: int) -> int:
    """So many digits behind the point, and more where they would leave one valid digit or none: then three."""
    if value == 0 or not math.isfinite(value) or abs(value) >= 10.0 ** (1 - digits):
        return digits
    return 2 - math.floor(math.log10(abs(value)))


def cell_lines(cell: dict[str, Any], scale: str) -> list[str]:
    """What a cell says, a thought a line; mean, sd, interval and n stand together."""
    lines = []
    if cell["n"]:
        mean, digits = cell["mean"], digits_for(cell["mean"], cell["digits"])
        if cell["interval"]:
            low, high = cell["interval"]
            lines.append(f"{mean:.{digits}f} ± {cell['sd']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        else:
            lines.append(f"{mean:.{digits}f}")
        asked = f" of {cell['seeds_asked']}" if cell["n"] < cell["seeds_asked"] else ""
        lines[-1] += f" n={cell['n']}{asked}{', stale code' if cell['stale'] else ''}"
    elif cell["verdict"] == "missing":
        lines.append("missing")
    if cell["reported"]:
        lines.append(reported_text(cell["reported"], cell["digits"], scale))
    if cell["difference"] is not None:
        lines.append(f"{cell['difference']:+.{cell['digits']}f}: {cell['verdict']}")
    elif cell["verdict"] not in ("", "missing", "reported only"):
        lines.append(cell["verdict"])
    return lines


def reported_text(reported: dict[str, Any], digits: int, scale: str) -> str:
    """The paper's number; at another scale than the paper's it says so, for they are not to be compared."""
    label = "reported" if scale == "paper" else "paper scale:"
    if reported["value"] is None:
        return f"{label} {reported['note'] or 'not found'}"
    spread = f" ({printed(reported['spread'], digits)})" if reported["spread"] is not None else ""
    note = f" {reported['note']}" if reported["note"] else ""
    return f"{label} {printed(reported['value'], digits)}{spread}{note}"


def printed(value: float, digits: int) -> str:
    """A reported number with at least so many digits behind the point, and all that it was given with."""
    return f"{value:.{digits}f}" if round(value, digits) == value else repr(value)


def claim_text(claim: dict[str, Any]) -> str:
    """One claim with its verdict and the figures behind it."""
    text = f"{claim['text']}: {claim['verdict']}"
    if claim["interval"]:
        low, high = claim["interval"]
        p = "" if claim["p"] is None else f", p = {claim['p']:.3g}"
        unit = {"": "", "%": " points"}.get(claim["unit"], f" {claim['unit']}")
        text += (
            f" (difference {claim['difference']:+.4g} [{low:.4g}, {high:.4g}]{unit}, {claim['test']},"
            f" two-sided at {1 - claim['level']:.2f}, n = {claim['n']}{p})"
        )
    return f"{text}; {claim['note']}" if claim["note"] else text


def headings(document: dict[str, Any]) -> list[str]:
    """Column names, with the metric where it is not the name itself."""
    shown = {cell["column"]: cell for cell in document["cells"]}
    found = []
    for column in document["columns"]:
        metric, unit = shown[column]["metric"], shown[column]["unit"]
        named = metric in column
        extra = ", ".join(filter(None, ["" if named else metric, unit]))
        found.append(f"{column} ({extra})" if extra else column)
    return found


def intro(document: dict[str, Any]) -> list[str]:
    """Source and scale, in front of the table."""
    scale = document["scale"]
    lines = [f"Source: {document['source']}"]
    if scale == "paper":
        lines.append(
            "scale=paper. Mean ± standard deviation [95% interval of the mean] n; the reported number (spread)."
        )
    else:
        lines.append(
            f"scale={scale}: {'seconds a run, nothing is learnt' if scale == 'smoke' else 'a demonstration'}, not the "
            "paper's protocol: no number here reproduces the paper's, which stands beside it as 'paper scale'. "
            "Measured: mean ± standard deviation [95% interval of the mean] n."
        )
    if document["overrides"]:
        lines.append(f"Settings of this call: {' '.join(document['overrides'])}")
    if document["commit"]:
        seeds = ", ".join(map(str, document["seeds"]))
        lines.append(f"Commit {document['commit']}; {document['machine']}; seeds {seeds}; {document['created'][:10]}.")
    return lines


def sections(document: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(heading, lines) of what stands under the table."""
    found = [("Claims", [claim_text(claim) for claim in document["claims"]]), ("Missing", missing(document))]
    judged = [cell for cell in document["cells"] if cell["tolerance"] is not None and cell["n"]]
    if judged:
        found.append(
            (
                "Verdicts",
                [
                    "reproduced: the 95% interval of the mean lies inside reported ± tolerance; differs: outside; "
                    "inconclusive: it is wider, or straddles an end; no verdict: one seed. "
                    "The tolerance is the reported spread, else the table's, else 1% of the reported value."
                ],
            )
        )
    fidelity = []
    for method, label in document["fidelity"].items():
        fidelity.append(f"{method}: {label}")
        fidelity += [f"{method} deviates: {text}" for text in document["deviations"][method]]
    found += [
        ("Fidelity and deviations", fidelity),
        ("Differs beside rows and columns", document["differing_axes"]),
        ("Notes", document["notes"]),
    ]
    return [(heading, lines) for heading, lines in found if lines]


def missing(document: dict[str, Any]) -> list[str]:
    """What is missing, why, and the command that fills it."""
    lacking = {
        (cell["row"], *cell["overrides"]): cell  # cells that differ in the metric alone are one
        for cell in reversed(document["cells"])
        if cell["command"] or cell["error"]
    }
    lacking = list(reversed(lacking.values()))
    lines = []
    for cell in lacking:
        why = f": {cell['error']}" if cell["error"] else ""
        how = f"; {cell['command']}" if cell["command"] else ""
        lines.append(f"{cell['row']}, {cell['column']}{why}{how}")
    if len(lacking) > 1 and not any(cell["n"] for cell in document["cells"]):
        lines.insert(0, f"everything; all of it: {document['command']}")
    return lines


def _matrix(document: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(row, lines of each of its cells)."""
    place = {(cell["row"], cell["column"]): cell for cell in document["cells"]}
    return [
        (row, [cell_lines(place[row, column], document["scale"]) for column in document["columns"]])
        for row in document["rows"]
    ]


def markdown(document: dict[str, Any], level: int = 1) -> str:
    """A heading of ``level``, the table, and under it claims, missing cells, fidelity, axes and notes."""

    def plain(text: str) -> str:
        return text.replace("|", "\\|")

    lines = [f"{'#' * level} {document['title']}", ""]
    lines += [f"{line}  " for line in intro(document)[:-1]] + [intro(document)[-1], ""]
    lines.append("| | " + " | ".join(plain(name) for name in headings(document)) + " |")
    lines.append("|" + "---|" * (len(document["columns"]) + 1))
    for row, cells in _matrix(document):
        lines.append("| " + " | ".join([plain(row), *("<br>".join(map(plain, cell)) for cell in cells)]) + " |")
    for heading, texts in sections(document):
        lines += ["", f"{heading}:", "", *(f"- {text}" for text in texts)]
    if document.get("analysis"):
        lines += ["", document["analysis"].strip()]
    return "\n".join(lines) + "\n"


def as_csv(document: dict[str, Any]) -> str:
    """One line a cell, in full precision; then one a claim, whose row is its text and whose column is `claim`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in document["cells"]:
        low, high = cell["interval"] or (None, None)
        reported = cell["reported"] or {}
        shown = reported.get("note") or "not found" if reported and reported["value"] is None else reported.get("value")
        extra = {
            "interval_low": low,
            "interval_high": high,
            "reported": shown,
            "reported_spread": reported.get("spread"),
            "reported_scale": "paper" if reported else "",
        }
        writer.writerow({**{name: cell.get(name) for name in COLUMNS}, **extra})
    for claim in document["claims"]:
        low, high = claim["interval"] or (None, None)
        writer.writerow(
            {
                "row": claim["text"],
                "column": "claim",
                "unit": claim["unit"],
                "n": claim["n"],
                "interval_low": low,
                "interval_high": high,
                "difference": claim["difference"],
                "verdict": claim["verdict"],
                "error": claim["note"],
            }
        )
    return out.getvalue()


_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "[": "{[}",
    "]": "{]}",
}


def tex(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_TEX.get(sign, sign) for sign in text)


def latex(document: dict[str, Any]) -> str:
    """A `table` environment that needs no package; what stands under the table follows the tabular."""
    columns = "l" * (len(document["columns"]) + 1)
    lines = [r"\begin{table}", rf"\caption{{{tex(document['title'])}}}", r"\small", rf"\begin{{tabular}}{{{columns}}}"]
    lines += [r"\hline", " & ".join(["", *map(tex, headings(document))]) + r" \\", r"\hline"]
    for row, cells in _matrix(document):
        stacked = [r"\shortstack[l]{" + r" \\ ".join(map(tex, cell)) + "}" if cell else "" for cell in cells]
        lines.append(" & ".join([tex(row), *stacked]) + r" \\")
    lines += [r"\hline", r"\end{tabular}", "", r"\footnotesize"]
    lines += [tex(line) + r"\par" for line in intro(document)]
    for heading, texts in sections(document):
        lines += [rf"\textit{{{tex(heading)}.}} {tex(text)}\par" for text in texts]
    return "\n".join([*lines, r"\end{table}", ""])


def as_html(document: dict[str, Any]) -> str:
    """A <section> without styles or scripts, to be put into a page."""
    escape: Callable[[str], str] = html.escape
    lines = ["<section>", f"<h2>{escape(document['title'])}</h2>"]
    lines += [f"<p>{escape(line)}</p>" for line in intro(document)]
    heads = "".join(f"<th>{escape(name)}</th>" for name in ["", *headings(document)])
    lines += ["<table>", f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
    for row, cells in _matrix(document):
        data = "".join(f"<td>{'<br>'.join(map(escape, cell))}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(row)}</th>{data}</tr>")
    lines += ["</tbody>", "</table>"]
    for heading, texts in sections(document):
        items = "".join(f"<li>{escape(text)}</li>" for text in texts)
        lines.append(f"<h3>{escape(heading)}</h3><ul>{items}</ul>")
    if document.get("analysis"):
        lines.append(f"<pre>{escape(document['analysis'])}</pre>")
    return "\n".join([*lines, "</section>", ""])


def screen(document: dict[str, Any]) -> Group:
    """For a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=document["title"], show_lines=True, title_justify="left")
    for name in ["", *headings(document)]:
        table.add_column(Text(name))
    for row, cells in _matrix(document):
        table.add_row(Text(row), *(Text("\n".join(cell)) for cell in cells))
    parts: list[Any] = [table, *map(Text, intro(document))]
    for heading, texts in sections(document):
        parts += [Text(f"\n{heading}"), *(Text(f"  {text}") for text in texts)]
    if document.get("analysis"):
        parts.append(Text(f"\n{document['analysis']}"))
    return Group(*parts)
