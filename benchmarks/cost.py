"""What a training step costs as modalities are added: tokens, time and memory for 1 to 8 equal ones.

    python benchmarks/cost.py                          a minute or two on two CPU cores
    python benchmarks/cost.py --tokens 64 --width 256

In each sample every modality is left out with probability 1/2 (at least one stays). Without dropping such a modality
is noise at T; with `drop_ignored` its tokens are not there. Beside the time stands what arithmetic expects of it,
relative to the row of one modality: matrix products by tokens, attention by tokens squared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from functools import partial

import torch
from torch import Tensor

from unidiff_core import Codec, Modality, Stream, UniDiffuser
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.backbone import Backbone
from unidiff_core.network.uvit import UViT

BATCH, CHANNELS = 32, 16


class SequenceCodec(Codec):
    """A sequence as it is."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    @property
    def streams(self) -> dict[str, Stream]:
        """One sequence."""
        return {"x": Stream.sequence(self.length, CHANNELS)}

    encode = decode = from_bytes = to_bytes = None  # type: ignore[assignment] # the latents are made here


def make(num: int, options: argparse.Namespace, *, drops: bool) -> UniDiffuser:
    """A model of `num` equal modalities."""
    modalities = {f"m{i}": Modality(SequenceCodec(options.tokens)) for i in range(num)}
    backbone = partial(UViT, width=options.width, depth=options.depth, heads=4)
    model = UniDiffuser(modalities, backbone, drop_ignored=drops)
    model.log = model.log_dict = lambda *_, **__: None  # type: ignore[assignment,method-assign]
    return model


def batch(num: int, length: int, step: int) -> Batch:
    """Half of everything missing, at least one modality present."""
    generator = torch.Generator().manual_seed(step)
    present = torch.rand(BATCH, num, generator=generator) < 0.5
    present[torch.arange(BATCH), torch.randint(num, (BATCH,), generator=generator)] = True
    stored = {f"m{i}.x": torch.randn(BATCH, length, CHANNELS, generator=generator) for i in range(num)}
    return Batch(torch.arange(BATCH), step, stored, present={f"m{i}": present[:, i] for i in range(num)})


def measure(num: int, options: argparse.Namespace, drops: bool) -> tuple[float, float, float]:
    """(mean tokens a sample, median seconds a step, peak bytes above the start) of a process of its own."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = make(num, options, drops=drops)
    tokens: list[int] = []
    count_tokens(model.backbone, tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for step in range(options.steps + 3):
        rows = batch(num, options.tokens, step)
        started = time.perf_counter()
        model.training_step(rows).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return sum(tokens) / BATCH / (options.steps + 3), sorted(seconds[3:])[options.steps // 2], peak


def count_tokens(backbone: Backbone, tokens: list[int]) -> None:
    """Append the tokens of each evaluation to a list."""
    first = next(iter(backbone.layers))

    def note(_: object, inputs: tuple[Tensor, ...]) -> None:
        tokens.append(inputs[0].shape[0] * inputs[0].shape[1])

    first.register_forward_pre_hook(note)


def expected(tokens: float, options: argparse.Namespace) -> float:
    """FLOP of a sample, up to a constant: 6 a block parameter and token, and attention's products."""
    parameters = options.depth * 12 * options.width**2
    return 6 * parameters * tokens + 12 * options.depth * options.width * tokens**2


def row(num: int, options: argparse.Namespace, drops: bool) -> tuple[float, float, float]:
    """`measure` in a fresh process, so that the peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (num, options, drops))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokens", type=int, default=32, help="of a modality, besides its time token")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15, help="timed steps; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=8, help="modalities at most")
    options = parser.parse_args()
    print("| N | tokens | s a step | × | expected × | memory | tokens, dropped | s a step | × | expected × | memory |")
    print("|---" * 11 + "|")
    start: dict[bool, tuple[float, float]] = {}
    for num in range(1, options.most + 1):
        cells = [f"{num}"]
        for drops in (False, True):
            tokens, seconds, peak = row(num, options, drops)
            first = start.setdefault(drops, (seconds, expected(tokens, options)))
            ratio, forecast = seconds / first[0], expected(tokens, options) / first[1]
            cells += [f"{tokens:.0f}", f"{seconds:.3f}", f"{ratio:.1f}", f"{forecast:.1f}", f"{peak / 2**20:.0f} MiB"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
