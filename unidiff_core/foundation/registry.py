"""The registry: classes by name, and which distribution each came from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, TypeVar

from unidiff_core.foundation.error import meant, reason

C = TypeVar("C", bound=type)


class UnknownNameError(ValueError):
    """A name that no loaded plugin registered."""


class PluginError(ValueError):
    """A plugin that does not do what it should; says which, and what to change."""


@dataclass(frozen=True)
class Registration:
    """One registered class and the distribution it came from."""

    cls: type
    distribution: str


@dataclass
class Registry:
    """Registered classes by name: a class's own, unless it says another in `registered_name` (``ddim``, a solver)."""

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
        name = name_of(cls)
        known = self.registrations.get(name)
        if known and known.cls is not cls:
            raise PluginError(
                f"{name} of {self.distribution} is already registered by {known.distribution}; rename one"
            )
        self.registrations[name] = Registration(cls, self.distribution)
        return cls

    def find(self, name: str, kind: type = object) -> Any:
        """The class registered under `name`.

        Raises:
            UnknownNameError: if there is none of that kind; lists what is known.
        """
        found = self.registrations.get(name) if isinstance(name, str) else None
        if found is None or not issubclass(found.cls, kind):
            known = sorted(self.of_kind(kind))
            hints = "".join(f" {failure}" for failure in self.failures)
            rest = meant(str(name), known, then=f"registered: {', '.join(known) or 'none'}.{hints}")
            raise UnknownNameError(f"unknown {kind.__name__.lower()} {name!r}{rest}")
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


def name_of(cls: type) -> str:
    """The name that a class is registered under."""
    return str(getattr(cls, "registered_name", cls.__name__))
