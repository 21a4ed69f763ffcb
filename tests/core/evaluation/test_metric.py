from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.core.evaluation.letters import Channel, LetterJudge, WordCodec, members
from unidiff_core import Estimate, Metric, Registry, hookimpl
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.frequencies import Frequencies
from unidiff_core.evaluation.labels import LabelMetric
from unidiff_core.evaluation.metric import Measured, Samples, load_samples
from unidiff_core.evaluation.run import Query, evaluate
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.serialization.description import build


def test_members_are_found_by_ending_or_by_modality_and_ending(tmp_path):
    write_shards(tmp_path, [{"__key__": "1", "x.txt": b"x", "txt": b"y", "json": b'{"n": 3}'}])
    codecs = {"x": WordCodec("txt"), "y": WordCodec("txt")}
    samples = load_samples(tmp_path, codecs)
    assert samples == Samples({"x": ["x"], "y": ["y"]}, {"n": ["3"]})
    with pytest.raises(ValueError, match=r"sample 1 .* no member 'wav' for 'z'"):
        load_samples(tmp_path, {"z": WordCodec("wav")})
    with pytest.raises(ValueError, match=r"no sample .* has a member 'wav' for 'z'"):
        load_samples(tmp_path, {"z": WordCodec("wav")}, missing="keep")


def test_a_sample_may_lack_a_modality_where_that_is_allowed(settings, tmp_path):
    rows = [
        row if i % 2 else {k: v for k, v in row.items() if k != "low"} for i, row in enumerate(members("train", 80))
    ]
    write_shards(tmp_path / "some", rows)
    codecs = {"upper": WordCodec("up"), "lower": WordCodec("low")}
    complete = load_samples(settings.train, codecs)
    some = load_samples(tmp_path / "some", codecs, missing="keep")
    assert len(some) == 80 and some.having("lower").raws["lower"] == complete.raws["lower"][1::2]


class Surplus(Metric):
    """A stranger's: how many samples of a letter there are, over what the real test samples have of it."""

    def __init__(self, letter: str = "a") -> None:
        self.letter = letter

    def fit(self, reference):
        letters = [raw[0].lower() for raw in reference.test.raws["upper"]]
        self.expected = letters.count(self.letter) / len(letters)

    def measure(self, drawn, reference):
        if "upper" not in drawn.solved:
            return Measured({})
        letters = [raw[0].lower() for raw in drawn.solved["upper"]]
        share = letters.count(self.letter) / len(letters)
        return Measured({"surplus": Estimate(share - self.expected, None, None, len(letters))})


@pytest.fixture
def registry():
    """What is registered where a stranger's plugin with `Surplus` is installed."""

    @hookimpl
    def unidiff_register(registry: Registry) -> None:
        registry.add(Surplus)

    plugin = SimpleNamespace(unidiff_register=unidiff_register)
    point = SimpleNamespace(name="surplus", dist=SimpleNamespace(name="surplus-dist"), load=lambda: plugin)
    return load_plugins(lambda: [point])


def test_a_plugins_metric_is_measured_beside_the_others(registry, settings):
    assert {"LabelMetric", "Nearness", "TorchMetric", "Surplus", "Copies"} < set(registry.of_kind(Metric))
    metric = build({"class": "Surplus", "letter": "a"}, registry)
    result = evaluate(Channel(right=1.0), [Frequencies(LetterJudge()), metric], settings)
    surplus = result.queries["upper"]["surplus"]
    assert surplus.value == pytest.approx(0.15, abs=0.06) and (surplus.low, surplus.n) == (None, 400)
    assert "surplus" not in result.queries["lower"] and "letter_tv" in result.queries["upper"]
    assert result.to_dict()["queries"]["upper"]["surplus"]["low"] is None


def test_the_command_makes_a_plugins_metric_by_its_name(settings):
    from unidiff_core.cli.evaluate import _parser

    parser = _parser()
    metrics = "[{class_path: Surplus, init_args: {letter: b}}]"
    arguments = ["runs", f"--metrics={metrics}", "--train=a", "--test=b", "--queries={upper: {num: 3}}"]
    config = parser.instantiate_classes(parser.parse_args(arguments))
    assert type(config.metrics[0]) is Surplus and config.metrics[0].letter == "b"
    assert config.judge is None and config.queries == {"upper": Query(3)}


def test_two_metrics_of_one_name_are_refused(settings):
    settings = replace(settings, queries={"upper": Query(4)})
    with pytest.raises(ValueError, match="two metrics give surplus; name one of them differently"):
        evaluate(Channel(), [Surplus(), Surplus("b")], settings)


def test_accuracies_of_several_metrics_stand_side_by_side(settings):
    class Marks(LetterJudge):
        labels = ("mark",)
        well_formed_name = "neat"

    class Letters(LetterJudge):
        labels = ("letter",)

    settings = replace(settings, queries={"upper": Query(4), "lower": Query(4)})
    judges = evaluate(Channel(), [LabelMetric(Letters()), LabelMetric(Marks())], settings).judges
    assert {name: set(row) for name, row in judges.items()} == {
        "upper": {"letter", "mark"},
        "lower": {"letter", "mark"},
    }
