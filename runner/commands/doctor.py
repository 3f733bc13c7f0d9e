"""runner doctor [OVERRIDES]

What this machine has for a run, and what is missing with its cure. Overrides such as paths.data=DIR are honoured.
Exit code 1 when something is missing that the bare command `runner` needs.
"""

from __future__ import annotations

import importlib.metadata
import netrc
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlparse

from runner import registry
from runner.commands.runs import shown
from runner.compose import Composed, compose
from runner.errors import UserError
from runner.settings import Settings, build_section, validate

OK, ABSENT, MISSING = "ok", "absent", "MISSING"  # absent: not here, and not needed by the bare command
MINIMUM_FREE = 1.0  # GB on the disk of the run folders; a ResNet-50 run with its checkpoints takes some 0.3 GB
Line = tuple[str, str, str]  # status, what, finding and cure


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    composed = compose(arguments, config_dirs)
    settings = validate(composed.config, composed.origin)
    needed = True
    for status, what, text in _findings(settings, composed):
        needed &= status != MISSING
        print(f"{status:<8} {what:<14} {text}", flush=True)
    if not needed:
        print("runner: lines marked MISSING stop a run on this machine", file=sys.stderr)
    return 0 if needed else 1


def _findings(settings: Settings, composed: Composed) -> Iterator[Line]:
    yield OK, "python", f"{platform.python_version()} at {sys.executable}"
    yield from _torch(settings.hardware.device)
    yield from _datasets(settings, composed)
    yield from _tracking(settings)
    yield _disk("run folders", settings.paths.runs, "paths.runs")
    yield _disk("data folder", settings.paths.data, "paths.data")
    yield OK, "config folders", ", ".join(map(str, composed.search_path))
    if composed.site.file is None:
        yield ABSENT, "defaults file", "none (~/.config/paper-runner/defaults.yaml, or where RUNNER_DEFAULTS says)"
    else:
        values = " ".join(f"{key}={shown(value)}" for key, value in composed.site.values.items())
        yield OK, "defaults file", f"{composed.site.file}: {values or 'nothing of it is in force'}"


def _torch(device: str) -> Iterator[Line]:
    try:
        import torch
    except ImportError as error:
        yield MISSING, "torch", f"{error}: pip install torch torchvision"
        return
    yield OK, "torch", torch.__version__
    try:
        import torchvision
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        yield OK, "torchvision", f"{torchvision.__version__}, compiled operators work"
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        cure = f"install the torchvision that belongs to torch {torch.__version__}, from the same source"
        yield MISSING, "torchvision", f"{reason}: {cure}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    for gpu in gpus:
        yield OK, "device", f"cuda: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield OK, "device", "mps: Apple GPU"
    if not gpus:
        yield (
            MISSING if device == "cuda" else ABSENT,
            "device",
            f"cuda: no GPU seen by torch (built for CUDA {torch.version.cuda or 'none'})",
        )
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield OK, "threads", f"{torch.get_num_threads()} used by torch, {usable} usable cores (hardware.threads=N)"


def _datasets(settings: Settings, composed: Composed) -> Iterator[Line]:
    from runner.datasets import check_dataset

    for name, file in registry.choices("dataset", composed.search_path).items():
        chosen = name == composed.choices["dataset"]
        try:
            one = settings.dataset if chosen else build_section("dataset", registry.read_yaml(file))
            try:
                check_dataset(one, settings.paths.data, offline=True)
                yield OK, "dataset", name
            except UserError:
                check_dataset(one, settings.paths.data, offline=settings.offline)
                yield ABSENT, "dataset", f"{name}: not in {settings.paths.data}; a run with dataset={name} downloads it"
        except UserError as error:
            yield MISSING if chosen else ABSENT, "dataset", f"{name}: {error}"


def _tracking(settings: Settings) -> Iterator[Line]:
    mode = os.environ.get("WANDB_MODE", settings.tracking.mode)
    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        yield MISSING if mode != "none" else ABSENT, "W&B", "pip install wandb, or run with tracking=none"
        return
    yield OK, "W&B", f"{version}, mode {mode}"
    if logged_in():
        yield OK, "W&B login", "a key is stored"
    else:
        needed = MISSING if mode == "online" else ABSENT
        yield needed, "W&B login", "wandb login (only tracking=online needs it)"


def logged_in() -> bool:
    """Whether a key for the W&B server is in the environment or in .netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _disk(what: str, folder: str, key: str) -> Line:
    path = Path(folder).expanduser().absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return MISSING, what, f"{path} cannot be written: choose another with {key}=DIR"
    if free < MINIMUM_FREE:
        return MISSING, what, f"{path}: {free:.1f} GB free, {MINIMUM_FREE:.0f} GB wanted: make room or set {key}=DIR"
    return OK, what, f"{path}, {free:.0f} GB free"
