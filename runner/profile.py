"""How large and how fast a network is: parameters and FLOPs by the EKG counting rule, latency by measurement."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

WARM_UP_SHARE = 0.2  # of the time budget of one batch size


class Counts(NamedTuple):
    """``params``: numbers stored; ``flops``: multiply-adds of one example."""

    params: int
    flops: int


def count(model: nn.Module, input_shape: Sequence[int]) -> Counts:
    """Parameters and FLOPs of ``model`` for one input of ``input_shape`` (channels, height, width).

    The rule of EKG (arXiv:2203.02651, its released code): a convolution costs kernel area x input channels per group x
    output elements, a linear layer its inputs x outputs (at every position), batch normalisation 2 per element, all
    else nothing. Parameters are all weights and biases, and 4 a channel in batch normalisation (scale, shift, mean,
    variance). Measured by one forward pass of a zero input in evaluation mode; the model's modes, statistics and the
    random state are as before afterwards.
    """
    flops = 0

    def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal flops
        if isinstance(module, CONVOLUTIONS | LINEAR):
            flops += output.numel() * module.weight[0].numel()
        else:
            flops += 2 * output.numel()

    counted = [module for module in model.modules() if isinstance(module, CONVOLUTIONS | LINEAR | NORMALISATIONS)]
    hooks = [module.register_forward_hook(add) for module in counted]
    try:
        with _evaluation(model):
            model(_zeros(model, 1, input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    params = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, NORMALISATIONS) and module.running_mean is not None:
            params += module.running_mean.numel() + module.running_var.numel()
    return Counts(params, flops)


def latency_ms(
    model: nn.Module,
    input_shape: Sequence[int],
    device: torch.device | str,
    batch_sizes: Sequence[int] = (1, 64),
    *,
    seconds: float = 0.5,
    most_repeats: int = 200,
) -> dict[str, float]:
    """Median milliseconds of a forward pass of a whole batch on ``device``, by batch size.

    Evaluation mode, no gradients, float inputs of zeros. ``seconds`` bounds the time spent on each batch size: at least
    one pass to warm up (none with 0 seconds) and one that is timed, whatever they take. A model on another device is
    copied there.
    """
    device = torch.device(device)
    first = next(model.parameters(), None)
    if first is not None and first.device.type != device.type:
        model = copy.deepcopy(model).to(device)
    result = {}
    with _evaluation(model):
        for batch_size in batch_sizes:
            inputs = _zeros(model, batch_size, input_shape, device)
            warm_up_end = time.perf_counter() + WARM_UP_SHARE * seconds
            end = time.perf_counter() + seconds
            if seconds:
                _timed_pass(model, inputs, device)
            while time.perf_counter() < warm_up_end:
                _timed_pass(model, inputs, device)
            times = [_timed_pass(model, inputs, device)]
            while time.perf_counter() < end and len(times) < most_repeats:
                times.append(_timed_pass(model, inputs, device))
            result[str(batch_size)] = 1000 * statistics.median(times)
    return result


CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
LINEAR = nn.Linear
NORMALISATIONS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def _timed_pass(model: nn.Module, inputs: torch.Tensor, device: torch.device) -> float:
    """Seconds of one forward pass, the device's queue empty before and after."""
    _synchronise(device)
    start = time.perf_counter()
    model(inputs)
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _zeros(
    model: nn.Module, batch_size: int, input_shape: Sequence[int], device: torch.device | None = None
) -> torch.Tensor:
    first = next(model.parameters(), torch.zeros(0))
    return torch.zeros(batch_size, *input_shape, dtype=first.dtype, device=device or first.device)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode and the random state are restored."""
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), torch.zeros(0))
    devices = [first.device] if first.device.type == "cuda" else []
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
