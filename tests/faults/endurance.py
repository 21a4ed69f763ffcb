"""A long training with kills, bad shards and bad numbers mixed in, beside a clean one: `make endurance`.

``python -m tests.faults.endurance --minutes 60``, where `make demo` has left its latents and codecs. The recipe of the
digits is trained twice at the same time: once with nothing in its way, and once with an adversary that

* kills it at random times, whenever it is ahead of a schedule of so many minutes;
* damages a shard while it is down: the next call must refuse it by name, and the shard is brought back from its copy;
* has put NaN into some samples, and spoils the loss or a gradient of some steps.

At the end every use of every sample is accounted for, from a ledger of what reached the model beside the training's
log; and both models are compared by their validation loss and by the digits' judge.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import sys
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import load, save
from torch import Tensor

from tests.command import run_command
from tests.faults.shards import KINDS
from tests.faults.training import Child
from unidiff_core import UniDiffuser
from unidiff_core.cli import fit
from unidiff_core.data.order import GlobalOrder, Place
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.samples import StoredDataset
from unidiff_core.data.shard import MANIFEST, STORED, write_shards
from unidiff_core.foundation.batch import Batch

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/digits"
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- the long run: written by `make endurance` -->", "<!-- end of the long run -->"
DAMAGES = ("payload flipped", "header flipped", "cut off", "empty", "absent")
"""Those kinds of damage that happen to a whole shard on a disk."""
BATCH, SEED = 64, 0
"""The recipe's."""
SMALL = ("--model.backbone.width=48", "--model.backbone.depth=3")
"""Where the recipe has a width of 96 and a depth of 5: the hour is for faults."""


@dataclass
class Plan:
    """What goes wrong, drawn before anything starts.

    Attributes:
        steps: of the training.
        poisoned: rows of the data set that hold NaN.
        spoilt: steps at which the loss (False) or a gradient (True) is infinite.
    """

    steps: int
    poisoned: list[int]
    spoilt: dict[int, bool]

    @classmethod
    def drawn(cls, steps: int, size: int, rng: random.Random) -> Plan:
        """Six samples, and a hundredth of the steps."""
        spoilt = {step: bool(rng.getrandbits(1)) for step in rng.sample(range(steps), max(2, steps // 100))}
        return cls(steps, sorted(rng.sample(range(size), 6)), spoilt)

    def order(self, size: int) -> list[Tensor]:
        """Rows of each step."""
        order = GlobalOrder(
            size, BATCH, micro_batch_size=BATCH, seed=SEED, rank=0, world=1, first_step=0, num_steps=self.steps
        )
        return [place.rows for place in order]

    def skipped(self, size: int) -> set[int]:
        """Steps that must be skipped."""
        bad = torch.tensor(self.poisoned)
        return {step for step, rows in enumerate(self.order(size)) if torch.isin(rows, bad).any()} | {*self.spoilt}


class Ledger(pl.Callback):
    """Writes a line for each step that was done: its number, its samples, and what reached the model of them."""

    def __init__(self, path: str) -> None:
        self.path, self._rows = path, list[tuple[str, int]]()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        names = [trainer.datamodule.sample_name(int(row)) for row in batch.rows]
        self._rows += zip((name.split()[1] for name in names), contents(batch), strict=True)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        line = json.dumps({"step": trainer.global_step - 1, "rows": self._rows}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())  # in one piece: a kill leaves no half of it
        os.close(descriptor)
        self._rows = []


def contents(batch: Batch) -> list[int]:
    """CRC-32 of what a batch holds of each sample."""
    values = [batch.stored[key] for key in sorted(batch.stored)]
    return [zlib.crc32(b"".join(value[i].numpy().tobytes() for value in values)) for i in range(len(batch.index))]


def watched(ledger: Path, spoilt: dict[int, bool]) -> None:
    """In the child: keep a ledger, and spoil steps."""
    bring, train = UniDiffuser.configure_callbacks, UniDiffuser.training_step

    def configure_callbacks(self: UniDiffuser) -> list[pl.Callback]:
        return [*bring(self), Ledger(str(ledger))]

    def training_step(self: UniDiffuser, batch: Batch) -> Tensor:
        loss = train(self, batch)
        if batch.step not in spoilt:
            return loss
        if not spoilt[batch.step]:
            return loss + math.inf
        parameter = next(value for value in self.parameters() if value.requires_grad)
        handle = parameter.register_hook(lambda grad: (handle.remove(), grad + math.inf)[1])
        return loss

    UniDiffuser.configure_callbacks = configure_callbacks  # type: ignore[assignment]
    UniDiffuser.training_step = training_step  # type: ignore[assignment]


# --- what is there before ---


def copy_poisoned(source: Path, target: Path, rows: list[int]) -> None:
    """The same shards, with a NaN in some samples: whoever wrote them wrote it."""
    manifest = json.loads((source / MANIFEST).read_text())

    def samples() -> Iterator[dict[str, Any]]:
        for row, sample in enumerate(read_shards(source)):
            if row in rows:
                stored = load(sample[STORED])
                stored["image.ae"].view(-1)[row % 7] = math.nan
                sample = {**sample, STORED: save(stored)}
            yield dict(sample)

    write_shards(target, samples(), shard_size=manifest["shards"][0]["count"])
    written = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps(manifest | written))


def configure(folder: Path, train: Path, held: Path, steps: int) -> None:
    """What is not as in the recipe."""
    callbacks = [
        {"class_path": "EMA", "init_args": {"decay": 0.999}},
        "MeasureCleanStd",
        {"class_path": "ModelDirectory", "init_args": {"folder": str(folder)}},
        {
            "class_path": "ModelCheckpoint",
            "init_args": {"dirpath": str(folder / "checkpoints"), "save_last": True, "every_n_train_steps": 25},
        },
    ]
    trainer = {
        "default_root_dir": str(folder),
        "max_steps": steps,
        "val_check_interval": max(1, steps // 4),
        "enable_progress_bar": False,
        "callbacks": callbacks,
    }
    folder.mkdir(parents=True)
    text = yaml.safe_dump({"data": {"train": str(train), "validation": str(held)}, "trainer": trainer})
    (folder / "fit.yaml").write_text(text)


def called(folder: Path, before: Callable[[], None] = lambda: None) -> Child:
    """The command, in this working folder."""
    options = ("-c", str(folder / "fit.yaml"), *SMALL)
    return Child(Path.cwd(), *options, before=before, config=str(RECIPE / "fit.yaml"))


# --- the adversary ---


@dataclass
class Torment:
    """What was done to a run, and what it said."""

    kills: int = 0
    damages: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def attempts(self) -> int:
        """Calls of the command."""
        return len(self.said)


def torment(folder: Path, data: Path, plan: Plan, seconds: float, rng: random.Random) -> Torment:
    """Train to the end, killed again and again, with shards that are damaged in between."""
    done, ledger = Torment(), folder / "ledger.jsonl"
    started = time.monotonic()
    while True:
        print(f"{steps_of(ledger)} steps of {plan.steps}, {done.kills} kills", file=sys.stderr, flush=True)
        if steps_of(ledger) and rng.random() < 0.25:
            _damaged_call(folder, data, done, rng)
        child = called(folder, partial(watched, ledger, plan.spoilt))
        code = None
        while code is None:
            due = time.monotonic() + rng.expovariate(1 / 4)
            while code is None and time.monotonic() < due:
                time.sleep(0.02)
                code = child.poll()
            elapsed = (time.monotonic() - started) / seconds
            if code is None and elapsed < 1 and steps_of(ledger) / plan.steps > elapsed:
                code = child.kill()
                done.kills += code == -9
        done.said.append(child.said)
        if code == 0:
            return done
        if code != -9:
            done.wrong.append(f"call {len(done.said)} ended with {code}: {child.said[-1000:]}")
            return done


def _damaged_call(folder: Path, data: Path, done: Torment, rng: random.Random) -> None:
    """Damage a shard; the command must refuse it by name. Then bring it back."""
    path = rng.choice(sorted(data.glob("*.tar")))
    kind = rng.choice(DAMAGES)
    KINDS[kind](path, rng)
    before = (folder / "ledger.jsonl").stat().st_size
    child = called(folder, partial(watched, folder / "ledger.jsonl", {}))
    code = child.wait(600)
    done.damages[kind] += 1
    done.said.append(child.said)
    is_refused = code == 2 and path.name in child.said and "Traceback" not in child.said
    if not is_refused or (folder / "ledger.jsonl").stat().st_size != before:
        done.wrong.append(f"{kind} of {path}: exit code {code}, {child.said[-1000:]}")
    shutil.copy2(data.with_name("copy") / path.name, path)


def steps_of(ledger: Path) -> int:
    """How far a run has come."""
    with contextlib.suppress(OSError, ValueError), ledger.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 10_000))
        return int(json.loads(stream.read().splitlines()[-1])["step"]) + 1
    return 0


# --- what came of it ---


def account(folder: Path, torment: Torment, plan: Plan, train: Path) -> dict[str, Any]:
    """Where every use of every sample went.

    Raises:
        ValueError: if one is not accounted for; says which.
    """
    samples = StoredDataset.at(str(train), in_memory=True)
    size, order = len(samples), plan.order(len(samples))
    everything = torch.arange(size)
    sums = contents(samples[Place(everything, everything, 0)])
    rows = [[(samples.name(int(row)).split()[1], sums[row]) for row in chosen] for chosen in order]
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    if wrong := [line["step"] for line in lines if [*map(tuple, line["rows"])] != rows[line["step"]]]:
        raise ValueError(f"step {wrong[0]} had other samples, or other contents, than the order says")
    last = {line["step"]: line for line in lines}
    if lacking := [step for step in range(plan.steps) if step not in last]:
        raise ValueError(f"step {lacking[0]} was never done")
    uses = [key for step in range(plan.steps) for key, _ in rows[step]]
    for start in range(0, len(uses), size):
        epoch = uses[start : start + size]
        if len({*epoch}) != len(epoch):
            raise ValueError(f"epoch {start // size} has a sample twice")
    told = {int(step) for said in torment.said for step in re.findall(r"step (\d+) skipped on all processes", said)}
    skipped = plan.skipped(size)
    if told != skipped:
        raise ValueError(f"skipped or not told: {sorted(told ^ skipped)}")
    poisoned = {samples.name(row).split()[1] for row in plan.poisoned}
    named = {key for key in poisoned if any(f"sample {key} " in said for said in torment.said)}
    if named != poisoned & {*uses}:
        raise ValueError(f"samples with NaN that the log does not name: {sorted((poisoned & {*uses}) - named)}")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    updates = checkpoint["callbacks"]["EMA"]["num_updates"]
    if (checkpoint["global_step"], updates) != (plan.steps, plan.steps - len(skipped)):
        raise ValueError(f"the checkpoint is of step {checkpoint['global_step']}, after {updates} updates")
    return {
        "uses": len(uses),
        "trained": (plan.steps - len(skipped)) * BATCH,
        "skipped": len(skipped) * BATCH,
        "skipped steps": len(skipped),
        "again": (len(lines) - plan.steps) * BATCH,
        "epochs": round(len(uses) / size, 2),
        "samples with NaN": len(poisoned),
    }


def validation_loss(folder: Path) -> float:
    """Of the last checkpoint, as `unidiffuser validate` prints it."""
    options = ["-c", RECIPE / "fit.yaml", "-c", folder / "fit.yaml", *SMALL, "--trainer.logger=false"]
    done = run_command("validate", *options, f"--ckpt_path={folder}/checkpoints/last.ckpt")
    match = re.search(r"validation/loss\D+([0-9.]+)", done.out)
    if done.code or not match:
        raise RuntimeError(f"validate ended with {done.code}: {done.out[-1000:]} {done.err[-1000:]}")
    return float(match[1])


def judged(folder: Path, num: int) -> dict[str, dict[str, Any]]:
    """Query and metric → value and interval, by the recipe's judge."""
    done = run_command("evaluate", folder, "-c", RECIPE / "evaluate.yaml", f"--num={num}")
    if done.code:
        raise RuntimeError(f"evaluate ended with {done.code}: {done.err[-2000:]}")
    queries = json.loads((folder / "evaluation.json").read_text())["queries"]
    return {f"{query}: {name}": row for query, metrics in queries.items() for name, row in metrics.items()}


def apart(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two intervals have nothing in common."""
    return bool(one["high"] < two["low"] or two["high"] < one["low"])


def main() -> None:
    """Exit with 1 if something is unaccounted for, or the quality is another."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.endurance", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of faults, at least")
    parser.add_argument("--steps", type=int, default=1000, help="of the training; the recipe has 4200")
    parser.add_argument("--num", type=int, default=200, help="samples of each query for the judge; 0 asks none")
    parser.add_argument("--digits", type=Path, default=Path("runs/digits"), help="what `make demo` left")
    parser.add_argument("--out", type=Path, default=Path("runs/endurance"), help="made anew")
    parser.add_argument("--seed", type=int, default=0, help="of what goes wrong")
    parser.add_argument("--dry", action="store_true", help="write nothing into docs/")
    options = parser.parse_args()
    summary = endure(options)
    print(json.dumps(summary, indent=1))
    if not options.dry:
        write_page(summary)
    sys.exit(bool(summary["wrong"]))


def endure(options: argparse.Namespace) -> dict[str, Any]:
    """Train both, count, compare."""
    torch.set_num_threads(1)
    fit.prepare()
    rng, out = random.Random(options.seed), options.out
    shutil.rmtree(out, ignore_errors=True)
    train, held = options.digits / "latents/train", options.digits / "latents/test"
    size = sum(row["count"] for row in json.loads((train / MANIFEST).read_text())["shards"])
    plan = Plan.drawn(options.steps, size, rng)
    copy_poisoned(train, out / "latents", plan.poisoned)
    shutil.copytree(out / "latents", out / "copy")
    configure(out / "clean", train, held, plan.steps)
    configure(out / "faulty", out / "latents", held, plan.steps)
    started = time.monotonic()
    clean = called(out / "clean")
    try:
        done = torment(out / "faulty", out / "latents", plan, 60 * options.minutes, rng)
        minutes = (time.monotonic() - started) / 60
        (out / "faulty/said.txt").write_text("\n--- next call ---\n".join(done.said))
        if code := clean.wait(6 * 3600):
            done.wrong.append(f"the clean run ended with {code}: {clean.said[-1000:]}")
    finally:
        with contextlib.suppress(ChildProcessError):
            clean.kill()
    uses: dict[str, Any] = {}
    if not done.wrong:
        try:
            uses = account(out / "faulty", done, plan, out / "latents")
        except ValueError as error:
            done.wrong.append(str(error))
    summary = asdict(plan) | {
        "minutes": round(minutes, 1),
        "calls": done.attempts(),
        "kills": done.kills,
        "bad shards": dict(done.damages),
        "uses of samples": uses,
        "wrong": done.wrong,
    }
    return summary | (quality(out, options.num, done.wrong) if not done.wrong else {})


def quality(out: Path, num: int, wrong: list[str]) -> dict[str, Any]:
    """The faulty run's beside the clean one's; what is worse goes into `wrong`."""
    loss = {name: validation_loss(out / name) for name in ("clean", "faulty")}
    if loss["faulty"] > 1.02 * loss["clean"]:
        wrong.append(f"the validation loss is {loss['faulty']} and not {loss['clean']}")
    if not num:
        return {"validation loss": loss}
    clean, faulty = (judged(out / name, num) for name in ("clean", "faulty"))
    shown = {name: [clean[name]["value"], row["value"]] for name, row in faulty.items() if name in clean}
    differing = [name for name, row in faulty.items() if name in clean and apart(row, clean[name])]
    if len(differing) > len(shown) / 20:  # by chance one of 200
        wrong.append(f"the judge tells them apart by {', '.join(differing)}")
    return {"validation loss": loss, "samples judged": num, "judge": shown, "intervals apart": differing}


def write_page(summary: dict[str, Any]) -> None:
    """Write what came of it into docs/reliability.md, and beside it as JSON."""
    uses, loss, judge = summary["uses of samples"], summary["validation loss"], summary.get("judge", {})
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(summary["bad shards"].items()))
    num_damaged, spoilt = sum(summary["bad shards"].values()), list(summary["spoilt"].values())
    steps, minutes, calls, kills = (summary[name] for name in ("steps", "minutes", "calls", "kills"))
    paragraph = (
        f"`make endurance`: {steps} steps of the digits recipe with a small network, in {minutes:.0f} minutes, on one "
        f"thread beside a clean run of the same steps. {calls} calls of the command: {kills} were killed at random "
        f"times, and {num_damaged} refused, by name, a shard that was damaged while the run was down ({kinds}); each "
        f"was brought back from a copy. {uses['samples with NaN']} samples held NaN, the loss was infinite at "
        f"{spoilt.count(False)} steps, a gradient at {spoilt.count(True)}."
    )
    said = f"""\
{textwrap.fill(paragraph, 120)}

| uses of samples | |
|---|--:|
| in all ({uses["epochs"]} epochs, each sample once in each) | {uses["uses"]} |
| trained on | {uses["trained"]} |
| in {uses["skipped steps"]} steps that were skipped, each told in the log | {uses["skipped"]} |
| lost, or unaccounted for | {uses["uses"] - uses["trained"] - uses["skipped"]} |
| besides, done again after a kill | {uses["again"]} |

| | clean | with faults |
|---|--:|--:|
| validation loss | {loss["clean"]:.4f} | {loss["faulty"]:.4f} |
"""
    for name in judge:
        if name.rpartition(": ")[2] in ("digit", "colour", "lost_digit", "grammatical"):
            title, values = name.replace("|", "\\|"), judge[name]
            said += f"| {title} | {values[0]:.3f} | {values[1]:.3f} |\n"
    if judge:
        differing = ", ".join(summary["intervals apart"]) or "none"
        said += f"\nOf {len(judge)} figures of the judge, those whose 95 % intervals lie apart: {differing}.\n"
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text("\n".join([before, said.rstrip(), after]))
    PAGE.with_name("endurance.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
