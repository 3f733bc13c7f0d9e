"""AutoAugment (Cubuk et al., arXiv:1805.09501) of a batch of images, each with draws of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

FILL = 128.0  # of what is moved out of the image


class DrawnPolicy(AutoAugment):
    """torchvision's policies with draws that come from outside."""

    drawn: tuple[int, Tensor, Tensor]

    def get_params(self, transform_num: int) -> tuple[int, Tensor, Tensor]:
        """(Sub-policy, for each of its two operations a number in 0..1 that lets it happen, and its sign)."""
        return self.drawn


def auto_augment(images: Tensor, policy: str, rows: slice, count: int) -> Tensor:
    """One of the sub-policies of AutoAugment ("cifar10", "svhn", "imagenet") for each image (B,C,H,W); uint8."""
    transform = DrawnPolicy(AutoAugmentPolicy(policy), fill=[FILL] * images.shape[1])
    chosen = torch.randint(len(transform.policies), (count,))[rows].tolist()
    happens, signs = torch.rand(count, 2)[rows], torch.randint(2, (count, 2))[rows]
    if images.dtype != torch.uint8:
        images = images.round().clamp(0, 255).to(torch.uint8)
    views = []
    for number, image in enumerate(images):
        transform.drawn = (chosen[number], happens[number], signs[number])
        views.append(transform(image))
    return torch.stack(views)
