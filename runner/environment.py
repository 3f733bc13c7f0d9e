"""What a run was made with: versions, machine, source state, device. Nothing here imports torch but the functions
that choose a device or a thread count, so that a finished cell can be answered without it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UserError

if TYPE_CHECKING:
    import torch

PACKAGES = ("paper-runner", "torch", "torchvision", "numpy", "scikit-learn", "hydra-core", "omegaconf", "pydantic",
            "safetensors", "pillow", "wandb")  # fmt: skip
GIT_SECONDS = 5.0
MAX_PATCH_BYTES = 1 << 20


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can decide a result; an absent package is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Host, system, processor, cores that this process may use, memory in GiB; GPU names if torch is loaded."""
    import psutil

    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class GitState:
    """The state of the source: ``commit`` is None outside a repository or without git; ``patch`` is "" when clean."""

    commit: str | None = None
    dirty: bool = False
    patch: str = ""


# Recorded results are no code: the table that is written first must not make the next one's commit look changed.
CODE = (".", ":(exclude)RESULTS.md", ":(exclude)results")


def git_state(path: Path) -> GitState:
    """Commit and uncommitted difference of the repository that holds ``path``.

    The patch is ``git diff HEAD`` below ``path`` and the names of untracked files as comment lines, cut at 1 MiB. A
    ``path`` that its repository ignores (a virtual environment inside somebody's project) counts as outside.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GIT_SECONDS,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # never write into the user's repository
        )
        return done.stdout.decode(errors="replace")

    try:
        commit = git("rev-parse", "--verify", "HEAD").strip()
    except (OSError, subprocess.SubprocessError):
        return GitState()
    try:
        git("check-ignore", "--quiet", str(path.resolve()))
        return GitState()
    except subprocess.CalledProcessError:
        pass  # exit code 1: not ignored
    except (OSError, subprocess.SubprocessError):
        return GitState(commit)
    try:
        patch = git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", *CODE)
        untracked = git("ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines()
    except (OSError, subprocess.SubprocessError):
        return GitState(commit)
    patch += "".join(f"# untracked: {name}\n" for name in untracked)
    encoded = patch.encode()
    if len(encoded) > MAX_PATCH_BYTES:
        kept = encoded[:MAX_PATCH_BYTES].decode(errors="ignore")
        patch = f"{kept}\n# cut: {MAX_PATCH_BYTES} of {len(encoded)} bytes kept\n"
    return GitState(commit, bool(patch), patch)


def resolve_device(name: str) -> torch.device:
    """The device of ``hardware.device``: auto (CUDA, else MPS, else CPU), cpu, cuda or mps.

    Raises:
        UserError: the named device is not there.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name, False):
        there = ", ".join(device for device, yes in available.items() if yes)
        raise UserError(
            f"hardware.device={name}: PyTorch {torch.__version__} finds no such device here (it finds: {there}); "
            "use hardware=cpu, or hardware=auto to take what is there"
        )
    if name == "cuda":
        # A resume must give the bits of an undisturbed run; operations without such a kernel warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def set_threads(count: int | None) -> int:
    """Let torch compute with ``count`` CPU threads (None: its own choice); returns the count in force.

    The count decides the bits of a result, so the caller stores it and gives it again on a resume.
    """
    import torch

    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def threads_each(processes: int) -> int | None:
    """Cores for each of several processes that share this machine; None (no limit) for one."""
    return None if processes == 1 else max(1, usable_cores() // processes)


def hardware_summary(device: torch.device) -> str:
    """One line for the screen: the device, its name and memory, and the CPU threads in use."""
    import torch

    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' * (threads != 1)}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {cpu}"
    if device.type == "mps":
        return f"mps: Apple GPU, {cpu}"
    return f"cpu: {_processor()}, {cpu} of {usable_cores()} cores"
