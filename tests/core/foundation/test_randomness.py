from __future__ import annotations

import pytest
import torch

from unidiff_core.foundation import randomness
from unidiff_core.foundation.randomness import Draws


def words(*values):
    return [torch.tensor([value], dtype=torch.int64) for value in values]


def test_philox_gives_the_published_words():
    """Known answers of Random123's philox4x32-10."""
    ones = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, answer in cases:
        assert tuple(word.item() for word in randomness.philox(words(*counter), key)) == answer


def test_a_sample_does_not_depend_on_its_batch():
    whole = randomness.normal(0, "noise", "a.x", 3, torch.arange(10), (2, 5))
    part = randomness.normal(0, "noise", "a.x", 3, torch.tensor([7]), (2, 5))
    assert torch.equal(whole[7], part[0])


def test_every_argument_changes_the_draw():
    index = torch.arange(4)
    draws = [
        randomness.normal(seed, purpose, stream, step, index + shift, (6,))
        for seed, purpose, stream, step, shift in [
            (0, "noise", "a.x", 0, 0),
            (1, "noise", "a.x", 0, 0),
            (0, "other", "a.x", 0, 0),
            (0, "noise", "a.y", 0, 0),
            (0, "noise", "a.x", 1, 0),
            (0, "noise", "a.x", 0, 4),
        ]
    ]
    assert all(not torch.equal(draws[0], other) for other in draws[1:])


def test_normal_is_standard_normal():
    x = randomness.normal(0, "noise", "a.x", 0, torch.arange(2000), (7, 9)).double()
    n = x.numel()
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(x.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    flat = x.flatten(1)
    correlation = torch.corrcoef(flat.T) - torch.eye(63)
    assert correlation.abs().max() < 5 / 2000**0.5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 65537])
def test_a_permutation_takes_every_place_once(size):
    places = torch.arange(size)
    order = randomness.permutation(0, "order", 5, size, places)
    assert torch.equal(order.sort().values, places)
    assert torch.equal(order[size // 2 :], randomness.permutation(0, "order", 5, size, places[size // 2 :]))
    if size > 100:
        assert not torch.equal(order, randomness.permutation(0, "order", 6, size, places))
        # Like a random one: few fixed points, and neighbours far apart.
        assert (order == places).sum() < 10
        assert abs(order.diff().abs().double().mean() / size - 1 / 3) < 0.03


def test_a_permutation_of_billions_needs_no_table():
    size = 3_000_000_017
    places = torch.arange(size - 5000, size)
    order = randomness.permutation(0, "order", 0, size, places)
    assert len(order.unique()) == 5000 and order.min() >= 0 and order.max() < size
    assert abs(order.double().mean() / size - 0.5) < 0.03


def test_draws_of_one_purpose_are_the_same_again_and_independent_by_kind_and_by_name():
    draws = Draws(3, "test", "a.v", 5, torch.arange(4000))
    normal, uniform = draws.normal((4,)), draws.uniform((4,))
    assert torch.equal(normal, randomness.normal(3, "test", "a.v", 5, draws.index, (4,)))
    assert draws.normal((4,)) is normal and draws.uniform((4,)) is uniform
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    other = draws.named("other")
    # Box–Muller makes a small normal pair of a large first word: kinds that shared their words would correlate.
    pairs = [(normal.abs().double(), uniform), (uniform, other.uniform((4,))), (normal, other.normal((4,)))]
    for one, two in pairs:
        rows = torch.cat([one.double().T, two.double().T])
        assert torch.corrcoef(rows)[:4, 4:].abs().max() < 0.08  # 5 standard errors of 4,000 samples


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(randomness, "_words", lambda *_: pytest.fail("drawn"))
    Draws(0, "test", "a.v", 0, torch.arange(3)).named("part")
