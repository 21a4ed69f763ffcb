"""A model of two modalities without pretrained networks, data made from nothing, and a quiet trainer."""

from __future__ import annotations

from functools import partial

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.core.conftest import NumberCodec, StepCodec
from unidiff_core import Modality, UniDiffuser
from unidiff_core.data.order import GlobalOrder, Place
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.uvit import UViT
from unidiff_core.training.learning_rate import Warmup


def make(balance="elements", weight=1.0, **options):
    torch.manual_seed(0)
    modalities = {"a": Modality(NumberCodec(), weight=weight), "b": Modality(StepCodec(4))}
    return UniDiffuser(
        modalities,
        partial(UViT, width=16, depth=3, heads=2),
        balance=balance,
        lr_scheduler=partial(Warmup, steps=2),
        **options,
    )


class Pairs(torch.utils.data.Dataset):
    """b = −a, made from nothing."""

    def __init__(self, size=64):
        x = torch.linspace(-1, 1, size)[:, None]
        self.stored = {"a.v": x.repeat(1, 3), "b.s": -x[:, None].repeat(1, 2, 4)}

    def __getitem__(self, place: Place):
        return Batch(place.index, place.step, {key: value[place.rows] for key, value in self.stored.items()})


def loader(batch_size=16, micro=None, first=0):
    order = GlobalOrder(64, batch_size, micro_batch_size=micro or batch_size, seed=0, rank=0, world=1, first_step=first)
    return DataLoader(Pairs(), sampler=order, batch_size=None)


def trainer(tmp_path, steps, callbacks=(), **options):
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **{"enable_checkpointing": False, "max_epochs": -1, "log_every_n_steps": 1} | options,
    )


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])
