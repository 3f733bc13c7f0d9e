"""Environment steps a second of SAC with one update a step: method ``sac`` against CleanRL's loop in the same terms.

    python scripts/bench_sac.py [--environment Pendulum-v1] [--steps 3000] [--hidden 256] [--batch 256] [--threads 2]
        [--clock cpu]

Ours is the real method through the real command (resumable loop, metrics and checkpoints on, no evaluation). Theirs is
the shape of CleanRL's sac_continuous_action as published (one vectorised environment, a NumPy replay, torch
distributions, separate critics, the actor and the temperature twice every second step, targets parameter by parameter,
losses read every 100 steps), written anew here because its package pins other versions; without TensorBoard. Same
environment, networks, batch, device and threads. Both take turns; seconds count from the first update on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import gymnasium
import numpy
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import mse_loss, relu

import runner

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: seconds of all threads, on a machine in use


class Critic(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, observations, actions):
        hidden = relu(self.second(relu(self.first(torch.cat([observations, actions], 1)))))
        return self.last(hidden)


class Actor(nn.Module):
    def __init__(self, inputs: int, hidden: int, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        size = space.shape[0]
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.mean, self.log_std = nn.Linear(hidden, size), nn.Linear(hidden, size)
        self.register_buffer("scale", torch.tensor((space.high - space.low) / 2))
        self.register_buffer("shift", torch.tensor((space.high + space.low) / 2))

    def forward(self, observations):
        hidden = relu(self.second(relu(self.first(observations))))
        std = (-5 + 3.5 * (torch.tanh(self.log_std(hidden)) + 1)).exp()
        normal = Normal(self.mean(hidden), std)
        before = normal.rsample()
        squashed = torch.tanh(before)
        density = normal.log_prob(before) - torch.log(self.scale * (1 - squashed.pow(2)) + 1e-6)
        return squashed * self.scale + self.shift, density.sum(1, keepdim=True)


def theirs(name: str, steps: int, hidden: int, batch: int, random_steps: int, clock: str) -> float:
    """Seconds of ``steps`` steps with updates, after ``random_steps`` without."""
    environments = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(name))],
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,  # what its gymnasium version does
    )
    space = environments.single_action_space
    size, width = environments.single_observation_space.shape[0], space.shape[0]
    actor = Actor(size, hidden, space)
    first, second, slow_first, slow_second = (Critic(size + width, hidden) for _ in range(4))
    slow_first.load_state_dict(first.state_dict())
    slow_second.load_state_dict(second.state_dict())
    critic_optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=1e-3)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha, alpha_optimizer = 1.0, torch.optim.Adam([log_alpha], lr=1e-3)
    store = [numpy.zeros((steps + random_steps, n), numpy.float32) for n in (size, width, 1, 1, size)]
    observations, _ = environments.reset(seed=0)
    started = CLOCKS[clock]()
    for step in range(steps + random_steps):
        if step == random_steps:
            started = CLOCKS[clock]()
        if step < random_steps:
            actions = numpy.array([space.sample()])
        else:
            actions = actor(torch.Tensor(observations))[0].detach().numpy()
        following, rewards, terminals, truncations, information = environments.step(actions)
        last = following.copy()
        for index, truncated in enumerate(truncations):
            if truncated:
                last[index] = information["final_obs"][index]
        parts = (observations, actions, rewards, terminals, last)
        for column, part in zip(store, parts, strict=True):
            column[step] = numpy.array(part).reshape(-1)
        observations = following
        if step < random_steps:
            continue
        rows = numpy.random.randint(0, step + 1, size=batch)
        now, done, reward, terminal, then = (torch.tensor(column[rows]) for column in store)
        with torch.no_grad():
            next_actions, density = actor(then)
            value = torch.min(slow_first(then, next_actions), slow_second(then, next_actions)) - alpha * density
            target = reward.flatten() + (1 - terminal.flatten()) * 0.99 * value.view(-1)
        first_loss = mse_loss(first(now, done).view(-1), target)
        second_loss = mse_loss(second(now, done).view(-1), target)
        critic_optimizer.zero_grad()
        (first_loss + second_loss).backward()
        critic_optimizer.step()
        if step % 2 == 0:
            for _ in range(2):
                drawn, density = actor(now)
                policy_loss = (alpha * density - torch.min(first(now, drawn), second(now, drawn))).mean()
                actor_optimizer.zero_grad()
                policy_loss.backward()
                actor_optimizer.step()
                with torch.no_grad():
                    _, density = actor(now)
                alpha_loss = (-log_alpha.exp() * (density - width)).mean()
                alpha_optimizer.zero_grad()
                alpha_loss.backward()
                alpha_optimizer.step()
                alpha = log_alpha.exp().item()
        for fast, slow in ((first, slow_first), (second, slow_second)):
            for parameter, follower in zip(fast.parameters(), slow.parameters(), strict=True):
                follower.data.copy_(0.005 * parameter.data + 0.995 * follower.data)
        if step % 100 == 0:
            _ = [loss.item() for loss in (first_loss, second_loss, policy_loss)]
    return CLOCKS[clock]() - started


def ours(name: str, steps: int, hidden: int, batch: int, random_steps: int, clock: str, threads: int) -> float:
    """The same of method ``sac``: a whole run, less one of the random steps alone."""

    def seconds(all_steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = CLOCKS[clock]()
            runner.run(
                [
                    *("method=sac", "scale=paper", "dataset=environment", f"dataset.id={name}", "tracking=none"),
                    *(f"method.steps={all_steps}", f"method.random_steps={random_steps}", f"paths.runs={folder}"),
                    *(f"method.batch_size={batch}", f"model.arguments.hidden=[{hidden},{hidden}]"),
                    *("method.evaluate_every=1000000000", "method.test_episodes=1", "hardware=cpu"),
                    f"hardware.threads={threads}",
                ]
            )
            return CLOCKS[clock]() - began

    return seconds(steps + random_steps) - seconds(random_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--random-steps", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    common = (options.environment, options.steps, options.hidden, options.batch, options.random_steps, options.clock)
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    ours(options.environment, 1, options.hidden, options.batch, 1, options.clock, options.threads)  # imports
    for _ in range(options.repeats):
        found["theirs"].append(options.steps / theirs(*common))
        found["ours"].append(options.steps / ours(*common, options.threads))
    rates = {who: statistics.median(values) for who, values in found.items()}
    print(
        f"{options.environment}, two layers of {options.hidden}, batch {options.batch}, {options.threads} threads, "
        f"{options.clock} clock"
    )
    print(f"{'CleanRL as published':24}{rates['theirs']:10.1f} environment steps/s")
    print(f"{'method sac':24}{rates['ours']:10.1f} environment steps/s")
    print(f"{'ratio':24}{rates['ours'] / rates['theirs']:10.2f}   (aim: at least 1.2)")


if __name__ == "__main__":
    main()
