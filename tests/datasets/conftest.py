import functools
import http.server
import os
import threading
from pathlib import Path

import pytest

from runner.schema import Scale


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Every test has an empty cache folder of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "paper-runner"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository; tests that need it are skipped where it is absent."""
    shared = os.environ.get("RUNNER_SHARED") or Path(__file__).parents[2].parent / "shared"
    folder = Path(shared) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder


def make_scale(name: str = "paper", train: int | None = None, test: int | None = None) -> Scale:
    return Scale(
        name=name,
        max_train_examples=train,
        max_test_examples=test,
        max_epochs=None,
        max_steps=None,
        small_image_stem="imagenet",
        export_program=False,
    )


@pytest.fixture(scope="session")
def scale():
    return make_scale


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "*")
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{served.server_port}/"
    served.shutdown()
    served.server_close()
