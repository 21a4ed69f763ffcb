"""Samplers of symbols by enumeration: the law of the loop, guided or not, and the loss, under the exact oracle."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.core.conftest import NumberCodec
from tests.core.enumerated import DOUBLE, EditedEnumeration, Enumeration, Law, even, scripted, total_variation
from tests.core.process.toy import LENGTH, SymbolCodec
from unidiff_core import Batch, Modality
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.process.edited.process import Edited
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.masked.process import Masked
from unidiff_core.testing import ExactMixture
from unidiff_core.training.law import Atoms, Uniform, law_of
from unidiff_core.training.objective import Objective

WORDS = ExactMixture.random({"w": Masked(3)}, {"w.ids": (3,)})
EDITED = ExactMixture.random({"w": Edited(3)}, {"w.ids": (3,)})
DISTINCT = ExactMixture.random({"w": Edited(3, distinct=True)}, {"w.ids": (3,)})
BITS = ExactMixture.random({"w": Edited(2)}, {"w.ids": (3,)})
LABELLED = ExactMixture.random({"w": Masked(3), "label": Masked(2)}, {"w.ids": (3,), "label.ids": (1,)}, seed=1)


def distance(oracle, solver, steps):
    """Total variation between the sampler's law and the data's."""
    kind = EditedEnumeration if isinstance(oracle.processes["w"], Edited) else Enumeration
    law = kind(oracle, "w.ids", solver=solver).law(even(steps))
    got = law.probabilities(oracle.symbols["w.ids"])
    assert got.sum().item() == pytest.approx(1, abs=1e-12)
    return total_variation(got, oracle.log_weights.exp())


@pytest.mark.parametrize("solver", ["random", "certain"])
def test_one_reveal_a_step_is_exact_and_steps_beyond_change_nothing(solver):
    for steps in (3, 5):
        assert distance(WORDS, solver, steps) < 1e-12
    longer = ExactMixture.random({"w": Masked(2)}, {"w.ids": (4,)})
    assert distance(longer, solver, 4) < 1e-12
    assert distance(longer, solver, 2) > 0.01, "two at once are drawn as if they were independent"


def test_several_reveals_a_step_cost_what_they_cost():
    """At one step symbols are drawn from their marginals, each for itself, whatever the order."""
    shares = WORDS.log_weights.exp().reshape(3, 3, 3)
    apart = shares.sum((1, 2))[:, None, None] * shares.sum((0, 2))[:, None] * shares.sum((0, 1))
    for solver in ("random", "certain", "confident"):
        assert distance(WORDS, solver, 1) == pytest.approx(total_variation(apart, shares), abs=1e-12)
    two = distance(WORDS, "random", 2)
    assert 0.1 < two < distance(WORDS, "random", 1)
    assert two < distance(WORDS, "certain", 2), "the most certain places first leave the hardest two for last"


def test_an_order_that_looks_at_what_was_drawn_is_not_exact():
    assert distance(WORDS, "confident", 3) > 0.3


def test_remasking_is_exact_only_in_the_limit():
    """Under the exact posterior it repairs parallel reveals a little, and spoils single ones a little."""
    bits = ExactMixture.random({"w": Masked(2)}, {"w.ids": (3,)})
    rows = {remask: [distance(bits, f"random({remask})", steps) for steps in (3, 6, 12)] for remask in (0.5, 1)}
    print(rows)
    assert all(0.001 < row[0] < 0.05 and row[0] > row[1] > row[2] for row in rows.values()), rows


def test_one_edit_a_step_is_exact_and_several_cost_what_they_cost():
    rows = {steps: distance(EDITED, "revert", steps) for steps in (1, 2, 3, 5)}
    print(rows)
    assert rows[3] < 1e-12 and rows[5] < 1e-12
    assert rows[1] == pytest.approx(distance(WORDS, "random", 1), abs=1e-12), "all at once: the product of marginals"
    assert 0.1 < rows[2] < rows[1]


def test_edits_that_are_never_their_own_begin_elsewhere_than_they_end():
    """x_T is not uniform, so the uniform start is wrong; from x_T itself one edit a step is exact."""
    enumeration = EditedEnumeration(DISTINCT, "w.ids")
    start, cells, table = enumeration.start(), DISTINCT.symbols["w.ids"], DISTINCT.log_weights.exp()
    forward = DISTINCT.processes["w"].log_probability(start.states, cells, torch.full((len(start.states),), float(T)))
    true = Law(start.states, start.orders, forward.exp() @ table)
    assert total_variation(enumeration.law(even(3), true).probabilities(cells), table) < 1e-12
    assert 0.005 < distance(DISTINCT, "revert", 3) < 0.02


def test_guesses_that_are_edited_anew_are_not_exact():
    """At one step they are what is put back all at once; more steps repair half of that and no more."""
    rows = [distance(BITS, "reedit", steps) for steps in (1, 2, 3)]
    print(rows)
    assert rows[0] == pytest.approx(distance(BITS, "revert", 1), abs=1e-12)
    assert distance(BITS, "revert", 3) < 1e-12 < 0.01 < rows[2] < rows[0]


def tilted(oracle, label, scale):
    """p(word | label)^(1 + scale)·p(word)^(−scale), one symbol at a time in each order, by plain loops."""
    table = {
        (*word, cell): weight
        for word, cell, weight in zip(
            oracle.symbols["w.ids"].tolist(),
            oracle.symbols["label.ids"][:, 0].tolist(),
            oracle.log_weights.exp().tolist(),
            strict=True,
        )
    }

    def share(known, labels):
        """Unnormalised probability of the places that are known, with one of the labels."""
        return sum(p for row, p in table.items() if row[3] in labels and all(row[i] == v for i, v in known.items()))

    law = {}
    orders = list(itertools.permutations(range(3)))
    for order, word in itertools.product(orders, itertools.product(range(3), repeat=3)):
        chance, known = 1 / len(orders), {}
        for place in reversed(order):  # the first of an order is hidden first, and revealed last
            weights = []
            for value in range(3):
                seen = known | {place: value}
                guided = (share(seen, [label]) / share(known, [label])) ** (1 + scale)
                weights.append(guided / (share(seen, [0, 1]) / share(known, [0, 1])) ** scale)
            chance *= weights[word[place]] / sum(weights)
            known[place] = word[place]
        law[word] = law.get(word, 0.0) + chance
    return law


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_guided_chain_is_the_product_of_its_guided_steps(scale):
    for label in (0, 1):
        enumeration = Enumeration(
            LABELLED, "w.ids", held={"label": 0}, supplied={"label.ids": torch.tensor([[label]])}, guidance=scale
        )
        want = tilted(LABELLED, label, scale)
        got = enumeration.law(even(3)).probabilities(torch.tensor(list(want)))
        assert (got - torch.tensor(list(want.values()), dtype=DOUBLE)).abs().max() < 1e-12


def test_one_guided_symbol_is_the_tilted_law_and_three_are_not():
    """p(v | label)^(1 + s)·p(v)^(−s), normalised, is the law of one symbol; of three the order matters."""
    pair = ExactMixture.random({"w": Masked(4), "label": Masked(2)}, {"w.ids": (1,), "label.ids": (1,)})
    for oracle, is_close in ((pair, True), (LABELLED, False)):
        given = {"label.ids": torch.tensor([[1]])}
        law = Enumeration(oracle, "w.ids", held={"label": 0}, supplied=given, guidance=2.0).law(even(3))
        table = oracle.log_weights.exp().reshape(-1, 2)
        want = (table[:, 1] / table[:, 1].sum()) ** 3 / table.sum(1) ** 2
        got = law.probabilities(oracle.symbols["w.ids"][::2])
        assert (total_variation(got, want / want.sum()) < 1e-12) == is_close
    edited = {"w": Edited(4), "label": Masked(2)}
    oracle = ExactMixture.random(edited, {"w.ids": (1,), "label.ids": (1,)})
    law = EditedEnumeration(oracle, "w.ids", held={"label": 0}, supplied=given, guidance=2.0).law(even(3))
    table = oracle.log_weights.exp().reshape(-1, 2)
    want = (table[:, 1] / table[:, 1].sum()) ** 3 / table.sum(1) ** 2
    got = law.probabilities(oracle.symbols["w.ids"][::2])
    assert total_variation(got, want / want.sum()) < 1e-12


def enumerated_loss(oracle, key):
    """The loss of one stream, summed over symbols: its expectation over data, order and time, by enumeration."""
    name = key.partition(".")[0]
    process, ids = oracle.processes[name], oracle.symbols[key]
    orders = torch.tensor(list(itertools.permutations(range(ids.shape[1]))))
    cell, order, number = torch.cartesian_prod(
        torch.arange(len(ids)), torch.arange(len(orders)), torch.arange(1, ids.shape[1] + 1)
    ).T
    draws = Draws(0, "noise", key, 0, torch.arange(len(cell)))
    t = number.double() * T / ids.shape[1]
    with scripted(key, {"noise/order": orders[order].double() / ids.shape[1]}):
        corruption = process.corrupt(ids[cell], t, draws)
    prediction = oracle.network({key: corruption.corrupted}, {name: t})[key]
    weights = oracle.log_weights.exp()[cell] / (len(orders) * ids.shape[1])
    return (weights * process.loss(prediction, corruption, t).sum(1)).sum().item()


def test_the_elbo_loss_of_the_oracle_is_the_entropy():
    for shape, size in [((3,), 3), ((4,), 2), ((1,), 5)]:
        oracle = ExactMixture.random({"w": Masked(size)}, {"w.ids": shape}, seed=2)
        assert enumerated_loss(oracle, "w.ids") == pytest.approx(oracle.entropy, abs=1e-12)
    flat = ExactMixture.random({"w": Masked(3, "flat")}, {"w.ids": (3,)}, seed=2)
    assert abs(enumerated_loss(flat, "w.ids") - flat.entropy) > 0.1


@pytest.mark.parametrize("given", [False, True], ids=["alone", "given numbers"])
def test_the_objective_of_the_oracle_is_the_entropy_given_what_is_seen(given):
    """By the training's own draws, over 4000 samples: within four standard errors."""
    processes = {"word": Masked(3), "number": Gaussian(prediction="clean")}
    oracle, num = ExactMixture.random(processes, {"word.ids": (LENGTH,), "number.v": (3,)}, seed=3), 4000
    modalities = {
        "word": Modality(SymbolCodec(), processes["word"]),
        "number": Modality(NumberCodec(), processes["number"]),
    }
    law = law_of({"word": Uniform(), "number": Atoms({0 if given else 1: 1.0})}, [*modalities])
    index, latents = torch.arange(num), oracle.draw(num)
    _, losses = Objective(modalities, law)(latents, Batch(index, 0), oracle.network)
    total, count = losses["word.ids"]
    assert count == num * LENGTH
    seen = {"number.v": latents["number.v"]} if given else {"word.ids": torch.full((num, LENGTH), 3)}
    known = oracle.posterior(seen, {"number": torch.zeros(num), "word": torch.full((num,), float(T))})
    cells = (latents["word.ids"][:, None] == oracle.symbols["word.ids"]).all(-1)
    surprise = -known.weights[cells].log()  # of the words that were drawn: what each is bounded by, on average
    entropy = -(known.weights * known.weights.log()).sum(1).mean().item()
    spread = 4 * LENGTH / num**0.5  # the loss of a sample is about its length
    assert abs(total.item() / num - entropy) < spread / 2
    assert abs(total.item() / num - surprise.mean().item()) < spread / 2


def test_wrong_samplers_are_caught(monkeypatch):
    """More than one symbol at once, and logits that are 5 % too large: both far above rounding."""
    from unidiff_core.process.masked import process as masked

    count = masked.count_at
    for wrong in (lambda t, length: count(t, length) // 2, lambda t, length: max(count(t, length) - 1, 0)):
        with monkeypatch.context() as patched:
            patched.setattr(masked, "count_at", wrong)
            assert distance(WORDS, "random", 3) > 0.05
    from unidiff_core.process.edited import process as edited
    from unidiff_core.process.edited import solver

    picked = solver.picked
    for room, name, wrong in (
        (edited, "count_at", lambda t, length: count(t, length) // 2),
        (solver, "picked", lambda weights, num, draws: picked(weights**2, num, draws)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(room, name, wrong)
            assert distance(EDITED, "revert", 3) > 0.005
    cooled = Enumeration(_Cooled(WORDS), "w.ids")
    got = cooled.law(even(3)).probabilities(WORDS.symbols["w.ids"])
    assert total_variation(got, WORDS.log_weights.exp()) > 0.01


class _Cooled:
    """The oracle with logits 5 % too large."""

    def __init__(self, oracle):
        self.oracle, self.processes, self.shapes = oracle, oracle.processes, oracle.shapes

    def __call__(self, latents, times):
        return {key: 1.05 * row for key, row in self.oracle(latents, times).items()}
