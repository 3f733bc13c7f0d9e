"""Hydra's grammar of sweeps, and the layout of cells on a machine."""

import pytest

from runner.sweep import SweepOptions
from runner.sweep.grid import expand
from runner.sweep.layout import layout
from runner.sweep.planning import plan_jobs

SMOKE = ["method=supervised", "model=resnet20", "scale=smoke", "hardware=cpu"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=1,2", ["1", "2"]),
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("seed=choice(3,1)", ["3", "1"]),
        ("seed=sort(3,1,2,reverse=true)", ["3", "2", "1"]),
        ("tracking.notes='a,b','c'", ["'a,b'", "'c'"]),
        ("dataset.arguments={a:1},{b:2}", ["{a:1}", "{b:2}"]),
        ("recipe.schedule.milestones=[0.1,0.2],[0.5]", ["[0.1,0.2]", "[0.5]"]),
        ("model=glob(resnet11*)", ["resnet110"]),
        ("seed=5", ["5"]),
    ],
)
def test_values(word, values):
    key = word.partition("=")[0]
    assert [job.overrides for job in expand([word])] == [[f"{key}={value}"] for value in values]


def test_every_combination_named_by_what_is_swept_and_a_later_word_wins():
    jobs = expand(["method=ekg,supervised", "seed=7", "model=resnet20", "seed=0,1", "+x=1"])
    assert [job.name for job in jobs] == [
        "method=ekg seed=0", "method=ekg seed=1", "method=supervised seed=0", "method=supervised seed=1",
    ]  # fmt: skip
    assert jobs[0].overrides == ["method=ekg", "seed=0", "model=resnet20", "+x=1"]


def test_jobs_of_one_key_are_one_cell(tmp_path):
    words = [*SMOKE, f"paths.runs={tmp_path}"]
    cells = plan_jobs(expand([*words, "hardware.threads=1,2", "seed=0,1"]))
    assert len(cells) == 4 and len(set(cells)) == 2 and cells[0] is cells[2]


@pytest.mark.slow
def test_slots_times_threads_stay_within_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("runner.sweep.layout.usable_cores", lambda: 8)
    monkeypatch.setattr("runner.sweep.layout.visible_gpus", lambda: 2)

    def of(*words, launcher="local", asked=None):
        return layout(plan_jobs(expand([*SMOKE, f"paths.runs={tmp_path}", *words])), asked, launcher=launcher)

    assert (len(of("seed=0,1,2").slots), of("seed=0,1,2").threads) == (3, 2)
    assert (len(of("seed=range(0,20)").slots), of("seed=range(0,20)").threads) == (8, 1)
    assert (len(of("hardware.threads=4", "seed=0,1,2").slots), of("hardware.threads=4").threads) == (2, 4)
    assert of("hardware.slots=5").threads == 1 and len(of("hardware.slots=5").slots) == 5
    gpu = of("hardware=gpu", "seed=0,1")
    assert gpu.slots == [0, 1] and not gpu.forks
    assert of("hardware=gpu", "hardware.slots=[1]").slots == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert gpu.of_slot(1) == {"CUDA_VISIBLE_DEVICES": "7"}
    assert of(launcher="ray").threads is None


def test_launcher_words_are_no_part_of_a_cell():
    options, words = SweepOptions.split(["seed=0,1", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"])
    assert words == ["seed=0,1"]
    assert (options.launcher, options.launcher_overrides) == ("ray", ("+hydra.launcher.ray.init.num_cpus=2",))
