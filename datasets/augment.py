"""Random views of a batch of images, computed together on the batch's device; every image has its own draws.

All draws come from torch's global generator of that device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runner.schema import AugmentationSettings

BRIGHTNESS = 0.2  # on the 0-255 scale, so almost nothing; EKG's released code has it so (card 2.11)
CONTRAST = (0.8, 1.2)
SATURATION = (0.8, 1.2)
ERASED_AREA = (0.02, 0.4)  # of the image; this and the next are those of Zhong et al., arXiv:1708.04896
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_TRIALS = 100  # draws of a rectangle until one fits; then nothing is erased

WHOLE = slice(None)


def augment(
    images: Tensor, settings: AugmentationSettings | None, colour: bool, rows: slice = WHOLE, count: int | None = None
) -> Tensor:
    """A random view of each image (B,C,H,W) on the 0-255 scale: colour if asked, flip, pad and crop, policy, in this
    order. What comes behind normalising is ``erase``.

    EKG card 2.11 normalises between colour and flip; flip and crop only move pixels, so normalising the result is the
    same. Returns uint8 where nothing but pixels moved, float32 after a change of colour (which may leave 0..255).
    Where ``images`` are only the ``rows`` of a batch of ``count``, they get the views that they get in the whole batch.
    """
    count = len(images) if count is None else count
    if colour:
        images = vary_colour(images.float(), rows, count)
    if settings is None:
        return images
    images = move(images, settings, rows, count)
    if settings.policy is None:
        return images
    from runner.datasets.auto_augment import auto_augment  # torchvision takes a while

    return auto_augment(images, settings.policy, rows, count)


def move(images: Tensor, settings: AugmentationSettings, rows: slice, count: int) -> Tensor:
    """Flip, pad and crop as ``augment`` does."""
    device = images.device
    flip = torch.rand(count, device=device)[rows] < 0.5 if settings.horizontal_flip else None
    padding = settings.crop_padding
    if padding == 0:
        return images if flip is None else torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
    top = torch.randint(0, 2 * padding + 1, (count,), device=device)[rows]
    left = torch.randint(0, 2 * padding + 1, (count,), device=device)[rows]
    return flip_and_crop(images, flip, top, left, padding, settings.padding_mode)


def flip_and_crop(images: Tensor, flip: Tensor | None, top: Tensor, left: Tensor, padding: int, mode: str) -> Tensor:
    """Mirror the images (B,C,H,W) marked in flip (B,), pad all sides, cut H x W at (top, left) (B,), 0..2*padding.

    ``reflect`` pads without repeating the border (padding < H, W); ``constant`` pads with 0, black before normalising.
    """
    count, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + (top - padding).view(-1, 1)
    columns = torch.arange(width, device=device) + (left - padding).view(-1, 1)
    inside = None
    if mode == "constant":
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    else:
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    if flip is not None:  # the flip comes first, so the column counts from the other side of the padded image
        columns = torch.where(flip.view(-1, 1), width - 1 - columns, columns)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    moved = images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)
    return moved if inside is None else moved * inside


def erase(images: Tensor, probability: float, fill: Tensor, rows: slice = WHOLE, count: int | None = None) -> Tensor:
    """With ``probability`` a rectangle of an image (B,C,H,W), smaller than it both ways, becomes ``fill`` (C,)."""
    count, device = len(images) if count is None else count, images.device
    height, width = images.shape[-2:]
    erased = torch.rand(count, device=device) < probability
    sides = torch.zeros(2, count, dtype=torch.long, device=device)
    fits = torch.zeros(count, dtype=torch.bool, device=device)
    for _ in range(ERASING_TRIALS):
        area = torch.empty(count, device=device).uniform_(*ERASED_AREA) * (height * width)
        aspect = torch.empty(count, device=device).uniform_(*ERASED_ASPECT)
        drawn = torch.stack([area * aspect, area / aspect]).sqrt().round().long()
        sides = torch.where(fits, sides, drawn)
        fits = (sides[0] < height) & (sides[1] < width)
        if fits.all():
            break
    starts = torch.rand(2, count, device=device)
    inside = []
    for length, side, start in zip((height, width), sides, starts, strict=True):
        first = (start * (length - side + 1)).long()[rows, None]
        places = torch.arange(length, device=device)
        inside.append((places >= first) & (places < first + side[rows, None]))
    where = inside[0][:, :, None] & inside[1][:, None, :] & (erased & fits)[rows, None, None]
    return torch.where(where[:, None], fill.view(1, -1, 1, 1), images)


def vary_colour(images: Tensor, rows: slice = WHOLE, count: int | None = None) -> Tensor:
    """Brightness, then contrast, then saturation, each by a draw per image; (B,C,H,W) float on the 0-255 scale."""
    count, device = len(images) if count is None else count, images.device
    brightness, contrast, saturation = (
        torch.empty(count, device=device).uniform_(*limits)[rows]
        for limits in ((-BRIGHTNESS, BRIGHTNESS), CONTRAST, SATURATION)
    )
    return adjust_saturation(adjust_contrast(adjust_brightness(images, brightness), contrast), saturation)


def adjust_brightness(images: Tensor, delta: Tensor) -> Tensor:
    """Add delta (B,) to every pixel."""
    return images + delta.view(-1, 1, 1, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by factor (B,) about the mean of each channel of each image; not clipped."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor.view(-1, 1, 1, 1) + mean


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the saturation of HSV by factor (B,) >= 0, clip it to 0..1, keep hue and value; gray images stay.

    With V the largest channel and S = (V - smallest) / V, at constant hue and value a channel is V - S * (its share),
    so the new one is V - (V - channel) * S' / S, where S' / S = min(factor, 1 / S). As in TensorFlow, S = 0 for V <= 0
    (a contrast change can make pixels negative): all channels become V.
    """
    if images.shape[1] == 1:
        return images
    smallest, largest = images.aminmax(dim=1, keepdim=True)
    spread = (largest - smallest).clamp_min(torch.finfo(images.dtype).tiny)
    ratio = torch.minimum(factor.view(-1, 1, 1, 1), largest.clamp_min(0) / spread)
    return largest - (largest - images) * ratio


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()
