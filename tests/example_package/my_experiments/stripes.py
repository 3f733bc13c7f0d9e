import math

import torch
from torch.utils.data import Dataset

SIZES = {"train": 800, "test": 200}


class Stripes(Dataset):
    """Generated gratings in four directions with noise: item k is (uint8 (1, size, size), k mod 4)."""

    classes = ("horizontal", "rising", "vertical", "falling")

    def __init__(self, split, size, noise):
        self.first, self.count, self.size, self.noise = (0 if split == "train" else 10_000), SIZES[split], size, noise
        self.targets = [row % 4 for row in range(self.count)]

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        draws = torch.Generator().manual_seed(self.first + row)  # the same image whenever it is asked for
        frequency, phase = 0.6 + 0.6 * torch.rand(1, generator=draws), 6.28 * torch.rand(1, generator=draws)
        angle = math.pi / 4 * self.targets[row]
        down, right = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        wave = torch.sin(frequency * (math.cos(angle) * down + math.sin(angle) * right) + phase)
        wave = wave + self.noise * torch.randn(wave.shape, generator=draws)
        return (127.5 + 60 * wave).clamp(0, 255).to(torch.uint8)[None], self.targets[row]


def stripes(split, size=32, noise=0.5):
    """The splits are "train" and "test"; a path would be passed too, were dataset.path set."""
    return Stripes(split, size, noise)
