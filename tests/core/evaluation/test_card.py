"""What a model card says of an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import yaml
from PIL import Image
from unidiff_codecs.image import ImageCodec

from tests.core.evaluation.letters import Channel, judged
from unidiff_core.evaluation.card import SHOWN, measured_of
from unidiff_core.evaluation.criterion import Criterion
from unidiff_core.evaluation.run import Example
from unidiff_core.serialization.card import SAMPLES, card, write_card
from unidiff_core.serialization.description import Description


def test_the_card_has_the_first_samples_and_every_figure(settings, tmp_path):
    rules = [Criterion("upper | lower", "letter", at_least=0.7), Criterion("upper", "letter", at_least=0.5)]
    model = Channel(0.8)
    result = judged(model, replace(settings, criteria=rules))
    codecs = {name: modality.codec for name, modality in model.modalities.items()}
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    result.examples["image"] = [Example({}, {"image": picture}, ())]
    (tmp_path / SAMPLES / "of_before").mkdir(parents=True)
    measured = measured_of(result, codecs | {"image": ImageCodec()}, tmp_path)
    assert [path.name for path in (tmp_path / SAMPLES).iterdir()] == ["5_image"]  # letters are written out
    description = Description(model.modalities, {}, licence="mit", sources=("a paper",))
    text = card(description, "me/letters", measured)
    assert f'<img src="{SAMPLES}/5_image/image_0.png" width="96">' in text
    first = result.examples["upper | lower"][0]
    assert f"* “{first.given['lower']}” → “{first.solved['upper']}”" in text
    assert len(measured.samples["upper | lower"]) == SHOWN
    assert "1 of 2 criteria met" in text and "upper \\| lower | letter" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {"license": "mit", "library_name": "unidiff", "tags": front["tags"]}
    assert {"upper", "lower"} <= {*front["tags"]}
    assert write_card(tmp_path, description, measured) and write_card(tmp_path, description)  # ours: written again
    assert "Measured" not in (tmp_path / "README.md").read_text()
