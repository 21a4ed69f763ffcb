"""Masked captions with a Gaussian image: in which order words are revealed, and in which order the two are moved.

    python benchmarks/demonstrations/mixed.py                        # after `make demo` and `make tokens`

The ten words of ``text | image`` at 2, 5 and 10 evaluations, by the three orders: ``digit`` as the image's label says,
``grammatical``, and ``entropy`` of the phrasings in bits (the data's is 3). The joint at 10 steps, image and words from
one evaluation, and words first: ``digit`` agrees, ``grammatical``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from small import run

from unidiff_core import UniDiffuser
from unidiff_core.evaluation.metric import load_samples
from unidiff_core.foundation.plugin import load_plugins

ORDERS = ("random", "certain", "confident")
EVALUATIONS = (2, 5, 10)


def entropy(phrasings: Sequence[str | None]) -> float:
    """Of the sentences that are any, in bits."""
    counts = np.array(list(Counter(row for row in phrasings if row).values()), dtype=float)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def demonstrate(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sample and measure each."""
    model = UniDiffuser.from_pretrained(options.model).eval()
    codecs = {name: row.codec for name, row in model.modalities.items()}
    train, test = load_samples(options.train, codecs), load_samples(options.test, codecs)
    judge = load_plugins().make("DigitsJudge")
    judge.fit("image", train.raws["image"][::4], {key: rows[::4] for key, rows in train.labels.items()})
    index = [i * len(test) // options.num % len(test) for i in range(options.num)]
    given = {"image": [test.raws["image"][i] for i in index]}
    labels = [test.labels["digit"][i] for i in index]

    def figures(texts: list[str], digits: Sequence[str | None]) -> dict[str, float]:
        read = judge.read("text", texts)
        return {
            "digit": float(np.mean([a == b for a, b in zip(read["digit"], digits, strict=True)])),
            "grammatical": float(np.mean([bool(judge.well_formed("text", text)) for text in texts])),
            "entropy": entropy(read["phrasing"]),
        }

    for steps in EVALUATIONS:
        for order in ORDERS:
            texts = model.sample("text | image", given, options.num, steps=steps, solver=order, seed=options.seed)[
                "text"
            ]
            yield f"text | image, {order}, {steps} evaluations", figures(texts, labels)
    for solver in ("dpmpp_2m", "heun", "ddpm"):
        for interleave in ("together", "discrete_first"):
            drawn = model.sample(
                "image, text",
                num=options.num,
                steps=10,
                solver={"image": solver, "text": "random"},
                seed=options.seed,
                interleave=interleave,
            )
            read = judge.read("image", drawn["image"])
            yield f"image, text, {solver}, {interleave}, 10 steps", figures(drawn["text"], read["digit"])


if __name__ == "__main__":
    run(
        __doc__ or "",
        demonstrate,
        model="runs/digits_tokens",
        train="runs/digits/shards/train",
        test="runs/digits/shards/test",
    )
