"""A real server, a real browser, and a watch over every page that the tests open."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from playwright.sync_api import Browser, ConsoleMessage, Page

REPOSITORY = Path(__file__).parents[3]
PROBES = Path(__file__).parent / "probes.js"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
WITHIN_MS = 20_000
"""How long a page may take to show what it should; machines are slow at times."""
LOST = re.compile(r"WebSocket connection to .* failed|ERR_CONNECTION_REFUSED")
"""What Chromium itself logs while the server is away."""


class Server:
    """A greenroom server as a process of its own, on one port and one data folder."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready to speak."""
        command = [
            sys.executable,
            "-m",
            "tests.gateway.web.patient",
            "run",
            "--backend",
            "scripted",
        ]
        command += ["--port", str(self.port), "--data", str(self._data)]
        # The tester's own settings, and the switch of `missing`, are not this server's.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("GREENROOM_")}
        # A second voice to choose, at a port where nobody listens.
        environ |= {
            "GREENROOM_REMOTE__URL": "http://127.0.0.1:1/v1",
            "GREENROOM_REMOTE__MODEL": "m",
        }
        with (self._data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environ, stdout=log, stderr=log
            )
        until = time.monotonic() + 30
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "readyz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                time.sleep(0.05)
        self.kill()
        pytest.fail("the server did not start:\n" + (self._data / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """SIGKILL: nothing is said to anyone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None


class Watch:
    """Everything that one page must not do, collected while it runs."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.may_lose_connection = False
        self._origin = origin
        self._asked: list[str] = []
        self._errors: list[str] = []
        page.on("request", lambda request: self._asked.append(request.url))
        page.on("websocket", lambda ws: self._asked.append(ws.url.replace("ws:", "http:", 1)))
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.on("console", self._hear)
        page.add_init_script(path=PROBES)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(message.text)

    def check(self) -> None:
        """Holds: no error logged, no content policy broken, no other server asked."""
        errors = self._errors
        if self.may_lose_connection:
            errors = [text for text in errors if not LOST.search(text)]
        assert errors == []
        assert self.page.evaluate("probes.violations") == []
        assert len(self._asked) > 5
        assert [url for url in self._asked if not url.startswith(self._origin)] == []


def missing(reason: str) -> NoReturn:
    """Skips, or fails where a browser is required."""
    if os.environ.get("TEST_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        missing(f"no browser: none of {', '.join(names)} is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no browser driver: the package playwright is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("data"))
    running.start()
    yield running
    running.kill()


@pytest.fixture
def watch(browser: Browser, server: Server) -> Iterator[Watch]:
    """The watch over a page in a fresh profile; it has the last word of every test."""
    from playwright.sync_api import expect

    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(WITHIN_MS)
        expect.set_options(timeout=WITHIN_MS)
        watch = Watch(context.new_page(), server.url)
        yield watch
        watch.check()


@pytest.fixture
def page(watch: Watch, server: Server) -> Page:
    """That page, at home."""
    watch.page.goto(server.url)
    return watch.page
