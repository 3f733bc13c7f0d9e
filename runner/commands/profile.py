"""runner profile RUN [hardware=NAME] [hardware.threads=N] [--format text|json] [paths.runs=DIR]

Parameters, FLOPs (multiply-adds of one example) and latency of a run's network, measured now on this machine: the
median milliseconds of a forward pass at batch 1 and 64, and the numbers that the run stored beside them. Nothing is
written. RUN is a run folder, a key or a unique beginning of one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.commands import Parser
from runner.commands.evaluate import run_and_overrides
from runner.errors import UserError


def parser() -> Parser:
    found = Parser("profile")
    found.add_argument("--format", choices=("text", "json"), default="text")
    return found


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    from runner.compose import compose
    from runner.settings import build_section

    options = parser().read(arguments)
    record, words = run_and_overrides("profile", options.words)
    for word in words:
        if not word.startswith(("hardware=", "hardware.", "paths.runs=")):
            raise UserError(f"'{word}' has no effect on a profile: only hardware=NAME, hardware.KEY and paths.runs do")
    composed = compose(words, config_dirs)
    hardware = build_section("hardware", composed.config["hardware"], composed.origin)
    found = {"run": record.name, **measure(record.path, hardware.device, hardware.threads)}
    stored = record.result
    if options.format == "json":
        print(json.dumps(found, indent=2))
    else:
        _print(found, stored)
    return 0


def measure(folder: Path, device_name: str, threads: int | None) -> dict[str, Any]:
    """params, flops, latency_ms by batch size, and the hardware they were measured on.

    Raises:
        UserError: the device is not here, or the network cannot be loaded.
    """
    import torch

    from runner import environment
    from runner.models.weights import find_product, read_architecture
    from runner.product import load
    from runner.profile import count, latency_ms

    device = environment.resolve_device(device_name)
    before = torch.get_num_threads()
    try:
        used = environment.set_threads(threads)
        architecture = read_architecture(find_product(folder))
        shape = architecture["input_shape"]
        network = load(folder)
        counts = count(network, shape)
        latency = latency_ms(network, shape, device)
    finally:
        torch.set_num_threads(before)
    hardware = {**environment.machine(), "device": str(device), "threads": used}
    return {"params": counts.params, "flops": counts.flops, "latency_ms": latency, "hardware": hardware}


def _print(found: dict[str, Any], stored: dict[str, Any]) -> None:
    from runner.progress import closing_table

    print(f"{found['run']} on this machine ({_machine(found['hardware'])})")
    print(closing_table({"profile": {"final": found}}))
    then = (stored.get("profile") or {}).get("final")
    if then:
        print(f"\nstored by the run ({_machine(stored.get('hardware') or {})})")
        print(closing_table({"profile": {"final": then}}))


def _machine(hardware: dict[str, Any]) -> str:
    parts = [str(hardware.get(name, "?")) for name in ("host", "processor", "device")]
    return ", ".join([*parts, f"{hardware.get('threads', '?')} threads"])
