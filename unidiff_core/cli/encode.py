"""``unidiffuser encode``: raw shards to stored latents, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor

from unidiff_core.cli.option import named
from unidiff_core.codec import Codec
from unidiff_core.data import STORED
from unidiff_core.plugin import load_plugins
from unidiff_core.shard import MANIFEST, find_shards, read_shard, write_manifest, write_shard

DESCRIPTION = """Encode raw shards to stored latents, once, so that training loads no frozen network.

Each shard becomes one of the same name, written beside its target and renamed: an interrupted run goes on with the
first shard that is not there.

  unidiffuser encode -c recipes/digits/encode.yaml --batch_size=64
"""


def run(argv: Sequence[str]) -> None:
    """Parse the options and encode each folder."""
    load_plugins()
    parser = ArgumentParser(**named("encode", DESCRIPTION))
    parser.add_argument("-c", "--config", action="config", help="YAML with these options")
    parser.add_argument("--codecs", type=dict[str, Codec], required=True, help="modality -> codec")
    parser.add_argument("--folders", type=dict[str, str], required=True, help="folder of raw shards -> where to")
    parser.add_argument(
        "--members", type=dict[str, str], default={}, help="modality -> member ending, if not the codec's"
    )
    parser.add_argument("--batch_size", type=int, default=256, help="samples encoded at a time")
    parser.add_argument(
        "--dtype", type=str, default="float32", choices=["float32", "float16"], help="of what is stored"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--overwrite", action="store_true", help="encode again what is encoded already")
    options = parser.instantiate_classes(parser.parse_args(list(argv)))
    codecs = {name: codec.to(options.device) for name, codec in options.codecs.items()}
    members = {name: options.members.get(name, codec.extension) for name, codec in codecs.items()}
    encoder = ShardEncoder(codecs, members, options.batch_size, getattr(torch, options.dtype))
    for source, target in options.folders.items():
        encode_folder(encoder, Path(source), Path(target), overwrite=options.overwrite)


def encode_folder(encoder: ShardEncoder, source: Path, target: Path, *, overwrite: bool = False) -> None:
    """Encode every shard of a folder that is not encoded yet, and write the manifest last."""
    if overwrite:
        (target / MANIFEST).unlink(missing_ok=True)
    if (target / MANIFEST).is_file():
        print(f"{target} is complete; --overwrite encodes it again")
        return
    shards = find_shards(source)
    with Progress() as progress:
        task = progress.add_task(f"encode {source}", total=len(shards))
        for shard in shards:
            if overwrite or not (target / shard.name).is_file():
                write_shard(target / shard.name, encoder.samples(shard))
            progress.advance(task)
    write_manifest(target, [target / shard.name for shard in shards])


class ShardEncoder:
    """Encodes the samples of a shard.

    Args:
        codecs: modality → codec.
        members: modality → ending of the member that holds it.
        batch_size: samples at a time.
        dtype: of stored floating-point tensors.
    """

    def __init__(
        self, codecs: Mapping[str, Codec], members: Mapping[str, str], batch_size: int, dtype: torch.dtype
    ) -> None:
        self.codecs, self.members, self.batch_size, self.dtype = codecs, members, batch_size, dtype

    def samples(self, shard: Path) -> Iterator[dict[str, Any]]:
        """Encoded samples: what is not a modality's raw member (labels, say) is kept, the raw ones are not."""
        samples = read_shard(shard)
        while batch := list(islice(samples, self.batch_size)):
            tensors: list[dict[str, Tensor]] = [{} for _ in batch]
            for name, codec in self.codecs.items():
                for key, encoded in codec.encode([self._raw(name, row, shard) for row in batch]).items():
                    stored = (encoded.to(self.dtype) if encoded.is_floating_point() else encoded).cpu()
                    for own, value in zip(tensors, stored, strict=True):
                        own[f"{name}.{key}"] = value.contiguous()
            for row, own in zip(batch, tensors, strict=True):
                kept = {key: value for key, value in row.items() if key not in self.members.values()}
                yield kept | {STORED: save(own)}

    def _raw(self, name: str, row: Mapping[str, Any], shard: Path) -> object:
        member = self.members[name]
        if member not in row:
            known = ", ".join(sorted(key for key in row if key != "__key__"))
            raise ValueError(f"sample {row['__key__']} of {shard} has no member .{member} for {name!r}; it has {known}")
        try:
            return self.codecs[name].from_bytes(row[member])
        except ValueError as error:
            raise ValueError(f"sample {row['__key__']} of {shard}, member .{member}: {error}") from error
