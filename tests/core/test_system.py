"""The LightningModule: its loss by hand, the randomness rule, presence, EMA, model directories."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader

from tests.core.conftest import NumberCodec, StepCodec
from unidiff_core import Modality, UniDiffuser
from unidiff_core.data.order import GlobalOrder, Place
from unidiff_core.foundation import randomness
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.registry import UnknownNameError
from unidiff_core.foundation.time import T
from unidiff_core.network.uvit import UViT
from unidiff_core.sampling.spec import SpecError
from unidiff_core.serialization import model_directory
from unidiff_core.serialization.model_directory import ModelDirectoryError
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.ema import EMA
from unidiff_core.training.learning_rate import Warmup

pytestmark = pytest.mark.usefixtures("registered")


def make(balance="elements", weight=1.0, seed=0):
    torch.manual_seed(0)
    modalities = {"a": Modality(NumberCodec(), weight=weight), "b": Modality(StepCodec(4))}
    return UniDiffuser(
        modalities,
        partial(UViT, width=16, depth=3, heads=2),
        balance=balance,
        lr_scheduler=partial(Warmup, steps=2),
        seed=seed,
    )


class Pairs(torch.utils.data.Dataset):
    """b = −a, made from nothing."""

    def __init__(self, size=64):
        x = torch.linspace(-1, 1, size)[:, None]
        self.stored = {"a.v": x.repeat(1, 3), "b.s": -x[:, None].repeat(1, 2, 4)}

    def __getitem__(self, place: Place):
        return Batch(place.index, place.step, {key: value[place.rows] for key, value in self.stored.items()})


def loader(batch_size=16, micro=None, first=0):
    order = GlobalOrder(64, batch_size, micro_batch_size=micro or batch_size, seed=0, rank=0, world=1, first_step=first)
    return DataLoader(Pairs(), sampler=order, batch_size=None)


def trainer(tmp_path, steps, callbacks=(), **options):
    return pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **{"enable_checkpointing": False} | options,
    )


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
    assert (model.times(batch)["b"][~present] == T).all() and (model.times(batch)["b"][present] >= 1).all()
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


def test_dropping_gives_each_sample_the_loss_it_has_without_the_modality(tmp_path):
    """What is missing is left out for that sample alone: the same as a batch of samples like it."""
    model, whole = make(), next(iter(loader()))
    model.drop_ignored, model.trainer = True, trainer(tmp_path, 1)
    model.log = model.log_dict = lambda *_, **__: None
    seen = []
    run = model.backbone.forward
    model.backbone.forward = lambda latents, times: seen.append((set(latents), len(times["a"]))) or run(latents, times)
    whole.present = {"b": torch.arange(16) < 6}
    loss = model.training_step(whole)
    assert sorted(seen, key=str) == sorted([({"a.v"}, 10), ({"a.v", "b.s"}, 6)], key=str)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    batches = []
    for part, names in ((slice(0, 6), "ab"), (slice(6, 16), "a")):
        stored = {key: value[part] for key, value in whole.stored.items()}
        present = {name: torch.full((len(whole.index[part]),), name in names) for name in "b"}
        batches.append(Batch(whole.index[part], 0, stored, {}, present, size=16, num_present={"b": 6}))
    shares = [len(batch.index) / 16 for batch in batches]
    assert torch.allclose(loss, sum(share * model.training_step(b) for share, b in zip(shares, batches, strict=True)))


def test_dropping_is_refused_where_processes_would_wait_for_ever():
    model = make()
    model.drop_ignored, model._device_mesh = True, {"data_parallel": None}
    with pytest.raises(ValueError, match="FSDP2"):
        model.configure_model()


def test_adding_a_modality_changes_no_draw_of_another():
    batch = next(iter(loader()))
    pair, single = make(), UniDiffuser({"a": Modality(NumberCodec())}, partial(UViT, width=16, depth=3, heads=2))
    assert torch.equal(pair.times(batch)["a"], single.times(batch)["a"])


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def test_resumed_run_continues_the_same_run(tmp_path):
    whole, ema = make(), EMA(0.9)
    trainer(tmp_path, 8, [ema]).fit(whole, loader())
    first, first_ema = make(), EMA(0.9)
    half = trainer(tmp_path, 4, [first_ema])
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    second, second_ema = make(), EMA(0.9)
    trainer(tmp_path, 8, [second_ema]).fit(second, loader(first=4), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(whole), weights(second))
    assert all(torch.equal(value, second_ema.average[name]) for name, value in ema.average.items())


def test_accumulated_micro_batches_give_the_same_run(tmp_path):
    whole, parts = make(), make()
    trainer(tmp_path, 5).fit(whole, loader())
    trainer(tmp_path, 5, accumulate_grad_batches=4).fit(parts, loader(micro=4))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)


def test_two_runs_are_the_same_and_another_seed_is_not(tmp_path):
    one, two, other = make(), make(), make(seed=1)
    for model in (one, two, other):
        trainer(tmp_path, 3).fit(model, loader())
    assert torch.equal(weights(one), weights(two)) and not torch.equal(weights(one), weights(other))


def test_order_covers_each_epoch_once_and_splits_over_processes():
    def rows(rank, world, first=0):
        order = GlobalOrder(40, 16, micro_batch_size=8 // world, seed=3, rank=rank, world=world, first_step=first)
        return list(itertools.islice(order, 10))

    single = rows(0, 1)
    seen = torch.cat([place.rows for place in single])
    assert torch.equal(seen[:40].sort().values, torch.arange(40)) and not torch.equal(seen[:40], seen[40:80])
    both = [torch.cat([a.rows, b.rows]) for a, b in zip(rows(0, 2), rows(1, 2), strict=True)]
    assert all(torch.equal(a.rows, b) for a, b in zip(single, both, strict=True))
    assert torch.equal(rows(0, 1, first=2)[0].rows, single[4].rows)
    with pytest.raises(ValueError, match="does not split into micro-batches of 5 on 1"):
        GlobalOrder(40, 16, micro_batch_size=5, seed=0, rank=0, world=1, first_step=0)
    with pytest.raises(ValueError, match="fewer than the global batch of 64"):
        GlobalOrder(40, 64, micro_batch_size=64, seed=0, rank=0, world=1, first_step=0)


def test_ema_is_the_average_and_never_stays_in_the_network(tmp_path):
    model, ema, seen = make(), EMA(0.5), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append({name: value.detach().clone() for name, value in module.named_parameters()})

    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer(tmp_path, 4, [Watch(), ema]).fit(model, loader())
    for name, value in start.items():
        for n, row in enumerate(seen, 1):
            value.lerp_(row[name], 1 - min(0.5, (1 + n) / (10 + n)))
        assert torch.allclose(value, ema.average[name], atol=1e-6)
    before = weights(model)
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        assert not torch.equal(weights(model), before)
        raise RuntimeError("inside")
    assert torch.equal(weights(model), before)


def test_model_directory_round_trip(tmp_path):
    model = make("streams", weight=2.0)
    trainer(tmp_path, 3, [EMA(0.9), ModelDirectory(str(tmp_path / "run"))]).fit(model, loader())
    back = UniDiffuser.from_pretrained(tmp_path / "run", weights="model")
    assert torch.equal(weights(back), weights(model)) and back.balance == "streams"
    assert back.modalities["a"].weight == 2.0
    averaged = UniDiffuser.from_pretrained(tmp_path / "run")
    assert not torch.equal(weights(averaged), weights(model))
    got, again = (m.sample("a | b", {"b": 0.5}, num=3, steps=4) for m in (averaged, averaged))
    assert got == again and len(got["a"]) == 3
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["modalities"]["b"]["codec"] == {"class": "StepCodec", "width": 4}
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.fixture
def directory(tmp_path):
    model_directory.save(make(), tmp_path / "run")
    return tmp_path / "run"


def test_class_paths_in_a_model_directory_are_never_imported(directory):
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(text.replace("class: NumberCodec", "class: os.system"))
    with pytest.raises(UnknownNameError, match=r"unknown codec .os\.system.; registered: "):
        UniDiffuser.from_pretrained(directory)
    (directory / "config.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ModelDirectoryError, match="not plain YAML"):
        UniDiffuser.from_pretrained(directory)


def test_damaged_model_directories_say_what_is_wrong(directory, tmp_path):
    with pytest.raises(ModelDirectoryError, match=r"has no config.yaml"):
        UniDiffuser.from_pretrained(tmp_path / "nothing")
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(text.replace("depth: 3", "depth: 5"))
    with pytest.raises(ModelDirectoryError, match=r"missing: backbone\.in_blocks\.1"):
        UniDiffuser.from_pretrained(directory)
    (directory / "config.yaml").write_text(text.replace("mlp_ratio", "mlp_raito"))
    with pytest.raises(ModelDirectoryError, match="mlp_raito"):
        UniDiffuser.from_pretrained(directory)
    (directory / "config.yaml").write_text(text.replace("format: 1", "format: 9"))
    with pytest.raises(ModelDirectoryError, match="format 9"):
        UniDiffuser.from_pretrained(directory)
    (directory / "config.yaml").write_text(text)
    (directory / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelDirectoryError, match="cannot read the weights"):
        UniDiffuser.from_pretrained(directory)


def test_saving_refuses_what_is_not_registered(tmp_path):
    class Stranger(NumberCodec):
        pass

    model = UniDiffuser({"a": Modality(Stranger())}, partial(UViT, width=16, depth=3, heads=2))
    with pytest.raises(UnknownNameError, match="Stranger"):
        model_directory.save(model, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_samples_do_not_depend_on_the_batch_size(directory):
    model = UniDiffuser.from_pretrained(directory)
    whole = model.sample("a, b", num=7, steps=3, solver="ddpm")
    parts = model.sample("a, b", num=7, steps=3, solver="ddpm", batch_size=2)
    assert whole == {name: pytest.approx(values, abs=1e-5) for name, values in parts.items()}


def test_given_values_must_fit_the_number_of_samples():
    model = make()
    with pytest.raises(SpecError, match="3 values of 'b' are given for 2 samples"):
        model.sample("a | b", {"b": [1.0, 2.0, 3.0]}, num=2)
    with pytest.raises(SpecError, match="at least 1, not 0"):
        model.sample("a", num=0)
    assert len(model.sample("a | b", {"b": [1.0, 2.0, 3.0]}, steps=1)["a"]) == 3


def test_raw_and_stored_batches_give_the_same_loss(tmp_path):
    model = make()
    model.log = lambda *_, **__: None
    model.trainer = trainer(tmp_path, 1)
    index = torch.arange(4)
    raws = {"a": [0.1, 0.2, 0.3, 0.4], "b": [1.0, 2.0, 3.0, 4.0]}
    stored = {
        f"{name}.{key}": value
        for name, values in raws.items()
        for key, value in model.modalities[name].codec.encode(values).items()
    }
    assert torch.equal(
        model.training_step(Batch(index, 5, raws=raws)), model.training_step(Batch(index, 5, stored=stored))
    )
