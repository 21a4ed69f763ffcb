"""The U-ViT: keys of the released files and of diffusers' ``UniDiffuserModel``, against those of our `UViT`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from unidiff_codecs.released.names import ENDS, POSITIONS, TYPES, UNUSED, pairs_of
from unidiff_codecs.released.sizes import Sizes
from unidiff_codecs.released.state import (
    Layout,
    Pairs,
    Shapes,
    State,
    check_names,
    check_shapes,
    reversed_pairs,
    shapes_of,
    transfer,
)


def import_state(state: State, sizes: Sizes, layout: Layout, path: Path) -> dict[str, Tensor]:
    """A state dict in another layout → ours.

    Raises:
        ValueError: if names or shapes are not exactly the layout's; lists them.
    """
    ours = shapes_of(sizes.network().state_dict())
    pairs = pairs_of(layout, sizes.depth, has_types=sizes.data_types > 0)
    theirs = _their_shapes(sizes, layout, pairs, ours)
    check_names(state, theirs, path)
    check_shapes(state, theirs, path)
    return transfer(state, pairs, ours)


def export_state(state: State, sizes: Sizes, layout: Layout) -> dict[str, Tensor]:
    """Our state dict → another layout. `import_state` gives it back bit for bit."""
    pairs = pairs_of(layout, sizes.depth, has_types=sizes.data_types > 0)
    new = transfer(state, reversed_pairs(pairs), _their_shapes(sizes, layout, pairs, shapes_of(state)))
    if layout == "diffusers":
        for name, original in UNUSED.items():
            new |= {f"{name}.{end}": new[f"{original}.{end}"].clone() for end in ("weight", "bias")}
    return new


def _their_shapes(sizes: Sizes, layout: Layout, pairs: Pairs, ours: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes in the other layout: ours, but for what it cuts or folds differently."""
    width, positions = sizes.width, sum(ours[name][0] for name in POSITIONS)
    shapes = {theirs[0]: ours[own[0]] for theirs, own in pairs if len(theirs) == 1}
    shapes |= {name: (width, width) for theirs, _ in pairs if len(theirs) == 3 for name in theirs}
    column = 1 if layout == "released" else 2
    patches = f"{ENDS[0][column]}.weight"
    shapes |= {"pos_embed": (1, positions, width), patches: (width, sizes.channels, sizes.patch, sizes.patch)}
    if sizes.data_types:
        shapes[TYPES[1][column]] = (1, 1, width)
    if layout == "diffusers":
        shapes |= {f"{new}.{end}": shapes[f"{old}.{end}"] for new, old in UNUSED.items() for end in ("weight", "bias")}
    return shapes
