"""Greedy search for a narrower network, guided by the ensemble of the networks met on the way (EKG).

Source: Lee and Song, ECCV 2022, arXiv:2203.02651, eq. 7-9 and Algorithm 1, and the released code. Losses are means over
the images of D_val (the code divides by a constant 256 instead: no decision depends on the factor).

The search is exact but not naive: a candidate differs from the current network from one gate on, so it starts from
stored activations; removed channels do not exist; and a candidate is dropped once what its remaining images must add
at the very least brings it above the best complete candidate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from runner.errors import RunFailed, UserError
from runner.methods.compression import filter_scores
from runner.methods.compression.executor import Cut, SlicedExecutor, Weights
from runner.methods.compression.gates import GatedNetwork
from runner.methods.compression.otsu import trimmed_otsu


@dataclass(kw_only=True)
class SearchSettings:
    """Settings of the sub-network search."""

    strategy: Literal["greedy", "uniform"] = "greedy"  # uniform: one rate for all gates, filters by filter_score
    knowledge: Literal["none", "single", "ensemble"] = (
        "ensemble"  # second term of the score: off, full network, all met
    )
    filter_score: Literal["ekg", "l1", "fpgm", "taylor"] = "ekg"  # which filters of a gate go first
    layer_score: Literal["slice", "released"] = "slice"  # released: the rule of the last public version (a quirk)
    step: Annotated[float, Field(gt=0, le=1)] = 0.2  # part of a gate's channels taken at once, over the gate's calls
    rate_decimals: Annotated[int, Field(ge=1, le=12)] = 5  # rounding in the fine search; 2: the original's coarser one
    subset_per_class: Annotated[int, Field(gt=0)] = 256  # training images a class for the epoch before the search
    validation_per_class: Annotated[int, Field(gt=0)] = 32  # training images a class that the search evaluates on
    tuning_learning_rate: Annotated[float, Field(gt=0)] = 1e-3  # of the epoch before the search
    batch_size: Annotated[int, Field(gt=0)] = 256  # of both; decides the statistics of batch normalisation
    activation_memory: Annotated[int, Field(ge=0)] = 1024  # MiB for the current network, as much for candidates


@dataclass(frozen=True)
class Evaluation:
    """One candidate on D_val; ``score`` is what the search minimises, ``loss`` the plain cross-entropy (nats)."""

    gate: int
    rate: float
    loss: float
    score: float
    logits: Tensor  # (N, classes) float64

    @property
    def rank(self) -> tuple[float, int]:
        """Lowest first; scores that are equal in float32 are ties and fall to the lowest gate."""
        return float(np.float32(self.score)), self.gate


def image_losses(logits: Tensor, labels: Tensor, knowledge: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per image (N,): cross-entropy to the labels, and the score, which adds that to softmax(knowledge)."""
    loss = F.cross_entropy(logits, labels, reduction="none")
    if knowledge is None:
        return loss, loss
    return loss, loss - (knowledge.softmax(1) * logits.log_softmax(1)).sum(1)


def least_scores(labels: Tensor, knowledge: Tensor | None) -> Tensor:
    """The smallest score that any logits reach, per image (N,).

    CE(y, p) + CE(q, p) = 2 CE((y + q) / 2, p), at least twice the entropy of (y + q) / 2; 0 without knowledge.
    """
    if knowledge is None:
        return torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
    target = (knowledge.softmax(1) + F.one_hot(labels, knowledge.shape[1])) / 2
    return -2 * torch.xlogy(target, target).sum(1)


class Search:
    """The state of a search and its greedy step.

    ``images`` (N, C, H, W) are normalised, on the network's device and in the order of evaluation, ``labels`` (N,).
    State: ``rates`` and ``orders`` (rank of every channel, int64 (C_g,)) of the gates; ``knowledge`` (N, classes), the
    mean of the logits of ``members`` networks; ``history`` of every network met, the full one first.
    Raises UserError for a target that one channel a gate cannot reach, RunFailed for a loss that is not finite.
    """

    def __init__(
        self, gated: GatedNetwork, images: Tensor, labels: Tensor, settings: SearchSettings, target_rate: float
    ):
        self.gated, self.settings, self.target_rate = gated, settings, target_rate
        self.images, self.labels = images, labels
        self.executor = SlicedExecutor(gated)
        self.batches = [slice(at, at + settings.batch_size) for at in range(0, len(images), settings.batch_size)]
        self.full_flops = gated.flops(gated.full_counts())
        least = gated.flops_rate([1] * len(gated.gates))
        if target_rate < least:
            raise UserError(
                f"method.target_rate={target_rate} is out of reach: one channel a gate keeps {least:.4f} of the FLOPs"
            )
        self.rates = [1.0] * len(gated.gates)
        self.orders = [torch.zeros(gate.channels, dtype=torch.int64, device=labels.device) for gate in gated.gates]
        self.knowledge: Tensor | None = None
        self.members = 0
        self.history: list[dict] = []  # {"orders": int32 tensor of all gates in a row, "rates": list, "loss": nats}
        self.candidates_evaluated = 0
        self.batches_skipped = 0  # of candidates that could no longer win
        self._stored: dict[int, dict] = {}  # batch number -> activations of the current network
        # all batches stay in memory where they fit; else one at a time, and of that what fits
        budget = settings.activation_memory * 2**20
        self._keep = self.executor.storable(len(images), budget)
        self._stores_all = self._keep == self.executor.storable(len(images), 2**62)
        if not self._stores_all:
            self._keep = self.executor.storable(min(len(images), settings.batch_size), budget)
        self._met = _Met(self.executor, budget)

    # -- what callers read ---------------------------------------------------------------------------------------

    @property
    def counts(self) -> list[int]:
        return self.gated.kept_counts(self.rates)

    @property
    def flops_rate(self) -> float:
        """FLOPs of the current network over those of the full one, 0..1."""
        return self.gated.flops(self.counts) / self.full_flops

    @property
    def kept(self) -> list[Tensor]:
        return self.gated.kept_channels(self.orders, self.rates)

    def state_dict(self) -> dict:
        return {
            "rates": list(self.rates),
            "orders": [order.clone() for order in self.orders],
            "knowledge": self.knowledge,
            "members": self.members,
            "history": list(self.history),
            "candidates_evaluated": self.candidates_evaluated,
            "batches_skipped": self.batches_skipped,
        }

    def load_state_dict(self, state: dict) -> None:
        device = self.labels.device
        self.rates = list(state["rates"])
        self.orders = [order.to(device) for order in state["orders"]]
        self.knowledge = None if state["knowledge"] is None else state["knowledge"].to(device)
        self.history = list(state["history"])
        for name in ("members", "candidates_evaluated", "batches_skipped"):
            setattr(self, name, state[name])
        self._stored = {}

    # -- one step ------------------------------------------------------------------------------------------------

    def step(self) -> Evaluation:
        """Score the filters, try the candidate gates, commit the best; or all at once for a uniform width."""
        if not self.history:
            self._start()
        kept = self.kept
        weights = self.executor.weights(kept)
        scores = self.score_filters(kept, weights)
        self.orders = [filter_scores.ranks(score, channels) for score, channels in zip(scores, kept, strict=True)]
        if self.settings.strategy == "uniform":
            return self._commit_uniform()
        best = self.evaluate(self.candidates(scores), weights)
        self._commit(best)
        return best

    def _start(self) -> None:
        """Evaluate the full network: the first entry of the history and the first member of the ensemble."""
        logits = self._network_logits()
        loss = F.cross_entropy(logits, self.labels).item()
        if not math.isfinite(loss):
            raise RunFailed(f"the loss of the unpruned network on D_val is {loss}: its weights or the data are broken")
        self._update_knowledge(logits)
        self._remember(loss)

    def _network_logits(self) -> Tensor:
        kept = self.kept
        return torch.cat([self.executor.logits(self.images[part], kept) for part in self.batches]).double()

    def score_filters(self, kept: list[Tensor], weights: Weights) -> list[Tensor]:
        """Filter scores (C_g,) of every gate for the current network; stores its activations on the way."""
        self._stored = {}
        kind = self.settings.filter_score
        if kind in ("l1", "fpgm"):
            return filter_scores.weight_scores(self.executor, weights, kept, kind)
        taps = filter_scores.tapped_nodes(self.executor, kind)
        nodes = list(dict.fromkeys(node for group in taps for node in group))
        keep = self._keep if self._stores_all else ()
        totals: dict = {}
        for number, part in enumerate(self.batches):
            logits, tapped, stored = self.executor.tapped(self.images[part], weights, nodes, keep)
            loss, score = image_losses(logits.double(), self.labels[part], self._knowledge_of(part))
            objective = (loss if kind == "taylor" else score).sum() / len(self.images)
            for node, value in self.executor.channel_sums(tapped, objective).items():
                totals[node] = totals.get(node, 0) + value.double()
            if self._stores_all:
                self._stored[number] = stored
        return filter_scores.tap_scores(self.executor, taps, totals, kept)

    def candidates(self, scores: list[Tensor]) -> dict[int, float]:
        """{gate: its rate after one step} of the gates worth trying: trimmed Otsu over the layer scores."""
        layer_scores = {
            index: self._layer_score(index, scores[index]) for index, rate in enumerate(self.rates) if rate > 0
        }
        threshold = trimmed_otsu(list(layer_scores.values()))  # None with few open gates: all are tried
        chosen = [index for index, score in layer_scores.items() if threshold is None or score <= threshold]
        return {index: self.reduced_rate(index) for index in chosen}

    def _step_of(self, index: int) -> float:
        gate = self.gated.gates[index]
        return max(1 / gate.channels, self.settings.step / gate.calls)

    def _layer_score(self, index: int, scores: Tensor) -> float:
        """Sum of the scores that the next step would remove (card 2.5)."""
        channels, removed = self.gated.gates[index].channels, 1 - self.rates[index]
        first, last = round(removed * channels), round((removed + self._step_of(index)) * channels)
        if self.settings.layer_score == "released":
            return scores.sum().item() if first == 0 and last > 0 else 0.0
        return scores.sort().values[first:last].sum().item()

    def reduced_rate(self, index: int) -> float:
        """Rate of a gate one step on; at the target's boundary the widest that is still at or under the target."""
        gate = self.gated.gates[index]
        reduced = round(self.rates[index] - self._step_of(index), 5)
        if gate.kept(reduced) == gate.kept(self.rates[index]) > 1:
            reduced -= 1e-5  # rounding to five decimals had given the channel back
        if self._rate_with(index, reduced) >= self.target_rate:
            return reduced
        tried = reduced
        for rate in np.arange(reduced, reduced + self.settings.step, 1 / gate.channels):
            tried = round(float(rate), self.settings.rate_decimals)
            if self._rate_with(index, tried) > self.target_rate:
                return round(float(rate) - 1 / gate.channels, 5)
        return tried

    def _rate_with(self, index: int, rate: float) -> float:
        counts = self.counts
        counts[index] = self.gated.gates[index].kept(rate)
        return self.gated.flops(counts) / self.full_flops

    # -- evaluation of candidates --------------------------------------------------------------------------------

    def evaluate(self, candidates: dict[int, float], weights: Weights) -> Evaluation:
        """The candidate with the lowest score; ``weights`` are the current network's."""
        kept = self.kept
        parts = sorted(range(len(self.batches)), key=lambda number: len(self.labels[self.batches[number]]))
        least = least_scores(self.labels, self.knowledge if self.settings.knowledge != "none" else None)
        ahead = [sum(least[self.batches[later]].sum().item() for later in parts[at + 1 :]) for at in range(len(parts))]
        trials = {gate: _Trial(self, gate, rate, kept, weights) for gate, rate in candidates.items()}
        self.candidates_evaluated += len(trials)
        for trial in trials.values():
            trial.run(parts[0], self._activations(parts[0], weights))
        # the most promising candidate runs to its end first: the others are measured against it
        leader = min(trials.values(), key=lambda trial: (trial.score, trial.gate))
        for number in parts[1:]:
            leader.run(number, self._activations(number, weights))
        best, alive = leader.score, sorted(set(trials) - {leader.gate}, key=lambda gate: trials[gate].score)
        for at, number in enumerate(parts[1:], 1):
            for gate in list(alive):
                trial = trials[gate]
                # a wide margin: candidates whose scores are equal in float32 are ties, never dropped
                if trial.score + ahead[at - 1] > best * (1 + 1e-6):
                    alive.remove(gate)
                    self.batches_skipped += len(parts) - at
                    continue
                trial.run(number, self._activations(number, weights))
                if at == len(parts) - 1:
                    best = min(best, trial.score)
        return min((trials[gate].result() for gate in [leader.gate, *alive]), key=lambda result: result.rank)

    def _activations(self, number: int, weights: Weights) -> dict:
        """Stored activations of the current network on one batch; recomputed where memory allows only one batch."""
        if number not in self._stored:
            if not self._stores_all:
                self._stored = {}
            images = self.images[self.batches[number]]
            self._stored[number] = self.executor.forward(images, weights, self._keep)[1]
        return self._stored[number]

    def _knowledge_of(self, part: slice) -> Tensor | None:
        return None if self.settings.knowledge == "none" else self.knowledge[part]

    # -- commits -------------------------------------------------------------------------------------------------

    def _commit(self, best: Evaluation) -> None:
        if not math.isfinite(best.score):
            raise RunFailed(f"the best candidate of step {len(self.history)} has the score {best.score}")
        self.rates[best.gate] = best.rate
        self._stored = {}
        self._update_knowledge(best.logits)
        self._remember(best.loss)

    def _commit_uniform(self) -> Evaluation:
        """The widest common rate at or under the target, then gate by gate the next one while the target allows."""
        rates = sorted({kept / gate.channels for gate in self.gated.gates for kept in range(1, gate.channels + 1)})
        low, high = 0, len(rates) - 1  # rates[low] fits: the constructor checked one channel a gate
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.gated.flops_rate(self.gated.kept_counts([rates[middle]] * len(self.rates))) <= self.target_rate
            low, high = (middle, high) if fits else (low, middle - 1)
        self.rates = [rates[low]] * len(self.rates)
        for index in range(len(self.rates) if low + 1 < len(rates) else 0):
            if self._rate_with(index, rates[low + 1]) <= self.target_rate:
                self.rates[index] = rates[low + 1]
        logits = self._network_logits()
        loss, score = image_losses(logits, self.labels, self._knowledge_of(slice(None)))
        result = Evaluation(-1, rates[low], loss.mean().item(), score.mean().item(), logits)
        self._update_knowledge(logits)
        self._remember(result.loss)
        return result

    def _update_knowledge(self, logits: Tensor) -> None:
        """The running mean of the logits of all members; with knowledge single the full network stays alone."""
        if self.knowledge is None:
            self.knowledge, self.members = logits, 1
        elif self.settings.knowledge != "single":
            self.knowledge = (self.knowledge * self.members + logits) / (self.members + 1)
            self.members += 1

    def _remember(self, loss: float) -> None:
        orders = torch.cat([order.to(torch.int32) for order in self.orders]).cpu()
        self.history.append({"orders": orders, "rates": list(self.rates), "loss": loss})


class _Met:
    """Values of the last candidates at the cuts of the network.

    A commit behind a cut leaves a candidate as it was up to there, if its filters keep their order: the next step takes
    it up at the cut. Holds one candidate a gate and batch, within ``budget`` bytes.
    """

    def __init__(self, executor: SlicedExecutor, budget: int):
        self.executor, self.budget, self.used = executor, budget, 0
        self.entries: dict[tuple[int, int], tuple[list[Tensor], dict]] = {}

    def logits(self, gate: int, number: int, kept: list[Tensor], weights: Weights, stored: dict) -> Tensor:
        """Logits of the candidate at ``gate`` on batch ``number``."""
        before, values = self.entries.pop((gate, number), ([], {}))
        self.used -= sum(value.nbytes for value in values.values())
        same = [cut for cut in self.executor.cuts if cut.node in values and self._equal(cut, before, kept)]
        values = {cut.node: values[cut.node] for cut in same}
        nodes = [cut.node for cut in self.executor.cuts if cut.node not in values]
        if same:
            logits, met = self.executor.resumed_logits(same[-1], values[same[-1].node], weights, nodes)
        else:
            logits, met = self.executor.candidate_logits(gate, weights, stored, nodes)
        values.update(met)
        size = sum(value.nbytes for value in values.values())
        if self.used + size <= self.budget:
            self.used += size
            self.entries[gate, number] = kept, values
        return logits

    @staticmethod
    def _equal(cut: Cut, before: list[Tensor], kept: list[Tensor]) -> bool:
        return all(torch.equal(before[gate], kept[gate]) for gate in cut.gates)


class _Trial:
    """A candidate on its way through the batches."""

    def __init__(self, search: Search, gate: int, rate: float, kept: list[Tensor], weights: Weights):
        self.search, self.gate, self.rate, self.current = search, gate, rate, weights
        gates = search.gated.gates
        self.kept = [*kept]
        self.kept[gate] = torch.nonzero(search.orders[gate] < gates[gate].kept(rate)).flatten()
        self.loss = self.score = 0.0  # sums over the images seen
        self.logits: dict[int, Tensor] = {}

    def run(self, number: int, stored: dict) -> None:
        search, part = self.search, self.search.batches[number]
        weights = {**self.current, **search.executor.weights(self.kept, search.executor.touched[self.gate])}
        logits = search._met.logits(self.gate, number, self.kept, weights, stored).double()
        loss, score = image_losses(logits, search.labels[part], search._knowledge_of(part))
        self.logits[number] = logits
        self.loss += loss.sum().item()
        self.score += score.sum().item()

    def result(self) -> Evaluation:
        logits = torch.cat([self.logits[number] for number in sorted(self.logits)])
        return Evaluation(self.gate, self.rate, self.loss / len(logits), self.score / len(logits), logits)


def split_history(
    entry: dict, gated: GatedNetwork, device: torch.device | str = "cpu"
) -> tuple[list[Tensor], list[float]]:
    """(orders, rates) of one history entry."""
    orders = entry["orders"].to(device, torch.int64).split(gated.full_counts())
    return list(orders), list(entry["rates"])
