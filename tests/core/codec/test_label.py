from __future__ import annotations

import pytest
import torch

from unidiff_core import LabelCodec
from unidiff_core.codec.codec import EmptyRaw, check_latent
from unidiff_core.testing import check_codec
from unidiff_core.testing.contract import CLAUSES

NAMES = ["red", "green", "7", "light blue"]


@pytest.mark.parametrize(("several", "raws"), [(False, NAMES), (True, [["red"], [], ["green", "light blue"]])])
def test_labels_keep_the_contract(several, raws):
    report = check_codec(LabelCodec(NAMES, several), raws)
    assert len(report.clauses) == len(CLAUSES) and not report.remarks


def test_a_label_is_stored_as_its_place():
    codec = LabelCodec(NAMES)
    stored = codec.encode(["7", "red"])
    assert stored["label"].dtype == torch.int64 and stored["label"].tolist() == [[2], [0]]
    assert codec.streams["label"].vocabulary == 4 and codec.decode(stored) == ["7", "red"]


def test_several_labels_are_a_yes_or_no_for_each():
    codec = LabelCodec(NAMES, several=True)
    stored = codec.encode([["light blue", "red"]])
    assert stored["label"].tolist() == [[1, 0, 0, 1]] and codec.streams["label"].vocabulary == 2
    assert codec.decode(stored) == [["red", "light blue"]]


def test_what_files_and_people_write():
    codec = LabelCodec(NAMES)
    assert codec.from_bytes(b"light blue\n") == "light blue" and codec.from_bytes(b"3") == "light blue"
    assert codec.from_bytes(b"7") == "7"  # a name before a place
    assert LabelCodec(NAMES, several=True).parse("red, light blue") == ["red", "light blue"]
    assert LabelCodec(NAMES, several=True).from_bytes(b"") == []
    with pytest.raises(EmptyRaw):
        codec.from_bytes(b" ")
    with pytest.raises(ValueError, match=r"'gren' is no label.*red, green, 7, light blue; did you mean green"):
        codec.parse("gren")
    with pytest.raises(ValueError, match="is no label"):
        codec.from_bytes(b"4")


@pytest.mark.parametrize(
    ("names", "says"),
    [(["one"], "two names"), (["a", "a"], "'a' stands twice"), (["a", True], "quote"), (["a", " b"], "blanks")],
)
def test_lists_that_are_no_labels(names, says):
    with pytest.raises(ValueError, match=says):
        LabelCodec(names)


def test_the_contract_tells_ids_that_are_not_in_the_vocabulary():
    class Off(LabelCodec):
        def encode(self, raws):
            return {"label": super().encode(raws)["label"] + 1}

        def decode(self, latents):
            return super().decode({"label": latents["label"] - 1})

    with pytest.raises(AssertionError, match="4 symbols and holds ids from 1 to 4"):
        check_codec(Off(NAMES), NAMES)
    check_latent(LabelCodec(NAMES), {"label": torch.zeros(2, 1, dtype=torch.int64)})
