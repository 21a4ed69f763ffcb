"""Caption cleaning: the paper's rules on hard cases, and what holds for every text."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unidiff_codecs.caption import LONGEST, CaptionCleaner, clean_caption

CASES = {
    # URLs
    "a cat https://example.com/a?b=c#d on a mat": "a cat on a mat",
    "a cat www.x.com/a": "a cat",
    "see example.co.uk/path?q for more": "see for more",
    "example.co.uk/path?q": "",
    "photo by flickr.com.": "photo by.",
    "read http://x.org/a_(b), then go!": "read, then go!",
    "ftp://host/file.tar and пример.рф/путь": "and",
    "a dog.The cat": "a dog.The cat",
    "4.5/5 stars, and/or U.S./Canada": "4.5 5 stars, and or U.S. Canada",
    # tags and entities
    "a <b class=\"x>y\" id='z'>bold</b> <br/>cat<!-- no\nwords -->": "a bold cat",
    "salt &amp; pepper &lt;i&gt;now&lt;/i&gt;": "salt pepper now",
    "5 &amp;quot;inches&amp;quot;": "5 inches",
    "a <p title=it's>dog</p>": "a dog",
    "3 < 5 and 7 > 2": "3 5 and 7 2",
    # e-mails
    "write to some.one+tag@mail.example.co.uk now": "write to now",
    "by @painter #art": "by painter art",
    # brackets
    "a cat (black), asleep": "a cat, asleep",
    "one (two [three {four}] five) six [seven] {eight} nine": "one six nine",
    "a (b (c) d": "a b d",
    "a) b ] c": "a b c",
    "a (b [c) d] e": "a b e",
    "黒い猫（写真）と犬【公式】": "黒い猫 と犬",
    "((((a))))": "",
    # quotation marks
    "it's the dog's \"red\" 'ball'": "it's the dog's red ball",
    "it’s the “dog”’s «ball» „here‟": "it's the dog s ball here",
    "JOHN'S and the dogs' 'it's'": "JOHN'S and the dogs it's",
    "don't rock'n'roll in the '80s": "dont rocknroll in the 80s",
    "'s": "s",
    # symbols
    "a t-shirt — 50% off: *new*; 3×4 = 12 & more…": "a t shirt 50 off new 3 4 12 more",
    "Really?! Yes, no. Go!": "Really?! Yes, no. Go!",
    "a .5 inch , or less .": "a .5 inch, or less.",
    "...": "",
    "  a \n\t b  ": "a b",
    "": "",
    # other languages, emoji
    "Ein Café in Łódź, Ñandú": "Ein Café in Łódź, Ñandú",
    "the cafe\u0301's हिन्दी में ٣ قطط": "the caf\u00e9's हिन्दी में ٣ قطط",
    "I ❤️ cats 😺👍🏽 👩‍👩‍👧 1️⃣ 🇩🇪": "I cats 1",
    "soft\u00adhyphen": "softhyphen",
}


@pytest.mark.parametrize("text", CASES)
def test_hard_cases(text):
    assert clean_caption(text) == CASES[text]


MARKS = ["'s", "’s", "'", "’", "(", ")", "[", "]", "<a ", ">", "</b>", "&amp;", "&lt;", "&", "#39;", "-", "/", "?", "@"]
WORDS = [
    "s",
    "www.",
    ".com",
    "http://",
    "x.org",
    "\x00",
    "\ufe0f",
    "\u0301",
    "😺",
    " ",
    ", ",
    ".",
    "ab",
    "7",
    "é",
    "猫",
]
PIECES = st.sampled_from(MARKS + WORDS)


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join)))
def test_cleaning_is_idempotent_and_leaves_words_and_punctuation_alone(text):
    cleaned = clean_caption(text)
    assert clean_caption(cleaned) == cleaned == " ".join(cleaned.split())
    for i, letter in enumerate(cleaned):
        if letter == "'":
            assert cleaned[i + 1] in "sS" and (
                cleaned[i - 1].isalnum() or unicodedata.category(cleaned[i - 1])[0] == "M"
            )
        else:
            assert letter in " ,.?!" or unicodedata.category(letter)[0] in "LNM", repr(letter)
    assert not cleaned or any(letter.isalnum() for letter in cleaned)


PATTERNS = ("(", "(x)", "<a '", "<!--", "a.", "a@", "a@a.", "&amp", "amp;", " #", "?", "http://?", "[{(", "\u0301")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_text_takes_long(pattern):
    half = pattern * (LONGEST // 2 // len(pattern))
    for hostile in (half * 2, half + ")" * len(half), "x &" + half + "x"):
        start = time.process_time()
        clean_caption(hostile[:LONGEST])
        assert time.process_time() - start < 2


def test_a_longer_text_is_refused():
    with pytest.raises(ValueError, match="a caption of 10001 characters; at most 10000"):
        clean_caption("a" * (LONGEST + 1))


def test_a_caption_of_which_nothing_is_left_is_none():
    cleaner = CaptionCleaner()
    assert cleaner.clean("(all gone) https://x.org") is None
    assert cleaner.clean("it’s red!") == "it's red!"
