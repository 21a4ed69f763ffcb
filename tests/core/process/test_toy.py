"""The process seam is real: one that core has never heard of is trained, distributed, sampled, guided, kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.core.process import toy
from unidiff_core import UniDiffuser
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.foundation.time import T
from unidiff_core.process.process import MixError
from unidiff_core.sampling.guidance import Guidance
from unidiff_core.sampling.loop import sample
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.training.law import Atoms

ROOT = Path(__file__).parents[3]
HIDDEN = toy.VOCABULARY


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy.register(monkeypatch)


@pytest.fixture(scope="module")
def trained():
    return toy.train(steps=150, timestep_law={"number": Atoms({0: 0.5})})[0].eval()


def test_it_learns_and_guidance_helps(trained):
    """150 steps of a tiny network: far above the third that guessing gets right."""
    given = {"number": [-1.0, 0.0, 1.0] * 60}
    right = {}
    for scale in (0.0, 2.0):
        words = trained.sample("word | number", given, steps=8, guidance=scale)["word"]
        assert all(set(word) <= set("012") for word in words)
        right[scale] = sum(word[0] == str(i % 3) for i, word in enumerate(words)) / len(words)
    print(f"first symbol right: {right}")
    assert right[0.0] > 0.5 and right[2.0] > right[0.0]


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """A folder with what two processes trained, under DDP and under FSDP2."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(ROOT / "tests/core/process/toy.py"), str(folder), "ddp", "fsdp2"],
        cwd=folder, capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", toy.PROCESSES)
def test_one_process_ddp_and_fsdp2_train_its_parameters_alike(distributed, name):
    """Also those of the process: under FSDP2 no gradient of theirs is left unreduced, and the ranks do not drift.

    Those of `Encoded` are used in `corrupt` and in `loss`: their gradient comes in two parts, at two times.
    """
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        begun = toy.make(process=name).state_dict()
        model, average, _ = toy.train(process=name)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = model.state_dict() | {f"ema/{name}": value for name, value in average.average.items()}
    owned = [key for key in begun if key.startswith("processes.")]
    assert owned and all(f"ema/{key}" in expected for key in owned)
    assert all((expected[key] - begun[key]).abs().max() > 1e-3 for key in owned)
    for strategy in ("ddp", "fsdp2"):
        both = [torch.load(distributed / f"{name}-{strategy}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for found in both:
            assert found.keys() == expected.keys()
            assert max((found[key] - value).abs().max().item() for key, value in expected.items()) < 1e-12
        assert all(torch.equal(value, both[1][key]) for key, value in both[0].items())


def test_states_are_symbols_all_the_way_and_held_ones_come_back_bit_for_bit(trained):
    words = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    seen = []
    got = trained.sample_latents(
        "number | word",
        {"word.ids": words},
        num=2,
        steps=4,
        on_step=lambda report: seen.append(report.latents["word.ids"]),
    )
    assert torch.equal(got["word.ids"], words) and all(x.dtype == torch.int64 for x in seen)
    half = trained.to(torch.bfloat16).sample_latents("number, word", {}, num=3, steps=4)["word.ids"]
    trained.float()
    assert half.dtype == torch.int64 and (half < HIDDEN).all()


def test_ignored_it_starts_as_the_process_says_and_stays(trained):
    got = trained.sample_latents("number", {}, num=3, steps=3)
    assert (got["word.ids"] == HIDDEN).all()


def test_jointly_each_process_steps_in_its_own_way_and_half_held_words_are_half_hidden(trained):
    got = trained.sample_latents("word, number", {}, num=64, steps=6)
    assert (got["word.ids"] < HIDDEN).all() and got["number.v"].isfinite().all()
    half = trained.sample_latents("number | word@0.5", {"word.ids": torch.zeros(64, 4, dtype=torch.int64)}, num=64)
    assert 0.35 < (half["word.ids"] == HIDDEN).double().mean() < 0.65


def test_samples_do_not_depend_on_the_batch(trained):
    whole = trained.sample("word, number", num=5, steps=5, batch_size=5)["word"]
    assert trained.sample("word, number", num=5, steps=5, batch_size=2)["word"] == whole


def test_guidance_mixes_logits_and_silences_by_the_processs_own_start(trained):
    states = []

    def spy(latents, times):
        states.append((latents["word.ids"].clone(), times["word"].clone()))
        return trained.predict(latents, times)

    options = {"processes": trained._processes, "shapes": trained.shapes, "num": 4, "steps": 1}
    words = torch.zeros(4, 4, dtype=torch.int64)
    sample(spy, "number | word", supplied={"word.ids": words}, guidance=2.0, **options)
    (held, at_0), (silent, at_end) = states
    assert torch.equal(held, words) and (at_0 == 0).all()
    assert (silent == HIDDEN).all() and (at_end == T).all()


def test_medians_refuse_guidance(trained, monkeypatch):
    monkeypatch.setattr(toy.Hide, "estimate", "median")
    with pytest.raises(MixError, match="a weighted sum of medians estimates nothing"):
        trained.sample("word | number", {"number": 0.0}, guidance=1.0)
    assert trained.sample("word | number", {"number": 0.0}, guidance=0.0, steps=2)["word"]


def test_a_solver_is_named_for_those_that_have_one(trained):
    both = trained.sample("word, number", num=2, steps=2, solver="ddim")
    assert both == trained.sample("word, number", num=2, steps=2, solver={"number": "ddim"})
    with pytest.raises(UnknownNameError, match="Hide has one way to step and takes no solver, such as 'ddim'"):
        trained.sample("word, number", num=2, steps=2, solver={"word": "ddim"})
    with pytest.raises(UnknownNameError, match="takes no solver"):
        trained.sample("word", num=2, steps=2, solver="ddim")


def test_dropping_leaves_its_tokens_out_in_training_and_in_sampling():
    model, _, _ = toy.train(drop_ignored=True)
    seen = []
    run = model.backbone.forward
    model.backbone.forward = lambda latents, times: seen.append(set(latents)) or run(latents, times)
    model.sample("number", num=2, steps=2, drop_ignored=True)
    assert seen == [{"number.v"}] * 2


def test_it_is_saved_and_loaded_with_its_parameters(tmp_path, trained):
    trained.save_pretrained(tmp_path / "run")
    assert "processes.word:process.prior" in load_file(tmp_path / "run/model.safetensors")
    back = UniDiffuser.from_pretrained(tmp_path / "run")
    assert isinstance(back.modalities["word"].process, toy.Hide)
    assert torch.equal(back.modalities["word"].process.prior, trained.modalities["word"].process.prior)
    assert back.sample("word", num=4, steps=4) == trained.sample("word", num=4, steps=4)


def test_a_sum_of_logits_is_a_product_of_distributions():
    process = toy.Hide()
    a, b = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    mixed = process.mix([a, b], [3.0, -2.0]).softmax(-1)
    by_hand = a.softmax(-1) ** 3 / b.softmax(-1) ** 2
    assert torch.allclose(mixed, by_hand / by_hand.sum(-1, keepdim=True), atol=1e-5)


def test_guidance_of_one_term_evaluates_once():
    spec = TimestepSpec.parse("word | number", ["word", "number"])
    assert Guidance.of(spec, 0.0).num_evaluations == 1 and Guidance.of(spec, 1.0).num_evaluations == 2
