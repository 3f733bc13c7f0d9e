"""model.weights=imagenet: where the file lies, fetching and checking it, and replacing its classifier."""

import functools
import hashlib
import http.server
import threading
from dataclasses import replace

import pytest
import torch

from runner.compose import compose
from runner.errors import UserError
from runner.models import build_model, check_weights, describe_model, imagenet, weights_origin
from runner.models.weights import head_of
from runner.plan import plan
from runner.schema import ModelSettings

SETTINGS = ModelSettings(name="shufflenet_v2", weights="imagenet")


def build(settings, num_classes=1000, offline=True, image_size=32):
    return build_model(
        settings, num_classes=num_classes, image_size=image_size, channels=3, small_image_stem="cifar", offline=offline
    )


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Random weights served as torchvision's, with their checksum in the name; torch's folder is empty."""
    torch.manual_seed(1)
    network = build(replace(SETTINGS, weights=None))
    file = tmp_path / "served" / "weights.pth"
    file.parent.mkdir()
    torch.save(network.state_dict(), file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file = file.rename(file.with_name(f"shufflenet-{digits}.pth"))
    published = replace(imagenet.PUBLISHED["shufflenet_v2"], file=file.name)
    monkeypatch.setitem(imagenet.PUBLISHED, "shufflenet_v2", published)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=file.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(imagenet, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
    yield file, network
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", imagenet.PUBLISHED)
def test_the_table_is_that_of_torchvision(name):
    from torchvision.models import get_weight

    published = imagenet.PUBLISHED[name]
    theirs = get_weight(published.name)
    assert theirs.url == imagenet.ADDRESS + published.file
    # pages give MiB, as _file_size does
    assert published.megabytes == pytest.approx(theirs.meta["_file_size"] * 1.048576, abs=0.06)
    transforms = theirs.transforms()
    assert imagenet.NORMALISATION["mean"] == pytest.approx([255 * value for value in transforms.mean])
    assert imagenet.NORMALISATION["std"] == pytest.approx([255 * value for value in transforms.std])


def test_the_folder_is_that_of_torch(monkeypatch, tmp_path):
    published = imagenet.PUBLISHED["resnet18"]
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
        assert str(imagenet.place(published).parents[1]) == torch.hub.get_dir()
        monkeypatch.delenv(variable)
    assert str(imagenet.place(published).parents[1]) == torch.hub.get_dir()


def test_they_are_fetched_once_and_announced(served, capsys):
    file, network = served
    with pytest.raises(UserError, match=rf"put {file.name} of torchvision into .*torch.hub.checkpoints.*offline=true"):
        check_weights(SETTINGS, offline=True)
    check_weights(SETTINGS, offline=False)
    found = build(SETTINGS, offline=False)
    assert torch.equal(found.fc.weight, network.fc.weight)
    out, err = capsys.readouterr()
    assert "downloading ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1 (9.2 MB)" in err and out == ""
    file.unlink()
    assert torch.equal(build(SETTINGS).conv1[0].weight, network.conv1[0].weight)  # offline now
    folder = imagenet.place(imagenet.PUBLISHED["shufflenet_v2"]).parent
    assert [path.name for path in folder.iterdir()] == [file.name]


def test_without_network_or_with_another_file(served):
    file, _ = served
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="invalid hash"):
        build(SETTINGS, offline=False)
    file.unlink()
    with pytest.raises(UserError, match=r"failed: .*404.* put shufflenet"):
        build(SETTINGS, offline=False)
    place = imagenet.place(imagenet.PUBLISHED["shufflenet_v2"])
    assert not place.exists()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"is damaged .its checksum differs"):
        build(SETTINGS)


def test_the_origin_decides_stem_and_normalisation():
    origin = weights_origin(SETTINGS)
    assert (origin.stem, origin.num_classes, origin.normalisation) == ("imagenet", 1000, imagenet.NORMALISATION)
    line = describe_model(replace(SETTINGS, head="reinit"), image_size=32, small_image_stem="cifar")
    assert "ImageNet stem" in line and "ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1" in line
    assert "fresh classifier" in line and "123.675" in line


def test_another_number_of_classes(served):
    _, network = served
    with pytest.raises(UserError, match=r"model\.head=reinit"):
        build(SETTINGS, 10, offline=False)
    torch.manual_seed(3)
    found = build(replace(SETTINGS, head="reinit"), 10, offline=False)
    assert found.fc.weight.shape == (10, 1024) and found.fc.bias.abs().max() == 0
    assert found.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(found.conv5[0].weight, network.conv5[0].weight)
    torch.manual_seed(3)
    assert torch.equal(build(replace(SETTINGS, head="reinit"), 10).fc.weight, found.fc.weight)
    fresh = build(replace(SETTINGS, head="reinit"))  # the same number: the word still means a fresh one
    assert not torch.equal(fresh.fc.weight, network.fc.weight)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet20", "fc"), ("vgg16_bn", "classifier.6"), ("mobilenet_v2", "classifier.1")]
)
def test_the_head_is_the_last_linear_layer(name, head):
    with torch.device("meta"):
        model = build(ModelSettings(name=name), 10)
    assert head_of(model) == head


def test_there_are_none_for_others():
    with pytest.raises(UserError, match="none for resnet20; there are for resnet18"):
        weights_origin(ModelSettings(name="resnet20", weights="imagenet"))
    with pytest.raises(UserError, match="network of your own"):
        check_weights(ModelSettings(name="mine", target="a:b", weights="imagenet"), offline=False)
    with pytest.raises(UserError, match=r"without model\.weights"):
        check_weights(ModelSettings(name="resnet20", head="reinit"), offline=False)


def test_they_enter_the_key_by_name():
    def planned(*overrides):
        return plan(compose(["method=supervised", *overrides]).config)

    found = planned("model=resnet18", "model.weights=imagenet")
    assert found.fingerprints == {"model.weights": "torchvision:ResNet18_Weights.IMAGENET1K_V1"}
    keys = {found.key, planned("model=resnet18").key}
    keys.add(planned("model=resnet18", "model.weights=imagenet", "model.head=reinit").key)
    assert len(keys) == 3
