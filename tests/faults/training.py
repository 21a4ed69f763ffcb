"""A small real training for the campaigns: `unidiffuser fit` in forks of a process that has imported everything."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor

from tests.command import _be_the_command
from tests.faults.scoreboard import Outcome
from unidiff_core.cli import fit
from unidiff_core.data.shard import write_manifest, write_shard
from unidiff_core.serialization.model_directory import SUMS

SHAPES = {"image.ae": (4, 2, 2), "image.clip": (3,), "text.states": (3, 5)}
CODECS = {
    "image": {"class": "ImageCodec", "size": 8, "downsampling": 4, "latent_channels": 2, "clip_width": 3, "patch": 2},
    "text": {"class": "TextCodec", "length": 3, "width": 5},
}
NUM, BATCH, STEPS = 40, 8, 12
CONFIG = f"""
model:
  modalities: {{image: {{}}, text: {{}}}}
  backbone: {{class_path: UViT, init_args: {{width: 16, depth: 3, heads: 2}}}}
  lr_scheduler: {{class_path: Warmup, init_args: {{steps: 2}}}}
data: {{train: latents, validation: held, batch_size: {BATCH}, micro_batch_size: 4}}
ckpt_path: last
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: {STEPS}
  max_epochs: -1
  val_check_interval: 8
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - {{class_path: EMA, init_args: {{decay: 0.9}}}}
  - {{class_path: MeasureCleanStd, init_args: {{num_bins: 2}}}}
  - {{class_path: ModelDirectory, init_args: {{folder: run}}}}
  - class_path: ModelCheckpoint
    init_args: {{dirpath: run, save_last: true, every_n_train_steps: 3, save_top_k: -1, filename: "{{step}}"}}
"""
"""Two micro-batches a step, a checkpoint every three steps, validation every four."""


def prepare(folder: Path, sizes: Sequence[int] = (NUM,)) -> None:
    """Everything that a training needs, in an empty folder."""
    write_latents(folder / "latents", sizes)
    write_latents(folder / "held", (12,))
    (folder / "fit.yaml").write_text(CONFIG)
    _import_everything(str(folder))


def write_latents(folder: Path, sizes: Sequence[int]) -> None:
    """Stored latents in shards of these sizes, of which one may be 0, and the manifest that names their codecs."""
    generator = torch.Generator().manual_seed(sum(sizes))
    rows = (
        {
            "__key__": f"{number:03d}",
            "safetensors": save({key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}),
        }
        for number in itertools.count()
    )
    shards = [
        write_shard(folder / f"{place:05d}.tar", itertools.islice(rows, size)) for place, size in enumerate(sizes)
    ]
    write_manifest(folder, shards, codecs=CODECS)


@functools.cache
def _import_everything(folder: str) -> None:
    """Parse a configuration here, so that no fork imports what that needs."""
    with contextlib.chdir(folder), warnings.catch_warnings(), open(os.devnull, "w") as nowhere:  # noqa: PTH123
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            fit.prepare()
            fit.UniDiffuserCLI("fit", ["-c", "fit.yaml"])


class Child:
    """A training in a process of its own.

    Args:
        folder: its working folder.
        *options: of the command line, after the configuration.
        before: called in the child before the command.
        env: variables for it.
        config: of the command.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        before: Callable[[], None] = lambda: None,
        env: dict[str, str] | None = None,
        config: str = "fit.yaml",
    ) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 — read while it runs
        self._code: int | None = None
        self.process = os.fork()
        if self.process == 0:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            try:
                before()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            arguments = ["fit", "-c", config, *options]
            _be_the_command(arguments, self._out.fileno(), self._err.fileno(), folder, env or {})

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self._code is None:
            found, status = os.waitpid(self.process, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code

    def kill(self) -> int:
        """Kill it and its own children; its exit code, −9 unless it had ended before."""
        while self.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process, signal.SIGKILL)
            time.sleep(0.001)
        assert self._code is not None
        return self._code

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit code.

        Raises:
            TimeoutError: if it does not end; it is killed.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if (code := self.poll()) is not None:
                return code
            time.sleep(0.005)
        self.kill()
        raise TimeoutError(f"a training did not end within {timeout:.0f} s; it said: {self.said[-2000:]}")

    @property
    def said(self) -> str:
        """All of its output so far."""
        texts = []
        for stream in (self._out, self._err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
        return "\n".join(texts)


def await_all(children: Sequence[Child], what: str) -> None:
    """Wait until all have ended well; none is left behind.

    Raises:
        RuntimeError: if one fails; `what` says which training it is.
        TimeoutError: if one does not end.
    """
    try:
        for child in children:
            if code := child.wait():
                raise RuntimeError(f"{what}: a training ended with {code}: {child.said[-2000:]}")
    finally:
        for child in children:
            child.kill()


def together(folder: Path, world: int, *options: str, before: Callable[[int], None] = lambda rank: None) -> list[Child]:
    """A training on several processes, as torchrun starts them.

    Args:
        folder: its working folder.
        world: processes.
        *options: of the command line, after the configuration.
        before: called in each process, with its rank, before the command.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "faults", "GROUP_RANK": "0"}
    sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    options = ("--trainer.strategy=ddp", f"--trainer.devices={world}", *options)
    return [
        Child(
            folder, *options, before=partial(before, rank),
            env={**shared, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]  # fmt: skip


def train(folder: Path, *options: str, **more: object) -> str:
    """Train to the end; what it said.

    Raises:
        RuntimeError: if it fails.
    """
    child = Child(folder, *options, **more)  # type: ignore[arg-type]
    if code := child.wait():
        raise RuntimeError(f"a training ended with {code}: {child.said[-2000:]}")
    return child.said


def result(folder: Path) -> dict[str, Tensor]:
    """All that a training leaves: the model directory's tensors and table, and the last checkpoint's tensors."""
    checkpoint = torch.load(folder / "run/last.ckpt", weights_only=True)
    found = {f"step/{checkpoint['global_step']}": torch.tensor(checkpoint["global_step"])}
    for name in ("model", "ema"):
        found |= {f"{name}/{key}": value for key, value in load_file(folder / f"run/{name}.safetensors").items()}
    rows = yaml.safe_load((folder / "run/clean_std.yaml").read_text())
    found |= {f"clean_std/{key}": torch.tensor(points) for key, points in rows.items() if key != SUMS}
    found |= {f"weights/{key}": value for key, value in checkpoint["state_dict"].items()}
    found |= {f"average/{key}": value for key, value in checkpoint["callbacks"]["EMA"]["average"].items()}
    for number, row in checkpoint["optimizer_states"][0]["state"].items():
        found |= {f"optimizer/{number}/{key}": value for key, value in row.items()}
    return found


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether two results are the same, to the bit."""
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


@functools.cache
def uninterrupted(*options: str) -> dict[str, Tensor]:
    """The result of a training that nothing happens to."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        train(Path(name), *options)
        return result(Path(name))


def resumed(folder: Path, *options: str) -> Outcome:
    """Call the command again: survived if that ends as a training that nothing happened to."""
    train(folder, *options)
    return Outcome.SURVIVED if same(result(folder), uninterrupted(*options)) else Outcome.SILENT


def turns(count: int, kinds: Sequence[str]) -> Iterator[tuple[str, int]]:
    """`count` pairs of a kind and its number, the kinds by turns."""
    for number in range(count):
        yield kinds[number % len(kinds)], number // len(kinds)
