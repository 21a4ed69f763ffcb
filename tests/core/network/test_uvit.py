"""The U-ViT against the released network's port in diffusers, and on streams of every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unidiff_codecs.released.network import import_state
from unidiff_codecs.released.sizes import diffusers_sizes

from unidiff_core.foundation.stream import Stream
from unidiff_core.network.backbone import Port
from unidiff_core.network.packing import Packing
from unidiff_core.network.tokens import cut, join
from unidiff_core.network.uvit import UViT, ports_of, timestep_embedding

WIDTH, HEADS, DEPTH = 48, 4, 5


def released_streams(side=64):
    return {
        "image.ae": Stream.grid(4, side, side, patch=2),
        "image.clip": Stream.vector(512),
        "text.states": Stream.sequence(77, 64),
    }


@pytest.mark.parametrize(("data_types", "count"), [(0, 952_504_912), (2, 952_509_520)])
def test_parameter_counts_at_full_size(data_types, count):
    with torch.device("meta"):
        network = UViT(ports_of(released_streams()), data_types=data_types)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def theirs_and_ours(data_types):
    from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UniDiffuserModel

    torch.manual_seed(0)
    theirs = UniDiffuserModel(
        text_dim=32,
        clip_img_dim=24,
        num_text_tokens=7,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu",
        block_type="unidiffuser",
        norm_type="layer_norm",
        norm_elementwise_affine=True,
        pre_layer_norm=False,
        use_timestep_embedding=False,
        ff_final_dropout=True,
        use_patch_pos_embed=False,
        use_data_type_embedding=bool(data_types),
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim < 2 else 0.1)
    path = Path("unet/config.json")
    sizes = diffusers_sizes(dict(theirs.config) | {"_class_name": "UniDiffuserModel"}, path)
    ours = UViT(sizes.ports, WIDTH, DEPTH, HEADS, data_types=data_types).eval()
    theirs.transformer.pos_embed.proj.load_state_dict(theirs.vae_img_in.proj.state_dict())
    ours.load_state_dict(import_state(theirs.state_dict(), sizes, "diffusers", path))
    return theirs, ours


@pytest.mark.parametrize("data_types", [0, 2])
def test_parity_with_the_released_network(data_types):
    theirs, ours = theirs_and_ours(data_types)
    generator = torch.Generator().manual_seed(1)
    for t_image, t_text in [
        (0, 1000),
        (1000, 0),
        (1, 1),
        (500, 500),
        (1000, 1000),
        (0, 0),
        (123.5, 877.25),
        (7, 993),
    ] * 3:
        latents = {
            "image.ae": torch.randn(2, 4, 8, 8, generator=generator),
            "image.clip": torch.randn(2, 24, generator=generator),
            "text.states": torch.randn(2, 7, 32, generator=generator),
        }
        times = {"image": torch.full((2,), float(t_image)), "text": torch.full((2,), float(t_text))}
        with torch.no_grad():
            image, clip, text = theirs(
                latents["image.ae"],
                latents["image.clip"][:, None],
                latents["text.states"],
                times["image"],
                times["text"],
                **({"data_type": torch.ones(2, dtype=torch.int64)} if data_types else {}),
            )
            prediction = ours(latents, times)
        for key, want in {"image.ae": image, "image.clip": clip[:, 0], "text.states": text}.items():
            assert (prediction[key] - want).abs().max() <= 1e-5


def test_cosines_come_first():
    embedding = timestep_embedding(torch.tensor([0.0, 3.5]), 6)
    assert embedding[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert torch.allclose(embedding[1, 0], torch.tensor(3.5).cos())


@pytest.mark.parametrize(
    "stream",
    [
        Stream.vector(5),
        Stream.sequence(4, 3),
        Stream.grid(2, 6, patch=3),
        Stream.grid(3, 4, 8, patch=(2, 4)),
        Stream.grid(1, 2, 4, 6, patch=2),
    ],
    ids=str,
)
def test_tokens_of_every_layout_come_back(stream):
    x = torch.randn(3, *stream.shape)
    tokens = cut(x, stream)
    assert tokens.shape == (3, stream.num_tokens, stream.token_width)
    if stream.layout == "grid":  # the way in is channel first, the way out channel last, as in the released network
        tokens = tokens.unflatten(-1, (stream.channels, -1)).transpose(-1, -2).flatten(2)
    assert torch.equal(join(tokens, stream, stream.token_grid), x)


def test_any_number_of_streams_and_dropping_one():
    streams = {"a.x": Stream.vector(3), "a.y": Stream.grid(1, 4, 4, patch=2), "b.z": Stream.sequence(5, 2)}
    streams |= {"c.w": Stream.grid(2, 2, 2, 2)}
    network = UViT(ports_of(streams), 32, 3, 2)
    latents = {key: torch.randn(2, *stream.shape) for key, stream in streams.items()}
    times = {name: torch.tensor([1.0, 900.0]) for name in "abc"}
    prediction = network(latents, times)
    assert {key: value.shape for key, value in prediction.items()} == {key: x.shape for key, x in latents.items()}
    dropped = network({k: v for k, v in latents.items() if k[0] != "b"}, {k: v for k, v in times.items() if k != "b"})
    assert set(dropped) == {"a.x", "a.y", "c.w"}


def test_another_resolution_resizes_the_positions_bilinearly():
    streams = {"a.x": Stream.grid(4, 8, 8, patch=2)}
    network = UViT(ports_of(streams), 32, 3, 2)
    position = network.tokens_of("a.x").resized_position((4, 12, 16))
    native = network.tokens_of("a.x").position
    want = torch.nn.functional.interpolate(
        native.unflatten(0, (4, 4)).permute(2, 0, 1)[None], size=(6, 8), mode="bilinear", align_corners=False
    )
    assert torch.allclose(position, want[0].permute(1, 2, 0).flatten(0, 1))
    assert network({"a.x": torch.randn(1, 4, 12, 16)}, {"a": torch.tensor([5.0])})["a.x"].shape == (1, 4, 12, 16)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="odd depth"):
        UViT(ports_of({"a.x": Stream.vector(1)}), 32, 4, 2)
    with pytest.raises(ValueError, match="divide into patches"):
        Stream.grid(1, 5, 5, patch=2)
    with pytest.raises(ValueError, match="1 to 3 sizes"):
        Stream.grid(1)


def test_checkpointing_changes_no_gradient():
    streams = ports_of({"a.x": Stream.grid(4, 8, 8, patch=2), "b.y": Stream.vector(3)})
    kept, recomputed = UViT(streams, 32, 5, 2), UViT(streams, 32, 5, 2, checkpointing=True)
    recomputed.load_state_dict(kept.state_dict())
    latents = {"a.x": torch.randn(2, 4, 8, 8), "b.y": torch.randn(2, 3)}
    calls = []
    recomputed.mid_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for network in (kept, recomputed):
        sum(value.square().sum() for value in network(latents, dict.fromkeys("ab", torch.ones(2))).values()).backward()
    assert len(calls) == 2  # once more in the backward pass
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_table_of_symbols_begins_as_the_positions_that_are_added_to_it():
    ports = {
        "words": {"ids": Port(Stream.symbols(7, vocabulary=50), Stream.sequence(7, 50))},
        "rest": {"values": Port(Stream.vector(9), Stream.vector(9))},
    }

    def spread(position_std, name):
        torch.manual_seed(0)
        network = UViT(ports, width=64, depth=3, heads=4, position_std=position_std)
        return network.get_parameter(f"streams.{name}")

    for std in (0.02, 0.5):
        table = spread(std, "words:ids.embed.weight").std().item()
        assert table == pytest.approx(spread(std, "words:ids.position").std().item(), rel=0.1)
        assert table == pytest.approx(0.88 * std, rel=0.05), "a normal cut at two standard deviations"
    for name in ("rest:values.embed.weight", "words:ids.head.weight"):
        assert torch.equal(spread(0.02, name), spread(0.5, name))


def test_scaled_linear_layers_keep_the_size_of_what_goes_through_them_and_heads_begin_small():
    ports = ports_of({"rest.values": Stream.vector(9)})

    def network(**options):
        torch.manual_seed(0)
        return UViT(ports, width=64, depth=3, heads=4, **options)

    scaled, plain = network(scaled_init=True), network()
    for name, layer in scaled.named_modules():
        if isinstance(layer, torch.nn.Linear):
            expected = 0.02 if name.endswith(".head") else layer.in_features**-0.5
            std = layer.weight.std().item()
            assert std == pytest.approx(expected, rel=0.15), name
            assert plain.get_submodule(name).weight.std().item() == pytest.approx(0.02, rel=0.15), name
    assert torch.equal(
        scaled.get_parameter("streams.rest:values.position"), plain.get_parameter("streams.rest:values.position")
    )


@pytest.mark.parametrize("data_types", [0, 2])
def test_what_samples_lack_is_left_out_in_one_evaluation(data_types):
    """As one evaluation for each pattern of what samples have, gradients too; a sample may have nothing at all."""
    streams = {"a.x": Stream.vector(3), "a.y": Stream.grid(1, 4, 4, patch=2), "b.z": Stream.sequence(5, 2)}
    torch.manual_seed(0)
    network = UViT(ports_of(streams), 32, 3, 2, data_types=data_types, position_std=0.5).double()
    latents = {key: torch.randn(6, *stream.shape, dtype=torch.float64) for key, stream in streams.items()}
    times = {"a": torch.arange(6.0) * 100, "b": 900 - torch.arange(6.0) * 100}
    kept = {"a": torch.tensor([1, 0, 1, 1, 0, 0]).bool(), "b": torch.tensor([1, 1, 0, 1, 1, 0]).bool()}
    packed = network(latents, times, kept=kept)
    for rows, names in {(0, 3): "ab", (1, 4): "b", (2,): "a"}.items():
        some = {key: value[[*rows]] for key, value in latents.items() if key[0] in names}
        want = network(some, {name: times[name][[*rows]] for name in names})
        for key, value in want.items():
            torch.testing.assert_close(packed[key][[*rows]], value, rtol=1e-9, atol=1e-12)
    sum(value.sum() for value in packed.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    checked = UViT(ports_of(streams), 32, 3, 2, data_types=data_types, checkpointing=True).double()
    checked.load_state_dict(network.state_dict())
    again = checked(latents, times, kept=kept)
    assert all(torch.equal(again[key], value) for key, value in packed.items())


def test_a_batch_in_which_nobody_has_anything_is_no_error():
    network = UViT(ports_of({"a.x": Stream.vector(3)}), 32, 3, 2)
    prediction = network({"a.x": torch.zeros(2, 3)}, {"a": torch.zeros(2)}, kept={"a": torch.zeros(2).bool()})
    prediction["a.x"].sum().backward()


def test_samples_of_one_length_attend_in_one_go():
    kept = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]]).bool()
    packing = Packing.of(kept)
    assert packing.runs == [(2, 1), (2, 2)]
    x = torch.randn(5, 3, 2)
    assert torch.equal(packing.unpack(packing.pack(x)), x * kept[..., None])
