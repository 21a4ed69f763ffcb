"""What is done to clean estimates before a step is made with them: each wrapper knows which it accepts.

Guidance with a large scale drives estimates out of the data's range (thresholds) and spreads them (rescaling); a
gradient leads them to what some other network knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unidiff_core.foundation.argument import check_number
from unidiff_core.foundation.latents import Latents, Times, modality_of
from unidiff_core.process.process import EstimateError, ForwardProcess
from unidiff_core.sampling.predictor import Predictor
from unidiff_core.sampling.spec import TimestepSpec

Check = Callable[[ForwardProcess], None]
"""Raises `EstimateError` if the estimates of a process are not accepted."""


def accepted(processes: Mapping[str, ForwardProcess], check: Check) -> list[str]:
    """Those of some modalities whose estimates are accepted.

    Raises:
        EstimateError: if none are: the first one's.
    """
    names, refusals = [], []
    for name, process in processes.items():
        try:
            check(process)
            names.append(name)
        except EstimateError as error:
            refusals.append(error)
    if refusals and not names:
        raise refusals[0]
    return names


# --- thresholds ---


@dataclass(frozen=True)
class Threshold:
    """Clean estimates are kept within the range of the data.

    Only data with a range can be: pixels in −1..1. Latents of an autoencoder have none, so that a threshold there
    cuts off what the data has too.

    Attributes:
        bound: of absolute values: one for every solved modality that is of numbers, or for each by name.
        ratio: makes it dynamic: see `thresholded`.
    """

    bound: float | Mapping[str, float] = 1.0
    ratio: float | None = None

    def wrap(self, predictor: Predictor, spec: TimestepSpec, processes: Mapping[str, ForwardProcess]) -> Predictor:
        """A predictor whose estimates of what a spec solves are within the range.

        Raises:
            SpecError: if a bound is named for what is not solved.
            EstimateError: if it is of symbols.
        """
        if isinstance(self.bound, Mapping):
            spec.check_solved(self.bound, "a threshold")
            for name in self.bound:
                check_thresholds(processes[name])
            bounds = dict(self.bound)
        else:
            names = accepted({name: processes[name] for name in spec.solved}, check_thresholds)
            bounds = dict.fromkeys(names, self.bound)

        def within(latents: Latents, times: Times) -> dict[str, Tensor]:
            return {
                key: thresholded(value, bounds[modality_of(key)], self.ratio) if modality_of(key) in bounds else value
                for key, value in predictor(latents, times).items()
            }

        return within


def check_thresholds(process: ForwardProcess) -> None:
    """Whether a process's estimates have a range.

    Raises:
        EstimateError: if they are logits.
    """
    if process.estimate == "logits":
        raise EstimateError(
            f"a threshold is for estimates of numbers, and {type(process).__name__} estimates logits, whose size is "
            "how sure the network is; name the modalities that it is for, {image: 1}"
        )


def thresholded(clean: Float[Tensor, "b *shape"], bound: float, ratio: float | None) -> Float[Tensor, "b *shape"]:
    """Clean estimates within −bound..bound.

    Static (no ratio): what is beyond is cut off. Dynamic (Imagen, Saharia et al. 2022, arXiv 2205.11487, section 2.3):
    with s the quantile `ratio` of a sample's absolute values, where that is above the bound, what is beyond s is cut
    off, and all is multiplied by bound/s.
    """
    if ratio is None:
        return clean.clamp(-bound, bound)
    # Sample by sample: torch.quantile takes 16 million values at most.
    least = torch.stack([row.flatten().abs().quantile(ratio) for row in clean])
    s = least.clamp(min=bound).reshape(-1, *[1] * (clean.ndim - 1))
    return clean.clamp(-s, s) * (bound / s)


# --- rescaling ---


def check_rescales(processes: Sequence[ForwardProcess]) -> None:
    """Whether a guided estimate of one of these processes has a spread that can be taken back.

    Raises:
        EstimateError: if none is a mean.
    """
    accepted({str(i): process for i, process in enumerate(processes)}, _check_is_mean)


def _check_is_mean(process: ForwardProcess) -> None:
    if process.estimate != "mean":
        raise EstimateError(
            f"guidance_rescale is for estimates that are means, and {type(process).__name__} estimates "
            f"{process.estimate}; leave it out"
        )


def rescaled(
    guided: Latents,
    plain: Latents,
    latents: Latents,
    times: Times,
    processes: Mapping[str, ForwardProcess],
    *,
    share: float,
) -> dict[str, Tensor]:
    """Guided clean estimates with the spread that they had before, for a share of them (Lin et al. 2023, section 3.4).

    The spread is that of what the network predicts (noise, velocity, …), over each sample's stream, as there. Estimates
    that are no means, and streams of one element, stay as they are.

    Args:
        guided: clean estimates with guidance.
        plain: and without; of these streams at least.
        latents: the states of both.
        times: of the states.
        processes: by modality.
        share: φ; 0 leaves all as it is.
    """
    found = dict(guided)
    for key, clean in guided.items():
        process, x, t = processes[modality_of(key)], latents[key], times[modality_of(key)]
        if clean is not plain[key] and process.estimate == "mean" and clean[0].numel() > 1:
            prediction, before = (process.prediction_of(x, row, t) for row in (clean, plain[key]))
            ratio = _spread(before) / _spread(prediction).clamp(min=torch.finfo(clean.dtype).tiny)
            found[key] = process.clean(x, (share * ratio + (1 - share)) * prediction, t)
    return found


def _spread(x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *ones"]:
    return x.std(list(range(1, x.ndim)), keepdim=True)


# --- a gradient ---

LogProbability = Callable[[Latents, Times], Tensor]
"""(states ``"<modality>.<stream>" -> [b, ...]``, times in steps) → log p(y | states) ``[b]``, up to a constant."""


@dataclass(frozen=True)
class Gradient:
    """What is solved is led by another network: a classifier of noisy states, or a CLIP that was trained on them.

    The clean estimate is shifted by scale·sigma²/alpha·∇ log p(y | x_t) (Dhariwal & Nichol 2021, arXiv 2105.05233;
    with a CLIP's score as the log probability GLIDE, Nichol et al. 2021, arXiv 2112.10741, section 4.2). If p is right
    and the scale is 1, the sample is one of the distribution given y. It knows noisy states: one that was trained on
    clean data alone gives directions at early times that mean nothing. Of Gaussian noise alone.

    Attributes:
        log_probability: of each sample, by states and times of all modalities; differentiable by the states.
        scale: 1 is Bayes' rule; above it what is asked for is overdone, as by guidance.
    """

    log_probability: LogProbability
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.log_probability):
            raise ValueError(f"log_probability is a function of states and times, not {self.log_probability!r}")
        check_number("the scale of a gradient", self.scale)

    def wrap(self, predictor: Predictor, spec: TimestepSpec, processes: Mapping[str, ForwardProcess]) -> Predictor:
        """A predictor whose estimates of what a spec solves are shifted, as far as it is of Gaussian noise.

        Raises:
            EstimateError: if nothing is.
        """
        names = accepted({name: processes[name] for name in spec.solved}, lambda process: process.check_shifts())

        def led(latents: Latents, times: Times) -> dict[str, Tensor]:
            clean = predictor(latents, times)
            gradients = self._gradients(latents, times, [key for key in clean if modality_of(key) in names])
            return clean | {
                key: processes[modality_of(key)].shifted(clean[key], self.scale * row, times[modality_of(key)])
                for key, row in gradients.items()
            }

        return led

    def _gradients(self, latents: Latents, times: Times, keys: Sequence[str]) -> dict[str, Tensor]:
        with torch.enable_grad():
            free = {key: latents[key].detach().requires_grad_() for key in keys}
            log_probability = self.log_probability({**latents, **free}, times)
            num = len(latents[keys[0]])
            if not isinstance(log_probability, Tensor) or log_probability.shape != (num,):
                found = tuple(log_probability.shape) if isinstance(log_probability, Tensor) else log_probability
                raise ValueError(f"a log probability is a tensor of one for each of {num} samples, not {found!r}")
            if not log_probability.requires_grad:
                raise ValueError(
                    f"the log probability does not depend on {', '.join(keys)}, or was computed without gradients"
                )
            rows = torch.autograd.grad(log_probability.sum(), list(free.values()), allow_unused=True)
        return {key: row for key, row in zip(free, rows, strict=True) if row is not None}
