"""torchvision's ImageNet weights of the zoo's networks: which, where they lie, fetching them. Light: no torch.

They lie where torch keeps them (TORCH_HOME, else ~/.cache/torch), so a file that any program fetched is used. The
first eight digits of a file's sha256 stand in its published name, and are checked before it is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WORD = "imagenet"  # what model.weights says
ADDRESS = "https://download.pytorch.org/models/"
# torchvision's transforms, on the 0-255 scale
NORMALISATION = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@dataclass(frozen=True)
class Published:
    """``name`` is torchvision's; ``file`` ends with the first eight digits of its sha256."""

    name: str
    file: str
    megabytes: float


PUBLISHED = {
    "resnet18": Published("ResNet18_Weights.IMAGENET1K_V1", "resnet18-f37072fd.pth", 46.8),
    "resnet34": Published("ResNet34_Weights.IMAGENET1K_V1", "resnet34-b627a593.pth", 87.3),
    "resnet50": Published("ResNet50_Weights.IMAGENET1K_V1", "resnet50-0676ba61.pth", 102.5),
    "mobilenet_v2": Published("MobileNet_V2_Weights.IMAGENET1K_V1", "mobilenet_v2-b0353104.pth", 14.2),
    "shufflenet_v2": Published("ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1", "shufflenetv2_x1-5666bf0f80.pth", 9.2),
    "vgg16_bn": Published("VGG16_BN_Weights.IMAGENET1K_V1", "vgg16_bn-6c64b313.pth", 553.5),
}


def published(network: str | None) -> Published:
    """The weights of a network of the zoo; ``network`` None is the user's own. Raises UserError: there are none."""
    if network not in PUBLISHED:
        raise UserError(
            f"model.weights={WORD}: there are none for {network or 'a network of your own (model.target)'}; "
            f"there are for {', '.join(PUBLISHED)}. A file or a run folder: model.weights=PATH"
        )
    return PUBLISHED[network]


def place(weights: Published) -> Path:
    """Where the file lies or will lie: torch's own folder for it."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / weights.file


def check(network: str | None, offline: bool) -> None:
    """Raises UserError: no such weights, or a needed download is forbidden or has no place to go."""
    from runner.datasets import download

    weights = published(network)
    if not place(weights).is_file():
        download.check_allowed(_missing(weights), place(weights).parent, offline, setting="TORCH_HOME")


def read(network: str, offline: bool) -> dict[str, Tensor]:
    """All tensors, on the CPU; fetched first where they are not here. Raises UserError, also for a damaged file."""
    import hashlib
    import pickle

    import torch

    weights = published(network)
    file, digits = place(weights), weights.file.removesuffix(".pth").rpartition("-")[2]
    if not file.is_file():
        check(network, offline)
        _fetch(weights, digits)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        if not found.startswith(digits):
            raise RuntimeError("its checksum differs")
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, or put a good copy there") from error


def _fetch(weights: Published, digits: str) -> None:
    import sys

    import torch

    from runner.datasets import download

    def fetch(folder: Path) -> Path:
        target = str(folder / weights.file)
        torch.hub.download_url_to_file(ADDRESS + weights.file, target, digits, progress=sys.stderr.isatty())
        return folder

    doing = f"downloading {weights.name} ({weights.megabytes} MB)"
    download.into(place(weights).parent, fetch, doing, _missing(weights))


def _missing(weights: Published) -> str:
    return (
        f"model.weights={WORD}: {weights.name} ({weights.megabytes} MB) is not here: put {weights.file} of torchvision "
        f"into {place(weights).parent}"
    )
