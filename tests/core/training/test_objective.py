"""The training loss, by hand: times, weights, presence, dropping."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from tests.core.conftest import NumberCodec
from tests.core.tiny import loader, make, trainer
from unidiff_core import Modality, UniDiffuser
from unidiff_core.foundation import randomness
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.time import T
from unidiff_core.network.uvit import UViT

pytestmark = pytest.mark.usefixtures("registered")


def test_the_loss_is_the_papers_by_hand(tmp_path):
    model, batch = make(), next(iter(loader()))
    seen = []
    model.log = lambda name, value, **_: seen.append((name, value.item()))
    model.trainer = trainer(tmp_path, 1)
    loss = model.training_step(batch)

    total, count = 0.0, 0
    corrupted, targets, times = {}, {}, {}
    for key in ("a.v", "b.s"):
        name = key[0]
        t = (randomness.uniform(0, "train timestep", name, 0, batch.index) * T).floor() + 1
        noise = randomness.normal(0, "train noise", key, 0, batch.index, batch.stored[key].shape[1:])
        part = (t / T).float().reshape(-1, *[1] * (noise.ndim - 1))
        corrupted[key] = (1 - part) * batch.stored[key] + part * noise
        targets[key], times[name] = noise - batch.stored[key], t
    prediction = model.backbone(corrupted, times)
    for key, target in targets.items():
        total += (prediction[key] - target).square().sum()
        count += target.numel()
    assert torch.allclose(loss, total / count, rtol=1e-5)
    assert {name for name, _ in seen} == {"train/loss", "train/a.v", "train/b.s"}


def test_streams_balance_and_weights(tmp_path):
    batch = next(iter(loader()))
    losses = {}
    for balance, weight in itertools.product(["elements", "streams"], [1.0, 3.0]):
        model = make(balance, weight)
        parts = {}
        model.log = lambda name, value, parts=parts, **_: parts.update({name: value.item()})
        model.trainer = trainer(tmp_path, 1)
        losses[balance, weight] = model.training_step(batch).item(), parts
    a, b = losses["elements", 1.0][1]["train/a.v"], losses["elements", 1.0][1]["train/b.s"]
    for weight in (1.0, 3.0):
        assert losses["elements", weight][0] == pytest.approx((weight * a * 3 + b * 8) / 11, rel=1e-4)
        assert losses["streams", weight][0] == pytest.approx((weight * a + b) / 2, rel=1e-4)


def test_missing_samples_carry_no_loss_and_stand_at_the_end(tmp_path):
    model, batch = make(), next(iter(loader()))
    present = torch.arange(16) % 2 == 0
    model.log = lambda *_, **__: None
    model.trainer = trainer(tmp_path, 1)
    batch.present = {"b": present}
    loss = model.training_step(batch)
    assert (model.objective.times(batch)["b"][~present] == T).all() and (
        model.objective.times(batch)["b"][present] >= 1
    ).all()
    batch.stored["b.s"][~present] = 1e6  # whatever stands in for missing data is not seen
    assert torch.equal(loss, model.training_step(batch))


@pytest.mark.parametrize("balance", ["elements", "streams"])
def test_loss_is_normalised_over_what_is_present_in_the_global_batch(tmp_path, balance):
    """Unevenly split over micro-batches, their mean is the loss by hand over the whole batch."""
    model, whole = make(balance), next(iter(loader()))
    parts, model.trainer = {}, trainer(tmp_path, 1)
    model.log = lambda *_, **__: None
    model.log_dict = lambda row, **_: parts.update(row)
    present = torch.tensor([True] + [False] * 7 + [True] * 4 + [False] * 4)  # 1 of the first eight, 4 of the others
    whole.present = {"b": present}

    def rows(part):
        stored = {key: value[part] for key, value in whole.stored.items()}
        return Batch(whole.index[part], 0, stored, {}, {"b": present[part]}, size=16, num_present={"b": 5})

    loss = model.training_step(whole)
    errors_a, errors_b = parts["train/a.v"] * 16 * 3, parts["train/b.s"] * 5 * 8
    by_hand = {
        "elements": (errors_a + errors_b) / (16 * 3 + 5 * 8),
        "streams": (errors_a / (16 * 3) + errors_b / (5 * 8)) / 2,
    }[balance]
    halves = [model.training_step(rows(part)) for part in (slice(0, 8), slice(8, 16))]
    assert torch.allclose(loss, by_hand) and torch.allclose(sum(halves) / 2, by_hand, rtol=1e-6)
    assert not torch.allclose(halves[0], halves[1], rtol=1e-2)


@pytest.mark.parametrize("balance", ["elements", "streams"])
def test_a_modality_that_one_sample_of_the_global_batch_has_counts_as_that_one(tmp_path, balance):
    """Its share of a micro-batch is less than one element; the sum over the micro-batches is still the whole loss."""
    model, whole = make(balance), next(iter(loader()))
    model.trainer = trainer(tmp_path, 1)
    model.log = model.log_dict = lambda *_, **__: None
    present = torch.arange(16) == 3
    whole.present = {"a": present}
    singles = []
    for part in range(16):
        stored = {key: value[part : part + 1] for key, value in whole.stored.items()}
        rows = {"a": present[part : part + 1]}
        singles.append(Batch(whole.index[part : part + 1], 0, stored, {}, rows, size=16, num_present={"a": 1}))
    assert singles[0].share("a") * 3 < 1
    losses = [model.training_step(row) for row in singles]
    assert torch.allclose(torch.stack(losses).mean(), model.training_step(whole), rtol=1e-5)


def test_a_modality_that_nobody_has_changes_no_other_loss(tmp_path):
    model, batch = make(), next(iter(loader()))
    model.trainer, parts = trainer(tmp_path, 1), {}
    model.log, model.log_dict = lambda *_, **__: None, lambda row, **_: parts.update(row)
    batch.present = {"b": torch.zeros(16, dtype=torch.bool)}
    loss = model.training_step(batch)
    assert torch.equal(loss, parts["train/a.v"]) and parts["train/b.s"] == 0


@pytest.mark.parametrize("takes_kept", [True, False])
def test_dropping_gives_each_sample_the_loss_it_has_without_the_modality(tmp_path, takes_kept):
    """What is missing is left out for that sample alone: the same as a batch of samples like it."""
    model, whole = make(drop_ignored=True), next(iter(loader()))
    model.backbone.takes_kept = takes_kept
    model.trainer = trainer(tmp_path, 1)
    model.log = model.log_dict = lambda *_, **__: None
    seen = []
    run = model.backbone.forward
    model.backbone.forward = lambda latents, times, **more: (
        seen.append((set(latents), len(times["a"]))) or run(latents, times, **more)
    )
    whole.present = {"b": torch.arange(16) < 6}
    loss = model.training_step(whole)
    patterns = [({"a.v"}, 10), ({"a.v", "b.s"}, 6)]
    assert sorted(seen, key=str) == ([({"a.v", "b.s"}, 16)] if takes_kept else sorted(patterns, key=str))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    batches = []
    for part, names in ((slice(0, 6), "ab"), (slice(6, 16), "a")):
        stored = {key: value[part] for key, value in whole.stored.items()}
        present = {name: torch.full((len(whole.index[part]),), name in names) for name in "b"}
        batches.append(Batch(whole.index[part], 0, stored, {}, present, size=16, num_present={"b": 6}))
    shares = [len(batch.index) / 16 for batch in batches]
    assert torch.allclose(loss, sum(share * model.training_step(b) for share, b in zip(shares, batches, strict=True)))


@pytest.mark.parametrize("takes_kept", [True, False])
def test_what_a_sample_lacks_is_predicted_as_zero(takes_kept):
    model, batch = make(drop_ignored=True), next(iter(loader()))
    model.backbone.takes_kept = takes_kept
    torch.nn.init.ones_(model.backbone.tokens_of("b.s").head.bias)
    kept = {"b": torch.arange(16) < 6}
    latents, times = model.latents(batch), {name: torch.full((16,), 500.0) for name in "ab"}
    prediction = model.network_on_kept(latents, times, kept | {"a": torch.ones(16).bool()})
    assert prediction["b.s"][:6].abs().min() > 0 and not prediction["b.s"][6:].any()


def test_adding_a_modality_changes_no_draw_of_another():
    batch = next(iter(loader()))
    pair, single = make(), UniDiffuser({"a": Modality(NumberCodec())}, partial(UViT, width=16, depth=3, heads=2))
    assert torch.equal(pair.objective.times(batch)["a"], single.objective.times(batch)["a"])


def test_the_losses_of_streams_are_logged_at_the_loggers_steps_alone(tmp_path):
    model, seen = make(), []
    log_dict = model.log_dict
    model.log_dict = lambda rows, **more: (seen.append(model.global_step + 1), log_dict(rows, **more))
    trainer(tmp_path, 7, log_every_n_steps=3).fit(model, loader())
    assert seen == [3, 6]
