"""Figures of the landscape study: what predicts the loss after fine-tuning, and loss surfaces side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor


def prediction_figure(columns: Mapping[str, Sequence[float]], potential: Sequence[float], rhos: Sequence[float]):
    """Loss after fine-tuning (nats) against each measure taken before it, one panel a column."""
    figure = Figure(figsize=(4 * len(columns), 3.6), layout="tight")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, (name, values), rho in zip(panels, columns.items(), rhos, strict=True):
        panel.scatter(values, potential, s=16)
        panel.set_xlabel(name)
        panel.set_title(f"Spearman {rho:+.2f}, n = {len(potential)}", fontsize=10)
    panels[0].set_ylabel("test loss after fine-tuning (nats)")
    return figure


def surface_figure(surfaces: Mapping[str, Tensor], places: Tensor) -> Figure:
    """Contours of loss surfaces (P, P) over ``places`` (P,) in both directions; one logarithmic scale for all."""
    figure = Figure(figsize=(3.4 * len(surfaces) + 0.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(surfaces), sharex=True, sharey=True, squeeze=False)[0]
    known = torch.cat([surface[surface.isfinite()] for surface in surfaces.values()])
    scale = LogNorm(known.min().item(), known.max().item() * (1 + 1e-9))
    levels = torch.logspace(*(torch.tensor([scale.vmin, scale.vmax]).log10().tolist()), 16).tolist()
    for panel, (name, surface) in zip(panels, surfaces.items(), strict=True):
        drawn = panel.contourf(places.numpy(), places.numpy(), surface.numpy(), levels, norm=scale, extend="both")
        panel.contour(places.numpy(), places.numpy(), surface.numpy(), levels, norm=scale, colors="k", linewidths=0.3)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("second direction")
    panels[0].set_ylabel("first direction")
    figure.colorbar(drawn, ax=list(panels), label="loss (nats)", format="%.2g")
    return figure
