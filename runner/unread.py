"""Settings of the recipe that a run never asked for: a value that was set in vain is told at its end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.errors import ON_COMMAND_LINE

if TYPE_CHECKING:
    from runner.schema import Recipe


def noted(recipe: Recipe, read: set[str]) -> Recipe:
    """The same recipe, which adds the name of every field that is read to ``read``."""
    plain, names = type(recipe), {field.name for field in fields(recipe)} - {"name"}

    class Noted(plain):
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                read.add(name)
            elif name == "__dict__":
                read.update(names)
            return super().__getattribute__(name)

        def __reduce__(self) -> tuple[Any, ...]:  # copies and other processes take the plain one
            return partial(plain, **{field.name: getattr(self, field.name) for field in fields(self)}), ()

    seen = copy.copy(recipe)
    seen.__class__ = Noted
    return seen


def set_in_vain(
    recipe: dict[str, Any], read: set[str], origin: Callable[[str], str] | None, prefix: str = "recipe"
) -> list[str]:
    """The keys of the composed recipe that the command line set and nothing read, as recipe.epochs=3."""
    if origin is None:
        return []
    found = []
    for name, value in recipe.items():
        if name in read or name == "name":
            continue
        if isinstance(value, dict):
            found += set_in_vain(value, set(), origin, f"{prefix}.{name}")
        elif origin(f"{prefix}.{name}") == ON_COMMAND_LINE:
            found.append(f"{prefix}.{name}={value}")
    return found
