"""The codec: raw data to latents and back. What a plugin author writes."""

from __future__ import annotations

import json
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unidiff_core.codec.mark import Mark
from unidiff_core.codec.region import mask_of
from unidiff_core.foundation.stream import Stream

Raw = Any
"""One sample of a modality as a person handles it: a PIL image, a string, a waveform."""

Draw = Callable[[str, tuple[int, ...]], Tensor]
"""``draw(stream, shape)`` gives standard normal noise by the randomness rule; `shape` includes the batch."""


class EmptyRaw(ValueError):  # noqa: N818 — it says what there is, not what went wrong
    """Content that holds no sample, a blank text, say: among data as good as missing, given by hand a mistake."""


class Codec(nn.Module, ABC):
    """Raw ⇄ latent, for one modality.

    Data has three states. *Raw*: a list of samples. *Stored*: what `encode` returns, expensive, deterministic, cached
    in shards. *Latent*: what is diffused, one tensor per stream, roughly of standard normal range.

    Rules that `unidiff_core.testing.check_codec` verifies:

    * Every constructor parameter is kept as an attribute of the same name, so that a model directory can record the
      codec as plain data.
    * The constructor loads no weights: `streams` is answered from the constructor's arguments, so that training from
      stored latents needs no frozen network. Networks load at first use.
    * Weights are frozen, and each result depends on its own sample only.
    * A batch may be empty, and `latent` takes zeros, which stand in for a sample that lacks this modality.
    * Nothing is drawn from the global random state, and nothing is fetched from a network that the user did not name.
    """

    licence: ClassVar[str] = "unknown"
    """Licence of the weights that this codec loads by default."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Where those weights come from: papers, hub ids."""
    extension: ClassVar[str] = "bin"
    """Ending, without a dot, of a raw sample's file: its member in a shard, and what `save` writes."""
    weights: ClassVar[tuple[str, ...]] = ()
    """Names of the constructor parameters that hold a local path or a hub id of pretrained weights."""
    decoding: ClassVar[tuple[str, ...]] = ()
    """Names of the constructor parameters that change nothing but what `decode` makes of latents."""
    marks: ClassVar[bool] = False
    """Whether it can put a mark, unseen, into what it decodes; `find_mark` then reads it."""
    raw_type: ClassVar[type | None] = None
    """Type of a raw sample, which a given value must be of; None if several are taken, which `encode` then checks."""
    widget: ClassVar[Literal["file", "text", "image", "audio"]] = "file"
    """What a person gives a value with on the page of ``unidiffuser demo``: an uploaded file, a line of text, a picture
    (which can be drawn on: `mask` then takes the path of a picture too), a sound. `parse` reads the text, or the path
    of the file."""
    round_trip: ClassVar[float | None] = None
    """Largest `distance` between a raw sample and what its latent decodes to; None if the codec promises none."""

    def __init__(self) -> None:
        super().__init__()  # takes nothing: a model directory records what the constructor's signature names

    @property
    @abstractmethod
    def streams(self) -> Mapping[str, Stream]:
        """Stream name → declaration, in token order."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Stream name → shape of the latents that this codec makes: the streams' own, unless it says otherwise.

        A codec set to another resolution than its network's positions are native to keeps its streams, and says here
        on which grid its latents really come.
        """
        return {name: stream.shape for name, stream in self.streams.items()}

    @abstractmethod
    def encode(self, raws: Sequence[Raw]) -> dict[str, Tensor]:
        """Raw samples → stored tensors, ``name -> [b, ...]``. Deterministic; the expensive half."""

    def encode_empty(self) -> dict[str, Tensor]:
        """Stored tensors ``name -> [1, ...]`` of a sample that says nothing, such as a text without words.

        Networks that were trained with it know what it means; guidance can lead away from it.

        Raises:
            ValueError: if there is none, as by default.
        """
        raise ValueError(f"{type(self).__name__} has no empty sample; lead away from a given value, or from noise at T")

    def latent(self, stored: Mapping[str, Tensor], draw: Draw) -> dict[str, Tensor]:
        """Stored tensors → latents, one per stream, ``[b, *stream.shape]``. Cheap; may draw noise, as a VAE does."""
        return dict(stored)

    @abstractmethod
    def decode(self, latents: Mapping[str, Tensor]) -> list[Raw]:
        """Latents, one per stream, ``[b, *stream.shape]`` → b raw samples."""

    @abstractmethod
    def from_bytes(self, data: bytes) -> Raw:
        """Content of a file or of a shard member → raw sample.

        Raises:
            EmptyRaw: if the content may hold nothing, as a blank text, and does; that sample of a data set lacks it.
            ValueError: if the content is not a sample of this modality; says why.
        """

    @abstractmethod
    def to_bytes(self, raw: Raw) -> bytes:
        """Raw sample → content of a file; `from_bytes` gives it back."""

    @classmethod
    def find_mark(cls, data: bytes, key: str | None = None) -> Mark:
        """Content of a file → how much is in it of the mark that this codec can put into what it decodes.

        Args:
            data: the file's content.
            key: which mark, as its constructor takes it; the one that `marks` of it are by default.

        Raises:
            ValueError: if the content is not a sample of this modality, or the key is none.
            NotImplementedError: if it puts none (`marks`).
        """
        raise NotImplementedError(f"{cls.__name__} marks nothing of what it decodes")

    def parse(self, text: str) -> Raw:
        """The value of ``--given name=TEXT`` → raw sample. A file's path unless the codec says otherwise.

        Raises:
            ValueError: if there is no such file or it cannot be read; says why.
        """
        path = Path(text).expanduser()
        if not path.is_file():
            what = f"{path} is a folder" if path.is_dir() else f"no such file: {path}"
            raise ValueError(f"{what}; give the path of a file, one that ends in .{self.extension} say")
        try:
            return self.from_bytes(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def mask(self, region: Any, raw: Raw | None = None) -> dict[str, Tensor]:
        """Where a region of a sample lies in its latent: stream → bool ``[*shape]``, True in the region.

        A region is in the streams' coordinates unless the codec says otherwise: ``{ae: [[0, 4], [2, 6]]}`` is a range
        for each size of a grid. A stream that tells of the whole sample is in every region as a whole.

        Args:
            region: as a person says it, plain data.
            raw: the sample, if it is known; some codecs need it.

        Raises:
            ValueError: if it is no region of this codec; says what is.
        """
        return mask_of(region, self.streams, self.shapes)

    def save(self, raws: Sequence[Raw], folder: Path, *, first_index: int = 0) -> list[Path]:
        """Write samples for people to look at; returns the files written. One numbered file each by default."""
        paths = [folder / f"{first_index + i:05d}.{self.extension}" for i in range(len(raws))]
        for path, raw in zip(paths, raws, strict=True):
            path.write_bytes(self.to_bytes(raw))
        return paths

    def film(self, rows: Sequence[Sequence[Raw]], folder: Path) -> list[Path]:
        """Write samples as they changed, a row of moments each, for people to look at; returns the files written.

        None by default: the page of a film shows every modality by `html`.
        """
        return []

    def html(self, raw: Raw) -> str:
        """An HTML fragment that shows one sample on a page, self-contained: data by ``data:`` addresses, no script."""
        return f"<code>{escape(json.dumps(raw, default=repr, ensure_ascii=False))}</code>"

    def distance(self, a: Raw, b: Raw) -> float:
        """How far apart two raw samples are, as `round_trip` counts it.

        The largest difference of two arrays of numbers, infinite if their shapes differ; of anything else, 0 if equal
        and 1 if not.
        """
        try:
            x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        except (TypeError, ValueError):
            return float(a != b)
        if x.shape != y.shape:
            return math.inf
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, and no bound holds for it
            return float(np.abs(x - y).max(initial=0.0))


def check_latent(codec: Codec, latent: Mapping[str, Tensor]) -> None:
    """Compare what `Codec.latent` gave with the streams and the shapes that the codec declares.

    The shapes may be others than the streams' native ones, if the codec says so: a grid of other sizes that divide into
    patches, a sequence of another length.

    Raises:
        ValueError: if a stream is absent or undeclared, or of another shape than declared, or that shape is none that
            the stream allows, or an id is none of the stream's symbols; names the codec, its distribution, the stream,
            and both shapes or the id.
    """
    streams = codec.streams
    if wrong := sorted(streams.keys() ^ latent.keys()):
        what = "gives no" if wrong[0] in streams else "does not declare the"
        declared, given = ", ".join(streams), ", ".join(latent)
        raise ValueError(f"{name_of(codec)} {what} stream {wrong[0]!r}; it declares {declared} and gives {given}")
    for name, shape in codec.shapes.items():
        stream, found = streams[name], tuple(latent[name].shape[1:])
        if not _allows(stream, shape):
            raise ValueError(f"{name_of(codec)} says {shape} in `shapes`, which its stream {name!r} {stream} cannot be")
        if found != tuple(shape):
            raise ValueError(
                f"{name_of(codec)} declares the stream {name!r} as {stream.layout} {tuple(shape)} and gives {found}, "
                "without the batch dimension; fix its `streams` or its `encode`, or encode again what was stored "
                "under other arguments (`shapes` is where a codec says that its latents come on another grid)"
            )
        if stream.vocabulary is not None:
            _check_ids(codec, name, latent[name], stream.vocabulary)


def check_raws(name: str, codec: Codec, raws: Sequence[Raw]) -> None:
    """Check that given samples are a list of what the codec takes.

    Args:
        name: of the modality.
        codec: its.
        raws: given.

    Raises:
        ValueError: if not; names the modality, the value and what is taken.
    """
    if isinstance(raws, str) or not isinstance(raws, Sequence):
        raise ValueError(f"the samples of {name!r} are a list, not {raws!r}")
    for raw in raws:
        if raw is None or (codec.raw_type is not None and not isinstance(raw, codec.raw_type)):
            cls = codec.raw_type
            wanted = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.") if cls else "a sample"
            is_path = isinstance(raw, (str, Path))
            hint = f"; `model.codec({name!r}).parse({str(raw)!r})` reads a file" if is_path else ""
            raise ValueError(f"{name!r} is given as {reprlib.repr(raw)}; {type(codec).__name__} takes {wanted}{hint}")


def _check_ids(codec: Codec, name: str, ids: Tensor, vocabulary: int) -> None:
    if ids.dtype != torch.int64:
        raise ValueError(f"{name_of(codec)} gives the symbols {name!r} as {ids.dtype}; ids are torch.int64")
    if wrong := ids[(ids < 0) | (ids >= vocabulary)][:1].tolist():
        raise ValueError(
            f"{name_of(codec)} gives the id {wrong[0]} in the stream {name!r}, of {vocabulary} symbols with ids 0 to "
            f"{vocabulary - 1}; fix its `encode` or its `streams`, or encode again what was stored under another "
            "vocabulary"
        )


def _allows(stream: Stream, shape: tuple[int, ...]) -> bool:
    if len(shape) != len(stream.shape):
        return False
    match stream.layout:
        case "grid":
            sizes = zip(shape[1:], stream.patch, strict=True)
            return shape[0] == stream.channels and all(size and size % side == 0 for size, side in sizes)
        case "symbols":
            return all(shape)
        case _:
            return shape[-1] == stream.channels


def name_of(codec: Codec) -> str:
    """Its class and the distribution that it came from, for errors."""
    from unidiff_core.foundation.plugin import distribution_of

    return f"{type(codec).__name__} of {distribution_of(type(codec))}"
