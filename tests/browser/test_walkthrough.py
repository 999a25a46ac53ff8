"""The six notebooks as a reader sees them: JupyterLab in Debian's Chromium, every cell run, a short training watched.

Screenshots lie in build/screenshots/ afterwards. Needs `apt-get install chromium`; nothing else is downloaded.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from helpers.profiles import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOTEBOOKS = [path.name for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
SHOTS = ROOT / "build" / "screenshots"
STEPS = 8  # of training: enough for two saves' worth of pictures, two minutes on two cores

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="THE BROWSER TEST DID NOT RUN: no Chromium; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on loopback, over copies of the notebooks: it saves as it goes."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns("mlruns", ".ipynb_checkpoints"))
    for notebook in NOTEBOOKS:
        empty(home / "notebooks" / notebook)
    shorten(home / "notebooks" / "03_config.ipynb", f"max_steps: int = {STEPS}", f"save_steps: int = {STEPS // 2}")
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell in the page, also those out of sight
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    }
    for name, value in settings.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    env = {**os.environ, "KTO_STORAGE": str(home / "storage"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
           "JUPYTER_CONFIG_DIR": str(home / "config"), "OMP_WAIT_POLICY": "PASSIVE", "IPYTHONDIR": str(home / "ipython"),
           "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    env.pop("KTO_LIVE", None)
    log = home / "lab.log"
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--expose-app-in-browser",
         f"--ServerApp.root_dir={home / 'notebooks'}", "--allow-root"],
        stdout=log.open("wb"), stderr=subprocess.STDOUT, env=env, cwd=home,
    )  # fmt: skip
    try:
        yield address_in(log, server)
    finally:
        server.terminate()
        server.wait(60)


def empty(notebook) -> None:
    """Take a copy's outputs out: what is seen afterwards is of this run."""
    book = json.loads(notebook.read_text())
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook.write_text(json.dumps(book))


def shorten(notebook, *lines) -> None:
    """Other defaults in a copy's parameters cell, for those names."""
    book = json.loads(notebook.read_text())
    cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(cell["source"])
    for line in lines:
        name = line.split(":")[0]
        source, found = re.subn(rf"^{name}: [^#]*", f"{line}  ", source, flags=re.M)
        assert found == 1, name
    cell["source"] = source
    notebook.write_text(json.dumps(book))


def address_in(log, server) -> str:
    """`http://127.0.0.1:PORT/lab?token=…` as JupyterLab prints it when it is ready."""
    deadline = time.monotonic() + 360
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab\?token=\w+", log.read_text()):
            return found[0]
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser, lab, notebook):
    """The notebook's page, all cells run to the end of what it says before; the kernel is shut down afterwards."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(lab.replace("/lab?", f"/lab/tree/{notebook}?reset&"))  # no tabs of before
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=240_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=240_000)
    if page.locator(".jp-mod-left.jp-SidePanel:visible, #jp-left-stack:visible").count():
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    try:
        yield page
    finally:
        page.evaluate("window.jupyterapp.commands.execute('kernelmenu:shutdown')")
        page.close()


def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def wait_for_the_end(page, minutes: float) -> None:
    """Until the kernel is idle and no cell waits, or a cell has failed."""
    page.wait_for_function(
        """() => document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status === 'idle'
             && (document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
                 || [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /\\[\\d+\\]/.test(p.textContent)))""",
        timeout=minutes * 60_000, polling=500,
    )  # fmt: skip


def outputs(page, kind: str) -> list[str]:
    """What is said in outputs of that kind: error (a traceback) or stderr (a warning of the stack that nobody asked for)."""
    return page.locator(f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]').all_inner_texts()


SPILT = """() => [...document.querySelectorAll('.jp-OutputArea-output')].flatMap(output => {
    const there = [...output.querySelectorAll('img, svg.kto')];
    return there.filter(picture => {
        const box = picture.getBoundingClientRect(), room = output.closest('.jp-Notebook').getBoundingClientRect();
        const drawn = picture.tagName !== 'IMG' || (picture.complete && picture.naturalWidth > 0);
        return !drawn || box.width < 50 || box.height < 20 || box.right > room.right + 1 || box.left < room.left - 1;
    }).map(picture => (picture.alt || picture.getAttribute('aria-label') || 'a picture').slice(0, 60));
})"""


def look(page, notebook) -> None:
    """No picture is missing or cut off, at either width, in either theme; a screenshot of each."""
    for theme in ("Light", "Dark"):
        page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        for width in (1280, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_selector("#jupyterlab-splash", state="detached")
            page.wait_for_timeout(400)  # the layout settles
            assert page.evaluate(SPILT) == [], f"{notebook}, {theme}, {width}"
            page.screenshot(path=SHOTS / f"{notebook[:-6]}-{theme.lower()}-{width}.png")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")


WORDLESS = """() => [...document.querySelectorAll('.jp-OutputArea-output img:not([alt]), .jp-OutputArea-output img[alt=""]')]
    .filter(picture => ![...picture.closest('.jp-OutputArea').querySelectorAll('pre, p')]
        .some(said => /\\w+ \\w+ \\w+/.test(said.innerText))).length"""  # JupyterLab 4 gives an image output no alt text


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_cell_runs_without_error_and_every_picture_is_seen_whole(browser, lab, notebook):
    with opened(browser, lab, notebook) as page:
        run_all(page)
        if notebook.startswith("04"):
            watch(page)
        wait_for_the_end(page, minutes=30)
        assert outputs(page, "error") == [] and outputs(page, "stderr") == []
        assert page.evaluate(WORDLESS) == 0
        look(page, notebook)
        if notebook.startswith("04"):
            assert page.evaluate(BAR) == 100


BAR = """() => { const bars = document.querySelectorAll('.jp-OutputArea-output [role=progressbar]');
    return bars.length ? Number(bars[bars.length - 1].getAttribute('aria-valuenow')) : -1; }"""  # per cent


def watch(page) -> None:
    """The live view moves while the training runs: the bar grows, and two screenshots of it differ."""
    page.wait_for_selector(".jp-OutputArea-output [role=progressbar]", timeout=600_000)
    view = page.locator(".jp-OutputArea:has([role=progressbar])").first
    page.wait_for_function(f"() => ({BAR})() >= 25", timeout=900_000, polling=500)
    view.scroll_into_view_if_needed()
    first, full = view.screenshot(path=SHOTS / "live-1.png"), page.evaluate(BAR)
    page.wait_for_function(f"() => ({BAR})() >= 60", timeout=900_000, polling=500)
    second = view.screenshot(path=SHOTS / "live-2.png")
    page.screenshot(path=SHOTS / "live-page.png")
    assert first != second and page.evaluate(BAR) > full and view.locator("img").count() == 1
