"""Which checkpoint a run goes on from."""

from __future__ import annotations

import os

import pytest
import torch

from tests.core.tiny import loader, make, trainer
from unidiff_core.training.newest import OtherModelError, newest_verified

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints of the steps 1, 2, 3, and their model."""
    model, found = make(), []
    for step in (1, 2, 3):
        run = trainer(tmp_path, step)
        run.fit(model, loader())
        found.append(tmp_path / f"{step}.ckpt")
        run.save_checkpoint(found[-1])
        os.utime(found[-1], (step, step))
    return found, model


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    name = max(range(len(content) - 64), key=lambda i: content[i : i + 64].count(0) == 0 and i < len(content) // 2)
    content[name] ^= 1
    path.write_bytes(content)


def pickle(path):
    torch.save({"state_dict": OtherModelError}, path)


def not_finite(path):
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = float("nan")
    torch.save(checkpoint, path)


def weights_only(path):
    torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "BadZipFile"),
        (flip, "SHA-256"),
        (pickle, "UnpicklingError"),
        (not_finite, "not finite"),
        (weights_only, "it has no optimizer_states"),
        (lambda path: path.write_bytes(b""), "BadZipFile"),
    ],
)
def test_a_damaged_one_is_skipped_and_named(checkpoints, damage, says):
    paths, model = checkpoints
    damage(paths[2])
    os.utime(paths[2], (9, 9))
    newest, skipped = newest_verified(paths, model)
    assert newest == paths[1]
    assert len(skipped) == 1 and str(paths[2]) in skipped[0] and says in skipped[0]


def test_where_none_verifies_nothing_of_another_model_is_written_over(checkpoints):
    paths, model = checkpoints
    assert newest_verified(paths, model) == (paths[2], [])
    cut(paths[0])
    assert newest_verified(paths[:1], model)[0] is None
    other = torch.nn.Linear(2, 2)
    with pytest.raises(OtherModelError, match=r"3\.ckpt is of another model"):
        newest_verified(paths, other)
