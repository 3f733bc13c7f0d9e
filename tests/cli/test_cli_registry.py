"""What list and show know without importing a method, held against the imported class."""

import sys

import pytest

from runner import registry
from runner.cli import main
from runner.settings import load_target

PATH = registry.search_path()


@pytest.mark.parametrize("name", registry.methods(PATH))
def test_the_scan_agrees_with_the_imported_class(name):
    described = registry.describe(name, PATH)
    assert described.source is not None
    imported = load_target(described.target)
    assert described.title == imported.__doc__.strip().splitlines()[0].strip()
    for attribute in ("paper", "fidelity", "claim", "citation", "deviations", "data", "model"):
        declared = vars(imported).get(attribute, () if attribute in registry.LISTS else "")
        assert getattr(described, attribute) == declared
    assert described.fidelity in ("official", "paper", "reconstruction")


def test_describe_imports_nothing(user_configs):
    path = registry.search_path([user_configs])
    described = registry.describe("shrinkage", path)
    assert "my_shrinkage" not in sys.modules
    assert described.source == user_configs.parent / "my_shrinkage" / "methods.py"
    assert described.title == "Least squares with shrunken coefficients."
    assert described.paper == "arXiv:0000.00001"
    assert described.fidelity == "reconstruction"
    assert described.deviations == ("the intercept is not shrunk", "one fold")
    assert described.model == ("linear", "classifier")
    assert described.family == "my_shrinkage"


def test_yaml_is_read_as_hydra_reads_it(tmp_path):
    from omegaconf import OmegaConf

    text = (
        "a: 1e-4\nb: 1.5e3\nc: 2024-01-01\nd: 1_000\ne: .5\nf: 1.\ng: 3e\nh: on\ni: 0x1F\nj: .inf\nk: 1e5x\nl: -2E+3\n"
    )
    (tmp_path / "scalars.yaml").write_text(text)
    files = [tmp_path / "scalars.yaml", *registry.package_conf().rglob("*.yaml")]
    for file in files:
        assert registry.read_yaml(file) == OmegaConf.to_container(OmegaConf.load(file)), file


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class A:\n    'Title.'\n    fidelity = 'paper'\n", {"title": "Title.", "fidelity": "paper"}),
        ('class A(\n    Base,\n):\n    """Title.\n\n    More."""\n    model: int = 3\n', {"title": "Title."}),
        ("class AB:\n    'No.'\nclass A:\n    'Yes.'\nclass B:\n    fidelity = 'paper'\n", {"title": "Yes."}),
        ("class A:\n    def run(self):\n        paper = 'no'\n", {}),
        ("class A:\n    paper = 'a ' 'b'\n    claim = NAME\n", {"paper": "a b"}),
        (
            'class A:\n    citation = """\n@article{a}\n"""\n    claim = "c"\n',
            {"citation": "\n@article{a}\n", "claim": "c"},
        ),
        ("class A:\n    broken(\n", {}),
        ("x = 1\n", {}),
    ],
)
def test_class_head(source, expected):
    assert registry.class_head(source, "A") == expected


def test_list_methods_by_family(user_configs, capsys):
    assert main(["--config-dir", str(user_configs), "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("my_shrinkage")
    assert lines[at + 1].split(maxsplit=2) == [
        "shrinkage",
        "reconstruction",
        "Least squares with shrunken coefficients.",
    ]
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(
        registry.methods(registry.search_path([user_configs]))
    )


@pytest.mark.parametrize("pattern", ["shrink*", "my_*", "shrinkage"])
def test_list_takes_wildcards_on_names_and_families(user_configs, pattern, capsys):
    assert main(["list", "methods", pattern, "--config-dir", str(user_configs)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["models", "tiny"], "tiny A small network of the user."),
        (["tables"], "shrinkage/rates Error by rate"),
    ],
)
def test_list_other_kinds(user_configs, words, expected, capsys):
    assert main(["list", *words, "--config-dir", str(user_configs)]) == 0
    assert expected in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_long_lines_are_never_cut_when_piped(user_configs, capsys):
    title = "long " * 100 + "end"
    (user_configs / "model" / "tiny.yaml").write_text(f"# {title}\nname: tiny\n")
    assert main(["list", "models", "tiny", "--config-dir", str(user_configs)]) == 0
    assert capsys.readouterr().out == f"tiny  {title}\n"


def test_show(user_configs, capsys):
    assert main(["show", "shrinkage", "--config-dir", str(user_configs)]) == 0
    out = capsys.readouterr().out
    for text in (
        "shrinkage: Least squares with shrunken coefficients.",
        "arXiv:0000.00001",
        "Shrinking the coefficients lowers",
        "reconstruction",
        "the intercept is not shrunk",
        "model=tiny",
        "shrinkage/rates  Error by rate",
        "@article{shrinkage}",
        f"runner --config-dir {user_configs} method=shrinkage scale=paper",
    ):
        assert text in out
    rows = [line.split() for line in out.splitlines()]
    assert ["method.search.steps", "3", "2"] in rows
    assert ["recipe.epochs", "200", "7"] in rows
    assert "my_shrinkage" not in sys.modules


@pytest.mark.parametrize("name", registry.methods(PATH))
def test_every_method_has_a_page(name, capsys):
    assert main(["show", name]) == 0
    assert f"runner method={name}" in capsys.readouterr().out


@pytest.mark.parametrize(("target", "expected"), [("3", "package.module:Class"), ("a.b", "package.module:Class")])
def test_a_method_without_a_target(user_configs, target, expected, capsys):
    (user_configs / "method" / "shrinkage.yaml").write_text(f"# @package _global_\nmethod: {{target: {target}}}\n")
    assert main(["list", "--config-dir", str(user_configs)]) == 2
    assert expected in capsys.readouterr().err
