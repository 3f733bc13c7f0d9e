"""Types, ranges and key paths of settings; a method's own dataclass; targets."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field

from runner.compose import compose
from runner.errors import UserError
from runner.settings import build_method, build_section, expectation, load_target, validate


@pytest.fixture(scope="module")
def config():
    return compose(["method=supervised"]).config


def changed(config, key, value):
    """A copy of the config with one dotted key set."""
    first, _, rest = key.partition(".")
    return config | {first: changed(config[first], rest, value) if rest else value}


def message(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sections_are_typed(config):
    settings = validate(changed(config, "recipe.optimizer.learning_rate", 1))
    assert settings.recipe.optimizer.learning_rate == 1.0
    assert isinstance(settings.recipe.optimizer.learning_rate, float)
    assert settings.method["name"] == "supervised"
    assert settings.checkpoint.every_seconds == 30


SHARE = "expected a number >= 0 and <= 1"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("recipe.epochs", "abc", "recipe.epochs: expected an integer > 0, got 'abc'"),
        ("recipe.epochs", 0, "recipe.epochs: expected an integer > 0, got 0"),
        ("recipe.epochs", 2.0, "recipe.epochs: expected an integer > 0, got 2.0"),
        ("recipe.epochs", True, "recipe.epochs: expected an integer > 0, got true"),
        ("recipe.epochs", None, "recipe.epochs: expected an integer > 0, got null"),
        ("recipe.drop_last", 1, "recipe.drop_last: expected true or false, got 1"),
        ("recipe.label_smoothing", 1.0, "recipe.label_smoothing: expected a number >= 0 and < 1, got 1.0"),
        ("recipe.gradient_clip", "1", "recipe.gradient_clip: expected a number > 0 or null, got '1'"),
        ("recipe.gradient_clip", -1, "recipe.gradient_clip: expected a number > 0 or null, got -1"),
        (
            "recipe.optimizer.name",
            "sdg",
            "recipe.optimizer.name: expected one of sgd, sgd_tensorflow, adam, adamw, got 'sdg'",
        ),
        ("recipe.schedule.milestones", [0.1, "x"], f"recipe.schedule.milestones[1]: {SHARE}, got 'x'"),
        (
            "recipe.schedule.milestones",
            [30, 60],
            f"recipe.schedule.milestones[0]: {SHARE}, got 30 (and 1 more like it)",
        ),
        ("recipe.schedule.milestones", 3, "recipe.schedule.milestones: expected a list, got 3"),
        ("recipe.schedule.factor", 0, "recipe.schedule.factor: expected a number > 0, got 0"),
        ("tracking.tags", 3, "tracking.tags: expected a list of texts, got 3"),
        ("recipe.optimizer", 3, "recipe.optimizer: expected a mapping of keys to values, got 3"),
        ("tracking.project", 3, "tracking.project: expected a text, got 3"),
        ("model.stem", 5, "model.stem: expected one of auto, imagenet, cifar, got 5"),
        ("seed", -1, "seed: expected an integer >= 0 and < 4294967296, got -1"),
        ("precision", "float64", "precision: expected one of float32, bfloat16, got 'float64'"),
    ],
)
def test_wrong_values(config, key, value, expected):
    assert message(validate, changed(config, key, value)) == expected


def test_where_it_was_set(config):
    wrong = compose(["method=supervised", "recipe.epochs=abc"])
    assert message(validate, wrong.config, wrong.origin).endswith("got 'abc' (set on the command line)")
    in_file = changed(config, "recipe.epochs", "abc")
    composed = compose(["method=supervised"])
    expected = "(set in conf/recommended/supervised/desk.yaml)"
    assert message(validate, in_file, composed.origin).endswith(expected)


def test_unknown_and_missing_keys(config):
    assert message(validate, changed(config, "recipe.optimizer.momentun", 1)) == (
        "unknown key 'recipe.optimizer.momentun'; did you mean momentum?"
    )
    assert message(validate, config | {"recipee": {"epochs": 1}}).startswith(
        "unknown key 'recipee'; did you mean recipe"
    )
    without = config | {"recipe": {k: v for k, v in config["recipe"].items() if k != "epochs"}}
    assert message(validate, without) == "recipe.epochs: no value is set; expected an integer > 0"


def test_sections_of_trained_networks(config):
    recipe = config["recipe"]
    validate(config | {"baseline": {"seed": 3, "recipe": recipe}, "teacher": {"model": config["model"]}})
    for section, expected in [
        ({"recipe": changed(recipe, "epochs", 0)}, "baseline.recipe.epochs: expected an integer > 0, got 0"),
        ({"recipe": {"epochs": 1}}, "baseline.recipe.name: no value is set; expected a text (and "),
        ({"seed": 0, "recipee": recipe}, "unknown key 'baseline.recipee'; did you mean recipe?"),
        ({"recipe": None}, "baseline.recipe: expected a mapping of keys to values, got null"),
        ({"sead": 0}, "unknown key 'baseline'"),
    ]:
        assert message(validate, config | {"baseline": section}).startswith(expected)


def test_one_section():
    assert build_section("checkpoint", {"every_seconds": 0}).every_seconds == 0
    assert message(build_section, "checkpoint", {"every_second": 0}) == (
        "unknown key 'checkpoint.every_second'; did you mean every_seconds?"
    )


@dataclass(kw_only=True)
class Inner:
    knowledge: Literal["none", "single"] = "none"
    limits: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.limits[0] > self.limits[1]:
            raise ValueError("limits: the first must not be larger than the second")


@dataclass(kw_only=True)
class Outer:
    rate: Annotated[float, Field(gt=0, le=1)]
    search: Inner = field(default_factory=Inner)
    second: Inner | None = None
    layers: list[int] = field(default_factory=list)
    shape: int | str = 3

    def __post_init__(self):
        if math.isclose(self.rate, 0.25):
            raise ValueError("a rate of 0.25 has no solution")


def method(**values):
    return {"method": {"name": "outer", "target": "a:b", "rate": 0.5, **values}}


def test_build_method():
    built = build_method(method(search={"knowledge": "single", "limits": [1, 2]}, layers=[1], shape="x"), Outer)
    assert built == Outer(rate=0.5, search=Inner(knowledge="single", limits=(1.0, 2.0)), layers=[1], shape="x")
    assert build_method(method(second={"knowledge": "single"}), Outer).second == Inner(knowledge="single")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": 0.25}, "method: a rate of 0.25 has no solution"),
        ({"rate": 1.5}, "method.rate: expected a number > 0 and <= 1, got 1.5"),
        ({"search": {"knowledge": "all"}}, "method.search.knowledge: expected one of none, single, got 'all'"),
        ({"second": {"knowledge": "all"}}, "method.second.knowledge: expected one of none, single, got 'all'"),
        ({"search": {"limits": [2, 1]}}, "method.search: limits: the first must not be larger than the second"),
        ({"search": {"knowlege": "none"}}, "unknown key 'method.search.knowlege'; did you mean knowledge?"),
        ({"second": {"knowlege": "none"}}, "unknown key 'method.second.knowlege'; did you mean knowledge?"),
        ({"layers": [1, None]}, "method.layers[1]: expected an integer, got null"),
        ({"shape": 1.5}, "method.shape: expected an integer or a text, got 1.5"),
    ],
)
def test_wrong_method_settings(values, expected):
    assert message(build_method, method(**values), Outer) == expected


def test_expectations():
    assert expectation(dict[str, int]) == "a mapping of keys to values"
    assert expectation(list[str] | None) == "a list of texts or null"
    assert expectation(Literal["a"]) == "a"


class TestTargets:
    def test_a_users_package_in_the_working_directory(self, user_configs):
        (user_configs.parent / "my_shrinkage" / "__init__.py").write_text("")
        found = load_target("my_shrinkage.methods:Shrinkage")
        config = compose(["method=shrinkage"], [user_configs]).config
        assert build_method(config, found).search.steps == 2
        assert message(load_target, "my_shrinkage.methods:Shrinkag") == (
            "method.target: my_shrinkage.methods has no 'Shrinkag'; did you mean Shrinkage?"
        )

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("json.JSONDecoder", "expected package.module:Name"),
            ("nosuchpackage.methods:X", "no module 'nosuchpackage'"),
            ("json.nosuch:X", "no module 'json.nosuch'"),
            ("json:Decoder", "json has no 'Decoder'"),
        ],
    )
    def test_wrong_targets(self, target, expected):
        assert expected in message(load_target, target, "model.target")

    def test_missing_extra(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "needs_extra.py").write_text('EXTRA = "graph"\nimport nosuchpackage.inner\n')
        assert "pip install 'paper-runner[graph]'" in message(load_target, "needs_extra:X")
        (tmp_path / "needs_other.py").write_text("import nosuchpackage.inner\n")
        (tmp_path / "own_package").mkdir()
        (tmp_path / "own_package" / "broken.py").write_text("import own_package.nosuch\n")
        assert "fails: it has no module 'own_package.nosuch'" in message(load_target, "own_package.broken:X")
        assert "pip install nosuchpackage" in message(load_target, "needs_other:X")
        (tmp_path / "broken_module.py").write_text("1 / 0\n")
        assert "importing broken_module fails: ZeroDivisionError" in message(load_target, "broken_module:X")
