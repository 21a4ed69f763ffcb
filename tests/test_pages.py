"""Pages as a browser shows them: wide and narrow, light and dark."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from unidiff_audio.codec import AudioCodec
from unidiff_codecs.image import ImageCodec
from unidiff_codecs.text import TextCodec

from tests.browser import PHONE, WIDE, looked_at, screenshot
from unidiff_core.codec.waveform import Waveform
from unidiff_core.evaluation.comparison import write_comparison
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.estimate import share
from unidiff_core.evaluation.gallery import card, shown
from unidiff_core.evaluation.history import write_training
from unidiff_core.evaluation.metric import Pair
from unidiff_core.evaluation.report import write_examples, write_report
from unidiff_core.evaluation.run import Evaluation, Example, Query, Settings
from unidiff_core.foundation.page import render, write_html

pytestmark = pytest.mark.acceptance

CODECS = {"image": ImageCodec(size=32, downsampling=4), "text": TextCodec(), "audio": AudioCodec()}
COUNT = 12
LIGHT_PAPER, DARK_PAPER = 200, 60
"""Means of red, green and blue: lighter is a light page, darker a dark one."""


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8))


def tone(seed):
    return Waveform(0.5 * np.sin(np.arange(4000) * (0.1 + 0.01 * seed)), 16000)


def evaluation(hits):
    """As `evaluate` makes it: pictures, sentences, one of them long, and sounds; every part of the page."""
    queries = {"image, audio | text": Query(), "text | image": Query()}
    rules = [Criterion("text | image", "digit", at_least=0.9), Criterion("text | image", "nothing", at_least=0.9)]
    metrics = {"digit": share(hits, 100), "given_digit": share(99, 100), "frechet": share(20, 100)}
    text = "a handwritten seven in blue ink on a ground whose colour nobody has written down " + "very" * 30
    examples = {
        "image, audio | text": [
            Example({"text": text}, {"image": picture(i), "audio": tone(i)}, ("digit",) if i == 3 else ())
            for i in range(COUNT)
        ],
        "text | image": [Example({"image": picture(i)}, {"text": text[: 20 + i]}, ()) for i in range(COUNT)],
    }
    return Evaluation(
        dict.fromkeys(queries, metrics), {"image": {"digit": share(98, 100)}},
        Settings("train", "test", queries, rules), examples, 1.0,
        controls={"real image, through its codec": metrics},
        sweeps={"guidance": {"text | image": dict.fromkeys(("0", "1", "2", "4"), metrics)}},
        pairs={"text | image": {"image": [Pair(picture(i), picture(100 + i), 0.5, i == 0) for i in range(6)]}},
        origin={"versions": {"torch": "2"}, "command": "unidiffuser evaluate " + "runs/" * 60},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name → page, of two runs with logs, samples and evaluations."""
    folder = tmp_path_factory.mktemp("pages")
    for name, hits in (("one", 95), ("two_with_a_long_name", 40)):
        run = folder / name
        (run / "logs/version_0").mkdir(parents=True)
        rows = [f"0,{50 * i - 1},{1 / i + hits / 1000},{2 / i},{3 / i},{0.1 + i % 3}" for i in range(1, 400)]
        head = "epoch,step,train/loss,train/a.x/0.00-0.50,train/a.x/0.50-1.00,train/gradient_norm"
        (run / "logs/version_0/metrics.csv").write_text("\n".join([head, *rows]))
        (run / "shown").mkdir()
        cards = [card({}, {"image": picture(i)}, CODECS) for i in range(8)]
        (run / "shown/0000400.html").write_text(render("shown.html.j2", galleries={"image": cards}))
        evaluated = evaluation(hits)
        evaluated.write(run / "evaluation.json")
        write_examples(run / "examples.json", evaluated, CODECS)
        sheet = io.BytesIO()
        Image.new("RGB", (3000, 200)).save(sheet, "PNG")
        (run / "reconstructions.png").write_bytes(sheet.getvalue())
        cells = [[[shown(CODECS["image"], picture(i)), shown(CODECS["audio"], tone(i))] for i in range(14)]]
        write_html(run / "film.html", "film.html.j2", title="chain", titles=["image | text"] * 14, rows=cells)
        more = {"pictures": [run / "reconstructions.png"], "films": [run / "film.html"]}
        write_report(run / "report.html", evaluated, CODECS, title=name, **more)
        write_training(run / "training.html", run, links=["report.html"])
    write_comparison(folder / "comparison.html", folder / "one", folder / "two_with_a_long_name")
    return {
        "report": folder / "one/report.html",
        "training": folder / "one/training.html",
        "film": folder / "one/film.html",
        "comparison": folder / "comparison.html",
    }


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def seen(pages, request):
    """(Page, width) → what a browser says of it; and whether it is dark."""
    asked = [(page, width) for page in pages for width in (WIDE, PHONE)]
    found = looked_at([(pages[page], width) for page, width in asked], is_dark=request.param)
    return dict(zip(asked, found, strict=True)), request.param


def test_nothing_is_cut_off_or_broken_at_any_width(seen):
    found, _ = seen
    for name, row in found.items():
        print(name, {key: value for key, value in row.items() if key != "charts"}, len(row["charts"]), "charts")
        assert row["overflow"] <= 0 and not row["out"], name  # only tables may scroll, and they do so in their own box
        assert row["images"] and not row["broken"] and not row["silent"] and not row["links"], name
        assert all(width >= 100 for width in row["players"]), name
        assert all(width >= 280 for width in row["charts"]), name
    assert (
        len(found["report", PHONE]["players"]) == COUNT + 14 and len(found["comparison", WIDE]["players"]) == 2 * COUNT
    )
    assert len(found["report", WIDE]["charts"]) == 4 and len(found["training", WIDE]["charts"]) == 3
    orders = {page: row["order"] for (page, _), row in found.items()}
    assert orders == {"report": "ptpt", "training": "p", "film": "tp", "comparison": "pt"}  # pictures, then numbers


def test_paper_and_ink_are_those_of_the_scheme(seen):
    found, is_dark = seen
    for name, row in found.items():
        paper, ink = (sum(map(int, row[key][4:-1].split(","))) / 3 for key in ("paper", "ink"))
        assert (paper < DARK_PAPER and ink > LIGHT_PAPER) if is_dark else (paper > LIGHT_PAPER and ink < DARK_PAPER), (
            name
        )


def test_screenshots_show_what_was_drawn(pages, tmp_path):
    for is_dark in (False, True):
        target = tmp_path / f"{is_dark}.png"
        screenshot(pages["training"], target, PHONE, 1500, is_dark=is_dark)
        pixels = np.asarray(Image.open(target).convert("RGB")).astype(int)
        assert pixels.shape == (1500, PHONE, 3)
        corner, colour = pixels[0, 0].mean(), [0x6A, 0xAE, 0xFF] if is_dark else [0x1F, 0x6F, 0xD1]
        assert bool(corner < DARK_PAPER) is is_dark
        assert (np.abs(pixels - colour).sum(-1) < 30).sum() > 300, (
            "the lines of the charts, in the first of the colours"
        )
