"""Steps with fresh noise, with and without the clean estimate's own variance: the trained digits in 5, 10, 25 steps.

    python benchmarks/demonstrations/clean_std.py                    # after `make demo`

A step with fresh noise puts x̂_0, a mean, where a sample belongs, and loses its variance; `analytic` gives it back,
by what was measured at training's validations (clean_std.yaml). ``variance``: of samples' latents over that of the
data's, the mean over elements (1 is right). ``frechet``: in the judge's features, over their number. ``error``:
squared, of the estimate with all else at T (``table``: as it was measured, over all times of all else); ``leading``:
its share in ten of 128 directions, where white noise has 0.08.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from small import run, sheet
from torch import Tensor

from unidiff_core import UniDiffuser
from unidiff_core.evaluation.frechet import frechet_distance
from unidiff_core.evaluation.metric import load_samples
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.time import T

STEPS = (5, 10, 25)
LEADING = 10
SOLVERS = ("ddim", "family(1)", "analytic(1)", "family(max)", "analytic(max)")


@torch.no_grad()
def error(model: UniDiffuser, clean: dict[str, Tensor], share: float, seed: int) -> dict[str, float]:
    """Of the estimate of ``image.ae`` at a time, a share of T, with every other modality at T."""
    num, generator = len(clean["image.ae"]), torch.Generator().manual_seed(seed)
    times = {name: torch.full((num,), float(T)) for name in model.modalities} | {"image": torch.full((num,), share * T)}
    state = {}
    for key, shape in model.shapes.items():
        noise = torch.randn(num, *shape, generator=generator)
        state[key] = (
            (1 - share) * clean[key] + share * noise if key in clean else noise
        )  # the recipe's schedule is Flow
    residual = (model.predict(state, times)["image.ae"] - clean["image.ae"]).flatten(1)
    directions = torch.linalg.eigvalsh(residual.T @ residual)
    return {
        "error": float(residual.square().mean()),
        "table": float(model.clean_std["image.ae"](share * T)) ** 2,
        "leading": float(directions[-LEADING:].sum() / directions.sum()),
    }


def demonstrate(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sample and measure each."""
    model = UniDiffuser.from_pretrained(options.model).eval()
    real = load_samples(options.test, {"image": model.modalities["image"].codec}).raws["image"]
    judge = load_plugins().make("DigitsJudge")
    known = judge.features("image", real)
    data = model.encode({"image": real})
    for share in (1.0, 0.8, 0.6, 0.4, 0.2):
        yield f"estimate at {share:g} T", error(model, data, share, options.seed)
    pictures = []
    for steps in STEPS:
        for solver in SOLVERS:
            latents = model.sample(
                "image", num=options.num, steps=steps, solver=solver, seed=options.seed, latents=True
            )
            images = model.decode(latents, ["image"])["image"]
            ratios = {
                f"variance of {key.removeprefix('image.')}": float((value.var(0) / data[key].var(0)).mean())
                for key, value in latents.items()
                if key.startswith("image.")
            }
            found = judge.features("image", images)
            yield (
                f"{steps} steps, {solver}",
                ratios | {"frechet": frechet_distance(found, known) / known.shape[1]},
            )
            if steps == STEPS[0]:
                pictures.append([np.asarray(image.convert("RGB")) for image in images[:16]])
    sheet(pictures, options.out / "clean_std.png", scale=1)


if __name__ == "__main__":
    run(__doc__ or "", demonstrate, model="runs/digits", test="runs/digits/shards/test")
