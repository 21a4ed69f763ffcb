"""The other side of `performance.py`.

diffusers' ``UniDiffuserModel`` and ``UniDiffuserPipeline``; and a training step as U-ViT's public trainer does it,
written from its documented behaviour: AdamW tensor by tensor, and the average of each parameter in a Python loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from unidiff_codecs.released.network import import_state
from unidiff_codecs.released.sizes import diffusers_sizes


@dataclass(frozen=True)
class Sizes:
    """Of the network."""

    width: int
    depth: int
    """Blocks without the middle one."""
    heads: int
    side: int
    """Of the autoencoder's latent, in cells."""
    clip: int = 512
    length: int = 77
    text: int = 64


class Peer:
    """diffusers' network of these sizes, with random weights."""

    def __init__(self, sizes: Sizes) -> None:
        from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UniDiffuserModel

        torch.manual_seed(0)
        self.sizes = sizes
        self.network: Any = UniDiffuserModel(
            text_dim=sizes.text,
            clip_img_dim=sizes.clip,
            num_text_tokens=sizes.length,
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.width // sizes.heads,
            in_channels=4,
            out_channels=4,
            num_layers=sizes.depth,
            sample_size=sizes.side,
            patch_size=2,
            activation_fn="gelu",
            block_type="unidiffuser",
            norm_type="layer_norm",
            pre_layer_norm=False,
            use_timestep_embedding=False,
            ff_final_dropout=True,
            use_patch_pos_embed=False,
        ).eval()
        self.network.transformer.pos_embed.proj.load_state_dict(self.network.vae_img_in.proj.state_dict())

    def weights(self) -> dict[str, Tensor]:
        """Of the same network of ours."""
        path = Path("config.json")
        sizes = diffusers_sizes(dict(self.network.config) | {"_class_name": "UniDiffuserModel"}, path)
        return import_state(self.network.state_dict(), sizes, "diffusers", path)

    def predict(self, latents: dict[str, Tensor], times: dict[str, Tensor]) -> dict[str, Tensor]:
        """One evaluation."""
        clip = latents["image.clip"][:, None]
        rows = self.network(latents["image.ae"], clip, latents["text.states"], times["image"], times["text"])
        return {"image.ae": rows[0], "image.clip": rows[1][:, 0], "text.states": rows[2]}

    def training_step(self, latents: dict[str, Tensor], *, is_fused: bool) -> Callable[[], None]:
        """Independent times, noise, the mean square error of the noise, backward, AdamW, average.

        Args:
            latents: of the batch.
            is_fused: both over all tensors at once, in place of one by one.
        """
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
        alphas = (1 - betas).cumprod(0)
        update = updates(self.network, is_fused=is_fused)
        batch = len(latents["image.ae"])

        def step() -> None:
            times = {name: torch.randint(0, 1000, (batch,)) for name in ("image", "text")}
            noise = {key: torch.randn_like(value) for key, value in latents.items()}
            noisy = {}
            for key, value in latents.items():
                alpha = alphas[times[key.partition(".")[0]]].view(-1, *[1] * (value.ndim - 1))
                noisy[key] = alpha.sqrt() * value + (1 - alpha).sqrt() * noise[key]
            prediction = self.predict(noisy, {name: t + 1.0 for name, t in times.items()})
            errors = [(prediction[key] - noise[key]).square().flatten(1) for key in latents]
            torch.cat(errors, 1).mean().backward()  # type: ignore[no-untyped-call]
            update()

        return step

    def text_to_image(self, states: Tensor, steps: int, guidance: float) -> Callable[[], Tensor]:
        """A call of the pipeline on latents: two evaluations a step.

        Args:
            states: of the text ``[b, n, c]``.
            steps: of its DPM-Solver++.
            guidance: 1 + s.
        """
        pipeline, side = self._pipeline(states), 8 * self.sizes.side
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
        options |= {"negative_prompt_embeds": states}  # asked for, and not used

        def call() -> Tensor:
            image: Tensor = pipeline(prompt_embeds=states, height=side, width=side, **options).images
            return image

        return call

    def _pipeline(self, states: Tensor) -> Any:
        """A pipeline of this network; what it does not call here is small."""
        import diffusers
        import transformers
        from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
        from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserPipeline, UniDiffuserTextDecoder
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

        diffusers.logging.set_verbosity_error()
        transformers.logging.set_verbosity_error()
        small: dict[str, Any] = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        length, width = states.shape[1:]
        text = CLIPTextConfig(hidden_size=width, max_position_embeddings=length, vocab_size=9, **small)
        vision = CLIPVisionConfig(hidden_size=8, projection_dim=self.sizes.clip, image_size=32, patch_size=32, **small)
        decoder = UniDiffuserTextDecoder(length, width, vocab_size=9, n_positions=99, n_embd=width, n_layer=1, n_head=1)
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        autoencoder = AutoencoderKL(block_out_channels=[32] * 4, latent_channels=4, **blocks)
        schedule = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        parts = dict.fromkeys(("clip_image_processor", "clip_tokenizer", "text_tokenizer"))
        return UniDiffuserPipeline(
            vae=autoencoder,
            text_decoder=decoder,
            image_encoder=CLIPVisionModelWithProjection(vision),
            text_encoder=CLIPTextModel(text),
            unet=self.network,
            scheduler=schedule,
            **parts,
        )


def updates(network: nn.Module, *, is_fused: bool) -> Callable[[], None]:
    """What follows the gradients: AdamW and the average, over all tensors at once or one by one."""
    parameters = list(network.parameters())
    options: dict[str, bool] = {"fused": True} if is_fused else {"foreach": False}
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.03, betas=(0.9, 0.9), **options)
    average = [value.detach().clone() for value in parameters]

    def update() -> None:
        optimizer.step()
        if is_fused:
            torch._foreach_lerp_(average, [value.detach() for value in parameters], 1e-4)
        else:
            for mean, value in zip(average, parameters, strict=True):
                mean.mul_(0.9999).add_(value.detach(), alpha=1e-4)
        optimizer.zero_grad()

    return update


def updates_alone(network: nn.Module, *, is_fused: bool) -> Callable[[], None]:
    """`updates` with the same gradients each time."""
    update = updates(network, is_fused=is_fused)
    gradients = [torch.full_like(value, 1 / math.sqrt(value.numel())) for value in network.parameters()]

    def again() -> None:
        for value, gradient in zip(network.parameters(), gradients, strict=True):
            value.grad = gradient
        update()

    return again
