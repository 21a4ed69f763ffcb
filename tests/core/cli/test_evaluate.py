from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.core.tiny import make
from unidiff_core import Estimate, Metric
from unidiff_core.cli.evaluate import _parser, run
from unidiff_core.cli.main import main
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.metric import Measured
from unidiff_core.evaluation.run import Query
from unidiff_core.process.gaussian.diffusers_solver import DiffusersSolver

RECIPE = Path(__file__).parents[3] / "recipes" / "digits" / "evaluate.yaml"


def parsed(*arguments):
    parser = _parser()
    return parser.instantiate_classes(parser.parse_args(["runs", *arguments]))


def test_the_digits_recipe_parses():
    config = parsed("-c", str(RECIPE), "--steps=7")
    assert config.steps == 7 and type(config.judge).__name__ == "DigitsJudge"
    assert config.queries["image | text"] == Query(1080, guidance=2.0)
    assert config.queries["image, text"] == Query(1080, guidance=3.0, solver="ddpm", steps=60)
    assert math.isclose(config.criteria[3].at_least, -0.03)


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
    run([*arguments, "--num=5", "--drop_ignored=true"])
    found = json.loads((tmp_path / "model/evaluation.json").read_text())
    assert found["queries"]["a | b"]["mean"]["n"] == 5 and found["settings"]["drop_ignored"] is True
    assert (tmp_path / "model/report.html").is_file()
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
    assert exit.value.code == 1 and capsys.readouterr().out.splitlines()[-1] == "0 of 1 criteria met"


def test_what_each_query_costs_is_said(arguments, capsys):
    run(arguments)
    assert "evaluations of the network for" in capsys.readouterr().err


def test_without_judge_and_metrics_there_is_nothing_to_measure(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", *arguments[:-1], f"--out={tmp_path / 'out'}"])
    assert exit.value.code == 2 and "nothing to measure: give --judge, or --metrics" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_shows_every_option_once_and_classes_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for option in ("judge JUDGE", "metrics [ITEM,...],", "queries QUERIES", "solver SOLVER", "conditions CONDITIONS"):
        assert said.count(f" --{option}") == 1, option
    assert "known subclasses: " in said and " LabelMetric, " in said and "unidiff_core." not in said
    assert "default: null" not in said and "(type: int, default: 50)" in said
