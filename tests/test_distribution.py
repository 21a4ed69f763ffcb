"""One process, DDP and FSDP2 give the same run from the same YAML: real processes, gloo, through the command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from unidiff_core.data.shard import MANIFEST, write_shards

ROOT = Path(__file__).parent.parent
SIZE, BATCH, STEPS, HELD = 48, 16, 10, 20
# Odd widths and counts: no first dimension but the blocks' divides evenly over two processes.
SHAPES = {"image.ae": (4, 8, 8), "image.clip": (31,), "text.states": (15, 15)}
CODECS = {
    "image": {"class": "ImageCodec", "size": 32, "downsampling": 4, "latent_channels": 2, "clip_width": 31, "patch": 2},
    "text": {"class": "TextCodec", "length": 15, "width": 15},
}
"""As the manifest beside the latents names them."""
SMALL = [
    *("--config", str(ROOT / "recipes/digits/fit.yaml"), "--model.backbone.width=36", "--model.backbone.depth=3"),
    *(f"--data.batch_size={BATCH}", "--trainer.val_check_interval=5"),
    *(f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
    "--model.lr_scheduler.steps=2",
]
STRATEGIES = {
    "ddp": ["--trainer.strategy=ddp", "--trainer.devices=2"],
    "fsdp2": ["--trainer.strategy=fsdp2", "--trainer.devices=2"],
}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


def fit_row(folder: Path, name: str, dtype: str, *options: str) -> list[str]:
    """Dtype and arguments of a small fit into ``folder/name``."""
    out = folder / name
    return [
        *(dtype, *SMALL, f"--data.train={folder / 'latents'}", f"--data.validation={folder / 'held'}"),
        f"--trainer.logger.save_dir={out}",
        f"--trainer.callbacks=[{{class_path: EMA, init_args: {{decay: 0.9}}}}, "
        "{class_path: MeasureCleanStd, init_args: {num_bins: 4}}, "
        f"{{class_path: ModelDirectory, init_args: {{folder: {out}}}}}, {{class_path: ModelCheckpoint, "
        f"init_args: {{dirpath: {out}, save_last: true, every_n_train_steps: 5, save_top_k: -1, "
        "filename: '{step}', auto_insert_metric_name: false}}]",
        *options,
    ]


DROPPING = [
    "--model.drop_ignored=true",
    '--model.timestep_law={"class_path": "Atoms", "init_args": {"masses": {1: 0.4}}}',
]


def losses(folder: Path, name: str = "train/loss") -> list[float]:
    """The training loss of each step, or another column."""
    rows = csv.DictReader((next(folder.glob("logs/version_*/metrics.csv"))).open())
    return [float(row[name]) for row in rows if row[name]]


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and averages of a model directory."""
    files = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema")}
    return {f"{name}/{key}": value for name, rows in files.items() for key, value in rows.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder in which one process and two have trained, under each strategy and in each precision."""
    folder = tmp_path_factory.mktemp("distribution")
    generator = torch.Generator().manual_seed(0)
    samples = [{key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()} for _ in range(SIZE)]
    # One batch of 20, or 5 of 4: neither divides over two processes. Some samples lack their text.
    held = [{key: value for key, value in row.items() if i % 3 or "text" not in key} for i, row in enumerate(samples)]
    bad = [row | {"image.clip": row["image.clip"] * float("nan" if i == 17 else 1)} for i, row in enumerate(samples)]
    for name, rows in {"latents": samples, "held": held[:HELD], "bad": bad}.items():
        write_latents(folder / name, rows)
    single = [fit_row(folder, f"one-{dtype}", dtype) for dtype in TOLERANCES]
    both = [
        fit_row(folder, f"{name}-{dtype}", dtype, *strategy)
        for dtype in TOLERANCES
        for name, strategy in STRATEGIES.items()
    ]
    single.append(fit_row(folder, "one-dropping", "float64", *DROPPING))
    single.append(fit_row(folder, "one-bad", "float64", f"--data.train={folder / 'bad'}"))
    for name, strategy in STRATEGIES.items():
        both.append(fit_row(folder, f"{name}-dropping", "float64", *strategy, *DROPPING))
        both.append(fit_row(folder, f"{name}-bad", "float64", *strategy, f"--data.train={folder / 'bad'}"))
        micro = ["--data.micro_batch_size=4", "--trainer.val_check_interval=10"]
        both.append(fit_row(folder, f"{name}-micro", "float64", *strategy, *micro))
    # Half a run under one strategy, the other half under another.
    both += [
        fit_row(folder, "ddp-after-fsdp2", "float64", *STRATEGIES["ddp"], f"--ckpt_path={folder}/fsdp2-float64/5.ckpt"),
        fit_row(folder, "fsdp2-after-one", "float64", *STRATEGIES["fsdp2"], f"--ckpt_path={folder}/one-float64/5.ckpt"),
    ]
    after = [fit_row(folder, "one-after-ddp", "float64", f"--ckpt_path={folder}/ddp-float64/5.ckpt")]
    launch(folder, single, 1)
    launch(folder, both, 2)
    launch(folder, after, 1)
    return folder


def write_latents(folder: Path, rows: list[dict[str, torch.Tensor]]) -> None:
    """Shards of stored latents, and the manifest that names their codecs."""
    samples = ({"__key__": f"{i:03d}", "safetensors": save(row)} for i, row in enumerate(rows))
    write_shards(folder, samples, shard_size=20)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"codecs": CODECS}))


def launch(folder: Path, rows: list[list[str]], processes: int) -> None:
    """Start the fits as torchrun does on a node."""
    (folder / "fits.json").write_text(json.dumps(rows))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "tests/fits.py"), str(folder / "fits.json")],
        cwd=folder, capture_output=True, text=True, timeout=400, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_give_the_run_of_one(runs, strategy, dtype):
    one, two = runs / f"one-{dtype}", runs / f"{strategy}-{dtype}"
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), abs=TOLERANCES[dtype])
    expected, found = state(one), state(two)
    assert found.keys() == expected.keys()
    assert max((found[name] - value).abs().max().item() for name, value in expected.items()) <= TOLERANCES[dtype]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_uneven_validation_gives_the_loss_of_one_process(runs, strategy):
    """With fewer batches than processes, and with a number of them that does not divide."""
    expected = losses(runs / "one-float64", "validation/loss")
    assert len(expected) == 2
    for name in (f"{strategy}-float64", f"{strategy}-micro"):
        assert losses(runs / name, "validation/loss") == pytest.approx(expected, abs=1e-9), name
        found = state(runs / name)
        assert max((found[key] - value).abs().max() for key, value in state(runs / "one-float64").items()) <= 1e-9, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clean_estimates_are_measured_as_on_one_process(runs, strategy):
    """With the average in place of the weights, in the middle of a training, over batches that do not divide."""
    expected = yaml.safe_load((runs / "one-float64/clean_std.yaml").read_text())
    assert expected.pop("sha256") and set(expected) == set(SHAPES)
    for name in (f"{strategy}-float64", f"{strategy}-micro"):
        found = yaml.safe_load((runs / name / "clean_std.yaml").read_text())
        for key, points in expected.items():
            assert np.array(found[key]) == pytest.approx(np.array(points), abs=3e-6), (name, key)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_number_that_is_not_finite_on_one_process_skips_the_step_on_all(runs, strategy):
    one, two = runs / "one-bad", runs / f"{strategy}-bad"
    skipped = [i for i, loss in enumerate(losses(one)) if loss != loss]
    assert len(skipped) == 3  # one step of each epoch
    assert [i for i, loss in enumerate(losses(two)) if loss != loss] == skipped
    expected, found = state(one), state(two)
    assert all(value.isfinite().all() for value in expected.values())
    assert max((found[name] - value).abs().max().item() for name, value in expected.items()) <= 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dropping_gives_the_same_run_on_two_processes(runs, strategy):
    """Though the patterns that occur, and with them the parameters in use, differ between the processes."""
    one, two = runs / "one-dropping", runs / f"{strategy}-dropping"
    assert losses(two) == pytest.approx(losses(one), abs=1e-9) and losses(one) != losses(runs / "one-float64")
    assert max((state(two)[name] - value).abs().max().item() for name, value in state(one).items()) <= 1e-9


@pytest.mark.parametrize("name", ["ddp-after-fsdp2", "fsdp2-after-one", "one-after-ddp"])
def test_a_checkpoint_of_one_strategy_loads_under_another(runs, name):
    expected, found = state(runs / "one-float64"), state(runs / name)
    assert len(losses(runs / name)) == STEPS // 2
    assert max((found[key] - value).abs().max().item() for key, value in expected.items()) <= 1e-9
