"""YOSO: attention sampled by hashing, in time linear in the length, against its expectation and softmax.

Zeng, Xiong, Ravi, Acharya, Fung, Singh, "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli
Sampling", ICML 2021, arXiv:2111.09714. Official code: mlpen/YOSO. The formulas stand in ``collisions``; deviations: see
the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy

from runner.methods.language.attention import CollisionAttention, SoftmaxAttention
from runner.selection import BestEpoch

if TYPE_CHECKING:
    from runner.context import Context

Positive = Annotated[int, Field(gt=0)]


@dataclass(kw_only=True)
class Yoso:
    """A sequence classifier with attention by collisions of hashes; softmax is its control."""

    attention: Literal["sampled", "expected", "softmax"] = "sampled"  # expected: YOSO-E, quadratic
    hashes: Positive = 32
    evaluation_hashes: Positive | None = None  # null: hashes
    bits: Annotated[int, Field(gt=0, le=20)] = 11  # of a hash code
    backward: Literal["bound", "expected_bound", "collided"] = "bound"  # version 1, its n^2 form, version 2
    fast_hash: bool = True  # Hadamard transforms in place of Gaussian directions
    unit_output: bool = True  # every output row has norm 1
    convolution: Positive | None = None  # window of a depthwise convolution of the values, odd; null: none
    steps: Positive = 5000
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4  # at its highest; from a 25th of it and back to 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of softmax's weights

    paper: ClassVar[str] = "arXiv:2111.09714"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Attention sampled by hash collisions costs time linear in the length and is nearly as accurate as softmax."
    )
    data: ClassVar[tuple[str, ...]] = ("sequences",)
    model: ClassVar[tuple[str, ...]] = ("sequence encoder",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Zeng, Xiong, Ravi, Acharya, Fung, Singh. You Only Sample (Almost) Once: Linear Cost Self-Attention Via "
        "Bernoulli Sampling. ICML 2021."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "tables in PyTorch's index_add_ and gather instead of CUDA kernels",
        "sequences of at most d^2 / 4 tokens count the collisions of all pairs, the tables' values for less time",
        "version 2's gradient (backward=collided) forms all pairs: none are left out above 1024 tokens, and the slope "
        "is exact where the kernel reads it from tables of 32 points",
        "the mean is over the tokens of a sequence; in the released code over its padding too",
        "classifiers of sequences alone: pre-training, GLUE and the two-tower retrieval task are left out",
    )

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps must be below steps, which is {self.steps}")
        if self.warmup_steps == 1:
            raise ValueError("warmup_steps: the first of them has a 25th of the rate and the last all; take 0, or 2")
        if self.convolution is not None and self.convolution % 2 == 0:
            raise ValueError(f"convolution must be odd, not {self.convolution}")

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns accuracy (0..1), loss (nats) on the test split after the last step, accuracy_best_validation, and of
        sampled attention accuracy_expected: the same weights with the expectation instead of samples."""
        data = ctx.data
        shape = {"vocabulary": data.vocabulary, "length": data.train.inputs.shape[1], "num_classes": data.num_classes}
        network = ctx.network("encoder", **shape, attention=self.layer)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, eps=1e-6, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.learning_rate,
            total_steps=self.steps,
            pct_start=self.warmup_steps / self.steps,
            anneal_strategy="linear",
        )
        best = BestEpoch()
        ctx.track(network=network, optimizer=optimizer, schedule=schedule, best=best)
        batches = ctx.batches("train", self.batch_size, drop_last=True)
        network.train()
        loop = ctx.loop(
            "train", batches, epochs=-(-self.steps // len(batches)), until=lambda: loop.position >= self.steps
        )
        for tokens, labels, _ in loop:
            with ctx.autocast():
                loss = cross_entropy(network(tokens), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            ctx.log(loss=loss.detach())
            if loop.epoch_ends or loop.step + 1 == self.steps:
                best.offer(ctx, network)
        metrics = {}
        if self.attention == "sampled":
            metrics["accuracy_expected"] = self._expected(ctx, network)
        return metrics | best.test_metrics(ctx, network)

    def layer(self, heads: int) -> nn.Module:
        """The attention of one layer of ``heads`` heads."""
        if self.attention == "softmax":
            return SoftmaxAttention(self.dropout)
        return CollisionAttention(
            heads,
            hashes=self.hashes if self.attention == "sampled" else None,
            evaluation_hashes=self.evaluation_hashes if self.attention == "sampled" else None,
            bits=self.bits,
            backward=self.backward,
            fast=self.fast_hash,
            unit_output=self.unit_output,
            window=self.convolution,
        )

    def _expected(self, ctx: Context, network: nn.Module) -> float:
        layers = [layer for layer in network.modules() if isinstance(layer, CollisionAttention)]
        kept = [layer.evaluation_hashes for layer in layers]
        for layer in layers:
            layer.evaluation_hashes = None
        accuracy = ctx.evaluate(network, "test", record=False)["accuracy"]
        for layer, hashes in zip(layers, kept, strict=True):
            layer.evaluation_hashes = hashes
        return accuracy
