"""A browser, and servers on localhost for it to visit. Without Chromium these tests skip and say what to install."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCREENSHOTS = ROOT / "runs" / "browser"
CHROMIUM = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
HOW_TO_INSTALL = "no Chromium: 'apt-get install chromium', or '{python} -m playwright install chromium'"


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window. It ends with the module: an open one leaves an event loop running in this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
    with playwright.sync_playwright() as driver:
        found = [shutil.which(name) for name in CHROMIUM] + [driver.chromium.executable_path]
        executable = next((path for path in found if path and Path(path).exists()), None)
        if executable is None:
            pytest.skip(HOW_TO_INSTALL.format(python=sys.executable))
        chromium = driver.chromium.launch(executable_path=executable)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page(browser, request):
    """One tab for all tests of a module, with what went wrong in it as `page.errors`."""
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    tab.set_default_timeout(60_000)
    # Voilà's page asks a public server for its icons: here nothing outside this machine is asked
    tab.route(re.compile("https?://(?!localhost:)"), lambda route: route.fulfill(body=""))
    tab.errors = []
    tab.on("console", lambda message: message.type == "error" and tab.errors.append(message.text))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    yield tab
    _keep_screenshot(tab, request)  # for a set-up that failed, too
    tab.close()


@pytest.fixture(autouse=True)
def _screenshot_and_console(request, page):
    """After each test: its last picture is kept in runs/browser, and the console must hold no error."""
    yield
    _keep_screenshot(page, request)
    assert page.errors == []


def _keep_screenshot(page, request):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys([request.path.stem, request.node.name.removesuffix(".py").replace("/", "_")])
    page.screenshot(path=SCREENSHOTS / f"{' '.join(names)}.png")


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A copy of the notebooks' folder, so that nothing committed is written to."""
    return shutil.copytree(ROOT / "notebooks", tmp_path_factory.mktemp("course") / "notebooks")


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """`serve(arguments, folder)`: a context in which `python -m <arguments>` answers at the address that it gives."""

    @contextmanager
    def start(arguments, folder, seconds=60):
        home = tmp_path_factory.mktemp("home")
        url, log = f"http://localhost:{_free_port()}", home / "server.log"
        command = [sys.executable, "-m", *arguments, "--no-browser", f"--port={url.rpartition(':')[2]}"]
        with log.open("w") as file:
            server = subprocess.Popen(command, cwd=folder, env=_environment(home), stdout=file, stderr=file)
        try:
            _wait_for(url, server, log, time.monotonic() + seconds)
            yield url
        finally:
            server.terminate()  # both servers end their kernels on this
            server.wait(30)

    return start


def _environment(home):
    """Ours, without what tests/conftest.py and the user's settings would change in a notebook."""
    kept = {k: v for k, v in os.environ.items() if k != "MPLBACKEND" and not k.startswith(("VITSAL_", "JUPYTER"))}
    return kept | {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _wait_for(url, server, log, deadline):
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/favicon.ico", timeout=5)
        except urllib.error.HTTPError:
            return  # it answers, if only that there is none
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{server.args} does not answer:\n{log.read_text()[-2000:]}")
