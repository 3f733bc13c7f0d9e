"""Paths of the user, fingerprints of their content, the cache folder, atomic writes. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.errors import UserError, nearest

FINGERPRINTS_KEPT = 200


def cache_folder() -> Path:
    """Where derived files may be kept; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paper-runner"


def user_path(text: str) -> Path:
    """``dataset.path`` as an existing, readable file or folder.

    Raises:
        UserError: it is missing (with the nearest names beside it), unreadable, or neither file nor folder.
    """
    path = Path(text).expanduser()
    try:
        if not path.exists():
            with contextlib.suppress(OSError):
                close = nearest(path.name, [entry.name for entry in path.absolute().parent.iterdir()])
                if close:
                    raise UserError(f"dataset.path={text}: no such file or folder; did you mean {' or '.join(close)}?")
            raise UserError(f"dataset.path={text}: no such file or folder (seen from {Path.cwd()})")
        if not (path.is_dir() or path.is_file()):
            raise UserError(f"dataset.path={text} is neither a file nor a folder")
        if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
            raise UserError(f"dataset.path={text} cannot be read: permission denied")
    except OSError as error:
        raise UserError(f"dataset.path={text} cannot be read: {error.strerror}") from error
    return path


def check_writable(folder: Path, setting: str) -> None:
    """Raise a UserError unless ``folder`` exists and can be written, or can be made."""
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UserError(f"{setting}={folder} cannot be written, but a download must be put into it")


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file under a folder that is not hidden: path relative to it, with forward slashes, and status; sorted."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # a dangling link
                    yield path.relative_to(folder).as_posix(), path.stat()


def fingerprint(path: Path, times: bool = False) -> str:
    """sha256 of a file's content, or of the names and sizes (and modification times if asked) of a folder's files."""
    try:
        if path.is_file():
            return "sha256:" + _sha256_cached(path)
        digest = hashlib.sha256()
        for name, status in walk(path):
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns if times else ''}\n".encode())
        return "folder:" + digest.hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _sha256_cached(path: Path) -> str:
    status = path.stat()
    name, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
    cache = cache_folder() / "fingerprints.json"
    known: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(cache.read_text())
        known = content if isinstance(content, dict) else {}
    entry = known.pop(name, None)
    if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3 and isinstance(entry[2], str):
        return entry[2]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known[name] = [*stamp, digest]
    newest = dict(list(known.items())[-FINGERPRINTS_KEPT:])
    with contextlib.suppress(OSError):  # a read-only home costs a second reading, nothing else
        write_atomic(cache, lambda temporary: temporary.write_text(json.dumps(newest, indent=0)))
    return digest


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file of another name in the same folder, then rename it: never a half-written ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)  # noqa: PTH105 - the text of the exception names both files
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
