from __future__ import annotations

import numpy as np
import pytest

from tests.core.evaluation.points import PointFeatures, points, reference
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.metric import Drawn
from unidiff_core.evaluation.variety import Variety


class SideJudge(Judge):
    """On which side of 0 a point lies along the second axis."""

    labels = ("side",)
    modalities = ("point",)

    def fit(self, modality, raws, labels):
        """Nothing to learn."""

    def read(self, modality, raws):
        return {"side": ["-" if raw[1] < 0 else "+" for raw in raws]}


@pytest.mark.parametrize("judge", [None, SideJudge()])
def test_it_is_the_share_of_the_datas_variance_within_a_group(judge):
    metric, ref = Variety(PointFeatures(), judge), reference()
    metric.fit(ref)

    def variety(raws):
        return metric.measure(Drawn({}, {"point": list(raws)}, {}), ref).estimates["variety"]

    real = points(800, 3)
    assert variety(real).value == pytest.approx(1.0, abs=0.08)
    fixed = {side: next(raw for raw in real if (raw[1] < 0) == side) for side in (True, False)}
    same = variety([fixed[raw[1] < 0] for raw in real])
    assert same.value == pytest.approx(0.0, abs=1e-9) if judge else 0.1 < same.value < 0.9
    halves = [raw / np.sqrt(2) for raw in real]  # as averages of two of one group
    assert variety(halves).value == pytest.approx(0.5, abs=0.06)
    assert variety(halves).low < variety(halves).value < variety(halves).high < 0.65
