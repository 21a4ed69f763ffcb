"""The law of a sampler of symbols without sampling: every outcome of its randomness, with its probability.

The sampler is the real one, `sample` with `Draws` that say what is to come out: for each order of a sample's symbols,
and for each symbol that may be drawn, a uniform number from the middle of what stands for it. So nothing of the sampler
is written here a second time, and a law is exact to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from unidiff_core.foundation.randomness import Draws
from unidiff_core.sampling.loop import sample

DOUBLE = torch.float64


@contextmanager
def scripted(stream: str, values: Mapping[str, Tensor]):
    """Draws of a stream as they are said, by purpose: ``[n, ...]``, a row for each sample. What is not said fails."""
    draw = Draws._draw

    def said(self, kind, shape):
        return (
            values[self.purpose][self.index].reshape(-1, *shape) if self.stream == stream else draw(self, kind, shape)
        )

    with patch.object(Draws, "_draw", said):
        yield


@dataclass
class Law:
    """A distribution over states of one stream, and over the order that each sample keeps.

    Attributes:
        states: ``[n, l]``.
        orders: ``[n]``, which of all orders.
        weights: ``[n]``.
    """

    states: Tensor
    orders: Tensor
    weights: Tensor

    def collapsed(self) -> Law:
        """The same with like states added up."""
        rows, place = torch.cat([self.states, self.orders[:, None]], dim=1).unique(dim=0, return_inverse=True)
        weights = torch.zeros(len(rows), dtype=DOUBLE).index_add_(0, place, self.weights)
        return Law(rows[:, :-1], rows[:, -1], weights)

    def probabilities(self, cells: Tensor) -> Tensor:
        """Of each of these states ``[c, l]``, over all orders."""
        return ((self.states[:, None] == cells).all(-1) * self.weights[:, None]).sum(0)


class Enumeration:
    """The law of `sample` for one modality of symbols, the others held.

    Args:
        oracle: a predictor with `processes` and `shapes`.
        key: full stream name of the symbols.
        held: modality → time that it is held at.
        supplied: one value of each of these ``[1, ...]``.
        options: of `sample`.
    """

    def __init__(self, oracle, key: str, *, held=None, supplied=None, **options):
        self.oracle, self.key, self.held, self.supplied = oracle, key, held or {}, supplied or {}
        self.name = key.partition(".")[0]
        self.process = oracle.processes[self.name]
        (self.length,) = oracle.shapes[key]
        self.options = options
        self.orders = torch.tensor(list(itertools.permutations(range(self.length))))

    def start(self) -> Law:
        """Everything hidden, in every order."""
        num = len(self.orders)
        states = torch.full((num, self.length), self.process.size)
        return Law(states, torch.arange(num), torch.full((num,), 1 / num, dtype=DOUBLE))

    def law(self, grid: Sequence[float], law: Law | None = None) -> Law:
        """After steps along a grid of times, as fractions of T."""
        law = law or self.start()
        for t, t_next in itertools.pairwise(grid):
            law = self.step(law, t, t_next)
        return law

    def step(self, law: Law, t: float, t_next: float) -> Law:
        """After one step."""
        logits = self._moved(law, t, t_next, {})[1]
        row, said, weights = self.outcomes(law.states, logits)
        before = Law(law.states[row], law.orders[row], law.weights[row] * weights)
        after = self._moved(before, t, t_next, said)[0]
        return Law(after, before.orders, before.weights).collapsed()

    def outcomes(self, states: Tensor, logits: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """What may be drawn in a step: which row of the states, what is drawn by purpose, with what probability."""
        size = logits.shape[-1]
        symbols = torch.cartesian_prod(*[torch.arange(size)] * self.length).reshape(-1, self.length)
        chances = logits.double().softmax(-1)
        is_hidden = states == self.process.size
        chances = torch.where(
            is_hidden[..., None], chances, torch.eye(size, dtype=DOUBLE)[0]
        )  # of others nothing is drawn
        each = torch.stack([chances[:, i, symbols[:, i]] for i in range(self.length)], dim=-1)  # [n, m, l]
        edges = chances.cumsum(-1)
        middles = edges - chances / 2
        uniform = torch.stack([middles[:, i, symbols[:, i]] for i in range(self.length)], dim=-1)
        weights = each.prod(-1)
        row, outcome = (weights > 0).nonzero(as_tuple=True)
        said = {"sample solver/what": uniform[row, outcome]}
        return self._and_hidden_anew(row, said, weights[row, outcome])

    def _and_hidden_anew(self, row: Tensor, said: dict[str, Tensor], weights: Tensor):
        """The same, times every order and every choice of what may be hidden anew."""
        solver = self.process.find_solver(self.options.get("solver"))
        if not solver.remask:
            return row, said, weights
        yes = torch.tensor(list(itertools.product([True, False], repeat=self.length)))
        chance = torch.where(yes, solver.remask, 1 - solver.remask).double().prod(1)
        yes, chance = yes[chance > 0], chance[chance > 0]
        num = len(self.orders) * len(yes)
        order = self.orders.repeat_interleave(len(yes), 0) / self.length
        whether = torch.where(yes, solver.remask / 2, (1 + solver.remask) / 2).double().repeat(len(self.orders), 1)
        chance = chance.repeat(len(self.orders)) / len(self.orders)
        return (
            row.repeat_interleave(num),
            {name: values.repeat_interleave(num, 0) for name, values in said.items()}
            | {"sample solver/remask": order.double().repeat(len(row), 1)}
            | {"sample solver/remask whether": whether.repeat(len(row), 1)},
            (weights[:, None] * chance).flatten(),
        )

    def _moved(self, law: Law, t: float, t_next: float, said: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """States after a step, and the clean estimates that it was made by."""
        num, clean = len(law.states), {}
        anything = torch.zeros(num, self.length, dtype=DOUBLE)
        names = ("sample solver/what", "sample solver/remask", "sample solver/remask whether")
        values = dict.fromkeys(names, anything) | said
        values["sample noise/order"] = self.orders[law.orders].double() / self.length
        with scripted(self.key, values):
            got = sample(
                self.oracle, {self.name: [t, t_next]} | self.held, processes=self.oracle.processes,
                shapes=self.oracle.shapes, num=num, steps=1, states={self.key: law.states}, dtype=DOUBLE,
                supplied={key: value.expand(num, *value.shape[1:]) for key, value in self.supplied.items()},
                on_step=lambda report: clean.update(report.clean), **self.options,
            )  # fmt: skip
        return got[self.key], clean.get(self.key, torch.zeros(num, self.length, self.process.size, dtype=DOUBLE))


def even(steps: int) -> list[float]:
    """A grid of equal steps from T to 0."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the summed absolute difference."""
    return (p - q).abs().sum().item() / 2
