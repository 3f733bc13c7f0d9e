"""A user's own package: a config folder beside a module, as --config-dir finds it."""

from pathlib import Path
from textwrap import dedent

import pytest

MODULE = '''
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field


@dataclass(kw_only=True)
class Inner:
    """Settings of the inner part."""

    knowledge: Literal["none", "single", "ensemble"] = "ensemble"
    steps: Annotated[int, Field(gt=0)] = 3


@dataclass(kw_only=True)
class Shrinkage:
    """Least squares with shrunken coefficients.

    More text.
    """

    paper: ClassVar[str] = "arXiv:0000.00001"
    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = "Shrinking the coefficients lowers the test error when features are many."
    citation: ClassVar[str] = "@article{shrinkage}"
    deviations: ClassVar[tuple[str, ...]] = ("the intercept is not shrunk", "one fold")
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("linear", "classifier")

    rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    ratio: float | None = None
    layers: list[int] = field(default_factory=list)
    search: Inner = field(default_factory=Inner)

    def __post_init__(self):
        if self.rate == 0.25:
            raise ValueError("a rate of 0.25 has no solution")

    def run(self, ctx):
        fidelity = "not the class attribute"
        return {}
'''

METHOD = """
# @package _global_
# Shrunken least squares.
defaults:
  - override /model: tiny
method:
  name: shrinkage
  target: my_shrinkage.methods:Shrinkage
  rate: 0.5
  ratio: null
  layers: [1, 2]
  search:
    knowledge: ensemble
    steps: 3
"""

MODEL = """
# A small network of the user.
name: tiny
target: my_shrinkage.models:tiny
arguments: {}
weights: null
stem: auto
padding: auto
"""


@pytest.fixture
def user_configs(tmp_path: Path, monkeypatch) -> Path:
    """A config folder with method=shrinkage and model=tiny; the package my_shrinkage is in the working directory."""
    files = {
        "configs/method/shrinkage.yaml": METHOD,
        "configs/model/tiny.yaml": MODEL,
        "configs/recommended/shrinkage/desk.yaml": "method:\n  search:\n    steps: 2\nrecipe:\n  epochs: 7\n",
        "configs/table/shrinkage/rates.yaml": "title: Error by rate\n",
        "my_shrinkage/__init__.py": "raise RuntimeError('listing must not import a package')\n",
        "my_shrinkage/methods.py": MODULE,
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNNER_CONFIG_PATH", raising=False)
    return tmp_path / "configs"
