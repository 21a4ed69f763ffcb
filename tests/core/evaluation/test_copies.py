from __future__ import annotations

import numpy as np

from tests.core.evaluation.points import DIMENSIONS, PointFeatures, measured, points, reference
from unidiff_core.evaluation.copies import Copies
from unidiff_core.evaluation.metric import Drawn


def test_new_samples_are_few_and_copies_are_most():
    metric, ref = Copies(PointFeatures()), reference()
    train = ref.train.raws["point"]
    rng = np.random.default_rng(5)
    assert measured(metric, points(400, 3), ref)["copied"].value < 0.1
    assert measured(metric, points(400, 3, spread=0.5), ref)["copied"].value < 0.15  # nearer to everything, and new
    assert measured(metric, train, ref)["copied"].value == 1.0
    assert measured(metric, [raw + np.eye(DIMENSIONS)[0] for raw in train], ref)["copied"].value == 1.0
    assert measured(metric, [raw + rng.normal(0, 0.1, DIMENSIONS) for raw in train], ref)["copied"].low > 0.9
    some = [new if i % 4 else raw for i, (new, raw) in enumerate(zip(points(400, 3), train, strict=True))]
    assert 0.2 < measured(metric, some, ref)["copied"].value < 0.4


def test_references_pass_through_the_codec():
    """A copy that the codec moved far is a copy all the same."""

    def reconstruct(name, raws):
        return [raw + 10.0 for raw in raws]

    seen = reference(reconstruct=reconstruct)
    moved = reconstruct("point", seen.train.raws["point"])
    assert measured(Copies(PointFeatures()), moved, seen)["copied"].value == 1.0
    new = reconstruct("point", points(400, 3))
    assert measured(Copies(PointFeatures()), new, seen)["copied"].value < 0.1


def test_the_likest_samples_are_shown_beside_what_they_are_like():
    """Also where it is the codec's version of a training sample that they are like."""
    metric, ref = Copies(PointFeatures()), reference(reconstruct=lambda name, raws: [raw + 10.0 for raw in raws])
    metric.fit(ref)
    train = ref.train.raws["point"]
    copies = [train[7], train[300] + 10.0, train[40] + np.eye(DIMENSIONS)[0]]
    found = metric.measure(Drawn({}, {"point": points(200, 3) + copies}, {}), ref).pairs["point"]
    assert len(found) == 6 and [pair.ratio for pair in found] == sorted(pair.ratio for pair in found)
    shown = {next(i for i, raw in enumerate(train) if raw is pair.nearest): pair for pair in found[:3]}
    assert set(shown) == {7, 300, 40} and all(pair.is_suspicious and pair.ratio < 0.01 for pair in found[:3])
    assert shown[300].sample is copies[1]


def test_too_few_real_samples_say_nothing():
    assert measured(Copies(PointFeatures()), points(40, 3), reference(test=10)) == {}
