"""The files in a folder, a tar (plain, gz, bz2, xz) or a zip, without unpacking. Light to import."""

from __future__ import annotations

import contextlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from runner.datasets import files
from runner.errors import UserError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
KINDS = "a folder, .tar, .tar.gz, .tar.bz2, .tar.xz or .zip"
# RuntimeError: an encrypted zip; NotImplementedError: a compression that zipfile lacks
DAMAGE = (
    OSError, EOFError, RuntimeError, NotImplementedError,
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error,
)  # fmt: skip


def check(path: Path) -> None:
    """Raise a UserError unless the path is a folder or begins as an archive; what comes later shows when it is read."""
    if path.is_dir() or zipfile.is_zipfile(path):
        return
    try:
        with tarfile.open(path):
            return
    except DAMAGE as error:
        raise UserError(f"dataset.path={path} is no archive that can be read, or is cut off: needs {KINDS}") from error


def list_files(path: Path) -> list[str]:
    """The names of all regular files, as stored (in a folder: relative to it, hidden ones left out).

    Raises:
        UserError: damaged, truncated or unreadable.
    """
    with _explained(path):
        if path.is_dir():
            return [name for name, _ in files.walk(path)]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
            _check_end(archive)
            return list(dict.fromkeys(names))


def read_files(path: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """The content of the wanted files, in the order in which they are stored; one pass over a compressed archive.

    Raises:
        UserError: damaged, truncated or unreadable.
    """
    with _explained(path):
        if path.is_dir():
            for name in sorted(wanted):
                yield name, (path / name).read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in [entry.filename for entry in archive.infolist() if entry.filename in wanted]:
                    yield name, archive.read(name)
        else:
            left = set(wanted)
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name in left and member.isfile():
                        yield member.name, archive.extractfile(member).read()
                        left.remove(member.name)
                        if not left:  # the rest of the archive need not be decompressed
                            return


def _check_end(archive: tarfile.TarFile) -> None:
    """A plain tar cut off between two members looks whole to tarfile, but lacks the block of zeros at its end.

    Compressed ones have checks of their own, and seeking back in them would decompress everything again.
    """
    if isinstance(archive.fileobj, io.BufferedReader):
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends without an end mark")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        detail = str(error) or type(error).__name__
        raise UserError(
            f"dataset.path={path} is damaged, cut off or cannot be read ({detail}); get a whole copy"
        ) from error
