"""Model directories: ``config.yaml``, ``model.safetensors``, ``README.md`` (``ema.safetensors``, ``clean_std.yaml``).

The configuration is plain data: registered names, numbers, strings. It is read without interpolation, and no class path
in it is ever imported, so that a directory from a stranger cannot run code. Weights of codecs are paths relative to the
directory, or hub ids that only the user can allow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unidiff_core.codec.codec import Codec
from unidiff_core.foundation.atomic import beside, write_text
from unidiff_core.foundation.error import reason
from unidiff_core.foundation.finite import non_finite
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.registry import Registry
from unidiff_core.foundation.stand_in import check_real
from unidiff_core.modality import Modality
from unidiff_core.network.backbone import Backbone, modality_of_parameter
from unidiff_core.process.clean_std import CleanStd
from unidiff_core.process.process import ForwardProcess
from unidiff_core.serialization.card import write_card
from unidiff_core.serialization.description import Description, ModelDirectoryError, Pretrained, build, describe

FORMAT = 1
CONFIG, MODEL, AVERAGE = "config.yaml", "model.safetensors", "ema.safetensors"
CLEAN_STD = "clean_std.yaml"
FILES = CONFIG, MODEL, AVERAGE, CLEAN_STD
SUMS = "sha256"
"""The note in a file of weights, or beside them: SHA-256 of its content, and of what in `CONFIG` says what it means.

One note, as safetensors writes several in any order, and what is written twice is to be the same file.
"""
NOTES = ("licence", "sources", "training", "sampling")
"""What in `CONFIG` changes nothing of what weights mean."""
LONGEST, MOST_VALUES, DEEPEST = 2**22, 100_000, 50
"""Bytes, values and levels of a configuration that is read."""
_LOG = logging.getLogger(__name__)


def _config_of(description: Description, folder: Path, registry: Registry) -> dict[str, Any]:
    modalities = {}
    for name, modality in description.modalities.items():
        codec = describe(modality.codec, registry)
        for field in type(modality.codec).weights:
            if codec[field] is not None and (path := Path(codec[field]).expanduser()).exists():
                codec[field] = _relative(path, folder)
        process = describe(modality.process, registry)
        modalities[name] = {"codec": codec, "process": process, "weight": modality.weight}
    licence = {"licence": description.licence, "sources": list(description.sources)} if description.licence else {}
    return {
        "format": FORMAT,
        **licence,
        "modalities": modalities,
        "backbone": description.backbone,
        "balance": description.balance,
        **({"sampling": dict(description.sampling)} if description.sampling else {}),
    }


def _relative(path: Path, folder: Path) -> str:
    """A path that leads from a folder to another, whatever links lead to either; a link at its end stays one."""
    return os.path.relpath(path.parent.resolve() / path.name, folder.resolve())


def _write(path: Path, tensors: Mapping[str, Tensor], meaning: str) -> None:
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with beside(path) as partial:
        try:
            save_file(whole, partial, {SUMS: f"{_hash(whole)} {meaning}"})
        except SafetensorError as error:  # of a disk that refuses it says so in its text alone
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
            raise
        partial.chmod(0o644)  # safetensors leaves it to its owner alone; a cluster shares it


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _meaning(config: Mapping[str, Any], registry: Registry) -> str:
    """SHA-256 of a configuration, but for where codecs' weights lie, how they decode, and what is in `NOTES`."""
    kept = {key: value for key, value in config.items() if key not in NOTES}
    kept["modalities"] = {}
    for name, row in config["modalities"].items():
        cls = registry.find(row["codec"]["class"], Codec)
        codec = {key: value for key, value in row["codec"].items() if key not in cls.weights + cls.decoding}
        kept["modalities"][name] = {**row, "codec": codec}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def save(
    folder: str | Path,
    description: Description,
    state: Mapping[str, Tensor],
    *,
    average: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model directory, file by file beside its target and then renamed, the configuration last.

    An average, or a measured `clean_std`, that was there goes if none is given: it is of other weights.

    Args:
        folder: made if it is not there.
        description: of the model, whose parts are of registered classes.
        state: its weights by name.
        average: those of the EMA: all names again.
        training: what the weights are of, as plain data: ``step`` and ``checkpoint``.
        overwrite: whether it may take the place of a model that is there.

    Raises:
        ValueError: if there is a model, or a configuration of something else, or if a codec, process or backbone is of
            a class that no plugin registered.
    """
    folder = Path(folder).expanduser()
    check_target(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    registry = load_plugins()
    config = _config_of(description, folder, registry) | ({"training": dict(training)} if training else {})
    text = yaml.safe_dump(config, sort_keys=False)
    meaning = _meaning(yaml.safe_load(text), registry)
    if not average:
        (folder / AVERAGE).unlink(missing_ok=True)
    table = _clean_std_text(description.clean_std, meaning) if description.clean_std else ""
    if not _is_text(folder / CLEAN_STD, table):  # else it stays, whenever this is killed
        (folder / CLEAN_STD).unlink(missing_ok=True)
    _write(folder / MODEL, state, meaning)
    if average:
        _write(folder / AVERAGE, average, meaning)
    if table:
        write_text(folder / CLEAN_STD, table)
    write_text(folder / CONFIG, text)
    write_card(folder, description)  # without what was measured of earlier weights


def check_target(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse to write a model directory where something else, or another model, would be lost.

    Raises:
        ValueError: if the folder's configuration is no model's, or there is a model and it may not be replaced.
    """
    path = Path(folder).expanduser() / CONFIG
    if not path.exists():
        return
    try:
        is_own = "format" in _read_yaml(path)
    except (OSError, TypeError, ValueError):
        is_own = False
    if not is_own:
        raise ValueError(f"{path} is not a model's; a model directory is not written over it: give another folder")
    if not overwrite:
        raise ValueError(
            f"{path.parent} holds a model already, whose weights, average and measurements would be lost; give another "
            "folder, or overwrite=True"
        )


def _is_text(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, UnicodeDecodeError):
        return False


def _clean_std_text(tables: Mapping[str, CleanStd], meaning: str) -> str:
    rows = {key: [[round(t, 2), round(value, 6)] for t, value in table.points] for key, table in tables.items()}
    return "# stream: [time in steps 0..1000, root mean squared error of the clean estimate]\n" + yaml.safe_dump(
        {SUMS: f"{_hash_of_rows(rows)} {meaning}", **rows}, default_flow_style=None, sort_keys=False
    )


def _hash_of_rows(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _read_clean_std(path: Path, meaning: str | None = None) -> dict[str, CleanStd]:
    """What was measured, and the directory's `meaning` as it was measured with; older files do not say."""
    if not path.is_file():
        return {}
    try:
        rows = _read_yaml(path)
        if (SUMS in rows and rows[SUMS] is None) or rows.keys() <= {SUMS}:
            raise ValueError("it is cut off")  # an older file has no sum, but it has rows
        note = rows.pop(SUMS, None)
        if note is not None and note.partition(" ")[0] != _hash_of_rows(rows):
            raise ValueError("they are not those that its SHA-256 is of")
        tables = {str(key): CleanStd([(float(t), float(value)) for t, value in row]) for key, row in rows.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ModelDirectoryError(
            f"{path} does not hold pairs of time and error by stream: {error}. Bring it back from a copy, or remove "
            "it: `fit` measures it anew, and the solver analytic alone needs it"
        ) from error
    if note is not None and meaning is not None and note.partition(" ")[2] != meaning:
        raise ModelDirectoryError(f"{path} was measured with another {CONFIG}; remove it, or change that back")
    return tables


def step_of(folder: str | Path) -> int:
    """The training step that a directory's weights are of; −1 if there is no directory, or it does not say."""
    try:
        step = read_config(Path(folder))["training"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return -1
    return step if isinstance(step, int) else -1


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model directory, as plain data.

    Raises:
        ModelDirectoryError: if it is missing or damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelDirectoryError(_why_none(folder))
    config = _read_yaml(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ModelDirectoryError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    if lacking := list(_lacking(config)):
        raise ModelDirectoryError(f"{path} is cut off or damaged: it lacks {', '.join(lacking)}")
    return config


def _why_none(folder: Path) -> str:
    """What is at a path that is no model directory, and what to give in its place."""
    if not folder.exists():
        what = f"there is no folder {folder}"
    else:
        what = f"{folder} is {f'a folder without {CONFIG}' if folder.is_dir() else 'a file'}, not a model directory"
    if model := next((parent for parent in folder.parents if (parent / MODEL).is_file()), None):
        return f"{what}; give the model directory that it is in, {model}"
    others = sorted(row.parent for row in (folder if folder.is_dir() else folder.parent).glob(f"*/{MODEL}"))
    there = f"; there is {' and '.join(map(str, others[:3]))}" if others else ""
    return f"{what}{there}. `unidiffuser fit` writes model directories"


def _lacking(config: Mapping[str, Any]) -> Iterator[str]:
    """What a configuration must have and has not, or has as something else than a mapping."""
    yield from (key for key in ("modalities", "backbone", "balance") if not config.get(key))
    modalities = config.get("modalities")
    if not isinstance(modalities, dict):
        return
    for name, row in modalities.items():
        keys = [key for key in ("codec", "process", "weight") if not isinstance(row, dict) or row.get(key) is None]
        yield from (f"the {key} of {name}" for key in keys)
        if not keys and not (isinstance(row["codec"], dict) and "class" in row["codec"]):
            yield f"the class of {name}'s codec"


def _read_yaml(path: Path) -> Any:
    """Plain data from a stranger's file, of bounded size.

    Raises:
        ModelDirectoryError: if it is no plain YAML, or too large.
    """
    if path.stat().st_size > LONGEST:
        raise ModelDirectoryError(f"{path} has {path.stat().st_size} bytes, and {LONGEST} are read at most")
    try:
        text = path.read_text()
        _check_depth(text)
        config = yaml.safe_load(text)
        _check_size(config)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"{path} is not plain YAML: {error}") from error
    return config


def _check_depth(text: str) -> None:
    """Refuse YAML of many levels before its tree is built.

    Raises:
        ValueError: if it has them.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} levels")


def _check_size(config: Any) -> None:
    """Refuse a tree that is deep or large once every alias is written out.

    Raises:
        ValueError: if it is.
    """
    left = MOST_VALUES
    rest = [(config, 0)]
    while rest:
        value, depth = rest.pop()
        left -= 1
        if not left or depth > DEEPEST:
            raise ValueError(f"it has more than {MOST_VALUES} values, aliases written out, or {DEEPEST} levels")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        rest += [(item, depth + 1) for item in inner]


def is_model_directory(folder: str | Path) -> bool:
    """Whether a folder's configuration is one that `save` writes."""
    try:
        read_config(Path(folder))
    except (ModelDirectoryError, OSError, UnicodeDecodeError):
        return False
    return True


def _codec(config: dict[str, Any], folder: Path, registry: Registry, *, allow_hub: bool) -> Codec:
    cls = registry.find(config["class"], Codec)
    config = dict(config)
    for field in cls.weights:
        name = config.get(field)
        if name is None:
            continue
        if not isinstance(name, str):
            raise ModelDirectoryError(f"the {field} of {cls.__name__} is a path or a hub id, not {name!r}")
        if (folder / name).exists():
            config[field] = str(folder / name)
        elif not allow_hub:
            raise ModelDirectoryError(
                f"the {field} of {cls.__name__} is {name!r}, which is not there under {folder}. If it is a hub id that "
                "you trust, allow it: allow_hub=True, or --allow_hub"
            )
    return build(config, registry)


def read_description(folder: str | Path, *, allow_hub: bool = False) -> Description:
    """The parts of a model that a directory describes.

    Raises:
        ModelDirectoryError: if the configuration is missing or damaged.
        UnknownNameError: if it names a class that no installed plugin registered.
    """
    folder = Path(folder).expanduser()
    registry = load_plugins()
    config = read_config(folder)
    try:
        modalities = {
            name: _modality(row, folder, registry, allow_hub=allow_hub) for name, row in config["modalities"].items()
        }
        backbone, balance = dict(config["backbone"]), config["balance"]
        registry.find(backbone["class"], Backbone)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelDirectoryError(f"{folder / CONFIG} does not describe a model: {reason(error)}") from error
    licence, sources = config.get("licence"), config.get("sources") or []
    if not isinstance(licence, str | None) or not isinstance(sources, list):
        raise ModelDirectoryError(
            f"{folder / CONFIG}: licence is a text and sources a list, not {licence!r}, {sources!r}"
        )
    sampling = config.get("sampling") or {}
    if not isinstance(sampling, dict) or not all(isinstance(name, str) for name in sampling):
        raise ModelDirectoryError(f"{folder / CONFIG}: sampling is a mapping of options by name, not {sampling!r}")
    description = Description(
        modalities,
        backbone,
        balance,
        licence,
        tuple(map(str, sources)),
        _read_clean_std(folder / CLEAN_STD, _meaning(config, registry)),
        sampling,
    )
    if licence:
        # A warning, as it binds whoever passes the weights on, fine-tuned ones too, and is seen without any setting.
        _LOG.warning("%s", f"{folder}: " + " ".join(description.terms.split()))
    return description


def _modality(row: Mapping[str, Any], folder: Path, registry: Registry, *, allow_hub: bool) -> Modality:
    codec = _codec(row["codec"], folder, registry, allow_hub=allow_hub)
    registry.find(row["process"]["class"], ForwardProcess)
    return Modality(codec, build(row["process"], registry), row["weight"])


def load(folder: str | Path, *, weights: Literal["ema", "model"] = "ema", allow_hub: bool = False) -> Pretrained:
    """A model as data: its description, and its average if there is one, or its own weights.

    Raises:
        ModelDirectoryError: if a file is missing or damaged.
    """
    path = _weights_path(folder, weights)
    pretrained = Pretrained(read_description(folder, allow_hub=allow_hub), _read_weights(path))
    _check_meaning(path)
    return pretrained


def _weights_path(folder: str | Path, weights: Literal["ema", "model"]) -> Path:
    if weights not in ("ema", "model"):
        raise ValueError(f"weights are 'ema', the average, or 'model', the last ones, not {weights!r}")
    folder = Path(folder).expanduser()
    average = folder / AVERAGE
    return average if weights == "ema" and average.is_file() else folder / MODEL


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        check_real(path)
        state = load_file(path)
        wanted = _sums(path)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelDirectoryError(f"cannot read the weights {path}: {error}") from error
    if wanted and wanted[0] != (found := _hash(state)):
        raise ModelDirectoryError(
            f"the weights {path} are damaged: their SHA-256 is {found}, not {wanted[0]}; bring them back from a "
            "copy, or call `fit` again, which writes them from its last checkpoint"
        )
    if name := non_finite(state):
        raise ModelDirectoryError(f"the weights {path} are not finite, {name} for one; train or copy them again")
    return state


def _sums(path: Path) -> tuple[str, str] | None:
    """SHA-256 of a file's tensors and of their configuration, as it notes them; None if it does not."""
    with safe_open(path, "pt") as file:
        note = (file.metadata() or {}).get(SUMS)
    if note is None:
        return None
    of_tensors, _, of_configuration = note.partition(" ")
    return of_tensors, of_configuration


def _check_meaning(path: Path) -> None:
    """Compare a directory's configuration with that which its weights were written with; older ones do not say."""
    wanted = _sums(path)
    if wanted and wanted[1] != _meaning(read_config(path.parent), load_plugins()):
        raise ModelDirectoryError(
            f"the weights {path} were written with another {CONFIG}: it was changed since, or writing was "
            "interrupted. Change it back, or call `fit` again"
        )


def load_weights(
    module: nn.Module, folder: str | Path, weights: Literal["ema", "model"], *, fresh: Iterable[str] = ()
) -> list[str]:
    """Load a directory's weights into a model of the same configuration, or of one with more modalities.

    Args:
        module: to load into; what it has no memory for is not copied but assigned, and read when it is first needed.
        folder: a model directory.
        weights: the average if there is one, or the model's own.
        fresh: modalities that the directory lacks: what belongs to them stays as it is.

    Returns:
        The names of the parameters that were loaded.

    Raises:
        ModelDirectoryError: if they cannot be read or do not fit; lists names.
    """
    path = _weights_path(folder, weights)
    state = _read_weights(path)
    new = set(fresh)
    own = {name: value for name, value in module.state_dict().items() if modality_of_parameter(name) not in new}
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong or own.keys() != state.keys():
        rows = {"missing": own.keys() - state.keys(), "not known": state.keys() - own.keys(), "of another shape": wrong}
        text = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in rows.items() if names)
        raise ModelDirectoryError(f"the weights {path} do not fit {path.parent / CONFIG}. {text}")
    _check_meaning(path)
    empty = {name: state.pop(name).to(value.dtype) for name, value in own.items() if value.is_meta}
    module.load_state_dict(empty, strict=False, assign=True)
    module.load_state_dict(state, strict=False)
    return list(own)
