"""Shifted patch tokenization (SPT) and locality self-attention (LSA) for vision transformers on small data sets.

Lee, Lee and Song, "Vision Transformer for Small-Size Datasets", arXiv:2112.13492, sections 3.1 and 3.2. Official code:
aanna0701/SPT_LSA_ViT. The two pieces stand in runner/models/transformers.py, where ViT, PiT, Swin, CaiT and T2T-ViT
take them from; here it is decided which of them are on. The paper's names: T-ViT is the learnable temperature alone,
M-ViT the diagonal mask alone, L-ViT both, S-ViT the shifted patches alone, SL-ViT all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runner.errors import UserError
from runner.fit import fit, test_metrics
from runner.models import import_target
from runner.models.transformers import AttentionMap

if TYPE_CHECKING:
    from runner.context import Context

PROBED = 256  # test images on which the attention is looked at


@dataclass(kw_only=True)
class SptLsa:
    """Vision transformers for small data sets: shifted patches and attention made local."""

    shifts: Literal["none", "diagonal", "cardinal", "all"] = "diagonal"  # directions of the copies; none: plain patches
    shift_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the patch's side, rounded down; at least one pixel
    shift_pooling: bool = True  # PiT and Swin: the pooling between stages by shifted patches too
    learnable_temperature: bool = True  # a factor of the logits for every head and layer
    diagonal_mask: bool = True  # no token attends to itself
    cait_mask_bug: bool = False  # CaiT: 0 on the diagonal before the heads are mixed, as the released code has it

    paper: ClassVar[str] = "arXiv:2112.13492"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Tokens that see half a patch of their neighbours and sharper attention without self-relation let vision "
        "transformers learn from small data sets: +2.96 points on Tiny-ImageNet in the mean of five backbones."
    )
    citation: ClassVar[str] = "Lee, Lee and Song. Vision Transformer for Small-Size Datasets. arXiv:2112.13492, 2021."
    data: ClassVar[tuple[str, ...]] = ("images",)
    model: ClassVar[tuple[str, ...]] = ("vision transformer",)
    soft_labels: ClassVar[bool] = True
    deviations: ClassVar[tuple[str, ...]] = (
        "the code's 100 epochs of three passes are 300 epochs here, so an incomplete batch is left out of every pass, "
        "not of every third, and a validation split is measured after each",
        "AutoAugment is torchvision's (operations on tensors, interpolation by the nearest pixel, rotation both ways, "
        "not counter-clockwise alone)",
        "MixUp and CutMix are torchvision's: an image's partner is the one before it in the shuffled batch",
        "accuracy is the last epoch's; the code prints the best on the test split too, and the paper does not say "
        "which it reports",
        "CaiT: the diagonal is masked behind the mixing of the heads; cait_mask_bug gives the released code's",
        "ImageNet-1K: the paper's settings are not published, so only its numbers are listed",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats), accuracy_best_validation if there is a validation split, and of the
        attention: scale and scale_start (mean factor of the logits after and before the training, the inverse of the
        temperature) and divergence_from_uniform (mean KL in nats)."""
        self.check_network(ctx)
        pieces = {"locality": asdict(self)}
        network = ctx.model(arguments=pieces)
        maps = attention_maps(network)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            ctx.log(scale=mean_scale(maps))
            return cross_entropy(network(images), labels, label_smoothing=ctx.recipe.label_smoothing)

        fitted = fit(ctx, network, loss)
        attention = ctx.once("attention", lambda: self.look_at_attention(ctx, network))
        ctx.log(**attention)
        ctx.profile(network, "final")
        ctx.save_model(network, arguments=pieces)
        return {
            **test_metrics(ctx, network, fitted),
            "scale": mean_scale(maps).item(),
            "scale_start": sum(entry.start for entry in maps.values()) / len(maps),
            "divergence_from_uniform": attention["divergence_from_uniform"],
        }

    def check_network(self, ctx: Context) -> None:
        """Raises UserError where the config's network takes none of the pieces."""
        settings = ctx.settings.model
        if not settings.target or "locality" not in inspect.signature(import_target(settings.target)).parameters:
            raise UserError(
                f"model={settings.name}: no vision transformer that takes shifted patches and local attention; use "
                "model=vit, pit, swin, t2t or cait, or a network of your own whose function has a parameter 'locality'"
            )

    def look_at_attention(self, ctx: Context, network: nn.Module) -> dict[str, float]:
        """Of every layer the mean temperature and the mean divergence from uniform attention, on test images."""
        batches = ctx.batches("test", PROBED, shuffle=False, augment=False)
        images = next(iter(batches.iterate(0)))[0]
        divergences = divergences_from_uniform(network, images)
        found: dict[str, float] = {"divergence_from_uniform": sum(divergences.values()) / len(divergences)}
        for number, (name, entry) in enumerate(attention_maps(network).items(), 1):
            found[f"temperature_layer_{number}"] = (1 / entry.scale.detach()).mean().item()
            found[f"divergence_layer_{number}"] = divergences[name]
        return found


def attention_maps(network: nn.Module) -> dict[str, AttentionMap]:
    """The attention of every layer by name, from the input on."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AttentionMap)}


def mean_scale(maps: dict[str, AttentionMap]) -> Tensor:
    """Mean over the layers of the mean over a layer's heads of the factor of the logits."""
    return torch.stack([entry.scale.detach().mean() for entry in maps.values()]).mean()


def divergence_from_uniform(weights: Tensor) -> Tensor:
    """KL(attention || uniform) in nats of weights (..., N), whose rows sum to 1: log N minus their entropy."""
    return torch.special.xlogy(weights, weights * weights.shape[-1]).sum(-1)


def divergences_from_uniform(network: nn.Module, images: Tensor) -> dict[str, float]:
    """The mean of it over images, heads and tokens, for every layer; the network is in evaluation mode meanwhile."""
    found: dict[str, float] = {}
    maps = attention_maps(network)

    def keep(name: str) -> object:
        return lambda module, inputs, weights: found.update({name: divergence_from_uniform(weights).mean().item()})

    hooks = [entry.register_forward_hook(keep(name)) for name, entry in maps.items()]
    try:
        with evaluation(network), torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode that was."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
