"""From override strings to one plain config, by Hydra's compose API; every mistake becomes one UserError."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import registry
from runner.defaults import SiteDefaults, site_defaults
from runner.errors import ON_COMMAND_LINE, UserError, did_you_mean, nearest

# Hydra's own keys that mean something here; folders and logging are the runner's business.
HYDRA_PREFIXES = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")
LABELS = ("method.name", "scale.name", "recipe.name")  # results are filed under these; they are what was chosen
# the last of config.yaml first
OVERLAYS = ("recommended/dataset", "recommended/recipe", "recommended", "recommended/constants")
COMMAND_LINE = f" (set {ON_COMMAND_LINE})"
_OVERRIDE = re.compile(
    r"(?P<sign>\+\+|\+|~)?(?P<key>\w[\w$-]*(?:[./]\w[\w$-]*)*)(?P<package>@[^=]*)?(?:=(?P<value>.*))?", re.DOTALL
)


@dataclass
class Composed:
    """A composed config. ``config`` is plain (dict, list, str, numbers, None) with interpolations resolved."""

    config: dict[str, Any]
    overrides: list[str]
    choices: dict[str, str]  # group -> name
    search_path: list[Path]
    node: Any = field(repr=False)  # the OmegaConf node, interpolations unresolved
    site: SiteDefaults = field(default_factory=SiteDefaults)  # the values of the defaults file that are in force

    def origin(self, key: str) -> str:
        """Where the value of a dotted key was set: 'on the command line' or 'in FILE'."""
        if any(f"{name}.".startswith(f"{key}.") for name in self.site.values):
            return f"in {self.site.file}"
        return _origin(key, self.overrides, self.choices, self.search_path)

    def to_yaml(self, *, resolve: bool = False, package: str | None = None) -> str:
        """The config, or the part under the dotted key ``package``, as YAML text."""
        from omegaconf import OmegaConf

        node = self.node
        if package:
            node = OmegaConf.select(node, package)
            if node is None:
                raise _unknown_key(package, _keys(OmegaConf.to_container(self.node)))
            if not OmegaConf.is_config(node):
                return f"{node}\n"
        return OmegaConf.to_yaml(node, resolve=resolve)


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[Path] = ()) -> Composed:
    """Compose the config of one run from Hydra overrides.

    ``config_dirs`` are searched after the package's own conf/ (then RUNNER_CONFIG_PATH). Raises UserError for
    anything wrong in the overrides or in a config file.
    """
    path = registry.search_path(config_dirs)
    overrides = _role_choices(overrides, path)
    _check_words(overrides, path)
    given, overrides = overrides, [*registry.brought_along(overrides, path), *overrides]
    _check_keys(overrides, path)
    cfg = hydra_compose(overrides, path)

    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    chosen = {k: v for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra/") and v is not None}
    with open_dict(cfg):
        del cfg["hydra"]
    _check_files(cfg, chosen, path)
    _without_foreign(cfg, chosen, overrides, path)
    site = site_defaults(path)
    site = SiteDefaults(site.file, site.applying(OmegaConf.to_container(cfg), overrides, path))
    for key, value in site.values.items():
        OmegaConf.update(cfg, key, value)
    composed = Composed(config={}, overrides=given, choices=chosen, search_path=path, node=cfg, site=site)
    try:
        composed.config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = _set_with_missing_name(error, overrides) or getattr(error, "full_key", None) or ""
        where = f" (set {composed.origin(key)})" if key else ""
        if type(error).__name__ == "MissingMandatoryValue":
            raise UserError(f"{key} has no value: add {key}=VALUE to the command line{where}") from None
        # OmegaConf reports a resolver's own exception as 'KeyError raised while resolving interpolation: "..."'
        reason = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", _first_line(error))
        raise UserError(f"{key}: {reason}{where}") from None
    return composed


def _set_with_missing_name(error: Exception, overrides: Sequence[str]) -> str | None:
    """The key of the override that names what an interpolation does not find; others may only refer to that key."""
    missing = re.search(r"Interpolation key '([^']+)' not found", str(error))
    words = [word for word in overrides if missing and "${" + missing[1] in word]
    return words[0].partition("=")[0].lstrip("+") if words else None


def _role_choices(overrides: Sequence[str], path: Sequence[Path]) -> list[str]:
    """Write teacher.model=NAME as Hydra does, model@teacher.model=NAME, for the networks that the chosen method starts
    from; their recipe likewise, and the data set where the network is the role's own."""
    words = [re.fullmatch(r"(?P<role>\w+)\.(?P<group>model|recipe|dataset)=(?P<name>[\w./-]+)", w) for w in overrides]
    if not any(words):
        return list(overrides)
    asked = [word.partition("=")[2] for word in overrides if word.startswith("method=")]
    file = registry.choice_file("method", asked[-1] if asked else _default_groups()["method"], path)
    entries = registry.read_yaml(file).get("defaults") or [] if file else []
    packages = {key.lstrip("/") for entry in entries if isinstance(entry, dict) for key in entry}
    written = []
    for override, word in zip(overrides, words, strict=True):
        choice = f"{word['group']}@{word['role']}.{word['group']}" if word else ""
        if word and {choice, f"model@{word['role']}.model"} & packages:
            override = f"{'' if choice in packages else '+'}{choice}={word['name']}"
        written.append(override)
    return written


def _check_words(overrides: Iterable[str], path: Sequence[Path]) -> None:
    """What can be refused before Hydra is imported: words that are no overrides, unknown choices, Hydra's own keys."""
    groups = registry.groups(path)
    defaults = _default_groups()
    for word in overrides:
        match = _OVERRIDE.fullmatch(word)
        if match is None or (match["value"] is None and match["sign"] != "~"):
            raise UserError(f"'{word}' is not an override: expected key=value or group=name{COMMAND_LINE}")
        key, value = match["key"], match["value"]
        if key.startswith(("hydra.", "hydra/")) or key == "hydra":
            _check_hydra_key(key)
        elif key in LABELS:
            group = key.partition(".")[0]
            raise UserError(f"'{word}': {key} says what was run and follows the choice {group}=NAME{COMMAND_LINE}")
        elif key in groups and match["sign"] != "~":
            name = value.strip()
            if not name or name[0] == "[" or (name in ("null", "None", "???") and key in defaults):
                known = registry.choices(key, path)
                names = ", ".join(known) if len(known) <= 12 else f"`runner list {registry.PLURALS.get(key, key)}`"
                raise UserError(f"'{word}' names no {key}{COMMAND_LINE}; choose one of: {names}")
            plain = re.fullmatch(r"[\w./-]+", name)
            if plain and name != "null" and not registry.choice_file(key, name, path):
                raise registry.unknown_choice(key, name, path, COMMAND_LINE)
        elif key in groups and key in defaults:
            raise UserError(f"'{word}': a run needs a {key}; choose another with {key}=NAME{COMMAND_LINE}")


def _check_keys(overrides: Sequence[str], path: Sequence[Path]) -> None:
    """Refuse an unknown key before Hydra is imported, where the files alone are sure to have all keys."""
    tree, exact = registry.outline(overrides, path)
    if not exact:
        return
    groups = registry.groups(path)
    valid = _keys(tree)
    for word in overrides:
        key = word.partition("=")[0]
        if "@" not in key and not key.startswith("hydra") and key not in groups and key not in valid:
            raise _unknown_key(key, valid, groups, word)


def _default_groups() -> dict[str, str]:
    """Group -> choice that every run has, from the package's config.yaml."""
    return registry.default_choices(registry.read_yaml(registry.package_conf() / "config.yaml"))


def _check_hydra_key(key: str) -> None:
    if key.startswith(HYDRA_PREFIXES):
        return
    if key == "hydra.searchpath":
        raise UserError(f"hydra.searchpath is not used here: add config folders with --config-dir DIR{COMMAND_LINE}")
    from hydra.conf import HydraConf
    from omegaconf import OmegaConf

    known = _keys(OmegaConf.to_container(OmegaConf.structured(HydraConf)), "hydra.")
    if key in known or key.partition("/")[2] in ("job_logging", "hydra_logging", "help", "output", "env"):
        raise UserError(
            f"'{key}' has no effect here: paths.runs=DIR moves the run folders, their names are keys{COMMAND_LINE}"
        )
    raise _unknown_key(key.replace("/", "."), known, word=key)


def hydra_compose(overrides: list[str], path: Sequence[Path]) -> Any:
    """Hydra's composed node, its ``hydra`` section included."""
    from hydra import compose as compose_node
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    quoted = ",".join('"file://{}"'.format(str(folder).replace('"', '\\"')) for folder in path[1:])
    extra = [f"hydra.searchpath=[{quoted}]"] if quoted else []

    def composed(words: list[str]) -> Any:
        state = GlobalHydra.instance()
        outer, state.hydra = state.hydra, None  # of a user's Hydra application that calls runner.run
        try:
            with initialize_config_dir(str(path[0]), version_base="1.3"):
                return compose_node("config", [*extra, *words], return_hydra_config=True)
        finally:
            GlobalHydra.instance().hydra = outer  # leaving the context made a new instance

    try:
        return composed(overrides)
    except OverrideParseException as error:
        lines = [line for line in str(error).splitlines() if not line.startswith(("Error parsing override", "See "))]
        reason = f"{lines[0]}; " if lines and not lines[0].startswith("Lexer") else ""
        cure = f"text with special characters needs quotes: \"{error.override.partition('=')[0]}='...'\""
        raise UserError(f"malformed override {error.override}: {reason}{cure}{COMMAND_LINE}") from None
    except Exception as error:  # Hydra meets odd overrides with TypeError, AttributeError and the like, too
        problem = error
    # Which override it was: compose the choices alone, then look every other key up in what they give.
    parsed, groups = _parse(overrides), registry.groups(path)
    for override in parsed:
        if override.is_sweep_override():
            key = override.key_or_group
            cure = "" if key in groups else f", or write a list as {key}=[...]"
            raise UserError(
                f"'{override.input_line}' is a sweep: add -m to run every value{cure}{COMMAND_LINE}"
            ) from None
    choices = [o.input_line for o in parsed if o.key_or_group in groups or o.key_or_group.startswith("hydra/")]
    for override in parsed:
        if override.is_add() and override.key_or_group in _default_groups():
            raise UserError(f"write {override.input_line[1:]} without +: every run has a {override.key_or_group}")
    try:
        base = composed(choices)
    except Exception as error:
        raise _file_problem(error, choices, path) from None
    valid = _keys(OmegaConf.to_container(base))
    for override in parsed:
        if override.input_line in choices:
            continue
        key = override.key_or_group
        if isinstance(override.value(), dict) and not override.is_add():
            inner = [f"{key}.{name}" for name, _ in registry.flatten(override.value())]
            key = next((name for name in inner if name not in valid), key)
        if override.is_add() and key in valid:
            raise UserError(f"'{key}' exists already: write {override.input_line.lstrip('+')} without +{COMMAND_LINE}")
        if not (override.is_add() or override.is_force_add()) and key not in valid:
            raise _unknown_key(key, valid, groups, override.input_line)
        try:
            composed([*choices, override.input_line])
        except Exception as error:
            raise UserError(f"'{override.input_line}': {_first_line(error)}{COMMAND_LINE}") from None
    raise UserError(_first_line(problem))


def _parse(overrides: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(overrides)


def _file_problem(error: Exception, choices: list[str], path: Sequence[Path]) -> UserError:
    """The message for a config file that Hydra cannot compose, after our own reader has looked at the files."""
    from yaml import MarkedYAMLError

    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return registry.invalid_yaml(Path(error.problem_mark.name), error)
    for word in choices:
        group, _, name = word.lstrip("+").partition("=")
        if group.startswith("hydra/"):
            return UserError(f"'{word}': no such {group}; is its plug-in installed?{COMMAND_LINE}")
        for folder in path:
            file = folder / group / f"{name}.yaml"
            if file.is_file():
                registry.read_yaml(file)
                for other, choice in registry.default_choices(registry.read_yaml(file)).items():
                    if other in registry.groups(path) and not registry.choice_file(other, choice, path):
                        return registry.unknown_choice(other, choice, path, f" (set in {registry.display(file)})")
    for folder in path:
        for file in sorted(folder.rglob("*.yaml")):
            registry.read_yaml(file)
    return UserError(f"the config cannot be composed: {_first_line(error)}")


def _check_files(cfg: Any, chosen: dict[str, str], path: Sequence[Path]) -> None:
    """Two files of one name (Hydra takes the first silently), and a file that calls itself by another name."""
    for group, name in chosen.items():
        relative = f"{group.partition('@')[0]}/{name}.yaml"
        files = [folder / relative for folder in path if (folder / relative).is_file()]
        if len(files) > 1:
            raise UserError(f"{files[1]} has the name of {registry.display(files[0])}: rename yours")
        if files and f"{group}.name" in LABELS and cfg.get(group, {}).get("name") != name:
            raise UserError(f"{registry.display(files[0])}: {group}.name must be '{name}', as the file is called")


def _without_foreign(cfg: Any, chosen: dict[str, str], overrides: Iterable[str], path: Sequence[Path]) -> None:
    """Leaves out what no choice of the user's asks for: a scale's words on settings that the data set does not have."""
    from omegaconf import open_dict

    set_here = {word.lstrip("+").partition("=")[0] for word in overrides}
    with open_dict(cfg):
        for name in registry.foreign_settings(chosen, path):
            if f"dataset.{name}" not in set_here:
                cfg.dataset.pop(name, None)


def _keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything in a tree, mappings included."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            found |= _keys(value, f"{prefix}{key}.")
    return found


def _unknown_key(key: str, valid: dict[str, Any], groups: Iterable[str] = (), word: str = "") -> UserError:
    """Nearest keys: the same last words below another section first, then the same section, then any."""
    where = COMMAND_LINE if word else ""
    section, _, last = key.rpartition(".")
    if word and valid.get(section) == {}:  # an open mapping such as model.arguments
        return UserError(f"'{key}' is new in {section}: write +{word}{where}")
    names = list(dict.fromkeys([*valid, *groups]))
    close = [name for name in names if name.endswith(f".{key}")]
    if not close:
        siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
        close = [siblings[name] for name in nearest(last, siblings, count=1)]
        if section and not close and siblings and len(siblings) <= 12:
            return UserError(f"unknown key '{key}'{where}; keys of {section}: {', '.join(sorted(siblings))}")
    if not close:
        close = [name for name in names if name.endswith(f".{last}")][:3]
    if not close:
        ends = {name.rpartition(".")[2]: name for name in names}
        close = [ends[name] for name in difflib.get_close_matches(last, ends, n=1, cutoff=0.75)]
    hint = f"did you mean {' or '.join(close)}?" if close else did_you_mean(key, names)
    return UserError(f"unknown key '{key}'{where}; {hint}  `runner --cfg job` shows all")


def _origin(key: str, overrides: Iterable[str], choices: dict[str, str], path: Sequence[Path]) -> str:
    for word in overrides:
        match = _OVERRIDE.fullmatch(word)
        if match and match["key"] not in choices and (f"{key}.".startswith(f"{match['key']}.")):
            return ON_COMMAND_LINE
    section, _, rest = key.partition(".")
    overlays = [f"{group}/{choices.get(f'{group}@_global_')}" for group in OVERLAYS]
    candidates = [(overlay, key) for overlay in overlays] + [(f"method/{choices.get('method')}", key)]
    candidates += [(f"{section}/{choices.get(section)}", rest), ("config", key)]
    for relative, inner in candidates:
        for folder in path:
            file = folder / f"{relative}.yaml"
            if file.is_file() and _has_key(registry.read_yaml(file), inner):
                return f"in {registry.display(file)}"
    below = any(word.lstrip("+").startswith(f"{key}.") for word in overrides)
    return ON_COMMAND_LINE if below else "in a config file"


def _has_key(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _first_line(error: BaseException) -> str:
    """The first line of an exception that says something; Hydra wraps OmegaConf's errors in empty ones."""
    while not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__
    cause = error.__cause__
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if text.startswith("Error merging override") and cause is not None:
        text = str(cause).strip().splitlines()[0]
    return text
