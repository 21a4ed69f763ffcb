"""The captions' grammar: eight phrasings, and the parser that accepts exactly what they produce."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import cache
from itertools import product
from typing import NamedTuple

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta", "peach")
GROUNDS = ("black", "white", "grey")

PHRASINGS = (
    "a {colour} {number}",
    "the digit {digit} in {colour}",
    "{article} {number} drawn in {colour}",
    "a handwritten {digit} in {colour} ink",
    "the number {number} written in {colour}",
    "a {colour} {number} on {ground}",
    "{article} {number} drawn in {colour} on {ground}",
    "the digit {digit} in {colour} ink on a {ground} ground",
)
"""The last three name the ground. No colour and no ground starts with a vowel; one number does."""


class Reading(NamedTuple):
    """What a caption says. `digit` is a numeral, "0" to "9"; `ground` is None where it is not named."""

    digit: str
    colour: str
    ground: str | None


def phrase(phrasing: int, digit: str, colour: str, ground: str) -> str:
    """A caption in one of the `PHRASINGS`, by index."""
    number = NUMBERS[int(digit)]
    article = "an" if number[0] in "aeiou" and number != "one" else "a"
    return PHRASINGS[phrasing].format(digit=digit, number=number, colour=colour, ground=ground, article=article)


def names_ground(phrasing: int) -> bool:
    """Whether a phrasing names the ground."""
    return "{ground}" in PHRASINGS[phrasing]


@cache
def _sentences() -> dict[str, tuple[Reading, int]]:
    """Every sentence of the language, what it says and in which phrasing: there are only 980."""
    rows = product(range(len(PHRASINGS)), map(str, range(10)), COLOURS, GROUNDS)
    return {phrase(p, d, c, g): (Reading(d, c, g if names_ground(p) else None), p) for p, d, c, g in rows}


def parse(sentence: str) -> Reading | None:
    """What a caption says, or None if the grammar does not produce exactly it."""
    return _sentences().get(sentence, (None, 0))[0]


def phrasing_of(sentence: str) -> str | None:
    """Which of the `PHRASINGS` a caption is in, or None if the grammar does not produce exactly it."""
    found = _sentences().get(sentence)
    return PHRASINGS[found[1]] if found else None


class Words(NamedTuple):
    """What a text mentions, None where it mentions none or several."""

    digit: str | None
    colour: str | None
    ground: str | None


def spot(text: str) -> Words:
    """What any text mentions of digits, colours and grounds, be it a sentence or not."""
    words = text.lower().split()
    numerals = [str(NUMBERS.index(word)) if word in NUMBERS else word for word in words]
    return Words(_only(numerals, tuple("0123456789")), _only(words, COLOURS), _only(words, GROUNDS))


def _only(words: Iterable[str], known: Container[str]) -> str | None:
    found = {word for word in words if word in known}
    return found.pop() if len(found) == 1 else None
