"""The LightningModule: its loss by hand, the randomness rule, presence, EMA, model directories."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader

from unidiff_core import Codec, Modality, Stream, UniDiffuser, model_directory, plugin, randomness
from unidiff_core.batch import Batch
from unidiff_core.data import GlobalOrder, Place
from unidiff_core.ema import EMA
from unidiff_core.model_directory import ModelDirectory, ModelDirectoryError
from unidiff_core.plugin import UnknownNameError
from unidiff_core.schedule import T
from unidiff_core.spec import SpecError
from unidiff_core.uvit import UViT
from unidiff_core.warmup import Warmup


class NumberCodec(Codec):
    """Numbers as vectors: exact, with no network."""

    extension = "num"

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width

    @property
    def streams(self):
        return {"v": Stream.vector(self.width)}

    def encode(self, raws):
        return {"v": torch.tensor(raws, dtype=torch.float32)[:, None].repeat(1, self.width)}

    def decode(self, latents):
        return [round(x, 5) for x in latents["v"].mean(1).tolist()]

    def from_bytes(self, data):
        return float(data)

    def to_bytes(self, raw):
        return str(raw).encode()


class StepCodec(NumberCodec):
    """The same as a sequence."""

    @property
    def streams(self):
        return {"s": Stream.sequence(2, self.width)}

    def encode(self, raws):
        return {"s": super().encode(raws)["v"][:, None].repeat(1, 2, 1)}

    def decode(self, latents):
        return super().decode({"v": latents["s"].flatten(1)})


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    load = plugin.load_plugins

    def with_ours(*args):
        registry = load(*args)
        registry.add(NumberCodec)
        registry.add(StepCodec)
        return registry

    monkeypatch.setattr(model_directory, "load_plugins", with_ours)


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
