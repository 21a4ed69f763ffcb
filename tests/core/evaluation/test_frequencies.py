from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.core.evaluation.letters import LetterJudge
from unidiff_core.evaluation.frequencies import Frequencies
from unidiff_core.evaluation.labels import LabelMetric
from unidiff_core.evaluation.metric import Drawn, Reference, Samples


class StyledJudge(LetterJudge):
    """Reads besides how a lower one ends, which no data records."""

    unrecorded = ("style",)

    def read(self, modality, raws):
        styles = [raw[-1] if modality == "lower" and raw[-1] in ".," else None for raw in raws]
        return {**super().read(modality, [raw.rstrip(".,") for raw in raws]), "style": styles}


def samples(rows):
    """Rows of (letter, mark, whether the lower one says the mark, style)."""
    raws = {
        "upper": [f"{a.upper()}0{mark}" for a, mark, _, _ in rows],
        "lower": [f"{a}0{mark if says else ''}{style}" for a, mark, says, style in rows],
    }
    return Samples(raws, {"letter": [row[0] for row in rows], "mark": [row[1] for row in rows]})


@pytest.fixture
def world():
    """Marks are "!" wherever the lower one leaves them out, and styles are even."""
    rows = [
        (a, "!" if not says else mark, says, style) for a, mark, says, style in product("abcd", "!?", (0, 1), ".,")
    ] * 20
    real = samples(rows)
    judge, ref = StyledJudge(), Reference(real, real)
    metric = Frequencies(judge)
    metric.fit(ref)
    return judge, ref, rows, lambda given, solved: metric.measure(Drawn(given, solved, {}), ref).estimates


def test_a_label_is_compared_where_it_is_free(world):
    _, ref, rows, measure = world
    unsaid = [i for i, row in enumerate(rows) if not row[2]]
    given = {"lower": ref.test.raws["lower"]}
    right = measure(given, {"upper": ref.test.raws["upper"]})
    assert right["mark_tv"].n == len(unsaid) and right["mark_tv"].value == 0.0
    wrong = [raw[:2] + "?" if i in set(unsaid) else raw for i, raw in enumerate(ref.test.raws["upper"])]
    assert measure(given, {"upper": wrong})["mark_tv"].value == 1.0
    assert "letter_tv" not in right  # every given states it


def test_pairs_are_compared_beside_their_margins(world):
    _, ref, _, measure = world
    letters = np.random.default_rng(0).choice(list("ABCD"), 400)
    marks = dict(zip("ABCD", "!?!!", strict=True))  # each letter with one mark alone
    found = measure({}, {"upper": [f"{letter}0{marks[letter]}" for letter in letters]})
    assert found["letter_tv"].low < 0.05 and found["letter+mark_tv"].low > 0.2
    assert measure({}, {"upper": ref.test.raws["upper"]})["letter+mark_tv"].value == 0.0


def test_a_missing_class_is_the_least_frequency(world):
    _, ref, _, measure = world
    few = [raw for raw in ref.test.raws["upper"] if raw[0] != "D"]
    found = measure({}, {"upper": few})
    assert found["letter_least"].value == 0.0 and found["letter_tv"].value == pytest.approx(0.25)
    both = measure({}, {"upper": few, "lower": ref.test.raws["lower"][: len(few)]})
    assert both["letter_least"].value == 0.0 == both["upper.letter_least"].value < both["lower.letter_least"].value


def test_how_a_thing_is_said_is_always_free(world):
    _, ref, _, measure = world
    given = {"upper": ref.test.raws["upper"]}
    assert measure(given, {"lower": ref.test.raws["lower"]})["style_tv"].value == 0.0
    alike = [raw[:-1] + "." for raw in ref.test.raws["lower"]]
    found = measure(given, {"lower": alike})
    assert found["style_tv"].value == 0.5 and found["style_least"].value == 0.0


def test_what_no_training_sample_says_is_measured_by_itself(world):
    """Letter and style of a given are new together, though each is known."""
    judge, _, rows, _ = world
    seen = samples([row for row in rows if (row[0], row[3]) != ("d", ",")])
    test = samples(rows)
    ref, metric = Reference(seen, test), LabelMetric(judge)
    metric.fit(ref)
    answers = [raw if raw[0] != "D" else "A0!" for raw in test.raws["upper"]]  # wrong of every d
    found = metric.measure(Drawn({"lower": test.raws["lower"]}, {"upper": answers}, test.labels), ref).estimates
    assert found["new_letter"].n == len(rows) // 8 and found["new_letter"].value == 0.0
    assert found["letter"].value == 0.75
    known = metric.measure(
        Drawn({"lower": seen.raws["lower"]}, {"upper": seen.raws["upper"]}, seen.labels), ref
    ).estimates
    assert "new_letter" not in known
    # The same as one of several captions of a training sample is no new one.
    others = {"lower": [raw for raw in test.raws["lower"] if raw[0] == "d" and raw[-1] == ","]}
    several = Reference(Samples(seen.raws, seen.labels, others=others), test)
    metric.fit(several)
    drawn = Drawn({"lower": test.raws["lower"]}, {"upper": answers}, test.labels)
    assert others["lower"] and "new_letter" not in metric.measure(drawn, several).estimates
