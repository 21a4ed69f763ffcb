"""Model directories: ``config.yaml`` + ``model.safetensors`` (+ ``ema.safetensors``).

The configuration is plain data: registered names, numbers, strings. It is read without interpolation, and no class path
in it is ever imported, so that a directory from a stranger cannot run code. Weights of codecs are paths relative to the
directory, or hub ids that only the user can allow.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unidiff_core.atomic import write_text
from unidiff_core.backbone import Backbone, Ports, modality_of_parameter
from unidiff_core.codec import Codec
from unidiff_core.ema import EMA
from unidiff_core.lora import merged
from unidiff_core.modality import Modality
from unidiff_core.plugin import PluginError, Registry, load_plugins
from unidiff_core.sharding import class_of, gathered
from unidiff_core.system import UniDiffuser

FORMAT = 1
CONFIG, MODEL, AVERAGE = "config.yaml", "model.safetensors", "ema.safetensors"
_LOG = logging.getLogger(__name__)


class ModelDirectoryError(ValueError):
    """A model directory that cannot be read; says which file and why."""


def describe(value: Any, registry: Registry) -> Any:
    """An object of a registered class as plain data, from the attributes named like its constructor's parameters.

    Raises:
        ValueError: if the class, or that of something in it, is not registered.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: describe(item, registry) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item, registry) for item in value]
    cls = class_of(value)
    if registry.find(cls.__name__) is not cls:
        raise ValueError(f"{cls.__module__}.{cls.__name__} is not the class registered as {cls.__name__}")
    names = [name for name in inspect.signature(cls).parameters if name != "ports"]  # ports follow from the modalities
    return {"class": cls.__name__} | {name: describe(getattr(value, name), registry) for name in names}


def describe_codecs(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """Modality → codec as plain data, of the registered ones; an object inside that is not leaves its codec out too."""
    registry, described = load_plugins(), {}
    for name, codec in codecs.items():
        with suppress(ValueError):
            described[name] = describe(codec, registry)
    return described


def build(config: Any, registry: Registry, *args: Any) -> Any:
    """Plain data → object; only registered names become classes."""
    if isinstance(config, list):
        return [build(item, registry) for item in config]
    if not isinstance(config, dict):
        return config
    fields = {key: build(item, registry) for key, item in config.items() if key != "class"}
    if "class" not in config:
        return fields
    try:
        return registry.make(config["class"], *args, **fields)
    except PluginError as error:
        raise ModelDirectoryError(str(error)) from error


def _config_of(model: UniDiffuser, folder: Path, registry: Registry) -> dict[str, Any]:
    modalities = {}
    for name, modality in model.modalities.items():
        codec = describe(modality.codec, registry)
        for field in type(modality.codec).weights:
            if codec[field] is not None and Path(codec[field]).exists():
                codec[field] = os.path.relpath(codec[field], folder)
        process = describe(modality.process, registry)
        modalities[name] = {"codec": codec, "process": process, "weight": modality.weight}
    licence = {"licence": model.licence, "sources": list(model.sources)} if model.licence else {}
    return {
        "format": FORMAT,
        **licence,
        "modalities": modalities,
        "backbone": describe(model.backbone, registry),
        "balance": model.balance,
    }


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial)
    partial.chmod(0o644)  # safetensors leaves it to its owner alone; a cluster shares it
    partial.replace(path)


def save(
    model: UniDiffuser, folder: str | Path, *, average: Mapping[str, Tensor] | None = None, writes: bool = True
) -> None:
    """Write a model directory, file by file beside its target and then renamed, the configuration last.

    Adapters are merged into the weights, so that whoever loads the directory need not know of them. Where parameters
    are sharded over processes, all processes call it and one of them writes.

    Args:
        model: whose registered parts are described, and whose state is stored.
        folder: made if it is not there.
        average: the EMA's parameters by name.
        writes: whether this process is the one that writes.

    Raises:
        ValueError: if a codec, process or backbone is of a class that no plugin registered.
    """
    folder = Path(folder)
    state = gathered(model.state_dict(), keeps=writes)
    averaged = gathered(average or {}, keeps=writes)
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = _config_of(model, folder, load_plugins())
    _write(folder / MODEL, merged(state, model) if model.lora else state)
    if averaged:
        state |= averaged
        _write(folder / AVERAGE, merged(state, model) if model.lora else state)
    write_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelDirectoryError(
            f"{folder} is not a model directory: it has no {CONFIG}. `unidiffuser fit` writes one"
        )
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ModelDirectoryError(f"{path} is not plain YAML: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ModelDirectoryError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    return config


def _codec(config: dict[str, Any], folder: Path, registry: Registry, *, allow_hub: bool) -> Codec:
    cls = registry.find(config["class"], Codec)
    config = dict(config)
    for field in cls.weights:
        name = config.get(field)
        if name is None:
            continue
        if (folder / name).exists():
            config[field] = str(folder / name)
        elif not allow_hub:
            raise ModelDirectoryError(
                f"the {field} of {cls.__name__} is {name!r}, which is not there under {folder}. If it is a hub id that "
                "you trust, allow it: allow_hub=True, or --allow-hub"
            )
    return build(config, registry)


@dataclass(frozen=True)
class Description:
    """What the configuration of a model directory describes: everything of the model but its weights."""

    modalities: dict[str, Modality]
    backbone: Callable[[Ports], Backbone]
    balance: Literal["elements", "streams"]
    licence: str | None = None
    sources: tuple[str, ...] = ()


def read_description(folder: str | Path, *, allow_hub: bool = False) -> Description:
    """The parts of a model that a directory describes.

    Raises:
        ModelDirectoryError: if the configuration is missing or damaged.
        UnknownNameError: if it names a class that no installed plugin registered.
    """
    folder = Path(folder)
    registry = load_plugins()
    config = _read_config(folder)
    modalities = {
        name: Modality(
            _codec(row["codec"], folder, registry, allow_hub=allow_hub), build(row["process"], registry), row["weight"]
        )
        for name, row in config["modalities"].items()
    }
    licence, sources = config.get("licence"), config.get("sources") or []
    if not isinstance(licence, str | None) or not isinstance(sources, list):
        raise ModelDirectoryError(
            f"{folder / CONFIG}: licence is a text and sources a list, not {licence!r}, {sources!r}"
        )
    parts = Description(
        modalities,
        lambda ports: build(config["backbone"], registry, ports),
        config["balance"],
        licence,
        tuple(map(str, sources)),
    )
    if licence:
        # A warning, as it binds whoever passes the weights on, fine-tuned ones too, and is seen without any setting.
        _LOG.warning("%s", f"{folder}: " + " ".join(terms(parts).split()))
    return parts


def load(folder: str | Path, *, weights: Literal["ema", "model"] = "ema", allow_hub: bool = False) -> UniDiffuser:
    """Read a model directory, on the CPU, for sampling or for further training.

    Where it records the licence of its weights, that is logged, and kept with whatever is saved from the model.

    Args:
        folder: the directory.
        weights: the average if there is one, or the model's own.
        allow_hub: whether codecs may fetch weights by hub id.

    Raises:
        ModelDirectoryError: if a file is missing or damaged, or the weights do not fit the configuration.
        UnknownNameError: if the configuration names a class that no installed plugin registered.
    """
    parts = read_description(folder, allow_hub=allow_hub)
    model = UniDiffuser(parts.modalities, parts.backbone, balance=parts.balance)
    model.licence, model.sources = parts.licence, parts.sources
    load_weights(model, Path(folder), weights)
    return model.eval()


def terms(model: UniDiffuser | Description) -> str:
    """One line on whose weights these are: the licence, and where they came from; empty if nobody said."""
    if model.licence is None:
        return ""
    return f"weights under {model.licence}" + (f", from {'; '.join(model.sources)}" if model.sources else "")


def load_weights(
    model: UniDiffuser, folder: Path, weights: Literal["ema", "model"], *, fresh: Iterable[str] = ()
) -> list[str]:
    """Load a directory's weights into a model of the same configuration, or of one with more modalities.

    Args:
        model: to load into.
        folder: a model directory.
        weights: the average if there is one, or the model's own.
        fresh: modalities that the directory lacks: what belongs to them stays as it is.

    Returns:
        The names of the parameters that were loaded.

    Raises:
        ModelDirectoryError: if they cannot be read or do not fit; lists names.
    """
    path = folder / (AVERAGE if weights == "ema" and (folder / AVERAGE).is_file() else MODEL)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelDirectoryError(f"cannot read the weights {path}: {error}") from error
    new = set(fresh)
    own = {name: value for name, value in model.state_dict().items() if modality_of_parameter(name) not in new}
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong or own.keys() != state.keys():
        rows = {"missing": own.keys() - state.keys(), "not known": state.keys() - own.keys(), "of another shape": wrong}
        text = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in rows.items() if names)
        raise ModelDirectoryError(f"the weights {path} do not fit {path.parent / CONFIG}. {text}")
    model.load_state_dict(state, strict=False)
    return list(state)


class ModelDirectory(pl.Callback):
    """Writes the model directory when training ends, and at every validation on the way.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if isinstance(module, UniDiffuser):
            average = next((row.average for row in trainer.callbacks if isinstance(row, EMA)), None)  # type: ignore[attr-defined]
            save(module, self.folder, average=average, writes=trainer.is_global_zero)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what there is, once training has begun."""
        if trainer.state.fn == "fit" and trainer.global_step:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the result."""
        self._save(trainer, pl_module)
