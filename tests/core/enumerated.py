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
from types import MappingProxyType
from unittest.mock import patch

import torch
from torch import Tensor

from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T
from unidiff_core.process.edited.solver import replaced
from unidiff_core.process.symbols import count_at
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

    said = ("sample solver/what", "sample solver/remask", "sample solver/remask whether")
    """What a step may draw, by purpose: a number for each place,"""
    sizes: Mapping[str, int] = MappingProxyType({})
    """or as many."""

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
        row, said, weights = self.drawn(law, t, t_next)
        before = Law(law.states[row], law.orders[row], law.weights[row] * weights)
        after = self.moved(before, t, t_next, said)[0]
        return Law(after, before.orders, before.weights).collapsed()

    def drawn(self, law: Law, t: float, t_next: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """What may be drawn in a step: which row of the law, what is drawn by purpose, with what probability."""
        return self.outcomes(law.states, self.moved(law, t, t_next, {})[1])

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

    def moved(self, law: Law, t: float, t_next: float, said: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """States after a step, and the clean estimates that it was made by."""
        num, clean = len(law.states), {}
        anything = torch.zeros(num, self.length, dtype=DOUBLE)
        values = {name: anything[:, : self.sizes.get(name)] for name in self.said} | said
        values["sample noise/what"] = anything  # of a start that is not used
        values["sample noise/order"] = self.orders[law.orders].double() / self.length
        with scripted(self.key, values):
            got = sample(
                self.oracle, {self.name: [t, t_next]} | self.held, processes=self.oracle.processes,
                shapes=self.oracle.shapes, num=num, steps=1, states={self.key: law.states}, dtype=DOUBLE,
                supplied={key: value.expand(num, *value.shape[1:]) for key, value in self.supplied.items()},
                on_step=lambda report: clean.update(report.clean), **self.options,
            )  # fmt: skip
        return got[self.key], clean.get(self.key, torch.zeros(num, self.length, self.process.size, dtype=DOUBLE))


class EditedEnumeration(Enumeration):
    """The same for symbols that are edited, whose order does not matter on the way down."""

    said = tuple(
        f"sample solver/{name}"
        for name in ("among/order", "among/point", "which", "whether", "what", "anew/order", "anew/what")
    )
    sizes = MappingProxyType({"sample solver/among/point": 1})

    def start(self) -> Law:
        """Every state alike."""
        states = torch.cartesian_prod(*[torch.arange(self.process.size)] * self.length).reshape(-1, self.length)
        num = len(states)
        return Law(states, torch.zeros(num, dtype=torch.int64), torch.full((num,), 1 / num, dtype=DOUBLE))

    def drawn(self, law: Law, t: float, t_next: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """By `reedit` all guesses, and all that is replaced anew; by `revert` first which places are put back."""
        logits = self.moved(law, t, t_next, {})[1].double()
        if self.process.find_solver(self.options.get("solver")).is_fresh:
            return self._guessed(logits.softmax(-1), t_next)
        return self._put_back(law, logits.softmax(-1), t, t_next)

    def _put_back(self, law: Law, chances: Tensor, t: float, t_next: float):
        own = torch.nn.functional.one_hot(law.states, self.process.size).bool()
        differs = chances.masked_fill(own, 0).sum(-1)
        is_replaced = replaced(differs, count_at(t * T, self.length), self.process.distinct)
        row, said, weights = self._places(is_replaced, count_at(t * T, self.length))
        # All that is put back is edited, were it sure to be: the loop itself says which places that are.
        after, _ = self.moved(Law(law.states[row], law.orders[row], weights), t, t_next, said)
        moves = after != law.states[row]

        # Of each place: it stays (0), or becomes one of the others. `drawn` sees logits without the present symbol.
        others = chances.masked_fill(own, 0) / differs[..., None].clamp(min=1e-300)  # [n, l, v]
        edits = torch.ones_like(differs) if self.process.distinct else differs / is_replaced.clamp(min=1e-300)
        each = torch.cat([(1 - edits)[..., None], edits[..., None] * others], dim=-1)  # [n, l, 1 + v]
        still = torch.eye(self.process.size + 1, dtype=DOUBLE)[0]
        each = torch.where(moves[..., None], each[row], still)
        which = torch.cartesian_prod(*[torch.arange(self.process.size + 1)] * self.length).reshape(-1, self.length)
        place = torch.arange(self.length)
        chance = each[:, place, which].prod(-1)
        again, outcome = (chance > 0).nonzero(as_tuple=True)
        value, edge = which[outcome], (is_replaced > 0) * edits
        middle = (others.cumsum(-1) - others / 2)[row[again][:, None], place, (value - 1).clamp(min=0)]
        edge = edge[row[again]]
        return (
            row[again],
            {name: rows[again] for name, rows in said.items()}
            | {
                "sample solver/whether": torch.where(value > 0, edge / 2, (1 + edge) / 2),
                "sample solver/what": middle,
            },
            weights[again] * chance[again, outcome],
        )

    def _places(self, is_replaced: Tensor, num: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Which places are put back: the order of systematic sampling, where its points lie, and which of them come
        first. Between two fractions of the shares' ends a point may lie anywhere to the same effect.
        """
        rows = []
        for among in self.orders:
            shares = is_replaced / is_replaced.sum(1, keepdim=True).clamp(min=1e-300)
            ends = (num * shares[:, among].cumsum(1)) % 1
            cuts = torch.cat([torch.zeros_like(ends[:, :1]), ends.sort(dim=1)[0], torch.ones_like(ends[:, :1])], dim=1)
            lengths, points = cuts.diff(dim=1), (cuts[:, 1:] + cuts[:, :-1]) / 2
            row, piece = (lengths > 1e-14).nonzero(as_tuple=True)
            position = among.argsort().double() / self.length  # of each place in that order
            order, point, weight = position.expand(len(row), -1), points[row, piece], lengths[row, piece]
            rows += [
                (row, order, point, first.expand(len(row), -1), weight) for first in self.orders.double() / self.length
            ]
        row, order, point, first, weight = (torch.cat(parts) for parts in zip(*rows, strict=True))
        said = {
            "sample solver/among/order": order,
            "sample solver/among/point": point,
            "sample solver/which": first,
        }
        return row, said, weight / len(self.orders) ** 2

    def _guessed(self, chances: Tensor, t_next: float):
        size, orders = self.process.size - self.process.distinct, self.orders.double() / self.length
        words = torch.cartesian_prod(*[torch.arange(self.process.size)] * self.length).reshape(-1, self.length)
        anew = (torch.cartesian_prod(*[torch.arange(size)] * self.length).reshape(-1, self.length) + 0.5) / size
        orders, anew = (orders, anew) if count_at(t_next * T, self.length) else (orders[:1], anew[:1])
        row, word, order, new = torch.cartesian_prod(
            *(torch.arange(len(rows)) for rows in (chances, words, orders, anew))
        ).T
        place = torch.arange(self.length)
        chance = chances[row[:, None], place, words[word]]
        middle = (chances.cumsum(-1) - chances / 2)[row[:, None], place, words[word]]
        said = {
            "sample solver/what": middle,
            "sample solver/anew/order": orders[order],
            "sample solver/anew/what": anew[new],
        }
        return row, said, chance.prod(-1) / len(orders) / len(anew)


def even(steps: int) -> list[float]:
    """A grid of equal steps from T to 0."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the summed absolute difference."""
    return (p - q).abs().sum().item() / 2
