"""The encoded process: its vectors, its steps on the exact oracle, what becomes of its parameters, what it refuses."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.core.conftest import NumberCodec
from tests.core.process import toy
from tests.core.process.toy import LENGTH, SymbolCodec
from unidiff_core import Modality, Stream, UniDiffuser
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.network.lora import LoRA
from unidiff_core.process.encoded.process import Encoded
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.gaussian.schedule import ScaledLinear
from unidiff_core.process.process import History, Past, Step, find_solver
from unidiff_core.sampling.loop import sample
from unidiff_core.serialization.model_directory import ModelDirectoryError
from unidiff_core.testing import ExactMixture
from unidiff_core.training.law import Atoms
from unidiff_core.training.start import Start

DOUBLE = torch.float64
TABLE, BIAS = "processes.word:process.table", "processes.word:process.bias"


def draws(num, purpose="noise"):
    return Draws(0, purpose, "word.ids", 0, torch.arange(num))


def times(t, num):
    return torch.full((num,), float(t), dtype=DOUBLE)


def words(num, *shape, vocabulary=5):
    return torch.randint(vocabulary, (num, *shape), generator=torch.Generator().manual_seed(0))


def encoded(*args, **options):
    torch.manual_seed(0)
    return Encoded(*args, **options)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 2)], ids=str)
def test_ids_become_vectors_of_unit_size_and_noise(shape):
    process, stream = encoded(width=4), Stream.symbols(*shape, vocabulary=5)
    seen = process.seen(stream)
    assert seen == process.predicted(stream) and seen.shape == process.state_shape(shape)
    assert torch.allclose(process.vectors.square().mean(1), torch.ones(5), atol=1e-5)
    ids, t = words(400, *shape), torch.linspace(0, T, 400, dtype=DOUBLE)
    x = process.corrupt(ids, t, draws(400)).corrupted.detach()
    assert x.shape == (400, *process.state_shape(shape)) == process.start(shape, draws(400)).shape
    vectors = process.vectors[ids].detach() if len(shape) == 1 else process.vectors[ids].movedim(-1, 1).detach()
    assert torch.equal(process.view(ids, times(0, 400)), vectors) and torch.allclose(x[0], vectors[0])
    ones = (-1, *[1] * len(process.state_shape(shape)))
    noise = draws(400).normal(process.state_shape(shape))
    expected = (1 - t / T).reshape(ones) * vectors + (t / T).reshape(ones) * noise
    assert torch.allclose(x.double(), expected, atol=1e-5)
    assert torch.equal(x[-1], process.start(shape, draws(400))[-1])


@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=str)
def test_the_loss_is_minus_the_log_probability_and_its_gradient_reaches_the_table_twice(shape):
    process, ids = encoded(5, 4), words(7, *shape)
    corruption = process.corrupt(ids, times(400, 7), draws(7))
    h = torch.randn(7, *process.state_shape(shape), generator=torch.Generator().manual_seed(1))
    last = h if len(shape) == 1 else h.movedim(1, -1)
    logits = last @ process.vectors.T + process.bias
    assert torch.equal(process.clean(corruption.corrupted, h, times(400, 7)), logits)
    loss = process.loss(h, corruption, times(400, 7))
    assert torch.allclose(loss, -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0])
    by_head = torch.autograd.grad(loss.sum(), process.table, retain_graph=True)[0]
    by_state = torch.autograd.grad(corruption.corrupted.square().sum(), process.table)[0]
    assert by_head.abs().max() > 0 < by_state.abs().max()
    half = process.clean(corruption.corrupted, h.bfloat16(), times(400, 7))
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(process.clean(corruption.corrupted, h, times(400, 7)), logits)


SOLVERS = ["ddim", "ddpm", "dpmpp_2m", "dpmpp_3m", "renoise", "family(0.5, 0.1)"]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_is_the_gaussian_one_on_mean_vectors(name):
    process, gaussian, solver = encoded(5, 4), Gaussian(prediction="clean"), find_solver(name, Gaussian.solvers)
    logits = [torch.randn(9, 6, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    means = [row.softmax(-1) @ process.vectors.double() for row in logits]
    x = torch.randn(9, 6, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(4))
    grid = [800.0, 600.0, 400.0, 200.0]

    def step(estimates):
        past = [Past(t, row) for t, row in zip(grid, estimates[:2], strict=False)]
        return Step(400.0, 200.0, draws(9), History(grid, past))

    got = process.step(x, logits[2], step(logits), solver)
    assert torch.allclose(got, gaussian.step(x, means[2], step(means), solver))


def test_the_last_step_draws_symbols():
    process, num = encoded(3, 4), 20000
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(num, 1, 3)
    step = Step(300.0, 0.0, draws(num, "solver"), History([300.0, 0.0]))
    got = process.step(torch.zeros(num, 1, 4), logits, step, find_solver("ddim", Gaussian.solvers))
    assert got.dtype == torch.int64 and got.shape == (num, 1)
    assert (torch.bincount(got[:, 0], minlength=3) / num - torch.tensor([0.2, 0.5, 0.3])).abs().max() < 0.015


@pytest.fixture(scope="module")
def mixture():
    """Exact, of two words of two symbols, one encoded, and a number."""
    torch.manual_seed(0)
    processes = {"a": Encoded(3, 2), "x": Gaussian()}
    return ExactMixture.random(processes, {"a.ids": (2,), "x.v": (1,)}, contrast=1.5, seed=3)


def solve(mixture, spec, num=4000, **options):
    return sample(mixture, spec, processes=mixture.processes, shapes=mixture.shapes, num=num, dtype=DOUBLE, **options)


def distance(mixture, ids):
    """Total variation of samples' words to the table."""
    cells = (ids[:, None] == mixture.symbols["a.ids"]).all(-1).double().mean(0)
    return 0.5 * (cells - mixture.log_weights.exp()).abs().sum().item()


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm", "heun"])
def test_every_query_of_the_exact_mixture_is_answered(mixture, solver):
    """4,000 samples of 9 words are 0.02 away from their law by chance."""
    far = distance(mixture, solve(mixture, "a", steps=1, solver=solver)["a.ids"])
    near = distance(mixture, solve(mixture, "a", steps=40, solver=solver)["a.ids"])
    joint = solve(mixture, "a, x", steps=40, solver=solver)
    print(f"{solver}: 1 step {far:.3f}, 40 steps {near:.3f}, joint {distance(mixture, joint['a.ids']):.3f}")
    assert near < 0.04 < far and distance(mixture, joint["a.ids"]) < 0.05
    given = torch.tensor([[2, 1]]).expand(4000, 2)
    x = solve(mixture, "x | a", supplied={"a.ids": given}, steps=20)
    assert torch.equal(x["a.ids"], given)
    posterior = mixture.posterior({"a.ids": given[:1]}, {"a": times(0, 1)})
    mean = (posterior.weights[..., None] * posterior.means).sum(1)[0, 0]
    assert (x["x.v"].mean() - mean).abs() < 0.05


def test_words_go_up_to_noise_and_come_back(mixture):
    """An inversion: the state at T is of numbers, and says all."""
    ids = mixture.draw(300, seed=1)["a.ids"]
    up = solve(mixture, {"a": [0, 1]}, num=300, supplied={"a.ids": ids}, steps=40, solver="ddim")["a.ids"]
    assert up.is_floating_point() and up.shape == (300, 2, 2)
    back = solve(mixture, "a", num=300, states={"a.ids": up}, steps=40, solver="ddim")["a.ids"]
    other = solve(mixture, "a", num=300, steps=40, solver="ddim")["a.ids"]
    print(f"came back: {(back == ids).double().mean():.3f}; by chance {(other == ids).double().mean():.3f}")
    assert (back == ids).double().mean() > 0.95 > 0.8 > (other == ids).double().mean()
    again = {"a": {"renoise": [[0, 0], [0.5, 0.5], [1, 0]]}}
    near = solve(mixture, again, num=300, supplied={"a.ids": ids}, steps=20)["a.ids"]
    assert (other == ids).double().mean() < (near == ids).double().mean() < 1
    half = solve(mixture, "x | a@0.5", num=300, supplied={"a.ids": ids}, steps=2)["a.ids"]
    assert torch.equal(half, mixture.processes["a"].corrupt(ids, times(500, 300), at("a.ids", 300)).corrupted)


def at(key, num):
    return Draws(0, "sample noise", key, 0, torch.arange(num))


def test_exact_predictions_are_what_the_loss_is_least_at(mixture):
    """The oracle's own vector gives its logits, as three symbols need two numbers."""
    process = mixture.processes["a"]
    ids = mixture.draw(50, seed=2)["a.ids"]
    x = process.corrupt(ids, times(600, 50), draws(50)).corrupted
    logits = mixture({"a.ids": x}, {"a": times(600, 50)})["a.ids"]
    h = process.prediction_of(x, logits, times(600, 50))
    assert torch.allclose(process.clean(x, h, times(600, 50)).softmax(-1), logits.softmax(-1), atol=1e-6)
    grid = encoded(3, 2)
    logits = torch.randn(4, 2, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    state = grid.start((2, 3), draws(4))
    h = grid.prediction_of(state, logits, times(T, 4))
    assert h.shape == state.shape == (4, 2, 2, 3)
    assert torch.allclose(grid.clean(state, h, times(T, 4)).softmax(-1), logits.softmax(-1), atol=1e-6)


def fit_alone(process, steps=500, size=256):
    """Symbols of one skewed law, each by itself, and a small network: the process, loss at times, the law's entropy."""
    torch.manual_seed(0)
    law = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.06, 0.04])
    net = nn.Sequential(nn.Linear(process.width + 1, 32), nn.SiLU(), nn.Linear(32, process.width))
    optimizer = torch.optim.Adam([*net.parameters(), *process.parameters()], lr=1e-2)

    def loss(t, i):
        ids = torch.multinomial(law, size, replacement=True)[:, None]
        corruption = process.corrupt(ids, t, Draws(0, "train", "w", i, torch.arange(size)))
        seen = torch.cat([corruption.corrupted, (t / T).float()[:, None, None]], -1)
        return process.loss(net(seen), corruption, t).mean()

    for i in range(steps):
        optimizer.zero_grad()
        loss(torch.where(torch.rand(size) < 0.25, 1.0, torch.rand(size)) * T, i).backward()
        optimizer.step()
    with torch.no_grad():
        found = {t: torch.stack([loss(times(t, size).float(), steps + i) for i in range(40)]).mean() for t in (700, T)}
    return {t: value.item() for t, value in found.items()}, -(law * law.log()).sum().item()


def test_without_normalisation_vectors_grow_until_noise_does_not_matter():
    kept, grown = encoded(7, 4), encoded(7, 4, normalise=False)
    (small, entropy), (large, _) = fit_alone(kept), fit_alone(grown)
    sizes = [process.vectors.square().mean().sqrt().item() for process in (kept, grown)]
    print(
        f"size {sizes}, loss at 0.7 {small[700]:.3f} and {large[700]:.3f}, at T {small[T]:.3f}, entropy {entropy:.3f}"
    )
    assert sizes[0] == pytest.approx(1, abs=1e-3) and sizes[1] > 2.5
    assert all(entropy - 0.02 < loss[T] < entropy + 0.1 for loss in (small, large))  # what is left at T says nothing
    assert small[700] > 0.75 * entropy and large[700] < 0.5 * entropy


@pytest.fixture(scope="module")
def trained():
    process = Encoded(width=4)
    return toy.train(steps=200, process=process, timestep_law={"number": Atoms({0: 0.5})})[0].eval()


def test_it_learns_and_guidance_helps(trained):
    given = {"number": [-1.0, 0.0, 1.0] * 60}
    right = {}
    for scale in (0.0, 2.0):
        got = trained.sample("word | number", given, steps=8, guidance=scale)["word"]
        assert all(set(word) <= set("012") for word in got)
        right[scale] = sum(word[0] == str(i % 3) for i, word in enumerate(got)) / len(got)
    print(f"first symbol right: {right}")
    assert right[0.0] > 0.6 and right[2.0] > right[0.0]


def test_held_words_come_back_and_samples_do_not_depend_on_the_batch(trained):
    ids = words(4, LENGTH, vocabulary=3)
    assert torch.equal(trained.sample_latents("number | word", {"word.ids": ids}, num=4, steps=3)["word.ids"], ids)
    for solver in ("dpmpp_2m", "ddpm", "heun"):
        options = {"num": 5, "steps": 3, "solver": {"word": solver}}
        whole = trained.sample("word, number", batch_size=5, **options)["word"]
        assert trained.sample("word, number", batch_size=2, **options)["word"] == whole
    reports = []
    trained.sample("number", num=2, steps=2, drop_ignored=True, on_step=reports.append)
    assert set(reports[0].clean) == {"number.v"}


def test_how_far_its_estimates_are_is_measured_in_vectors(trained):
    batch = toy.ToySamples()
    place = type(
        "Place", (), {"index": torch.arange(32), "rows": torch.arange(32), "batch": torch.arange(32), "step": 0}
    )
    trained.measure_clean_std([batch[place]], num_bins=4)
    table = trained.clean_std["word.ids"]
    assert 0 < table(200.0) < table(900.0) < 1.5
    assert len(trained.sample("word", num=3, steps=4, solver="analytic")["word"]) == 3
    trained.clean_std = {}
    with pytest.raises(ValueError, match=r"analytic needs the measured standard deviation .* of 'word\.ids'"):
        trained.sample("word", num=3, steps=4, solver="analytic")


def test_its_parameters_are_trained_averaged_saved_loaded_and_gone_on_from(tmp_path, monkeypatch):
    toy.register(monkeypatch)
    model, average, trainer = toy.train(steps=3, process="Encoded")
    begun = toy.make(process="Encoded").state_dict()
    for key in (TABLE, BIAS):
        assert any(value is model.get_parameter(key) for value in trainer.optimizers[0].param_groups[0]["params"])
        assert not torch.equal(model.state_dict()[key], begun[key])
        assert not torch.equal(average.average[key], model.state_dict()[key])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"][TABLE], model.state_dict()[TABLE])

    folder = tmp_path / "run"
    model.save_pretrained(folder, average=average.average)
    assert torch.equal(load_file(folder / "model.safetensors")[TABLE], model.state_dict()[TABLE])
    back = UniDiffuser.from_pretrained(folder)
    process = back.modalities["word"].process
    assert torch.equal(process.table, average.average[TABLE])
    assert (process.vocabulary, process.width, process.normalise) == (3, 5, True)

    frozen = toy.make(process="Encoded", start=Start(str(folder), freeze=True, lora=LoRA(rank=2)))
    trains = {name for name, value in frozen.named_parameters() if value.requires_grad}
    assert trains and all(".lora_" in name for name in trains)
    assert torch.equal(frozen.get_parameter(TABLE), average.average[TABLE])
    assert torch.equal(toy.make(process="Encoded", start=Start(str(folder))).get_parameter(TABLE), process.table)
    with pytest.raises(ModelDirectoryError, match=r"word:process\.table"):
        toy.make(process=Encoded(width=7), start=Start(str(folder)))


REFUSED = {
    "ScaledLinear leaves 0.0683 of the clean value at T, .* take Flow": lambda model: Encoded(3, 4, ScaledLinear()),
    "the width of a vector is at least 1, not 0": lambda model: Encoded(3, 0),
    "at least 2 symbols, not 1": lambda model: Encoded(1),
    "the solver 'random' is no GaussianSolver; known: .*ddim": lambda model: model.sample("word", solver="random"),
    "over 5 symbols, and the stream is 4 of 3 symbols: give Encoded the vocabulary 3, or none": (
        lambda model: Modality(SymbolCodec(), Encoded(5)).ports
    ),
    "Encoded is for symbols, and the stream 3 is of numbers": lambda model: Modality(NumberCodec(), Encoded()).ports,
    "the id 3 is out of range: Encoded is over 3 symbols, ids 0 to 2": (
        lambda model: Encoded(3).corrupt(torch.tensor([[0, 3]]), times(1, 1), draws(1))
    ),
    r"the state of 'word\.ids' is \(2, 4, 4\) for 2 samples, and \(2, 4\) is given": (
        lambda model: model.sample("word", num=2, states={"word.ids": torch.zeros(2, 4)})
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_to_do(trained, says):
    with pytest.raises(ValueError, match=says):
        REFUSED[says](trained)


def test_states_lie_between_states(trained):
    """At T they are noise, of which something lies between two: every point of the way gives a word."""
    ends = trained.modalities["word"].process.start((LENGTH,), draws(2))
    way = torch.stack([ends[0], (ends[0] + ends[1]) / 2**0.5, ends[1]])
    got, alone = (
        trained.sample_latents("word", {}, num=len(x), states={"word.ids": x}, steps=4, redraws_noise=False)["word.ids"]
        for x in (way, ends)
    )
    assert got.shape == (3, LENGTH) and ((got >= 0) & (got < 3)).all() and len(alone) == 2
