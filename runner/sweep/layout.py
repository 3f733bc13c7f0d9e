"""How the cells of a sweep share the machine: slots, threads a cell, GPUs. Light: no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.environment import usable_cores
from runner.errors import UserError
from runner.sweep.planning import Cell

UNLIMITED = 100_000  # slots where another engine queues


@dataclass(frozen=True)
class Layout:
    """``slots``: one entry a cell at once, a GPU index or None; ``threads`` of each cell, None: its own choice."""

    slots: list[int | None]
    threads: int | None
    forks: bool  # whether cells can be forked from a process that has torch loaded
    environment: dict[str, str] = field(default_factory=dict)  # of the process that they are forked from

    def of_slot(self, slot: int | None) -> dict[str, str]:
        """The environment of a cell on a slot."""
        if slot is None:
            return {}
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return {"CUDA_VISIBLE_DEVICES": visible[slot] if slot < len(visible) else str(slot)}


def layout(cells: Sequence[Cell], asked: int | list[int] | None, *, launcher: str) -> Layout:
    """From hardware.slots, hardware.threads and the machine; the count of all cells of the sweep, cached ones too,
    bounds the default, so that a repeated command gives each cell the same threads.

    Raises:
        UserError: slots are GPU indices that are not there.
    """
    hardware = cells[0].composed.config["hardware"]
    slots = hardware.get("slots") if asked is None else asked
    if launcher in ("ray", "submitit_slurm"):
        return Layout([None] * (slots if isinstance(slots, int) else UNLIMITED), None, forks=False)
    devices = {cell.composed.config["hardware"]["device"] for cell in cells}
    gpus = visible_gpus() if devices & {"auto", "cuda"} else 0
    forks = launcher == "local" and sys.platform == "linux" and not gpus and devices <= {"auto", "cpu"}
    if isinstance(slots, list):
        if gpus and (wrong := [index for index in slots if index >= gpus]):
            raise UserError(f"hardware.slots={slots}: there is no GPU {wrong[0]}; this machine shows {gpus}")
        if not slots:
            raise UserError("hardware.slots=[]: name at least one GPU index, or a number of cells at once")
        return Layout(list(slots), _threads(hardware, len(slots)), forks=False)
    if gpus and slots is None and hardware["name"] == "multi_gpu":  # each cell takes them all
        return Layout([None], _threads(hardware, 1), forks=False)
    if gpus and slots is None:
        return Layout(list(range(gpus)), _threads(hardware, gpus), forks=False)
    if slots is None:
        slots = max(1, min(len(cells), usable_cores() // (hardware["threads"] or 1)))
    threads = _threads(hardware, slots)
    # libraries that choose their threads as they are loaded, which is before the cell can say its own
    return Layout([None] * slots, threads, forks, {"OMP_NUM_THREADS": str(threads)})


def visible_gpus() -> int:
    """NVIDIA GPUs that a process started here would see, counted without loading their driver."""
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if chosen is None else min(there, len([name for name in chosen.split(",") if name not in ("", "-1")]))


def _threads(hardware: dict, slots: int) -> int:
    return hardware["threads"] or max(1, usable_cores() // slots)
