"""A user's table of a toy method whose cells cost nothing."""

from pathlib import Path

import pytest
from toy_table import TABLE, write_table
from user_methods import write_config


@pytest.fixture
def configs(tmp_path: Path, monkeypatch) -> Path:
    """A --config-dir with method=arm and the table toy/arms; the working directory has no runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)
    folder = write_config(tmp_path / "configs", "arm", "user_methods:Arm", {"level": 0.5, "fails_at": []})
    write_table(folder, TABLE)
    return folder
