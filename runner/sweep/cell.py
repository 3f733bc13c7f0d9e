"""One cell in a process of its own: what it is told, how it runs, and the exit codes by which it answers.

``python -m runner.sweep.cell`` reads a line of JSON on standard input and ends, by signal 9, when that input ends
before it: a cell never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from runner.compose import Composed
from runner.defaults import SiteDefaults
from runner.errors import RunFailed, StopRequested, UserError
from runner.folder import Locked, RunFolder
from runner.storage import write_atomic

IN_USE = 76  # another process runs this very cell


def specification(composed: Composed, folder: RunFolder, *, group: str, threads: int | None) -> dict[str, Any]:
    """All that a cell's process needs to know, as JSON; ``threads`` unless the config says its own."""
    config = composed.config
    hardware = config["hardware"]
    if hardware["threads"] is None:
        hardware = {**hardware, "threads": threads}
    return {
        "config": {**config, "hardware": hardware},
        "overrides": composed.overrides,
        "choices": composed.choices,
        "search_path": [str(folder) for folder in composed.search_path],
        "site": {"file": composed.site.file and str(composed.site.file), "values": composed.site.values},
        "group": group,
        "folder": str(folder.path),
        "directory": str(Path.cwd()),  # where relative paths start from
        "path": sys.path,
    }


def _composed(told: dict[str, Any]) -> Composed:
    file = told["site"]["file"]
    site = SiteDefaults(file and Path(file), told["site"]["values"])
    path = [Path(folder) for folder in told["search_path"]]
    return Composed(told["config"], told["overrides"], told["choices"], path, None, site)


def answer(told: dict[str, Any]) -> int:
    """Runs or checks what it is told; returns the exit code. The reason of a failure is the last line it prints."""
    sys.path.extend(entry for entry in told.get("path", ()) if entry not in sys.path)
    try:
        if "check" in told:
            _check(told["check"])
        else:
            from runner.execute import execute

            execute(_composed(told), group=told["group"] or None)
    except Locked:
        return IN_USE
    except (UserError, RunFailed, StopRequested) as error:
        _say(f"runner: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return StopRequested.exit_code
    except BaseException:
        traceback.print_exc()
        return RunFailed.exit_code
    finally:
        _flush()
    return 0


def _check(cells: list[dict[str, Any]]) -> None:
    """What needs torch to be known: the methods' own fields, files, whether method, model and data set fit."""
    from runner.cells import check
    from runner.plan import plan

    for number, told in enumerate(cells):
        composed = _composed(told)
        try:
            check(plan(composed.config, composed.origin))
        except UserError as error:
            raise UserError(f"{number} {error}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


def last_line(log: Path) -> str:
    """The last line that a process wrote into its log, without the program's name before it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip().removeprefix("runner: ") for line in reversed(lines) if line.strip()), "")


def settle(folder: RunFolder, state: str, error: str | None) -> None:
    """Says in the run folder what its dead process cannot say: ``state``, and ``error`` as error.txt."""
    try:
        if not folder.status():
            folder.create()
        with folder.lock():
            if folder.result() is None:
                if error is not None:
                    write_atomic(folder.path / "error.txt", error)
                folder.update_status(state=state)
    except (Locked, UserError, OSError):
        return  # another process goes on with it already, or the disk is gone


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    told = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    return answer(told)


if __name__ == "__main__":
    code = main()
    os._exit(code)  # the thread that reads standard input holds its lock: a normal end would wait for it
