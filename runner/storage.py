"""Atomic files: a reader sees the old content or the new one, never a torn one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"  # hidden names that end so are half-written, whoever wrote them was killed


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes through a temporary file in the same folder, synced to disk before it takes the name."""
    data = content.encode() if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_atomic(path, write)


def replace_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then renames it; nothing is left behind on failure."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A .safetensors file of ``tensors``, copied to the CPU and made contiguous; views may share memory.

    The library's own writer to a file leaves a temporary of its own naming where it is killed.
    """
    import torch
    from safetensors.torch import save

    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomic(path, save(plain))


def remove_partial(folder: Path) -> None:
    """Removes what killed writers left anywhere below ``folder``; nobody may be writing there."""
    for path in list(folder.rglob(f".*{PARTIAL}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, keys in the order given."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The content, or None when the file is missing, torn or not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
