"""A process that has torch loaded and never computes; it forks one process a cell (tens of milliseconds, not seconds).

It speaks JSON lines over a socket: {"id", "told", "log", "environment"} starts a cell, {"id", "signal"} signals it (a
kill reaches its whole group); it answers {"id", "code"} when one ended (negative: the signal). When the other side of
the socket is gone, everything here ends at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any

PRELOADED = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "safetensors.torch",
    "pydantic.type_adapter",
    "runner.cells",
    "runner.execute",
    "runner.product",
    "runner.profile",
    "runner.progress",
    "runner.sweep.cell",
)
PR_SET_PDEATHSIG = 1


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's to handle
    asked = json.loads(connection.makefile("rb", buffering=0).readline())
    sys.path[:] = asked["path"]
    for name in (*PRELOADED, *asked["modules"]):
        with contextlib.suppress(Exception):  # a cell that needs it says what is wrong
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the children share these pages as long as nobody writes into them
    serve(connection)


def serve(connection: socket.socket) -> None:
    """Starts, signals and reaps until the connection ends."""
    children: dict[int, str] = {}  # pid -> id
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    connection.setblocking(True)
    buffer = b""
    while True:
        ready, _, _ = select.select([connection, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        for pid, code in _ended(children):
            if not _send(connection, {"id": children.pop(pid), "code": code}):
                return _end(children)
        if connection not in ready:
            continue
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            return _end(children)
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            asked = json.loads(line)
            if "signal" in asked:
                _signal(children, asked["id"], asked["signal"])
            else:
                children[_fork(asked, (connection.fileno(), woken, wake))] = asked["id"]


def _fork(asked: dict[str, Any], inherited: tuple[int, ...]) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # here and there: whichever comes first
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        os.setpgid(0, 0)
        _die_with(server)
        for descriptor in inherited:
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(null)
        os.close(log)
        os.environ.update(asked["environment"])
        from runner.sweep.cell import answer

        code = answer(asked["told"])
    finally:
        os._exit(code)


def _die_with(server: int) -> None:
    """The kernel kills this process when the server dies, whatever kills that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


def _ended(children: dict[int, str]) -> list[tuple[int, int]]:
    found = []
    for pid in list(children):
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            done, status = pid, 1 << 8
        if done:
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _signal(children: dict[int, str], name: str, number: int) -> None:
    for pid, child in children.items():
        if child == name:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # a stop is for the run, which saves; a kill is for all that it started too
                (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def _end(children: dict[int, str]) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _send(connection: socket.socket, message: dict[str, Any]) -> bool:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
