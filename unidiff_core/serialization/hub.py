"""Model directories as repositories of the Hugging Face hub: fetched, and laid out to be uploaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from unidiff_core.codec.codec import Codec
from unidiff_core.codec.weights import HUB, locate
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.serialization.card import CARD, MARK, SAMPLES, write_card
from unidiff_core.serialization.description import ModelDirectoryError
from unidiff_core.serialization.model_directory import AVERAGE, CLEAN_STD, CONFIG, MODEL, read_config, read_description

PATTERNS = ("*.yaml", "*.safetensors", "*.json", "*.txt")
"""What is fetched: configurations, weights, tokenizers. Never a pickle, never code."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def located(folder: str | Path, *, allow_hub: bool) -> Path:
    """A model directory on this machine, fetched if it is a repository's name and that is allowed.

    Args:
        folder: a folder, or ``user/name`` or ``hf-hub:user/name`` on the hub; a folder of that name comes first.
        allow_hub: whether it may be fetched.

    Raises:
        ModelDirectoryError: if there is no such folder, and it may not, or cannot, be fetched.
    """
    path, name = Path(folder).expanduser(), str(folder).removeprefix(HUB)
    if path.exists() or not _REPOSITORY.fullmatch(name):
        return path
    if not allow_hub:
        raise ModelDirectoryError(
            f"there is no folder {folder}. If it is a repository of the Hugging Face hub that you trust, allow it: "
            "allow_hub=True, or --allow_hub"
        )
    try:
        return locate(HUB + name, PATTERNS)
    except OSError as error:
        raise ModelDirectoryError(str(error)) from error


def push(
    folder: Path, name: str, *, private: bool = False, datasets: Sequence[str] = (), allow_outside: bool = False
) -> str:
    """Upload a model directory.

    Args:
        folder: the model directory.
        name: of the repository, ``user/name``; it is made if it is not there.
        private: whether it is then its owner's alone.
        datasets: hub ids of what the model was trained on.
        allow_outside: whether weights of codecs that lie outside of the directory are uploaded too.

    Returns:
        Where it is now.

    Raises:
        ModelDirectoryError: if it is no model directory, or the hub refuses it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with repository(folder, name, datasets, allow_outside=allow_outside) as files:
        try:
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=files, commit_message="unidiffuser push")
        except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
            raise ModelDirectoryError(
                f"the hub does not take {folder} as {name}: {error}. Is the token one that may write "
                "(`hf auth whoami`, `hf auth login`), and the name yours?"
            ) from error
    return f"{api.endpoint}/{name}"


@contextmanager
def repository(folder: Path, name: str, datasets: Sequence[str] = (), *, allow_outside: bool = False) -> Iterator[Path]:
    """What of a model directory belongs into a repository, in a temporary folder.

    That is its configuration, weights and card, and the folders of its codecs' weights, wherever they lie: they are
    put under ``codecs/``, and the configuration leads there. Hub ids stay as they are. Checkpoints, logs and data stay
    at home.

    Args:
        folder: the model directory.
        name: of the repository.
        datasets: hub ids, for the card.
        allow_outside: whether files may come from elsewhere. A directory of somebody else could name any folder of this
            machine, and what is uploaded is read by others.

    Raises:
        ModelDirectoryError: if it is no model directory, the name is none of a repository, or a codec's weights are not
            there, or lie elsewhere and may not.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ModelDirectoryError(f"{name!r} is no name of a repository; write user/name")
    config = read_config(folder)
    with TemporaryDirectory() as temporary:
        target = Path(temporary)
        for row in (MODEL, AVERAGE, CLEAN_STD, CARD):
            if (folder / row).is_file():
                shutil.copyfile(folder / row, target / row)
        if (folder / SAMPLES).is_dir():
            shutil.copytree(folder / SAMPLES, target / SAMPLES)
        moved: dict[Path, str] = {}
        for row in config["modalities"].values():
            _move(row["codec"], folder, target, moved, allow_outside)
        _rename(target / CARD, folder, name, datasets)
        (target / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        yield target


def _rename(card: Path, folder: Path, name: str, datasets: Sequence[str]) -> None:
    """Let a card that we wrote name the repository, and the data sets."""
    if not card.is_file():
        write_card(card.parent, read_description(folder, allow_hub=True), name=name, datasets=datasets)
        return
    text = card.read_text(encoding="utf-8")
    if text.rstrip().endswith(MARK):
        head, body = text.split("\n---\n", 1)
        if datasets:
            head += f"\ndatasets: {json.dumps(list(datasets))}"
        own = folder.resolve().name
        body = body.replace(f"# {own}\n", f"# {name}\n", 1).replace(
            f'from_pretrained("{own}"', f'from_pretrained("{name}"'
        )
        card.write_text(f"{head}\n---\n{body}", encoding="utf-8")


def _move(codec: dict[str, Any], folder: Path, target: Path, moved: dict[Path, str], allow_outside: bool) -> None:
    """Copy the folders that a codec's description names, and let it name the copies."""
    fields = load_plugins().find(codec["class"], Codec).weights
    for field in fields:
        name = codec.get(field)
        if name is None or name.startswith(HUB):
            continue
        source = (folder / name).resolve()
        if not source.is_dir():
            raise ModelDirectoryError(f"the {field} of {codec['class']} is {name!r}, and there is no such folder")
        if source not in moved:
            moved[source] = f"codecs/{source.name}" + f"_{len(moved)}" * (f"codecs/{source.name}" in moved.values())
            for path in sorted(row for pattern in PATTERNS for row in source.glob(pattern)):
                _check_inside(path, folder, allow_outside)
                (target / moved[source]).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / moved[source] / path.name)
        codec[field] = moved[source]


def _check_inside(path: Path, folder: Path, allow_outside: bool) -> None:
    if not allow_outside and not path.resolve().is_relative_to(folder.resolve()):
        raise ModelDirectoryError(
            f"{path} lies outside of {folder}, and what is uploaded is read by others. Look at it, and allow it: "
            "allow_outside=True, or --allow_outside"
        )
