"""Off2On: from offline to online learning by a balanced replay and an ensemble of pessimistic agents.

Lee, Seo, Lee, Abbeel and Shin, "Offline-to-Online Reinforcement Learning via Balanced Replay and Pessimistic
Q-Ensemble", CoRL 2021, arXiv:2107.00591; https://github.com/shlee94/Off2OnRL (its fine-tuning stage; of the offline
stage the repository has weights only). Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy
import torch
from pydantic import Field
from torch import Tensor

from runner.methods.rl.agents import save_agent, soft_actor_critic, stored_agent
from runner.methods.rl.cql import CQL, conservative_gaps
from runner.methods.rl.density_ratio import DensityRatio, Priorities, first_priority, priorities_of, ratio_loss
from runner.methods.rl.interaction import actions_of, episode_returns, final_returns, training_environments
from runner.methods.rl.learning import Discount, Measuring, Share, Size, check_capacity
from runner.methods.rl.logged import logged_transitions
from runner.methods.rl.soft_actor_critic import Rate, Rates, SoftActorCritic, update

if TYPE_CHECKING:
    from runner.context import Context
    from runner.methods.rl.replay import Batch, Replay


@dataclass(kw_only=True)
class Off2On(Measuring):
    """Fine-tuning of offline agents: density-ratio replay, and a pessimistic ensemble that acts as one agent."""

    ensemble: Size = 5  # N agents, trained offline apart
    offline: CQL = field(default_factory=CQL)  # how each is trained; weight 0: no pessimism
    replay: Literal["balanced", "uniform", "online"] = "balanced"  # by density ratio; over both; of online ones alone
    epochs: Size = 250  # of acting, then learning
    epoch_steps: Size = 1000  # of the environment, and updates
    first_epoch_multiplier: Size = 10  # times as many updates in the first epoch
    online_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5  # f, share of online transitions after the first epoch
    temperature: Annotated[float, Field(gt=0)] = 5.0  # T, which flattens the ratios
    conservative_weight: Annotated[float, Field(ge=0)] = 0.0  # of CQL's term online; 0: plain SAC
    batch_size: Size = 256
    ratio_batch_size: Size = 256  # offline, and as many online ones
    capacity: Size = 250_000  # online transitions
    rates: Rates = field(default_factory=Rates)  # Adam's learning rates online
    ratio_rate: Rate = 3e-4
    discount: Discount = 0.99
    target_share: Share = 0.005  # tau: of the critics in their slow copies, each update
    evaluate_every: Size = 1000  # steps of the environment
    evaluation_episodes: Size = 5
    drop_steps: Size = 1000  # in which the largest drop below the offline agent's return is looked for

    paper: ClassVar[str] = "arXiv:2107.00591"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Reusing offline samples that are near the online ones, and a pessimistic ensemble, keep the offline policy "
        "from being ruined when it starts to act, and make it learn fast."
    )
    data: ClassVar[tuple[str, ...]] = ("transitions",)
    model: ClassVar[tuple[str, ...]] = ("network of vectors",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Lee, Seo, Lee, Abbeel, Shin. Offline-to-Online Reinforcement Learning via Balanced Replay and Pessimistic "
        "Q-Ensemble. CoRL 2021."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "the offline agents are trained here, by method cql, whose constants the paper's repository does not give",
        "networks start in torch's initialisation, but for the ratio's last layer",
        "an evaluation is a number of episodes, not of steps",
        "of a logged transition at a time limit the last observation is known and used, where the file has it",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns mean_return (after the last epoch), offline_return (before the first), area (mean return of the
        evaluations on the way), drop (largest fall below offline_return within drop_steps, at least 0), and
        ratio_online and ratio_offline, the mean estimated ratio on batches of both."""
        logged = logged_transitions(ctx)
        check_capacity(self.capacity, logged.environment.settings.copies)
        agent = self.offline_agents(ctx, logged.sizes)
        optimizer = agent.optimizer(self.rates)
        ratio = DensityRatio(ctx, logged.sizes)
        ratio_optimizer = torch.optim.Adam(ratio.parameters(), lr=self.ratio_rate, fused=True)
        replay = logged.replay(ctx.device, more=self.capacity)
        replay.keep()
        priorities = Priorities(replay, first_priority(len(replay), self.online_fraction, self.epoch_steps))
        environments = training_environments(ctx, logged.environment)
        policy, copies = agent.policy.act, environments.copies
        curve = self.curve(ctx, logged.environment, policy)
        before = ctx.once("offline", lambda: self.offline_return(ctx, logged.environment, policy))
        ctx.log(offline_return=before)

        # with CQL's term the online update is CQL's, whose targets are the offline stage's
        entropy_in_target = not self.conservative_weight or self.offline.entropy_in_target

        def learn() -> dict[str, Tensor]:
            offline, online = self.both(replay)
            w_offline, w_online = ratio(offline), ratio(online)
            places = self.places(replay, priorities)
            batch = replay.at(torch.from_numpy(places))
            losses = agent.losses(batch, entropy_in_target=entropy_in_target)
            loss = losses.policy + losses.critic + losses.temperature
            if self.conservative_weight:
                gaps = conservative_gaps(agent, batch, self.offline.samples)
                loss = loss + self.conservative_weight * gaps.sum()
            with torch.no_grad():
                found = priorities_of(ratio(batch), w_offline, self.temperature).cpu().numpy()
            update(agent, optimizer, loss, self.target_share)
            ratio_optimizer.zero_grad()
            ratio_loss(w_offline, w_online).backward()
            ratio_optimizer.step()
            if self.replay == "balanced":
                priorities.set(places, found)
            shown = {"loss": losses.critic, "ratio_offline": w_offline.mean(), "ratio_online": w_online.mean()}
            return {name: value.detach() for name, value in shown.items()}

        ctx.track(agent=agent, optimizer=optimizer, ratio=ratio, ratio_optimizer=ratio_optimizer, replay=replay)
        ctx.track(priorities=priorities, environments=environments, curve=curve)
        for epoch in ctx.loop("online", self.epochs):
            for step in ctx.loop("act", -(-self.epoch_steps // copies)):
                if step == 0:  # no episode reaches from one epoch into the next
                    environments.restart()
                steps = environments.step(actions_of(policy, environments, ctx.device))
                priorities.add(replay.add(*steps[:5]))
            for _ in ctx.loop("learn", self.epoch_steps * (self.first_epoch_multiplier if epoch == 0 else 1)):
                ctx.log(**learn())
            curve.after((epoch + 1) * self.epoch_steps, epoch * self.epoch_steps)
        metrics = final_returns(ctx, logged.environment, policy, self.test_episodes)
        metrics |= {"offline_return": before, **curve.summary(), "drop": curve.drop(before, self.drop_steps)}
        with torch.no_grad():
            ratios = ctx.once("ratios", lambda: [ratio(batch).mean().item() for batch in self.both(replay)])
        save_agent(ctx, agent)
        return metrics | dict(zip(("ratio_offline", "ratio_online"), ratios, strict=True))

    def offline_agents(self, ctx: Context, sizes: tuple[int, int]) -> SoftActorCritic:
        """N agents of method ``cql``, each a cell of its own seed, as one agent whose temperature starts at 1."""
        states = []
        for member in range(self.ensemble):
            seed = (100 * ctx.seed + member) % 2**32
            cell = ctx.cell("cql", asdict(self.offline), seed=seed, role=f"offline agent {member + 1}")
            states.append(stored_agent(cell.folder))
        agent = soft_actor_critic(ctx, sizes, self.discount, None, self.ensemble, exact=True)
        agent.load_state_dict(agent.state_dict() | merged(states))
        agent.critics.follow(1.0)
        return agent

    def offline_return(self, ctx: Context, environment: Any, policy: Any) -> float:
        """The mean return of the merged policy before it acts, on the curve's episodes."""
        return float(episode_returns(environment, policy, self.evaluation_episodes, ctx.seed).mean())

    def both(self, replay: Replay) -> tuple[Batch, Batch]:
        """Uniform batches of the offline and of the online transitions."""
        count = self.ratio_batch_size
        offline = torch.randint(replay.kept, (count,))
        online = torch.randint(replay.kept, len(replay), (count,))
        return replay.at(offline), replay.at(online)

    def places(self, replay: Replay, priorities: Priorities) -> numpy.ndarray:
        """Of the transitions to learn from, (B,)."""
        if self.replay == "balanced":
            return priorities.sample(self.batch_size)
        first = replay.kept if self.replay == "online" else 0
        return numpy.random.randint(first, len(replay), self.batch_size)


def merged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of agents of one actor and two critics as those of an agent of N actors, and of critics in the order
    of the first N, then the second."""
    count, found = len(states), {}
    for name, value in states[0].items():
        if name == "log_alpha":
            continue
        if ".members." in name:  # networks that are no perceptrons
            head, _, rest = name.partition(".members.")
            number, _, rest = rest.partition(".")
            for member, state in enumerate(states):
                found[f"{head}.members.{int(number) * count + member}.{rest}"] = state[name]
        else:
            found[name] = torch.stack([state[name] for state in states], 1).reshape(-1, *value.shape[1:])
    return found
