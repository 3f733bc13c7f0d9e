"""Tab completion: the words, and the script in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli import COMMANDS, main
from runner.commands.completion import SCRIPTS, words

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("runner meth", ["method.", "method="]),
        ("runner mod", ["model.", "model="]),
        ("runner sca", ["scale.", "scale="]),
        ("runner method=sup", ["method=supervised"]),
        ("runner scale=", ["scale=desk", "scale=paper", "scale=smoke"]),
        ("runner method=supervised scale=s", ["scale=smoke"]),
        ("runner recipe.opt", ["recipe.optimizer."]),
        ("runner recipe.optimizer.m", ["recipe.optimizer.momentum="]),
        ("runner ~recipe.optimizer.m", ["~recipe.optimizer.momentum="]),
        ("runner see", ["seed=", "seeds."]),
        ("runner do", ["doctor"]),
        ("runner method=supervised do", []),
        ("runner show superv", ["supervised"]),
        ("runner list mod", ["models"]),
        ("runner table ekg/know", ["ekg/knowledge_ablation"]),
        ("runner completion ", sorted(SCRIPTS)),
        ("runner --cfg ", ["job"]),
        ("runner --mul", ["--multirun"]),
        ("runner seed=", []),
        ("runner nosuch.x", []),
    ],
)
def test_words(line, expected):
    assert words(line) == expected


def test_the_first_word_may_be_a_command():
    assert set(COMMANDS) <= set(words("runner "))


def test_users_configs(user_configs):
    assert words(f"runner --config-dir {user_configs} method=shr") == ["method=shrinkage"]
    assert words(f"runner --config-dir {user_configs} method=shrinkage method.s") == ["method.search."]
    assert words("runner method=shr", [user_configs]) == ["method=shrinkage"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "runner completion words" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [("runner scale=sm", ["smoke"]), ("runner doc", ["doctor"]), ("runner recipe.ep", ["recipe.epochs="])],
)
def test_bash(line, expected, tmp_path):
    program = tmp_path / "runner"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runner "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(runner completion bash)"
        compopt() {{ :; }}  # only allowed while readline completes
        COMP_LINE='{line}' COMP_POINT={len(line)}
        _runner_complete
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
