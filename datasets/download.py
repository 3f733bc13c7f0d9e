"""Downloads that the user asked for by naming a data set: announced, checked, never half there. Light to import."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from runner.datasets import files
from runner.errors import UserError

SILENCE = 30.0  # seconds without a byte after which a server counts as unreachable


def check_allowed(missing: str, folder: Path, offline: bool, setting: str = "paths.data") -> None:
    """Raise a UserError if a needed download is forbidden or has no place to go.

    ``missing`` says what to put where, ``setting`` what decides about the folder.
    """
    if offline:
        raise UserError(f"{missing} (offline=true forbids the download)")
    files.check_writable(folder, setting)


def first_that_works(attempts: list[Callable[[], None]]) -> None:
    """Try mirrors in turn; the last failure is raised."""
    for attempt in attempts[:-1]:
        with contextlib.suppress(OSError, RuntimeError):
            attempt()
            return
    attempts[-1]()


def into(target: Path, fetch: Callable[[Path], Path], doing: str, missing: str) -> None:
    """Fill ``target`` by what ``fetch`` makes of an empty folder beside it (it returns the finished folder there).

    Only finished and checked files get their final names, so an interrupted download is never taken for complete.
    ``doing`` is announced first; ``missing`` says what to put where instead.

    Raises:
        UserError: no network, a wrong checksum, a full or read-only disk.
    """
    print(f"{doing} into {target}", file=sys.stderr)
    temporary, patience = None, socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(SILENCE)  # torchvision sets none: a firewall that drops packets would hang the run
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".download-"))
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the path of the result
            finished = fetch(temporary)
        target.mkdir(exist_ok=True)
        for file in finished.iterdir():  # one by one: the folder may exist with a part of the files
            os.replace(file, target / file.name)  # noqa: PTH105
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{doing} failed: {str(error) or type(error).__name__}. {missing}") from error
    finally:
        socket.setdefaulttimeout(patience)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
