"""State dicts of other layouts: opened safely, checked by name and shape, and renamed without loss."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unidiff_core.foundation.stand_in import check_real, torch_reason
from unidiff_core.serialization.converter import Report

Layout = Literal["released", "diffusers"]
State = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Pairs = Sequence[tuple[tuple[str, ...], tuple[str, ...]]]
"""(names, names): the tensors on both sides hold the same numbers in the same order, cut and shaped differently."""

NAMES_SHOWN = 10
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")
"""Names that diffusers gave its files of weights, the safest first."""


def read_state(path: Path, report: Report) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or a pickle of tensors opened with ``weights_only=True`` and no fallback.

    Raises:
        ValueError: if it cannot be read, or holds anything but named tensors; says what it is, as far as can be told.
        OSError: if it is not there.
    """
    check_real(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    narrow = [value.dtype for value in state.values() if value.is_floating_point() and value.dtype != torch.float32]
    if narrow:
        report.add(f"{path.name}: {len(narrow)} tensors of {listed(set(map(str, narrow)))} become float32")
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch and pickle name a dozen kinds of damage
        raise ValueError(
            f"{path} is not a file of tensors alone, and nothing else is opened, because it could run code: "
            f"{torch_reason(error)}. If it should hold only tensors, download it again and compare its size"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    foreign = [str(name) for name, value in state.items() if not (isinstance(name, str) and torch.is_tensor(value))]
    if foreign:
        raise ValueError(f"{path} is not a plain state dict: {listed(foreign)} are not named tensors")
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def find_weights(folder: Path) -> Path:
    """The file of weights in a folder of diffusers' layout.

    Raises:
        ValueError: if there is none; a file in several pieces counts as none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} holds none of {', '.join(WEIGHTS)}; weights in several pieces are not read")


def listed(names: Collection[str]) -> str:
    """Names in a row, the first `NAMES_SHOWN` and a count of the others."""
    shown = sorted(names)[:NAMES_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def check_names(state: State, wanted: Iterable[str], path: Path) -> None:
    """Check that a file has exactly the tensors that its layout names.

    Raises:
        ValueError: listing those that are missing and those that are not known.
    """
    wanted = set(wanted)
    rows = {"missing": wanted - state.keys(), "not known": state.keys() - wanted}
    _refuse(path, {kind: sorted(names) for kind, names in rows.items()})


def check_telling(state: State, dims: Mapping[str, int], path: Path) -> None:
    """Check the tensors whose sizes are about to be read: there, and of so many dimensions.

    Raises:
        ValueError: listing those that are missing or have another number of dimensions.
    """
    missing = [name for name in dims if name not in state]
    wrong = [
        f"{name} {_text(state[name].shape)}, not of {num} sizes"
        for name, num in dims.items()
        if name in state and state[name].ndim != num
    ]
    end = ". They tell the sizes of the network; the others were not looked at"
    _refuse(path, {"missing": missing, "of another shape": wrong}, end)


def check_shapes(state: State, shapes: Shapes, path: Path) -> None:
    """Check that every tensor is of floating point and of its layout's shape.

    Raises:
        ValueError: listing those that are not, with both shapes.
    """
    wrong = [
        f"{name} {_text(state[name].shape)} in place of {_text(shape)}"
        for name, shape in shapes.items()
        if tuple(state[name].shape) != shape
    ]
    kinds = [f"{name} {value.dtype}" for name, value in state.items() if not value.is_floating_point()]
    _refuse(path, {"of another shape": wrong, "not of floating point": kinds})


def _refuse(path: Path, rows: Mapping[str, Collection[str]], end: str = "") -> None:
    text = "; ".join(f"{kind}: {listed(names)}" for kind, names in rows.items() if names)
    if text:
        raise ValueError(f"the tensors in {path} are not those of its layout. {text}{end}")


def _text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def transfer(state: State, pairs: Pairs, shapes: Shapes) -> dict[str, Tensor]:
    """Tensors from the left names to the right names of `pairs`, bit for bit, as float32.

    Args:
        state: by left names.
        pairs: (left names, right names).
        shapes: of the right names.
    """
    new: dict[str, Tensor] = {}
    for left, right in pairs:
        numbers = [state[name].float().flatten() for name in left]
        row = numbers[0] if len(numbers) == 1 else torch.cat(numbers)
        for name, part in zip(right, row.split([math.prod(shapes[name]) for name in right]), strict=True):
            part = part.reshape(shapes[name])
            new[name] = part.clone() if len(right) > 1 else part  # safetensors refuses tensors of one storage
    return new


def reversed_pairs(pairs: Pairs) -> Pairs:
    """The same the other way round."""
    return [(right, left) for left, right in pairs]


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {name: tuple(value.shape) for name, value in state.items()}
