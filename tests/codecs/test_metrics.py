"""Inception's features and CLIP score against the same numbers worked out here; tiny networks, from files."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from unidiff_codecs.metrics import ClipScore, Inception

from .conftest import CAPTIONS, picture


def pixels(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def cosines(folder, images, texts):
    """By open_clip alone, in float64."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts))
    with torch.no_grad():
        a = model.encode_image(torch.stack([preprocess(image) for image in images])).double().numpy()
        b = model.encode_text(tokens).double().numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_clip_score_is_the_mean_cosine_with_its_standard_error(clip):
    images, texts = [picture(i, (40, 40)) for i in range(9)], CAPTIONS[:9]
    expected = cosines(clip, images, texts)
    metric = ClipScore(str(clip))
    metric.update(pixels(images[:5]), texts[:5])
    metric.update(texts[5:], pixels(images[5:]))  # either order
    mean, error = metric.compute()
    assert float(mean) == pytest.approx(expected.mean(), abs=1e-5) and expected.std() > 1e-3
    assert float(error) == pytest.approx(expected.std(ddof=1) / 3, rel=1e-3)
    metric.reset()
    metric.update(pixels(images[:1]), texts[:1])
    mean, error = metric.compute()
    assert float(mean) == pytest.approx(expected[0], abs=1e-5) and error.isnan()


def test_clip_score_needs_an_image_and_a_text_and_a_model(clip, tmp_path):
    metric = ClipScore(str(clip))
    with pytest.raises(ValueError, match="CLIP score is of an image and a text"):
        metric.update(["a"], ["b"])
    with pytest.raises(ValueError, match="CLIP score is of an image and a text"):
        metric.update(pixels([picture(0)]), pixels([picture(1)]))
    with pytest.raises(ValueError, match=r"images are bytes \[b, 3, h, w\], not torch.float32"):
        metric.update(pixels([picture(0)]).float(), ["a"])
    with pytest.raises(ValueError, match="nowhere"):
        ClipScore(str(tmp_path / "nowhere")).update(pixels([picture(0)]), ["a"])


class Extractor(nn.Module):
    """In the place of torch-fidelity's: takes its arguments, gives 2048 numbers of an image."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.scale = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8
        return (self.scale * x.double().flatten(1)[:, :2048],)


@pytest.fixture
def fidelity(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_sees_every_image_at_one_size(fidelity, tmp_path):
    torch.save({"scale": torch.tensor([2.0])}, tmp_path / "inception.pth")
    image = picture(0, (48, 32))
    found = Inception(str(tmp_path / "inception.pth"), size=28)(pixels([image]))
    square = image.crop((8, 0, 40, 32)).resize((28, 28), Image.Resampling.LANCZOS)
    assert found.shape == (1, 2048) and found.dtype == torch.float32
    assert torch.equal(found[0], 2.0 * pixels([square]).float().flatten()[:2048])
    as_it_is = Inception(str(tmp_path / "inception.pth"), size=None)(pixels([image]))
    assert torch.equal(as_it_is[0], 2.0 * pixels([image]).float().flatten()[:2048])


def test_inception_says_what_it_lacks(fidelity, tmp_path, monkeypatch):
    image = pixels([picture(0)])
    with pytest.raises(ValueError, match=r"no such file: .*inception\.pth; FID's Inception comes from torch-fidelity"):
        Inception(str(tmp_path / "inception.pth"))(image)
    torch.save({"other": torch.zeros(1)}, tmp_path / "inception.pth")
    with pytest.raises(ValueError, match=r"inception\.pth does not hold Inception's weights"):
        Inception(str(tmp_path / "inception.pth"))(image)
    torch.save({"scale": nn.Linear(1, 1)}, tmp_path / "inception.pth")  # a pickle that would run code
    with pytest.raises(ValueError, match=r"inception\.pth is no file of tensors alone"):
        Inception(str(tmp_path / "inception.pth"))(image)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"pip install unidiff-core\[fid\]"):
        Inception(str(tmp_path / "inception.pth"))(image)
