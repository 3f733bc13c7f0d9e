"""Figures of the landscape study: what predicts the loss after fine-tuning, and loss surfaces side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor


def prediction_figure(
    columns: Mapping[str, Sequence[float]], potential: Sequence[float], rhos: Sequence[float]
) -> Figure:
    """Loss after fine-tuning (nats) against each measure taken before it, one panel a column."""
    figure = Figure(figsize=(4 * len(columns), 3.6))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.15, top=0.9, wspace=0.08)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, (name, values), rho in zip(panels, columns.items(), rhos, strict=True):
        panel.scatter(values, potential, s=16)
        panel.set_xlabel(name)
        panel.set_title(f"Spearman {rho:+.2f}, n = {len(potential)}", fontsize=10)
    panels[0].set_ylabel("test loss after fine-tuning (nats)")
    return figure


def surface_figure(surfaces: Mapping[str, Tensor], places: Tensor) -> Figure:
    """Contours of loss surfaces (P, P) over ``places`` (P,) in both directions; one logarithmic scale for all."""
    figure = Figure(figsize=(3.2 * len(surfaces) + 1.6, 3.4))
    figure.subplots_adjust(left=0.9 / figure.get_figwidth(), right=0.98, bottom=0.15, top=0.9, wspace=0.15)
    panels = figure.subplots(1, len(surfaces), sharex=True, sharey=True, squeeze=False)[0]
    known = torch.cat([surface[surface.isfinite()] for surface in surfaces.values()])
    lowest, highest = known.min().item(), known.max().item() * (1 + 1e-9)
    levels = torch.logspace(*torch.tensor([lowest, highest], dtype=torch.float64).log10(), 16).tolist()
    scale = LogNorm(lowest, highest)
    for panel, (name, surface) in zip(panels, surfaces.items(), strict=True):
        drawn = panel.contourf(places.numpy(), places.numpy(), surface.numpy(), levels, norm=scale, extend="both")
        panel.contour(places.numpy(), places.numpy(), surface.numpy(), levels, norm=scale, colors="k", linewidths=0.3)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("second direction")
    panels[0].set_ylabel("first direction")
    bar = figure.colorbar(drawn, ax=list(panels), label="loss (nats)", ticks=levels[::5], format="%.2g")
    bar.ax.minorticks_off()
    return figure
