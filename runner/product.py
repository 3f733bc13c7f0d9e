"""The network that a run yields: saved as weights, architecture and exported program, and loaded again.

A product folder holds weights.safetensors, architecture.json (what rebuilds the network, pruned widths too) and, where
it could be made, program.pt2 of torch.export. Nothing in it is read by unpickling objects.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.errors import UserError
from runner.models import build_network, import_target
from runner.models.resize import resize_to, widths_of
from runner.models.weights import assign, find_product, read_architecture, read_tensors, sha256


def save_model(
    folder: Path, model: nn.Module, architecture: dict[str, Any], example_input: torch.Tensor, *, export: bool
) -> dict[str, Any]:
    """Write ``model`` as a product folder; an older one is replaced as a whole.

    ``architecture`` comes from runner.models.architecture_of; widths and the hash of the weights are added here.
    Tensors alone are stored: what a module keeps as extra state of another type is left out.
    ``example_input`` is a batch (B, C, H, W). Returns ``sha256`` of the weights (equal tensors give equal bytes),
    ``weights_bytes`` of their file, and ``warning``: why there is no exported program, or None. Export never fails
    the run.
    """
    from safetensors.torch import save

    # Contiguous copies: tied tensors may not share memory in the file, and the bytes may not depend on memory format.
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    weights = save({name: state[name].cpu().clone(memory_format=torch.contiguous_format) for name in state})
    digest = hashlib.sha256(weights).hexdigest()
    stored = {
        **architecture,
        "input_shape": list(example_input.shape[1:]),
        "widths": widths_of(model),
        "weights_sha256": digest,
    }
    temporary = folder.with_name(f".{folder.name}.partial")  # what a kill leaves is replaced by the next save
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "weights.safetensors").write_bytes(weights)
    (temporary / "architecture.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")
    warning = _export(model, example_input, temporary / "program.pt2") if export else None
    _replace(folder, temporary)
    return {"sha256": digest, "weights_bytes": len(weights), "warning": warning}


def load(path: str | Path) -> nn.Module:
    """The network of a run folder (or its artifacts/model), on the CPU, in evaluation mode.

    A network of the zoo is rebuilt trainable, without the method that made it; so is a user's network where its
    ``target`` can be imported, else its exported program comes back, for evaluation only. Attributes: ``architecture``
    (dict) and ``normalisation`` ({mean, std} on the 0-255 scale). Raises UserError: nothing there, damaged files, no
    program for an absent class.
    """
    folder = find_product(Path(path).expanduser())
    architecture = read_architecture(folder)
    try:
        if architecture["target"]:
            import_target(architecture["target"])
    except UserError as absent:
        model = _load_program(folder, absent)
    else:
        model = _rebuild(folder, architecture)
    model.eval()
    model.architecture = architecture
    model.normalisation = architecture.get("normalisation")
    return model


class ExportedNetwork(nn.Module):
    """An exported program as a module: evaluation only."""

    def __init__(self, program: nn.Module):
        super().__init__()
        self.program = program
        self.training = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.program(images)

    def train(self, mode: bool = True) -> ExportedNetwork:
        if mode:
            raise UserError(
                "this network is an exported program, for evaluation only; "
                "to train it, install the package of its model.target"
            )
        return self


def _rebuild(folder: Path, architecture: dict[str, Any]) -> nn.Module:
    file = folder / "weights.safetensors"
    tensors = read_tensors(file)
    if architecture.get("weights_sha256") not in (None, sha256(file)):
        raise UserError(f"{file}: not the weights that architecture.json beside it describes; repeat the run")
    with torch.random.fork_rng(devices=[]):  # the initial values are overwritten, so they may draw nothing
        model = build_network(
            **{name: architecture[name] for name in ("name", "target", "arguments", "num_classes", "channels")},
            stem=architecture["stem"],
            padding=architecture["padding"],
            image_size=architecture.get("image_size"),
        )
    resize_to(model, architecture["widths"])
    assign(model, tensors, file)
    return model


def _export(model: nn.Module, example_input: torch.Tensor, file: Path) -> str | None:
    """Write the exported program of a copy of ``model``; returns why it could not be made, or None."""
    import torch.export  # seconds, so only here

    # A batch of one would be taken for a constant size.
    example = example_input[:2].cpu() if len(example_input) > 1 else example_input.cpu().repeat(2, 1, 1, 1)
    failure = None
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            network = copy.deepcopy(model).cpu().eval()
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, file)
        except Exception as error:
            file.unlink(missing_ok=True)
            failure = f"no exported program: torch.export failed ({type(error).__name__}: {str(error).splitlines()[0]})"
    return failure


def _load_program(folder: Path, absent: UserError) -> nn.Module:
    file = folder / "program.pt2"
    if not file.is_file():
        raise UserError(f"{folder}: {absent}; and no exported program was stored beside the weights") from absent
    try:
        _refuse_code(file)
        return ExportedNetwork(_load_without_pickle(file).module())
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: no readable exported program ({error}); {absent}") from error


def _refuse_code(file: Path) -> None:
    """Archives of torch.export can also hold pickled objects and compiled code, which are executed by loading."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if any(kind in name for kind in ("custom_obj", "opaque_obj", "aotinductor")):
                raise UserError(f"{file}: holds {name}, which would be executed; only plain programs are loaded")


def _load_without_pickle(file: Path) -> torch.export.ExportedProgram:
    """torch.export.load, its inner torch.load calls held to weights_only by torch's own switch."""
    import torch.export  # seconds, so only here

    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        return torch.export.load(file)
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def _replace(folder: Path, new: Path) -> None:
    """Put ``new`` in the place of ``folder``: readers see the old one or the new one, never a mixture."""
    old = new.with_name(new.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
