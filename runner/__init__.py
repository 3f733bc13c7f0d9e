"""A command-line experiment runner for machine-learning papers.

From Python: ``runner.run([...overrides])`` runs one experiment, ``runner.results(folder)`` reads finished ones,
``runner.load(path)`` rebuilds a trained network. They raise ``runner.UserError``, ``runner.RunFailed`` and
``runner.StopRequested``. All are imported on first use, so that ``import runner`` stays light.
"""

from pathlib import Path

__version__ = "0.1.0"

# The folders methods/, datasets/ and conf/ stand beside this one in a clone and are imported as runner.methods,
# runner.datasets and runner.conf (an installed wheel has them inside). This line makes a plain clone work uninstalled.
if not (Path(__file__).parent / "conf").is_dir():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str):
    if name in ("run", "results", "load"):
        from runner import api

        return getattr(api, name)
    if name in ("UserError", "RunFailed", "StopRequested"):
        from runner import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'runner' has no attribute {name!r}")
