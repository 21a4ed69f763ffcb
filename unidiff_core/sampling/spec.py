"""The timestep spec: what to sample, as a path in time for every modality."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unidiff_core.foundation.error import meant
from unidiff_core.foundation.inline import read_inline

Role = Literal["solve", "hold"]
Along = Callable[[float, float, float], float]
"""(time of a knot, time of the next, share of the way between, above 0 and below 1) → time."""

_TERM = re.compile(r"^(?P<name>[A-Za-z_][\w-]*)\s*(?:@\s*(?P<time>\S+))?$")


class SpecError(ValueError):
    """A timestep spec that makes no sense; says what is wrong and what is known."""


@dataclass(frozen=True)
class Path:
    """One modality's way through time, through knots (progress, time), both in [0, 1]; between them evenly, or not.

    Time 0 is clean and 1 is pure noise (T). A solved modality is moved by the solver along its path; a held one is
    always its supplied value, noised to the path's present time with one fixed draw.
    """

    role: Role
    knots: tuple[tuple[float, float], ...]
    renoises: bool = False
    """Whether it goes up by fresh noise, as the forward process does, and not by the solver."""
    along: Along | None = None
    """How it goes between knots, if not evenly."""

    def __call__(self, progress: float) -> float:
        """The time at a progress."""
        places = [place for place, _ in self.knots]
        i = bisect.bisect_right(places, progress)
        if i in (0, len(self.knots)):
            return self.knots[min(i, len(self.knots) - 1)][1]
        (p0, t0), (p1, t1) = self.knots[i - 1 : i + 1]
        if self.along is not None and p0 < progress and t0 != t1:
            return self.along(t0, t1, (progress - p0) / (p1 - p0))
        # Exact at the knots: a path that ends at 0 ends at 0, and not at 1e-17.
        return t0 if progress == p0 else t0 + (t1 - t0) * (progress - p0) / (p1 - p0)

    @property
    def is_constant(self) -> bool:
        """Whether the time never changes."""
        return len({time for _, time in self.knots}) == 1

    @property
    def needs_value(self) -> bool:
        """Whether a value must be supplied: to start below pure noise, or to hold anything but pure noise."""
        times = [time for _, time in self.knots]
        return times[0] < 1 if self.role == "solve" else min(times) < 1


NEAR = 1e-9
"""Knots nearer than this, in progress, are at one place."""

IGNORED = Path("hold", ((0.0, 1.0),))
"""Held at T: pure noise. The path of a modality that is neither named nor supplied."""


@dataclass(frozen=True)
class TimestepSpec:
    """A path for each modality. Make one with `parse`.

    In text, solved modalities stand before the bar and held ones behind it, ``@`` gives a time::

        "image"                 the marginal: everything else is ignored
        "image | text"          image given text
        "image, text"           both, jointly
        "image | text@0.3"      image given text noised to 0.3·T
        "image@0.6 | text"      the image from a supplied one, noised to 0.6·T (SDEdit)

    In a mapping (of Python, or YAML, as a text too if it begins with a brace) each value is a path: a pair ``[start,
    end]`` or a list of (progress, time) knots is solved, a number is a held time, ``{hold: …}`` is a held path that
    moves::

        {image: [1, 0], text: 0}                                           "image | text"
        {text: [[0, 1], [0.5, 0]], image: [[0.5, 1], [1, 0]]}              text first, then the image
        {image: [0, 1]}                                                    inversion: clean to noise, by the solver
        {image: {renoise: [[0, 1], [0.5, 0], [0.6, 0.3], [1, 0]]}}         solved, noised afresh to 0.3, solved again
    """

    paths: Mapping[str, Path]

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any] | TimestepSpec, modalities: Iterable[str]) -> TimestepSpec:
        """Read a spec in either form, or check one that is made already.

        Args:
            spec: text or mapping as above.
            modalities: names of all modalities; those that the spec does not name are ignored.

        Raises:
            SpecError: if it names an unknown modality or one twice, solves nothing, has a time outside [0, 1], or two
                knots of a path at one progress.
        """
        known = list(modalities)
        if isinstance(spec, TimestepSpec):
            paths = {name: path for name, path in spec.paths.items() if path != IGNORED}
        elif isinstance(spec, str):
            paths = _parse_any_text(spec, known)
        elif isinstance(spec, Mapping):
            paths = {_known_name(name, known): _parse_path(name, value) for name, value in spec.items()}
        else:
            raise SpecError(f"a timestep spec is a text or a mapping, not {spec!r}")
        for name in paths:
            _known_name(name, known)
        if not any(path.role == "solve" for path in paths.values()):
            raise SpecError(f"the timestep spec {spec!r} solves nothing; name what to sample, of {', '.join(known)}")
        paths = _joined(paths)
        return cls({name: paths.get(name, IGNORED) for name in known})

    def _names(self, role: Role) -> tuple[str, ...]:
        return tuple(name for name, path in self.paths.items() if path.role == role and path != IGNORED)

    @property
    def solved(self) -> tuple[str, ...]:
        """Modalities that the solver moves."""
        return self._names("solve")

    @property
    def held(self) -> tuple[str, ...]:
        """Modalities that are given."""
        return tuple(name for name in self._names("hold") if self.paths[name].needs_value)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Modalities held at T."""
        return tuple(name for name in self.paths if name not in self.solved + self.held)

    def check_supplied(
        self, supplied: Collection[str], states: Collection[str] = (), against: Collection[str] = ()
    ) -> None:
        """Check that exactly the values that the spec needs are supplied.

        Args:
            supplied: modalities of which a clean value is given.
            states: modalities of which the state at the start of the path is given.
            against: modalities of which a value to lead away from is given.

        Raises:
            SpecError: names the first value that is missing, or that is not used.
        """
        for names, wanted, what in ((states, self.solved, "solve"), (against, self.held, "hold")):
            for name in names:
                if name not in wanted:
                    kind = "a state at the start of its path" if what == "solve" else "a value to lead away from"
                    known = ", ".join(wanted) or "nothing"
                    raise SpecError(
                        f"{kind} is given of {name!r}, which {self} does not {what}; it does so with {known}"
                    )
        for name in supplied:  # first: it may be what is lacking, misspelt
            if name not in self.paths:
                rest = meant(str(name), self.paths, then=f"known: {', '.join(self.paths)}")
                raise SpecError(f"unknown modality {name!r} is given{rest}")
        needed = [name for name, path in self.paths.items() if path.needs_value and name not in states]
        for name in needed:
            if name not in supplied:
                role = "holds" if self.paths[name].role == "hold" else "starts below pure noise from"
                raise SpecError(f"{self} {role} {name!r}, but no value of it is given; give one")
        for name in supplied:
            if name not in needed:
                uses = f"it uses {', '.join(needed)}" if needed else "it uses none"
                how = self._how_to_use(name, states)
                raise SpecError(f"a value of {name!r} is given, but {self} does not use it ({uses}); {how}")

    def check_solved(self, names: Iterable[str], what: str) -> None:
        """Check that this spec solves every modality for which something is said.

        Args:
            names: of modalities.
            what: is said: "a solver".

        Raises:
            SpecError: names the first that it does not solve.
        """
        for name in names:
            if name not in self.solved:
                raise SpecError(
                    f"{what} is named for {name!r}, which {self} does not solve; solved: {', '.join(self.solved)}"
                )

    def _how_to_use(self, name: str, states: Collection[str]) -> str:
        """What to write so that a modality's value is used."""
        if name in states:
            return "its state is given too, which takes its place"
        if name in self.solved:
            return f"it is solved from pure noise; {name}@0.6 starts from the value, noised to 0.6"
        held = f'"{self}{", " if self.held else " | "}{name}"'
        return f"at time 1 it is pure noise, whatever its value; {held} holds it"

    def times(self, progress: float) -> dict[str, float]:
        """The time of each modality at a progress, in [0, 1]."""
        return {name: path(progress) for name, path in self.paths.items()}

    def segments(self) -> list[tuple[float, float]]:
        """The stretches of progress between knots in which some solved modality moves."""
        places = {place for path in self.paths.values() for place, _ in path.knots} | {0.0, 1.0}
        edges = sorted(places)
        pairs = list(itertools.pairwise(edges))
        return [(a, b) for a, b in pairs if any(self.paths[name](a) != self.paths[name](b) for name in self.solved)]

    def is_renoised(self, start: float, end: float) -> bool:
        """Whether all that moves between two places of progress goes up by fresh noise."""
        moving = [path for path in (self.paths[name] for name in self.solved) if path(start) != path(end)]
        return all(path.renoises and path(end) > path(start) for path in moving)

    def __str__(self) -> str:
        def term(name: str) -> str:
            path = self.paths[name]
            start, end = path.knots[0][1], path.knots[-1][1]
            if path.role == "solve" and len(path.knots) == 2 and end == 0:
                return name if start == 1 else f"{name}@{start:g}"
            if path.role == "hold" and path.is_constant:
                return name if start == 0 else f"{name}@{start:g}"
            return f"{name}{'~' * path.renoises}@[{' '.join(f'{place:g}:{time:g}' for place, time in path.knots)}]"

        sides = (", ".join(map(term, side)) for side in (self.solved, self.held))
        return " | ".join(side for side in sides if side)


def _joined(paths: Mapping[str, Path]) -> dict[str, Path]:
    """The same paths, with knots that lie nearer than rounding (0.3 and 0.1 + 0.2) at one progress."""
    places: dict[float, float] = {}
    last = -1.0
    for place in sorted({0.0, 1.0} | {place for path in paths.values() for place, _ in path.knots}):
        last = places[place] = last if place - last < NEAR else place
    if last != 1.0:  # something just below the end
        places = {place: 1.0 if joined == last else joined for place, joined in places.items()}
    joined = {name: replace(path, knots=tuple((places[p], t) for p, t in path.knots)) for name, path in paths.items()}
    for name, path in joined.items():
        if any(a == b for (a, _), (b, _) in itertools.pairwise(path.knots)):
            raise SpecError(f"two knots of {name!r} are at one progress, but for rounding: {list(paths[name].knots)}")
    return joined


def _known_name(name: str, known: Sequence[str]) -> str:
    if name not in known:
        rest = meant(str(name), known, then=f"known: {', '.join(known)}")
        raise SpecError(f"unknown modality {name!r} in the timestep spec{rest}")
    return name


def _time(name: str, value: Any) -> float:
    try:
        time = float(value)
    except (TypeError, ValueError):
        raise SpecError(f"the time of {name!r} is a number in [0, 1] (0 clean, 1 noise), not {value!r}") from None
    if not 0 <= time <= 1 or math.isnan(time):
        raise SpecError(f"the time of {name!r} is {value}, outside [0, 1] (0 is clean, 1 is noise)")
    return time


def _parse_any_text(text: str, known: Sequence[str]) -> dict[str, Path]:
    """A text in either form: one that begins with a brace is a mapping, wherever a spec is typed."""
    if not text.lstrip().startswith("{"):
        return _parse_text(text, known)
    try:
        rows = read_inline(text, "the timestep spec")
    except ValueError as error:
        raise SpecError(str(error)) from error
    if not isinstance(rows, Mapping):
        raise SpecError(f"the timestep spec {text!r} is no mapping, {{name: path, ...}}")
    return {_known_name(name, known): _parse_path(name, value) for name, value in rows.items()}


def _parse_text(text: str, known: Sequence[str]) -> dict[str, Path]:
    if not text.strip():
        raise SpecError(f"the timestep spec is empty; name what to sample, of {', '.join(known)}")
    sides = text.split("|")
    if len(sides) > 2:
        raise SpecError(f"the timestep spec {text!r} has more than one bar; write 'solved, solved | held, held'")
    paths: dict[str, Path] = {}
    for role, side in zip(("solve", "hold"), sides, strict=False):
        for term in side.split(",") if side.strip() or role == "hold" or not text.strip() else []:
            match = _TERM.match(term.strip())
            if match is None:
                raise SpecError(f"cannot read {term.strip()!r} in the timestep spec {text!r}; write NAME or NAME@TIME")
            name = _known_name(match["name"], known)
            if name in paths:
                raise SpecError(f"{name!r} stands twice in the timestep spec {text!r}; a modality has one path")
            if role == "solve":
                start = 1.0 if match["time"] is None else _time(name, match["time"])
                paths[name] = _solved(name, ((0.0, start), (1.0, 0.0)))
            else:
                paths[name] = Path("hold", ((0.0, 0.0 if match["time"] is None else _time(name, match["time"])),))
    return paths


def _solved(name: str, knots: tuple[tuple[float, float], ...]) -> Path:
    path = Path("solve", knots)
    if path.is_constant:
        points = ", ".join(f"time {time:g} at progress {place:g}" for place, time in knots)
        raise SpecError(
            f"{name!r} is to be solved but its time never changes ({points}); a point is [progress, time]; give a "
            "number to hold it"
        )
    return path


def _parse_path(name: str, value: Any) -> Path:
    if isinstance(value, Mapping):
        if set(value) == {"renoise"}:
            path = _parse_path(name, value["renoise"])
            if path.role != "solve":
                raise SpecError(f"{{renoise: …}} of {name!r} holds [start, end] or knots, not {value['renoise']!r}")
            return replace(path, renoises=True)
        if set(value) != {"hold"}:
            raise SpecError(
                f"the path of {name!r} is {{hold: …}} or {{renoise: …}} if a mapping, not one with {sorted(value)}"
            )
        held = value["hold"]
        return Path("hold", _knots(name, held) if isinstance(held, Sequence) else ((0.0, _time(name, held)),))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _solved(name, _knots(name, value))
    return Path("hold", ((0.0, _time(name, value)),))


def _knots(name: str, value: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    rows = list(value)
    if len(rows) == 2 and not any(isinstance(row, Sequence) for row in rows):
        rows = [[0.0, rows[0]], [1.0, rows[1]]]
    if len(rows) < 2 or not all(
        isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2 for row in rows
    ):
        raise SpecError(f"the path of {name!r} is [start, end] or a list of [progress, time] knots, not {value!r}")
    for place, _ in rows:
        if not isinstance(place, int | float) or not 0 <= place <= 1:
            raise SpecError(
                f"the progress of a knot of {name!r} is a number in [0, 1], not {place!r}; a point is [progress, time]"
            )
    knots = tuple((float(place), _time(name, time)) for place, time in rows)
    if any(a >= b for (a, _), (b, _) in itertools.pairwise(knots)):
        raise SpecError(
            f"the progress of {name!r}'s knots must grow, as it does not in {value!r}; a point is [progress, time]"
        )
    return knots
