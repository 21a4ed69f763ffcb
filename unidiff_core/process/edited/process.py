"""The edited process: symbols are replaced by others, and the network guesses what all of them were."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from unidiff_core.foundation.latents import over
from unidiff_core.foundation.randomness import Draws
from unidiff_core.process.edited.solver import EditedSolver
from unidiff_core.process.process import Corruption, Step
from unidiff_core.process.symbols import NOTHING, Symbols, count_at, num_corrupted, ranks, shape_size


class Edited(Symbols):
    """Symbols that are replaced: at time t the first n(t) = ⌈l·t/T⌉ of the sample's own random order, of l in all.

    A symbol is replaced by one that is uniform over the vocabulary, which now and then is itself: it is edited with
    probability (V − 1)/V·n/l, at T it is uniform whatever the data, and nothing is left of it (the uniform diffusion of
    D3PM, Austin et al. 2021, https://arxiv.org/abs/2107.03006, in counts). With `distinct` it is never itself (Su's
    edit process): n symbols differ, and x_T tells what a symbol was *not*, log2(V/(V − 1)) bits of each.

    Which symbols are edited cannot be seen; the network sees the state and, by the time, how many. Putting one symbol
    back a step samples exactly, if the network is exact, with l evaluations (docs/processes.md).

    Args:
        vocabulary: V; that of the stream that it is given to, if not given.
        distinct: whether a replaced symbol is never its own replacement.
    """

    solvers = EditedSolver
    default_solver = "revert"

    def __init__(self, vocabulary: int | None = None, distinct: bool = False) -> None:
        super().__init__(vocabulary)
        self.distinct = distinct

    @property
    def leak(self) -> float:
        """log2(V/(V − 1)) bits of a uniform symbol if `distinct`, else 0."""
        return math.log2(self.size / (self.size - 1)) if self.distinct else 0.0

    def corrupt(self, clean: Int64[Tensor, "b *shape"], t: Float[Tensor, " b"], draws: Draws) -> Corruption:
        """Replace; the target is the ids."""
        self.check_ids(clean)
        shape = tuple(clean.shape[1:])
        is_replaced = ranks(draws, shape) < over(num_corrupted(t, shape_size(shape)), clean)
        return Corruption(torch.where(is_replaced, self.replacements(clean, draws), clean), clean)

    def replacements(self, ids: Int64[Tensor, "b *shape"], draws: Draws) -> Int64[Tensor, "b *shape"]:
        """What each symbol is replaced by: one draw a sample, whenever it happens."""
        uniform = draws.named("what").uniform(tuple(ids.shape[1:]))
        if not self.distinct:
            return (uniform * self.size).long()
        others = (uniform * (self.size - 1)).long()
        return others + (others >= ids)

    def loss(
        self, prediction: Float[Tensor, "b *predicted"], corruption: Corruption, t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Cross entropy of every symbol, replaced or not: the network is not told which are. In nats."""
        return self.cross_entropy(prediction, corruption.target)

    def start(self, shape: Sequence[int], draws: Draws) -> Int64[Tensor, "b *shape"]:
        """Uniform symbols; x_T of `distinct` is uniform only if the data is, which is not known here."""
        return (draws.named("what").uniform(tuple(shape)) * self.size).long()

    def is_identity(self, step: Step, shape: Sequence[int], solver: EditedSolver) -> bool:
        """Where as many are replaced after it as before, unless it replaces others."""
        length = shape_size(shape)
        left = count_at(step.t_next, length)
        return count_at(step.t, length) == left and (not solver.is_fresh or left in (0, length))

    def step(
        self,
        x: Int64[Tensor, "b *shape"],
        clean: Float[Tensor, "b *shape v"],
        step: Step,
        solver: EditedSolver,
    ) -> Int64[Tensor, "b *shape"]:
        """Put some symbols back, as the solver does; a step up in time replaces as the forward process does."""
        shape = tuple(x.shape[1:])
        before, after = (count_at(t, shape_size(shape)) for t in (step.t, step.t_next))
        if after > before:
            draws = step.fixed or step.draws
            order = ranks(draws, shape)
            return torch.where((order >= before) & (order < after), self.replacements(x, draws), x)
        if before == 0:
            return x
        flat, logits = x.flatten(1), clean.flatten(1, -2)
        guess = solver.guess(flat, logits, before, after, self.distinct, step.draws)
        if not solver.is_fresh:
            return guess.reshape(x.shape)
        draws = step.draws.named("anew")
        anew = ranks(draws, (shape_size(shape),)) < after
        return torch.where(anew, self.replacements(guess, draws), guess).reshape(x.shape)

    def log_probability(
        self, corrupted: Int64[Tensor, "b *shape"], clean: Int64[Tensor, "c *shape"], t: Float[Tensor, " b"]
    ) -> Float64[Tensor, "b c"]:
        """Log q(x_t | x_0) of every state and every clean value."""
        state, value = corrupted.flatten(1), clean.flatten(1)
        length = state.shape[1]
        num = num_corrupted(t, length)[:, None]
        edits = (state[:, None] != value).sum(-1)
        if self.distinct:
            fits, choices = edits == num, num.double() * math.log(self.size - 1)
            return _where(fits, -_log_binomial(length, num) - choices)
        # The replaced ones are those that differ, and any of the rest.
        fits, among = edits <= num, _log_binomial(length - edits, (num - edits).clamp(min=0))
        return _where(fits, among - _log_binomial(length, num) - num.double() * math.log(self.size))

    def extra_repr(self) -> str:
        """For printing the module."""
        return super().extra_repr() + (", never by themselves" if self.distinct else "")


def _where(fits: Bool[Tensor, "b c"], value: Float64[Tensor, "b #c"]) -> Float64[Tensor, "b c"]:
    return torch.where(fits, value, NOTHING)


def _log_binomial(n: int | Int64[Tensor, "*n"], k: Int64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Log of n over k."""
    n, k = torch.as_tensor(n, device=k.device).double(), k.double()
    return (n + 1).lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma()
