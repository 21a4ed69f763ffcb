"""The real configuration, once: optimisation steps and a guided sampling step of the 952M network, with its memory.

    python benchmarks/full_size.py                                     one step at 256 px on the CPU, within 24 GiB
    python benchmarks/full_size.py --device cuda --size 512 --batch 16 --steps 20 --precision bf16-mixed

Runs recipes/image_text/stage1.yaml through the command's own code on random stored latents: fused AdamW, the average,
no codec loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from plan import num_tokens, training_flops
from safetensors.torch import save

from unidiff_core.cli.fit import UniDiffuserCLI, prepare
from unidiff_core.data.shard import write_shards

RECIPE = Path(__file__).parent.parent / "recipes/image_text/stage1.yaml"
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""bf16 FLOP/s, dense."""


class Stopwatch(pl.Callback):
    """The time at which each step was over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Wait for the device, look at the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def peak_memory(device: str) -> str:
    """Of this process, or of the GPU."""
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def write_latents(folder: Path, size: int, num: int) -> None:
    """Random ones in the shape that ImageCodec and TextCodec store."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"image.ae": (8, size // 8, size // 8), "image.clip": (512,), "text.states": (77, 64)}
    rows = ({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(num))
    write_shards(folder, ({"__key__": f"{i:05d}", "safetensors": save(row)} for i, row in enumerate(rows)))


def arguments(options: argparse.Namespace, folder: Path) -> list[str]:
    """Of ``unidiffuser fit``."""
    image = {"class_path": "ImageCodec", "init_args": {"size": options.size, "native_size": 512}}
    return [
        *("-c", str(RECIPE), f"--model.modalities.image.codec={json.dumps(image)}"),
        "--model.modalities.text.codec=TextCodec",
        *(f"--data.train={folder}", "--data.validation=null", "--data.num_workers=0"),
        *(f"--data.batch_size={options.batch}", f"--data.micro_batch_size={options.batch}"),
        *(f"--trainer.max_steps={options.steps}", f"--trainer.accelerator={options.device}", "--trainer.devices=1"),
        *(f"--trainer.precision={options.precision}", "--trainer.logger=false", "--trainer.enable_checkpointing=false"),
        f"--trainer.default_root_dir={folder}",
        f"--model.backbone.checkpointing={str(options.checkpointing).lower()}",
        "--trainer.callbacks=[{class_path: EMA}]",
    ]


def main() -> None:
    """Train, sample, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--batch", type=int, default=1, help="samples a step")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", help="bf16-mixed on a GPU")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    options, more = parser.parse_known_args()
    prepare()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_latents(folder, options.size, options.batch)
        cli = UniDiffuserCLI("fit", [*arguments(options, folder), *more])
        watch = Stopwatch()
        cli.trainer.callbacks.append(watch)
        started = time.perf_counter()
        cli.run()
    model = cli.model
    print(f"parameters: {sum(value.numel() for value in model.parameters()):,}")
    print(f"first step: {watch.times[0] - started:.1f} s; peak memory {peak_memory(options.device)}")
    if options.steps > 1:
        late = watch.times[len(watch.times) // 4 :]
        seconds = (late[-1] - late[0]) / (len(late) - 1)
        rate = training_flops(num_tokens(options.size)) * options.batch / seconds
        print(f"{seconds:.3f} s a step, {options.batch / seconds:.1f} samples/s, {rate / 1e12:.0f} TFLOP/s")
        peak = next((peak for name, peak in PEAK.items() if name in torch.cuda.get_device_name()), None)
        print(f"MFU {rate / peak:.1%}" if peak else "MFU unknown: no peak recorded for this GPU")
    model.to(options.device)
    started = time.perf_counter()
    held = {"text.states": torch.zeros(1, 77, 64, device=options.device)}
    image = model.sample_latents("image | text", held, num=1, steps=1, guidance=3.0)
    shapes = {key: tuple(value.shape) for key, value in image.items() if key.startswith("image")}
    print(f"guided sampling step: {time.perf_counter() - started:.1f} s, {shapes}; peak {peak_memory(options.device)}")


if __name__ == "__main__":
    main()
