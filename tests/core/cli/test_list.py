"""The listing: every registration once, within 80 columns, and for programs."""

from __future__ import annotations

import json

import pytest

from unidiff_core.cli.list import KINDS, WIDTH
from unidiff_core.cli.main import main
from unidiff_core.foundation.plugin import load_plugins


def printed(capsys, *arguments):
    main(arguments)
    return capsys.readouterr().out


def test_no_line_is_wider_than_a_terminal(capsys):
    text = printed(capsys, "list")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(f"{kind.upper()}\n" in text for kind in ("codecs", "sources", "processes", "solvers", "backbones"))


def test_every_registration_is_listed_once(capsys):
    rows = json.loads(printed(capsys, "list", "--json"))
    assert sorted(row["name"] for row in rows) == sorted(load_plugins().registrations)
    assert {row["kind"] for row in rows} <= set(KINDS) and all(row["summary"] for row in rows)


def test_a_codec_says_its_streams_licence_and_sources(capsys):
    (row,) = [row for row in json.loads(printed(capsys, "list", "codecs", "--json")) if row["name"] == "TextCodec"]
    assert row["details"]["streams"] == "states 77×64" and "AGPL-3.0" in row["details"]["licence"]
    assert row["options"]["length"] == "77" and row["distribution"] == "unidiff-core"


def test_codecs_is_another_word_for_list_codecs(capsys):
    assert printed(capsys, "codecs") == printed(capsys, "list", "codecs")


@pytest.mark.parametrize("kind", ["solvers", "metrics", "laws", "converters"])
def test_a_kind_alone(capsys, kind):
    rows = json.loads(printed(capsys, "list", kind, "--json"))
    assert rows and {row["kind"] for row in rows} == {kind}
    assert printed(capsys, "list", kind).count("takes: ") == len(rows)


def test_every_class_says_what_it_is_and_what_its_options_are(capsys):
    rows = json.loads(printed(capsys, "list", "--json"))
    assert not [(row["name"], row["summary"]) for row in rows if len(row["summary"].split()) < 8]
    assert not [row["name"] for row in rows if "this module" in row["summary"]]  # which nobody sees here
    assert not [(row["name"], name) for row in rows for name in row["options"] if not row["explained"].get(name)]


def test_one_class_by_its_name_with_its_options(capsys):
    text = printed(capsys, "list", "Mixture")
    assert text.startswith("Mixture  (unidiff-core)\n") and "\n    weights: of each; equal if not given." in text
    assert "weights: of each" not in printed(capsys, "list", "laws")


@pytest.mark.parametrize(
    ("word", "says"),
    [("solver", "did you mean solvers?"), ("Gausian", "Gaussian?"), ("xyzzy", "the kinds are codecs,")],
)
def test_an_unknown_kind_is_an_error_that_says_what_was_meant(word, says, capsys):
    with pytest.raises(SystemExit) as error:
        main(["list", word])
    text = " ".join(capsys.readouterr().err.split())
    assert error.value.code == 2 and says in text and "invalid choice" not in text


def test_solvers_are_listed_with_the_processes_that_take_them(capsys):
    solvers = {
        row["name"]: row["details"]["solver of"] for row in json.loads(printed(capsys, "list", "solvers", "--json"))
    }
    assert solvers["naive"] == solvers["improved"] == "Cold" and solvers["certain"] == "Masked"
    assert {"Cold", "Gaussian"} <= set(solvers["ddim"].split(", ")) and "Masked" not in solvers["ddim"]
    processes = {
        row["name"]: row["details"]["solvers"] for row in json.loads(printed(capsys, "list", "processes", "--json"))
    }
    assert "naive" in processes["Cold"] and "naive" not in processes["Gaussian"] and "heun" in processes["Gaussian"]
