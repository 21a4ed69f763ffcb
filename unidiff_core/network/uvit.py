"""U-ViT: the transformer with long skips of UniDiffuser, over any set of streams.

Everything is a token: one for each modality's time, one for each patch, step or vector of each stream. Source: Bao et
al. 2023, "All are Worth Words", and the UniDiffuser paper, section 4.2 (LayerNorm after, on the residual path).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unidiff_core.foundation.latents import Latents, Times, modality_of, stream_of
from unidiff_core.foundation.stream import Stream
from unidiff_core.network.backbone import Backbone, Port, Ports
from unidiff_core.network.packing import Packing, Runs
from unidiff_core.network.tokens import StreamTokens


def timestep_embedding(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sinusoids of real-valued times, the cosines first, in float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Block(nn.Module):
    """Attention and MLP with the LayerNorm after each sum. An out block first merges its skip."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, has_skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.skip_linear = nn.Linear(2 * width, width) if has_skip else None
        self.norm1 = nn.LayerNorm(width) if has_skip else None
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "b n width"], skip: Float[Tensor, "b n width"] | None = None, runs: Runs | None = None
    ) -> Float[Tensor, "b n width"]:
        """Tokens → tokens. With `runs`, they are those of a `Packing`."""
        if self.skip_linear is not None and self.norm1 is not None and skip is not None:
            x = self.norm1(self.skip_linear(torch.cat([x, skip], dim=-1)))
        x = self.norm2(x + self.attention(x, runs))
        return self.norm3(x + self.fc2(F.gelu(self.fc1(x))))

    def attention(self, x: Float[Tensor, "b n width"], runs: Runs | None = None) -> Float[Tensor, "b n width"]:
        """Self-attention over all tokens of a sample."""
        rows = self.qkv(x).flatten(0, 1)
        runs = [(x.shape[0], x.shape[1])] if runs is None else runs
        pieces = rows.split([count * length for count, length in runs])
        attended = [self._attended(piece, count) for piece, (count, _) in zip(pieces, runs, strict=True)]
        joined = attended[0] if len(attended) == 1 else torch.cat([rows[:0, : x.shape[-1]], *attended])
        return self.proj(joined.view_as(x))

    def _attended(self, rows: Float[Tensor, "total three_width"], count: int) -> Float[Tensor, "total width"]:
        q, k, v = rearrange(rows, "(b n) (three h d) -> three b h n d", b=count, three=3, h=self.heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> (b n) (h d)")


class UViT(Backbone):
    """The post-LN U-ViT: a transformer over the tokens of all streams, with long skips, of any `width` and `depth`.

    The released UniDiffuser is width 1536, depth 31, 24 heads over the streams ae 4×64×64 /2, clip 512 and text 77×64:
    952,504,912 parameters, 952,509,520 with two data types.

    Args:
        ports: modality → stream → what is seen and predicted.
        width: of a token.
        depth: number of blocks, odd: (depth − 1)/2 in, one in the middle, as many out.
        heads: attention heads; they divide `width`.
        mlp_ratio: width of the MLP over `width`.
        data_types: number of learnt data-type tokens of which each sample shows one (2 in v1: web, curated);
            0 for none.
        position_std: standard deviation of the initial positions and of tables of symbols. 0.02 in the release; tiny
            networks learn faster from larger ones.
        checkpointing: whether training recomputes each block in the backward pass (activation checkpointing): the
            activations of one block in place of all, for about a third more time. It changes no result.
        scaled_init: whether linear layers before the heads begin at 1/√inputs, which keeps the size of what goes
            through them, in place of the release's 0.02: that is near 1/√1536, and in tiny networks a fifth of it, so
            that at first nothing attends to anything and inputs are lost beside their positions.
    """

    def __init__(
        self,
        ports: Ports,
        width: int = 1536,
        depth: int = 31,
        heads: int = 24,
        mlp_ratio: float = 4.0,
        data_types: int = 0,
        position_std: float = 0.02,
        checkpointing: bool = False,
        scaled_init: bool = False,
    ) -> None:
        super().__init__()
        if depth % 2 == 0 or width % heads:
            raise ValueError(
                f"a U-ViT needs an odd depth and heads that divide its width, not {depth=}, {width=}, {heads=}"
            )
        self.width, self.depth, self.heads, self.mlp_ratio = width, depth, heads, mlp_ratio
        self.data_types, self.position_std, self.checkpointing = data_types, position_std, checkpointing
        self.scaled_init = scaled_init
        # A colon keeps a name like "values" from being taken for a method of the container.
        self.time_position = nn.ParameterDict({f"{name}:time": nn.Parameter(torch.zeros(1, width)) for name in ports})
        self.streams = nn.ModuleDict(
            {
                f"{name}:{stream}": StreamTokens(port, width)
                for name, rows in ports.items()
                for stream, port in rows.items()
            }
        )
        if data_types:
            self.data_type = nn.Embedding(data_types, width)
            self.data_type_position = nn.Parameter(torch.zeros(1, width))

        def blocks(num: int, *, has_skip: bool) -> nn.ModuleList:
            return nn.ModuleList(Block(width, heads, round(width * mlp_ratio), has_skip=has_skip) for _ in range(num))

        self.in_blocks = blocks(depth // 2, has_skip=False)
        self.mid_blocks = blocks(1, has_skip=False)
        self.out_blocks = blocks(depth // 2, has_skip=True)
        self.norm = nn.LayerNorm(width)
        self.initialise()

    def initialise(self) -> None:
        """All initialisation: linear layers truncated normal 0.02 (or 1/√inputs), no bias, positions `position_std`.

        A table of symbols begins as the positions that are added to it: 25 times smaller, which symbol it is was lost
        beside where it is.
        """
        tables = {f"streams.{key}.embed.weight" for key, tokens in self.streams.items() if tokens.port.seen.vocabulary}  # type: ignore[union-attr]
        for name, parameter in self.named_parameters():
            if "position" in name or name in tables:
                nn.init.trunc_normal_(
                    parameter, std=self.position_std, a=-2 * self.position_std, b=2 * self.position_std
                )
            elif parameter.ndim > 1:
                scaled = self.scaled_init and ".head." not in name and "data_type" not in name
                std = parameter.shape[1] ** -0.5 if scaled else 0.02
                nn.init.trunc_normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def tokens_of(self, key: str) -> StreamTokens:
        """The way in and out of a stream, by its full name."""
        return self.streams[key.replace(".", ":", 1)]  # type: ignore[return-value]

    takes_kept = True

    @property
    def conditions(self) -> tuple[str, ...]:
        """The data type, if there are several."""
        return ("data_type",) if self.data_types else ()

    def forward(  # type: ignore[override]
        self,
        latents: Latents,
        times: Times,
        data_type: Int64[Tensor, " b"] | None = None,
        kept: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> dict[str, Tensor]:
        """Predictions of all streams in `latents`.

        Args:
            latents: ``"<modality>.<stream>" -> [b, *shape]``.
            times: modality → ``[b]`` in 0..T.
            data_type: the last type (curated) if not given.
            kept: modality → which samples have it, of those that not all have: no other tokens are computed.
        """
        keys = [key for key in self.stream_keys() if key in latents]
        pieces = [self.stem(times, data_type), *(self.tokens_of(key).tokens(latents[key]) for key in keys)]
        lengths = [piece.shape[1] for piece in pieces]
        x = torch.cat(pieces, dim=1)  # (b, n, width)
        packing = Packing.of(self.kept_tokens(kept, keys, lengths, times)) if kept else None
        x = packing.pack(x) if packing else x

        skips, runs = [], packing.runs if packing else None
        for block in self.in_blocks:
            x = self.run(block, x, None, runs)
            skips.append(x)
        for block in self.mid_blocks:
            x = self.run(block, x, None, runs)
        for block in self.out_blocks:
            x = self.run(block, x, skips.pop(), runs)

        x = packing.unpack(self.norm(x)) if packing else self.norm(x)
        return {
            key: self.tokens_of(key).prediction(piece, tuple(latents[key].shape[1:]))
            for key, piece in zip(keys, x.split(lengths, dim=1)[1:], strict=True)
        }

    def kept_tokens(
        self, kept: Mapping[str, Bool[Tensor, " b"]], keys: Sequence[str], lengths: Sequence[int], times: Times
    ) -> Bool[Tensor, "b n"]:
        """Which tokens a sample has: all but those of modalities, times among them, that it lacks.

        Args:
            kept: as in `forward`.
            keys: of the streams, in token order.
            lengths: of the stem and of the streams.
            times: of the modalities that there are.
        """
        every = torch.ones_like(next(iter(times.values())), dtype=torch.bool)
        names = [name for name in self.time_names() if name in times]
        rows = [(kept.get(name, every), 1) for name in names]
        rows += [(every, lengths[0] - len(names))]  # the data type
        rows += [(kept.get(modality_of(key), every), num) for key, num in zip(keys, lengths[1:], strict=True)]
        return torch.cat([row[:, None].expand(-1, num) for row, num in rows], dim=1)

    @property
    def layers(self) -> list[nn.Module]:
        """All blocks, in order."""
        return [*self.in_blocks, *self.mid_blocks, *self.out_blocks]

    def run(self, block: nn.Module, *inputs: Tensor | Runs | None) -> Tensor:
        """One block, its activations kept or to be computed again."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return block(*inputs)  # type: ignore[no-any-return]

    def stream_keys(self) -> list[str]:
        """Full names of all streams, in token order."""
        return [name.replace(":", ".", 1) for name in self.streams]

    def time_names(self) -> list[str]:
        """The modalities, in the order of their times' tokens."""
        return [key.removesuffix(":time") for key in self.time_position]

    def stem(self, times: Times, data_type: Int64[Tensor, " b"] | None) -> Float[Tensor, "b n width"]:
        """The tokens before the streams': times, then the data type."""
        dtype = self.norm.weight.dtype
        rows = [
            timestep_embedding(times[name], self.width).to(dtype)[:, None] + self.time_position[f"{name}:time"]
            for name in self.time_names()
            if name in times
        ]
        if self.data_types:
            some = next(iter(times.values()))
            kind = torch.full_like(some, self.data_types - 1, dtype=torch.int64) if data_type is None else data_type
            rows.append(self.data_type(kind.long())[:, None] + self.data_type_position)
        return torch.cat(rows, dim=1)


def ports_of(streams: Mapping[str, Stream]) -> dict[str, dict[str, Port]]:
    """Ports of streams by full name, seen and predicted as they are."""
    ports: dict[str, dict[str, Port]] = {}
    for key, stream in streams.items():
        ports.setdefault(modality_of(key), {})[stream_of(key)] = Port(stream, stream)
    return ports
