"""Jobs composed and looked up: what is there already, what has to run. Light: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.compose import Composed, compose
from runner.errors import UserError
from runner.folder import RunFolder
from runner.plan import BASE, Plan, plan, role_config
from runner.sweep import Job, State


@dataclass(eq=False)
class Cell:
    """What runs once: all jobs of one key."""

    job: Job  # the first of those of its key
    composed: Composed
    plan: Plan
    roles: list[RunFolder]  # runs of trained networks that it starts from
    state: State | str = "queued"  # queued and running too, while the sweep goes on
    result: dict[str, Any] | None = None
    error: str | None = None
    attempts: int = 0
    slot: int | None = None
    started: float = 0.0  # wall clock
    seconds: float = 0.0
    waiting_since: float = 0.0

    @property
    def folder(self) -> RunFolder:
        return self.plan.folder

    @property
    def key(self) -> str:
        return self.plan.key

    @property
    def label(self) -> str:
        """What the user knows it by."""
        return self.job.name or f"{self.plan.name}/{self.key}"

    def look_up(self) -> bool:
        """Whether a stored result answers it."""
        self.result = self.folder.result()
        return self.result is not None


def plan_jobs(jobs: Sequence[Job], config_dirs: Sequence[Path] = ()) -> list[Cell]:
    """The cell of every job: composed, types and ranges checked; jobs of equal keys have one cell.

    Raises:
        UserError: the first job that cannot run; it is named.
    """
    from runner.settings import validate

    if not jobs:
        raise UserError("a sweep needs at least one cell")
    cells: dict[Path, Cell] = {}
    found: list[Cell] = []
    for job in jobs:
        try:
            composed = compose(job.overrides, config_dirs)
            planned = plan(composed.config, composed.origin)
            cell = cells.get(planned.folder.path)
            if cell is not None:
                found.append(cell)
                continue
            cell = Cell(job, composed, planned, [])
            if composed.config["force"] or not cell.look_up():
                validate(composed.config, composed.origin)
                cell.roles = _roles(composed)
            else:
                cell.state = "cached"
        except UserError as error:
            raise in_cell(job, error) from None
        cells[planned.folder.path] = cell
        found.append(cell)
    return found


def in_cell(job: Job, error: Exception | str) -> UserError:
    """The error with the cell that it is about."""
    return UserError(f"{error}  [in the cell: {' '.join(job.overrides)}]" if job.overrides else str(error))


def _roles(composed: Composed) -> list[RunFolder]:
    config = composed.config
    roles = [name for name, value in config.items() if name not in BASE and isinstance(value, dict)]
    return [plan(role_config(config, role, composed.search_path)).folder for role in roles]
