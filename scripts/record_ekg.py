"""Runs and records EKG's comparison of fine-tuning arms over seeds: bank, labels alone, uniform width by L1 norms.

Every cell is a command of the runner; what is done is not run again, an interrupted call goes on. Writes
results/ekg_<study>.md with means, standard deviations, n, paired differences, date, commit and machine.

    python scripts/record_ekg.py cifar10_jpeg --path ../shared/data/cifar10_jpeg.tar.xz \
        --weights ../shared/data/resnet56_cifar10_ekg.safetensors
    python scripts/record_ekg.py fashion_mnist --path ../shared/data
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "EKG search, bank": [],
    "EKG search, labels alone": ["method.fine_tune.knowledge=none"],
    "uniform width by L1, labels alone": [
        "method.search.strategy=uniform",
        "method.search.filter_score=l1",
        "method.search.knowledge=none",
        "method.fine_tune.knowledge=none",
    ],
}
COLUMNS = {"accuracy": "test accuracy", "accuracy_pruned": "before fine-tuning", "flops_rate": "FLOPs kept"}


def study(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """(title, overrides shared by all arms)."""
    if arguments.study == "cifar10_jpeg":
        return (
            "CIFAR-10 (JPEG), released ResNet-56, 5,000 training images, desk settings",
            [
                "model=resnet56",
                f"model.weights={arguments.weights}",
                "dataset=image_folder",
                f"dataset.path={arguments.path}",
                "dataset.train_size=5000",
            ],
        )
    return (  # the desk-scale check of the EKG card, section 6
        "Fashion-MNIST at 14x14, ResNet-14 of widths 8/16/32, 10,000 training images, K = 3 (card, section 6)",
        [
            "model=resnet14_narrow",
            "dataset=fashion_mnist",
            f"dataset.path={arguments.path}",
            "dataset.image_size=14",
            "dataset.train_size=10000",
            "dataset.test_size=10000",
            "dataset.validation_fraction=0",
            "baseline.recipe.epochs=10",
            "method.search.subset_per_class=64",
            "method.search.validation_per_class=32",
            "method.search.step=0.2",
            "method.fine_tune.teachers=3",
            "recipe.epochs=8",
            "recipe.batch_size=128",
        ],
    )


def cell(overrides: list[str]) -> dict:
    """The result of one command of the runner, run or read."""
    command = [sys.executable, "-m", "runner", "method=ekg", "scale=desk", "tracking=none", *overrides]
    print("+", " ".join(command[2:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())


def spread(values: list[float]) -> str:
    """mean +- standard deviation."""
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if len(values) > 1 else float('nan'):.4f}"


def report(title: str, results: dict[str, list[dict]], seeds: list[int]) -> str:
    """The table as Markdown."""
    first = results[next(iter(results))][0]
    commits = sorted({run["commit"][:12] for runs in results.values() for run in runs})
    lines = [
        f"# EKG: {title}",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {' and '.join(commits)}, {first['hardware']['processor']}, "
        f"{first['hardware']['threads']} threads, torch {first['versions']['torch']}. n = {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}); mean +- standard deviation. Desk scale: not the paper's protocol.",
        "",
        f"Data: {first['dataset']}. Unpruned network: "
        f"{spread([result['metrics']['accuracy_baseline'] for result in results['EKG search, bank']])}.",
        "",
        "| arm | " + " | ".join(COLUMNS.values()) + " | seconds, search / fine-tuning |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for arm, runs in results.items():
        values = [spread([run["metrics"][name] for run in runs]) for name in COLUMNS]
        seconds = [
            statistics.mean(run["phases"][phase]["seconds"] for run in runs) for phase in ("search/search", "fine_tune")
        ]
        lines.append(f"| {arm} | " + " | ".join(values) + f" | {seconds[0]:.0f} / {seconds[1]:.0f} |")
    lines += ["", "Accuracy differences, paired by seed:", ""]
    names = list(results)
    for better, other in pairwise(names):
        pairs = zip(results[better], results[other], strict=True)
        differences = [one["metrics"]["accuracy"] - two["metrics"]["accuracy"] for one, two in pairs]
        shown = ", ".join(f"{value:+.4f}" for value in differences)
        lines.append(f"- {better} - {other}: {spread(differences)} ({shown})")
    rates = [run["metrics"]["flops_rate"] for runs in results.values() for run in runs]
    lines += ["", f"Final FLOPs rates lie in {min(rates):.4f} to {max(rates):.4f} (target 0.45).", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["cifar10_jpeg", "fashion_mnist"])
    parser.add_argument("--path", required=True, help="of the data")
    parser.add_argument("--weights", help="of the released ResNet-56")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; two calls with one each fill two cores")
    parser.add_argument("--runs", default="runs", help="run folders")
    arguments = parser.parse_args()
    title, shared = study(arguments)
    seeds = arguments.seeds
    results: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    fixed = [f"paths.runs={arguments.runs}", f"hardware.threads={arguments.threads}"]
    for seed in seeds:
        for arm, overrides in ARMS.items():
            results[arm].append(cell([*shared, *overrides, f"seed={seed}", *fixed]))
    text = report(title, results, seeds)
    path = ROOT / "results" / f"ekg_{arguments.study}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
