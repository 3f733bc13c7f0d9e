"""The transitions that an offline method starts from: a file's, or those that ``log_transitions`` makes as a cell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from runner.datasets.transitions import read_transitions
from runner.methods.rl.log_transitions import FILE
from runner.methods.rl.replay import Replay
from runner.schema import ModelSettings, Seeds

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.environments import EnvironmentData
    from runner.datasets.transitions import Transitions


@dataclass
class Logged:
    """Transitions and the environment that they are from."""

    transitions: Transitions
    environment: EnvironmentData

    @property
    def sizes(self) -> tuple[int, int]:
        """Of an observation and of an action."""
        return self.transitions.observations.shape[1], self.transitions.actions.shape[1]

    def replay(self, device: torch.device, *, more: int = 0) -> Replay:
        """All of them in a replay with room for ``more``."""
        found = self.transitions
        replay = Replay(len(found) + more, self.sizes, device)
        columns = (found.observations, found.actions, found.rewards, found.terminals, found.next_observations)
        replay.add(*(column.numpy() for column in columns))
        return replay


def logged_transitions(ctx: Context) -> Logged:
    """The data set's transitions; made now where the data set says how and no other run has made them."""
    data = ctx.data
    transitions = data.stored
    if transitions is None:
        behaviour = ctx.settings.dataset.behaviour
        cell = ctx.cell("log_transitions", {}, seed=behaviour.seed, sections=_fixed(ctx), role="logged data")
        transitions = read_transitions(cell.artifact(FILE), data.environment)
    return Logged(transitions, data.environment)


def _fixed(ctx: Context) -> dict[str, object]:
    """What the data must not depend on: the run's own network and separate seeds."""
    network = ModelSettings(name="perceptron", target="runner.models.perceptron:perceptron", arguments={})
    return {"model": asdict(network), "seeds": asdict(Seeds())}
