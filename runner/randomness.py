"""Random streams derived from (seed, names), and capture and restore of all generators.

A verb of the context runs in a stream of its own and leaves the surrounding state as it found it; a phase that is
skipped after a kill therefore draws nothing and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on every argument; equal arguments give equal seeds on every machine."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's (all devices) global generators."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of all global generators as tensors and plain containers."""
    kind, keys, position, has_gauss, cached = numpy.random.get_state()
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(internal), gauss),  # 625 numbers one by one double the time of a checkpoint
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts back what ``capture`` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside, the generators are afterwards as they were before."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


@contextmanager
def stream(seed: int, *names: str | int) -> Iterator[None]:
    """Inside, the generators stand at the start of the stream (seed, names); afterwards as they were before."""
    with preserved():
        seed_everything(stream_seed(seed, *names))
        yield
