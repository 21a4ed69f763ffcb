"""Model directories: there and back, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import yaml
from safetensors import SafetensorError

from tests.core.conftest import NumberCodec
from tests.core.tiny import loader, make, trainer, weights
from unidiff_core import Modality, UniDiffuser
from unidiff_core.foundation.registry import Registration, Registry, UnknownNameError
from unidiff_core.network.backbone import Backbone, Ports
from unidiff_core.network.uvit import UViT
from unidiff_core.serialization import description, model_directory
from unidiff_core.serialization.description import Description
from unidiff_core.serialization.model_directory import ModelDirectoryError
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.ema import EMA

pytestmark = pytest.mark.usefixtures("registered")


def test_model_directory_round_trip(tmp_path):
    model = make("streams", weight=2.0)
    trainer(tmp_path, 3, [EMA(0.9), ModelDirectory(str(tmp_path / "run"))]).fit(model, loader())
    back = UniDiffuser.from_pretrained(tmp_path / "run", weights="model")
    assert torch.equal(weights(back), weights(model)) and back.objective.balance == "streams"
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
    make().save_pretrained(tmp_path / "run")
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
    with pytest.raises(ModelDirectoryError, match=r"there is no folder .*nothing; there is .*run"):
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
        model.save_pretrained(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


class Positions(Backbone):
    """A backbone with a buffer that no file keeps."""

    def __init__(self, ports: Ports) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("positions", torch.arange(4.0), persistent=False)

    def forward(self, latents, times, **conditions):
        return latents


def test_no_weight_is_initialised_only_to_be_overwritten(directory, monkeypatch):
    devices = []
    initialise = UViT.initialise
    monkeypatch.setattr(
        UViT, "initialise", lambda self: (devices.append(self.norm.weight.device.type), initialise(self))
    )
    model = UniDiffuser.from_pretrained(directory)
    before = weights(model)
    assert devices == ["meta"] and before.isfinite().all()
    model.train()
    trainer(directory.parent, 1).fit(model, loader())  # what was assigned trains like any other
    assert not torch.equal(weights(model), before)


def test_a_buffer_that_no_file_keeps_is_made_all_the_same(monkeypatch):
    monkeypatch.setattr(
        description, "load_plugins", lambda: Registry(registrations={"Positions": Registration(Positions, "")})
    )
    backbone = Description({}, {"class": "Positions"}).make_backbone({}, is_empty=True)
    assert backbone.positions.tolist() == [0, 1, 2, 3] and not backbone.weight.is_meta


def test_a_disk_that_refuses_weights_is_named_by_its_error(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_directory, "save_file", full)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*model\.safetensors'"):
        make().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
