"""The page in a real browser: Chromium, driven by Playwright, which downloads none and takes the one there is.

The reports hold what data can hold: markup, a very long word, numbers, parse failures and failed calls.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, sync_playwright

from dspy_finetune.errors import AnswerError
from dspy_finetune.evaluation import RunOptions, StatisticsOptions, compare, metrics
from dspy_finetune.report import write_html
from tests.evaluation.test_curve_result import curve as learning_curve_of

EVIL = "<script>document.body.innerHTML = 'gone'</script><img src=x onerror=alert(1)> a title"
LONG = "unbreakable" * 12
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
HOW = "no Chromium found: install one (Debian: apt-get install chromium), or name it in $CHROMIUM"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=HOW),
    pytest.mark.xdist_group("browser"),  # one worker, one browser
]


def guess(title: str, wrong_every: int) -> dspy.Prediction:
    number = int(title.rpartition(" ")[2]) if title[-1].isdigit() else 3
    if number == 7:
        raise AnswerError("no label in <b>hm</b>", text="hm")
    if number == 8:
        raise ConnectionError("lost")
    liked = (number % 2 == 0) != (number % wrong_every == 0)
    return dspy.Prediction(liked=liked, probability=0.55 + number / 100 if liked else 0.45 - number / 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels.html, numbers.html, and all.html with both."""
    target = tmp_path_factory.mktemp("pages")
    titles = [EVIL if n == 3 else f"{LONG} title {n}" if n == 4 else f"title {n}" for n in range(40)]
    rows = [dspy.Example(title=one, liked=n % 2 == 0).with_inputs("title") for n, one in enumerate(titles)]
    labels = compare(
        {"tuned <b>": lambda title: guess(title, 10), LONG: lambda title: guess(title, 3)},
        rows,
        [metrics.accuracy("liked"), metrics.roc_auc("liked")],
        statistics=StatisticsOptions(
            n_resamples=100, subgroups={"long": lambda row: len(row.title) > 20}, noise_floor=5
        ),
        title="Titles",
        running=RunOptions(usd_per_million_tokens={"tuned <b>": (1.0, 1.0)}),
    ).annotated(cards={"Prompt": {"system": EVIL}}, training={"sft": [(1, 2.0), (2, 1.5), (3, 1.1)]})
    items = [dspy.Example(product=f"pump {n}", price=2.5 * 3 ** (n % 7) + n).with_inputs("product") for n in range(40)]
    answers = {item.product: item.price * (0.4 + 0.1 * (n % 12)) for n, item in enumerate(items)}
    numbers = compare(
        {
            "tuned": lambda product: dspy.Prediction(price=answers[product]),
            "flat": lambda product: dspy.Prediction(price=99.5),
        },
        items,
        [metrics.mean_absolute_error("price")],
        title="Prices",
    )
    labels.to_html(target / "labels.html")
    numbers.to_html(target / "numbers.html")
    write_html(target / "all.html", [labels, numbers])
    learning_curve_of().to_html(target / "curve.html")
    return target


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # The sandbox needs rights that containers and root do not have; the pages are our own.
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=300_000)
        yield started
        started.close()


class Opened:
    """A page, and all that the browser had to say about it."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_default_timeout(120_000)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", self._hear)
        self.page.on("request", self._note)
        self.page.goto(path.as_uri())

    def _hear(self, what: ConsoleMessage | Error) -> None:
        self.said.append(str(what))

    def _note(self, request: Request) -> None:
        self.asked.append(request.url)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def column(self, number: int) -> list[str]:
        """The visible cells of a column, from 1."""
        cells = self.page.locator(f"[data-items] tbody tr:not([hidden]) td:nth-child({number})")
        return [text.strip() for text in cells.evaluate_all("cells => cells.map(c => c.dataset.value ?? c.innerText)")]


@pytest.mark.parametrize("name", ["labels", "all", "curve"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_screen_and_keeps_the_rules_of_accessibility(
    browser: Browser, folder: Path, tmp_path: Path, name: str, width: int, scheme: Any
) -> None:
    """No console message, nothing fetched, no sideways scrolling, and none of axe-core's rules broken."""
    size: Any = {"width": width, "height": 800}
    with Opened(browser, folder / f"{name}.html", viewport=size, color_scheme=scheme) as opened:
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") == width
        picture = page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert picture.startswith(b"\x89PNG")
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
        assert opened.said == []
        assert len(opened.asked) == 1
        broken = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in broken] == []


def test_pictures_have_texts_and_headings_go_down_step_by_step(browser: Browser, folder: Path) -> None:
    for name, n_pictures in (("labels", 8), ("numbers", 5)):
        with Opened(browser, folder / f"{name}.html") as opened:
            texts = opened.page.locator("figure [role=img]").evaluate_all("all => all.map(one => one.ariaLabel)")
            assert len(texts) == n_pictures
            assert all(len(text) > 15 for text in texts)
            levels = opened.page.locator("h1, h2, h3").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
            assert levels[0] == 1
            assert levels.count(1) == 1
            assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
            assert opened.page.locator("main > section:last-of-type h2").inner_text() == "Not checked"


def test_markup_in_a_title_shows_as_text(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "labels.html") as opened:
        assert EVIL in opened.column(2)
        assert opened.page.locator("img").count() == 0
        assert opened.page.locator("main b").count() == 0
        assert opened.page.locator("dd", has_text="document.body").inner_text() == EVIL
        # Were it ever let in, the page's policy would still not run it.
        opened.page.evaluate(
            "() => { const one = document.createElement('script'); one.textContent = 'window.ran = true';"
            " document.body.append(one); }"
        )
        assert opened.page.evaluate("window.ran") is None


def test_search_by_keyboard_and_the_checkbox_by_mouse(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "labels.html") as opened:
        page, status = opened.page, opened.page.locator("[data-status]")
        assert len(opened.column(1)) == 40
        page.locator("[data-search]").focus()
        page.keyboard.type("UNBREAKABLE 4")  # both words, in any case
        assert opened.column(1) == ["5"]
        assert status.inner_text() == "1 of 40 shown"
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("connectionerror")  # what is known of a failed answer is found too
        assert opened.column(1) == ["9"]
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.press("Delete")
        assert len(opened.column(1)) == 40
        assert status.inner_text() == ""
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        by_key = opened.column(1)
        assert 0 < len(by_key) < 40
        page.get_by_label("only where programs disagree").click()
        assert len(opened.column(1)) == 40
        page.get_by_label("only where programs disagree").click()
        assert opened.column(1) == by_key


def test_sorting_by_mouse_and_keyboard_reads_numbers_as_numbers(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "numbers.html") as opened:
        page = opened.page
        for number, name in ((1, "#"), (3, "label"), (4, "tuned")):
            button = page.locator(f"[data-items] th:nth-child({number}) button")
            assert button.inner_text().startswith(name)
            button.click()
            values = [float(text) for text in opened.column(number)]
            assert values == sorted(values)
            assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")  # the button that was clicked last has the focus
        values = [float(text) for text in opened.column(4)]
        assert values == sorted(values, reverse=True)
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Space")
        assert [float(text) for text in opened.column(3)] == sorted(map(float, opened.column(3)))
        page.locator("[data-items] th:nth-child(2) button").click()
        assert opened.column(2)[:3] == ["pump 0", "pump 1", "pump 2"]


@pytest.mark.parametrize("name", ["labels", "numbers"])
def test_paper_is_light_and_shows_every_row(browser: Browser, folder: Path, tmp_path: Path, name: str) -> None:
    a4: Any = {"width": 794, "height": 1123}
    with Opened(browser, folder / f"{name}.html", viewport=a4, color_scheme="dark") as opened:
        page = opened.page
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("[data-controls]").is_visible()
        hidden = page.locator(".window, .scroll").evaluate_all(
            "all => all.filter(one => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight).length"
        )
        assert hidden == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 794
        assert page.pdf(path=tmp_path / "page.pdf", format="A4").startswith(b"%PDF")


def test_without_scripts_all_rows_stand_there(browser: Browser, folder: Path) -> None:
    with Opened(browser, folder / "labels.html", java_script_enabled=False) as opened:
        assert opened.page.locator("[data-items] tbody tr").count() == 40
        assert not opened.page.locator("[data-search]").is_visible()
