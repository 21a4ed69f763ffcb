"""Side by side with diffusers and with plain loops, on this machine: docs/performance.md, .json and .svg.

    python benchmarks/performance.py                           about ten minutes on two CPU cores
    python benchmarks/performance.py --rows forward,overhead   some of it, shown and not written
    python benchmarks/performance.py --tiny                    every row at toy size, shown: does it run?

Both sides have the same weights, data type, latents and number of network evaluations. They are timed in turn, and a
ratio is the median of the pairs'. The network has 45M parameters and 336 tokens (an image of 256 pixels). Run nothing
else beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from paired import PAIRS, Ratio, compare
from peer import Peer, Sizes, updates_alone
from safetensors.torch import save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.text import TextCodec

from unidiff_core import Gaussian, Modality, UniDiffuser
from unidiff_core.data.module import OrderedData
from unidiff_core.data.shard import write_shards
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.uvit import UViT
from unidiff_core.training.ema import EMA

DOCS = Path(__file__).parent.parent / "docs"
FULL, TINY = Sizes(512, 12, 8, side=32), Sizes(32, 2, 4, side=8, clip=24, length=7, text=32)
DIGITS = Sizes(96, 4, 4, side=8, clip=32, length=16, text=16)
"""About the digits recipe's network: the overhead's other end."""
START, END = "<!-- figures -->", "<!-- end of figures -->"
HEAD = ["what", "ours, ms", "theirs, ms", "ratio [95 %]", "target", "met", "error"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: is compared.
        ratio: theirs over ours.
        target: of the ratio.
        error: relative root mean square difference of the results, where they were compared.
    """

    what: str
    ratio: Ratio
    target: float
    error: float | None = None

    @property
    def cells(self) -> list[str]:
        """Of the table."""
        row, error = self.ratio, "" if self.error is None else f"{self.error:.1e}"
        seconds = [f"{1000 * value:.4g}" for value in (row.ours, row.theirs)]
        ratio, verdict = f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]", "yes" if self.is_met else "**no**"
        return [self.what, *seconds, ratio, f"{self.target:g}", verdict, error]

    @property
    def is_met(self) -> bool:
        """The target."""
        return self.ratio.ratio >= self.target


class Bench:
    """Both sides with the same weights, on the same latents."""

    def __init__(self, sizes: Sizes, pairs: int, batch: int) -> None:
        self.sizes, self.pairs, self.batch = sizes, pairs, batch
        self.peer, self.model = Peer(sizes), model_of(sizes)
        self.model.backbone.load_state_dict(self.peer.weights())
        generator = torch.Generator().manual_seed(0)
        shapes = self.model.shapes
        self.latents = {key: torch.randn(batch, *shape, generator=generator) for key, shape in shapes.items()}
        ae = self.latents["image.ae"]
        self.stored = self.latents | {"image.ae": torch.cat([ae, torch.full_like(ae, -30.0)], 1)}  # mean, log variance
        self.times = {name: torch.full((batch,), t) for name, t in {"image": 300.0, "text": 700.0}.items()}

    def compare(self, ours: Callable[[], object], theirs: Callable[[], object]) -> Ratio:
        """See `paired.compare`."""
        return compare(ours, theirs, pairs=self.pairs)

    def forward(self) -> Iterator[Row]:
        """The same network on the same latents."""
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
            backbone, peer = copy.deepcopy(self.model.backbone).to(dtype).eval(), copy.deepcopy(self.peer)
            peer.network.to(dtype)
            latents = {key: value.to(dtype) for key, value in self.latents.items()}
            ours, theirs = partial(backbone, latents, self.times), partial(peer.predict, latents, self.times)
            with torch.no_grad():
                yield Row(f"forward, {name}", self.compare(ours, theirs), 1.0, difference(ours(), theirs()))

    def training(self) -> Iterator[Row]:
        """Loss, gradient, AdamW, average."""
        fair = self.peer.training_step(self.latents, is_fused=True)
        yield Row("training step, fp32, both fused", self.compare(self.training_step(), fair), 1.0)
        published = self.peer.training_step(self.latents, is_fused=False)
        ours = self.training_step(is_half=True)
        yield Row("training step, bf16 autocast, against as published", self.compare(ours, published), 2.5)

    def training_step(self, *, is_half: bool = False) -> Callable[[], None]:
        """Ours, without a trainer around it."""
        model = copy.deepcopy(self.model).train()
        parameters = list(model.parameters())
        optimizer, average = model.optimizer(parameters), [value.detach().clone() for value in parameters]
        batch = Batch(torch.arange(self.batch), 0, self.stored)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                loss, _ = model._losses(batch, "train")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            torch._foreach_lerp_(average, [value.detach() for value in parameters], 1e-4)

        return step

    def sampling(self) -> Iterator[Row]:
        """Text to image on latents, guided: the pipeline's loop against `sample_latents`."""
        steps, states = 4, self.latents["text.states"]
        theirs = self.peer.text_to_image(states, steps, guidance=3.0)
        half = copy.deepcopy(self.model)
        half.backbone.to(torch.bfloat16)

        def ours(model: UniDiffuser) -> dict[str, Tensor]:
            held = {"text.states": states}
            return model.sample_latents("image | text", held, num=len(states), steps=steps, guidance=2.0)

        name = f"text to image, {2 * steps} evaluations"
        yield Row(f"{name}, fp32", self.compare(partial(ours, self.model), theirs), 1.0)
        error = difference(ours(half), ours(self.model))
        yield Row(f"{name}, bf16 against fp32", self.compare(partial(ours, half), theirs), 2.5, error)

    def attention(self) -> Iterator[Row]:
        """A block's attention at 512 pixels, against the same with one of torch's kernels forced."""
        tokens = 50 if self.sizes is TINY else 1105
        block: Any = next(iter(self.model.backbone.layers))
        x = torch.randn(2, tokens, self.sizes.width)
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            ours, theirs = partial(block.attention, x), partial(attention, block, x, backend)
            with torch.no_grad():
                ratio, error = self.compare(ours, theirs), difference({"x": ours()}, {"x": theirs()})
            yield Row(f"attention, {tokens} tokens, against {backend.name.lower()}", ratio, 0.97, error)

    def updates(self) -> Iterator[Row]:
        """AdamW and the average, over all tensors at once against one by one."""
        ours, theirs = (updates_alone(copy.deepcopy(self.model.backbone), is_fused=fused) for fused in (True, False))
        yield Row("AdamW and average, against a loop over tensors", self.compare(ours, theirs), 2.5)

    def overhead(self) -> Iterator[Row]:
        """The trainer with its callbacks, stored latents and checks against a bare loop of the same step."""
        is_tiny = self.sizes is TINY
        small = self if is_tiny else Bench(DIGITS, self.pairs, 64)
        for name, bench, target, num in (
            ("this size", self, 0.97, 2 if is_tiny else 6),
            ("the digits' size", small, 0.9, 2 if is_tiny else 60),
        ):
            with tempfile.TemporaryDirectory() as folder:
                ours, theirs = bench.trained(num, folder), partial(repeat, bench.training_step(), num)
                yield Row(
                    f"{num} steps by the trainer, against a bare loop: {name}", bench.compare(ours, theirs), target
                )

    def trained(self, steps: int, folder: str) -> Callable[[], float]:
        """Seconds that some steps by the trainer take, after the first, on latents stored in a folder."""
        rows = ({key: value[i] for key, value in self.stored.items()} for i in range(self.batch))
        write_shards(Path(folder), ({"__key__": f"{i:06d}", "safetensors": save(row)} for i, row in enumerate(rows)))
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")

        def run() -> float:
            clock, model = Clock(), copy.deepcopy(self.model).train()
            callbacks: list[pl.Callback] = [EMA(0.999), clock]
            trainer = pl.Trainer(
                accelerator="cpu", max_steps=steps + 1, callbacks=callbacks, **dict.fromkeys(off, False)
            )
            trainer.fit(model, OrderedData(folder, batch_size=self.batch))
            return clock.times[-1] - clock.times[0]

        return run

    def opening(self) -> Iterator[Row]:
        """A model directory to its first forward, its hash checked, against a pickle of the same weights."""
        with tempfile.TemporaryDirectory() as name:
            folder, pickle = Path(name) / "model", Path(name) / "model.pt"
            self.model.save_pretrained(folder)
            torch.save(self.model.state_dict(), pickle)

            def ours() -> None:
                UniDiffuser.from_pretrained(folder, allow_hub=True).network(self.latents, self.times)

            def theirs() -> None:
                model = model_of(self.sizes)
                model.load_state_dict(torch.load(pickle, weights_only=True))
                model.network(self.latents, self.times)

            with torch.no_grad():
                yield Row("model directory to first forward, against a pickle", self.compare(ours, theirs), 20.0)


ROWS = {
    row.__name__: row
    for row in (
        *(Bench.forward, Bench.training, Bench.sampling, Bench.attention, Bench.updates, Bench.overhead),
        Bench.opening,
    )
}


class Clock(pl.Callback):
    """When each step was over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """A step."""
        self.times.append(time.perf_counter())


def model_of(sizes: Sizes) -> UniDiffuser:
    """Ours of these sizes, as the released one is: noise is predicted. Its codecs load nothing until they are used."""
    image = ImageCodec(size=8 * sizes.side, native_size=8 * sizes.side, clip_width=sizes.clip)
    codecs = {"image": image, "text": TextCodec(length=sizes.length, width=sizes.text)}
    make = partial(UViT, width=sizes.width, depth=sizes.depth + 1, heads=sizes.heads)
    fused = partial(torch.optim.AdamW, lr=2e-4, weight_decay=0.03, betas=(0.9, 0.9), fused=True)
    return UniDiffuser({name: Modality(codec, Gaussian()) for name, codec in codecs.items()}, make, optimizer=fused)


def attention(block: Any, x: Tensor, backend: SDPBackend) -> Tensor:
    """A block's attention by one kernel, written out."""
    b, n, width = x.shape
    q, k, v = block.qkv(x).view(b, n, 3, block.heads, width // block.heads).permute(2, 0, 3, 1, 4)
    with sdpa_kernel(backend):
        rows = F.scaled_dot_product_attention(q, k, v)
    projected: Tensor = block.proj(rows.transpose(1, 2).reshape(b, n, width))
    return projected


def repeat(call: Callable[[], object], times: int) -> None:
    """Call it some times."""
    for _ in range(times):
        call()


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Root mean square of the difference over that of the values, the largest of all streams."""
    pairs = [(ours[key].float(), theirs[key].float()) for key in ours.keys() & theirs.keys()]
    return max(float((a - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs)


def start(code: str) -> float:
    """Seconds of processor time that a fresh interpreter takes for some code: the least of five."""

    def once() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return min(once() for _ in range(5))


def starts() -> dict[str, tuple[float, float]]:
    """What is started → processor seconds beyond an empty interpreter, or beyond torch; and the target."""
    empty, with_torch = start(""), start("import torch")
    command = "import sys; sys.argv[1:] = ['--help']; from unidiff_core.cli.main import main; main()"
    return {
        "`unidiffuser --help`": (start(command) - empty, 0.3),
        "`import unidiff_core`": (start("import unidiff_core") - empty, 0.1),
        "`from unidiff_core import UniDiffuser`, beyond torch": (
            start("from unidiff_core import UniDiffuser") - with_torch,
            1.5,
        ),
    }


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """What this is measured on."""
    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def figure(rows: list[Row]) -> str:
    """The ratios with their intervals and targets, as SVG; those of 20 and more are cut."""
    left, unit, height, most = 420, 90, 22, 5.0

    def at(value: float) -> float:
        return left + unit * min(value, most)

    parts = [f'<text x="{left}" y="14">times longer that the other side takes; grey: the target</text>']
    for i, row in enumerate(rows):
        y, ratio = 34 + i * height, row.ratio
        parts += [
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(row.what)}</text>',
            f'<line x1="{at(row.target):.1f}" x2="{at(row.target):.1f}" y1="{y - 8}" y2="{y + 8}" stroke="#999999"/>',
            f'<line x1="{at(ratio.low):.1f}" x2="{at(ratio.high):.1f}" y1="{y}" y2="{y}" stroke="#2266cc"/>',
            f'<circle cx="{at(ratio.ratio):.1f}" cy="{y}" r="4" fill="#2266cc"/>',
        ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {at(most) + 20:.0f} {44 + len(rows) * height}">'
    style = "<style>text {font: 12px sans-serif; fill: #777777}</style>"
    return f"{head}{style}{''.join(parts)}</svg>\n"


def write(rows: list[Row], single: dict[str, tuple[float, float]]) -> None:
    """Put the figures into the docs."""
    record = {
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
        "seconds": {name: seconds for name, (seconds, _) in single.items()},
    }
    (DOCS / "performance.json").write_text(json.dumps(record, indent=1) + "\n")
    (DOCS / "performance.svg").write_text(figure(rows))
    lines = [f"* {name}: {seconds:.2f} s, target {most:g}" for name, (seconds, most) in single.items()]
    text = f"Measured on {machine()}.\n\n{table(rows)}\n\nSeconds of processor time:\n\n" + "\n".join(lines)
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="which, with commas between")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of timings; at least 7 for figures to be shown")
    parser.add_argument("--batch", type=int, default=8, help="samples of an evaluation and of a training step")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, in seconds; nothing is written")
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    bench = Bench(TINY if options.tiny else FULL, options.pairs, options.batch)
    rows = []
    for name in options.rows.split(","):
        for row in ROWS[name](bench):
            print(" | ".join(row.cells), flush=True)
            rows.append(row)
    if not options.tiny and options.rows == parser.get_default("rows"):
        write(rows, starts())


if __name__ == "__main__":
    main()
