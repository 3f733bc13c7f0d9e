"""The display: plain lines where there is no terminal, a live line where there is one."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from runner import progress
from runner.progress import Progress, can_redraw, closing_table, format_seconds

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    return clock


def test_plain_lines_come_every_ten_seconds_and_at_the_end_of_a_phase(clock):
    stream = io.StringIO()
    shown = Progress(stream)
    shown.phase("train", 100)
    for step in range(1, 31):
        clock.now += 0.5
        shown.advance(step, {"loss": 0.5})
    assert stream.getvalue().splitlines() == ["train  step 20/100  2 step/s  40.0 s left  loss 0.5"]
    shown.end_phase(15.0)
    assert stream.getvalue().splitlines()[1:] == ["train: finished in 15.0 s, 30 steps, loss 0.5"]
    assert "\x1b" not in stream.getvalue()


def test_the_rate_of_a_resumed_phase_counts_from_the_resume(clock):
    stream = io.StringIO()
    shown = Progress(stream)
    shown.phase("train", 1000)
    shown.advance(900, {})
    clock.now += 10
    shown.advance(950, {})
    assert stream.getvalue() == "train  step 950/1000  5 step/s  10.0 s left\n"


def test_phases_inside_a_loop_leave_no_lines_and_the_loop_goes_on(clock):
    stream = io.StringIO()
    shown = Progress(stream)
    shown.phase("search", None)
    for step in range(3):
        shown.phase(f"search[{step}]/tune", 5)
        shown.advance(5, {"loss": 0.1})
        shown.end_phase(1.0)
        shown.advance(step + 1, {"flops_rate": 0.75})
    shown.end_phase(3.0)
    assert stream.getvalue() == "search: finished in 3.0 s, 3 steps, flops_rate 0.75\n"


def test_a_phase_left_without_an_end_does_not_swallow_the_next(clock):
    stream = io.StringIO()
    shown = Progress(stream)
    shown.phase("search", None)
    shown.advance(1, {})
    shown.phase("train", 2)
    shown.advance(2, {})
    shown.end_phase(1.0)
    assert stream.getvalue() == "train: finished in 1.0 s, 2 steps\n"


def test_a_stop_leaves_the_last_state_on_the_screen(clock):
    stream = io.StringIO()
    shown = Progress(stream)
    shown.phase("train", 10)
    shown.advance(4, {"loss": 0.25})
    shown.close()
    assert stream.getvalue() == "train  step 4/10  loss 0.25\n"


def test_a_closed_reader_does_not_end_the_run():
    script = (
        "from runner.progress import Progress\n"
        "p = Progress(); p.say('nobody reads this'); p.phase('train', 1); p.advance(1, {}); p.end_phase(0.1); p.close()"
    )
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=write)
    os.close(write)
    assert process.wait() == 0


@pytest.mark.parametrize(("term", "expected"), [("xterm-256color", True), ("dumb", False), ("", False)])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term, expected):
    monkeypatch.setenv("TERM", term)
    assert can_redraw(Terminal()) is expected
    assert can_redraw(io.StringIO()) is False


def run_on_terminal(environment: dict[str, str]) -> str:
    script = (
        "from runner.progress import Progress\n"
        "p = Progress(); p.phase('train', 4); p.advance(2, {'loss': 0.5}); p.say('a [bold]word'); p.advance(4, {})\n"
        "p.end_phase(1.0); p.close()"
    )
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stderr=slave, env={**os.environ, "COLUMNS": "100", **environment}
        )
        os.close(slave)
        shown = b""
        try:
            while chunk := output.read(4096):
                shown += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait() == 0
    return shown.decode()


def test_a_terminal_gets_a_live_line_and_keeps_the_finished_phase():
    shown = run_on_terminal({"TERM": "xterm", "NO_COLOR": ""})
    assert "\x1b[2K" in shown  # the line is redrawn
    assert "a [bold]word" in shown
    assert "train: finished in 1.0 s, 4 steps" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


def test_no_color_is_honoured():
    assert "\x1b[9" not in run_on_terminal({"TERM": "xterm-256color", "NO_COLOR": "1"})


def test_rich_is_not_imported_where_there_is_no_terminal():
    script = (
        "import sys; from runner.progress import Progress, closing_table\n"
        "p = Progress(); p.phase('a', 1); p.advance(1, {}); p.end_phase(1.0); p.close()\n"
        "closing_table({'metrics': {'a': 1.0}})\n"
        "sys.exit(any(name.partition('.')[0] in ('rich', 'torch', 'wandb') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


def test_seconds():
    shown = [format_seconds(seconds) for seconds in (0.04, 119.94, 120, 245, 3723)]
    assert shown == ["0.0 s", "119.9 s", "2:00", "4:05", "1:02:03"]


def test_closing_table_compares_before_and_after():
    result = {
        "metrics": {"accuracy": 0.98765, "epochs": 5},
        "profile": {
            "baseline": {"params": 1000, "flops": 4_000_000, "latency_ms": {"1": 2.0}},
            "final": {"params": 250, "flops": 1_000_000, "latency_ms": {"1": 1.5}},
        },
    }
    lines = closing_table(result).splitlines()
    assert lines[:3] == ["accuracy  0.9877", "epochs         5", ""]
    assert [line.split() for line in lines[3:]] == [
        ["before", "after", "after", "/", "before"],
        ["parameters", "1,000", "250", "0.250"],
        ["FLOPs", "4,000,000", "1,000,000", "0.250"],
        ["latency", "at", "batch", "1", "(ms)", "2.0000", "1.5000", "0.750"],
    ]
    assert len({len(line) for line in lines[3:]}) == 1  # aligned on the right


def test_closing_table_of_one_network_and_of_nothing():
    only = closing_table({"metrics": {}, "profile": {"final": {"params": 1000, "flops": 20}}})
    assert only.splitlines() == ["parameters  1,000", "FLOPs          20"]
    assert closing_table({}) == ""
