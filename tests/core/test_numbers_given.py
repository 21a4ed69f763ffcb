"""A number that an option cannot be is refused by name, of every registered class, and not taken or divided by."""

from __future__ import annotations

import inspect
import math
import types
import typing

import pytest

from unidiff_core.foundation.plugin import load_plugins

GIVEN = {
    "AudioData": {"folder": "x", "rate": 8000, "seconds": 1.0},
    "CaptionData": {"folder": "x"},
    "ClipTraining": {"model": {}},
    "ImageData": {"folder": "x", "size": 8},
    "OrderedData": {"train": "x"},
    "PairData": {"folder": "x", "size": 8},
    "ShowSamples": {"queries": ["a"]},
    "TextDecoderTraining": {"clip": "x"},
}
"""Class → arguments without which it cannot be made."""
ANY_WHOLE = {"seed"}
MAY_BE_ZERO = {"iterations", "num_workers", "beta_start", "steps"}
ANY_NUMBER = {("MelAutoencoderTraining", "floor"), ("NeuralAudioCodec", "mean")}
"""Decibels and means: below 0 as well."""


def numbers():
    """(class, argument, value that it cannot be), for each argument that is one number."""
    for name, registration in sorted(load_plugins().registrations.items()):
        cls = registration.cls
        hints = typing.get_type_hints(cls.__init__)
        made = {**GIVEN.get(name, {})}
        required = [
            row.name
            for row in list(inspect.signature(cls.__init__).parameters.values())[1:]
            if row.default is row.empty and row.kind not in (row.VAR_POSITIONAL, row.VAR_KEYWORD)
        ]
        if {*required} - {*made}:
            continue
        for argument, hint in hints.items():
            is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
            kinds = {*typing.get_args(hint)} if is_union else {hint}
            if not kinds <= {int, float, type(None)} or kinds == {type(None)} or argument in ANY_WHOLE:
                continue
            wrong = [-1] if argument in MAY_BE_ZERO else [0, -1]
            if float in kinds:
                wrong = [math.nan] + [-1.0] * ((name, argument) not in ANY_NUMBER)
            for value in wrong:
                yield pytest.param(cls, made, argument, value, id=f"{name}-{argument}-{value}")


@pytest.mark.parametrize(("cls", "made", "argument", "value"), numbers())
def test_a_number_that_an_option_cannot_be_is_refused_by_name(cls, made, argument, value):
    cls(**made)
    with pytest.raises(ValueError, match=argument.replace("_", "[_ ]")):
        cls(**made, **{argument: value}) if argument not in made else cls(**made | {argument: value})
