"""What every command's parser says of an option that there is none of, or that is lacking: with what was meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from unidiff_core.foundation.error import meant

_UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.*)", re.DOTALL)
_KEY = re.compile(r"(?:Group '(?P<group>[\w.]+)' does not accept o|O)ption '(?P<key>[^']+)'(?: is not accepted)?")
_REQUIRED = re.compile(r"the following arguments are required: (?P<names>.*)", re.DOTALL)
_SPACES = re.compile(r"Spaces not allowed in keys: .*", re.DOTALL)
_WORD = re.compile(r"--?[A-Za-z]")


def explained(message: str, options: Collection[str], arguments: Sequence[str] = ()) -> str:
    """A parser's refusal in other words, if it is of an option that there is not, or that is lacking.

    Args:
        message: what the parser says.
        options: those it has, ``--trainer.max_steps``.
        arguments: those it was given.
    """
    if found := _UNKNOWN.fullmatch(message):
        return _of_words(found["words"].split(), options, arguments)
    if found := _KEY.fullmatch(message):
        return _of_key(f"{found['group']}.{found['key']}" if found["group"] else found["key"], options)
    if found := _REQUIRED.fullmatch(message):
        names = [f"--{name}" if f"--{name}" in options else name.upper() for name in found["names"].split(", ")]
        takes = "--config" in options and not _has_config(arguments)
        given = "; options may stand in a YAML file, -c CONFIG.yaml, of which none is given" if takes else ""
        return f"it needs {' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}{given}"
    if _SPACES.fullmatch(message):  # of a mapping whose own name is no option, which the parser would say next
        known = {option.removeprefix("--").partition(".")[0] for option in options}
        return next((_of_key(key, options) for key in _keys(arguments) if key not in known), message)
    return message


def meant_option(word: str, options: Collection[str]) -> str:
    """What of `options` was meant by a word that is none of them: one that ends or begins so, or is spelt nearly so."""
    options = [option for option in options if option.startswith("--") and not option.endswith(".help")]
    name = word.removeprefix("--").replace("-", "_")
    alike = [option for option in options if option.endswith(f".{name}") or option.startswith(f"--{name}")]
    guess = meant(f"--{name}", alike or options, most=2, cutoff=0.0 if alike else 0.7)
    head = name.partition(".")[0]
    if guess or head == name or any(option.startswith(f"--{head}.") for option in options):
        return guess
    return meant(f"--{head}", {option.partition(".")[0] for option in options})  # of a class's: which is not known here


def _has_config(arguments: Sequence[str]) -> bool:
    return any(word.startswith(("-c", "--config")) for word in arguments)


def _of_words(words: Sequence[str], options: Collection[str], arguments: Sequence[str] = ()) -> str:
    wrong = [word.partition("=")[0] for word in words if _WORD.match(word)]
    if not wrong:
        if "--config" in options and words[0].endswith((".yaml", ".yml")):
            return f"a configuration is given by -c: write -c {words[0]}"
        return f"there is no place for {' '.join(words)!r}; a text with spaces stands in quotes"
    return "; ".join(f"there is no option {word}{meant_option(word, options)}" for word in dict.fromkeys(wrong))


def _of_key(key: str, options: Collection[str]) -> str:
    """Of a name in a configuration file."""
    names = [option.removeprefix("--") for option in options if option.startswith("--")]
    head = key.partition(".")[0]
    guess = meant(key, names, cutoff=0.75)
    if not guess and head not in {name.partition(".")[0] for name in names}:
        key, guess = head, meant(head, names)
    return f"there is no option {key!r}{guess}"


def _keys(arguments: Sequence[str]) -> Iterator[str]:
    """The names at the top of the configuration files that are given."""
    for option, word in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = option.partition("=")
        if name in ("-c", "--config"):
            content: Any = yaml.safe_load(Path(value if equals else word).read_text(encoding="utf-8"))
            yield from content if isinstance(content, dict) else ()
