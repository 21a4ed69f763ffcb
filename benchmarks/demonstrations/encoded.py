"""Encoded captions, with vectors kept to one size and without.

    python benchmarks/demonstrations/encoded.py

``size``: root mean square of the vectors. ``loss``: −log q of a word, in nats, at times of its way; at T all that can
be known is how often a word stands in its place, ``entropy``. Vectors that may grow make noise small beside them: what
is decided is decided near T, in fewer of the sampler's steps. Captions are drawn by the Gaussian process's solvers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from captions import WORDS, Captions, drawn, measured, trained
from small import run

from unidiff_core import UniDiffuser
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.encoded.process import Encoded

TIMES = (0.3, 0.6, 0.8, 0.9, 1.0)


def entropy(data: Captions) -> float:
    """Of a word given its place, in nats, the mean over places."""
    shares = torch.nn.functional.one_hot(data.stored["text.ids"], len(WORDS)).double().mean(0)
    return float(-(shares * shares.clamp(min=1e-300).log()).sum(-1).mean())


@torch.no_grad()
def losses(model: UniDiffuser, data: Captions, seed: int) -> dict[str, float]:
    """Of all captions at some times, the digit not being known."""
    process, clean = model.modalities["text"].process, data.stored["text.ids"]
    index = torch.arange(len(clean))
    label = model.modalities["digit"].process.start((1,), Draws(seed, "demonstration", "digit.label", 0, index))
    rows = {}
    for i, fraction in enumerate(TIMES):
        t = time_tensor(fraction * T, len(clean))
        state = process.corrupt(clean, t, Draws(seed, "demonstration", "text.ids", i, index))
        at_end = time_tensor(T, len(clean))
        latents = {"text.ids": state.corrupted, "digit.label": label}
        prediction = model.network(latents, {"text": t, "digit": at_end})["text.ids"]
        rows[f"loss at {fraction:g}"] = float(process.loss(prediction, state, t).mean())
    return rows


def demonstrate(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train both and sample each."""
    data = Captions()
    yield "data", {"entropy": entropy(data)}
    for name, normalise in (("normalised", True), ("not normalised", False)):
        process = Encoded(width=16, normalise=normalise)
        model = trained(process, data, steps=options.steps, seed=options.seed)
        size = float(process.vectors.detach().square().mean().sqrt())
        yield name, {"size": size, **losses(model, data, options.seed + 1)}
        for solver in ("dpmpp_2m", "ddpm"):
            for steps in map(int, options.evaluations.split(",")):
                captions = drawn(model, options.num, steps=steps, solver={"text": solver}, seed=options.seed)
                yield f"{name}, {solver}, {steps} steps", measured(captions)


if __name__ == "__main__":
    run(__doc__ or "", demonstrate, steps=1000, evaluations="5,10,25")
