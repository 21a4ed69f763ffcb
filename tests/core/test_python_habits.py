"""What people do with a model in Python, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.tiny import make, trainer
from unidiff_core import UniDiffuser
from unidiff_core.training.checkpoint import ModelDirectory

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def model():
    return make().eval()


@pytest.fixture(scope="module")
def latents(model):
    return model.sample("a, b", num=2, latents=True, steps=2)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_model_is_not_written_over_another_unasked(model, tmp_path):
    model.save_pretrained(tmp_path, average=dict(model.state_dict()), training={"step": 7, "checkpoint": "last.ckpt"})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds a model already, whose weights, average and measurements would"):
        UniDiffuser.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    model.save_pretrained(tmp_path, overwrite=True)
    assert "ema.safetensors" not in contents(tmp_path)


def test_a_strangers_configuration_is_never_written_over(model, tmp_path):
    (tmp_path / "config.yaml").write_text("my: config\n")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"config\.yaml is not a model's"):
            model.save_pretrained(tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match=r"config\.yaml is not a model's"):  # before the first step
        ModelDirectory(str(tmp_path)).setup(trainer(tmp_path, 1), model, "fit")
    assert contents(tmp_path) == {"config.yaml": b"my: config\n"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: {}, "the latents of 'a.v' are lacking"),
        (lambda rows: {key: row * float("nan") for key, row in rows.items()}, "'a.v' are not finite"),
        (lambda rows: {key: row[0] for key, row in rows.items()}, r"'a.v' is given as \(3,\)"),
        (lambda rows: {key: row[..., :1] for key, row in rows.items()}, r"'a.v' is given as \(2, 1\)"),
        (lambda rows: {key: row.tolist() for key, row in rows.items()}, "'a.v' is given as list"),
    ],
)
def test_latents_that_cannot_be_decoded_are_named(model, latents, change, said):
    with pytest.raises(ValueError, match=said):
        model.decode(change(latents), ["a"])


def test_one_name_is_a_name_and_an_unknown_one_is_told(model, latents):
    assert len(model.decode(latents, "a")["a"]) == 2
    for call in (lambda: model.decode(latents, "c"), lambda: model.codec("c"), lambda: model.encode({"c": [1.0]})):
        with pytest.raises(ValueError, match="unknown modality 'c'; known: a, b"):
            call()


def test_what_is_given_is_finite_and_of_one_length(model, latents):
    given = {key: row for key, row in latents.items() if key.startswith("a")}
    with pytest.raises(ValueError, match=r"6 of 6 numbers of the latents of 'a\.v' are not finite"):
        model.sample("b | a", {key: row * float("inf") for key, row in given.items()}, steps=2)
    with pytest.raises(ValueError, match="there are 1 of a, 2 of b"):
        model.encode({"a": [1.0], "b": [1.0, 2.0]})


def test_a_device_that_is_not_there_leaves_the_model_as_it_was(model, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", fails)
    with pytest.raises(RuntimeError, match="no such device"):
        model.to("cuda")
    monkeypatch.undo()
    assert model.device.type == "cpu" and len(model.sample("a", steps=2)["a"]) == 1


def fails(*arguments, **options):
    raise RuntimeError("no such device")


def test_lightnings_way_to_load_names_ours(model, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.6"}, path)
    with pytest.raises(ValueError, match=r"from_pretrained\(folder\) opens a trained one"):
        UniDiffuser.load_from_checkpoint(path)
