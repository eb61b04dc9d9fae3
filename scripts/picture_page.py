"""The picture of the morning page in docs/serve.md, taken with a headless Chromium.

activeseg demo --offline --exit && (cd activeseg-demo && activeseg schedule --once round)
PYTHONPATH=. python scripts/picture_page.py [--state activeseg-demo] [--out docs/images/morning.png] [--width 1280]
    [--dark] [--whole]
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.labelstudio.seat import browsing
from tests.web.test_serve_command import serving

HEIGHT = 1010


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("activeseg-demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/morning.png"))
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
        for image in page.locator(".pictures img").all():
            image.scroll_into_view_if_needed()
            image.evaluate("image => image.decode()")
        page.evaluate("window.scrollTo(0, 0)")
        data = page.screenshot(full_page=options.whole)
    with Image.open(BytesIO(data)) as picture:
        # A palette more than halves it; without the second step rare colours, as of the icon, are lost.
        picture.convert("RGB").quantize(256, kmeans=4).save(options.out, optimize=True)
    print(f"wrote {options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
