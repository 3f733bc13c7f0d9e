"""Cells on Ray and, through submitit, on Slurm or local jobs, as the config of Hydra's launcher plug-ins says.

The plug-ins give the configuration (hydra/launcher=..., hydra.launcher.KEY=VALUE); their launch() is not called: it
collects the cells one after the other and raises at the first that was killed, so the others would be lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import registry
from runner.errors import StopRequested, UserError
from runner.folder import process_start
from runner.sweep.launchers import child_environment
from runner.sweep.remote import RemoteCell

NEEDED = {
    "ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
}
LOST = 1  # exit code of a cell whose job gave no answer


def launcher_config(name: str, extra: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """The plug-in's config with the command line's changes.

    Raises:
        UserError: the extra is not installed; a setting is unknown.
    """
    for module in NEEDED[extra]:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(
                f"hydra/launcher={name} needs {module.rpartition('.')[2].replace('_', '-')}, which is not installed: "
                f"pip install 'paper-runner[{extra}]'"
            )
    from omegaconf import OmegaConf

    from runner.compose import hydra_compose

    quoted = str(folder).replace("'", "\\'")
    own = [f"hydra/launcher={name}", f"hydra.sweep.dir='{quoted}'", "hydra.job.name=runner"]
    node = hydra_compose([*own, *words], registry.search_path())
    return OmegaConf.to_container(node.hydra.launcher, resolve=True)


class _Remote:
    """What the launchers share: a stop file a cell, which reaches workers on other hosts too."""

    def __init__(self, folder: Path) -> None:
        self._stops = folder / "stop" / secrets.token_hex(4)  # copies of one command share the sweep's folder
        self._stops.mkdir(parents=True)
        self._running: dict[str, Any] = {}
        self._logs: dict[str, Path] = {}

    def _cell(self, name: str, told: dict[str, Any], log: Path, *, owned: bool) -> RemoteCell:
        self._logs[name] = log
        (self._stops / name).unlink(missing_ok=True)  # of an attempt before
        owner = (os.getpid(), process_start(os.getpid())) if owned else None
        return RemoteCell(told["folder"], str(self._stops / name), owner)

    def signal(self, name: str, number: int) -> None:
        if name in self._running:
            (self._stops / name).write_text(str(int(number)))

    def _lost(self, name: str, why: str) -> int:
        lines = [line.strip() for line in why.splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[0])
        with self._logs[name].open("a") as file:
            file.write(f"\nrunner: its job gave no answer: {why}\n")
        return LOST

    def _remove_stops(self) -> None:
        for path in self._stops.glob("*"):
            path.unlink(missing_ok=True)
        self._stops.rmdir()


class Ray(_Remote):
    """One Ray task a cell; Ray's resources (hydra.launcher.ray.remote.num_cpus=...) say how many run at once."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        super().__init__(folder)
        import ray

        self._ray = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            ray.init(
                **{
                    "log_to_driver": False,
                    "logging_level": "error",
                    "include_dashboard": False,
                    **config["ray"]["init"],
                }
            )
        options = config["ray"]["remote"]
        variables = child_environment({})
        path = {"PYTHONPATH": variables["PYTHONPATH"]} if "PYTHONPATH" in variables else {}
        environment = options.get("runtime_env") or {}
        environment = {**environment, "env_vars": {**path, **environment.get("env_vars", {})}}
        self._options = {"max_calls": 1, **options, "runtime_env": environment}

    def start(self, name: str, told: dict[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        cell = self._cell(name, told, log, owned=False)

        def run_cell(*arguments: Any) -> int:
            return cell(*arguments)

        # a worker of a cluster has the environment of its node, not of this process
        carried = {key: value for key, value in os.environ.items() if key.startswith(("RUNNER_", "WANDB_"))}
        task = self._ray.remote(**self._options)(run_cell)
        self._running[name] = task.remote(told, str(log), {**carried, **environment})

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        names = {reference: name for name, reference in self._running.items()}
        if not names:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(names), num_returns=len(names), timeout=seconds)
        ended = []
        for reference in ready:
            name = names[reference]
            try:
                code = self._ray.get(reference)
            except self._ray.exceptions.TaskCancelledError:
                code = StopRequested.exit_code
            except Exception as error:
                code = self._lost(name, str(error).strip() or type(error).__name__)
            del self._running[name]
            ended.append((name, code))
        return ended

    def signal(self, name: str, number: int) -> None:
        super().signal(name, number)
        if name in self._running and number == signal.SIGKILL:
            self._ray.cancel(self._running[name], force=True)

    def close(self) -> None:
        self._remove_stops()
        if self._mine:
            self._ray.shutdown()


class Submitit(_Remote):
    """One submitit job a cell; those that start together are one job array."""

    def __init__(self, config: dict[str, Any], folder: Path, cluster: str) -> None:
        super().__init__(folder)
        import submitit

        self._owned = cluster == "local"  # a job of Slurm goes on when this process is gone
        fields = {key: value for key, value in config.items() if key != "_target_"}
        common = _base_fields()
        start = {key: fields.pop(key) for key in ("max_num_timeout",) if key in fields}
        start = {f"{cluster}_{key}": value for key, value in start.items()}
        self._executor = submitit.AutoExecutor(cluster=cluster, folder=fields.pop("submitit_folder"), **start)
        self._executor.update_parameters(
            **{key if key in common else f"{cluster}_{key}": value for key, value in fields.items()}
        )
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []

    def start(self, name: str, told: dict[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        cell = self._cell(name, told, log, owned=self._owned)
        self._waiting.append((name, (cell, told, str(log), dict(environment))))

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        if self._waiting:
            with _environment(child_environment({})), self._executor.batch():
                jobs = [self._executor.submit(*arguments) for _, arguments in self._waiting]
            self._running |= {name: job for (name, _), job in zip(self._waiting, jobs, strict=True)}
            self._waiting = []
        time.sleep(seconds)
        ended = []
        for name, job in list(self._running.items()):
            if not job.done():
                continue
            try:
                code = job.results()[0]
            except Exception as error:
                code = self._lost(name, f"state {job.state}; {str(error).strip() or type(error).__name__}")
            del self._running[name]
            ended.append((name, code))
        return ended

    def signal(self, name: str, number: int) -> None:
        super().signal(name, number)
        if name in self._running and not self._owned and number == signal.SIGKILL:
            self._running[name].cancel()

    def close(self) -> None:
        if not self._running:
            self._remove_stops()


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Jobs are submitted with this process's environment."""
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _base_fields() -> set[str]:
    import dataclasses

    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    return {item.name for item in dataclasses.fields(BaseQueueConf)}
