from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.core.evaluation.letters import Channel, LetterJudge, judged, members, modality
from tests.core.tiny import make
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.metric import Measured, Metric
from unidiff_core.evaluation.run import Query, Settings, all_queries, evaluate
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.process.gaussian.solver import DDIM
from unidiff_core.sampling.guidance import Guidance
from unidiff_core.sampling.options import SamplingOptions
from unidiff_core.sampling.spec import TimestepSpec


def test_shards_that_are_train_and_test_are_read_once(settings):
    kept = []

    class Keeping(Metric):
        def fit(self, reference):
            kept.append(reference)

        def measure(self, drawn, reference):
            return Measured({})

    queries = {"upper": Query(num=4)}
    evaluate(Channel(), [Keeping()], replace(settings, train=settings.test, queries=queries))
    evaluate(Channel(), [Keeping()], replace(settings, queries=queries))
    assert kept[0].train is kept[0].test and len(kept[1].train) == 80 and len(kept[1].test) == 40


def test_training_samples_may_lack_a_modality(settings, tmp_path):
    rows = [
        row if i % 2 else {k: v for k, v in row.items() if k != "low"} for i, row in enumerate(members("train", 80))
    ]
    write_shards(tmp_path / "some", rows)
    fitted = {}

    class Fitted(LetterJudge):
        def fit(self, modality, raws, labels):
            fitted[modality] = (len(raws), {len(values) for values in labels.values()})

    evaluation = judged(Channel(), replace(settings, train=str(tmp_path / "some")), judge=Fitted())
    assert fitted == {"upper": (80, {80}), "lower": (40, {40})}
    assert evaluation.queries["upper"] == judged(Channel(), settings).queries["upper"]
    with pytest.raises(ValueError, match="no member 'low' for 'lower'"):
        judged(Channel(), replace(settings, test=str(tmp_path / "some")))


def test_a_judge_is_fitted_once_for_all_its_metrics(settings):
    fitted = []

    class Counting(LetterJudge):
        def fit(self, modality, raws, labels):
            fitted.append(modality)

    judge = Counting()
    judged(Channel(), settings, judge=judge)
    assert fitted == ["upper", "lower"]
    judged(Channel(), settings, judge=judge)
    assert fitted == ["upper", "lower"] * 2


def test_dropping_what_is_ignored_reaches_the_model(settings):
    for drops in (False, True):
        model = Channel()
        judged(model, replace(settings, drop_ignored=drops))
        assert {options.drop_ignored for _, _, options in model.calls} == {drops}


def test_givens_go_round_and_progress_is_in_samples(settings):
    model, seen = Channel(), []
    settings = replace(settings, queries={"upper | lower": Query(num=100, guidance=2.0)})
    result = judged(model, settings, advance=lambda name, done: seen.append((name, done)))
    [(num, given, options)] = model.calls
    assert num == 100 and given["lower"][:20] == given["lower"][40:60] == given["lower"][80:]
    assert options == SamplingOptions(
        steps=20,
        solver=None,
        guidance=2.0,
        drop_ignored=False,
        batch_size=150,
        seed=own_seed(settings, "upper | lower"),
    )
    assert seen == [("upper | lower", 50), ("upper | lower", 100)]
    assert result.queries == judged(model, settings).queries


def own_seed(settings, name):
    return settings.query_options(name).seed


def test_each_query_has_a_seed_of_its_own(settings):
    seeds = [own_seed(settings, name) for name in settings.queries]
    assert len(set(seeds)) == len(seeds) == 5 and all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [own_seed(settings, name) for name in settings.queries]
    assert own_seed(replace(settings, seed=1), "upper") != own_seed(settings, "upper")
    assert own_seed(replace(settings, queries={"upper": Query(4, seed=9)}), "upper") == 9


OWN = {
    "solver": "ddpm",
    "steps": 7,
    "guidance": {"lower": 2.0},
    "seed": 5,
    "redraws_noise": True,
    "drop_ignored": False,
    "conditions": {"kind": 1},
}


def test_a_query_states_any_option_and_the_settings_the_rest(settings):
    model, shared = Channel(), {"solver": "ddim", "steps": 9, "drop_ignored": True, "conditions": {"kind": 0}}
    queries = {"upper | lower": Query(10, **OWN), "upper": Query(10), "lower": Query(10, conditions={}, seed=0)}
    settings = replace(settings, queries=queries, guidance=0.5, seed=3, **shared)
    judged(model, settings)
    given = [options for _, _, options in model.calls]
    settled = SamplingOptions(guidance=0.5, seed=own_seed(settings, "upper"), batch_size=150, **shared)
    assert given == [SamplingOptions(batch_size=150, **OWN), settled, replace(settled, conditions={}, seed=0)]
    assert all(type(options) is SamplingOptions for options in given)


def test_only_what_concerns_all_queries_cannot_be_stated_by_one():
    with pytest.raises(TypeError, match="batch_size"):
        Query(batch_size=3)
    with pytest.raises(ValueError, match="steps is a whole number, at least 1"):
        Settings("train", "test", {}, steps=0)


def test_settings_are_recorded_as_ever(settings):
    queries = {"upper | lower": Query(num=100, guidance=2.0), "lower": Query(10, steps=3, solver="ddpm")}
    plain = replace(settings, queries=queries, criteria=[Criterion("lower", "letter", at_least=0.5)]).to_dict()
    assert plain == {
        "train": settings.train,
        "test": settings.test,
        "queries": {
            "upper | lower": {
                "num": 100,
                "guidance": 2.0,
                "steps": None,
                "solver": None,
                "seed": own_seed(settings, "upper | lower"),
            },
            "lower": {"num": 10, "guidance": 0.0, "steps": 3, "solver": "ddpm", "seed": own_seed(settings, "lower")},
        },
        "criteria": [{"query": "lower", "metric": "letter", "minus": None, "at_least": 0.5, "at_most": None}],
        "steps": 20,
        "solver": None,
        "drop_ignored": False,
        "seed": 0,
        "batch_size": 150,
        "num_examples": 24,
    }
    assert list(plain) == [
        *("train", "test", "queries", "criteria", "steps", "solver", "drop_ignored", "seed", "batch_size"),
        "num_examples",
    ]


def test_other_options_are_recorded_where_they_are_stated(settings):
    plain = replace(settings, queries={"upper | lower": Query(10, **OWN)}, redraws_noise=True).to_dict()
    assert plain["redraws_noise"] is True and {"guidance", "conditions", "constrain"}.isdisjoint(plain)
    assert plain["queries"] == {"upper | lower": {"num": 10, **OWN}}


def test_what_only_python_can_give_is_recorded_too(settings):
    def inpaint(latents, times):
        return latents

    guidance = Guidance.of(TimestepSpec.parse("upper | lower", ("upper", "lower")), 2.0, interval=(0.1, 0.9))
    queries = {"upper | lower": Query(4, conditions={"kind": torch.tensor([1, 0, 1, 0])}, solver=DDIM())}
    settings = replace(settings, queries=queries, guidance=guidance, constrain=inpaint, solver={"upper": "ddpm"})
    plain = json.loads(json.dumps(judged(Channel(), settings).to_dict()))["settings"]
    query = plain["queries"]["upper | lower"]
    assert query["conditions"] == {"kind": [1, 0, 1, 0]} and query["solver"]["class"] == "ddim"
    assert "interval=(0.1, 0.9)" in query["guidance"] and plain["guidance"] == query["guidance"]
    assert plain["solver"] == {"upper": "ddpm"} and plain["constrain"].endswith("inpaint")


def test_shards_need_not_hold_what_no_query_is_about(settings):
    model = Channel()
    settings = replace(settings, queries={"upper": Query(num=10)})
    expected = judged(model, settings).queries
    model.modalities |= {"sound": modality("wav")}
    assert judged(model, settings).queries == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criteria": [Criterion("nope", "letter", at_least=1)]}, "'nope', which is no query"),
        ({"criteria": [Criterion("upper", "letter")]}, "needs at_least or at_most"),
        ({"queries": {"upper": Query(num=0)}}, "at least 1 sample"),
        ({"queries": {"sound": Query()}}, "sound"),
        ({"train": "nowhere"}, "no shards in nowhere"),
        ({"solver": {"lower": "ddim"}}, r"a solver is named for 'lower', which upper \| lower does not solve"),
        ({"queries": {"upper": Query(), "lower": Query(solver="euler")}}, "unknown solver 'euler'"),
        ({"queries": {"upper": Query(), "lower": Query(guidance={"upper": 2.0})}}, "guidance is set for 'upper'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_sampling(settings, change, message):
    model = Channel()
    with pytest.raises((ValueError, UnknownNameError), match=message):
        judged(model, replace(settings, **change))
    assert not model.calls


class Means(Metric):
    """Mean of each solved modality's numbers."""

    def measure(self, drawn, reference):
        rows = drawn.solved.items()
        return Measured({f"{name}.mean": Estimate(sum(raws) / len(raws), None, None, len(raws)) for name, raws in rows})


def test_a_model_is_evaluated_as_it_samples(tmp_path):
    rows = [{"__key__": f"{i}", "a.num": f"{i / 8}".encode(), "b.num": f"{-i / 8}".encode()} for i in range(8)]
    write_shards(tmp_path, rows)
    model, seen = make().eval(), []
    queries = {"a | b": Query(6, steps=3, guidance={"b": 1.0}, solver={"a": "ddpm"}), "a, b": Query(5)}
    settings = Settings(str(tmp_path), str(tmp_path), queries, steps=2, batch_size=4)
    result = evaluate(model, [Means()], settings, lambda name, done: seen.append((name, done)))
    given = [-i / 8 for i in range(6)]
    options = {"steps": 3, "guidance": {"b": 1.0}, "solver": {"a": "ddpm"}, "batch_size": 4}
    options["seed"] = own_seed(settings, "a | b")
    expected = model.sample("a | b", {"b": given}, 6, **options)["a"]
    assert result.queries["a | b"]["a.mean"].value == sum(expected) / 6
    assert set(result.queries["a, b"]) == {"a.mean", "b.mean"}
    assert seen[:6] == [("a | b", i) for i in range(1, 7)] and seen[-1] == ("a, b", 5)


@pytest.mark.parametrize(("num", "count"), [(1, 1), (2, 5), (3, 19)])
def test_all_queries_are_every_marginal_conditional_and_joint(num, count):
    names = [f"m{i}" for i in range(num)]
    queries = all_queries(names, 7)
    specs = [TimestepSpec.parse(name, names) for name in queries]
    roles = {
        (frozenset(spec.solved), frozenset(key for key, path in spec.paths.items() if path.needs_value))
        for spec in specs
    }
    assert len(queries) == len(roles) == count and {query.num for query in queries.values()} == {7}


def test_more_queries_than_fifty_ask_for_a_selection():
    with pytest.raises(ValueError, match="4 modalities have 65 queries, more than 50: name those that you want"):
        all_queries("abcd", 7)


def test_parts_of_the_test_samples_are_disjoint_and_never_share_a_source(settings):
    def given(part):
        model = Channel()
        options = {"sources": r"\d+$", "part": part, "validation_share": 0.5}
        queries = {"upper | lower": Query(40)}
        judged(model, replace(settings, queries=queries, **options))
        [(_, row, _)] = model.calls
        return set(row["lower"])

    assert given("validation") and given("test")
    assert len(given("all")) >= len(given("validation")) and given("all") == given("validation") | given("test")


def test_a_key_that_names_no_source_is_told(settings):
    with pytest.raises(ValueError, match="'nothing', finds nothing in the key 'test0000'"):
        judged(Channel(), replace(settings, sources="nothing"))


def test_a_sweep_draws_every_query_with_each_value(settings):
    model = Channel()
    queries = {"upper | lower": Query(30, guidance=1.0), "upper": Query(30)}
    sweep = {"guidance": [0.0, 2.0], "steps": [3]}
    result = judged(model, replace(settings, queries=queries, sweep=sweep))
    asked = [(bool(given), options.guidance, options.steps) for _, given, options in model.calls]
    plain = [(True, 1.0, 20), (False, 0.0, 20)]
    # Nothing guides a marginal, so guidance is not swept there.
    assert asked == [*plain, (True, 0.0, 20), (True, 2.0, 20), (True, 1.0, 3), (False, 0.0, 3)]
    assert {key: set(row) for key, row in result.sweeps.items()} == {
        "guidance": {"upper | lower"},
        "steps": set(queries),
    }
    assert set(result.sweeps["guidance"]["upper | lower"]) == {"0", "2"}
    written = json.loads(json.dumps(result.to_dict()))
    assert written["sweeps"]["steps"]["upper"]["3"] == written["queries"]["upper"]
    with pytest.raises(ValueError, match=r"a sweep is over an option of sampling, .* not over 'colour'"):
        judged(model, replace(settings, sweep={"colour": [1]}))
