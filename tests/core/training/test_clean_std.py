"""The clean estimates' standard deviation is measured at validation, kept with the model, and used by name."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from tests.core.tiny import loader, make, trainer
from unidiff_core import UniDiffuser
from unidiff_core.serialization.description import ModelDirectoryError
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.clean_std import MeasureCleanStd
from unidiff_core.training.ema import EMA

pytestmark = pytest.mark.usefixtures("registered")


def held_out():
    return DataLoader(list(islice(loader(), 4)), batch_size=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model directory after a few steps, and its checkpoint beside it."""
    with pytest.MonkeyPatch.context() as patch:
        from tests.core.conftest import NumberCodec, StepCodec
        from unidiff_core import system
        from unidiff_core.foundation import plugin
        from unidiff_core.serialization import description, model_directory

        def with_ours(*args, load=plugin.load_plugins):
            registry = load(*args)
            registry.add(NumberCodec)
            registry.add(StepCodec)
            return registry

        for module in (model_directory, description, system):
            patch.setattr(module, "load_plugins", with_ours)
        folder = tmp_path_factory.mktemp("run")
        callbacks = [EMA(0.5), MeasureCleanStd(4), ModelDirectory(str(folder))]
        run = trainer(folder, 4, callbacks, val_check_interval=4, check_val_every_n_epoch=None)
        run.fit(make(), loader(), held_out())
        run.save_checkpoint(folder / "end.ckpt")
    return folder


def test_it_is_of_the_average_and_comes_back_with_the_model(folder):
    model = UniDiffuser.from_pretrained(folder)
    kept = model.clean_std
    assert set(kept) == {"a.v", "b.s"} and all(len(row.points) == 4 for row in kept.values())
    assert set(load_file(folder / "ema.safetensors")) == set(load_file(folder / "model.safetensors"))
    found = {}
    for weights in ("ema", "model"):
        model = UniDiffuser.from_pretrained(folder, weights=weights)
        model.measure_clean_std(held_out(), num_bins=4)
        found[weights] = [value for _, value in model.clean_std["a.v"].points]
    assert found["ema"] == pytest.approx([value for _, value in kept["a.v"].points], abs=2e-6)
    assert found["model"] != pytest.approx(found["ema"], abs=1e-4)


def test_it_is_the_root_mean_squared_error_of_the_clean_estimate(folder):
    """By hand, of the elements of one stretch of time."""
    model, batches, table = UniDiffuser.from_pretrained(folder), [next(iter(loader()))], {}
    seen = []
    network = model.network
    model.network = lambda latents, times, conditions: seen.append((latents, times)) or network(latents, times)
    model.measure_clean_std(batches, num_bins=4)
    (latents, times), table = seen[0], model.clean_std["b.s"]
    with torch.no_grad():
        estimate = latents["b.s"] - (times["b"] / 1000)[:, None, None].float() * network(latents, times)["b.s"]
    error = (estimate - model.latents(batches[0])["b.s"]).square().mean((1, 2))
    rows = (times["b"] > 500) & (times["b"] <= 750)
    point = next(row for row in table.points if 500 < row[0] <= 750)
    assert point == pytest.approx(
        (times["b"][rows].square().mean().sqrt().item(), error[rows].mean().sqrt().item()), rel=1e-5
    )


def test_it_is_used_by_name_and_kept_when_the_model_is_saved_again(folder, tmp_path):
    model = UniDiffuser.from_pretrained(folder)
    with_it = model.sample("a, b", num=3, steps=3, solver="analytic(1)")
    assert with_it != model.sample("a, b", num=3, steps=3, solver="ddpm")
    model.save_pretrained(tmp_path)
    again = UniDiffuser.from_pretrained(tmp_path)
    assert again.sample("a, b", num=3, steps=3, solver="analytic(1)") == with_it
    again.clean_std = {}
    again.save_pretrained(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="analytic needs"):
        UniDiffuser.from_pretrained(tmp_path).sample("a", steps=2, solver="analytic")


def test_training_forgets_it_and_a_resumed_run_goes_on_with_its_own(folder, tmp_path):
    started = UniDiffuser.from_pretrained(folder)
    trainer(tmp_path, 1).fit(started, loader())
    assert not started.clean_std
    resumed = make()
    callbacks = [EMA(0.5), MeasureCleanStd(4), ModelDirectory(str(tmp_path / "run"))]
    trainer(tmp_path, 4, callbacks).fit(resumed, loader(first=4), ckpt_path=folder / "end.ckpt", weights_only=True)
    assert (tmp_path / "run/clean_std.yaml").read_text() == (folder / "clean_std.yaml").read_text()


def test_missing_modalities_are_not_counted(folder):
    model, batch = UniDiffuser.from_pretrained(folder), next(iter(loader()))
    batch.present["a"] = torch.zeros(16, dtype=torch.bool)
    model.measure_clean_std([batch])
    assert set(model.clean_std) == {"b.s"}


def test_what_was_measured_is_refused_once_it_was_changed_or_lies_beside_another_model(folder, tmp_path):
    model = UniDiffuser.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    path, config = tmp_path / "clean_std.yaml", tmp_path / "config.yaml"
    rows = yaml.safe_load(path.read_text())
    note, lines = rows.pop("sha256"), next(iter(rows))
    assert UniDiffuser.from_pretrained(tmp_path).clean_std == model.clean_std
    changed = {**rows, lines: [[rows[lines][0][0], 9.0], *rows[lines][1:]]}
    for other in ({"sha256": note, **changed}, {"sha256": note, lines: rows[lines]}, {"sha256": f"0{note}", **rows}):
        path.write_text(yaml.safe_dump(other))
        with pytest.raises(ModelDirectoryError, match=r"not those that its SHA-256 is of"):
            UniDiffuser.from_pretrained(tmp_path)
    path.write_text(yaml.safe_dump(rows))  # as it was written before there were sums
    assert UniDiffuser.from_pretrained(tmp_path).clean_std == model.clean_std
    path.write_text(yaml.safe_dump({"sha256": note, **rows}))
    config.write_text(config.read_text().replace("weight: 1.0", "weight: 2.0", 1))
    with pytest.raises(ModelDirectoryError, match=r"clean_std\.yaml was measured with another config\.yaml"):
        UniDiffuser.from_pretrained(tmp_path)


def test_a_file_that_is_no_table_is_named(folder, tmp_path):
    UniDiffuser.from_pretrained(folder).save_pretrained(tmp_path)
    for text in (
        "[1, 2]",
        "a.v: [[0, 1]]",
        "a.v: 3",
        "a.v: [[x, y]]",
        "a: [b",
        "sha256:",
        "{}",
        "sha256:\na.v: [[1, 2]]",
    ):
        (tmp_path / "clean_std.yaml").write_text(text)
        with pytest.raises(ModelDirectoryError, match=r"clean_std\.yaml does not hold pairs of time and error"):
            UniDiffuser.from_pretrained(tmp_path)
    assert yaml.safe_load((folder / "clean_std.yaml").read_text())["a.v"][0][0] > 0
