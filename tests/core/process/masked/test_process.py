"""The masked process: how many are hidden and which, its loss, its steps, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.core.conftest import NumberCodec
from tests.core.process import toy
from tests.core.process.toy import LENGTH, SymbolCodec
from unidiff_core import Modality, Stream, UniDiffuser
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.process.masked.process import Masked
from unidiff_core.process.masked.solver import Certain, Confident, Random
from unidiff_core.process.process import History, Step
from unidiff_core.process.symbols import count_at, drawn, num_corrupted
from unidiff_core.sampling.loop import sample
from unidiff_core.training.law import Atoms

DOUBLE = torch.float64


def draws(num, purpose="noise"):
    return Draws(0, purpose, "word.ids", 0, torch.arange(num))


def times(t, num):
    return torch.full((num,), float(t), dtype=DOUBLE)


@pytest.mark.parametrize("length", range(1, 65))
def test_the_number_hidden_at_whole_steps_is_exact_for_single_precision_too(length):
    steps = torch.arange(T + 1)
    exact = -(-steps * length // T)
    assert torch.equal(num_corrupted(steps.double(), length), exact)
    assert torch.equal(num_corrupted(steps.float(), length), exact)
    places = torch.arange(length + 1)  # t = k·T/l hides k, though it is no number of the machine
    for t in (places * T / length, (places / length).float() * T, (places / length).double() * T):
        assert torch.equal(num_corrupted(t, length), places)
    assert [count_at(t, length) for t in steps.tolist()] == exact.tolist()


def test_hidden_symbols_are_nested_in_time_and_those_of_a_permutation():
    process, ids = Masked(5), torch.randint(5, (400, 6), generator=torch.Generator().manual_seed(0))
    rows = [process.corrupt(ids, times(t, 400), draws(400)) for t in (0, 1, 300, 500, 1000)]
    assert torch.equal(rows[0].corrupted, ids)
    assert [row.is_hidden.sum(1).unique().tolist() for row in rows] == [[0], [1], [2], [3], [6]]
    for less, more in itertools.pairwise(rows):
        assert (more.is_hidden | ~less.is_hidden).all()
    assert torch.equal(rows[-1].corrupted, process.start((6,), draws(400)))
    share = rows[2].is_hidden.double().mean(0)
    assert (share - 1 / 3).abs().max() < 4 * (2 / 9 / 400) ** 0.5


def test_the_loss_is_of_what_is_hidden_and_elbo_weighs_it_by_length_over_number():
    logits, ids = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1, 2, 3]] * 3)
    t = torch.tensor([0.0, 400.0, 1000.0])
    for weight, factors in (("elbo", [0, 2, 1]), ("flat", [0, 1, 1])):
        process = Masked(5, weight)
        corruption = process.corrupt(ids, t, draws(3))
        loss = process.loss(logits, corruption, t)
        by_hand = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] * corruption.is_hidden
        assert torch.allclose(loss, by_hand * torch.tensor(factors)[:, None])


def test_ids_on_a_grid_are_predicted_by_channels():
    process = Masked()
    seen = process.seen(Stream.symbols(2, 3, vocabulary=4))
    assert seen == Stream.symbols(2, 3, vocabulary=5)
    assert process.predicted(Stream.symbols(2, 3, vocabulary=4)) == Stream.grid(4, 2, 3)
    ids = torch.randint(4, (5, 2, 3), generator=torch.Generator().manual_seed(0))
    prediction = torch.nn.functional.one_hot(ids, 4).movedim(-1, 1) * 50.0
    t = times(T, 5)
    corruption = process.corrupt(ids, t, draws(5))
    assert process.loss(prediction, corruption, t).max() < 1e-6
    clean = process.clean(corruption.corrupted, prediction, t)
    step = Step(T, 0.0, draws(5), History([T, 0.0]))
    assert torch.equal(process.step(corruption.corrupted, clean, step, Random()), ids)


@pytest.mark.parametrize("solver", [Random(), Certain(), Confident(), Random(0.5), Certain(1.0)])
def test_a_step_leaves_as_many_hidden_as_its_end_says_and_never_draws_what_is_hidden(solver):
    process, num = Masked(5), 300
    logits = torch.randn(num, 6, 5, generator=torch.Generator().manual_seed(0))
    x = process.start((6,), draws(num))
    kept = True
    for i, (t, t_next) in enumerate(itertools.pairwise([1000, 800, 500, 400, 100, 0])):
        before = x
        step = Step(t, t_next, Draws(0, "solver", "word.ids", i, torch.arange(num)), History([]), fixed=draws(num))
        x = process.step(x, logits, step, solver)
        assert ((x == 5).sum(1) == count_at(t_next, 6)).all()
        kept &= bool((x == before)[before < 5].all())
    assert kept == (solver.remask == 0)


def test_it_reveals_in_the_order_of_its_corruption_backwards():
    process, ids = Masked(5), torch.zeros(50, 6, dtype=torch.int64)
    x = process.corrupt(ids, times(T, 50), draws(50)).corrupted
    sure = torch.tensor([9.0, 0, 0, 0, 0]).expand(50, 6, 5) * 9
    for t in (800, 500, 200, 0):
        x = process.step(x, sure, Step(T, t, draws(50, "solver"), History([]), fixed=draws(50)), Random())
        assert torch.equal(x, process.corrupt(ids, times(t, 50), draws(50)).corrupted)
        again = process.step(x, sure, Step(t, T, draws(50, "solver"), History([]), fixed=draws(50)), Random())
        assert (again == 5).all()


def test_symbols_are_drawn_by_their_probabilities_at_double_precision():
    logits = torch.tensor([[0.0, -1e30, 1.0, 2.0]]).log_softmax(-1).expand(40000, 4)
    got = drawn(logits, draws(40000).uniform(()))
    share = torch.bincount(got, minlength=4) / 40000
    assert share[1] == 0 and (share - logits[0].exp()).abs().max() < 0.01
    edge = torch.tensor([1 - 2.0**-32], dtype=DOUBLE)
    assert drawn(torch.zeros(1, 3), edge).tolist() == [2] and drawn(torch.zeros(1, 3), 0 * edge).tolist() == [0]


@pytest.mark.parametrize("solver", [Random(0, 0.5), Certain(0, 0.5), Random(0, 2), Random()])
def test_a_temperature_makes_likely_symbols_likelier(solver):
    """p^(1/temperature), normalised; of 40000 draws within four standard errors."""
    num, p = 40000, torch.tensor([0.1, 0.6, 0.3], dtype=DOUBLE)
    step = Step(T, 0.0, draws(num, "solver"), History([]), fixed=draws(num))
    x = Masked(3).step(torch.full((num, 1), 3), p.log().expand(num, 1, 3), step, solver)
    want = p ** (1 / solver.temperature) / (p ** (1 / solver.temperature)).sum()
    assert (torch.bincount(x[:, 0], minlength=3) / num - want).abs().max() < 4 * 0.5 / num**0.5


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toy.register(monkeypatch)


@pytest.fixture(scope="module")
def trained():
    return toy.train(steps=150, process=Masked(), timestep_law={"number": Atoms({0: 0.5})})[0].eval()


def test_it_learns_and_guidance_helps(trained):
    given = {"number": [-1.0, 0.0, 1.0] * 60}
    right = {}
    for scale in (0.0, 2.0):
        words = trained.sample("word | number", given, steps=LENGTH, guidance=scale)["word"]
        assert all(set(word) <= set("012") for word in words)
        right[scale] = sum(word[0] == str(i % 3) for i, word in enumerate(words)) / len(words)
    print(f"first symbol right: {right}")
    assert right[0.0] > 0.5 and right[2.0] > right[0.0]


def test_steps_that_reveal_nothing_cost_nothing(trained, monkeypatch):
    calls, predict, reports = [], trained.predict, []
    monkeypatch.setattr(trained, "predict", lambda *args, **more: calls.append(1) or predict(*args, **more))
    trained.sample("word", num=3, steps=37, on_step=reports.append)
    assert len(calls) == LENGTH and len(reports) == 37
    assert not reports[0].clean and set(reports[-1].clean) == {"word.ids", "number.v"}
    calls.clear()
    trained.sample("word, number", num=3, steps=37, solver={"number": "ddim"})
    assert len(calls) == 37


def test_held_words_come_back_half_held_ones_are_half_hidden_and_half_solved_ones_keep_half(trained):
    words = torch.randint(3, (64, LENGTH), generator=torch.Generator().manual_seed(0))
    options = {"supplied": {"word.ids": words}, "num": 64, "steps": 4}
    assert torch.equal(trained.sample_latents("number | word", **options)["word.ids"], words)
    half = trained.sample_latents("number | word@0.5", **options)["word.ids"]
    assert ((half == 3).sum(1) == LENGTH // 2).all() and torch.equal(half[half < 3], words[half < 3])
    refilled = trained.sample_latents("word@0.5", **options)["word.ids"]
    assert (refilled < 3).all() and torch.equal(refilled[half < 3], words[half < 3])
    assert not torch.equal(refilled, words)
    late = trained.sample_latents({"number": [1, 0], "word": {"hold": [0.5, 0.25]}}, **options)["word.ids"]
    assert ((late == 3).sum(1) == 1).all() and (half == 3)[late == 3].all()


def test_words_that_are_kept_are_filled_in_around(trained):
    def keep(latents, times):
        latents["word.ids"][:, 1] = 2
        return latents

    got = trained.sample_latents("word", {}, num=20, steps=6, constrain=keep)["word.ids"]
    assert (got[:, 1] == 2).all() and (got < 3).all()


def test_samples_do_not_depend_on_the_batch(trained):
    for solver in ("random", "certain(0.5)", "confident"):
        options = {"num": 5, "steps": 3, "solver": {"word": solver}}
        whole = trained.sample("word, number", batch_size=5, **options)["word"]
        assert trained.sample("word, number", batch_size=2, **options)["word"] == whole


def test_it_is_saved_and_loaded_with_its_vocabulary(tmp_path, trained):
    trained.save_pretrained(tmp_path / "run")
    back = UniDiffuser.from_pretrained(tmp_path / "run")
    assert (back.modalities["word"].process.vocabulary, back.modalities["word"].process.weight) == (3, "elbo")
    assert back.sample("word", num=4, steps=4) == trained.sample("word", num=4, steps=4)


REFUSED = {
    "the solver 'ddim' is no MaskedSolver; known: certain, confident, random": (
        lambda model: model.sample("word, number", solver={"word": "ddim"})
    ),
    "the solver 'heun' is no MaskedSolver; known: certain": lambda model: model.sample("word", solver="heun"),
    "unknown solver 'randon'; known: certain": lambda model: model.sample("word", solver="randon"),
    r"above 0 .*, not 0; close to 0": lambda model: model.sample("word", solver="random(0, 0)"),
    "from 0 .* to 1 .*, not 2": lambda model: model.sample("word", solver="random(2)"),
    r"Masked cannot be inverted: .* hold it, {word: {hold: \[0, 1\]}}": (
        lambda model: model.sample({"word": [0, 1]}, {"word": "0120"})
    ),
    "unknown weight 'snr'; known: elbo, flat": lambda model: Masked(3, "snr"),
    "at least 2 symbols, not 1": lambda model: Masked(1),
    "over 5 symbols, and the stream is 4 of 3 symbols: give Masked the vocabulary 3, or none": (
        lambda model: Modality(SymbolCodec(), Masked(5)).ports
    ),
    "Masked is for symbols, and the stream 3 is of numbers": lambda model: Modality(NumberCodec(), Masked()).ports,
    "Masked knows no vocabulary": lambda model: Masked().start((4,), draws(1)),
    "gives the id 3 in the stream 'ids', of 3 symbols with ids 0 to 2": (
        lambda model: model.sample("number | word", {"word": "0130"})
    ),
    "the id -1 is out of range: Masked is over 3 symbols, ids 0 to 2": (
        lambda model: Masked(3).corrupt(torch.tensor([[0, -1]]), times(1, 1), draws(1))
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_to_do(trained, says):
    with pytest.raises(ValueError, match=says):
        REFUSED[says](trained)


def test_up_and_down_again_is_a_path():
    """Not an inversion: what is hidden on the way up is guessed on the way down."""
    process = Masked(3)
    path = {"word": [[0, 0], [0.5, 1], [1, 0]]}
    got = sample(
        lambda latents, times: {"word.ids": torch.zeros(len(latents["word.ids"]), 4, 3)},
        path,
        processes={"word": process},
        shapes={"word.ids": (4,)},
        num=200,
        supplied={"word.ids": torch.zeros(200, 4, dtype=torch.int64)},
        steps=8,
    )["word.ids"]
    assert (torch.bincount(got.flatten(), minlength=3) / 800 - 1 / 3).abs().max() < 4 * (2 / 9 / 800) ** 0.5
