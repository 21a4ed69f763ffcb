"""A mark that was found: the bound on false positives, against scipy's binomial and against marks drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tests.core.conftest import NumberCodec
from unidiff_core.codec.mark import Mark


@pytest.mark.parametrize(("bits", "needed", "places"), [(32, 30, 1), (64, 52, 2048), (8, 8, 3), (8, 0, 1), (5, 3, 100)])
def test_the_bound_is_the_binomial_tail_at_every_place(bits, needed, places):
    found = Mark(needed, bits, needed, places)
    assert found.false_positive == pytest.approx(min(1, places * binom.sf(needed - 1, bits, 0.5)), rel=1e-9)
    assert found.is_there and not Mark(needed - 1, bits, needed, places).is_there


def test_marks_drawn_at_random_are_found_in_one_sample_no_more_often_than_the_bound_says():
    rng = np.random.default_rng(0)
    bits, num = 12, 20_000
    read = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1], bool)  # of any sample: all but black, say
    places = np.stack([np.roll(read, turn) for turn in range(bits)])  # and what is read there is far from independent
    matched = (rng.integers(0, 2, (num, 1, bits), dtype=np.uint8) == places).sum(-1).max(-1)
    for needed in (9, 10, 11, 12):
        share, bound = (matched >= needed).mean(), Mark(0, bits, needed, bits).false_positive
        assert share <= bound + 3 * (bound / num) ** 0.5, needed
    assert (matched >= 11).mean() > Mark(0, bits, 11, bits).false_positive / 4  # no idle bound


def test_a_codec_marks_nothing_unless_it_says_so():
    assert not NumberCodec.marks
    with pytest.raises(NotImplementedError, match="NumberCodec marks nothing"):
        NumberCodec.find_mark(b"0")
