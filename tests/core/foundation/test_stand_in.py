"""Files that lie in place of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unidiff_core.foundation.stand_in import check_real, torch_reason


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(100.0), "b": torch.ones(3)}, path, metadata={"format": "pt"})
    return path


def test_a_whole_file_passes_and_any_shorter_one_does_not(whole):
    check_real(whole)
    content = whole.read_bytes()
    for size in (12, 60, 200, len(content) - 1):
        whole.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"half a download, {size} of "):
            check_real(whole)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "config.json"])
@pytest.mark.parametrize("content", [b"{}", b'{"a": 1}', b"\0" * 9, b"\xff" * 40, b"\x80\x02}q\0."])
def test_what_is_none_of_the_known_stand_ins_is_left_to_its_reader(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    check_real(tmp_path / name)


class Code:
    def __reduce__(self):
        return Path.touch, (Path("never"),)


def test_torchs_advice_is_not_relayed(tmp_path):
    path = tmp_path / "w"
    for content in (Code(), None):
        torch.save(content, path) if content else path.write_bytes(b"\0" * 600)
        with pytest.raises(Exception, match="weights_only") as error:
            torch.load(path, weights_only=True)
        said = torch_reason(error.value)
        assert "weights_only" not in said and "option" not in said
        assert ("which is code" in said) == (content is not None)
    assert torch_reason(EOFError()) == "EOFError"
