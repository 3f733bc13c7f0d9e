"""Which code a result came from: a fingerprint of the modules that a method and its network import. Light: no torch.

The fingerprint covers modules of this project and of the user's package, found by reading import statements; it
leaves out what cannot change a result (command line, tracking, display, tables).
"""

from __future__ import annotations

import ast
import hashlib
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
    "runner.cells",
    "runner.plan",
    "runner.key",
    "runner.folder",
    "runner.storage",
    "runner.errors",
    "runner.code",
    "runner.api",
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


def _left_out(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in LEFT_OUT)


@lru_cache(maxsize=1024)
def _read(file: Path, module: str, changed: int) -> tuple[str, tuple[str, ...]]:
    source = file.read_bytes()
    found: list[str] = []
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            found.append(base)
            found += [f"{base}.{alias.name}" for alias in node.names]  # the names may be modules
    return hashlib.sha256(source).hexdigest(), tuple(sorted(set(found)))
