"""Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, each drawn by 20 people, as tasks.

``dataset.path`` is a folder that holds the published zip files (any part of the set, such as the two small background
sets), one such zip, or what they unpack to; without it both published zips are fetched into paths.data. Images are
resized to 28x28 (``image_size``) and inverted: strokes are white. Characters are shuffled by a fixed seed, then divided
in the proportion 1028 : 172 : 423 of Vinyals et al. 2016; the published lists hold other characters.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from runner.datasets import archive, download, files
from runner.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.datasets.episodes import EpisodeData
    from runner.datasets.images import Limits
    from runner.schema import DatasetSettings

KIND = "episodes"
SIDE = 28
CHARACTERS, VALIDATION, TEST = 1623, 172, 423
SPLIT_SEED = 0
ZIPS = ("images_background.zip", "images_evaluation.zip")
SIZE = "16 MB"


def check(settings: DatasetSettings, data_root: Path, offline: bool) -> None:
    if settings.path is not None:
        for part in _parts(files.user_path(settings.path)):
            archive.check(part)
    elif not _published(data_root) and found_part({}, data_root) is None:
        download.check_allowed(_missing(data_root), data_root, offline)


def _published(data_root: Path) -> bool:
    return all((data_root / "omniglot" / name).is_file() for name in ZIPS)


def found_part(dataset: Mapping[str, Any], data_root: Path) -> Path | None:
    """The data root's folder, where it holds other zips than the two published ones (the small background sets)."""
    folder = data_root / "omniglot"
    return folder if not _published(data_root) and any(folder.glob("*.zip")) else None


def load(settings: DatasetSettings, limits: Limits, data_root: Path) -> EpisodeData:
    import torch

    from runner.datasets import decoded, episodes
    from runner.datasets.images import Images

    folder = data_root / "omniglot"
    if settings.path is None and not _published(data_root) and found_part({}, data_root) is None:
        _fetch(folder, data_root)
    path = folder if settings.path is None else files.user_path(settings.path)
    side = settings.image_size or SIDE
    classes, drawings = episodes.smoke_sizes(episodes.episode_settings(settings), limits.train)
    key = decoded.key(files.fingerprint(path, times=True), side, classes, drawings)
    stored = decoded.read(key)
    if stored is not None:
        splits, names, _ = stored
    else:
        found: dict[str, list[tuple[Path, str]]] = {}
        for part in _parts(path):
            own: dict[str, list[tuple[Path, str]]] = {}
            for name in sorted(archive.list_files(part)):
                words = PurePosixPath(name).parts
                if name.lower().endswith(".png") and len(words) >= 3 and "__MACOSX" not in words:
                    own.setdefault("/".join(words[-3:-1]), []).append((part, name))
            found |= own  # a character that two zips hold counts once
        if len(found) < 10:
            raise UserError(
                f"{path}: {len(found)} characters found; needs ALPHABET/CHARACTER/image.png, in zips or not"
            )
        names = sorted(found)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        held = [round(len(names) * count / CHARACTERS) for count in (VALIDATION, TEST)]
        last = len(names) - sum(held)
        parts = {"train": order[:last], "validation": order[last : last + held[0]], "test": order[last + held[0] :]}
        chosen = {
            split: {names[number]: found[names[number]][:drawings] for number in numbers[:classes]}
            for split, numbers in parts.items()
        }
        pixels = _read(chosen, side)
        splits = {}
        for split, characters in chosen.items():
            labels = torch.tensor([label for label, members in enumerate(characters.values()) for _ in members])
            images = torch.stack([pixels[place] for members in characters.values() for place in members])
            splits[split] = Images(images, labels, torch.arange(len(labels)))
        decoded.write(key, splits, names, [])
    return episodes.assemble(settings, "Omniglot", splits, names)


def _read(chosen: dict, side: int) -> dict:
    """(archive, name) -> (1, side, side) uint8."""
    import io

    import numpy
    import torch
    from PIL import Image

    places = [place for characters in chosen.values() for members in characters.values() for place in members]
    found = {}
    for part in {part for part, _ in places}:
        for name, content in archive.read_files(part, {name for where, name in places if where == part}):
            try:
                image = Image.open(io.BytesIO(content)).convert("L").resize((side, side), Image.Resampling.BILINEAR)
            except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
                raise UserError(f"{part}: the image {name} is damaged or cannot be read ({error})") from error
            found[part, name] = torch.from_numpy(255 - numpy.array(image))[None]
    return found


def _parts(path: Path) -> list[Path]:
    zips = sorted(path.glob("*.zip")) if path.is_dir() else []
    return zips or [path]


def _fetch(folder: Path, data_root: Path) -> None:
    from torchvision.datasets import Omniglot
    from torchvision.datasets.utils import download_url

    def fetch(temporary: Path) -> Path:
        for name in ZIPS:
            md5 = Omniglot.zips_md5[name.removesuffix(".zip")]
            download_url(f"{Omniglot.download_url_prefix}/{name}", temporary, name, md5)
        return temporary

    download.into(folder, fetch, f"downloading Omniglot ({SIZE})", _missing(data_root))


def _missing(data_root: Path) -> str:
    return f"Omniglot ({SIZE}) is not in {data_root / 'omniglot'}: put {' and '.join(ZIPS)} there, or set dataset.path"
