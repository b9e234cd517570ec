"""A real JupyterLab and a real browser, both without network; tests skip where no browser is installed."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Nothing is resolved but this computer: neither the browser nor a page may reach a network.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
# No question about news, no look for updates, and cells that are out of sight stay on the page.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
START_SECONDS, STEP_SECONDS = 240, 120


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed; expected one of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Callable[..., Any]:
    """Opens an address in a fresh window of a given size."""

    def open_page(address: str, width: int = 1280, height: int = 1000) -> Any:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(STEP_SECONDS * 1000)
        page.goto(address)
        return page

    return open_page


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots go."""
    folder = Path(__file__).parent / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def lab(tmp_path: Path, browser: Any) -> Iterator[Callable[[list[str]], str]]:
    """Starts JupyterLab in a temporary folder; writes a notebook with these cells and returns its address."""
    for name, values in SETTINGS.items():
        path = tmp_path / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    work, log = tmp_path / "work", tmp_path / "lab.log"
    work.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_WORKSPACES_DIR")
    places = {name: str(tmp_path / name.lower()) for name in folders}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "PYTHONPATH": str(ROOT)}
    options = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "root_dir": work, "disable_check_xsrf": True}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    command += [f"--ServerApp.{key}={value}" for key, value in options.items()]
    command += ["--LabApp.extension_manager=readonly"]
    with open(log, "wb") as stream:
        settings = {"env": {**os.environ, **places}, "cwd": work, "stdout": stream, "stderr": subprocess.STDOUT}
        server = subprocess.Popen(command, **settings)
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/api", log)

        def write(cells: list[str]) -> str:
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
            notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(notebook, work / "widgets.ipynb")
            return f"http://127.0.0.1:{port}/doc/tree/widgets.ipynb"

        yield write
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start within {START_SECONDS} s:\n{log.read_text()[-3000:]}")
