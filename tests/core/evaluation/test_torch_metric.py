"""Metrics of torchmetrics against the same numbers worked out here, on features that need no download."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics import Metric as Torchmetric
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from tests.core.evaluation.letters import Channel
from unidiff_core import Waveform
from unidiff_core.evaluation.metric import Drawn, Reference, Samples
from unidiff_core.evaluation.run import Query, evaluate
from unidiff_core.evaluation.torch_metric import TorchMetric

WIDTH = 6


class Features(nn.Module):
    """Fixed random numbers of a picture of any size, bytes ``[b, 3, h, w]``."""

    num_features = WIDTH

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(12, WIDTH, generator=generator), requires_grad=False)

    def forward(self, pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        return nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1) @ self.weight


def pictures(seed, count, brightness=1.0, sizes=(8,)):
    rng = np.random.default_rng(seed)
    sides = [sizes[i % len(sizes)] for i in range(count)]
    return [(brightness * rng.integers(0, 256, (side, side, 3))).astype(np.uint8) for side in sides]


def features(images):
    """The same features in numpy: means of the four quarters of each channel, projected."""
    weight = Features().weight.double().numpy()
    rows = []
    for image in images:
        half = len(image) // 2
        quarters = [image[a : a + half, b : b + half].mean((0, 1)) / 255 for a in (0, half) for b in (0, half)]
        rows.append(np.stack(quarters, axis=1).flatten() @ weight)  # channel by channel, as torch flattens
    return np.stack(rows)


def frechet(a, b):
    """Heusel et al. 2017, Eq. 6."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return mean + np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)


def kernel(a, b):
    """Bińkowski et al. 2018: the unbiased squared MMD with the cubic polynomial kernel."""
    n = len(a)
    aa, bb, ab = ((x @ y.T / WIDTH + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (n * (n - 1))
    return within - 2 * ab.mean()


def fitted(metric, test, *modalities, **options):
    """A metric that has seen the real samples, and how it measures a query."""
    wrapped = TorchMetric(metric, list(modalities) or ["image"], **options)
    reference = Reference(Samples(test, {}), Samples(test, {}))
    wrapped.fit(reference)
    return lambda given, solved: wrapped.measure(Drawn(given, solved, {}), reference).estimates


@pytest.mark.parametrize("sizes", [(8,), (8, 12)])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_fid_is_the_distance_of_the_features(sizes, batch_size):
    real, drawn, other = pictures(0, 60, sizes=sizes), pictures(1, 50, 0.8, sizes), pictures(2, 40, 0.5, sizes)
    measure = fitted(FrechetInceptionDistance(Features()), {"image": real}, batch_size=batch_size)
    for samples in (drawn, other, drawn):  # the real features are kept, and counted once
        [(name, estimate)] = measure({}, {"image": samples}).items()
        assert (name, estimate.n) == ("FrechetInceptionDistance", len(samples))
        assert estimate.value == pytest.approx(frechet(features(real), features(samples)), rel=1e-3)
        assert estimate.low is estimate.high is None


def test_kid_is_the_kernel_distance_of_the_features_and_comes_with_its_deviation():
    real, drawn = pictures(0, 40), pictures(1, 40, 0.8)
    expected = kernel(features(real), features(drawn))
    whole = KernelInceptionDistance(Features(), subsets=3, subset_size=40)
    estimate = fitted(whole, {"image": real}, name="KID")({}, {"image": drawn})["KID"]
    assert estimate.value == pytest.approx(expected, rel=1e-3)
    assert estimate.high - estimate.low == pytest.approx(0, abs=1e-4)
    parts = fitted(KernelInceptionDistance(Features(), subsets=50, subset_size=20), {"image": real}, name="KID")
    torch.manual_seed(0)
    first = parts({}, {"image": drawn})["KID"]
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert parts({}, {"image": drawn})["KID"] == first, "the subsets are the same at each evaluation"
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state), "and nobody else's draws change"
    assert first.low < expected < first.high and first.low < first.value < first.high


def test_a_metric_of_the_samples_alone_needs_no_real_ones():
    class Logits(Features):
        def forward(self, pixels):
            return 4 * super().forward(pixels)

    drawn = pictures(1, 40, 0.8)
    estimate = fitted(InceptionScore(Logits(), splits=1), {"image": pictures(0, 5)})({}, {"image": drawn})
    logits = 4 * features(drawn)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert estimate["InceptionScore"].value == pytest.approx(expected, rel=1e-3)
    assert estimate["InceptionScore"].low is None  # one split has no deviation


class Naming(Torchmetric):
    """A pair metric, as CLIP score is: the share of pictures whose caption names how bright they are."""

    def __init__(self):
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images, texts):
        assert images.shape[1] == 3 and all(isinstance(text, str) for text in texts)
        names = ["bright" if image.float().mean() > 64 else "dark" for image in images]
        self.right += sum(name in text for name, text in zip(names, texts, strict=True))
        self.total += len(texts)

    def compute(self):
        return self.right / self.total


def test_a_pair_metric_sees_what_is_given_with_what_is_solved():
    bright, dark = pictures(0, 6), pictures(1, 4, 0.2)
    images, texts = bright + dark, ["a bright one"] * 7 + ["a dark one"] * 3
    measure = fitted(Naming(), {"image": bright, "text": texts}, "image", "text", name="naming", batch_size=4)
    for given, solved in (
        ({"text": texts}, {"image": images}),
        ({"image": images}, {"text": texts}),
        ({}, {"text": texts, "image": images}),
        ({"image": bright + bright}, {"text": texts, "image": images}),  # a given that is solved again
    ):
        assert measure(given, solved)["naming"].value == pytest.approx(0.9)
    assert measure({}, {"image": images}) == measure({"text": texts, "image": images}, {"sound": [0]}) == {}


def test_a_pair_of_arrays_is_paired_sample_by_sample():
    a, b = pictures(0, 5), pictures(1, 5)
    floats = [[image.astype(np.float32) for image in images] for images in (a, b)]
    test = {"one": floats[0], "other": floats[1]}
    value = fitted(PeakSignalNoiseRatio(data_range=255.0), test, "one", "other", batch_size=2)(
        {"other": floats[1]}, {"one": floats[0]}
    )["PeakSignalNoiseRatio"].value
    error = np.square(np.stack(floats[0]) - np.stack(floats[1])).mean()
    assert value == pytest.approx(10 * np.log10(255**2 / error), rel=1e-3)


def test_sounds_are_arrays_of_their_samples():
    class Loudness(Torchmetric):
        def __init__(self):
            super().__init__()
            self.add_state("squares", torch.tensor(0.0), dist_reduce_fx="sum")

        def update(self, samples):
            self.squares += samples.square().sum()

        def compute(self):
            return self.squares

    sounds = [Waveform(np.full(n, 0.5), 8000) for n in (4, 4, 8)]
    assert fitted(Loudness(), {"sound": sounds}, "sound")({}, {"sound": sounds})["Loudness"].value == 4.0


class Odd(Torchmetric):
    def update(self, images):
        pass

    def compute(self):
        return torch.zeros(3)


def test_what_cannot_be_measured_is_named():
    images = pictures(0, 3)
    with pytest.raises(ValueError, match="about at least one modality"):
        TorchMetric(Odd(), [])
    with pytest.raises(ValueError, match="FID is about imgae, and no query is; they are about image, text"):
        fitted(Odd(), {"image": images, "text": ["a"] * 3}, "image", "imgae", name="FID")
    with pytest.raises(ValueError, match=r"Odd gives .*neither a number nor a mean with its deviation"):
        fitted(Odd(), {"image": images})({}, {"image": images})
    with pytest.raises(ValueError, match="FrechetInceptionDistance of image: RuntimeError: More than one sample"):
        fitted(FrechetInceptionDistance(Features()), {"image": images})({}, {"image": images[:1]})


class Words(nn.Module):
    """Features of the letters' words, which `WordMetric` gives as pictures of one size."""

    num_features = 2

    def forward(self, pixels):
        return pixels.float().flatten(1)[:, :2]


class WordDistance(FrechetInceptionDistance):
    """FID of words: each is a picture of its first two characters."""

    def update(self, words, real):
        rows = [[ord(word[0].lower()), ord(word[1])] for word in words]
        super().update(torch.tensor(rows, dtype=torch.uint8)[:, :, None, None], real)


def test_a_torchmetric_is_named_by_class_path_and_measured_like_any_other(settings):
    from unidiff_core.cli.evaluate import _parser

    parser = _parser()
    feature = {"class_path": f"{__name__}.Words"}
    inner = {"class_path": f"{__name__}.WordDistance", "init_args": {"feature": feature}}
    metric = {"class_path": "TorchMetric", "init_args": {"metric": inner, "modalities": ["upper"], "name": "FID"}}
    arguments = ["runs", f"--metrics={json.dumps([metric])}", "--train=a", "--test=b", "--queries={upper: {num: 3}}"]
    config = parser.instantiate_classes(parser.parse_args(arguments))
    settings = replace(settings, queries={"upper": Query(40), "lower": Query(4)})
    result = evaluate(Channel(), config.metrics, settings)
    assert set(result.queries["upper"]) == {"FID"} and not result.queries["lower"]
    assert result.queries["upper"]["FID"].value > 0
