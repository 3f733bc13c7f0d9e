"""CPU time of the requests that must answer at once, as ratios to a minimal Hydra application's --help.

    python scripts/bench_startup.py [--rounds 9]

Rounds are interleaved (every command once a round), the median counts; user + system time of the child process.
Budget: 1.2 (exit code 1 when a median lies over it). The last column names the heavy modules a command imported.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 1.2
HEAVY = ("torch", "torchvision", "wandb", "rich", "sklearn", "numpy", "pydantic", "hydra")
COMMANDS = {
    "runner --help": ["--help"],
    "runner list": ["list"],
    "runner show ekg": ["show", "ekg"],
    "runner method=ekk": ["method=ekk"],
    "runner model.widht=3": ["model.widht=3"],
    "runner --cfg job": ["--cfg", "job"],
}
MINIMAL_APP = """\
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    print(cfg)

main()
"""
# Runs the command line in this process, then names what it imported on standard error.
PROBE = """\
import sys
from runner.cli import main
code = main(sys.argv[1:])
print("imported:", *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """User + system time of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported(words: list[str], environment: dict[str, str]) -> str:
    """The heavy modules that one command imports."""
    probe = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *words]
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1].removeprefix("imported:").strip() or "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(MINIMAL_APP)
        commands = {"minimal Hydra --help": [sys.executable, str(app), "--help"]}
        commands |= {name: [sys.executable, "-m", "runner", *words] for name, words in COMMANDS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for index in range(rounds + 1):
            for name, command in commands.items():
                used = cpu_seconds(command, environment)
                if index:  # the first round fills the page cache and writes bytecode
                    seconds[name].append(used)
    base = median(seconds["minimal Hydra --help"])
    print(f"{'command':<24} {'CPU s':>7} {'min':>6} {'max':>6} {'ratio':>6}  heavy imports   (n = {rounds})")
    over = False
    for name, used in seconds.items():
        ratio = median(used) / base
        over |= ratio > BUDGET
        heavy = imported(COMMANDS[name], environment) if name in COMMANDS else ""
        print(f"{name:<24} {median(used):7.3f} {min(used):6.3f} {max(used):6.3f} {ratio:6.2f}  {heavy}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
