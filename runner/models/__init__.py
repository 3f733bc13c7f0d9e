"""The networks that a config can name, and how one is built. Light: torch is imported only where a network is built."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UserError, did_you_mean
from runner.models import imagenet
from runner.models.weights import Origin, assign_all, find_product, load_weights, origin_of, read_architecture

if TYPE_CHECKING:
    from torch import nn

    from runner.schema import ModelSettings

SMALL_IMAGE = 64  # pixels; below it the stem of a network that has both is a matter of the scale


@dataclass(frozen=True)
class ZooEntry:
    """How a named network is built: ``builder(**arguments, num_classes=, in_channels=)``, and with ``stem=`` where it
    has two, with ``padding=`` where it has both."""

    builder: str  # module:function
    arguments: dict[str, Any]
    stems: dict[str, str]  # name -> what it is, in words
    halvings: int | None = None  # 3x3 convolutions with stride 2 behind the stem; None: symmetric padding only
    smallest: int = 1  # side of the smallest images that reach its end


CIFAR_STEM, IMAGENET_STEM = "CIFAR stem (3x3, stride 1)", "ImageNet stem (7x7, stride 2, max-pooling)"
RESNET_STEMS = {"imagenet": IMAGENET_STEM, "cifar": CIFAR_STEM}

ZOO: dict[str, ZooEntry] = (
    {
        f"resnet{depth}": ZooEntry("runner.models.resnet:cifar_resnet", {"depth": depth}, {"cifar": CIFAR_STEM}, 2)
        for depth in (8, 20, 32, 56, 110)
    }
    | {
        f"resnet{depth}": ZooEntry("runner.models.resnet:imagenet_resnet", {"depth": depth}, RESNET_STEMS, 3)
        for depth in (18, 34, 50)
    }
    | {
        f"wrn_{depth}_{widening}": ZooEntry(
            "runner.models.wide_resnet:WideResNet", {"depth": depth, "widening": widening}, {"cifar": CIFAR_STEM}
        )
        for depth, widening in ((40, 4), (40, 2), (40, 1), (22, 4), (16, 4), (16, 2), (16, 1), (10, 4))
    }
    | {
        name: ZooEntry(
            "runner.models.vgg:VGG", {"plan": name}, {"cifar": "CIFAR form (one linear layer)"}, smallest=side
        )
        for name, side in (("vgg5_narrow", 4), ("vgg7", 8), ("vgg8", 8), ("vgg13", 8), ("vgg16", 32))
    }
)
ZOO["resnet14_narrow"] = ZooEntry(
    "runner.models.resnet:cifar_resnet", {"depth": 14, "width": 8}, {"cifar": CIFAR_STEM}, 2
)
for _depth in (8, 32):  # the pair of the distillation papers: four times as wide behind a stem twice as wide
    ZOO[f"resnet{_depth}x4"] = ZooEntry(
        "runner.models.resnet:cifar_resnet",
        {"depth": _depth, "width": 64, "stem_width": 32},
        {"cifar": CIFAR_STEM},
        2,
    )
ZOO["mlp"] = ZooEntry("runner.models.mlp:MLP", {}, {"cifar": "averages of 8x8"})
ZOO["mobilenet_v2"] = ZooEntry(
    "runner.models.from_torchvision:mobilenet_v2",
    {},
    {"imagenet": "ImageNet stem (3x3, stride 2)", "cifar": "CIFAR stem (stride 1 up to the third stage)"},
)
ZOO["mobilenet_v2_half"] = ZooEntry(
    "runner.models.from_torchvision:mobilenet_v2_half", {}, {"cifar": "CIFAR form (3x3, stride 2)"}
)
ZOO["shufflenet_v1"] = ZooEntry("runner.models.shufflenet:ShuffleNetV1", {}, {"cifar": "CIFAR form (1x1, stride 1)"})
ZOO["shufflenet_v2"] = ZooEntry(
    "runner.models.from_torchvision:shufflenet_v2",
    {},
    {"imagenet": "ImageNet stem (3x3, stride 2, max-pooling)", "cifar": CIFAR_STEM},
)
ZOO["vgg16_bn"] = ZooEntry(
    "runner.models.from_torchvision:vgg16_bn",
    {},
    {"imagenet": "ImageNet form (7x7 maps, three linear layers)"},
    smallest=32,
)


def build_model(
    settings: ModelSettings,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    small_image_stem: str,
    zero_init_residual: bool = True,
    offline: bool = False,
) -> nn.Module:
    """The network of ``settings``, initialised from torch's global generator; its weights are loaded if they are named.

    Weights of a pruned network resize the network first. ``stem`` and ``padding`` at ``auto`` follow the weights'
    origin. ``zero_init_residual``: see ``runner.models.resnet.ResNet``; other networks have one initialisation.
    ``offline`` forbids the download of ImageNet weights. Raises UserError: unknown name, impossible pair,
    weights that do not fit or cannot be had.
    """
    settings = resolve(settings, image_size=image_size, small_image_stem=small_image_stem)
    if settings.weights:
        _check_origin(settings, num_classes=num_classes, channels=channels)
    target, arguments = form_of_weights(settings) or (settings.target, settings.arguments)
    model = build_network(
        name=settings.name,
        target=target,
        arguments=arguments,
        num_classes=num_classes,
        channels=channels,
        stem=settings.stem,
        padding=settings.padding,
        zero_init_residual=zero_init_residual,
        image_size=image_size,
    )
    if settings.weights == imagenet.WORD:
        file = imagenet.place(imagenet.published(settings.name))
        assign_all(model, imagenet.read(settings.name, offline), file, head=settings.head)
    elif settings.weights:
        load_weights(model, settings.weights, head=settings.head)
    return model


def form_of_weights(settings: ModelSettings) -> tuple[str, dict[str, Any]] | None:
    """(target, arguments) where the weights are of a run whose method gave this network another form, such as fake
    quantization: what makes that form. None: the network's own. Imports no torch."""
    if not settings.weights or settings.weights == imagenet.WORD or not Path(settings.weights).expanduser().is_dir():
        return None
    stored = read_architecture(find_product(Path(settings.weights).expanduser()))
    inner = stored["arguments"].get("network")
    of_this = isinstance(inner, dict) and (inner.get("name"), inner.get("target")) == (settings.name, settings.target)
    return (stored["target"], stored["arguments"]) if of_this and stored["target"] != settings.target else None


def build_shaped(settings: ModelSettings, shape: dict[str, Any]) -> nn.Module:
    """``settings.target(**shape, **settings.arguments)``: a network for data that is no image.

    Raises UserError: a network of images, weights, arguments that the function does not take.
    """
    from runner.settings import load_target

    if not settings.target:
        raise UserError(
            f"model={settings.name}: this method builds networks with {', '.join(shape)}; "
            "leave model= out for the one that fits, or give model.target=package:function"
        )
    if settings.weights:
        raise UserError(f"model.weights={settings.weights}: this method initialises its networks itself; leave it out")
    build = load_target(settings.target, "model.target")
    arguments = {**shape, **settings.arguments}
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise UserError(f"model.arguments: {settings.target}: {error}") from None
    return build(**arguments)


def weights_origin(settings: ModelSettings) -> Origin | None:
    """What the origin of ``settings.weights`` asks for (see ``origin_of``); None without weights or where nothing is
    known. Imports no torch. Raises UserError: there are no such weights."""
    if settings.weights != imagenet.WORD:
        return origin_of(settings.weights) if settings.weights else None
    weights = imagenet.published(None if settings.target else settings.name)
    return Origin(
        network=settings.name,
        num_classes=1000,
        channels=3,
        stem="imagenet",
        normalisation=imagenet.NORMALISATION,
        dataset=f"torchvision's {weights.name}",
    )


def check_weights(settings: ModelSettings, offline: bool) -> None:
    """Find before anything is loaded that ImageNet weights do not exist or may not be fetched. Raises UserError."""
    if settings.weights == imagenet.WORD:
        imagenet.check(None if settings.target else settings.name, offline)
    elif settings.head == "reinit" and not settings.weights:
        raise UserError("model.head=reinit: without model.weights the whole network is initialised; leave it out")


def resolve(settings: ModelSettings, *, image_size: int, small_image_stem: str) -> ModelSettings:
    """``settings`` with stem and padding decided: as set, else by the weights' origin, else by image size.

    A network of the user (``target``) keeps ``auto``; weights of a run give it the arguments that the settings do not
    name, so that what a method added is there again. Raises UserError: unknown name, a stem that the network lacks,
    one-sided padding on odd feature maps, missing weights. Imports no torch.
    """
    if settings.target:
        for option in ("stem", "padding"):
            if getattr(settings, option) != "auto":
                raise UserError(
                    f"model.{option}={getattr(settings, option)}: an option of the zoo's networks; "
                    f"give {settings.target} its options in model.arguments"
                )
        origin = weights_origin(settings)
        if origin is None or origin.target != settings.target:
            return settings
        return dataclasses.replace(settings, arguments={**origin.arguments, **settings.arguments})
    entry = zoo_entry(settings.name)
    if settings.arguments:
        raise UserError(f"model.arguments: {settings.name} takes none; they are for model.target=package:function")
    if image_size < entry.smallest:
        raise UserError(
            f"model={settings.name}: images of {image_size} pixels are too small for it; "
            f"use dataset.image_size={entry.smallest} or more"
        )
    origin = weights_origin(settings) or Origin()
    stem = settings.stem
    if stem == "auto":
        stem = origin.stem or choose_stem(settings.name, image_size, small_image_stem)
    if stem not in entry.stems:
        raise UserError(f"model.stem={stem}: {settings.name} has only {' and '.join(entry.stems)}; use model.stem=auto")
    padding = settings.padding if settings.padding != "auto" else origin.padding or "symmetric"
    if padding == "tensorflow" and entry.halvings is None:
        raise UserError(f"model.padding=tensorflow: {settings.name} has only symmetric padding; use model.padding=auto")
    side = image_size if stem == "cifar" else -(-image_size // 4)
    if padding == "tensorflow" and side % 2**entry.halvings:
        multiple = 2**entry.halvings * (1 if stem == "cifar" else 4)
        raise UserError(
            f"model.padding=tensorflow: images of {image_size} pixels give {settings.name} feature maps of odd size; "
            f"use model.padding=symmetric, or dataset.image_size a multiple of {multiple}"
        )
    return dataclasses.replace(settings, stem=stem, padding=padding)


def choose_stem(name: str, image_size: int, small_image_stem: str) -> str:
    """What ``stem=auto`` means: the only stem of the network, else ``imagenet`` from 64 pixels on, else the scale's."""
    stems = zoo_entry(name).stems
    if len(stems) == 1:
        return next(iter(stems))
    return "imagenet" if image_size >= SMALL_IMAGE else small_image_stem


def describe_model(settings: ModelSettings, *, image_size: int, small_image_stem: str) -> str:
    """The printed line about what was chosen for this network and image size."""
    resolved = resolve(settings, image_size=image_size, small_image_stem=small_image_stem)
    if settings.target:
        text = f"model {settings.name} from {settings.target}"
    else:
        stems = zoo_entry(settings.name).stems
        stem, chosen = stems[resolved.stem], " chosen" if settings.stem == "auto" and len(stems) > 1 else ""
        text = f"model {settings.name}: {stem}{chosen} for {image_size}x{image_size} images, {resolved.padding} padding"
    if settings.weights:
        text += f"; weights {settings.weights}{' with a fresh classifier' if settings.head == 'reinit' else ''}"
        origin = weights_origin(settings)
        if origin and origin.dataset:
            text += f" ({origin.dataset})"
        if origin and origin.padding == resolved.padding != "symmetric" and settings.padding == "auto":
            text += f"; their origin switched on {origin.padding} padding"
        if origin and origin.normalisation:
            mean, std = origin.normalisation["mean"], origin.normalisation["std"]
            text += f"; their normalisation is switched on: mean {_numbers(mean)}, std {_numbers(std)} on 0-255"
    return text


def architecture_of(
    settings: ModelSettings,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    small_image_stem: str,
    normalisation: dict[str, list[float]],
    class_names: list[str],
    dataset: str | None = None,
) -> dict[str, Any]:
    """What runner.product.save_model writes beside the weights so that runner.load can rebuild the network.

    ``normalisation`` is {mean, std}, one number a channel on the 0-255 scale; ``dataset`` says in words what the
    network was trained on.
    """
    resolved = resolve(settings, image_size=image_size, small_image_stem=small_image_stem)
    return {
        "name": settings.name,
        "target": settings.target,
        "arguments": dict(resolved.arguments),
        "num_classes": num_classes,
        "image_size": image_size,
        "channels": channels,
        "stem": resolved.stem,
        "padding": resolved.padding,
        "normalisation": {key: [float(value) for value in normalisation[key]] for key in ("mean", "std")},
        "class_names": list(class_names),
        "dataset": dataset,
    }


def build_network(
    *,
    name: str,
    target: str | None,
    arguments: dict[str, Any],
    num_classes: int,
    channels: int,
    stem: str,
    padding: str,
    zero_init_residual: bool = True,
    image_size: int | None = None,
) -> nn.Module:
    """A full-size network from decided settings (no ``auto`` for a zoo network).

    ``image_size`` and ``zero_init_residual`` are passed on to a function of ``target`` that has parameters of these
    names; an argument of its own wins over the second.
    """
    if target:
        given = {"num_classes": num_classes, "in_channels": channels, **arguments}
        taken = inspect.signature(import_target(target)).parameters
        if "image_size" in taken:
            given["image_size"] = image_size
        if "zero_init_residual" in taken:
            given.setdefault("zero_init_residual", zero_init_residual)
        return _foreign_network(target, given)
    entry = zoo_entry(name)
    module, function = entry.builder.split(":")
    builder = getattr(importlib.import_module(module), function)
    options = {"stem": stem} if len(entry.stems) > 1 else {}
    if entry.halvings is not None:
        options["padding"] = padding
    if "zero_init_residual" in inspect.signature(builder).parameters:
        options["zero_init_residual"] = zero_init_residual
    return builder(**entry.arguments, num_classes=num_classes, in_channels=channels, **options)


def zoo_entry(name: str) -> ZooEntry:
    if name not in ZOO:
        raise UserError(
            f"model.name={name}: no such network; {did_you_mean(name, ZOO)} "
            "A network of your own: model.target=package:function"
        )
    return ZOO[name]


def import_target(target: str) -> Any:
    """The function of ``package:function``. Raises UserError where it cannot be imported."""
    module, separator, function = target.partition(":")
    if not (separator and module and function):
        raise UserError(f"model.target={target}: write it as package.module:function")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"model.target={target}: {module} cannot be imported ({error}); install it here or set PYTHONPATH"
        ) from error
    if not hasattr(imported, function):
        public = [name for name in vars(imported) if not name.startswith("_")]
        raise UserError(f"model.target={target}: {module} has no {function}; {did_you_mean(function, public)}")
    return getattr(imported, function)


def _foreign_network(target: str, arguments: dict[str, Any]) -> nn.Module:
    from torch import nn

    function = import_target(target)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"model.target={target}: cannot be called with {', '.join(arguments)} ({error}); "
            "it must take num_classes, in_channels and every name in model.arguments"
        ) from error
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.target={target}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_origin(settings: ModelSettings, *, num_classes: int, channels: int) -> None:
    """Weights that say what they are for are refused by that, before a shape differs somewhere deep inside."""
    origin = weights_origin(settings)
    if origin is None:
        return
    if origin.network and not settings.target and origin.network != settings.name:
        raise UserError(
            f"model.weights={settings.weights}: weights of {origin.network}, but model.name={settings.name}; "
            f"use model={origin.network}"
        )
    for what, stored, wanted, cure in (
        ("channels", origin.channels, channels, "choose weights or a data set that fit"),
        ("classes", origin.num_classes, num_classes, "model.head=reinit replaces the classifier"),
    ):
        if stored and stored != wanted and not (what == "classes" and settings.head == "reinit"):
            raise UserError(
                f"model.weights={settings.weights}: for {stored} {what}, but the data set has {wanted}; {cure}"
            )


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
