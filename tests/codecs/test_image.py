from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from unidiff_codecs.image import ImageCodec, square

from unidiff_core import Modality, UniDiffuser
from unidiff_core.codec.codec import check_raws
from unidiff_core.foundation.stream import Stream
from unidiff_core.network.uvit import UViT

from .conftest import draw, picture, png


def test_full_size_is_declared_without_loading_anything():
    codec = ImageCodec()
    assert codec.streams == {"ae": Stream.grid(4, 64, 64, patch=2), "clip": Stream.vector(512)}
    assert codec.streams["ae"].num_tokens == 1024
    assert not list(codec.parameters())


def test_round_trip_shapes_and_dtypes(image_arguments):
    codec = ImageCodec(**image_arguments)
    stored = codec.encode([picture(0, (50, 32)), picture(1, (32, 70)), picture(2)])
    assert {name: tuple(value.shape) for name, value in stored.items()} == {"ae": (3, 4, 8, 8), "clip": (3, 12)}
    latents = codec.latent(stored, draw)
    assert {name: tuple(value.shape[1:]) for name, value in latents.items()} == {
        name: stream.shape for name, stream in codec.streams.items()
    }
    images = codec.decode(latents)
    assert [image.size for image in images] == [(32, 32)] * 3
    assert codec.encode([])["ae"].shape == (0, 4, 8, 8)


def test_encoding_repeats_and_each_sample_stands_alone(image_arguments):
    codec = ImageCodec(**image_arguments)
    images = [picture(i) for i in range(4)]
    whole, again = codec.encode(images), ImageCodec(**image_arguments).encode(images)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    alone = codec.encode(images[2:3])
    for name in whole:
        torch.testing.assert_close(alone[name][0], whole[name][2], atol=1e-5, rtol=1e-5)


def test_the_latent_is_a_draw_of_the_scaled_posterior(image_arguments, autoencoder):
    from diffusers import AutoencoderKL

    codec = ImageCodec(**image_arguments)
    stored = codec.encode([picture(0)])
    network = AutoencoderKL.from_pretrained(str(autoencoder))
    pixels = torch.tensor(list(picture(0).tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = network.encode(pixels).latent_dist
    noise = draw("ae", (1, 2, 8, 8))
    expected = (posterior.mean + posterior.std * noise) * network.config.scaling_factor
    torch.testing.assert_close(codec.latent(stored, draw)["ae"], expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(codec.latent(stored, draw)["ae"], stored["ae"][:, :2])


def test_networks_are_frozen_and_follow_the_codec(image_arguments):
    codec = ImageCodec(**image_arguments).to(torch.float64)
    codec.encode([picture(0)])
    codec.train()
    assert not codec.training and not any(module.training for module in codec.modules())
    assert all(not p.requires_grad and p.dtype == torch.float64 for p in codec.parameters())
    codec.to(torch.float32)
    assert all(p.dtype == torch.float32 for p in codec.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 3}, "declared are downsampling 4 and latent_channels 3"),
        ({"downsampling": 8}, "downsampling 8"),
        ({"clip_width": 9}, "clip_width 9"),
        ({"autoencoder": "no/such/folder"}, "no folder of weights 'no/such/folder'"),
    ],
)
def test_a_network_that_is_not_as_declared(image_arguments, change, message):
    with pytest.raises(ValueError, match=message):
        ImageCodec(**image_arguments | change).encode([picture(0)])


def test_size_must_divide():
    with pytest.raises(ValueError, match="size 100"):
        ImageCodec(size=100)


def test_a_pickle_is_not_read(image_arguments, autoencoder, tmp_path):
    shutil.copytree(autoencoder, tmp_path / "pickled")
    (tmp_path / "pickled/diffusion_pytorch_model.safetensors").rename(tmp_path / "pickled/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="never a pickle"):
        ImageCodec(**image_arguments | {"autoencoder": str(tmp_path / "pickled")}).encode([picture(0)])


def test_a_clip_that_would_fetch_its_text_tower(image_arguments, clip, tmp_path):
    shutil.copytree(clip, tmp_path / "foreign")
    path = tmp_path / "foreign/open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "someone/model"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="hf_model_name"):
        ImageCodec(**image_arguments | {"clip": str(tmp_path / "foreign")}).encode([picture(0)])


def test_bytes_come_back_and_bad_ones_are_refused(monkeypatch):
    codec = ImageCodec()
    image = picture(0)
    assert codec.from_bytes(codec.to_bytes(image)).tobytes() == image.tobytes()
    for bad in (b"", b"not an image", png(image)[:200]):
        with pytest.raises(ValueError, match="not a readable image"):
            codec.from_bytes(bad)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with pytest.raises(ValueError, match="too large"):
        codec.from_bytes(png(image))


def test_the_central_square_is_taken():
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    assert square(image, 10).getcolors() == [(100, (0, 0, 255))]


def test_the_region_of_a_box_or_a_picture_is_the_cells_that_it_touches(image_arguments, tmp_path):
    codec = ImageCodec(**image_arguments)  # 32 pixels, 4 in a cell
    masks = codec.mask([3, 8, 9, 32])
    assert masks["clip"].all() and masks["ae"].shape == (2, 8, 8)
    assert masks["ae"][0].nonzero().unique(dim=0).tolist() == [[y, x] for y in range(2, 8) for x in range(3)]
    light = Image.new("L", (96, 64))
    light.paste(255, (16 + 6, 16, 16 + 18, 64))  # the central square begins at 16, and is halved
    light.save(tmp_path / "light.png")
    assert torch.equal(codec.mask(str(tmp_path / "light.png"))["ae"], masks["ae"])
    assert codec.mask({"ae": [[0, 1], [0, 8]]})["ae"].sum() == 2 * 8
    for region, says in (([40, 0, 50, 9], "no pixel of the square of 32"), ([1, 2], "neither"), (["a"] * 4, "neither")):
        with pytest.raises(ValueError, match=says):
            codec.mask(region)


def test_a_film_is_a_picture_of_rows(tmp_path):
    files = ImageCodec().film([[picture(0), picture(1), picture(2)]] * 2, tmp_path)
    assert [path.name for path in files] == ["film.png"] and Image.open(files[0]).size == (3 * 66 + 2, 2 * 66 + 2)


def test_saving_numbers_the_files_and_grows_the_sheet(tmp_path):
    codec = ImageCodec()
    first = codec.save([picture(0), picture(1)], tmp_path)
    codec.save([picture(2)], tmp_path, first_index=2)
    assert [path.name for path in first] == ["00000.png", "00001.png", "contact_sheet.png"]
    assert Image.open(tmp_path / "contact_sheet.png").size == (2 * 66 + 2, 2 * 66 + 2)
    assert codec.html(picture(0)).startswith('<img src="data:image/png;base64,') and "pixelated" in codec.html(
        picture(0)
    )


@pytest.mark.parametrize("form", ["variant", "parts", "parts of a variant"])
def test_weights_of_several_files_or_a_variant_are_read(image_arguments, autoencoder, tmp_path, form):
    from diffusers import AutoencoderKL

    variant = "fp16" if "variant" in form else None
    size = "4KB" if "parts" in form else "1GB"
    network = AutoencoderKL.from_pretrained(str(autoencoder), use_safetensors=True)
    network.save_pretrained(tmp_path / "ae", variant=variant, max_shard_size=size)
    files = sorted(path.name for path in (tmp_path / "ae").glob("*.safetensors"))
    assert len(files) > 1 if "parts" in form else files == ["diffusion_pytorch_model.fp16.safetensors"]
    whole = ImageCodec(**image_arguments).encode([picture(0)])["ae"]
    codec = ImageCodec(**image_arguments | {"autoencoder": str(tmp_path / "ae")})
    assert torch.equal(codec.encode([picture(0)])["ae"], whole)
    (tmp_path / "ae" / files[-1]).unlink()
    with pytest.raises(ValueError, match=r"lacks .*safetensors"):
        ImageCodec(**image_arguments | {"autoencoder": str(tmp_path / "ae")}).encode([picture(0)])


def test_variants_to_choose_from_are_named(image_arguments, autoencoder, tmp_path):
    shutil.copytree(autoencoder, tmp_path / "ae")
    plain = tmp_path / "ae/diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "ema"):
        shutil.copy(plain, plain.with_suffix(f".{variant}.safetensors"))
    plain.unlink()
    with pytest.raises(ValueError, match="holds the variants ema, fp16"):
        ImageCodec(**image_arguments | {"autoencoder": str(tmp_path / "ae")}).encode([picture(0)])


@pytest.mark.parametrize("way", ["home", "link", "link to itself", "back through a link"])
def test_a_model_finds_its_codecs_weights_again(image_arguments, autoencoder, clip, tmp_path, monkeypatch, way):
    home, far = tmp_path / "home", tmp_path / "disk/deep/down"
    (home / "runs").mkdir(parents=True)
    shutil.copytree(autoencoder, far / "weights/ae")
    shutil.copytree(clip, far / "weights/clip")
    (far / "model").mkdir()
    (home / "runs/model").symlink_to(far / "model", target_is_directory=True)
    (home / "weights").symlink_to(far / "weights", target_is_directory=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    place, folder = {
        "home": ("~/weights", "runs/plain"),
        "link": ("weights", "runs/model"),
        "link to itself": (str(far / "weights"), "~/runs/model"),
        "back through a link": ("runs/model/../weights", "runs/model"),
    }[way]
    paths = {"autoencoder": f"{place}/ae", "clip": f"{place}/clip"}
    modalities = {"image": Modality(ImageCodec(**image_arguments | paths))}
    UniDiffuser(modalities, partial(UViT, width=8, depth=1, heads=1)).save_pretrained(folder)
    config = yaml.safe_load((Path(folder).expanduser() / "config.yaml").read_text())
    assert config["modalities"]["image"]["codec"]["clip"].startswith("../")
    model = UniDiffuser.from_pretrained(folder)
    model.save_pretrained(folder, overwrite=True)  # again, from what was loaded
    assert UniDiffuser.from_pretrained(folder).sample("image", num=1, steps=1)["image"][0].size == (32, 32)


@pytest.mark.parametrize("wrong", ["cat.png", 3, np.zeros((8, 8, 3)), None])
def test_what_is_no_picture_is_refused_by_the_name_of_the_modality(wrong):
    with pytest.raises(ValueError, match=r"'image' is given as .*; ImageCodec takes PIL\.Image\.Image") as error:
        check_raws("image", ImageCodec(), [Image.new("RGB", (8, 8)), wrong])
    assert ("`model.codec('image').parse('cat.png')` reads a file" in str(error.value)) == isinstance(wrong, str)
