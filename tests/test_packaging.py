"""What a wheel holds: pyproject.toml names every package folder and every kind of data file."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_folder_is_named():
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for file in (ROOT / folder).rglob("__init__.py"):
            inner = file.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inner]))
    assert found == set(SETUPTOOLS["packages"])


def test_every_module_lies_in_a_package():
    folders = {ROOT / folder for folder in SETUPTOOLS["package-dir"].values()}
    for folder in folders:
        for file in folder.rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{file} is in no package: a wheel would leave it out"


def test_conf_holds_yaml_files_only():
    others = [file for file in (ROOT / "conf").rglob("*") if file.is_file() and file.suffix not in (".yaml", ".pyc")]
    assert others == [ROOT / "conf" / "__init__.py"]


def test_every_data_file_is_named():
    patterns = SETUPTOOLS["package-data"]
    for package, folder in SETUPTOOLS["package-dir"].items():
        named = {
            file
            for name, wanted in patterns.items()
            if name == package or name.startswith(f"{package}.")
            for pattern in wanted
            for file in (ROOT / folder / Path(*name.removeprefix(package).split("."))).glob(pattern)
        }
        found = {file for file in (ROOT / folder).rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
        assert found <= named, f"a wheel would leave out {found - named}"
