"""Plugins: one hook, found through entry points, each loaded in isolation."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from unidiff_core.foundation.error import reason, sentence
from unidiff_core.foundation.registry import PluginError, Registry

PROJECT = "unidiff"
"""Name of the entry-point group, and of the pluggy project."""

_DISABLED = "UNIDIFF_DISABLED_PLUGINS"
_CULPRIT = "unidiff_culprit"

API = 1
"""Version of what plugins build on: the hook, the registry, and the classes that they subclass.

A plugin may state the version that it was written for in its module: ``requires_api = 1``.
"""

_OWN = EntryPoint("unidiff_core", "unidiff_core.builtin", PROJECT)
"""Core's own classes come the same way as anyone's: no room below needs to know the rooms above."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Specs:
    """The hooks a plugin may implement."""

    @hookspec
    def unidiff_register(self, registry: Registry) -> None:
        """Register classes: ``registry.add(MyCodec)``."""


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
    if known := getattr(error, _CULPRIT, None):
        return str(known)
    packages = {
        point.module.partition(".")[0]: point.dist.name
        for point in entry_points(group=PROJECT)
        if point.dist and point.dist.name != Registry.distribution
    }
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((packages[top] for name in reversed(frames) if (top := name.partition(".")[0]) in packages), None)


def remember_culprit(error: BaseException, distribution: str | None = None) -> None:
    """Keep with an exception what `culprit` says of it, for a process that gets it without its traceback."""
    setattr(error, _CULPRIT, distribution or culprit(error))


def load_plugins(find: Callable[[], list[EntryPoint]] | None = None) -> Registry:
    """Load every installed plugin and return what they registered.

    A plugin that fails is named in `Registry.failures` and leaves nothing behind; the others load. The environment
    variable ``UNIDIFF_DISABLED_PLUGINS`` holds a comma-separated list of entry-point names to skip.

    Args:
        find: gives the entry points; those of the installed distributions by default.
    """
    if find is None:
        known = _installed(os.environ.get(_DISABLED, ""), tuple(sys.path))
        return Registry(registrations=dict(known.registrations), failures=list(known.failures))
    return _load(find(), os.environ.get(_DISABLED, ""))


@cache
def _installed(disabled: str, path: tuple[str, ...]) -> Registry:
    """What the installed distributions register; found once, as long as what decides on it stays the same."""
    return _load(list(entry_points(group=PROJECT)), disabled)


def _load(points: list[EntryPoint], disabled: str) -> Registry:
    registry = Registry()
    _register_plugin(_OWN, registry)
    skipped = {name.strip() for name in disabled.split(",")}
    for point in sorted(points, key=lambda point: point.name):
        if point.name in skipped:
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
