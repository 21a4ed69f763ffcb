from __future__ import annotations

import pytest

from tests.core.evaluation.letters import Channel, LetterJudge, ThreeJudge, judged
from unidiff_core.evaluation.estimate import share
from unidiff_core.evaluation.frequencies import Frequencies
from unidiff_core.evaluation.labels import LabelMetric
from unidiff_core.evaluation.metric import Drawn, Reference, Samples


def test_a_noisy_channel_measures_as_what_it_is(settings):
    model = Channel(right=0.8)
    result = judged(model, settings)
    for name in ("upper | lower", "lower | upper", "upper, lower"):
        num_right = model.num_right[name.split(" | ")[0], "|" in name]
        assert 280 < num_right < 350
        assert result.queries[name]["letter"] == share(num_right, 400)
    assert result.queries["upper | lower"]["given_letter"].value == 1.0
    assert result.queries["lower | upper"]["tidy"].value == 1.0
    # Half of the captions name the mark; of those givens half are "!", which is all that the channel draws.
    assert result.queries["upper | lower"]["mark"].n == 200
    assert result.queries["upper | lower"]["mark"].value == 0.5
    # A drawn "lower" never names the mark, which it need not.
    assert "mark" not in result.queries["lower | upper"]
    assert {"letter_tv", "upper.letter_tv", "lower.letter_tv", "tidy", "nearest"} <= set(result.queries["upper, lower"])


def test_distribution_of_marginals(settings):
    metrics = judged(Channel(right=1.0), settings).queries["upper"]
    assert metrics["letter_tv"].low <= 0.15 <= metrics["letter_tv"].high
    assert metrics["mark_tv"].value == 0.5
    assert metrics["nearest"].value == 0.0  # "A5" is a whole step from every training sample


def test_judges_are_judged_on_what_is_stated(settings):
    judges = judged(Channel(), settings).judges
    assert judges["upper"]["letter"].value == 1.0 and judges["upper"]["mark"].n == 40
    assert judges["lower"]["mark"].n == 20


@pytest.fixture
def three():
    """Measures a query of three modalities: (estimates, faults)."""
    rows = [(letter, mark) for letter in "aabc" for mark in "!?"]
    raws = {
        "upper": [f"{letter.upper()}0{mark}" for letter, mark in rows],
        "lower": [f"{letter}0{mark}" for letter, mark in rows],
        "bare": [letter for letter, _ in rows],
    }
    samples = Samples(raws, {"letter": [row[0] for row in rows], "mark": [row[1] for row in rows]})
    judge, reference = ThreeJudge(), Reference(samples, samples)
    metrics = LabelMetric(judge), Frequencies(judge)
    for metric in metrics:
        metric.fit(reference)

    def measure(*drawn):
        labels, frequencies = (metric.measure(Drawn(*drawn), reference) for metric in metrics)
        return labels.estimates | frequencies.estimates, labels.faults

    return measure


def test_three_solved_agree_all_together_and_in_pairs(three):
    solved = {
        "upper": ["A0!", "A0!", "A0!", "B0?"],
        "lower": ["a0!", "a0?", "b0!", "b0?"],
        "bare": ["a", "a", "b", "x"],
    }
    metrics, _ = three({}, solved, {})
    values = {name: cell.value for name, cell in metrics.items() if not name.endswith(("_tv", "_least"))}
    assert values == {
        **{"letter": 0.5, "upper+lower.letter": 0.75, "upper+bare.letter": 0.5, "lower+bare.letter": 0.75},
        **{"mark": 0.75, "upper+lower.mark": 0.75, "tidy": 1.0},  # "bare" has no mark to agree on
    }
    tv = [metrics[f"{name}letter_tv"].value for name in ("", "upper.", "lower.", "bare.")]
    assert tv == [0.25] * 4  # of (0.75, 0.25, 0), (0.5, 0.5, 0) and (0.5, 0.25, 0 and 0.25 unread) to (0.5, 0.25, 0.25)
    assert "bare.mark_tv" not in metrics and metrics["mark_tv"].value == 0.25


def test_what_no_given_states_is_free_and_measured_as_a_distribution(three):
    metrics, _ = three({"bare": ["a", "b"]}, {"upper": ["A0!", "B0!"]}, {"letter": ["a", "b"], "mark": ["?", "?"]})
    values = {"letter": 1.0, "given_letter": 1.0, "lost_letter": 0.0, "mark_tv": 0.5, "mark_least": 0.0}
    assert {name: cell.value for name, cell in metrics.items()} == values


def test_several_givens_and_several_solved(three):
    known = {"letter": ["a", "b"], "mark": ["!", "?"]}
    given = {"lower": ["a0!", "b0?"], "bare": ["a", "b"]}
    metrics, faults = three(given, {"upper": ["A0!", "B0!"]}, known)
    assert {name: cell.value for name, cell in metrics.items() if "given" not in name} == {
        **{"letter": 1.0, "mark": 0.5},
        **{"lost_letter": 0.0, "lost_mark": 0.5},
    }
    assert metrics["lower.given_mark"].value == metrics["bare.given_letter"].value == 1.0 and set(faults) >= {"letter"}
    metrics, _ = three({"bare": ["a", "b"]}, {"upper": ["A0!", "C0!"], "lower": ["a0!", "b0?"]}, known)
    expected = {"upper.letter": 0.5, "lower.letter": 1.0, "letter": 0.5, "mark": 0.5}
    assert {name: metrics[name].value for name in expected} == expected


def test_labels_that_the_data_does_not_record_are_named():
    class Other(LetterJudge):
        labels = ("letter", "weight")

    samples = Samples({"upper": ["A1"]}, {"letter": ["a"]})
    with pytest.raises(ValueError, match="weight"):
        LabelMetric(Other()).fit(Reference(samples, samples))
