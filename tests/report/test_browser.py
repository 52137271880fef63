"""The report in a real browser: no errors, figures with their marks, tables that sort, nothing that overflows."""

import json
import shutil
from pathlib import Path

import pytest
from test_hostile import extreme_comparison, extreme_run, hostile_comparison, hostile_run  # noqa: F401
from test_page import finished, run  # noqa: F401

from fedsrd.report.page.write import report

pytestmark = pytest.mark.browser
STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "embedded-main.json"


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def compared(tmp_path):
    folder = tmp_path / "compared"
    folder.mkdir()
    shutil.copy(STORED, folder / "results.json")
    return folder


def opened(browser, file, width=1400, scheme="light"):
    """The page, drawn; asserts that nothing was said on its console and nobody was asked for anything."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    plots = page.locator(".plot").count()
    page.wait_for_function(f"document.querySelectorAll('.plot .main-svg').length >= {plots}")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_overflows(browser, finished, compared, width, scheme):  # noqa: F811
    for folder in (finished, compared):
        page = opened(browser, report([folder], folder / "report.html"), width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # What is wider than the page scrolls within itself.
        wide = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide, pre, .plot') &&"
            " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == []


def test_figures_have_their_marks(browser, finished, compared):  # noqa: F811
    page = opened(browser, report([finished], finished / "report.html"))
    assert page.locator("#part0-quality .scatterlayer .point").count() == 4  # one set, rounds 0 to 3
    assert page.locator("#part0-loss .scatterlayer .trace").count() == 2  # two clients
    assert page.locator("#part0-bytes .scatterlayer .point").count() == 6
    assert page.locator("#part0-bytes .shapelayer path").count() == 2  # FedAvg's two levels
    assert page.locator("#part0-seconds .barlayer .point").count() == 18
    assert page.locator("#part0-sparsity-B .heatmaplayer image").count() == 1

    page = opened(browser, report([compared], compared / "report.html"))
    sent = [row["label"] for row in json.loads(STORED.read_text())["rows"] if not row["reference"]]
    assert page.locator("#part0-pareto .scatterlayer .point").count() == len(sent)


def test_points_name_themselves(browser, compared):
    page = opened(browser, report([compared], compared / "report.html"))
    point = (
        page.locator("#part0-pareto .scatterlayer .trace").filter(has=page.locator(".point")).first.locator(".point")
    )
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = page.locator("#part0-pareto .hoverlayer text").first
    label.wait_for()
    labels = [row["label"] for row in json.loads(STORED.read_text())["rows"]]
    assert any(name in label.text_content() for name in labels)


def test_tables_sort_both_ways(browser, compared):
    page = opened(browser, report([compared], compared / "report.html"))
    table = page.locator("table.sorts").first
    head = table.locator("th", has_text="in-domain").first
    cell = "document.querySelector('table.sorts').tBodies[0].rows"
    for order in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        numbers = page.evaluate(f"[...{cell}].map(row => parseFloat(row.cells[1].textContent))")
        assert numbers == sorted(numbers, reverse=order == "descending")


def test_it_prints(browser, finished, tmp_path):  # noqa: F811
    page = opened(browser, report([finished], finished / "report.html"), scheme="dark")
    pdf = page.pdf(path=str(tmp_path / "report.pdf"))
    assert pdf.startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_no_script_runs_but_the_pages_own(browser, hostile_run, hostile_comparison, tmp_path):  # noqa: F811
    page = opened(browser, report([hostile_run, hostile_comparison], tmp_path / "hostile.html"))
    assert page.locator("img").count() == 0
    # plotly.js reads some tags in names; ours are shown as they are.
    assert page.locator(".plot a").count() == 0
    assert any("<a href='https://example.com'>" in text for text in page.locator(".plot text").all_text_contents())
    assert page.locator("script:not([type])").count() == 2
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    )
    assert page.evaluate("window.ran") is None


def test_extreme_numbers_and_attacks_in_every_text(browser, extreme_run, extreme_comparison, tmp_path):  # noqa: F811
    """Every chart is drawn (`opened` waits for them, and nothing is said or asked), and nothing is executed."""
    page = opened(browser, report([extreme_run, extreme_comparison], tmp_path / "extreme.html"))
    assert page.locator(".plot").count() >= 8
    for place in page.locator(".plot").all():
        assert min(place.locator(ticks).count() for ticks in (".xtick", ".ytick")) >= 3
    assert page.locator(".plot .point").count() > 50
    # Names that show on hover only are texts too.
    for point in page.locator("#part1-pareto .scatterlayer .point").all()[:3]:
        point.hover(force=True)
    for fold in page.locator("details > summary").all():
        fold.click()
    for button in page.locator("th button").all()[:12]:
        button.click()
    assert page.locator("img, iframe, object, embed, svg script, foreignObject").count() == 0
    links = page.evaluate("[...document.querySelectorAll('a, link')].map(e => e.getAttribute('href'))")
    assert set(links) == {"data:,", "#part0", "#part1"}
    attributes = page.evaluate("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())")
    assert not [name for name in attributes if name.lower().startswith("on")]
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
