"""The docs' pictures of a drill's report, by Debian's chromium.

    python scripts/report_pictures.py timedblock-drill hang
    python scripts/report_pictures.py timedblock-drill drop-established docs/drills/seed

takes the report in the directory and writes its top, and the section of one fault, to a directory
of the docs: docs/how-to/read-a-report, if no other is given. It needs requirements/test.txt.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page, sync_playwright

OUT = Path(__file__).parent.parent / "docs" / "how-to" / "read-a-report"
WIDTH, MARGIN, SCALE = 1240, 20, 1.5
#: A page has few colours; with these a picture is a third of the size, and the rare ones stay.
COLOURS = 256


def main() -> None:
    directory, fault = Path(sys.argv[1]), sys.argv[2]
    out = Path(sys.argv[3]) if len(sys.argv) > 3 else OUT
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": 3000}, device_scale_factor=SCALE
        )
        page.goto((directory / "report.html").resolve().as_uri())
        table = page.locator(".summary").bounding_box()
        assert table
        save(page, out / "summary.png", 0, table["y"] + table["height"] + MARGIN)
        section = page.locator(f".fault:has(h2:text-matches('^{fault}( |$)'))")
        section.scroll_into_view_if_needed()
        for chart in section.locator(".chart[role]").all():
            chart.locator("canvas").wait_for()
        page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        box = section.bounding_box()
        assert box
        save(page, out / "fault.png", box["y"], box["height"] + MARGIN)
        browser.close()


def save(page: Page, file: Path, top: float, height: float) -> None:
    clip: FloatRect = {"x": 0, "y": top, "width": WIDTH, "height": height}
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True))).convert("RGB")
    shot.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        file, optimize=True
    )
    print(file, file.stat().st_size, shot.size)


if __name__ == "__main__":
    main()
