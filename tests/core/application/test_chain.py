"""Chains, variations, interpolations and selections of a tiny model: what they pass on, and what they come back to."""

from __future__ import annotations

import pytest
import torch

from tests.core.tiny import make
from unidiff_core import best_of, chain, film, interpolate, vary
from unidiff_core.application.interpolation import slerp
from unidiff_core.foundation.randomness import key_of
from unidiff_core.sampling.spec import SpecError

OPTIONS = {"steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def model():
    """Of two modalities, a and b, of numbers, whose network says something."""
    made = make()
    torch.manual_seed(1)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def given(model):
    """Latents of a of three samples."""
    return {key: value for key, value in model.sample("a, b", num=3, steps=3, latents=True).items() if key[0] == "a"}


def test_a_variation_is_its_conditionals_on_each_others_latents(model, given):
    last = vary(model, "a > b > a", given, **OPTIONS)
    there = model.sample("b | a", given, 3, latents=True, **OPTIONS)
    back = model.sample("a | b", there, 3, latents=True, steps=4, seed=key_of(3, "link 1")[0])
    assert last.solved == ("a",) and torch.equal(last.new["a.v"], back["a.v"])
    assert torch.equal(last.latents["b.s"], there["b.s"])
    assert last.decode(model) == model.decode(back, ["a"])


def test_each_link_has_its_own_seed_and_the_first_that_of_the_call(model):
    links = list(chain(model, ["b | a", "b | a"], {"a": 0.5}, 2, **OPTIONS))
    first, second = (link.new["b.s"] for link in links)
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(first, model.sample("b | a", {"a": 0.5}, 2, latents=True, **OPTIONS)["b.s"])
    assert torch.equal(second, list(chain(model, ["b | a"], {"a": 0.5}, 2, rounds=2, **OPTIONS))[1].new["b.s"])


def test_any_alternation_with_noise_and_starts_below_it(model):
    specs = ["a", "b | a@0.2", {"a": [0.6, 0], "b": {"hold": [0.5, 0]}}]
    steps = []
    links = list(
        chain(model, specs, num=5, rounds=2, batch_size=2, guidance={"b": 1.0}, on_step=steps.append, **OPTIONS)
    )
    assert [link.title for link in links[:2]] == ["a", "b | a@0.2"] and len(links) == 6
    assert [row.step for row in steps] == list(range(1, 6 * 3 * 4 + 1)) and {row.steps for row in steps} == {72}
    alone = model.sample(specs[2], links[1].latents, 5, latents=True, guidance={"b": 1.0}, steps=4,
                         seed=key_of(3, "link 2")[0])  # fmt: skip
    assert torch.allclose(links[2].new["a.v"], alone["a.v"], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: chain(m, ["a | b"]), r"link 1, a \| b, needs 'b', which is neither given nor solved before"),
        (lambda m: chain(m, ["a", "b | a"], {"b": 0.5}), "'b' is given, but no link of a, b | a uses it"),
        (lambda m: chain(m, []), "a chain is of one spec"),
        (lambda m: vary(m, "a", {"a": 0.5}), "through two stations at least"),
        (lambda m: vary(m, "a > c", {"a": 0.5}), "unknown modality 'c'"),
        (lambda m: interpolate(m, "a", ({"a": 0.1}, {"b": [0.2]})), "the ends are given as a and as b"),
        (lambda m: interpolate(m, "a", ({"a": 0.1}, {"a": [0.2, 0.3]})), "one end has 1 samples, and the other 2"),
        (lambda m: interpolate(m, "a", ({"a": 0.1}, {"a": 0.2}), frames=1), "two frames at least"),
        (lambda m: best_of(m, "a", n=0, score=len), "n is 1 at least"),
        (lambda m: best_of(m, "a", n=2, steps=1, score=lambda new, old: [1.0]), r"gives \(1,\) for 2 candidates"),
    ],
)
def test_what_makes_no_sense_is_said(model, call, says):
    with pytest.raises(SpecError, match=says):
        call(model)


def test_a_sphere_keeps_the_length_and_parallels_go_straight():
    a, b = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    b = b / b.flatten(1).norm(dim=1)[:, None, None] * a.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6) and torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)
    assert torch.allclose(slerp(a, b, 0.3).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), atol=1e-5)
    for c in (2 * a, -a):
        assert torch.allclose(slerp(a, c, 0.25), 0.75 * a + 0.25 * c, atol=1e-6)


def test_the_ends_of_an_interpolation_come_back_and_its_middle_is_between(model):
    ends = {"a": [0.5, -0.3]}, {"a": [-0.8, 0.9]}
    frames = interpolate(model, "a", ends, through=["b"], frames=3, steps=60, solver="heun")
    for end, frame in zip(ends, (frames[0], frames[-1]), strict=True):
        assert frame.decode(model)["a"] == pytest.approx(end["a"], abs=2e-3)
    one, middle, other = (frame.latents["b.s"] for frame in frames)
    assert torch.allclose(middle, slerp(one, other, 0.5), atol=1e-6)
    noise = model.sample("b | a", {"a": [0.5, -0.3]}, latents=True, steps=60, solver="heun")["b.s"]
    assert torch.allclose(one, noise, atol=1e-6), "both ends are given through what one noise gave"


def test_given_texts_are_not_sampled_anew(model):
    ends = {"a": 0.5, "b": 0.0}, {"a": -0.5, "b": 1.0}
    frames = interpolate(model, "a", ends, through=["b"], frames=2, steps=2)
    assert torch.equal(frames[0].latents["b.s"], model.encode({"b": [0.0]})["b.s"])


def test_the_best_of_several_is_the_best_of_the_same_samples(model):
    drawn = model.sample("a | b", {"b": [0.0] * 6}, 6, steps=2)["a"]
    told = []

    def score(solved, given):
        told.append(given)
        return solved["a"]

    best = best_of(model, "a | b", {"b": 0.0}, 2, n=3, score=score, steps=2)["a"]
    assert best == [max(drawn[:3]), max(drawn[3:])] and len(told[0]["b"]) == 6


def test_a_film_shows_every_link_of_every_chain(model, tmp_path):
    links = list(chain(model, ["b | a", "a | b"], {"a": [0.5, 0.25]}, rounds=2, **OPTIONS))
    page = film(model, links, tmp_path)[0].read_text()
    assert page.count("<th>") == 4 and page.count("<td>") == 8
    for link in links:
        for name, raws in link.decode(model).items():
            assert all(model.modalities[name].codec.html(raw) in page for raw in raws)
