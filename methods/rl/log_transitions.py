"""Logged data: policies trained by ``sac`` act in the environment, and what happens is stored with where it is from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy
import torch

from runner.errors import UserError
from runner.methods.rl.agents import actor_of, check_continuous, stored_agent
from runner.methods.rl.networks import Ensemble, TanhGaussian, squash
from runner.models.perceptron import perceptron
from runner.randomness import stream_seed
from runner.schema import ModelSettings, Seeds
from runner.storage import replace_atomic, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from runner.context import Context
    from runner.datasets.environments import Environments
    from runner.datasets.transitions import Part

FILE = "transitions.npz"


@dataclass(kw_only=True)
class LogTransitions:
    """Transitions logged with half-trained policies; what to log stands in ``dataset.behaviour``."""

    fidelity: ClassVar[str] = "reconstruction"
    claim: ClassVar[str] = "No paper's: it makes the data sets that offline methods start from, as D4RL's were made."
    data: ClassVar[tuple[str, ...]] = ("transitions",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = ()

    def run(self, ctx: Context) -> dict[str, float]:
        """Writes artifacts/transitions.npz (see ``datasets.transitions``) and provenance.json. Returns the number of
        transitions, and mean_return: of the episodes that ended, unscaled."""
        from runner.datasets.transitions import file_actions

        data, behaviour = ctx.data, ctx.settings.dataset.behaviour
        if behaviour is None:
            raise UserError("dataset.behaviour: nothing is set to be logged; take dataset=pendulum_logged")
        logged: list[dict[str, numpy.ndarray]] = []
        provenance = []
        returns: list[float] = []
        for number, part in enumerate(behaviour.parts):
            policy, origin = self.policy(ctx, part)
            environments = data.environment.environments(stream_seed(behaviour.seed, "log", number), 1)
            check_continuous(environments)
            log = Log(policy, environments, part.transitions, ctx.device)
            ctx.track(environments=environments, log=log)
            for _ in ctx.loop(f"log {number}", part.transitions):
                log.step()
                if environments.returns:
                    ctx.log(training_return=environments.returns[0])
            logged.append(log.arrays())
            returns += log.returns
            mean = float(numpy.mean(log.returns)) if log.returns else None
            provenance.append({**origin, "transitions": log.count, "episodes": len(log.returns), "mean_return": mean})
        ctx.track(environments=None, log=None)
        arrays = {name: numpy.concatenate([part[name] for part in logged]) for name in logged[0]}
        arrays["actions"] = file_actions(arrays["actions"], data.environment)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                numpy.savez(file, **arrays)

        replace_atomic(ctx.artifact(FILE), write)
        write_json(
            ctx.artifact("provenance.json"),
            {"environment": asdict(data.environment.settings), "seed": behaviour.seed, "parts": provenance},
        )
        metrics = {"transitions": float(len(arrays["rewards"]))}
        if returns:
            metrics["mean_return"] = float(numpy.mean(returns))
        ctx.log(**metrics)
        return metrics

    def policy(self, ctx: Context, part: Part) -> tuple[TanhGaussian | None, dict[str, Any]]:
        """The behaviour of a part (None: uniformly random), and where it is from."""
        if part.steps == 0:
            return None, {"policy": "uniformly random"}
        behaviour = ctx.settings.dataset.behaviour
        environment = ctx.settings.dataset.environment
        network = ModelSettings(
            name="perceptron",
            target="runner.models.perceptron:perceptron",
            arguments={"hidden": list(behaviour.hidden)},
        )
        cell = ctx.cell(
            "sac",
            {**behaviour.fields, "steps": part.steps},
            seed=behaviour.seed,
            sections={
                "dataset": {"name": "environment", "path": None, **asdict(environment)},
                "model": asdict(network),
                "seeds": asdict(Seeds()),
            },
            role=f"behaviour of {part.steps} steps",
        )
        sizes = ctx.data.environment.environments(0, 1).sizes
        policy = TanhGaussian(Ensemble([perceptron(sizes[0], 2 * sizes[1], behaviour.hidden)]))
        policy.load_state_dict(actor_of(stored_agent(cell.folder)))
        origin = {
            "policy": "sac",
            "steps": part.steps,
            "run": f"{cell.folder.parent.name}/{cell.folder.name}",
            "code": cell.result["code"],
            "test_return": cell.metrics["mean_return"],
        }
        return policy.to(ctx.device), origin


class Log:
    """Rows as they are logged; state to track."""

    NAMES = ("observations", "actions", "rewards", "terminals", "next_observations", "timeouts", "log_density")

    def __init__(
        self, policy: TanhGaussian | None, environments: Environments, size: int, device: torch.device
    ) -> None:
        self.policy, self.environments, self.device = policy, environments, device
        observation, action = environments.sizes
        widths = (observation, action, 1, 1, observation, 1, 1)
        self.columns = {name: numpy.zeros((size, n), numpy.float32) for name, n in zip(self.NAMES, widths, strict=True)}
        self.count, self.returns = 0, []

    def step(self) -> None:
        """One step of the environment, stored."""
        environments = self.environments
        if self.policy is None:
            actions = environments.random_actions()
            log_density = -environments.action_size * numpy.log(2.0)
        else:
            with torch.inference_mode():
                mean, std = self.policy.gaussian(torch.from_numpy(environments.observations).to(self.device))
                noise = torch.randn_like(mean)
                drawn, density = squash(mean + std * noise, noise, std, exact=True)
            actions, log_density = drawn.cpu().numpy(), float(density)
        steps = environments.step(actions)
        rewards = steps.rewards / environments.settings.reward_scale  # files hold them unscaled
        row = (*steps[:2], rewards, steps.terminals, steps.next_observations, steps.truncated, log_density)
        for column, part in zip(self.columns.values(), row, strict=True):
            column[self.count] = part
        self.count += 1
        self.returns += environments.returns

    def arrays(self) -> dict[str, numpy.ndarray]:
        """What was logged, as files hold it but for the units of the actions; where it ends inside an episode, that
        counts as a time limit."""
        found = {name: column[: self.count].copy() for name, column in self.columns.items()}
        for name in ("rewards", "terminals", "timeouts", "log_density"):
            found[name] = found[name][:, 0]
        found["timeouts"][-1] = 1 - found["terminals"][-1]
        return found | {name: found[name] > 0 for name in ("terminals", "timeouts")}

    def state_dict(self) -> dict[str, Any]:
        rows = {name: column[: self.count].copy() for name, column in self.columns.items()}
        return {"rows": rows, "returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns, self.count = list(state["returns"]), len(state["rows"]["rewards"])
        for name, rows in state["rows"].items():
            self.columns[name][: self.count] = rows
