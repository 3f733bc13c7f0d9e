"""The Python interface: ``runner.run``, ``runner.results`` and ``runner.load``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UserError
from runner.key import LEFT_OUT
from runner.registry import flatten
from runner.storage import read_json

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from runner.records import Record

HEAD = ("method", "model", "dataset", "scale", "seed")  # the first columns of results


def run(overrides: str | Sequence[str] = (), config_dirs: str | Path | Sequence[str | Path] = ()) -> dict[str, Any]:
    """Runs one experiment in this process, as ``runner OVERRIDES`` does; stored results and interrupted runs included.

    Args:
        overrides: ``["method=ekg", "seed=1"]``, or one text as on the command line: ``"method=ekg seed=1"``.
        config_dirs: folders as for ``--config-dir``.

    Returns the content of result.json, and beside it ``folder``, the run folder. Progress goes to standard error:
    plain lines where it is no terminal. In the main thread Ctrl-C (a notebook's stop button) saves the state and
    raises StopRequested; the same call goes on with the run. Global random generators, signal handlers and the thread
    count are left as they were.

    Raises:
        runner.UserError: the request is wrong, or another thread of this process is running one.
        runner.RunFailed: the run failed; the exception of the method is its ``__cause__``.
        runner.StopRequested: a BaseException, so that ``except Exception`` lets it pass.
    """
    from runner.compose import compose
    from runner.execute import execute

    words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    folders = [config_dirs] if isinstance(config_dirs, (str, Path)) else config_dirs
    path = execute(compose(words, [Path(folder) for folder in folders]))
    return {**read_json(path), "folder": str(path.parent)}


def results(folder: str | Path | None = None) -> pandas.DataFrame:
    """All finished runs below ``folder`` (default: where runs go without ``paths.runs``), one row each.

    Columns by dotted name, these first: ``method model dataset scale seed``, ``metrics.NAME``, ``profile.NAME.params``
    and ``.flops``, ``config.KEY`` for every setting that decides a result, then the rest of result.json (seconds,
    versions, hardware ...), ``folder`` last. A column that a run has no value for is missing there (NaN).

    Raises:
        UserError: pandas, an extra, is not installed; there is no such folder.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError(
            "runner.results needs pandas, which is not installed: pip install 'paper-runner[results]'"
        ) from None
    from runner.defaults import runs_default
    from runner.records import find_runs

    place = Path(runs_default() if folder is None else folder).expanduser()
    if not place.is_dir():
        raise UserError(f"there are no run folders in {place.absolute()}: no such folder")
    rows = [_row(record) for record in find_runs(place) if record.result]
    found = dict.fromkeys(name for row in rows for name in row)
    order = sorted(found or HEAD, key=_rank)
    return pandas.DataFrame(rows, columns=order)


def load(path: str | Path) -> nn.Module:
    """The network that a run produced; ``path`` is the run folder or its artifacts/model (``runner.product.load``)."""
    from runner.product import load as load_product

    return load_product(path)


def _row(record: Record) -> dict[str, Any]:
    config = {name: value for name, value in record.config.items() if name not in LEFT_OUT}
    found = {**dict(flatten(record.result)), **{f"config.{name}": value for name, value in flatten(config)}}
    return {**{name: value for name, value in found.items() if value != {}}, "folder": str(record.path)}


def _rank(column: str) -> int:
    """Sorting by it keeps the order within a group of columns."""
    if column in HEAD:
        return HEAD.index(column)
    groups = ("metrics.", "profile.", "config.")
    found = next((number for number, group in enumerate(groups) if column.startswith(group)), len(groups))
    return len(HEAD) + found + (column == "folder")
