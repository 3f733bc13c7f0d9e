"""Weights on disk: where they come from, what that origin asks for, and loading them (only that imports torch)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.errors import UserError, did_you_mean
from runner.models.resize import resize_to

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the place where weights were trained asks of whoever uses them; None where it says nothing."""

    network: str | None = None  # zoo name
    target: str | None = None  # package:function of a network outside the zoo's names
    arguments: dict[str, Any] = field(default_factory=dict)  # with which it was called
    num_classes: int | None = None
    channels: int | None = None
    stem: Literal["imagenet", "cifar"] | None = None
    padding: Literal["symmetric", "tensorflow"] | None = None
    normalisation: dict[str, list[float]] | None = None  # {mean, std}, one number a channel on the 0-255 scale
    dataset: str | None = None  # in words, printed
    names: dict[str, str] = field(default_factory=dict)  # regular expression in tensor names -> replacement, in order
    widths: dict[str, list[int]] | None = None  # weight shape of every module that pruning can change


# Released files, by sha256: (bytes, origin). The size comes first, so that a large file is not read to be known.
KNOWN_FILES: dict[str, tuple[int, Origin]] = {
    "e41e662c54825e369653f933a1b6c61b616251a115f26ab897445d3a93d224d2": (
        3464624,
        Origin(
            network="resnet56",
            num_classes=10,
            channels=3,
            padding="tensorflow",
            normalisation={"mean": [113.9, 123.0, 125.3], "std": [66.7, 62.1, 63.0]},
            dataset="ResNet-56 released with EKG, trained on CIFAR-10 in TensorFlow",
            names={
                r"^conv\.": "conv1.",
                r"^bn\.": "bn1.",
                r"^block0\.": "layer1.",
                r"^block1\.": "layer2.",
                r"^block2\.": "layer3.",
                r"\.conv3\.": ".downsample.0.",
                r"\.bn3\.": ".downsample.1.",
            },
        ),
    ),
}

ARCHITECTURE_FIELDS = ("name", "target", "arguments", "num_classes", "channels", "stem", "padding", "widths")


def origin_of(path: str | Path) -> Origin | None:
    """What the origin of the weights at ``path`` asks for; None when nothing is known about it.

    ``path`` is a run folder (its architecture.json says it) or a .safetensors file: ``FILE.json`` beside it, an object
    with fields of Origin, wins over the table of released files. Imports no torch. Raises UserError: missing file,
    unreadable or mistyped description.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        architecture = read_architecture(find_product(path))
        return Origin(
            network=None if architecture["target"] else architecture["name"],
            target=architecture["target"],
            arguments=architecture["arguments"],
            num_classes=architecture["num_classes"],
            channels=architecture["channels"],
            stem=None if architecture["target"] else architecture["stem"],
            padding=None if architecture["target"] else architecture["padding"],
            normalisation=architecture.get("normalisation"),
            dataset=architecture.get("dataset"),
            widths=architecture["widths"],
        )
    _check_file(path)
    sidecar = path.with_name(path.name + ".json")
    if sidecar.exists():
        return _read_sidecar(sidecar)
    size = path.stat().st_size
    if any(size == known for known, _ in KNOWN_FILES.values()):
        _, origin = KNOWN_FILES.get(sha256(path), (0, None))
        return origin
    return None


def load_weights(model: nn.Module, path: str | Path, *, head: str = "keep") -> Origin | None:
    """Load the weights at ``path`` (a .safetensors file or a run folder) into ``model``, in place; return their origin.

    Names are mapped as the origin says and a ``module.`` prefix of all names is dropped; pruned widths of a run folder
    resize the network first. Counters of batches seen by batch normalisation may be absent. For ``head`` see
    ``assign_all``. Raises UserError: missing or truncated file, tensors that are missing, left over or of another
    shape.
    """
    path = Path(path).expanduser()
    origin = origin_of(path)
    file = find_product(path) / "weights.safetensors" if path.is_dir() else path
    assign_all(model, read_tensors(file), file, origin, head=head)
    return origin


def assign_all(
    model: nn.Module, tensors: dict[str, Tensor], file: Path, origin: Origin | None = None, *, head: str = "keep"
) -> None:
    """Give ``model`` the tensors of a ``file``: names mapped and widths taken over as the origin says.

    ``head`` at ``reinit`` leaves out the classifier, which is the network's last linear layer: it is initialised again
    (weights N(0, 0.01), bias 0), and may have another number of classes than the file's.
    """
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if origin:
        tensors = {_rename(name, origin.names): tensor for name, tensor in tensors.items()}
    classifier = head_of(model)
    widths = dict(origin.widths) if origin and origin.widths else None
    if head == "reinit":
        if classifier is None:
            raise UserError("model.head=reinit: the network has no linear layer that could be its classifier")
        layer = model.get_submodule(classifier)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{classifier}.")}
        if widths and classifier in widths:
            widths[classifier] = [layer.out_features, widths[classifier][1]]
    if widths:
        resize_to(model, widths)
    if head == "reinit":
        layer.weight.data.normal_(0, 0.01)
        if layer.bias is not None:
            layer.bias.data.zero_()
        tensors |= {f"{classifier}.{name}": value.detach() for name, value in layer.named_parameters()}
    bias = tensors.get(f"{classifier}.bias")
    differs = bias is not None and len(bias) != model.get_submodule(classifier).out_features
    assign(model, tensors, file, "; model.head=reinit replaces the classifier" if differs else "")


def head_of(model: nn.Module) -> str | None:
    """The name of the last linear layer, which every classifier of the zoo ends with."""
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def assign(model: nn.Module, tensors: dict[str, Tensor], file: Path, cure: str = "") -> None:
    """Copy ``tensors`` into ``model``; every name and shape must agree, else UserError naming the first few."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if hasattr(tensor, "shape")}
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the network has {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for what, found in (("missing", missing), ("unknown to the network", unexpected), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise UserError(f"{file}: weights of another network; tensors {'; '.join(problems)}{cure}")
    model.load_state_dict(tensors, strict=False)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU. Raises UserError where it is missing, truncated or corrupt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: no readable safetensors file ({error}); missing, truncated or damaged: fetch or make it again"
        ) from error


def find_product(path: Path) -> Path:
    """The folder with architecture.json: ``path`` itself, its ``model`` or its ``artifacts/model``."""
    for folder in (path, path / "model", path / "artifacts" / "model"):
        if (folder / "architecture.json").is_file():
            return folder
    if not path.exists():
        raise UserError(f"{path}: no such folder; name a run folder or its artifacts/model")
    raise UserError(
        f"{path}: holds no network (artifacts/model/architecture.json); that run made none or has not ended"
    )


def read_architecture(folder: Path) -> dict[str, Any]:
    """The checked content of architecture.json in ``folder``."""
    architecture = _read_object(folder / "architecture.json")
    absent = [name for name in ARCHITECTURE_FIELDS if name not in architecture]
    if absent:
        raise UserError(
            f"{folder / 'architecture.json'}: lacks {', '.join(absent)}; the run that wrote it must be repeated"
        )
    return architecture


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"model.weights={path}: no such file or run folder")
    if path.suffix != ".safetensors":
        raise UserError(f"model.weights={path}: only .safetensors files and run folders are read; convert it first")


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: no readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no JSON object")
    return content


def _read_sidecar(file: Path) -> Origin:
    from pydantic import TypeAdapter, ValidationError

    content = _read_object(file)
    valid = [field.name for field in fields(Origin)]
    for name in content:
        if name not in valid:
            raise UserError(f"{file}: unknown field {name}; {did_you_mean(name, valid)}")
    try:
        origin = TypeAdapter(Origin).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: {where}: {first['msg']}") from error
    if origin.normalisation is not None and set(origin.normalisation) != {"mean", "std"}:
        raise UserError(f"{file}: normalisation must be {{mean: [...], std: [...]}} on the 0-255 scale")
    return origin


def _rename(name: str, names: dict[str, str]) -> str:
    for pattern, replacement in names.items():
        name = re.sub(pattern, replacement, name)
    return name
