"""Released weights: files of exactly the documented layout, made here at small size, to a model directory and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from unidiff_codecs.image import load_autoencoder
from unidiff_codecs.released import DiffusersFolder, autoencoder, network, text_decoder
from unidiff_codecs.released.sizes import Sizes, diffusers_config, diffusers_sizes
from unidiff_codecs.released.state import listed, shapes_of
from unidiff_codecs.text_decoder import TextDecoder
from unidiff_codecs.training.text_decoder import train_tokenizer
from unidiff_codecs.watermark import KEY

from unidiff_core import UniDiffuser
from unidiff_core.cli.main import main
from unidiff_core.serialization import model_directory
from unidiff_core.serialization.converter import export_model

from .conftest import CAPTIONS

WIDTH, HEADS, HALF, SIDE, LENGTH, STATE_WIDTH, CLIP_WIDTH = 48, 4, 2, 8, 7, 32, 24
VOCABULARY = 280
UNET = {
    "text_dim": STATE_WIDTH,
    "clip_img_dim": CLIP_WIDTH,
    "num_text_tokens": LENGTH,
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2 * HALF,
    "sample_size": SIDE,
    "patch_size": 2,
    "activation_fn": "gelu",
    "num_embeds_ada_norm": 1000,
}
GPT = {"vocab_size": VOCABULARY + 1, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 40}
LEVELS = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4}


def scattered(module):
    """Random weights, none of which is a default."""
    for i, parameter in enumerate(module.parameters()):
        generator = torch.Generator().manual_seed(i)
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim < 2 else 0.1)
    return module.eval()


def their_network(has_types=True, **change):
    from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UniDiffuserModel

    model = scattered(UniDiffuserModel(**UNET | {"use_data_type_embedding": has_types} | change))
    model.transformer.pos_embed.proj.load_state_dict(model.vae_img_in.proj.state_dict())
    return model


def their_decoder():
    from diffusers.pipelines.deprecated.unidiffuser.modeling_text_decoder import UniDiffuserTextDecoder

    sizes = {"prefix_length": LENGTH, "prefix_inner_dim": 20, "prefix_hidden_dim": STATE_WIDTH}
    return scattered(UniDiffuserTextDecoder(**sizes, **GPT))


def their_autoencoder():
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return scattered(AutoencoderKL(**LEVELS, **blocks))


def released_network(state):
    """The keys of uvit_v0.pth or uvit_v1.pth, as documented, from diffusers' state dict."""
    new = {"pos_embed": state["pos_embed"]}

    def copy(released, diffusers):
        for end in ("weight", "bias"):
            new[f"{released}.{end}"] = state[f"{diffusers}.{end}"]

    for released, diffusers in {
        "patch_embed.proj": "vae_img_in.proj",
        "clip_img_embed": "clip_img_in",
        "text_embed": "text_in",
        "decoder_pred": "vae_img_out",
        "clip_img_out": "clip_img_out",
        "text_out": "text_out",
        "norm": "transformer.norm_out",
    }.items():
        copy(released, diffusers)
    if "data_type_pos_embed_token" in state:
        new["token_embedding.weight"] = state["data_type_token_embedding.weight"]
        new["pos_embed_token"] = state["data_type_pos_embed_token"]
    blocks = [f"in_blocks.{i}" for i in range(HALF)] + ["mid_block"] + [f"out_blocks.{i}" for i in range(HALF)]
    for block in blocks:
        whole = f"transformer.transformer_{block}"
        inner = f"{whole}.block" if "out" in block else whole
        new[f"{block}.attn.qkv.weight"] = torch.cat([state[f"{inner}.attn1.to_{letter}.weight"] for letter in "qkv"])
        copy(f"{block}.attn.proj", f"{inner}.attn1.to_out.0")
        copy(f"{block}.norm2", f"{inner}.norm1")
        copy(f"{block}.norm3", f"{inner}.norm3")
        copy(f"{block}.mlp.fc1", f"{inner}.ff.net.0.proj")
        copy(f"{block}.mlp.fc2", f"{inner}.ff.net.2")
        if "out" in block:
            copy(f"{block}.skip_linear", f"{whole}.skip.skip_linear")
            copy(f"{block}.norm1", f"{whole}.skip.norm")
    return new


def released_decoder(state):
    """The keys of caption_decoder.pth: prefixed, with a CLIP along, and the masks of an older transformers."""
    new = {"module." + name.replace("transformer.", "gpt.", 1): value for name, value in state.items()}
    for i in range(GPT["n_layer"]):
        new[f"module.gpt.transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
        new[f"module.gpt.transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return new | {
        "module.clip_model.positional_embedding": torch.zeros(3, 2),
        "module.clip.logit_scale": torch.ones(()),
    }


def released_autoencoder(state):
    """The keys of autoencoder_kl.pth; its attention is made of convolutions."""
    new = {}
    for name, value in state.items():
        is_linear = "attentions" in name and value.ndim == 2
        new[autoencoder.original_name(name, 2)] = value[..., None, None].clone() if is_linear else value
    return new


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    backend = train_tokenizer(CAPTIONS, VOCABULARY).backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def states():
    """The state dicts of both released versions' files."""
    decoder, images = their_decoder().state_dict(), their_autoencoder().state_dict()
    files = {"caption_decoder.pth": released_decoder(decoder), "autoencoder_kl.pth": released_autoencoder(images)}
    networks = {f"v{i}": released_network(their_network(has_types=bool(i)).state_dict()) for i in (0, 1)}
    return {version: {f"uvit_{version}.pth": state, **files} for version, state in networks.items()}


@pytest.fixture(scope="session")
def released(states, tmp_path_factory):
    return {version: write(tmp_path_factory.mktemp(version), files) for version, files in states.items()}


def write(folder, files):
    for name, state in files.items():
        torch.save(state, folder / name)
    return folder


def options(tokenizer, *more):
    sizes = (f"--length={LENGTH}", f"--heads={HEADS}", "--text_decoder_heads=2")
    return [f"--tokenizer={tokenizer}", *sizes, *more]


def convert(source, out, tokenizer, *more):
    main(["convert", str(source), str(out), *options(tokenizer, *more)])
    return out


@pytest.fixture(scope="session")
def directories(released, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {version: convert(source, folder / version, tokenizer) for version, source in released.items()}


@pytest.fixture(scope="session")
def diffusers_folder(tokenizer, tmp_path_factory):
    """As diffusers writes it; the decoder as a pickle, the only form in which diffusers can write it."""
    folder = tmp_path_factory.mktemp("diffusers")
    their_network().save_pretrained(folder / "unet")
    their_autoencoder().save_pretrained(folder / "vae")
    their_decoder().save_pretrained(folder / "text_decoder", safe_serialization=False)
    for name in ("image_encoder", "text_encoder", "scheduler", "text_tokenizer"):
        (folder / name).mkdir()
    train_tokenizer(CAPTIONS, VOCABULARY).backend_tokenizer.model.save(str(folder / "text_tokenizer"))
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail; gives what it said, in one line."""

    def run(*arguments):
        with pytest.raises(SystemExit) as error:
            main([str(argument) for argument in arguments])
        assert error.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return run


def load(folder):
    """CLIP is referred to by hub id, which is allowed here and never fetched."""
    return UniDiffuser.from_pretrained(folder, allow_hub=True)


def inputs(seed, side=SIDE):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"image.ae": (4, side, side), "image.clip": (CLIP_WIDTH,), "text.states": (LENGTH, STATE_WIDTH)}
    return {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}


def largest_difference(ours, theirs, latents, t_image, t_text):
    times = {"image": torch.full((2,), float(t_image)), "text": torch.full((2,), float(t_text))}
    with torch.no_grad():
        image, clip, text = theirs(
            *(latents["image.ae"], latents["image.clip"][:, None], latents["text.states"]),
            *(times["image"], times["text"]),
            data_type=torch.ones(2, dtype=torch.int64),
        )
        prediction = ours(latents, times)
    want = {"image.ae": image, "image.clip": clip[:, 0], "text.states": text}
    assert prediction.keys() == want.keys()
    return max((prediction[key] - want[key]).abs().max().item() for key in want)


TIMES = [(0, 1000), (1000, 0), (0, 0), (1000, 1000), (1, 1), (500, 500), (123.5, 877.25)]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_the_imported_network_predicts_what_diffusers_does(directories, version):
    ours, theirs = load(directories[version]).backbone, their_network(version == "v1")
    for i in range(21):
        assert largest_difference(ours, theirs, inputs(i), *TIMES[i % len(TIMES)]) <= 1e-5


def test_it_is_sampled_as_the_original_is_where_nothing_is_said(directories):
    models = {version: load(directory) for version, directory in directories.items()}
    for version, model in models.items():
        options = model.sampling
        assert (options.guidance, options.steps, options.redraws_noise) == (7.0, 50, True)
        assert options.solver == "DiffusersSolver(DPMSolverSinglestepScheduler, 3)"
        assert options.conditions == ({"data_type": 1} if version == "v1" else {})
    text = {"text.states": torch.ones(1, LENGTH, STATE_WIDTH)}

    def drawn(**changes):
        return models["v1"].sample("image | text", text, latents=True, **{"steps": 4} | changes)["image.clip"]

    said = {"guidance": 7.0, "redraws_noise": True, "solver": models["v1"].sampling.solver}
    assert torch.equal(drawn(), drawn(conditions={"data_type": 1}, **said))
    for change in ({"conditions": {"data_type": 0}}, {"redraws_noise": False}, {"guidance": 6.0}):
        assert not torch.allclose(drawn(), drawn(**change), atol=1e-4), change


def test_another_resolution_is_the_network_with_resized_positions(directories):
    """diffusers cannot resize; its network of that size is given positions that are resized here."""
    ours, native, theirs = load(directories["v1"]).backbone, their_network(), their_network()
    for side in (4, 12, 20):
        theirs = their_network(sample_size=side)
        head, patches = native.pos_embed.data.split([2 + LENGTH + 1, (SIDE // 2) ** 2], dim=1)
        plane = patches.reshape(1, SIDE // 2, SIDE // 2, WIDTH).permute(0, 3, 1, 2)
        size = (side // 2, side // 2)
        plane = torch.nn.functional.interpolate(plane, size=size, mode="bilinear", align_corners=False)
        state = native.state_dict() | {"pos_embed": torch.cat([head, plane.flatten(2).transpose(1, 2)], dim=1)}
        theirs.load_state_dict(state)
        for i, (t_image, t_text) in enumerate(TIMES):
            assert largest_difference(ours, theirs, inputs(i, side), t_image, t_text) <= 1e-5


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_released_keys_come_back_bit_for_bit(directories, states, version):
    backbone = load(directories[version]).backbone
    back = network.export_state(backbone.state_dict(), Sizes.of(backbone), "released")
    assert_same(back, states[version][f"uvit_{version}.pth"])


def test_documented_shapes_at_full_size():
    sizes = {"width": 1536, "depth": 31, "heads": 24, "mlp_width": 6144, "channels": 4, "side": 64, "patch": 2}
    full = Sizes(**sizes, clip_width=512, length=77, state_width=64, data_types=2)
    shapes = shapes_of(network.export_state(full.network().state_dict(), full, "released"))
    for name, shape in {
        "patch_embed.proj.weight": (1536, 4, 2, 2),
        "pos_embed": (1, 1104, 1536),
        "pos_embed_token": (1, 1, 1536),
        "token_embedding.weight": (2, 1536),
        "in_blocks.14.attn.qkv.weight": (4608, 1536),
        "out_blocks.14.skip_linear.weight": (1536, 3072),
        "mid_block.mlp.fc1.weight": (6144, 1536),
    }.items():
        assert shapes[name] == shape
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 952_509_520
    theirs = network.export_state(full.network().state_dict(), full, "diffusers")
    assert diffusers_config(full)["num_layers"] == 30
    assert diffusers_sizes(diffusers_config(full), Path("config.json")) == full
    assert network.import_state(theirs, full, "diffusers", Path("x")).keys() == full.network().state_dict().keys()


def test_the_autoencoder_has_the_original_names_and_decodes_as_before(states, directories):
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs = their_autoencoder()
    assert_same(convert_ldm_vae_checkpoint(states["v0"]["autoencoder_kl.pth"], theirs.config), theirs.state_dict())
    ours = AutoencoderKL.from_pretrained(directories["v0"] / "autoencoder")
    assert_same(ours.state_dict(), theirs.state_dict())
    assert ours.config.scaling_factor == 0.18215 and ours.config.block_out_channels == [32, 64]


def test_the_text_decoder_reads_the_same_words(directories):
    theirs, ours = their_decoder(), TextDecoder.from_pretrained(str(directories["v0"] / "text_decoder"))
    latents, states = torch.randn(2, LENGTH, STATE_WIDTH), torch.randn(2, LENGTH, 20)
    ids = torch.tensor([[5, 7, 11], [2, 3, 280]])
    with torch.no_grad():
        assert torch.equal(ours.encode(states), theirs.encode_prefix(states))
        embeds = torch.cat([theirs.decode_prefix(latents), theirs.transformer.transformer.wte(ids)], dim=1)
        want = theirs.transformer(inputs_embeds=embeds).logits[:, LENGTH - 1 : -1]
        torch.testing.assert_close(ours.logits(latents, ids), want, atol=1e-5, rtol=0)


def test_sampling_from_the_imported_directory(directories):
    model = load(directories["v1"])
    latents = model.sample_latents("image, text", {}, num=2, steps=1)
    assert {name: tuple(value.shape[1:]) for name, value in latents.items()} == model.shapes
    solved = model.sample("image, text", num=2, steps=1)
    assert [image.size for image in solved["image"]] == [(16, 16)] * 2 and len(solved["text"]) == 2
    process = model.modalities["image"].process
    assert (type(process.schedule).__name__, process.prediction) == ("ScaledLinear", "noise")
    assert model.modalities["image"].codec.clip.startswith("hf-hub:")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name].float())]
    assert not different, listed(different)


def read(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_diffusers_folder_comes_back_bit_for_bit_and_loads_there(diffusers_folder, tmp_path, capsys):
    from diffusers import AutoencoderKL

    main(["convert", str(diffusers_folder), str(tmp_path / "model")])
    said = capsys.readouterr().out
    assert "image_encoder/ is not converted" in said and "text_encoder/ is not converted" in said
    assert "hf-hub:timm/vit_large_patch14_clip_224.openai" in said and "scheduler/ is not used" in said
    main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--allow_hub"])
    assert "not exported: image_encoder" in capsys.readouterr().out
    network_class, decoder_class = type(their_network()), type(their_decoder())
    theirs = network_class.from_pretrained(tmp_path / "out/unet")
    assert_same(theirs.state_dict(), their_network().state_dict())
    assert_same(read(tmp_path / "out/unet"), read(diffusers_folder / "unet"))
    assert dict(theirs.config).items() >= {k: v for k, v in UNET.items() if k != "num_embeds_ada_norm"}.items()
    decoder = decoder_class.from_pretrained(tmp_path / "out/text_decoder")
    assert_same(decoder.state_dict(), their_decoder().state_dict())
    pickled = diffusers_folder / "text_decoder/diffusion_pytorch_model.bin"
    assert_same(read(tmp_path / "out/text_decoder"), torch.load(pickled, weights_only=True))
    assert dict(decoder.config).items() >= GPT.items()
    assert_same(AutoencoderKL.from_pretrained(tmp_path / "out/vae").state_dict(), their_autoencoder().state_dict())
    assert "AGPL-3.0" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_model_directory_comes_back_bit_for_bit(directories, tokenizer, tmp_path, version):
    main(["export", str(directories[version]), str(tmp_path / "out"), "--allow_hub"])
    main(["convert", str(tmp_path / "out"), str(tmp_path / "back"), f"--tokenizer={tokenizer}"])
    for name in ("model.safetensors", "text_decoder/model.safetensors"):
        assert_same(load_file(tmp_path / "back" / name), load_file(directories[version] / name))
    assert_same(read(tmp_path / "back/autoencoder"), read(directories[version] / "autoencoder"))
    one, other = (
        yaml.safe_load((folder / "config.yaml").read_text()) for folder in (directories[version], tmp_path / "back")
    )
    assert one | {"sources": None} == other | {"sources": None}
    assert one["modalities"]["image"]["codec"]["autoencoder"] == "autoencoder"


def their_clip():
    """What the pipeline holds of CLIP, which an export refers to."""
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    sizes = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=300, hidden_size=20, max_position_embeddings=LENGTH, **sizes)
    vision = CLIPVisionConfig(hidden_size=8, projection_dim=CLIP_WIDTH, image_size=16, patch_size=8, **sizes)
    symbols = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh")]
    return {
        "text_encoder": scattered(CLIPTextModel(text)),
        "image_encoder": scattered(CLIPVisionModelWithProjection(vision)),
        "clip_image_processor": CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        "clip_tokenizer": CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]),
    }


def test_an_export_opens_in_diffusers_pipeline(directories, tmp_path):
    pipelines = pytest.importorskip("diffusers.pipelines.deprecated.unidiffuser", reason="diffusers dropped it")
    out = tmp_path / "out"
    main(["export", str(directories["v1"]), str(out), "--allow_hub"])
    pipeline = pipelines.UniDiffuserPipeline.from_pretrained(out, **their_clip())
    assert (pipeline.text_tokenizer.eos_token, pipeline.text_tokenizer.eos_token_id) == ("<|EOS|>", VOCABULARY)
    model = load(directories["v1"])
    ours, theirs = TextDecoder.from_pretrained(str(directories["v1"] / "text_decoder")), pipeline.text_tokenizer
    for caption in CAPTIONS:
        assert theirs.encode(caption) == ours.tokenizer.encode(caption)
        assert theirs.decode([*theirs.encode(caption), VOCABULARY], skip_special_tokens=True) == caption
    alphas = pipeline.scheduler.alphas_cumprod.sqrt()
    alpha = model.modalities["image"].process.schedule.alpha(torch.arange(1, 1001.0))
    torch.testing.assert_close(alphas, alpha, atol=1e-5, rtol=0)
    assert largest_difference(model.backbone, pipeline.unet, inputs(0), 300, 700) <= 1e-5
    pipeline.set_image_mode()  # it decodes a text of 67 tokens, for which this GPT-2 has no positions
    sample = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert sample.images[0].size == (16, 16)


def test_what_was_exported_comes_back_without_an_option(directories, tmp_path):
    main(["export", str(directories["v1"]), str(tmp_path / "out"), "--allow_hub"])
    main(["convert", str(tmp_path / "out"), str(tmp_path / "back")])
    for name in ("tokenizer.json", "model.safetensors"):
        one, other = (folder / "text_decoder" / name for folder in (directories["v1"], tmp_path / "back"))
        assert one.read_bytes() == other.read_bytes()
    (tmp_path / "out/text_tokenizer/tokenizer.json").unlink()  # an older one: vocab.json and merges.txt
    main(["convert", str(tmp_path / "out"), str(tmp_path / "again")])
    found = TextDecoder.from_pretrained(str(tmp_path / "again/text_decoder")).tokenizer
    assert [found.decode(found.encode(caption)) for caption in CAPTIONS] == CAPTIONS


def test_an_export_says_that_it_loses_the_watermark(directories, tmp_path):
    model = model_directory.load(directories["v1"], allow_hub=True)
    said = [line for line in export_model(DiffusersFolder(), model, tmp_path / "plain").lines if "watermark" in line]
    model.description.modalities["image"].codec.watermark = KEY
    lines = export_model(DiffusersFolder(), model, tmp_path / "marked").lines
    assert said == [] and "not exported: the watermark; diffusers' pipeline marks nothing" in lines


def test_old_names_of_the_autoencoders_attention(diffusers_folder, tmp_path):
    source = shutil.copytree(diffusers_folder, tmp_path / "source")
    path = source / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for today, before in old.items():
        state = {
            name.replace(f"attentions.0.{today}", f"attentions.0.{before}"): value for name, value in state.items()
        }
    assert sum("proj_attn" in name for name in state) == 4
    path.unlink()
    torch.save(state, path.with_suffix(".bin"))
    main(["convert", str(source), str(tmp_path / "model")])
    assert_same(read(tmp_path / "model/autoencoder"), their_autoencoder().state_dict())


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("uvit_v1.pth", "in_blocks.1.mlp.fc2.bias"),
        ("uvit_v1.pth", "pos_embed_token"),
        ("uvit_v1.pth", "text_embed.weight"),
        ("caption_decoder.pth", "module.gpt.transformer.wte.weight"),
        ("caption_decoder.pth", "module.gpt.transformer.h.1.ln_2.bias"),
        ("caption_decoder.pth", "module.decode_prefix.bias"),
        ("autoencoder_kl.pth", "decoder.up.1.block.1.norm1.weight"),
        ("autoencoder_kl.pth", "post_quant_conv.weight"),
    ],
)
@pytest.mark.parametrize("change", ["missing", "not known", "of another shape"])
def test_wrong_keys_are_named_and_nothing_is_written(states, tokenizer, tmp_path, refused, file, key, change):
    files = {name: dict(state) for name, state in states["v1"].items()}
    value = files[file].pop(key)
    files[file] |= {
        "missing": {},
        "not known": {key: value, f"{key}x": value},
        "of another shape": {key: torch.zeros(*value.shape, 3)},
    }[change]
    source = tmp_path / "source"
    source.mkdir()
    said = refused("convert", write(source, files), tmp_path / "out", *options(tokenizer))
    assert change.lower() in said.lower() and key in said and file in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_many_wrong_keys_are_cut_with_a_count(states, released, tokenizer, tmp_path, refused):
    source = shutil.copytree(released["v0"], tmp_path / "source")
    state = {k: v for k, v in states["v0"]["uvit_v0.pth"].items() if not k.startswith("out_blocks.0")}
    write(source, {"uvit_v0.pth": state | {f"extra.{i}": torch.zeros(1) for i in range(3)}})
    said = refused("convert", source, tmp_path / "out", *options(tokenizer))
    assert "missing: out_blocks.0.attn.proj.bias" in said and "and 5 more" in said
    assert "not known: extra.0, extra.1, extra.2" in said


def test_half_precision_and_another_activation_are_said(diffusers_folder, tmp_path, capsys):
    source = shutil.copytree(diffusers_folder, tmp_path / "source")
    their_network().half().save_pretrained(source / "unet")
    config = json.loads((source / "text_decoder/config.json").read_text())
    (source / "text_decoder/config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))
    main(["convert", str(source), str(tmp_path / "model")])
    said = capsys.readouterr().out
    assert "tensors of torch.float16 become float32" in said and "says gelu, which is kept" in said
    assert_same(
        load(tmp_path / "model").backbone.norm.state_dict(), their_network().half().transformer.norm_out.state_dict()
    )


def test_wrong_keys_of_a_diffusers_folder(diffusers_folder, tmp_path, refused):
    source = shutil.copytree(diffusers_folder, tmp_path / "source")
    path = source / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    path.unlink()
    changed = {name: value for name, value in state.items() if name != "transformer.pos_embed.proj.bias"}
    changed |= {"surplus": torch.zeros(1)}
    torch.save(changed, path.with_suffix(".bin"))
    said = refused("convert", source, tmp_path / "out")
    assert "missing: transformer.pos_embed.proj.bias" in said and "not known: surplus" in said
    torch.save(state | {"text_in.bias": torch.zeros(WIDTH, dtype=torch.int64)}, path.with_suffix(".bin"))
    assert "not of floating point: text_in.bias torch.int64" in refused("convert", source, tmp_path / "out")
    config = json.loads((source / "unet/config.json").read_text())
    (source / "unet/config.json").write_text(json.dumps(config | {"pre_layer_norm": True}))
    assert "pre_layer_norm True in place of False" in refused("convert", source, tmp_path / "out")
    shutil.rmtree(source / "vae")
    assert "lacks the folder vae/" in refused("convert", source, tmp_path / "out")


def test_an_unused_tensor_that_is_lost_is_reported(diffusers_folder, tmp_path, capsys):
    source = shutil.copytree(diffusers_folder, tmp_path / "source")
    model = their_network()
    model.transformer.pos_embed.proj.bias.data += 1
    model.save_pretrained(source / "unet")
    main(["convert", str(source), str(tmp_path / "model")])
    assert "transformer.pos_embed.proj is not the copy of vae_img_in.proj" in capsys.readouterr().out


class Code:
    """Writes a file where a pickle of it is opened without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("file", ["uvit_v1.pth", "caption_decoder.pth", "autoencoder_kl.pth"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_refused_and_does_not_run(released, tokenizer, tmp_path, refused, file, is_zip):
    source = shutil.copytree(released["v1"], tmp_path / "source")
    torch.save({"weight": Code(tmp_path / "ran")}, source / file, _use_new_zipfile_serialization=is_zip)
    said = refused("convert", source, tmp_path / "out", *options(tokenizer))
    assert file in said and "could run code" in said
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    torch.load(source / file, weights_only=False)
    assert (tmp_path / "ran").exists()  # so the file was dangerous


def test_what_is_not_a_state_dict(released, tokenizer, tmp_path, refused):
    source = shutil.copytree(released["v1"], tmp_path / "source")
    for content, says in (([1], "holds a list"), ({"epoch": 3}, "epoch are not named tensors")):
        torch.save(content, source / "autoencoder_kl.pth")
        assert says in refused("convert", source, tmp_path / "out", *options(tokenizer))
    (source / "autoencoder_kl.pth").write_bytes(b"<html>not found</html>")
    assert "not a file of tensors" in refused("convert", source, tmp_path / "out", *options(tokenizer))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3806000000\n"
STAND_INS = {
    "git-LFS pointer to a file of 3,806,000,000 bytes. Run `git lfs pull`": lambda real: POINTER,
    "a web page": lambda real: b"\n<!DOCTYPE html>\n<html>Sign in</html>",
    "empty; download it again": lambda real: b"",
    "half a download": lambda real: real[: len(real) // 2],
}


@pytest.mark.parametrize("file", ["uvit_v0.pth", "caption_decoder.pth", "autoencoder_kl.pth"])
@pytest.mark.parametrize("says", STAND_INS)
def test_what_lies_in_place_of_a_released_file_is_said(released, tokenizer, tmp_path, refused, file, says):
    source = shutil.copytree(released["v0"], tmp_path / "source")
    (source / file).write_bytes(STAND_INS[says]((source / file).read_bytes()))
    said = refused("convert", source, tmp_path / "out", *options(tokenizer))
    assert f"{file} is not a file of tensors: it is" in said and says in said
    assert "weights_only" not in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"hello", b"\0" * 600, b"\x80\x02}q"])
def test_nobody_is_advised_to_open_a_broken_file_unsafely(released, tokenizer, tmp_path, refused, content):
    source = shutil.copytree(released["v0"], tmp_path / "source")
    (source / "uvit_v0.pth").write_bytes(content)
    said = refused("convert", source, tmp_path / "out", *options(tokenizer))
    assert "download it again" in said and "weights_only" not in said and "two options" not in said


def test_code_in_a_file_is_named_without_advice_to_run_it(released, tokenizer, tmp_path, refused):
    source = shutil.copytree(released["v0"], tmp_path / "source")
    for is_zip in (True, False):
        torch.save({"weight": Code("x")}, source / "uvit_v0.pth", _use_new_zipfile_serialization=is_zip)
        said = refused("convert", source, tmp_path / "out", *options(tokenizer))
        assert "which is code" in said and "weights_only" not in said and "two options" not in said


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_a_pointer_in_place_of_the_tokenizer(released, tmp_path, refused, diffusers_folder, tokenizer, file):
    place = shutil.copytree(
        tokenizer if file == "tokenizer.json" else diffusers_folder / "text_tokenizer", tmp_path / "t"
    )
    (place / file).write_bytes(POINTER)
    assert f"{file} is not a file of text: it is a git-LFS" in refused(
        "convert", released["v0"], tmp_path / "out", *options(place)
    )
    (place / file).write_text("[1")
    assert f"{file}" in (said := refused("convert", released["v0"], tmp_path / "out", *options(place)))
    assert "not a tokenizer" in said


@pytest.mark.parametrize("says", STAND_INS)
def test_what_lies_in_place_of_a_models_files_is_said(directories, tmp_path, says):
    folder = shutil.copytree(directories["v1"], tmp_path / "model")
    for name, use in {
        "text_decoder/model.safetensors": lambda: TextDecoder.from_pretrained(str(folder / "text_decoder")),
        "autoencoder/diffusion_pytorch_model.safetensors": lambda: load_autoencoder(str(folder / "autoencoder")),
        "model.safetensors": lambda: load(folder),
    }.items():
        (folder / name).write_bytes(STAND_INS[says]((folder / name).read_bytes()))
        with pytest.raises(ValueError, match="is not a file of tensors: it is") as error:
            use()
        assert says in str(error.value) and name in str(error.value)


def test_what_is_left_out_is_said(released, tokenizer, tmp_path, capsys):
    convert(released["v0"], tmp_path / "model", tokenizer)
    said = capsys.readouterr().out
    assert "2 tensors of a CLIP stored along are not used: module.clip.logit_scale, module.clip_model." in said
    assert "4 causal masks are constants" in said and "CLIP is not in these files" in said
    assert f"{tmp_path / 'model'}: weights under AGPL-3.0, from uvit_v0.pth" in said


def test_options_and_files_that_do_not_fit(released, tokenizer, diffusers_folder, tmp_path, refused):
    source, out = released["v0"], tmp_path / "out"
    assert "no square of patches" in refused("convert", source, out, f"--tokenizer={tokenizer}", "--heads=4")
    assert "give `heads`" in refused("convert", source, out, f"--tokenizer={tokenizer}", f"--length={LENGTH}")
    assert "no folder of weights" in refused("convert", source, out, "--tokenizer=nowhere")
    assert "heads that divide its width" in refused("convert", source, out, *options(tokenizer, "--heads=5"))
    small = tmp_path / "small"
    small.mkdir()
    train_tokenizer(CAPTIONS, 270).backend_tokenizer.save(str(small / "tokenizer.json"))
    assert "281 symbols" in refused("convert", source, out, *options(small))
    assert "is of no known layout" in refused("convert", small, out)
    assert "name the folder to convert first" in refused("convert")
    both = shutil.copytree(source, tmp_path / "both")
    shutil.copy(both / "uvit_v0.pth", both / "uvit_v1.pth")
    said = refused("convert", both, out, *options(tokenizer))
    assert "two networks" in said and "--network=uvit_v1.pth" in said
    assert "lacks uvit_v1.pth" in refused("convert", source, out, *options(tokenizer, "--network=uvit_v1.pth"))
    (both / "caption_decoder.pth").unlink()
    assert "lacks caption_decoder.pth" in refused("convert", both, out, *options(tokenizer))
    shutil.copytree(diffusers_folder, both, dirs_exist_ok=True)
    said = refused("convert", both, out)
    assert "several layouts: DiffusersFolder, ReleasedFolder" in said and "--layout" in said
    said = refused("convert", both, out, "--layout", "Released")
    assert "unknown layout 'Released'; known: DiffusersFolder, ReleasedFolder" in said
    assert "unknown layout" in refused("convert", both, out, "--layout=x", "--help")
    assert not out.exists()


def test_a_snapshot_of_both_layouts_and_both_versions_needs_no_file_moved(
    released, directories, diffusers_folder, tokenizer, tmp_path, capsys
):
    both = shutil.copytree(diffusers_folder, tmp_path / "both")
    for version in ("v0", "v1"):
        shutil.copytree(released[version], both, dirs_exist_ok=True)
    for version in ("v0", "v1"):
        out = tmp_path / version
        convert(both, out, tokenizer, "--layout=ReleasedFolder", f"--network=uvit_{version}.pth")
        assert_same(load_file(out / "model.safetensors"), load_file(directories[version] / "model.safetensors"))
    main(["convert", str(both), str(tmp_path / "theirs"), "--layout", "DiffusersFolder"])
    assert_same(load_file(tmp_path / "theirs/model.safetensors"), load_file(directories["v1"] / "model.safetensors"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["convert", str(both), "--layout=ReleasedFolder", "--help"])
    assert "--network" in capsys.readouterr().out


def test_no_tokenizer_is_fetched_that_nobody_named(
    released, tokenizer, diffusers_folder, directories, tmp_path, refused
):
    source = shutil.copytree(released["v0"], tmp_path / "source")
    said = refused("convert", source, tmp_path / "out", *options(tokenizer)[1:])
    assert "--tokenizer=FOLDER, with its vocab.json and merges.txt, or --tokenizer=hf-hub:openai-community/gpt2" in said
    shutil.copytree(diffusers_folder / "text_tokenizer", source / "text_tokenizer")
    main(["convert", str(source), str(tmp_path / "out"), *options(tokenizer)[1:]])
    found = TextDecoder.from_pretrained(str(tmp_path / "out/text_decoder"))
    wanted = TextDecoder.from_pretrained(str(directories["v0"] / "text_decoder"))
    assert found.tokenizer.get_vocab() == wanted.tokenizer.get_vocab()
    assert all(found.tokenizer.encode(text) == wanted.tokenizer.encode(text) for text in CAPTIONS)
    folder = shutil.copytree(diffusers_folder, tmp_path / "theirs")
    shutil.rmtree(folder / "text_tokenizer")
    assert "has no text_tokenizer/. Give GPT-2's" in refused("convert", folder, tmp_path / "other")


def test_nothing_is_overwritten_unasked(released, tokenizer, tmp_path, refused, directories):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "already there" in refused("convert", released["v0"], out, *options(tokenizer))
    assert "not what this command writes" in refused("convert", released["v0"], out, *options(tokenizer), "--overwrite")
    assert "not what this command writes" in refused("export", directories["v0"], out, "--overwrite", "--allow_hub")
    assert (out / "thesis.txt").read_text() == "years of work"
    model = convert(released["v0"], tmp_path / "model", tokenizer)
    (model / "model.safetensors").unlink()
    convert(released["v0"], model, tokenizer, "--overwrite")
    assert load(model).licence == "AGPL-3.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_the_licence_is_kept_and_shown(directories, tmp_path, caplog, capsys):
    model = load(directories["v1"])
    assert "weights under AGPL-3.0, from uvit_v1.pth" in caplog.text
    assert model.licence == "AGPL-3.0" and "arXiv 2303.06555" in model.sources[0]
    model.save_pretrained(tmp_path / "tuned")
    tuned = load(tmp_path / "tuned")
    assert (tuned.licence, tuned.sources) == (model.licence, model.sources)
    caplog.clear()
    main(["sample", str(tmp_path / "tuned"), "text", "--steps=1", "--allow_hub", f"--out={tmp_path / 'out'}"])
    assert "AGPL-3.0" in caplog.text
    config = yaml.safe_load((tmp_path / "tuned/config.yaml").read_text())
    del config["licence"], config["sources"]
    (tmp_path / "tuned/config.yaml").write_text(yaml.safe_dump(config))
    caplog.clear()
    assert load(tmp_path / "tuned").licence is None and not caplog.text
    (tmp_path / "tuned/config.yaml").write_text(yaml.safe_dump(config | {"licence": 3}))
    with pytest.raises(model_directory.ModelDirectoryError, match="licence is a text"):
        load(tmp_path / "tuned")


def test_what_diffusers_layout_cannot_hold(directories, tmp_path, refused):
    model = load(directories["v1"])
    model.modalities["text"].process.prediction = "velocity"
    model.save_pretrained(tmp_path / "velocity")
    assert "text is of another process" in refused("export", tmp_path / "velocity", tmp_path / "out", "--allow_hub")
    decoder = TextDecoder.from_pretrained(str(directories["v1"] / "text_decoder"))
    decoder.std += 1
    with pytest.raises(ValueError, match="standardises"):
        text_decoder.export_state(decoder)
    arguments = (directories["v1"], tmp_path / "out", "--layout=ReleasedFolder")
    assert "unknown layout 'ReleasedFolder'; known: DiffusersFolder" in refused("export", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_is_not_exported(directories, tmp_path, refused):
    model = shutil.copytree(directories["v1"], tmp_path / "model")
    state = load_file(model / "model.safetensors")
    value = state.pop("backbone.norm.bias")
    save_file(state, model / "model.safetensors")
    arguments = ("export", model, tmp_path / "out", "--allow_hub")
    assert "the tensors in the model are not those of its layout. missing: norm.bias" in refused(*arguments)
    save_file(state | {"backbone.norm.bias": value[:-1]}, model / "model.safetensors")
    assert "of another shape: norm.bias 47 in place of 48" in refused(*arguments)
    assert not (tmp_path / "out").exists()


def test_help_lists_the_layouts(released, capsys):
    main(["convert", "--help"])
    said = capsys.readouterr().out
    assert "ReleasedFolder (unidiff-core)" in said and "caption_decoder.pth" in said and "DiffusersFolder" in said
    for arguments in (["convert", str(released["v0"]), "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 0
    said = capsys.readouterr().out
    assert "--text_decoder_heads" in said and "not exported: image_encoder" in said
