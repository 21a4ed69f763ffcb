"""The long, counted campaigns: `make acceptance`. Their outcome is committed in docs/acceptance.md."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy.stats import binom

from unidiff_core.sampling.loop import sample
from unidiff_core.testing import GaussianOracle

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parent.parent
SHAPES = {
    "a.grid": (1, 2, 2),
    "b.vector": (3,),
    "c.steps": (2, 2),
    "d.vector": (2,),
    "e.line": (1, 3),
    "f.vector": (1,),
    "g.cube": (1, 2, 1, 2),
    "h.steps": (3, 1),
}


def run_target(target, folder, *more):
    """Run a target of the Makefile in a folder, with this interpreter's console script; returns (seconds, CPU seconds).

    The CPU seconds are those of its trainings.
    """
    variables = [f"BIN={Path(sys.executable).parent}", f"RECIPE={ROOT / 'recipes/digits'}", *more]
    listed = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    started, training = time.monotonic(), 0.0
    for command in listed.stdout.splitlines():
        if not command.startswith((str(Path(sys.executable).parent / "unidiffuser"), "mkdir", "for ")):
            continue  # making the environment: this one is used
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, shell=True, cwd=folder, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if " fit" in command:
            training += after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.monotonic() - started, training


def evaluation_of(folder):
    """What `evaluate` wrote, and the criteria that were missed."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    return evaluation, [row for row in evaluation["criteria"] if not row["passed"]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which `make demo` has run, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_target("demo", folder)[0]


def test_demo_meets_every_criterion_but_precision_within_twelve_minutes(demo):
    folder, seconds = demo
    evaluation, missed = evaluation_of(folder / "runs/digits")
    print(f"demo: {seconds:.0f} s, {len(evaluation['criteria']) - len(missed)} criteria met, {len(missed)} missed")
    assert [(row["query"], row["metric"]) for row in missed] == [("image", "precision")]  # docs/log.md, 2026-11-25
    assert (folder / "runs/digits/report.html").is_file()
    assert seconds <= 12 * 60


def test_the_quick_demo_shows_samples_of_every_query_within_four_minutes(tmp_path):
    seconds, _ = run_target("demo", tmp_path, "QUICK=1")
    print(f"quick demo: {seconds:.0f} s")
    evaluation, _ = evaluation_of(tmp_path / "runs/digits_quick")
    assert set(evaluation["queries"]) == {"image | text", "text | image", "image, text", "image", "text"}
    assert (tmp_path / "runs/digits_quick/report.html").read_text().count("<img") > 50
    assert not (tmp_path / "runs/digits").exists()
    assert seconds <= 4 * 60


def test_a_new_ink_is_learnt_in_three_cpu_minutes_and_the_old_ones_are_kept(demo):
    folder, _ = demo
    seconds, training = run_target("finetune", folder)
    print(f"finetune: {seconds:.0f} s, {training:.0f} CPU seconds of training")
    before, _ = evaluation_of(folder / "runs/digits")
    _, missed_new = evaluation_of(folder / "runs/digits_peach")
    old, _ = evaluation_of(folder / "runs/digits_peach/old")
    assert not missed_new and training <= 180
    for query, metric in itertools.product(("image | text", "text | image"), ("digit", "colour")):
        then, now = (row["queries"][query][metric]["value"] for row in (before, old))
        print(f"old inks, {query}, {metric}: {then:.3f} before, {now:.3f} after")
        assert now >= then - 0.03


@pytest.mark.parametrize("num_modalities", [2, 3, 5, 8])
def test_random_queries_of_the_oracle_with_many_samples(num_modalities):
    """Every role for every modality up to three, 30 random queries above; 100,000 samples each, 4 standard errors.

    Over thousands of comparisons a few exceed 4 by chance: at most one in a thousand may.
    """
    shapes = dict(list(SHAPES.items())[:num_modalities])
    oracle = GaussianOracle.random(shapes, seed=num_modalities)
    names = [key[0] for key in shapes]
    queries = [roles for roles in itertools.product("shi", repeat=num_modalities) if "s" in roles]
    generator = torch.Generator().manual_seed(0)
    chosen = (
        queries
        if num_modalities <= 3
        else [queries[i] for i in torch.randperm(len(queries), generator=generator)[:30].tolist()]
    )
    compared, exceeded = 0, 0
    for roles in chosen:
        far = deviations(oracle, names, roles)
        compared, exceeded = compared + far.numel(), exceeded + int((far > 4).sum())
    print(f"{num_modalities} modalities: {len(chosen)} queries, {exceeded} of {compared} beyond 4 standard errors")
    assert exceeded <= max(1, compared // 1000)


def deviations(oracle, names, roles, num=100_000):
    """Distances of sample means and covariances from the exact ones, in standard errors."""
    solved = [name for name, role in zip(names, roles, strict=True) if role == "s"]
    held = [name for name, role in zip(names, roles, strict=True) if role == "h"]
    given = {key: value for key, value in oracle.draw(1, seed=3).items() if key[0] in held}
    supplied = {key: value.expand(num, *value.shape[1:]) for key, value in given.items()}
    spec = " | ".join(", ".join(side) for side in (solved, held) if side)
    options = {"processes": oracle.processes, "shapes": oracle.shapes, "num": num, "dtype": torch.float64}
    got = sample(oracle, spec, supplied=supplied, steps=100, solver="heun", seed=1, **options)
    keys = [key for key in oracle.shapes if key[0] in solved]
    mean, covariance = oracle.conditional(keys, given)
    x = torch.cat([got[key].flatten(1) for key in keys], dim=1)
    variance = covariance.diag()
    of_mean = (x.mean(0) - mean[0]).abs() / (variance / num).sqrt()
    error = ((variance[:, None] * variance + covariance.square()) / num).sqrt()
    of_covariance = ((torch.cov(x.T) - covariance).abs() / error)[torch.triu(torch.ones_like(covariance)).bool()]
    return torch.cat([of_mean, of_covariance])


def test_the_watermark_survives_files_and_is_found_where_it_is_no_more_often_than_promised(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import watermark

    found = watermark.measure(watermark.photographs(), {"none": 1000, "file": 1000, "cut": 250})
    print(json.dumps(found))
    for name in ("png", "jpeg", "cut png", "cut jpeg"):
        assert found[name]["detected"] >= 0.99, name
    none = found["none"]
    assert none["detected"] * none["num"] <= binom.ppf(0.999, none["num"], none["bound"])
