from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.sampling.loop import sample, time_grid
from unidiff_core.sampling.spec import Path, SpecError, TimestepSpec

NAMES = ("image", "text", "audio")


def parse(spec):
    return TimestepSpec.parse(spec, NAMES)


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("image", {"image": [1, 0]}),
        ("image | text", {"image": [1, 0], "text": 0}),
        ("image, text", {"image": [1, 0], "text": [[0, 1], [1, 0]]}),
        ("image, audio | text", {"image": [1, 0], "audio": [1, 0], "text": {"hold": 0}}),
        ("image | text@0.3", {"image": [1, 0], "text": 0.3}),
        ("image@0.6 | text", {"image": [0.6, 0], "text": 0}),
        ("image", {"image": [1, 0], "text": 1}),
    ],
)
def test_text_compiles_to_the_mapping(text, mapping):
    assert parse(text) == parse(mapping)
    assert parse(parse(text)) == parse(text)


def test_roles():
    spec = parse("image | text@0.3")
    assert (spec.solved, spec.held, spec.ignored) == (("image",), ("text",), ("audio",))
    assert spec.times(0.25) == {"image": 0.75, "text": 0.3, "audio": 1.0}
    assert str(spec) == "image | text@0.3"


def test_text_first_then_image():
    spec = parse({"text": [[0, 1], [0.5, 0]], "image": [[0.5, 1], [1, 0]]})
    assert spec.segments() == [(0.0, 0.5), (0.5, 1.0)]
    assert spec.times(0.25) == {"image": 1.0, "text": 0.5, "audio": 1.0}
    assert spec.times(0.5) == {"image": 1.0, "text": 0.0, "audio": 1.0}
    assert [len(part) - 1 for part in time_grid(spec, 7)] in ([3, 4], [4, 3])


def test_stretch_without_a_moving_modality_costs_nothing():
    assert parse({"image": [[0.5, 1], [1, 0]]}).segments() == [(0.5, 1.0)]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("imgae", "unknown modality 'imgae'.*image, text, audio"),
        ("image | image", "stands twice"),
        ("image, image", "stands twice"),
        ("image | text | audio", "more than one bar"),
        ("", "the timestep spec is empty; name what to sample, of image"),
        ("| text", "solves nothing"),
        ("image |", "cannot read ''"),
        ("image,, text", "cannot read ''"),
        ("image | text@2", r"outside \[0, 1\]"),
        ("image | text@-0.1", r"outside \[0, 1\]"),
        ("image | text@x", "not 'x'"),
        ("image | text@nan", "nan"),
        ("image@0", "never changes"),
        ({"image": 0.5}, "solves nothing"),
        ({"image": [1, 1]}, "never changes"),
        ({"image": [1]}, "knots"),
        ({"image": [[0, 1], [0, 0]]}, "must grow"),
        ({"image": [[1, 0], [0, 0.5]]}, r"must grow.*a point is \[progress, time\]"),
        ({"image": [[0, 0], [0.5, 0]]}, r"time 0 at progress 0.5\); a point is \[progress, time\]"),
        ({"image": [[0, 1], [50, 0]]}, r"progress of a knot of 'image' is .*not 50; a point is \[progress, time\]"),
        ({"image": {"held": 1}}, r"\{hold"),
        ({"image": "x"}, "not 'x'"),
        ({"pictures": [1, 0]}, "unknown modality 'pictures'"),
        (7, "a text or a mapping"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec, says):
    with pytest.raises(SpecError, match=says):
        parse(spec)


@pytest.mark.parametrize(
    ("spec", "supplied", "says"),
    [
        ("image | text", [], "holds 'text', but no value"),
        ("image@0.5", [], "starts below pure noise from 'image'"),
        ("image | text", ["text", "audio"], "'audio' is given.*does not use it"),
        ("image", ["image"], "does not use it"),
        ("image", ["x"], "unknown modality 'x'"),
    ],
)
def test_supplied_values_must_fit(spec, supplied, says):
    with pytest.raises(SpecError, match=says):
        parse(spec).check_supplied(supplied)


def test_steps_must_reach_every_segment():
    spec = parse({"text": [[0, 1], [0.5, 0]], "image": [[0.5, 1], [1, 0]]})
    with pytest.raises(ValueError, match="1 steps are too few"):
        time_grid(spec, 1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_a_path_stays_between_its_knots_and_passes_through_them(times, progress):
    knots = tuple((i / (len(times) - 1), time) for i, time in enumerate(times))
    path = Path("solve", knots)
    assert min(times) - 1e-12 <= path(progress) <= max(times) + 1e-12
    assert all(path(place) == time for place, time in knots)


@given(st.integers(2, 300), st.floats(0.05, 0.95))
def test_the_grid_has_the_steps_asked_for_and_ends_at_the_knots(steps, knot):
    spec = parse({"text": [[0, 1], [knot, 0]], "image": [[knot, 1], [1, 0]]})
    grid = time_grid(spec, steps)
    assert sum(len(part) - 1 for part in grid) == steps
    assert [part[0] for part in grid] == [0, knot] and [part[-1] for part in grid] == [knot, 1]


UNEVEN = {
    "image": [[0, 1], [0.49, 0]],
    "text": [[0.49, 1], [0.98, 0]],
    "audio": [[0.98, 1], [0.99, 0.5], [1, 0]],
}


def test_no_modality_of_a_path_of_several_segments_is_left_at_its_noise():
    shapes = {f"{name}.v": (2,) for name in NAMES}
    processes = {name: Gaussian() for name in NAMES}
    clean = lambda latents, times: {key: torch.zeros_like(value) for key, value in latents.items()}  # noqa: E731
    got = sample(clean, UNEVEN, processes=processes, shapes=shapes, num=3, steps=4)
    assert all(value.abs().max() < 1e-6 for value in got.values())


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=9), st.integers(0, 40))
def test_every_segment_has_a_step_and_the_rest_goes_by_length(lengths, rest):
    ends = [sum(lengths[: i + 1]) / sum(lengths) for i in range(len(lengths))]
    path = [[0, 1], *([end, i % 2] for i, end in enumerate(ends[:-1])), [1, 0.5]]
    segments = parse({"image": path}).segments()
    counts = [len(part) - 1 for part in time_grid(parse({"image": path}), len(segments) + rest)]
    assert sum(counts) == len(segments) + rest and min(counts) >= 1
    for (start, end), count in zip(segments, counts, strict=True):
        assert abs(count - 1 - (end - start) * rest) < 1 + 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50, 333])
def test_a_grid_of_one_segment_is_even(steps):
    assert time_grid(parse("image"), steps) == [[i / steps for i in range(steps)] + [1.0]]


def test_knots_nearer_than_rounding_are_one():
    spec = parse({"image": [[0, 1], [0.1 + 0.2, 0]], "text": [[0.3, 1], [1 - 1e-12, 0]]})
    assert spec.segments() == [(0, 0.3), (0.3, 1)]
    assert spec.times(0.3) == {"image": 0, "text": 1, "audio": 1} and spec.times(1)["text"] == 0
    with pytest.raises(SpecError, match="two knots of 'image' are at one progress"):
        parse({"image": [[0, 1], [0.3, 0.5], [0.1 + 0.2, 0.2], [1, 0]]})
