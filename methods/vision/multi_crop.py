"""Two large and several small views of an image: the crops of I-VNE+ (arXiv:2304.01434; jaeill/CVPR23-VNE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from runner.datasets.images import Normalisation

# shares of the image's area
LARGE, SMALL, PROBE = (0.14, 1.0), (0.05, 0.14), (0.2, 1.0)
Pixels = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


def odd_kernel(size: int) -> int:
    """Width of the blur of a crop: about a tenth of it, odd; 23 for 224 pixels and 9 for 96."""
    return size // 10 // 2 * 2 + 1


def crop(size: int, scale: tuple[float, float], always_blurred: bool) -> v2.Compose:
    """A view of uint8 images (C, H, W): random crop, flip, colour, grey, and one of the two flavours: always blurred,
    or blurred one time in ten and solarised two times in ten."""
    blur = v2.GaussianBlur(odd_kernel(size), (0.1, 2.0))
    flavour = [blur] if always_blurred else [v2.RandomApply([blur], 0.1), v2.RandomSolarize(128, 0.2)]
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            *flavour,
        ]
    )


def probe_crops(size: int) -> v2.Compose:
    """Training views of the linear probe: uint8 images (C, H, W) cut at random and mirrored."""
    return v2.Compose([v2.RandomResizedCrop(size, PROBE, antialias=True), v2.RandomHorizontalFlip(0.5)])


@dataclass
class MultiCrop:
    """``large`` views of ``large_size`` pixels and ``small`` ones of ``small_size``, the two flavours in turn."""

    normalisation: Normalisation
    large_size: Pixels
    small_size: Pixels
    large: Count = 2
    small: Count = 4

    def __post_init__(self) -> None:
        self.crops = [crop(self.large_size, LARGE, number % 2 == 0) for number in range(self.large)]
        self.crops += [crop(self.small_size, SMALL, number % 2 == 0) for number in range(self.small)]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Views (B, C, S, S), normalised, of normalised un-augmented images (B, C, H, W); every image has its own draws
        from torch's global generator."""
        pixels = original_pixels(images, self.normalisation)
        return [renormalised(torch.stack([view(image) for image in pixels]), self.normalisation) for view in self.crops]


def original_pixels(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalised images (B, C, H, W) as the uint8 that they came from."""
    mean, std = (value.to(images.device).view(-1, 1, 1) for value in (normalisation.mean, normalisation.std))
    return (images * std + mean).round().clamp(0, 255).to(torch.uint8)


def renormalised(pixels: Tensor, normalisation: Normalisation) -> Tensor:
    """uint8 images (B, C, H, W) normalised."""
    mean, std = (value.to(pixels.device).view(-1, 1, 1) for value in (normalisation.mean, normalisation.std))
    return (pixels.float() - mean) / std
