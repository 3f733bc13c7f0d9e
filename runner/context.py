"""What a method sees: the durable verbs, and data, networks, measurements and outputs of its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from runner import randomness
from runner.checkpoints import Checkpoints
from runner.durable import Durable
from runner.environment import threads_each
from runner.errors import UserError
from runner.evaluation import accuracy_and_loss, batch_statistics, classify, in_order
from runner.folder import RunFolder
from runner.loop import Loop
from runner.settings import build_section
from runner.storage import replace_atomic
from runner.unread import noted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.cells import Cell
    from runner.datasets.images import Batches, ImageData, Images
    from runner.durable import Observer
    from runner.progress import Progress
    from runner.ranks import Ranks
    from runner.schema import ModelSettings, Recipe, Scale
    from runner.settings import Settings


@dataclass
class Launch:
    """What a run and the cells inside it share: the process, not the experiment."""

    device: torch.device
    progress: Progress
    stop_requested: Callable[[], bool]
    search_path: Sequence[Path]  # where configs of methods are found, the user's included
    ranks: Ranks | None = None  # None: one process
    announced: set[str] = field(default_factory=set)  # lines that cells would repeat
    group: str | None = None  # W&B's name for the sweep or table


class Context:
    """The one argument of ``run(self, ctx)``. Verbs are documented where they are defined in ``Durable``."""

    def __init__(
        self, config: Mapping[str, Any], settings: Settings, folder: RunFolder, launch: Launch, observer: Observer
    ) -> None:
        self.config = config
        self.settings = settings
        self.folder = folder
        self.launch = launch
        self.observer = observer
        self.device = launch.device
        self.seed: int = config["seed"]
        self.recipe_read: set[str] = set()  # fields of the recipe that were asked for
        self.recipe: Recipe = noted(settings.recipe, self.recipe_read)
        self.scale: Scale = settings.scale
        self.profiles: dict[str, dict[str, Any]] = {}
        self.cells: dict[str, dict[str, Any]] = {}  # phases of this run that are cells: seconds, run, what is in them
        self.product: dict[str, Any] | None = None
        self._numbered: dict[str, int] = {}
        self.durable = Durable(
            seed=self.seed,
            device=self.device,
            checkpoints=Checkpoints(folder.path / "checkpoints", observer.say, device=launch.device),
            observer=observer,
            every_seconds=settings.checkpoint.every_seconds,
            log_every=settings.tracking.every_steps,
            seeds=settings.seeds,
            max_epochs=self.scale.max_epochs,
            max_steps=self.scale.max_steps,
            stop_requested=launch.stop_requested,
            ranks=launch.ranks,
        )
        self._writes = launch.ranks is None or launch.ranks.main
        if settings.profile and self._writes:
            from runner.trace import Trace

            self.durable.trace = Trace(folder.path / "artifacts" / "trace", observer.say)

    # ---- durable verbs ---------------------------------------------------------------------------------------------

    def loop(
        self, name: str, source: Any = None, *, epochs: int | None = None, until: Callable[[], bool] | None = None
    ) -> Loop:
        """Resumable iteration over steps or batches; see ``runner.loop.Loop``."""
        return self.durable.loop(name, source, epochs=epochs, until=until)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """A phase without a loop, computed once and stored; see ``Durable.once``."""
        return self.durable.once(name, compute)

    def track(self, **objects: Any) -> None:
        """Names the state that loops save and restore; see ``Durable.track``."""
        self.durable.track(**objects)

    def log(self, **values: float | torch.Tensor) -> None:
        """Records values of the current step; see ``Durable.log``."""
        self.durable.log(**values)

    def say(self, text: str) -> None:
        """One line to the screen and to log.txt."""
        self.observer.say(text)

    # ---- data ------------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> ImageData:
        """The data set, capped by the scale; the normalisation of given weights replaces the data set's own."""
        from runner.datasets import load_data
        from runner.datasets.images import Normalisation
        from runner.models import describe_model, weights_origin

        with self._in_turn(), randomness.stream(self.seed, "data"):
            data = load_data(
                self.settings.dataset,
                self.scale,
                data_root=Path(self.settings.paths.data).expanduser(),
                offline=self.config["offline"],
            )
        origin = weights_origin(self.settings.model)
        if origin is not None and origin.normalisation is not None:
            mean, std = (torch.tensor(origin.normalisation[name]) for name in ("mean", "std"))
            data.normalisation = Normalisation(mean, std)
        data = data.to(self.device)  # small sets live on the device
        self._announce(data.describe())
        if hasattr(data, "image_size"):
            self._announce(
                describe_model(
                    self.settings.model, image_size=data.image_size, small_image_stem=self.scale.small_image_stem
                )
            )
        return data

    def split(self, split: str | Images) -> Images:
        """A split by name (train, validation, test), or the given images."""
        return getattr(self.data, split) if isinstance(split, str) else split

    def batches(
        self,
        split: str | Images,
        batch_size: int,
        *,
        shuffle: bool = True,
        augment: bool = True,
        views: int = 1,
        colour: bool = False,
        drop_last: bool = False,
    ) -> Batches:
        """Normalised batches of (images (B,C,H,W), or (B,V,C,H,W) for several views; labels (B,); index (B,))."""
        images = self.split(split)
        return images.batches(
            self.data.normalisation,
            min(batch_size, max(len(images), 1)),
            shuffle=shuffle,
            augmentation=self.data.augmentation if augment else None,
            views=views,
            colour=colour,
            drop_last=drop_last,
            device=self.device,
            workers=self._workers(),
        )

    # ---- networks --------------------------------------------------------------------------------------------------

    def model(
        self, role: str | None = None, arguments: Mapping[str, Any] | None = None, *, draw: int | None = None
    ) -> nn.Module:
        """The config's network, or that of the section ``role``: freshly initialised from its own random stream, or
        with ``model.weights``. ``arguments`` are added to those of ``model.target``; ``save_model`` needs them too.
        ``draw`` numbers the streams of networks that a loop asks for."""
        settings = with_arguments(self.role_model(role), arguments)
        number = self._next("model") if draw is None else f"draw {draw}"
        names = [*filter(None, ["model", role]), number]
        with self._in_turn(), randomness.stream(self.durable.seeds.initialisation, *names):
            return self._placed(self._built(settings))

    def network(self, name: str, *, role: str | None = None, **shape: Any) -> nn.Module:
        """The config's network for a shape that the method gives, such as in_features and out_features of a critic:
        ``model.target(**shape, **model.arguments)``, initialised from a random stream of that name, on the device."""
        from runner.models import build_shaped

        settings = self.role_model(role)
        return self.initialised(" ".join(filter(None, ["network", role, name])), lambda: build_shaped(settings, shape))

    def blank_model(self, role: str | None = None) -> nn.Module:
        """The same without weights, on the meta device: shapes can be asked of it before anything is trained."""
        with randomness.preserved(), torch.device("meta"):
            return self._built(replace(self.role_model(role), weights=None, head="keep"))

    def role_model(self, role: str | None) -> ModelSettings:
        """The section ``model`` of a role; the run's own where the role has none."""
        section = (self.config.get(role) or {}).get("model") if role else None
        return self.settings.model if section is None else build_section("model", section)

    def initialised(self, name: str, build: Callable[[], nn.Module]) -> nn.Module:
        """A module that a method adds, initialised by ``build`` from a random stream of its own, on the device."""
        with randomness.stream(self.durable.seeds.initialisation, "module", name):
            return self._placed(build())

    def trained_model(self, role: str = "baseline") -> nn.Module:
        """The network of a ``supervised`` cell with its own key, seed and recipe (the config section ``role``).

        ``model.weights`` (of the role's own model, where the section has one) takes its place when it is set. The
        network is on the device, in training mode, trainable; ``normalisation`` ({mean, std} on the 0-255 scale) is
        what it was trained with, None where nothing says it.
        """
        from runner.cells import run_cell
        from runner.models import weights_origin
        from runner.plan import role_config
        from runner.product import load

        settings = self.role_model(role)
        if settings.weights is not None:
            if settings.head == "reinit":
                raise UserError(
                    "model.head=reinit: this method starts from a trained network, and the new classifier is not; "
                    "train it first by method=supervised with the same model settings, then give that run's folder as "
                    "model.weights"
                )
            network = self.model(None if settings is self.settings.model else role)
            origin = weights_origin(settings)
            network.normalisation = origin.normalisation if origin is not None else None  # as of a network of a cell
            return network
        cell = run_cell(self, role_config(self.config, role, self.launch.search_path), as_role=role)
        return self._placed(load(cell.folder / "artifacts" / "model"))

    def cell(
        self,
        method: str,
        fields: Mapping[str, Any],
        *,
        recipe: Mapping[str, Any] | None = None,
        seed: int | None = None,
        sections: Mapping[str, Any] | None = None,
        role: str | None = None,
    ) -> Cell:
        """Another method as a run of its own key: reused when it is done, else run now (or waited for).

        It inherits model, dataset, scale, precision, seed and the role sections; ``fields`` are its hyperparameters,
        ``recipe``, ``seed`` and ``sections`` (whole ones: dataset, model, seeds) replace this run's.
        """
        from runner.cells import run_cell
        from runner.plan import cell_config

        self.recipe_read.update(self.config["recipe"])  # there
        config = cell_config(self.config, method, fields, recipe, seed, self.launch.search_path) | dict(sections or {})
        return run_cell(self, config, as_role=role or method)

    def save_model(
        self, model: nn.Module, arguments: Mapping[str, Any] | None = None, *, rebuild: str | None = None
    ) -> None:
        """Writes the product: artifacts/model/ with weights, architecture and an exported program.

        ``arguments``: with which ``model`` was built beside the config's. ``rebuild`` (package:function) makes the
        network again where the method gave it another form: it is called as the function of a ``model.target`` is,
        with ``arguments`` and with ``network``, what builds the config's own (name, target, arguments, stem, padding).
        """
        from runner.models import architecture_of, form_of_weights
        from runner.product import save_model

        if not self._writes:
            return
        architecture = architecture_of(
            with_arguments(self.settings.model, None if rebuild else arguments),
            num_classes=self.data.num_classes,
            image_size=self.data.image_size,
            channels=self.data.channels,
            small_image_stem=self.scale.small_image_stem,
            normalisation={
                "mean": self.data.normalisation.mean.tolist(),
                "std": self.data.normalisation.std.tolist(),
            },
            class_names=self.data.class_names,
            dataset=self.data.display_name,
        )
        if rebuild is not None:
            network = {name: architecture[name] for name in ("name", "target", "arguments", "stem", "padding")}
            architecture |= {"target": rebuild, "arguments": {"network": network, **(arguments or {})}}
        elif (form := form_of_weights(self.settings.model)) is not None:
            architecture |= {"target": form[0], "arguments": form[1]}  # the form that the weights brought along
        example = torch.zeros(2, *self._input_shape(), device=self.device)
        with randomness.preserved():
            self.product = save_model(
                self.artifact("model"), model, architecture, example, export=self.scale.export_program
            )
        if self.product.get("warning"):
            self.say(f"warning: {self.product['warning']}")

    @property
    def ranks(self) -> Ranks | None:
        """The processes that run this method together; None where it is one."""
        return self.durable.ranks

    def autocast(self) -> AbstractContextManager:
        """Mixed precision as ``precision`` says; nothing at float32."""
        if self.config["precision"] == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.config["precision"]))

    # ---- measurements ----------------------------------------------------------------------------------------------

    def evaluate(
        self, model: nn.Module, split: str = "test", *, batch_statistics: bool = False, record: bool | None = None
    ) -> dict[str, float]:
        """Accuracy (0..1) and loss (mean cross-entropy, nats) on a split, un-augmented.

        Args:
            batch_statistics: normalise with each batch's statistics instead of the moving averages (updates nothing).
            record: write artifacts/test_scores.npz; default: on the test split. Its arrays: index, label, prediction,
                score (1 where it is right, else 0), log_likelihood (of the label, nats).
        """
        rows = self._stored(
            f"evaluate {split}", lambda: self._classify(model, split, batch_statistics), on_all_ranks=True
        )
        if record is None:
            record = split == "test" and not batch_statistics
        if record and self._writes:
            self._write_scores(rows)
        return accuracy_and_loss(rows)

    def profile(self, model: nn.Module, name: str = "final") -> dict[str, Any]:
        """Parameters, FLOPs (multiply-adds, see ``runner.profile``) and latency; kept as profile.NAME in the result."""
        from runner.profile import count, latency_ms

        shape = self._input_shape()

        def measure() -> dict[str, Any]:
            counts = count(model, shape)
            seconds = 0.0 if self.scale.name == "smoke" else 0.5
            latency = latency_ms(model, shape, self.device, seconds=seconds)
            return {"params": counts.params, "flops": counts.flops, "latency_ms": latency}

        self.profiles[name] = self._stored(f"profile {name}", measure)
        return self.profiles[name]

    # ---- outputs ---------------------------------------------------------------------------------------------------

    def artifact(self, name: str) -> Path:
        """A place under artifacts/ for a file that the method writes (atomically, see ``runner.storage``).

        Every rank writes; what ranks above 0 write is thrown away when the run ends.
        """
        folder = self.folder.path / "artifacts"
        path = (folder if self._writes else self.launch.ranks.thrown_away / self.folder.path.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def figure(self, name: str, figure: Figure) -> None:
        """Saves a matplotlib figure as figures/NAME.png and .pdf."""
        if not self._writes:
            return
        folder = self.folder.path / "figures"
        folder.mkdir(exist_ok=True)
        for kind in ("png", "pdf"):
            replace_atomic(folder / f"{name}.{kind}", lambda path, kind=kind: figure.savefig(path, format=kind))

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _workers(self) -> int | None:
        """Processes that read image files; several ranks divide the cores."""
        workers = self.settings.hardware.workers
        return threads_each(self.ranks.count) if workers is None and self.ranks is not None else workers

    def _built(self, settings: ModelSettings) -> nn.Module:
        from runner.models import build_model

        # After smoke's two steps running statistics are still those of the start: through blocks that are no shortcuts
        # activations grow beyond all bounds in evaluation.
        zero_init_residual = self.recipe.zero_init_residual or self.scale.name == "smoke"
        return build_model(
            settings,
            num_classes=self.data.num_classes,
            image_size=self.data.image_size,
            channels=self.data.channels,
            small_image_stem=self.scale.small_image_stem,
            zero_init_residual=zero_init_residual,
            offline=self.config["offline"],
        )

    def _in_turn(self) -> AbstractContextManager:
        return nullcontext() if self.ranks is None else self.ranks.main_first()

    def _placed(self, network: nn.Module) -> nn.Module:
        layout = torch.channels_last if self.recipe.channels_last else torch.preserve_format
        return network.to(self.device, memory_format=layout)

    def _input_shape(self) -> tuple[int, int, int]:
        return (self.data.channels, self.data.image_size, self.data.image_size)

    def _announce(self, line: str) -> None:
        if line not in self.launch.announced:
            self.launch.announced.add(line)
            self.say(line)

    def _next(self, name: str) -> int:
        self._numbered[name] = self._numbered.get(name, -1) + 1
        return self._numbered[name]

    def _stored(self, name: str, compute: Callable[[], Any], *, on_all_ranks: bool = False) -> Any:
        """Between loops a measurement is a phase of its own, not computed again after a kill; inside one it is not."""
        if self.durable.busy:
            with randomness.stream(self.seed, name):
                if self.ranks is None or on_all_ranks:
                    return compute()
                return self.ranks.share(compute() if self.ranks.main else None)
        number = self._next(name)
        name = name if number == 0 else f"{name} {number + 1}"
        return self.durable.once(name, compute, on_all_ranks=on_all_ranks)

    def _classify(self, model: nn.Module, split: str, use_batch_statistics: bool) -> dict[str, torch.Tensor]:
        images = self.split(split)
        batches = self.batches(images, self.recipe.evaluation_batch_size, shuffle=False, augment=False)
        ranks = self.ranks
        if ranks is not None:
            ranks.same_buffers(model)
        rank, count = (0, 1) if ranks is None else (ranks.rank, ranks.count)
        rows = None
        if rank < len(batches) or ranks is None:  # whole batches: with batch statistics an example depends on its batch
            with batch_statistics(model) if use_batch_statistics else nullcontext():
                rows = classify(model, batches.iterate(0, rank, stride=count), self.autocast())
        if ranks is not None:
            rows = in_order(part for part in ranks.gather(rows) if part is not None)
        rows["index"] = images.index.cpu()[rows["index"]]
        return rows

    def _write_scores(self, rows: dict[str, torch.Tensor]) -> None:
        arrays = {name: rows[name].numpy() for name in ("index", "label", "prediction")}
        arrays["score"] = (rows["prediction"] == rows["label"]).numpy().astype("float32")
        arrays["log_likelihood"] = -rows["loss"].numpy().astype("float32")

        def write(path: Path) -> None:
            with path.open("wb") as file:
                numpy.savez(file, **arrays)

        replace_atomic(self.artifact("test_scores.npz"), write)


def with_arguments(settings: ModelSettings, arguments: Mapping[str, Any] | None) -> ModelSettings:
    """``settings`` with more arguments for the function that builds the network."""
    return replace(settings, arguments={**settings.arguments, **arguments}) if arguments else settings
