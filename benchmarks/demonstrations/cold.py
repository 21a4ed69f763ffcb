"""A blur without noise, with a little, and with all of it: digits by label from one network each.

    python benchmarks/demonstrations/cold.py

Without noise a start is a grey level, and whatever is drawn for it is decided by it: samples of a digit are all alike
(low ``variety``). The blur's start says which digit it was by how much ink there is (``probe``, a linear classifier of
x_T; chance is 0.1), so that what is ignored at T is not quite ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from small import Digits, Scans, asked, measured, run, sheet, trained

from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.process.cold.degradation import Blur
from unidiff_core.process.cold.process import Cold

WIDTH = 8.0
"""Of the blur at T, in pixels: nothing but the mean is left, to half a per cent."""
WAYS = {
    "no noise": Cold(Blur(WIDTH), noise=0.0, fades=False),
    "noise 0.1": Cold(Blur(WIDTH), noise=0.1, fades=False),
    "noise 1, fading": Cold(Blur(WIDTH), noise=1.0, fades=True),
}


def at_end(process: Cold, clean: torch.Tensor, seed: int) -> torch.Tensor:
    """What the process leaves of images at T."""
    draws = Draws(seed, "demonstration", "image.x", 0, torch.arange(len(clean)))
    return process.corrupt(clean, torch.full((len(clean),), float(T)), draws).corrupted


def probe(process: Cold, train: Digits, test: Digits) -> float:
    """Accuracy of a linear classifier that reads the label off x_T."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = [at_end(process, part.stored["image.x"], seed).flatten(1).numpy() for seed, part in enumerate((train, test))]
    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows[0], train.labels)
    return float(reader.score(rows[1], test.labels))


def starts(process: Cold, data: Digits, num: int, seed: int) -> torch.Tensor | None:
    """Starts of a process that does not forget: normal draws with mean and variance of the data's own, by coordinate.

    As Bansal et al. do, who fit a mixture. A process that forgets has its own start.
    """
    if process.forgets:
        return None
    rows = process.degradation.coordinates(at_end(process, data.stored["image.x"], seed))
    normal = torch.randn(num, *rows.shape[1:], generator=torch.Generator().manual_seed(seed))
    return process.degradation.data(rows.mean(0) + rows.std(0) * normal)


def demonstrate(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train, sample and measure each."""
    codec = Scans(patch=2)
    data, test = Digits(codec), Digits(codec, is_train=False)
    yield "judge on real test scans", {"digit": test.right(data)}
    labels, pictures = asked(options.num), []
    for name, process in WAYS.items():
        model = trained(process, codec, data, steps=options.steps, seed=options.seed)
        leak = {"probe": probe(process, data, test)}
        state = starts(process, data, options.num, options.seed)
        for solver in ("improved", "naive"):
            images = model.sample(
                "image | label",
                given={"label": labels},
                num=options.num,
                steps=options.evaluations,
                solver=solver,
                seed=options.seed,
                **({} if state is None else {"states": {"image.x": state}}),
            )["image"]
            yield f"{name}, {solver}", measured(images, labels, data) | leak
            if solver == "improved":
                pictures += [images[:20]]
    sheet(np.array(pictures), options.out / "cold.png")


if __name__ == "__main__":
    run(__doc__ or "", demonstrate, steps=1000, evaluations=20)
