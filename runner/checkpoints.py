"""What survives a kill: results of `once` phases and states of loops, each file with its own checksum.

A file is a torch.save archive followed by the sha256 of the archive. It is loaded with ``weights_only=True``; a file
whose checksum does not fit (torn, corrupted) is treated as absent, so that the one before it serves.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy
import torch

from runner.storage import write_atomic

DIGEST_BYTES = 32
PLAIN = (bool, int, float, complex, str, bytes)
KEEP = 2  # states of one loop; the older one serves when the newer one is corrupt


def encode(value: Any, where: str = "value") -> Any:
    """Turns NumPy values into tensors and numbers, refuses what ``weights_only`` loading would refuse.

    Raises:
        TypeError: names the place of a value that is no tensor, number, text or plain container.
    """
    if value is None or type(value) in PLAIN:  # no subclasses: numpy.float64 is a float, and loading would refuse it
        return value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, numpy.ndarray):
        return {"__numpy__": torch.from_numpy(numpy.asarray(value, order="C"))}
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, dict):
        return {encode(key, where): encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, set):
        return {"__set__": sorted(encode(item, where) for item in value)}
    raise TypeError(f"{where} is a {type(value).__name__}; only tensors, numbers, text and plain containers are stored")


def decode(value: Any) -> Any:
    """The inverse of ``encode``; tensors are copies that share nothing with their source."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        if value.keys() == {"__numpy__"}:
            return value["__numpy__"].clone().numpy()
        if value.keys() == {"__set__"}:
            return set(value["__set__"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [decode(item) for item in value] if isinstance(value, list) else tuple(decode(item) for item in value)
    return value


def write(path: Path, payload: dict[str, Any]) -> None:
    """Writes an encoded payload atomically, with its checksum."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    content = buffer.getvalue()
    write_atomic(path, content + hashlib.sha256(content).digest())


def read(path: Path, device: torch.device | None = None) -> dict[str, Any] | None:
    """The payload, or None when the file is missing, torn or corrupt. Tensors of the first GPU come to ``device``."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    moved = {"cuda:0": str(device)} if device is not None and device.type == "cuda" and device.index else None
    return torch.load(io.BytesIO(body), map_location=moved, weights_only=True)


def _slug(name: str) -> str:
    """A file name for a phase: plain names stay readable, no two phases share one."""
    return quote(name, safe="")


class Checkpoints:
    """The folder checkpoints/ of one run."""

    def __init__(self, folder: Path, warn: Callable[[str], None], device: torch.device | None = None) -> None:
        self.folder = folder
        self.device = device
        self.warn = warn
        self.folder.mkdir(parents=True, exist_ok=True)

    def save_phase(self, name: str, payload: dict[str, Any]) -> None:
        """Stores the result of a finished `once` phase."""
        write(self.folder / f"once.{_slug(name)}.pt", payload)

    def load_phase(self, name: str) -> dict[str, Any] | None:
        """The stored result of a `once` phase, or None."""
        path = self.folder / f"once.{_slug(name)}.pt"
        payload = read(path, self.device)
        if payload is None and path.exists():
            self.warn(f"{path.name} is corrupt; the phase '{name}' is computed again")
        return payload

    def save_loop(self, name: str, payload: dict[str, Any]) -> None:
        """Adds a state of a loop and drops all but the newest two."""
        existing = self._states(name)
        number = self._number(existing[-1]) + 1 if existing else 0
        write(self.folder / f"loop.{_slug(name)}.{number:06d}.pt", payload)
        for old in existing[: -(KEEP - 1)]:
            old.unlink(missing_ok=True)

    def load_loop(self, name: str) -> dict[str, Any] | None:
        """The newest readable state of a loop, or None."""
        for path in reversed(self._states(name)):
            payload = read(path, self.device)
            if payload is not None:
                return payload
            self.warn(f"{path.name} is corrupt; falling back to the state before it")
        return None

    def forget_inside(self, name: str) -> None:
        """Drops what phases inside earlier steps of loop ``name`` have stored: its own newer state covers them."""
        prefix = _slug(f"{name}[")  # phases inside a loop are named loop[step]/phase
        for path in self.folder.iterdir():
            if path.name.startswith((f"loop.{prefix}", f"once.{prefix}")):
                path.unlink(missing_ok=True)

    def _states(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"loop.{_slug(name)}.[0-9][0-9][0-9][0-9][0-9][0-9].pt"))

    @staticmethod
    def _number(path: Path) -> int:
        return int(path.suffixes[-2][1:])
