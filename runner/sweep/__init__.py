"""Sweeps: many runs planned together, each computed once, in processes of their own. Light: no torch, no Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.errors import UserError

if TYPE_CHECKING:
    from runner.sweep.engine import Sweep

State = Literal["done", "cached", "failed", "stopped", "waiting"]


@dataclass(frozen=True)
class Job:
    """One cell of a grid: ``name`` is for people, ``overrides`` are those of a single run."""

    name: str
    overrides: list[str]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    done: computed now, by this command or by another that shares the grid; cached: a stored result answered; failed;
    stopped: on request, or never started after a stop; waiting: still with another process when the sweep ended.
    ``error`` is the last line of a failure; ``seconds`` are those of this sweep.
    """

    job: Job
    state: State
    folder: Path | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs. None: as the composed config of the first cell says (retries ..., hardware.slots)."""

    launcher: str = "local"  # local, ray, submitit_local, submitit_slurm
    launcher_overrides: tuple[str, ...] = ()  # hydra.launcher.KEY=VALUE
    slots: int | list[int] | None = None  # cells at once on the CPU, or GPU indices
    retries: int | None = None  # of a failed cell
    fail_fast: bool | None = None
    stop_after: int | None = None  # equal tracebacks; 0: never

    @classmethod
    def split(cls, words: Sequence[str]) -> tuple[SweepOptions, list[str]]:
        """The options that stand among override words as hydra/launcher=... and hydra.launcher...., and the others."""
        launcher, fields, rest = "local", [], []
        for word in words:
            key, _, value = word.lstrip("+").partition("=")
            if key == "hydra/launcher":
                launcher = value.strip()
            elif key.startswith(("hydra/sweeper", "hydra.sweeper")) and word != "hydra/sweeper=basic":
                raise UserError(
                    f"'{word}': searches by a sweeper are not built in; `wandb agent` can search and call `runner` "
                    "(command: [runner, ${args_no_hyphens}]), or an Optuna loop of your own runner.run"
                )
            elif key.startswith("hydra.launcher."):
                fields.append(word)
            else:
                rest.append(word)
        return cls(launcher, tuple(fields)), rest


def run_jobs(
    jobs: Sequence[Job],
    *,
    config_dirs: Sequence[Path] = (),
    options: SweepOptions | None = None,
    group: str = "",
    summary_name: str = "sweep",
) -> list[Outcome]:
    """Runs every job that has no stored result, and answers the others from theirs; outcomes in the order of the jobs.

    Everything is composed and checked before anything runs. ``group`` is the W&B group (empty: the sweep's id);
    ``summary_name`` begins the name of the sweep's folder, <paths.runs>/sweeps/<summary_name>-<digest of the keys>.

    Raises:
        UserError: a job's request is wrong; nothing was run.
    """
    return run_sweep(jobs, config_dirs=config_dirs, options=options, group=group, summary_name=summary_name).outcomes()


def run_sweep(
    jobs: Sequence[Job],
    *,
    config_dirs: Sequence[Path] = (),
    options: SweepOptions | None = None,
    group: str = "",
    summary_name: str = "sweep",
) -> Sweep:
    """As ``run_jobs``; returns the ended sweep, which also knows its folder and its exit code."""
    from runner.sweep.engine import Sweep
    from runner.sweep.launchers import check_launcher
    from runner.sweep.planning import plan_jobs

    options = options or SweepOptions()
    check_launcher(options.launcher, options.launcher_overrides)
    cells = plan_jobs(jobs, config_dirs)
    sweep = Sweep(list(zip(jobs, cells, strict=True)), options, group, summary_name)
    sweep.run()
    return sweep
