"""How well a drawing is coloured, how well its strokes are kept, and whether it is the one that was named.

Each sample is compared with the real one of the same drawing: the test samples record its code. Intervals are the 95 %
percentile bootstrap over bases, as the tones of a base are one drawing in five colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unidiff_core import Drawn, Estimate, Hits, Measured, Metric, Raw, Reference
from unidiff_core.evaluation.estimate import resampled_weights
from unidiff_emoji.judge import shapes
from unidiff_emoji.pixels import block_means, edge_f1, lab, nearest, pixels, strokes, within

RESAMPLES = 1000
CANDIDATES = 100


class Colouring(Metric):
    """Colour error of a picture drawn from its strokes, beside two baselines that get the same strokes.

    * ``colour_error``: mean distance in CIE Lab (CIE76) to the real picture, within the drawing.
    * ``colour_error_nearest``: of the training picture whose strokes are nearest.
    * ``colour_error_group``: of the mean training picture of the drawing's group.
    * ``colour_ratio``: the first over the lesser of the others.

    Args:
        given: modality that holds the strokes.
        solved: modality that is coloured.
    """

    def __init__(self, given: str = "line", solved: str = "picture") -> None:
        self.given, self.solved = given, solved

    def fit(self, reference: Reference) -> None:
        """Training strokes, the training pictures, and the mean picture of each group."""
        train = reference.train
        if not {self.given, self.solved} <= train.raws.keys():
            return
        self._pictures = pixels(train.raws[self.solved])
        self._lines = block_means(pixels(train.raws[self.given]))
        groups = np.array(train.labels["group"])
        self._means = {group: self._pictures[groups == group].mean(axis=0) for group in sorted({*groups})}

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of queries that are given strokes and give pictures."""
        if self.given not in drawn.given or self.solved not in drawn.solved:
            return Measured({})
        rows = _real(drawn, reference)
        real = pixels([reference.test.raws[self.solved][i] for i in rows])
        inside = within(real, pixels([reference.test.raws[self.given][i] for i in rows]))

        def error(found: np.ndarray) -> np.ndarray:
            distance = np.linalg.norm(lab(found) - lab(real), axis=-1)
            return np.asarray((distance * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1))

        places = nearest(block_means(pixels(drawn.given[self.given])), self._lines)
        errors = {
            "colour_error": error(pixels(drawn.solved[self.solved])),
            "colour_error_nearest": error(self._pictures[places]),
            "colour_error_group": error(np.stack([self._means[group] for group in drawn.known["group"]])),
        }
        bases = drawn.known["base"]
        ratio = bootstrap(
            np.stack(list(errors.values())), bases, lambda means: means[0] / np.minimum(means[1], means[2])
        )
        return Measured({name: bootstrap(row[None], bases) for name, row in errors.items()} | {"colour_ratio": ratio})


class LineKept(Metric):
    """F1 of dark pixels against the real picture's, a pixel of tolerance, beside what the autoencoder keeps of them.

    * ``edges``: of the samples.
    * ``edges_autoencoder``: of the real pictures, encoded and decoded.
    * ``edges_ratio``: the first over the second.

    Prefixed with the modality where several are solved.

    Args:
        autoencoders: modality → folder of its autoencoder.
    """

    def __init__(self, autoencoders: dict[str, str]) -> None:
        self.autoencoders = autoencoders

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of queries that are given something of the same drawing."""
        if not drawn.given:
            return Measured({})
        rows = _real(drawn, reference)
        names = [name for name in self.autoencoders if name in drawn.solved]
        found: dict[str, Estimate] = {}
        for name in names:
            raws = [reference.test.raws[name][i] for i in rows]
            real = strokes(pixels(raws))
            scores = np.stack(
                [edge_f1(strokes(pixels(images)), real) for images in (drawn.solved[name], self._rebuilt(name, raws))]
            )
            bases = drawn.known["base"]
            measured = {
                "edges": bootstrap(scores[:1], bases),
                "edges_autoencoder": bootstrap(scores[1:], bases),
                "edges_ratio": bootstrap(scores, bases, lambda means: means[0] / means[1]),
            }
            found |= {metric if len(names) == 1 else f"{name}.{metric}": value for metric, value in measured.items()}
        return Measured(found)

    def _rebuilt(self, name: str, raws: Sequence[Raw]) -> list[Raw]:
        import torch
        from unidiff_codecs.image import load_autoencoder, to_images, to_pixels

        network = load_autoencoder(self.autoencoders[name]).eval()
        with torch.no_grad():
            latent = network.encode(to_pixels(raws)).latent_dist.mode()  # type: ignore[operator]
            return list(to_images(network.decode(latent).sample))  # type: ignore[operator]


class RightBase(Metric):
    """``right_base``: share of pictures nearest, among 100 real ones, to the one of the drawing that was named.

    The others are of 99 other bases in the same tone where there are so many, drawn from training and test data by a
    fixed seed; what is near is measured in the judge's features, in which skin is yellow.

    Args:
        solved: modality of the pictures.
    """

    def __init__(self, solved: str = "picture") -> None:
        self.solved = solved

    def fit(self, reference: Reference) -> None:
        """Features of one real picture of each drawing."""
        if self.solved not in reference.test.raws:
            return
        rows: dict[tuple[str, str], Raw] = {}
        for samples in (reference.train, reference.test):
            keys = zip(samples.labels["base"], samples.labels["tone"], strict=True)
            for key, raw in zip(keys, samples.raws[self.solved], strict=True):
                rows.setdefault(key, raw)
        self._keys = list(rows)
        self._features = shapes(list(rows.values()))

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of pictures that were drawn from something of a known drawing."""
        if not drawn.given or self.solved not in drawn.solved:
            return Measured({})
        features = shapes(drawn.solved[self.solved])
        rng = np.random.default_rng(0)
        hits = []
        for row, key in zip(features, zip(drawn.known["base"], drawn.known["tone"], strict=True), strict=True):
            others = [i for i, (base, _) in enumerate(self._keys) if base != key[0]]
            same = [i for i in others if self._keys[i][1] == key[1]]
            pool = same if len(same) >= CANDIDATES - 1 else others
            chosen = rng.choice(pool, CANDIDATES - 1, replace=False)
            distances = np.linalg.norm(self._features[[self._keys.index(key), *chosen]] - row, axis=1)
            hits.append(distances.argmin() == 0)
        found = Hits(np.ones(len(hits), bool), np.array(hits))
        estimate = found.estimate_of(drawn.known["base"])
        return Measured({"right_base": estimate} if estimate else {}, {"right_base": found})


def bootstrap(
    rows: np.ndarray, clusters: Sequence[str], of: Callable[[np.ndarray], np.ndarray] = lambda means: means[0]
) -> Estimate:
    """A function of means, with the percentile bootstrap over clusters.

    Args:
        rows: ``[k, n]``, k numbers of each of n samples.
        clusters: what samples belong together, n names.
        of: means ``[k, ...]`` → ``[...]``; the first if not given.
    """
    weights = resampled_weights(rows.shape[1], clusters, count=RESAMPLES)
    means = rows @ weights.T / weights.sum(axis=1)
    low, high = np.percentile(of(means), [2.5, 97.5])
    value = float(of(rows.mean(axis=1)))
    return Estimate(value, min(value, float(low)), max(value, float(high)), rows.shape[1])


def _real(drawn: Drawn, reference: Reference) -> list[int]:
    """The test sample of each drawn one."""
    place = {code: i for i, code in enumerate(reference.test.labels["code"])}
    return [place[code] for code in drawn.known["code"]]
