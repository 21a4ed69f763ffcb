"""Timestep laws: each against what it says, with numbers that are spread evenly or drawn by the randomness rule."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.tiny import make
from unidiff_core.foundation import randomness
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.time import T, in_steps
from unidiff_core.training.law import Atoms, Independent, Mixture, Shared, Uniform, drawn_times, law_of

DOUBLE = torch.float64
NUM = 20000
LOW, HIGH = Uniform(0.0, 0.25), Uniform(0.5, 1.0)


def evenly(num):
    """Numbers in [0, 1), each as likely as any."""
    return (torch.arange(num, dtype=DOUBLE) + 0.5) / num


def draw(law, names="ab", num=NUM, seed=0):
    """Times in steps of `num` samples, drawn as training draws them."""
    index = torch.arange(num)
    uniforms = {name: randomness.uniform(seed, "timestep", name, 0, index) for name in names}
    return drawn_times(law, uniforms, randomness.uniform(seed, "law", "", 0, index))


def assert_share(mask, share):
    """Within five standard errors."""
    assert mask.double().mean().item() == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / len(mask)))


def correlation(one, two):
    return torch.corrcoef(torch.stack([one, two]))[0, 1].item()


def assert_uniform(times):
    """On 1..T: by the largest distance of its distribution function, to the level of one in ten thousand."""
    counts = torch.bincount(times.long(), minlength=T + 1)
    assert counts[0] == 0 and len(counts) == T + 1
    expected = torch.arange(T + 1, dtype=DOUBLE) / T
    distance = (counts.cumsum(0) / len(times) - expected).abs().max().item()
    assert distance < math.sqrt(math.log(2 / 1e-4) / (2 * len(times)))


# --- the same for each modality ---


def test_uniform_law_is_uniform_on_the_integers_from_1_to_the_end():
    def steps(law, uniform):
        return in_steps(law.time(uniform))

    uniform = evenly(T * 3)
    assert torch.equal(steps(Uniform(), uniform), torch.arange(1, T + 1, dtype=DOUBLE).repeat_interleave(3))
    assert steps(Uniform(), torch.tensor([0.0, 1 - 2**-32], dtype=DOUBLE)).tolist() == [1, T]
    assert set(steps(Uniform(0.5, 0.502), uniform).tolist()) == {501, 502}


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.5), (0.5, 0.5001), (0.9996, 1.0), (-0.1, 1.0), (0.0, 1.1), (0.7, 0.2)]
)
def test_bounds_without_a_step_between_them_are_refused(low, high):
    with pytest.raises(ValueError, match=rf"0 <= low < high <= 1, .*not low={low}, high={high}"):
        Uniform(low, high)


def test_atoms_have_their_masses_and_the_rest_is_uniform():
    uniform = evenly(10000)
    times = in_steps(Atoms({0: 0.2, 1: 0.1}).time(uniform))
    assert (times == 0).double().mean() == 0.2
    assert abs((times == T).double().mean() - 0.1007) < 1e-3
    assert times[3000:].min() == 1 and times.max() == T
    assert in_steps(Atoms({0: 0.9, 1: 0.1}).time(uniform)).unique().tolist() == [0, T]
    between = in_steps(Atoms({0.3: 0.5}).time(uniform))
    assert (between[:5000] == 300).all() and (between[5000:] == 300).sum() == 5
    assert torch.equal(Atoms({}).time(uniform), Uniform().time(uniform))


def test_masses_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="add up"):
        Atoms({0: 0.9, 0.5: 0.2})
    with pytest.raises(ValueError, match=r"times from 0 to 1 \(fractions of T: 1 is pure noise\)"):
        Atoms({1000: 0.3})
    with pytest.raises(ValueError, match="masses of at least 0"):
        Atoms({0: -0.1})


def test_each_modality_is_drawn_for_itself():
    times = draw(Uniform())
    for values in times.values():
        assert_uniform(values)
    assert abs(correlation(times["a"], times["b"])) < 5 / math.sqrt(NUM)


# --- a law for each by name ---


def test_independent_has_a_law_for_each_modality_and_the_papers_for_the_rest():
    times = draw(Independent({"a": Atoms({0: 0.9, 1: 0.1}), "b": LOW}), "abc")
    assert set(times["a"].tolist()) == {0, T} and times["b"].min() == 1 and times["b"].max() == 250
    assert_share(times["a"] == 0, 0.9)
    assert_uniform(times["c"])
    pairs = [(times[one], times[two]) for one, two in ("ab", "ac", "bc")]
    assert all(abs(correlation(*pair)) < 5 / math.sqrt(NUM) for pair in pairs)
    rest = draw(Independent({"a": LOW}, rest=HIGH), "abc")
    assert rest["a"].max() == 250 and rest["b"].min() == rest["c"].min() == 501


def test_a_law_for_a_modality_that_does_not_exist_is_an_error():
    laws = [{"c": LOW}, Independent({"a": LOW, "c": LOW}), Mixture([Uniform(), Mixture([Independent({"c": LOW})])])]
    for law in laws:
        with pytest.raises(ValueError, match="is for 'c', which is no modality; there are a, b"):
            law_of(law, ["a", "b"])


def test_a_law_as_a_recipe_writes_it():
    assert isinstance(law_of(None, ["a"]), Uniform) and law_of(LOW, ["a"]) is LOW
    by_name = law_of({"a": LOW}, ["a", "b"])
    times, expected = draw(by_name), draw(Independent({"a": LOW}))
    assert all(torch.equal(times[name], value) for name, value in expected.items())


# --- one of several for each sample ---


def test_a_mixture_takes_each_law_as_often_as_it_weighs_and_each_sample_wholly_from_one():
    times = draw(Mixture([LOW, HIGH, Atoms({0: 1.0})], [3.0, 2.0, 5.0]), "abc")
    stacked = torch.stack(list(times.values()))
    low, high, zero = (stacked >= 1) & (stacked <= 250), stacked > 500, stacked == 0
    for mask, share in ((low, 0.3), (high, 0.2), (zero, 0.5)):
        assert torch.equal(mask.any(0), mask.all(0)), "no sample has one modality of this law and another of that"
        assert_share(mask.all(0), share)
    for a, b in ("ab", "ac", "bc"):  # within a law, modalities are independent
        chosen = high.all(0)
        assert abs(correlation(times[a][chosen], times[b][chosen])) < 5 / math.sqrt(int(chosen.sum()))
    assert_share(times["a"][high.all(0)] <= 750, 0.5)


def test_a_mixture_without_weights_takes_each_law_equally_often():
    times = draw(Mixture([LOW, HIGH]))
    assert_share(times["a"] <= 250, 0.5)


def test_a_law_without_weight_is_never_taken():
    for weights in ([0.0, 1.0, 0.0], [0, 2, 0]):
        times = draw(Mixture([LOW, HIGH, LOW], weights))
        assert all(value.min() > 500 for value in times.values())


def test_nested_mixtures_multiply_their_shares():
    inner = Mixture([Atoms({0: 1.0}), HIGH], [1.0, 3.0])
    times = draw(Mixture([inner, LOW], [0.4, 0.6]))
    for value in times.values():
        for mask, share in ((value == 0, 0.1), (value > 500, 0.3), ((value >= 1) & (value <= 250), 0.6)):
            assert_share(mask, share)
    assert torch.equal(times["a"] == 0, times["b"] == 0) and torch.equal(times["a"] > 500, times["b"] > 500)


def test_a_mixture_of_laws_by_name():
    captioned = Independent({"a": Atoms({0: 1.0}), "b": HIGH})
    times = draw(Mixture([captioned, Shared()], [0.25, 0.75]))
    assert_share(times["a"] == 0, 0.25)
    assert torch.equal(times["a"] != 0, times["a"] == times["b"]) and (times["b"][times["a"] == 0] > 500).all()


@pytest.mark.parametrize(
    ("laws", "weights"), [([], None), ([LOW], [0.5, 0.5]), ([LOW, HIGH], [1.0, -1.0]), ([LOW, HIGH], [0.0, 0.0])]
)
def test_weights_that_do_not_go_with_the_laws_are_refused(laws, weights):
    with pytest.raises(ValueError, match=f"a weight of at least 0 for each of its laws, not .* for {len(laws)}"):
        Mixture(laws, weights)


# --- one clock ---


def test_one_clock_gives_all_modalities_one_time():
    times = draw(Shared(), "abc")
    assert torch.equal(times["a"], times["b"]) and torch.equal(times["a"], times["c"])
    assert_uniform(times["a"])
    assert draw(Shared(LOW))["b"].max() == 250
    assert_share(draw(Shared(Atoms({1: 0.3})))["a"] == T, 0.3 + 0.7 / T)


def test_a_mixture_of_clocks():
    times = draw(Mixture([Shared(LOW), Shared(HIGH)], [0.3, 0.7]))
    assert torch.equal(times["a"], times["b"])
    assert_share(times["a"] <= 250, 0.3)
    assert_share(times["a"][times["a"] > 500] <= 750, 0.5)


# --- in a model ---

LAWS = {
    "uniform": Uniform(),
    "atoms": Atoms({0: 0.3, 1: 0.2}),
    "independent": Independent({"a": LOW}),
    "mixture": Mixture([Mixture([LOW, Shared()]), Independent({"a": HIGH})], [2.0, 1.0]),
    "shared": Shared(),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_adding_a_modality_changes_no_time_of_another(law):
    one, two, three = (draw(law, names, num=500) for names in ("a", "ab", "cab"))
    assert torch.equal(one["a"], two["a"]) and torch.equal(one["a"], three["a"])
    assert torch.equal(two["b"], three["b"])


def test_a_model_draws_by_its_law_and_puts_what_is_missing_to_the_end(registered):
    batch = Batch(torch.arange(200), 3, present={"b": torch.arange(200) < 150})
    model = make(timestep_law={"a": Atoms({0: 1.0})})
    assert isinstance(model.objective.law, Independent)
    times = model.objective.times(batch)
    assert (times["a"] == 0).all() and (times["b"][150:] == T).all() and times["b"][:150].unique().numel() > 100
    with pytest.raises(ValueError, match="a timestep law is for 'image', which is no modality; there are a, b"):
        make(timestep_law={"image": Uniform()})
    shared = make(timestep_law=Shared()).objective.times(Batch(torch.arange(9), 0))
    assert torch.equal(shared["a"], shared["b"])
