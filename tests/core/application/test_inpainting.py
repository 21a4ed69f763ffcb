"""Inpainting against exact predictors: exact for masked symbols, biased for numbers, less so if resampled."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.core.conftest import NumberCodec
from unidiff_core import Codec, Gaussian, Masked, Modality, Stream, UniDiffuser, inpaint
from unidiff_core.application.inpainting import resampled
from unidiff_core.network.uvit import UViT
from unidiff_core.process.gaussian.schedule import Flow
from unidiff_core.sampling.spec import SpecError, TimestepSpec
from unidiff_core.testing import GaussianOracle
from unidiff_core.testing.mixture import ExactMixture


class WordCodec(Codec):
    """Three letters of a and b, as symbols."""

    @property
    def streams(self):
        return {"ids": Stream.symbols(3, vocabulary=2)}

    def encode(self, raws):
        return {"ids": torch.tensor([["ab".index(letter) for letter in raw] for raw in raws])}

    def decode(self, latents):
        return ["".join("ab"[i] for i in row) for row in latents["ids"].tolist()]

    def from_bytes(self, data):
        return data.decode()

    def to_bytes(self, raw):
        return raw.encode()


def exact(modalities, make):
    """A model whose network is an exact predictor."""
    model = UniDiffuser(modalities, partial(UViT, width=8, depth=3, heads=2))
    predictor = make({name: row.process for name, row in modalities.items()}, model.shapes)
    model.predict = lambda latents, times, conditions=None: predictor(latents, times)
    return model, predictor


@pytest.fixture(scope="module")
def numbers():
    """A model of a, which is not asked for, and b of numbers, with the exact oracle."""
    modalities = {"a": Modality(NumberCodec(4), Gaussian(Flow(), "clean")), "b": Modality(NumberCodec(1))}
    return exact(modalities, lambda processes, shapes: GaussianOracle.random(shapes, seed=1))


@pytest.fixture(scope="module")
def words():
    """A model of a word w and a number n, with an exact table."""
    modalities = {"w": Modality(WordCodec(), Masked()), "n": Modality(NumberCodec(1))}
    return exact(modalities, partial(ExactMixture.random, seed=2))


FREE = torch.tensor([True, True, False, False])


def error(numbers, **options):
    """How far the mean of what is free is from that of the exact conditional, in its standard deviations."""
    model, oracle = numbers
    known = torch.tensor([0.0, 0.0, 2.0, -1.5])
    given = {"a.v": known[None]}
    got = inpaint(model, "a", given, {"a.v": FREE}, 1500, latents=True, batch_size=1500, **options)["a.v"]
    assert torch.equal(got[:, 2:], known[2:].expand(1500, 2))
    s, mean = oracle.covariance[:4, :4], oracle.mean[:4]
    gain = torch.linalg.solve(s[2:, 2:], s[2:, :2]).T
    wanted = mean[:2] + gain @ (known[2:].double() - mean[2:])
    spread = s[:2, :2] - gain @ s[2:, :2]
    off = torch.linalg.solve(torch.linalg.cholesky(spread), got[:, :2].double().mean(0) - wanted)
    return off.norm().item()


def test_numbers_are_biased_and_resampling_lessens_it(numbers):
    plain, often = error(numbers, steps=50, solver="ddpm"), error(numbers, steps=50, solver="ddpm", resamples=10)
    assert plain > 0.2 and often < 0.5 * plain, (plain, often)


def test_a_kept_part_that_is_noisy_agrees_better_and_comes_back_nearly(numbers):
    model, oracle = numbers
    known, options = torch.tensor([0.0, 0.0, 2.0, -1.5]), {"steps": 20, "solver": "ddpm", "batch_size": 1500}
    s, mean = oracle.covariance[:4, :4], oracle.mean[:4]
    gain = torch.linalg.solve(s[2:, 2:], s[2:, :2]).T
    cholesky = torch.linalg.cholesky(s[:2, :2] - gain @ s[2:, :2])
    apart, moved = [], []
    for kept_at in (0.0, 0.2, 0.4):
        given = {"a.v": known[None]}
        got = inpaint(model, "a", given, {"a.v": FREE}, 1500, kept_at=kept_at, latents=True, **options)["a.v"].double()
        wanted = mean[:2] + (got[:, 2:] - mean[2:]) @ gain.T  # of what is free, given what now stands beside it
        apart.append(torch.linalg.solve(cholesky, (got[:, :2] - wanted).mean(0)).norm().item())
        moved.append((got[:, 2:] - known[2:]).square().mean().sqrt().item())
    assert apart[2] < 0.75 * apart[1] < 0.65 * apart[0], apart
    assert moved[0] == 0 < moved[1] < 0.6 < moved[2], moved


def test_a_region_may_start_from_what_it_was(numbers):
    model, _ = numbers
    given, whole = {"a.v": torch.randn(40, 4, generator=torch.Generator().manual_seed(0))}, torch.ones(4, dtype=bool)
    options = {"steps": 10, "latents": True, "seed": 2}
    got = inpaint(model, "a@0.4", given, {"a.v": whole}, **options)["a.v"]
    assert torch.equal(got, model.sample("a@0.4", given, **options)["a.v"])  # with nothing kept it is plain sampling
    far = []
    for spec in ("a@0.1", "a@0.4", "a"):
        got = inpaint(model, spec, given, {"a.v": FREE}, **options)["a.v"]
        assert torch.equal(got[:, 2:], given["a.v"][:, 2:])
        far.append((got - given["a.v"])[:, :2].square().mean().item())
    assert far[0] < 0.5 * far[1] < 0.5 * far[2], far
    again = inpaint(model, "a@0.4", given, {"a.v": FREE}, resamples=2, **options)["a.v"]
    assert torch.equal(again[:, 2:], given["a.v"][:, 2:]) and not torch.equal(again, got)


def test_symbols_are_exact_and_what_is_known_stays(words):
    model, table = words
    given, num = {"w": "aba", "n": 0.5}, 6000
    free = {"w.ids": torch.tensor([True, False, True])}
    got = inpaint(model, "w | n", given, free, num, steps=4, batch_size=num)["w"]
    latents = model.encode({"w": ["aba"], "n": [0.5]})
    found = torch.tensor([sum(word == a + "b" + b for word in got) for a in "ab" for b in "ab"]) / num
    hidden = {"w.ids": torch.where(free["w.ids"], 2, latents["w.ids"]), "n.v": latents["n.v"]}
    times = {"w": torch.tensor([500.0]), "n": torch.zeros(1)}
    weights = table.posterior(hidden, times).weights[0]
    cells = [
        (weights * (table.symbols["w.ids"] == torch.tensor([i, 1, j])).all(1)).sum() for i in (0, 1) for j in (0, 1)
    ]
    exact_shares = torch.stack(cells)
    assert exact_shares.sum() == pytest.approx(1) and exact_shares.max() < 0.9
    assert ((found - exact_shares).abs() <= 4 * (exact_shares * (1 - exact_shares) / num).sqrt()).all()


def test_a_sample_is_the_same_in_any_batch_also_where_masks_differ(words):
    model, _ = words
    given = {"w": ["aba", "bbb", "aab"], "n": [0.5, 0.1, -1.0]}
    options = {"steps": 3, "seed": 5}

    class Last(WordCodec):
        def mask(self, region, raw=None):
            return {"ids": torch.tensor([letter == region for letter in raw])}

    model.modalities["w"].codec.mask = Last().mask
    together = inpaint(model, "w | n", given, {"w": "a"}, **options)["w"]
    apart = inpaint(model, "w | n", given, {"w": "a"}, batch_size=1, **options)["w"]
    assert together == apart and [word[1] for word in together[:1]] == ["b"] and together[1] == "bbb"
    outside = inpaint(model, "w | n", given, {"w": "a"}, outside=True, **options)["w"]
    assert outside[0][0] + outside[0][2] == "aa" and outside[2][:2] == "aa"
    del model.modalities["w"].codec.mask


def test_resampling_goes_down_each_tenth_so_often():
    spec, steps = resampled(TimestepSpec.parse("a | b", "ab"), 20, 3)
    times = [time for _, time in spec.paths["a"].knots]
    assert times[:7] == [1.0, 0.9, 1.0, 0.9, 1.0, 0.9, 0.8] and times[-1] == 0 and spec.paths["a"].renoises
    assert steps == 20 * 3 + 10 * 2 and spec.paths["b"] == TimestepSpec.parse("a | b", "ab").paths["b"]
    assert resampled(spec, 20, 1) == (spec, 20)


def test_regions_in_the_streams_coordinates(numbers):
    grid = Stream.grid(2, 4, 6, patch=2)

    class Grid(NumberCodec):
        @property
        def streams(self):
            return {"g": grid, "v": Stream.vector(3), "s": Stream.sequence(5, 2)}

    masks = Grid().mask({"g": [[1, 3], [0, 2]], "s": [2, 4]})
    assert masks["g"].shape == (2, 4, 6) and masks["g"][:, 1:3, :2].all() and masks["g"].sum() == 8
    assert masks["v"].all() and masks["s"][2:4].all() and masks["s"].sum() == 4
    for region, says in (
        ("left", "no mapping from streams to a range"),
        ({"v": [0, 1]}, "no range"),
        ({"g": [[0, 9], [0, 2]]}, r"not within the grid \[4, 6\]"),
        ({"s": [3, 3]}, "not within"),
    ):
        with pytest.raises(ValueError, match=says):
            Grid().mask(region)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a", {"a": 0.5}, {}), "no region is given"),
        (
            ("a", {"a": 0.5}, {"b.v": torch.ones(1, dtype=torch.bool)}),
            "a region of 'b' is given, which a does not solve",
        ),
        (("a", {}, {"a.v": FREE}), "and no value of it"),
        (({"a": [0, 1]}, {"a": 0.5}, {"a.v": FREE}), "inpainting takes paths from a noisy state to 0"),
        (("a | b", {"a": 0.5}, {"a.v": FREE}), "a | b holds 'b', but no value"),
        (("a", {"a": 0.5, "b": 0.5}, {"a.v": FREE}), "'b' is given, but a does not use it"),
        (("a", {"a": 0.5}, {"a.v": FREE[:2]}), r"the mask of 'a\.v' is torch\.bool \(2,\)"),
        (("a", {"a": 0.5}, {"a.v": FREE & False}), "nothing of 'a' is to be sampled"),
    ],
)
def test_what_makes_no_sense_is_said(numbers, arguments, says):
    with pytest.raises(SpecError, match=says.replace("|", r"\|")):
        inpaint(numbers[0], *arguments)


def test_resampling_does_not_go_with_everything(numbers, words):
    free = {"w.ids": torch.tensor([True, False, True])}
    for spec, options, what in (
        ("w", {"resamples": 2}, "resampling"),
        ("w", {"kept_at": 0.2}, "noise of what is kept"),
        ("w@0.5", {}, "start below 1"),
    ):
        with pytest.raises(SpecError, match=f"symbols take no {what}"):
            inpaint(words[0], spec, {"w": "aba"}, free, **options)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(SpecError, match=r"put back down to a time in \[0, 1\)"):
            inpaint(numbers[0], "a", {"a": 0.5}, {"a.v": FREE}, kept_at=wrong)
    with pytest.raises(SpecError, match="10 stretches"):
        inpaint(numbers[0], "a", {"a": 0.5}, {"a.v": FREE}, resamples=2, steps=5)
    with pytest.raises(SpecError, match="go down in one piece"):
        inpaint(numbers[0], {"a": [[0, 1], [0.5, 0.3], [1, 0]]}, {"a": 0.5}, {"a.v": FREE}, resamples=2)
