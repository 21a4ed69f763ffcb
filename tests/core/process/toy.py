"""A process of another kind than Gaussian noise, written as a stranger would: it hides symbols and guesses them back.

It is nothing that core knows: integer states, uniform draws, a reverse step of its own, a weight in its loss, a view,
parameters of its own. Run as a script it trains beside a Gaussian modality: ``torchrun … toy.py STRATEGY… FOLDER``.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.core.conftest import NumberCodec
from unidiff_core import Batch, Codec, Corruption, ForwardProcess, Modality, Stream, UniDiffuser, hookimpl, system
from unidiff_core.data.order import GlobalOrder
from unidiff_core.foundation import plugin
from unidiff_core.foundation.distributed import gathered
from unidiff_core.foundation.time import T
from unidiff_core.network.uvit import UViT
from unidiff_core.process.encoded.process import Encoded
from unidiff_core.serialization import description, model_directory
from unidiff_core.training.ema import EMA
from unidiff_core.training.fsdp import FSDP2
from unidiff_core.training.learning_rate import Warmup

LENGTH, VOCABULARY, SIZE, STEPS = 4, 3, 32, 2


@dataclass(frozen=True)
class Hiding(Corruption):
    """What was hidden, for the loss."""

    is_hidden: Tensor


class Hide(ForwardProcess):
    """Each symbol is hidden with probability t/T; the network guesses what is hidden.

    Args:
        vocabulary: number of symbols; the one above them stands for what is hidden.
    """

    estimate = "logits"

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.prior = nn.Parameter(torch.zeros(vocabulary))

    leak = 0.0

    def seen(self, stream):
        return Stream.symbols(*stream.shape, vocabulary=self.vocabulary + 1)

    def predicted(self, stream):
        return Stream.sequence(stream.num_tokens, self.vocabulary)

    def corrupt(self, clean, t, draws):
        is_hidden = draws.uniform(clean.shape[1:]) < (t / T)[:, None]
        return Hiding(torch.where(is_hidden, self.vocabulary, clean), clean, is_hidden)

    def loss(self, prediction, corruption, t):
        logits = self.clean(corruption.corrupted, prediction, t)
        error = F.cross_entropy(logits.flatten(0, 1), corruption.target.flatten(), reduction="none")
        weight = (T / t.clamp(min=100))[:, None].to(error.dtype)
        return weight * error.reshape(corruption.target.shape) * corruption.is_hidden

    def start(self, shape, draws):
        return torch.full((len(draws.index), *shape), self.vocabulary)

    def clean(self, corrupted, prediction, t):
        return prediction + self.prior

    def step(self, x, clean, step, solver):
        assert solver is None
        reveals = step.draws.named("which").uniform(x.shape[1:]) * step.t >= step.t_next
        edges = clean.double().softmax(-1).cumsum(-1)
        guess = (
            (step.draws.named("what").uniform(x.shape[1:])[..., None] >= edges).sum(-1).clamp(max=self.vocabulary - 1)
        )
        return torch.where((x == self.vocabulary) & reveals, guess, x)


class SymbolCodec(Codec):
    """Words of `LENGTH` digits below `VOCABULARY`."""

    extension = "sym"

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    @property
    def streams(self):
        return {"ids": Stream.symbols(LENGTH, vocabulary=self.vocabulary)}

    def encode(self, raws):
        return {"ids": torch.tensor([[int(letter) for letter in raw] for raw in raws]).reshape(-1, LENGTH)}

    def decode(self, latents):
        return ["".join(map(str, row)) for row in latents["ids"].tolist()]

    def from_bytes(self, data):
        return data.decode()

    def to_bytes(self, raw):
        return raw.encode()


@hookimpl
def unidiff_register(registry):
    for cls in (Hide, SymbolCodec, NumberCodec):
        registry.add(cls)


def register(monkeypatch):
    """Have model directories know this module's classes."""
    load = plugin.load_plugins

    def with_ours(*args):
        registry = load(*args)
        unidiff_register(registry)
        return registry

    for module in (model_directory, description, system):
        monkeypatch.setattr(module, "load_plugins", with_ours)


class ToySamples(torch.utils.data.Dataset):
    """Words whose first symbol says the number."""

    def __init__(self):
        first = torch.arange(SIZE) % VOCABULARY
        words = torch.stack([first, *(torch.arange(SIZE) // k % VOCABULARY for k in (3, 9, 27))], dim=1)
        self.stored = {"word.ids": words, "number.v": (first.float() - 1)[:, None].repeat(1, 3)}

    def __getitem__(self, place):
        present = {"word": place.rows % 5 > 0}
        return Batch(
            place.index,
            place.step,
            {key: value[place.rows] for key, value in self.stored.items()},
            present=present,
            size=len(place.batch),
            num_present={"word": int((place.batch % 5 > 0).sum())},
        )


class ToyData(pl.LightningDataModule):
    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        order = GlobalOrder(SIZE, 16, micro_batch_size=16 // world, seed=0, rank=rank, world=world, first_step=0)
        return DataLoader(ToySamples(), sampler=order, batch_size=None)


def make(process=None, **options):
    torch.manual_seed(0)
    process = PROCESSES[process]() if isinstance(process, str) else process or Hide()
    modalities = {"word": Modality(SymbolCodec(), process), "number": Modality(NumberCodec())}
    return UniDiffuser(
        modalities,
        partial(UViT, width=16, depth=3, heads=2, position_std=0.5),
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        lr_scheduler=partial(Warmup, steps=1),
        **options,
    )


def train(strategy="auto", devices=1, steps=STEPS, **options):
    """A model after a few steps, its average, and its trainer."""
    model, average = make(**options), EMA(0.5)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=devices,
        strategy=FSDP2("gloo") if strategy == "fsdp2" else strategy,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        callbacks=[average],
    )
    trainer.fit(model, datamodule=ToyData())
    return model, average, trainer


PROCESSES = {"Hide": Hide, "Encoded": partial(Encoded, width=5)}
"""Name → a process over symbols that owns parameters."""


def main(folder, *strategies):
    """Train each process under each strategy; save the whole weights as each rank knows them."""
    torch.set_default_dtype(torch.float64)
    for name, strategy in itertools.product(PROCESSES, strategies):
        model, average, trainer = train(strategy, devices=2, process=name)
        whole = gathered(model.state_dict()) | {f"ema/{k}": v for k, v in gathered(average.average).items()}
        torch.save(whole, Path(folder) / f"{name}-{strategy}-{trainer.global_rank}.pt")
        trainer.strategy.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
