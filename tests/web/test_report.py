"""The report of a real run in headless Chromium: it fits a phone, loads nothing, and axe-core finds no fault."""

import os
import pathlib
import shutil

import pytest

from lraqvit_jax.report import __main__ as report
from tests.integration import command

playwright = pytest.importorskip("playwright.sync_api", reason="needs requirements-web.txt")
AXE = pathlib.Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
GRAVE = ("serious", "critical")
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium on the PATH or in CHROMIUM"),
    pytest.mark.skipif(not AXE.exists(), reason="needs npm install in tests/web"),
]
RULES = "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a run of seconds, and of two runs side by side."""
    folder = tmp_path_factory.mktemp("report")
    for name, seed in (("one", 0), ("two", 1)):
        stages = "--stages=teacher,factorize,distill,merge,quantize,evaluate,report"
        command.digits(folder / name, *command.FAST, f"--config.seed={seed}", stages, check=True)
    both = report.make([str(folder / "one"), str(folder / "two")], str(folder / "both.html"))
    return {"one": folder / "one" / "report.html", "both": both}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a file; says what the console, the page and the network reported."""
    contexts = []

    def show(path, width=1280, scheme="light"):
        # axe-core is put into the page by the test, which the page's own policy would forbid.
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
        contexts.append(context)
        page, noted = context.new_page(), []
        for event, of in (
            ("console", lambda one: one.text),
            ("pageerror", str),
            ("requestfailed", lambda one: one.url),
        ):
            page.on(event, lambda one, of=of: noted.append(of(one)))
        page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else noted.append(one.url))
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        return page, noted

    yield show
    for context in contexts:
        context.close()


def grave(page):
    page.evaluate(AXE.read_text())
    found = [one for one in page.evaluate(RULES) if one["impact"] in GRAVE]
    return [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]


@pytest.mark.parametrize("name", ["one", "both"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_nothing_is_wrong_with_a_page(pages, opened, name, width, scheme):
    page, noted = opened(pages[name], width, scheme)
    assert grave(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert noted == []
    pictures = page.locator("svg[role=img]")
    assert pictures.count() > (10 if name == "one" else 1)
    assert all(box["width"] > 100 for box in (pictures.nth(index).bounding_box() for index in range(pictures.count())))


def test_figures_follow_the_page_into_the_dark(pages, opened):
    code = "getComputedStyle(document.querySelector('svg[role=img] text')).fill"
    light, dark = (opened(pages["one"], scheme=scheme)[0].evaluate(code) for scheme in ("light", "dark"))
    ink = "getComputedStyle(document.body).color"
    assert dark == opened(pages["one"], scheme="dark")[0].evaluate(ink) != light


def test_the_keyboard_reaches_every_part(pages, opened):
    page, _ = opened(pages["one"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    wanted = page.evaluate(
        "[...document.querySelectorAll('main [role=region]')].map(one => one.getAttribute('aria-label'))"
    )
    assert set(wanted) <= reached


def test_the_checks_see_what_is_wrong(pages, opened, tmp_path):
    """Text too faint to read, a picture without a name, a wide line, and an image from elsewhere."""
    broken = pages["one"].read_text().replace("--dim: #505b6b", "--dim: #c5c9d0").replace('alt="', 'data-alt="')
    broken = broken.replace(
        "</main>", '<p style="width: 900px">wide</p><img alt="" src="http://127.0.0.1:9/x.png"></main>'
    )
    (tmp_path / "broken.html").write_text(broken)
    page, noted = opened(tmp_path / "broken.html", 360)
    assert {"color-contrast", "image-alt"} <= {rule for rule, _ in grave(page)}
    assert page.evaluate("document.documentElement.scrollWidth") > 360
    assert any("127.0.0.1:9" in one for one in noted)
