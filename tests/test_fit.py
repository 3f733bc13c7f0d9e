"""The options of a recipe: against loops written by hand in float64, and end to end."""

import math

import pytest
import torch
from commands import killed_and_repeated, outcome, runner
from safetensors.torch import load_file
from torch import nn
from toy_methods import FileObserver, FitContext, SeededImages, recipe_of
from user_methods import write_config

from runner.checkpoints import Checkpoints
from runner.durable import Durable
from runner.fit import Fitted, fit, mixing


class Recorded:
    """Batches that stand beforehand, in float64, and a last smaller one."""

    def __init__(self, sizes: list[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (
                torch.randn(size, 3, 6, 6, generator=generator, dtype=torch.float64),
                torch.randint(3, (size,), generator=generator),
            )
            for size in sizes
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def iterate(self, seed: int, start: int = 0):
        yield from self.batches[start:]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return layers.double()


def fitted(folder, model: nn.Module, batches, **options) -> Fitted:
    observer = FileObserver(folder / "metrics.jsonl")
    durable = Durable(
        seed=0,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(folder / "checkpoints", observer.say),
        observer=observer,
        every_seconds=1e6,
        log_every=1,
    )

    def loss(images, labels):
        return nn.functional.cross_entropy(model(images), labels)

    return fit(FitContext(durable, recipe_of(**options)), model, loss, batches=batches)


def by_hand(model: nn.Module, batches: list, rates: list[float], *, group: int, clip: float | None) -> list[list]:
    """SGD with momentum 0.9; one update for each group of batches of an epoch; the weights after each update."""
    weights = list(model.parameters())
    velocities = [torch.zeros_like(weight) for weight in weights]
    trajectory, rates = [], iter(rates)
    epochs = 2
    for _ in range(epochs):
        for start in range(0, len(batches), group):
            part = batches[start : start + group]
            mean = sum(nn.functional.cross_entropy(model(images), labels) for images, labels in part) / len(part)
            gradients = torch.autograd.grad(mean, weights)
            norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
            scale = min(1.0, clip / float(norm)) if clip is not None else 1.0
            rate = next(rates)
            with torch.no_grad():
                for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
                    velocity.mul_(0.9).add_(gradient * scale)
                    weight.sub_(rate * velocity)
            trajectory.append([weight.detach().clone() for weight in weights])
    assert next(rates, None) is None
    return trajectory


def check_equal(found: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=1e-6)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("group", [1, 2, 3, 7, 9])
def test_accumulation_is_one_step_along_the_mean_loss_of_each_group(tmp_path, group, clip):
    batches = Recorded([4] * 6 + [2])
    found, expected = network(), network()
    steps = 2 * math.ceil(7 / group)
    schedule = {"name": "cosine", "warmup_epochs": 0.0}
    fitted(tmp_path, found, batches, epochs=2, accumulation=group, gradient_clip=clip, schedule=schedule)
    rates = [0.05 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    by_hand(expected, batches.batches, rates, group=group, clip=clip)
    check_equal(found, expected)


def test_accumulated_batches_are_one_large_batch_where_nothing_looks_across_images(tmp_path):
    small = Recorded([4] * 6)
    large = Recorded([])
    large.batches = [
        tuple(torch.cat(parts) for parts in zip(*small.batches[start : start + 3], strict=True)) for start in (0, 3)
    ]
    results = []
    for number, (batches, accumulation) in enumerate(((small, 3), (large, 1))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        schedule = {"name": "one_cycle"}
        folder = tmp_path / str(number)
        folder.mkdir()
        fitted(folder, model, batches, epochs=2, accumulation=accumulation, schedule=schedule)
        results.append(model.state_dict())
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)


@pytest.mark.parametrize("group", [1, 3])
def test_the_moving_average_follows_every_optimizer_step(tmp_path, group):
    batches, decay = Recorded([4] * 7), 0.8
    model, plain = network(), network()
    averaged = fitted(tmp_path, model, batches, epochs=2, ema_decay=decay, accumulation=group).averaged
    trajectory = by_hand(plain, batches.batches, [0.1] * (2 * math.ceil(7 / group)), group=group, clip=None)
    check_equal(model, plain)  # the average does not touch the training
    expected = trajectory[0]
    for weights in trajectory[1:]:
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for found, weight, now in zip(averaged.parameters(), expected, model.parameters(), strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-7, check_dtype=True)
        assert not torch.equal(found, now)
    for found, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
        assert torch.equal(found, buffer)


def test_the_neutral_recipe_is_the_plain_loop_to_the_bit(tmp_path):
    batches = Recorded([4] * 7)
    model, plain = network(), network()
    assert fitted(tmp_path, model, batches, epochs=2).averaged is None
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for images, labels in batches.batches * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


# ---- mixing


def test_mixup_mixes_images_and_labels_by_one_share():
    (images, labels), *_ = SeededImages().iterate(0)
    mix = mixing(recipe_of(mixup=0.4), 3)
    torch.manual_seed(5)
    share = float(torch.distributions.Beta(torch.tensor([0.4]), torch.tensor([0.4])).sample())
    torch.manual_seed(5)
    mixed, soft = mix(images, labels)
    one_hot = nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    torch.testing.assert_close(soft, share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_cutmix_pastes_a_rectangle_and_weighs_labels_by_its_area():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 12, 10)
    labels = torch.tensor([0, 1, 2, 1])
    mix = mixing(recipe_of(cutmix=1.0), 3)
    areas = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, soft = mix(images, labels)
        pasted = mixed != images
        assert torch.equal(mixed[pasted], images.roll(1, 0)[pasted])
        rows, columns = pasted[0, 0].any(1), pasted[0, 0].any(0)
        assert torch.equal(pasted, (rows[:, None] & columns).expand_as(pasted))
        areas.append(int(rows.sum() * columns.sum()) / 120)
        one_hot = nn.functional.one_hot(labels, 3).float()
        torch.testing.assert_close(soft, (1 - areas[-1]) * one_hot + areas[-1] * one_hot.roll(1, 0))
    assert len(set(areas)) > 5


def test_with_both_each_batch_takes_one_and_without_none_nothing_happens():
    assert mixing(recipe_of(), 3) is None
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mix = mixing(recipe_of(mixup=1.0, cutmix=1.0), 3)
    pasted = 0
    for seed in range(60):
        torch.manual_seed(seed)
        mixed, soft = mix(images, torch.tensor([0, 1, 2, 1]))
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        pasted += int(((mixed == images) | (mixed == images.roll(1, 0))).all())
    assert 15 < pasted < 45


def test_a_batch_that_the_probability_leaves_alone_keeps_its_class_numbers():
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    mix = mixing(recipe_of(mixup=1.0, mixing_probability=0.5), 3)
    mixed = 0
    for seed in range(60):
        torch.manual_seed(seed)
        found, targets = mix(images, labels)
        if targets.ndim == 2:
            mixed += 1
        else:
            assert torch.equal(found, images) and torch.equal(targets, labels)
    assert 15 < mixed < 45


# ---- end to end

OPTIONS = (
    "method=supervised",
    "model=resnet20",
    "dataset=digits",
    "scale=smoke",
    "hardware=cpu",
    "precision=bfloat16",
    "scale.max_epochs=2",
    "scale.max_train_examples=60",
    "scale.max_steps=null",
    "dataset.validation_fraction=0.1",
    "seeds={initialisation:1,order:2,augmentation:3,episodes:4}",
    "recipe={epochs:2,batch_size:8,accumulation:3,ema_decay:0.9,mixup:0.4,cutmix:1.0,label_smoothing:0.1}",
    "recipe.gradient_clip=1.0",
    "recipe.schedule.name=one_cycle",
    "checkpoint.every_seconds=0",
)


@pytest.fixture(scope="module")
def all_options(tmp_path_factory):
    answer = runner(*OPTIONS, place=tmp_path_factory.mktemp("options"))
    assert answer.code == 0, answer.err
    return answer


def test_all_options_together_with_bfloat16(all_options):
    metrics = all_options.result["metrics"]
    assert set(metrics) == {"accuracy", "loss", "accuracy_best_validation", "accuracy_ema"}
    lines = outcome(all_options)["lines"]
    assert sum("accuracy_ema_validation" in line for line in lines) == 2
    weights = load_file(all_options.folder / "artifacts" / "model" / "weights.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_all_options_killed_and_repeated(all_options, tmp_path):
    answer, kills = killed_and_repeated(OPTIONS, tmp_path, [(0, 0.02), (2, 0.01), (1, 0.03)])
    assert answer.code == 0, answer.err
    assert kills
    assert outcome(answer) == outcome(all_options)


def test_bfloat16_computes_in_bfloat16(all_options, tmp_path):
    answer = runner(*OPTIONS, "precision=float32", place=tmp_path)
    one, other = (item.result for item in (answer, all_options))
    assert one["key"] != other["key"]
    assert 0 < abs(one["metrics"]["loss"] - other["metrics"]["loss"]) < 0.3


STREAMS = ("initialisation", "order", "augmentation", "episodes")


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """The digests of a method's draws under some settings of the seeds."""
    place = tmp_path_factory.mktemp("streams")
    configs = write_config(place / "configs", "draws", "user_methods:Draws")

    def draws(*overrides: str) -> dict[str, float]:
        arguments = ("method=draws", "model=resnet20", "dataset=digits", "scale=smoke", "hardware=cpu", *overrides)
        answer = runner("--config-dir", configs, *arguments, place=place)
        assert answer.code == 0, answer.err
        return answer.result["metrics"]

    return draws


def test_null_means_the_seed_of_the_run(streams):
    expected = streams("seed=3")
    assert streams("seed=3", *(f"seeds.{name}=3" for name in STREAMS)) == expected
    assert all(value != expected[name] for name, value in streams("seed=4").items())


@pytest.mark.parametrize("name", STREAMS)
def test_one_stream_can_be_varied_alone(streams, name):
    base, varied = streams("seed=3"), streams("seed=3", f"seeds.{name}=4")
    changed = {metric for metric in base if base[metric] != varied[metric]}
    assert changed == {name} | ({"images"} & set(base) if name in ("order", "augmentation") else set())
    assert varied[name] == streams("seed=4")[name]
