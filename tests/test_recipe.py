"""Every YAML under recipes/ parses and makes its objects; the three stages follow one another, small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from unidiff_core.cli import encode, evaluate, fit, fit_codec, shards
from unidiff_core.shard import write_shards

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
TINY = ["--model.backbone.width=32", "--model.backbone.depth=3", "--model.backbone.heads=2"]


def command_of(path: Path) -> str:
    """The command that a recipe is for, by its keys."""
    keys = yaml.safe_load(path.read_text()).keys()
    marks = {"source": "shards", "codecs": "encode", "judge": "evaluate", "output": "fit-codec", "trainer": "fit"}
    return next((command for mark, command in marks.items() if mark in keys), "fit")


def instantiate(command: str, arguments: list[str]):
    """Parse as the command does, and make every object."""
    match command:
        case "fit":
            fit.prepare()
            return fit.UniDiffuserCLI("fit", [*arguments, "--trainer.accelerator=cpu", "--trainer.precision=32-true"])
        case "fit-codec":
            return fit_codec._parse([*arguments, "--trainer.accelerator=cpu", "--trainer.precision=32-true"])
        case "evaluate":
            arguments = ["a_model_directory", *arguments]
    parser = {"shards": shards, "encode": encode, "evaluate": evaluate}[command]._parser()
    return parser.instantiate_classes(parser.parse_args(arguments))


MODALITIES = [
    "--model.modalities={image: {codec: {class_path: ImageCodec}}, text: {codec: {class_path: TextCodec}}}",
    *("--model.backbone=UViT", "--model.lora=null"),
]


def small(path: Path) -> list[str]:
    """Arguments that make a recipe small, and free of a model directory that training would have made."""
    text = path.read_text()
    if command_of(path) != "fit":
        return ["-c", str(path)]
    if "trainer:" not in text:  # a file that is put on top of another
        under = ["-c", str(path.parent / "finetune.yaml")]
        return [*under, "-c", str(path), "--model.init_from=null", "--model.backbone=UViT", *TINY]
    return ["-c", str(path), *(["--model.init_from=null", *MODALITIES] if "init_from" in text else []), *TINY]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_parses_and_makes_its_objects(path):
    assert instantiate(command_of(path), small(path)) is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_begins_with_its_launch_line_an_override_and_what_to_expect(path):
    head = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert str(path.relative_to(ROOT)) in head and f"unidiffuser {command_of(path)}" in head
    assert "Override:" in head and "Expect" in head


def latents(folder: Path, side: int, num: int = 8) -> str:
    """Random stored latents of images of 8 · side pixels and of texts."""
    generator = torch.Generator().manual_seed(side)
    shapes = {"image.ae": (8, side, side), "image.clip": (512,), "text.states": (77, 64)}
    rows = ({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(num))
    write_shards(folder, ({"__key__": f"{i:03d}", "safetensors": save(row)} for i, row in enumerate(rows)))
    return str(folder)


def run_stage(number: int, train: str, *options: str) -> fit.UniDiffuserCLI:
    """Two steps of a stage, small, on the CPU."""
    cli = instantiate(
        "fit",
        [
            *("-c", str(ROOT / f"recipes/image_text/stage{number}.yaml"), f"--data.train={train}"),
            *(f"--data.validation={train}", "--data.num_workers=0", "--data.batch_size=4", "--data.micro_batch_size=2"),
            *("--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false", *options),
        ],
    )
    cli.run()
    return cli


def test_three_stages_follow_one_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small, large = latents(tmp_path / "256", 32), latents(tmp_path / "512", 64)
    first = run_stage(1, small, *TINY, "--trainer.max_steps=2", "--model.lr_scheduler.steps=2")
    assert first.trainer.accumulate_grad_batches == 2
    second = run_stage(2, large, "--trainer.max_steps=2", "--model.lr_scheduler.steps=2")
    assert second.model.shapes["image.ae"] == (4, 64, 64) and first.model.shapes["image.ae"] == (4, 32, 32)
    before = load_file("runs/image_text/stage1/model.safetensors")
    after = load_file("runs/image_text/stage2/model.safetensors")
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    third = run_stage(3, large, "--trainer.max_steps=3", "--model.lr_scheduler.steps=2")
    assert third.trainer.global_step == 3  # one more than stage 2's, with its optimizer
    state = next(iter(third.trainer.optimizers[0].state.values()))
    assert state["step"] == 3
    again = run_stage(3, large, "--trainer.max_steps=3", "--model.lr_scheduler.steps=2")
    assert again.trainer.global_step == 3 and "stage3" in again.checkpoint
