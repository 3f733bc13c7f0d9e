"""Small networks and tasks in double precision."""

import math

import torch

from runner.datasets.episodes import Tasks
from runner.models.few_shot import conv4

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 2, 8


def convolutions(bias: bool = False) -> torch.nn.Module:
    """Two layers of 4 channels on 8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return conv4(WAYS, 1, SIDE, channels=4, layers=2, bias=bias).double()


def image_tasks(count: int, seed: int = 0) -> Tasks:
    draws = torch.Generator().manual_seed(seed)
    classes = torch.rand(count, WAYS, 1, 1, SIDE, SIDE, generator=draws, dtype=torch.float64)

    def part(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(count, WAYS, examples, 1, SIDE, SIDE, generator=draws, dtype=torch.float64)
        return (classes + noise).flatten(1, 2), torch.arange(WAYS).repeat_interleave(examples).repeat(count, 1)

    return Tasks(*part(SHOTS), *part(QUERIES))


def perceptron_tasks(count: int) -> Tasks:
    draws = torch.Generator().manual_seed(0)
    points = 4 * torch.rand(count, 8, 1, generator=draws, dtype=torch.float64)
    return Tasks(points[:, :5], points[:, :5].sin(), points[:, 5:], points[:, 5:].sin())


def wave(*shape: int, start: int = 0, step: float = 1.7) -> torch.Tensor:
    """sin(step * (start + 0)), sin(step * (start + 1)), ...: values that no random stream decides."""
    return torch.arange(start, start + math.prod(shape), dtype=torch.float64).mul(step).sin().view(shape)


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter by ``wave``, that of number k from k on, halved."""
    module.double()
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.5 * wave(*parameter.shape, start=number)
    return module


def wave_tasks(count: int) -> Tasks:
    """Images of ``wave``, with the classes in order."""
    support = wave(count, WAYS * SHOTS, 1, SIDE, SIDE, step=2.3)
    query = wave(count, WAYS * QUERIES, 1, SIDE, SIDE, step=2.9)
    classes = torch.arange(WAYS)
    targets = [classes.repeat_interleave(examples).repeat(count, 1) for examples in (SHOTS, QUERIES)]
    return Tasks(support, targets[0], query, targets[1])
