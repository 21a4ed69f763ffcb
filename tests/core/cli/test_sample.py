from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.tiny import make
from unidiff_core import UniDiffuser
from unidiff_core.cli.main import main
from unidiff_core.cli.sample import _parser, run
from unidiff_core.process.gaussian.solver import DDIM
from unidiff_core.sampling.options import PYTHON_ONLY, SamplingOptions


@pytest.fixture
def model(tmp_path, registered):
    """A model directory of two modalities, a and b, of numbers."""
    make().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def asked(monkeypatch, model, tmp_path):
    """Runs the command; gives what the model was asked."""
    calls = []

    def sample(self, spec, given=None, num=None, *, options=None, on_step=None, **more):
        calls.append((str(spec), given, num, options))
        return {name: [1.0] * (num or 1) for name in spec.solved}

    monkeypatch.setattr(UniDiffuser, "sample", sample)

    def run_it(*arguments):
        run([*arguments, "--out", str(tmp_path / "out")])
        return calls.pop()

    return run_it


def test_the_samples_are_those_that_python_gives(model, tmp_path, capsys):
    (tmp_path / "value.num").write_text("0.25")
    given = ("--given", f"b={tmp_path / 'value.num'}")
    options = ("--num=3", "--steps=3", "--guidance={b: 1.5}", "--solver={a: ddpm}", "--seed=4", "--batch_size=2")
    run([model, "a | b", *given, *options, f"--out={tmp_path / 'out'}"])
    assert "3 a: " in capsys.readouterr().out
    found = [float(path.read_text()) for path in sorted((tmp_path / "out/a").iterdir())]
    loaded = UniDiffuser.from_pretrained(model)
    assert (
        found
        == loaded.sample(
            "a | b", {"b": 0.25}, 3, steps=3, guidance={"b": 1.5}, solver={"a": "ddpm"}, seed=4, batch_size=2
        )["a"]
    )


def test_every_option_of_sampling_is_one_of_the_command(asked, model):
    assert asked(model, "a") == ("a", {}, None, SamplingOptions())
    arguments = ("--steps=9", "--solver=heun", "--guidance=2", "--seed=3", "--batch_size=5", "--redraws_noise=true")
    settled = SamplingOptions(steps=9, solver="heun", guidance=2.0, seed=3, batch_size=5, redraws_noise=True)
    assert asked(model, "a", *arguments) == ("a", {}, None, settled)
    _, _, _, options = asked(model, "b", "--conditions={kind: 1}", "--solver={b: ddim}", "--drop_ignored=false")
    assert options == SamplingOptions(conditions={"kind": 1}, solver={"b": "ddim"}, drop_ignored=False)
    _, _, _, options = asked(
        model, "a", "--guidance_interval={a: [0.2, 0.8]}", "--guidance_rescale=0.7", "--empty=b", "--threshold={a: 2}",
        "--threshold_ratio", "0.9",
    )  # fmt: skip
    wanted = {"guidance_interval": {"a": (0.2, 0.8)}, "guidance_rescale": 0.7, "empty": "b", "threshold": {"a": 2.0}}
    assert options == SamplingOptions(threshold_ratio=0.9, **wanted)
    assert asked(model, "a", "--guidance_interval=[0, 0.5]")[3] == SamplingOptions(guidance_interval=(0.0, 0.5))
    assert type(asked(model, "a", "--solver={class_path: DDIM}")[3].solver) is DDIM
    assert asked("--guidance", "-0.5", model, "a")[3] == SamplingOptions(guidance=-0.5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("{model}", "a | b", "--num", "2", "--drop_ignored", "--given", "b={value}"),
        ("--num", "2", "--given", "b={value}", "--drop_ignored", "{model}", "a | b"),
        ("{model}", "--num=2", "--drop_ignored", "--given=b={value}", "a | b"),
        ("--drop_ignored", "true", "{model}", "--given", "b={value}", "--allow_hub", "a | b", "--num", "2"),
        ("--num=2", "--given", "b={value}", "--drop_ignored", "--", "{model}", "a | b"),
    ],
    ids=["before", "after", "around", "between", "last"],
)
def test_model_and_spec_stand_anywhere(asked, model, tmp_path, arguments):
    (tmp_path / "value.num").write_text("0.5")
    filled = [word.format(model=model, value=tmp_path / "value.num") for word in arguments]
    assert asked(*filled) == ("a | b", {"b": [0.5]}, 2, SamplingOptions(drop_ignored=True))


def test_a_spec_as_a_mapping_and_values_at_their_word(asked, model, monkeypatch):
    from tests.core.conftest import NumberCodec

    monkeypatch.setattr(NumberCodec, "parse", lambda self, text: text)
    spec, given, _, _ = asked("--spec", "{a: [1, 0], b: 0.3}", model, "--given", "b=${x}: [1, 2]", "--given", "b=null")
    assert spec == "a | b@0.3" and given == {"b": ["${x}: [1, 2]", "null"]}


BAD = [
    (["--guidance=much"], "guidance: it must be a number or a mapping, not 'much'."),
    (["--guidance={b: much}"], "guidance: it must be of type float, not much."),
    (["--guidance=[1]"], "guidance: it must be a number or a mapping, not '[1]'."),
    (["--steps=many"], "steps: it must be of type int, not many."),
    (["--steps=0"], "steps is a whole number, at least 1, not 0"),
    (["--num=x"], "num: it must be a whole number, not 'x'."),
    (["--num=Big"], "num: it must be a whole number, not 'Big'."),
    (["--solver=euler"], "unknown solver 'euler'; known: "),
    (["--solver={b: ddim}"], "a solver is named for 'b', which a does not solve"),
    (["--conditions=3"], "conditions: it must be of type dict, not 3."),
    (["--conditions={kind: 0}"], "unknown condition 'kind'; the backbone takes none"),
    (["--guidance_interval=[0.5]"], "guidance_interval: it must be a list of 2 or a mapping, not '[0.5]'."),
    (["--guidance_interval=0.5"], "guidance_interval: it must be a list or a mapping, not '0.5'."),
    (["--guidance_interval=[0.8, 0.2]"], "the interval of guidance is [from, up to], fractions of T, not (0.8, 0.2)"),
    (["--threshold=-1"], "the threshold is a finite number above 0, not -1.0"),
    (["--threshold_ratio=0.9"], "threshold_ratio makes a threshold dynamic, and there is none: give threshold too"),
    (["--empty=c"], "unknown modality 'c' is to be empty; known: a, b"),
    (["--drop_ignored=maybe"], "drop_ignored: it must be of type bool, not maybe."),
    (["--weights=best"], "--weights: it must be ema or model, not 'best'."),
    (["--given"], "argument --given: expected one argument."),
    (["--given=b"], "--given 'b' is not NAME=VALUE"),
    (["--nonsense", "3"], "there is no option --nonsense."),
    (["more"], "there is no place for 'more'; a text with spaces"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(row[0]) for row in BAD])
def test_a_wrong_option_is_one_paragraph_and_exit_code_2(model, arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["sample", model, "a", *arguments])
    said = " ".join(capsys.readouterr().err.split())
    assert exit.value.code == 2 and f"unidiffuser: {says}" in said and "class '" not in said, said
    assert not (tmp_path / "out").exists()


def test_nothing_to_sample_is_said(model, capsys):
    for arguments, says in (([model], "give a spec"), ([], "it needs MODEL")):
        with pytest.raises(SystemExit) as exit:
            main(["sample", *arguments])
        assert exit.value.code == 2 and says in capsys.readouterr().err


def test_help_explains_every_option_once_without_types():
    said = " ".join(_parser().format_help().partition("\noptions:")[2].split())
    for name in SamplingOptions.__dataclass_fields__.keys() - {*PYTHON_ONLY}:
        assert said.count(f" --{name} ") == 1, name
    assert "(default: 20)" in said and "(default: ema)" in said and "A scale s, 0 is off" in said
    for noise in ("(type", "subclass", "null", ".help", "<class", *PYTHON_ONLY, "unidiff_core"):
        assert noise not in said, noise


def test_what_a_query_costs_is_said_before_it_runs(asked, model, capsys):
    asked(model, "a, b", "--guidance=2", "--steps=9", "--num=7", "--batch_size=5")
    said = "a, b: 54 evaluations of the network for 7 samples (3 in each of 9 steps, 2 batches)"
    assert capsys.readouterr().err.splitlines()[0] == said
    asked(model, "a", "--solver=heun", "--steps=4")
    assert "a: 8 evaluations of the network for 1 sample (2 in each of 4 steps)" in capsys.readouterr().err


def test_two_specs_or_a_gpu_that_is_not_there_are_refused(capsys):
    for arguments, says in (
        (["sample", "nowhere", "image", "--spec", "{image: [1, 0]}"], "give SPEC or --spec, not both"),
        (["encode", "-c", "recipes/digits/encode.yaml", "--device=cuda:9"], "no GPU is to be seen here"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and says in " ".join(capsys.readouterr().err.split())


def test_what_is_not_said_is_as_the_model_says(tmp_path, registered, capsys):
    made = make()
    made.sampling = SamplingOptions(steps=3, guidance=2.0, redraws_noise=True)
    made.save_pretrained(tmp_path / "model")
    loaded = UniDiffuser.from_pretrained(tmp_path / "model")
    assert loaded.sampling == made.sampling
    (tmp_path / "value.num").write_text("0.25")
    given = (f"--given=b={tmp_path / 'value.num'}", f"--out={tmp_path / 'out'}", "--num=2")
    options = {"steps": 3, "guidance": 2.0, "redraws_noise": True}
    for said, changed in (
        ([], {}),
        (["--guidance=0"], {"guidance": 0.0}),
        (["--redraws_noise", "false"], {"redraws_noise": False}),
    ):
        run([str(tmp_path / "model"), "a | b", *given, *said])
        found = [float(path.read_text()) for path in sorted((tmp_path / "out/a").iterdir())]
        assert found == make().sample("a | b", {"b": 0.25}, 2, **options | changed)["a"]
    assert found == loaded.sample("a | b", {"b": 0.25}, 2, redraws_noise=False)["a"]
    assert "says where nothing is said: steps 3, guidance 2.0, redraws_noise True" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{guidance_interval: [1]}", "the interval of guidance is [from, up to], fractions of T, not [1]"),
        ("{gradient: x}", "'gradient' is no option"),
        ("{strength: 2}", "'strength' is no option of sampling; known: steps, solver"),
        ("{constrain: x}", "'constrain' is no option"),
        ("{steps: many}", "steps is a whole number, at least 1, not 'many'"),
        ("{guidance: true}", "guidance is a finite number, not True"),
        ("[steps]", "sampling is a mapping of options by name"),
    ],
)
def test_a_section_of_sampling_that_is_none_is_refused(model, section, says, capsys):
    config = Path(model) / "config.yaml"
    config.write_text(config.read_text() + f"sampling: {section}\n")
    for arguments in (["sample", model, "a"], ["evaluate", model, "--train=x", "--test=x", "--queries={a: {}}"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2 and says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["sample", "chain"])
def test_where_nothing_can_be_written_is_told_before_anything_is_drawn(command, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(UniDiffuser, "sample_latents", lambda *_, **__: pytest.fail("it sampled"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(SystemExit) as error:
            main([command, model, "a", "--out", str(out)])
        assert error.value.code == 2 and f"--out={out}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("command", "place", "is_folder", "says"),
    [
        (["sample", "a"], "a", False, "out/a is a file"),
        (["sample", "a", "--latents"], "latents.safetensors", True, "latents.safetensors is a folder"),
        (["chain", "b", "a | b"], "b", False, "out/b is a file"),
        (["vary", "a > b", "--given=a=value.num"], "film.html", True, "film.html is a folder"),
        (["inpaint", "a", "--given=a=value.num", "--region=a={v: [0, 1]}"], "a", False, "out/a is a file"),
        (["interpolate", "a", "--start=a=value.num", "--end=a=value.num"], "a", False, "out/a is a file"),
    ],
)
def test_what_is_in_the_way_within_the_folder_is_told_before_anything_is_drawn(
    model, tmp_path, monkeypatch, capsys, command, place, is_folder, says
):
    monkeypatch.setattr(UniDiffuser, "sample_latents", lambda *_, **__: pytest.fail("it sampled"))
    monkeypatch.chdir(tmp_path)
    Path("value.num").write_text("0.5")
    Path("out", place, *["x"] * is_folder).parent.mkdir(parents=True)
    if not is_folder:
        Path("out", place).touch()
    with pytest.raises(SystemExit) as error:
        main([command[0], model, *command[1:], "--out=out"])
    assert error.value.code == 2 and says in " ".join(capsys.readouterr().err.split())


def test_files_of_an_earlier_call_are_counted(asked, model, capsys):
    asked(model, "a", "--num=3")
    assert "earlier call" not in capsys.readouterr().out
    asked(model, "a", "--num=2")
    assert "out/a held files of an earlier call: 2 files replaced, 1 file left; --out keeps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "--guidance=3"], "--guidance has no effect on a: nothing is held and one modality solved"),
        (["a", "--guidance={a: 2}"], "--guidance has no effect on a: "),
        (["a | b", "--given=b=value.num", "--against=b=value.num"], "--against: no effect without --guidance"),
        (["a, b", "--guidance_rescale=0.5"], "--guidance_rescale: no effect without --guidance"),
        (["a | b", "--given=b=value.num", "--guidance=3"], None),
        (["a, b", "--guidance=3", "--guidance_rescale=0.5"], None),
        (["a", "--guidance=0", "--guidance_rescale=0"], None),
    ],
)
def test_guidance_that_changes_nothing_is_told(asked, model, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    Path("value.num").write_text("0.5")
    asked(model, *arguments)
    said = capsys.readouterr().err
    assert says in said if says else "no effect" not in said


def test_a_spec_in_braces_is_a_mapping_in_every_command(asked, model, capsys):
    assert asked(model, "{a: [1, 0], b: 1}")[0] == "a"
    for command in (["sample"], ["chain"], ["inpaint"], ["sample", "--spec"]):
        with pytest.raises(SystemExit):
            main([command[0], model, *command[1:], "{a: [1, 0}"])
        said = " ".join(capsys.readouterr().err.split())
        assert said.endswith("'{a: [1, 0}' is not YAML: character 10: expected ',' or ']', but got '}'"), said


def test_what_is_no_model_directory_is_said_with_what_to_give(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model/checkpoints").mkdir()
    Path("model/checkpoints/last.ckpt").touch()
    for given, says in (
        ("model/checkpoints", "a folder without config.yaml, not a model directory; give the model directory that it"),
        ("model/checkpoints/last.ckpt", "last.ckpt is a file, not a model directory; give the model directory that it"),
        ("model/config.yaml", "config.yaml is a file, not a model directory; give the model directory that it is in"),
        ("mod el", "there is no folder mod el; there is model"),
        (".", "there is model. `unidiffuser fit` writes model directories"),
    ):
        with pytest.raises(SystemExit) as error:
            main(["sample", given, "a"])
        said = " ".join(capsys.readouterr().err.split())
        assert error.value.code == 2 and says in said, said


def test_a_folder_in_place_of_a_file_is_called_one(model, tmp_path, capsys):
    for row in (f"--given=b={tmp_path}", f"--states={tmp_path}"):
        with pytest.raises(SystemExit):
            main(["sample", model, "a | b", row])
        assert f"{tmp_path} is a folder; give " in " ".join(capsys.readouterr().err.split())


def test_a_tilde_is_the_users_home(asked, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run([model, "a", "--out=~/samples"])
    assert (tmp_path / "home/samples/a").is_dir()
