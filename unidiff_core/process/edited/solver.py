"""The edited process's reverse steps: from n replaced symbols to n', given p_i(v), what the network says of symbol i.

A symbol that differs from its clean value is surely one of the n; one that does not may be. Of the n one is put back:

    P(symbol i becomes v) = p_i(v)/n,  v ≠ x_i;      P(nothing changes) = 1 − Σ_i (1 − p_i(x_i))/n

which is q(x_{n−1} | x_n) itself: marginals suffice (docs/processes.md derives it). If a replaced symbol is never its
own replacement, exactly n differ, Σ_i (1 − p_i(x_i)) = n, and something changes; a network's sum is brought to n.
Several at once are put back without replacement, each with its share of this chance; biased as any parallel decoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from unidiff_core.foundation.randomness import Draws
from unidiff_core.process.process import Solver
from unidiff_core.process.symbols import drawn, ranks, ranks_of

_TINY = 1e-300


class EditedSolver(Solver, ABC):
    """A way to put symbols back.

    Attributes:
        is_fresh: whether symbols of the guess are then replaced anew, as many as the time says.
    """

    is_fresh: bool = False

    @abstractmethod
    def guess(
        self,
        x: Int64[Tensor, "b n"],
        logits: Float[Tensor, "b n v"],
        before: int,
        after: int,
        distinct: bool,
        draws: Draws,
    ) -> Int64[Tensor, "b n"]:
        """The state with symbols put back: `before` − `after` of them, or all if `is_fresh`.

        Args:
            x: the state.
            logits: of the clean value.
            before: symbols that are replaced in it.
            after: symbols that are to be.
            distinct: whether all of those differ from their clean values.
            draws: of the step.
        """


class Revert(EditedSolver):
    """Keeps the state but for what is put back: exact, one symbol a step, if the network is exact."""

    registered_name = "revert"

    def guess(
        self,
        x: Int64[Tensor, "b n"],
        logits: Float[Tensor, "b n v"],
        before: int,
        after: int,
        distinct: bool,
        draws: Draws,
    ) -> Int64[Tensor, "b n"]:
        """See the module."""
        logits = logits.double()
        differs = (logits.softmax(-1) * (torch.arange(logits.shape[-1], device=x.device) != x[..., None])).sum(-1)
        is_replaced = replaced(differs, before, distinct)
        among = picked(is_replaced, before, draws.named("among"))
        order = ranks_of(draws.named("which").uniform((x.shape[1],)) + ~among)  # those among them first
        moves = among & (order < before - after)
        if not distinct:  # one that was put back may have been its own replacement
            moves &= draws.named("whether").uniform((x.shape[1],)) * is_replaced < differs
        others = logits.scatter(-1, x[..., None], -torch.inf)[moves]
        ids = drawn(others, draws.named("what").uniform((x.shape[1],))[moves])
        return x.masked_scatter(moves, ids)


class Reedit(EditedSolver):
    """Guesses every symbol, each for itself, and replaces some of the guess anew: Su's first sampler. It is exact only
    for a network that guesses all symbols jointly, which none does.
    """

    registered_name = "reedit"
    is_fresh = True

    def guess(
        self,
        x: Int64[Tensor, "b n"],
        logits: Float[Tensor, "b n v"],
        before: int,
        after: int,
        distinct: bool,
        draws: Draws,
    ) -> Int64[Tensor, "b n"]:
        """A symbol for each place."""
        return drawn(logits.flatten(0, 1), draws.named("what").uniform((x.shape[1],)).flatten()).reshape(x.shape)


def replaced(differs: Float64[Tensor, "b n"], num: int, distinct: bool) -> Float64[Tensor, "b n"]:
    """The probability that each symbol is one of the `num` that are replaced; they sum to `num`.

    Args:
        differs: the probability that it differs from its clean value.
        num: replaced symbols.
        distinct: whether all replaced symbols differ.
    """
    total, length = differs.sum(1, keepdim=True), differs.shape[1]
    if distinct:
        return differs * num / total.clamp(min=_TINY)
    rest = ((num - total) / (length - total).clamp(min=_TINY)).clamp(0, 1)  # of those that do not differ
    return torch.where(total > num, differs * num / total.clamp(min=_TINY), differs + (1 - differs) * rest)


def picked(weights: Float64[Tensor, "b n"], num: int, draws: Draws) -> Bool[Tensor, "b n"]:
    """`num` places of each row, without replacement, each with probability `num` times its share of the weights.

    Systematic sampling in a random order: points 1 apart on the line of the cumulative shares, one uniform number a
    row. A place whose share is above 1/`num` is picked once.
    """
    order = ranks(draws, (weights.shape[1],)).argsort(dim=1)
    shares = weights / weights.sum(1, keepdim=True).clamp(min=_TINY)
    ends = num * shares.gather(1, order).cumsum(1)
    points = (ends - draws.named("point").uniform(())[:, None]).ceil()  # how many lie before each end
    is_picked = points.diff(dim=1, prepend=torch.zeros_like(points[:, :1])) > 0
    return torch.zeros_like(is_picked).scatter(1, order, is_picked)
