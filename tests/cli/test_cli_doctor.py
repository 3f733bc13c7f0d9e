"""The doctor's lines and exit code."""

import pytest

from runner.cli import main


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "RUNNER_CONFIG_PATH", "RUNNER_DATA"):
        monkeypatch.delenv(name, raising=False)


def lines(out):
    """(status, what) -> texts, joined."""
    found = {}
    for line in out.splitlines():
        key = (line.split()[0], line[9:23].strip())
        found[key] = found.get(key, "") + line[24:] + "\n"
    return found


def test_a_complete_machine(tmp_path, capsys):
    assert main(["doctor", f"paths.runs={tmp_path}/runs", f"paths.data={tmp_path}/data"]) == 0
    out, err = capsys.readouterr()
    found = lines(out)
    assert err == ""
    for what in (
        "python",
        "torch",
        "torchvision",
        "threads",
        "dataset",
        "W&B",
        "run folders",
        "data folder",
        "config folders",
    ):
        assert ("ok", what) in found
    assert "wandb login" in found["absent", "W&B login"]
    assert not (tmp_path / "runs").exists()


def test_what_stops_a_run_is_missing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["doctor", f"paths.runs={tmp_path}/file", "tracking=online"]) == 1
    out, err = capsys.readouterr()
    found = lines(out)
    assert "paths.runs=DIR" in found["MISSING", "run folders"]
    assert ("MISSING", "W&B login") in found
    assert "MISSING" in err


def test_a_gpu_that_was_asked_for(tmp_path, capsys):
    import torch

    status = "ok" if torch.cuda.is_available() else "MISSING"
    assert main(["doctor", "hardware=gpu", f"paths.runs={tmp_path}"]) == (status != "ok")
    assert "cuda" in lines(capsys.readouterr().out)[status, "device"]


def test_a_data_set_that_may_not_be_downloaded(tmp_path, capsys):
    words = ["doctor", "dataset=cifar10", f"paths.data={tmp_path}"]
    assert main(words) == 0
    assert "downloads it" in lines(capsys.readouterr().out)["absent", "dataset"]
    assert main([*words, "offline=true"]) == 1
    assert "cifar10" in lines(capsys.readouterr().out)["MISSING", "dataset"]
