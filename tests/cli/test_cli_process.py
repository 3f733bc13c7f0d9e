"""What only a process of its own shows: imports, pipes, exit codes of the real program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "RUNNER_CONFIG_PATH"} | {"PYTHONPATH": str(ROOT)}
PROBE = """
import sys
from runner.cli import main
code = main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code", "hydra"),
    [
        (["--help"], 0, False),
        (["list"], 0, False),
        (["show", "supervised"], 0, False),
        (["completion", "words", "runner method="], 0, False),
        (["method=ekk"], 2, False),
        (["model.widht=3"], 2, False),
        (["--cfg", "job"], 0, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_heavy_imports(words, code, hydra):
    done = subprocess.run([sys.executable, "-c", PROBE, *words], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert not imported & {"torch", "torchvision", "wandb", "rich", "sklearn", "scipy", "numpy", "pydantic"}
    assert ("hydra" in imported) == hydra


def test_a_reader_that_goes_away_is_no_error():
    command = f'"{sys.executable}" -m runner list models | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_program_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "runner", "method=ekk"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("runner: unknown method 'ekk'")
