"""Windows of multichannel series with a class and a domain (a person, a place, a session).

The test split is whole domains, ``dataset.test_domains``; the validation part is drawn from the training domains, so it
is of the people that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.errors import UserError, did_you_mean
from runner.schema import AnyDataset, Fraction, Positive

if TYPE_CHECKING:
    import torch

    from runner.datasets.examples import ExampleData
    from runner.datasets.images import Limits

KIND = "series"


@dataclass(kw_only=True)
class SeriesSettings(AnyDataset):
    """Settings that windows of every origin have."""

    test_domains: list[int | str] = field(default_factory=list)
    train_size: Positive | None = None  # windows drawn from the training domains, validation included; null: all
    test_size: Positive | None = None
    validation_fraction: Fraction = 0.0


def split_by_domain(
    settings: SeriesSettings,
    limits: Limits,
    display_name: str,
    windows: torch.Tensor,
    labels: torch.Tensor,
    domains: torch.Tensor,
    domain_names: list[str],
    class_names: list[str],
    groups: dict[str, torch.Tensor] | None = None,
) -> ExampleData:
    """The splits of windows (N, channels, length) float32 with labels (N,) and domains (N,) int64.

    Draws from torch's global generator. Raises UserError: unknown domains, or no domain left to train on.
    """
    import torch

    from runner.datasets.examples import ExampleData, Examples, drawn, hold_out

    wished = [str(name) for name in settings.test_domains]
    for name in wished:
        if name not in domain_names:
            raise UserError(f"dataset.test_domains: there is no domain {name}; {did_you_mean(name, domain_names)}")
    if not 0 < len(set(wished)) < len(domain_names):
        raise UserError(
            f"dataset.test_domains={wished}: needs one domain or more, and one or more left to train on; "
            f"there are {', '.join(domain_names)}"
        )
    numbers = torch.tensor([domain_names.index(name) for name in wished])
    is_test = torch.isin(domains, numbers)
    parts = []
    for mask, limit in ((~is_test, limits.train), (is_test, limits.test)):
        kept = {"domain": domains[mask]} | {name: values[mask] for name, values in (groups or {}).items()}
        part = Examples(windows[mask], labels[mask], torch.arange(int(mask.sum())), kept)
        parts.append(drawn(part, limit))
    train, validation = hold_out(parts[0], settings.validation_fraction)
    channels, length = windows.shape[1:]
    return ExampleData(
        settings.name,
        display_name,
        KIND,
        train,
        validation,
        parts[1],
        class_names,
        f"{channels} channels of {length}, {len(domain_names) - len(set(wished))} domains, tested on others",
    )
