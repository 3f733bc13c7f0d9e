"""Logged transitions for offline learning: files of users, or made by the runner itself.

A file is .npz, or .hdf5 (extra hdf5), with the arrays of D4RL's files: observations (n, ds), actions (n, da) in the
environment's own units, rewards (n,) unscaled, terminals (n,), and if it has them timeouts (n,), next_observations
(n, ds) and log_density (n,), the behaviour's own log-density of the action in [-1, 1]; others are ignored. Without
next_observations a transition's next observation is the following row, and rows at a time limit, which have none, are
left out. Without a file, ``behaviour`` says what the method ``log_transitions`` makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import BadZipFile

from pydantic import Field

from runner.datasets.environments import EnvironmentData, EnvironmentSettings, action_bounds, check_environment, make
from runner.errors import UserError
from runner.schema import AnyDataset

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy
    import torch

    from runner.datasets.images import Limits

KIND = "transitions"
EXTRA = "hdf5"
NEEDED = ("observations", "actions", "rewards", "terminals")
KNOWN = (*NEEDED, "timeouts", "next_observations", "log_density")
SUFFIXES = (".npz", ".hdf5", ".h5")
Positive = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class Part:
    """Transitions of one behaviour policy."""

    steps: Annotated[int, Field(ge=0)]  # of training by ``sac``; 0: uniformly random actions
    transitions: Positive


@dataclass(kw_only=True)
class Behaviour:
    """Policies trained by the method ``sac``, and what is logged with each, drawing as in training."""

    parts: list[Part]
    hidden: list[Positive] = field(default_factory=lambda: [256, 256])  # widths of their networks
    fields: dict[str, Any] = field(default_factory=dict)  # of ``sac``, but steps
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # the same data whatever the run's seed is


@dataclass(kw_only=True)
class Settings(AnyDataset):
    """``path``, ``file`` or ``behaviour`` says where the transitions come from."""

    environment: EnvironmentSettings  # measures what is learnt; its reward_scale holds for the stored rewards too
    file: str | None = None  # name without ending below the folder transitions/ of the data root
    behaviour: Behaviour | None = None


def check(settings: Settings, data_root: Path, offline: bool) -> None:
    file = _file(settings, data_root)
    if file is None and settings.behaviour is None:
        raise UserError(
            "dataset: no transitions are given: set dataset.path=FILE (.npz or .hdf5 with observations, actions, "
            "rewards, terminals), or take dataset=pendulum_logged, which are made here"
        )
    if settings.environment.id is None:
        raise UserError(
            "dataset.environment.id: no environment is set: give the gymnasium id of the one that the transitions are "
            "from, such as dataset.environment.id=Hopper-v5"
        )
    check_environment(settings.environment)
    if file is None:
        return
    if settings.path is not None and not file.is_file():
        raise UserError(f"dataset.path: there is no file '{settings.path}'")
    if file.suffix not in SUFFIXES:
        raise UserError(f"dataset.path: {file.name} is not of a known kind: {', '.join(SUFFIXES)}")
    if settings.path is None and not file.is_file():
        raise UserError(
            f"dataset.file={settings.file}: {file.parent} holds no {file.stem}{' or '.join(SUFFIXES[:2])}; it is not "
            "downloaded: put it there, or give dataset.path=FILE"
        )


def load(settings: Settings, limits: Limits, data_root: Path) -> TransitionData:
    file = _file(settings, data_root)
    environment = EnvironmentData(settings.environment)
    return TransitionData(settings, environment, None if file is None else read_transitions(file, environment))


def _file(settings: Settings, data_root: Path) -> Path | None:
    if settings.path is not None:
        return Path(settings.path).expanduser()
    if settings.file is None:
        return None
    return found({"file": settings.file}, data_root) or _candidates(settings.file, data_root)[0]


def found(dataset: Mapping[str, Any], data_root: Path) -> Path | None:
    """The user's file in the data root, whose content enters the key as that of ``dataset.path`` does."""
    files = _candidates(dataset["file"], data_root) if dataset.get("file") else []
    return next((file for file in files if file.is_file()), None)


def _candidates(name: str, data_root: Path) -> list[Path]:
    return [data_root / "transitions" / f"{name}{suffix}" for suffix in SUFFIXES]


@dataclass
class Transitions:
    """Logged transitions in the order of their steps, float32; shapes as in ``methods.rl.replay.Batch``."""

    observations: torch.Tensor
    actions: torch.Tensor  # in [-1, 1]
    rewards: torch.Tensor  # times reward_scale
    terminals: torch.Tensor
    next_observations: torch.Tensor
    truncated: torch.Tensor  # (n,) bool, the last of an episode that a limit, or the log's end, cut
    log_density: torch.Tensor | None = None  # (n,) of the action under the behaviour

    def __len__(self) -> int:
        return len(self.rewards)

    def episodes(self) -> list[slice]:
        """Each episode's rows, the last one whether it ended or not."""
        ends = ((self.terminals > 0) | self.truncated).nonzero().flatten().add(1).tolist()
        if not ends or ends[-1] < len(self):
            ends.append(len(self))
        return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]

    def returns(self) -> torch.Tensor:
        """The undiscounted sum of each episode's (scaled) rewards."""
        import torch

        return torch.stack([self.rewards[rows].double().sum() for rows in self.episodes()])


@dataclass
class TransitionData:
    """What a method gets as ``ctx.data``; ``stored`` is None where the transitions are still to be made
    (``runner.methods.rl.logged`` does)."""

    settings: Settings
    environment: EnvironmentData
    stored: Transitions | None
    kind: str = KIND

    @property
    def display_name(self) -> str:
        return self.settings.name

    def to(self, device: torch.device) -> TransitionData:
        return replace(self, environment=self.environment.to(device))

    def describe(self) -> str:
        what = "made by log_transitions" if self.stored is None else f"{len(self.stored)} of a file"
        return f"transitions {self.display_name}: {what}; {self.environment.describe()}"


def read_transitions(file: Path, environment: EnvironmentData) -> Transitions:
    """See the module. Raises UserError: arrays are missing, of unequal lengths, or do not fit the environment."""
    import numpy
    import torch

    arrays = _arrays(file)
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise UserError(f"{file}: no array {' and '.join(missing)}; it has {', '.join(sorted(arrays)) or 'none'}")
    for name in KNOWN:
        if name in arrays and arrays[name].dtype.kind not in "fiub":
            raise UserError(f"{file}: {name} are no numbers")
    lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in KNOWN if name in arrays}
    if len(set(lengths.values())) != 1 or not len(arrays["rewards"]):
        raise UserError(f"{file}: its arrays must be equally long, and not empty: {lengths}")
    low, size, observation = _shape(environment)
    widths = {"observations": observation, "actions": len(low), "next_observations": observation}
    for name, wanted in widths.items():
        if name not in arrays:
            continue
        found = arrays[name].shape[1:]
        if found != (wanted,):
            raise UserError(f"{file}: {name} have shape {found}, those of {environment.settings.id} have ({wanted},)")
        if not numpy.isfinite(arrays[name]).all():
            raise UserError(f"{file}: {name} hold values that are not finite")
    for name in ("rewards", "terminals", "timeouts", "log_density"):
        if name in arrays and arrays[name].size != lengths[name]:
            raise UserError(f"{file}: {name} have shape {arrays[name].shape[1:]}, not one number a transition")
    terminals = arrays["terminals"].reshape(-1) > 0
    truncated = arrays.get("timeouts", numpy.zeros(len(terminals), bool)).reshape(-1) > 0
    truncated &= ~terminals
    keep = numpy.ones(len(terminals), bool)
    following = arrays.get("next_observations")
    if following is None:
        following = numpy.concatenate([arrays["observations"][1:], arrays["observations"][-1:]])
        keep = ~truncated
        keep[-1] &= terminals[-1]
        truncated = numpy.concatenate([~keep[1:], [False]])  # the step before the one without a next observation
        truncated &= keep & ~terminals
        if not keep.any():
            raise UserError(f"{file}: no row has a next observation")
    actions = ((arrays["actions"] - low) / size * 2 - 1).clip(-1, 1)
    parts = {
        "observations": arrays["observations"],
        "actions": actions,
        "rewards": arrays["rewards"].reshape(-1) * environment.settings.reward_scale,
        "terminals": terminals,
        "next_observations": following,
    }
    tensors = {name: torch.from_numpy(numpy.asarray(part[keep], dtype=numpy.float32)) for name, part in parts.items()}
    density = arrays.get("log_density")
    if density is not None:
        tensors["log_density"] = torch.from_numpy(numpy.asarray(density.reshape(-1)[keep], dtype=numpy.float32))
    return Transitions(**tensors, truncated=torch.from_numpy(truncated[keep]))


def file_actions(actions: numpy.ndarray, environment: EnvironmentData) -> numpy.ndarray:
    """Actions in [-1, 1] in the environment's own units, as files hold them."""
    low, size, _ = _shape(environment)
    return low + (actions + 1) / 2 * size


def _shape(environment: EnvironmentData) -> tuple[numpy.ndarray, numpy.ndarray, int]:
    made = make(environment.settings)
    bounds = action_bounds(made)
    if bounds is None:
        raise UserError(f"dataset: {environment.settings.id} has discrete actions; logged ones are continuous")
    return *bounds, int(made.observation_space.shape[0])


def _arrays(file: Path) -> dict[str, numpy.ndarray]:
    import numpy

    try:
        if file.suffix == ".npz":
            with numpy.load(file) as found:
                return {name: found[name] for name in found.files}
        try:
            import h5py
        except ImportError:
            raise UserError(f"{file.name} needs h5py: pip install 'paper-runner[{EXTRA}]', or make it .npz") from None
        with h5py.File(file) as found:
            return {name: item[()] for name, item in found.items() if isinstance(item, h5py.Dataset) and item.ndim > 0}
    except (OSError, ValueError, EOFError, BadZipFile, TypeError) as error:
        raise UserError(f"dataset: {file} cannot be read: {error}") from None
