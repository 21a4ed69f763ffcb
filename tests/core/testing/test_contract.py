"""The contract finds what it is for: a deliberately wrong codec for each clause, and right ones that pass."""

from __future__ import annotations

import contextlib
import socket
import sys
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from unidiff_core import Codec, Stream
from unidiff_core.testing import ContractError, check_codec
from unidiff_core.testing.contract import CLAUSES

RAWS = [[round(((i + 1) * j % 7) / 3 - 1, 3) for j in range(32)] for i in range(3)]


class SeriesCodec(Codec):
    """The README's."""

    extension = "csv"
    round_trip = 1e-6
    streams = {"values": Stream.grid(1, 32, patch=4)}  # noqa: RUF012

    def encode(self, raws):
        return {"values": torch.tensor(raws).view(len(raws), 1, 32)}

    def decode(self, latents):
        return latents["values"][:, 0].tolist()

    def from_bytes(self, data):
        return [float(value) for value in data.decode().split(",")]

    def to_bytes(self, raw):
        return ",".join(map(str, raw)).encode()


class Declaration(SeriesCodec):
    extension = ".csv"


class Constructor(SeriesCodec):
    def __init__(self, length=32):
        super().__init__()


class ModelDirectory(SeriesCodec):
    def __init__(self, bins=frozenset({1})):
        super().__init__()
        self.bins = bins


class LazyLoading(SeriesCodec):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 2).requires_grad_(False)


class NeedsWeights(SeriesCodec):
    weights = ("table",)

    def __init__(self, table="weights/table"):
        super().__init__()
        self.table = table
        if table != "weights/table":
            raise FileNotFoundError(table)


class Streams(SeriesCodec):
    def latent(self, stored, draw):
        return {"values": stored["values"][:, :, :31]}


class OneStepShort(SeriesCodec):
    streams = {"values": Stream.grid(1, 28, patch=4)}  # noqa: RUF012


class Dtype(SeriesCodec):
    def latent(self, stored, draw):
        return {"values": stored["values"].double()}


class Infinite(SeriesCodec):
    def latent(self, stored, draw):
        return {"values": stored["values"].log()}


class Determinism(SeriesCodec):
    def encode(self, raws):
        return {"values": super().encode(raws)["values"] + 1e-7 * torch.rand(len(raws), 1, 32)}


class DecodeDraws(SeriesCodec):
    def decode(self, latents):
        return [[value + 1e-3 * torch.rand(()).item() for value in row] for row in super().decode(latents)]


class GlobalRandomness(SeriesCodec):
    def encode(self, raws):
        torch.rand(1)
        return super().encode(raws)


class BatchIndependence(SeriesCodec):
    def encode(self, raws):
        values = super().encode(raws)["values"]
        return {"values": values - values.mean(0, keepdim=True).nan_to_num()}


class DecodeTogether(SeriesCodec):
    def decode(self, latents):
        return super().decode({"values": latents["values"] / (1 + latents["values"].square().sum())})

    round_trip = None


class RoundTrip(SeriesCodec):
    def decode(self, latents):
        return super().decode({"values": latents["values"].round(decimals=1)})


class EmptyBatch(SeriesCodec):
    def encode(self, raws):
        return {"values": torch.tensor(raws)[:, None]}


class MissingSample(SeriesCodec):
    def latent(self, stored, draw):
        return {"values": stored["values"] / stored["values"].norm(dim=-1, keepdim=True)}

    round_trip = None


class Lazy(SeriesCodec):
    """Loads a network at first use, and uses it."""

    def __init__(self):
        super().__init__()
        self.network = None

    def encode(self, raws):
        if self.network is None:
            self.network = self.load()
        return {"values": self.network(super().encode(raws)["values"])}

    def load(self):
        return nn.Identity()

    round_trip = None


def flipped():
    layer = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, -1.0)
    return layer


class Frozen(Lazy):
    def load(self):
        with torch.random.fork_rng():
            return flipped()


class Training(Lazy):
    def load(self):
        with torch.random.fork_rng():
            return flipped().requires_grad_(False)


class Device(SeriesCodec):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(1)


class DeviceList(Lazy):
    def load(self):
        with torch.random.fork_rng():
            self.networks = [flipped().requires_grad_(False)]
        return nn.Identity()


class Pickling(SeriesCodec):
    def __init__(self):
        super().__init__()
        self.scale = lambda x: x


class Network(SeriesCodec):
    def encode(self, raws):
        with contextlib.suppress(OSError):
            socket.getaddrinfo("hub.example.org", 443)
        return super().encode(raws)


class File(SeriesCodec):
    def to_bytes(self, raw):
        return ",".join(str(round(value)) for value in raw).encode()


class FileError(SeriesCodec):
    def from_bytes(self, data):
        try:
            return super().from_bytes(data)
        except ValueError as error:
            raise KeyError("not a series") from error


class FromElsewhere(SeriesCodec):
    def html(self, raw):
        return '<img src="https://example.org/plot.png">'


WRONG = [
    (Declaration, "declaration", "extension is '.csv'", "without a dot"),
    (Constructor, "constructor", "'length' is no attribute", "self.length = length"),
    (ModelDirectory, "model directory", "not plain data: unknown object 'frozenset'", "take numbers, strings"),
    (LazyLoading, "lazy loading", "not used yet has 2 parameters, network.weight the first", "at first use"),
    (NeedsWeights, "lazy loading", "FileNotFoundError: no/such/weights", "load the weights in `encode`"),
    (Streams, "streams", r"'values' as grid (1, 32) and gives (1, 31)", "`streams` is what the network is built from"),
    (OneStepShort, "streams", "'values' as grid (1, 28) and gives (1, 32)", "`streams` is what"),
    (Dtype, "dtype", "declared float32 and comes as torch.float64", "convert it in `latent`"),
    (Infinite, "dtype", "not finite", "mask or clip"),
    (Determinism, "determinism", "encode gives another 'values' at the second call", "draw nothing"),
    (DecodeDraws, "determinism", "decode gives another sample", "generator of its own"),
    (GlobalRandomness, "global randomness", "global random state of torch", "generator of your own"),
    (BatchIndependence, "batch independence", "encode gives sample 0 another 'values' alone", "no batch statistics"),
    (DecodeTogether, "batch independence", "decode gives sample", "no batch statistics"),
    (RoundTrip, "round trip", "and the codec states at most 1e-06", "state a larger `round_trip`"),
    (EmptyBatch, "empty batch", "encode([]) gives (0, 1) for 'values', not (0, 1, 32)", ".view(len(raws), *shape)"),
    (MissingSample, "missing sample", "'values' that is not finite", "guard a division"),
    (Frozen, "frozen", "1 parameters require a gradient", "requires_grad_(False)"),
    (Training, "frozen", "the network network is in training mode", "super().train(False)"),
    (Device, "device", "leaves scale behind", "register_buffer"),
    (DeviceList, "device", "leaves networks behind", "as an attribute, not in a list"),
    (Pickling, "pickling", "before first use it cannot be pickled", "no lambda"),
    (Network, "network", "hub.example.org first", "fetch only what the user named"),
    (File, "file", "comes back from its own bytes at a distance of", "fix one of the two"),
    (FromElsewhere, "file", 'src="https://example.org/plot.png" is not in the page', "`data:` addresses"),
    (FileError, "file", "for a file that is no sample from_bytes raises KeyError", "raise ValueError"),
]


@pytest.mark.parametrize(("wrong", "clause", "seen", "fix"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_codec_is_told_the_clause_and_how_to_mend_it(wrong, clause, seen, fix):
    with pytest.raises(ContractError) as caught:
        check_codec(wrong(), RAWS)
    first = caught.value.violations[0]
    assert first.clause == clause
    assert seen in first.seen and fix in first.fix
    message = str(caught.value)
    assert wrong.__name__ in message and f"{clause}: " in message and seen in message and fix in message


def test_every_clause_has_a_wrong_codec():
    assert {row[1] for row in WRONG} == {
        clause.__name__.removeprefix("clause_").replace("_", " ") for clause in CLAUSES
    }


def test_the_right_codec_passes_every_clause_and_the_report_says_so():
    report = check_codec(SeriesCodec(), RAWS)
    assert len(report.clauses) == len(CLAUSES) and not report.remarks
    assert str(report).startswith("SeriesCodec keeps the contract: declaration, constructor, model directory, ")


class Shifted(SeriesCodec):
    def latent(self, stored, draw):
        return {"values": stored["values"] * 100 + 50}

    round_trip = None


def test_what_is_allowed_but_odd_is_remarked():
    remarks = check_codec(Shifted(), RAWS).remarks
    assert "values has mean" in remarks[0] and "normalise in the codec" in remarks[0]
    assert "no bound is stated (`round_trip`)" in remarks[1]


class Raising(SeriesCodec):
    def encode(self, raws):
        return {"values": torch.zeros(1).view(7)}


def test_one_fault_is_told_once_with_its_line():
    with pytest.raises(ContractError, match=r"violates 1 of 17 clauses") as caught:
        check_codec(Raising(), RAWS)
    assert "RuntimeError: shape '[7]'" in str(caught.value) and "Raising.encode, line" in str(caught.value)


def test_samples_that_are_alike_check_nothing():
    with pytest.raises(ValueError, match="two different samples or more; the 2 given are alike"):
        check_codec(SeriesCodec(), RAWS[:1] * 2)


MODULE = """
import torch
from unidiff_core import Codec, Stream

class VectorCodec(Codec):
    streams = {"values": Stream.vector(3)}
    def encode(self, raws):
        return {"values": torch.tensor(raws).view(len(raws), 3)}
    def decode(self, latents):
        return latents["values"].tolist()
    from_bytes = to_bytes = decode
"""


def test_a_codec_that_pickles_works_in_a_worker(tmp_path, monkeypatch):
    (tmp_path / "vector_codec.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    codec = __import__("vector_codec").VectorCodec()
    with get_context("spawn").Pool(1) as pool:
        stored = pool.apply(codec.encode, ([[1.0, 2.0, 3.0]],))
    sys.modules.pop("vector_codec")
    assert stored["values"].tolist() == [[1.0, 2.0, 3.0]]
