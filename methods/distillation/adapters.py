"""Trainable modules between the maps of two networks, and the checks that maps fit without them.

Shapes are those of maps (B, C, H, W); an adapter that cannot be built for them raises UserError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runner.errors import UserError


def convolution_norm(in_channels: int, out_channels: int, mode: str = "fan_in") -> nn.Sequential:
    """1x1 convolution without bias and batch normalisation, He initialisation over ``mode`` (tf2: the inputs)."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode=mode, nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def convolution_norms(student: Sequence[Tensor], teacher: Sequence[Tensor], mode: str = "fan_in") -> nn.ModuleList:
    """One ``convolution_norm`` a point, from the student's width to the teacher's."""
    return nn.ModuleList(convolution_norm(s.shape[1], t.shape[1], mode) for s, t in zip(student, teacher, strict=True))


def width_adapters(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> nn.ModuleList:
    """One ``convolution_norm`` a point where the widths differ; elsewhere the map stays as it is."""
    return nn.ModuleList(
        nn.Identity() if s.shape[1] == t.shape[1] else convolution_norm(s.shape[1], t.shape[1])
        for s, t in zip(student, teacher, strict=True)
    )


class Regressor(nn.Module):
    """From the student's map to the size and width of the teacher's, with bias and batch normalisation (RepDistiller).

    1x1 at equal size; 3x3 with stride 2 from a map twice as large; a transposed 4x4 with stride 2 from one half as
    large; a kernel that leaves the teacher's size from other larger maps.
    """

    def __init__(self, student: Tensor, teacher: Tensor, *, relu: bool = True) -> None:
        super().__init__()
        (s_width, s_side), (t_width, t_side) = student.shape[1:3], teacher.shape[1:3]
        if s_side == 2 * t_side:
            self.convolution = nn.Conv2d(s_width, t_width, 3, stride=2, padding=1)
        elif 2 * s_side == t_side:
            self.convolution = nn.ConvTranspose2d(s_width, t_width, 4, stride=2, padding=1)
        elif s_side >= t_side:
            self.convolution = nn.Conv2d(s_width, t_width, 1 + s_side - t_side)
        else:
            raise UserError(
                f"teacher.model: its maps of {t_side}x{t_side} are more than twice as large as the student's of "
                f"{s_side}x{s_side}; choose a pair whose maps are nearer in size"
            )
        self.norm = nn.BatchNorm2d(t_width)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, student: Tensor) -> Tensor:
        return self.relu(self.norm(self.convolution(student)))


class VariationalRegressor(nn.Module):
    """Mean and variance of the teacher's map given the student's: three 1x1 convolutions, a variance a channel.

    Args:
        widths: of the three convolutions.
        norm: batch normalisation behind each.
        start: of the convolutions: ``torch``'s, or He's over ``fan_in`` or ``fan_out``.
        smallest_variance: added to softplus of the trained scale.
        variance: at the start, or ``scale``: softplus' argument at the start.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        norm: bool,
        start: str = "torch",
        smallest_variance: float,
        variance: float | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate(widths):
            layers.append(nn.Conv2d(in_channels, width, 1, bias=False))
            if start != "torch":
                nn.init.kaiming_normal_(layers[-1].weight, mode=start, nonlinearity="relu")
            layers += [nn.BatchNorm2d(width)] * norm
            layers += [nn.ReLU()] * (number + 1 < len(widths))
            in_channels = width
        self.mean = nn.Sequential(*layers)
        if scale is None:
            scale = math.log(math.exp(variance - smallest_variance) - 1)
        self.scale = nn.Parameter(torch.full((1, widths[-1], 1, 1), float(scale)))
        self.smallest_variance = smallest_variance

    def forward(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and variance (1, C, 1, 1)."""
        return self.mean(student), nn.functional.softplus(self.scale) + self.smallest_variance


def require_equal(student: Sequence[Tensor], teacher: Sequence[Tensor], what: str, *, cure: str = "") -> None:
    """Raises UserError unless maps agree in ``what``: ``width`` (channels), ``size`` (pixels) or ``both``."""
    for number, (s, t) in enumerate(zip(student, teacher, strict=True), 1):
        for name, axis, unit in (("width", 1, "channels"), ("size", 2, "pixels a side")):
            if what in (name, "both") and s.shape[axis] != t.shape[axis]:
                raise UserError(
                    f"teacher.model: at point {number} its maps have {t.shape[axis]} {unit} and the student's "
                    f"{s.shape[axis]}, and this loss needs equal ones{cure or '; choose another pair'}"
                )
