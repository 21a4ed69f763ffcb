from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from unidiff_codecs.table import NumbersCodec, TableSource, moments

from tests.command import run_command
from unidiff_core.codec.codec import EmptyRaw
from unidiff_core.testing import check_codec
from unidiff_core.testing.contract import CLAUSES

HEADER = "Height (m), weight,eyes,shoe size\n"
LINES = [f"{1.5 + i / 20},{50 + 3 * i},{('blue', 'brown')[i % 2]},{36 + i}" for i in range(10)]
COLUMNS = ["Height_m_", "weight", "eyes", "shoe_size"]


@pytest.fixture
def table(tmp_path):
    """Ten people; of the third the eyes are not known, of the fourth the weight."""
    lines = list(LINES)
    lines[2], lines[3] = "1.6,56,NA,38", "1.65,,brown,39"
    path = tmp_path / "people.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def source_of(table, **options):
    return TableSource(str(table), **{"labels": ["eyes"], "test_share": 0.2} | options)


def parquet(path):
    pandas = pytest.importorskip("pandas")
    pandas.read_csv(path).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_each_cell_is_a_member_and_an_empty_one_is_none(table, form):
    source = source_of(table if form == "csv" else parquet(table))
    assert source.splits == {"train": 8, "test": 2} and source.modalities == {name: [name] for name in COLUMNS}
    samples = {row["__key__"]: row for split in source.splits for row in source.samples(split)}
    assert len(samples) == 10
    whole = samples["000000"]
    assert whole.keys() == {"__key__", "json", "Height_m_.num", "weight.num", "eyes.cls", "shoe_size.num"}
    assert float(whole["weight.num"]) == 50 and whole["eyes.cls"] == b"blue"
    assert json.loads(whole["json"]) == {"eyes": "blue"}
    assert "eyes.cls" not in samples["000002"] and json.loads(samples["000002"]["json"]) == {}
    assert "weight.num" not in samples["000003"]


def test_columns_that_are_one_modality(table):
    source = source_of(table, groups={"size": ["Height_m_", "weight"]}, columns=COLUMNS[:3])
    assert source.modalities == {"size": ["Height_m_", "weight"], "eyes": ["eyes"]}
    samples = {row["__key__"]: row for split in source.splits for row in source.samples(split)}
    assert samples["000001"]["size.num"] == b"1.55,53" and "size.num" not in samples["000003"]


def test_splits_follow_the_seed_and_do_not_overlap(table):
    keys = [{row["__key__"] for row in source_of(table, seed=seed).samples("test")} for seed in range(4)]
    assert keys[0] == {row["__key__"] for row in source_of(table).samples("test")} and len({*map(tuple, keys)}) > 1
    train = {row["__key__"] for row in source_of(table).samples("train")}
    assert not train & keys[0]


def test_statistics_are_those_of_the_cells_that_are_there(table):
    source = source_of(table)
    known = [float(row["weight"]) for row in source.rows("train") if row["weight"] is not None]
    found = moments(source)
    assert found["weight"] == pytest.approx({"mean": np.mean(known), "std": np.std(known)})
    assert "eyes" not in found


def test_numbers_keep_the_contract_and_are_standardised(table, tmp_path):
    folder = tmp_path / "statistics"
    options = ("--data=TableData", "--data.source=TableSource", f"--data.source.table={table}")
    done = run_command(
        "fit-codec", "--model=NumbersTraining", *options, "--data.source.labels=[eyes]", "--output", folder
    )
    assert done.code == 0 and "columns 3" in done.out, done.err
    source = source_of(table)
    codec = NumbersCodec(["Height_m_"], str(folder))
    report = check_codec(codec, [1.5, 1.7, 1.9])
    assert len(report.clauses) == len(CLAUSES)
    check_codec(NumbersCodec(["Height_m_", "shoe_size"], str(folder)), [[1.5, 36], [1.7, 41], [1.9, 47.5]])
    rows = codec.encode([float(row["Height_m_"]) for row in source.rows("train")])["numbers"]
    assert torch.allclose(rows.mean(), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(rows.std(correction=0), torch.tensor(1.0), atol=1e-5)
    with pytest.raises(ValueError, match=r"has no column 'Heigth'; it has Height_m_, weight, shoe_size"):
        NumbersCodec(["Heigth"], str(folder)).encode([1.0])


@pytest.mark.parametrize("text", ["high", "1,2", "nan", "inf"])
def test_what_is_no_number(text):
    codec = NumbersCodec(["Height"], "nowhere")
    with pytest.raises(ValueError, match=r"is no number|one finite number"):
        codec.from_bytes(text.encode())
    with pytest.raises(EmptyRaw):
        codec.from_bytes(b" ")


BAD = [
    ({"labels": ["eyez"]}, r"no column 'eyez'; it has Height_m_, weight, eyes, shoe_size"),
    ({"labels": []}, r"'blue' in column 'eyes', row 1, is no number; name the column among `labels`"),
    ({"groups": {"size": ["eyes"]}}, r"groups are of numbers, and 'eyes' is a label"),
    ({"columns": ["eyes", "height"]}, r"no column 'height'"),
]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_a_source_that_does_not_fit_the_table(table, options, says):
    with pytest.raises(ValueError, match=says):
        source_of(table, **options).splits  # noqa: B018


def test_files_that_are_no_table(table, tmp_path):
    table.write_text(HEADER + "1,2\n")
    with pytest.raises(ValueError, match="line 2 has not the 4 cells of the header"):
        source_of(table).splits  # noqa: B018
    for name, says in (("people.txt", "a .csv or a .parquet"), ("no.csv", "no such file"), ("sklearn:beer", "wine")):
        with pytest.raises(ValueError, match=says):
            source_of(name).splits  # noqa: B018


def test_a_table_that_scikit_learn_ships():
    source = TableSource("sklearn:wine", labels=["target"])
    assert sum(source.splits.values()) == 178 and len(source.modalities) == 14
    assert {row["target"] for row in source.rows("train")} == {"class_0", "class_1", "class_2"}
