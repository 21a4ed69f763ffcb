"""What a person reads when an option of a recipe is wrong."""

from __future__ import annotations

import pytest

from unidiff_core.cli.main import main

ENCODE = ["encode", "--folders={a: b}"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--codecs={x: ImagCodec}"], "codecs: unknown class ImagCodec; did you mean ImageCodec? `unidiffuser encode"),
        (["--codecs={x: Nonsense}"], "unknown class Nonsense; `unidiffuser list` shows what is registered."),
        (["--codecs={x: Gaussian}"], "the class Gaussian cannot stand there; `unidiffuser list` shows what each kind"),
        (["--codecs={x: wholly.Other}"], "codecs: No module named 'wholly'."),
        (
            ["--codecs={x: {class_path: ImageCodec, init_args: {sise: 3}}}"],
            "codecs: ImageCodec has no option 'sise'; did you mean size? It takes autoencoder, clip, size,",
        ),
        (
            ["--codecs={x: {class_path: ImageCodec, init_args: {size: big}}}"],
            "codecs: size: it must be of type int, not big.",
        ),
    ],
)
def test_an_error_says_what_was_wrong_and_what_is_known(arguments, says, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*ENCODE, *arguments])
    said = " ".join(capsys.readouterr().err.split())
    assert exit.value.code == 2 and says in said and "Union" not in said and "Parser key" not in said, said


def test_an_option_of_a_nested_class_is_named_without_type_expressions(capsys):
    with pytest.raises(SystemExit):
        codec = "--model.modalities.image.codec"
        main(["fit", "-c", "recipes/digits/fit.yaml", f"{codec}=ImageCodec", f"{codec}.sise=3"])
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "model.modalities: codec: ImageCodec has no option 'sise'; did you mean size? It takes" in said
        and "NoneType" not in said
    ), said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2\nb: }\n", "the configuration is not YAML, line 2, character 2: did not find expected ',' or ']'"),
        ("a: b: c\n", "the configuration is not YAML, line 1, character 5: mapping values are not allowed"),
        (None, "/absent.yaml: no such file. "),
    ],
)
def test_a_configuration_that_cannot_be_read(tmp_path, text, says, capsys):
    path = tmp_path / ("absent.yaml" if text is None else "fit.yaml")
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as error:
        main(["shards", "-c", str(path)])
    assert error.value.code == 2 and says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("word", "meant"), [("evalute", "evaluate"), ("fit_codec", "fit-codec"), ("samples", "sample")]
)
def test_a_misspelt_command_is_guessed(word, meant, capsys):
    with pytest.raises(SystemExit) as exit:
        main([word])
    assert exit.value.code == 2 and f"did you mean {meant}?" in " ".join(capsys.readouterr().err.split())


def test_no_guess_where_nothing_is_near(capsys):
    with pytest.raises(SystemExit):
        main(["xyzzy"])
    assert "did you mean" not in capsys.readouterr().err
