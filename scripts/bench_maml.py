"""Tasks a second of second-order MAML: this inner loop against learn2learn's and a plain loop of torch.autograd.grad.

    python scripts/bench_maml.py [--tasks 4] [--channels 64] [--threads 2] [--device cpu]

5-way 1-shot, 15 queries a class, 28x28 images, four convolutions on batch statistics, five inner steps over all
weights; one step is the meta-gradient of a batch of tasks. All start from one network and must find one meta-gradient
(checked). learn2learn takes part where it is installed. Medians over repeats that take turns; prints a table.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.datasets.episodes import Tasks
from runner.methods.fewshot.gradient_learner import GradientLearner
from runner.methods.fewshot.inner_loop import over_tasks
from runner.models.few_shot import conv4

WAYS, QUERIES, SIDE, STEPS, RATE = 5, 15, 28, 5, 0.1
Step = Callable[[], list[Tensor]]


def make_tasks(count: int, device: str) -> Tasks:
    draws = torch.Generator().manual_seed(0)

    def part(examples: int) -> tuple[Tensor, Tensor]:
        images = torch.rand(count, WAYS * examples, 1, SIDE, SIDE, generator=draws)
        return images.to(device), torch.arange(WAYS, device=device).repeat_interleave(examples).repeat(count, 1)

    return Tasks(*part(1), *part(QUERIES))


def gradients_of(loss: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def ours(network: nn.Module, tasks: Tasks, batched: bool) -> Step:
    learner = GradientLearner(network, rate=RATE, steps=STEPS)
    return lambda: gradients_of(over_tasks(learner.outer, tasks, 0, batched=batched)["loss"].mean(), network)


def plain_loop(network: nn.Module, tasks: Tasks) -> Step:
    def loss_of(support: Tensor, targets: Tensor, query: Tensor, query_targets: Tensor) -> Tensor:
        weights = dict(network.named_parameters())
        for _ in range(STEPS):
            loss = cross_entropy(torch.func.functional_call(network, weights, (support,)), targets)
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - RATE * g for (name, w), g in zip(weights.items(), found, strict=True)}
        return cross_entropy(torch.func.functional_call(network, weights, (query,)), query_targets)

    return lambda: gradients_of(torch.stack([loss_of(*task) for task in zip(*tasks, strict=True)]).mean(), network)


def learn2learn(network: nn.Module, tasks: Tasks) -> Step:
    from learn2learn.algorithms.maml import MAML

    algorithm = MAML(network, lr=RATE, first_order=False)

    def step() -> list[Tensor]:
        losses = []
        for support, targets, query, query_targets in zip(*tasks, strict=True):
            learner = algorithm.clone()
            for _ in range(STEPS):
                learner.adapt(cross_entropy(learner(support), targets))
            losses.append(cross_entropy(learner(query), query_targets))
        return gradients_of(torch.stack(losses).mean(), network)

    return step


def all_steps(network: nn.Module, tasks: Tasks) -> dict[str, Step]:
    """A step of each inner loop, on copies of one network."""
    steps = {
        "ours, tasks at once": ours(copy.deepcopy(network), tasks, True),
        "ours, one by one": ours(copy.deepcopy(network), tasks, False),
        "plain loop": plain_loop(copy.deepcopy(network), tasks),
    }
    if importlib.util.find_spec("learn2learn") is not None:
        steps["learn2learn"] = learn2learn(copy.deepcopy(network), tasks)
    return steps


def check(steps: dict[str, Step]) -> None:
    """All find one meta-gradient; in double precision, where rounding cannot hide a mistake."""
    expected = steps["plain loop"]()
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for name, step in steps.items():
        gap = max(float((a - b).abs().max()) for a, b in zip(step(), expected, strict=True))
        if gap > 1e-6 * largest:
            raise SystemExit(f"{name}: the meta-gradient differs by {gap:.2e} (largest element {largest:.2e})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = conv4(WAYS, 1, SIDE, channels=options.channels).to(options.device)
    tasks = make_tasks(options.tasks, options.device)
    check(all_steps(network.double(), Tasks(*(part.double() if part.is_floating_point() else part for part in tasks))))
    steps = all_steps(network.float(), tasks)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    print(f"{options.tasks} tasks of {WAYS} ways, {options.channels} channels, torch {torch.__version__}, ", end="")
    print(f"{options.threads} threads, {options.device}")
    print("| inner loop | tasks a second | ms a meta-gradient | times the plain loop |\n|---|---|---|---|")
    base = statistics.median(seconds["plain loop"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"| {name} | {options.tasks / median:.1f} | {1000 * median:.0f} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
