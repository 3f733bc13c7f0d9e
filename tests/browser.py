"""A headless Chromium driven over its DevTools pipe: opens a page, evaluates JavaScript in it, keeps its complaints."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 60.0


class Browser:
    """One page. ``complaints`` are console errors, exceptions and requests that left the file."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.complaints: list[str] = []
        self._buffer, self._number = b"", 0
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        # the pipe's ends are descriptors 3 and 4 of the browser; --no-sandbox because tests may run as root
        flags = f"--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size={width},{height}"
        command = f'exec "$0" {flags} --remote-debugging-pipe "--user-data-dir=$1" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, PROGRAM, str(folder)],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        if dark:
            self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)  # the browser ends when its pipe does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def open(self, path: Path) -> None:
        """Loads a file and waits until its script has said that it is ready, or complained."""
        self._call("Page.navigate", url=path.as_uri())
        end = time.monotonic() + SECONDS
        while self.value("document.documentElement?.dataset.ready") != "yes":
            if self.complaints or time.monotonic() > end:
                raise AssertionError(f"the page did not get ready: {self.complaints}")
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON can tell it."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def screenshot(self, path: Path, **clip: float) -> None:
        """A PNG of what the window shows, or of the ``clip`` x, y, width, height of the page."""
        more = {"clip": clip | {"scale": 1}, "captureBeyondViewport": True} if clip else {}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png", **more)["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("the browser does not answer")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("file:"):
            self.complaints.append(f"requested {parameters['request']['url']}")
