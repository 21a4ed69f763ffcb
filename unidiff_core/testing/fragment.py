"""A fragment of HTML, as a codec gives it: what of it a page would not show, or would be broken by."""

from __future__ import annotations

from html.parser import HTMLParser

LOADING = ("src", "srcset", "poster", "data", "background")
"""Attributes by which an element loads something."""
EMPTY = {"area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
"""Elements that have no end."""
REFUSED = {"script", "link", "meta", "base", "iframe", "object", "embed", "form"}
"""Elements that a page's policy forbids, or that change the page around them."""


def unfit(html: str) -> str | None:
    """What is wrong with a fragment; None if it shows on a page as it is.

    It is to hold all its data itself, run no script, and close what it opens.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.fault or (f"<{reader.open[-1]}> is not closed" if reader.open else None)


class _Reader(HTMLParser):
    """Notes the first fault, and what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fault: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that begins."""
        if tag not in EMPTY:
            self.open.append(tag)
        self._check(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element like ``<img/>``; of others, as of SVG, it is beginning and end."""
        self._check(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """An element that ends: the last one that is open."""
        if tag in EMPTY:
            return
        if self.open[-1:] != [tag]:
            self._note(f"</{tag}> closes what is not open")
        else:
            self.open.pop()

    def _check(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in REFUSED:
            self._note(f"<{tag}> is forbidden")
        for name, value in attrs:
            if name.startswith("on"):
                self._note(f"{name} is a script")
            if name in LOADING and not (value or "").startswith("data:"):
                self._note(f'{name}="{(value or "")[:40]}" is not in the page')

    def _note(self, fault: str) -> None:
        self.fault = self.fault or fault
