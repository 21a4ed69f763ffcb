"""The options of a sampling call: per modality where that makes sense, side inputs, and the report of each step."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch

from tests.core.conftest import NumberCodec
from unidiff_core import Batch, Modality, SamplingOptions, UniDiffuser
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.network.uvit import UViT
from unidiff_core.sampling.guidance import Guidance, Term
from unidiff_core.sampling.loop import sample
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.serialization.model_directory import load_weights
from unidiff_core.testing import GaussianOracle

SHAPES = {"a.v": (2,), "b.v": (3,)}


@pytest.fixture
def oracle():
    return GaussianOracle.random(SHAPES)


def run(oracle, spec, num=4, **options):
    options = {"steps": 6, "dtype": torch.float64} | options
    return sample(oracle, spec, processes=oracle.processes, shapes=oracle.shapes, num=num, **options)


def make(data_types=0):
    torch.manual_seed(0)
    modalities = {"a": Modality(NumberCodec()), "b": Modality(NumberCodec())}
    model = UniDiffuser(modalities, partial(UViT, width=16, depth=3, heads=2, data_types=data_types, position_std=0.5))
    if data_types:
        model.backbone.data_type.weight.data *= 100  # so that the types differ by more than rounding
    return model


def test_a_solver_for_each_modality(oracle):
    mixed = run(oracle, "a, b", solver={"a": "ddim", "b": "heun"})
    assert not torch.allclose(mixed["a.v"], run(oracle, "a, b", solver="dpmpp_2m")["a.v"])
    same = run(oracle, "a, b", solver={"a": "ddim", "b": "ddim"})
    assert all(torch.equal(value, same[key]) for key, value in run(oracle, "a, b", solver="ddim").items())
    default = run(oracle, "a, b", solver={"a": "dpmpp_2m"})
    assert all(torch.equal(value, default[key]) for key, value in run(oracle, "a, b").items())


def test_a_second_evaluation_is_made_only_where_a_solver_asks_for_it(oracle):
    calls = []

    def counted(latents, times):
        calls.append(times)
        return oracle(latents, times)

    options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 2, "steps": 5}
    sample(counted, "a, b", solver={"a": "ddim", "b": "heun"}, **options)
    assert len(calls) == 9  # a step that ends clean has nothing to correct
    calls.clear()
    sample(counted, "a", solver="ddim", **options)
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("solver", "error", "says"),
    [
        (
            "dimm",
            UnknownNameError,
            "unknown solver 'dimm'; known: DiffusersSolver, analytic, ddim, ddpm, dpmpp_2m",
        ),
        ({"c": "ddim"}, SpecError, "a solver is named for 'c', which a, b does not solve; solved: a, b"),
        ({"a": "dimm"}, UnknownNameError, "unknown solver 'dimm'"),
    ],
)
def test_a_wrong_solver_is_refused(oracle, solver, error, says):
    with pytest.raises(error, match=says):
        run(oracle, "a, b", solver=solver)


def test_a_guidance_scale_for_each_target():
    spec = TimestepSpec.parse("a, b", ["a", "b"])
    assert Guidance.of(spec, {"a": 2.0}).terms == {
        "a": (Term(3.0), Term(-2.0, frozenset({"b"}))),
        "b": (Term(1.0),),
    }
    held = TimestepSpec.parse("a | b", ["a", "b"])
    assert Guidance.of(held, {"a": 2.0}) == Guidance.of(held, 2.0) == Guidance.of(held, {"b": 2.0})
    with pytest.raises(SpecError, match="either to what it solves, a, or to what it holds, b"):
        Guidance.of(held, {"a": 1.0, "b": 1.0})


def test_each_step_is_reported_and_true_ends_the_sampling_there(oracle):
    reports = []
    whole = run(oracle, "a | b", supplied={"b.v": torch.zeros(4, 3)}, on_step=reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6] and reports[0].steps == 6
    assert reports[-1].times == {"a": 0.0, "b": 0.0} and reports[2].times["a"] == pytest.approx(0.5)
    assert torch.equal(reports[-1].latents["a.v"], whole["a.v"])
    assert torch.equal(reports[-1].clean["a.v"], whole["a.v"])  # the last step goes to the clean estimate
    early = run(oracle, "a | b", supplied={"b.v": torch.zeros(4, 3)}, on_step=lambda report: report.step == 3)
    assert torch.equal(early["a.v"], reports[2].latents["a.v"])


def test_nothing_is_drawn_that_nobody_asks_for(oracle, monkeypatch):
    from unidiff_core.foundation import randomness

    drawn, normal = [], randomness.normal
    monkeypatch.setattr(randomness, "normal", lambda *args: drawn.append(args[1:4]) or normal(*args))
    run(oracle, "a | b", supplied={"b.v": torch.zeros(4, 3)}, solver="heun")
    assert drawn == [("sample noise", "a.v", 0)]
    drawn.clear()
    run(oracle, "a | b", supplied={"b.v": torch.zeros(4, 3)}, guidance=1.0, solver="ddpm", steps=3)
    assert set(drawn) >= {("sample noise", "a.v", 0), ("sample noise", "b.v", 0), ("sample solver", "a.v", 0)}
    assert all(stream == "a.v" for purpose, stream, _ in drawn if purpose == "sample solver")


def test_conditions_reach_the_backbone_untouched_one_for_each_sample():
    model = make(data_types=2)
    curated = model.sample("a, b", num=4, steps=2)
    assert model.sample("a, b", num=4, steps=2, conditions={"data_type": 1}) == curated
    web = model.sample("a, b", num=4, steps=2, conditions={"data_type": 0})
    assert (
        min(abs(a - b) for a, b in zip(web["a"], curated["a"], strict=True)) > 1e-4
    )  # ten times what the samples may differ by
    mixed = model.sample("a, b", num=4, steps=2, batch_size=3, conditions={"data_type": torch.tensor([0, 1, 1, 1])})
    assert mixed["a"] == pytest.approx([web["a"][0], curated["a"][1], curated["a"][2], curated["a"][3]], abs=1e-5)
    guided = model.sample("a | b", {"b": 0.5}, num=2, steps=2, guidance=1.0, conditions={"data_type": 0})
    assert guided != model.sample("a | b", {"b": 0.5}, num=2, steps=2, guidance=1.0)


def test_an_unknown_condition_is_refused():
    with pytest.raises(SpecError, match="unknown condition 'data_type'; the backbone takes none"):
        make().sample("a", steps=1, conditions={"data_type": 0})
    with pytest.raises(SpecError, match="unknown condition 'kind'; the backbone takes data_type"):
        make(2).sample("a", steps=1, conditions={"kind": 0})
    with pytest.raises(SpecError, match="3 values of the condition 'data_type' are given for 2 samples"):
        make(2).sample("a", num=2, steps=1, conditions={"data_type": torch.zeros(3)})


def test_conditions_of_a_batch_are_trained_on():
    model, index = make(data_types=2), torch.arange(4)
    model.log = model.log_dict = lambda *_, **__: None
    stored = {"a.v": torch.zeros(4, 3), "b.v": torch.zeros(4, 3)}
    kinds = [{"data_type": torch.full((4,), kind)} for kind in (0, 1)]
    losses = [model.training_step(Batch(index, 0, stored, conditions=kind)) for kind in kinds]
    assert losses[1] == model.training_step(Batch(index, 0, stored)) and losses[0] != losses[1]


def test_python_may_give_the_options_whole_or_one_by_one():
    model, options = make(), SamplingOptions(steps=3, seed=5)
    assert model.sample("a", num=2, options=options) == model.sample("a", num=2, steps=3, seed=5)
    assert model.sample("a", num=2, options=options, seed=6) == model.sample("a", num=2, steps=3, seed=6)
    with pytest.raises(TypeError, match="stepz"):
        model.sample("a", stepz=3)
    with pytest.raises(ValueError, match="steps is a whole number, at least 1, not 0"):
        SamplingOptions(steps=0)


def test_the_command_line_has_every_option_that_text_can_say(capsys):
    from unidiff_core.cli.main import main
    from unidiff_core.sampling.options import PYTHON_ONLY

    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{row.name}" in text for row in fields(SamplingOptions) if row.name not in PYTHON_ONLY)


NAN = float("nan")
WRONG = [
    *[("steps", value, "steps is a whole number, at least 1, not") for value in (0, -1, 2.5, "3", NAN, None, True)],
    *[("batch_size", value, "batch_size is a whole number, at least 1, not") for value in (0, 2.5, "2")],
    *[("seed", value, "seed is a whole number, not") for value in ("1", 1.5, None)],
    *[("guidance", value, "guidance is a finite number, not") for value in ("2", NAN, None, [1])],
    ("guidance", {"b": "2"}, "the guidance of 'b' is a finite number, not '2'"),
    ("redraws_noise", "no", "redraws_noise is True or False, not 'no'"),
    ("drop_ignored", "no", "drop_ignored is True or False, not 'no'"),
    ("conditions", 3, "conditions is a mapping, name → value, not 3"),
    *[
        ("guidance_interval", value, r"the interval of guidance is \[from, up to\], fractions of T, not")
        for value in ((0.7, 0.3), [0.2], "ab", 0.5, (0, 2), ("0", "1"))
    ],
    ("guidance_interval", {"a": 0.5}, "the interval of guidance of 'a' is"),
    ("guidance_interval", {"b": (0.1, 0.9)}, r"an interval of guidance is named for 'b', which a \| b does not solve"),
    *[("guidance_rescale", value, "guidance_rescale is a number from 0 to 1, not") for value in (1.5, -1, "x", None)],
    *[("threshold", value, "the threshold is a finite number above 0, not") for value in (0, -1.0, "1", NAN)],
    ("threshold", {"a": None}, "the threshold of 'a' is a finite number above 0, not None"),
    ("threshold_ratio", 0.9, "threshold_ratio makes a threshold dynamic, and there is none"),
    ("threshold_ratio", 9, "threshold_ratio is a number from 0 to 1, not 9"),
    ("empty", ["b"], r"empty is names with commas between, not \['b'\]"),
    ("gradient", 3, "gradient is a Gradient of a log probability, not 3"),
    ("constrain", 3, "constrain is a function of latents and times, not 3"),
    *[("num", value, "num is a whole number, at least 1, not") for value in ("1", 2.5, 0, -1, NAN)],
    ("given", "text", "given is a mapping, modality → sample or samples, or stream → latents, not 'text'"),
    ("given", {"B": 0.5}, "unknown modality 'B' is given; did you mean b\\? Known: a, b"),
    ("given", {"b": None}, "'b' is given as None; NumberCodec takes a sample"),
    ("given", {"b": []}, "0 values of 'b' are given for 1 samples"),
    ("states", {"a": 1}, "the state of 'a' is a tensor"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_wrong_argument_from_python_is_named_with_its_value_and_what_is_allowed(name, value, says):
    with pytest.raises(ValueError, match=says):
        make().sample("a | b", **{"given": {"b": 0.5}, "num": 1} | {name: value})


def test_an_unknown_option_from_python_is_guessed():
    model = make()
    with pytest.raises(
        TypeError, match=r"sample\(\) takes no 'guidence'; did you mean guidance\? It takes steps, solver,"
    ):
        model.sample("a | b", {"b": 0.5}, guidence=2.0)
    with pytest.raises(TypeError, match=r"the options of sample\(\) are SamplingOptions, not {'steps': 2}"):
        model.sample("a | b", {"b": 0.5}, options={"steps": 2})


def test_numbers_of_numpy_are_numbers():
    assert len(make().sample("a", num=np.int64(2), steps=np.int64(2), guidance=np.float32(0))["a"]) == 2


def test_a_value_that_is_not_used_says_how_it_would_be():
    with pytest.raises(SpecError, match=r"at time 1 it is pure noise, whatever its value; \"a \| b\" holds it"):
        make().sample("a | b@1", {"b": 0.5})
    with pytest.raises(SpecError, match=r"'a' .* it is solved from pure noise; a@0\.6 starts from the value, noised"):
        make().sample("a | b", {"a": 0.5, "b": 0.5})


def test_latents_that_are_not_whole_are_named():
    with pytest.raises(SpecError, match=r"the value of 'b.v' is \(1, 3\) for 1 samples, and nothing is given"):
        make().sample_latents("a | b", {"b": torch.zeros(1, 3)}, num=1)


def test_weights_are_one_of_two(tmp_path):
    with pytest.raises(ValueError, match="weights are 'ema', the average, or 'model', the last ones, not 'emma'"):
        load_weights(make(), tmp_path, "emma")
