"""runner completion bash|zsh|fish

Prints a script for tab completion. To use it now and in every new shell:
  bash  echo 'eval "$(runner completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(runner completion zsh)"' >> ~/.zshrc      (after compinit)
  fish  runner completion fish > ~/.config/fish/completions/runner.fish
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner import registry
from runner.errors import UserError

BASH = r"""
_runner_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n'
    local word="${line##*[[:space:]]}"
    COMPREPLY=( $(runner completion words "$line" 2>/dev/null) )
    # readline cuts words at '=': give back only what follows it
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=( "${COMPREPLY[@]#"${word%"${word##*=}"}"}" )
    fi
    if [[ ${#COMPREPLY[@]} -gt 0 && "${COMPREPLY[0]}" == *[=.] ]]; then compopt -o nospace; fi
}
complete -o default -F _runner_complete runner
"""

ZSH = r"""
_runner_complete() {
    local -a found open closed
    found=(${(f)"$(runner completion words "$LBUFFER" 2>/dev/null)"})
    open=(${(M)found:#*[=.]})
    closed=(${found:#*[=.]})
    compadd -S '' -- $open
    compadd -- $closed
    (( $#found )) || _files
}
compdef _runner_complete runner
"""

FISH = r"""
complete -c runner -f -a '(runner completion words (commandline -cp) 2>/dev/null)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
OPTIONS = ("--cfg", "--config-dir", "--help", "--multirun", "--package", "--resolve", "--version")


def main(arguments: Sequence[str], config_dirs: Sequence[Path]) -> int:
    if len(arguments) == 2 and arguments[0] == "words":
        print("\n".join(words(arguments[1], config_dirs)))
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        got = f"'{' '.join(arguments)}'" if arguments else "nothing"
        raise UserError(f"completion: expected bash, zsh or fish, got {got}")
    print(SCRIPTS[arguments[0]].strip())
    return 0


def words(line: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """What the last word of a command line can become; ``line`` is the text up to the cursor."""
    try:
        parts = shlex.split(line)
    except ValueError:  # an open quote
        parts = line.split()
    last = parts.pop() if parts and not line[-1].isspace() else ""
    before = parts[1:]
    dirs = [*config_dirs, *(Path(b) for a, b in pairwise(before) if a == "--config-dir")]
    path = registry.search_path([folder for folder in dirs if folder.is_dir()])
    if before and before[-1] in ("--config-dir", "--package"):
        return []
    return sorted(word for word in _candidates(before, last, path) if word.startswith(last))


def _candidates(before: list[str], last: str, path: Sequence[Path]) -> Iterable[str]:
    from runner.cli import COMMANDS
    from runner.commands.list import KINDS

    if last.startswith("-"):
        return OPTIONS
    if before and before[-1] == "--cfg":
        return ["job"]
    command = next((word for word in before if word in COMMANDS), None)
    if command == "list":
        return KINDS
    if command == "show":
        return registry.methods(path)
    if command == "table":
        return registry.choices("table", path)
    if command == "completion":
        return SCRIPTS
    if command:
        return []
    groups = registry.groups(path)
    sign = last[: len(last) - len(last.lstrip("+~"))]
    group, equals, _ = last[len(sign) :].partition("=")
    if equals:
        return [f"{sign}{group}={name}" for name in registry.choices(group, path)] if group in groups else []
    found = {sign + key for key in _keys(before, last[len(sign) :], groups, path)}
    if not before:
        found |= {"run", *COMMANDS}
    return found


def _keys(before: Iterable[str], typed: str, groups: Sequence[str], path: Sequence[Path]) -> Iterable[str]:
    """The next level of keys below what is typed: sections end in a dot, settings and groups in an equals sign."""
    tree: Any = registry.outline(list(before), path)[0]
    section = typed.rpartition(".")[0]
    for part in filter(None, section.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(tree, dict):
        return []
    prefix = f"{section}." if section else ""
    found = {
        f"{prefix}{key}." if isinstance(value, dict) and value else f"{prefix}{key}=" for key, value in tree.items()
    }
    return found if section else found | {f"{group}=" for group in groups}
