"""A setting of the recipe that a run never asks for is told."""

import copy
import pickle
from dataclasses import replace

from commands import runner

from runner.compose import compose
from runner.settings import validate
from runner.unread import noted, set_in_vain

RECIPE = validate(compose(["method=supervised", "model=resnet8", "dataset=digits"]).config).recipe


def test_what_is_read_is_noted_and_copies_are_plain():
    read: set[str] = set()
    recipe = noted(RECIPE, read)
    assert isinstance(recipe, type(RECIPE)) and read == set()
    assert recipe.epochs == RECIPE.epochs and recipe.optimizer.learning_rate and recipe.name
    assert read == {"epochs", "optimizer"}
    assert type(pickle.loads(pickle.dumps(recipe))) is type(copy.deepcopy(recipe)) is type(RECIPE)
    assert vars(replace(recipe, epochs=3)) == vars(replace(RECIPE, epochs=3))
    assert {"label_smoothing", "schedule"} <= read  # who copies it may use all of it


def test_only_what_the_command_line_set_is_told():
    composed = compose(
        ["method=supervised", "recipe.epochs=3", "recipe.optimizer.momentum=0.5", "recipe.schedule.power=2"]
    )
    recipe = composed.config["recipe"]
    assert set_in_vain(recipe, {"epochs", "schedule"}, composed.origin) == ["recipe.optimizer.momentum=0.5"]
    assert set_in_vain(recipe, set(), None) == []


def test_a_run_says_it(tmp_path):
    words = "method=sac", "recipe.epochs=3", "scale=smoke", "hardware=cpu", "tracking=none"
    answer = runner(*words, place=tmp_path)
    assert "without effect: recipe.epochs=3; nothing in this run of sac-perceptron-pendulum asked for it" in answer.err
