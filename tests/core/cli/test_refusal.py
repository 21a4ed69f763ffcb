"""A wrong option, on the command line or in a file: no abbreviation passes, and what was meant is said."""

from __future__ import annotations

import pytest

from unidiff_core.cli.main import COMMANDS, main
from unidiff_core.cli.refusal import explained

OPTIONS = ["-c", "--config", "--trainer.max_steps", "--trainer.max_time", "--source", "--guidance", "--given", "--out"]


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    return " ".join(capsys.readouterr().err.split())


ABBREVIATED = {
    "list": ("--jso", "--json"),
    "recipe": ("--hel", "--help"),
    "new-codec": ("a", "--ou=x", "--out"),
    "export": ("a", "b", "--over", "--overwrite"),
    "convert": ("RELEASED", "b", "--over", "--overwrite"),
    "sample": ("a", "b", "--gui=2", "--guidance"),
    "vary": ("a", "--gui=2", "--guidance"),
    "chain": ("a", "--gui=2", "--guidance"),
    "interpolate": ("a", "--gui=2", "--guidance"),
    "inpaint": ("a", "--gui=2", "--guidance"),
    "push": ("a", "b", "--priv", "--private"),
    "verify": ("a", "--ke=x", "--key"),
    "evaluate": ("a", "--stri", "--strict"),
    "demo": ("a", "--por=1", "--port"),
    "report": ("a", "--ou=x", "--out"),
    "encode": ("--batch_s=3", "--batch_size"),
    "shards": ("--shard_s=3", "--shard_size"),
    "fit-codec": ("--outp=x", "--output"),
    **dict.fromkeys(("fit", "validate", "test"), ("--trainer.max_step=3", "--trainer.max_steps")),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_an_abbreviation(command, capsys, tmp_path):
    for name in ("uvit_v1.pth", "caption_decoder.pth", "autoencoder_kl.pth"):
        (tmp_path / name).touch()
    *arguments, begun, whole = (word.replace("RELEASED", str(tmp_path)) for word in ABBREVIATED[command])
    text = said(capsys, command, *arguments, begun)
    assert f"there is no option {begun.partition('=')[0]}; did you mean {whole}" in text, text


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("unrecognized arguments: --guidence 3", "there is no option --guidence; did you mean --guidance or --given?"),
        ("unrecognized arguments: --max_steps=3", "there is no option --max_steps; did you mean --trainer.max_steps?"),
        ("unrecognized arguments: --max-steps=3", "--max-steps; did you mean --trainer.max_steps?"),
        ("unrecognized arguments: --sorce.folder=x", "there is no option --sorce.folder; did you mean --source?"),
        ("unrecognized arguments: --zzz", "there is no option --zzz"),
        ("unrecognized arguments: two words", "there is no place for 'two words'; a text"),
        ("Option 'guidanze' is not accepted", "there is no option 'guidanze'; did you mean guidance?"),
        ("Group 'trainer' does not accept option 'max_step'", "'trainer.max_step'; did you mean trainer.max_steps?"),
        ("the following arguments are required: source, model", "it needs --source and MODEL; options may stand in"),
        ("another error", "another error"),
    ],
)
def test_what_a_parser_says(message, says):
    assert says in explained(message, OPTIONS)


@pytest.mark.parametrize(
    ("command", "content", "says"),
    [
        ("encode", "codec: {image: ImageCodec}", "there is no option 'codec'; did you mean codecs?"),
        ("fit", "trainr: {max_steps: 3}", "'trainr.max_steps'; did you mean trainer.max_steps?"),
        ("fit", "trainer: {max_step: 3}", "'trainer.max_step'; did you mean trainer.max_steps?"),
        ("evaluate", "query: {a | b: {}}", "there is no option 'query'; did you mean queries?"),
        ("fit-codec", "outputs: x", "there is no option 'outputs'; did you mean output?"),
    ],
)
def test_a_wrong_name_in_a_file(command, content, says, capsys, tmp_path):
    (tmp_path / "some.yaml").write_text(content)
    assert says in said(capsys, command, *(["m"] if command == "evaluate" else []), "-c", str(tmp_path / "some.yaml"))


def test_what_is_lacking_is_named_as_it_is_given(capsys):
    text = said(capsys, "shards")
    assert "it needs --source and --output" in text and "-c CONFIG.yaml, of which none is given" in text
    assert "it needs MODEL" in said(capsys, "sample")
