"""Small inputs as cameras, editors, scrapers and people make them: pictures, folders, shards and sounds."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load
from unidiff_codecs.picture import open_image
from unidiff_codecs.text import check_text, decoded

from unidiff_core import Codec, Stream
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.shard import STORED

CAPTIONS = [f"a red {word}" for word in ("one", "two", "three", "four", "five", "six")]
ORIENTATION = 0x0112


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A smooth picture: red to the right, green downwards; asymmetric, so that a turn shows."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    blue = np.full_like(x, (seed * 40) % 256)
    return Image.fromarray(np.stack([x, y, blue], -1).astype(np.uint8))


def data(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tar(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in rows:
            content = content if isinstance(content, bytes) else content.encode()
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- pictures ---


def upright() -> bytes:
    return data(picture(1), "JPEG", quality=95)


def phone() -> bytes:
    """Stored lying, tagged "turn 90 degrees clockwise to show": a viewer shows exactly `upright`."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return data(picture(1).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def cutout() -> bytes:
    """An opaque white disc; what is transparent hides magenta."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3] = (255, 0, 255)
    y, x = np.mgrid[:32, :32]
    rgba[(x - 16) ** 2 + (y - 16) ** 2 < 64] = (255, 255, 255, 255)
    return data(Image.fromarray(rgba))


def grey16() -> bytes:
    return data(Image.fromarray(np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)))


def broken_chunk() -> bytes:
    content = bytearray(data(picture(6, (64, 64))))
    content[12:16] = b"JUNK"
    return bytes(content)


# --- folders ---


def folder(root: Path, num: int = 6) -> Path:
    """Pictures without captions, ``0.png``, ``1.png``, …"""
    for i in range(num):
        write(root / f"{i}.png", data(picture(i)))
    return root


def with_metadata(root: Path, num: int = 6, **fields) -> Path:
    """Pictures with a ``metadata.jsonl``; `fields` give a value of each, by its number."""
    rows = ({"file_name": f"{i}.png"} | {name: value(i) for name, value in fields.items()} for i in range(num))
    write(folder(root, num) / "metadata.jsonl", jsonl(rows))
    return root


def with_texts(root: Path, colour: str = "red", num: int = 3) -> Path:
    """Pictures with a text file beside each."""
    for i in range(num):
        write(root / f"{i}.txt", f"a {colour} {i}")
    return folder(root, num)


# --- shards ---


def pairs(num: int = 6) -> list[tuple[str, bytes]]:
    """Members of pictures with captions, in order."""
    rows: list[tuple[str, bytes]] = []
    for i in range(num):
        rows += [(f"{i:04d}.png", data(picture(i, (32, 32)))), (f"{i:04d}.txt", CAPTIONS[i % 6].encode())]
    return rows


def unsorted(path: Path) -> None:
    """All pictures, then all captions."""
    tar(path, pairs()[::2] + pairs()[1::2])


def mixed(path: Path) -> None:
    """Pictures of several endings."""
    formats = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
    rows = []
    for i, ending in enumerate(["jpg", "jpeg", "png", "webp", "jpg", "JPG"]):
        content = data(picture(i, (32, 32)), formats[ending.lower()])
        rows += [(f"{i:04d}.{ending}", content), (f"{i:04d}.txt", CAPTIONS[i])]
    tar(path, rows)


def empty_captions(path: Path) -> None:
    """img2dataset writes an empty text file where there is no caption."""
    tar(path, [(name, b"" if name in ("0001.txt", "0004.txt") else content) for name, content in pairs()])


def corrupt(path: Path) -> None:
    """A picture that is cut off."""
    tar(path, [(name, content[:60] if name == "0003.png" else content) for name, content in pairs(5)])


# --- sounds ---


def riff(tag: int, bits: int, frames: bytes, rate: int, sub: int | None = None) -> bytes:
    """A mono WAV file, EXTENSIBLE if `sub` is given."""
    block = bits // 8
    fmt = struct.pack("<HHIIHH", tag, 1, rate, rate * block, block, bits)
    if sub is not None:
        fmt += struct.pack("<HHIH14s", 22, bits, 4, sub, bytes.fromhex("000000001000800000aa00389b71"))
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(frames)) + frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


# --- what uses them ---


class SizeCodec(Codec):
    """The number of bytes of a member: a codec without a network."""

    streams: ClassVar = {"size": Stream.vector(1)}

    def encode(self, raws):
        return {"size": torch.tensor([[float(len(raw))] for raw in raws]).reshape(len(raws), 1)}

    def decode(self, latents):
        return [b" " * int(size) for size in latents["size"][:, 0]]

    def from_bytes(self, data):
        return data

    def to_bytes(self, raw):
        return raw


def sizes(folder, modality: str) -> list[float | None]:
    """What `SizeCodec` stored."""
    rows = [load(row[STORED]).get(f"{modality}.size") for row in read_shards(folder)]
    return [None if row is None else row.item() for row in rows]


def autoencoder_options(shards, output) -> list[str]:
    """A training of an autoencoder of a second."""
    return [
        *("--model=AutoencoderTraining", "--model.channels=[4,8]", "--model.latent_channels=2", "--data=ImageData"),
        *(f"--data.folder={shards}", "--data.size=32", "--data.batch_size=8", "--data.holdout=0.2"),
        *("--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"),
        *("--trainer.enable_model_summary=false", f"--output={output}"),
    ]


class PictureSizeCodec(SizeCodec):
    """The same of a picture that can be opened."""

    extension = "png"

    def from_bytes(self, data):
        open_image(data)
        return data


class TextSizeCodec(SizeCodec):
    """The same of a text."""

    extension = "txt"

    def from_bytes(self, data):
        return check_text(decoded(data))
