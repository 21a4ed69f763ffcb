"""`unidiffuser fit`: codecs that its configuration leaves out, where it starts, its laws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save

from tests.core.conftest import NumberCodec
from unidiff_core.cli import fit
from unidiff_core.cli.main import main
from unidiff_core.data.shard import MANIFEST, write_shards
from unidiff_core.data.source import Source
from unidiff_core.serialization import description
from unidiff_core.training.law import Atoms, Independent, Mixture, Shared, Uniform


class Table:
    """Something that a codec is made of."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale


class TableCodec(NumberCodec):
    """A codec that is made of other objects."""

    def __init__(self, tables: list[Table], width: int = 3) -> None:
        super().__init__(width)
        self.tables = tables


class NoSource(Source):
    """Samples that are never asked for."""

    splits = {"train": 3}  # noqa: RUF012

    def samples(self, split):
        raise AssertionError


CODECS = {"a": {"class": "NumberCodec", "width": 5}, "b": {"class": "NumberCodec", "width": 2}}


def latents(name, codecs=None, num=16):
    """A folder of stored latents, as wide as CODECS say, whose manifest records `codecs`."""
    generator = torch.Generator().manual_seed(0)
    rows = (
        {f"{key}.v": torch.randn(row["width"], generator=generator) for key, row in CODECS.items()} for _ in range(num)
    )
    write_shards(Path(name), ({"__key__": f"{i:03d}", "safetensors": save(row)} for i, row in enumerate(rows)))
    if codecs is not None:
        manifest = json.loads((Path(name) / MANIFEST).read_text())
        (Path(name) / MANIFEST).write_text(json.dumps(manifest | {"codecs": codecs}))


CONFIG = """
model:
  modalities:
    a: {weight: 2.0}
    b: {}
  backbone: {class_path: UViT, init_args: {width: 16, depth: 3, heads: 2}}
data: {train: latents, batch_size: 8}
trainer:
  default_root_dir: run
  accelerator: cpu
  max_steps: 2
  max_epochs: -1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks: [{class_path: ModelDirectory, init_args: {folder: run}}]
"""


@pytest.fixture(autouse=True)
def workplace(registered, tmp_path, monkeypatch):
    """A folder with a configuration, and codecs that manifests may name."""
    load = description.load_plugins

    def with_ours(*args):
        registry = load(*args)
        for cls in (Table, TableCodec):
            registry.add(cls)
        return registry

    for module in (fit, description):
        monkeypatch.setattr(module, "load_plugins", with_ours)
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text(CONFIG)


def parsed(*options):
    """What `unidiffuser fit` makes of the configuration."""
    fit.prepare()
    return fit.UniDiffuserCLI("fit", ["-c", "fit.yaml", *options])


def refused(capsys, *options):
    """What `unidiffuser fit` says of options that do not do."""
    with pytest.raises(SystemExit) as exit:
        main(["fit", "-c", "fit.yaml", *options])
    assert exit.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def widths(model):
    return {name: modality.codec.width for name, modality in model.modalities.items()}


def codec_option(width, cls="NumberCodec"):
    return json.dumps({"class_path": f"tests.core.conftest.{cls}", "init_args": {"width": width}})


# --- codecs that are left out ---


def test_codecs_that_are_left_out_are_those_that_encoded_the_latents(recwarn):
    latents("latents", CODECS)
    cli = parsed()
    assert widths(cli.model) == {"a": 5, "b": 2} and cli.model.modalities["a"].weight == 2.0
    cli.run()
    assert not [row for row in recwarn if "another" in str(row.message)]
    written = yaml.safe_load(Path("run/config.yaml").read_text())["modalities"]
    assert {name: row["codec"] for name, row in written.items()} == CODECS


def test_like_modalities_are_said_once_and_each_is_of_its_own():
    latents("latents", CODECS)
    config = yaml.safe_load(CONFIG)
    process = {"class_path": "Gaussian", "init_args": {"prediction": "clean"}}
    config["model"]["modalities"] = {"a, b": {"process": process, "weight": 3.0}}
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    together = parsed().model
    config["model"]["modalities"] = {name: {"process": process, "weight": 3.0} for name in ("a", "b")}
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    apart = parsed().model
    assert description.describe(together.modalities["a"].process, fit.load_plugins()) == description.describe(
        apart.modalities["a"].process, fit.load_plugins()
    )
    assert widths(together) == widths(apart) == {"a": 5, "b": 2}
    assert [row.weight for row in together.modalities.values()] == [3.0, 3.0]
    assert together.modalities["a"].process is not together.modalities["b"].process
    assert [*together.state_dict()] == [*apart.state_dict()]


@pytest.mark.parametrize(("names", "says"), [("a, a", "'a' twice"), ("a,", "an empty name")])
def test_a_name_is_said_once(names, says, capsys):
    config = yaml.safe_load(CONFIG)
    config["model"]["modalities"] = {names: {"process": {"class_path": "Gaussian"}}}
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    assert f"model.modalities says {says}" in refused(capsys)


def test_a_codec_that_is_given_goes_before_and_the_others_come_from_the_manifest():
    latents("latents", CODECS | {"a": {"class": "NumberCodec", "width": 7}})
    with pytest.warns(UserWarning, match=r"by another a codec: width was 7 and is 5\. Unless"):
        cli = parsed(f"--model.modalities.a.codec={codec_option(5)}")
        assert widths(cli.model) == {"a": 5, "b": 2}
        cli.run()


def test_where_all_codecs_are_given_no_manifest_is_asked():
    latents("latents")
    options = [f"--model.modalities.{name}.codec={codec_option(row['width'])}" for name, row in CODECS.items()]
    cli = parsed(*options)
    cli.run()
    assert widths(cli.model) == {"a": 5, "b": 2} and Path("run/model.safetensors").is_file()


def test_a_codec_that_is_made_of_other_objects_comes_back_whole():
    tables = [{"class": "Table", "scale": 0.5}, {"class": "Table", "scale": 4.0}]
    latents("latents", CODECS | {"a": {"class": "TableCodec", "tables": tables, "width": 5}})
    codec = parsed().model.modalities["a"].codec
    assert isinstance(codec, TableCodec) and [table.scale for table in codec.tables] == [0.5, 4.0]


def test_several_folders_of_latents_agree_or_are_named(capsys):
    latents("one", {"a": CODECS["a"]})
    latents("two", CODECS)
    assert widths(parsed("--data.train=[one, two]").model) == {"a": 5, "b": 2}
    latents("three", CODECS | {"b": {"class": "NumberCodec", "width": 9}})
    said = refused(capsys, "--data.train=[one, two, three]")
    assert "the latents of 'b' at ['one', 'two', 'three'] were encoded by several codecs" in said
    assert "say which with model.modalities.b.codec" in said
    options = ("--data.train=[one, two, three]", f"--model.modalities.b.codec={codec_option(2)}")
    assert widths(parsed(*options).model) == {"a": 5, "b": 2}


@pytest.mark.parametrize(
    ("codecs", "says"),
    [
        (None, "no codec is given for a, b, and no manifest beside latents records one (`unidiffuser encode` does)"),
        ({}, "no codec is given for a, b, and no manifest"),
        ({"a": CODECS["a"]}, "no codec is given for b, and no manifest beside latents records one"),
        (CODECS | {"b": {"class": "Gone"}}, "unknown codec 'Gone'; registered: "),
        (CODECS | {"b": {"class": "os.system"}}, "unknown codec 'os.system'; registered: "),
        (CODECS | {"b": {"class": "UViT", "width": 8}}, "unknown codec 'UViT'; registered: "),
    ],
)
def test_what_no_manifest_records_is_named(codecs, says, capsys):
    latents("latents", codecs)
    assert says in refused(capsys)


def test_latents_that_are_not_there_are_named_with_their_option(capsys):
    said = refused(capsys, "--data.train=nowhere")
    assert "no codec is given for a, b, so it is read from the manifest of data.train: no shards in nowhere" in said
    assert "or give model.modalities.a.codec" in said


def test_raw_samples_have_no_manifest_and_their_codecs_are_asked_for(capsys):
    samples = json.dumps({"class_path": "SourceSamples", "init_args": {"source": f"{__name__}.NoSource"}})
    said = refused(capsys, "--data.train=train", f"--data.samples={samples}")
    assert "no codec is given for a, b" in said and "give model.modalities.a.codec" in said


# --- where it starts ---


def test_a_start_is_a_folder_and_what_is_done_with_it(capsys):
    latents("latents", CODECS)
    parsed().run()
    Path("grow.yaml").write_text("model: {start: {folder: run, freeze: true}, modalities: null}\n")
    model = parsed("-c", "grow.yaml").model
    assert widths(model) == {"a": 5, "b": 2} and not any(value.requires_grad for value in model.parameters())
    adapted = parsed("-c", "grow.yaml", "--model.start.lora.rank=3", "--model.start.freeze=false").model
    trained = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert trained and all("lora" in name for name in trained)
    assert all(value.requires_grad for value in parsed("--model.start=null").model.parameters())
    assert "folder" in refused(capsys, "--model.start.lora=LoRA")


def files(folder):
    """Path → content of every file."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


CHECKPOINTS = (
    "--trainer.enable_checkpointing=true",
    "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {dirpath: run, save_last: true}}",
    "--ckpt_path=last",
)


def test_a_fast_dev_run_leaves_what_is_there(capsys):
    latents("latents", CODECS)
    parsed(*CHECKPOINTS, "--trainer.fast_dev_run=true").run()
    assert not Path("run").exists()
    parsed(*CHECKPOINTS).run()
    kept = files("run")
    assert Path("run/last.ckpt") in kept
    assert yaml.safe_load(kept[Path("run/config.yaml")])["training"] == {"step": 2, "checkpoint": "last.ckpt"}
    dry = parsed(*CHECKPOINTS, "--trainer.fast_dev_run=2")
    dry.run()
    assert files("run") == kept and dry.trainer.global_step == 2


def test_last_is_the_newest_that_verifies_whoever_wrote_it(capsys):
    latents("latents", CODECS)
    parsed(*CHECKPOINTS).run()
    signalled = parsed(*CHECKPOINTS, "--trainer.max_steps=3")
    signalled.run()
    Path("run/last.ckpt").rename("run/hpc_ckpt_1.ckpt")
    Path("run/last-v1.ckpt").write_bytes(Path("run/hpc_ckpt_1.ckpt").read_bytes()[:999])
    capsys.readouterr()
    go_on = parsed(*CHECKPOINTS, "--trainer.max_steps=4")
    assert go_on.checkpoint.endswith("run/hpc_ckpt_1.ckpt")
    told = capsys.readouterr().out
    assert "skipped" in told and "run/last-v1.ckpt is not a checkpoint that can be read safely" in told
    go_on.run()
    assert "4 steps done of max_steps 4" in capsys.readouterr().out
    parsed(*CHECKPOINTS, "--trainer.max_steps=3").run()
    said = "nothing to train: 4 steps done of max_steps 3; a larger --trainer.max_steps goes on"
    assert said in capsys.readouterr().out


def test_a_run_whose_time_is_over_says_so_and_its_rate_may_end_with_it(capsys):
    latents("latents", CODECS)
    time = ["--trainer.max_steps=100000", "--trainer.max_time=00:00:00:01"]
    steps = "--model.lr_scheduler={class_path: Warmup, init_args: {steps: 1, decay_until: 100000}}"
    in_time = steps.replace("steps: 1", "steps: 1, decay_in_time: true")
    parsed(*CHECKPOINTS, *time, steps).run()
    said = capsys.readouterr().out
    assert "of max_steps 100000; trainer.max_time is over" in said and "at 100% of its peak" in said
    parsed(*CHECKPOINTS, *time, steps).run()
    said = capsys.readouterr().out
    assert "nothing to train: " in said and "trainer.max_time is over, which counts earlier sittings" in said
    falling = parsed(*time, in_time)
    falling.run()
    assert "peak" not in capsys.readouterr().out
    (row,) = falling.trainer.lr_scheduler_configs
    assert row.scheduler.get_last_lr()[0] < 0.1 * row.scheduler.base_lrs[0]
    assert "decays in time, but trainer.max_time is not set" in refused(capsys, in_time)


def test_a_sample_that_is_not_finite_ends_the_run_by_name(capsys, caplog):
    latents("latents", CODECS)
    rows = [{"a.v": torch.zeros(5), "b.v": torch.full((2,), float("nan") if i == 5 else 0.0)} for i in range(8)]
    write_shards(Path("latents"), ({"__key__": f"{i:03d}", "safetensors": save(row)} for i, row in enumerate(rows)))
    manifest = json.loads((Path("latents") / MANIFEST).read_text())
    (Path("latents") / MANIFEST).write_text(json.dumps(manifest | {"codecs": CODECS}))
    parsed(*CHECKPOINTS, "--trainer.max_steps=0").run()
    kept = files("run")
    said = refused(capsys, *CHECKPOINTS, "--trainer.callbacks+={class_path: SkipNonFinite, init_args: {limit: 2}}")
    assert "was not finite in 2 steps in a row, up to step 2" in said
    assert "samples sample 005 of " in caplog.text
    assert kept.items() <= files("run").items()
    for path in Path("run").glob("*.ckpt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["state_dict"].values())


# --- laws ---


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        ("{class_path: Atoms, init_args: {masses: {1: 0.3}}}", Atoms),
        ("{a: {class_path: Atoms, init_args: {masses: {0: 0.9, 1: 0.1}}}}", Independent),
        ("{class_path: Independent, init_args: {laws: {a: {class_path: Uniform}}, rest: Uniform}}", Independent),
        ("{class_path: Mixture, init_args: {laws: [Shared, {class_path: Uniform}], weights: [1, 3]}}", Mixture),
        ("Shared", Shared),
        ("null", Uniform),
    ],
)
def test_a_law_of_a_recipe(law, kind):
    latents("latents", CODECS)
    assert isinstance(parsed(f"--model.timestep_law={law}").model.objective.law, kind)


def test_a_law_for_no_modality_is_told(capsys):
    latents("latents", CODECS)
    said = refused(capsys, "--model.timestep_law={image: {class_path: Uniform}}")
    assert "a timestep law is for 'image', which is no modality; there are a, b" in said


# --- what a log says ---


def test_where_there_is_no_terminal_fit_writes_step_loss_rate_and_time(capsys):
    latents("latents", CODECS)
    main(["fit", "-c", "fit.yaml", "--trainer.max_steps=3", "--trainer.enable_progress_bar=true"])
    rows = [row for row in capsys.readouterr().err.splitlines() if row.startswith("train: ")]
    assert rows[-1].startswith("train: 3 of 3 steps, train/loss ") and rows[-1].endswith(" taken")
    assert " samples a second, " in rows[-1]


def test_a_profiler_prints_its_table(caplog):
    latents("latents", CODECS)
    main(["fit", "-c", "fit.yaml", "--trainer.max_steps=1", "--trainer.profiler=simple"])
    assert "run_training_epoch" in caplog.text and "Total time" in caplog.text


def test_no_lines_are_written_if_none_are_wanted(capsys):
    latents("latents", CODECS)
    main(["fit", "-c", "fit.yaml"])
    assert "train: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trainer.devices=0", "`Trainer(devices='0')` value is not a valid input"),
        ("--trainer.devices=[3]", "should be an int > 0"),  # a TypeError
        ("--trainer.limit_train_batches=1.5", "invalid value 1.5 for limit_train_batches"),
        ("--trainer.overfit_batches=0.5", "must be `1.0` or an int"),
        ("--trainer.max_time=foo", "--trainer.max_time='foo': a time is DD:HH:MM:SS"),
        ("--trainer.accelerator=tpu", "torch_xla"),  # a ModuleNotFoundError
    ],
)
def test_what_lightning_refuses_is_a_paragraph(capsys, option, said):
    latents("latents", CODECS)
    assert said in refused(capsys, option)


def test_a_fused_optimizer_is_clipped_in_half_precision():
    """On a CPU Lightning takes bf16 for fp16; it refused the pair, and `foundation/clipping.py` makes it work."""
    latents("latents", CODECS)
    fused = "--model.optimizer={class_path: AdamW, init_args: {lr: 1.0e-3, fused: true}}"
    main(["fit", "-c", "fit.yaml", fused, "--trainer.precision=16-mixed", "--trainer.gradient_clip_val=1"])


def test_an_error_of_ours_within_lightning_keeps_its_traceback(monkeypatch):
    latents("latents", CODECS)
    monkeypatch.setattr(fit.UniDiffuser, "training_step", lambda *_: 1 + "a")
    with pytest.raises(TypeError):
        main(["fit", "-c", "fit.yaml"])


# --- where it writes ---


def test_a_printed_configuration_run_into_another_folder_warns_of_the_old_one(capsys):
    latents("latents", CODECS)
    text = Path("fit.yaml").read_text().replace("{folder: run}", '{folder: "${trainer.default_root_dir}"}')
    Path("fit.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["fit", "-c", "fit.yaml", "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    with pytest.warns(UserWarning, match="ModelDirectory writes to run.*trainer.default_root_dir"):
        main(["fit", "-c", "printed.yaml", "--trainer.default_root_dir=mine"])


def test_a_run_in_one_folder_warns_of_none(recwarn):
    latents("latents", CODECS)
    main(["fit", "-c", "fit.yaml", "--trainer.default_root_dir=."])  # the model's folder lies in it
    assert not [row for row in recwarn if "several folders" in str(row.message)]


def test_help_names_the_processes_and_their_predictions(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    said = capsys.readouterr().out
    assert "Gaussian: " in said and "prediction=flow (noise or velocity or clean or flow)" in said
    assert "--trainer.max_steps MAX_STEPS" in said and "accumulate_grad_batches" in said
    places = [said.index(f"\n{name}") for name in ("options:", "model:", "data:", "processes,", "trainer:")]
    assert places == sorted(places) and len(said.splitlines()) < 200
    assert not [noise for noise in (":class:", ":param", "``", "(type", "Union[", ".help ") if noise in said]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "max_time=10s",
            "--trainer.max_time='10s': a time is DD:HH:MM:SS (days, hours, minutes, seconds), 00:00",
        ),
        ("val_check_interval=1h", "--trainer.val_check_interval='1h': a time is DD:HH:MM:SS"),
        ("devices=x", "--trainer.devices='x': "),
        ("accelerator=abacus", "--trainer.accelerator='abacus': You selected an invalid"),
    ],
)
def test_what_the_trainer_refuses_is_said_with_the_option(option, says, capsys):
    latents("latents", CODECS)
    with pytest.raises(SystemExit) as error:
        main(["fit", "-c", "fit.yaml", f"--trainer.{option}"])
    said = " ".join(capsys.readouterr().err.split())
    assert error.value.code == 2 and f"unidiffuser: {says}" in said, said


def test_a_configuration_without_its_option_is_told_how_to_give_it(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "fit.yaml"])
    assert "a configuration is given by -c: write -c fit.yaml. " in " ".join(capsys.readouterr().err.split())


def test_validating_without_a_checkpoint_is_refused(capsys):
    latents("latents", CODECS)
    with pytest.raises(SystemExit) as error:
        main(["validate", "-c", "fit.yaml", "--data.validation=latents", "--ckpt_path=last"])
    assert error.value.code == 2 and "there is no checkpoint in run, " in " ".join(capsys.readouterr().err.split())


def test_help_of_a_class_where_none_stands_does_not_guess_the_same_name(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.modalities.process.help", "Gaussian"])
    said = " ".join(capsys.readouterr().err.split())
    assert "the class Gaussian cannot stand there; `unidiffuser list`" in said and "did you mean" not in said
