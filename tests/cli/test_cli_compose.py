"""Composition over Hydra: what comes out, where a value was set, and users' config folders."""

import pytest

from runner import registry
from runner.compose import compose
from runner.errors import UserError
from runner.settings import validate

PATH = registry.search_path()


@pytest.fixture(autouse=True)
def _no_user_configs(monkeypatch):
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)


@pytest.mark.parametrize("method", registry.methods(PATH))
def test_every_method_composes(method):
    """At desk scale; tests/test_key.py composes the other two."""
    composed = compose([f"method={method}"])
    assert composed.config["method"]["name"] == method
    assert composed.choices["scale"] == "desk"
    settings = validate(composed.config, composed.origin)
    assert settings.scale.name == "desk"
    tree, exact = registry.outline([f"method={method}"], PATH)
    if exact:  # the files alone have all keys that Hydra composes
        assert {key for key, _ in registry.flatten(tree)} == {key for key, _ in registry.flatten(composed.config)}


@pytest.mark.parametrize("group", ["recipe", "hardware", "tracking"])
def test_every_choice_of_every_group_composes(group):
    """Models and data sets: with the methods that take them, in tests/test_methods.py."""
    for name in registry.choices(group, PATH):
        composed = compose([f"{group}={name}"])
        assert composed.choices[group] == name
        validate(composed.config, composed.origin)


def test_a_recipe_with_settings_for_a_scale_wins_over_those_of_the_method():
    composed = compose(["method=supervised", "recipe=adamw"])
    recipe = composed.config["recipe"]
    found = (recipe["epochs"], recipe["optimizer"]["learning_rate"], recipe["schedule"]["warmup_epochs"])
    assert found == (5, 1e-3, 1)
    assert composed.origin("recipe.optimizer.learning_rate") == "in conf/recommended/recipe/adamw/desk.yaml"
    assert composed.origin("recipe.epochs") == "in conf/recommended/supervised/desk.yaml"
    tree, exact = registry.outline(["method=supervised", "recipe=adamw"], PATH)
    assert (exact, tree["recipe"]["schedule"]["warmup_epochs"]) == (True, 1)
    assert (
        compose(["method=supervised", "recipe=adamw", "scale=paper"]).config["recipe"]["schedule"]["warmup_epochs"] == 5
    )


def test_the_command_line_wins_over_the_recommended_settings():
    assert compose(["method=supervised"]).config["recipe"]["epochs"] == 5
    assert compose(["method=supervised", "scale=paper"]).config["recipe"]["epochs"] == 200
    assert compose(["method=supervised", "recipe.epochs=9"]).config["recipe"]["epochs"] == 9


def test_hydra_grammar_keeps_working():
    config = compose(
        [
            "method=supervised",
            "+model.arguments.width=3",
            "++seed=4",
            "~tracking.every_steps",
            "tracking.tags=[a,'b c']",
        ]
    ).config
    assert config["model"]["arguments"] == {"width": 3}
    assert config["seed"] == 4
    assert "every_steps" not in config["tracking"]
    assert config["tracking"]["tags"] == ["a", "b c"]


def test_origin():
    composed = compose(["method=supervised", "seed=3", "recipe.optimizer.momentum=0.5"])
    assert composed.origin("seed") == "on the command line"
    assert composed.origin("recipe.optimizer.momentum") == "on the command line"
    assert composed.origin("recipe.epochs") == "in conf/recommended/supervised/desk.yaml"
    assert composed.origin("recipe.schedule.factor") == "in conf/recipe/standard.yaml"
    assert composed.origin("method.target") == "in conf/method/supervised.yaml"
    assert composed.origin("precision") == "in conf/config.yaml"


def test_composing_inside_a_users_hydra_application(tmp_path):
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert compose(["method=supervised"]).config["seed"] == 0
        assert GlobalHydra.instance().hydra is before


class TestUserConfigs:
    def test_a_users_method_has_the_same_rights(self, user_configs):
        composed = compose(["method=shrinkage"], [user_configs])
        assert composed.config["model"]["name"] == "tiny"
        assert composed.config["method"]["search"] == {"knowledge": "ensemble", "steps": 2}
        assert composed.config["recipe"]["epochs"] == 7
        assert composed.origin("recipe.epochs") == f"in {user_configs}/recommended/shrinkage/desk.yaml"
        assert compose(["method=shrinkage", "scale=paper"], [user_configs]).config["method"]["search"]["steps"] == 3

    def test_environment_variable(self, user_configs, monkeypatch):
        monkeypatch.setenv("RUNNER_CONFIG_PATH", f"{user_configs}:{user_configs}")
        assert compose(["method=supervised", "model=tiny"]).config["model"]["name"] == "tiny"
        monkeypatch.setenv("RUNNER_CONFIG_PATH", "/nowhere/at/all")
        with pytest.raises(UserError, match=r"'/nowhere/at/all' does not exist \(set by RUNNER_CONFIG_PATH"):
            compose()

    def test_a_path_with_spaces_and_quotes(self, user_configs):
        odd = user_configs.rename(user_configs.parent / 'my "own", configs')
        assert compose(["method=shrinkage"], [odd]).config["method"]["name"] == "shrinkage"

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("method=shrinkag", "did you mean shrinkage?"),
            ("rate=0.1", "did you mean method.rate?"),
            ("search.knowledge=none", "did you mean method.search.knowledge?"),
            ("method.serch.knowledge=none", "method.search.knowledge"),
        ],
    )
    def test_messages_know_the_users_names(self, user_configs, word, expected):
        words = [word] if word.startswith("method=") else ["method=shrinkage", word]
        with pytest.raises(UserError) as error:
            compose(words, [user_configs])
        assert expected in str(error.value)

    def test_a_file_that_composes_further_ones_is_left_to_hydra(self, user_configs):
        (user_configs / "extra").mkdir()
        (user_configs / "extra" / "one.yaml").write_text("depth: 3\n")
        method = user_configs / "method" / "shrinkage.yaml"
        method.write_text(method.read_text().replace("defaults:\n", "defaults:\n  - /extra@method.extra: one\n"))
        assert compose(["method=shrinkage", "method.extra.depth=4"], [user_configs]).config["method"]["extra"] == {
            "depth": 4
        }
        with pytest.raises(UserError, match=r"did you mean method\.extra\.depth"):
            compose(["method=shrinkage", "method.extra.dept=4"], [user_configs])

    def test_a_users_own_group(self, user_configs):
        (user_configs / "experiment").mkdir()
        (user_configs / "experiment" / "first.yaml").write_text("# @package _global_\nseed: 11\n")
        assert compose(["+experiment=first", "method=supervised"], [user_configs]).config["seed"] == 11
        with pytest.raises(UserError, match=r"unknown experiment 'frist'.*did you mean first\?"):
            compose(["+experiment=frist"], [user_configs])

    def test_one_name_twice(self, user_configs):
        (user_configs / "method" / "supervised.yaml").write_text("# @package _global_\nmethod: {name: supervised}\n")
        with pytest.raises(UserError, match=r"has the name of conf/method/supervised\.yaml: rename yours"):
            compose(["method=supervised"], [user_configs])

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("method: {name: a\n", "shrinkage.yaml, line 2: not valid YAML"),
            ("- a\n", "shrinkage.yaml: expected a mapping"),
            ("method: {name: a, name: b}\n", "found duplicate key name"),
            (
                "# @package _global_\ndefaults:\n  - override /model: nosuch\nmethod: {name: shrinkage}\n",
                "unknown model 'nosuch'",
            ),
            (
                "# @package _global_\nmethod:\n  name: shrinkage\n  rate: ???\n",
                "method.rate has no value: add method.rate=VALUE",
            ),
            ("# @package _global_\nmethod: {name: other}\n", "method.name must be 'shrinkage'"),
            ("# @package _global_\nmethod: {name: shrinkage, rate: '${nothing}'}\n", "'nothing' not found"),
        ],
    )
    def test_broken_files_are_named(self, user_configs, text, expected):
        (user_configs / "method" / "shrinkage.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            compose(["method=shrinkage"], [user_configs])
        assert expected in str(error.value)
        assert "shrinkage.yaml" in str(error.value)
        assert "\n" not in str(error.value)
