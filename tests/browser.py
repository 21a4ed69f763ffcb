"""A page in headless Chromium: what it looks like, and what stands where.

``python -m tests.browser RUN FOLDER`` takes the pictures of docs/pages.md from a run's pages.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

INSTALL = "apt-get install -y chromium"
PHONE, WIDE = 390, 1200
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever a page asked of another machine would be an error
    "--allow-file-access-from-files",  # so that one page may look into another
    "--force-device-scale-factor=1",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
_FRAME = '<iframe src="{src}" style="border: 0; display: block; width: {width}px; height: {height}px"></iframe>'
_LOOK = """
const found = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const all = selector => [...page.querySelectorAll(selector)];
  const seen = selector => all(selector).map(node => Math.round(node.getBoundingClientRect().width));
  return {
    overflow: root.scrollWidth - root.clientWidth,
    images: all("img").length, broken: all("img").filter(node => !node.naturalWidth).length,
    players: seen("audio"), silent: all("audio").filter(node => node.error).length, charts: seen(".chart svg"),
    paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.body).color,
    out: all("img, audio").filter(node =>  // of its box
      node.getBoundingClientRect().right > node.parentElement.getBoundingClientRect().right + 1).length,
    order: all("img, audio, table").map(node => node.tagName == "TABLE" ? "t" : "p").join("").replace(/(.)\\1+/g, "$1"),
    links: all("a[href^='#']").filter(node => !page.getElementById(node.getAttribute("href").slice(1))).length,
  };
});
document.body.innerHTML = "<pre>" + JSON.stringify(found).replace(/&/g, "&amp;").replace(/</g, "&lt;") + "</pre>";
"""


def chromium() -> str:
    """The program.

    Raises:
        FileNotFoundError: if it is not installed; says how to.
    """
    if found := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
        return found
    raise FileNotFoundError(f"pages are looked at in Chromium, which is not installed: {INSTALL}")


def _run(page: str, *flags: str) -> str:
    """Open a page of HTML with these flags; what is printed."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin: 0">{page}</body>')
        command = [chromium(), *FLAGS, f"--user-data-dir={folder}/user", *flags, path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def _framed(page: Path, width: int, height: int) -> str:
    """A page in a frame, as narrow as a phone where a window cannot be."""
    return _FRAME.format(src=escape(page.resolve().as_uri()), width=width, height=height)


def looked_at(pages: Sequence[tuple[Path, int]], *, is_dark: bool = False) -> list[dict[str, Any]]:
    """What there is to see of pages, each at a width: in the browser's own numbers, by `_LOOK`'s names."""
    frames = "".join(_framed(page, width, 800) for page, width in pages)
    script = f"<script>onload = () => {{{_LOOK}}}</script>"
    said = _run(frames + script, "--dump-dom", "--window-size=1400,1000", *([DARK] if is_dark else []))
    found = re.search(r"<pre>(.*?)</pre>", said, re.DOTALL)
    assert found, said[-2000:]
    read: list[dict[str, Any]] = json.loads(unescape(found[1]))
    return read


def screenshot(page: Path, target: Path, width: int, height: int, *, is_dark: bool = False) -> None:
    """A page's beginning as a PNG file, in 256 colours: small enough to keep."""
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.png"
        flags = [f"--screenshot={raw}", f"--window-size={max(width, 600)},{height + 200}", *([DARK] if is_dark else [])]
        _run(_framed(page, width, height), *flags)
        Image.open(raw).convert("RGB").crop((0, 0, width, height)).quantize(256).save(target, optimize=True)


def main(run: str, folder: str) -> None:
    """Take the pictures."""
    out, pages = Path(folder), Path(run)
    for name, height in (("report", 1500), ("training", 1900), ("comparison", 1300)):
        screenshot(pages / f"{name}.html", out / f"page_{name}.png", WIDE, height)
    screenshot(pages / "training.html", out / "page_training_dark.png", WIDE, 1900, is_dark=True)
    screenshot(pages / "report.html", out / "page_report_phone.png", PHONE, 1200)
    screenshot(pages / "report.html", out / "page_report_phone_dark.png", PHONE, 1200, is_dark=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
