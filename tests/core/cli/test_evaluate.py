from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from tests.core.group import in_group
from tests.core.tiny import make
from unidiff_core import Estimate, Metric, UniDiffuser
from unidiff_core.cli.evaluate import _parser, run
from unidiff_core.cli.main import main
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation import run as run_module
from unidiff_core.evaluation.metric import Measured
from unidiff_core.evaluation.run import Query
from unidiff_core.process.gaussian.diffusers_solver import DiffusersSolver
from unidiff_core.sampling.options import SamplingOptions

RECIPE = Path(__file__).parents[3] / "recipes" / "digits" / "evaluate.yaml"


def parsed(*arguments):
    parser = _parser()
    return parser.instantiate_classes(parser.parse_args(["runs", *arguments]))


def test_the_digits_recipe_parses():
    config = parsed("-c", str(RECIPE), "--steps=7")
    assert config.steps == 7 and type(config.judge).__name__ == "DigitsJudge"
    assert config.queries["image | text"] == Query(693, guidance=2.0)
    assert config.queries["image, text"] == Query(693, guidance=3.0, solver="ddpm", steps=60)
    assert config.part == "test" and config.sources


SHARDS = ("--train=a", "--test=b")


def test_a_query_takes_every_option_of_sampling():
    text = """{a | b: {num: 5, solver: {a: ddpm}, steps: 7, guidance: {b: 2}, seed: 1, redraws_noise: true,
        drop_ignored: false, conditions: {kind: 1}},
        b: {solver: {class_path: DiffusersSolver, init_args: {scheduler_class: EulerDiscreteScheduler}}}}"""
    queries = parsed(*SHARDS, f"--queries={text}").queries
    own = {"solver": {"a": "ddpm"}, "guidance": {"b": 2.0}, "redraws_noise": True, "conditions": {"kind": 1}}
    assert queries["a | b"] == Query(5, steps=7, seed=1, drop_ignored=False, **own)
    assert type(queries["b"].solver) is DiffusersSolver


class Mean(Metric):
    """Of the numbers that are solved."""

    def __init__(self, name: str = "mean") -> None:
        self.name = name

    def measure(self, drawn, reference):
        raws = [raw for raws in drawn.solved.values() for raw in raws]
        return Measured({self.name: Estimate(sum(raws) / len(raws), None, None, len(raws))})


@pytest.fixture
def arguments(tmp_path, registered):
    """A model directory, its shards, a query and a metric."""
    rows = [{"__key__": f"{i}", "a.num": f"{i}".encode(), "b.num": f"{-i}".encode()} for i in range(4)]
    write_shards(tmp_path / "shards", rows)
    make().save_pretrained(tmp_path / "model")
    shards = (f"--train={tmp_path / 'shards'}", f"--test={tmp_path / 'shards'}")
    return [str(tmp_path / "model"), *shards, "--queries={a | b: {num: 3}}", "--steps=2", "--metrics=[Mean]"]


def test_a_model_is_evaluated_and_written_about(arguments, tmp_path, capsys):
    film = ["a", "b | a", "--num=2", "--steps=1", f"--out={tmp_path / 'model/some_chain'}"]
    main(["chain", str(tmp_path / "model"), *film])
    run([*arguments, "--num=5", "--drop_ignored=true"])
    found = json.loads((tmp_path / "model/evaluation.json").read_text())
    assert found["queries"]["a | b"]["mean"]["n"] == 5 and found["settings"]["drop_ignored"] is True
    page = (tmp_path / "model/report.html").read_text()
    assert "<h2>some chain</h2>" in page and page.count('<section class="film">') == 1
    assert len(json.loads((tmp_path / "model/examples.json").read_text())["a | b"]) == 5
    said = capsys.readouterr().out
    assert "mean" in said and str(tmp_path / "model/report.html") in said.replace("\n", "")


@pytest.mark.parametrize(
    ("bounds", "strict", "code"), [("99", [], 0), ("99", ["--strict"], 1), ("-99", ["--strict"], 0)]
)
def test_the_last_line_counts_the_criteria_that_are_met(arguments, capsys, bounds, strict, code):
    rules = f"[{{query: a | b, metric: mean, at_least: {bounds}}}, {{query: a | b, metric: mean, at_least: -99}}]"
    try:
        main(["evaluate", *arguments, f"--criteria={rules}", *strict])
        found = 0
    except SystemExit as exit:
        found = exit.code
    met = 1 if bounds == "99" else 2
    assert found == code and capsys.readouterr().out.splitlines()[-1] == f"{met} of 2 criteria met"


def test_a_criterion_that_was_not_measured_is_not_met(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *arguments, "--criteria=[{query: a | b, metric: other, at_most: 1}]", "--strict"])
    assert exit.value.code == 1 and capsys.readouterr().out.splitlines()[-1] == "0 of 1 criteria met, 1 not measured"


def test_what_each_query_costs_is_said(arguments, capsys):
    run(arguments)
    assert "evaluations of the network for" in capsys.readouterr().err


def test_what_the_command_line_narrows_is_told(arguments, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
        queries: {a | b: {num: 3, steps: 2}, a: {num: 3}, b: {num: 3}}
        criteria: [{query: a | b, metric: mean, at_least: -99}, {query: a, metric: mean, at_least: -99}]
    """)
    without_queries = [word for word in arguments if not word.startswith("--queries")]
    run([*without_queries, "-c", str(recipe), "--steps=3"])
    said = capsys.readouterr()
    assert "a | b keeps its own steps, 2: --queries changes that" in said.err and said.err.count("keeps") == 1
    assert said.out.splitlines()[-1] == "2 of 2 criteria met"
    run([*without_queries, "-c", str(recipe), "--queries={a | b: {num: 4}}"])
    said = capsys.readouterr()
    assert "1 of 2 criteria are about queries that are left out: not counted" in said.err
    assert said.out.splitlines()[-1] == "1 of 1 criteria met"


def test_what_is_not_said_is_as_the_model_says(arguments, tmp_path, capsys):
    made = make()
    made.sampling = SamplingOptions(steps=3, guidance=2.0, guidance_interval=(0.1, 0.9), batch_size=2)
    made.save_pretrained(tmp_path / "model", overwrite=True)
    words = [word for word in arguments if word not in ("--steps=2", "--queries={a | b: {num: 3}}")]
    config = tmp_path / "evaluate.yaml"
    config.write_text("queries: {a | b: {num: 3}, b | a: {num: 3, guidance: 1.0}}\nguidance_interval: [0.2, 0.8]\n")
    run([words[0], "-c", str(config), *words[1:], "--seed=4"])
    settings = json.loads((tmp_path / "model/evaluation.json").read_text())["settings"]
    assert [row["guidance"] for row in settings["queries"].values()] == [2.0, 1.0]  # a query's own comes first
    assert (settings["steps"], settings["batch_size"], settings["guidance_interval"]) == (3, 2, [0.2, 0.8])
    said = capsys.readouterr().err
    assert "says where nothing is said: steps 3, guidance 2.0, batch_size 2\n" in said.replace("\n ", " "), said
    assert "a | b: 12 evaluations of the network for 3 samples (2 in each of 3 steps, 2 batches)" in said
    run([words[0], "-c", str(config), *words[1:], "--guidance=0", "--batch_size=120"])
    settings = json.loads((tmp_path / "model/evaluation.json").read_text())["settings"]
    assert (settings["queries"]["a | b"]["guidance"], settings["batch_size"], settings["steps"]) == (0.0, 120, 3)


@pytest.fixture
def unjudged(tmp_path, registered):
    """A model directory and shards without labels, as a user's own data are."""
    for split in ("train", "test"):
        rows = np.random.default_rng(split == "test").normal(size=(40, 2))
        write_shards(
            tmp_path / split,
            [{"__key__": f"{i}", "a.num": f"{a}".encode(), "b.num": f"{b}".encode()} for i, (a, b) in enumerate(rows)],
        )
    make().save_pretrained(tmp_path / "model")
    return [str(tmp_path / "model"), f"--train={tmp_path / 'train'}", f"--test={tmp_path / 'test'}", "--steps=2"]


def test_every_query_is_measured_without_judge_and_labels(unjudged, tmp_path, capsys):
    run([*unjudged, "--queries", "all", "--num=24", "--sweep", "steps=1,2"])
    said = capsys.readouterr()
    assert "5 queries over a, b: a; b; a | b; b | a; a, b" in said.err
    found = json.loads((tmp_path / "model/evaluation.json").read_text())
    assert set(found["queries"]) == {"a", "b", "a | b", "b | a", "a, b"} and not found["judges"]
    names = [
        "frechet",
        "frechet_floor",
        "kernel",
        "kernel_floor",
        "precision",
        "density",
        "coverage",
        "variety",
        "copied",
    ]
    assert set(names) <= set(found["queries"]["a | b"])
    assert {f"b.{name}" for name in names} <= set(found["queries"]["a, b"])
    assert found["features"] == ["latents of the model's codecs"]
    assert {"real a", "real a, through its codec", "real b", "real b, through its codec"} == set(found["controls"])
    assert {key: set(row) for key, row in found["sweeps"]["steps"].items()} == {
        key: {"1", "2"} for key in found["queries"]
    }
    page = unescape((tmp_path / "model/report.html").read_text())
    assert page.count("<svg") >= 5 * 8 and "latents of the model's codecs" in page
    assert page.count('<div class="beside">') == 6 * 6  # of each solved modality what is nearest to training samples
    origin = found["origin"]
    assert origin["command"].startswith(f"unidiffuser evaluate {tmp_path / 'model'} --train=")
    assert {"date", "versions", "machine", "device", "weights"} <= set(origin) and origin["versions"]["torch"] in page


def test_what_was_drawn_is_not_drawn_again(unjudged, tmp_path, monkeypatch):
    arguments = [*unjudged, "--queries={a: {num: 24}, b: {num: 24}}"]
    calls = []
    sample = UniDiffuser.sample

    def counted(self, spec, *more, **options):
        calls.append(spec)
        if calls == ["a", "b"]:
            raise KeyboardInterrupt  # killed in the second query
        return sample(self, spec, *more, **options)

    monkeypatch.setattr(UniDiffuser, "sample", counted)
    with pytest.raises(KeyboardInterrupt):
        run(arguments)
    assert not (tmp_path / "model/evaluation.json").exists()
    run(arguments)
    assert calls == ["a", "b", "b"]
    first = json.loads((tmp_path / "model/evaluation.json").read_text())
    run([*arguments, f"--out={tmp_path / 'again'}"])  # from nothing, elsewhere
    again = json.loads((tmp_path / "again/evaluation.json").read_text())
    assert again["queries"] == first["queries"] and calls[3:] == ["a", "b"]
    run([*arguments, "--seed=1"])
    other = make()
    other.requires_grad_(False)
    next(other.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "model", overwrite=True)
    run(arguments)
    assert calls[5:] == ["a", "b", "a", "b"]  # another seed, and other weights


def counted_calls(monkeypatch):
    """First index and number of each call of `sample`."""
    calls = []
    sample = UniDiffuser.sample

    def counted(self, spec, given=None, num=None, **options):
        calls.append((spec, options.get("first_index", 0), num))
        return sample(self, spec, given, num, **options)

    monkeypatch.setattr(UniDiffuser, "sample", counted)
    return calls


def test_a_query_is_kept_part_by_part(unjudged, tmp_path, monkeypatch):
    arguments = [*unjudged, "--queries={a | b: {num: 24}}", "--batch_size=10"]
    monkeypatch.setattr(run_module, "PARTS", 1)
    run([*arguments, f"--out={tmp_path / 'whole'}"])
    monkeypatch.setattr(run_module, "PARTS", 64)
    calls = counted_calls(monkeypatch)
    run([*arguments, f"--out={tmp_path / 'parts'}"])
    assert calls == [("a | b", 0, 10), ("a | b", 10, 10), ("a | b", 20, 4)]
    results = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "parts")]
    assert results[0]["queries"] == results[1]["queries"]
    lost = next(
        note for note in tmp_path.glob("parts/draws/*/query.json") if json.loads(note.read_text())["first"] == 10
    )
    lost.unlink()  # as if it had been killed there
    run([*arguments, f"--out={tmp_path / 'parts'}"])
    assert calls[3:] == [("a | b", 10, 10)]
    run([*arguments, f"--out={tmp_path / 'whole'}"])  # what was kept whole is found
    assert len(calls) == 4


def test_processes_draw_their_shares_and_the_first_measures(unjudged, tmp_path, monkeypatch):
    arguments = [*unjudged, "--queries={a | b: {num: 30}, b: {num: 20}}", "--batch_size=10"]
    run([*arguments, f"--out={tmp_path / 'one'}"])

    def of_rank(rank):
        calls = counted_calls(monkeypatch)
        run([*arguments, f"--out={tmp_path / 'two'}"])
        return calls

    shares = in_group(2, of_rank)
    assert shares == [[("a | b", 0, 10), ("a | b", 20, 10), ("b", 10, 10)], [("a | b", 10, 10), ("b", 0, 10)]]
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one["queries"] == two["queries"] and one["controls"] == two["controls"]


def test_a_sweep_needs_an_option_and_values(unjudged):
    with pytest.raises(ValueError, match="--sweep=guidance: give an option of sampling and its values"):
        run([*unjudged, "--queries=all", "--sweep", "guidance"])
    with pytest.raises(ValueError, match="a sweep is over an option of sampling"):
        run([*unjudged, "--queries=all", "--sweep=colour=1,2"])


def test_help_shows_every_option_once_and_classes_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for option in ("judge JUDGE", "metrics [ITEM,...],", "queries QUERIES", "solver SOLVER", "conditions CONDITIONS"):
        assert said.count(f" --{option}") == 1, option
    assert "known subclasses: " in said and " LabelMetric, " in said and "unidiff_core." not in said
    assert "default: null" not in said and "(type: int, default: 20)" in said
