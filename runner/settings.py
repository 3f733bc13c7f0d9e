"""Typed settings out of a composed config: the sections of runner.schema, and a method's own dataclass."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from runner import registry, schema
from runner.errors import UserError, did_you_mean

Origin = Callable[[str], str]  # dotted key -> 'on the command line' or 'in FILE' (runner.compose.Composed.origin)


@dataclass(kw_only=True)
class Role:
    """A trained network that a method starts from: a top-level section under any name, with the run's own values for
    what it leaves out."""

    seed: schema.Seed = 0
    seeds: schema.Seeds = None
    recipe: schema.Recipe = None  # absent is allowed, null is not: defaults are not checked
    model: schema.ModelSettings = None
    dataset: schema.AnyDataset = None


ROLE_KEYS = frozenset(item.name for item in dataclasses.fields(Role))


def roles(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> section of the trained networks that a config describes."""
    names = {item.name for item in dataclasses.fields(Settings)}
    return {name: value for name, value in config.items() if name not in names and isinstance(value, dict)}


@dataclass(kw_only=True)
class Settings:
    """All of a config but the method's own section, which ``build_method`` checks against the method's class."""

    model: schema.ModelSettings
    dataset: schema.AnyDataset  # of its kind
    recipe: schema.Recipe
    scale: schema.Scale
    hardware: schema.Hardware
    tracking: schema.Tracking
    paths: schema.Paths
    checkpoint: schema.Checkpoint
    seed: schema.Seed
    precision: Literal["float32", "bfloat16"]
    force: bool
    allow_code_change: bool
    offline: bool
    debug: bool = False
    profile: bool = False
    retries: schema.NotNegative = 0
    fail_fast: bool = False
    stop_after: schema.NotNegative = 3
    seeds: schema.Seeds = field(default_factory=schema.Seeds)
    method: dict[str, Any] = field(default_factory=dict)


def validate(config: dict[str, Any], origin: Origin | None = None) -> Settings:
    """Check every section but ``method`` by type and range; unknown keys are refused.

    Whole numbers are accepted where a float is meant, nothing else is converted. Another top-level section must
    describe a trained network (``Role``). Raises UserError.
    """
    names = {item.name for item in dataclasses.fields(Settings)}
    known = {key: value for key, value in config.items() if key in names}
    settings = _with_dataset(Settings, known, "", origin)  # first: the sections of networks refer to its values
    for key, value in config.items():
        if key not in names:
            if not isinstance(value, dict) or not ROLE_KEYS & set(value):
                raise _unknown(key, key, names, origin)
            _with_dataset(Role, value, key, origin)
    return settings


def _with_dataset(cls: type, values: dict[str, Any], prefix: str, origin: Origin | None) -> Any:
    """``build``, where the section ``dataset`` is checked as what its kind has."""
    section = values.get("dataset")
    if not isinstance(section, dict):
        return build(cls, values, prefix, origin)
    built = build(cls, values | {"dataset": {"name": "", "path": None}}, prefix, origin)
    built.dataset = build_section("dataset", section, origin, prefix=prefix)
    return built


def build_section(name: str, values: dict[str, Any], origin: Origin | None = None, *, prefix: str = "") -> Any:
    """One section of runner.schema.SECTIONS from plain values. Raises UserError."""
    cls = schema.SECTIONS[name]
    if name == "dataset":
        from runner.datasets import settings_class

        cls = settings_class(values.get("name"))
    return build(cls, values, f"{prefix}.{name}" if prefix else name, origin)


def build_method(config: dict[str, Any], method_class: type, origin: Origin | None = None) -> Any:
    """The method's dataclass from ``config["method"]`` (without name and target).

    Nested dataclasses, Literal, Optional, lists and ranges (``Annotated[..., Field(gt=0)]``) are checked by their
    annotations; a ValueError from ``__post_init__`` is reported with the key path. Raises UserError.
    """
    values = {key: value for key, value in config["method"].items() if key not in ("name", "target")}
    return build(method_class, values, "method", origin)


def load_target(target: str, key: str = "method.target") -> Any:
    """The object of ``package.module:Name``. Raises UserError naming the key when it cannot be had."""
    module_name, _, name = target.partition(":")
    if not re.fullmatch(r"[\w.]+:[\w.]+", target):
        raise UserError(f"{key}: expected package.module:Name, got '{target}'")
    top = module_name.partition(".")[0]
    if top not in sys.modules and (spec := registry.find_top_level(top)) is not None and spec.origin:
        folder = Path(spec.origin).parent.parent if spec.submodule_search_locations else Path(spec.origin).parent
        if folder == Path.cwd() and str(folder) not in sys.path:
            sys.path.append(str(folder))  # a user's package beside the working directory, as with `python -m`
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(_missing_module(key, target, module_name, error.name or "")) from None
    except Exception as error:
        raise UserError(f"{key}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [word for word in vars(found) if not word.startswith("_")]
            raise UserError(f"{key}: {module_name} has no '{name}'; {did_you_mean(part, public)}")
        found = getattr(found, part)
    return found


def _missing_module(key: str, target: str, module_name: str, missing: str) -> str:
    if module_name == missing or module_name.startswith(f"{missing}."):
        return f"{key}: no module '{missing}' (for '{target}'): install its package or start in the folder that has it"
    if missing.partition(".")[0] == module_name.partition(".")[0]:
        return f"{key}: importing {module_name} fails: it has no module '{missing}'"
    source = registry.source_file(module_name)
    extra = (
        re.search(r"^EXTRA = [\"']([\w-]+)[\"']", source.read_text(encoding="utf-8"), re.MULTILINE) if source else None
    )
    cure = f"pip install 'paper-runner[{extra[1]}]'" if extra else f"pip install {missing.partition('.')[0]}"
    return f"{key}: {module_name} needs '{missing}', which is not installed: {cure}"


def build(cls: type, values: dict[str, Any], prefix: str, origin: Origin | None) -> Any:
    """A dataclass from plain values, checked by its annotations. Raises UserError naming the key below ``prefix``."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import to_json

    _check_keys(cls, values, prefix, origin)
    try:
        # JSON is where pydantic's strict mode means what we want: mappings become dataclasses, lists tuples,
        # whole numbers floats, and nothing else is converted.
        return TypeAdapter(cls).validate_json(to_json(values, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise UserError(_message(cls, values, prefix, problems, origin)) from None


def _check_keys(annotation: Any, value: Any, path: str, origin: Origin | None) -> None:
    item = _item(annotation)
    if item is not None and isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_keys(item, inner, f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]", origin)
    for cls in _dataclasses(annotation):
        if not isinstance(value, dict):
            continue
        hints = get_type_hints(cls, include_extras=True)
        names = {item.name for item in dataclasses.fields(cls) if item.init}
        for key, inner in value.items():
            full = f"{path}.{key}" if path else str(key)
            if key not in names:
                raise _unknown(str(key), full, names, origin)
            _check_keys(hints[key], inner, full, origin)


def _dataclasses(annotation: Any) -> list[type]:
    if dataclasses.is_dataclass(annotation):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [cls for inner in get_args(annotation) for cls in _dataclasses(inner)][:1]
    return []


def _item(annotation: Any) -> Any:
    """What a list or a mapping holds; None for anything else."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, types.UnionType):
        return next((found for inner in arguments if (found := _item(inner)) is not None), None)
    return arguments[-1] if origin in (list, dict) and arguments else None


def _unknown(key: str, full: str, valid: set[str], origin: Origin | None) -> UserError:
    return UserError(f"unknown key '{full}'{_where(full, origin)}; {did_you_mean(key, valid)}")


def _where(key: str, origin: Origin | None) -> str:
    return f" (set {origin(key)})" if origin else ""


def _message(cls: type, values: Any, prefix: str, problems: list[Any], origin: Origin | None) -> str:
    first = problems[0]
    annotation, value, words = cls, values, [prefix] if prefix else []
    depth = 0
    for part in first["loc"]:
        inner = _inner(annotation, part)
        if inner is None:
            break
        depth += 1
        annotation = inner
        words.append(f"[{part}]" if isinstance(part, int) else part)
        value = value.get(part) if isinstance(value, dict) else value[part]
    key = ".".join(words).replace(".[", "[")
    others = len({problem["loc"][:depth] for problem in problems}) - 1  # each kind that a value may have adds one
    more = f" (and {others} more like it)" if others else ""
    if first["type"] == "missing":
        return f"{key}: no value is set; expected {expectation(annotation)}{more}"
    if first["type"] in ("value_error", "assertion_error"):
        return f"{key}: {first['ctx']['error']}{_where(key, origin)}{more}"
    return f"{key}: expected {expectation(annotation)}, got {_shown(value)}{_where(key, origin)}{more}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _inner(annotation: Any, part: str | int) -> Any:
    """The annotation one step down a validation path; None where the path leaves the annotations (union branches)."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return get_type_hints(annotation, include_extras=True).get(part)
    if origin in (Annotated, Union, types.UnionType):
        return next((found for item in arguments if (found := _inner(item, part)) is not None), None)
    if origin in (list, tuple) and isinstance(part, int):
        return arguments[0] if arguments else Any
    if origin is dict:
        return arguments[1]
    return None


_PLAIN = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    Any: "a value",
}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def expectation(annotation: Any) -> str:
    """An annotation in words, such as 'an integer > 0 or null'."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metadata = [part for item in arguments[1:] for part in getattr(item, "metadata", [item])]
        if arguments[0] is str and any(getattr(part, "min_length", 0) for part in metadata):
            return "a text that is not empty"
        bounds = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in _BOUNDS.items() if hasattr(m, name)]
        return " ".join([expectation(arguments[0]), " and ".join(bounds)]).strip()
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(expectation(item) for item in arguments)
    if origin in (list, tuple, set) or annotation in (list, tuple, set):
        return (
            f"a list of {expectation(arguments[0]).partition(' ')[2]}s"
            if arguments and arguments[0] in _PLAIN
            else "a list"
        )
    if origin is dict or annotation is dict or dataclasses.is_dataclass(annotation):
        return "a mapping of keys to values"
    return getattr(annotation, "__name__", str(annotation))
