"""A request: what a form asks for, as the words of a command, as a command line and as Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from unidiff_core.cli import sample
from unidiff_core.cli.call import ENDING, parsed
from unidiff_core.foundation.inline import read_inline
from unidiff_core.sampling.options import SamplingOptions

COMMANDS: dict[str, Any] = {"sample": sample}
"""Command → the module whose parser reads its words."""
GENERATE, GIVEN, IGNORED = "generate", "given", "ignored"
ROLES = (GENERATE, GIVEN, IGNORED)


@dataclass(frozen=True)
class Form:
    """What a form says of one modality.

    Attributes:
        role: one of `ROLES`.
        value: text, or the path of a file, as ``--given`` takes it; None or blank if there is none.
        noise: time at which a given value is held, as a fraction of T.
    """

    role: str
    value: str | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Request:
    """A call of a command on the model that is served.

    Attributes:
        command: one of `COMMANDS`.
        words: of the command line, after the model.
    """

    command: str
    words: tuple[str, ...]

    def options(self, model: str) -> Any:
        """The options, as the command's own parser reads them.

        Args:
            model: the model directory.

        Raises:
            argparse.ArgumentError: if one is wrong, with the command's own message; ValueError likewise.
        """
        return parsed(COMMANDS[self.command]._parser(), [model, *self.words])

    def line(self, model: str, loading: Sequence[str] = ()) -> str:
        """The same as a command line.

        Args:
            model: the model directory.
            loading: options with which it was loaded.
        """
        return shlex.join(["unidiffuser", self.command, model, *self.words, *loading])

    def python(self, model: str, loading: Mapping[str, Any] | None = None, device: str = "cpu") -> str:
        """The same as Python; what it gives is called ``found``.

        Args:
            model: the model directory.
            loading: arguments of ``from_pretrained`` with which it was loaded.
            device: where it is.

        Raises:
            argparse.ArgumentError: see `options`.
        """
        options = self.options(model)
        call, more = _CALLS[self.command](options)
        names = [row.name for row in fields(SamplingOptions) if row.name in options["said"]]
        words = {**more, **{name: options[name] for name in names}}
        arguments = [*call.arguments, *(f"{name}={written(value)}" for name, value in words.items())]
        loaded = ", ".join([written(model), *(f"{key}={written(value)}" for key, value in (loading or {}).items())])
        moved = "" if device == "cpu" else f".to({written(device)})"
        return "\n".join(
            [
                "from unidiff_core import UniDiffuser",
                "",
                f"model = UniDiffuser.from_pretrained({loaded}){moved}",
                *call.before,
                f"found = {call.function}({', '.join(arguments)})",
            ]
        )


@dataclass(frozen=True)
class _Call:
    """A call in Python: its function, its arguments without a name, and what stands before it."""

    function: str
    arguments: Sequence[str]
    before: Sequence[str] = ()


def written(value: Any) -> str:
    """Plain data as Python writes it, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{written(key)}: {written(row)}' for key, row in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return repr(value)


def _given(name: str, rows: Sequence[str]) -> str:
    """An assignment of values that are given as ``NAME=VALUE``."""
    pairs = [row.partition("=")[::2] for row in rows]
    parts = (f"{written(key)}: model.codec({written(key)}).parse({written(value)})" for key, value in pairs)
    return f"{name} = {{{', '.join(parts)}}}"


def _num(options: Any) -> dict[str, Any]:
    return {} if options.num is None else {"num": options.num}


def _sample(options: Any) -> tuple[_Call, dict[str, Any]]:
    spec = options.text_spec if options.spec is None else read_inline(options.spec, "--spec")
    return _Call("model.sample", [written(spec), "given"], [_given("given", options.given)]), _num(options)


_CALLS = {"sample": _sample}


def spec_of(forms: Mapping[str, Form]) -> str:
    """The timestep spec of modalities' roles, in text form; what it does not name is ignored."""
    solved = [name for name, row in forms.items() if row.role == GENERATE]
    held = [f"{name}@{row.noise:g}" if row.noise else name for name, row in forms.items() if row.role == GIVEN]
    return ", ".join(solved) + (f" | {', '.join(held)}" if held else "")


def given_words(rows: Mapping[str, str | None], option: str = "--given") -> list[str]:
    """``--given NAME=VALUE`` of each value that there is.

    Raises:
        ValueError: if a value names a file of latents: on a page they are not read, which may be another machine's.
    """
    words = []
    for name, value in rows.items():
        if value is None or not value.strip():
            continue
        if value.endswith(ENDING):
            raise ValueError(f"{option} '{name}={value}': latents are given on the command line, not on a page")
        words += [option, f"{name}={value}"]
    return words


def setting_words(settings: Mapping[str, Any]) -> list[str]:
    """``--NAME=VALUE`` of each setting that is said."""
    rows = {name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.items()}
    return [f"--{name}={value}" for name, value in rows.items() if value not in (None, "")]


def sample_request(forms: Mapping[str, Form], settings: Mapping[str, Any]) -> Request:
    """``unidiffuser sample``: what is generated, and what is held.

    Raises:
        ValueError: see `given_words`.
    """
    given = {name: row.value for name, row in forms.items() if row.role == GIVEN}
    return Request("sample", (spec_of(forms), *given_words(given), *setting_words(settings)))
