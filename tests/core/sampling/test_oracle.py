"""The exact oracle: every query over joint Gaussians of several modalities, against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.process.gaussian.schedule import Flow, ScaledLinear
from unidiff_core.process.gaussian.solver import GaussianSolver
from unidiff_core.process.process import History, Past, Step, find_solver
from unidiff_core.sampling.guidance import Guidance
from unidiff_core.sampling.loop import sample
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.testing import GaussianOracle

DOUBLE = torch.float64
SHAPES = {
    "a.grid": (1, 2, 2),
    "b.vector": (3,),
    "c.steps": (2, 2),
    "d.vector": (2,),
    "e.line": (1, 3),
    "f.vector": (1,),
    "g.cube": (1, 2, 1, 2),
    "h.steps": (3, 1),
}
NUM = 8000


def oracle_of(num_modalities, schedule=None, seed=0):
    keys = list(SHAPES)[:num_modalities]
    return GaussianOracle.random({key: SHAPES[key] for key in keys}, seed=seed, schedule=schedule)


def run(oracle, spec, num=NUM, **options):
    options = {"steps": 60, "solver": "heun", "dtype": DOUBLE} | options
    return sample(oracle, spec, processes=oracle.processes, shapes=oracle.shapes, num=num, **options)


def repeated(oracle, names, num, seed=3):
    """One exact draw of some modalities, the same for all samples."""
    return {key: x.expand(num, *x.shape[1:]).clone() for key, x in oracle.draw(1, seed=seed).items() if key[0] in names}


def keys_of(oracle, names):
    return [key for key in oracle.shapes if key[0] in names]


def assert_distributed(samples, mean, covariance):
    """Sample mean and covariance within 4 standard errors of the exact ones, elementwise (and a bias of 1 %)."""
    n = len(samples)
    variance = covariance.diag()
    gap = (samples.mean(0) - mean).abs()
    assert (gap <= 4.2 * (variance / n).sqrt() + 1e-9).all(), gap / (variance / n).sqrt()
    error = ((variance[:, None] * variance + covariance.square()) / n).sqrt()
    gap = (torch.cov(samples.T) - covariance).abs()
    assert (gap <= 4.2 * error).all(), (gap / error).max()


def flat(latents, keys):
    return torch.cat([latents[key].flatten(1) for key in keys], dim=1)


@pytest.mark.parametrize("num_modalities", [2, 3, 5, 8])
def test_marginals_and_joint_are_exact(num_modalities):
    oracle = oracle_of(num_modalities)
    names = [key[0] for key in oracle.shapes]
    for spec in [names[0], names[-1], ", ".join(names)]:
        keys = keys_of(oracle, spec)
        mean, covariance = oracle.conditional(keys, {})
        assert_distributed(flat(run(oracle, spec), keys), mean[0], covariance)


@pytest.mark.parametrize("num_modalities", [2, 3, 5, 8])
def test_conditionals_on_one_and_on_all_others_are_exact_and_hold_bit_for_bit(num_modalities):
    oracle = oracle_of(num_modalities)
    names = [key[0] for key in oracle.shapes]
    for targets, givens in [(names[:1], names[1:2]), (names[:1], names[1:]), (names[1:], names[:1])]:
        supplied = repeated(oracle, givens, NUM)
        got = run(oracle, f"{', '.join(targets)} | {', '.join(givens)}", supplied=supplied)
        mean, covariance = oracle.conditional(keys_of(oracle, targets), {k: v[:1] for k, v in supplied.items()})
        assert_distributed(flat(got, keys_of(oracle, targets)), mean[0], covariance)
        assert all(torch.equal(got[key], value) for key, value in supplied.items())


def test_every_query_over_three_modalities_is_exact():
    oracle = oracle_of(3)
    queries = [roles for roles in itertools.product("shi", repeat=3) if "s" in roles]
    assert len(queries) == 19
    for roles in queries:
        targets = [name for name, role in zip("abc", roles, strict=True) if role == "s"]
        givens = [name for name, role in zip("abc", roles, strict=True) if role == "h"]
        supplied = repeated(oracle, givens, NUM)
        got = run(oracle, f"{', '.join(targets)} | {', '.join(givens)}".rstrip(" |"), supplied=supplied)
        keys = keys_of(oracle, targets)
        mean, covariance = oracle.conditional(keys, {key: value[:1] for key, value in supplied.items()})
        assert_distributed(flat(got, keys), mean[0], covariance)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_noisy_condition_is_exact(time):
    oracle = oracle_of(3)
    supplied = repeated(oracle, "b", NUM)
    got = run(oracle, f"a | b@{time}", supplied=supplied)
    noisy = got["b.vector"]
    mean, covariance = oracle.conditional(["a.grid"], {"b.vector": noisy}, {"b": time * T})
    assert_distributed(flat(got, ["a.grid"]) - mean, torch.zeros(4, dtype=DOUBLE), covariance)


def test_supplied_value_noised_to_the_start_of_its_path_keeps_the_law():
    """Exact data noised to 0.6·T and solved back is exact data again."""
    oracle = oracle_of(2)
    data = oracle.draw(NUM, seed=5)
    got = run(oracle, "a@0.6 | b", supplied=data)
    assert_distributed(oracle.flat(got), oracle.mean, oracle.covariance)


def test_path_of_two_segments_samples_the_joint():
    oracle = oracle_of(3)
    spec = {"b": [[0, 1], [0.5, 0]], "a": [[0.5, 1], [1, 0]]}
    keys = keys_of(oracle, "ab")
    mean, covariance = oracle.conditional(keys, {})
    assert_distributed(flat(run(oracle, spec, steps=120), keys), mean[0], covariance)


def test_inversion_and_back_returns_within_a_thousandth():
    oracle = oracle_of(2)
    data = oracle.draw(200, seed=7)
    for solver, steps in [("heun", 50), ("dpmpp_2m", 100)]:  # 100 evaluations each way
        up = run(oracle, {"a": [0, 1], "b": 0}, num=200, supplied=data, solver=solver, steps=steps)
        # From pure noise there is nothing to supply: the state itself is handed to the oracle's own way down.
        down = _solve_from(oracle, up, data["b.vector"], solver, steps)
        relative = (down - data["a.grid"]).norm() / data["a.grid"].norm()
        print(f"{solver}: {relative:.2e} relative after inversion and back")
        if solver == "heun":
            assert relative <= 1e-3


def _solve_from(oracle, state, given, solver, steps):
    solver = find_solver(solver, GaussianSolver)
    process, x, past = oracle.processes["a"], state["a.grid"], []
    grid = [T * (1 - i / steps) for i in range(steps)] + [0.0]
    estimate = lambda x, t: oracle(  # noqa: E731
        {"a.grid": x, "b.vector": given}, {"a": time_tensor(t, len(x)), "b": time_tensor(0, len(x))}
    )["a.grid"]
    return walk(process, solver, estimate, grid, x, past)


def walk(process, solver, estimate, grid, x, past):
    """A solver's steps along a grid, without the sampling loop."""
    for t, t_next in itertools.pairwise(grid):
        clean = estimate(x, t)
        step = Step(t, t_next, None, History(grid, past))
        x_next = process.step(x, clean, step, solver)
        if solver.corrects:
            x_next = process.correct(x, x_next, clean, estimate(x_next, t_next), step, solver)
        past, x = [*past, Past(t, clean)], x_next
    return x


def slopes(schedule, t):
    """alpha' and sigma' at time t, by hand."""
    if isinstance(schedule, Flow):
        return -1 / T, 1 / T
    low = torch.tensor(min(math.floor(t), T - 1), dtype=DOUBLE)
    slope = 2 * (schedule.alpha(low + 1).log() - schedule.alpha(low).log()).item()  # of the logarithm of ᾱ
    alpha_bar = schedule.alpha(torch.tensor(t, dtype=DOUBLE)).item() ** 2
    return math.sqrt(alpha_bar) * slope / 2, -alpha_bar * slope / (2 * math.sqrt(1 - alpha_bar))


def reference(oracle, solved, held, noise, supplied, weights, steps=200):
    """Runge–Kutta of fourth order for the affine ODE from T to 1, guidance written out by hand.

    `solved` is the names that move together, `held` maps a name to its time at a given fraction of the way; `weights`
    maps a solved name to [(weight, set of silenced names)].
    """
    letters = [key[0] for key, shape in oracle.shapes.items() for _ in range(math.prod(shape))]
    flat_noise = oracle.flat(noise)
    values = oracle.flat({key: supplied.get(key, torch.zeros_like(noise[key])) for key in oracle.shapes})
    moves = torch.tensor([letter in solved for letter in letters])

    def estimate(x, t):
        alpha, sigma = oracle.schedule.alpha(t), oracle.schedule.sigma(t)
        noisy = torch.diag(alpha) @ oracle.covariance @ torch.diag(alpha) + torch.diag(sigma**2)
        gain = oracle.covariance @ torch.diag(alpha) @ torch.linalg.inv(noisy)
        return oracle.mean + (x - alpha * oracle.mean) @ gain.T

    def derivative(t, x):
        place = (T - t) / (T - 1)
        times = torch.tensor([t if m in solved else held[m](place) if m in held else T for m in letters], dtype=DOUBLE)
        alpha, sigma = oracle.schedule.alpha(times), oracle.schedule.sigma(times)
        still = torch.where(times == T, flat_noise, alpha * values + sigma * flat_noise)
        x = torch.where(moves, x, still)
        guided = torch.zeros_like(x)
        for name in solved:
            rows = torch.tensor([letter == name for letter in letters])
            for weight, silenced in weights[name]:
                off = torch.tensor([letter in silenced for letter in letters])
                silent = torch.where(off, flat_noise, x), torch.where(off, float(T), times)
                guided[:, rows] += weight * estimate(*silent)[:, rows]
        (alpha, sigma), (d_alpha, d_sigma) = (
            (f(torch.tensor(t, dtype=DOUBLE)).item() for f in (oracle.schedule.alpha, oracle.schedule.sigma)),
            slopes(oracle.schedule, t),
        )
        return torch.where(moves, d_sigma / sigma * x + (d_alpha - alpha * d_sigma / sigma) * guided, 0.0)

    x = flat_noise
    grid = torch.linspace(math.log(T), 0, steps + 1, dtype=DOUBLE).exp().tolist()
    for t, t_next in itertools.pairwise(grid):
        h = t_next - t
        k1 = derivative(t, x)
        k2 = derivative(t + h / 2, x + h / 2 * k1)
        k3 = derivative(t + h / 2, x + h / 2 * k2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + derivative(t_next, x + h * k3))
    return oracle.unflat(x)


def noise_of(oracle, num):
    """The noise that `sample` draws: what it returns for what it never moves, for each modality in turn."""
    names = [key[0] for key in oracle.shapes]
    rows = {}
    for solved, wanted in [(names[0], names[1:]), (names[1], names[:1])]:
        got = run(oracle, solved, num=num, steps=1, solver="ddim")
        rows |= {key: got[key] for key in keys_of(oracle, wanted)}
    return {key: rows[key] for key in oracle.shapes}


GUIDED = {
    "off": ("a | b", 0.0, {"a": [(1, set())]}),
    "one scale": ("a | b", 2.0, {"a": [(3, set()), (-2, {"b"})]}),
    "one scale, two givens": ("a | b, c", 2.0, {"a": [(3, set()), (-2, {"b", "c"})]}),
    "a scale each": (
        "a | b, c",
        {"b": 1.5, "c": 0.5},
        {"a": [(3.0, set()), (-1.5, {"b"}), (-0.5, {"c"})]},
    ),
    "two targets, one given": ("a, c | b", 1.0, {"a": [(2, set()), (-1, {"b"})], "c": [(2, set()), (-1, {"b"})]}),
    "joint of two": ("a, b", 1.0, {"a": [(2, set()), (-1, {"b"})], "b": [(2, set()), (-1, {"a"})]}),
    "joint of three": ("a, b, c", 0.5, {m: [(1.5, set()), (-0.5, set("abc") - {m})] for m in "abc"}),
}


@pytest.mark.parametrize("schedule", [Flow(), ScaledLinear()], ids=["flow", "scaled_linear"])
@pytest.mark.parametrize("form", GUIDED)
def test_guided_sampling_equals_an_independent_integration(form, schedule):
    text, scale, weights = GUIDED[form]
    oracle = oracle_of(3, schedule)
    held = [name for name in "abc" if name in text.partition("|")[2]]
    supplied = {key: value for key, value in oracle.draw(4, seed=9).items() if key[0] in held}
    noise = noise_of(oracle, 4)
    spec = {name: [1, 1 / T] for name in weights} | dict.fromkeys(held, 0)
    steps = 400 if isinstance(schedule, Flow) else 999  # the straight line's largest difference is twenty times smaller
    got = run(oracle, spec, num=4, supplied=supplied, guidance=scale, steps=steps)
    want = reference(oracle, list(weights), {name: lambda _: 0.0 for name in held}, noise, supplied, weights)
    gap = max((got[key] - want[key]).abs().max().item() for key in keys_of(oracle, weights))
    print(f"{form}, {type(schedule).__name__}: largest difference {gap:.1e}")
    assert gap < 1e-3


def test_moving_held_path_equals_an_independent_integration():
    oracle = oracle_of(3)
    supplied = {"b.vector": oracle.draw(4, seed=9)["b.vector"]}
    noise = noise_of(oracle, 4)
    got = run(oracle, {"a": [1, 1 / T], "b": {"hold": [0.8, 0.2]}}, num=4, supplied=supplied, steps=999)
    held = {"b": lambda place: T * (0.8 - 0.6 * place)}
    want = reference(oracle, ["a"], held, noise, supplied, {"a": [(1, set())]})
    assert (got["a.grid"] - want["a.grid"]).abs().max() < 1e-3


def test_scaled_linear_is_biased_against_the_data_law_and_the_oracle_says_how_much():
    oracle = oracle_of(2, ScaledLinear())
    assert not oracle.processes["a"].forgets
    got = run(oracle, "a, b", num=20000)
    bias = (oracle.flat(got).mean(0) - oracle.mean).abs().max().item()
    print(f"scaled_linear: largest bias of the joint's mean {bias:.3f}")
    assert 0.01 < bias < 0.2


def test_permuting_modalities_or_adding_an_ignored_one_changes_nothing():
    oracle = oracle_of(3)
    order = ["c.steps", "a.grid", "b.vector"]
    rows = torch.cat([torch.arange(len(oracle.mean))[oracle.rows[key]] for key in order])
    permuted = GaussianOracle(
        {key: SHAPES[key] for key in order}, oracle.mean[rows], oracle.covariance[rows][:, rows], oracle.schedule
    )
    got, again = run(oracle, "a, b, c", num=50), run(permuted, "c, a, b", num=50)
    assert all(torch.allclose(got[key], again[key], atol=1e-10) for key in order)
    pair = GaussianOracle(
        {key: SHAPES[key] for key in order[1:]},
        permuted.mean[4:],
        permuted.covariance[4:, 4:],
        oracle.schedule,
    )
    got, again = run(oracle, "a, b", num=50), run(pair, "a, b", num=50)
    assert all(torch.allclose(got[key], again[key], atol=1e-10) for key in order[1:])


def test_samples_do_not_depend_on_the_batch_they_are_drawn_in():
    oracle = oracle_of(2)
    whole = run(oracle, "a, b", num=12, solver="ddpm")
    parts = [run(oracle, "a, b", num=n, solver="ddpm", first_index=i) for i, n in [(0, 5), (5, 1), (6, 6)]]
    for key, value in whole.items():
        assert torch.allclose(value, torch.cat([part[key] for part in parts]), atol=1e-12)


def test_ddpm_samples_the_law():
    oracle = oracle_of(2)
    got = run(oracle, "a | b", supplied=repeated(oracle, "b", NUM), solver="ddpm", steps=1000)
    mean, covariance = oracle.conditional(["a.grid"], {k: v[:1] for k, v in repeated(oracle, "b", 1).items()})
    assert_distributed(flat(got, ["a.grid"]), mean[0], covariance)


def test_redrawing_the_noise_of_ignored_modalities_is_marginal_too():
    oracle = oracle_of(3)
    mean, covariance = oracle.conditional(["a.grid"], {})
    assert_distributed(flat(run(oracle, "a", redraws_noise=True), ["a.grid"]), mean[0], covariance)


def test_constrain_replaces_part_of_the_state():
    oracle = oracle_of(2)

    def constrain(latents, times):
        assert set(times) == {"a", "b"} and times["b"] == 1.0 and 0 <= times["a"] < 1
        latents["a.grid"][:, :, 0] = 7.0
        return latents

    assert (run(oracle, "a", num=3, constrain=constrain)["a.grid"][:, :, 0] == 7).all()


NOMINAL = {"ddim": 1, "dpmpp_2m": 2, "dpmpp_3m": 3, "heun": 2}


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("name", NOMINAL)
def test_solver_order(name, direction):
    """Error against step count in log–log: slope within 0.3 of nominal, on an even log-SNR grid away from both ends."""
    oracle = oracle_of(2)
    process, solver = oracle.processes["a"], find_solver(name, GaussianSolver)
    start = oracle.draw(20, seed=1)

    def estimate(x, t):
        times = {"a": time_tensor(t, len(x)), "b": time_tensor(0, len(x))}
        return oracle(start | {"a.grid": x}, times)["a.grid"]

    first = T / (1 + math.exp(-1.5 if direction == "down" else 1.5))
    along = lambda t: trajectory(oracle, start, first, t)  # noqa: E731

    def solve(num):
        # times at which log(alpha/sigma) = log((1−s)/s) is even: s = 1/(1+e^λ)
        grid_time = lambda i: T / (1 + math.exp((3 * i / num - 1.5) * (1 if direction == "down" else -1)))  # noqa: E731
        grid = [grid_time(i) for i in range(num + 1)]
        # A multistep method has its order from its third step on: it starts here with an exact past.
        before = [grid_time(i) for i in (-2, -1)]
        past = [Past(t, estimate(along(t), t)) for t in before]
        x = start["a.grid"]
        return walk(process, solver, estimate, grid, x, past)

    exact = along(T / (1 + math.exp(1.5 if direction == "down" else -1.5)))
    counts = [40, 80, 160]
    errors = [(solve(num) - exact).norm().log2().item() for num in counts]
    slope = (errors[0] - errors[-1]) / math.log2(counts[-1] / counts[0])
    assert abs(slope - NOMINAL[name]) < 0.3, slope


def trajectory(oracle, start, t0, t1):
    """The probability-flow ODE of a Gaussian in closed form, from t0 to t1: along it each eigen-coordinate of x_t keeps
    its standardised value."""
    s0, s1 = t0 / T, t1 / T
    mean, covariance = oracle.conditional(["a.grid"], {"b.vector": start["b.vector"]})
    values, basis = torch.linalg.eigh(covariance)
    x = (start["a.grid"].flatten(1) - (1 - s0) * mean) @ basis
    scale = (((1 - s1) ** 2 * values + s1**2) / ((1 - s0) ** 2 * values + s0**2)).sqrt()
    return ((x * scale) @ basis.T + (1 - s1) * mean).reshape(start["a.grid"].shape)


def test_guidance_outside_its_interval_is_off_and_costs_nothing():
    oracle = oracle_of(2)
    calls = []

    def counted(latents, times):
        calls.append(times["a"][0].item() / T)
        return oracle(latents, times)

    spec = TimestepSpec.parse("a | b", ["a", "b"])
    guidance = Guidance.of(spec, 2.0, interval=(0.3, 0.7))
    options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": 2, "steps": 10, "dtype": DOUBLE}
    sample(counted, spec, supplied=repeated(oracle, "b", 2), guidance=guidance, **options)
    assert len(calls) == 10 + sum(0.3 <= 1 - i / 10 <= 0.7 for i in range(10))


def test_every_solver_reaches_the_law():
    oracle = oracle_of(2)
    mean, covariance = oracle.conditional(["a.grid"], {})
    for name in ("ddim", "ddpm", "dpmpp_2m", "dpmpp_3m", "heun"):
        solver = find_solver(name, GaussianSolver)
        steps = 1000 if NOMINAL.get(name, 1) == 1 else 120 // solver.num_evaluations
        assert_distributed(flat(run(oracle, "a", solver=name, steps=steps), ["a.grid"]), mean[0], covariance)
