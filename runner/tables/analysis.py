"""The rows of a table's columns as systems of a mixed-effects analysis over seeds and test examples."""

from __future__ import annotations

from collections.abc import Iterator

from runner.errors import UserError
from runner.tables.grid import Cell, Grid


def analysis(grid: Grid) -> str:
    """Markdown: for each column that has per-example scores of two rows or more, ``runner.statistics.analyse``.

    Raises:
        UserError: no column has, or pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError("--analyse needs pandas and statsmodels: pip install 'paper-runner[statistics]'") from None
    from runner.statistics import analyse

    parts, seen = [], set()
    for column in grid.columns:
        cells = [cell for cell in grid.cells if cell.column == column]
        runs = tuple(run.plan.key for cell in cells for run in cell.runs if run.plan)
        frames = [pandas.DataFrame(rows) for cell in cells for rows in _scores(cell)]
        if runs in seen or len({frame["system"][0] for frame in frames}) < 2:
            continue
        seen.add(runs)
        parts.append(f"Analysis of {column}\n\n{analyse(pandas.concat(frames, ignore_index=True)).to_markdown()}")
    if not parts:
        raise UserError("--analyse compares the test scores of two rows or more, and no column has them stored")
    return "\n\n".join(parts)


def _scores(cell: Cell) -> Iterator[dict]:
    """One mapping a seed: system, seed, example, score (N,), from artifacts/test_scores.npz."""
    import numpy

    for run in cell.runs:
        file = run.plan.folder.path / "artifacts" / "test_scores.npz" if run.plan else None
        if run.result is not None and file.is_file():
            with numpy.load(file) as found:
                count = len(found["index"])
                yield {
                    "system": [cell.row] * count,
                    "seed": [run.seed] * count,
                    "example": found["index"],
                    "score": found["score"],
                }
