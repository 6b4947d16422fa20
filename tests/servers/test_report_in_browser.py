"""The drill's pages in a real browser: Debian's chromium, headless."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.drills.records import document, fine, write_drill
from timedblock.drill.html import write_report
from timedblock.drill.trend import write_trend

pytestmark = pytest.mark.server

CHROMIUM = shutil.which("chromium")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1360, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}
#: The colours of the light theme's dots, limit and learnt limit.
OK, UNAVAILABLE, LIMIT, LEARNT = (0, 114, 178), (207, 111, 0), (179, 38, 30), (15, 123, 63)

#: How many pixels of each chart's canvas are painted, and how many have each colour.
COUNT = """
(colours) => [...document.querySelectorAll(".chart[role] canvas")].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = { part: canvas.closest(".chart").dataset.part, painted: 0,
                  colours: colours.map(() => 0) };
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 0) found.painted++;
    colours.forEach(([r, g, b], n) => {
      if (data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255)
        found.colours[n]++;
    });
  }
  return found;
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of this file."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: install it (scripts/install-test-servers)")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """A page that is open, and what it complained of and asked for."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = path.as_uri()
        self.page.goto(self.url)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.context.close()

    def see_all(self) -> None:
        """Scrolls through the page, until every chart is drawn."""
        for chart in self.page.locator(".chart[role]").all():
            chart.scroll_into_view_if_needed()
            chart.locator("canvas").wait_for()

    @property
    def noise(self) -> list[str]:
        """What the console said, and all that was asked for but the page itself."""
        asked = [url for url in self.requests if not url.startswith("data:") and url != self.url]
        return self.complaints + asked

    def count(self, *colours: tuple[int, int, int]) -> list[dict[str, Any]]:
        """Each chart's painted pixels. Chromium may warn in the console of being asked."""
        assert self.noise == []
        found: list[dict[str, Any]] = self.page.evaluate(COUNT, colours)
        return found


def fate(number: int) -> tuple[float, str, str | None]:
    """Well, then in the fault no answer, then well again."""
    if 100 <= number < 600:
        return 0.4 if number % 3 else 1.0, "unavailable", "DeadlineExceeded"
    return fine(number)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drill")
    return write_report(write_drill(directory, ["none", "hang", "drip"], fate=fate))


def test_all_charts_are_drawn_without_network_or_complaint(browser: Browser, report: Path) -> None:
    """On a desktop every chart has its dots, lines and bars; nothing is asked of a network, and the
    console stays empty."""
    with Visit(browser, report, **DESKTOP) as visit:
        visit.see_all()
        charts = visit.count(OK, UNAVAILABLE, LIMIT, LEARNT)
        assert len(charts) == 3 * (3 * 3 + 1)
        assert min(chart["painted"] for chart in charts) > 1_000
        dots = [chart["colours"] for chart in charts if chart["part"] == "dots"]
        assert all(
            ok > 50 and unavailable > 50 and limit > 50 for ok, unavailable, limit, _ in dots
        )
        # Every request has its place in the stack: bars stand side by side, without holes.
        stacks = [chart["colours"] for chart in charts if chart["part"] == "stack"]
        assert all(ok > 1_500 for ok, *_ in stacks)
        # The learnt limit is timedblock's alone.
        assert [learnt > 50 for *_, learnt in dots] == [False, False, True] * 3
        assert len(visit.page.screenshot()) > 20_000


def test_it_fits_a_phone(browser: Browser, report: Path) -> None:
    """On a narrow dark screen the variants stand below each other and nothing sticks out."""
    with Visit(browser, report, **PHONE) as visit:
        visit.see_all()
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["viewport"]["width"]
        boxes = [load.bounding_box() for load in visit.page.locator(".load").all()[:3]]
        assert len({box["x"] for box in boxes if box}) == 1
        assert all(box and box["width"] > 300 for box in boxes)
        assert min(chart["painted"] for chart in visit.count()) > 1_000
        assert len(visit.page.screenshot()) > 20_000


def test_it_prints_with_all_charts(browser: Browser, report: Path, tmp_path: Path) -> None:
    """Printed from the top, unscrolled and on a dark screen: a page for the summary, one a fault,
    every chart drawn in the colours of paper."""
    with Visit(browser, report, **DESKTOP, color_scheme="dark") as visit:
        visit.page.locator(".chart canvas").first.wait_for()
        file = tmp_path / "report.pdf"
        visit.page.pdf(path=file, prefer_css_page_size=True, print_background=True)
        pages = len(re.findall(rb"/Type\s*/Page\b", file.read_bytes()))
        assert 4 <= pages <= 5
        assert visit.page.locator(".chart[role]:not([data-drawn])").count() == 0
        dots = [chart for chart in visit.count(OK) if chart["part"] == "dots"]
        assert all(chart["colours"][0] == 0 for chart in dots)  # dark again
        visit.complaints.clear()
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        dots = [chart for chart in visit.count(OK) if chart["part"] == "dots"]
        assert all(chart["colours"][0] > 20 for chart in dots)


def test_the_pointer_reads_a_call_and_a_drag_zooms(browser: Browser, report: Path) -> None:
    """Near a dot its call is told in words; a drag magnifies the time in all charts of its fault,
    and a double click goes back."""
    with Visit(browser, report, **DESKTOP) as visit:
        page = visit.page
        chart = page.locator("#fault-1 .chart[data-part=dots] .u-over").first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        assert box
        # Calls of 1 s, in the middle of the fault: the scale is from 1 ms to 10 s.
        page.mouse.move(box["x"] + box["width"] * 3.5 / 7, box["y"] + box["height"] / 4)
        tip = page.locator("#fault-1 .tip").first
        tip.wait_for()
        assert re.fullmatch(r"3\.\d+ s: 1 s, unavailable \(DeadlineExceeded\)", tip.inner_text())
        shown = "[...drawn.values()].slice(0, 6).map((u) => u.scales.x.max - u.scales.x.min)"
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 6 / 7, box["y"] + 50, steps=4)
        page.mouse.up()
        assert page.evaluate(shown) == pytest.approx([2.5] * 6, abs=0.1)
        page.mouse.dblclick(box["x"] + 40, box["y"] + 40)
        assert page.evaluate(shown) == pytest.approx([7] * 6, abs=0.01)
        assert visit.noise == []


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_trend_is_drawn(browser: Browser, tmp_path: Path, options: dict[str, Any]) -> None:
    """Each fault has its two charts, on a desktop and a phone."""
    for number in range(5):
        directory = tmp_path / f"run-{number}"
        directory.mkdir()
        text = document(["none", "hang"], started=f"2026-11-23T0{number}:00:00+00:00")
        (directory / "drill-memcache.json").write_text(json.dumps(text))
    with Visit(browser, write_trend(tmp_path), **options) as visit:
        visit.see_all()
        charts = visit.count()
        assert len(charts) == 4
        assert min(chart["painted"] for chart in charts) > 500
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= options["viewport"]["width"]
