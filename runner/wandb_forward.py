"""Forwards the metrics.jsonl of one run folder to Weights & Biases; a script of its own, started by runner.tracking.

It is another process because W&B's client draws from the global random generators, starts threads and a service, and
may hang or die: none of that can reach the run. It imports nothing of the runner.

Arguments: the run folder, the mode (online or offline), and ``follow`` or ``replay``. ``follow`` goes on until
standard input ends, which it does when the run ends in whatever way. What to send stands in wandb/run.json. Messages
for the runner are JSON lines on standard output: {"url"}, {"folder"}, {"error"}.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
POLL_SECONDS = 2.0


def rows(path: Path, ended: threading.Event) -> Iterator[dict[str, Any] | None]:
    """The whole lines of a growing file until it ends; None each time there is nothing more for now.

    A resume puts a shorter file in place of the old one and repeats what it cut off, to the bit: the rows that were
    read already are passed over in the new file.
    """
    count = 0
    last_look = False
    while True:
        with path.open("rb") as file:
            passed, line = 0, b""
            while True:
                line += file.readline()
                if line.endswith(b"\n"):
                    passed += 1
                    if passed > count:
                        count = passed
                        yield json.loads(line)
                    line = b""
                elif os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                    break
                elif last_look:
                    return
                else:
                    yield None
                    last_look = ended.wait(POLL_SECONDS)


class Translator:
    """Turns rows into what W&B logs: ``phase/value`` over ``phase/step``.

    The instances of an inner loop, ``search[0]/tune``, ``search[1]/tune`` ..., become one series ``search.tune`` whose
    steps go on counting: a panel for each of thousands of them would help nobody.
    """

    def __init__(self) -> None:
        self._instance: dict[str, str] = {}
        self._offset: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def __call__(self, row: dict[str, Any]) -> tuple[str, dict[str, float]]:
        """The series and its values."""
        phase, step = row.pop("phase"), row.pop("step")
        series = re.sub(r"\[\d+\]", "", phase).replace("/", ".")
        if self._instance.get(series, phase) != phase:
            self._offset[series] = self._last[series]
        self._instance[series] = phase
        self._last[series] = self._offset.get(series, 0) + step
        values = {"_timestamp": row.pop("time"), f"{series}/step": self._last[series]}
        return series, values | {f"{series}/{name}": NOT_FINITE.get(value, value) for name, value in row.items()}


def forward(folder: Path, mode: str, ended: threading.Event, tell: Any) -> None:
    """Sends all rows that were not sent before, the figures and tables that are new or changed, then the final metrics.

    W&B counts its relative time from the moment of sending; the wall time of every row is its own.
    """
    description = folder / "wandb" / "run.json"
    about = json.loads(description.read_text())
    # W&B's own log of its service belongs in the run folder too.
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
    import wandb

    counter = folder / "wandb" / "forwarded"  # rows that are on the server: they are not sent again
    online = mode == "online"
    sent = int(counter.read_text()) if online and counter.exists() else 0
    if not online:  # each offline piece holds the whole record, so an older one has nothing to add
        for old in (folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(old, ignore_errors=True)
    run = wandb.init(
        mode=mode,
        dir=str(folder),
        resume="allow" if online else None,
        config=about["config"],
        allow_val_change=True,  # the attempt
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            disable_code=True,
            disable_job_creation=True,
            x_save_requirements=False,
            symlink=False,
            x_disable_stats=not online,
            x_stats_pid=about["pid"],
            init_timeout=30,
        ),
        **{name: about[name] for name in ("id", "project", "entity", "group", "name", "tags", "notes")},
    )
    if online:
        tell(url=run.url)
    translate = Translator()
    defined = set()
    count = 0
    for row in rows(folder / "metrics.jsonl", ended):
        if row is None:
            continue
        series, values = translate(row)
        count += 1
        if series not in defined:
            defined.add(series)
            run.define_metric(f"{series}/step", hidden=True)
            run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        if count > sent:
            run.log(values)
    known_figures = folder / "wandb" / "forwarded_figures.json"  # name -> sha256 of those on the server, tables too
    before = json.loads(known_figures.read_text()) if online and known_figures.exists() else {}
    digests = log_tables(run, folder / "tables", log_figures(run, folder / "figures", before))
    about = json.loads(description.read_text())  # now with the end of the run, unless it was killed
    run.summary.update(about.get("summary") or {})
    piece = Path(run.dir).parent
    run.finish(exit_code=0 if about.get("state") == "done" else 1)
    wandb.teardown()  # its service writes the file to the end
    if online:  # only now is it known that they arrived; to send some twice is better than to leave some out
        known_figures.write_text(json.dumps(digests))
        counter.write_text(str(max(count, sent)))
    elif is_whole(piece / f"run-{about['id']}.wandb"):
        tell(folder=str(piece))
    else:  # W&B says nothing of a disk that is full
        shutil.rmtree(piece, ignore_errors=True)
        raise OSError("its file could not be written to the end, is the disk full?")


def is_whole(path: Path) -> bool:
    """Whether an offline file ends with the record of the run's end.

    Its format is LevelDB's log: blocks of 32 KiB, parts with 4 bytes of checksum, 2 of length and 1 of kind (1: a whole
    record, 2 and 3: its beginning and middle, 4: its end), after a header of 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    position, record, complete = 7, b"", False
    while position + 7 <= len(content):
        left = -position % 32768 or 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        part = content[position + 7 : position + 7 + length]
        record = part if kind in (1, 2) else record + part
        complete = kind in (1, 4)
        position += 7 + length
    if not complete or position != len(content):
        return False
    try:
        return Record.FromString(record).WhichOneof("record_type") in ("exit", "final", "footer")
    except ValueError:  # protobuf's DecodeError is one
        return False


def log_figures(run: Any, folder: Path, before: dict[str, str]) -> dict[str, str]:
    """Logs figures/NAME.png as images ``figures/NAME`` unless ``before`` has their sha256; returns all of these."""
    import wandb

    digests = dict(before)
    images: dict[str, Any] = {}
    for path in sorted(folder.glob("*.png")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if before.get(path.stem) == digest:
            continue
        try:
            images[f"figures/{path.stem}"] = wandb.Image(str(path))
        except Exception as error:  # the numbers matter more than a picture
            print(f"{path}: {error}", file=sys.stderr)
            continue
        images["_timestamp"] = max(images.get("_timestamp", 0.0), path.stat().st_mtime)
        digests[path.stem] = digest
    if images:
        run.log(images)
    return digests


def log_tables(run: Any, folder: Path, before: dict[str, str]) -> dict[str, str]:
    """Logs tables/NAME.json, {"columns": [...], "rows": [[...]]} as tables ``tables/NAME``; else as ``log_figures``."""
    import wandb

    digests = dict(before)
    for path in sorted(folder.glob("*.json")):
        name, content = f"tables/{path.stem}", path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if before.get(name) != digest:
            table = json.loads(content)
            run.log({name: wandb.Table(columns=table["columns"], data=table["rows"])})
            digests[name] = digest
    return digests


def main(folder: str, mode: str, how: str) -> int:
    """Runs until everything is sent; 1 after an error, which is told in one line."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever W&B prints goes to the log

    def tell(**message: str) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    ended = threading.Event()
    if how == "replay":
        ended.set()
    else:
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    try:
        forward(Path(folder), mode, ended, tell)
    except BaseException as error:
        tell(error=(str(error) or type(error).__name__).strip().splitlines()[0])
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
