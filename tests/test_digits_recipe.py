"""The digits recipe through the commands, as a user runs them: real processes, real files, a short training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.command import run_command
from unidiff_core.cli.main import main

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "digits"


def unidiffuser(*arguments, cwd, code=0):
    """Run the command in a process of its own; returns (stdout, stderr)."""
    done = run_command(*arguments, cwd=cwd)
    assert done.code == code, done.out + done.err
    return done.out, done.err


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which the recipe has run, small: 100 scans, a few steps of each training."""
    folder = tmp_path_factory.mktemp("digits")
    unidiffuser("shards", "-c", RECIPE / "shards.yaml", "--source.scans=100", "--source.renderings_train=3", cwd=folder)
    for part in ("autoencoder", "clip", "text_decoder"):
        unidiffuser("fit-codec", "-c", RECIPE / f"{part}.yaml", "--trainer.max_steps=4", cwd=folder)
    unidiffuser("encode", "-c", RECIPE / "encode.yaml", cwd=folder)
    unidiffuser("fit", "-c", RECIPE / "fit.yaml", *SHORT, cwd=folder)
    return folder


SHORT = ("--trainer.max_steps=20", "--trainer.val_check_interval=10", "--data.batch_size=16")


def test_twenty_steps_from_shards_to_a_sample(workplace):
    model = workplace / "runs/digits"
    assert {"config.yaml", "model.safetensors", "ema.safetensors"} <= {path.name for path in model.iterdir()}
    out, _ = unidiffuser(
        *("sample", model, "image | text", "--given", "text=a red seven", "--num", 5, "--steps", 4, "--guidance", 2),
        *("--out", workplace / "out"),
        cwd=workplace,
    )
    assert "5 image" in out
    images = sorted((workplace / "out/image").glob("0*.png"))
    assert len(images) == 5 and Image.open(images[0]).size == (32, 32)
    assert (workplace / "out/image/contact_sheet.png").is_file()


def test_captions_of_an_image_and_pairs_and_a_mapping(workplace):
    model = workplace / "runs/digits"
    Image.new("RGB", (40, 30), "red").save(workplace / "some.png")
    unidiffuser("sample", model, "text | image", "--given", "image=some.png", "--steps", 3, cwd=workplace)
    assert len((workplace / "out/text/texts.jsonl").read_text().splitlines()) == 1
    unidiffuser("sample", model, "image, text", "--num", 3, "--steps", 3, "--out", "pairs", cwd=workplace)
    assert len(list((workplace / "pairs/image").glob("0*.png"))) == 3
    lines = (workplace / "pairs/text/texts.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    spec = "{image: [1, 0], text: 0.2}"
    unidiffuser("sample", model, "--spec", spec, "--given", "text=a red seven", "--steps", 3, cwd=workplace)


def test_a_marginal_is_led_by_a_classifier(workplace, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gradient

    gradient.main([str(workplace / "runs/digits"), "--steps=3", "--solver_steps=2", "--num=4", "--scales", "0", "2"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows[:2]] == ["| image, gradient 0", "| image, gradient 2"] and len(rows) == 4


def test_the_seed_repeats_samples_whatever_the_batch_size(workplace):
    def pictures(name, *options):
        base = ("sample", workplace / "runs/digits", "image", "--num", 6, "--steps", 5)
        unidiffuser(*base, *options, "--out", name, cwd=workplace)
        return [path.read_bytes() for path in sorted((workplace / name / "image").glob("0*.png"))]

    one = pictures("one")
    assert pictures("two", "--batch_size", 2) == one
    assert pictures("three", "--seed", 1) != one


def test_each_step_is_restartable(workplace):
    out, _ = unidiffuser("fit-codec", "-c", RECIPE / "clip.yaml", "--trainer.max_steps=4", cwd=workplace)
    assert "complete" in out
    out, _ = unidiffuser("encode", "-c", RECIPE / "encode.yaml", cwd=workplace)
    assert "complete" in out
    before = (workplace / "runs/digits/model.safetensors").read_bytes()
    assert (workplace / "runs/digits/checkpoints/last.ckpt").is_file()
    # From its last step, with another seed of the order: were a step made, the weights would differ.
    unidiffuser("fit", "-c", RECIPE / "fit.yaml", *SHORT, "--data.seed=5", cwd=workplace)
    assert (workplace / "runs/digits/model.safetensors").read_bytes() == before


def test_interrupted_encoding_goes_on(workplace):
    latents = workplace / "runs/digits/latents/test"
    before = {path.name: path.read_bytes() for path in latents.iterdir()}
    (latents / "manifest.json").unlink()
    (latents / "00000.tar").unlink()
    unidiffuser("encode", "-c", RECIPE / "encode.yaml", cwd=workplace)
    assert {path.name: path.read_bytes() for path in latents.iterdir()} == before


def test_evaluation_and_report(workplace):
    model = workplace / "runs/digits"
    options = ("--num", 24, "--steps", 3, "--batch_size", 24)
    unidiffuser("evaluate", model, "-c", RECIPE / "evaluate.yaml", *options, cwd=workplace)
    evaluation = json.loads((model / "evaluation.json").read_text())
    assert set(evaluation["queries"]) == {"image | text", "text | image", "image, text", "image", "text"}
    row = evaluation["queries"]["image | text"]["digit"]
    assert row["n"] == 24 and row["low"] <= row["value"] <= row["high"]
    assert evaluation["judges"] and evaluation["seconds"] > 0
    report = (model / "report.html").read_text()
    assert report.index("<img") < report.index("<table")


def test_a_folder_of_images_fine_tunes_the_model(workplace):
    """New words for the text decoder, then adapters for the network, then a sample."""
    folder = workplace / "runs/peach"
    inks = ("--source.inks=[peach,red]", "--source.scans=12", "--output=runs/peach/shards")
    unidiffuser("shards", "-c", RECIPE / "shards.yaml", *inks, cwd=workplace)
    (folder / "images").mkdir()
    for path in (folder / "shards/train").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(folder / "images", [row for row in tar if not row.name.endswith(".json")], filter="data")
    short = ("--trainer.max_steps=3",)
    unidiffuser("fit-codec", "-c", RECIPE / "finetune_text_decoder.yaml", *short, "--data.holdout=0.3", cwd=workplace)
    recipe = ("-c", RECIPE / "finetune.yaml", "-c", RECIPE / "finetune_words.yaml")
    unidiffuser("fit", *recipe, *short, "--model.start.lora=LoRA", cwd=workplace)
    tuned, start = (
        load_file(workplace / "runs" / name) for name in ("digits_peach/model.safetensors", "digits/ema.safetensors")
    )
    changed = {name for name, value in tuned.items() if not torch.equal(value, start[name])}
    assert tuned.keys() == start.keys() and changed and all("blocks" in name for name in changed)
    options = ("--given", "text=a peach seven", "--steps", 2, "--out", "peach")
    unidiffuser("sample", workplace / "runs/digits_peach", "image | text", *options, cwd=workplace)
    assert (workplace / "peach/image/00000.png").is_file()


BAD = [
    (("sample", "{model}", "imgae"), "unknown modality 'imgae'"),
    (("sample", "{model}", "image |"), "cannot read ''"),
    (("sample", "{model}", "image | text"), "holds 'text', but no value of it is given"),
    (("sample", "{model}", "image | text", "--given", "text="), "empty"),
    (("sample", "{model}", "text | image", "--given", "image=no.png"), "no such file: no.png"),
    (("sample", "{model}", "text | image", "--given", "image=corrupt.png"), "corrupt.png"),
    (("sample", "{model}", "image", "--given", "text=a red seven"), "does not use it"),
    (("sample", "{model}", "image", "--solver", "euler"), "unknown solver 'euler'; known: DiffusersSolver, analytic"),
    (("sample", "{model}", "image", "--guidance", "much"), "guidance: it must be a number or a mapping, not 'much'"),
    (("sample", "nowhere", "image"), "there is no folder nowhere. `unidiffuser fit` writes"),
    (("sample", "{model}"), "give a spec"),
    (("fit", "-c", "{fit}", "--ckpt_path=no.ckpt"), "no.ckpt: no such file"),
    (("fit", "-c", "{fit}", "--ckpt_path=corrupt.png"), "corrupt.png"),
    (("fit", "-c", "{fit}", "--model.backbone.width=48"), "is of another model"),
    (("fit", "-c", "{fit}", "--trainer.max_stepz=2"), "max_stepz"),
    (("fit", "-c", "{fit}", "--model.modalities.image.codec=ImgCodec"), "unknown class ImgCodec"),
    (("fit", "-c", "nothing.yaml"), "nothing.yaml"),
    (("encode", "-c", "{encode}", "--folders={nowhere: out}", "--overwrite"), "no shards in nowhere"),
    (("wave",), "unknown command 'wave'"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(row[0][:1] + row[0][-1:]) for row in BAD])
def test_bad_input_is_one_paragraph_and_exit_code_2(workplace, arguments, says, monkeypatch, capsys):
    """In this process: a start of Python for each would take longer than all the rest."""
    (workplace / "corrupt.png").write_bytes(b"\x89PNG not a picture")
    names = {"model": "runs/digits", "fit": RECIPE / "fit.yaml", "encode": RECIPE / "encode.yaml"}
    filled = [next((str(value) for key, value in names.items() if row == f"{{{key}}}"), row) for row in arguments]
    before = {path for path in workplace.rglob("*") if "logs" not in path.parts}
    monkeypatch.chdir(workplace)
    with pytest.raises(SystemExit) as exit:
        main(filled)
    err = capsys.readouterr().err
    assert exit.value.code == 2
    paragraph = " ".join(err[err.rindex("unidiffuser:") :].split())
    assert says in paragraph and "Traceback" not in err and len(paragraph) < 600
    assert {path for path in workplace.rglob("*") if "logs" not in path.parts} == before


def test_long_caption_is_a_warning(workplace):
    caption = "a very " + "long " * 90 + "seven"
    _, err = unidiffuser(
        *("sample", workplace / "runs/digits", "image | text", "--given", f"text={caption}", "--steps", 2),
        cwd=workplace,
    )
    assert "cut" in err


def test_a_process_exits_with_2(workplace):
    command = [sys.executable, "-m", "unidiff_core.cli.main", "wave"]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unknown command 'wave'; known: recipe, shards," in " ".join(done.stderr.split())


def test_help_answers_at_once_and_teaches(workplace):
    out, _ = unidiffuser("--help", cwd=workplace)
    assert "fit-codec" in out
    for command in ("shards", "encode", "sample", "evaluate", "list"):
        out, _ = unidiffuser(command, "--help", cwd=workplace)
        assert f"unidiffuser {command}" in out
    out, _ = unidiffuser("list", "codecs", cwd=workplace)
    assert "ImageCodec" in out and "TextCodec" in out and "unidiff-core" in out
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "unidiff_core.cli.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert " torch" not in done.stderr, "torch is imported for --help"


def test_without_a_network_and_a_hubs_cache(workplace):
    """Train, keep a checkpoint, go on, sample, evaluate: in a fresh interpreter whose sockets are watched."""
    fit = ("fit", "-c", RECIPE / "fit.yaml", *SHORT, "--trainer.default_root_dir=runs/offline", "--data.num_workers=1")
    given = ("--given", "text=a red seven", "--steps", 2, "--out", "offline")
    small = ("--queries", "{image | text: {num: 4}}", "--criteria=[]", "--steps", 2, "--metrics", "[]")
    commands = [
        fit,
        [*fit, "--trainer.max_steps=24"],
        ("sample", "runs/offline", "image | text", *given),
        ("evaluate", "runs/offline", "-c", RECIPE / "evaluate.yaml", *small),
    ]
    (workplace / "commands.json").write_text(json.dumps([list(map(str, row)) for row in commands]))
    empty = {"HF_HOME": "hub", "HUGGINGFACE_HUB_CACHE": "hub", "TORCH_HOME": "hub", "XDG_CACHE_HOME": "hub"}

    def run(script, *more):
        return subprocess.run(
            [sys.executable, ROOT / "tests/offline.py", script, *more], cwd=workplace, text=True, check=False,
            capture_output=True, timeout=280, env=os.environ | empty | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    done = run("commands.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 steps done of max_steps 24" in done.stdout
    assert (workplace / "offline/image").is_dir() and (workplace / "runs/offline/evaluation.json").is_file()
    assert not list(workplace.glob("hub/**/*.safetensors"))
    hub = ("sample", "runs/offline", "image", "--num", "1", "--steps", "2", "--allow_hub")
    config = workplace / "runs/offline/config.yaml"
    whole = config.read_text()
    config.write_text(whole.replace("../digits/autoencoder", "hf-hub:stranger/none", 1))
    (workplace / "commands.json").write_text(json.dumps([hub]))
    assert config.read_text() != whole and run("commands.json").returncode == 9  # what is asked for is seen
