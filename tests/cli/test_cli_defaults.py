"""The defaults file of a user or a site: what it may hold, what wins over it, and that no key knows of it."""

import json
from pathlib import Path

import pytest
import yaml

from runner.cli import main
from runner.compose import compose
from runner.defaults import SECTIONS
from runner.key import LEFT_OUT
from runner.plan import plan
from runner.settings import validate


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the file where it is looked for by default."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNNER_DEFAULTS")
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)
    monkeypatch.delenv("RUNNER_DATA", raising=False)
    file = tmp_path / ".config/paper-runner/defaults.yaml"
    file.parent.mkdir(parents=True)

    def to_file(content) -> Path:
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return file

    return to_file


SITE = {
    "hardware": {"threads": 3, "device": "cuda"},
    "tracking": {"mode": "online", "entity": "lab", "tags": ["site"]},
    "paths": {"runs": "~/runs", "data": "${oc.env:HOME}/data"},
    "checkpoint": {"every_seconds": 120},
    "offline": True,
}


def values(config: dict) -> dict:
    flat = {f"{a}.{b}": v for a in ("hardware", "tracking", "paths", "checkpoint") for b, v in config[a].items()}
    return {**flat, "offline": config["offline"]}


def test_it_holds_only_what_no_key_holds():
    assert set(SECTIONS) <= LEFT_OUT


def test_its_values_are_in_force_and_the_key_stays(write, tmp_path):
    bare = compose(["model=resnet20"]).config
    write(SITE)
    composed = compose(["model=resnet20"])
    changes = {key: value for key, value in values(composed.config).items() if value != values(bare)[key]}
    assert changes == {
        "hardware.threads": 3,
        "hardware.device": "cuda",
        "tracking.mode": "online",
        "tracking.entity": "lab",
        "tracking.tags": ["site"],
        "paths.runs": "~/runs",
        "paths.data": f"{tmp_path}/data",
        "checkpoint.every_seconds": 120,
        "offline": True,
    }
    assert plan(composed.config).key == plan(bare).key
    validate(composed.config, composed.origin)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["hardware.device=cpu"], {"hardware.device": "cpu", "hardware.threads": 3}),
        (["hardware=cpu"], {"hardware.device": "cpu", "hardware.threads": 3}),
        (["hardware=auto"], {"hardware.device": "auto", "hardware.threads": 3}),
        (["tracking=offline"], {"tracking.mode": "offline", "tracking.entity": "lab"}),
        (["tracking.entity=null"], {"tracking.mode": "online", "tracking.entity": None}),
        (["scale=smoke"], {"tracking.mode": "none", "tracking.entity": "lab"}),
        (["scale=smoke", "tracking=online"], {"tracking.mode": "online"}),
        (["offline=false"], {"offline": False}),
        (["checkpoint.every_seconds=30"], {"checkpoint.every_seconds": 30}),
        (["paths.runs=here"], {"paths.runs": "here"}),
    ],
)
def test_the_command_line_wins(overrides, expected, write):
    write(SITE)
    found = values(compose(overrides).config)
    assert {key: found[key] for key in expected} == expected


def test_a_choice_by_name(write):
    write({"hardware": "gpu", "tracking": "none"})
    found = values(compose().config)
    assert (found["hardware.name"], found["hardware.device"], found["tracking.mode"]) == ("gpu", "cuda", "none")
    assert values(compose(["hardware=cpu"]).config)["hardware.device"] == "cpu"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"seed": 1}, ["'seed' is not for a defaults file", "checkpoint, hardware, offline, paths, tracking"]),
        ({"recipe": {"epochs": 3}}, ["'recipe' is not for a defaults file"]),
        ({"force": True}, ["'force' is not for a defaults file"]),
        ({"hardwere": "gpu"}, ["'hardwere' is unknown", "hardware"]),
        ({"hardware": {"treads": 2}}, ["'hardware.treads'", "hardware.threads"]),
        ({"hardware": "gpuu"}, ["unknown hardware 'gpuu'", "gpu"]),
        ({"tracking": ["online"]}, ["unknown key 'tracking'"]),
        ("a: [", ["defaults.yaml"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(content, expected, write, capsys):
    file = write(content)
    assert main(["--cfg", "job"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(file) in err
    for fragment in expected:
        assert fragment in err


def test_messages_name_the_file_as_origin(write, capsys):
    file = write({"hardware": {"threads": 0}})
    assert main([]) == 2
    assert f"hardware.threads: expected an integer > 0 or null, got 0 (set in {file})" in capsys.readouterr().err
    write({"paths": {"data": "${oc.env:NO_SUCH_VARIABLE}"}})
    assert main(["--cfg", "job", "--resolve"]) == 2
    assert f"(set in {file})" in capsys.readouterr().err


def test_another_place(write, tmp_path, monkeypatch):
    write({"checkpoint": {"every_seconds": 1}})
    (tmp_path / "site.yaml").write_text("checkpoint: {every_seconds: 2}")
    for variable, seconds in ((f"{tmp_path}/site.yaml", 2), ("", 30)):
        monkeypatch.setenv("RUNNER_DEFAULTS", variable)
        assert compose().config["checkpoint"]["every_seconds"] == seconds
    monkeypatch.setenv("RUNNER_DEFAULTS", "nowhere.yaml")
    assert main([]) == 2


def test_past_runs_are_looked_for_in_its_place(write, tmp_path, capsys):
    write({"paths": {"runs": "${oc.env:HOME}/elsewhere"}})
    run = tmp_path / "elsewhere/supervised-resnet20-digits/abc"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "failed"}')
    assert main(["runs", "--format", "json"]) == 0
    assert [row["folder"] for row in json.loads(capsys.readouterr().out)] == [str(run)]


def test_doctor_shows_it(write, tmp_path, capsys):
    main(["doctor", f"paths.runs={tmp_path}"])
    assert "absent   defaults file  none" in capsys.readouterr().out
    file = write({"checkpoint": {"every_seconds": 120}, "paths": {"runs": "/nowhere"}})
    main(["doctor", f"paths.runs={tmp_path}"])
    assert f"ok       defaults file  {file}: checkpoint.every_seconds=120\n" in capsys.readouterr().out
