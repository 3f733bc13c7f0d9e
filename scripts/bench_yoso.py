"""Time and memory of attention over the length of the sequence: YOSO's tables against softmax, forward and backward.

    python scripts/bench_yoso.py [--lengths 256 512 1024 2048 4096 8192] [--hashes 16] [--bits 8] [--width 32]
        [--repeats 3] [--device cpu]

One head, one sequence, one thread. Each case runs in a process of its own, forked from one that has torch loaded and
computed nothing: CPU time (of a GPU: time) as the median over repeats after one to warm up, and by how much the peak of
the resident memory (of a GPU: of what torch allocated) rose above that of a short sequence. ``softmax`` forms all
pairs, ``fused`` is torch's scaled_dot_product_attention, which does not keep them. The slope is that of a line through
the logarithms, over all lengths and over the last three.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy
import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from runner.methods.language.attention import CollisionAttention
from runner.methods.language.collisions import expected_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def attentions(options: argparse.Namespace) -> dict[str, Callable[[], Attention]]:
    def sampled() -> Attention:
        layer = CollisionAttention(1, hashes=options.hashes, bits=options.bits)
        return lambda *parts: layer(*parts, torch.ones(1, parts[0].shape[2], dtype=torch.bool, device=parts[0].device))

    def expected() -> Attention:
        return lambda query, key, value: expected_attention(
            normalize(query, dim=-1), normalize(key, dim=-1), value, options.bits, bound=True
        )

    return {
        f"YOSO-{options.hashes}": sampled,
        "YOSO-E": expected,
        "softmax": lambda: softmax,
        "fused": lambda: scaled_dot_product_attention,
    }


def peak_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, length: int, options: argparse.Namespace, answer: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    attend = attentions(options)[name]()
    clock = time.process_time if options.device == "cpu" else time.perf_counter

    def seconds_of(count: int) -> float:
        shape = (1, 1, count, options.width)
        parts = [torch.randn(shape, device=options.device, requires_grad=True) for _ in range(3)]
        started = clock()
        torch.autograd.grad(attend(*parts), parts, torch.ones(shape, device=options.device))
        if options.device != "cpu":
            torch.cuda.synchronize()
        return clock() - started

    seconds_of(32)
    before = peak_bytes(options.device)
    seconds = [seconds_of(length) for _ in range(options.repeats + 1)]
    answer.send((statistics.median(seconds[1:]), peak_bytes(options.device) - before))


def in_a_process(name: str, length: int, options: argparse.Namespace) -> tuple[float, int]:
    forks = multiprocessing.get_context("fork" if options.device == "cpu" else "spawn")
    here, there = forks.Pipe(duplex=False)
    process = forks.Process(target=measure, args=(name, length, options, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def slope(lengths: list[int], values: list[float]) -> float:
    return float(numpy.polyfit(numpy.log(lengths), numpy.log(numpy.maximum(values, 1e-9)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--hashes", type=int, default=16)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    lengths = options.lengths
    found = {name: [in_a_process(name, n, options) for n in lengths] for name in attentions(options)}
    for title, place, factor in (("milliseconds", 0, 1e3), ("MiB", 1, 2**-20)):
        print(f"{title:14}" + "".join(f"{n:>10}" for n in lengths) + f"{'slope':>8}{'last 3':>8}")
        for name, cells in found.items():
            values = [cell[place] for cell in cells]
            slopes = f"{slope(lengths, values):>8.2f}{slope(lengths[-3:], values[-3:]):>8.2f}"
            print(f"{name:14}" + "".join(f"{factor * value:>10.1f}" for value in values) + slopes)


if __name__ == "__main__":
    main()
