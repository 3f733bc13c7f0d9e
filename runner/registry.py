"""What there is to choose from, by the YAML files and the methods' source text; imports neither Hydra nor torch."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runner.errors import UserError, did_you_mean

CONFIG_PATH_VARIABLE = "RUNNER_CONFIG_PATH"  # folders like --config-dir, separated as in PATH
PLURALS = {
    "method": "methods",
    "model": "models",
    "dataset": "datasets",
    "recipe": "recipes",
    "scale": "scales",
    "hardware": "hardware",
    "tracking": "tracking",
    "table": "tables",
}


@cache
def package_conf() -> Path:
    """The conf/ folder that ships with the package."""
    import runner.conf

    return Path(runner.conf.__file__).parent


def search_path(config_dirs: Sequence[Path] = ()) -> list[Path]:
    """Folders that are searched for configs: the package's, then ``--config-dir``, then ``RUNNER_CONFIG_PATH``."""
    asked = [(Path(folder), "--config-dir") for folder in config_dirs]
    variable = os.environ.get(CONFIG_PATH_VARIABLE, "")
    asked += [(Path(folder), CONFIG_PATH_VARIABLE) for folder in variable.split(os.pathsep) if folder]
    folders = [package_conf()]
    for folder, source in asked:
        if not folder.expanduser().is_dir():
            raise UserError(f"config folder '{folder}' does not exist (set by {source})")
        if (found := folder.expanduser().resolve()) not in folders:
            folders.append(found)
    return folders


def groups(path: Sequence[Path]) -> list[str]:
    """The config groups that a choice can be made from (``group=choice``)."""
    return sorted(
        {
            entry.name
            for folder in path
            for entry in os.scandir(folder)
            if entry.is_dir() and entry.name[0] not in "._" and entry.name not in ("recommended", "table")
        }
    )


def choices(group: str, path: Sequence[Path]) -> dict[str, Path]:
    """Name -> YAML file of everything in a group, by name; the first folder of the search path wins."""
    found: dict[str, Path] = {}
    for folder in path:
        base = folder / group
        for file in sorted(base.rglob("*.yaml")):
            found.setdefault(file.relative_to(base).with_suffix("").as_posix(), file)
    return dict(sorted(found.items()))


def choice_file(group: str, name: str, path: Sequence[Path]) -> Path | None:
    """The YAML file of one choice, without reading the folders."""
    files = (folder / group / f"{name}.yaml" for folder in path)
    return next((file for file in files if file.is_file()), None)


def unknown_choice(group: str, name: str, path: Sequence[Path], where: str = "") -> UserError:
    """The error for a name that a group does not have."""
    plural = PLURALS.get(group)
    see = f"  `runner list {plural}` shows all" if plural else ""
    return UserError(f"unknown {group} '{name}'{where}; {did_you_mean(name, choices(group, path))}{see}")


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file as plain containers; a file that is not a mapping is refused."""
    import yaml

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _loader())
    except yaml.MarkedYAMLError as error:
        raise invalid_yaml(file, error) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{display(file)}: cannot be read: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{display(file)}: expected a mapping of keys to values")
    return content or {}


@cache
def _loader() -> type:
    """The C loader, with OmegaConf's reading of scalars: 1e-4 is a number, a date is text."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [item for item in resolvers if item[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    exponent = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return Loader


def invalid_yaml(file: Path, error: Any) -> UserError:
    """The message for a yaml.MarkedYAMLError."""
    line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return UserError(f"{display(file)}{line}: not valid YAML: {error.problem}")


def display(file: Path) -> str:
    """How messages name a config file: conf/... for the package's own, the path for a user's."""
    base = package_conf()
    return f"conf/{file.relative_to(base).as_posix()}" if file.is_relative_to(base) else str(file)


def comment(file: Path) -> str:
    """The first comment line of a YAML file, which says what it is; empty if there is none."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"#\s*@(package|override)\b", line):
            return line.lstrip("# ").strip()
    return ""


def header_choices(file: Path) -> dict[str, str]:
    """Group -> name of the lines '# @override group=name' in a file's first comment."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if match := re.fullmatch(r"#\s*@override\s+([\w/]+)=([\w./-]+)\s*", line):
            found[match[1]] = match[2]
    return found


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping counts as a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def default_choices(content: dict[str, Any]) -> dict[str, str]:
    """Group -> name from the defaults list of a config (plain or ``override /group: name`` entries)."""
    found: dict[str, str] = {}
    for entry in content.get("defaults") or []:
        if isinstance(entry, dict):
            for key, value in entry.items():
                words = str(key).split()
                if "optional" not in words and isinstance(value, str):
                    found[words[-1].lstrip("/").partition("@")[0]] = value
    return found


def brought_along(overrides: Sequence[str], path: Sequence[Path]) -> list[str]:
    """Choices that a method's settings for a scale, and before them its data set, bring along by a line
    '# @override group=name'; the command line wins. (Hydra allows no overrides in what an interpolation names.)"""
    asked = {key: value.strip() for key, _, value in (word.partition("=") for word in overrides)}
    chosen = {**default_choices(read_yaml(package_conf() / "config.yaml")), **asked}
    method = choice_file("method", chosen["method"], path)
    if method is not None:
        chosen |= {**default_choices(read_yaml(method)), **asked}
    found: dict[str, str] = {}
    for group, name in ((f"recommended/{chosen['method']}", chosen["scale"]), ("dataset", chosen["dataset"])):
        file = choice_file(group, name, path)
        found |= header_choices(file) if file is not None else {}
    return [f"{group}={name}" for group, name in found.items() if group not in asked]


def outline(overrides: Sequence[str], path: Sequence[Path]) -> tuple[dict[str, Any], bool]:
    """The keys of the config that a command line leads to, from the YAML files alone, and whether they are all there.

    Good enough to complete and to refuse keys, at a tenth of the cost of Hydra. Not all are there when a file composes
    further ones, has another package, or when the command line adds choices. Values are those of the last file read.
    """
    overrides = [*brought_along(overrides, path), *overrides]
    tree = read_yaml(package_conf() / "config.yaml")
    chosen = default_choices(tree)
    exact = all(word[:1] not in "+~" for word in overrides)
    asked = dict(word.split("=", 1) for word in overrides if "=" in word)
    asked = {group: name for group, name in asked.items() if group in groups(path)}
    exact &= set(asked) <= set(chosen)
    method_file = choice_file("method", asked.get("method", chosen["method"]), path)
    chosen |= default_choices(read_yaml(method_file)) if method_file else {}
    chosen |= asked
    tree.pop("defaults")
    for group, name in chosen.items():
        exact &= _place(tree, group, name, group, path)
    method, recipe, dataset, scale = (chosen[group] for group in ("method", "recipe", "dataset", "scale"))
    for overlay, name in (
        (f"constants/{method}", recipe),
        (method, scale),
        (f"recipe/{recipe}", scale),
        (f"dataset/{dataset}/{method}", scale),
    ):
        exact &= _place(tree, f"recommended/{overlay}", name, "", path)
    for name in foreign_settings(chosen, path):
        tree["dataset"].pop(name, None)
    return tree, exact


def foreign_settings(chosen: Mapping[str, str], path: Sequence[Path]) -> set[str]:
    """What the chosen scale and method say of data sets (a validation part) and the chosen one has no setting for."""
    files = [choice_file(group, chosen[group], path) for group in ("scale", "method", "dataset")]
    if None in files:
        return set()
    scale, method, dataset = map(read_yaml, files)
    return {**(scale.get("dataset") or {}), **(method.get("dataset") or {})}.keys() - set(dataset)


def _place(tree: dict[str, Any], group: str, name: str, package: str, path: Sequence[Path]) -> bool:
    """Merges a choice and what its defaults list includes into ``tree`` under ``package``; whether that was all."""
    file = choice_file(group, name, path)
    if file is None:
        return group.startswith("recommended/")
    content = read_yaml(file)
    header = re.match(r"#\s*@package\s+(\S+)", file.read_text(encoding="utf-8"))
    package = "" if header else package
    exact = header is None or header[1] == "_global_"
    for entry in content.pop("defaults", None) or []:
        for key, value in entry.items() if isinstance(entry, dict) else [(entry, None)]:
            if key.startswith("override /"):  # ``default_choices`` has read it
                exact &= "@" not in key or "@_global_." in key
            elif value is not None and key.startswith("/") and "@" in key and "$" not in str(value):
                inner, _, where = key.lstrip("/").partition("@")
                if where.startswith("_global_"):
                    where = where.removeprefix("_global_").lstrip(".")
                else:
                    where = ".".join(filter(None, [package, where.removeprefix("_here_")]))
                exact &= _place(tree, inner, str(value), where, path)
            else:
                exact &= key == "_self_"
    for word in reversed(package.split(".") if package else []):
        content = {word: content}
    _merge(tree, content)
    return exact


def _merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


@dataclass(frozen=True, kw_only=True)
class Description:
    """A method as its YAML and the head of its class say it; texts are empty where the class declares nothing."""

    name: str
    config: Path
    target: str
    source: Path | None  # the file of the class; None if it cannot be found without importing anything
    family: str
    title: str = ""
    paper: str = ""
    fidelity: str = ""  # official | paper | reconstruction
    claim: str = ""
    citation: str = ""
    deviations: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    model: tuple[str, ...] = ()


def methods(path: Sequence[Path]) -> dict[str, Path]:
    """Name -> YAML file of every method."""
    return choices("method", path)


def describe(name: str, path: Sequence[Path]) -> Description:
    """What a method says about itself, without importing its module.

    Raises UserError for an unknown name and for a YAML file without a target.
    """
    file = choice_file("method", name, path)
    if file is None:
        raise unknown_choice("method", name, path)
    section = read_yaml(file).get("method")
    target = section.get("target") if isinstance(section, dict) else None
    if not isinstance(target, str) or target.count(":") != 1:
        raise UserError(f"{display(file)}: method.target must be package.module:Class, got {target!r}")
    module, _, class_name = target.partition(":")
    parts = module.split(".")
    source = source_file(module)
    texts = class_head(source.read_text(encoding="utf-8"), class_name) if source else {}
    family = parts[-2] if len(parts) > 1 else parts[0]
    return Description(name=name, config=file, target=target, source=source, family=family, **texts)


def source_file(module: str) -> Path | None:
    """The file of a module, found by path from its top-level package; nothing is imported."""
    top, *rest = module.split(".")
    if top in sys.modules and hasattr(sys.modules[top], "__path__"):
        folders, origin = list(sys.modules[top].__path__), sys.modules[top].__file__
    else:
        spec = find_top_level(top)
        if spec is None:
            return None
        folders, origin = list(spec.submodule_search_locations or []), spec.origin
    if not rest:
        return Path(origin) if origin else None
    for folder in folders:
        stem = Path(folder).joinpath(*rest)
        for file in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


def find_top_level(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a top-level package; the working directory is looked in last, for a user's own package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    return spec or importlib.machinery.PathFinder.find_spec(name, [str(Path.cwd())])


TEXTS = ("paper", "fidelity", "claim", "citation")
LISTS = ("deviations", "data", "model")


_HEAD_END = re.compile(r"^(?:    (?:async )?def |    @|[^\s#)])", re.MULTILINE)


def class_head(source: str, class_name: str) -> dict[str, Any]:
    """Title and declared texts of a class, parsed from its head: everything before its first function."""
    start = re.search(rf"^class {re.escape(class_name)}\b", source, re.MULTILINE)
    if start is None:
        return {}
    end = _HEAD_END.search(source, start.end())
    try:
        (head,) = ast.parse(source[start.start() : end.start() if end else None]).body
    except SyntaxError:  # the cut went through a text or a class without attributes: read the whole file
        try:
            nodes = ast.parse(source).body
        except SyntaxError:
            return {}
        head = next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == class_name)
    found: dict[str, Any] = {}
    if docstring := ast.get_docstring(head):
        found["title"] = docstring.splitlines()[0].strip()
    for node in head.body:
        name = node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        if name in (*TEXTS, *LISTS) and node.value is not None and (name in TEXTS or _is_class_variable(node)):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                continue
            found[name] = tuple(value) if name in LISTS and not isinstance(value, str) else value
    return found


def _is_class_variable(node: ast.stmt) -> bool:
    # `model` and `data` could also be a field of the method; only the declaration on the class counts
    return isinstance(node, ast.Assign) or "ClassVar" in ast.unparse(node.annotation)
