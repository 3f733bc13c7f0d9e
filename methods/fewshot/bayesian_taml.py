"""Bayesian TAML: random variables inferred from the support set balance classes, learning rates and initial weights.

Lee, Lee, Na, Kim, Park, Yang and Hwang, "Learning to Balance: Bayesian Meta-Learning for Imbalanced and
Out-of-distribution Tasks", ICLR 2020, arXiv:1905.12917 (inner loop: section 3; inference: section 4). Official code:
haebeom-lee/l2b (TensorFlow). Deviations: see the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from runner.errors import UserError
from runner.methods.fewshot.gradient_learner import query_accuracy
from runner.methods.fewshot.inner_loop import (
    BatchStatisticsNorm,
    Weights,
    adapt,
    call,
    head_module,
    task_loss,
    use_batch_statistics,
)
from runner.methods.fewshot.meta_training import MetaTraining, meta_learn

if TYPE_CHECKING:
    from runner.context import Context

Normal = tuple[Tensor, Tensor]  # mean and standard deviation of each number
INITIAL = 0.02  # standard deviation of initial weights
NORM_EPS = 1e-3  # of batch normalisation, as in the released code


@dataclass(kw_only=True)
class BayesianTAML:
    """Meta-SGD with balancing variables; without all three it is Meta-SGD from a head of zeros."""

    rate: Annotated[float, Field(gt=0)] = 0.01  # of the inner steps: where the learned ones start
    learned_rates: bool = True  # a rate for every weight; false: MAML (then with rate 0.5, on miniImageNet 0.1)
    steps: Annotated[int, Field(gt=0)] = 5
    test_steps: Annotated[int, Field(gt=0)] | None = 10  # null: steps
    balance_classes: bool = True  # omega: shares of the classes in the support loss
    balance_rates: bool = True  # gamma: a factor of the learning rate of each layer
    balance_weights: bool = True  # z: factors of the convolutions' initial weights by output channel, shifts of biases
    stochastic: bool = True  # false: means of the variables, and no divergence from the prior
    draws: Annotated[int, Field(gt=0)] = 10  # in the test, whose probabilities are averaged
    training: MetaTraining = field(
        default_factory=lambda: MetaTraining(gradient_limit=3.0, validation_tasks=0, test_tasks=3000)
    )

    paper: ClassVar[str] = "arXiv:1905.12917"
    fidelity: ClassVar[str] = "official"
    claim: ClassVar[str] = (
        "Inferring for each task how much to learn, from which start and from which class, helps where the numbers of "
        "examples differ between tasks and classes, and on other data."
    )
    data: ClassVar[tuple[str, ...]] = ("episodes",)
    model: ClassVar[tuple[str, ...]] = ("classifier",)
    distributed: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Lee, Lee, Na, Kim, Park, Yang, Hwang. Learning to Balance: Bayesian Meta-Learning for Imbalanced and "
        "Out-of-distribution Tasks. ICLR 2020."
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "tasks are not padded to the longest of a meta-batch; in the released code the rows of zeros count in the "
        "sizes of support sets and in batch statistics",
        "the last iteration is measured; the released code chooses one by the validation accuracies on the data set "
        "and on another one",
        "the class shares come from a hidden layer, as in the released runs on one data set; in those on several they "
        "come from the class statistics themselves",
    )

    def run(self, ctx: Context) -> dict[str, float]:
        """Returns what ``meta_learn`` returns; where shots differ between the classes of a task accuracy_imbalanced
        (of such test tasks), class_share_correlation (Spearman's, of a class's shots and share, mean over tasks), and
        rate_correlation (of support size and the mean factor of the convolutions' rates, over test tasks)."""
        most = ctx.data.settings.max_shots or ctx.data.settings.shots
        if (weights := ctx.settings.model.weights) is not None:
            raise UserError(
                f"model.weights={weights}: method bayesian_taml draws the weights of convolutions anew and starts "
                "every task with a head of zeros; leave it out"
            )
        network, size = ctx.model(), ctx.data.image_size
        learner = ctx.initialised("learner", lambda: BalancedLearner(network, self, image_size=size, most_shots=most))
        metrics = meta_learn(ctx, learner, self.training, outer=learner.outer, predict=learner.predict)
        return {**metrics, **ctx.once("balance", lambda: self._balance(ctx, learner))}

    def _balance(self, ctx: Context, learner: BalancedLearner) -> dict[str, float]:
        from scipy.stats import spearmanr

        with numpy.load(ctx.artifact("test_scores.npz")) as file:
            scores = file["score"]
        imbalanced, of_classes, sizes, factors = [], [], [], []
        for number, score in enumerate(scores):
            task = ctx.data.task("test", number)
            shots = torch.bincount(task.support_targets, minlength=ctx.data.num_classes)
            with torch.no_grad():
                means = {
                    name: mean for name, (mean, _) in learner.posterior(task.support, task.support_targets).items()
                }
            sizes.append(len(task.support))
            if "rates" in means:
                factors.append(float(means["rates"][:-1].exp().mean()))
            if shots.min() < shots.max():
                imbalanced.append(float(score))
                if "classes" in means:
                    shares = means["classes"].cpu()
                    if shares.min() < shares.max():  # of equal shares there is no correlation
                        of_classes.append(float(spearmanr(shots.cpu(), shares).statistic))
        found = {"accuracy_imbalanced": imbalanced, "class_share_correlation": of_classes}
        metrics = {name: float(numpy.mean(values)) for name, values in found.items() if values}
        if factors and len(set(sizes)) > 1 and len(set(factors)) > 1:
            metrics["rate_correlation"] = float(spearmanr(sizes, factors).statistic)
        return {name: value for name, value in metrics.items() if numpy.isfinite(value)}


class BalancedLearner(nn.Module):
    """The meta-parameters: initial weights of the convolutions (shifts of batch normalisation too, which no inner step
    changes), ``rates``, and the ``inference`` network. The head starts every task from zeros."""

    def __init__(self, network: nn.Module, settings: BayesianTAML, *, image_size: int, most_shots: int) -> None:
        super().__init__()
        self.settings = settings
        self.network = use_batch_statistics(network)
        convolutions = {name: part for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}
        if not convolutions:
            raise UserError("method bayesian_taml needs a network with convolutions, such as model=conv4_32")
        for part in convolutions.values():
            nn.init.trunc_normal_(part.weight, std=INITIAL, a=-2 * INITIAL, b=2 * INITIAL)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        for part in network.modules():
            if isinstance(part, BatchStatisticsNorm):
                part.eps = NORM_EPS
                part.weight.requires_grad_(False).fill_(1.0)
        self.head = head_module(network)
        for weight in network.get_submodule(self.head).parameters():
            nn.init.zeros_(weight.requires_grad_(False))
        self.ways = network.get_submodule(self.head).out_features
        self.layers = [*convolutions, self.head]
        self.names = [f"{at}.{name}" for at in self.layers for name, _ in network.get_submodule(at).named_parameters()]
        weights = {name: network.get_parameter(name) for name in self.names}
        self.balanced = [name for name in self.names if not name.startswith(f"{self.head}.")]
        # One rate for all classes: the head's are a row, which each class's weights share.
        rated = {name: weight if name in self.balanced else weight[:1] for name, weight in weights.items()}
        self.rates = nn.ParameterList(
            torch.full_like(weight.detach(), settings.rate) for weight in rated.values() if settings.learned_rates
        )
        channels = next(iter(convolutions.values())).in_channels
        sizes = {
            "classes": settings.balance_classes,
            "rates": settings.balance_rates * len(self.layers),
            "weights": settings.balance_weights * sum(len(weights[name]) for name in self.balanced),
        }
        self.inference = InferenceNetwork(sizes, channels, image_size, self.ways, most_shots)

    # ---- one task: what is inferred, and the inner loop ------------------------------------------------------------

    def posterior(self, support: Tensor, support_targets: Tensor) -> dict[str, Normal]:
        """Of those variables that are on: classes (ways,), rates (layers,), weights (the output channels of each
        convolution's weight and bias in turn,)."""
        return self.inference(support, support_targets)

    def drawn(self, posterior: dict[str, Normal]) -> dict[str, Tensor]:
        """One draw of every variable."""
        return {name: mean + deviation * torch.randn_like(mean) for name, (mean, deviation) in posterior.items()}

    def start(self, variables: dict[str, Tensor]) -> Weights:
        """The initial weights of a task: w (1 + z) by output channel, b + z, and a head of zeros."""
        weights = {name: self.network.get_parameter(name) for name in self.names}
        if "weights" in variables:
            parts = variables["weights"].split([len(weights[name]) for name in self.balanced])
            for name, z in zip(self.balanced, parts, strict=True):
                weight = weights[name]
                weights[name] = weight * (1 + z.view(-1, 1, 1, 1)) if weight.ndim == 4 else weight + z
        return weights

    def adapted(self, variables: dict[str, Tensor], support: Tensor, support_targets: Tensor, steps: int) -> Weights:
        """The weights after ``steps`` on the balanced support loss, with rates times exp(gamma) of the layer."""
        shares = variables["classes"].softmax(0) if "classes" in variables else None
        rates = dict(zip(self.names, self.rates, strict=True)) if len(self.rates) else {}
        gammas = dict(zip(self.layers, variables["rates"], strict=True)) if "rates" in variables else {}

        def loss(weights: Weights, step: int) -> Tensor:
            logits = call(self.network, weights, support)
            if shares is None:
                return task_loss(logits, support_targets)
            return balanced_loss(logits, support_targets, shares)

        def with_rates(gradients: Weights, step: int) -> Weights:
            updates = {}
            for name, gradient in gradients.items():
                update = rates.get(name, self.settings.rate) * gradient
                layer = name.rpartition(".")[0]
                updates[name] = update * gammas[layer].exp() if gammas else update
            return updates

        return adapt(loss, self.start(variables), steps=steps, rate=None, transform_gradients=with_rates)

    def outer(
        self, support: Tensor, support_targets: Tensor, query: Tensor, query_targets: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """The query loss of one draw, and the divergence from the prior over the task's number of examples."""
        posterior = self.posterior(support, support_targets)
        stochastic = self.settings.stochastic and posterior
        variables = self.drawn(posterior) if stochastic else {name: mean for name, (mean, _) in posterior.items()}
        weights = self.adapted(variables, support, support_targets, self.settings.steps)
        outputs = call(self.network, weights, query)
        loss = task_loss(outputs, query_targets)
        found = query_accuracy(outputs, query_targets)
        if not stochastic:
            return {"loss": loss, **found}
        kl = torch.stack([divergence(*normal) for normal in posterior.values()]).sum() / (len(support) + len(query))
        return {"loss": loss + kl, "divergence": kl, **found}

    def predict(self, support: Tensor, support_targets: Tensor, query: Tensor) -> Tensor:
        """The logarithm of the mean probabilities of ``draws`` adaptations; logits of one by the means, if there is
        nothing to draw."""
        posterior = self.posterior(support, support_targets)
        steps = self.settings.test_steps or self.settings.steps

        def outputs(variables: dict[str, Tensor]) -> Tensor:
            return call(self.network, self.adapted(variables, support, support_targets, steps), query)

        if not (self.settings.stochastic and posterior):
            return outputs({name: mean for name, (mean, _) in posterior.items()})
        draws = [self.drawn(posterior) for _ in range(self.settings.draws)]
        variables = {name: torch.stack([draw[name] for draw in draws]) for name in posterior}
        return vmap(outputs)(variables).softmax(-1).mean(0).clamp(min=1e-20).log()


class InferenceNetwork(nn.Module):
    """From a support set to normal distributions of the balancing variables, by statistics of each class's examples
    and then of the classes: the order of examples and classes does not matter.

    Args:
        sizes: numbers to infer of classes (1: for each class), rates and weights; 0: that variable is off.
        most_shots: examples of a class that count as 1; one example counts as 0.
    """

    def __init__(self, sizes: dict[str, int], channels: int, image_size: int, ways: int, most_shots: int) -> None:
        super().__init__()
        self.ways, self.most_shots = ways, most_shots
        self.examples = nn.Sequential(
            nn.Conv2d(channels, 10, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 10, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(10 * (image_size // 4) ** 2, 64),
        )
        self.of_examples = nn.Linear(3, 4)
        self.classes = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 32))
        self.of_classes = nn.Linear(3, 4)
        self.hidden, self.means, self.deviations = (nn.ModuleDict() for _ in range(3))
        for name, size in sizes.items():
            if size:
                self.hidden[name] = nn.Sequential(nn.Linear(256 if name == "classes" else 128, 64), nn.ReLU())
                self.means[name], self.deviations[name] = nn.Linear(64, int(size)), nn.Linear(64, int(size))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=INITIAL, a=-2 * INITIAL, b=2 * INITIAL)
            elif isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=INITIAL)
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.zeros_(part.bias)

    def forward(self, support: Tensor, support_targets: Tensor) -> dict[str, Normal]:
        members = F.one_hot(support_targets, self.ways).to(support.dtype).T  # (ways, N)
        size = (members.sum(1) - 1) / max(self.most_shots - 1, 1)
        of_class = pooled(statistics(self.examples(support), members, size), self.of_examples)
        everything = members.new_ones(1, self.ways)
        of_task = pooled(statistics(self.classes(of_class), everything, size.mean()[None]), self.of_classes)
        found = {}
        for name, layer in self.hidden.items():
            hidden = layer(of_class if name == "classes" else of_task)
            found[name] = (self.means[name](hidden).flatten(), F.softplus(self.deviations[name](hidden)).flatten())
        return found


def statistics(values: Tensor, members: Tensor, size: Tensor) -> Tensor:
    """Mean, variance (biased) and size of each set in each dimension: (sets, D, 3).

    Args:
        values: (N, D).
        members: (sets, N), 1 where an example belongs to a set, else 0; no set is empty.
        size: (sets,), passed on.
    """
    counts = members.sum(1, keepdim=True)
    mean = members @ values / counts
    apart = (values - mean[:, None]).square()  # (sets, N, D)
    variance = (members[:, :, None] * apart).sum(1) / counts
    return torch.stack([mean, variance, size[:, None].expand_as(mean)], 2)


def pooled(triples: Tensor, layer: nn.Module) -> Tensor:
    """(sets, D, 3) -> (sets, 4 D)"""
    return layer(triples).relu().flatten(1)


def balanced_loss(logits: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """The sum over classes of share x (ways / N) x the class's summed cross-entropy; shares (ways,) sum to 1."""
    losses = F.cross_entropy(logits, targets, reduction="none")
    return len(shares) / len(losses) * (shares[targets] * losses).sum()


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, 1)), summed, in nats."""
    return ((deviation.square() + mean.square() - 1) / 2 - deviation.log()).sum()
