"""Hostile files: payloads through every door, each in a process of its own under an audit hook.

What counts: no code of the payload runs (no command, no canary), nothing is written outside of the working folder, no
connection is tried, and time and memory stay within bounds. A payload that is refused with a sentence is detected, one
that is read as harmless data is survived; anything else, an error that is no sentence included, is silent.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import socket
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save, save_file
from unidiff_codecs.caption import clean_caption
from unidiff_codecs.clip import load_clip, locate_clip
from unidiff_codecs.picture import open_image
from unidiff_codecs.source import FolderSource
from unidiff_codecs.text import TextCodec

from tests.faults.scoreboard import Fault, Outcome
from tests.faults.shards import Columns, encode, fit
from tests.faults.shards import write as write_clean
from unidiff_core.cli.fit import codecs_beside
from unidiff_core.data.damage import FAIL, Damage, LossError
from unidiff_core.data.filter import Filter
from unidiff_core.data.index import INDEX, open_index
from unidiff_core.data.location import open_shard
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.samples import StoredDataset
from unidiff_core.data.shard import MANIFEST
from unidiff_core.foundation.finite import NonFiniteError
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.serialization import model_directory
from unidiff_core.training.newest import newest_verified, verify

SECONDS = 20
MEBIBYTES = 1500
"""What one payload may take, of a processor's time and of memory."""
HANG = 30 * SECONDS
"""Seconds by the clock: another may have the processor."""
CANARY = "canary"
SKIP = Damage("skip_sample", 0.9)

Act = Callable[[Path], Any]


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


def _pickled() -> bytes:
    return pickle.dumps(Evil())


def _tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for header, data in members:
            header.size = len(data) if header.isreg() else 0
            archive.addfile(header, io.BytesIO(data))
    return path


def _member(name: str, data: bytes = b"1", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    return header, data


# --- shards ---


def _with_member(ending: str, data: bytes) -> Act:
    def act(folder: Path) -> None:
        path = _tar(folder / "raw/0.tar", [_member("0.num"), _member("0.txt", b"x"), _member(f"0.{ending}", data)])
        list(read_shards(path))
        fit(path.parent, folder, FAIL)
        encode(path.parent, folder / "out", FAIL)

    return act


def _member_is(ending: str, data: bytes) -> Act:
    """A modality's own member is the payload."""

    def act(folder: Path) -> None:
        other = _member("0.txt", b"x") if ending == "num" else _member("0.num")
        path = _tar(folder / "raw/0.tar", [_member(f"0.{ending}", data), other])
        encode(path.parent, folder / "out", FAIL)

    return act


def _named(*members: Any) -> Act:
    """A tar with odd members beside an ordinary sample: nothing of what they point to is read."""

    def act(folder: Path) -> None:
        (folder / "secret").write_text("7")
        path = _tar(folder / "raw/0.tar", [_member("1.num"), _member("1.txt", b"x"), *members])
        for row in read_shards(path):
            assert b"7" not in row.values(), "the secret was read"
        open_index(path.parent)
        try:
            encode(path.parent, folder / "out", FAIL)
        finally:
            if (folder / "out/0.tar").is_file():
                with tarfile.open(folder / "out/0.tar") as archive:
                    names = archive.getnames()
                assert not any(name.startswith("/") or ".." in name.split("/") for name in names), "it is passed on"

    return act


def _pipe(door: str) -> Act:
    def act(folder: Path) -> None:
        url = f"pipe:touch {CANARY}"
        if door == "open":
            with open_shard(url):
                pass
        elif door == "manifest":
            folder.joinpath(MANIFEST).write_text(json.dumps({"shards": [{"name": url, "sha256": None, "count": 1}]}))
            list(read_shards(folder))
        elif door == "stored":
            StoredDataset.at(url)
        elif door == "cached":
            list(read_shards(f"simplecache::{url}"))
        else:
            Columns(url).read()

    return act


def _manifest(row: dict[str, Any]) -> Act:
    def act(folder: Path) -> None:
        write_clean(folder / "raw")
        manifest = json.loads((folder / "raw" / MANIFEST).read_text())
        manifest["shards"] = [{"sha256": None, "count": 1} | row]
        (folder / "raw" / MANIFEST).write_text(json.dumps(manifest))
        encode(folder / "raw", folder / "out", FAIL)

    return act


def _codecs_beside(config: Any) -> Act:
    def act(folder: Path) -> None:
        write_clean(folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | {"codecs": {"a": config}}))
        codecs_beside(str(folder), ["a"])

    return act


def _index(change: dict[str, Any]) -> Act:
    """An index beside the shards that leads elsewhere; it has the right fingerprint."""

    def act(folder: Path) -> None:
        write_clean(folder / "raw")
        encode(folder / "raw", folder / "out", FAIL)
        open_index(folder / "out")
        from safetensors import safe_open

        with safe_open(folder / "out" / INDEX, "pt") as file:
            notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, value in change.items():
            tensors[name] = torch.full_like(tensors[name], value)
        save_file(tensors, folder / "out" / INDEX, notes)
        StoredDataset.at(folder / "out").everything()

    return act


# --- model directories, checkpoints, networks ---

CONFIG = {
    "format": 1,
    "modalities": {"a": {"codec": {"class": "OrdinaryCodec"}, "process": {"class": "GaussianProcess"}, "weight": 1.0}},
    "backbone": {"class": "UViT"},
    "balance": "elements",
}


def _config(text: str | bytes) -> Act:
    def act(folder: Path) -> None:
        (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        model_directory.step_of(folder)
        model_directory.is_model_directory(folder)
        model_directory.load(folder)

    return act


def _clean_std(text: str) -> Act:
    def act(folder: Path) -> None:
        (folder / "clean_std.yaml").write_text(text)
        model_directory._read_clean_std(folder / "clean_std.yaml")

    return act


def _class(where: str, name: Any) -> Act:
    config = json.loads(json.dumps(CONFIG))
    node = config
    *path, last = where.split(".")
    for key in path:
        node = node[key]
    node[last] = name
    return _config(yaml.safe_dump(config))


def _weights(content: bytes, name: str = "model.safetensors") -> Act:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(content)
        model_directory._read_weights(folder / name)

    return act


def _torch_file(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _zipped_again(content: bytes, extra: int = 0) -> bytes:
    """The same archive, compressed, with a member of zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with new.open("archive/data/9", "w", force_zip64=True) as member:
            for _ in range(extra):
                member.write(bytes(2**20))
    return out.getvalue()


def _checkpoint(content: Callable[[], bytes]) -> Act:
    def act(folder: Path) -> None:
        path = folder / "last.ckpt"
        path.write_bytes(content())
        model = torch.nn.Linear(2, 2)
        newest, skipped = newest_verified([path], model)
        if newest:
            torch.load(newest, weights_only=True)
        else:
            assert skipped
            verify(path, model)

    return act


def _good() -> dict[str, Any]:
    return {
        "state_dict": torch.nn.Linear(2, 2).state_dict(),
        **{key: list[int]() for key in ("optimizer_states", "lr_schedulers", "loops", "global_step", "epoch")},
    }


def _clip(config: dict[str, Any]) -> Act:
    def act(folder: Path) -> None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        save_file({"x": torch.zeros(1)}, folder / "open_clip_model.safetensors")
        load_clip(locate_clip(str(folder)))

    return act


CLIP = {"embed_dim": 8, "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "patch_size": 4}, "text_cfg": {}}


def _with_vision(**fields: Any) -> dict[str, Any]:
    return CLIP | {"vision_cfg": {"image_size": 8, **fields}}


# --- folders, pictures, captions ---


def _linked(name: str, target: str) -> Act:
    """A folder to fine-tune on, with a link out of it; what lies there must not be among the samples."""

    def act(folder: Path) -> None:
        own, other = folder / "mine", folder / "elsewhere"
        for place in (own, other):
            place.mkdir()
        (other / "secret.txt").write_text("the secret")
        (other / "secret.png").write_bytes(_png(2, 2))
        (own / "a.png").write_bytes(_png(1, 1))
        (own / "a.txt").write_text("mine")
        (own / name).unlink(missing_ok=True)
        (own / name).symlink_to(target)
        source = FolderSource(str(own), validation=0.0, unpaired="skip")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = list(source.samples("train"))
        assert not any(b"the secret" in value for row in rows for value in row.values() if isinstance(value, bytes))
        assert not any(row["png"] == _png(2, 2) for row in rows)

    return act


def _metadata(name: str, text: str) -> Act:
    def act(folder: Path) -> None:
        (folder / "mine").mkdir()
        (folder / "secret.png").write_bytes(_png(2, 2))
        (folder / "mine/a.png").write_bytes(_png(1, 1))
        (folder / "mine" / name).write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = list(FolderSource(str(folder / "mine"), validation=0.0, unpaired="keep").samples("train"))
        assert not any(row.get("png") == _png(2, 2) for row in rows)

    return act


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, extra: bytes = b"", rows: int | None = None) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = zlib.compress(bytes((width + 1) * (height if rows is None else rows)), 9)
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _picture(content: Callable[[], bytes]) -> Act:
    return lambda folder: open_image(content())


def _text_chunks(count: int) -> bytes:
    text = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20), 9))
    return _png(1, 1, text * count)


def _caption(text: Callable[[], str]) -> Act:
    """Through a codec and the cleaner."""

    def act(folder: Path) -> None:
        clean_caption(TextCodec(clip="none", text_decoder="none").from_bytes(text().encode()))

    return act


def _bomb(door: str) -> Act:
    """A compressed tar of a member of zeros that would fill the memory, before an ordinary sample: it is skipped."""

    def act(folder: Path) -> None:
        path = folder / "raw/0.tar.gz"
        path.parent.mkdir()
        size = 2**29
        with gzip.open(path, "wb", 1) as out:
            if door == "name":
                header, data = _member("x", kind=tarfile.GNUTYPE_LONGNAME)
            elif door == "pax":
                header, data = _member("x", kind=tarfile.XHDTYPE)
            else:
                header, data = _member("0.num")
            header.size = size
            out.write(header.tobuf(tarfile.GNU_FORMAT))
            for _ in range(size // 2**24):
                out.write(bytes(2**24))
            for header, data in (_member("1.num"), _member("1.txt", b"x")):
                header.size = len(data)
                out.write(header.tobuf() + data.ljust(512, b"\0"))
            out.write(bytes(1024))
        damage = SKIP if door == "member" else FAIL
        kept, lost = encode(path.parent, folder / "out", damage)
        assert kept == {"1": (1.0, 1.0)} and lost == 1

    return act


def _filtered(data: bytes) -> Act:
    def act(folder: Path) -> None:
        Filter("width", at_least=1).reason({"json": data})

    return act


DEEP = 200_000
TIFF = b"II*\0\x08\0\0\0\x02\0" + b"".join(
    struct.pack("<HHII", tag, 4, 1, 2**31 - 1) for tag in (256, 257)
) + bytes(4)  # fmt: skip
"""Of 2³¹ − 1 pixels a side."""
LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])

PAYLOADS: dict[str, dict[str, Act]] = {
    "pickle in a shard": {
        **{ending: _with_member(ending, _pickled()) for ending in ("pyd", "pkl", "pickle", "pth", "npy", "mp", "npz")},
        "num": _member_is("num", _pickled()),
        "txt": _member_is("txt", _pickled()),
        "safetensors": lambda folder: StoredDataset.at(
            _tar(folder / "raw/0.tar", [_member("0.safetensors", _pickled())])
        ).everything(),
    },
    "tar member": {
        "absolute": _named(_member("/tmp/evil.num"), _member("/tmp/evil.txt", b"x")),
        "above": _named(_member("../../evil.num"), _member("../../evil.txt", b"x")),
        "symbolic link": _named(_member("0.num", kind=tarfile.SYMTYPE, link="secret"), _member("0.txt", b"x")),
        "hard link": _named(_member("0.num", kind=tarfile.LNKTYPE, link="../secret"), _member("0.txt", b"x")),
        "link to a member": _named(_member("0.num", kind=tarfile.LNKTYPE, link="1.num"), _member("0.txt", b"x")),
        "device": _named(_member("0.num", kind=tarfile.CHRTYPE)),
        "pipe": _named(_member("0.num", kind=tarfile.FIFOTYPE)),
        "folder": _named(_member("0.num", kind=tarfile.DIRTYPE)),
        "name with newlines": _named(_member("0\n\x1b[2J.num"), _member("0\n\x1b[2J.txt", b"x")),
        "stored name that leads out": _named(_member("a/../../../b.num"), _member("a/../../../b.txt", b"x")),
    },
    "location": {
        **{f"pipe, {door}": _pipe(door) for door in ("open", "manifest", "stored", "cached", "columns")},
        "manifest, above": _manifest({"name": "../outside.tar"}),
        "manifest, absolute": _manifest({"name": "/etc/passwd"}),
        "manifest, URL": _manifest({"name": "http://127.0.0.1:9/x.tar"}),
        "manifest, no rows": _manifest({"name": None}),
        "manifest, negative count": _manifest({"name": "00000.tar", "count": -5}),
        "manifest, other type": _manifest({"name": ["00000.tar"]}),
        "index, far away": _index({"starts.safetensors": 2**60}),
        "index, before the start": _index({"starts.safetensors": -(2**40)}),
        "index, no such shard": _index({"shard": 99}),
        "index, no such layout": _index({"layout": 99}),
    },
    "class path": {
        "codec": _class("modalities.a.codec.class", "os.system"),
        "process": _class("modalities.a.process.class", "subprocess.Popen"),
        "backbone": _class("backbone.class", "builtins.eval"),
        "number": _class("backbone.class", 7),
        "list": _class("modalities.a.codec.class", ["os", "system"]),
        "class path": _class("modalities.a.codec", {"class_path": "os.system", "init_args": {"command": CANARY}}),
        "argument": _class("modalities.a.codec", {"class": "ImageCodec", "clip": {"class": "os.system"}}),
        "another kind": _class("modalities.a.codec", {"class": "UViT"}),
        "no mapping": _class("modalities", ["a"]),
        "manifest": _codecs_beside({"class": "os.system", "command": f"touch {CANARY}"}),
        "manifest, list": _codecs_beside(["os.system"]),
    },
    "weights by name": {
        **{
            name: _class("modalities.a.codec", {"class": "ImageCodec", "clip": name})
            for name in ("hf-hub:evil/model", "http://127.0.0.1/x", "file:///etc", "pipe:touch canary", 7)
        },
    },
    "YAML": {
        **{
            tag: _config(f"format: 1\nmodalities: !!python/{tag}\n")
            for tag in ("object/apply:os.system [touch canary]", "name:os.system", "module:this",
                        "object/new:os.system [touch canary]", "object:os.system {}", "tuple [1]")
        },
        "interpolation": _class("backbone.class", "${oc.env:HOME}"),
        "resolver": _class("licence", "${oc.decode:touch canary}"),
        "laughs": _config(f"format: 1\n{LAUGHS}\nmodalities: {{a: {{codec: *a39, process: *a39, weight: 1}}}}\n"
                          "backbone: *a39\nbalance: elements\n"),
        "laughs in a codec": _config(
            f"format: 1\n{LAUGHS}\nmodalities: {{a: {{codec: {{class: ImageCodec, clip: *a39}}, process: {{}}}}}}\n"
            "backbone: {class: UViT}\nbalance: elements\n"),
        "circle": _config("format: 1\nmodalities: &m {a: *m}\nbackbone: {}\nbalance: elements\n"),
        "depth": _config("format: " + "[" * DEEP),
        "laughs in clean_std": _clean_std(f"{LAUGHS}\nx: *a39\n"),
        "tag in clean_std": _clean_std("x: !!python/object/apply:os.system [touch canary]"),
        "no numbers in clean_std": _clean_std("x: [1]"),
        "not UTF-8": _config(b"format: \xff\xfe"),
        "binary": _config(os.urandom(4096)),
        "long": _config(b"format: 1\nx: [" + b"1, " * 2_000_000 + b"1]\n"),
    },
    "weights": {
        "pickle": _weights(_torch_file({"x": Evil()})),
        "raw pickle": _weights(_pickled()),
        "average": _weights(_torch_file({"x": Evil()}), "ema.safetensors"),
        "header too long": _weights(struct.pack("<Q", 2**62) + b"{}"),
        "header of 90 MB": _weights(struct.pack("<Q", 90 * 2**20) + b" " * (90 * 2**20)),
        "deep header": _weights(struct.pack("<Q", DEEP) + b"[" * DEEP),
        "offsets outside": _weights(save({"x": torch.zeros(4)}).replace(b"[0,16]", b"[0,99]")),
        "shape too large": _weights(save({"x": torch.zeros(4)}).replace(b"[4]", b"[9]")),
        "empty": _weights(b""),
    },
    "checkpoint": {
        "weights": _checkpoint(lambda: _torch_file(_good() | {"state_dict": Evil()})),
        "optimizer": _checkpoint(lambda: _torch_file(_good() | {"optimizer_states": [Evil()]})),
        "callbacks": _checkpoint(lambda: _torch_file(_good() | {"callbacks": {"EMA": Evil()}})),
        "class path": _checkpoint(lambda: _torch_file(_good() | {"hyper_parameters": {"_class_path": "os.abort"}})),
        "old format": _checkpoint(lambda: _torch_file(_good() | {"x": Evil()}, _use_new_zipfile_serialization=False)),
        "raw pickle": _checkpoint(_pickled),
        "compressed": _checkpoint(lambda: _zipped_again(_torch_file(_good()), 500)),
        "no mapping": _checkpoint(lambda: _torch_file([1, 2])),
        "state is a list": _checkpoint(lambda: _torch_file(_good() | {"state_dict": [1]})),
        "state of numbers": _checkpoint(lambda: _torch_file(_good() | {"state_dict": {"weight": 1, "bias": 2}})),
    },
    "CLIP's configuration": {
        "timm from a hub": _clip({"model_cfg": _with_vision(timm_model_name="hf-hub:evil/model")}),
        "timm from a hub, flat": _clip(_with_vision(timm_model_name="hf-hub:evil/model")),
        "timm, pretrained": _clip({"model_cfg": _with_vision(timm_model_name="resnet18", timm_model_pretrained=True)}),
        "timm, local folder": _clip({"model_cfg": _with_vision(timm_model_name="local-dir:/tmp/evil")}),
        "text model": _clip({"model_cfg": CLIP | {"text_cfg": {"hf_model_name": "evil/model"}}}),
        "text model, flat": _clip(CLIP | {"text_cfg": {"hf_model_name": "evil/model"}}),
        "tokenizer, flat": _clip(CLIP | {"text_cfg": {"hf_tokenizer_name": "evil/model"}}),
        "of another type": _clip({"model_cfg": CLIP | {"text_cfg": ["hf_model_name"]}}),
        "no object": _clip({"model_cfg": 7}),
    },
    "folder to fine-tune on": {
        "caption": _linked("a.txt", "../elsewhere/secret.txt"),
        "picture": _linked("b.png", "../elsewhere/secret.png"),
        "metadata": _linked("metadata.jsonl", "../elsewhere/secret.txt"),
        "device": _linked("b.png", "/dev/zero"),
        "circle": _linked("b", "."),
        "lines that lead out": _metadata("metadata.jsonl", '{"file_name": "../secret.png", "text": "x"}'),
        "absolute lines": _metadata("metadata.jsonl", '{"file_name": "/etc/passwd", "text": "x"}'),
        "table that leads out": _metadata("metadata.csv", "file_name,text\n../secret.png,x\n"),
        "no name": _metadata("metadata.jsonl", '{"file_name": 7, "text": "x"}'),
        "deep line": _metadata("metadata.jsonl", "[" * DEEP),
        "long field": _metadata("metadata.csv", f"file_name,text\na.png,{'x' * (csv.field_size_limit() + 1)}\n"),
    },
    "bomb": {
        "pixels": _picture(lambda: _png(60000, 60000, rows=10)),
        "pixels, wide": _picture(lambda: _png(2**31 - 1, 1, rows=0)),
        "text chunks": _picture(lambda: _text_chunks(300)),
        "TIFF": _picture(lambda: TIFF),
        "caption of 100 MB": _caption(lambda: "a word " * 15_000_000),
        "caption without blanks": _caption(lambda: "a" * 5_000_000),
        "nested brackets": _caption(lambda: "(" * 200_000 + "x" + ")" * 200_000),
        "many brackets": _caption(lambda: "(x)" * 100_000),
        "entities": _caption(lambda: "&" + "amp;" * 100_000 + " x"),
        "comments": _caption(lambda: "<!--" * 100_000),
        "tags": _caption(lambda: '<a"' * 100_000),
        "blanks": _caption(lambda: "x" + " #" * 200_000 + "x"),
        "punctuation": _caption(lambda: "http://" + "?" * 100_000 + "x"),
        "hosts": _caption(lambda: "a." * 100_000),
        "mail": _caption(lambda: "a@" + "a." * 100_000),
        "compressed tar, member": _bomb("member"),
        "compressed tar, name": _bomb("name"),
        "compressed tar, PAX": _bomb("pax"),
        "deep JSON": _filtered(b'{"width":' * DEEP),
        "long number": _filtered(b'{"width": ' + b"9" * 1_000_000 + b"}"),
    },
}  # fmt: skip


NUM = sum(map(len, PAYLOADS.values()))


def _connects(folder: Path) -> None:
    with socket.socket() as stream:
        stream.connect(("127.0.0.1", 9))


GUILTY: list[Act] = [
    lambda folder: pickle.loads(_pickled()),
    _connects,
    lambda folder: (folder.parent / "outside").write_text(""),
    lambda folder: (folder / CANARY).write_text(""),
]
"""What the watch must see; it is not among the payloads."""


def faults(count: int, seed: int) -> Iterator[Fault]:
    """`count` payloads, in an order by `seed`; all of them again where there are fewer."""
    load_plugins()  # here, so that no process of a payload imports them
    every = [(kind, name, act) for kind, rows in PAYLOADS.items() for name, act in rows.items()]
    for number in range(count):
        if number % len(every) == 0:
            random.Random(seed + number).shuffle(every)
        kind, name, act = every[number % len(every)]
        yield Fault(kind, str(name), partial(_inject, act=act))


def _inject(folder: Path, act: Act) -> Outcome:
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=_watched, args=(folder, act, answer))
    process.start()
    process.join(HANG)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"it did not end within {HANG} s")
    if answer.empty():
        raise RuntimeError(f"its process died, {process.exitcode}")
    outcome, why = answer.get()
    if any(folder.parent.rglob(CANARY)) or Path(CANARY).exists():
        raise RuntimeError("its code ran")
    if why and outcome == Outcome.SILENT.value:
        raise RuntimeError(why)
    return Outcome(outcome)


REFUSED = (ValueError, OSError, LossError, NonFiniteError)


def _watched(folder: Path, act: Act, answer: Any) -> None:
    """In a process of its own: run it, and say what came of it."""
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "0"  # a stranger's repository must not even be asked for
    events: list[str] = []
    before = _peak()
    sys.addaudithook(partial(_note, events, folder))
    started = time.process_time()
    outcome, why = Outcome.SURVIVED, ""
    try:
        tempfile.tempdir = str(folder)  # fsspec keeps its copies there
        with Path(os.devnull).open("w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            act(folder)
    except REFUSED as error:
        outcome = Outcome.DETECTED if str(error) else Outcome.SILENT
    except BaseException as error:
        outcome, why = Outcome.SILENT, f"{type(error).__name__}: {str(error)[:200]}"
    used = _peak() - before
    if events:
        outcome, why = Outcome.SILENT, "; ".join(events[:5])
    elif used > MEBIBYTES:
        outcome, why = Outcome.SILENT, f"it took {used} MiB"
    elif time.process_time() - started > SECONDS:
        outcome, why = Outcome.SILENT, "it took too long"
    answer.put((outcome.value, why))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


CODE = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork", "os.forkpty", "pty.spawn"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}


def _note(events: list[str], folder: Path, event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: notes, and stops, what no file may cause."""
    if event in CODE or event in NETWORK:
        events.append(f"{event} {arguments}")
        raise OSError("blocked")
    if (
        event == "open"
        and isinstance(arguments[0], (str, bytes))
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        _check_inside(events, folder, event, arguments[0])
    elif event in CHANGES:
        for path in arguments[event in ("os.link", "os.symlink") : 2]:
            if isinstance(path, (str, bytes)):
                _check_inside(events, folder, event, path)


def _check_inside(events: list[str], folder: Path, event: str, path: str | bytes) -> None:
    own = os.path.realpath(os.fsdecode(path))
    if not own.startswith((os.path.realpath(folder), "/dev/null", "/dev/shm")) and "__pycache__" not in own:
        events.append(f"{event} {own}")
        raise OSError("blocked")
