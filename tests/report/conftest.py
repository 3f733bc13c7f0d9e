"""Run folders as the runner leaves them, without the runs."""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.compose import compose

HARDWARE = {"host": "alpha", "processor": "Some CPU", "device": "cpu", "threads": 2}


@cache
def composed(*words: str) -> dict:
    return compose(["model=resnet20", "scale=smoke", *words]).config


def make_run(folder: Path, name: str, *words: str, state="done", metrics=None, lines=(), **result: Any) -> Path:
    """``result`` is added to result.json; ``lines`` are those of metrics.jsonl."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(composed(*words)))
    status = {"state": state, "updated": time.time(), "seconds": 2.5, "host": "alpha"}
    (path / "status.json").write_text(json.dumps(status))
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if state == "done":
        stored = {"metrics": metrics or {}, "seconds": 2.5, "phases": {}, "hardware": HARDWARE, "profile": {}, **result}
        (path / "result.json").write_text(json.dumps(stored))
    return path


def profile(flops: int, latency: float) -> dict:
    return {"final": {"params": flops // 100, "flops": flops, "latency_ms": {"1": latency, "64": 20 * latency}}}


def rows(phase: str, count: int, **values: float) -> list[dict]:
    return [{"phase": phase, "step": step + 1, "time": 1.0, "loss": 1 / (step + 1), **values} for step in range(count)]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Five runs; three of them on one front of accuracy against FLOPs but for the third."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)
    folder = tmp_path / "runs"
    curves = rows("search", 5) + rows("fine_tune", 30, accuracy_validation=0.5)
    one, two = "supervised-resnet20-digits", "ekg-resnet20-digits"
    full, half = profile(4_000_000, 8.0), profile(2_000_000, 5.0)
    make_run(folder, f"{one}/aaaa00000001", "method=supervised", metrics={"accuracy": 0.95, "loss": 0.2}, profile=full)
    make_run(
        folder, f"{two}/bbbb00000001", "method=ekg", metrics={"accuracy": 0.90, "loss": 0.3}, profile=half, lines=curves
    )
    worse = {"metrics": {"accuracy": 0.70, "loss": 0.9}, "profile": profile(3_000_000, 6.0), "lines": curves}
    words = ("method=ekg", "seed=1", "method.target_rate=0.6", "recipe.epochs=7")
    make_run(folder, f"{two}/bbbb00000002", *words, **worse, hardware=HARDWARE | {"host": "beta"})
    failed = make_run(folder, f"{two}/bbbb00000003", "method=ekg", "seed=2", state="failed")
    (failed / "error.txt").write_text("Traceback\n  File\nValueError: loss is nan\n")
    make_run(folder, f"{two}/bbbb00000004", "method=ekg", "scale=desk", metrics={"accuracy": 0.99}, profile=half)
    return folder


@pytest.fixture
def table(runs) -> dict:
    """A stored table ekg/knowledge whose cells are two of the runs."""
    cell = {"row": "ensemble", "column": "digits", "runs": ["ekg-resnet20-digits/bbbb00000001"], "n": 1, "mean": 0.9,
            "sd": None, "interval": None, "reported": {"value": 93.69, "spread": 0.1, "note": "Table 5"},
            "difference": None, "verdict": "no verdict", "command": None}  # fmt: skip
    missing = {"row": "single", "column": "digits", "runs": [], "n": 0, "mean": None, "reported": None,
               "verdict": "missing", "command": "runner method=ekg seed=9"}  # fmt: skip
    claim = {"text": "ensemble > single", "verdict": "holds", "test": "paired t", "level": 0.05, "n": 5,
             "difference": 0.4, "interval": [0.1, 0.7], "p": 0.02}  # fmt: skip
    value = {"name": "knowledge", "title": "Knowledge", "source": "Table 5", "scale": "smoke", "created": "2026-11-22",
             "commit": "abc", "machine": "alpha", "metric": {"name": "accuracy", "unit": "", "higher_is_better": True},
             "rows": ["ensemble", "single"], "columns": ["digits"], "cells": [cell, missing], "claims": [claim],
             "fidelity": {"ekg": "official"}, "deviations": {"ekg": ["one crop"]}, "differing_axes": []}  # fmt: skip
    folder = runs / "tables/ekg"
    folder.mkdir(parents=True)
    (folder / "knowledge-smoke.json").write_text(json.dumps(value))
    return value
