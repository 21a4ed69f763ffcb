"""What torchmetrics measures images by, from files on this machine: Inception's features for FID, and CLIP score."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchmetrics
from PIL import Image
from torch import Tensor, nn

from unidiff_codecs.clip import load_clip, locate_clip
from unidiff_codecs.image import square
from unidiff_core.foundation.argument import check_sizes


class Inception(nn.Module):
    """The features of FID: those of the Inception network of 2015, by torch-fidelity, from a file.

    Give it as the `feature` of torchmetrics' FrechetInceptionDistance or KernelInceptionDistance.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's release, or the same tensors
            as safetensors; nothing is fetched.
        size: side, pixels, to which images are brought first (Lanczos), real and sampled alike: COCO's FID is taken at
            256 pixels. Null leaves them as they are.
        device: where it is computed.

    Raises:
        ValueError: at first use, if the file or torch-fidelity is not there, or the file holds something else.
    """

    num_features = 2048

    def __init__(self, weights: str, size: int | None = 256, device: str = "cpu") -> None:
        super().__init__()
        check_sizes(**({} if size is None else {"size": size}))
        self.weights, self.size, self.device = weights, size, device

    def forward(self, pixels: Tensor) -> Tensor:
        """Bytes ``[b, 3, h, w]`` → ``[b, 2048]`` on the CPU."""
        with torch.no_grad():
            (features,) = self._network(_resized(pixels, self.size).to(self.device))
        return torch.as_tensor(features).float().cpu()

    @cached_property
    def _network(self) -> Any:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError("FID's Inception needs `pip install unidiff-core[fid]` (torch-fidelity)") from error
        plain = io.BytesIO()  # torch-fidelity unpickles what it is given: it is given nothing but tensors
        torch.save(_tensors(Path(self.weights).expanduser()), plain)
        plain.seek(0)
        try:
            network: Any = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=plain)
        except RuntimeError as error:
            raise ValueError(f"{self.weights} does not hold Inception's weights: {str(error)[:200]}") from error
        return network.to(self.device)


class ClipScore(torchmetrics.Metric):
    """CLIP score: the mean cosine between CLIP's features of an image and of a text (Hessel et al. 2021, without its
    factor of 2.5; torchmetrics' own is 100 times this, cut at 0).

    Give it as the `metric` of a TorchMetric of two modalities, one an image and one a text, in either order. With its
    mean comes its standard error, so that tables show an interval.

    Args:
        clip: folder of an open_clip model.
        device: where it is computed.

    Raises:
        ValueError: at first use, if the folder holds no such model, or there is not an image and a text.
    """

    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, clip: str, device: str = "cpu") -> None:
        super().__init__()
        self.clip, self.where = clip, device
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, first: Tensor | Sequence[str], second: Tensor | Sequence[str]) -> None:
        """Bytes ``[b, 3, h, w]`` and as many texts, or the other way round."""
        images, texts = (first, second) if isinstance(first, Tensor) else (second, first)
        if not isinstance(images, Tensor) or isinstance(texts, Tensor):
            raise ValueError("CLIP score is of an image and a text; name such a pair as the modalities")
        cosines = self.cosines(images, texts).double()
        self.total += cosines.sum()
        self.squares += cosines.square().sum()
        self.count += len(cosines)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean, and its standard error; nan of a single pair."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0) * self.count / (self.count - 1)
        return mean, (variance / self.count).sqrt()

    @torch.no_grad()
    def cosines(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Of each pair ``[b]``, on the CPU."""
        model, preprocess, tokenizer = self._network
        pixels = torch.stack([preprocess(Image.fromarray(image)) for image in _rows(images)])
        of_images = model.encode_image(pixels.to(self.where), normalize=True)
        of_texts = model.encode_text(tokenizer(list(texts)).to(self.where), normalize=True)
        cosines: Tensor = (of_images * of_texts).sum(1).float().cpu()
        return cosines

    @cached_property
    def _network(self) -> Any:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        folder = locate_clip(self.clip)
        model = load_clip(folder).to(self.where)
        preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        return model, preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


def _rows(pixels: Tensor) -> list[np.ndarray]:
    """Bytes ``[b, 3, h, w]`` → each image ``[h, w, 3]``."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"images are bytes [b, 3, h, w], not {pixels.dtype} {list(pixels.shape)}")
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


def _resized(pixels: Tensor, size: int | None) -> Tensor:
    """Each image's central square at a size, exactly as the codec and the shards have it."""
    if size is None or pixels.shape[2:] == (size, size):
        return pixels
    images = [np.asarray(square(Image.fromarray(image), size)) for image in _rows(pixels)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _tensors(path: Path) -> Any:
    """A plain state dict."""
    if not path.is_file():
        raise ValueError(
            f"no such file: {path}; FID's Inception comes from torch-fidelity's releases on GitHub (v0.2.0), "
            "weights-inception-2015-12-05-6726825d.pth. Name where it lies with `weights`"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no file of tensors alone, and is not read: {str(error)[:100]}") from error
