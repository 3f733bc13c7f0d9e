"""What a run was made with."""

import subprocess
import sys
from pathlib import Path

import pytest

from runner import environment
from runner.environment import git_state, machine, versions
from runner.errors import UserError

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("ignored/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_repository_has_a_commit_and_no_patch(repository):
    state = git_state(repository)
    assert len(state.commit) == 40
    assert (state.dirty, state.patch) == (False, "")


def test_the_patch_holds_changes_and_names_untracked_files(repository):
    (repository / "code.py").write_text("a = 2\n")
    (repository / "new.py").write_text("b = 1\n")
    state = git_state(repository)
    assert state.dirty
    assert "-a = 1\n+a = 2\n" in state.patch
    assert state.patch.endswith("# untracked: new.py\n")


def test_recorded_results_are_no_change_of_the_code(repository):
    (repository / "RESULTS.md").write_text("# Results\n")
    (repository / "results").mkdir()
    (repository / "results" / "benchmarks.md").write_text("1 s\n")
    assert not git_state(repository).dirty


def test_a_huge_patch_is_cut(repository):
    (repository / "code.py").write_text("x" * 3_000_000)
    patch = git_state(repository).patch
    assert len(patch) < environment.MAX_PATCH_BYTES + 100
    assert patch.splitlines()[-1].startswith("# cut: 1048576 of 300")


def test_outside_a_repository_in_an_ignored_folder_and_without_git(repository, tmp_path_factory, monkeypatch):
    ignored = repository / "ignored"
    ignored.mkdir()
    assert git_state(ignored).commit is None
    assert git_state(tmp_path_factory.mktemp("elsewhere")).commit is None
    monkeypatch.setenv("PATH", "")
    assert git_state(repository).commit is None


def test_versions_and_machine_need_no_heavy_import():
    script = (
        "import sys; from runner.environment import versions, machine; v = versions(); m = machine()\n"
        "assert v['python'] and v['torch'] and m['cores'] >= 1 and m['memory_gib'] > 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'wandb', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
    assert versions()["python"].startswith("3.")
    assert machine()["host"]


def test_a_missing_gpu_is_refused_with_the_cure():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"hardware\.device=cuda.*finds: cpu.*hardware=cpu"):
        environment.resolve_device("cuda")
    assert environment.resolve_device("cpu") == torch.device("cpu")
    if not torch.backends.mps.is_available():
        assert environment.resolve_device("auto") == torch.device("cpu")


def test_the_thread_count_in_force_is_returned():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        assert environment.set_threads(1) == 1
        assert environment.set_threads(None) == 1
        assert "1 CPU thread of" in environment.hardware_summary(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
