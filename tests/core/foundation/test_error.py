from __future__ import annotations

import pytest

from unidiff_core.foundation.error import reason, sentence


def test_what_is_written_for_users_needs_no_type():
    assert reason(ValueError("too few")) == "too few"
    assert reason(RuntimeError("too few")) == "RuntimeError: too few"
    assert reason(ValueError()) == "ValueError" and reason(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("text", "ended"), [("so", "so."), (" so. ", "so."), ("so..", "so."), ("so?", "so?"), ("a. b", "a. b.")]
)
def test_a_sentence_has_one_stop(text, ended):
    assert sentence(text) == ended
