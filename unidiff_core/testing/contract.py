"""The codec contract: what a codec must keep to, clause by clause, as its docstring promises."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.testing.case import Broken, Case, Distance
from unidiff_core.testing.clauses import CLAUSES


@dataclass(frozen=True)
class Violation:
    """A clause that a codec does not keep."""

    clause: str
    seen: str
    fix: str

    def __str__(self) -> str:
        return f"{self.clause}: {self.seen}\n    To fix it: {self.fix}"


class ContractError(AssertionError):
    """A codec that violates its contract; lists every clause that it does not keep."""

    def __init__(self, codec: str, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        rows = "\n".join(f"  {violation}" for violation in violations)
        super().__init__(f"{codec} violates {len(self.violations)} of {len(CLAUSES)} clauses of the contract.\n{rows}")


@dataclass(frozen=True)
class ContractReport:
    """What was checked of a codec that keeps its contract."""

    codec: str
    clauses: tuple[str, ...]
    remarks: tuple[str, ...]
    """What is allowed and yet worth a look."""

    def __str__(self) -> str:
        rows = [f"{self.codec} keeps the contract: {', '.join(self.clauses)}.", *self.remarks]
        return "\n  ".join(rows)


def check_codec(codec: Codec, raws: Sequence[Raw], *, distance: Distance | None = None) -> ContractReport:
    """Check a codec against every clause of the contract.

    Args:
        codec: with its weights, if it has any, in local folders.
        raws: two or more different samples.
        distance: between two raw samples; `Codec.distance` if not given.

    Returns:
        The clauses that were checked, and remarks; worth printing. A remark on the latents' range is a warning too.

    Raises:
        ContractError: if a clause is violated; for each such clause, what was seen and how to fix it.
        ValueError: if there are not two different samples.
    """
    case = Case(codec, list(raws), distance or codec.distance)
    if not any(case.distance(case.raws[0], raw) > 0 for raw in case.raws[1:]):
        raise ValueError(f"check_codec needs two different samples or more; the {len(case.raws)} given are alike")
    violations = [violation for clause in CLAUSES if (violation := _violation(clause, case))]
    # One fault shows in many clauses: an `encode` that raises does so in all. The first clause tells it.
    first = {violation.seen: violation for violation in reversed(violations)}
    kept = [violation for violation in violations if first[violation.seen] is violation]
    name = type(codec).__name__
    if kept:
        raise ContractError(name, kept)
    return ContractReport(name, tuple(map(_title, CLAUSES)), tuple(case.remarks))


def _violation(clause: Callable[[Case], None], case: Case) -> Violation | None:
    try:
        clause(case)
    except Broken as broken:
        return Violation(_title(clause), broken.seen, broken.fix)
    except Exception as error:  # whatever a stranger's codec raises
        where = "".join(_place(error, case.codec))
        return Violation(_title(clause), f"{type(error).__name__}: {error}{where}", f"{clause.__doc__}")
    return None


def _title(clause: Callable[[Case], None]) -> str:
    return clause.__name__.removeprefix("clause_").replace("_", " ")


def _place(error: Exception, codec: Codec) -> Iterator[str]:
    """The innermost line of the codec's own module that an exception passed through."""
    own = inspect.getmodule(type(codec))
    rows = [
        (frame.f_code.co_qualname, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if own is not None and frame.f_globals is vars(own)
    ]
    if rows:
        yield f" (in {rows[-1][0]}, line {rows[-1][1]})"
