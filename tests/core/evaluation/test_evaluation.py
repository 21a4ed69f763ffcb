import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.estimate import share, total_variation
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.labels import Drawn, Samples, Yardstick, load_samples, measure, nearest_distances
from unidiff_core.evaluation.report import table_rows, unmeasured, write_report
from unidiff_core.evaluation.run import Criterion, Query, Settings, evaluate
from unidiff_core.sampling.spec import TimestepSpec

LETTERS = "abcd"


class WordCodec:
    """A modality whose raw sample is a string."""

    def __init__(self, extension):
        self.extension = extension

    def from_bytes(self, data):
        return data.decode()

    def html(self, raw):
        return f"<b>{raw}</b>"


class LetterJudge(Judge):
    """Reads "letter" off "upper" ("A7") and "lower" ("a7"); "mark" is stated by "lower" only sometimes ("a7!")."""

    labels = ("letter", "mark")
    modalities = ("upper", "lower")
    well_formed_name = "tidy"

    def fit(self, modality, raws, labels):
        self.fitted = True

    def read(self, modality, raws):
        letters = [raw[0].lower() if raw[:1].lower() in LETTERS and raw else None for raw in raws]
        marks = [raw[2] if len(raw) > 2 else None for raw in raws]
        return {"letter": letters, "mark": marks}

    def well_formed(self, modality, raw):
        return raw[0].islower() if modality == "lower" else None

    def features(self, modality, raws):
        return np.array([[ord(raw[0]), float(raw[1])] for raw in raws]) if modality == "upper" else None


class Channel:
    """A model that answers rightly with a known probability, and draws "a" too often when it is given nothing."""

    def __init__(self, right=0.8):
        self.right = right
        self.modalities = {
            "upper": SimpleNamespace(codec=WordCodec("up")),
            "lower": SimpleNamespace(codec=WordCodec("low")),
        }
        self.calls = []
        self.num_right = Counter()

    def sample(self, spec, *, given, num, seed, on_progress, **options):
        self.calls.append((num, given, options))
        on_progress(5, 10)
        on_progress(10, 10)
        solved = TimestepSpec.parse(spec, self.modalities).solved
        return {name: [self._one(name, solved, given, i, seed) for i in range(num)] for name in solved}

    def _one(self, name, solved, given, i, seed):
        rng = np.random.default_rng([seed, i])
        letter = (
            given[next(iter(given))][i][0].lower() if given else str(rng.choice(list(LETTERS), p=[0.4, 0.2, 0.2, 0.2]))
        )
        is_wrong = rng.random() > self.right
        if is_wrong and name == solved[-1]:
            letter = LETTERS[(LETTERS.index(letter) + 1) % 4]
        self.num_right[", ".join(solved), bool(given)] += name == solved[-1] and not is_wrong
        return f"{letter.upper() if name == 'upper' else letter}5{'!' if name == 'upper' else ''}"


def members(split, count):
    for i in range(count):
        letter, number, mark = LETTERS[i % 4], (i // 4) % 5, "!?"[i % 2]
        yield {
            "__key__": f"{split}{i:04d}",
            "up": f"{letter.upper()}{number}{mark}".encode(),
            "low": (f"{letter}{number}" + (mark if i % 8 < 4 else "")).encode(),
            "json": json.dumps({"letter": letter, "mark": mark, "note": i}).encode(),
        }


@pytest.fixture
def settings(tmp_path):
    for split, count in (("train", 80), ("test", 40)):
        write_shards(tmp_path / split, members(split, count), shard_size=30)
    queries = {name: Query(num=400) for name in ("upper | lower", "lower | upper", "upper, lower", "upper", "lower")}
    return Settings(str(tmp_path / "train"), str(tmp_path / "test"), queries, batch_size=150)


def test_wilson_interval_against_a_known_value():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    estimate = share(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert estimate.value == 81 / 263


@pytest.mark.parametrize("hits", [0, 10])
def test_an_extreme_share_is_in_its_interval(hits):
    estimate = share(hits, 10)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low == pytest.approx(0.27753, abs=1e-4)


def test_no_samples_are_no_share():
    with pytest.raises(ValueError, match="0 hits of 0"):
        share(0, 0)


def test_total_variation_is_exact():
    values = ["a"] * 3 + ["b"] + [None] * 4
    estimate = total_variation(values, ["a", "b", "b", "c"])
    assert estimate.value == (abs(3 / 8 - 1 / 4) + abs(1 / 8 - 1 / 2) + 1 / 4 + 1 / 2) / 2
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate == total_variation(values, ["a", "b", "b", "c"])
    assert total_variation(["a", "b"], ["b", "a"]).value == 0 == total_variation(["a", "b"], ["b", "a"]).low


def test_the_bootstrap_covers():
    rng = np.random.default_rng(0)
    truth, reference = [0.5, 0.3, 0.2], list("aaabbbbccc")  # (0.3, 0.4, 0.3): distance 0.2
    intervals = [total_variation(list(rng.choice(list("abc"), 500, p=truth)), reference) for _ in range(100)]
    assert sum(cell.low <= 0.2 <= cell.high for cell in intervals) >= 90


def test_nearest_distances_are_the_brute_force_ones():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    expected = np.linalg.norm(a[:, None] - b, axis=-1).min(axis=1)
    np.testing.assert_allclose(nearest_distances(a, b, chunk=7), expected, atol=1e-9)
    assert nearest_distances(b, b).max() < 1e-6


def test_members_are_found_by_ending_or_by_modality_and_ending(tmp_path):
    write_shards(tmp_path, [{"__key__": "1", "x.txt": b"x", "txt": b"y", "json": b'{"n": 3}'}])
    codecs = {"x": WordCodec("txt"), "y": WordCodec("txt")}
    samples = load_samples(tmp_path, codecs)
    assert samples == Samples({"x": ["x"], "y": ["y"]}, {"n": ["3"]})
    with pytest.raises(ValueError, match=r"sample 1 .* no member 'wav' for 'z'"):
        load_samples(tmp_path, {"z": WordCodec("wav")})
    with pytest.raises(ValueError, match=r"no sample .* has a member 'wav' for 'z'"):
        load_samples(tmp_path, {"z": WordCodec("wav")}, missing="keep")


def test_training_samples_may_lack_a_modality(settings, tmp_path):
    rows = [
        row if i % 2 else {k: v for k, v in row.items() if k != "low"} for i, row in enumerate(members("train", 80))
    ]
    write_shards(tmp_path / "some", rows)
    codecs = {"upper": WordCodec("up"), "lower": WordCodec("low")}
    complete = load_samples(settings.train, codecs)
    some = load_samples(tmp_path / "some", codecs, missing="keep")
    assert len(some) == 80 and some.having("lower").raws["lower"] == complete.raws["lower"][1::2]
    fitted = {}

    class Fitted(LetterJudge):
        def fit(self, modality, raws, labels):
            fitted[modality] = (len(raws), {len(values) for values in labels.values()})

    evaluation = evaluate(Channel(), Fitted(), replace(settings, train=str(tmp_path / "some")))
    assert fitted == {"upper": (80, {80}), "lower": (40, {40})}
    assert evaluation.queries["upper"] == evaluate(Channel(), LetterJudge(), settings).queries["upper"]
    with pytest.raises(ValueError, match="no member 'low' for 'lower'"):
        evaluate(Channel(), LetterJudge(), replace(settings, test=str(tmp_path / "some")))


def test_dropping_what_is_ignored_reaches_the_model(settings):
    for drops in (False, True):
        model = Channel()
        evaluate(model, LetterJudge(), replace(settings, drop_ignored=drops))
        assert {options["drop_ignored"] for _, _, options in model.calls} == {drops}


def test_a_noisy_channel_measures_as_what_it_is(settings):
    model = Channel(right=0.8)
    result = evaluate(model, LetterJudge(), settings)
    for name in ("upper | lower", "lower | upper", "upper, lower"):
        num_right = model.num_right[name.split(" | ")[0], "|" in name]
        assert 280 < num_right < 350
        assert result.queries[name]["letter"] == share(num_right, 400)
    assert result.queries["upper | lower"]["given_letter"].value == 1.0
    assert result.queries["lower | upper"]["tidy"].value == 1.0
    # Half of the captions name the mark; of those givens half are "!", which is all that the channel draws.
    assert result.queries["upper | lower"]["mark"].n == 200
    assert result.queries["upper | lower"]["mark"].value == 0.5
    # A drawn "lower" never names the mark, which it need not.
    assert "mark" not in result.queries["lower | upper"]
    assert {"letter_tv", "upper.letter_tv", "lower.letter_tv", "tidy", "nearest"} <= set(result.queries["upper, lower"])


def test_distribution_of_marginals(settings):
    metrics = evaluate(Channel(right=1.0), LetterJudge(), settings).queries["upper"]
    assert metrics["letter_tv"].low <= 0.15 <= metrics["letter_tv"].high
    assert metrics["mark_tv"].value == 0.5
    assert metrics["nearest"].value == 0.0  # "A5" is a whole step from every training sample


def test_judges_are_judged_on_what_is_stated(settings):
    judges = evaluate(Channel(), LetterJudge(), settings).judges
    assert judges["upper"]["letter"].value == 1.0 and judges["upper"]["mark"].n == 40
    assert judges["lower"]["mark"].n == 20


def test_a_copy_counts_as_near(tmp_path):
    rng = np.random.default_rng(0)

    class Numbers(LetterJudge):
        labels = ("letter",)

        def features(self, modality, raws):
            return np.array([[float(raw[1:])] for raw in raws])

    def draw(n):
        return [f"a{value:.6f}" for value in rng.uniform(0, 9, n)]

    train, test = ({"upper": draw(50)} for _ in range(2))
    labels = {"letter": ["a"] * 50}
    yardstick = Yardstick(Numbers(), Samples(train, labels), Samples(test, labels))
    assert yardstick.nearness("upper", train["upper"]).estimate.value == 1.0
    assert yardstick.nearness("upper", test["upper"]).estimate.value <= 0.02


class ThreeJudge(LetterJudge):
    """Reads a third modality, "bare" ("a"), which has a letter and never a mark."""

    labels = ("letter", "mark")
    modalities = ("upper", "lower", "bare")

    def features(self, modality, raws):
        return None


@pytest.fixture
def three():
    rows = [(letter, mark) for letter in "aabc" for mark in "!?"]
    raws = {
        "upper": [f"{letter.upper()}0{mark}" for letter, mark in rows],
        "lower": [f"{letter}0{mark}" for letter, mark in rows],
        "bare": [letter for letter, _ in rows],
    }
    samples = Samples(raws, {"letter": [row[0] for row in rows], "mark": [row[1] for row in rows]})
    return Yardstick(ThreeJudge(), samples, samples)


def test_three_solved_agree_all_together_and_in_pairs(three):
    solved = {
        "upper": ["A0!", "A0!", "A0!", "B0?"],
        "lower": ["a0!", "a0?", "b0!", "b0?"],
        "bare": ["a", "a", "b", "x"],
    }
    metrics, _ = measure(three, Drawn({}, solved, {}))
    values = {name: cell.value for name, cell in metrics.items() if not name.endswith("_tv")}
    assert values == {
        **{"letter": 0.5, "upper+lower.letter": 0.75, "upper+bare.letter": 0.5, "lower+bare.letter": 0.75},
        **{"mark": 0.75, "upper+lower.mark": 0.75, "tidy": 1.0},  # "bare" has no mark to agree on
    }
    tv = [metrics[f"{name}letter_tv"].value for name in ("", "upper.", "lower.", "bare.")]
    assert tv == [0.25] * 4  # of (0.75, 0.25, 0), (0.5, 0.5, 0) and (0.5, 0.25, 0 and 0.25 unread) to (0.5, 0.25, 0.25)
    assert "bare.mark_tv" not in metrics and metrics["mark_tv"].value == 0.25


def test_what_no_given_states_is_free_and_measured_as_a_distribution(three):
    drawn = Drawn({"bare": ["a", "b"]}, {"upper": ["A0!", "B0!"]}, {"letter": ["a", "b"], "mark": ["?", "?"]})
    metrics, _ = measure(three, drawn)
    assert {name: cell.value for name, cell in metrics.items()} == {"letter": 1.0, "given_letter": 1.0, "mark_tv": 0.5}


def test_several_givens_and_several_solved(three):
    known = {"letter": ["a", "b"], "mark": ["!", "?"]}
    given = {"lower": ["a0!", "b0?"], "bare": ["a", "b"]}
    metrics, faults = measure(three, Drawn(given, {"upper": ["A0!", "B0!"]}, known))
    assert {name: cell.value for name, cell in metrics.items() if "given" not in name} == {"letter": 1.0, "mark": 0.5}
    assert metrics["lower.given_mark"].value == metrics["bare.given_letter"].value == 1.0 and set(faults) >= {"letter"}
    metrics, _ = measure(three, Drawn({"bare": ["a", "b"]}, {"upper": ["A0!", "C0!"], "lower": ["a0!", "b0?"]}, known))
    expected = {"upper.letter": 0.5, "lower.letter": 1.0, "letter": 0.5, "mark": 0.5}
    assert {name: metrics[name].value for name in expected} == expected


def test_givens_go_round_and_progress_is_in_samples(settings):
    model, seen = Channel(), []
    settings = replace(settings, queries={"upper | lower": Query(num=100, guidance=2.0)})
    result = evaluate(model, LetterJudge(), settings, lambda name, done: seen.append((name, done)))
    [(num, given, options)] = model.calls
    assert num == 100 and given["lower"][:20] == given["lower"][40:60] == given["lower"][80:]
    assert options == {"steps": 50, "solver": "dpmpp_2m", "guidance": 2.0, "drop_ignored": False, "batch_size": 150}
    assert seen == [("upper | lower", 50), ("upper | lower", 100)]
    assert result.queries == evaluate(model, LetterJudge(), settings).queries


def test_shards_need_not_hold_what_no_query_is_about(settings):
    model = Channel()
    settings = replace(settings, queries={"upper": Query(num=10)})
    expected = evaluate(model, LetterJudge(), settings).queries
    model.modalities |= {"sound": SimpleNamespace(codec=WordCodec("wav"))}
    assert evaluate(model, LetterJudge(), settings).queries == expected


def test_criteria_and_files(settings, tmp_path):
    rules = [
        Criterion("upper | lower", "letter", at_least=0.7, at_most=0.9),
        Criterion("upper | lower", "letter", minus="given_letter", at_least=-0.03),
        Criterion("upper", "letter", at_least=0.5),
    ]
    model = Channel(0.8)
    result = evaluate(model, LetterJudge(), replace(settings, criteria=rules))
    result.write(tmp_path / "evaluation.json")
    read = json.loads((tmp_path / "evaluation.json").read_text())
    assert [rule["passed"] for rule in read["criteria"]] == [True, False, False]
    assert read["passed"] is False
    assert set(read["queries"]["upper | lower"]["letter"]) == {"value", "low", "high", "n"}
    assert read["settings"]["seed"] == 0 and read["seconds"] >= 0
    assert unmeasured(result) == ["upper: letter ≥ 0.5 was not measured"]
    shown = {(row.subject, row.metric): row for row in table_rows(result)}
    assert shown["upper | lower", "letter"].criterion == "≥ 0.7 and ≤ 0.9, ≥ given_letter − 0.03"
    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    (tmp_path / "seen.png").write_bytes(b"picture")
    write_report(tmp_path / "report.html", result, codecs, title="A <model>", pictures=[tmp_path / "seen.png"])
    page = (tmp_path / "report.html").read_text()
    assert page.index("<b>A5!</b>") < page.index("data:image/png") < page.index("<table>")
    assert "A &lt;model&gt;" in page and page.count('class="card') == 5 * 24
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criteria": [Criterion("nope", "letter", at_least=1)]}, "'nope', which is no query"),
        ({"criteria": [Criterion("upper", "letter")]}, "needs at_least or at_most"),
        ({"queries": {"upper": Query(num=0)}}, "at least 1 sample"),
        ({"queries": {"sound": Query()}}, "sound"),
        ({"train": "nowhere"}, "no shards in nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_sampling(settings, change, message):
    model = Channel()
    with pytest.raises(ValueError, match=message):
        evaluate(model, LetterJudge(), replace(settings, **change))
    assert not model.calls


def test_labels_that_the_data_does_not_record_are_named():
    class Other(LetterJudge):
        labels = ("letter", "weight")

    samples = Samples({"upper": ["A1"]}, {"letter": ["a"]})
    with pytest.raises(ValueError, match="weight"):
        Yardstick(Other(), samples, samples)


def test_shards_command_writes_skips_and_redoes(tmp_path, capsys):
    from unidiff_core.cli.shards import run

    options = ["--source=DigitsSource", "--source.scans=2", f"--output={tmp_path}", "--shard_size=10"]
    run(options)
    assert len(list((tmp_path / "train").glob("*.tar"))) == 2
    before = (tmp_path / "train" / "00000.tar").read_bytes()
    capsys.readouterr()
    run(options)
    assert capsys.readouterr().out.count("left alone") == 2
    run([*options, "--source.seed=1"])
    assert capsys.readouterr().out.count("other settings") == 2
    run([*options, "--source.scans=1", "--overwrite"])
    assert len(list((tmp_path / "train").glob("*.tar"))) == 1
    run([*options, "--overwrite"])
    assert (tmp_path / "train" / "00000.tar").read_bytes() == before


def test_the_digits_recipes_parse():
    from unidiff_core.cli import evaluate as evaluate_command
    from unidiff_core.cli import shards as shards_command

    folder = Path(__file__).parents[2] / "recipes" / "digits"
    assert shards_command._parser().parse_args(["-c", str(folder / "shards.yaml")]).shard_size == 1000
    parser = evaluate_command._parser()
    config = parser.instantiate_classes(parser.parse_args(["runs", "-c", str(folder / "evaluate.yaml"), "--steps=7"]))
    assert config.steps == 7 and type(config.judge).__name__ == "DigitsJudge"
    assert config.queries["image | text"] == Query(1080, 2.0)
    assert math.isclose(config.criteria[3].at_least, -0.03)
