"""Decisions of the search: worked numbers, the exact early stop against complete evaluations, its state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from compression_networks import labelled_images, small_network
from torch.nn import functional as F

from runner.datasets.images import Images
from runner.errors import RunFailed, UserError
from runner.methods.compression.ekg_search import search_sets, shuffled
from runner.methods.compression.executor import MaskedExecutor
from runner.methods.compression.gates import GatedNetwork
from runner.methods.compression.otsu import trimmed_otsu
from runner.methods.compression.search import (
    Evaluation,
    Search,
    SearchSettings,
    image_losses,
    least_scores,
    split_history,
)


def make_search(seed: int = 0, target: float = 0.45, cls=Search, sharp: float = 1.0, **settings) -> Search:
    """A search on a small network; ``sharp`` > 1 makes it confident and right, so that losses are small."""
    network = small_network(seed, widths=(6, 8, 12), blocks=2)
    images, labels = labelled_images(40, seed=seed)
    gated = GatedNetwork(network, images[:1])
    if sharp > 1:
        network.fc.weight.data *= sharp
        start = cls(gated, images, labels, SearchSettings(batch_size=settings.get("batch_size", 256)), target)
        labels = start._network_logits().argmax(1)
    return cls(gated, images, labels, SearchSettings(**settings), target)


class CompleteSearch(Search):
    """Every candidate as a masked forward pass of the whole network over all batches."""

    def evaluate(self, candidates, weights):
        masked, results = MaskedExecutor(self.gated), []
        for gate, rate in candidates.items():
            rates = [*self.rates]
            rates[gate] = rate
            kept = self.gated.kept_channels(self.orders, rates)
            logits = torch.cat([masked.logits(self.images[part], kept) for part in self.batches])
            loss, score = image_losses(logits, self.labels, self._knowledge_of(slice(None)))
            results.append(Evaluation(gate, rate, loss.mean().item(), score.mean().item(), logits))
        return min(results, key=lambda result: result.rank)


def run(search: Search) -> list[tuple[int, float]]:
    decisions = []
    while search.flops_rate > search.target_rate:
        chosen = search.step()
        decisions.append((chosen.gate, chosen.rate))
    return decisions


# -- trimmed Otsu ------------------------------------------------------------------------------------------------------


def test_trimmed_otsu_of_the_worked_example():
    assert trimmed_otsu([0, 1, 2, 3, 10, 11, 12, 50, 60, 100]) == 11.5
    assert trimmed_otsu([100, 50, 0, 12, 2, 3, 11, 10, 60, 1]) == 11.5


def test_trimmed_otsu_of_equal_values_takes_the_first_split():
    assert trimmed_otsu([4.0] * 8) == 4.0


@pytest.mark.parametrize("count, enough", [(3, False), (4, False), (5, True), (6, False), (7, True)])
def test_trimmed_otsu_needs_three_values(count, enough):
    assert (trimmed_otsu(list(range(count))) is not None) == enough


# -- the early stop and the stored activations -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("knowledge", ["none", "single", "ensemble"])
def test_decisions_equal_those_of_complete_evaluations(seed, knowledge):
    arguments = {"seed": seed, "knowledge": knowledge, "batch_size": 16, "target": 0.6}
    fast, complete = make_search(**arguments), make_search(cls=CompleteSearch, **arguments)
    assert run(fast) == run(complete)
    torch.testing.assert_close(fast.knowledge, complete.knowledge)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_early_stop_skips_work_and_changes_nothing(seed):
    arguments = {"seed": seed, "sharp": 40.0, "batch_size": 8, "target": 0.6}
    fast, complete = make_search(**arguments), make_search(cls=CompleteSearch, **arguments)
    assert run(fast) == run(complete)
    assert fast.batches_skipped > 0


def test_candidates_are_taken_up_at_cuts():
    search = make_search(target=0.6)
    resumed = []
    original = search.executor.resumed_logits
    search.executor.resumed_logits = lambda *arguments: resumed.append(arguments[0]) or original(*arguments)
    assert run(search) == run(make_search(cls=CompleteSearch, target=0.6))
    assert resumed


@pytest.mark.parametrize("memory", [0, 1])
def test_stored_activations_change_nothing(memory):
    arguments = {"batch_size": 16, "target": 0.7}
    assert run(make_search(activation_memory=memory, **arguments)) == run(make_search(**arguments))


def test_the_bound_of_the_score_is_reached_and_never_passed():
    labels, knowledge = torch.arange(6) % 4, 3 * torch.randn(6, 4, dtype=torch.float64)
    best = ((knowledge.softmax(1) + F.one_hot(labels, 4)) / 2).log()
    bound = least_scores(labels, knowledge)
    torch.testing.assert_close(image_losses(best, labels, knowledge)[1], bound)
    for _ in range(50):
        assert (image_losses(3 * torch.randn_like(best), labels, knowledge)[1] >= bound).all()


def test_ties_fall_to_the_lowest_gate():
    logits = torch.zeros(1, 2)
    near = [Evaluation(7, 0.5, 0.0, 1.0, logits), Evaluation(3, 0.5, 0.0, 1.0 + 1e-9, logits)]
    assert min(near, key=lambda result: result.rank).gate == 3


# -- rates and candidates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [0.2, 0.4])
def test_the_final_network_is_the_widest_for_its_last_gate(seed, step):
    search = make_search(seed, step=step, batch_size=64)
    last, _ = run(search)[-1]
    assert search.flops_rate <= 0.45
    counts = search.counts
    counts[last] += 1
    assert search.gated.flops(counts) / search.full_flops > 0.45


def test_two_decimals_round_a_channel_away_as_in_the_released_code():
    network = small_network(widths=(16, 16, 16), blocks=1)
    images, labels = labelled_images(4)
    gated = GatedNetwork(network, images[:1])
    counts = gated.full_counts()
    counts[0] -= 1  # the 16 channels of the stem's group: 15 are just under the target
    rates = {}
    for decimals in (2, 5):
        settings = SearchSettings(step=0.1, rate_decimals=decimals)
        search = Search(gated, images, labels, settings, gated.flops_rate(counts) + 1e-6)
        rates[decimals] = search.reduced_rate(0)
    assert rates == {2: 0.875, 5: 0.9375}


def test_steps_of_shared_and_private_gates():
    search = make_search()
    group, private = search.gated.gates[0], search.gated.gates[1]
    assert (group.channels, group.calls, private.calls) == (6, 3, 1)
    assert search._step_of(0) == pytest.approx(1 / 6)  # max(1/6, 0.2/3)
    assert search._step_of(1) == 0.2


def test_rounding_never_gives_the_removed_channel_back():
    network = small_network(widths=(64, 4, 4), blocks=1)
    images, labels = labelled_images(4)
    search = Search(GatedNetwork(network, images[:1]), images, labels, SearchSettings(step=0.01), 0.2)
    # 1 - 1/64 = 0.984375 would round to 0.98438, of which 64 channels are 63.0003
    assert search.gated.gates[0].kept(search.reduced_rate(0)) == 63


def test_layer_scores_of_both_rules():
    scores = torch.tensor([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]).double()
    search = make_search(step=0.4)
    assert search._layer_score(1, scores) == 3.0  # round(0.4 * 6) = 2 of the lowest
    search.rates[1] = 0.6
    assert search._layer_score(1, scores) == 3.0 + 4.0 + 5.0  # from round(2.4) to round(4.8)
    search = make_search(step=0.4, layer_score="released")
    assert search._layer_score(1, scores) == 21.0
    search.rates[1] = 0.6
    assert search._layer_score(1, scores) == 0.0


def test_closed_gates_are_no_candidates():
    search = make_search()
    search.rates[2] = 0.0
    scores = [torch.arange(channels).double() for channels in search.gated.full_counts()]
    assert 2 not in search.candidates(scores)


# -- ensemble, history, state ------------------------------------------------------------------------------------------


def test_the_ensemble_is_the_mean_of_the_logits_of_all_networks_met():
    search = make_search(batch_size=16)
    met = [search._network_logits()]
    for _ in range(4):
        search.step()
        met.append(search._network_logits())
    torch.testing.assert_close(search.knowledge, torch.stack(met).mean(0))
    assert search.members == 5


def test_single_knowledge_stays_the_full_network():
    search = make_search(knowledge="single")
    full = search._network_logits()
    search.step()
    search.step()
    torch.testing.assert_close(search.knowledge, full)


def test_the_history_starts_with_the_full_network_and_keeps_plain_losses():
    search = make_search()
    full = F.cross_entropy(search._network_logits(), search.labels).item()
    chosen = search.step()
    assert len(search.history) == 2
    assert search.history[0]["rates"] == [1.0] * len(search.rates)
    assert search.history[0]["loss"] == pytest.approx(full)
    assert search.history[1]["loss"] == chosen.loss < chosen.score
    orders, rates = split_history(search.history[1], search.gated)
    assert rates == search.rates
    assert all(torch.equal(left, right) for left, right in zip(orders, search.orders, strict=True))


def test_a_restored_search_goes_on_bit_by_bit(tmp_path):
    first = make_search(batch_size=16)
    for _ in range(3):
        first.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_search(batch_size=16)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        mine, other = first.step(), second.step()
        assert (mine.gate, mine.rate, mine.loss, mine.score) == (other.gate, other.rate, other.loss, other.score)
    assert torch.equal(first.knowledge, second.knowledge)


def test_moving_averages_and_weights_are_untouched():
    search = make_search()
    before = {name: value.clone() for name, value in search.gated.network.state_dict().items()}
    search.step()
    search.step()
    assert all(torch.equal(value, before[name]) for name, value in search.gated.network.state_dict().items())


@pytest.mark.parametrize("filter_score", ["ekg", "l1", "fpgm", "taylor"])
def test_every_filter_score_reaches_the_target(filter_score):
    search = make_search(filter_score=filter_score, step=0.4)
    run(search)
    assert search.flops_rate <= 0.45
    for order, gate in zip(search.orders, search.gated.gates, strict=True):
        assert sorted(order.tolist()) == list(range(gate.channels))


def test_uniform_width_is_one_rate_as_near_to_the_target_as_its_next_step_allows():
    search = make_search(strategy="uniform", filter_score="l1")
    assert len(run(search)) == 1
    assert search.flops_rate <= 0.45
    common = min(search.rates)
    following = min(
        kept / gate.channels
        for gate in search.gated.gates
        for kept in range(1, gate.channels + 1)
        if kept / gate.channels > common
    )
    assert set(search.rates) <= {common, following}
    for index, rate in enumerate(search.rates):
        if rate == common:
            counts = search.counts
            counts[index] = search.gated.gates[index].kept(following)
            assert counts == search.counts or search.gated.flops_rate(counts) > 0.45


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg11_bn"])
def test_networks_of_other_families_take_a_step(name):
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=5)
    if name == "vgg11_bn":
        network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        network.classifier = torch.nn.Sequential(torch.nn.Linear(512, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    images, labels = labelled_images(10, size=32)
    search = Search(GatedNetwork(network, images[:1].float()), images.float(), labels, SearchSettings(), 0.45)
    search.step()
    assert search.flops_rate < 1


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(UserError, match=r"target_rate=0\.001"):
        make_search(target=0.001)


def test_a_broken_network_is_named():
    search = make_search()
    search.gated.network.fc.weight.data[:] = math.nan
    with pytest.raises(RunFailed, match="nan"):
        search.step()


# -- D_sub and D_val ---------------------------------------------------------------------------------------------------


def labelled(labels: list[int]) -> Images:
    count = len(labels)
    return Images(torch.zeros(count, 3, 2, 2, dtype=torch.uint8), torch.tensor(labels), torch.arange(count))


def test_search_sets_follow_the_released_sampler():
    labels = np.random.RandomState(0).randint(0, 3, 90)
    subset, validation = search_sets(
        labelled(labels.tolist()), SearchSettings(subset_per_class=8, validation_per_class=4)
    )

    def sampled(count):  # first of every class, or last of every class reversed, shuffled together with seed 1
        rows = [np.flatnonzero(labels == label) for label in range(3)]
        rows = np.hstack([row[:count] if count > 0 else row[: count - 1 : -1] for row in rows])
        np.random.RandomState(1).shuffle(rows)
        return rows.tolist()

    assert subset.index.tolist() == sampled(8)
    assert validation.index.tolist() == sampled(-4)


def test_search_sets_of_few_images_are_disjoint():
    subset, validation = search_sets(labelled([0, 0, 0, 1, 1, 1, 1, 1]), SearchSettings())
    assert sorted(validation.labels.tolist()) == [0, 1]
    assert not set(subset.index.tolist()) & set(validation.index.tolist())
    assert len(subset) == 6


def test_one_image_of_a_class_is_too_few():
    with pytest.raises(UserError, match="single training image"):
        search_sets(labelled([0, 0, 1]), SearchSettings())


def test_the_order_of_the_search_sets_is_fixed():
    assert shuffled(labelled([0] * 5)).index.tolist() == [2, 1, 4, 0, 3]
