"""Objects of registered classes as plain data, and back: what a model directory and a manifest say of a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unidiff_core.codec.codec import Codec
from unidiff_core.foundation.distributed import class_of
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.registry import PluginError, Registry, name_of
from unidiff_core.modality import Modality
from unidiff_core.network.backbone import Backbone, Ports
from unidiff_core.process.clean_std import CleanStd


class ModelDirectoryError(ValueError):
    """A model directory that cannot be read; says which file, or what in its description, and why."""


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
    if registry.find(name_of(cls)) is not cls:
        raise ValueError(f"{cls.__module__}.{cls.__name__} is not the class registered as {name_of(cls)}")
    names = [name for name in inspect.signature(cls).parameters if name != "ports"]  # ports follow from the modalities
    return {"class": name_of(cls)} | {name: describe(getattr(value, name), registry) for name in names}


def build(config: Any, registry: Registry, *args: Any) -> Any:
    """Plain data → object; only registered names become classes.

    Raises:
        ModelDirectoryError: if an object cannot be made of its data.
        UnknownNameError: if a class is not registered.
    """
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


def describe_codecs(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """Modality → codec as plain data, of the registered ones; an object inside that is not leaves its codec out too."""
    registry, described = load_plugins(), {}
    for name, codec in codecs.items():
        with suppress(ValueError):
            described[name] = describe(codec, registry)
    return described


@dataclass(frozen=True)
class Description:
    """Everything of a model but its weights.

    Attributes:
        modalities: by name.
        backbone: its class and its constructor's arguments, as plain data.
        balance: of the loss.
        licence: that the weights came under.
        sources: where they came from.
        clean_std: full stream name → how far clean estimates are from clean values, as far as it was measured.
        sampling: options of sampling by name, where this model has defaults of its own.
    """

    modalities: dict[str, Modality]
    backbone: dict[str, Any]
    balance: Literal["elements", "streams"] = "elements"
    licence: str | None = None
    sources: tuple[str, ...] = ()
    clean_std: Mapping[str, CleanStd] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def make_backbone(self, ports: Ports, *, is_empty: bool = False) -> Backbone:
        """The network for these ports, freshly initialised.

        Args:
            ports: of the modalities.
            is_empty: leave out memory and numbers of its weights (the meta device): they are assigned next.
        """
        if is_empty:
            with torch.device("meta"):
                backbone: Backbone = build(self.backbone, load_plugins(), ports)
            if backbone.state_dict().keys() >= dict(backbone.named_buffers()).keys():
                return backbone  # else a buffer that no file keeps would stay empty
        backbone = build(self.backbone, load_plugins(), ports)
        return backbone

    @property
    def terms(self) -> str:
        """One line on whose weights these are: the licence, and where they came from; empty if nobody said."""
        if self.licence is None:
            return ""
        return f"weights under {self.licence}" + (f", from {'; '.join(self.sources)}" if self.sources else "")


@dataclass(frozen=True)
class Pretrained:
    """A model as data.

    Attributes:
        description: of all but the weights.
        state: weights by name, ``backbone.…`` and ``processes.<modality>:process.…``.
    """

    description: Description
    state: Mapping[str, Tensor]
