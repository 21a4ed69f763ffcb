"""The edited process: what is replaced, the law of its steps by enumeration, and what it refuses."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch

from tests.core.conftest import NumberCodec
from tests.core.process import toy
from tests.core.process.toy import LENGTH, SymbolCodec
from unidiff_core import Modality, Stream, UniDiffuser
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.registry import Registry
from unidiff_core.foundation.time import T
from unidiff_core.process.edited.process import Edited
from unidiff_core.process.edited.solver import Reedit, Revert, picked, replaced
from unidiff_core.process.process import History, Step
from unidiff_core.process.symbols import count_at
from unidiff_core.sampling.loop import sample
from unidiff_core.serialization.description import build, describe
from unidiff_core.training.law import Atoms

DOUBLE = torch.float64
SIZE, VOCABULARY = 4, 3
WORDS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=SIZE)))
PLACES = torch.tensor([VOCABULARY**i for i in reversed(range(SIZE))])  # word → its row in WORDS


def draws(num, purpose="noise"):
    return Draws(0, purpose, "word.ids", 0, torch.arange(num))


def times(t, num):
    return torch.full((num,), float(t), dtype=DOUBLE)


def one_step(t, t_next, num, i=0):
    return Step(t, t_next, Draws(0, "solver", "word.ids", i, torch.arange(num)), History([]), fixed=draws(num))


def data():
    """A table over all words."""
    weights = torch.randn(len(WORDS), dtype=DOUBLE, generator=torch.Generator().manual_seed(3)) * 1.5
    return weights.softmax(0)


@cache
def forward(num, *, distinct):
    """q(x_n | x_0) by a loop over which are replaced, and by what: ``[x_0, x_n]``."""
    table = torch.zeros(len(WORDS), len(WORDS), dtype=DOUBLE)
    subsets = list(itertools.combinations(range(SIZE), num))
    for row, word in enumerate(WORDS.tolist()):
        for places in subsets:
            options = [[v for v in range(VOCABULARY) if not (distinct and v == word[i])] for i in places]
            for values in itertools.product(*options):
                x = list(word)
                for i, v in zip(places, values, strict=True):
                    x[i] = v
                share = 1 / len(subsets) / math.prod(map(len, options))
                table[row, int(sum(v * p for v, p in zip(x, PLACES.tolist(), strict=True)))] += share
    return table


def marginals(num, *, distinct):
    """p(x_0,i = v | x_n) ``[x_n, i, v]``; uniform where x_n cannot be."""
    joint = data()[:, None] * forward(num, distinct=distinct)
    posterior = joint / joint.sum(0).clamp(min=1e-300)
    of_symbol = torch.nn.functional.one_hot(WORDS, VOCABULARY).double()
    found = torch.einsum("cx,civ->xiv", posterior, of_symbol)
    return torch.where(joint.sum(0)[:, None, None] > 0, found, 1 / VOCABULARY)


def known(num, *, distinct):
    """What an exact network says."""
    return marginals(num, distinct=distinct).clamp(min=1e-300).log()


@cache
def transition(num, *, distinct):
    """The law of one step of `Revert` from n to n − 1 under the exact marginals, by enumeration: ``[x, x']``."""
    p = marginals(num, distinct=distinct)
    own = p.gather(-1, WORDS[..., None])[..., 0]
    chance = replaced(1 - own, num, distinct)
    table = torch.zeros(len(WORDS), len(WORDS), dtype=DOUBLE)
    for x, word in enumerate(WORDS.tolist()):
        for i, v in itertools.product(range(SIZE), range(VOCABULARY)):
            if v == word[i]:
                continue
            differs = 1 - own[x, i]
            picks = chance[x, i] / chance[x].sum()
            edits = 1.0 if distinct else differs / chance[x, i]
            share = picks * edits * p[x, i, v] / differs if differs > 0 else torch.tensor(0.0)
            table[x, x + (v - word[i]) * PLACES[i]] += share
        table[x, x] += 1 - table[x].sum()
    assert (table > -1e-12).all()
    return table


def distance(a, b):
    return 0.5 * (a - b).abs().sum().item()


def check_counts(shares, law, num):
    """χ² of `num` samples against a law."""
    there = law * num > 3
    chi2 = num * ((shares - law).square() / law)[there].sum().item()
    degrees = int(there.sum()) - 1
    print(f"χ² {chi2:.1f} of {degrees} degrees")
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("distinct", [False, True])
def test_its_probabilities_are_those_of_a_loop_over_what_is_replaced(distinct):
    process = Edited(VOCABULARY, distinct)
    for num in range(SIZE + 1):
        t = times(num * T / SIZE, len(WORDS))
        found = process.log_probability(WORDS, WORDS, t).exp().T  # [x_0, x_t]
        assert torch.allclose(found, forward(num, distinct=distinct), rtol=0, atol=1e-12)
        assert torch.allclose(found.sum(1), torch.ones(len(WORDS), dtype=DOUBLE), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distinct", [False, True])
def test_corruption_has_that_law(distinct):
    process, num = Edited(VOCABULARY, distinct), 40000
    word = torch.tensor([2, 0, 1, 1])
    for k in (1, 3, 4):
        x = process.corrupt(word.expand(num, SIZE), times(k * T / SIZE, num), draws(num)).corrupted
        law = forward(k, distinct=distinct)[(word * PLACES).sum()]
        share = torch.bincount((x * PLACES).sum(1), minlength=len(WORDS)) / num
        assert ((share - law).abs() <= 4.5 * (law * (1 - law) / num).sqrt()).all()


def test_one_edit_a_step_is_exact_under_exact_marginals():
    """Also from x_T of `distinct`, whose law is not the uniform one that it starts from."""
    law = torch.full((len(WORDS),), 1 / len(WORDS), dtype=DOUBLE)
    for num in range(SIZE, 0, -1):
        assert distance(law, data() @ forward(num, distinct=False)) < 1e-12
        law = law @ transition(num, distinct=False)
    assert distance(law, data()) < 1e-12

    true = data() @ forward(SIZE, distinct=True)
    uniform = torch.full_like(true, 1 / len(WORDS))
    assert distance(true, uniform) > 0.03
    for num in range(SIZE, 0, -1):
        true, uniform = (row @ transition(num, distinct=True) for row in (true, uniform))
    print(f"distinct from a uniform start: {distance(uniform, data()):.4f}")
    assert distance(true, data()) < 1e-12 < distance(uniform, data())


@pytest.mark.parametrize("distinct", [False, True])
def test_the_sampler_draws_from_that_law(distinct):
    """Against the enumerated chain from the uniform start."""
    process, num = Edited(VOCABULARY, distinct), 60000
    law = torch.full((len(WORDS),), 1 / len(WORDS), dtype=DOUBLE)
    x = process.start((SIZE,), draws(num))
    for i, k in enumerate(range(SIZE, 0, -1)):
        law = law @ transition(k, distinct=distinct)
        logits = known(k, distinct=distinct)[(x * PLACES).sum(1)]
        x = process.step(x, logits, one_step(k * T / SIZE, (k - 1) * T / SIZE, num, i), Revert())
    check_counts(torch.bincount((x * PLACES).sum(1), minlength=len(WORDS)) / num, law, num)


def law_of(process, solver, steps, num=20000):
    """The shares of all words among samples of the exact marginals."""
    grid = [k * T / SIZE for k in steps]
    x = process.start((SIZE,), draws(num))
    for i, (t, t_next) in enumerate(itertools.pairwise(grid)):
        logits = known(count_at(t, SIZE), distinct=process.distinct)
        x = process.step(x, logits[(x * PLACES).sum(1)], one_step(t, t_next, num, i), solver)
    return torch.bincount((x * PLACES).sum(1), minlength=len(WORDS)) / num


def test_several_at_once_are_biased_and_one_step_is_the_product_of_the_marginals():
    process = Edited(VOCABULARY)
    single = data() @ torch.nn.functional.one_hot(WORDS, VOCABULARY).double().flatten(1)
    product = single.reshape(SIZE, VOCABULARY)[torch.arange(SIZE), WORDS].prod(1)
    check_counts(law_of(process, Revert(), (4, 0)), product, 20000)
    found = {
        steps: distance(law_of(process, Revert(), steps), data()) for steps in ((4, 0), (4, 2, 0), (4, 3, 2, 1, 0))
    }
    found["reedit"] = distance(law_of(process, Reedit(), (4, 3, 2, 1, 0)), data())
    print(found)
    assert found[4, 0] > found[4, 2, 0] > found[4, 3, 2, 1, 0] and found["reedit"] > 2 * found[4, 3, 2, 1, 0]


def test_replaced_symbols_are_nested_in_time_and_uniform_at_the_end():
    process = Edited(5)
    ids = torch.randint(5, (4000, 6), generator=torch.Generator().manual_seed(0))
    rows = [process.corrupt(ids, times(t, 4000), draws(4000)).corrupted for t in (0, 1, 300, 500, 1000)]
    assert torch.equal(rows[0], ids) and torch.equal(rows[-1], process.start((6,), draws(4000)))
    for less, more in itertools.pairwise(rows):
        assert (more[less != ids] == less[less != ids]).all()
    never = Edited(5, distinct=True)
    for t, k in ((0, 0), (1, 1), (300, 2), (500, 3), (1000, 6)):
        assert ((never.corrupt(ids, times(t, 4000), draws(4000)).corrupted != ids).sum(1) == k).all()


def test_what_is_left_at_the_end_is_declared():
    """Bits of x_0 that x_T tells, counted: of one uniform symbol."""
    for vocabulary in (2, 3, 10):
        assert Edited(vocabulary).leak == 0 and Edited(vocabulary).forgets
        process = Edited(vocabulary, distinct=True)
        ids = torch.arange(vocabulary)[:, None]
        q = process.log_probability(ids, ids, times(T, vocabulary)).exp()
        bits = (q * (q * vocabulary).clamp(min=1e-300).log2()).sum().item() / vocabulary
        assert process.leak == pytest.approx(bits) and not process.forgets
    assert Edited(2, distinct=True).leak == 1


@pytest.mark.parametrize("distinct", [False, True])
def test_a_step_puts_back_as_many_as_its_end_says(distinct):
    """With a network that knows: the guess is the clean value, and what is replaced is put back in as many as asked."""
    process, num = Edited(5, distinct), 500
    ids = torch.randint(5, (num, 6), generator=torch.Generator().manual_seed(0))
    sure = torch.nn.functional.one_hot(ids, 5) * 200.0
    x = process.corrupt(ids, times(T, num), draws(num)).corrupted
    for i, (t, t_next) in enumerate(itertools.pairwise([1000, 800, 500, 400, 100, 0])):
        before = x
        x = process.step(x, sure, one_step(t, t_next, num, i), Revert())
        moved = x != before
        assert (x == ids)[moved].all()
        if distinct:
            assert ((x != ids).sum(1) == count_at(t_next, 6)).all()
        else:
            assert ((x != ids).sum(1) <= count_at(t_next, 6)).all()
    assert torch.equal(x, ids)


def test_a_step_up_replaces_as_the_forward_process_does():
    process = Edited(5)
    ids = torch.randint(5, (200, 6), generator=torch.Generator().manual_seed(0))
    x, logits = ids, torch.zeros(200, 6, 5)
    for t, t_next in itertools.pairwise([0, 300, 500, 1000]):
        x = process.step(x, logits, one_step(t, t_next, 200), Revert())
        assert torch.equal(x, process.corrupt(ids, times(t_next, 200), draws(200)).corrupted)


def test_places_are_picked_in_proportion_to_their_weights_and_without_replacement():
    weights = torch.tensor([0.5, 1.0, 0.2, 0.8, 0.5], dtype=DOUBLE)
    for num in (1, 2, 3):
        got = picked(weights.expand(40000, 5), num, draws(40000))
        assert (got.sum(1) == num).all()
        share = got.double().mean(0)
        assert (share - weights * num / 3).abs().max() < 4.5 * (0.25 / 40000) ** 0.5
    assert picked(torch.ones(50, 7, dtype=DOUBLE), 7, draws(50)).all()
    assert not picked(torch.zeros(50, 7, dtype=DOUBLE), 2, draws(50)).any()  # a network that sees nothing to put back
    exact = replaced(torch.tensor([[0.9, 0.9, 0.9, 0.0]], dtype=DOUBLE), 2, False)
    assert torch.allclose(exact, torch.tensor([[2 / 3, 2 / 3, 2 / 3, 0.0]], dtype=DOUBLE))


def test_ids_on_a_grid_and_the_loss_of_all_symbols():
    process = Edited()
    stream = Stream.symbols(2, 3, vocabulary=4)
    assert process.seen(stream) == stream and process.predicted(stream) == Stream.grid(4, 2, 3)
    ids = torch.randint(4, (5, 2, 3), generator=torch.Generator().manual_seed(0))
    prediction = torch.randn(5, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    corruption = process.corrupt(ids, times(400, 5), draws(5))
    by_hand = -prediction.log_softmax(1).gather(1, ids[:, None])[:, 0]
    assert torch.allclose(process.loss(prediction, corruption, times(400, 5)), by_hand)
    sure = torch.nn.functional.one_hot(ids, 4).movedim(-1, 1) * 50.0
    clean = process.clean(corruption.corrupted, sure, times(400, 5))
    assert torch.equal(process.step(corruption.corrupted, clean, one_step(400, 0, 5), Revert()), ids)


@pytest.fixture(scope="module")
def trained():
    return toy.train(steps=300, process=Edited(), timestep_law={"number": Atoms({0: 0.5})})[0].eval()


def test_it_learns_and_guidance_helps(trained):
    given = {"number": [-1.0, 0.0, 1.0] * 60}
    right = {}
    for scale in (0.0, 2.0):
        words = trained.sample("word | number", given, steps=LENGTH, guidance=scale)["word"]
        assert all(set(word) <= set("012") for word in words)
        right[scale] = sum(word[0] == str(i % 3) for i, word in enumerate(words)) / len(words)
    print(f"first symbol right: {right}")
    assert right[0.0] > 0.5 and right[2.0] > right[0.0]


def test_steps_that_put_nothing_back_cost_nothing(trained, monkeypatch):
    calls, predict = [], trained.predict
    monkeypatch.setattr(trained, "predict", lambda *args, **more: calls.append(1) or predict(*args, **more))
    trained.sample("word", num=3, steps=37)
    assert len(calls) == LENGTH


def test_held_words_come_back_and_half_held_ones_are_edited_in_half(trained):
    words = torch.randint(3, (64, LENGTH), generator=torch.Generator().manual_seed(0))
    options = {"supplied": {"word.ids": words}, "num": 64, "steps": 4}
    assert torch.equal(trained.sample_latents("number | word", **options)["word.ids"], words)
    half = trained.sample_latents("number | word@0.5", **options)["word.ids"]
    assert ((half != words).sum(1) <= LENGTH // 2).all() and not torch.equal(half, words)
    refilled = trained.sample_latents("word@0.5", **options)["word.ids"]
    assert ((refilled != words).sum(1) <= LENGTH).all() and not torch.equal(refilled, words)


def test_samples_do_not_depend_on_the_batch(trained):
    for solver in ("revert", "reedit"):
        options = {"num": 5, "steps": 3, "solver": {"word": solver}}
        whole = trained.sample("word, number", batch_size=5, **options)["word"]
        assert trained.sample("word, number", batch_size=2, **options)["word"] == whole


def test_it_is_described_and_built_with_its_vocabulary():
    from unidiff_core.builtin import unidiff_register

    registry = Registry("core")
    unidiff_register(registry)
    back = build(describe(Edited(7, distinct=True), registry), registry)
    assert (back.vocabulary, back.distinct) == (7, True)


def test_ignored_it_is_a_marginal_but_where_a_replacement_is_never_its_own():
    options = {"shapes": {"a.ids": (2,), "b.ids": (2,)}, "num": 2, "steps": 2}

    def predict(latents, times):
        return {key: torch.zeros(2, 2, 3) for key in latents}

    sample(predict, "a", processes={"a": Edited(3), "b": Edited(3)}, **options)
    with pytest.warns(
        UserWarning, match=r"ignoring 'b' is no exact marginal: Edited leaves 0\.58 bits of each element"
    ):
        sample(predict, "a", processes={"a": Edited(3), "b": Edited(3, distinct=True)}, **options)


REFUSED = {
    "the solver 'ddim' is no EditedSolver; known: reedit, revert": (
        lambda model: model.sample("word, number", solver={"word": "ddim"})
    ),
    "the solver 'random' is no EditedSolver; known: reedit": lambda model: model.sample("word", solver="random"),
    "unknown solver 'rewert'; known: reedit, revert": lambda model: model.sample("word", solver="rewert"),
    r"Edited cannot be inverted: .* hold it, {word: {hold: \[0, 1\]}}": (
        lambda model: model.sample({"word": [0, 1]}, {"word": "0120"})
    ),
    "at least 2 symbols, not 1": lambda model: Edited(1),
    "at least 2 symbols, and the stream is 4 of 1 symbols": lambda model: Modality(SymbolCodec(1), Edited()).ports,
    "over 5 symbols, and the stream is 4 of 3 symbols: give Edited the vocabulary 3, or none": (
        lambda model: Modality(SymbolCodec(), Edited(5)).ports
    ),
    "Edited is for symbols, and the stream 3 is of numbers": lambda model: Modality(NumberCodec(), Edited()).ports,
    "Edited knows no vocabulary": lambda model: Edited().start((4,), draws(1)),
    "the id 3 is out of range: Edited is over 3 symbols, ids 0 to 2": (
        lambda model: Edited(3).corrupt(torch.tensor([[0, 3]]), times(1, 1), draws(1))
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_to_do(trained, says):
    with pytest.raises(ValueError, match=says):
        REFUSED[says](trained)


def test_it_is_saved_and_loaded(tmp_path, trained, monkeypatch):
    toy.register(monkeypatch)
    trained.save_pretrained(tmp_path / "run")
    back = UniDiffuser.from_pretrained(tmp_path / "run")
    assert back.modalities["word"].process.vocabulary == 3
    assert back.sample("word", num=4, steps=4) == trained.sample("word", num=4, steps=4)
