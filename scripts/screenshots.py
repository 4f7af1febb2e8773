"""Make the images of the app in the docs, docs/app-*.png.

    python scripts/screenshots.py

starts an app, acts like a visitor in a headless Chromium, and saves what the page shows. Chromium is found as for the
browser tests.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from app_load import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCENES = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes" / "images"
THINGS = "penguin, pig, bell, horse, bear, rocket, apple, dog, guitar, elephant, chick, frog, sunflower, cactus, key"
PATIENCE_MS = 180_000


def segment(page: Page) -> None:
    page.locator("[data-example]").first.wait_for()
    page.set_input_files("t2s-stage input[type=file]", SCENES / "scene_0019.jpg")
    page.locator(".t2s-figure").wait_for()
    page.get_by_label("Add a query").fill("sheep, fire engine, koala")
    page.keyboard.press("Enter")
    page.locator(".t2s-image [data-piece]").nth(2).wait_for()
    page.locator("svg.t2s-image[aria-busy=false]").wait_for()


def folder(page: Page) -> None:
    page.get_by_role("tab", name="Label a folder").click()
    page.locator("#folder-files input[type=file]").set_input_files(sorted(SCENES.glob("*.jpg"))[:12])
    page.locator("#folder-files").get_by_text("and 6 more").wait_for()
    page.get_by_label("Things to find, separated by commas").fill(THINGS)
    page.get_by_role("button", name="Convert to ontology").click()
    page.locator(".t2s-valid").wait_for()
    page.locator("#folder-start").click()
    page.locator("#folder-sheet .t2s-tile").first.wait_for()
    page.locator("#folder-shown").evaluate("element => element.scrollIntoView({block: 'start'})")


def explain(page: Page) -> None:
    page.get_by_role("tab", name="Explain").click()
    expect(page.locator("#explain-status h3")).to_be_visible()
    expect(page.locator("#explain-panels img").first).to_be_visible()


IMAGES: dict[str, tuple[Callable[[Page], None], tuple[int, int], bool]] = {
    "app-segment": (segment, (1280, 860), False),
    "app-folder": (folder, (1280, 860), False),
    "app-explain": (explain, (1280, 860), True),
    "app-phone": (segment, (390, 844), False),
}
"""Actions, size of the page in pixels, and whether it is dark."""


def take(browser: Browser, url: str, name: str) -> Path:
    act, (width, height), dark = IMAGES[name]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    act(page)
    page.wait_for_timeout(1500)  # until animations have ended
    if name != "app-folder":
        page.evaluate("window.scrollTo(0, 0)")
    path = DOCS / f"{name}.png"
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, optimize=True)
    page.close()
    return path


def main() -> None:
    names = sys.argv[1:] or [*IMAGES]
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    expect.set_options(timeout=PATIENCE_MS)
    with app(()) as (url, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for name in names:
            print(take(browser, url, name))
        browser.close()


if __name__ == "__main__":
    main()
