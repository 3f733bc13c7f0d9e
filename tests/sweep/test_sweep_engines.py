"""The same cells on Ray and on submitit's local jobs: real workers, real kills."""

import importlib.util

import pytest
from sweeps import Grid, faults_stay_with_their_cells

WORDS = {
    "ray": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
    "submitit_local": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
}
MODULE = {"ray": "ray", "submitit_local": "submitit"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_faults_stay_with_their_cells(tmp_path, name):
    pytest.importorskip(MODULE[name])
    faults_stay_with_their_cells(Grid(tmp_path), *WORDS[name], timeout=400)


@pytest.mark.parametrize(("name", "extra"), [("ray", "ray"), ("submitit_slurm", "slurm")])
def test_a_missing_extra_is_named_with_its_cure(name, extra, monkeypatch, tmp_path):
    from runner.errors import UserError
    from runner.sweep.cluster import NEEDED, launcher_config

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module in NEEDED[extra] else there(module))
    with pytest.raises(UserError, match=rf"paper-runner\[{extra}\]"):
        launcher_config(name, extra, [], tmp_path)
