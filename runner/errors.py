"""The three ways a run can end early, each with its exit code: 2 wrong request, 1 failed, 75 stopped and resumable."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LAST_STATE = "the last saved state is kept, the same command goes on from it"
ON_COMMAND_LINE = "on the command line"  # where a value was set, as messages say it


class UserError(Exception):
    """The request was wrong: one short message (what, where it was set, nearest valid names, the cure); exit code 2."""

    exit_code = 2


class RunFailed(Exception):
    """The run started and failed: the traceback stands in the run folder's error.txt; exit code 1."""

    exit_code = 1


class StopRequested(BaseException):
    """SIGTERM, SIGUSR1 or Ctrl-C: state was saved, the same command resumes; exit code 75.

    A BaseException, so that a method's ``except Exception`` cannot swallow it.
    """

    exit_code = 75


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The valid names closest to ``name``, best first; at most ``count``, none if nothing is close."""
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.5)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A sentence naming the nearest valid names, or all of them when none is close and they are few."""
    valid = sorted(valid)
    close = nearest(name, valid)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if len(valid) <= 12:
        return f"valid: {', '.join(valid)}"
    return f"there are {len(valid)} valid names"
