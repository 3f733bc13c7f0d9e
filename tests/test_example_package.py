"""tests/example_package, a user's own method, network and data set: installed beside a wheel of this project, and run.

Its files are the examples of README.
"""

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from commands import killed_and_repeated, outcome, runner

ROOT = Path(__file__).parent.parent
EXAMPLE = Path(__file__).parent / "example_package"
OWN = ("method=confidence_penalty", "model=tiny_net", "dataset=stripes", "scale=smoke", "hardware=cpu")
PROGRAM = "scale.export_program=true"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A scratch environment with both installed from copies; heavy packages are those of the environment that tests.

    Its folders: bin/, configs/ (of the example) and the site packages (``site``).
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "heavy.pth").write_text("\n".join(entry for entry in sys.path if entry.endswith("-packages")))
    sources = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("runner", "methods", "datasets", "conf"):
        shutil.copytree(ROOT / name, sources / "project" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, sources / "project")
    shutil.copytree(EXAMPLE, sources / "example", ignore=ignored)
    shutil.copytree(EXAMPLE / "configs", folder / "configs")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--no-cache-dir"]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", *options]
    done = subprocess.run([*pip, "./project", "./example"], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(sources)
    return folder


def installed(environment: Path, *words: str, place: Path) -> subprocess.CompletedProcess:
    """`runner WORDS` of the scratch environment, from a folder that has neither package."""
    command = [environment / "bin" / "runner", "--config-dir", environment / "configs", *words]
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(place), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True)


def test_the_examples_of_readme_are_its_files():
    readme = (ROOT / "README.md").read_text()
    shown = dict(re.findall(r"^`((?:my_experiments|configs)/[\w./]+)`\n\n```\w+\n(.*?)^```$", readme, re.M | re.S))
    assert len(shown) == 7
    for name, text in shown.items():
        assert text == (EXAMPLE / name).read_text(), f"README shows another {name}"


def test_listed_and_shown_as_built_in_ones(environment, tmp_path):
    listed = installed(environment, "list", "methods", "confidence*", place=tmp_path)
    assert "confidence_penalty  paper  Cross-entropy minus a share of the entropy" in listed.stdout, listed.stderr
    page = installed(environment, "show", "confidence_penalty", place=tmp_path).stdout
    for words in ("arXiv:1701.06548", "regularises as label smoothing does", "model=resnet20  dataset=digits"):
        assert words in page
    assert re.search(r"method\.weight +0\.1$", page, re.M) and re.search(r"recipe\.epochs +200 +5 +1$", page, re.M)


def test_the_installed_command_runs_it(environment, tmp_path):
    done = installed(environment, *OWN, "method.weight=0.2", place=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert Path(line).is_file() and "confidence_penalty-tiny_net-stripes" in line
    assert str(environment) in done.stderr.splitlines()[0]  # the command for scale=paper has its --config-dir
    wrong = installed(environment, "method=confidence_penalti", place=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean confidence_penalty?" in wrong.stderr


@pytest.fixture
def on_path(environment, monkeypatch):
    """Forked commands find the installed example; returns the option that names its configs."""
    (site,) = environment.glob("lib/python*/site-packages")
    monkeypatch.syspath_prepend(str(site))
    return "--config-dir", environment / "configs"


def test_killed_and_resumed_it_ends_with_the_same_bits(on_path, tmp_path):
    undisturbed = runner(*on_path, *OWN, place=tmp_path / "undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    words = (*on_path, *OWN, "checkpoint.every_seconds=0")
    answer, kills = killed_and_repeated(words, tmp_path / "killed", [(0, 0.0), (1, 0.0), (1, 0.0)])
    assert kills >= 1
    assert answer.code == 0, answer.err
    assert outcome(answer) == outcome(undisturbed)


@pytest.mark.parametrize("own", ["method", "model", "dataset"])
def test_each_goes_with_what_is_built_in(on_path, tmp_path, own):
    built_in = {"method": "supervised", "model": "resnet20", "dataset": "digits"}
    mine = {"method": "confidence_penalty", "model": "tiny_net", "dataset": "stripes"}
    words = [f"{group}={(mine if group == own else built_in)[group]}" for group in built_in]
    answer = runner(*on_path, *words, "scale=smoke", "hardware=cpu", place=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.result[own] == mine[own]


def load_here(folder: Path, images: torch.Tensor) -> subprocess.CompletedProcess:
    """Loads a product where the example is not installed; prints its logits."""
    torch.save(images, folder / "images.pt")
    script = f"""
import sys
assert not any(name.startswith("my_experiments") for name in sys.modules)
import runner, torch
network = runner.load({str(folder)!r})
print(network(torch.load({str(folder / "images.pt")!r}, weights_only=True)).flatten().tolist())
network.train()
"""
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_its_products_are_loaded_without_the_package(on_path, tmp_path):
    """A network of the zoo whole, the package's own as an exported program, for evaluation only."""
    import runner as package

    for model in ("resnet20", "tiny_net"):
        answer = runner(*on_path, *OWN, f"model={model}", PROGRAM, place=tmp_path / model)
        assert answer.code == 0, answer.err
        images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = package.load(answer.folder)(images).flatten().tolist()
        done = load_here(answer.folder, images)
        found = done.stdout.strip().strip("[]").split(", ")
        assert [float(value) for value in found] == pytest.approx(expected, abs=1e-5)
        if model == "resnet20":
            assert done.returncode == 0, done.stderr
        else:
            assert "for evaluation only; to train it, install the package" in done.stderr.splitlines()[-1]


def test_without_the_package_the_run_is_refused_in_one_line(environment, tmp_path):
    answer = runner("--config-dir", environment / "configs", *OWN, place=tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "no module 'my_experiments'" in answer.message and "install its package" in answer.message
