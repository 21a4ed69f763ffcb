from __future__ import annotations

import numpy as np
import pytest

from tests.core.evaluation.letters import LetterJudge
from tests.core.evaluation.points import PointFeatures, points, reference
from unidiff_core.evaluation.features import JudgeFeatures, LatentFeatures
from unidiff_core.evaluation.frechet import Frechet
from unidiff_core.evaluation.kernel import Kernel
from unidiff_core.evaluation.metric import Reference, Samples


def test_features_are_centred_scaled_and_computed_once_for_all_metrics():
    features, ref, raws = PointFeatures(), reference(), points(50, 3)
    for metric in (Frechet(features), Kernel(features)):
        metric.fit(ref)
    train = features.of("point", ref.train.distinct("point").raws["point"])
    assert np.abs(train.mean(axis=0)).max() < 1e-9 and (train**2).mean() == pytest.approx(1.0)
    before = features.computed
    assert features.of("point", raws) is features.of("point", raws) and features.computed == before + 1
    assert features.of("other", [""] * 3) is None and features.variants("other", [""] * 3) is None


def test_a_judges_features_are_of_the_modalities_that_it_reads():
    samples = Samples(
        {"upper": ["A1", "B2", "C3"], "lower": ["a1", "b2", "c3"]}, {"letter": list("abc"), "mark": list("!!?")}
    )
    features = JudgeFeatures(LetterJudge())
    features.fit_on(Reference(samples, samples))
    assert features.of("upper", ["A1"]).shape == (1, 2) and features.variants("upper", ["A1"]).shape == (1, 1, 2)
    assert features.of("lower", ["a1"]) is None and features.compute("sound", [""]) is None
    assert features.name == "features of LetterJudge"


def test_latents_are_those_of_the_codec_by_their_components():
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(6, 40))  # latents of 40 numbers that vary in 6 ways
    ref = reference(encode=lambda name, raws: np.array(raws) @ axes if name == "point" else np.zeros((len(raws), 2)))
    features = LatentFeatures(num_components=8)
    features.fit_on(ref)
    raws = points(20, 3)
    found = features.of("point", raws)
    assert found.shape == (20, 8)
    latents = np.array(raws) @ axes
    ratio = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(latents[0] - latents[1])
    assert np.linalg.norm(found[2] - found[7]) == pytest.approx(ratio * np.linalg.norm(latents[2] - latents[7]))
    with pytest.raises(ValueError, match="need a model whose codecs encode"):
        LatentFeatures().fit_on(reference())
