"""Mistakes in our own code that a campaign must turn red on: the quick ones; `make faults` has all."""

from __future__ import annotations

import pytest

from tests.faults import mutants
from tests.faults.scoreboard import Outcome

QUICK = [name for name in mutants.MUTANTS if name != "forget the place in a step"]


@pytest.mark.parametrize("name", QUICK)
def test_a_campaign_turns_red_on_a_mutant(name, tmp_path):
    assert mutants._inject(name, 0, tmp_path) is Outcome.DETECTED


def test_a_campaign_stays_green_on_code_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(mutants.MUTANTS, "none", mutants.Mutant(lambda: None, mutants.files, ("bit flip of",)))
    assert mutants._inject("none", 0, tmp_path) is Outcome.SILENT
