"""Thresholds, rescaling, gradients, intervals and empty conditions: against closed forms and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from tests.core.conftest import StepCodec
from tests.core.sampling.test_oracle import DOUBLE, oracle_of, repeated, run
from tests.core.tiny import make
from unidiff_core import Gradient, Modality, UniDiffuser
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.network.uvit import UViT
from unidiff_core.process.cold.process import Cold
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import ScaledLinear
from unidiff_core.process.masked.process import Masked
from unidiff_core.process.process import EstimateError
from unidiff_core.sampling.estimate import Threshold, rescaled, thresholded
from unidiff_core.sampling.guidance import Guidance, silence
from unidiff_core.sampling.loop import sample
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import SpecError, TimestepSpec

WIDE = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, 6).view(-1, 1, 1, 1)


# --- thresholds ---


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.995, 1.0])
def test_a_dynamic_threshold_equals_that_of_diffusers(scheduler, ratio):
    theirs = scheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=1e9)
    for x in (WIDE, WIDE.double()):
        assert torch.allclose(thresholded(x, 1.0, ratio), theirs._threshold_sample(x), atol=1e-6)
        # Data in another range: the same in its own unit.
        assert torch.allclose(thresholded(2.5 * x, 2.5, ratio), 2.5 * theirs._threshold_sample(x), atol=1e-6)


def test_a_static_threshold_equals_that_of_diffusers():
    theirs = DDPMScheduler(thresholding=True, sample_max_value=1.0)
    assert torch.allclose(thresholded(WIDE, 1.0, None), theirs._threshold_sample(WIDE), atol=1e-6)
    assert torch.equal(thresholded(WIDE, 1.5, None), WIDE.clamp(-1.5, 1.5))


def test_each_step_of_sampling_is_made_with_what_diffusers_scheduler_would_make_it_with():
    oracle, held = oracle_of(2), []
    theirs = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.75, sample_max_value=1e9)

    def watched(latents, times):
        held.append(3 * oracle(latents, times)["a.grid"])
        return {**latents, "a.grid": held[-1]}

    options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 5, "steps": 4, "solver": "ddim"}
    told = []
    sample(watched, "a", threshold=1.0, threshold_ratio=0.75, on_step=told.append, dtype=DOUBLE, **options)
    for report, clean in zip(told, held, strict=True):
        assert torch.allclose(report.clean["a.grid"], theirs._threshold_sample(clean), atol=1e-12)
        assert not torch.allclose(report.clean["a.grid"], clean, atol=0.01)


def test_a_threshold_is_of_what_is_solved_alone():
    oracle = oracle_of(3)
    b = 5 * oracle.draw(4)["b.vector"]
    got = run(oracle, "a, c | b", num=4, steps=3, supplied={"b.vector": b}, threshold={"a": 0.3})
    assert got["a.grid"].abs().max() <= 0.3 + 1e-9 and got["c.steps"].abs().max() > 0.3
    assert torch.equal(got["b.vector"], b)
    with pytest.raises(SpecError, match="a threshold is named for 'b', which a \\| b does not solve; solved: a"):
        run(oracle, "a | b", num=4, steps=3, supplied={"b.vector": b}, threshold={"b": 0.3})


def spec_of(text="a, b"):
    return TimestepSpec.parse(text, ["a", "b"])


def test_a_threshold_goes_to_numbers_and_says_so_of_symbols():
    processes = {"a": Gaussian(), "b": Masked(4)}
    logits, x = 9 * torch.randn(2, 3, 4), 9 * torch.randn(2, 5)
    got = Threshold(1.0).wrap(lambda *_: {"a.x": x, "b.ids": logits}, spec_of(), processes)({}, {})
    assert torch.equal(got["a.x"], x.clamp(-1, 1)) and got["b.ids"] is logits
    says = "a threshold is for estimates of numbers, and Masked estimates logits"
    for bound, spec in [({"b": 1.0}, spec_of()), (1.0, spec_of("b"))]:
        with pytest.raises(EstimateError, match=says):
            Threshold(bound).wrap(lambda *_: {}, spec, processes)


# --- rescaling ---


@pytest.mark.parametrize("prediction", ["noise", "velocity", "clean", "flow"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaled_guidance_equals_that_of_diffusers_in_what_the_network_predicts(prediction, share):
    process, t = Gaussian(ScaledLinear(), prediction), time_tensor(400, 6)
    generator = torch.Generator().manual_seed(1)
    x, plain, other = (torch.randn(6, 3, 4, 4, generator=generator, dtype=DOUBLE) for _ in range(3))
    guidance = Guidance.of(spec_of("a | b"), 4.0, rescale=share)

    def predictor(latents, times):
        said = plain if times["b"][0] == 0 else other
        return {"a.x": process.clean(latents["a.x"], said, times["a"]), "b.x": latents["b.x"]}

    def silenced(latents, times, names):
        return silence(latents, times, names, lambda key: latents[key])

    wrapped = guidance.wrap(predictor, {"a": process, "b": process}, silenced)
    got = wrapped({"a.x": x, "b.x": x}, {"a": t, "b": 0 * t})["a.x"]
    theirs = rescale_noise_cfg(other + 5 * (plain - other), plain, share)
    assert torch.allclose(process.prediction_of(x, got, t), theirs, atol=1e-9)


def test_rescaling_is_reachable_and_leaves_what_is_not_guided_alone():
    oracle = oracle_of(3)
    given = {"c.steps": oracle.draw(4)["c.steps"]}
    options = {"num": 4, "steps": 1, "solver": "ddim"}
    plain = run(oracle, "a, b | c", supplied=given, **options)
    guided = run(oracle, "a, b | c", supplied=given, guidance={"a": 4.0}, **options)
    got = run(oracle, "a, b | c", supplied=given, guidance={"a": 4.0}, guidance_rescale=0.7, **options)
    # One evaluation at T: the sample is the estimate itself, and the oracle's network predicts the clean value.
    assert torch.allclose(got["a.grid"], rescale_noise_cfg(guided["a.grid"], plain["a.grid"], 0.7), atol=1e-12)
    assert torch.equal(got["b.vector"], plain["b.vector"]) and not torch.allclose(got["a.grid"], guided["a.grid"])


def test_rescaling_is_of_means():
    spec, masked = spec_of("a | b"), {"a": Masked(4), "b": Gaussian()}
    with pytest.raises(EstimateError, match=r"guidance_rescale is for .* means, and Masked estimates logits; leave it"):
        Guidance.of(spec, 1.0, rescale=0.5).wrap(lambda *_: {}, masked, lambda *_: ({}, {}))
    Guidance.of(spec, 0.0, rescale=0.5).wrap(lambda *_: {}, masked, lambda *_: ({}, {}))  # nothing to take back
    x, t, logits = torch.zeros(2, 3, dtype=torch.int64), time_tensor(400, 2), torch.randn(2, 3, 4)
    process = {"a": Masked(4)}
    got = rescaled({"a.x": 3 * logits}, {"a.x": logits}, {"a.x": x}, {"a": t}, process, share=1.0)
    assert torch.equal(got["a.x"], 3 * logits)


# --- intervals ---


def test_an_interval_for_each_modality_is_a_sum_within_it_and_the_plain_estimate_outside():
    oracle = oracle_of(3)
    spec = TimestepSpec.parse({"a": [1, 0], "b": [[0, 0.8], [1, 0]], "c": 0}, "abc")
    options = SamplingOptions(guidance=2.0, guidance_interval={"a": (0.3, 0.7)})
    latents, silent = oracle.draw(3, seed=1), oracle.draw(3, seed=2)
    calls = []

    def counted(x, times):
        calls.append(times)
        return oracle(x, times)

    def silenced(x, times, names):
        return silence(x, times, names, lambda key: silent[key])

    wrapped = options.wrapped(counted, spec, oracle.processes, silenced)
    for a, b, is_on in [(0.9, 0.72, False), (0.5, 0.4, True), (0.5, 0.9, True), (0.2, 0.5, False)]:
        times = {name: time_tensor(T * t, 3) for name, t in (("a", a), ("b", b), ("c", 0))}
        plain, without = oracle(latents, times), oracle(*silenced(latents, times, {"c"}))
        got = wrapped(latents, times)
        assert torch.allclose(got["b.vector"], 3 * plain["b.vector"] - 2 * without["b.vector"], atol=1e-10)
        wanted = 3 * plain["a.grid"] - 2 * without["a.grid"] if is_on else plain["a.grid"]
        assert torch.allclose(got["a.grid"], wanted, atol=1e-10)
    calls.clear()
    both = SamplingOptions(guidance=2.0, guidance_interval={"a": (0.3, 0.7), "b": (0.0, 0.3)})
    wrapped = both.wrapped(counted, spec, oracle.processes, silenced)
    wrapped(latents, {name: time_tensor(T * t, 3) for name, t in (("a", 0.9), ("b", 0.72), ("c", 0))})
    assert len(calls) == 1  # outside of both it costs nothing


# --- a gradient ---


def classifier(oracle, b):
    """log p(b | a_t) of the exact joint Gaussian, up to a constant."""

    def log_probability(latents, times):
        rows = []
        for x in latents["a.grid"]:
            mean, covariance = oracle.conditional(["b.vector"], {"a.grid": x[None]}, {"a": times["a"][0].item()})
            gap = b.flatten() - mean[0]
            rows.append(-0.5 * gap @ torch.linalg.solve(covariance, gap))
        return torch.stack(rows)

    return log_probability


@pytest.mark.parametrize("schedule", [None, ScaledLinear()], ids=["flow", "scaled_linear"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_marginal_led_by_an_exact_classifier_is_the_guided_conditional(schedule, scale):
    """Bayes: ∇ log p(a|b) = ∇ log p(a) + ∇ log p(b|a), and a scale s is guidance s − 1."""
    oracle = oracle_of(2, schedule)
    b, x = oracle.draw(1, seed=4)["b.vector"], oracle.draw(5, seed=5)["a.grid"]

    def marginal(latents, times):
        known = {"a.grid": latents["a.grid"]}
        return {"a.grid": oracle.conditional(["a.grid"], known, {"a": times["a"][0].item()})[0].view_as(x)}

    wrapped = Gradient(classifier(oracle, b), scale).wrap(marginal, spec_of("a"), oracle.processes)
    for t in (1.0, 300.0, 990.0):
        times = {"a": time_tensor(t, 5), "b": time_tensor(0, 5)}
        plain = marginal({"a.grid": x}, times)["a.grid"]
        given = oracle({"a.grid": x, "b.vector": b.expand(5, 3)}, times)["a.grid"]
        got = wrapped({"a.grid": x}, times)["a.grid"]
        assert torch.allclose(got, plain + scale * (given - plain), atol=1e-8)
        assert t == 1 or not torch.allclose(got, plain, atol=1e-3)


def test_sampling_led_by_an_exact_classifier_is_sampling_of_the_conditional():
    oracle = oracle_of(2)
    b, states = oracle.draw(1, seed=4)["b.vector"], {"a.grid": oracle.draw(3, seed=5)["a.grid"]}
    options = {"num": 3, "steps": 8, "states": states}
    got = run(oracle, {"a": [0.95, 0]}, gradient=Gradient(classifier(oracle, b)), **options)
    want = run(oracle, {"a": [0.95, 0], "b": 0}, supplied={"b.vector": b.expand(3, 3)}, **options)
    assert torch.allclose(got["a.grid"], want["a.grid"], atol=1e-8)
    assert not torch.allclose(run(oracle, {"a": [0.95, 0]}, **options)["a.grid"], want["a.grid"], atol=0.05)


def test_a_gradient_at_t_where_nothing_of_the_data_is_left_moves_nothing():
    oracle = oracle_of(2)
    steep = Gradient(lambda latents, times: 1e6 * latents["a.grid"].flatten(1).sum(1))
    got = run(oracle, "a", num=2, steps=1, solver="ddim", gradient=steep)
    assert torch.equal(got["a.grid"], run(oracle, "a", num=2, steps=1, solver="ddim")["a.grid"])


def test_a_threshold_comes_after_guidance_and_gradient():
    oracle = oracle_of(2)
    steep = Gradient(lambda latents, times: 1e3 * latents["a.grid"].flatten(1).sum(1))
    clean = []
    options = {"num": 2, "steps": 4, "guidance": 5.0, "gradient": steep, "threshold": 1.0}
    given = repeated(oracle, "b", 2)
    run(
        oracle,
        {"a": [0.9, 0], "b": 0},
        states={"a.grid": oracle.draw(2)["a.grid"]},
        supplied=given,
        on_step=clean.append,
        **options,
    )
    found = torch.stack([step.clean["a.grid"] for step in clean])
    assert found.abs().max() == 1 and (found == 1).double().mean() > 0.9


def test_a_gradient_that_is_none_says_why():
    processes = {"a": Gaussian(), "b": Cold()}
    x, t = {"a.x": torch.zeros(2, 3), "b.x": torch.zeros(2, 3)}, {"a": time_tensor(500, 2), "b": time_tensor(500, 2)}

    def led(function, spec="a, b"):
        return Gradient(function).wrap(lambda latents, times: dict(latents), spec_of(spec), processes)(x, t)

    with pytest.raises(EstimateError, match="estimates of Gaussian noise, and Cold is another process"):
        led(lambda *_: torch.zeros(2), "b")
    with pytest.raises(ValueError, match=r"a tensor of one for each of 2 samples, not \(\)"):
        led(lambda latents, _: latents["a.x"].sum())
    with pytest.raises(ValueError, match=r"does not depend on a\.x"):
        led(lambda latents, _: latents["b.x"].sum(1))
    with pytest.raises(ValueError, match="log_probability is a function of states and times, not 3"):
        Gradient(3)
    moved = led(lambda latents, _: (latents["a.x"] + latents["b.x"]).sum(1))
    assert (moved["a.x"] != 0).all() and not moved["b.x"].any()


# --- an empty condition ---


class SaysNothing(StepCodec):
    """A codec with an empty sample: all −3."""

    def encode_empty(self):
        return self.encode([-3.0])


def test_guidance_from_an_empty_condition_is_guidance_away_from_it():
    torch.manual_seed(0)
    modalities = make().modalities | {"b": Modality(SaysNothing(4))}
    model = UniDiffuser(modalities, lambda ports: UViT(ports, width=16, depth=3, heads=2))
    options = {"num": 3, "steps": 3, "guidance": 2.0, "latents": True}
    got = model.sample("a | b", {"b": 0.5}, empty=" b", **options)["a.v"]
    away = model.sample("a | b", {"b": 0.5}, against={"b": -3.0}, **options)["a.v"]
    assert torch.allclose(got, away, atol=1e-6)
    assert not torch.allclose(got, model.sample("a | b", {"b": 0.5}, **options)["a.v"], atol=1e-4)
    # What is given to lead away from goes before; where the modality is not held there is nothing to empty.
    other = model.sample("a | b", {"b": 0.5}, against={"b": 1.0}, **options)["a.v"]
    assert torch.equal(model.sample("a | b", {"b": 0.5}, against={"b": 1.0}, empty="b", **options)["a.v"], other)
    assert torch.equal(model.sample("a, b", empty="b", **options)["a.v"], model.sample("a, b", **options)["a.v"])


def test_an_empty_condition_that_there_is_none_of_is_named():
    model = make()
    with pytest.raises(ValueError, match="StepCodec has no empty sample; lead away from a given value"):
        model.sample("a | b", {"b": 0.5}, empty="b")
    with pytest.raises(SpecError, match="unknown modality 'c' is to be empty; known: a, b"):
        model.sample("a | b", {"b": 0.5}, empty="c")
    with pytest.raises(SpecError, match="give its latents as `against`"):
        run(oracle_of(2), "a", num=1, empty="b")


# --- all of them together, and as text ---


def test_plain_data_says_all_of_them():
    rows = {"guidance": 3.0, "guidance_interval": [0.2, 0.8], "guidance_rescale": 0.7, "empty": "b", "threshold": 2,
            "threshold_ratio": 0.9}  # fmt: skip
    options = SamplingOptions.read(rows)
    model = make()
    model.sampling = SamplingOptions.read(rows | {"empty": None})
    got = model.sample("a | b", {"b": 0.5}, 2, steps=4, latents=True)["a.v"]
    plain = model.sample("a | b", {"b": 0.5}, 2, steps=4, latents=True, threshold=None, threshold_ratio=None)["a.v"]
    assert options.empty == "b" and got.abs().max() <= 2 and not torch.equal(got, plain)
    with pytest.raises(SpecError, match="'gradient' is no option of sampling"):
        SamplingOptions.read({"gradient": 1})
