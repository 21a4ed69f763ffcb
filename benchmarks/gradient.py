"""A marginal that a classifier leads, on the digits: how often it is the digit that is asked for.

    python benchmarks/gradient.py runs/digits

Trains a small classifier of noisy latents of images, at all times (a minute), and draws ``image`` led by its gradient
at several scales, and ``image | text`` with guidance beside it. Digits are read by the recipes' judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn
from unidiff_digits.grammar import parse, phrase
from unidiff_digits.judge import DigitsJudge

from unidiff_core import Codec, Gradient, UniDiffuser, read_having
from unidiff_core.foundation.latents import Latents, Times
from unidiff_core.foundation.progress import tracked
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T

STREAMS = ("image.ae", "image.clip")


class Classifier(nn.Module):
    """Noisy latents of images, and their times, to logits of the ten digits."""

    def __init__(self, size: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(size + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 10))
        )

    def forward(self, states: Latents, t: Tensor) -> Tensor:
        """``[b, 10]``, of states ``[b, ...]`` at times ``[b]`` in steps."""
        flat = [states[key].flatten(1) for key in STREAMS]
        share = (t / T).float()[:, None]
        logits: Tensor = self.layers(torch.cat([*flat, share, share.square()], 1))
        return logits


def labelled(folder: Path, model: UniDiffuser) -> tuple[dict[str, Tensor], Tensor]:
    """Latents of all training images, and their digits ``[n]``."""
    captions = {row["__key__"]: row["txt"].decode() for row in read_having(folder / "shards/train", "txt")}
    rows, digits = [], []
    for row in read_having(folder / "latents/train", "safetensors"):
        if reading := parse(captions[row["__key__"]].strip()):
            rows.append(load(row["safetensors"]))
            digits.append(int(reading.digit))
    codec: Codec = model.modalities["image"].codec
    stored = {name: torch.stack([row[f"image.{name}"] for row in rows]) for name in ("ae", "clip")}
    latents = codec.latent(stored, lambda _, shape: torch.randn(shape))
    return {f"image.{name}": value for name, value in latents.items()}, torch.tensor(digits)


def train(model: UniDiffuser, latents: dict[str, Tensor], digits: Tensor, steps: int) -> Classifier:
    """A classifier of states at all times."""
    torch.manual_seed(0)
    classifier = Classifier(sum(latents[key][0].numel() for key in STREAMS))
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-3, weight_decay=0.05)
    process, index = model.modalities["image"].process, torch.arange(256)
    for step in tracked(range(steps), "classifier", steps):
        rows, t = torch.randint(len(digits), (256,)), T * torch.rand(256)
        states = {
            key: process.corrupt(latents[key][rows], t, Draws(0, "classifier", key, step, index)).corrupted
            for key in STREAMS
        }
        loss = F.cross_entropy(classifier(states, t), digits[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval().requires_grad_(False)


def judge_of(folder: Path, model: UniDiffuser) -> Callable[[list[object]], list[str | None]]:
    """Reads digits off images; fitted on the training images."""
    rows = [row for row in read_having(folder / "shards/train", "png", "txt") if parse(row["txt"].decode().strip())]
    codec = model.modalities["image"].codec
    readings = [parse(row["txt"].decode().strip()) for row in rows]
    judge = DigitsJudge()
    judge.fit(
        "image",
        [codec.from_bytes(row["png"]) for row in rows],
        {name: [getattr(reading, name) or "" for reading in readings] for name in judge.labels},
    )
    return lambda raws: judge.read("image", raws)["digit"]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, draw, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="the digits' model directory, with shards/ and latents/ in it")
    parser.add_argument("--steps", type=int, default=2000, help="of the classifier's training")
    parser.add_argument("--solver_steps", type=int, default=30, help="of each sample")
    parser.add_argument("--num", type=int, default=200, help="samples of each row")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    options = parser.parse_args(argv)
    model = UniDiffuser.from_pretrained(options.folder)
    read = judge_of(options.folder, model)
    wanted = torch.arange(options.num) % 10
    classifier = train(model, *labelled(options.folder, model), options.steps)

    def log_probability(latents: Latents, times: Times) -> Tensor:
        return classifier(latents, times["image"]).log_softmax(-1).gather(1, wanted[:, None])[:, 0]

    def right(images: list[object]) -> str:
        share = sum(found == str(digit) for found, digit in zip(read(images), wanted.tolist(), strict=True))
        return f"{share / options.num:.3f}"

    print("| what | digit |\n|---|---|")
    more: dict[str, Any] = {"num": options.num, "batch_size": options.num, "steps": options.solver_steps}
    for scale in options.scales:
        images = model.sample("image", gradient=Gradient(log_probability, scale), **more)["image"]
        print(f"| image, gradient {scale:g} | {right(images)} |", flush=True)
    captions = [phrase(0, str(digit), "red", "black") for digit in wanted.tolist()]
    for guidance in (0.0, 2.0):
        images = model.sample("image | text", {"text": captions}, guidance=guidance, **more)["image"]
        print(f"| image \\| text, guidance {guidance:g} | {right(images)} |", flush=True)


if __name__ == "__main__":
    main()
