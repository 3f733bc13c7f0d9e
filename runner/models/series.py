"""One-dimensional convolutions for windows of series."""

from __future__ import annotations

from torch import Tensor, nn

from runner.errors import UserError


class SeriesConvolutions(nn.Module):
    """Blocks of convolution, batch normalisation, ReLU and max-pooling by 2, flattened.

    Windows (B, channels, length) to features (B, out_features). Without padding, so that kernel 9 and filters 16 and 32
    make 32 * 44 features of 200 samples. The featurizer of DIVERSIFY (Lu et al., ICLR 2023).
    """

    def __init__(self, *, channels: int, length: int, filters: list[int], kernel: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        rest = length
        for width in filters:
            rest = (rest - kernel + 1) // 2
            if rest < 1:
                raise UserError(
                    f"model.arguments: windows of {length} samples are too short for {len(filters)} blocks of kernel "
                    f"{kernel}; use a smaller kernel or fewer filters"
                )
            self.blocks.append(
                nn.Sequential(nn.Conv1d(channels, width, kernel), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2))
            )
            channels = width
        self.out_features = channels * rest

    def forward(self, windows: Tensor) -> Tensor:
        return self.blocks(windows).flatten(1)
