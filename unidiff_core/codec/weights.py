"""Where pretrained weights come from: a local folder, or a hub id that the user wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidiff_core.foundation.stand_in import check_real

HUB = "hf-hub:"
"""What a name must begin with to be fetched from the Hugging Face hub. Without it nothing is ever fetched."""

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<subfolder>[\w./-]+))?")


def locate(name: str, patterns: Sequence[str]) -> Path:
    """The local folder of the weights called `name`.

    Args:
        name: an existing folder, or ``hf-hub:organisation/name`` with an optional ``/subfolder``.
        patterns: the files to fetch if it is a hub id, as globs inside the folder. None of them may be a pickle.

    Raises:
        ValueError: if `name` is neither.
        OSError: if the hub does not answer or has no such repository.
    """
    if name.startswith(HUB):
        return _fetch(name.removeprefix(HUB), patterns)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"no folder of weights {name!r}. Give an existing folder (`unidiffuser fit-codec` makes one), "
            f"or a hub id written as {HUB}organisation/name[/subfolder]"
        )
    return folder


def _fetch(name: str, patterns: Sequence[str]) -> Path:
    """Download the wanted files of a hub repository, or find them in its cache."""
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise ValueError(f"{HUB}{name} is not a hub id; write {HUB}organisation/name[/subfolder]")
    from huggingface_hub import snapshot_download

    subfolder = match["subfolder"] or ""
    prefix = f"{subfolder}/" if subfolder else ""
    try:
        root = snapshot_download(match["repository"], allow_patterns=[prefix + pattern for pattern in patterns])
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        raise OSError(f"cannot fetch {HUB}{name}: {error}. Check the name and the network, or give a folder") from error
    return Path(root, subfolder)


def require(folder: Path, *names: str) -> None:
    """Check that a folder of weights holds the files called `names`, and that none is a stand-in for the real one.

    Raises:
        ValueError: naming what is absent, or saying what lies in its place.
    """
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {' and '.join(absent)}; only config + safetensors are read, never a pickle")
    for name in names:
        check_real(folder / name)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: if it is not one; names the file.
    """
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not a JSON object")
    return config
