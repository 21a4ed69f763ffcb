"""What a parser says of wrong options, for a person: without its namespaces and type expressions."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.source import Source
from unidiff_core.evaluation.judge import Judge
from unidiff_core.foundation.error import meant, sentence
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.network.backbone import Backbone

_UNION = re.compile(r"Does not validate against any of the Union subtypes\s+Subtypes: .*?\s+Errors:\s+- ", re.DOTALL)
_CHOICE = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes: .*?\s+Errors:\s+(?P<errors>- .*?)\s+"
    r"Given value type: .*?\s+Given value: (?P<value>[^\n]*)",
    re.DOTALL,
)
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|tuple with (\d+) elements)")
_WORDS = re.compile(r"Expected a typing\.Literal\[(.*?)\](?:\. Got value: (\S+))?")
_INVALID = re.compile(r"argument (\S+): invalid choice: (\S+) \(choose from (.*)\)")
_NO_CLASS = re.compile(r"Expected a dot import path string|Not a valid subclass of")
_CLASS_NAME = re.compile(r"[A-Z]\w*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
KINDS = {
    "float": "a number",
    "int": "a whole number",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "str": "a text",
}
_NOTHING_ELSE = re.compile(r"\s+- Expected a <class 'NoneType'>.*", re.DOTALL)
_CALLABLE = re.compile(r"Type collections\.abc\.Callable\[.*?\] expects a function or a callable class: ")
_VALUE = re.compile(r" Got value: Namespace\(.*", re.DOTALL)
_WITHIN = re.compile(r"Problem with given class_path '([\w.]+)':\s+")
_UNKNOWN = re.compile(r"Expected a dot import path string: (\S+)|- Expected a path but (\S+) either not.*", re.DOTALL)
_OPTION = re.compile(r"Option '(\w+)' is not accepted")
_TYPE = re.compile(r"Expected an? <class '(?:[\w.]*\.)?(\w+)'>\. Got value: ")
_NO_YAML = re.compile(
    r"Problems parsing config: (?:.*\n\s+in \"[^\n]*\n)?\s*(?P<said>[^\n]+)\n\s+in \"[^\n]*line (?P<line>\d+), "
    r"column (?P<column>\d+).*",
    re.DOTALL,
)
_LACKS = {"Path is not a file": "that is a folder", "File does not exist": "no such file"}
_NO_CONFIG = re.compile(rf"config: ({'|'.join(_LACKS)}): '([^']*)'")
_KEY = re.compile(r'Parser key "([\w.]+)":\s+')


def readable(message: str) -> str:
    """A parser's error as a sentence, with what is known in place of what is not."""
    message = _CHOICE.sub(_none_of_several, message)
    message = _WORDS.sub(lambda match: _none_of_words(_words(match[1]), match[2]), message)
    message = _INVALID.sub(
        lambda match: f"{match[1]}: {_none_of_words(_words(match[3]), _words(match[2])[0])}", message
    )
    message = _NO_YAML.sub(lambda match: f"the configuration is not YAML, {_place(match)}", message)
    for noise in (_UNION, _NOTHING_ELSE, _CALLABLE, _VALUE):
        message = noise.sub("", message)
    within = _WITHIN.findall(message)
    message = _WITHIN.sub("", message)
    message = _UNKNOWN.sub(lambda match: _unknown_class(match[1] or match[2]), message)
    message = _OPTION.sub(lambda match: _unknown_option(match[1], within), message)
    message = _TYPE.sub(lambda match: f"it must be of type {match[1]}, not ", message)
    message = _KEY.sub(lambda match: f"{match[1]}: ", message)
    return sentence(_NO_CONFIG.sub(lambda match: f"-c {match[2]}: {_LACKS[match[1]]}", message))


def _place(match: re.Match[str]) -> str:
    return f"line {match['line']}, character {match['column']}: {match['said'].strip()}"


def _none_of_several(match: re.Match[str]) -> str:
    """What a value might have been, where that is several kinds and it is no class."""
    errors, value = match["errors"].split("\n    - "), match["value"]
    errors[0] = errors[0].removeprefix("- ")
    inner = [error for error in errors if _TYPE.match(error)]
    if value.startswith("{") and "'class_path'" not in value and inner:
        return inner[0]
    words = [word for error in errors if (found := _WORDS.fullmatch(error)) for word in _words(found[1])]
    errors = [error for error in errors if not _WORDS.fullmatch(error)]
    if words and not [error for error in errors if not _EXPECTED.fullmatch(error)]:
        return _none_of_words(words, value)
    kinds = [found[1] or f"a list of {found[2]}" for error in errors if (found := _EXPECTED.fullmatch(error))]
    classes = [error for error in errors if _NO_CLASS.match(error)]
    known = [KINDS.get(kind, kind) for kind in kinds if kind != "NoneType"]
    if not known or len(kinds) + len(classes) < len(errors) or (classes and _CLASS_NAME.fullmatch(value)):
        return match[0]
    return f"it must be {' or '.join(known)}, not {value!r}"


def _words(listed: str) -> list[str]:
    """The words of a list as Python writes it."""
    return [word.strip().strip("'\"") for word in listed.split(",")]


def _none_of_words(words: list[str], value: str | None) -> str:
    allowed = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
    return f"it must be {allowed}" + (f", not {value!r}{meant(value, words)}" if value else "")


def _unknown_class(name: str) -> str:
    registry = load_plugins()
    known = {*registry.registrations, *_class_names()}
    if name in registry.registrations:
        return f"the class {name} cannot stand there; `unidiffuser list` shows what each kind is and takes"
    guess = meant(name.rpartition(".")[2], known, most=3, cutoff=0.7)
    guess = guess or "; `unidiffuser list` shows what is registered."
    return " ".join([f"unknown class {name}{guess}", *registry.failures])


def _class_names() -> Iterator[str]:
    """Names of the classes that a recipe may name without their being registered."""
    classes: list[type] = [Backbone, Cleaner, Judge, Source]
    while classes:
        found: list[type] = classes.pop().__subclasses__()
        yield from (cls.__name__ for cls in found if not inspect.isabstract(cls))
        classes += found


def _unknown_option(name: str, within: list[str]) -> str:
    if not within:
        return f"there is no option {name!r}"
    module, _, cls = within[-1].rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(module), cls)).parameters
    rest = meant(name, known, then=f"it takes {', '.join(known) or 'none'}")
    return f"{cls} has no option {name!r}{rest}"
