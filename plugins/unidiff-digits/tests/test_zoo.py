"""The zoo on real digits: every model that is wrong on purpose misses a criterion of the digits recipe, and which."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from unidiff_digits.judge import DigitsJudge
from unidiff_digits.source import DigitsSource

from unidiff_core.cli.evaluate import _metrics_of
from unidiff_core.data.shard import write_shards
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.metric import Samples
from unidiff_core.evaluation.run import Query, Settings, evaluate, fitted
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.testing import Grid, Zoo

RECIPE = Path(__file__).parents[3] / "recipes/digits/evaluate.yaml"
NUM = 450
SCANS = {"train": (0, 1, 2, 4, 6, 7, 8, 10), "held_out": (3, 9), "test": (5, 11)}
"""Which of every twelve: writers follow each other, and each part has all of them."""


class Png:
    extension = "png"

    def from_bytes(self, data):
        return Image.open(io.BytesIO(data)).convert("RGB")


class Text:
    extension = "txt"

    def from_bytes(self, data):
        return data.decode()


class Stand:
    """In place of a model: the modalities, and a codec for images that keeps half of their pixels in each direction."""

    def __init__(self):
        codecs = {"image": Png(), "text": Text()}
        self.modalities = {name: SimpleNamespace(codec=codec, process=Gaussian()) for name, codec in codecs.items()}

    def encode(self, raws):
        small = {"image": lambda raw: np.asarray(raw.resize((16, 16), Image.Resampling.BOX))}
        return {
            f"{name}.x": torch.from_numpy(np.stack([small.get(name, len)(raw) for raw in rows])).float()
            for name, rows in raws.items()
        }

    def decode(self, latents, names):
        rows = latents["image.x"].numpy().astype(np.uint8) if "image" in names else []
        return {"image": [Image.fromarray(row).resize((32, 32), Image.Resampling.BICUBIC) for row in rows]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Real digits in three parts, by scans; the recipe's metrics fitted on them; and its criteria."""
    folder = tmp_path_factory.mktemp("zoo")
    nums = {"train": 2, "held_out": 9, "test": 2}  # every look of every digit must be among what answers rightly
    of = {name: DigitsSource(renderings_train=num, unseen=0.1 * (name == "train")) for name, num in nums.items()}
    parts = {
        name: [row for row in of[name].samples("train") if int(row["__key__"][:5]) % 12 in part]
        for name, part in SCANS.items()
    }
    for name, part in parts.items():
        write_shards(folder / name, part)
    said = yaml.safe_load(RECIPE.read_text())
    queries = {name: Query(NUM) for name in said["queries"]}
    rules = [Criterion(**rule) for rule in said["criteria"]]
    settings = Settings(str(folder / "train"), str(folder / "test"), queries, rules, sources=said["sources"])
    judge, model = DigitsJudge(), Stand()
    metrics = _metrics_of(judge)
    reference = fitted(model, metrics, settings)
    grids = {"image": Grid(np.asarray, Image.fromarray)}
    zoo = Zoo(judge, reference.train, model, grids, shape="digit", aside="ground")
    return zoo, metrics, settings, reference, parts["held_out"]


def verdicts(world, model, *queries):
    """(query, metric) → verdict, of some queries or all."""
    _, metrics, settings, reference, _ = world
    if queries:
        rules = [rule for rule in settings.criteria if rule.query in queries]
        settings = replace(settings, queries={name: settings.queries[name] for name in queries}, criteria=rules)
    result = evaluate(model, metrics, settings, reference=reference)
    return {(rule.query, rule.metric): rule.verdict(result.queries[rule.query]) for rule in settings.criteria}


def test_real_samples_that_no_one_has_seen_miss_nothing(world):
    zoo, *_, rows = world
    labels = [json.loads(row["json"]) for row in rows]
    held_out = Samples(
        {"image": [Png().from_bytes(row["png"]) for row in rows], "text": [row["txt"].decode() for row in rows]},
        {name: [row[name] for row in labels] for name in labels[0]},
    )
    found = verdicts(world, zoo.right(held_out))
    assert {rule: verdict for rule, verdict in found.items() if verdict not in ("met", "within noise")} == {}
    assert sum(verdict == "met" for verdict in found.values()) > len(found) / 2


CAUGHT = {
    "copies": ("image", "copied"),
    "copies through the codec": ("image", "copied"),
    "one mean per class": ("image", "variety"),
    "one fixed sample per class": ("image | text", "variety"),
    "moved by a pixel": ("image", "copied"),
    "turned by 10°": ("image", "copied"),
    "averages of two": ("image", "variety"),
    "halves of two classes": ("image", "precision"),
    "noise": ("image", "precision"),
    "ground always wrong": ("text | image", "ground"),
    "one digit is never drawn": ("text", "digit_least"),
    "few pairs of labels": ("image", "digit+colour_tv"),
    "one phrasing": ("text", "phrasing_tv"),
    "what is given is ignored": ("image | text", "digit"),
    "each modality for itself": ("image, text", "digit"),
}
"""What is wrong → a criterion, (query, metric), that says so."""


@pytest.mark.parametrize("name", CAUGHT)
def test_every_wrong_model_misses_a_criterion(world, name):
    # A training sample given back is a copy, whatever else is wrong with it: that must be seen by itself.
    query, _ = CAUGHT[name]
    assert verdicts(world, world[0].wrong()[name], query)[CAUGHT[name]] == "missed"


def test_all_of_the_zoo_is_tried(world):
    assert set(world[0].wrong()) == set(CAUGHT) and len(CAUGHT) == 15
