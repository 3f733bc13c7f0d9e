"""Networks of actors and critics: ensembles run as one, and tanh-Gaussian policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
LOG_STD_RANGE = (-20.0, 2.0)


class Ensemble(nn.Module):
    """N networks of one architecture. Perceptrons run together, one batched product a layer, others one by one.

    Args:
        members: networks of (B, in) to (B, out). Of perceptrons (``nn.Sequential`` of ``nn.Linear`` with functions
            between) the weights are copied: N matrices (N, in, out) and biases (N, 1, out) a layer.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(members)
        self.members: nn.ModuleList | None = None
        self._steps: list[tuple[nn.Parameter, nn.Parameter] | nn.Module] = []  # of the forward pass
        if not all(is_perceptron(member) for member in members):
            self.members = nn.ModuleList(members)
            return
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for parts in zip(*members, strict=True):
            if isinstance(parts[0], nn.Linear):
                self.weights.append(nn.Parameter(torch.stack([part.weight.detach().T for part in parts])))
                self.biases.append(nn.Parameter(torch.stack([part.bias.detach()[None] for part in parts])))
                self._steps.append((self.weights[-1], self.biases[-1]))
            else:
                self._steps.append(parts[0])

    def forward(self, inputs: Tensor, *, frozen: bool = False) -> Tensor:
        """(N, B, out) from (B, in), the same for all, or (N, B, in). Frozen: gradients reach the inputs only."""
        if inputs.ndim == 2:
            inputs = inputs.expand(self.size, *inputs.shape)
        if self.members is not None:
            return torch.stack([_call(member, part, frozen) for member, part in zip(self.members, inputs, strict=True)])
        for step in self._steps:
            if isinstance(step, tuple):
                weight, bias = (step[0].detach(), step[1].detach()) if frozen else step
                inputs = torch.baddbmm(bias, inputs, weight)
            else:
                inputs = step(inputs)
        return inputs


def is_perceptron(network: nn.Module) -> bool:
    """Whether it is a chain of linear layers with biases and functions without weights."""
    return isinstance(network, nn.Sequential) and all(
        (isinstance(part, nn.Linear) and part.bias is not None) or not [*part.parameters(), *part.buffers()]
        for part in network
    )


def _call(network: nn.Module, inputs: Tensor, frozen: bool) -> Tensor:
    if not frozen:
        return network(inputs)
    return functional_call(network, {name: value.detach() for name, value in network.named_parameters()}, (inputs,))


def squash(before: Tensor, noise: Tensor, std: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
    """tanh(u) and its log-density (..., 1 per action vector) for u = mean + std * noise, u = ``before`` (..., da).

    log pi = log N(u) - sum_j log(1 - tanh(u_j)^2 + 1e-6), or ``exact``: log(1 - tanh(u)^2) as
    2 (log 2 - u - softplus(-2 u)).
    """
    action = torch.tanh(before)
    normal = -0.5 * noise.square() - std.log() - HALF_LOG_TWO_PI
    return action, (normal - log_slope(before, action, exact=exact)).sum(-1)


def log_slope(before: Tensor, action: Tensor, *, exact: bool) -> Tensor:
    """log d tanh(u)/du, elementwise."""
    if exact:
        return 2 * (math.log(2) - before - softplus(-2 * before))
    return (1 - action.square() + 1e-6).log()


def merge_gaussians(means: Tensor, stds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (...) of the equal mixture of N Gaussians (N, ...), by moment matching.

    mean = mean_i mu_i, variance = mean_i (sigma_i^2 + mu_i^2) - mean^2, the deviation within [e^-20, e^2]
    (Lee et al. 2021, arXiv:2107.00591).
    """
    mean = means.mean(0)
    variance = (means - mean).square().mean(0) + stds.square().mean(0)  # the same, without cancellation
    low, high = (math.exp(bound) for bound in LOG_STD_RANGE)
    return mean, variance.sqrt().clamp(low, high)


class TanhGaussian(nn.Module):
    """The policy a = tanh(u), u ~ N(mean(s), std(s)^2); of several networks, the Gaussian of their mixture.

    Args:
        networks: observations (B, ds) to (N, B, 2 da), the means and the log-deviations (cut to [-20, 2]).
        exact: the form of the log-density, see ``squash``.
    """

    def __init__(self, networks: Ensemble, *, exact: bool = False) -> None:
        super().__init__()
        self.networks, self.exact = networks, exact

    def gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, da) of u."""
        mean, log_std = self.networks(observations).chunk(2, dim=-1)
        std = log_std.clamp(*LOG_STD_RANGE).exp()
        return (mean[0], std[0]) if self.networks.size == 1 else merge_gaussians(mean, std)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """A drawn action (B, da), with its path to the weights, and its log-density (B,)."""
        mean, std = self.gaussian(observations)
        noise = torch.randn_like(mean)
        return squash(mean + std * noise, noise, std, exact=self.exact)

    def several(self, observations: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """``count`` actions an observation, (count, B, da), and log-densities (count, B)."""
        mean, std = self.gaussian(observations)
        noise = torch.randn(count, *mean.shape, device=mean.device)
        return squash(mean + std * noise, noise, std, exact=self.exact)

    def log_density(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Of given actions, (B,); those on the border count as just inside."""
        mean, std = self.gaussian(observations)
        inside = actions.clamp(-1 + 1e-6, 1 - 1e-6)
        before = torch.atanh(inside)
        return squash(before, (before - mean) / std, std, exact=self.exact)[1]

    def act(self, observations: Tensor, *, explore: bool) -> Tensor:
        """Actions (B, da) for the environment, drawn or tanh(mean), without gradients."""
        with torch.inference_mode():
            mean, std = self.gaussian(observations)
            return torch.tanh(torch.normal(mean, std) if explore else mean)
