"""Reads what W&B wrote offline, run-ID.wandb: wandb has no Python reader of its own.

The file is LevelDB's log format (github.com/google/leveldb, doc/log_format.md) with a header of its own: ":W&B", a
magic number and a version, 7 bytes that belong to the first block of 32 KiB. A record is split over blocks where it
does not fit; each part has 4 bytes of checksum (crc32 of type and data), 2 of length and 1 of type.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, PART_HEADER = 32768, struct.Struct("<IHB")
FILE_HEADER, MAGIC, VERSION = struct.Struct("<4sHB"), 0xBEE1, 0
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """Every record; ValueError where the file is damaged."""
    content = path.read_bytes()
    if FILE_HEADER.unpack_from(content) != (b":W&B", MAGIC, VERSION):
        raise ValueError(f"{path} does not begin as a .wandb file: {content[:7]!r}")
    position, parts = FILE_HEADER.size, []
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < PART_HEADER.size:  # too short for a part: filled with zeros
            position += left
            continue
        checksum, length, kind = PART_HEADER.unpack_from(content, position)
        position += PART_HEADER.size
        data = content[position : position + length]
        if len(data) != length or length > left - PART_HEADER.size:
            raise ValueError(f"{path} is cut off at byte {position}")
        if zlib.crc32(bytes([kind]) + data) != checksum:
            raise ValueError(f"{path} is damaged at byte {position}")
        if (kind in (FULL, FIRST)) != (not parts):
            raise ValueError(f"{path}: a part of kind {kind} out of order at byte {position}")
        position += length
        parts.append(data)
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []
    if parts:
        raise ValueError(f"{path} ends within a record")


@dataclass
class WandbFile:
    """What the records of a run add up to; JSON values decoded."""

    run: Any = None  # RunRecord: run_id, project, entity, run_group, display_name, notes, tags ...
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)  # name or glob -> MetricRecord
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def axis(self, name: str) -> str | None:
        """The step axis that W&B draws a logged value over: of the most specific definition that fits."""
        known = (name, f"{name.rpartition('/')[0]}/*")
        return next((self.metrics[one].step_metric for one in known if one in self.metrics), None)


def read(path: Path) -> WandbFile:
    found = WandbFile()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _update(found.config, record.run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "summary":
            _update(found.summary, record.summary.update)
        elif kind == "history":
            _update(row := {}, record.history.item)
            found.history.append(row)
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "files":
            found.files += [item.path for item in record.files.files]
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(into: dict[str, Any], items: Any) -> None:
    """Sets values; a nested key is a path into dictionaries."""
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        place = into
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
