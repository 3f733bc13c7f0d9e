"""The commands beside a run: one module each, with ``main(arguments, config_dirs)`` and its help as docstring.

A module that takes options has ``parser() -> Parser`` too; the words and options then reach ``main`` as they came.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from runner.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser whose errors are messages; ``words`` are what is no option."""

    def __init__(self, command: str = "") -> None:
        super().__init__(prog=f"runner {command}".strip(), add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows the options")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options, and ``words``. Raises UserError: an unknown option, a value that is missing or wrong."""
        self.add_argument("words", nargs="*")
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise UserError(f"unknown option '{unknown[0]}'; {did_you_mean(unknown[0], flags)}")
        return options
