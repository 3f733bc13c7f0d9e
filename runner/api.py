"""The Python interface: ``runner.run``, ``runner.results`` and ``runner.load``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UserError
from runner.storage import read_json

if TYPE_CHECKING:
    import pandas
    from torch import nn


def run(overrides: Sequence[str] = (), config_dirs: Sequence[Path] = ()) -> dict[str, Any]:
    """Runs one experiment in this process, as ``runner OVERRIDES`` does; returns the content of result.json.

    Raises:
        runner.errors.UserError, RunFailed, StopRequested.
    """
    from runner.compose import compose
    from runner.execute import execute

    return read_json(execute(compose(list(overrides), list(config_dirs))))


def results(folder: str | Path = "runs") -> pandas.DataFrame:
    """All finished runs under ``folder``: one row each, columns by dotted name (metrics.accuracy, profile.final.flops).

    The column ``folder`` is the run folder. Raises UserError when pandas, an extra, is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError(
            "runner.results needs pandas, which is not installed: pip install 'paper-runner[results]'"
        ) from None

    rows = [{**dict(_flat(result)), "folder": str(path.parent)} for path, result in _stored(Path(folder))]
    return pandas.DataFrame(rows)


def load(path: str | Path) -> nn.Module:
    """The network that a run produced; ``path`` is the run folder or its artifacts/model (``runner.product.load``)."""
    from runner.product import load as load_product

    return load_product(path)


def _stored(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("**/result.json")):
        result = read_json(path)
        if isinstance(result, dict) and "metrics" in result:
            yield path, result


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
