from __future__ import annotations

from types import SimpleNamespace

import pytest

from unidiff_core import Codec, hookimpl
from unidiff_core.plugin import Registry, UnknownNameError, load_plugins


class Point:
    """An entry point of a distribution."""

    def __init__(self, name, plugin, distribution):
        self.name, self.plugin, self.dist = name, plugin, SimpleNamespace(name=distribution)

    def load(self):
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


class Plain:
    pass


class Other:
    pass


def plugin(register):
    return SimpleNamespace(unidiff_register=hookimpl(register))


GOOD = plugin(lambda registry: registry.add(Plain))
MISSPELT = SimpleNamespace(unidiff_registre=hookimpl(lambda registry: None))
UNDECORATED = SimpleNamespace(unidiff_register=lambda registry: registry.add(Plain))
WRONG_ARGUMENTS = plugin(lambda registery: None)
SILENT = plugin(lambda registry: None)
DUPLICATE = plugin(lambda registry: registry.add(type("Gaussian", (), {})))


def half(registry):
    registry.add(Other)
    raise RuntimeError("after one class")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (ImportError("no module named x"), "no module named x"),
        (MISSPELT, "unidiff_registre"),
        (UNDECORATED, "is `unidiff_register` decorated with @hookimpl"),
        (WRONG_ARGUMENTS, "registery"),
        (SILENT, "registered nothing"),
        (DUPLICATE, "Gaussian of bad-dist is already registered by unidiff-core"),
        (plugin(half), "after one class"),
    ],
    ids=["import", "misspelt", "undecorated", "arguments", "silent", "duplicate", "exception"],
)
def test_a_bad_plugin_is_named_and_the_others_load(bad, says):
    registry = load_plugins(lambda: [Point("a-bad", bad, "bad-dist"), Point("good", GOOD, "good-dist")])
    assert registry.find("Plain") is Plain
    assert len(registry.failures) == 1
    assert "bad-dist" in registry.failures[0] and says in registry.failures[0]
    assert "Other" not in registry.registrations


def test_a_name_taken_twice_names_both_distributions():
    clash = type("Plain", (), {})
    points = [Point("a", GOOD, "first"), Point("b", plugin(lambda registry: registry.add(clash)), "second")]
    registry = load_plugins(lambda: points)
    assert registry.find("Plain") is Plain
    assert "Plain of second is already registered by first" in registry.failures[0]


def test_disabled_plugins_do_not_load(monkeypatch):
    monkeypatch.setenv("UNIDIFF_DISABLED_PLUGINS", "good, something")
    assert "Plain" not in load_plugins(lambda: [Point("good", GOOD, "good-dist")]).registrations


def test_unknown_name_lists_what_is_known_and_what_failed():
    registry = load_plugins(lambda: [Point("bad", ImportError("broken"), "bad-dist")])
    with pytest.raises(UnknownNameError, match=r"unknown codec 'X'; registered: none\. .*bad-dist.*broken"):
        registry.find("X", Codec)


def test_only_concrete_classes_register():
    with pytest.raises(ValueError, match="not a concrete class"):
        Registry().add(Codec)


def test_shipped_plugins_register_through_the_entry_points():
    registry = load_plugins()
    assert not registry.failures
    assert {"ImageCodec", "TextCodec"} <= set(registry.of_kind(Codec))
    assert registry.registrations["DigitsSource"].distribution == "unidiff-digits"
