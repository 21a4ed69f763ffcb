"""Two codecs without networks, registered as a plugin's would be."""

from __future__ import annotations

import pytest
import torch

from unidiff_core import Codec, Stream, system
from unidiff_core.foundation import plugin
from unidiff_core.serialization import description, hub, model_directory


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


@pytest.fixture
def registered(monkeypatch):
    load = plugin.load_plugins

    def with_ours(*args):
        registry = load(*args)
        registry.add(NumberCodec)
        registry.add(StepCodec)
        return registry

    for module in (model_directory, description, system, hub):
        monkeypatch.setattr(module, "load_plugins", with_ours)
    return NumberCodec, StepCodec
