"""A headless Chromium for the tests (Debian's, which `make setup` installs where it may), and what is seen in it."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def chromium(downloads: Path | None = None) -> Iterator[Any]:
    """A browser; skips the test where there is none. What it downloads is put into `downloads`."""
    programs = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not all(programs):
        pytest.skip("Chromium is not installed (make setup, or Debian: apt-get install -y chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    try:
        if downloads is not None:
            behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
            driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        yield driver
    finally:
        driver.quit()


def look(browser: Any, width: int = 1280, dark: bool = False, height: int = 900, reduced: bool = False) -> None:
    """From now on the window has this size and the system this theme."""
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def picture(browser: Any, beyond: bool = False) -> bytes:
    """What the window shows, as PNG; `beyond`: the whole page."""
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": beyond})
    return base64.b64decode(shot["data"])


def axe(browser: Any) -> list[str]:
    """What axe-core finds wrong with the page, one line for each rule that is broken, with the first elements."""
    package = importlib.util.find_spec("axe_playwright_python")  # of which only axe itself is used
    assert package is not None and package.submodule_search_locations
    script = Path(package.submodule_search_locations[0]) / "axe.min.js"
    browser.execute_script(script.read_text(encoding="utf-8"))
    found = browser.execute_async_script(
        "axe.run(document).then(arguments[0], (e) => arguments[0]({error: String(e)}))"
    )
    assert "error" not in found, found
    return [
        f"{rule['id']}: {rule['help']}: {[node['html'][:160] for node in rule['nodes'][:4]]}"
        for rule in found["violations"]
    ]
