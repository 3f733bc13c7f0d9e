"""Weights from files and run folders, their origin, and the released ResNet-56 of EKG."""

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runner.errors import UserError
from runner.models import build_model, describe_model
from runner.models.weights import load_weights, origin_of
from runner.profile import count
from runner.schema import ModelSettings

SHARED = Path(os.environ.get("RUNNER_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
RELEASED = SHARED / "resnet56_cifar10_ekg.safetensors"
needs_released = pytest.mark.skipif(not RELEASED.exists(), reason="the released weights are not here")


def build(name, num_classes=10, **options):
    return build_model(
        ModelSettings(name=name, **options),
        num_classes=num_classes,
        image_size=32,
        channels=3,
        small_image_stem="cifar",
    )


@needs_released
def test_released_network_is_known_by_its_hash():
    settings = ModelSettings(name="resnet56", weights=str(RELEASED))
    model = build("resnet56", weights=str(RELEASED))
    assert count(model, (3, 32, 32)) == (860_026, 126_837_376)
    assert model.padding == "tensorflow"
    assert origin_of(RELEASED).normalisation == {"mean": [113.9, 123.0, 125.3], "std": [66.7, 62.1, 63.0]}
    line = describe_model(settings, image_size=32, small_image_stem="cifar")
    assert "switched on tensorflow padding" in line and "113.9" in line
    assert build("resnet56", weights=str(RELEASED), padding="symmetric").padding == "symmetric"  # the user's word wins


@needs_released
@pytest.mark.parametrize(
    ("name", "num_classes", "words"), [("resnet20", 10, "use model=resnet56"), ("resnet56", 7, "7")]
)
def test_released_network_refuses_what_does_not_fit(name, num_classes, words):
    with pytest.raises(UserError, match=words):
        build(name, num_classes, weights=str(RELEASED))


@needs_released
def test_released_network_classifies_cifar10():
    """93.8% on the lossless images; about 84% on these JPEG copies. 300 images: three standard errors are 6.4%."""
    from PIL import Image

    archive = SHARED / "cifar10_jpeg.tar.xz"
    if not archive.exists():
        pytest.skip("the images are not here")
    images, labels, classes = [], [], []
    with tarfile.open(archive) as tar:  # test/CLASS/NNNN.jpg in order of class comes first
        for member in islice(tar, 10_000 + 20):
            parts = member.name.split("/")
            if not member.isfile() or parts[0] != "test" or int(parts[2][:4]) >= 30:
                continue
            if parts[1] not in classes:
                classes.append(parts[1])
            pixels = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
            images.append(torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(32, 32, 3))
            labels.append(sorted(classes).index(parts[1]))
    assert len(labels) == 300 and classes == sorted(classes)
    normalisation = origin_of(RELEASED).normalisation
    mean, std = (torch.tensor(normalisation[key]).view(3, 1, 1) for key in ("mean", "std"))
    batch = (torch.stack(images).permute(0, 3, 1, 2) - mean) / std
    accuracy = {}
    for padding in ("auto", "symmetric"):
        model = build("resnet56", weights=str(RELEASED), padding=padding).eval()
        with torch.no_grad():
            accuracy[padding] = (model(batch).argmax(1) == torch.tensor(labels)).float().mean().item()
    assert 0.776 < accuracy["auto"] < 0.904
    assert accuracy["symmetric"] < accuracy["auto"]


@pytest.fixture
def file(tmp_path):
    """Weights of a resnet20 under the names that data-parallel training gives."""
    path = tmp_path / "net.safetensors"
    state = build("resnet20").state_dict()
    save_file({f"module.{name}": t for name, t in state.items() if not name.endswith("num_batches_tracked")}, path)
    return path


def test_module_prefix_and_batch_counters_do_not_matter(file):
    assert origin_of(file) is None
    first, second = build("resnet20", weights=str(file)), build("resnet20", weights=str(file))
    assert torch.equal(first.fc.weight, second.fc.weight)


def test_sidecar_says_what_the_origin_asks_for(file):
    file.with_name("net.safetensors.json").write_text(
        json.dumps(
            {
                "padding": "tensorflow",
                "dataset": "trained elsewhere",
                "normalisation": {"mean": [1, 2, 3], "std": [4, 5, 6]},
                "names": {r"^module\.": ""},
            }
        )
    )
    assert build("resnet20", weights=str(file)).padding == "tensorflow"
    assert origin_of(file).normalisation["std"] == [4, 5, 6]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"pading": "tensorflow"}', "did you mean padding"),
        ('{"padding": "left"}', "padding"),
        ('{"normalisation": {"mean": [1]}}', "normalisation"),
        ("{", "JSON"),
        ("[]", "object"),
    ],
)
def test_wrong_sidecar(file, content, words):
    file.with_name("net.safetensors.json").write_text(content)
    with pytest.raises(UserError, match=words):
        origin_of(file)


def test_weights_of_another_network_are_refused(file):
    with pytest.raises(UserError, match=r"missing: .*unknown"):
        load_weights(build("resnet18"), file)
    with pytest.raises(UserError, match=r"fc.weight is \(10, 64\), the network has \(7, 64\)"):
        load_weights(build("resnet20", 7), file)


def test_damaged_or_foreign_files_are_refused(file, tmp_path):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated"):
        build("resnet20", weights=str(truncated))
    (tmp_path / "net.pth").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"only .*safetensors files"):
        origin_of(tmp_path / "net.pth")
    with pytest.raises(UserError, match="holds no network"):
        origin_of(tmp_path)
