"""The notebooks as a reader sees them, in a browser: `make test-browser`."""

import json
import os
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
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "only-this-run"
# Minutes in which nothing changes on the screen: then a notebook hangs. A slow machine
# changes something sooner.
PATIENCE = 8
NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    *(
        Path(os.environ.get(name, "/")) / "Google/Chrome/Application/chrome.exe"
        for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
    ),
)
SETTINGS = {
    # Every cell is laid out and every picture drawn, on the screen or not.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}


def find_browser() -> str:
    """The path of Chromium or Chrome, as a command or in its usual folder."""
    found = [
        *filter(None, map(shutil.which, NAMES)),
        *(str(path) for path in PLACES if path.is_file()),
    ]
    if not found:
        pytest.fail(
            f"No browser: none of {', '.join(NAMES)} is on PATH. "
            "Install one: apt-get install chromium",
            pytrace=False,
        )
    return found[0]


class Lab:
    """A JupyterLab that serves `folder`, and that has none of the reader's settings."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self) -> None:
        for session in self.ask("/api/sessions"):
            self.ask(f"/api/sessions/{session['id']}", "DELETE")


def environment(home: Path) -> dict:
    """Our environment without what tests set, and with Jupyter's folders in `home`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "IPYTHON"))
        and name not in ("MPLBACKEND", "PYTEST_CURRENT_TEST")
    }
    folders = {
        name: str(home / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "IPYTHONDIR",
        )
    }
    overrides = (
        Path(folders["JUPYTER_CONFIG_DIR"])
        / "labconfig"
        / "default_setting_overrides.json"
    )
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS), encoding="utf-8")
    return {**kept, **folders, "JUPYTER_PREFER_ENV_PATH": "1"}


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Started once, on a free port of this machine only.

    If pytest is killed, it ends by itself.
    """
    home = tmp_path_factory.mktemp("jupyterlab")
    folder = home / "notebooks"
    shutil.copytree(
        ROOT / "notebooks",
        folder,
        ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints"),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.extension_manager=readonly",
        "--MappingKernelManager.cull_idle_timeout=600",
        "--ServerApp.shutdown_no_activity_timeout=600",
    ]
    env = environment(home)
    # A new machine builds its list of fonts once, with a warning in the first notebook
    # that draws.
    subprocess.run(
        [sys.executable, "-c", "import matplotlib.font_manager"], env=env, check=True
    )
    with open(home / "server.log", "w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--expose-app-in-browser",
                *options,
            ],
            env=env,
            stdout=log,
            stderr=log,
        )
        try:
            yield _wait_for(Lab(folder, port), server, home / "server.log")
        finally:
            server.terminate()  # which ends the kernels, too
            server.wait(60)


def _wait_for(lab, server, log, seconds=120):
    for _ in range(2 * seconds):
        try:
            lab.ask("/api/status")
            return lab
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                break
            time.sleep(0.5)
    pytest.fail(
        "JupyterLab did not start:\n" + log.read_text(encoding="utf-8")[-3000:],
        pytrace=False,
    )


@pytest.fixture(scope="session")
def browser():
    # No sandbox: Chromium refuses to start one for root, and opens only our own server.
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), headless=True, args=flags
        )
        yield browser
        browser.close()


class Notebook:
    """A notebook in a tab of the browser.

    `complaints` are what the browser's console would show: errors of scripts and of
    requests.
    """

    READY = (
        "jupyterapp.shell.currentWidget?.context?.sessionContext"
        ".kernelDisplayStatus === 'idle'"
    )
    STATES = (
        "jupyterapp.shell.currentWidget.content.widgets"
        ".map(cell => cell.model.executionState)"
    )

    def __init__(self, lab: Lab, page, name: str):
        self.page, self.path, self.complaints = page, lab.folder / name, []
        page.on("pageerror", lambda error: self.complaints.append(f"page: {error}"))
        page.on(
            "requestfailed",
            lambda request: self.complaints.append(
                f"request: {request.url} {request.failure}"
            ),
        )
        page.on(
            "console",
            lambda message: (
                message.type == "error"
                and self.complaints.append(f"console: {message.text}")
            ),
        )
        page.goto(
            f"{lab.url}/lab/tree/{name}?reset&token={TOKEN}"
        )  # reset: without the tab of the notebook before
        self.wait_for(f"window.jupyterapp && {self.READY}", minutes=3)

    def start_all(self) -> None:
        """Run > Run All Cells, as a reader does."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.wait_for(f"{self.STATES}.includes('running')")

    def wait_for(self, condition: str, minutes: float = 1) -> None:
        # Asked twice a second: at each frame, the default, takes time from the kernel.
        self.page.wait_for_function(
            f"() => {condition}", timeout=60_000 * minutes, polling=500
        )

    def wait_until_done(self) -> None:
        # The kernel is idle between two cells, too, and a folded cell has no number.
        last, changed = None, time.monotonic()
        while "running" in self.page.evaluate(self.STATES):
            shown = self.page.locator(".jp-Notebook").text_content()
            if shown != last:
                last, changed = shown, time.monotonic()
            assert time.monotonic() - changed < 60 * PATIENCE, (
                f"nothing has changed for {PATIENCE} minutes: it hangs"
            )
            self.page.wait_for_timeout(500)  # more often would cost the kernel time
        self.wait_for(self.READY)
        self.wait_for("[...document.images].every(image => image.complete)")

    def save(self) -> list:
        """Press Ctrl-S, and read the cells of the file that was written."""
        self.page.keyboard.press("ControlOrMeta+s")
        self.page.wait_for_selector(
            ".lm-TabBar-tab.lm-mod-current.jp-mod-dirty",
            state="detached",
            timeout=60_000,
        )
        return json.loads(self.path.read_text(encoding="utf-8"))["cells"]

    def cells(self, script: str) -> list:
        """The value of a JavaScript expression in `cell`, an element, for each cell."""
        return self.page.evaluate(
            "() => [...document.querySelectorAll('.jp-Notebook-cell')].map(cell => ("
            + script
            + "))"
        )

    def take_pictures(
        self, folder: Path, height: int = 1500, overlap: int = 60
    ) -> None:
        """The whole notebook, in pictures of a page's height that overlap a little."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{self.path.stem}_*.png"):
            old.unlink()
        self.page.set_viewport_size({"width": 1280, "height": height})
        scroller = self.page.locator(".jp-WindowedPanel-outer")
        end, shown = scroller.evaluate("""it => [
            it.scrollTop - it.getBoundingClientRect().top +
                [...it.querySelectorAll('.jp-Notebook-cell')].at(-1)
                    .getBoundingClientRect().bottom,
            it.clientHeight]""")
        for number, top in enumerate(
            range(0, round(end) - overlap, shown - overlap), 1
        ):
            scroller.evaluate("(it, top) => { it.scrollTop = top }", top)
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=folder / f"{self.path.stem}_{number}.png")
        self.page.set_viewport_size({"width": 1280, "height": 900})


@pytest.fixture(scope="session")
def opened(lab, browser):
    """A context manager: a notebook in a window of a laptop's size; ends its kernel."""

    @contextmanager
    def open_notebook(name: str):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        try:
            yield Notebook(lab, page, name)
        finally:
            page.close()
            lab.end_kernels()

    return open_notebook
