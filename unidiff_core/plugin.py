"""Plugins: one hook, found through entry points, each loaded in isolation."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

PROJECT = "unidiff"
"""Name of the entry-point group, and of the pluggy project."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

C = TypeVar("C", bound=type)


class UnknownNameError(ValueError):
    """A name that no loaded plugin registered."""


class Specs:
    """The hooks a plugin may implement."""

    @hookspec
    def unidiff_register(self, registry: Registry) -> None:
        """Register classes: ``registry.add(MyCodec)``."""


@dataclass(frozen=True)
class Registration:
    """One registered class and the distribution it came from."""

    cls: type
    distribution: str


@dataclass
class Registry:
    """Registered classes by name. A class's short name is its own name."""

    distribution: str = "unidiff-core"
    registrations: dict[str, Registration] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """A sentence for each plugin that did not load, with its distribution's name."""

    def add(self, cls: C) -> C:
        """Register a class under its name; returns it, so that it serves as a decorator.

        Raises:
            ValueError: if the name is taken; names both distributions.
        """
        if not inspect.isclass(cls) or inspect.isabstract(cls):
            raise ValueError(f"{cls!r} is not a concrete class; register the class itself, with every method written")
        known = self.registrations.get(cls.__name__)
        if known and known.cls is not cls:
            raise ValueError(
                f"{cls.__name__} of {self.distribution} is already registered by {known.distribution}; rename one"
            )
        self.registrations[cls.__name__] = Registration(cls, self.distribution)
        return cls

    def find(self, name: str, kind: type = object) -> Any:
        """The class registered under `name`.

        Raises:
            UnknownNameError: if there is none of that kind; lists what is known.
        """
        found = self.registrations.get(name)
        if found is None or not issubclass(found.cls, kind):
            known = ", ".join(sorted(self.of_kind(kind))) or "none"
            hints = "".join(f" {failure}" for failure in self.failures)
            raise UnknownNameError(f"unknown {kind.__name__.lower()} {name!r}; registered: {known}.{hints}")
        return found.cls

    def of_kind(self, kind: type) -> dict[str, Registration]:
        """Name → registration, of the subclasses of `kind`."""
        return {name: row for name, row in self.registrations.items() if issubclass(row.cls, kind)}

    def merge(self, other: Registry) -> None:
        """Take over the registrations of another registry, all or none."""
        for name, row in other.registrations.items():
            known = self.registrations.get(name)
            if known and known.cls is not row.cls:
                raise ValueError(
                    f"{name} of {row.distribution} is already registered by {known.distribution}; rename one"
                )
        self.registrations.update(other.registrations)


def _register_core(registry: Registry) -> None:
    from unidiff_core.law import Atoms, Uniform
    from unidiff_core.process import Gaussian
    from unidiff_core.schedule import Flow, ScaledLinear
    from unidiff_core.uvit import UViT

    for cls in (Flow, ScaledLinear, Gaussian, Uniform, Atoms, UViT):
        registry.add(cls)


def _register_plugin(point: EntryPoint, registry: Registry) -> None:
    """Import one plugin and let it register, in a pluggy manager of its own."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Specs)
    plugin = point.load()
    manager.register(plugin, name=point.name)
    manager.check_pending()
    manager.hook.unidiff_register(registry=registry)
    if not registry.registrations:
        raise ValueError("it registered nothing; is `unidiff_register` decorated with @hookimpl?")


def load_plugins(find: Callable[[], list[EntryPoint]] | None = None) -> Registry:
    """Load every installed plugin and return what they registered.

    A plugin that fails is named in `Registry.failures` and leaves nothing behind; the others load. The environment
    variable ``UNIDIFF_DISABLED_PLUGINS`` holds a comma-separated list of entry-point names to skip.

    Args:
        find: gives the entry points; those of the installed distributions by default.
    """
    registry = Registry()
    _register_core(registry)
    disabled = {name.strip() for name in os.environ.get("UNIDIFF_DISABLED_PLUGINS", "").split(",")}
    points = find() if find else list(entry_points(group=PROJECT))
    for point in sorted(points, key=lambda point: point.name):
        if point.name in disabled:
            continue
        distribution = point.dist.name if point.dist else point.name
        scratch = Registry(distribution)
        try:
            _register_plugin(point, scratch)
            registry.merge(scratch)
        except Exception as error:  # whatever a stranger's code raises must not take the program down
            registry.failures.append(f"Plugin {point.name!r} of {distribution} did not load: {error!r}.")
    return registry
