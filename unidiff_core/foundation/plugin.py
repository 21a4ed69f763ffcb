"""Plugins: one hook, found through entry points, each loaded in isolation."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

PROJECT = "unidiff"
"""Name of the entry-point group, and of the pluggy project."""

API = 1
"""Version of what plugins build on: the hook, the registry, and the classes that they subclass.

A plugin may state the version that it was written for in its module: ``requires_api = 1``.
"""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

C = TypeVar("C", bound=type)


class UnknownNameError(ValueError):
    """A name that no loaded plugin registered."""


class PluginError(ValueError):
    """A plugin that does not do what it should; says which, and what to change."""


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
            PluginError: if it is not a concrete class, or the name is taken; names both distributions.
        """
        if not inspect.isclass(cls) or inspect.isabstract(cls):
            raise PluginError(f"{cls!r} is not a concrete class; register the class itself, with every method written")
        known = self.registrations.get(cls.__name__)
        if known and known.cls is not cls:
            raise PluginError(
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

    def make(self, name: str, *args: Any, **fields: Any) -> Any:
        """An object of the class registered under `name`.

        Raises:
            UnknownNameError: if there is none.
            PluginError: if its constructor raises; names class and distribution.
        """
        cls = self.find(name)
        try:
            return cls(*args, **fields)
        except Exception as error:  # of a stranger's constructor
            given = ", ".join(fields) or "its defaults"
            source = self.registrations[name].distribution
            raise PluginError(f"{name} of {source} cannot be made from {given}: {reason(error)}") from error

    def of_kind(self, kind: type) -> dict[str, Registration]:
        """Name → registration, of the subclasses of `kind`."""
        return {name: row for name, row in self.registrations.items() if issubclass(row.cls, kind)}

    def merge(self, other: Registry) -> None:
        """Take over the registrations of another registry, all or none."""
        for name, row in other.registrations.items():
            known = self.registrations.get(name)
            if known and known.cls is not row.cls:
                raise PluginError(
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
    _check_api(plugin, registry.distribution)
    try:
        manager.register(plugin, name=point.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_broken_hook(plugin, error)) from error
    manager.hook.unidiff_register(registry=registry)
    if not registry.registrations:
        raise PluginError("it registered nothing; is `unidiff_register` decorated with @hookimpl?")


def _check_api(plugin: Any, distribution: str) -> None:
    required = getattr(plugin, "requires_api", API)
    if required != API:
        is_newer = isinstance(required, int) and required > API
        older = "unidiff-core" if is_newer else distribution
        raise PluginError(f"it requires plugin API {required!r}, and unidiff-core has {API}; upgrade {older}")


def _broken_hook(plugin: Any, error: Exception) -> str:
    """What is wrong with the hooks of a plugin that pluggy refuses."""
    hooks = {name: hook for name, hook in vars(plugin).items() if hasattr(hook, f"{PROJECT}_impl")}
    if unknown := ", ".join(sorted(hooks.keys() - vars(Specs).keys())):
        return f"it implements {unknown}, which is no hook; the hook is called `unidiff_register`"
    if "unidiff_register" in hooks:
        signature = inspect.signature(hooks["unidiff_register"])
        return f"its hook takes {signature}; write `def unidiff_register(registry)`"
    return " ".join(str(error).split())


def reason(error: BaseException) -> str:
    """An exception in a few words: its message, and its type unless it is a ValueError, which is written for users."""
    kind, text = type(error).__name__, str(error)
    return text if text and isinstance(error, ValueError) else f"{kind}: {text}" if text else kind


def sentence(text: str) -> str:
    """A text with the one stop that it ends with."""
    text = text.strip().rstrip(".")
    return text if text.endswith("?") else f"{text}."


def distribution_of(cls: type) -> str:
    """The distribution that registered a class; the module it is from if none did."""
    for row in load_plugins().registrations.values():
        if row.cls is cls:
            return row.distribution
    return f"module {cls.__module__}"


def culprit(error: BaseException) -> str | None:
    """The distribution of the plugin in whose code an exception was raised, or that called what raised it.

    None if it passed through no plugin's code but the shipped codecs'.
    """
    packages = {
        point.module.partition(".")[0]: point.dist.name
        for point in entry_points(group=PROJECT)
        if point.dist and point.dist.name != Registry.distribution
    }
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((packages[top] for name in reversed(frames) if (top := name.partition(".")[0]) in packages), None)


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
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a stranger's code raises, SystemExit too, others must still load
            registry.failures.append(sentence(f"Plugin {point.name!r} of {distribution} did not load: {reason(error)}"))
    return registry
