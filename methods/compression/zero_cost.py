"""Numbers that tell before training how well a network will do: (network, images, labels) of one batch to a score.

relu_codes: Mellor et al. 2021, arXiv:2006.04647, section 3. jacobian: the first version of that paper (2020).
synflow: Tanaka et al. 2020, arXiv:2006.05467; gradient_norm: as in Abdelfattah et al. 2021, arXiv:2101.08134.
Higher is better. No score changes the network: gradients, buffers and modes are afterwards as before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError

JACOBIAN_OFFSET = 1e-5  # k of the first version's score

Score = Callable[[nn.Module, Tensor, Tensor], float]


def relu_codes(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """log |det K| of the kernel of ``code_kernel``: how well the images' codes differ. -inf where two are equal."""
    return log_determinant(code_kernel(network, images)[0])


def units(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The number of ReLU units whose states make a code."""
    return float(code_kernel(network, images)[1])


def code_kernel(network: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """(K (N, N) float64, units): in how many ReLU units two images of the batch (N, C, H, W) have the same state.

    A unit is on where the input of its ReLU is above 0. ReLUs that no gradient of the output reaches do not count: a
    first pass forward and backward finds them. Batch normalisation uses the batch. Modules of nn.ReLU are seen, and a
    module that is called twice counts twice. Raises UserError: there is no such module.
    """
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    if not relus:
        raise UserError("the score relu_codes reads modules of torch.nn.ReLU, and this network has none")
    reached: set[nn.Module] = set()
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)
    counted = 0

    def mark(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.register_hook(lambda gradient: reached.add(module))

    def add(module: nn.Module, inputs: tuple[Tensor]) -> None:  # before the module, which may work in place
        nonlocal counted, kernel
        codes = (inputs[0] > 0).flatten(1)
        kernel += agreements(codes).cpu().double()
        counted += codes.shape[1]

    with untouched(network):
        with hooked([module.register_forward_hook(mark) for module in relus]):
            logits = network(images)
            torch.autograd.backward(logits, torch.ones_like(logits))
        with hooked([module.register_forward_pre_hook(add) for module in reached]), torch.no_grad():
            network(images)
    return kernel, counted


def agreements(codes: Tensor) -> Tensor:
    """(N, N): c_i.c_j + (1-c_i).(1-c_j) of boolean codes (N, units), exact for up to 2^24 units."""
    signs = codes.float() * 2 - 1
    return (signs @ signs.T + codes.shape[1]) / 2


def log_determinant(kernel: Tensor) -> float:
    """log |det| of a square matrix; -inf where it is singular."""
    return torch.linalg.slogdet(kernel.double()).logabsdet.item()


def jacobian(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """How little the gradients of the summed outputs in the images correlate (first version of NASWOT)."""
    images = images.clone().requires_grad_()
    with untouched(network):
        logits = network(images)
        (gradients,) = torch.autograd.grad(logits, images, torch.ones_like(logits))
    return correlation_score(torch.corrcoef(gradients.flatten(1).double()))


def correlation_score(correlations: Tensor) -> float:
    """-sum of log(l + k) + 1 / (l + k) over the eigenvalues l of a correlation matrix; NaN where it has one."""
    if not correlations.isfinite().all():
        return float("nan")
    shifted = torch.linalg.eigvalsh(correlations) + JACOBIAN_OFFSET
    return -(shifted.log() + 1 / shifted).sum().item()


def gradient_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The sum over layers of the Euclidean norm of the loss's gradient in the weights."""
    with untouched(network):
        loss = cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, layer_weights(network), allow_unused=True)
    return sum(gradient.norm().item() for gradient in gradients if gradient is not None)


def synflow(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The sum of weight x gradient of the summed outputs, all weights positive, an image of ones, no normalisation."""
    positive = copy.deepcopy(network).double().eval()
    for parameter in positive.parameters():
        parameter.data.abs_()
    weights = layer_weights(positive)
    output = positive(torch.ones_like(images[:1], dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(output, weights, allow_unused=True)
    pairs = zip(weights, gradients, strict=True)
    return sum((weight * gradient).sum().item() for weight, gradient in pairs if gradient is not None)


def parameters(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The number of trainable numbers."""
    return float(sum(parameter.numel() for parameter in network.parameters()))


def random(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """A standard normal number: a search by it is a random pick."""
    return torch.randn(()).item()


SCORES: dict[str, Score] = {
    score.__name__: score for score in (relu_codes, jacobian, parameters, units, gradient_norm, synflow, random)
}


def layer_weights(network: nn.Module) -> list[Tensor]:
    """The weights of convolutions and linear layers."""
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return [module.weight for module in network.modules() if isinstance(module, layers)]


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in training mode, and may be run forward and backward; afterwards it is as before."""
    modes = {module: module.training for module in network.modules()}
    gradients = {parameter: parameter.grad for parameter in network.parameters()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


@contextmanager
def hooked(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Inside, the hooks stand."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
