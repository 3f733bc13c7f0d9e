"""Every wrong request: exit code 2 and one line that says what, where and the nearest valid name."""

import sys
import types
from pathlib import Path

import pytest

from runner import __version__
from runner.cli import COMMANDS, main
from runner.errors import RunFailed, StopRequested, UserError

COMMAND_LINE = "(set on the command line)"


@pytest.fixture(autouse=True)
def _no_user_configs(monkeypatch):
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=ekk"], ["unknown method 'ekk'", COMMAND_LINE, "did you mean ekg?", "`runner list methods`"]),
        (["model=resnet5"], ["unknown model 'resnet5'", "resnet50", "`runner list models`"]),
        (["dataset=fashion_mnst"], ["unknown dataset 'fashion_mnst'", "did you mean fashion_mnist"]),
        (["scale=papr"], ["unknown scale 'papr'", "paper"]),
        (["method="], ["'method=' names no method", COMMAND_LINE, "runner list methods"]),
        (["model=null"], ["'model=null' names no model"]),
        (["~model"], ["'~model'", "a run needs a model", "model=NAME"]),
        (["+model=resnet20"], ["model=resnet20 without +"]),
        (["model.widht=3"], ["unknown key 'model.widht'", COMMAND_LINE, "did you mean model.weights?"]),
        (["modle=resnet20"], ["unknown key 'modle'", "did you mean model?"]),
        (["sead=1"], ["unknown key 'sead'", "did you mean seed?"]),
        (["~sead"], ["unknown key 'sead'", "did you mean seed?"]),
        (["momentum=0.5"], ["did you mean recipe.optimizer.momentum or baseline."]),
        (["optimizer.momentum=0.5"], ["did you mean recipe.optimizer.momentum or baseline."]),
        (["recipe.optimizer.momentun=0.5"], ["did you mean recipe.optimizer.momentum?"]),
        (["recipe.optimizer={momentun:0.5}"], ["unknown key 'recipe.optimizer.momentun'", "recipe.optimizer.momentum"]),
        (["model.arguments.width=3"], ["write +model.arguments.width=3"]),
        (["+seed=3"], ["'seed' exists already", "seed=3 without +"]),
        (["seed=[1"], ["malformed override seed=[1", COMMAND_LINE]),
        (["dataset.path=a(1).tar"], ["needs quotes", "dataset.path='...'"]),
        (["seed=int(x)"], ["malformed override seed=int(x)", "invalid literal"]),
        (["model=[resnet20]"], ["'model=[resnet20]' names no model"]),
        (["method=???"], ["names no method"]),
        (["scale.name=paper"], ["'scale.name=paper'", "follows the choice scale=NAME"]),
        (["recipe..epochs=3"], ["'recipe..epochs=3' is not an override"]),
        (["+=3"], ["'+=3' is not an override"]),
        (["=3"], ["'=3' is not an override", "key=value"]),
        (["seed=0,1"], ["'seed=0,1' is a sweep", "add -m", "seed=[...]"]),
        (["model=resnet20,resnet50"], ["is a sweep", "add -m"]),
        (["seed=range(3)"], ["is a sweep", "add -m"]),
        (["-m", "seed=interval(0,1)"], ["'seed=interval(0,1)'", "interval", "range()"]),
        (["-m", "seed=0,1", "model=resnet20,resnt20"], ["unknown model 'resnt20'", "resnet20", "in the cell: seed=0"]),
        (["-m", "seed=0,-1"], ["seed", "-1", "in the cell: seed=-1"]),
        (["-m", "model=glob(zz*)"], ["fits no model", "`runner list models`"]),
        (["-m", "seed=0,1", "hydra/launcher=rey"], ["unknown launcher 'hydra/launcher=rey'", "did you mean ray?"]),
        (["-m", "seed=0,1", "hydra/launcher=joblib"], ["hydra/launcher=joblib is not used here", "leave"]),
        (["-m", "seed=0,1", "hydra/sweeper=optuna"], ["not built in", "`wandb agent`", "${args_no_hyphens}"]),
        (["-m", "seed=0,1", "hydra.launcher.n_jobs=2"], ["hydra.launcher.n_jobs=2", "hardware.slots"]),
        (["seed=${nothing}"], ["seed: ", "'nothing' not found", COMMAND_LINE]),
        (["seed=${oc.env:RUNNER_TEST_UNSET}"], ["seed: Environment variable 'RUNNER_TEST_UNSET' not found"]),
        (["tracking.project=???"], ["tracking.project has no value", "tracking.project=VALUE"]),
        (["hydra.lunch=3"], ["unknown key 'hydra.lunch'", "hydra.launcher"]),
        (["hydra.run.dir=x"], ["'hydra.run.dir' has no effect", "paths.runs=DIR"]),
        (["hydra.searchpath=[x]"], ["--config-dir"]),
        (["hydra/launcher=rey"], ["no such hydra/launcher", "plug-in"]),
        (["hydra/launcher=basic"], ["'hydra/launcher=basic' has no effect on one run", "add -m"]),
        (["seed=-1"], [f"runner: seed: expected an integer >= 0 and < 4294967296, got -1 {COMMAND_LINE}"]),
        (["model.weights="], [f"model.weights: expected a text that is not empty or null, got '' {COMMAND_LINE}"]),
        (["paths.runs="], [f"paths.runs: expected a text that is not empty, got '' {COMMAND_LINE}"]),
        (["lst"], ["unknown command 'lst'", "`runner list`"]),
        (["run", "seed"], ["'seed' is not an override"]),
        (["--cfgg", "job"], ["unknown option '--cfgg'", "--cfg"]),
        (["--cfg", "hydra"], ["--cfg job"]),
        (["--cfg"], ["expected one argument"]),
        (["--cfg", "job", "--package", "methd"], ["unknown key 'methd'", "method"]),
        (["--config-dir", "/nowhere/at/all"], ["'/nowhere/at/all' does not exist", "--config-dir"]),
        (["list", "modls"], ["unknown list 'modls'", "models"]),
        (["list", "zz*"], ["no methods match 'zz*'"]),
        (["show"], ["runner show METHOD"]),
        (["show", "ekk"], ["unknown method 'ekk'", "did you mean ekg?"]),
        (["completion", "tcsh"], ["bash, zsh or fish", "'tcsh'"]),
        (["completion", "bash", "zsh"], ["'bash zsh'"]),
        (["clean", "--older-than", "nan"], ["--older-than nan", "0 or more"]),
        (["doctor", "recipe.epochs=abc"], [f"recipe.epochs: expected an integer > 0, got 'abc' {COMMAND_LINE}"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) < 4 else None,
)
def test_wrong_request(words, expected, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("runner: ")
    assert err.count("\n") == 1
    assert len(err) < 320
    for fragment in expected:
        assert fragment in err


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f"\n  {name} " in out for name in ("run", *COMMANDS))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"runner {command}")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"runner {__version__}\n"


@pytest.fixture
def ending(monkeypatch):
    """Stands in for the run itself: the command line only sees how it ends."""

    def install(outcome):
        def execute(composed):
            if isinstance(outcome, BaseException):
                raise outcome
            print("a line of the run", file=sys.stderr)
            return outcome

        module = types.ModuleType("runner.execute")
        module.execute = execute
        monkeypatch.setitem(sys.modules, "runner.execute", module)

    return install


@pytest.mark.parametrize("words", [[], ["run"], ["method=supervised"], ["run", "method=supervised", "seed=1"]])
def test_a_run_ends_with_the_path_of_its_result(words, ending, capsys):
    ending(Path("runs/x/result.json"))
    assert main(words) == 0
    assert capsys.readouterr().out == "runs/x/result.json\n"


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (UserError("no GPU here"), 2, "runner: no GPU here\n"),
        (
            RunFailed("ValueError: loss is NaN (runs/x/error.txt)"),
            1,
            "runner: ValueError: loss is NaN (runs/x/error.txt)\n",
        ),
        (StopRequested("stopped at step 3"), 75, "runner: stopped at step 3\n"),
        (StopRequested(), 75, ""),
        (KeyboardInterrupt(), 75, "runner: stopped before the run began; the same command starts it\n"),
    ],
)
def test_exit_codes_of_a_run(outcome, code, line, ending, capsys):
    ending(outcome)
    assert main([]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", line)


def test_cfg_job_prints_yaml(capsys):
    import yaml

    assert main(["--cfg", "job", "method=supervised", "seed=5"]) == 0
    out = capsys.readouterr().out
    config = yaml.safe_load(out)
    assert config["seed"] == 5
    assert config["method"]["name"] == "supervised"
    assert "hydra" not in config
    assert "${oc.env:" in config["paths"]["data"]


def test_cfg_job_resolve_and_package(capsys):
    assert (
        main(["--cfg", "job", "--resolve", "--package", "paths", "paths.runs=here", "paths.data=${paths.runs}/data"])
        == 0
    )
    assert capsys.readouterr().out == "runs: here\ndata: here/data\n"
