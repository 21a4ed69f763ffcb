"""The zoo: models that are wrong on purpose, and one that is right: what an evaluation must tell apart.

Every model answers every query of an evaluation from real training samples, over any data set with labels; what is
wrong with it is a few lines below. Whoever adds a metric or a criterion sees here what it catches::

    zoo = Zoo(judge, train, model, grids={"image": Grid(np.asarray, Image.fromarray)}, shape="digit", aside="ground")
    for name, wrong in zoo.wrong().items():
        print(name, evaluate(wrong, metrics, settings).to_dict()["criteria"])
    evaluate(zoo.right(held_out), metrics, settings)  # meets every criterion
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.metric import Raws, Samples
from unidiff_core.evaluation.real import reconstructing
from unidiff_core.sampling.loop import StepReport
from unidiff_core.sampling.spec import TimestepSpec

Labels = dict[str, str]
Wish = Callable[[Labels, bool], Labels]
"""(what the givens state, whether anything is given) → labels that the answer shall have; others are free."""
Change = Callable[["Zoo", str, int, np.random.Generator], Raw]
"""(zoo, modality, training row that would be right, draws) → the answer."""
After = Callable[["Zoo", str, list[Raw]], list[Raw]]
"""(zoo, modality, answers) → answers."""


@dataclass(frozen=True)
class Grid:
    """How a modality's raw samples become arrays ``[h, w, ...]`` and back."""

    to_array: Callable[[Raw], np.ndarray]
    from_array: Callable[[np.ndarray], Raw]


@dataclass(frozen=True)
class Model:
    """A model of the zoo, as `evaluate` wants one."""

    zoo: Zoo
    wish: Wish = lambda stated, is_given: stated
    change: Change = lambda zoo, name, row, rng: zoo.train.raws[name][row]
    after: After = lambda zoo, name, raws: raws
    is_joint: bool = True
    """Whether all solved modalities of a sample are of one row."""

    @property
    def modalities(self) -> Any:
        """Name → modality, which has a `codec` and a `process`."""
        return self.zoo.model.modalities

    def encode(self, raws: Raws) -> Any:
        """As the model does whose codecs they are."""
        return self.zoo.model.encode(raws)

    def decode(self, latents: Any, names: Iterable[str]) -> Any:
        """Likewise."""
        return self.zoo.model.decode(latents, names)

    def sample(
        self, spec: str, given: Raws | None = None, num: int | None = None, *, options: Any = None, on_step: Any = None
    ) -> Raws:
        """An answer to each given, of every solved modality."""
        zoo, rng = self.zoo, np.random.default_rng(options.seed if options else 0)
        solved = TimestepSpec.parse(spec, self.modalities).solved
        answers: Raws = {name: [] for name in solved}
        for stated in zoo.stated(given or {}, num or 1):
            wished = self.wish(stated, bool(given))
            row = zoo.draw(wished, rng)
            for name in solved:
                answers[name].append(self.change(zoo, name, row, rng))
                row = row if self.is_joint else zoo.draw({}, rng)
        if on_step:
            on_step(StepReport(1, 1, {}, {}, {}))
        return {name: self.after(zoo, name, raws) for name, raws in answers.items()}


@dataclass(frozen=True)
class Zoo:
    """Wrong models over a data set."""

    judge: Judge
    """Fitted on `train`: the zoo reads with it what is given, and what pleases it."""
    train: Samples
    """Training samples that lack nothing, with the judge's labels."""
    model: Any
    """Has the modalities whose samples these are, and the codecs' `encode` and `decode`: a `UniDiffuser`."""
    grids: Mapping[str, Grid]
    """Modalities that are arrays."""
    shape: str
    """The label that an array's shape shows."""
    aside: str
    """A label that some givens do not state."""
    _rows: dict[tuple[tuple[str, str], ...], np.ndarray] = field(default_factory=dict)

    def rows(self, labels: Labels) -> np.ndarray:
        """Training rows that have some labels; where there is none, of those that have the first of them."""
        key = tuple(labels.items())
        if key not in self._rows:
            found = np.ones(len(self.train), bool)
            for name, value in key:
                both = found & (np.array(self.train.labels[name], dtype=object) == value)
                found = both if both.any() else found
            self._rows[key] = np.flatnonzero(found)
        return self._rows[key]

    def draw(self, labels: Labels, rng: np.random.Generator) -> int:
        """A random row among them."""
        return int(rng.choice(self.rows(labels)))

    def labels(self, row: int) -> Labels:
        """All labels of a row that the judge reads."""
        return {name: self.train.labels[name][row] for name in self.judge.labels}

    def values(self, label: str) -> list[str]:
        """All values of a label."""
        return sorted(set(self.train.labels[label]))

    def stated(self, given: Raws, num: int) -> list[Labels]:
        """What the givens state, sample by sample, as the judge reads it."""
        rows: list[Labels] = [{} for _ in range(num)]
        for name, raws in given.items():
            readings = self.judge.readings(name, raws)
            for label in self.judge.labels:
                for row, value in zip(rows, readings[label], strict=True):
                    row.update({} if value is None else {label: value})
        return rows

    def right(self, held_out: Samples) -> Model:
        """Answers with real samples that neither training nor test has: it must meet every criterion."""
        return Model(replace(self, train=held_out, _rows={}))

    def wrong(self) -> dict[str, Model]:
        """Every wrong model, under what is wrong with it."""
        return {
            "copies": Model(self),
            "copies through the codec": Model(self, after=_through_codec),
            "one mean per class": Model(self, change=_of_grid(_mean)),
            "one fixed sample per class": Model(self, change=_fixed),
            "moved by a pixel": Model(self, change=_of_grid(_moved)),
            "turned by 10°": Model(self, change=_of_grid(_turned)),
            "averages of two": Model(self, change=_of_grid(_averaged)),
            "halves of two classes": Model(self, change=_of_grid(_glued)),
            "noise": Model(self, change=_of_grid(_noise)),
            f"{self.aside} always wrong": Model(self, change=_wrong_aside),
            f"one {self.shape} is never drawn": Model(self, wish=self._lacking()),
            "few pairs of labels": Model(self, wish=self._few_pairs()),
            "one phrasing": Model(self, change=_one_style),
            "what is given is ignored": Model(self, wish=lambda stated, is_given: {}),
            "each modality for itself": Model(self, wish=lambda stated, is_given: stated, is_joint=False),
        }

    def _lacking(self) -> Wish:
        """Unconditional draws lack the last class."""
        rng = np.random.default_rng(0)

        def wish(stated: Labels, is_given: bool) -> Labels:
            return stated if is_given else {self.shape: str(rng.choice(self.values(self.shape)[:-1]))}

        return wish

    def _few_pairs(self) -> Wish:
        """Unconditional draws have one value of every other label for each class."""
        rng = np.random.default_rng(0)
        others = [label for label in self.judge.labels if label not in (self.shape, self.aside)]

        def wish(stated: Labels, is_given: bool) -> Labels:
            i = int(rng.integers(len(self.values(self.shape))))
            pair = {label: self.values(label)[i % len(self.values(label))] for label in others}
            return stated if is_given else {self.shape: self.values(self.shape)[i], **pair}

        return wish


@dataclass(frozen=True)
class Edited:
    """Copies that a real model made a little different: from `level` of the way to noise and back (SDEdit)."""

    zoo: Zoo
    level: float

    def model(self) -> Model:
        """As one of the zoo's."""

        def edited(zoo: Zoo, name: str, raws: list[Raw]) -> list[Raw]:
            if name not in zoo.grids:
                return raws
            return list(zoo.model.sample(f"{name}@{self.level}", {name: raws}, len(raws), steps=20)[name])

        return Model(self.zoo, after=edited)


def _of_grid(change: Callable[[Zoo, Grid, str, int, np.random.Generator], np.ndarray]) -> Change:
    """A change of arrays; other modalities are answered rightly."""

    def changed(zoo: Zoo, name: str, row: int, rng: np.random.Generator) -> Raw:
        if name not in zoo.grids:
            return zoo.train.raws[name][row]
        grid = zoo.grids[name]
        return grid.from_array(np.rint(change(zoo, grid, name, row, rng)).astype(np.uint8))

    return changed


def _array(zoo: Zoo, name: str, row: int) -> np.ndarray:
    return zoo.grids[name].to_array(zoo.train.raws[name][row]).astype(np.float64)


def _mean(zoo: Zoo, grid: Grid, name: str, row: int, rng: np.random.Generator) -> np.ndarray:
    return np.mean([_array(zoo, name, i) for i in zoo.rows(zoo.labels(row))], axis=0)


def _fixed(zoo: Zoo, name: str, row: int, rng: np.random.Generator) -> Raw:
    return zoo.train.raws[name][zoo.rows(zoo.labels(row))[0] if name in zoo.grids else row]


def _moved(zoo: Zoo, grid: Grid, name: str, row: int, rng: np.random.Generator) -> np.ndarray:
    array = _array(zoo, name, row)
    return np.pad(array, [(1, 0), (1, 0), *[(0, 0)] * (array.ndim - 2)], mode="edge")[:-1, :-1]


def _turned(zoo: Zoo, grid: Grid, name: str, row: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import rotate

    turned = rotate(_array(zoo, name, row), rng.choice([-10, 10]), reshape=False, order=1, mode="nearest")
    return np.clip(turned, 0, 255)


def _averaged(zoo: Zoo, grid: Grid, name: str, row: int, rng: np.random.Generator) -> np.ndarray:
    return (_array(zoo, name, row) + _array(zoo, name, zoo.draw(zoo.labels(row), rng))) / 2


def _glued(zoo: Zoo, grid: Grid, name: str, row: int, rng: np.random.Generator) -> np.ndarray:
    """The upper half of the right class, the lower of another: of ten the first that the judge takes for right."""
    others = {label: value for label, value in zoo.labels(row).items() if label != zoo.shape}
    wanted, own = zoo.train.labels[zoo.shape][row], _array(zoo, name, row)
    half = len(own) // 2
    tries = [np.concatenate([own[:half], _array(zoo, name, zoo.draw(others, rng))[half:]]) for _ in range(10)]
    raws = [grid.from_array(one.astype(np.uint8)) for one in tries]
    readings = zoo.judge.read(name, raws)[zoo.shape]
    return tries[readings.index(wanted) if wanted in readings else 0]


def _noise(zoo: Zoo, grid: Grid, name: str, row: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 255, _array(zoo, name, row).shape)


def _wrong_aside(zoo: Zoo, name: str, row: int, rng: np.random.Generator) -> Raw:
    labels = zoo.labels(row)
    wrong = [value for value in zoo.values(zoo.aside) if value != labels[zoo.aside]]
    return zoo.train.raws[name][zoo.draw(labels | {zoo.aside: str(rng.choice(wrong))}, rng)]


def _one_style(zoo: Zoo, name: str, row: int, rng: np.random.Generator) -> Raw:
    """Of the rows with the same labels one in the first style of the modality, if it has any."""
    readings = zoo.judge.readings(name, zoo.train.raws[name])
    for label in zoo.judge.unrecorded:
        styles = readings.get(label, [])
        if first := min((style for style in styles if style is not None), default=None):
            return (
                next((zoo.train.raws[name][i] for i in zoo.rows(zoo.labels(row)) if styles[i] == first), None)
                or (zoo.train.raws[name][row])
            )
    return zoo.train.raws[name][row]


def _through_codec(zoo: Zoo, name: str, raws: list[Raw]) -> list[Raw]:
    if name not in zoo.grids:
        return raws
    return reconstructing(zoo.model)(name, raws)
