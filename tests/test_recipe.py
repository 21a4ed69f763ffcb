"""Every YAML under recipes/ parses and makes its objects; the three stages follow one another, small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from unidiff_core.cli import encode, evaluate, fit, fit_codec, shards
from unidiff_core.data.samples import Samples, StoredDataset
from unidiff_core.data.shard import MANIFEST, write_manifest, write_shard, write_shards
from unidiff_core.data.tensors import TensorsInMemory
from unidiff_core.evaluation.show import ShowSamples
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.serialization.description import describe_codecs

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
    load_plugins()
    match command:
        case "fit":
            fit.prepare()
            return fit.UniDiffuserCLI("fit", [*arguments, "--trainer.accelerator=cpu"])
        case "fit-codec":
            return fit_codec._parse([*arguments, "--trainer.accelerator=cpu"])
        case "evaluate":
            arguments = ["a_model_directory", *arguments]
    parser = {"shards": shards, "encode": encode, "evaluate": evaluate}[command]._parser()
    return parser.instantiate_classes(parser.parse_args(arguments))


def encode_nothing(recipe: Path, *targets: str) -> None:
    """What `unidiffuser encode` records of the codecs in `targets`, beside no samples: no network is loaded."""
    codecs = describe_codecs(instantiate("encode", ["-c", str(recipe)]).codecs)
    for target in map(Path, targets):
        write_manifest(target, [write_shard(target / "0.tar", [])], codecs=codecs)


def latents_of(path: Path) -> list[str]:
    """The folders of latents that a recipe trains on; none if it is for another command, or trains on raw samples."""
    data = yaml.safe_load(path.read_text()).get("data") or {}
    return [data[part] for part in ("train", "validation") if "/latents" in data.get(part, "")]


def encode_recipe_of(path: Path) -> Path:
    """The recipe that encodes the latents of a fit recipe; `make` calls it with other folders for some."""
    folder = latents_of(path)[0]
    found = [file for file in path.parent.glob("encode*.yaml") if f": {folder}\n" in file.read_text()]
    return found[0] if found else path.parent / "encode.yaml"


STORED = "--model.modalities={image: {}, text: {}}"
RAW = "--model.modalities={image: {codec: {class_path: ImageCodec}}, text: {codec: {class_path: TextCodec}}}"


def head_of(path: Path) -> list[str]:
    """The comment that a recipe begins with."""
    return path.read_text().split("\n\n")[0].splitlines()


def small(path: Path) -> list[str]:
    """The files of its launch line, and arguments that make it small and free of a model that training would make."""
    launch = next(line for line in head_of(path) if "unidiffuser" in line)
    files = re.findall(r"-c (\S+)", launch)
    arguments = [part for file in files for part in ("-c", str(ROOT / file))]
    if command_of(path) != "fit":
        return arguments
    text = "".join((ROOT / file).read_text() for file in files)
    start = ["--model.start=null", "--model.backbone=UViT"] if "start:" in text else []
    modalities = [] if "modalities:" in text else [STORED if latents_of(path) else RAW]
    return [*arguments, *start, *modalities, *TINY]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_parses_and_makes_its_objects(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if folders := latents_of(path):
        encode_nothing(encode_recipe_of(path), *folders)
    assert instantiate(command_of(path), small(path)) is not None


FROM_LATENTS = [path for path in RECIPES if latents_of(path)]


@pytest.mark.parametrize("path", FROM_LATENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_arguments_of_a_codec_stand_in_the_recipe_that_encodes(path, tmp_path, monkeypatch):
    """Who trains from latents has the codecs that encoded them."""
    monkeypatch.chdir(tmp_path)
    assert "codec:" not in path.read_text()
    encode_nothing(encode_recipe_of(path), *latents_of(path))
    model = instantiate("fit", small(path)).model
    codecs = instantiate("encode", ["-c", str(encode_recipe_of(path))]).codecs
    made = describe_codecs({name: modality.codec for name, modality in model.modalities.items()})
    assert made and made.items() <= describe_codecs(codecs).items()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_begins_with_its_launch_line_an_override_and_what_to_expect(path):
    lines = head_of(path)
    head = "\n".join(lines)
    assert all(line.startswith("#") for line in lines)
    assert str(path.relative_to(ROOT)) in head and f"unidiffuser {command_of(path)}" in head
    assert "Override:" in head and "Expect" in head


class MadeUp(Samples):
    """Random stored latents of a model's modalities."""

    def open(self, where, codecs, device):
        generator = torch.Generator().manual_seed(0)
        stored = {}
        for name, codec in codecs.items():
            for key, (first, *rest) in codec.shapes.items():
                if (vocabulary := codec.streams[key].vocabulary) is not None:
                    made = torch.randint(vocabulary, (8, first, *rest), generator=generator)
                else:  # of the image's latent, mean and log-variance
                    made = torch.randn(8, first * (2 if key == "ae" else 1), *rest, generator=generator)
                stored[f"{name}.{key}"] = made
        return StoredDataset(TensorsInMemory(stored, {}))


FIT = [path for path in RECIPES if command_of(path) == "fit"]


@pytest.mark.parametrize("path", FIT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_takes_two_steps_in_its_own_precision(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ShowSamples, "on_train_start", lambda *_: None)  # what decodes them would have to be trained
    monkeypatch.setattr(ShowSamples, "_show", lambda *_: None)
    if folders := latents_of(path):
        encode_nothing(encode_recipe_of(path), *folders)
    sizes = ["--data.num_workers=0", "--data.batch_size=4", "--data.micro_batch_size=2", "--trainer.max_steps=2"]
    sizes += ["--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false", "--model.lr_scheduler.steps=1"]
    sizes += ["--trainer.gradient_clip_val=1.0", "--begin_from=null"]
    cli = instantiate("fit", [*small(path), *sizes])
    cli.datamodule.samples = MadeUp()
    cli.run()
    files = [Path(part) for part in small(path) if part.endswith(".yaml")]
    named = [yaml.safe_load(file.read_text()).get("trainer", {}).get("precision") for file in files]
    assert cli.trainer.precision == next(filter(None, reversed(named)), "32-true")
    assert cli.trainer.global_step == 2 and torch.isfinite(cli.trainer.callback_metrics["validation/loss"])


def latents(folder: Path, side: int, recipe: str, num: int = 8) -> str:
    """Random stored latents of images of 8 · side pixels and of texts, as a recipe encodes them."""
    generator = torch.Generator().manual_seed(side)
    shapes = {"image.ae": (8, side, side), "image.clip": (512,), "text.states": (77, 64)}
    rows = ({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(num))
    write_shards(folder, ({"__key__": f"{i:03d}", "safetensors": save(row)} for i, row in enumerate(rows)))
    codecs = describe_codecs(instantiate("encode", ["-c", str(ROOT / f"recipes/image_text/{recipe}.yaml")]).codecs)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"codecs": codecs}))
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
    small = latents(tmp_path / "256", 32, "encode_256")
    large, fine = (latents(tmp_path / name, 64, f"encode_{name}") for name in ("512", "aesthetic"))
    first = run_stage(1, small, *TINY, "--trainer.max_steps=2", "--model.lr_scheduler.steps=2")
    assert first.trainer.accumulate_grad_batches == 2
    second = run_stage(2, large, "--trainer.max_steps=2", "--model.lr_scheduler.steps=2")
    assert second.model.shapes["image.ae"] == (4, 64, 64) and first.model.shapes["image.ae"] == (4, 32, 32)
    before = load_file("runs/image_text/stage1/model.safetensors")
    after = load_file("runs/image_text/stage2/model.safetensors")
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    third = run_stage(3, fine, "--trainer.max_steps=3", "--model.lr_scheduler.steps=2")
    assert third.trainer.global_step == 3  # one more than stage 2's, with its optimizer
    state = next(iter(third.trainer.optimizers[0].state.values()))
    assert state["step"] == 3
    again = run_stage(3, fine, "--trainer.max_steps=3", "--model.lr_scheduler.steps=2")
    assert again.trainer.global_step == 3 and "stage3" in again.checkpoint
