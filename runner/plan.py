"""From a composed config to a run that can be looked up: its key, its folder, its stored result. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.code import code_fingerprint
from runner.errors import UserError
from runner.folder import RunFolder
from runner.key import LEFT_OUT, run_key

# Sections that every run has; other top-level sections describe trained networks that the method starts from (roles).
BASE = frozenset({"method", "model", "dataset", "recipe", "scale", "seed", "seeds", "precision"}) | LEFT_OUT


@dataclass
class Plan:
    """One run: ``config`` is plain and resolved; ``fingerprints`` are of the paths that enter the key."""

    config: dict[str, Any]
    key: str
    folder: RunFolder
    fingerprints: dict[str, str]
    origin: Callable[[str], str] | None = None

    @property
    def name(self) -> str:
        """METHOD-MODEL-DATASET, the folder above the key."""
        return self.folder.path.parent.name

    def code(self) -> str:
        """The fingerprint of the code that this run would use now."""
        from runner.datasets import MODULES
        from runner.models import ZOO

        dataset = self.config["dataset"]
        roles = [section.get("model") for section in self.config.values() if isinstance(section, Mapping)]
        models = [self.config["model"], *(model for model in roles if isinstance(model, Mapping))]
        networks = [
            model["target"] or (ZOO[model["name"]].builder if model["name"] in ZOO else None) for model in models
        ]
        source = MODULES.get("torch_dataset" if dataset.get("target") else dataset["name"])
        return code_fingerprint(self.config["method"]["target"], *networks, source, dataset.get("target"))


def plan(config: Mapping[str, Any], origin: Callable[[str], str] | None = None) -> Plan:
    """Finds the key and the folder of a composed config.

    Raises:
        UserError: a path that enters the key does not exist or cannot be read.
    """
    config = dict(config)
    fingerprints = path_fingerprints(config)
    key = run_key(config, fingerprints, added_later())
    parts = (config["method"]["name"], config["model"]["name"], config["dataset"]["name"])
    folder = Path(config["paths"]["runs"]).expanduser().absolute() / "-".join(parts) / key
    return Plan(config, key, RunFolder(folder), fingerprints, origin)


def path_fingerprints(config: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of each path among the decisive values that is set."""
    found: dict[str, str] = {}
    sections = {"": config} | {
        f"{name}.": value for name, value in config.items() if name not in BASE and isinstance(value, Mapping)
    }
    for prefix, section in sections.items():
        dataset, model = (section.get(name) or {} for name in ("dataset", "model"))
        if dataset:
            from runner.datasets import fingerprint, found_in_root

            place = dataset.get("path") or found_in_root(dataset, config["paths"]["data"])
            content = fingerprint(dataset["name"], place)
            if content is not None:
                found[f"{prefix}dataset.path"] = content
            episodes = dataset.get("episodes")
            names = (episodes.get("test_sets") or []) if isinstance(episodes, Mapping) else []
            places = {name: found_in_root({"name": name}, config["paths"]["data"]) for name in names}
            if any(places.values()):
                contents = [f"{name} {fingerprint(name, place)}" for name, place in places.items()]
                found[f"{prefix}dataset.episodes.test_sets"] = ", ".join(contents)
        if model.get("weights"):
            found[f"{prefix}model.weights"] = weights_fingerprint(model, f"{prefix}model.weights")
    found |= _stored_runs(config["method"])
    return found


def _stored_runs(method: Mapping[str, Any]) -> dict[str, str]:
    """For a method on stored results: the content of ``runs`` (folders), ``example_properties`` and ``benchmark`` (CSV
    files)."""
    found: dict[str, str] = {}
    runs = method.get("runs")
    if isinstance(runs, list) and runs and all(isinstance(item, str) for item in runs):
        from runner.statistics.stored import fingerprint

        found["method.runs"] = fingerprint(runs)
    for name in ("example_properties", "benchmark"):
        if isinstance(file := method.get(name), str):
            from runner.datasets import files

            if not Path(file).expanduser().is_file():
                raise UserError(f"method.{name}: there is no file '{file}'")
            found[f"method.{name}"] = files.fingerprint(Path(file).expanduser())
    return found


def weights_fingerprint(model: Mapping[str, Any], key: str = "model.weights") -> str:
    """The content of a weights file; of a run folder, the hash of the weights of its product; torchvision's name.

    Raises:
        UserError: there are no weights at the path that ``key`` names.
    """
    from runner.datasets import files
    from runner.models import imagenet
    from runner.models.weights import find_product, read_architecture

    path = model["weights"]
    if path == imagenet.WORD:
        return f"torchvision:{imagenet.published(None if model.get('target') else model['name']).name}"
    place = Path(path).expanduser()
    if place.is_dir():
        return read_architecture(find_product(place))["weights_sha256"]
    if not place.is_file():
        raise UserError(f"{key}: there is no file or run folder '{path}'")
    return files.fingerprint(place)


def added_later() -> dict[str, Any]:
    """Fields that came after results had been stored, each with its neutral value (conf/added_later.yaml)."""
    from runner.registry import package_conf, read_yaml

    return read_yaml(package_conf() / "added_later.yaml")


def role_config(config: Mapping[str, Any], role: str, search_path: Sequence[Path]) -> dict[str, Any]:
    """The config of the `supervised` run that trains the network of ``role``: its section's own values."""
    section = config.get(role)
    if not isinstance(section, Mapping):
        raise UserError(
            f"the config has no section '{role}' (seed, recipe) for the network that the method starts from"
        )
    base = {name: value for name, value in config.items() if name in BASE}
    changes = {name: section[name] for name in ("seed", "seeds", "recipe", "model", "dataset") if name in section}
    return {**base, **changes, "method": _method_section("supervised", search_path)}


def cell_config(
    config: Mapping[str, Any],
    method: str,
    fields: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
    seed: int | None,
    search_path: Sequence[Path],
) -> dict[str, Any]:
    """The config of another method as a cell: model, dataset, scale, precision, roles, and without others seed and
    recipe as here."""
    changes = {"method": {**_method_section(method, search_path), **fields}}
    if recipe is not None:
        changes["recipe"] = dict(recipe)
    if seed is not None:
        changes["seed"] = seed
    return {**config, **changes}


def _method_section(name: str, search_path: Sequence[Path]) -> dict[str, Any]:
    """The section ``method`` of a method's YAML, its paper settings."""
    from runner.registry import methods, read_yaml, unknown_choice

    known = methods(search_path)
    if name not in known:
        raise unknown_choice("method", name, search_path)
    return dict(read_yaml(known[name])["method"])
