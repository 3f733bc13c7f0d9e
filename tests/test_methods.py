"""The rules that hold for every method, over all that conf/method names; smoke runs in forked processes.

Golden numbers are written anew, where a change of results is meant, by: python tests/test_methods.py
"""

import dataclasses
import fcntl
import functools
import json
import math
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import get_type_hints

import numpy
import pytest
import torch
import yaml
from commands import Answer, killed_and_repeated, listing, metric_lines, outcome, runner

from runner.compose import compose
from runner.datasets import kind_of
from runner.models import ZOO
from runner.product import load
from runner.registry import choices, describe, flatten, methods, search_path
from runner.schema import AnyDataset
from runner.settings import load_target, validate

METHODS = sorted(methods(search_path()))
GOLDEN = Path(__file__).parent / "golden"
# Values that move by rounding alone from one processor to another; a search's decisions can tip, a loss cannot.
GOLDEN_METHODS = ["supervised"]
KILLED_MOST = ("ekg", "ekg_search", "maml", "sac", "supervised")  # with several seeds: they use all verbs, cells too
PARTS = 16  # of the models and data sets, for one method each
CPU_SECONDS = 2.0  # of a smoke run beyond imports


def command(method: str) -> tuple[str, ...]:
    """What takes no images, or no classifier of them, runs on the data and the network that it brings along."""
    said = describe(method, search_path())
    words = ("model=resnet20", "dataset=digits") if "images" in said.data and "classifier" in said.model else ()
    return f"method={method}", *words, "scale=smoke", "hardware=cpu"


def run(method: str, place: Path, *more: str) -> Answer:
    answer = runner(*command(method), *more, place=place)
    assert answer.code == 0, answer.err
    return answer


@pytest.fixture(scope="module", params=METHODS)
def finished(request, tmp_path_factory):
    """(method, answer of an undisturbed smoke run, its place); read only. Workers share it: one of them runs it."""
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent
    place, stored = together / request.param, together / f"{request.param}.json"
    with (together / f"{request.param}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stored.exists():
            place.mkdir()
            stored.write_text(json.dumps(dataclasses.asdict(run(request.param, place))))
    return request.param, Answer(**json.loads(stored.read_text())), place


@pytest.mark.parametrize("method", METHODS)
def test_the_config_has_the_fields_of_the_class_and_at_paper_scale_their_defaults(method):
    """So `--cfg job` shows all there is, no setting is dead, and the class says the paper's."""
    section = compose([f"method={method}", "scale=paper"]).config["method"]
    target = load_target(section.pop("target"))
    assert section.pop("name") == method
    assert {name for name, _ in flatten(section)} == set(leaves(target))
    assert dict(flatten(section)) == dict(flatten(json.loads(json.dumps(dataclasses.asdict(target())))))


def leaves(cls: type, prefix: str = ""):
    hints = get_type_hints(cls)
    for name in [item.name for item in dataclasses.fields(cls) if item.init]:
        if dataclasses.is_dataclass(hints[name]):
            yield from leaves(hints[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("method", METHODS)
def test_it_composes_with_models_and_data_sets_of_its_kinds(method):
    mine = []
    for kind, names in enumerate(fitting(method)):  # a part of them; the methods that take the same share them out
        alike = [name for name in METHODS if fitting(name)[kind] == names]
        mine.append(names[alike.index(method) % len(names) :: min(PARTS, len(alike))])
    for number in range(max(map(len, mine))):
        model, dataset = (names[number % len(names)] for names in mine)
        composed = compose([f"method={method}", f"model={model}", f"dataset={dataset}", "scale=paper"])
        settings = validate(composed.config, composed.origin)
        assert (settings.model.name, settings.dataset.name) == (model, dataset)


@functools.cache
def fitting(method: str) -> tuple[list[str], list[str]]:
    """The models and the data sets that a method takes. A network that no zoo lists may be for any kind of data."""
    said = describe(method, search_path())
    if said.model == ("none",):
        models = ["none"]
    else:
        images = "classifier" in said.model
        models = [name for name in choices("model", search_path()) if name != "none" and (images or name not in ZOO)]
    return models, [name for name in choices("dataset", search_path()) if kind_of(AnyDataset(name=name)) in said.data]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("dataset=sinusoid", "method supervised takes images"),
        ("dataset=none", "method supervised takes images"),
        ("model=none", "method supervised needs a network"),
    ],
)
def test_what_does_not_fit_is_refused(word, reason, tmp_path):
    answer = runner("method=supervised", "scale=smoke", word, place=tmp_path)
    assert (answer.code, answer.out) == (2, "") and reason in answer.message


def test_a_smoke_run_ends_well(finished, record_property):
    method, answer, place = finished
    result = answer.result
    assert result["metrics"] and all(type(value) is float for value in result["metrics"].values())
    assert all(math.isfinite(value) for value in result["metrics"].values()), result["metrics"]
    for name in ("accuracy", "flops_rate", "params_rate"):
        assert 0 <= result["metrics"].get(name, 0) <= 1
    assert result["phases"] and all(phase["seconds"] >= 0 for phase in result["phases"].values())
    assert metric_lines(answer.folder), "nothing was logged"
    outside = {name for name in listing(place) if not name.startswith("work/runs")}
    assert outside == {"0.out", "0.err", "0.cpu", "home", "work"}
    cpu = float((place / "0.cpu").read_text())
    record_property("cpu_seconds", cpu)
    print(f"{method}: {cpu:.2f} s CPU beyond imports")
    if cpu > CPU_SECONDS:
        warnings.warn(f"the smoke run of {method} took {cpu:.2f} s CPU; the limit is {CPU_SECONDS} s", stacklevel=1)
    assert cpu < 2 * CPU_SECONDS  # twice: a shared machine's seconds are longer


def test_the_product_that_is_loaded_predicts_what_the_run_measured(finished):
    from runner.datasets import load_data
    from runner.datasets.images import Batches, Normalisation
    from runner.evaluation import accuracy_and_loss, classify

    _, answer, _ = finished
    if answer.result["product"] is None:
        pytest.skip("this method yields no network")
    settings = validate(yaml.safe_load((answer.folder / "config.yaml").read_text()))
    data = load_data(settings.dataset, settings.scale, data_root=settings.paths.data, offline=True)
    model = load(answer.folder)
    normalisation = Normalisation(*(torch.tensor(model.normalisation[name]) for name in ("mean", "std")))
    batches = Batches(data.test, normalisation, 256, shuffle=False, augmentation=None, device=torch.device("cpu"))
    rows = classify(model, batches.iterate(0))
    with numpy.load(answer.folder / "artifacts" / "test_scores.npz") as scores:
        assert rows["prediction"].tolist() == scores["prediction"].tolist()
        assert data.test.index[rows["index"]].tolist() == scores["index"].tolist()
    found = accuracy_and_loss(rows)
    assert found == pytest.approx({name: answer.result["metrics"][name] for name in found}, abs=1e-5)


@pytest.mark.parametrize("finished", METHODS[2::8], indirect=True)
def test_the_same_bits_again(finished, tmp_path):
    """An eighth of the methods; the slow test below compares all with what is killed."""
    method, answer, _ = finished
    assert outcome(run(method, tmp_path, "checkpoint.every_seconds=0")) == outcome(answer)


def check_killed(finished, place: Path, moments: list[tuple[int, float]]) -> None:
    method, undisturbed, its_place = finished
    at_once = (0, 0.0)  # meets the fastest method too
    answer, kills = killed_and_repeated((*command(method), "checkpoint.every_seconds=0"), place, [at_once, *moments])
    assert answer.code == 0, answer.err
    assert kills >= 1, "the kills came too late: choose earlier moments"
    assert outcome(answer) == outcome(undisturbed)
    status = json.loads((answer.folder / "status.json").read_text())
    assert status["state"] == "done"
    assert kills - status["resumes"] in (0, 1)  # a kill after the result was written needs no resume
    assert listing(place / "work") == listing(its_place / "work"), "a killed write left something behind"


@pytest.mark.parametrize("finished", METHODS[::16], indirect=True)
def test_killed_at_random_moments_it_ends_with_the_same_bits(finished, tmp_path):
    """A sixteenth of the methods; the slow test below kills them all."""
    moments = random.Random(finished[0])
    check_killed(finished, tmp_path, [(moments.choice((0, 1, 2)), moments.uniform(0, 0.05)) for _ in range(3)])


KILLED = [(method, seed) for method in METHODS for seed in range(3 if method in KILLED_MOST else 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("finished", "seed"), KILLED, indirect=["finished"])
def test_killed_at_twenty_random_moments(finished, tmp_path, seed):
    moments = random.Random(f"{finished[0]} {seed}")
    check_killed(finished, tmp_path, [(moments.choice((0, 0, 1)), moments.uniform(0, 0.05)) for _ in range(20)])


@pytest.mark.parametrize("method", GOLDEN_METHODS)
def test_golden_numbers(method, tmp_path):
    """A refactor that moves results is seen."""
    stored = json.loads((GOLDEN / f"{method}.json").read_text())
    assert golden(run(method, tmp_path, "tracking.every_steps=1")) == pytest.approx(stored, rel=0, abs=1e-4)


def golden(answer: Answer) -> dict[str, float]:
    """The loss after training, and all that was logged on the way."""
    found = {"loss": answer.result["metrics"]["loss"]}
    for line in metric_lines(answer.folder):
        place = f"{line.pop('phase')}[{line.pop('step')}]"
        found |= {f"{place}.{name}": value for name, value in line.items() if not name.startswith("accuracy")}
    return found


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in GOLDEN_METHODS:
        with tempfile.TemporaryDirectory() as folder:
            numbers = golden(run(name, Path(folder), "tracking.every_steps=1"))
        (GOLDEN / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    sys.exit(0)
