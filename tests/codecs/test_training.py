from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from unidiff_codecs.text import TextCodec
from unidiff_codecs.training import CaptionData, ImageData, PairData, TextDecoderTraining
from unidiff_codecs.training.augmentation import augmented

from tests.codecs.conftest import fit
from unidiff_core.cli.fit_codec import run
from unidiff_core.cli.main import main
from unidiff_core.data.columns import Shuffled
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.shard import write_shards


def test_exports_hold_no_pickle(autoencoder, clip, text_decoder):
    for folder in (autoencoder, clip, text_decoder):
        endings = {path.suffix for path in folder.iterdir()}
        assert ".safetensors" in endings and endings <= {".safetensors", ".json", ".png", ".txt"}


def test_scaling_factor_makes_unit_latents(autoencoder):
    assert json.loads((autoencoder / "config.json").read_text())["scaling_factor"] != 0.18215
    assert (autoencoder / "reconstructions.png").is_file()


def test_held_out_captions_are_never_trained_on(shards):
    data = CaptionData(str(shards), holdout=0.3, repeats=3)
    data.setup()
    assert set(data.training.columns["text"]).isdisjoint(data.held_out.columns["text"])
    assert len(data.training) == 3 * len(set(data.training.columns["text"]))


def test_a_text_decoder_that_learns_words_keeps_its_latents(shards, clip, text_decoder, text_arguments, tmp_path):
    training = TextDecoderTraining(str(clip), pretrained=str(text_decoder), lr=1e-2)
    folder = fit(training, CaptionData(str(shards), batch_size=8, holdout=0.3), tmp_path / "taught")
    old, new = TextCodec(**text_arguments), TextCodec(**text_arguments | {"text_decoder": str(folder)})
    texts = ["a red one", "a peach two"]
    assert torch.equal(old.encode(texts)["states"], new.encode(texts)["states"])
    before, after = old._load_decoder().transformer, new._load_decoder().transformer
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_the_last_images_are_held_out(shards):
    data = PairData(str(shards), size=32, holdout=0.25)
    data.setup()
    assert (len(data.training), len(data.held_out)) == (36, 12)
    with pytest.raises(ValueError, match=r"no sample of .* has \.jpg and \.txt; its members are png, txt"):
        PairData(str(shards), size=32, image="jpg").setup()


def test_codecs_train_on_the_samples_that_have_what_they_need(shards, tmp_path):
    rows = list(read_shards(shards))
    for i, row in enumerate(rows):
        row.pop("txt" if i % 3 else "png")
    rows.append(rows[0] | {"__key__": "whole", **{key: value for key, value in rows[1].items() if key == "png"}})
    write_shards(tmp_path, rows)
    (tmp_path / "manifest.json").unlink()  # as others write them
    images = ImageData(f"{tmp_path}/*.tar", size=32, holdout=0.25)
    with pytest.warns(UserWarning, match=r"left out: 16 of 49 samples .* which lack \.png"):
        images.setup()
    assert len(images.training) + len(images.held_out) == 33 and set(images.training[[0, 1]]) == {"image"}
    captions = CaptionData(str(tmp_path), holdout=0.3)
    with pytest.warns(UserWarning, match=r"left out: 32 of 49 samples"):
        captions.setup()
    pairs = PairData(str(tmp_path), size=32)
    with pytest.warns(UserWarning, match=r"left out: 48 of 49"), pytest.raises(ValueError, match="too few"):
        pairs.setup()


def test_order_is_a_function_of_seed_and_epoch():
    order = Shuffled(10, 4, seed=0)
    first = list(order)
    assert list(order) == first and sorted(i for batch in first for i in batch) == list(range(10))
    order.set_epoch(1)
    assert list(order) != first


def test_augmentation_keeps_shape_and_flat_grounds():
    pixels = torch.full((3, 3, 16, 16), 0.25)
    torch.testing.assert_close(augmented(pixels, 1.0), pixels)
    assert augmented(pixels, 0) is pixels


@pytest.fixture
def arguments(shards, tmp_path):
    config = tmp_path / "ae.yaml"
    config.write_text(
        f"output: {tmp_path / 'ae'}\n"
        "model:\n  class_path: AutoencoderTraining\n"
        "  init_args: {channels: [4, 8], latent_channels: 2}\n"
        "data:\n  class_path: PairData\n"
        f"  init_args: {{folder: {shards}, size: 32, batch_size: 8, holdout: 0.2}}\n"
        "trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}\n"
    )
    return ["-c", str(config)]


def test_fit_codec_exports_once_and_on_request_again(arguments, tmp_path, capsys):
    run([*arguments, "--trainer.fast_dev_run=true"])
    assert not list(tmp_path.glob("ae*/*"))
    run(arguments)
    metrics = json.loads((tmp_path / "ae/metrics.json").read_text())
    assert metrics["latent_numbers"] == 2 * 16 * 16
    assert not (tmp_path / "ae.partial").exists()
    before = (tmp_path / "ae/config.json").stat().st_mtime_ns
    run(arguments)
    assert "complete; skipped" in capsys.readouterr().out
    run([*arguments, "--trainer.enable_model_summary=true"])
    assert "complete; skipped" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"another configuration: model\.kl was .*, is 0\.5\. Give"):
        run([*arguments, "--model.kl=0.5"])
    with pytest.raises(ValueError, match=r"trainer\.max_epochs was 1, is 2"):
        run([*arguments, "--trainer.max_epochs=2"])
    assert (tmp_path / "ae/config.json").stat().st_mtime_ns == before
    run([*arguments, "--model.kl=0.5", "--overwrite"])
    assert (tmp_path / "ae/config.json").stat().st_mtime_ns != before


def test_fit_codec_on_two_processes_exports_once(arguments, tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=2"]
    done = subprocess.run(
        [*command, "-m", "unidiff_core.cli.main", "fit-codec", *arguments, *options],
        cwd=root, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"{tmp_path / 'ae'}: ") == 1
    assert (tmp_path / "ae/metrics.json").is_file() and not (tmp_path / "ae.partial").exists()


def test_fit_codec_goes_on_from_the_last_epoch_after_a_signal(arguments, tmp_path, capsys, monkeypatch, heard):
    from unidiff_codecs.training import AutoencoderTraining

    arguments = ["fit-codec", *arguments, "--trainer.max_epochs=2"]
    train = AutoencoderTraining.training_step

    def interrupted(self, batch, *more):
        if self.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return train(self, batch, *more)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, "training_step", interrupted)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
    assert stop.value.code == 130
    said = capsys.readouterr()
    assert "only whole epochs are; the same command goes on from the last one" in said.err
    assert not (tmp_path / "ae").exists() and (tmp_path / "ae.partial/last.ckpt").is_file()
    main(arguments)
    assert "going on from" in capsys.readouterr().out and (tmp_path / "ae").is_dir()


def test_fit_codec_goes_on_after_an_interruption(arguments, tmp_path, capsys, monkeypatch):
    from unidiff_codecs.training import AutoencoderTraining

    def fail(self, folder, data):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, "export", fail)
        with pytest.raises(OSError, match="disk full"):
            run(arguments)
    assert not (tmp_path / "ae").exists() and (tmp_path / "ae.partial/last.ckpt").is_file()
    with pytest.raises(ValueError, match=r"an unfinished training of another configuration: .*kl was .*, is 0\.5"):
        run([*arguments, "--model.kl=0.5"])
    run([*arguments, "--trainer.max_epochs=2"])
    said = capsys.readouterr().out
    assert "goes on with other settings: trainer.max_epochs was 1, is 2" in said and "going on from" in said
    assert (tmp_path / "ae/diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.batch_size=0", "unidiffuser: batch_size is a whole number, at least 1, not 0."),
        ("--trainer.max_epochs=0", "no step was taken, so nothing is exported: trainer.max_epochs is 0"),
    ],
)
def test_fit_codec_exports_nothing_that_was_not_trained(arguments, tmp_path, capsys, option, said):
    with pytest.raises(SystemExit) as stop:
        main(["fit-codec", *arguments, option])
    assert stop.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "ae").exists()
