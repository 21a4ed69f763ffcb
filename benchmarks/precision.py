"""What a lower precision of the network costs in accuracy, and saves in time and memory.

    python benchmarks/precision.py runs/digits                     a trained model in bf16 against itself in fp32
    python benchmarks/precision.py runs/digits --precision fp16
    python benchmarks/precision.py --size 256                      the 952M network with random weights, 6 GiB of memory

Prints the relative error of the clean estimates, ‖low − fp32‖ / ‖fp32‖ over `--num` samples, by stream and time, all
modalities at one time. Their states are samples of the model itself, noised (noise alone for random weights). Then, for
a trained model, how far whole samples come apart, and for both what one evaluation takes.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.text import TextCodec

from unidiff_core import Modality, UniDiffuser
from unidiff_core.foundation.latents import cast, modality_of
from unidiff_core.foundation.precision import dtype_of
from unidiff_core.foundation.randomness import Draws
from unidiff_core.foundation.time import T, time_tensor
from unidiff_core.network.uvit import UViT

Seconds = list[tuple[float, float]]
"""Of each evaluation: by the clock, and of the processors."""


def full_size(size: int) -> UniDiffuser:
    """UniDiffuser's own configuration with random weights; no codec is loaded."""
    modalities = {"image": Modality(ImageCodec(size=size, native_size=512)), "text": Modality(TextCodec())}
    return UniDiffuser(modalities, partial(UViT, data_types=2)).eval()


def clean_latents(model: UniDiffuser, num: int, *, is_trained: bool) -> dict[str, Tensor]:
    """Joint samples of the model, or noise."""
    if is_trained:
        return model.sample(", ".join(model.modalities), num=num, steps=20, latents=True)
    index = torch.arange(num)
    return {key: Draws(0, "benchmark clean", key, 0, index).normal(shape) for key, shape in model.shapes.items()}


def states_at(model: UniDiffuser, clean: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
    """The latents, noised to a time."""
    index = torch.arange(len(t))
    states = {}
    for key, value in clean.items():
        process = model.modalities[modality_of(key)].process
        states[key] = cast(process.corrupt(value, t, Draws(0, "benchmark", key, 0, index)).corrupted, torch.float32)
    return states


@torch.no_grad()
def estimates(
    model: UniDiffuser, clean: dict[str, Tensor], times: list[float]
) -> tuple[dict[str, list[Tensor]], Seconds]:
    """Stream → clean estimates at each of the times, and how long they took."""
    rows: dict[str, list[Tensor]] = {key: [] for key in clean}
    seconds = []
    for fraction in times:
        t = time_tensor(fraction * T, len(next(iter(clean.values()))))
        states = states_at(model, clean, t)
        started = time.perf_counter(), time.process_time()
        found = model.predict(states, dict.fromkeys(model.modalities, t))
        seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        for key, value in found.items():
            rows[key].append(value)
    return rows, seconds


def relative(low: Tensor, full: Tensor) -> float:
    """‖low − full‖ / ‖full‖; of symbols the share that differs."""
    if not full.is_floating_point():
        return (low != full).double().mean().item()
    return ((low.double() - full.double()).norm() / full.double().norm()).item()


def said(name: str, model: UniDiffuser, seconds: Seconds) -> str:
    """Memory of the weights and time of an evaluation."""
    memory = sum(value.numel() * value.element_size() for value in model.backbone.parameters()) / 2**20
    clock, processor = (median(column) for column in zip(*seconds, strict=True))
    return f"{name}: {memory:,.0f} MiB of weights, {clock:.2f} s an evaluation ({processor:.2f} s of the processors)"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", nargs="?", type=Path, help="model directory")
    parser.add_argument("--size", type=int, help="pixels a side of the 952M configuration, in place of a directory")
    parser.add_argument("--precision", choices=["bf16", "fp16"], default="bf16")
    parser.add_argument("--num", type=int, help="samples: 16, or 1 of the 952M configuration")
    parser.add_argument("--times", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9], help="as fractions of T")
    options = parser.parse_args(argv)
    if (options.model is None) == (options.size is None):
        parser.error("give a model directory, or --size")
    is_trained = options.model is not None
    num = options.num or (16 if is_trained else 1)
    model = UniDiffuser.from_pretrained(options.model) if is_trained else full_size(options.size)
    with torch.no_grad():
        clean = clean_latents(model, num, is_trained=is_trained)
    full, seconds = estimates(model, clean, options.times)
    print(said("fp32", model, seconds), flush=True)
    model.backbone.to(dtype_of(options.precision))
    low, seconds = estimates(model, clean, options.times)
    print(said(options.precision, model, seconds))
    print(f"\n| relative error in {options.precision} | " + " | ".join(f"t = {t:g}" for t in options.times) + " |")
    print("|---" * (len(options.times) + 1) + "|")
    for key, rows in full.items():
        print(f"| {key} | " + " | ".join(f"{relative(a, b):.1e}" for a, b in zip(low[key], rows, strict=True)) + " |")
    if is_trained:
        again = clean_latents(model, num, is_trained=True)
        parts = ", ".join(f"{key} {relative(again[key], value):.1e}" for key, value in clean.items())
        print(f"\nsamples of {', '.join(model.modalities)} in 20 steps come apart by: {parts}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
