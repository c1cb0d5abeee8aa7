"""The pages in a real browser: Debian's Chromium, which `make setup` installs where it may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium, look, picture
from tests.made_run import make_run
from tests.unit.test_score_report import RESULT

pytestmark = pytest.mark.integration

# Text whose colour stands out from the page by less than 4.5 to 1 (WCAG 2.2, success criterion 1.4.3).
FAINT = """
const light = (rgb) => {
  const [r, g, b] = rgb.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const back = light(getComputedStyle(document.documentElement).backgroundColor);
const texts = [...document.querySelectorAll("h1,h2,h3,p,a,td,th,small,strong,dt,dd,label,output,pre,text")];
return texts.filter((element) => {
  if (!element.textContent.trim()) return false;
  const style = getComputedStyle(element);
  const ink = light(element.tagName === "text" ? style.fill : style.color);
  return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05) < 4.5;
}).map((element) => element.outerHTML.slice(0, 80));
"""
NAMELESS = """
return [...document.querySelectorAll("select,input,svg,.scroll[tabindex]")]
  .filter((e) => !(e.labels && e.labels.length) && !e.getAttribute("aria-label")).map((e) => e.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from spftsql.evaluation.score_page import page, results_page
    from spftsql.evaluation.score_report import sections
    from spftsql.reporting.report_page import report_page
    from spftsql.reporting.run_record import read_run

    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "run": report_page(read_run(make_run(folder / "run"))),
        "half": report_page(read_run(make_run(folder / "half", finished=False))),
        "score": page(RESULT),
        "evaluation": results_page("greedy and voted", sections(RESULT), {"greedy": RESULT, "voted": RESULT}),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def show(browser: Any, page: Path, width: int = 1280, dark: bool = False) -> None:
    look(browser, width, dark)
    browser.get(page.as_uri())


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("run", 1280, False),
        ("run", 390, True),
        ("score", 390, False),
        *(
            pytest.param(name, *look, marks=pytest.mark.long)
            for name in ("run", "half", "score", "evaluation")
            for look in ((1280, False), (1280, True), (390, True))
        ),
    ],
)
def test_a_page_looks_right(
    browser: Any, pages: dict[str, Path], name: str, width: int, dark: bool, tmp_path: Path
) -> None:
    show(browser, pages[name], width, dark)
    assert browser.execute_script("return document.title") not in ("", "owned")  # the hostile script did not run
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    back = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (back == "rgb(255, 255, 255)") != dark
    assert browser.execute_script(FAINT) == []
    assert browser.execute_script(NAMELESS) == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded == []
    (tmp_path / f"{name}.png").write_bytes(picture(browser, beyond=True))
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_pairs_can_be_searched(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    show(browser, pages["run"])
    form = browser.find_element(By.CSS_SELECTOR, "form[data-for=synthetic]")
    visible = "return [...document.querySelectorAll('#synthetic > tbody > tr')].filter((r) => r.offsetParent).length"
    assert browser.execute_script(visible) == 40
    Select(form.find_element(By.CSS_SELECTOR, "[data-key=fate]")).select_by_visible_text("dropped")
    assert browser.execute_script(visible) == 10
    assert form.find_element(By.TAG_NAME, "output").text == "10 of 40 pairs"
    Select(form.find_element(By.CSS_SELECTOR, "[data-key=template]")).select_by_visible_text("template-0")
    assert browser.execute_script(visible) == 2
    form.find_element(By.CSS_SELECTOR, "[data-key=text]").send_keys("no such thing")
    assert browser.execute_script(visible) == 0
    others = "return [...document.querySelectorAll('#play > tbody > tr')].filter((r) => r.offsetParent).length"
    assert browser.execute_script(others) == 40  # each table has its own form


def test_links_lead_to_the_parts_and_charts_are_drawn(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["run"])
    broken = "return [...document.querySelectorAll('nav a')].filter((a) => !document.querySelector(a.hash)).length"
    assert browser.execute_script(broken) == 0
    sizes = browser.execute_script("return [...document.querySelectorAll('svg')].map((s) => s.getBBox().height)")
    assert len(sizes) == 5 and min(sizes) > 50
    outside = """
    return [...document.querySelectorAll("svg")].flatMap((svg) => [...svg.querySelectorAll("text")].filter((text) => {
      const inner = text.getBoundingClientRect(), outer = svg.getBoundingClientRect();
      return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
    }).map((text) => text.textContent));
    """
    assert browser.execute_script(outside) == []
