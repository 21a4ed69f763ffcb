from __future__ import annotations

import json
from dataclasses import replace
from html import unescape

from tests.core.evaluation.letters import Channel, judged
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.report import table_rows, unmeasured, write_report
from unidiff_core.evaluation.run import Query


def test_criteria_and_files(settings, tmp_path):
    rules = [
        Criterion("upper | lower", "letter", at_least=0.7, at_most=0.9),
        Criterion("upper | lower", "letter", minus="given_letter", at_least=-0.03),
        Criterion("upper", "letter", at_least=0.5),
    ]
    model = Channel(0.8)
    result = judged(model, replace(settings, criteria=rules))
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
    assert page.index("was not measured") < page.index("<b>A5!</b>")  # what is not met stands at the top
    assert page.index("to be ≥ 0.7 and ≤ 0.9, ≥ given_letter − 0.03") < page.index("<b>A5!</b>")
    assert "A &lt;model&gt;" in page and page.count('class="card') == 5 * 24
    assert not list(tmp_path.glob("*.partial"))


def test_the_page_says_how_each_query_was_sampled(settings, tmp_path):
    queries = {"upper | lower": Query(num=8, solver="ddpm", steps=7), "lower": Query(num=8, guidance=0.5)}
    settings = replace(settings, queries=queries, guidance=2.0, conditions={"kind": 1}, drop_ignored=True, seed=3)
    model = Channel()
    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    write_report(tmp_path / "report.html", judged(model, settings), codecs, title="Letters")
    page = unescape((tmp_path / "report.html").read_text())
    assert "Samples: upper | lower: 8, ddpm, 7 steps, guidance 2; lower: 8, guidance 0.5." in page
    assert "20 steps of the default solver, ignored modalities dropped, conditions {'kind': 1}, seed 3," in page
