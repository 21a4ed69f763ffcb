"""Captions from the web, cleaned as the paper's last training stage cleans them."""

from __future__ import annotations

import html
import re
import unicodedata

from unidiff_core import Cleaner

BRACKETS = {")": "(", "]": "[", "}": "{", "）": "（", "］": "［", "｝": "｛", "】": "【", "〕": "〔"}
"""Closing bracket → opening."""
LONGEST = 10_000
"""Characters of a caption that is cleaned. Some patterns take time by its square, and nested entities a pass each."""
APOSTROPHES = "'’‘＇`´"
PUNCTUATION = ",.?!"

# A quoted attribute may hold a '>'; a stray quote makes the second form take over.
_TAG = re.compile(r"""<!--.*?-->|</?[a-z](?:"[^"]*"|'[^']*'|[^<>"'])*>|</?[a-z!?][^<>]*>""", re.IGNORECASE | re.DOTALL)
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
# What a sentence forgot to space ("the end.The next") is not a host: without a scheme, www or a path, only endings that
# are no words count.
_URL = re.compile(
    r"""(?:(?<![\w])[a-z][a-z0-9+.-]*://\S+?
        | (?<![\w.-])www\d?\.\S+?
        | (?<![\w.-])(?:[\w-]+\.)+[^\W\d_]{2,}(?::\d+)?[/?]\S*?
        | (?<![\w.-])(?:[\w-]+\.)+(?:com|org|net|edu|gov|info|biz|co\.[a-z]{2})(?![\w-])
        )(?=[,.?!]*(?:\s|$))""",
    re.IGNORECASE | re.VERBOSE,
)
_POSSESSIVE = re.compile(rf"(?<=[^\W_])[{APOSTROPHES}](s)(?!\w)", re.IGNORECASE)
_INSIDE_A_WORD = re.compile(rf"(?<=[^\W\d_])[{APOSTROPHES}](?=[^\W\d_])")
_BEFORE_PUNCTUATION = re.compile(rf"\s+([{PUNCTUATION}]+)(?=\s|$)")
_KEPT = "\x00"  # stands for the apostrophe of 's while the other quotation marks go


def clean_caption(text: str) -> str:
    """A caption with words and the punctuation ``, . ? !`` alone; empty if nothing is left.

    URLs (with or without a scheme), HTML tags, e-mail addresses and what is in brackets are dropped, quotation marks
    too except that of ``'s``. Letters and digits of every language are kept. Any other symbol becomes a space, the
    hyphen like the rest (``t-shirt`` → ``t shirt``), so that words are never glued together; an apostrophe inside a
    word goes without one (``don't`` → ``dont``). HTML entities are read first and accents composed (NFC). Of an
    unbalanced bracket only the sign is dropped. Cleaning twice changes nothing more.

    Source: UniDiffuser (arXiv 2303.06555), its third stage of training.

    Raises:
        ValueError: if it is longer than `LONGEST`.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a caption of {len(text)} characters; at most {LONGEST} are cleaned")
    while (cleaned := _clean_once(text)) != text:  # what was cut out may join into something new: it only ever shrinks
        text = cleaned
    return cleaned


class CaptionCleaner(Cleaner):
    """`clean_caption`: words and ``, . ? !`` alone, no addresses, tags or brackets; a caption left empty is dropped.

    For an `encode` or a data module: ``clean: {text: CaptionCleaner}``.
    """

    def clean(self, raw: str) -> str | None:
        """The cleaned caption; None if nothing is left."""
        return clean_caption(raw) or None


def _clean_once(text: str) -> str:
    text = _TAG.sub(" ", unicodedata.normalize("NFC", _unescape(text)))
    text = _without_brackets(text)
    text = _URL.sub(" ", _EMAIL.sub(" ", text))
    text = _POSSESSIVE.sub(rf"{_KEPT}\1", text.replace(_KEPT, " "))
    text = _symbols_to_spaces(_INSIDE_A_WORD.sub("", text)).replace(_KEPT, "'")
    text = _BEFORE_PUNCTUATION.sub(r"\1", " ".join(text.split()))
    text = " ".join(text.split()).lstrip(" " + PUNCTUATION)
    return text if any(letter.isalnum() for letter in text) else ""


def _unescape(text: str) -> str:
    while (plain := html.unescape(text)) != text:  # &amp;quot; is a quotation mark that was escaped twice
        text = plain
    return text


def _without_brackets(text: str) -> str:
    """Cut out every balanced pair with what is in it, the outermost of nested ones."""
    opened: list[int] = []
    cuts: list[tuple[int, int]] = []
    for i, letter in enumerate(text):
        if letter in BRACKETS.values():
            opened.append(i)
        elif opened and BRACKETS.get(letter) == text[opened[-1]]:
            start = opened.pop()
            while cuts and cuts[-1][0] > start:
                cuts.pop()
            cuts.append((start, i + 1))
    ends = [0, *(end for _, end in cuts)]
    return " ".join(
        text[end:start] for end, start in zip(ends, [*(start for start, _ in cuts), len(text)], strict=True)
    )


def _symbols_to_spaces(text: str) -> str:
    kept: list[str] = []
    for letter in text:
        kind = unicodedata.category(letter)
        if kind[0] in "LN" or letter in PUNCTUATION or letter == _KEPT:
            kept.append(letter)
        elif kind in ("Mn", "Mc") and not _is_variation_selector(letter):  # accents and vowel signs, not emoji's
            kept.append(letter if kept and unicodedata.category(kept[-1])[0] in "LNM" else " ")
        elif kind != "Cf":  # soft hyphens and joiners are no gap between words
            kept.append(" ")
    return "".join(kept)


def _is_variation_selector(letter: str) -> bool:
    return "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
