"""Cells a minute of the local launcher against Hydra's basic and joblib launchers, and a cell's cost beside its work.

    python scripts/bench_sweep.py [--cells 100] [--own 20]

Each launcher runs the same smoke cells (supervised, ResNet-20, digits, hardware.threads=1) once, in a folder of its
own, two at a time where it can. Hydra's launchers drive a minimal application that does what `runner` does with a
cell, in the same package. CPU is user + system time of the command with all its processes. A cell's own work is what
the same cells cost one after the other in one warm process; overhead = (CPU of the sweep - start) / cells - own work,
with the start (interpreter, torch) once a sweep. Then: a fully cached sweep against one composition a cell.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL = ["method=supervised", "model=resnet20", "scale=smoke", "hardware=cpu", "hardware.threads=1"]
APP = f"""\
import hydra

@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(cfg):
    from runner.api import run
    return run([*{CELL!r}, f"seed={{cfg.seed}}"])["metrics"]["accuracy"]

main()
"""
OWN = f"""\
import sys, time
from runner.compose import compose
from runner.execute import execute
composed = [compose([*{CELL!r}, f"seed={{seed}}"]) for seed in range(int(sys.argv[1]) + 1)]
execute(composed[0])  # the first pays for what a process pays once
before = time.process_time()
for item in composed[1:]:
    execute(item)
print((time.process_time() - before) / int(sys.argv[1]))
"""
START = """\
import importlib
import runner.sweep.engine
from runner.sweep.server import PRELOADED
for name in (*PRELOADED, "runner.methods.vision.supervised", "runner.datasets.digits", "sklearn.datasets"):
    importlib.import_module(name)
"""
COMPOSE = f"""\
import sys, time
from runner.compose import compose
before = time.process_time()
for seed in range(int(sys.argv[1])):
    compose([*{CELL!r}, f"seed={{seed}}"])
print((time.process_time() - before) / int(sys.argv[1]))
"""


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """(seconds, CPU seconds of all its processes, standard output) of a command."""
    folder.mkdir(exist_ok=True)
    # children inherit one thread: otherwise torch in the processes of joblib would take all cores each
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RUNNER_DEFAULTS": ""}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--own", type=int, default=20)
    asked = parser.parse_args()
    count = asked.cells
    seeds = f"range(0,{count})"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "app.py").write_text(APP)
        app = [sys.executable, str(place / "app.py"), "-m", f"+seed={seeds}", "hydra.sweep.dir=out"]
        ours = [sys.executable, "-m", "runner", "-m", *CELL, f"seed={seeds}", "hardware.slots=2"]
        commands = {
            "runner -m (local, 2 slots)": ours,
            "Hydra basic (one process)": app,
            "Hydra joblib (loky, 2 jobs)": [*app, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        }
        own = float(timed([sys.executable, "-c", OWN, str(asked.own)], place / "own")[2].splitlines()[-1])
        start = timed([sys.executable, "-c", START], place)[1]
        print(f"{count} cells; load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"own work of a cell {own:.3f} s CPU (n = {asked.own}); start of a sweep {start:.1f} s CPU")
        print(f"{'launcher':<27} {'seconds':>8} {'CPU s':>7} {'cells/min':>10} {'ratio':>6} {'overhead, CPU s':>16}")
        first = None
        for number, (label, command) in enumerate(commands.items()):
            seconds, cpu, _ = timed(command, place / str(number))
            rate = 60 * count / seconds
            first = first or rate
            overhead = (cpu - start) / count - own
            print(
                f"{label:<27} {seconds:8.1f} {cpu:7.1f} {rate:10.1f} {rate / first:6.2f} {overhead:16.3f}", flush=True
            )
        cached = timed(ours, place / "0")[1]
        idle = timed([sys.executable, "-c", "import runner.cli, runner.compose, hydra"], place)[1]
        composing = float(timed([sys.executable, "-c", COMPOSE, str(count)], place)[2])
        print(f"cached: {(cached - idle) / count:.4f} s CPU a cell, {(cached - idle) / count / composing:.2f} x one "
              f"composition ({composing:.4f} s); start {idle:.2f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
