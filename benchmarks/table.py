"""Filling in the hidden cells of a table: samples of a model against scikit-learn's imputers, on the same cells.

    python benchmarks/table.py runs/table recipes/table/fit.yaml --json docs/table.json

Of each test row every cell is hidden with probability 0.3. A model gives `--num` samples of a row's hidden cells; their
mean (of labels: the most frequent) is compared with what the imputers fill in, and their 5 % and 95 % quantiles with
the truth. `IterativeImputer` can draw as well (`sample_posterior`), so its intervals stand beside.

Normalised RMSE: root mean squared error over the column's standard deviation in the training rows, over all hidden
numbers. Intervals of all figures: 95 %, by resampling rows.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SHARE = 0.3
QUANTILES = (0.05, 0.95)


class Table:
    """A table as numbers ``[rows, columns]``, standardised by the training rows; a label is its place in the list."""

    def __init__(self, source: Any) -> None:
        train, test = source.rows("train"), source.rows("test")
        self.columns = list(train[0])
        self.names = {name: sorted({row[name] for row in train}) for name in source.labels}
        self.is_label = np.array([name in self.names for name in self.columns])
        parts = [[[self._number(name, row[name]) for name in self.columns] for row in rows] for rows in (train, test)]
        raw = [np.array(part) for part in parts]
        self.mean, self.std = raw[0].mean(0), raw[0].std(0)
        self.train, self.test = ((rows - self.mean) / self.std for rows in raw)

    def _number(self, name: str, cell: str) -> float:
        return float(self.names[name].index(cell)) if name in self.names else float(cell)

    def raw(self, row: int, column: int) -> Any:
        """A test cell as a raw sample."""
        number = self.test[row, column] * self.std[column] + self.mean[column]
        name = self.columns[column]
        return self.names[name][round(number)] if name in self.names else float(number)

    def numbers(self, column: int, raws: list[Any]) -> np.ndarray:
        """Raw samples of a column, standardised."""
        numbers = np.array([self._number(self.columns[column], raw) for raw in raws])
        return (numbers - self.mean[column]) / self.std[column]

    def nearest_label(self, column: int, values: np.ndarray) -> np.ndarray:
        """Standardised values of a column of labels → the nearest place in its list."""
        last = len(self.names[self.columns[column]]) - 1
        return np.clip(np.rint(values * self.std[column] + self.mean[column]), 0, last)


def by_model(model: Any, table: Table, hidden: np.ndarray, options: dict[str, Any], num: int) -> np.ndarray:
    """Samples ``[num, rows, columns]``; NaN where nothing is hidden."""
    from unidiff_core import fill_in

    rows = [
        {name: None if hidden[i, j] else table.raw(i, j) for j, name in enumerate(table.columns)}
        for i in range(len(hidden))
    ]
    samples = np.full((num, *hidden.shape), np.nan)
    for i, filled in enumerate(fill_in(model, rows, num, **options)):
        for name, raws in filled.items():
            j = table.columns.index(name)
            samples[:, i, j] = table.numbers(j, raws)
    return samples


def by_imputer(make: Callable[[int], Any], table: Table, hidden: np.ndarray, num: int) -> np.ndarray:
    """What an imputer fills in, drawn `num` times: ``[num, rows, columns]``."""
    test = np.where(hidden, np.nan, table.test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged, for one
        return np.stack([make(seed).fit(table.train).transform(test) for seed in range(num)])


def measured(table: Table, hidden: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
    """Figures with intervals, of samples (or one imputation) of the hidden cells."""
    numbers, labels = hidden & ~table.is_label, hidden & table.is_label
    mean = samples.mean(0)
    low, high = np.quantile(samples, QUANTILES, axis=0)
    squared = np.where(numbers, (mean - table.test) ** 2, 0.0)
    right = np.zeros(hidden.shape, dtype=bool)
    for j in np.flatnonzero(table.is_label):
        places = np.stack([table.nearest_label(j, row[:, j]) for row in samples])  # NaN where nothing is hidden
        counts = np.stack([(places == k).sum(0) for k in range(len(table.names[table.columns[j]]))])
        right[:, j] = counts.argmax(0) == table.nearest_label(j, table.test[:, j])
    # The model's numbers are in single precision.
    is_covered = (low - 1e-5 <= table.test) & (table.test <= high + 1e-5)
    figures = {
        "nrmse": lambda rows: np.sqrt(squared[rows].sum() / numbers[rows].sum()),
        "label_accuracy": lambda rows: right[rows][labels[rows]].mean() if labels[rows].any() else np.nan,
    }
    if len(samples) > 1:
        figures["coverage_90"] = lambda rows: is_covered[rows][numbers[rows]].mean()
        figures["width_90"] = lambda rows: (high - low)[rows][numbers[rows]].mean()
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(hidden), size=len(hidden)) for _ in range(500)]
    result: dict[str, Any] = {"numbers": int(numbers.sum()), "labels": int(labels.sum())}
    for name, figure in figures.items():
        spread = np.nanquantile([figure(rows) for rows in draws], (0.025, 0.975))
        result[name] = [round(float(x), 4) for x in (figure(np.arange(len(hidden))), *spread)]
    return result


def main() -> None:
    """Hide, fill in, compare, write."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401 — its module is hidden without
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    from unidiff_core import UniDiffuser
    from unidiff_core.foundation.plugin import load_plugins

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="model directory")
    parser.add_argument("recipe", help="recipe of its fit, whose source is the table")
    parser.add_argument("--num", type=int, default=100, help="samples of each row")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of what is hidden, and of the samples")
    parser.add_argument("--rows", type=int, help="test rows at most")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()

    described = yaml.safe_load(Path(options.recipe).read_text())["data"]["samples"]["init_args"]["source"]
    table = Table(load_plugins().make(described["class_path"], **described["init_args"]))
    table.test = table.test[: options.rows]
    hidden = np.random.default_rng(options.seed).random(table.test.shape) < SHARE
    methods: dict[str, Callable[[], np.ndarray]] = {
        "column mean": lambda: by_imputer(lambda seed: SimpleImputer(), table, hidden, 1),
        "KNNImputer": lambda: by_imputer(lambda seed: KNNImputer(), table, hidden, 1),
        "IterativeImputer": lambda: by_imputer(lambda seed: IterativeImputer(max_iter=30), table, hidden, 1),
        "IterativeImputer, drawn": lambda: by_imputer(
            lambda seed: IterativeImputer(max_iter=30, sample_posterior=True, random_state=seed), table, hidden, 50
        ),
        "samples": lambda: by_model(
            UniDiffuser.from_pretrained(options.model),
            table,
            hidden,
            {"steps": options.steps, "seed": options.seed, "batch_size": options.num},
            options.num,
        ),
    }
    result = {}
    for name, impute in methods.items():
        start = time.process_time()
        samples = impute()
        result[name] = measured(table, hidden, samples) | {"cpu_seconds": round(time.process_time() - start, 1)}
        print(name, json.dumps(result[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
