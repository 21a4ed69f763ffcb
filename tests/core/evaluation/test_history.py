"""A training's curves: read off its logger's files, whatever became of the training, and drawn completely."""

from __future__ import annotations

import re

import pytest
from pytorch_lightning.loggers import CSVLogger

from tests.core.tiny import loader, make, trainer
from unidiff_core.evaluation.history import figures, read_history, write_training
from unidiff_core.evaluation.show import ShowSamples
from unidiff_core.training.log import LogTraining

HEAD = "epoch,step,train/loss,validation/loss,train/a.x/0.00-0.50,train/seconds_per_step,train/seconds_for_data\n"


def log(folder, version, text, head=HEAD):
    path = folder / f"logs/version_{version}/metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(head + text)
    return path


def test_a_training_that_went_on_stands_in_place_of_what_it_did_again(tmp_path):
    log(tmp_path, 2, "0,9,5,,,,\n0,29,6,,,,\n")  # from the checkpoint after 10 steps, later than version 10
    log(tmp_path, 1, "0,9,1,,1,,\n0,19,2,,2,,\n0,29,3,,3,,\n")
    log(tmp_path, 10, "0,19,7,,,,\n")
    log(tmp_path, 11, "")
    history = read_history(tmp_path)
    assert history.columns == {"train/loss": [(10, 5.0), (20, 7.0)]}
    assert [(file.path.parent.name, file.first, file.last) for file in history.files] == [
        ("version_1", 10, 30), ("version_2", 10, 30), ("version_10", 20, 20)
    ]  # fmt: skip


def test_a_row_that_is_being_written_is_left_out_and_empty_cells_are_nothing(tmp_path):
    log(tmp_path, 0, "0,9,1.5,,0.25,2,\n0,9,,1.25,,,\n0,19,0.5,,")
    assert read_history(tmp_path).columns == {
        "train/loss": [(10, 1.5)],
        "validation/loss": [(10, 1.25)],
        "train/a.x/0.00-0.50": [(10, 0.25)],
        "train/seconds_per_step": [(10, 2.0)],
    }


def test_another_runs_log_below_is_not_read(tmp_path):
    log(tmp_path / "runs/one", 0, "0,9,1,,,,\n")
    with pytest.raises(ValueError, match=r"has no metrics\.csv with a row, .*CSVLogger"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    ("head", "text", "says"),
    [(HEAD, "0,9,much,,,,\n", "metrics.csv, line 2: could not convert"), ("loss\n", "1\n", "no column 'step'")],
)
def test_a_file_of_something_else_is_named(tmp_path, head, text, says):
    log(tmp_path, 0, text, head)
    with pytest.raises(ValueError, match=says):
        read_history(tmp_path)


def test_seconds_are_summed_over_all_steps(tmp_path):
    log(tmp_path, 0, "0,9,1,,,2,0.5\n0,39,1,,,10,1\n")
    write_training(tmp_path / "page.html", tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert "<b>5 min 20 s</b><span>in training steps" in page  # 10 steps of 2 seconds, 30 of 10
    assert "<b>10.9 %</b><span>of that waiting for data" in page


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of a tiny training with the recipes' callbacks."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "one.num").write_text("1")
    show = ShowSamples(
        {"a | b": {"given": {"b": str(folder / "one.num")}}, "a": {}}, str(folder), every_n_steps=4, num=2, steps=2
    )
    made = trainer(folder, 8, [LogTraining(), show], log_every_n_steps=2)
    made.logger = CSVLogger(folder, "logs")
    made.fit(make(), loader())
    return folder


def test_every_column_stands_in_one_chart(trained):
    history = read_history(trained)
    shown = [column for rows in figures(history).values() for row in rows for column in row.lines.values()]
    assert sorted(shown) == sorted(history.columns) and history.last == 8
    assert list(figures(history)) == ["Loss", "Loss by stretch of time", "Steps"]
    titles = [row.title for rows in figures(history).values() for row in rows]
    assert titles[:3] == ["loss", "loss of a.v", "loss of b.s"] and "Seconds a step" in titles


def test_what_nobody_foresaw_is_shown_too(tmp_path):
    log(tmp_path, 0, "0,9,1,3\n0,19,2,4\n", "epoch,step,spikes,train/temperature\n")
    history = read_history(tmp_path)
    (rows,) = figures(history).values()
    assert [(row.title, row.lines) for row in rows] == [
        ("spikes", {"": "spikes"}),
        ("temperature", {"train": "train/temperature"}),
    ]


def test_the_page_has_the_last_samples_then_every_curve(trained):
    (trained / "report.html").write_text("")
    write_training(trained / "pages/training.html", trained, links=["report.html", "nothing.html"])
    page = (trained / "pages/training.html").read_text()
    count = sum(len(rows) for rows in figures(read_history(trained)).values())
    assert page.count("<svg") == count and page.index('class="card') < page.index("<svg")
    assert "<h2>Samples at step 8</h2>" in page and "at each of 3 steps" in page and page.count('class="card') == 4
    assert re.findall(r'href="([^"#]+)"', page) == ["../samples.html", "../report.html"]
    assert "logs/version_0/metrics.csv</code>: steps 2 to 8" in page
