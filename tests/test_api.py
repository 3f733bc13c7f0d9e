"""runner.run, runner.results and runner.load, and the notebook that shows them."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from commands import SMOKE
from user_methods import write_config

import runner

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "python_api.py"


class NotebookStream(io.StringIO):
    """What a kernel puts in place of standard error: neither a terminal nor a file."""

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def cells() -> list[str]:
    """The code cells, as an editor cuts the file."""
    parts = re.split(r"^# %%(.*)\n", EXAMPLE.read_text(), flags=re.M)
    assert parts[0] == ""
    return [code for kind, code in zip(parts[1::2], parts[2::2], strict=True) if "[markdown]" not in kind]


def run_notebook(in_thread: bool) -> int:
    """All cells one after the other, as a kernel does it; 0 when each leaves what it promises."""
    sys.stderr = screen = NotebookStream()
    sys.stdout = printed = io.StringIO()
    names: dict = {}
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for code in cells():
                exec(compile(code, "cell", "exec"), names)
        except BaseException as error:
            failures.append(error)

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    sys.stderr, sys.stdout = sys.__stderr__, sys.__stdout__
    if failures:
        raise failures[0]
    assert len(names["table"]) == 4  # the first run is a cell of the grid: answered, not repeated
    assert names["summary"]["count"].tolist() == [2, 2]
    assert "did you mean resnet" in names["message"]
    assert names["prediction"] in range(10)
    shown = screen.getvalue()
    assert "\x1b" not in shown and "\r" not in shown
    assert shown.count("train: finished") == 4 and shown.count("already done") == 1
    assert "result.json" not in printed.getvalue()
    return 0


@pytest.mark.parametrize(
    "in_thread",
    [pytest.param(False, id="main thread", marks=pytest.mark.slow), pytest.param(True, id="another thread")],
)
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, in_thread):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    assert forked.run(run_notebook, in_thread) == 0


# ---- run


def test_overrides_may_be_one_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert forked.run(run_twice, str(tmp_path / "run s")) == 0


def run_twice(runs: str) -> int:
    import random

    import numpy
    import torch

    states = [torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()]
    result = runner.run(f"{' '.join(SMOKE)} 'paths.runs={runs}'")
    assert Path(result["folder"]).is_dir() and Path(result["folder"]).is_relative_to(runs)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert [random.getstate(), numpy.random.get_state()[1].tolist()] == states[1:]
    assert runner.run([*SMOKE, f"paths.runs={runs}"]) == result
    return 0


def test_a_stored_result_is_answered_without_torch(tmp_path):
    words = [*SMOKE, f"paths.runs={tmp_path}"]
    assert forked.run(run_words, words) == 0
    script = f"import runner, sys; runner.run({words!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_words(words: list[str]) -> int:
    runner.run(words)
    return 0


def test_what_goes_wrong_is_an_exception(tmp_path):
    configs = write_config(tmp_path / "configs", "raises", "user_methods:Raises")
    assert forked.run(fail, str(configs), str(tmp_path)) == 0


def fail(configs: str, runs: str) -> int:
    words = ["method=raises", *SMOKE[1:], f"paths.runs={runs}", "tracking=none"]
    with pytest.raises(runner.RunFailed, match="the metal broke") as failed:
        runner.run(words, configs)
    assert isinstance(failed.value.__cause__, ArithmeticError)
    with pytest.raises(runner.UserError, match="seed: expected"):
        runner.run([*SMOKE, "seed=-1", f"paths.runs={runs}"])
    with pytest.raises(runner.UserError, match="does not exist"):
        runner.run(SMOKE, Path(runs) / "nowhere")
    return 0


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path):
    configs = write_config(tmp_path / "configs", "stops", "test_api:Stops")
    assert forked.run(stop, str(configs), str(tmp_path)) == 0


@dataclass(kw_only=True)
class Stops:
    """Sends Ctrl-C to its own process, once; runs another experiment beside itself."""

    def run(self, ctx) -> dict[str, float]:
        steps = {"count": 0}
        ctx.track(steps=steps)
        for step in ctx.loop("count", 5):
            steps["count"] += 1
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
        return {"steps": steps["count"], "refused": float(refused_beside())}


def refused_beside() -> bool:
    """Whether another thread may not start a run now."""
    caught: list[str] = []

    def run() -> None:
        try:
            runner.run([*SMOKE, "seed=77"])
        except runner.UserError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return bool(caught) and "another thread" in caught[0]


def stop(configs: str, runs: str) -> int:
    words = ["method=stops", *SMOKE[1:], "scale.max_steps=null", f"paths.runs={runs}", "tracking=none"]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(runner.StopRequested, match="the state is saved"):
        runner.run(words, [configs])
    assert signal.getsignal(signal.SIGINT) is handler
    assert runner.run(words, [configs])["metrics"] == {"steps": 5, "refused": 1}
    return 0


# ---- results


def test_columns_of_results(tmp_path):
    pytest.importorskip("pandas")
    assert forked.run(run_words, [*SMOKE, f"paths.runs={tmp_path}"]) == 0
    (tmp_path / "sweeps" / "x").mkdir(parents=True)
    (tmp_path / "sweeps" / "x" / "summary.json").write_text('{"metrics": {}}')
    table = runner.results(tmp_path)
    columns = list(table.columns)
    assert columns[:6] == ["method", "model", "dataset", "scale", "seed", "metrics.accuracy"]
    assert columns[-1] == "folder"
    assert len(columns) == len(set(columns))
    (row,) = table.to_dict("records")
    assert (row["config.recipe.batch_size"], row["config.recipe.schedule.name"]) == (16, "step")
    assert runner.load(row["folder"]).architecture["name"] == "resnet20"
    assert not [name for name in columns if name.startswith(("config.paths", "config.hardware", "config.tracking"))]


def test_results_of_an_empty_and_a_missing_folder(tmp_path):
    pytest.importorskip("pandas")
    assert list(runner.results(tmp_path).columns) == ["method", "model", "dataset", "scale", "seed"]
    with pytest.raises(runner.UserError, match="no such folder"):
        runner.results(tmp_path / "runs")
