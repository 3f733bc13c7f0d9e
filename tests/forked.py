"""Runs functions in processes forked from a server that has torch loaded and never computes (33 ms instead of 3 s)."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.registry import describe, methods, search_path

CONTEXT = multiprocessing.get_context("forkserver")
# The server does not get this process's sys.path for what it preloads: without this a checkout that is not the
# installed one would be tested with the installed one's modules.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.getenv("PYTHONPATH")]))
PRELOADED = [
    "torch",
    "torch._dynamo",
    "torchvision",
    "sklearn.datasets",
    "hydra",
    "pandas",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "pydantic",
    "scipy.optimize",
    "scipy.sparse.linalg",
    "scipy.stats",
    "safetensors.torch",
    "runner.cells",
    "runner.cli",
    "runner.compose",
    "runner.execute",
    "runner.product",
    "runner.profile",
    "runner.progress",
    "runner.datasets.images",
    "runner.datasets.digits",
    "runner.models.resize",
]
METHODS = [describe(name, search_path()).target.partition(":")[0] for name in methods(search_path())]
CONTEXT.set_forkserver_preload([*PRELOADED, *METHODS])


def start(function: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
    """Starts ``function(*arguments)`` in a forked process; it must be importable."""
    process = CONTEXT.Process(target=_entry, args=(function, arguments, str(Path.cwd()), list(sys.path)))
    process.start()
    return process


def run(function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> int:
    """Runs to the end and returns the exit code (negative: the signal that killed it)."""
    process = start(function, *arguments)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__}{arguments} did not end in {timeout} s")
    return process.exitcode


def _entry(function: Callable[..., Any], arguments: tuple, folder: str, path: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path[:] = path
    result = function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(result if isinstance(result, int) else 0)


def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent
