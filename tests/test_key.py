"""What decides a result changes its key, and nothing else does."""

import copy
import json

import pytest
from omegaconf import OmegaConf

from runner.compose import compose
from runner.key import LEFT_OUT, run_key
from runner.plan import plan, role_config
from runner.registry import flatten, methods, search_path
from runner.schema import SECTIONS
from runner.settings import validate

METHODS = sorted(methods(search_path()))
PLACES = ("dataset.path", "model.weights")  # they enter by content, tested below; those of roles too


def composed(*overrides: str) -> dict:
    return compose(["model=resnet20", *overrides]).config


def key(config: dict) -> str:
    return plan(config).key


def other(value):
    """Another value, of the same kind where there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, 1]
    return {"added": 1} if isinstance(value, dict) else 1


def changed(config: dict, leaf: str) -> dict:
    new = copy.deepcopy(config)
    *sections, name = leaf.split(".")
    section = new
    for part in sections:
        section = section[part]
    section[name] = other(section[name])
    return new


@pytest.mark.parametrize("scale", ["smoke", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_every_decisive_setting_enters(method, scale):
    config = composed(f"method={method}", f"scale={scale}")
    assert validate(config).scale.name == scale
    leaves = [leaf for leaf, _ in flatten(config) if leaf.partition(".")[0] not in LEFT_OUT]
    leaves = [leaf for leaf in leaves if not leaf.endswith(PLACES)]
    assert len(leaves) > 40
    assert {leaf.partition(".")[0] for leaf in leaves} >= {
        "method",
        "model",
        "dataset",
        "recipe",
        "scale",
        "seed",
        "seeds",
    }
    keys = {leaf: key(changed(config, leaf)) for leaf in leaves}
    assert key(config) not in keys.values(), [leaf for leaf, found in keys.items() if found == key(config)]
    assert len(set(keys.values())) == len(keys), "two different changes have one key"


@pytest.mark.parametrize("method", METHODS[::8])
def test_hardware_tracking_places_and_switches_do_not(method):
    config = composed(f"method={method}")
    assert set(config) >= LEFT_OUT, "a section that is left out does not exist: renamed?"
    for leaf, _ in flatten({name: config[name] for name in LEFT_OUT}):
        assert key(changed(config, leaf)) == key(config), leaf


def test_every_section_of_the_schema_is_decided_about():
    """A new section must be put into the key's table on purpose."""
    decisive = {"model", "dataset", "recipe", "seeds", "scale"}
    assert decisive | LEFT_OUT >= set(SECTIONS)
    assert not decisive & LEFT_OUT


@pytest.mark.parametrize("method", METHODS[::8])
def test_order_does_not_matter(method):
    config = composed(f"method={method}")

    def reversed_mapping(value):
        return {name: reversed_mapping(value[name]) for name in reversed(value)} if isinstance(value, dict) else value

    assert list(reversed_mapping(config)) != list(config)
    assert key(reversed_mapping(config)) == key(config)


def test_equal_numbers_are_equal_and_near_ones_are_not():
    assert run_key({"a": 1, "b": [2, {"c": 3}]}) == run_key({"b": [2.0, {"c": 3.0}], "a": 1.0})
    assert len({run_key({"a": value}) for value in (1, 1.0000001, True, "1", [1], None, {"a": 1}, {}, 0, False)}) == 10
    assert run_key({"a": {"b": 1}}) != run_key({"a": {"b": {"b": 1}}})


def test_it_can_be_computed_again_elsewhere():
    """A golden key: whoever changes the function makes every stored result unfindable, and must mean it."""
    config = {"method": {"name": "m", "rate": 0.5, "layers": [1, 2.0]}, "seed": 0, "hardware": {"name": "cpu"}}
    assert run_key(config) == "dd38c99a4a23"
    assert run_key(json.loads(json.dumps(config))) == run_key(OmegaConf.to_container(OmegaConf.create(config)))


def test_fields_added_later_are_left_out_at_their_neutral_value():
    old = {"method": {"name": "m"}, "seed": 0}
    new = {"method": {"name": "m", "momentum": 0.0, "views": []}, "seed": 0}
    later = {"method.momentum": 0, "method.views": []}
    assert run_key(new, added_later=later) == run_key(old)
    assert run_key(new) != run_key(old)
    new["method"]["momentum"] = 0.5
    assert run_key(new, added_later=later) != run_key(old)
    assert run_key(old, added_later=later) == run_key(old)


def test_fields_added_later_are_left_out_of_the_sections_of_roles_too():
    old = {"method": {"name": "m", "recipe": {"mixup": 0}}, "baseline": {"recipe": {"epochs": 1}}}
    new = {**old, "baseline": {"recipe": {"epochs": 1, "mixup": 0.0}}}
    later = {"recipe.mixup": 0}
    assert run_key(new, added_later=later) == run_key(old)
    new["baseline"]["recipe"]["mixup"] = 0.2
    assert run_key(new, added_later=later) != run_key(old)
    assert run_key({"method": {"name": "m"}}, added_later=later) != run_key(
        {"method": old["method"]}, added_later=later
    )


def test_a_network_that_a_method_starts_from_has_the_seeds_of_the_run_or_its_own():
    config = composed("method=ekg", "seed=3", "seeds.order=5")
    baseline = role_config(config, "baseline", search_path())
    assert baseline["seeds"] == config["seeds"]
    assert key(baseline) != key(role_config(composed("method=ekg", "seed=3"), "baseline", search_path()))
    config["baseline"]["seeds"] = {"order": 6}
    validate(config)
    assert role_config(config, "baseline", search_path())["seeds"] == {"order": 6}


def test_a_data_path_enters_as_its_content(tmp_path):
    keys = {}
    for name, text in {"one": b"x", "two": b"x", "three": b"y"}.items():
        archive = tmp_path / name / f"{name}.zip"
        archive.parent.mkdir()
        archive.write_bytes(text)
        keys[name] = key(composed("method=supervised", "dataset=image_folder", f"dataset.path={archive}"))
    assert keys["one"] == keys["two"] != keys["three"]
    archive.write_bytes(b"x")
    assert key(composed("method=supervised", "dataset=image_folder", f"dataset.path={archive}")) == keys["one"]


def test_a_file_found_among_the_data_enters_as_its_path_would(tmp_path):
    words = "method=nafs", "dataset=cora", f"paths.data={tmp_path}"
    without = key(composed(*words))
    (tmp_path / "cora.npz").write_text("one conversion")
    one = key(composed(*words))
    (tmp_path / "copy.npz").write_text("one conversion")
    assert key(composed(*words, f"dataset.path={tmp_path / 'copy.npz'}")) == one != without
    (tmp_path / "cora.npz").write_text("another conversion, with self-loops")
    assert key(composed(*words)) not in {one, without}


def test_a_test_set_found_among_the_data_enters_as_its_content(tmp_path):
    words = "method=maml", "dataset.episodes.test_sets=[cub_episodes,digits]", f"paths.data={tmp_path}"
    keys = [key(composed(*words))]
    for text in ("one copy", "another copy"):
        (tmp_path / "CUB.zip").write_text(text)
        keys.append(key(composed(*words)))
    assert len(set(keys)) == 3


def test_the_place_of_a_data_set_with_published_checksums_does_not_matter(tmp_path):
    keys = {
        key(composed("method=supervised", "dataset=cifar10", f"dataset.path={path}")) for path in ("null", "a", "b")
    }
    assert len(keys) == 1


def test_a_folder_of_data_enters_as_its_names_and_sizes(tmp_path):
    def key_of(folder):
        return key(composed("method=supervised", "dataset=image_folder", f"dataset.path={folder}"))

    for name in ("one", "two"):
        (tmp_path / name / "train" / "a").mkdir(parents=True)
        (tmp_path / name / "train" / "a" / "1.png").write_bytes(b"1234")
    first = key_of(tmp_path / "one")
    assert first == key_of(tmp_path / "two")
    (tmp_path / "two" / "train" / "a" / "2.png").write_bytes(b"1234")
    assert first != key_of(tmp_path / "two")


@pytest.mark.parametrize(("method", "place"), [("supervised", "model.weights"), ("crd", "teacher.model.weights")])
def test_weights_enter_as_their_content(tmp_path, method, place):
    def key_of(*overrides):
        return key(composed(f"method={method}", *overrides))

    for name, text in {"one": b"x", "two": b"x", "three": b"y"}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(text)
    keys = [key_of(f"{place}={tmp_path / name}.safetensors") for name in ("one", "two", "three")]
    assert keys[0] == keys[1] != keys[2]
    assert key_of() not in keys
