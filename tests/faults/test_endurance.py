"""The long run's account: each use of each sample that is lost, changed or told wrongly shows."""

from __future__ import annotations

import json

import pytest
import torch

from tests.faults import endurance, training
from tests.faults.endurance import BATCH, Plan, Torment
from unidiff_core.data.order import Place
from unidiff_core.data.samples import StoredDataset

SIZE, STEPS = 100, 3
PLAN = Plan(STEPS, [], {1: False})
TOLD = Torment(said=["step 1 skipped on all processes: the loss is not finite; process 0, samples sample 001 of x.tar"])


def test_nothing_is_accounted_for_that_did_not_happen(tmp_path):
    training.write_latents(tmp_path / "latents", (SIZE,))
    samples = StoredDataset.at(tmp_path / "latents")
    (tmp_path / "checkpoints").mkdir()
    lines = []
    for step, rows in enumerate(PLAN.order(SIZE)):
        held = endurance.contents(samples[Place(rows, torch.arange(BATCH), step)])
        names = [samples.name(int(row)).split()[1] for row in rows]
        lines.append({"step": step, "rows": [list(row) for row in zip(names, held, strict=True)]})

    def account(ledger=lines, torment=TOLD, updates=STEPS - 1):
        (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
        state = {"global_step": STEPS, "callbacks": {"EMA": {"num_updates": updates}}}
        torch.save(state, tmp_path / "checkpoints/last.ckpt")
        return endurance.account(tmp_path, torment, PLAN, tmp_path / "latents")

    uses = account([lines[0], *lines])  # a step that was done again after a kill
    assert (uses["uses"], uses["trained"], uses["again"]) == (STEPS * BATCH, (STEPS - 1) * BATCH, BATCH)
    changed = json.loads(json.dumps(lines))
    changed[2]["rows"][5][1] ^= 1
    for wrong, says in (
        ({"ledger": changed}, "step 2 had other samples, or other contents"),
        ({"ledger": [lines[0], lines[1], {**lines[1], "step": 2}]}, "step 2 had other samples"),
        ({"ledger": lines[:2]}, "step 2 was never done"),
        ({"torment": Torment()}, r"skipped or not told: \[1\]"),
        ({"updates": STEPS}, "after 3 updates"),
    ):
        with pytest.raises(ValueError, match=says):
            account(**wrong)
