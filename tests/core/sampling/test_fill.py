from __future__ import annotations

import pytest
import torch

from tests.core.conftest import NumberCodec
from unidiff_core import Modality, fill_in
from unidiff_core.process.gaussian.schedule import Flow
from unidiff_core.sampling.loop import sample
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.testing.oracle import GaussianOracle


class Oracle:
    """An exact model of three numbers, any of which may be given."""

    def __init__(self):
        self.modalities = {name: Modality(NumberCodec(1)) for name in "abc"}
        covariance = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, 0.1], [0.3, 0.1, 1.0]], dtype=torch.float64)
        self.covariance = covariance
        self.asked, self.sampling = [], SamplingOptions()
        shapes = {f"{name}.v": (1,) for name in self.modalities}
        self.oracle = GaussianOracle(shapes, torch.zeros(3, dtype=torch.float64), covariance, Flow())

    def encode(self, raws, *, seed=0, first_index=0):
        return {f"{name}.v": self.modalities[name].codec.encode(rows)["v"].double() for name, rows in raws.items()}

    def sample_latents(self, spec, supplied, *, num, options=None, **more):
        self.asked.append((str(spec), num, more["first_index"]))
        more = {"processes": self.oracle.processes, "shapes": self.oracle.shapes, "num": num, **more}
        return sample(self.oracle, spec, supplied=supplied, options=options, dtype=torch.float64, **more)

    def decode(self, latents, names):
        return {name: latents[f"{name}.v"][:, 0].tolist() for name in names}


def test_rows_that_lack_different_modalities_have_their_own_conditionals():
    model = Oracle()
    rows = [{"a": 1.0, "b": None}, {"b": -1.0, "c": 0.5}, {"a": 0.2, "b": 0.1, "c": 0.0}]
    filled = fill_in(model, rows, 600, steps=40, solver="ddpm")
    assert [sorted(row) for row in filled] == [["b", "c"], ["a"], []]
    assert model.asked == [("b, c | a", 600, 0), ("a | b, c", 600, 600)]  # as many samples as rows before have
    s = model.covariance
    means = torch.tensor([filled[0]["b"], filled[0]["c"]]).mean(1)
    assert torch.allclose(means.double(), s[1:, 0], atol=0.12)
    pull = s[0, 1:] @ torch.linalg.inv(s[1:, 1:]) @ torch.tensor([-1.0, 0.5], dtype=torch.float64)
    left = s[0, 0] - s[0, 1:] @ torch.linalg.inv(s[1:, 1:]) @ s[1:, 0]
    values = torch.tensor(filled[1]["a"]).double()
    assert abs(values.mean() - pull) < 0.1 and abs(values.var() - left) < 0.1


def test_other_rows_change_nothing_of_a_row():
    model = Oracle()
    rows = [{"a": 1.0}, {"b": -1.0}]
    both, changed = fill_in(model, rows, 3, steps=4), fill_in(model, [{"c": 2.0}, rows[1]], 3, steps=4)
    assert both[1] == changed[1] and both[0] != changed[0]


def test_a_row_of_what_is_no_modality():
    with pytest.raises(ValueError, match="row 1 has 'd', which is no modality; there are a, b, c"):
        fill_in(Oracle(), [{"a": 1.0, "b": 1.0, "c": 1.0}, {"d": 1.0}])


def test_what_is_not_said_is_as_the_model_says():
    model = Oracle()
    said = fill_in(model, [{"a": 1.0}], 3, steps=4, guidance=2.0, seed=5)
    model.sampling = SamplingOptions(steps=4, guidance=2.0, seed=1)
    assert fill_in(model, [{"a": 1.0}], 3, seed=5) == said
    assert fill_in(model, [{"a": 1.0}], 3, seed=5, guidance=0.0) != said
