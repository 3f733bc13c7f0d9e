"""EKG's search as the paper's code runs it against ours: decisions and CPU time of the first steps of ResNet-56.

Naive: every candidate is a masked forward pass of the whole network over all of D_val. Ours: runner's search. Both take
each step from the same state (the one the naive search committed), one after the other, in one process. Uses the
released weights and 32 CIFAR-10 training images a class where the development data are there, else random weights and
random images; says which.

    python scripts/bench_ekg_search.py [steps] [threads]
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import time
from pathlib import Path

if __name__ == "__main__":  # before torch is loaded, which reads the number of threads
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=10)
    parser.add_argument("threads", nargs="?", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from runner.datasets.images import Images  # noqa: E402
from runner.methods.compression import filter_scores  # noqa: E402
from runner.methods.compression.ekg_search import shuffled  # noqa: E402
from runner.methods.compression.executor import MaskedExecutor  # noqa: E402
from runner.methods.compression.gates import GatedNetwork  # noqa: E402
from runner.methods.compression.search import Evaluation, Search, SearchSettings, image_losses  # noqa: E402
from runner.models import build_model  # noqa: E402
from runner.schema import ModelSettings  # noqa: E402

SHARED = Path(os.environ.get("RUNNER_SHARED", ROOT.parent / "shared")) / "data"
WEIGHTS, PICTURES = SHARED / "resnet56_cifar10_ekg.safetensors", SHARED / "cifar10_jpeg.tar.xz"
MEAN, DEVIATION = (113.9, 123.0, 125.3), (66.7, 62.1, 63.0)  # of the released weights
SAME_DECISION_MARGIN = 1e-4  # relative; closer scores may fall either way in float32


class NaiveSearch(Search):
    """The same search with masked forward passes of the whole network and no stored activations."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.masked = MaskedExecutor(self.gated, channels_last=False)  # the layout a network has as it comes
        self.scores: dict[int, float] = {}

    def score_filters(self, kept: list[Tensor], weights: dict) -> list[Tensor]:
        weights, masks = self.masked.masked_weights(kept)
        taps = filter_scores.tapped_nodes(self.executor, "ekg")
        nodes = [self.masked.node_named[node.name] for group in taps for node in group]
        totals: dict = {}
        for part in self.batches:
            start = {self.masked.input: self.images[part].contiguous()}
            logits, held = self.masked.run(start, weights, masks=masks, taps=nodes)
            objective = image_losses(logits.double(), self.labels[part], self._knowledge_of(part))[1].sum()
            for node, value in self.executor.channel_sums(held, objective / len(self.images)).items():
                totals[node] = totals.get(node, 0) + value.double()
        return [sum(totals[node] for node in group) for group in taps]

    def evaluate(self, candidates: dict[int, float], weights: dict) -> Evaluation:
        results = []
        for gate, rate in candidates.items():
            rates = [*self.rates]
            rates[gate] = rate
            kept = self.gated.kept_channels(self.orders, rates)
            logits = torch.cat([self.masked.logits(self.images[part], kept) for part in self.batches]).double()
            loss, score = image_losses(logits, self.labels, self._knowledge_of(slice(None)))
            results.append(Evaluation(gate, rate, loss.mean().item(), score.mean().item(), logits))
        self.scores = {result.gate: result.score for result in results}
        return min(results, key=lambda result: result.rank)


def network_and_images() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """ResNet-56 and D_val, normalised (320, 3, 32, 32), with labels."""
    released = WEIGHTS.exists()
    pictures = "CIFAR-10 (JPEG)" if PICTURES.exists() else "random"
    print(f"weights: {'released' if released else 'random'}, images: {pictures}")
    settings = ModelSettings(
        name="resnet56", weights=str(WEIGHTS) if released else None, padding="tensorflow" if released else "auto"
    )
    torch.manual_seed(0)
    network = build_model(settings, num_classes=10, image_size=32, channels=3, small_image_stem="cifar")
    if not PICTURES.exists():
        return network, torch.randn(320, 3, 32, 32), torch.arange(320) % 10
    images, labels = last_training_images(32)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return network, (images.float() - mean) / deviation, labels


def last_training_images(per_class: int) -> tuple[Tensor, Tensor]:
    """The last pictures of every class of the training split, uint8, in the order of the released code."""
    pixels: dict[str, np.ndarray] = {}
    with tarfile.open(PICTURES) as archive:
        for member in archive:
            split, *rest = Path(member.name).parts[-3:]
            if member.isfile() and split == "train" and rest[1] >= f"{5000 - per_class:04d}":
                with Image.open(archive.extractfile(member)) as picture:
                    pixels["/".join(rest)] = np.asarray(picture.convert("RGB"))
    names = sorted(pixels)
    classes = sorted({name.split("/")[0] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[0]) for name in names])
    images = torch.from_numpy(np.stack([pixels[name] for name in names])).permute(0, 3, 1, 2)
    chosen = shuffled(Images(images, labels, torch.arange(len(labels))).last_per_class(per_class))
    return chosen.images, chosen.labels


def main(steps: int) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    network, images, labels = network_and_images()
    gated = GatedNetwork(network, images[:1])
    settings = SearchSettings()
    naive = NaiveSearch(gated, images, labels, settings, 0.45)
    ours = Search(gated, images, labels, settings, 0.45)
    searches = {"naive": naive, "ours": ours}
    naive._start()
    for search in searches.values():  # untimed: kernels are chosen and memory is taken at the first call
        search.load_state_dict(naive.state_dict())
        search.score_filters(search.kept, search.executor.weights(search.kept))
    seconds = {"naive": 0.0, "ours": 0.0}
    differences = close_calls = 0
    for step in range(1, steps + 1):
        ours.load_state_dict(naive.state_dict())
        results, spent = {}, {}
        for name in ("ours", "naive") if step % 2 else ("naive", "ours"):
            start = time.process_time()
            results[name] = searches[name].step()
            spent[name] = time.process_time() - start
            seconds[name] += spent[name]
        mine, reference = results["ours"], results["naive"]
        ordered = sorted(naive.scores.values())
        margin = (ordered[1] - ordered[0]) / ordered[0] if len(ordered) > 1 else float("inf")
        same = (mine.gate, mine.rate) == (reference.gate, reference.rate)
        close_calls += not same and margin <= SAME_DECISION_MARGIN
        differences += not same and margin > SAME_DECISION_MARGIN
        print(
            f"step {step}: {len(naive.scores)} candidates, gate {reference.gate} (ours {mine.gate}), "
            f"margin {margin:.1e}, score {reference.score:.6f} (ours {mine.score:.6f}), "
            f"naive {spent['naive']:.1f} s, ours {spent['ours']:.1f} s, ratio {spent['ours'] / spent['naive']:.2f}, "
            f"batches skipped {ours.batches_skipped}, FLOPs rate {naive.flops_rate:.4f}",
            flush=True,
        )
    print(f"{steps} steps: naive {seconds['naive']:.1f} s, ours {seconds['ours']:.1f} s of CPU time")
    print(f"decisions that differ: {differences} (and {close_calls} with margins below {SAME_DECISION_MARGIN})")
    print(f"time ratio: {seconds['ours'] / seconds['naive']:.3f} (aim 0.4)")


if __name__ == "__main__":
    main(arguments.steps)
