"""Building, storing and reading agents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from runner.errors import UserError
from runner.methods.rl.networks import Ensemble, TanhGaussian
from runner.methods.rl.soft_actor_critic import Critics, SoftActorCritic
from runner.storage import write_tensors

if TYPE_CHECKING:
    from runner.context import Context
    from runner.datasets.environments import Environments


def check_continuous(environments: Environments) -> None:
    """Raises UserError for discrete actions."""
    if environments.discrete:
        raise UserError(
            f"dataset: {environments.settings.id} has discrete actions, and this method draws continuous ones; choose "
            "an environment with a Box of actions, such as Pendulum-v1"
        )


def networks(ctx: Context, name: str, count: int, inputs: int, outputs: int) -> list[nn.Module]:
    """The config's networks for one shape, each initialised from a random stream of its own."""
    return [ctx.network(f"{name} {number}", in_features=inputs, out_features=outputs) for number in range(count)]


def critics(ctx: Context, sizes: tuple[int, int], pairs: int = 1) -> Critics:
    """Fresh pairs of critics for the sizes of an observation and of an action."""
    return Critics(networks(ctx, "critic", 2 * pairs, sum(sizes), 1)).to(ctx.device)


def gaussian_actor(ctx: Context, sizes: tuple[int, int], members: int = 1, *, exact: bool = False) -> TanhGaussian:
    """A fresh tanh-Gaussian policy of ``members`` networks."""
    return TanhGaussian(Ensemble(networks(ctx, "actor", members, sizes[0], 2 * sizes[1])), exact=exact).to(ctx.device)


def soft_actor_critic(
    ctx: Context,
    sizes: tuple[int, int],
    discount: float,
    target_entropy: float | None,
    members: int = 1,
    *,
    exact: bool = False,
) -> SoftActorCritic:
    """A fresh agent of as many actors and pairs of critics; a target entropy of None is minus the action's size."""
    actor = gaussian_actor(ctx, sizes, members, exact=exact)
    entropy = -float(sizes[1]) if target_entropy is None else target_entropy
    return SoftActorCritic(actor, critics(ctx, sizes, members), entropy, discount).to(ctx.device)


def save_agent(ctx: Context, agent: nn.Module) -> None:
    """Writes artifacts/agent.safetensors, what ``load_state_dict`` of an equal agent takes."""
    write_tensors(ctx.artifact("agent.safetensors"), agent.state_dict())


def stored_agent(folder: Path) -> dict[str, Any]:
    """The state of the agent that the run in ``folder`` wrote. Raises UserError if there is none."""
    from safetensors.torch import load_file

    file = folder / "artifacts" / "agent.safetensors"
    if not file.is_file():
        raise UserError(f"{folder} holds no agent: artifacts/agent.safetensors is missing")
    return load_file(file)


def actor_of(state: dict[str, Any]) -> dict[str, Any]:
    """The policy's part of a stored agent."""
    return {name.removeprefix("policy."): value for name, value in state.items() if name.startswith("policy.")}
