"""Gymnasium environments, several copies side by side, whose state survives a kill.

An episode is a function of its seed and its actions. So the state of a copy is the number of its episode, which gives
the seed, and the actions taken in it: to restore, the episode is played again. This is exact for every environment
whose ``reset(seed=...)`` forgets what was before; the observation at the end is compared with the stored one.
Time limits are truncations, never terminals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from runner.errors import RunFailed, UserError, did_you_mean
from runner.schema import AnyDataset

if TYPE_CHECKING:
    import gymnasium
    import numpy
    import torch

    from runner.datasets.images import Limits

KIND = "environment"
Positive = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class EnvironmentSettings:
    """An environment by its gymnasium id; ``package:Id`` imports the package first, which registers it."""

    id: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # passed to gymnasium.make
    reward_scale: Annotated[float, Field(gt=0)] = 1.0  # on what is learnt from; returns are reported as they are
    time_limit: Positive | None = None  # steps of an episode; null: as registered
    copies: Positive = 1  # stepped side by side in training
    random_return: float | None = None  # of a uniformly random policy, and of an expert: they define
    expert_return: float | None = None  # normalised_return = 100 (return - random) / (expert - random)

    def __post_init__(self) -> None:
        if self.random_return is not None and self.random_return == self.expert_return:
            raise ValueError(
                "random_return and expert_return are equal: there is nothing to normalise by; set them to null"
            )

    def normalised(self, value: float) -> float | None:
        """100 for the expert's return, 0 for a random policy's; None where they are not known."""
        if self.random_return is None or self.expert_return is None:
            return None
        return 100 * (value - self.random_return) / (self.expert_return - self.random_return)


@dataclass(kw_only=True)
class Settings(AnyDataset, EnvironmentSettings):
    """Of the data sets of this module."""


def check_environment(settings: EnvironmentSettings) -> None:
    """Finds without making it what is wrong with an environment. Raises UserError."""
    import gymnasium

    if settings.id is None:
        raise UserError("dataset.id: no environment is set: give its gymnasium id, such as dataset.id=Pendulum-v1")
    try:
        gymnasium.spec(settings.id)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, gymnasium.error.DeprecatedEnv):
            raise UserError(f"dataset: the environment {settings.id} is no longer there: {error}") from None
        names = sorted(gymnasium.registry)
        raise UserError(
            f"dataset: there is no environment '{settings.id}'; {did_you_mean(settings.id, names)} One of your own is "
            "given as package:Id"
        ) from None


def make(settings: EnvironmentSettings) -> gymnasium.Env:
    """One copy. Observations are one vector each.

    Raises:
        UserError: it needs a package that is not installed, or its arguments do not fit.
    """
    import gymnasium

    check_environment(settings)
    options = dict(settings.arguments)
    if settings.time_limit is not None:
        options["max_episode_steps"] = settings.time_limit
    try:
        environment = gymnasium.make(settings.id, disable_env_checker=True, **options)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        simulator = "mujoco" in str(gymnasium.spec(settings.id).entry_point)
        cure = "pip install 'paper-runner[mujoco]'" if simulator else str(error)
        raise UserError(f"dataset: {settings.id} needs a package that is not installed: {cure}") from None
    except (TypeError, gymnasium.error.Error) as error:
        raise UserError(f"dataset: {settings.id} cannot be made with arguments={settings.arguments}: {error}") from None
    space = environment.observation_space
    if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
        environment = gymnasium.wrappers.FlattenObservation(environment)
    return environment


def action_bounds(environment: gymnasium.Env) -> tuple[numpy.ndarray, numpy.ndarray] | None:
    """Lowest actions (da,) and the widths of their ranges; None for discrete ones. Raises UserError for others."""
    import gymnasium
    import numpy

    space = environment.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return None
    bounded = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
    if not bounded or not (numpy.isfinite(space.low).all() and numpy.isfinite(space.high).all()):
        raise UserError(f"dataset: the actions of {environment.spec.id} are {space}; known are Discrete and finite Box")
    return space.low, (space.high - space.low).astype(space.dtype)


class Steps(NamedTuple):
    """One step of every copy; with a first dimension of copies."""

    observations: numpy.ndarray  # float32, before the step
    actions: numpy.ndarray  # in [-1, 1], or numbers of discrete actions
    rewards: numpy.ndarray  # times reward_scale
    terminals: numpy.ndarray  # float32, 1 where the episode ended by itself
    next_observations: numpy.ndarray  # the episode's own last one where it ended
    truncated: numpy.ndarray  # bool, ended by the time limit and not by itself


class Environments:
    """``copies`` of an environment; an episode that ends is followed by the next at once.

    Args:
        seed: episode e of copy c starts from a seed of its own, derived from (seed, c, e).

    Attributes:
        observations: (copies, ds) float32, what the next actions answer.
        returns: undiscounted, unscaled, of the episodes that ended in the last step.
    """

    def __init__(self, settings: EnvironmentSettings, seed: int, copies: int | None = None) -> None:
        import numpy

        self.settings, self.seed = settings, seed
        self.copies = settings.copies if copies is None else copies
        self._made = [make(settings) for _ in range(self.copies)]
        bounds = action_bounds(self._made[0])
        self.discrete = bounds is None
        self._low, self._range = bounds or (None, None)
        space = self._made[0].action_space
        self.action_size = int(space.n if self.discrete else space.shape[0])
        self.observation_size = int(self._made[0].observation_space.shape[0])
        self._episodes = [-1] * self.copies
        self._actions: list[list[Any]] = [[] for _ in range(self.copies)]  # of the running episodes
        self._sums = [0.0] * self.copies
        self.observations = numpy.zeros((self.copies, self.observation_size), dtype=numpy.float32)
        self.returns: list[float] = []
        for copy in range(self.copies):
            self._begin(copy)

    @property
    def sizes(self) -> tuple[int, int]:
        """Of an observation and of an action (of discrete actions: their number)."""
        return self.observation_size, self.action_size

    def step(self, actions: numpy.ndarray) -> Steps:
        """Actions (copies, da) in [-1, 1], mapped linearly to the environment's box, or numbers (copies,)."""
        import numpy

        before, after = self.observations, numpy.empty_like(self.observations)
        rewards = numpy.empty(self.copies, dtype=numpy.float32)
        terminals = numpy.zeros(self.copies, dtype=numpy.float32)
        truncated = numpy.zeros(self.copies, dtype=bool)
        self.returns = []
        ended = []
        for copy in range(self.copies):
            self._actions[copy].append(numpy.array(actions[copy]))
            after[copy], reward, terminal, limit = self._move(copy, actions[copy])
            rewards[copy] = reward * self.settings.reward_scale
            terminals[copy], truncated[copy] = terminal, limit and not terminal
            if terminal or limit:
                ended.append(copy)
        self.observations = after.copy() if ended else after
        for copy in ended:
            self.returns.append(self._sums[copy])
            self._begin(copy)
        return Steps(before, actions, rewards, terminals, after, truncated)

    def restart(self) -> None:
        """Leaves every running episode for the next one; an episode without a step yet goes on."""
        self.observations = self.observations.copy()  # the last step's next observations stay as they were
        for copy in range(self.copies):
            if self._actions[copy]:
                self._begin(copy)

    def random_actions(self) -> numpy.ndarray:
        """Uniform over the actions, from NumPy's global generator (which loops save and restore)."""
        import numpy

        if self.discrete:
            return numpy.random.randint(self.action_size, size=self.copies)
        return numpy.random.uniform(-1, 1, (self.copies, self.action_size)).astype(numpy.float32)

    def _move(self, copy: int, action: Any) -> tuple[numpy.ndarray, float, bool, bool]:
        if self._low is not None:
            action = self._low + (action + 1) / 2 * self._range
        observation, reward, terminal, limit, _ = self._made[copy].step(action)
        self._sums[copy] += float(reward)
        return observation, float(reward), terminal, limit

    def _begin(self, copy: int) -> None:
        self._episodes[copy] += 1
        self._actions[copy], self._sums[copy] = [], 0.0
        self.observations[copy] = self._reset(copy)

    def _reset(self, copy: int) -> numpy.ndarray:
        from runner.randomness import stream_seed

        seed = stream_seed(self.seed, "episode", copy, self._episodes[copy]) % 2**31
        return self._made[copy].reset(seed=seed)[0]

    def state_dict(self) -> dict[str, Any]:
        import numpy

        return {
            "episodes": list(self._episodes),
            "actions": [numpy.array(actions) for actions in self._actions],
            "observations": self.observations.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Plays the running episodes again. Raises RunFailed where that does not lead to the stored observations."""
        import numpy

        self._episodes = list(state["episodes"])
        for copy, actions in enumerate(state["actions"]):
            self._actions[copy], self._sums[copy] = list(actions), 0.0
            observation = self._reset(copy)
            for action in actions:
                observation = self._move(copy, action)[0]
            self.observations[copy] = observation
        if not numpy.array_equal(self.observations, state["observations"], equal_nan=True):
            raise RunFailed(
                f"{self.settings.id} does not come back to its state when its seed and actions are repeated, so a run "
                "on it cannot be resumed: begin it again with force=true"
            )


@dataclass
class EnvironmentData:
    """What a method gets as ``ctx.data`` of KIND environment."""

    settings: EnvironmentSettings
    device: torch.device | str = "cpu"
    kind: str = KIND

    @property
    def display_name(self) -> str:
        return self.settings.id

    def to(self, device: torch.device) -> EnvironmentData:
        self.device = device
        return self

    def environments(self, seed: int, copies: int | None = None) -> Environments:
        """Copies that start from the given seed; their number by default that of the settings."""
        return Environments(self.settings, seed, copies)

    def describe(self) -> str:
        made = make(self.settings)
        limit = made.spec.max_episode_steps
        shown = f", at most {limit} steps" if limit else ""
        return (
            f"environment {self.settings.id}: observations {made.observation_space}, actions {made.action_space}{shown}"
        )


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        raise UserError(f"dataset.path={settings.path}: an environment reads no file; dataset=transitions does")
    check_environment(settings)


def load(settings: Settings, limits: Limits, data_root: Path) -> EnvironmentData:
    make(settings)  # what it lacks is told before a run begins
    return EnvironmentData(settings)
