"""Edited captions: are as many edits believed as were made, and what does one edit a step win.

    python benchmarks/demonstrations/edited.py

The sum of 1 − p_i(x_i) over a state's words is how many the network takes to be edited; ``believed`` and ``made`` are
means over states with n of ten replaced. Captions are drawn in 2, 5 and 10 evaluations, by the trained network and by
the exact one, with `revert` (edits put back, the rest kept) and with `reedit` (all guessed, some edited anew).

What `distinct` leaves at T is shown on scans of digits in black and white: ``probe`` is the share of test scans whose
digit a linear classifier reads off x_T; chance is 0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from captions import LENGTH, Captions, drawn, exact, measured, trained
from small import Digits, Scans, run
from torch import Tensor

from unidiff_core import UniDiffuser
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.edited.process import Edited
from unidiff_core.testing import ExactMixture

WAYS = {"edited": False, "edited, distinct": True}


def replaced(process: Edited, clean: Tensor, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Words of which so many are replaced, and their time."""
    t = time_tensor(num * T / LENGTH, len(clean))
    draws = Draws(seed, "demonstration", "text.ids", num, torch.arange(len(clean)))
    return process.corrupt(clean, t, draws).corrupted, t


@torch.no_grad()
def logits(network: UniDiffuser | ExactMixture, x: Tensor, t: Tensor) -> Tensor:
    """What it says of the clean words, nothing else being known."""
    if isinstance(network, ExactMixture):
        return network({"text.ids": x}, {"text": t})["text.ids"]
    names = Draws(0, "demonstration", "digit.label", 0, torch.arange(len(x)))
    label = network.modalities["digit"].process.start((1,), names)
    at_end = time_tensor(T, len(x))
    return network.predict({"text.ids": x, "digit.label": label}, {"text": t, "digit": at_end})["text.ids"]


def calibration(network: UniDiffuser | ExactMixture, process: Edited, clean: Tensor, seed: int) -> dict[str, float]:
    """Edits that are believed and edits that were made, by how many words were replaced."""
    rows = {}
    for num in (1, 2, 4, 6, 8, 10):
        x, t = replaced(process, clean, num, seed)
        p = logits(network, x, t).double().softmax(-1)
        believed = (1 - p.gather(-1, x[..., None])[..., 0]).sum(1)
        rows[f"believed at {num}"] = float(believed.mean())
        rows[f"made at {num}"] = float((x != clean).sum(1).double().mean())
    return rows


def probe(process: Edited) -> float:
    """Accuracy of a linear classifier that reads the digit off x_T of black-and-white scans."""
    from sklearn.linear_model import LogisticRegression

    parts = [Digits(Scans(symbols=True), is_train=is_train) for is_train in (True, False)]
    rows = []
    for seed, part in enumerate(parts):
        clean = (part.stored["image.x"] >= 8).long()
        draws = Draws(seed, "demonstration", "image.x", 0, torch.arange(len(clean)))
        rows.append(process.corrupt(clean, time_tensor(T, len(clean)), draws).corrupted.flatten(1).numpy())
    reader = LogisticRegression(max_iter=500).fit(rows[0], parts[0].labels)
    return float(reader.score(rows[1], parts[1].labels))


def demonstrate(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train both forms, hold them against the exact network, and sample."""
    data = Captions()
    for name, distinct in WAYS.items():
        yield f"{name}, two levels", {"leak": Edited(2, distinct).leak, "probe": probe(Edited(2, distinct))}
        process = Edited(distinct=distinct)
        model = trained(process, data, steps=options.steps, seed=options.seed)
        for kind, network in (("trained", model), ("exact", exact(process, data))):
            figures = calibration(network, process, data.stored["text.ids"][::2], options.seed + 1)
            yield f"{name}, {kind}, words edited", figures
            for solver in ("revert", "reedit"):
                for steps in map(int, options.evaluations.split(",")):
                    captions = drawn(network, options.num, steps=steps, solver=solver, seed=options.seed)
                    yield f"{name}, {kind}, {solver}, {steps} evaluations", measured(captions)


if __name__ == "__main__":
    run(__doc__ or "", demonstrate, steps=1000, evaluations="2,5,10")
