"""The benchmarks run: at toy size, once each; their figures are nobody's business here."""

from __future__ import annotations

import pytest

from tests.core.conftest import registered  # noqa: F401
from tests.core.tiny import make


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")


@pytest.mark.usefixtures("benchmarks")
def test_every_row_of_the_performance_page_is_measured(capsys):
    import performance

    performance.main(["--tiny", "--pairs", "1", "--batch", "2"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert len(rows) == 12 and all(len(row) == len(performance.HEAD) for row in rows)
    errors = {row[0]: float(row[-1]) for row in rows if row[-1].strip()}
    assert errors["forward, fp32"] < 1e-5 and errors["forward, bf16"] < 0.02  # both sides compute the same


@pytest.mark.usefixtures("benchmarks")
def test_a_ratio_is_the_median_of_the_pairs():
    from paired import compare

    ours, theirs = iter([0.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0]), iter([0.0, 2.0, 3.0, 2.0, 4.0, 5.0, 6.0, 7.0])
    found = compare(lambda: next(ours), lambda: next(theirs), pairs=7)
    assert (found.ours, found.theirs, found.ratio, found.low, found.high) == (1, 4, 4, 1, 7)


@pytest.mark.usefixtures("benchmarks", "registered")
def test_the_error_of_a_precision_is_measured_by_stream_and_time(tmp_path, capsys):
    import precision

    make().save_pretrained(tmp_path)
    precision.main([str(tmp_path), "--num", "3", "--times", "0.2", "0.8"])
    said = capsys.readouterr().out
    rows = {row[1].strip(): row[2:4] for line in said.splitlines() if (row := line.split("|"))[1:]}
    assert all(1e-5 < float(cell) < 0.1 for key in ("a.v", "b.s") for cell in rows[key]), said
    assert "fp32: " in said and "bf16: " in said and "samples of a, b in 20 steps come apart by: a.v" in said
