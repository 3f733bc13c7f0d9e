"""Classification accuracy and loss of a network on one split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation uses the statistics of each batch, in evaluation mode too, and updates nothing."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [(layer.running_mean, layer.running_var) for layer in layers]
    for layer in layers:
        layer.running_mean = layer.running_var = None
    try:
        yield
    finally:
        for layer, (mean, variance) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var = mean, variance


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def classify(
    model: nn.Module, batches: Iterable[Any], autocast: AbstractContextManager | None = None
) -> dict[str, torch.Tensor]:
    """Per example, in the order of ``batches`` of (images, labels, index): index, label, prediction, loss (nats)."""
    rows: dict[str, list[torch.Tensor]] = {"index": [], "label": [], "prediction": [], "loss": []}
    with evaluating(model):
        for images, labels, index in batches:
            if autocast is None:
                logits = model(images)
            else:
                with autocast:
                    logits = model(images)
            logits = logits.float()
            rows["index"].append(index)
            rows["label"].append(labels)
            rows["prediction"].append(logits.argmax(1))
            rows["loss"].append(cross_entropy(logits, labels, reduction="none"))
    return {name: torch.cat(parts).cpu() for name, parts in rows.items()}


def in_order(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """``classify``'s rows of several sets of examples as one, by rising index."""
    parts = list(parts)
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = torch.argsort(rows["index"])
    return {name: values[order] for name, values in rows.items()}


def accuracy_and_loss(rows: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean accuracy (0..1) and mean cross-entropy (nats) of ``classify``'s rows."""
    correct = (rows["prediction"] == rows["label"]).double()
    return {"accuracy": correct.mean().item(), "loss": rows["loss"].double().mean().item()}
