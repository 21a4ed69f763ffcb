"""Two runs beside each other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.evaluation.letters import Channel, judged
from unidiff_core.evaluation.comparison import Difference, differences, read_evaluated, write_comparison
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.report import write_examples
from unidiff_core.evaluation.run import Query

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def runs(settings, tmp_path):
    """Folders of a good model and a bad one, of which the second also answers another query."""
    rules = [Criterion("upper | lower", "letter", at_least=0.5)]
    queries = {"upper | lower": Query(num=200), "upper": Query(num=60)}
    folders = []
    for name, right, more, steps in (("good", 0.9, {}, 50), ("bad", 0.2, {"lower": Query(num=40)}, 7)):
        mine = replace(settings, queries=queries | more, criteria=rules, steps=steps, num_examples=5)
        model = Channel(right)
        result = judged(model, mine)
        folder = tmp_path / name
        folder.mkdir()
        result.write(folder / "evaluation.json")
        codecs = {key: modality.codec for key, modality in model.modalities.items()}
        write_examples(folder / "examples.json", result, codecs)
        folders.append(folder)
    return folders


def test_every_metric_of_both_has_a_difference(runs):
    good, bad = map(read_evaluated, runs)
    rows = differences(good, bad)
    assert list(rows)[:3] == ["upper | lower", "upper", "judge of upper"] and "lower" in rows
    letter = next(row for row in rows["upper | lower"] if row.metric == "letter")
    assert letter.one == good.tables["upper | lower"]["letter"] and letter.verdicts == ("met", "missed")
    assert letter.value == f"−{letter.one.value - letter.other.value:.3f}" and letter.overlap is False
    assert all(row.one is None and row.value == "" and row.overlap is None for row in rows["lower"])
    judges = [row for title in rows if title.startswith("judge of ") for row in rows[title]]
    assert judges and all(row.overlap and row.value == "0.000" for row in judges)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [((0.1, 0.2), (0.2, 0.3), True), ((0.1, 0.2), (0.21, 0.3), False), ((0.4, 0.5), (0.1, 0.2), False)],
)
def test_whether_intervals_overlap(one, other, overlap):
    a, b = (Estimate(sum(ends) / 2, *ends, 10) for ends in (one, other))
    assert Difference("m", a, b).overlap is overlap and Difference("m", b, a).overlap is overlap
    assert Difference("m", a, Estimate(0.3, None, None, 1)).overlap is None


def test_the_page_shows_samples_beside_each_other_and_what_differs(runs, tmp_path):
    (runs[1] / "report.html").write_text("")
    said = write_comparison(tmp_path / "page.html", *runs)
    page = (tmp_path / "page.html").read_text()
    assert said in page and int(said.split()[0]) == page.count('<tr class="apart">') > 0
    assert page.count('class="card') == 5 + 5 + 5 + 5  # pairs of what was given; both sides of "upper"; "lower"
    assert (
        page.count('<div class="side">good</div>') == 5
        and page.count("<h3>good</h3>") == 2
        and page.index("<b>") < page.index("<table>")
    )
    assert '<a href="bad/report.html">its report</a>' in page and "good/report.html" not in page
    assert "<td>steps</td>" in page and ">50</td>" in page and ">7</td>" in page and "<td>seed</td>" not in page
    assert "examples.json" not in page and "<svg" not in page
    with pytest.raises(ValueError, match="are one folder"):
        write_comparison(tmp_path / "page.html", runs[0], runs[0] / "../good")


def test_other_givens_are_not_put_into_one_card(runs, tmp_path):
    read = json.loads((runs[1] / "examples.json").read_text())
    read["upper | lower"][2]["given"]["lower"] = "<b>another</b>"
    (runs[1] / "examples.json").write_text(json.dumps(read))
    write_comparison(tmp_path / "page.html", *runs)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h3>good</h3>") == 3 and page.count('class="card') == 10 + 10 + 5
    assert page.count("<b>another</b>") == 1


def test_trainings_that_both_have_are_drawn_in_one_chart(runs, tmp_path):
    for i, folder in enumerate(runs):
        (folder / "logs").mkdir()
        own = "train/loss,train/own" if i else "train/loss,validation/loss"
        (folder / "logs/metrics.csv").write_text(f"epoch,step,{own}\n0,9,{i},1\n0,19,{i + 1},1\n")
    (runs[1] / "examples.json").unlink()
    write_comparison(tmp_path / "page.html", *runs)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1 and page.count("<polyline") == 3
    assert [page.count(f'<g class="{name}">') for name in ("c0", "c0 dashed", "c1")] == [1, 1, 1]
    assert ">good train</span>" in page and ">good validation</span>" in page and ">bad train</span>" in page
    assert "bad has no examples.json: evaluate it again" in page


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "it has no query"),
        ("{}", "it has no query"),
        ('{"queries": {"a": {"m": {"valu": 1}}}}', "TypeError: .*valu"),
        ('{"queries": {"a": {"m": {"value": 1, "low": 0, "high": 2, "n": 3}}}}', "KeyError: 'criteria'"),
    ],
)
def test_a_file_that_evaluate_did_not_write(tmp_path, text, says):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=f"evaluation.json is not what .* writes .*{says}.*evaluate it again"):
        read_evaluated(tmp_path)


def test_evaluations_of_before_are_read(tmp_path):
    """They have neither origin nor sweeps, and of criteria only whether they passed."""
    folder = tmp_path / "old"
    folder.mkdir()
    rules = [{"query": "image", "metric": "digit", "passed": is_met} for is_met in (True, False)]
    row = {"digit": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 10}}
    old = {
        "queries": {"image": row},
        "judges": {},
        "criteria": rules,
        "passed": True,
        "settings": {"seed": 0},
    }
    (folder / "evaluation.json").write_text(json.dumps(old))
    found = read_evaluated(folder)
    assert found.tables["image"]["digit"].null is None and found.origin == {} and found.settings == {"seed": "0"}
    assert found.verdicts == {("image", "digit"): "missed"}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*_evaluation.json")), ids=lambda path: path.stem)
def test_the_committed_evaluations_are_read(path, tmp_path):
    shutil.copy(path, tmp_path / "evaluation.json")
    assert len(read_evaluated(tmp_path).tables) > 5
