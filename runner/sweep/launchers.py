"""Where the processes of cells come from. A launcher starts, signals and reports; the queue is the engine's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from runner.errors import UserError, did_you_mean

LAUNCHERS = {"local": "", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}  # name -> extra
REFUSED = {
    "basic": "it loses the other cells when one is killed; leave hydra/launcher away",
    "joblib": "it loses the other cells when one is killed; leave hydra/launcher away",
}


class Launcher(Protocol):
    """``start`` returns at once; ``poll`` waits at most so many seconds and returns (name, exit code) of what ended."""

    def start(self, name: str, told: dict[str, Any], log: Path, environment: Mapping[str, str]) -> None: ...
    def poll(self, seconds: float) -> list[tuple[str, int]]: ...
    def signal(self, name: str, number: int) -> None: ...
    def close(self) -> None: ...


def check_launcher(name: str, extra_words: Sequence[str] = ()) -> None:
    """Raises UserError for an unknown launcher and for settings that the local one does not have."""
    if name in REFUSED:
        raise UserError(f"hydra/launcher={name} is not used here: {REFUSED[name]} for the local launcher")
    if name not in LAUNCHERS:
        raise UserError(f"unknown launcher 'hydra/launcher={name}'; {did_you_mean(name, LAUNCHERS)}")
    if name == "local" and extra_words:
        raise UserError(
            f"'{extra_words[0]}': the local launcher is set by hardware.slots, hardware.threads and retries; "
            "hydra.launcher settings belong to hydra/launcher=ray|submitit_local|submitit_slurm"
        )


class Fork:
    """Cells forked from a server; where forking is not safe, fresh processes serve (``Fresh``)."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._modules, self._environment = list(modules), dict(environment)
        self._running: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._buffer = b""

    def start(self, name: str, told: dict[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        if self._process is None:
            self._open()
        self._running.add(name)
        self._send({"id": name, "told": told, "log": str(log), "environment": dict(environment)})

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        if self._connection is None:
            time.sleep(seconds)
            return []
        if not select.select([self._connection], [], [], seconds)[0]:
            return []
        try:
            data = self._connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:  # the server was killed, and with it its children
            lost, self._running = self._running, set()
            self.close()
            return [(name, -signal.SIGKILL) for name in lost]
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        ended = [(message["id"], message["code"]) for message in map(json.loads, lines)]
        self._running -= {name for name, _ in ended}
        return ended

    def signal(self, name: str, number: int) -> None:
        self._send({"id": name, "signal": number})

    def close(self) -> None:
        if self._process is None:
            return
        self._connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # it is importing still
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _open(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "runner.sweep.server", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(self._environment),
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C of the terminal is for the sweep alone
        )
        theirs.close()
        self._send({"path": sys.path, "modules": self._modules})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a dead server shows in poll
            if self._connection is not None:
                self._connection.sendall(json.dumps(message).encode() + b"\n")


class Fresh:
    """A new Python process a cell: on macOS and where a cell uses a GPU, whose driver does not survive a fork."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, told: dict[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        self._running[name] = start_process(told, log, environment)

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(process.poll() is None for process in self._running.values()):
            time.sleep(0.02)
        ended = [(name, process.returncode) for name, process in self._running.items() if process.poll() is not None]
        for name, _ in ended:
            self._running.pop(name).stdin.close()
        return ended

    def signal(self, name: str, number: int) -> None:
        if (process := self._running.get(name)) is not None:
            signal_process(process, number)

    def close(self) -> None:
        for process in self._running.values():
            signal_process(process, signal.SIGKILL)
            process.wait()
            process.stdin.close()
        self._running.clear()


def start_process(told: dict[str, Any], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts ``runner.sweep.cell`` in a group of its own; it ends when its standard input does."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner.sweep.cell"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=child_environment(environment),
            cwd=told.get("directory"),
            start_new_session=True,
        )
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
    return process


def signal_process(process: subprocess.Popen[bytes], number: int) -> None:
    """A stop for the run itself; a kill for all that it started too."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This environment with ``changes``; from a clone that is not installed the children find the package too."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, **changes}
    if not re.search(r"(site|dist)-packages$", root):
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = root + (os.pathsep + before if before else "")
    return environment


def make_launcher(
    name: str,
    words: Sequence[str],
    *,
    fresh: bool,
    modules: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
) -> Launcher:
    """The launcher of a sweep whose own files stand in ``folder``.

    Raises:
        UserError: what it needs is not installed, or one of its settings is unknown.
    """
    if name == "local":
        return Fresh() if fresh else Fork(modules, environment)
    from runner.sweep.cluster import Ray, Submitit, launcher_config

    config = launcher_config(name, LAUNCHERS[name], words, folder)
    return Ray(config, folder) if name == "ray" else Submitit(config, folder, name.removeprefix("submitit_"))
