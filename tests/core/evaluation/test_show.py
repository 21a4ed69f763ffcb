"""Samples of a training as it goes: the same noise and givens each time, of the average, on a page and in loggers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from tests.core.group import in_group
from tests.core.tiny import Pairs, loader, make, trainer, weights
from unidiff_core.codec.waveform import Waveform, to_wav
from unidiff_core.data.module import Placed
from unidiff_core.data.order import GlobalOrder, InOrder
from unidiff_core.evaluation.show import ShowSamples, hand
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.training.ema import EMA


def validation():
    return DataLoader(Pairs(), sampler=InOrder(64, 8, rank=0, world=1), batch_size=None)


def shown(tmp_path, steps=6, callbacks=(), model=None, **options):
    """A run that shows samples at 0, every third step and the last; the module and the files."""
    options = {"queries": {"a | b": {"guidance": 1.0}, "a, b": {}}, "every_n_steps": 3, "num": 4, "steps": 3} | options
    model = model or make()
    show = ShowSamples(folder=str(tmp_path / "run"), **options)
    checks = {"num_sanity_val_steps": 0, "limit_val_batches": 1, "check_val_every_n_epoch": None}
    trainer(tmp_path, steps, [show, *callbacks], **checks, val_check_interval=2).fit(model, loader(), validation())
    return model, tmp_path / "run"


def test_samples_are_of_the_average_with_the_same_noise_and_givens_each_time(tmp_path):
    average = EMA(0.5)
    model, run = shown(tmp_path, callbacks=[average], steps=7)
    assert sorted(path.name for path in (run / "shown").glob("*.html")) == [f"{i:07d}.html" for i in (0, 3, 6, 7)]
    latents = model.latents(next(iter(validation())), "validation")
    with average.applied(model):
        expected = model.sample("a | b", {"b.s": latents["b.s"][:4]}, 4, steps=3, guidance=1.0, seed=0)["a"]
    found = [float(path.read_text()) for path in sorted((run / "shown/0000007/a_given_b/a").iterdir())]
    assert found == expected
    steps = [[path.read_text() for path in sorted((run / f"shown/{i:07d}/a_given_b/a").iterdir())] for i in (0, 3, 6)]
    assert steps[0] != steps[1] != steps[2]
    page = (run / "samples.html").read_text()
    assert re.findall(r"<h2>step (\d+)</h2>", page) == ["7", "6", "3", "0"] and page.count("<h3>") == 8
    assert page.count('class="given"') == 4 * 4 and f"<code>{expected[2]}</code>" in page


def test_what_a_query_does_not_say_is_as_the_model_says(tmp_path):
    model = make()
    model.sampling = SamplingOptions(guidance=3.0, steps=9, solver="ddpm")
    _, run = shown(tmp_path, steps=1, model=model, queries={"a | b": {}})
    latents = model.latents(next(iter(validation())), "validation")
    options = {"steps": 3, "guidance": 3.0, "solver": "ddpm", "seed": 0}  # its own number of steps
    expected = model.sample("a | b", {"b.s": latents["b.s"][:4]}, 4, **options)["a"]
    assert [float(path.read_text()) for path in sorted((run / "shown/0000001/a_given_b/a").iterdir())] == expected


def test_the_training_is_the_same_with_it_and_a_resumed_page_goes_on(tmp_path):
    model, run = shown(tmp_path)
    without = make()
    trainer(tmp_path, 6).fit(without, loader())
    assert torch.equal(weights(model), weights(without))
    first = (run / "shown/0000003.html").read_text()
    shown(tmp_path, steps=3)
    assert (run / "shown/0000003.html").read_text() == first, "the same step shows the same"


def test_all_processes_draw_the_same_queries_of_the_same_givens(tmp_path):
    """Of two, the second has nothing but padding to validate: what it left out, the first would wait for with FSDP2."""

    def shows(rank):
        samples = DataLoader(Placed(Pairs()), sampler=InOrder(4, 4, rank=rank, world=2), batch_size=None)
        assert bool(next(iter(samples)).present) == bool(rank)
        show = ShowSamples({"a | b": {}}, str(tmp_path / "run"), num=4, steps=1)
        order = GlobalOrder(64, 16, micro_batch_size=8, seed=0, rank=rank, world=2, first_step=0)
        train = DataLoader(Placed(Pairs()), sampler=order, batch_size=None)
        options = {"strategy": "ddp", "devices": 2, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
        trainer(tmp_path, 1, [show], **options).fit(make(), train, samples)
        return [(query.text, query.given["b.s"].tolist()) for query in show._plan]

    first, second = in_group(2, shows)
    assert first == second and [text for text, _ in first] == ["a | b"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queries": {"a | c": {}}}, r"ShowSamples, query 'a \| c': unknown modality 'c'"),
        ({"queries": {"a": {"stepz": 3}}}, r"ShowSamples, query 'a': .*stepz"),
        ({"queries": {"a": {"solver": "eiler"}}}, r"unknown solver 'eiler'"),
        ({"queries": {"a | b": {"given": {"b": "nowhere"}}}}, r"ShowSamples, query 'a \| b': no such file: nowhere"),
        ({"queries": {}}, "needs a query"),
    ],
)
def test_mistakes_show_before_the_first_step(tmp_path, options, says):
    model = make()
    model.training_step = lambda batch: pytest.fail("a step was made")
    with pytest.raises(ValueError, match=says):
        shown(tmp_path, model=model, **options)


def test_a_query_whose_givens_the_validation_data_lacks_is_left_out_with_a_warning(tmp_path, caplog):
    _, run = shown(tmp_path, steps=1, num=9)
    assert "leaves out 'a | b', which needs a b: the validation data gives none" in caplog.text
    assert "<code>a | b</code>" not in (run / "shown/0000001.html").read_text()


def test_what_is_given_may_be_written(tmp_path):
    (tmp_path / "half.num").write_text("0.5")
    queries = {"a | b": {"given": {"b": str(tmp_path / "half.num")}}}
    _, run = shown(tmp_path, steps=1, queries=queries, num=2)
    assert (run / "shown/0000001.html").read_text().count("<code>0.5</code>") == 2


# --- loggers ---


class Board:
    """As TensorBoard's writer is called."""

    def __init__(self):
        self.told = []

    def add_image(self, tag, image, step, dataformats):
        self.told.append((tag, image.shape, image.dtype.name, step, dataformats))

    def add_audio(self, tag, sound, step, sample_rate):
        self.told.append((tag, tuple(sound.shape), step, sample_rate))

    def add_text(self, tag, text, step):
        self.told.append((tag, text, step))


class BoardLogger:
    def __init__(self):
        self.experiment = Board()


class Wandb:
    """As Lightning's WandbLogger is called."""

    def __init__(self):
        self.told = []

    def log_image(self, key, images, step=None):
        self.told.append((key, images, step))

    log_audio = log_image

    def log_text(self, key, columns, data, step=None):
        self.told.append((key, columns, data, step))


def test_loggers_get_what_they_can_show(tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "0.wav", tmp_path / "texts.jsonl"]
    Image.new("L", (6, 4)).save(paths[0])
    paths[1].write_bytes(to_wav(Waveform(np.zeros(80), 8000)))
    board, wandb = BoardLogger(), Wandb()
    for logger in (board, wandb, CSVLogger(tmp_path), object()):
        hand(logger, "q/x", paths[:1], [None], 7)
        hand(logger, "q/y", paths[1:2], [None], 7)
        hand(logger, "q/z", paths[2:], ["a red one", [1.0]], 7)
    assert board.experiment.told == [
        ("q/x/0", (4, 6, 3), "uint8", 7, "HWC"),
        ("q/y/0", (1, 80), 7, 8000),
        ("q/z", "a red one\n\n[1.0]", 7),
    ]
    assert wandb.told == [
        ("q/x", [str(paths[0])], 7),
        ("q/y", [str(paths[1])], 7),
        ("q/z", ["sample"], [["a red one"], ["[1.0]"]], 7),
    ]
