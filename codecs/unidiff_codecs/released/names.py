"""Names of the U-ViT's tensors: ours, the released files', and diffusers'."""

from __future__ import annotations

from collections.abc import Iterator

from unidiff_codecs.released.state import Layout, Pairs

# Each row: our name, the released name, diffusers' name; every one with a weight and a bias.
ENDS = (
    ("streams.image:ae.embed", "patch_embed.proj", "vae_img_in.proj"),
    ("streams.image:ae.head", "decoder_pred", "vae_img_out"),
    ("streams.image:clip.embed", "clip_img_embed", "clip_img_in"),
    ("streams.image:clip.head", "clip_img_out", "clip_img_out"),
    ("streams.text:states.embed", "text_embed", "text_in"),
    ("streams.text:states.head", "text_out", "text_out"),
    ("norm", "norm", "transformer.norm_out"),
)
_BLOCK = (
    ("proj", "attn.proj", "attn1.to_out.0"),
    ("norm2", "norm2", "norm1"),
    ("fc1", "mlp.fc1", "ff.net.0.proj"),
    ("fc2", "mlp.fc2", "ff.net.2"),
    ("norm3", "norm3", "norm3"),
)
_MERGE = (("skip_linear", "skip_linear", "skip.skip_linear"), ("norm1", "norm1", "skip.norm"))
POSITIONS = (  # in the order of the tokens that the released position parameter was added to
    "time_position.image:time",
    "time_position.text:time",
    "streams.text:states.position",
    "streams.image:clip.position",
    "streams.image:ae.position",
)
TYPES = (
    ("data_type.weight", "token_embedding.weight", "data_type_token_embedding.weight"),
    ("data_type_position", "pos_embed_token", "data_type_pos_embed_token"),
)

UNUSED = {"transformer.pos_embed.proj": "vae_img_in.proj"}
"""What diffusers' model holds and never uses, and what it is a copy of."""


def names_of(layout: Layout, depth: int, *, has_types: bool) -> list[str]:
    """Names of all tensors in a layout, but for what is `UNUSED`."""
    return [name for theirs, _ in pairs_of(layout, depth, has_types=has_types) for name in theirs]


def pairs_of(layout: Layout, depth: int, *, has_types: bool) -> Pairs:
    """(their names, our names) of the whole network."""
    column = 1 if layout == "released" else 2
    pairs: list[tuple[tuple[str, ...], tuple[str, ...]]] = [(("pos_embed",), POSITIONS)]
    for row in ENDS:
        pairs += _affine(row[column], row[0])
    pairs += [((row[column],), (row[0],)) for row in TYPES if has_types]
    for ours, theirs in _blocks(layout, depth // 2):
        inner = f"{theirs}.block" if layout == "diffusers" and "out_block" in theirs else theirs
        qkv = [f"{inner}.attn1.to_{letter}.weight" for letter in "qkv"]
        pairs.append((tuple(qkv) if layout == "diffusers" else (f"{inner}.attn.qkv.weight",), (f"{ours}.qkv.weight",)))
        for row in _BLOCK:
            pairs += _affine(f"{inner}.{row[column]}", f"{ours}.{row[0]}")
        for row in _MERGE if "out_block" in theirs else ():
            pairs += _affine(f"{theirs}.{row[column]}", f"{ours}.{row[0]}")
    return pairs


def _blocks(layout: Layout, half: int) -> Iterator[tuple[str, str]]:
    """(our name, their name) of every block."""
    prefix = "" if layout == "released" else "transformer.transformer_"
    for i in range(half):
        yield f"in_blocks.{i}", f"{prefix}in_blocks.{i}"
        yield f"out_blocks.{i}", f"{prefix}out_blocks.{i}"
    yield "mid_blocks.0", f"{prefix}mid_block"


def _affine(theirs: str, ours: str) -> Pairs:
    return [((f"{theirs}.{end}",), (f"{ours}.{end}",)) for end in ("weight", "bias")]
