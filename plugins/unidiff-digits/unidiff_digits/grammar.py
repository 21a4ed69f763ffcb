"""The captions' grammar: eight phrasings, and the parser that accepts exactly what they produce."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
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
def _sentences() -> dict[str, Reading]:
    """Every sentence of the language: there are only 840."""
    rows = product(range(len(PHRASINGS)), map(str, range(10)), COLOURS, GROUNDS)
    return {phrase(p, d, c, g): Reading(d, c, g if names_ground(p) else None) for p, d, c, g in rows}


def parse(sentence: str) -> Reading | None:
    """What a caption says, or None if the grammar does not produce exactly it."""
    return _sentences().get(sentence)


def spot(sentence: str) -> Reading | None:
    """What any text says of a digit, a colour and a ground, sentence or not.

    None unless it names exactly one digit and at least one colour. The ground is a ground's name after "on".
    """
    words = sentence.lower().split()
    numerals = [str(NUMBERS.index(word)) if word in NUMBERS else word for word in words]
    digits = {word for word in numerals if word.isdecimal() and len(word) == 1}
    colours = {word for word in words if word in COLOURS}
    if len(digits) != 1 or len(colours) != 1:
        return None
    grounds = {word for word in words if word in GROUNDS}
    return Reading(digits.pop(), colours.pop(), grounds.pop() if len(grounds) == 1 else None)
