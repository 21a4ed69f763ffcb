"""What makes no sense of a process, refused before anything is sampled: each error names the value and what to do."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.core.conftest import NumberCodec
from tests.core.process.toy import SymbolCodec
from unidiff_core import Batch, Gaussian, Modality, Stream, UniDiffuser
from unidiff_core.network.uvit import UViT
from unidiff_core.process.cold.process import Cold
from unidiff_core.process.edited.process import Edited
from unidiff_core.process.encoded.process import Encoded
from unidiff_core.process.gaussian.schedule import Flow
from unidiff_core.process.masked.process import Masked


class GridCodec(NumberCodec):
    """Numbers on a grid."""

    @property
    def streams(self):
        return {"v": Stream.grid(1, 4, 4)}


def model(process, codec=None):
    modalities = {"a": Modality(codec or SymbolCodec(), process), "number": Modality(NumberCodec())}
    return UniDiffuser(modalities, partial(UViT, width=16, depth=3, heads=2))


def ids(*row):
    return {"a.ids": torch.tensor([row])}


def held(process, row):
    return lambda: model(process).sample("number | a", {"a.ids": torch.tensor([row])}, steps=1)


def begun(process, x):
    return lambda: model(process).sample("a", num=1, states={"a.ids": x}, steps=1)


SYMBOLS = (Masked, Edited, Encoded)
CASES = {
    "a solver of numbers for masked symbols": (
        lambda: model(Masked()).sample("a, number", solver={"a": "heun"}),
        "the solver 'heun' is no MaskedSolver; known: certain, confident, random",
    ),
    "the same with an argument": (
        lambda: model(Edited()).sample("a", solver="family(0.5)"),
        r"the solver 'family\(0\.5\)' is no EditedSolver; known: reedit, revert",
    ),
    "a solver of symbols for numbers": (
        lambda: model(Masked()).sample("a, number", solver={"number": "certain"}),
        "the solver 'certain' is no GaussianSolver; known: .*dpmpp_2m",
    ),
    "an inversion of a masked path": (
        lambda: model(Masked()).sample({"a": [0.2, 0.7]}, {"a": "0120"}),
        r"up from 0\.2 to 0\.7, .*Masked cannot be inverted: .*hold it, {a: {hold: \[0\.2, 0\.7\]}}",
    ),
    "medians under guidance": (
        lambda: model(Cold(error="absolute"), GridCodec()).sample("a | number", {"number": 0.0}, guidance=1.0),
        "Cold estimates medians, .*: leave guidance off for it, or train it with a squared error",
    ),
    "noise where nothing is left": (
        lambda: Gaussian(Flow(), "noise"),
        "noise prediction cannot give a clean estimate at T under Flow.*; predict flow, velocity or clean",
    ),
    "symbols for a blur": (
        lambda: model(Cold()),
        "Blur degrades grids, and the stream 4 of 3 symbols is of symbols: give the modality another process",
    ),
    "numbers of the wrong dtype": (
        lambda: model(Masked()).sample("a | number", {"number.v": torch.zeros(1, 3).long()}),
        r"given of 'number\.v' cannot be used: Gaussian is over numbers, and this is of torch\.int64; .*float32",
    ),
    "what is hidden, held": (held(Masked(), [0, 1, 3, 0]), "the id 3 is out of range: Masked is over 3 symbols"),
    "a state out of range": (
        begun(Masked(), torch.tensor([[3, 3, 4, 3]])),
        r"given of 'a\.ids' cannot be used: the id 4 is out of range: Masked",
    ),
    "a state that is hidden, of no masked process": (
        begun(Edited(), torch.tensor([[3, 3, 3, 3]])),
        "the id 3 is out of range: Edited is over 3 symbols, ids 0 to 2",
    ),
    "ids where vectors are": (
        begun(Encoded(width=4), torch.zeros(1, 4, 4).long()),
        "a state of Encoded above 0 is of vectors, and this is of torch.int64",
    ),
    "a value to lead away from, out of range": (
        lambda: model(Masked()).sample("number | a", {"a": "0120"}, against=ids(0, 1, 9, 0), guidance=1.0),
        "the id 9 is out of range: Masked",
    ),
    "training data of another vocabulary": (
        lambda: model(Masked()).objective(
            {**ids(0, 1, 9, 0), "number.v": torch.zeros(1, 3)}, Batch(torch.arange(1), 0), lambda *row: {}
        ),
        "the id 9 is out of range: Masked is over 3 symbols, ids 0 to 2; .*encoded by another one",
    ),
    **{
        f"a vocabulary that does not fit, {kind.__name__}": (
            lambda kind=kind: model(kind(7)),
            f"{kind.__name__} is over 7 symbols, and the stream is 4 of 3 symbols: give {kind.__name__} the "
            "vocabulary 3, or none",
        )
        for kind in SYMBOLS
    },
    **{
        f"an id of {i}, {kind.__name__}": (
            held(kind(), [0, 1, i, 0]),
            rf"given of 'a\.ids' cannot be used: the id {i} is out of range: {kind.__name__} is over 3 symbols",
        )
        for kind in SYMBOLS
        for i in (9, -1)
    },
    **{
        f"symbols of the wrong dtype, {kind.__name__}": (
            held(kind(), [0.0, 1.0, 2.0, 0.0]),
            f"{kind.__name__} is over symbols, and this is of torch.float32; give ids as int64",
        )
        for kind in SYMBOLS
    },
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_what_is_wrong_and_what_to_do(name):
    call, says = CASES[name]
    with pytest.raises(ValueError, match=says):
        call()


def test_what_is_hidden_may_be_given_as_a_state():
    got = model(Masked()).sample("a", num=1, states={"a.ids": torch.tensor([[3, 3, 1, 3]])}, steps=4)["a"]
    assert got[0][2] == "1" and set(got[0]) <= set("012")
