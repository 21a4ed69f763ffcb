"""Half precision for sampling: the network computes in it, everything else does not."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.core.conftest import NumberCodec
from tests.core.tiny import make
from unidiff_core import Encoded, LabelCodec, Masked, Modality, UniDiffuser
from unidiff_core.cli.evaluate import _fingerprint
from unidiff_core.cli.main import main
from unidiff_core.cli.sample import run
from unidiff_core.foundation.finite import NonFiniteError
from unidiff_core.network.uvit import UViT

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def directory(tmp_path, registered):
    make().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("precision", TYPES)
def test_weights_are_in_it_and_states_and_samples_are_not(directory, precision):
    full, low = (UniDiffuser.from_pretrained(directory, precision=name) for name in ("fp32", precision))
    assert {value.dtype for value in low.backbone.parameters()} == {TYPES[precision]}
    seen = []
    low.backbone.register_forward_pre_hook(lambda _, inputs: seen.append({row.dtype for row in inputs[0].values()}))
    states = []
    options = {"num": 5, "steps": 4, "guidance": 1.0, "latents": True}
    got = low.sample("a | b", {"b": 0.5}, on_step=lambda step: states.append(step), **options)["a.v"]
    want = full.sample("a | b", {"b": 0.5}, **options)["a.v"]
    assert seen and all(row == {TYPES[precision]} for row in seen)
    assert all(row.dtype == torch.float32 for step in states for row in [*step.latents.values(), *step.clean.values()])
    error = ((got - want).norm() / want.norm()).item()
    assert got.dtype == torch.float32 and 1e-5 < error < {"bf16": 0.05, "fp16": 0.005}[precision]


@pytest.mark.parametrize("process", [Masked, Encoded])
def test_estimates_of_symbols_and_processes_are_in_single_precision_too(process, tmp_path, registered):
    torch.manual_seed(0)
    modalities = {"word": Modality(LabelCodec(["one", "two", "three"]), process()), "a": Modality(NumberCodec())}
    UniDiffuser(modalities, partial(UViT, width=16, depth=3, heads=2)).save_pretrained(tmp_path)
    model = UniDiffuser.from_pretrained(tmp_path, precision="bf16")
    told = []
    got = model.sample("word, a", num=3, steps=3, latents=True, on_step=lambda step: told.append(step.clean))
    assert got["a.v"].dtype == torch.float32
    assert all(row.dtype == torch.float32 for clean in told for row in clean.values())
    assert all(value.dtype == torch.float32 for value in model.processes.parameters())
    assert len([*model.processes.parameters()]) == (2 if process is Encoded else 0)


def test_it_is_kept_by_a_model_directory(directory, tmp_path):
    low = UniDiffuser.from_pretrained(directory, precision="bf16")
    low.save_pretrained(tmp_path / "low")
    again = UniDiffuser.from_pretrained(tmp_path / "low")
    for mine, its in zip(again.parameters(), low.parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, its.float())


def test_numbers_that_are_too_large_for_fp16_are_told(directory):
    model = UniDiffuser.from_pretrained(directory)
    with torch.no_grad():
        model.backbone.tokens_of("a.v").head.bias.fill_(6e4)
        model.backbone.tokens_of("a.v").head.weight[:] = torch.where(torch.arange(16) < 8, 6e4, -6e4)
    model.save_pretrained(directory, overwrite=True)
    half = UniDiffuser.from_pretrained(directory, precision="fp16")
    with pytest.raises(NonFiniteError, match=r"a\.v is not finite: the network's numbers are too large for fp16"):
        half.sample("a", num=2, steps=2)
    with torch.no_grad():
        model.backbone.tokens_of("a.v").head.weight.fill_(1e6)
    model.save_pretrained(directory, overwrite=True)
    half = UniDiffuser.from_pretrained(directory, precision="fp16")
    with pytest.raises(NonFiniteError, match=r"head\.weight for one: too large for fp16; take bf16"):
        half.sample("a", num=2, steps=2)
    UniDiffuser.from_pretrained(directory, precision="bf16").sample("a", num=2, steps=2)


def test_the_commands_take_it(directory, tmp_path, capsys):
    run([str(directory), "a", "--num=3", "--steps=3", "--precision=bf16", f"--out={tmp_path / 'out'}"])
    found = [float(path.read_text()) for path in sorted((tmp_path / "out/a").iterdir())]
    assert found == UniDiffuser.from_pretrained(directory, precision="bf16").sample("a", num=3, steps=3)["a"]
    assert found != UniDiffuser.from_pretrained(directory).sample("a", num=3, steps=3)["a"]
    for command in ("sample", "vary", "chain", "evaluate"):
        with pytest.raises(SystemExit) as exit:
            main([command, str(directory), *["a"] * (command != "evaluate"), "--precision=half"])
        said = " ".join(capsys.readouterr().err.split())
        assert exit.value.code == 2 and "precision: it must be fp32, bf16 or fp16, not 'half'" in said, said
    with pytest.raises(ValueError, match="a precision is fp32, bf16, fp16, not 'half'"):
        UniDiffuser.from_pretrained(directory, precision="half")


def test_an_evaluation_keeps_draws_of_each_precision_apart(directory):
    found = {_fingerprint(directory, "ema", precision) for precision in ("fp32", "bf16", "fp16")}
    assert len(found) == 3 and _fingerprint(directory, "ema") in found
