"""Digits as masked symbols and as noisy numbers, by the same backbone, at 8, 16 and 64 evaluations.

    python benchmarks/demonstrations/masked.py

A pixel is one of 17 levels. Masked, all 64 are revealed in 64 evaluations one by one, which is exact for an exact
network; in fewer several at a time, which takes them for independent. ``bits``: the `elbo` loss on test scans with the
label given, a bound of bits a pixel. What Gaussian noise learns has no such figure for levels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from small import Digits, Scans, asked, measured, run, sheet, trained

from unidiff_core import UniDiffuser
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import Flow
from unidiff_core.process.masked.process import Masked


@torch.no_grad()
def bits(model: UniDiffuser, data: Digits, rounds: int = 8) -> float:
    """The `elbo` loss of images given their labels, in bits a pixel; times evenly spread."""
    process, clean = model.modalities["image"].process, data.stored["image.x"]
    label = data.stored["label.label"]
    zero, total = torch.zeros(len(clean)), 0.0
    for i in range(rounds):
        t = T * ((torch.arange(len(clean)) / len(clean) + i / rounds) % 1).clamp(min=1e-3)
        state = process.corrupt(clean, t, Draws(0, "demonstration", "image.x", i, torch.arange(len(clean))))
        latents = {"image.x": state.corrupted, "label.label": label}
        prediction = model.network(latents, {"image": t, "label": zero})["image.x"]
        total += float(process.loss(prediction, state, t).mean())
    return total / rounds / math.log(2)


def demonstrate(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train both, sample each with as many evaluations."""
    labels, pictures = asked(options.num), []
    ways: dict[str, tuple[Any, Scans, tuple[str, ...]]] = {
        "masked": (Masked(), Scans(symbols=True), ("random", "certain", "confident")),
        "gaussian": (Gaussian(Flow(), "flow"), Scans(), ("dpmpp_2m", "ddpm")),
    }
    for name, (process, codec, solvers) in ways.items():
        data, test = Digits(codec), Digits(codec, is_train=False)
        model = trained(process, codec, data, steps=options.steps, seed=options.seed)
        if name == "masked":
            yield "masked, test scans", {"bits": bits(model, test)}
        for solver in solvers:
            for steps in map(int, options.evaluations.split(",")):
                given = {"label": labels}
                images = model.sample(
                    "image | label", given, options.num, steps=steps, solver=solver, seed=options.seed
                )["image"]
                yield f"{name}, {solver}, {steps} evaluations", measured(images, labels, data)
                if solver == solvers[0]:
                    pictures += [images[:20]]
    sheet(np.array(pictures), options.out / "masked.png")


if __name__ == "__main__":
    run(__doc__ or "", demonstrate, steps=700, num=200, evaluations="8,16,64")
