"""A small world of letters: modalities of strings, judges of them, and a model that is right as often as it says."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np

from unidiff_core.evaluation.frequencies import Frequencies
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.labels import LabelMetric
from unidiff_core.evaluation.nearness import Nearness
from unidiff_core.evaluation.run import evaluate
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.sampling.loop import StepReport
from unidiff_core.sampling.spec import TimestepSpec

LETTERS = "abcd"


class WordCodec:
    """A modality whose raw sample is a string."""

    def __init__(self, extension):
        self.extension = extension

    def from_bytes(self, data):
        return data.decode()

    def html(self, raw):
        return f"<b>{raw}</b>"


def modality(extension):
    return SimpleNamespace(codec=WordCodec(extension), process=Gaussian())


class LetterJudge(Judge):
    """Reads "letter" off "upper" ("A7") and "lower" ("a7"); "mark" is stated by "lower" only sometimes ("a7!")."""

    labels = ("letter", "mark")
    modalities = ("upper", "lower")
    well_formed_name = "tidy"

    def fit(self, modality, raws, labels):
        self.fitted = True

    def read(self, modality, raws):
        letters = [raw[0].lower() if raw[:1].lower() in LETTERS and raw else None for raw in raws]
        marks = [raw[2] if len(raw) > 2 else None for raw in raws]
        return {"letter": letters, "mark": marks}

    def well_formed(self, modality, raw):
        return raw[0].islower() if modality == "lower" else None

    def features(self, modality, raws):
        return np.array([[ord(raw[0]), float(raw[1])] for raw in raws]) if modality == "upper" else None


class ThreeJudge(LetterJudge):
    """Reads a third modality, "bare" ("a"), which has a letter and never a mark."""

    labels = ("letter", "mark")
    modalities = ("upper", "lower", "bare")

    def features(self, modality, raws):
        return None


class Channel:
    """A model that answers rightly with a known probability, and draws "a" too often when it is given nothing."""

    def __init__(self, right=0.8):
        self.right = right
        self.modalities = {"upper": modality("up"), "lower": modality("low")}
        self.calls = []
        self.num_right = Counter()

    def sample(self, spec, given=None, num=None, *, options=None, on_step=None):
        self.calls.append((num, given, options))
        on_step(StepReport(5, 10, {}, {}, {}))
        on_step(StepReport(10, 10, {}, {}, {}))
        solved = TimestepSpec.parse(spec, self.modalities).solved
        return {name: [self._one(name, solved, given, i, options.seed) for i in range(num)] for name in solved}

    def _one(self, name, solved, given, i, seed):
        rng = np.random.default_rng([seed, i])
        letter = (
            given[next(iter(given))][i][0].lower() if given else str(rng.choice(list(LETTERS), p=[0.4, 0.2, 0.2, 0.2]))
        )
        is_wrong = rng.random() > self.right
        if is_wrong and name == solved[-1]:
            letter = LETTERS[(LETTERS.index(letter) + 1) % 4]
        self.num_right[", ".join(solved), bool(given)] += name == solved[-1] and not is_wrong
        return f"{letter.upper() if name == 'upper' else letter}5{'!' if name == 'upper' else ''}"


def members(split, count):
    for i in range(count):
        letter, number, mark = LETTERS[i % 4], (i // 4) % 5, "!?"[i % 2]
        yield {
            "__key__": f"{split}{i:04d}",
            "up": f"{letter.upper()}{number}{mark}".encode(),
            "low": (f"{letter}{number}" + (mark if i % 8 < 4 else "")).encode(),
            "json": json.dumps({"letter": letter, "mark": mark, "note": i}).encode(),
        }


def judged(model, settings, *, judge=None, advance=lambda query, done: None):
    """What a judge's labels say, and its features of what is near."""
    judge = judge or LetterJudge()
    return evaluate(model, [LabelMetric(judge), Frequencies(judge), Nearness(judge)], settings, advance)
