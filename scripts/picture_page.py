"""The pictures of the morning page and of an image's page in docs/serve.md, taken with a headless Chromium.

activeseg demo --offline --exit && (cd activeseg-demo && activeseg schedule --once round)
PYTHONPATH=. python scripts/picture_page.py [--state activeseg-demo] [--out docs/images] [--width 1280] [--dark] [--whole]
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tests.labelstudio.seat import browsing
from tests.web.test_serve_command import serving

HEIGHT = 1010
ANSWERED = 'a:has(img[src*="/annotation"])'


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("activeseg-demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder; morning.png and image.png are written")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="to the foot of the page")
    options = parser.parse_args()
    with serving(options.state / "activeseg.toml") as (_, server), browsing() as page:
        page.set_viewport_size({"width": options.width, "height": HEIGHT})
        page.emulate_media(color_scheme="dark" if options.dark else "light")
        page.goto(server["url"])
        page.fill("#token", Path(server["token"]).read_text(encoding="utf-8").strip())
        page.click("main button")
        take(page, options.out / "morning.png", whole=options.whole)
        page.locator(ANSWERED).first.click()
        page.locator(".panels").wait_for()
        take(page, options.out / "image.png", whole=options.whole)


def take(page: Any, file: Path, *, whole: bool) -> None:
    """What the window shows once all pictures are there, or the whole page, as a PNG with a palette."""
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
    page.evaluate("window.scrollTo(0, 0)")
    with Image.open(BytesIO(page.screenshot(full_page=whole))) as picture:
        # A palette more than halves it; without kmeans rare colours, as of the icon, are lost, and without the second step the
        # colours of the entropy scale come in bands.
        colors = picture.convert("RGB")
        palette = colors.quantize(256, kmeans=4)
        colors.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
    print(f"wrote {file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
