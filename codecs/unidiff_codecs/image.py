"""Images: a latent of Stable Diffusion's autoencoder, and CLIP's image feature."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from unidiff_codecs import watermark as watermarks
from unidiff_codecs.clip import ImageFeature
from unidiff_codecs.picture import as_rgb, contact_sheet, open_image
from unidiff_core import Draw, FrozenCodec, Stream
from unidiff_core.codec.mark import Mark
from unidiff_core.codec.weights import HUB, locate, read_config, require
from unidiff_core.foundation.argument import check_sizes

V = TypeVar("V")

PIXELS_AT_ONCE = 2**22
"""Pixels that the networks see at a time: bounds memory, changes no result."""

CONFIG, STEM = "config.json", "diffusion_pytorch_model"
AUTOENCODER_FILES = (CONFIG, f"{STEM}.safetensors")
OTHER_FORMS = (CONFIG, f"{STEM}*.safetensors", f"{STEM}*.safetensors.index*.json")
"""In several files, or in a variant: fetched where there is no single file."""

_VARIANT = re.compile(rf"{STEM}\.(?P<name>\w+)(-\d+-of-\d+)?\.safetensors")


class ImageCodec(FrozenCodec):
    """PIL images ⇄ streams ``ae`` (the autoencoder's latent) and, with CLIP, ``clip`` (its projected image feature).

    Stored: ``ae`` ``[b, 2·channels, h, w]``, mean and log-variance of the posterior of the *scaled* latent, so that
    drawing a latent needs no network; ``clip`` ``[b, clip_width]``. Only ``ae`` is decoded.
    Source: UniDiffuser (arXiv 2303.06555) section 4 and its released code.

    Args:
        autoencoder: folder or hub id of a `diffusers.AutoencoderKL`.
        clip: folder or hub id of an open_clip model; null leaves it and its stream out.
        size: side of the square that images are cropped and resized to, pixels.
        downsampling: pixels per latent cell and side.
        latent_channels: channels of the latent.
        clip_width: width of CLIP's image feature.
        patch: latent cells per token and side.
        native_size: side that the network's positions are native to; `size` if not given. The reference trains at 256
            pixels with the positions of 512, so that going to 512 changes no weight.
        watermark: eight hexadecimal digits that every decoded image carries unseen (`unidiffuser verify` finds them);
            null marks nothing. It needs images of 256 pixels a side and ``unidiff-core[watermark]``.

    Raises:
        ValueError: if a size does not fit, or the watermark, or its library is not installed; at first use, if a
            network is not what is declared here.
    """

    raw_type: ClassVar[type | None] = Image.Image
    licence: ClassVar[str] = "CreativeML OpenRAIL-M (autoencoder), MIT (CLIP)"
    sources: ClassVar[tuple[str, ...]] = (
        "Stable Diffusion 1.4 KL-f8 autoencoder, arXiv 2112.10752, hf-hub:CompVis/stable-diffusion-v1-4/vae",
        "CLIP ViT-B/32, arXiv 2103.00020, hf-hub:timm/vit_base_patch32_clip_224.openai",
    )
    raw: ClassVar[type | None] = Image.Image
    extension: ClassVar[str] = "png"
    widget = "image"
    weights: ClassVar[tuple[str, ...]] = ("autoencoder", "clip")
    decoding: ClassVar[tuple[str, ...]] = ("watermark",)
    marks: ClassVar[bool] = True

    def __init__(
        self,
        autoencoder: str = "hf-hub:CompVis/stable-diffusion-v1-4/vae",
        clip: str | None = "hf-hub:timm/vit_base_patch32_clip_224.openai",
        size: int = 512,
        downsampling: int = 8,
        latent_channels: int = 4,
        clip_width: int = 512,
        patch: int = 2,
        native_size: int | None = None,
        watermark: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(size=size, downsampling=downsampling, latent_channels=latent_channels)
        check_sizes(clip_width=clip_width, patch=patch, native_size=native_size)
        if watermark is not None:
            watermarks.check_key(watermark)
            if size < watermarks.SMALLEST:
                raise ValueError(f"a watermark needs images of {watermarks.SMALLEST} pixels a side, and size is {size}")
            watermarks.check_library()
        for side in (size, native_size or size):
            if side % (downsampling * patch):
                raise ValueError(f"size {side} is not a multiple of downsampling {downsampling} × patch {patch}")
        self.autoencoder, self.clip = autoencoder, clip
        self.size, self.downsampling, self.latent_channels = size, downsampling, latent_channels
        self.clip_width, self.patch, self.native_size = clip_width, patch, native_size
        self.watermark = watermark
        self._autoencoder: Any = None
        self._feature: Any = None

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``ae``: a grid of latents, of the native size; ``clip``: a vector."""
        side = (self.native_size or self.size) // self.downsampling
        return self._with_clip(
            {"ae": Stream.grid(self.latent_channels, side, side, patch=self.patch)}, Stream.vector(self.clip_width)
        )

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the latents of images of `size` pixels a side."""
        side = self.size // self.downsampling
        return self._with_clip({"ae": (self.latent_channels, side, side)}, (self.clip_width,))

    @torch.no_grad()
    def encode(self, raws: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Images → posterior moments ``ae`` ``[b, 2·channels, h, w]`` and ``clip`` ``[b, clip_width]``."""
        images = [square(as_rgb(raw), self.size) for raw in raws]
        rows = [self._encode_some(images[i : i + self._chunk]) for i in range(0, len(images), self._chunk)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if rows else self._nothing()

    def latent(self, stored: Mapping[str, Tensor], draw: Draw) -> dict[str, Tensor]:
        """A sample of the posterior, not its mean, as the reference draws it."""
        mean, logvar = stored["ae"].float().chunk(2, dim=1)
        noise = draw("ae", tuple(mean.shape)).to(mean)
        latent = {"ae": mean + (0.5 * logvar).exp() * noise}
        return latent if self.clip is None else {**latent, "clip": stored["clip"].float()}

    @torch.no_grad()
    def decode(self, latents: Mapping[str, Tensor]) -> list[Image.Image]:
        """Latents → images, with the watermark if there is one; reads ``ae`` only."""
        network = self._load_autoencoder()
        images: list[Image.Image] = []
        for latent in latents["ae"].split(self._chunk) if len(latents["ae"]) else ():
            z = self.place(latent) / network.config.scaling_factor + (network.config.shift_factor or 0.0)
            images += to_images(network.decode(z).sample)
        return images if self.watermark is None else [watermarks.mark(image, self.watermark) for image in images]

    @classmethod
    def find_mark(cls, data: bytes, key: str | None = None) -> Mark:
        """How much of a watermark is in the content of an image file, of `watermark.KEY` by default.

        Raises:
            ValueError: if it is no image, the key is none, or the library is not installed.
        """
        key = watermarks.KEY if key is None else key
        watermarks.check_key(key)
        watermarks.check_library()
        return watermarks.find(open_image(data), key)

    def from_bytes(self, data: bytes) -> Image.Image:
        """Content of any image file that Pillow reads → the RGB image that a viewer shows; see `open_image`.

        Raises:
            ValueError: if it is corrupt, not an image, of a mode that has no rule, or larger than Pillow's cap on
                decompression.
        """
        return open_image(data)

    def to_bytes(self, raw: Image.Image) -> bytes:
        """Image → PNG."""
        buffer = io.BytesIO()
        raw.save(buffer, format="PNG")
        return buffer.getvalue()

    def save(self, raws: Sequence[Image.Image], folder: Path, *, first_index: int = 0) -> list[Path]:
        """Write numbered PNG files, and ``contact_sheet.png`` of all so far."""
        paths = super().save(raws, folder, first_index=first_index)
        earlier = [folder / f"{i:05d}.png" for i in range(first_index)]
        images = [open_image(path.read_bytes()) for path in earlier if path.is_file()]
        sheet = folder / "contact_sheet.png"
        contact_sheet([*images, *raws]).save(sheet)
        return [*paths, sheet]

    def mask(self, region: Any, raw: Image.Image | None = None) -> dict[str, Tensor]:
        """A box ``[left, top, right, bottom]`` in pixels of the square of `size`, or the path of a picture.

        The picture is cropped and resized as images are; its light part is the region. Cells of the latent that it
        touches are in it, and so is the whole of ``clip``. A mapping is in the streams' coordinates.

        Raises:
            ValueError: if it is neither, or empty.
        """
        if isinstance(region, Mapping):
            return super().mask(region, raw)
        pixels = torch.from_numpy(self._region(region))
        inside = pixels.unflatten(1, (-1, self.downsampling)).unflatten(0, (-1, self.downsampling)).amax((1, 3))
        return self._with_clip(
            {"ae": inside.expand(self.shapes["ae"]).clone()}, torch.ones(self.clip_width, dtype=torch.bool)
        )

    def _region(self, region: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Pixels ``[size, size]`` that are in it."""
        inside = np.zeros((self.size, self.size), dtype=bool)
        if isinstance(region, str):
            picture = square(self.parse(region), self.size).convert("L")
            inside = np.asarray(picture) >= 128
        elif isinstance(region, Sequence) and len(region) == 4 and all(isinstance(row, int) for row in region):
            left, top, right, bottom = (max(0, row) for row in region)
            inside[top:bottom, left:right] = True
        else:
            raise ValueError(
                f"the region {region!r} of an image is neither [left, top, right, bottom] in pixels of the square of "
                f"{self.size} nor the path of a picture that is light there"
            )
        if not inside.any():
            raise ValueError(f"the region {region!r} has no pixel of the square of {self.size}")
        return inside

    def film(self, rows: Sequence[Sequence[Image.Image]], folder: Path) -> list[Path]:
        """Write ``film.png``: a row for each sample, its moments from left to right."""
        path = folder / "film.png"
        images = [image for row in rows for image in row]
        contact_sheet(images, columns=len(rows[0]), limit=len(images)).save(path)
        return [path]

    def html(self, raw: Image.Image) -> str:
        """The image itself, as a data URI; small ones enlarged with their pixels visible."""
        data = base64.b64encode(self.to_bytes(raw)).decode()
        style = ' style="image-rendering: pixelated; width: 96px"' if raw.width < 96 else ""
        return f'<img src="data:image/png;base64,{data}"{style}>'

    @property
    def _chunk(self) -> int:
        return max(1, PIXELS_AT_ONCE // self.size**2)

    def _nothing(self) -> dict[str, Tensor]:
        channels, *grid = self.shapes["ae"]
        return self._with_clip({"ae": torch.empty(0, 2 * channels, *grid)}, torch.empty(0, self.clip_width))

    def _with_clip(self, rows: dict[str, V], clip: V) -> dict[str, V]:
        return rows if self.clip is None else {**rows, "clip": clip}

    def _encode_some(self, images: list[Image.Image]) -> dict[str, Tensor]:
        network = self._load_autoencoder()
        posterior = network.encode(self.place(to_pixels(images))).latent_dist
        scale, shift = network.config.scaling_factor, network.config.shift_factor or 0.0
        mean = (posterior.mean.float() - shift) * scale
        logvar = posterior.logvar.float() + 2 * float(np.log(scale))
        rows = {"ae": torch.cat([mean, logvar], dim=1)}
        return rows if self.clip is None else {**rows, "clip": self._features(images)}

    def _features(self, images: list[Image.Image]) -> Tensor:
        feature = self._load_feature()
        pixels = torch.stack([feature.preprocess(image) for image in images])
        features: Tensor = feature(self.place(pixels))
        return features.float()

    def _load_autoencoder(self) -> Any:
        if self._autoencoder is None:
            network = load_autoencoder(self.autoencoder)
            config: Any = network.config
            found = 2 ** (len(config.block_out_channels) - 1), config.latent_channels
            if found != (self.downsampling, self.latent_channels):
                raise ValueError(
                    f"the autoencoder {self.autoencoder} has downsampling {found[0]} and {found[1]} latent channels; "
                    f"declared are downsampling {self.downsampling} and latent_channels {self.latent_channels}"
                )
            self._autoencoder = self.adopt(network)
        return self._autoencoder

    def _load_feature(self) -> Any:
        if self._feature is None:
            assert self.clip is not None
            feature = ImageFeature(self.clip)
            if feature.width != self.clip_width:
                raise ValueError(
                    f"the CLIP {self.clip} gives image features of width {feature.width}, but the codec declares "
                    f"clip_width {self.clip_width}"
                )
            self._feature = self.adopt(feature)
        return self._feature


def load_autoencoder(name: str) -> nn.Module:
    """A `diffusers.AutoencoderKL` from a local folder or a hub id; safetensors only, in one file or several.

    A folder that holds nothing but a variant (``fp16``) gives that one; the network is in float32 all the same.

    Raises:
        ValueError: if a file is absent, or there are several variants and no other; names them.
    """
    from diffusers import AutoencoderKL

    folder = locate(name, AUTOENCODER_FILES)
    if name.startswith(HUB) and not (folder / AUTOENCODER_FILES[1]).is_file():
        folder = locate(name, OTHER_FORMS)
    variant = _variant(folder)
    network: nn.Module = AutoencoderKL.from_pretrained(
        str(folder), variant=variant, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    return network.float()


def _variant(folder: Path) -> str | None:
    """The only variant of weights in a folder; None if they are there without one."""
    require(folder, CONFIG)
    if (folder / AUTOENCODER_FILES[1]).is_file():
        require(folder, AUTOENCODER_FILES[1])
        return None
    index = folder / f"{STEM}.safetensors.index.json"
    variants = sorted({match["name"] for path in folder.iterdir() if (match := _VARIANT.fullmatch(path.name))})
    if not index.is_file() and len(variants) > 1:
        raise ValueError(f"{folder} holds the variants {', '.join(variants)}; leave the one that is to be read")
    if not index.is_file() and variants:
        index = folder / f"{STEM}.safetensors.index.{variants[0]}.json"
        if not index.is_file():
            require(folder, f"{STEM}.{variants[0]}.safetensors")
            return variants[0]
    if not index.is_file():
        require(folder, AUTOENCODER_FILES[1])
    require(folder, *sorted(set(read_config(index)["weight_map"].values())))
    return None if index.name == f"{STEM}.safetensors.index.json" else variants[0]


def square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized with Lanczos to `size` pixels a side, as the released code does."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size → ``[b, 3, h, w]`` in [-1, 1]."""
    array = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return array.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """``[b, 3, h, w]`` in [-1, 1] → RGB images; what is outside is clipped."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(row) for row in array.permute(0, 2, 3, 1).cpu().numpy()]
