from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.command import run_command
from unidiff_core import Codec, CodecTraining, ShardData, Stream, hookimpl
from unidiff_core.codec.codec import check_latent
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.registry import PluginError, Registry, UnknownNameError


class Point:
    """An entry point of a distribution."""

    def __init__(self, name, plugin, distribution):
        self.name, self.plugin, self.dist = name, plugin, SimpleNamespace(name=distribution)

    def load(self):
        if isinstance(self.plugin, BaseException):
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
NEWER = SimpleNamespace(requires_api=2, unidiff_register=GOOD.unidiff_register)
OLDER = SimpleNamespace(requires_api=0, unidiff_register=GOOD.unidiff_register)


def half(registry):
    registry.add(Other)
    raise RuntimeError("after one class")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (ImportError("no module named x"), "no module named x"),
        (SystemExit("no licence key"), "SystemExit: no licence key"),
        (MISSPELT, "it implements unidiff_registre, which is no hook; the hook is called `unidiff_register`"),
        (UNDECORATED, "is `unidiff_register` decorated with @hookimpl"),
        (WRONG_ARGUMENTS, "its hook takes (registery); write `def unidiff_register(registry)`"),
        (SILENT, "registered nothing"),
        (DUPLICATE, "Gaussian of bad-dist is already registered by unidiff-core"),
        (plugin(half), "RuntimeError: after one class"),
        (NEWER, "it requires plugin API 2, and unidiff-core has 1; upgrade unidiff-core"),
        (OLDER, "it requires plugin API 0, and unidiff-core has 1; upgrade bad-dist"),
    ],
    ids=[
        "import",
        "exit",
        "misspelt",
        "undecorated",
        "arguments",
        "silent",
        "duplicate",
        "exception",
        "newer",
        "older",
    ],
)
def test_a_bad_plugin_is_named_and_the_others_load(bad, says):
    registry = load_plugins(lambda: [Point("a-bad", bad, "bad-dist"), Point("good", GOOD, "good-dist")])
    assert registry.find("Plain") is Plain
    assert len(registry.failures) == 1
    assert "bad-dist" in registry.failures[0] and says in registry.failures[0]
    assert "Other" not in registry.registrations


def test_an_interruption_is_no_failure():
    with pytest.raises(KeyboardInterrupt):
        load_plugins(lambda: [Point("slow", KeyboardInterrupt(), "slow-dist")])


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
    with pytest.raises(UnknownNameError, match=r"unknown codec 'X'; registered: LabelCodec.*bad-dist.*broken"):
        registry.find("X", Codec)


def test_only_concrete_classes_register():
    with pytest.raises(ValueError, match="not a concrete class"):
        Registry().add(Codec)


def test_shipped_plugins_register_through_the_entry_points():
    registry = load_plugins()
    assert not registry.failures
    assert {"ImageCodec", "TextCodec"} <= set(registry.of_kind(Codec))
    trainings = {"AutoencoderTraining", "ClipTraining", "TextDecoderTraining", "MelAutoencoderTraining"}
    assert trainings | {"NumbersTraining", "TokensTraining"} == set(registry.of_kind(CodecTraining))
    assert {"ImageData", "PairData", "CaptionData", "AudioData"} == set(registry.of_kind(ShardData))
    assert registry.registrations["DigitsSource"].distribution == "unidiff-digits"


def test_core_registers_its_own_by_the_same_hook():
    registry = load_plugins(list)
    assert {row.distribution for row in registry.registrations.values()} == {"unidiff-core"}
    assert {"Gaussian", "UViT", "OrderedData", "LabelMetric", "ddim"} <= set(registry.registrations)


def test_what_is_installed_is_found_once_and_handed_out_as_a_copy():
    registry, again = load_plugins(), load_plugins()
    registry.add(Plain)
    registry.failures.append("a failure")
    assert "Plain" not in again.registrations and "Plain" not in load_plugins().registrations
    assert not again.failures and not load_plugins().failures
    assert again.registrations == load_plugins().registrations


def test_what_is_found_follows_the_disabled_plugins_and_the_path(monkeypatch, install):
    before = load_plugins().registrations.keys()
    with monkeypatch.context() as patch:
        patch.setenv("UNIDIFF_DISABLED_PLUGINS", "digits")
        assert before - load_plugins().registrations.keys() == {"DigitsSource", "DigitsJudge"}
    folder = install("late-dist", {"late": "late_module"}, {"late_module.py": MODULES["late"]})
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert load_plugins().registrations.keys() - before == {"LateCodec"}
    assert load_plugins().registrations.keys() == before


MODULE = """
from unidiff_core import Codec, CodecTraining, ShardData, Stream, hookimpl

class {name}(Codec):
    streams = {{"values": Stream.vector(2)}}
    def __init__(self, size: int = 2):
        super().__init__()
        self.size = size
        {constructor}
    def encode(self, raws):
        return {{"values": None}}
    def decode(self, latents):
        return []
    def from_bytes(self, data):
        return data
    def to_bytes(self, raw):
        return raw

@hookimpl
def unidiff_register(registry):
    registry.add({name})
"""
MODULES = {
    "absent": "import no_such_module",
    "exits": "raise SystemExit('no [licence] key')",
    "misspelt": "import unidiff_core\n@unidiff_core.hookimpl\ndef unidiff_registre(registry): pass",
    "undecorated": "def unidiff_register(registry): pass",
    "arguments": "import unidiff_core\n@unidiff_core.hookimpl\ndef unidiff_register(reg): pass",
    "older": "requires_api = 0\n" + MODULE.format(name="OldCodec", constructor=""),
    "zwin": MODULE.format(name="SoundCodec", constructor=""),
    "raises": MODULE.format(name="RaisingCodec", constructor="raise RuntimeError('no [GPU] here')"),
    "sound": MODULE.format(name="SoundCodec", constructor=""),
    "late": MODULE.format(name="LateCodec", constructor=""),
}


@pytest.fixture
def installed(install):
    """Every module above as a distribution of its own; the environment of a process that finds them."""
    for name, text in MODULES.items():
        folder = install(f"{name}-dist", {name: f"{name}_module"}, {f"{name}_module.py": text})
    return {"PYTHONPATH": str(folder)}


def test_the_program_lists_what_works_and_names_what_does_not(installed):
    done = run_command("codecs", env=installed | {"UNIDIFF_DISABLED_PLUGINS": "absent"})
    assert done.code == 0, done.err
    table = " ".join(done.out.split())
    assert "ImageCodec (unidiff-core)" in table and "SoundCodec (sound-dist)" in table
    assert "RaisingCodec of raises-dist cannot be made from its defaults: RuntimeError: no [GPU] here" in table
    for words in (
        "Plugin 'exits' of exits-dist did not load: SystemExit: no [licence] key.",
        "Plugin 'misspelt' of misspelt-dist did not load: it implements unidiff_registre",
        "Plugin 'undecorated' of undecorated-dist did not load: it registered nothing",
        "Plugin 'arguments' of arguments-dist did not load: its hook takes (reg);",
        "Plugin 'older' of older-dist did not load: it requires plugin API 0",
        "Plugin 'zwin' of zwin-dist did not load: SoundCodec of zwin-dist is already registered by sound-dist",
    ):
        assert f"unidiffuser: {words}" in done.err, done.err
    assert "absent" not in done.out + done.err


def test_a_constructor_that_raises_in_a_recipe_names_its_distribution(installed, tmp_path):
    recipe = tmp_path / "encode.yaml"
    recipe.write_text("codecs: {x: {class_path: RaisingCodec}}\nfolders: {a: b}\n")
    done = run_command("encode", "-c", recipe, env=installed, cwd=tmp_path)
    assert done.code == 2, done.err
    assert "unidiffuser: RuntimeError: no [GPU] here. It came from the plugin raises-dist;" in " ".join(
        done.err.split()
    )


class LyingCodec(Codec):
    streams = {"grid": Stream.grid(2, 4, 4, patch=2), "steps": Stream.sequence(5, 3)}  # noqa: RUF012

    def encode(self, raws):
        return {}

    decode = from_bytes = to_bytes = encode


def test_a_constructor_that_raises_is_a_plugin_error():
    registry = Registry("bad-dist")
    registry.add(LyingCodec)
    assert isinstance(registry.make("LyingCodec"), LyingCodec)
    with pytest.raises(PluginError, match=r"LyingCodec of bad-dist cannot be made from size: TypeError: .*'size'"):
        registry.make("LyingCodec", size=3)


@pytest.mark.parametrize(
    ("latent", "says"),
    [
        ({"grid": (2, 4, 4)}, "gives no stream 'steps'; it declares grid, steps"),
        ({"grid": (2, 4, 4), "steps": (5, 3), "more": (1,)}, "does not declare the stream 'more'"),
        ({"grid": (2, 4, 4), "steps": (3,)}, r"'steps' as sequence \(5, 3\) and gives \(3,\)"),
        ({"grid": (3, 4, 4), "steps": (5, 3)}, r"'grid' as grid \(2, 4, 4\) and gives \(3, 4, 4\)"),
        ({"grid": (2, 4, 5), "steps": (5, 3)}, r"gives \(2, 4, 5\)"),
        ({"grid": (2, 4, 4), "steps": (5, 4)}, r"gives \(5, 4\)"),
    ],
)
def test_a_codec_that_lies_about_its_shapes_is_named_with_its_distribution(latent, says):
    with pytest.raises(ValueError, match="LyingCodec of module .*test_plugin.* " + says):
        check_latent(LyingCodec(), {name: torch.zeros(1, *shape) for name, shape in latent.items()})


class EnlargedCodec(LyingCodec):
    """On another grid, and longer, than its streams are native to; and says so."""

    shapes = {"grid": (2, 6, 2), "steps": (9, 3)}  # noqa: RUF012


def test_other_grids_and_lengths_are_no_lie_where_shapes_says_them(monkeypatch):
    latent = {"grid": torch.zeros(1, 2, 6, 2), "steps": torch.zeros(1, 9, 3)}
    check_latent(EnlargedCodec(), latent)
    with pytest.raises(ValueError, match=r"'grid' as grid \(2, 4, 4\) and gives \(2, 6, 2\).*`shapes` is where"):
        check_latent(LyingCodec(), latent)
    monkeypatch.setattr(EnlargedCodec, "shapes", {"grid": (2, 6, 3), "steps": (9, 3)})
    with pytest.raises(ValueError, match=r"says \(2, 6, 3\) in `shapes`, which its stream 'grid'"):
        check_latent(EnlargedCodec(), latent)
