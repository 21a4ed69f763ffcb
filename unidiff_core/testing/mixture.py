"""The exact mixture: a table over all symbols and a Gaussian per cell over all numbers, under any processes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from unidiff_core.foundation.latents import Latents, Times, modality_of
from unidiff_core.process.process import ForwardProcess
from unidiff_core.process.symbols import NOTHING

MOST_CELLS = 200_000


class OverSymbols(Protocol):
    """What the mixture needs of a process over symbols; its clean estimates are logits."""

    size: int
    """Symbols in the vocabulary."""

    def log_probability(
        self, corrupted: Shaped[Tensor, "b *shape"], clean: Int64[Tensor, "c *clean"], t: Float[Tensor, " b"]
    ) -> Float64[Tensor, "b c"]:
        """Log q(x_t | x_0), or its density, of every state and every clean value, but for what depends on the state
        alone.
        """


class OverNumbers(Protocol):
    """What the mixture needs of a process over numbers: that x_t is x_0 times numbers, with noise, in one basis."""

    def moments(self, t: Float[Tensor, "*times"], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(alpha ``[*times, *shape]``, sigma ``[*times]``) of the coordinates at times in steps."""

    def coordinates(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """From data to an orthonormal basis."""


class Posterior(NamedTuple):
    """What is known of the clean values, given states at their times.

    Attributes:
        weights: probability of each cell ``[b, c]``.
        means: of all numbers in each cell ``[b, c, d]``.
        covariances: ``[g, c, d, d]``; g is 1 if all of the batch is at the same times, else b.
    """

    weights: Float64[Tensor, "b c"]
    means: Float64[Tensor, "b c d"]
    covariances: Float64[Tensor, "g c d d"]


class ExactMixture:
    """A predictor without training, in float64, for symbols and numbers under any mixture of processes.

    Clean data is a cell c of a table p(c), in which each symbol of each modality has its place, and numbers that are
    Gaussian in each cell, N(μ_c, S_c), jointly over all modalities. With modality m at its own time t_m,

        w(c) ∝ p(c) · Π q(symbols_t | symbols_c) · N(y; A μ_c, A S_c A + Σ),    y = A x_0 + noise
        p(a symbol is v) = Σ_{c: it is v} w(c),    E[x_0] = Σ_c w(c)·(μ_c + S_c A (A S_c A + Σ)⁻¹ (y − A μ_c))

    A and Σ are diagonal in the processes' coordinates. Held, ignored and half noisy modalities are all in the one
    formula; a modality that is dropped is left out of it. A joint Gaussian is one cell, a table alone has no numbers, a
    mixture of Gaussians is one symbol.

    Where parallel reveals have left the table's support, every w is zero: what symbols say is then disregarded, and
    `num_off_support` counts it.

    Args:
        processes: modality → process. One over symbols has `log_probability`, one over numbers `moments`; see
            `OverSymbols` and `OverNumbers`.
        symbols: full stream name → the ids of each cell ``[c, *shape]``.
        log_weights: log p(c) ``[c]``, up to a constant.
        means: full stream name → μ_c ``[c, *shape]``.
        covariance: ``[d, d]``, or ``[c, d, d]`` of each cell, of all numbers in the order of `means`.

    Raises:
        ValueError: if sizes do not fit together, or a covariance is not positive definite.

    Attributes:
        num_evaluated: samples that an estimate was made of.
        num_off_support: those of them whose symbols no cell explains.
    """

    def __init__(
        self,
        processes: Mapping[str, ForwardProcess],
        symbols: Mapping[str, Int64[Tensor, "c *shape"]],
        log_weights: Float[Tensor, " c"],
        means: Mapping[str, Float[Tensor, "c *shape"]] | None = None,
        covariance: Float[Tensor, "*c d d"] | None = None,
    ) -> None:
        self.processes = dict(processes)
        self.symbols = dict(symbols)
        self.log_weights = log_weights.double().log_softmax(0)
        means = means or {}
        self.shapes = {key: tuple(row.shape[1:]) for key, row in [*symbols.items(), *means.items()]}
        self.num_evaluated = self.num_off_support = 0
        num_cells, size = len(log_weights), sum(math.prod(row.shape[1:]) for row in means.values())
        for key, row in [*symbols.items(), *means.items()]:
            if len(row) != num_cells:
                raise ValueError(f"{key!r} has {len(row)} rows for {num_cells} cells; give each cell one")
        ends = torch.tensor([math.prod(row.shape[1:]) for row in means.values()]).cumsum(0).tolist()
        self.rows = {key: slice(end - math.prod(self.shapes[key]), end) for key, end in zip(means, ends, strict=True)}
        spread = torch.zeros(0, 0) if covariance is None else covariance
        if spread.shape not in ((size, size), (num_cells, size, size)):
            raise ValueError(f"a covariance of {size} numbers in {num_cells} cells is not {tuple(spread.shape)}")
        spread = spread.double().expand(num_cells, size, size)
        if size and (torch.linalg.eigvalsh(spread) <= 0).any():
            raise ValueError("a covariance is positive definite: give what is certain a small variance")
        self._basis = torch.block_diag(*(self._basis_of(key) for key in means)).double() if means else spread[0]
        flat = [row.double().flatten(1) for row in means.values()]
        self._means = (torch.cat(flat, dim=1) if flat else torch.zeros(num_cells, 0, dtype=torch.float64)) @ self._basis
        self._spread = self._basis.T @ spread @ self._basis

    @classmethod
    def random(
        cls,
        processes: Mapping[str, ForwardProcess],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        seed: int = 0,
        contrast: float = 1.0,
    ) -> ExactMixture:
        """Every combination of symbols, of log-normal weight; numbers of another mean and covariance in each.

        Args:
            processes: modality → process; those whose clean estimates are logits are over symbols.
            shapes: full stream name → shape of one sample.
            seed: of the weights, means and covariances.
            contrast: standard deviation of the logarithm of the weights, and of the means.

        Raises:
            ValueError: if there are more than `MOST_CELLS` combinations.
        """
        generator = torch.Generator().manual_seed(seed)
        is_symbols = {key: processes[modality_of(key)].estimate == "logits" for key in shapes}
        sizes = [
            cast(OverSymbols, processes[modality_of(key)]).size
            for key, shape in shapes.items()
            for _ in range(math.prod(shape))
            if is_symbols[key]
        ]
        num_cells = math.prod(sizes)
        if num_cells > MOST_CELLS:
            raise ValueError(f"{num_cells} combinations of symbols are too many, {MOST_CELLS} is the most")
        places = torch.arange(num_cells)
        columns = []
        for size in reversed(sizes):
            columns.append(places % size)
            places = places // size
        table = torch.stack(columns[::-1], dim=1) if columns else torch.zeros(1, 0, dtype=torch.int64)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weights = contrast * normal(num_cells)
        symbols, means, first = dict[str, Tensor](), dict[str, Tensor](), 0
        for key, shape in shapes.items():
            if is_symbols[key]:
                symbols[key] = table[:, first : first + math.prod(shape)].reshape(num_cells, *shape)
                first += math.prod(shape)
            else:
                means[key] = contrast * normal(num_cells, *shape)
        size = sum(math.prod(row.shape[1:]) for row in means.values())
        basis, _ = torch.linalg.qr(normal(num_cells, size, size))
        eigenvalues = 0.05 + 0.45 * torch.rand(num_cells, size, generator=generator, dtype=torch.float64)
        return cls(processes, symbols, weights, means, basis @ eigenvalues.diag_embed() @ basis.mT)

    def _basis_of(self, key: str) -> Float[Tensor, "n n"]:
        """``coordinates(x) = x @ basis``, flattened."""
        shape = self.shapes[key]
        units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return self._numbers(key).coordinates(units).flatten(1)

    def _numbers(self, key: str) -> OverNumbers:
        return cast(OverNumbers, self.processes[modality_of(key)])

    def _symbols(self, key: str) -> OverSymbols:
        return cast(OverSymbols, self.processes[modality_of(key)])

    # --- what is known ---

    @property
    def entropy(self) -> float:
        """Of the table, in nats."""
        return -(self.log_weights.exp() * self.log_weights).sum().item()

    def posterior(self, latents: Latents, times: Times) -> Posterior:
        """What is known of the clean values, in the data's own basis.

        Args:
            latents: states of some or all streams; the others are marginalised.
            times: modality → ``[b]`` in steps, of those at least.
        """
        num = len(next(iter(latents.values()))) if latents else 1
        log_weights, means, covariances = self._of_numbers(latents, times, num)
        return Posterior(
            self._weighed(log_weights, latents, times),
            means @ self._basis.T,
            self._basis @ covariances @ self._basis.T,
        )

    def _weighed(self, log_weights: Float64[Tensor, "b c"], latents: Latents, times: Times) -> Float64[Tensor, "b c"]:
        """Weights of the cells, by what the numbers say and what the symbols say."""
        said = torch.zeros_like(log_weights)
        for key, ids in self.symbols.items():
            if key in latents:
                said = said + self._symbols(key).log_probability(latents[key], ids, times[modality_of(key)])
        is_off = said.amax(1) <= NOTHING / 2
        self.num_evaluated += len(said)
        self.num_off_support += int(is_off.sum())
        return (log_weights + torch.where(is_off[:, None], 0.0, said)).softmax(1)

    def _of_numbers(
        self, latents: Latents, times: Times, num: int
    ) -> tuple[Float64[Tensor, "b c"], Float64[Tensor, "b c d"], Float64[Tensor, "g c d d"]]:
        """Log weights of the cells by the numbers alone, and the numbers' moments in each, in coordinates."""
        keys = [key for key in self.rows if key in latents]
        if not keys:
            return (
                self.log_weights.expand(num, -1),
                self._means.expand(num, *self._means.shape),
                self._spread[None],
            )
        at = torch.cat([torch.arange(len(self._basis))[self.rows[key]] for key in keys])
        y = torch.cat([latents[key].double().flatten(1) for key in keys], dim=1) @ self._basis[at][:, at]
        alpha, sigma = self._coefficients(keys, times)  # [g, n] each
        noisy = alpha[:, None, :, None] * self._spread[:, at][:, :, at] * alpha[:, None, None, :]
        noisy = noisy + sigma.square().diag_embed()[:, None]
        # Each number in a unit of its own, so that what is almost taken away is as well conditioned as the rest; what
        # is taken away altogether, without noise in its place, says nothing.
        unit = noisy.diagonal(dim1=-2, dim2=-1).amax(1).sqrt()  # [g, n]
        is_gone = unit == 0
        unit = torch.where(is_gone, 1.0, unit)
        noisy = noisy / (unit[:, None, :, None] * unit[:, None, None, :]) + is_gone.double().diag_embed()[:, None]
        root = torch.linalg.cholesky(noisy)
        inverse = torch.linalg.solve_triangular(root, torch.eye(len(at), dtype=torch.float64), upper=False)
        residual = (y[:, None] - alpha[:, None] * self._means[:, at]) / unit[:, None]
        z = _applied(inverse, torch.where(is_gone[:, None], 0.0, residual))
        gain = self._spread[:, :, at] * (alpha / unit)[:, None, None, :] @ inverse.mT  # [g, c, d, n]
        log_density = -0.5 * z.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_weights + log_density, self._means + _applied(gain, z), self._spread - gain @ gain.mT

    def _coefficients(self, keys: Sequence[str], times: Times) -> tuple[Float64[Tensor, "g n"], Float64[Tensor, "g n"]]:
        used = [times[modality_of(key)].double() for key in keys]
        if all(bool((t == t[0]).all()) for t in used):
            used = [t[:1] for t in used]
        rows = [self._numbers(key).moments(t, self.shapes[key]) for key, t in zip(keys, used, strict=True)]
        alphas = [alpha.flatten(1) for alpha, _ in rows]
        sigmas = [sigma[:, None].expand_as(alpha) for alpha, (_, sigma) in zip(alphas, rows, strict=True)]
        return torch.cat(alphas, dim=1), torch.cat(sigmas, dim=1)

    # --- as a network ---

    def __call__(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """Exact clean estimates of the streams that are given: logits in float64, means in the state's own dtype."""
        num = len(next(iter(latents.values())))
        log_weights, means, _ = self._of_numbers(latents, times, num)
        weights = self._weighed(log_weights, latents, times)
        mean = torch.einsum("bc,bcd->bd", weights, means) @ self._basis.T
        estimates = {}
        for key, x in latents.items():
            if key in self.symbols:
                estimates[key] = self._logits(key, weights)
            else:
                estimates[key] = mean[:, self.rows[key]].reshape(-1, *self.shapes[key]).to(x.dtype)
        return estimates

    def _logits(self, key: str, weights: Float64[Tensor, "b c"]) -> Float64[Tensor, "b *shape v"]:
        """Log probability of each symbol at each place; `NOTHING` in place of minus infinity."""
        is_symbol = torch.nn.functional.one_hot(self.symbols[key], self._symbols(key).size)
        share = weights @ is_symbol.flatten(1).double()
        return torch.where(share > 0, share.log(), NOTHING).reshape(len(weights), *is_symbol.shape[1:])

    def network(self, latents: Latents, times: Times, kept: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The exact predictions, as `Objective` asks a network for them.

        Args:
            latents: states.
            times: theirs.
            kept: not used: what is not kept is at T.
        """
        return {
            key: self.processes[modality_of(key)].prediction_of(latents[key], clean, times[modality_of(key)])
            for key, clean in self(latents, times).items()
        }

    def draw(self, num: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Exact samples of the joint distribution, of all streams."""
        generator = torch.Generator().manual_seed(seed)
        cells = torch.multinomial(self.log_weights.exp(), num, replacement=True, generator=generator)
        noise = torch.randn(num, len(self._basis), generator=generator, dtype=torch.float64)
        root = torch.linalg.cholesky(self._spread)
        flat = (self._means[cells] + (root[cells] @ noise[..., None])[..., 0]) @ self._basis.T
        numbers = {key: flat[:, rows].reshape(-1, *self.shapes[key]) for key, rows in self.rows.items()}
        return {key: ids[cells] for key, ids in self.symbols.items()} | numbers


def _applied(matrices: Float64[Tensor, "g c m n"], vectors: Float64[Tensor, "b c n"]) -> Float64[Tensor, "b c m"]:
    """Each cell's matrix times its vector; g is 1 or b."""
    if len(matrices) == 1:
        return torch.einsum("cmn,bcn->bcm", matrices[0], vectors)
    return torch.einsum("bcmn,bcn->bcm", matrices, vectors)
