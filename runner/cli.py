"""The command line: words and options here, composition in runner.compose, a run in runner.execute.

Nothing heavy is imported before a request is known to be right; help and list do not even import Hydra.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from runner.commands import Parser
from runner.errors import RunFailed, StopRequested, UserError, nearest

# Each stands in runner/commands/NAME.py with main(arguments, config_dirs) -> exit code, and its help in the docstring.
COMMANDS = {
    "list": "what there is: methods, models, datasets, recipes, scales, tables; wildcards",
    "show": "a method's page: paper, claim, recipe, deviations, tables, how to cite",
    "table": "a paper's table: runs missing cells, prints measured beside reported, verdicts; exports",
    "runs": "past runs: settings, state, metrics, age, disk; filters such as method=ekg 'accuracy>0.9'",
    "report": "one HTML page: runs to filter and sort, learning curves, accuracy against cost, tables, differences",
    "compare": "two runs: how config, metrics and code differ",
    "clean": "what could go: old checkpoints, failed runs, leftovers; goes with --yes",
    "evaluate": "the test metrics of a run's network, on its own or another data set",
    "profile": "parameters, FLOPs and latency of a run's network on this machine",
    "sync": "sends finished runs to Weights & Biases",
    "doctor": "what this machine has, and what is missing",
    "completion": "a script for tab completion in bash, zsh or fish",
}

HELP = """\
runner: one command turns method x model x dataset x hardware into a result that can be trusted.

  runner method=ekg model=resnet50        run one experiment; everything has a default
  runner -m method=ekg,supervised seed=0,1     a sweep: every combination
  runner method=ekg recipe.epochs=10      any setting, in Hydra's grammar: key=value, group=name, +key=value, ~key

Commands
  run            run one experiment (the word may be left out)
{commands}
Options
  --cfg job          print the composed config and stop; --resolve fills in interpolations, --package KEY prints a part
  --config-dir DIR   a folder with your own method/, model/, dataset/ ... configs; repeatable (also RUNNER_CONFIG_PATH)
  -m, --multirun     run every combination: a,b,c  range(0,5)  glob(resnet*)  choice(...); hydra/launcher=ray|
                     submitit_local|submitit_slurm runs the cells on an engine, hardware.slots=N sets cells at once here
  -h, --help         this text; `runner COMMAND --help` for a command
  --version

Often used
  method=NAME model=NAME dataset=NAME     `runner list` shows the names
  scale=smoke|desk|paper                  seconds | minutes, a demonstration (the default) | the paper's own protocol
  hardware=auto|cpu|gpu|multi_gpu  tracking=offline|online|none  seed=0  paths.runs=DIR  force=true

A run's last line on standard output is the path of its result.json, a sweep's that of its summary.json;
everything else goes to standard error.
Exit codes: 0 done, 2 the request was wrong, 1 the run failed, 75 stopped and resumable by the same command.
"""


def _parser() -> Parser:
    parser = Parser()
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-c", "--cfg")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-p", "--package")
    parser.add_argument("-m", "--multirun", action="store_true")
    return _with_config_dir(parser)


def _with_config_dir(parser: Parser) -> Parser:
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one request; returns the exit code (0 done, 2 wrong request, 1 failed, 75 stopped and resumable)."""
    try:
        return _answer(list(sys.argv[1:] if argv is None else argv))
    except (UserError, RunFailed) as error:
        _say(f"runner: {error}")
        return error.exit_code
    except StopRequested as stop:
        if str(stop):
            _say(f"runner: {stop}")
        return stop.exit_code
    except KeyboardInterrupt:
        _say("runner: stopped before the run began; the same command starts it")
        return StopRequested.exit_code


def _answer(argv: list[str]) -> int:
    shared, rest = _with_config_dir(Parser()).parse_known_args(argv)
    name = next((word for word in rest if not word.startswith("-")), None)
    module = import_module(f"runner.commands.{name}") if name in COMMANDS else None
    if hasattr(module, "parser") and not {"-h", "--help"} & set(rest):
        rest.remove(name)
        return _quietly(lambda: module.main(rest, shared.config_dir))
    options = _parser().read(argv)
    words: list[str] = options.words
    command = words[0] if words and not _is_override(words[0]) else None
    if command not in (None, "run", *COMMANDS):
        close = nearest(command, ["run", *COMMANDS], count=1)
        hint = f"did you mean `runner {close[0]}`?" if close else "a run is asked for by overrides such as method=NAME"
        raise UserError(f"unknown command '{command}'; {hint}  `runner --help` shows all")
    if options.version:
        from runner import __version__

        return _print(f"runner {__version__}")
    if module is not None:
        if options.help:
            return _print(module.__doc__.strip())
        return _quietly(lambda: module.main(words[1:], options.config_dir))
    if options.help:
        return _print(HELP.format(commands="".join(f"  {name:<14} {text}\n" for name, text in COMMANDS.items())))
    overrides = words[1:] if command == "run" else words
    if options.cfg is not None:
        return _print_config(overrides, options)
    if options.multirun:
        return sweep(overrides, options.config_dir)
    return run(overrides, options.config_dir)


def run(overrides: list[str], config_dirs: Sequence[Path]) -> int:
    """One experiment; prints the path of its result.json."""
    from runner.compose import compose

    composed = compose(overrides, config_dirs)
    for word in overrides:
        if word.lstrip("+").startswith(("hydra/launcher", "hydra.launcher")):
            raise UserError(f"'{word}' has no effect on one run: add -m, which hands the cells to a launcher")
    from runner.execute import execute

    return _print(str(execute(composed)))


def sweep(overrides: list[str], config_dirs: Sequence[Path]) -> int:
    """Every combination of the overrides' values; prints the path of the sweep's summary.json."""
    from runner.sweep import SweepOptions, run_sweep
    from runner.sweep.grid import expand

    options, words = SweepOptions.split(overrides)
    ended = run_sweep(expand(words, config_dirs), config_dirs=config_dirs, options=options)
    from runner.sweep.summary import closing_lines

    for line in closing_lines(ended):
        _say(line)
    _print(str(ended.summary_path))
    return ended.exit_code


def _print_config(overrides: list[str], options: argparse.Namespace) -> int:
    if options.cfg != "job":
        raise UserError(f"--cfg {options.cfg}: only `--cfg job` exists here, Hydra's own settings are not used")
    from runner.compose import compose

    composed = compose(overrides, options.config_dir)
    return _print(composed.to_yaml(resolve=options.resolve, package=options.package).rstrip("\n"))


def _is_override(word: str) -> bool:
    return "=" in word or word[:1] in "+~"


def _print(text: str) -> int:
    return _quietly(lambda: print(text) or 0)


def _quietly(command: Callable[[], int]) -> int:
    """Run something that prints; a reader that went away (`runner list | head -1`) is not an error."""
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes standard output once more at exit and would complain
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
