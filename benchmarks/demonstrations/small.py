"""What the demonstrations share: scikit-learn's 8×8 digits, a small model of image and label, and how it is measured.

A codec, a judge and a training in Python, as any program that uses unidiff_core would write them.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unidiff_core import Codec, Modality, Stream, UniDiffuser
from unidiff_core.codec.label import LabelCodec
from unidiff_core.data.order import GlobalOrder, Place
from unidiff_core.evaluation.frechet import frechet_distance
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.uvit import UViT
from unidiff_core.process.masked.process import Masked
from unidiff_core.process.process import ForwardProcess
from unidiff_core.training.ema import EMA
from unidiff_core.training.law import Atoms, Independent
from unidiff_core.training.learning_rate import Warmup

LEVELS = 17
"""Intensities of a pixel of scikit-learn's scans, 0 to 16."""
SIDE = 8
NAMES = [str(digit) for digit in range(10)]
TRAIN_SHARE = 0.8
"""Of the scans, by index: the others are (approximately) other writers'."""


class Scans(Codec):
    """8×8 intensities 0..16: as numbers from −1 to 1, or as 64 symbols of 17.

    Args:
        symbols: which.
        patch: pixels a side of a token, of numbers.
    """

    def __init__(self, symbols: bool = False, patch: int = 1) -> None:
        super().__init__()
        self.symbols, self.patch = symbols, patch

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``x``, a token for each symbol or patch."""
        if self.symbols:
            return {"x": Stream.symbols(SIDE, SIDE, vocabulary=LEVELS)}
        return {"x": Stream.grid(1, SIDE, SIDE, patch=self.patch)}

    def encode(self, raws: Sequence[Any]) -> dict[str, Tensor]:
        """Arrays of whole numbers → ``x``."""
        scans = torch.as_tensor(np.stack(raws))
        return {"x": scans.long() if self.symbols else (scans.float() / 8 - 1)[:, None]}

    def decode(self, latents: Mapping[str, Tensor]) -> list[np.ndarray]:
        """``x`` → arrays, which need not be whole."""
        x = latents["x"] if self.symbols else ((latents["x"][:, 0] + 1) * 8).clamp(0, LEVELS - 1)
        return list(x.double().numpy())

    def from_bytes(self, data: bytes) -> np.ndarray:
        """64 bytes → intensities."""
        return np.frombuffer(data, dtype=np.uint8).reshape(SIDE, SIDE)

    def to_bytes(self, raw: np.ndarray) -> bytes:
        """Intensities → 64 bytes."""
        return np.rint(raw).astype(np.uint8).tobytes()


class Digits(Dataset[Batch]):
    """A part of the scans, as latents of a model, and as what samples are measured against."""

    def __init__(self, codec: Scans, *, is_train: bool = True) -> None:
        from sklearn.datasets import load_digits

        scans = load_digits()
        first = int(len(scans.images) * TRAIN_SHARE)
        part = slice(first) if is_train else slice(first, None)
        self.images = scans.images[part].astype(np.int64)
        self.labels = scans.target[part]
        self.stored = {
            "image.x": codec.encode(list(self.images))["x"],
            "label.label": torch.as_tensor(self.labels)[:, None].long(),
        }

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> Batch:  # type: ignore[override]
        stored = {key: value[place.rows] for key, value in self.stored.items()}
        return Batch(place.index, place.step, stored)

    @property
    def flat(self) -> np.ndarray:
        """Intensities ``[n, 64]`` in 0..1, the judge's features."""
        return features(self.images)

    def right(self, judge: Digits) -> float:
        """Share of these scans that a judge trained on others reads right."""
        return float((judge.machine.predict(self.flat) == self.labels).mean())

    @cached_property
    def machine(self) -> Any:
        """A support-vector machine that reads digits off these scans."""
        from sklearn.svm import SVC

        return SVC(C=10.0).fit(self.flat, self.labels)


def features(images: Any) -> np.ndarray:
    """Images → intensities ``[n, 64]`` in 0..1."""
    return np.asarray(images, dtype=float).reshape(len(images), -1) / (LEVELS - 1)


def trained(process: ForwardProcess, codec: Scans, data: Digits, *, steps: int, seed: int = 0) -> UniDiffuser:
    """A model of image and label, with its average as weights; a step of 64 takes 0.03 s with patches of 2."""
    torch.manual_seed(seed)
    model = UniDiffuser(
        {"image": Modality(codec, process), "label": Modality(LabelCodec(NAMES), Masked())},
        partial(UViT, width=64, depth=3, heads=4, position_std=0.5, scaled_init=True),
        # A label that is there half of the time, and one that is not in a tenth: what is asked, and what is ignored.
        timestep_law=Independent({"label": Atoms({0: 0.5, 1: 0.1})}),
        balance="streams",
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.03, betas=(0.9, 0.99), fused=True),
        lr_scheduler=partial(Warmup, steps=50, decay_until=steps),
        seed=seed,
    )
    return fitted(model, data, steps=steps, seed=seed)


def fitted(model: UniDiffuser, data: Dataset[Batch], *, steps: int, seed: int = 0) -> UniDiffuser:
    """A model after so many steps of 64, with its average as weights."""
    order = GlobalOrder(len(data), 64, micro_batch_size=64, seed=seed, rank=0, world=1, first_step=0)
    average = EMA(0.995)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[average],
    )
    trainer.fit(model, DataLoader(data, sampler=order, batch_size=None))
    for name, value in model.named_parameters():
        if name in average.average:
            value.data.copy_(average.average[name])
    return model.eval()


def measured(images: Sequence[np.ndarray], labels: Sequence[str], data: Digits) -> dict[str, float]:
    """Of images that were asked for by label: digit right, and how varied and how near to real ones they are.

    ``digit``: share that the judge reads as asked. ``variety``: mean squared distance of two samples of one label, over
    that of the training scans. ``frechet``: Fréchet distance to them, in intensities, over 64.
    """
    rows, names = features(images), np.array(labels).astype(int)
    own = np.mean([rows[names == digit].var(axis=0).sum() for digit in np.unique(names)])
    real = np.mean([data.flat[data.labels == digit].var(axis=0).sum() for digit in np.unique(names)])
    return {
        "digit": float((data.machine.predict(rows) == names).mean()),
        "variety": float(own / real),
        "frechet": frechet_distance(rows, data.flat) / rows.shape[1],
    }


def asked(num: int) -> list[str]:
    """Labels in turn."""
    return [NAMES[i % len(NAMES)] for i in range(num)]


def sheet(rows: Sequence[Sequence[np.ndarray]], path: Path, scale: int = 4) -> None:
    """Rows of images (intensities 0..16, or RGB 0..255) as one picture."""

    def tile(image: np.ndarray) -> np.ndarray:
        pixels = np.asarray(image, dtype=float)
        if pixels.ndim == 2:
            pixels = np.repeat((pixels / (LEVELS - 1) * 255)[..., None], 3, axis=-1)
        pixels = np.kron(pixels.clip(0, 255), np.ones((scale, scale, 1)))
        return np.pad(pixels, ((1, 1), (1, 1), (0, 0)), constant_values=128)

    picture = np.concatenate([np.concatenate([tile(image) for image in row], axis=1) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(picture).astype(np.uint8)).save(path)


def run(
    doc: str, demonstrate: Callable[[argparse.Namespace], Iterator[tuple[str, dict[str, Any]]]], **options: Any
) -> None:
    """Command line of a demonstration: figures as lines as they come, then as JSON.

    Args:
        doc: of the script.
        demonstrate: yields a row's name and its figures.
        options: further options and their defaults.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demonstrations"), help="folder of figures and pictures")
    for name, default in {"num": 400, "seed": 0, **options}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for name, figures in demonstrate(arguments):
        rows[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
        print(f"{name}: {json.dumps(rows[name])}", flush=True)
    rows["cpu_seconds"] = round(time.process_time(), 1)
    name = Path(doc_file(demonstrate)).stem
    (arguments.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def doc_file(function: Callable[..., Any]) -> str:
    """The file that a function is written in."""
    return function.__code__.co_filename
