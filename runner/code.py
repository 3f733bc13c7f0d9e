"""Which code a result came from: a fingerprint of the modules that a method and its network import. Light: no torch.

The fingerprint covers modules of this project and of the user's package, found by reading import statements; it
leaves out what cannot change a result (command line, tracking, display, tables).
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from runner.registry import source_file

LEFT_OUT = (
    "runner.cli",
    "runner.commands",
    "runner.compose",
    "runner.defaults",
    "runner.registry",
    "runner.progress",
    "runner.tracking",
    "runner.wandb_forward",
    "runner.metrics",
    "runner.observer",
    "runner.environment",
    "runner.execute",
    "runner.followers",
    "runner.trace",
    "runner.cells",
    "runner.plan",
    "runner.key",
    "runner.folder",
    "runner.storage",
    "runner.errors",
    "runner.code",
    "runner.api",
    "runner.sweep",
    "runner.unread",
)
# Imported by name at run time, so that no import statement of a method shows it (see also Plan.code).
ALWAYS = ("runner.context", "runner.datasets", "runner.models")


def code_fingerprint(*targets: str | None) -> str:
    """16 hexadecimal digits over the source of everything that ``package.module:Class`` targets import, recursively."""
    roots = {target.partition(":")[0] for target in targets if target}
    packages = {root.partition(".")[0] for root in roots} | {"runner"}
    seen: dict[str, str] = {}
    waiting = [*sorted(roots), *ALWAYS]
    while waiting:
        module = waiting.pop()
        if module in seen or module.partition(".")[0] not in packages or _left_out(module):
            continue
        file = source_file(module)
        if file is None:
            continue
        digest, imports = _read(file, module, file.stat().st_mtime_ns)
        seen[module] = digest
        waiting.extend(imports)
        if "." in module:
            waiting.append(module.rpartition(".")[0])  # importing it runs the packages above it
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(seen.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Import statements at any indentation. A line of a docstring that looks like one only adds a module to the fingerprint;
# parsing the sources properly takes ten times as long, and every start and every stored answer asks.
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]*)|import[ \t]+([\w., \t]+))", re.MULTILINE
)


def _left_out(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in LEFT_OUT)


@lru_cache(maxsize=1024)
def _read(file: Path, module: str, changed: int) -> tuple[str, tuple[str, ...]]:
    source = file.read_bytes()
    found: list[str] = []
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for base, names, plain in _IMPORT.findall(source.decode(errors="replace")):
        if plain:
            found += [word.split()[0] for word in plain.split(",") if word.strip()]
            continue
        level = len(base) - len(base.lstrip("."))
        if level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - level + 1], *filter(None, [base.lstrip(".")])])
        found.append(base)
        found += [f"{base}.{name}" for name in re.findall(r"[A-Za-z_]\w*", names)]  # the names may be modules
    return hashlib.sha256(source).hexdigest(), tuple(sorted(set(found)))
