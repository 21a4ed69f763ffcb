"""Quality against network evaluations, for every solver: agreement with what is given, and the Fréchet distance.

    python benchmarks/solvers.py runs/digits recipes/digits/evaluate.yaml --json docs/solvers.json --svg solvers.svg
    python benchmarks/solvers.py runs/digits recipes/digits/evaluate.yaml --noise --json docs/noise.json

On the validation part of the test data, by the recipe's judge. A solver that evaluates twice a step takes half the
steps, so that a column is of one cost. `--noise` compares the two ways of silencing a modality instead: one draw of
noise that is kept, and noise that is drawn anew at each evaluation, as the released code does; three seeds. The JSON
grows row by row, and a call goes on where one was interrupted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from unidiff_core import UniDiffuser
from unidiff_core.evaluation.features import JudgeFeatures
from unidiff_core.evaluation.frechet import Frechet
from unidiff_core.evaluation.labels import LabelMetric
from unidiff_core.evaluation.run import Query, Settings, draw, fitted
from unidiff_core.foundation.atomic import write_text
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.foundation.progress import tracked
from unidiff_core.process.gaussian.solver import GaussianSolver
from unidiff_core.process.process import find_solver

EVALUATIONS = (5, 10, 20, 50)
SOLVERS = (
    "ddim",
    "ddpm",
    "analytic(1)",
    "dpmpp_2m",
    "dpmpp_3m",
    "heun",
    "DiffusersSolver(DPMSolverSinglestepScheduler, 3)",
    "DiffusersSolver(UniPCMultistepScheduler)",
    "DiffusersSolver(DEISMultistepScheduler)",
    "renoise",
    "DiffusersSolver(DDIMScheduler)",
    "DiffusersSolver(DPMSolverMultistepScheduler)",
    "DiffusersSolver(DPMSolverSinglestepScheduler)",
    "DiffusersSolver(EulerDiscreteScheduler)",
    "DiffusersSolver(HeunDiscreteScheduler)",
)
GUIDANCE = {"image | text": 2.0, "image, text": 3.0}
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 300, 50, 40


def cases(
    solvers: list[str], queries: list[str], num: int, *, noise: bool, spacings: list[str], evaluations: list[int]
) -> list[dict[str, Any]]:
    """What is drawn, as options of a query."""
    if noise:
        return [
            {"query": query, "num": num, "seed": seed, "redraws_noise": redraws, "steps": 30}
            for query in queries
            for seed in range(3)
            for redraws in (False, True)
        ]
    return [
        {
            "query": query,
            "num": num,
            "seed": 0,
            "solver": solver,
            "evaluations": count,
            "steps": -(-count // find_solver(solver, GaussianSolver).num_evaluations),
            **({} if spacing == "uniform" else {"spacing": spacing}),
        }
        for query in queries
        for solver in solvers
        for spacing in spacings
        for count in evaluations
    ]


def svg(rows: list[dict[str, Any]], query: str, metric: str) -> str:
    """A metric over evaluations, a line a solver."""
    rows = [row for row in rows if row["query"] == query and metric in row["metrics"] and "spacing" not in row]
    values = [row["metrics"][metric][0] for row in rows]
    low, high = min(values), max(values)

    def place(row: dict[str, Any]) -> str:
        x = LEFT + (WIDTH - LEFT - 10) * EVALUATIONS.index(row["evaluations"]) / (len(EVALUATIONS) - 1)
        y = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 30) * (row["metrics"][metric][0] - low) / ((high - low) or 1)
        return f"{x:.1f},{y:.1f}"

    names = list(dict.fromkeys(row["solver"] for row in rows))
    lines = ""
    for i, name in enumerate(names):
        colour, dashes = COLOURS[i % 10], "4 3" if i > 9 else "none"
        points = " ".join(place(row) for row in rows if row["solver"] == name)
        lines += f'<polyline fill="none" stroke="{colour}" stroke-dasharray="{dashes}" points="{points}"/>'
        lines += f'<text x="{WIDTH + 6}" y="{30 + 16 * i}" fill="{colour}">{short(name)}</text>'
    ticks = "".join(
        f'<text x="{LEFT + (WIDTH - LEFT - 10) * i / (len(EVALUATIONS) - 1):.0f}" y="{HEIGHT - 18}">{count}</text>'
        for i, count in enumerate(EVALUATIONS)
    )
    ends = f'<text x="4" y="{HEIGHT - BOTTOM}">{low:.3g}</text><text x="4" y="34">{high:.3g}</text>'
    head = f'<text x="{LEFT}" y="16">{query}, {metric} by network evaluations before guidance</text>'
    return f'<g font-family="sans-serif" font-size="12">{head}{ends}{ticks}{lines}</g>'


def short(solver: str) -> str:
    """A solver's name without what all of diffusers' have."""
    return solver.replace("DiffusersSolver(", "diffusers ").replace("Scheduler", "").rstrip(")")


def main() -> None:
    """Draw, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("config", type=Path, help="an evaluation's YAML: judge, shards, sources")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--num", type=int, default=240)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS))
    parser.add_argument("--queries", nargs="*", default=list(GUIDANCE))
    parser.add_argument("--spacings", nargs="*", default=["uniform"], help="of times; see `unidiffuser sample --help`")
    parser.add_argument("--evaluations", nargs="*", type=int, default=list(EVALUATIONS))
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json.is_file() else []
    sweep = {"spacings": options.spacings, "evaluations": options.evaluations}
    asked = cases(options.solvers, options.queries, options.num, noise=options.noise, **sweep)
    done = [row | {"spacing": row.get("spacing")} for row in rows]
    todo = [
        case for case in asked if not any((case | {"spacing": case.get("spacing")}).items() <= r.items() for r in done)
    ]
    if todo:
        measure(options.model, options.config, todo, rows, options.json)
    if options.svg:
        panels = [(query, metric) for query in options.queries for metric in ("digit", "frechet", "image.frechet")]
        drawn = [pair for pair in panels if any(r["query"] == pair[0] and pair[1] in r["metrics"] for r in rows)]
        inside = "".join(
            f'<g transform="translate(0 {i * HEIGHT})">{svg(rows, *pair)}</g>' for i, pair in enumerate(drawn)
        )
        size = f'width="{WIDTH + 250}" height="{HEIGHT * len(drawn)}"'
        write_text(options.svg, f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inside}</svg>\n')
    for row in rows:
        values = ", ".join(f"{key} {value[0]:.3f}" for key, value in row["metrics"].items())
        print({key: value for key, value in row.items() if key != "metrics"}, values)


def measure(directory: Path, path: Path, todo: list[dict[str, Any]], rows: list[dict[str, Any]], out: Path) -> None:
    """Draw what is asked for and add it to the rows."""
    config = yaml.safe_load(path.read_text())
    model = UniDiffuser.from_pretrained(directory)
    judge = load_plugins().make(config["judge"]["class_path"], **config["judge"].get("init_args", {}))
    metrics = [LabelMetric(judge), Frechet(JudgeFeatures(judge))]
    queries = {case["query"]: Query(case["num"]) for case in todo}
    settings = Settings(config["train"], config["test"], queries, sources=config["sources"], part="validation")
    reference = fitted(model, metrics, settings)
    for case in tracked(todo, "solvers", len(todo), "cases"):
        own = {key: case[key] for key in ("num", "steps", "solver", "spacing", "redraws_noise") if key in case}
        query = Query(**own, guidance=GUIDANCE[case["query"]])
        drawn = draw(model, case["query"], replace(settings, seed=case["seed"]), reference.test, query=query)
        found = [metric.measure(drawn, reference).estimates for metric in metrics]
        cells = {
            key: [None if end is None else round(end, 4) for end in (cell.value, cell.low, cell.high)]
            for row in found
            for key, cell in row.items()
            if not key.startswith(("given_", "lost_", "new_"))
        }
        rows.append(case | {"metrics": cells})
        write_text(out, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main()
