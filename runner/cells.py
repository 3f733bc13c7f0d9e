"""Runs one cell: a planned run in its folder, under its lock, with its status and its result."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from runner import environment, randomness
from runner.context import Context, Launch
from runner.errors import LAST_STATE, RunFailed, StopRequested, UserError
from runner.folder import Locked, RunFolder
from runner.metrics import MetricsFile
from runner.observer import RunObserver, Silent
from runner.plan import Plan, plan
from runner.schema import AnyDataset
from runner.settings import Settings, build_method, build_section, load_target, roles, validate
from runner.storage import write_atomic, write_json
from runner.tracking import Tracker
from runner.unread import set_in_vain

STATUS_SECONDS = 10.0
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Cell:
    """A finished cell that another run starts from."""

    folder: Path
    metrics: dict[str, float]
    result: dict[str, Any]

    def artifact(self, name: str) -> Path:
        """A file under the cell's artifacts/."""
        return self.folder / "artifacts" / name


class _CellFailed(RunFailed):
    """Names the cell and its error.txt already; the runs that needed it pass it on."""


@dataclass
class Checked:
    """A plan whose every setting was found good: what can be started."""

    plan: Plan
    settings: Settings
    method: Any

    @property
    def method_class(self) -> type:
        return type(self.method)


def check(planned: Plan) -> Checked:
    """Checks types, ranges, files and whether method, model and data set fit, before anything is written.

    Raises:
        UserError: the first thing that is wrong.
    """
    from runner.datasets import check_dataset
    from runner.models import check_weights, resolve

    config = planned.config
    method_class = load_target(config["method"]["target"])
    if not (is_dataclass(method_class) and callable(getattr(method_class, "run", None))):
        raise UserError(
            f"method.target={config['method']['target']} must be a dataclass with a function run(self, ctx)"
        )
    _check_kinds(config, method_class)  # first: a scale's settings for one kind are unknown keys of another
    settings = validate(config, planned.origin)
    check_dataset(settings.dataset, Path(settings.paths.data).expanduser(), settings.offline)
    own = [build_section("model", section["model"]) for section in roles(config).values() if "model" in section]
    for model in (settings.model, *own):
        check_weights(model, settings.offline)
        if getattr(settings.dataset, "image_size", None) is not None:
            stem = settings.scale.small_image_stem
            resolve(model, image_size=settings.dataset.image_size, small_image_stem=stem)
    method = build_method(config, method_class, planned.origin)
    mixed = next((name for name in ("mixup", "cutmix") if getattr(settings.recipe, name)), None)
    if mixed and not getattr(method, "soft_labels", False):
        where = f" (set {planned.origin(f'recipe.{mixed}')})" if planned.origin else ""
        raise UserError(
            f"recipe.{mixed}={getattr(settings.recipe, mixed)}{where} mixes labels, and method "
            f"{config['method']['name']} as it is set takes class numbers: set recipe.{mixed}=0"
        )
    return Checked(planned, settings, method)


def _check_kinds(config: Mapping[str, Any], method_class: type) -> None:
    """Raises UserError where method, data set and model do not fit. Unknown names are found later."""
    from runner.datasets import MODULES, kind_of
    from runner.models import ZOO

    method, model, dataset = (config[group]["name"] for group in ("method", "model", "dataset"))
    data, models = getattr(method_class, "data", ("images",)), getattr(method_class, "model", ("classifier",))
    if dataset in MODULES:
        kind = kind_of(AnyDataset(name=dataset))
        if kind not in data:
            fitting = [name for name in MODULES if kind_of(AnyDataset(name=name)) in data]
            raise UserError(
                f"dataset={dataset}: method {method} takes {' or '.join(data)}, and this is {kind}; "
                + (f"fitting: {', '.join(fitting)}" if fitting else "see `runner list datasets`")
            )
    if model == "none" and "none" not in models:
        raise UserError(f"model=none: method {method} needs a network, {' or '.join(models)}; see `runner list models`")
    if model != "none" and set(models) == {"none"}:
        raise UserError(f"model={model}: method {method} builds no network; leave model= out")
    if model in ZOO and config["model"].get("target") is None and "classifier" not in models:
        raise UserError(
            f"model={model}: method {method} takes {' or '.join(models)}, and this is a classifier of images; "
            "leave model= out for the network that fits"
        )


def run_cell(parent: Context, config: Mapping[str, Any], *, as_role: str) -> Cell:
    """A cell that ``parent`` starts from: reused when it is done, waited for when another process runs it, else run."""
    planned = plan(config)
    folder = planned.folder
    result = folder.result()
    ran = said = False
    ranks = parent.ranks
    if ranks is not None and not ranks.main:
        return _follow_to_cell(parent, planned)
    while result is None:
        folder.create()
        try:
            with folder.lock():
                result = folder.result()
                if result is None:
                    parent.say(f"{as_role}: runs as {planned.name}/{planned.key}")
                    checked = check(planned)
                    launch = replace(
                        parent.launch, ranks=ranks if getattr(checked.method, "distributed", True) else None
                    )
                    if launch.ranks is not None:
                        ranks.share("run")
                    with randomness.preserved():
                        result = run_locked(checked, launch, prefix=f"{as_role}: ")
                    ran = True
        except Locked as busy:
            if busy.folder != folder.path:
                raise
            if not said:
                parent.say(f"{as_role}: waits for another process that runs {planned.name}/{planned.key}")
                said = True
            time.sleep(WAIT_SECONDS)
            if parent.launch.stop_requested():
                raise StopRequested(f"while waiting for {as_role}") from None
    if ranks is not None:
        ranks.share(result)
    if not ran:
        folder.settle()
        parent.say(f"{as_role}: reuses {planned.name}/{planned.key}")
    parent.cells[as_role] = {
        "seconds": result["seconds"],
        "run": f"{planned.name}/{planned.key}",
        "weights_sha256": (result.get("product") or {}).get("sha256"),
        "reused": not ran,
    }
    parent.cells |= {f"{as_role}/{name}": phase for name, phase in result["phases"].items()}
    return Cell(folder.path, result["metrics"], result)


def _follow_to_cell(parent: Context, planned: Plan) -> Cell:
    """``run_cell`` on a rank above 0: rank 0 decides whether there is something to run together."""
    result = parent.ranks.share()
    if result == "run":
        with randomness.preserved():
            follow_cell(check(planned), parent.launch)
        result = parent.ranks.share()
    return Cell(planned.folder.path, result["metrics"], result)


def follow_cell(checked: Checked, launch: Launch) -> None:
    """A rank above 0 through a cell that rank 0 runs by ``run_locked``."""
    threads_before = torch.get_num_threads()
    environment.set_threads(launch.ranks.share())
    ctx = Context(checked.plan.config, checked.settings, checked.plan.folder, launch, Silent())
    ctx.data  # noqa: B018  rank 0 loads it here too
    try:
        checked.method.run(ctx)
        ctx.durable.finish()
    finally:
        torch.set_num_threads(threads_before)


def run_locked(checked: Checked, launch: Launch, *, prefix: str = "") -> dict[str, Any]:
    """Runs a cell whose folder this process has locked, from where it stands; returns its result.

    Raises:
        RunFailed: the traceback stands in error.txt.
        StopRequested: state was saved.
        UserError: something in the request showed to be wrong only now.
    """
    planned, settings = checked.plan, checked.settings
    folder = planned.folder
    before = folder.status()
    code = planned.code()
    interrupted, ranks = folder.interrupted(), launch.ranks
    processes = 1 if ranks is None else ranks.count
    begun = before.get("processes", 1)
    if interrupted and begun != processes:
        raise UserError(
            f"{folder.path} was begun with {begun} process{'es' * (begun > 1)}, on which its result depends: go on "
            f"with hardware.processes={begun}, or remove it to begin again"
        )
    if interrupted and before.get("code", code) != code and not settings.allow_code_change:
        raise UserError(
            f"the code of {planned.config['method']['name']} changed since this run was interrupted, and a resume "
            f"would mix both; allow_code_change=true goes on all the same, or remove {folder.path} to start again"
        )
    threads_before = torch.get_num_threads()
    threads = environment.set_threads(
        (before.get("threads") if interrupted else None)
        or settings.hardware.threads
        or environment.threads_each(processes)
    )
    attempt = before.get("attempt", 0) + 1
    repository = environment.git_state(Path(__file__).parent.parent)
    started = time.time()
    folder.update_status(
        state="running",
        phase="",
        step=0,
        attempt=attempt,
        resumes=attempt - 1,
        pid=os.getpid(),
        host=socket.gethostname(),
        started=before.get("started", started),
        attempt_started=started,
        threads=threads,
        processes=processes,
        code=code,
    )
    (folder.path / "error.txt").unlink(missing_ok=True)
    metrics_file = MetricsFile(folder.path / "metrics.jsonl")
    observer = RunObserver(launch.progress, metrics_file, folder.path / "log.txt", prefix)
    tracker = Tracker(
        folder.path,
        settings.tracking,
        key=planned.key,
        config=planned.config,
        name=f"{planned.name}-{settings.scale.name}-seed{settings.seed}",
        inner=bool(prefix),
        group=launch.group,
        attempt=attempt,
        offline=settings.offline,
        say=observer.say,
    )
    ctx = Context(planned.config, settings, folder, launch, observer)
    watch = _StatusWriter(folder, observer)
    state = "failed"
    told: dict[str, Any] = {}  # W&B's summary
    try:
        write_atomic(folder.path / "config.yaml", _yaml(planned.config))
        if repository.patch:
            write_atomic(folder.path / "code.patch", repository.patch)
        else:
            (folder.path / "code.patch").unlink(missing_ok=True)  # of an earlier attempt
        if attempt > 1:
            observer.say(f"resumes (attempt {attempt}): {planned.name}/{planned.key}")
        tracker.start()
        if ranks is not None:
            ranks.share(threads)
            ctx.data  # noqa: B018  while all ranks are at the same place
        metrics = checked.method.run(ctx)
        ctx.durable.finish()
        metrics_file.close()
        summary = {name: float(value) for name, value in metrics.items()}
        _check_finite(summary)
        seconds = before.get("seconds", 0.0) + time.time() - started
        hardware = {"threads": threads, "processes": processes}
        result = _result(checked, ctx, summary, attempt, seconds, hardware, repository.commit, repository.dirty, code)
        write_json(folder.result_path, result)
        state = "done"
        told = {"seconds": result["seconds"], "profile": ctx.profiles, **summary}
        shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
        (folder.path / "result.previous.json").unlink(missing_ok=True)
        vain = set_in_vain(planned.config["recipe"], ctx.recipe_read, planned.origin) if attempt == 1 else []
        if vain:  # a resumed run does not ask again for what finished phases used
            observer.say(f"without effect: {', '.join(vain)}; nothing in this run of {planned.name} asked for it")
        return result
    except StopRequested:
        state = "stopped"
        raise
    except UserError:
        _write_error(folder)
        raise
    except _CellFailed:
        _write_error(folder)
        raise
    except RunFailed as error:
        _write_error(folder)
        raise _CellFailed(f"{prefix}{error} ({folder.path / 'error.txt'})") from None
    except Exception as error:
        if ranks is not None and isinstance(error, RuntimeError) and (lost := ranks.lost()):
            _write_error(folder, lost)
            first, *more = lost.splitlines()
            what = " ".join([first, *more[-1:]])
            raise _CellFailed(f"{prefix}{what}; {LAST_STATE} ({folder.path / 'error.txt'})") from None
        _write_error(folder)
        text = str(error).strip().splitlines()
        last = f"{type(error).__name__}: {text[0] if text else ''}"
        if isinstance(error, OSError) and error.errno is not None:
            last += f"; what was saved stays, repeat the command when the disk of {folder.path} can be written"
        raise _CellFailed(f"{prefix}{last} ({folder.path / 'error.txt'})") from error
    finally:
        watch.stop()
        try:
            metrics_file.close()
            folder.update_status(
                state=state,
                phase=observer.now[0],
                step=observer.now[1],
                seconds=round(before.get("seconds", 0.0) + time.time() - started, 3),
            )
        except OSError as error:
            observer.say(f"status.json cannot be written: {error.strerror}")
        tracker.finish(told, state)
        torch.set_num_threads(threads_before)


def _result(
    checked: Checked,
    ctx: Context,
    metrics: dict[str, float],
    attempt: int,
    seconds: float,
    hardware: dict[str, int],
    commit: str | None,
    dirty: bool,
    code: str,
) -> dict[str, Any]:
    planned, settings, method = checked.plan, checked.settings, checked.method_class
    config = planned.config
    result = {
        "method": config["method"]["name"],
        "model": settings.model.name,
        "dataset": ctx.data.display_name if "data" in vars(ctx) else settings.dataset.name,  # not read only to be named
        "scale": settings.scale.name,
        "seed": settings.seed,
        "key": planned.key,
        "metrics": metrics,
        "profile": ctx.profiles,
        "phases": {**ctx.cells, **ctx.durable.phases},
        "product": ctx.product,
        "seconds": round(seconds, 3),
        "attempt": attempt,
        "resumes": attempt - 1,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "fidelity": getattr(method, "fidelity", None),
        "deviations": list(getattr(method, "deviations", ())),
        "fingerprints": planned.fingerprints,
        "code": code,
        "commit": commit,
        "uncommitted_changes": dirty,
        "versions": environment.versions(),
        "hardware": {**environment.machine(), "device": str(ctx.device), **hardware},
    }
    return json.loads(json.dumps(result))


def _check_finite(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RunFailed(
                f"the metric '{name}' is {value}: training diverged at its end, or the measurement is undefined; "
                "a smaller recipe.optimizer.learning_rate or recipe.gradient_clip is the usual cure"
            )


def _write_error(folder: RunFolder, text: str | None = None) -> None:
    text = text or traceback.format_exc()
    for part in (text, text[-1000:]):  # a disk that is all but full may still take the end, which names the error
        try:
            write_atomic(folder.path / "error.txt", part)
            return
        except OSError:
            continue


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


class _StatusWriter:
    """Writes phase and step to status.json every few seconds, beside the run."""

    def __init__(self, folder: RunFolder, observer: RunObserver) -> None:
        self._stop = threading.Event()
        self._folder, self._observer = folder, observer
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while not self._stop.wait(STATUS_SECONDS):
            try:
                self._folder.update_status(phase=self._observer.now[0], step=self._observer.now[1])
            except OSError:
                continue  # the run itself will say so when it has something to save

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
