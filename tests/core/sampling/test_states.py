"""What a path may start from and go through besides: given states, fresh noise on the way up, another condition."""

from __future__ import annotations

import pytest
import torch

from tests.core.sampling.test_oracle import assert_distributed, oracle_of, run
from tests.core.tiny import make
from unidiff_core.foundation.time import T
from unidiff_core.sampling.call import latents_of
from unidiff_core.sampling.loop import sample, time_grid
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec

RENOISED = {"renoise": [[0, 1], [0.5, 0], [0.6, 0.4], [1, 0]]}


def test_an_inversion_is_supplied_again_and_comes_back():
    oracle = oracle_of(2)
    data = oracle.draw(50, seed=7)
    up = run(oracle, {"a": [0, 1], "b": 0}, num=50, supplied=data, steps=50)
    states, given = {"a.grid": up["a.grid"]}, {"b.vector": data["b.vector"]}
    down = run(oracle, {"a": [1, 0], "b": 0}, num=50, supplied=given, states=states, steps=50)
    assert (down["a.grid"] - data["a.grid"]).norm() / data["a.grid"].norm() <= 1e-3
    other = run(oracle, {"a": [1, 0], "b": 0}, num=50, supplied=given, steps=50)
    assert not torch.allclose(other["a.grid"], down["a.grid"], atol=0.1)


@pytest.mark.parametrize(("solver", "order"), [("dpmpp_2m", 2), ("heun", 2), ("ddim", 1)])
def test_an_inversion_has_its_solvers_order_under_a_network_that_sees_noise_at_0(solver, order):
    """A network is never sure that there is no noise at 0; an exact estimate is, and hides what that costs."""
    oracle = oracle_of(2)
    data = {key: value for key, value in oracle.draw(20, seed=7).items() if key == "a.grid"}

    def biased(latents, times):
        sigma = oracle.schedule.sigma(times["a"].double())[:, None, None, None]
        clean = oracle(latents, times)
        return clean | {"a.grid": clean["a.grid"] - sigma * torch.sin(3 * latents["a.grid"])}

    def error(steps):
        options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 20, "dtype": torch.float64}
        options |= {"solver": solver, "steps": steps}
        up = sample(biased, {"a": [0, 1]}, supplied=data, **options)
        down = sample(biased, {"a": [1, 0]}, states={"a.grid": up["a.grid"]}, **options)
        return ((down["a.grid"] - data["a.grid"]).norm() / data["a.grid"].norm()).item()

    found = error(100), error(200)
    assert found[0] / found[1] >= 0.8 * 2**order, found
    assert order == 1 or found[0] <= 1e-3


def test_a_wrong_state_is_refused():
    oracle = oracle_of(2)
    with pytest.raises(SpecError, match=r"given of 'b', which a does not solve"):
        run(oracle, "a", num=2, states={"b.vector": torch.zeros(2, 3)})
    with pytest.raises(SpecError, match=r"state of 'a\.grid' is \(2, 1, 2, 2\) for 2 samples, and \(2, 3\)"):
        run(oracle, "a", num=2, states={"a.grid": torch.zeros(2, 3)})


def test_fresh_noise_on_the_way_up_keeps_the_law_and_costs_nothing():
    oracle, calls = oracle_of(2), []
    mean, covariance = oracle.conditional(["a.grid"], {})
    got = run(oracle, {"a": RENOISED}, num=4000, steps=60)
    assert_distributed(got["a.grid"].flatten(1), mean[0], covariance)
    short = run(oracle, {"a": [[0, 1], [1, 0]]}, num=4000, steps=60)
    assert (got["a.grid"] - short["a.grid"]).std() > 0.1
    spec = TimestepSpec.parse({"a": RENOISED}, "ab")
    assert [len(row) - 1 for row in time_grid(spec, 20)] == [10, 1, 9]  # 17 to share, 5 to 4: 9.44 and 7.56

    def counted(latents, times):
        calls.append(times["a"][0].item() / T)
        return oracle(latents, times)

    options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 2, "steps": 20, "solver": "ddim"}
    sample(counted, spec, **options)
    assert len(calls) == 19


def test_guidance_away_from_a_given_equals_its_closed_form():
    """One evaluation at T with DDIM to 0: the sample is the guided clean estimate itself."""
    oracle = oracle_of(2)
    good, bad = ({"b.vector": oracle.draw(1, seed=i)["b.vector"].expand(3, 3)} for i in (1, 2))
    options = {"num": 3, "steps": 1, "solver": "ddim"}
    plain, avoided = (run(oracle, "a | b", supplied=row, **options)["a.grid"] for row in (good, bad))
    got = run(oracle, "a | b", supplied=good, against=bad, guidance=1.5, **options)["a.grid"]
    assert torch.allclose(got, 2.5 * plain - 1.5 * avoided, atol=1e-10)
    assert not torch.allclose(got, run(oracle, "a | b", supplied=good, guidance=1.5, **options)["a.grid"], atol=0.1)


def test_silenced_modalities_are_redrawn_at_each_evaluation_where_that_is_asked_for():
    oracle = oracle_of(2)
    for redraws, distinct in [(False, 1), (True, 7)]:
        seen = []

        def watched(latents, times, seen=seen):
            if times["b"][0] == T:
                seen.append(latents["b.vector"].sum().item())
            return oracle(latents, times)

        options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 2, "steps": 4, "solver": "heun"}
        given = {"b.vector": oracle.draw(2)["b.vector"]}
        sample(watched, "a | b", supplied=given, guidance=1.0, redraws_noise=redraws, **options)
        assert len(seen) == 7 and len(set(seen)) == distinct


def test_a_model_takes_and_returns_latents():
    model = make()
    model.sampling = SamplingOptions(steps=2, guidance=1.0)
    said = latents_of(model, "a", {}, 2, steps=2, guidance=1.0)
    assert torch.equal(latents_of(model, "a", {}, 2)["a.v"], said["a.v"])
    model.sampling = SamplingOptions()
    latents = model.sample("b | a", {"a": [0.1, 0.2, 0.3]}, steps=2, latents=True, batch_size=2)
    assert {key: tuple(value.shape) for key, value in latents.items()} == {"b.s": (3, 2, 4)}
    assert (
        len(model.sample("a | b", {key: (value + value.flip(0)) / 2 for key, value in latents.items()}, steps=2)["a"])
        == 3
    )
    decoded = model.sample("b | a", {"a": [0.1, 0.2, 0.3]}, steps=2, batch_size=2)
    assert model.decode(latents, ["b"]) == decoded
    with pytest.raises(SpecError, match=r"'b\.s' is given as"):
        model.sample("a | b", {"b.s": torch.zeros(1, 3)}, steps=2)
