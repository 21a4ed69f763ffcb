"""What is behind the page: requests, their call lines, playing. Gradio is not needed for it."""

from __future__ import annotations

import ast
import shlex
import threading
import time
from pathlib import Path

import pytest

import unidiff_core
from tests.command import run_command
from tests.core.tiny import make
from unidiff_core import UniDiffuser
from unidiff_core.cli.main import sentence_of
from unidiff_core.cli.page.play import LOOKS, PAUSE, Frame, Player, Refused, View, guess
from unidiff_core.cli.page.request import COMMANDS, GENERATE, GIVEN, IGNORED, Form, Request, sample_request
from unidiff_core.cli.page.shown import html_of

SETTINGS = {"num": 2, "steps": 3, "solver": "ddim", "guidance": 1.5, "seed": 4}


@pytest.fixture
def player(tmp_path, registered):
    """A tiny model of numbers, served."""
    make().save_pretrained(tmp_path / "a model")
    folder = str(tmp_path / "a model")
    return Player(UniDiffuser.from_pretrained(folder), folder, sentence_of)


@pytest.fixture
def value(tmp_path):
    (tmp_path / "it's.num").write_text("0.25")
    return str(tmp_path / "it's.num")


def requests(value):
    """Command → a request of its tab, and the modality that comes of it."""
    forms = {"a": Form(GENERATE), "b": Form(GIVEN, value, 0.2)}
    return {"sample": (sample_request(forms, SETTINGS), "a")}


def last(views):
    *_, view = views
    assert view.is_done
    return view


@pytest.mark.parametrize("command", COMMANDS)
def test_the_call_lines_are_what_was_played(command, player, value, monkeypatch):
    """The command's parser reads the line to the same options, and the Python gives the samples that are shown."""
    request, name = requests(value)[command]
    shown = last(player.play(request)).frames
    program, said, model, *words = shlex.split(player.line(request))
    assert (program, said, model, tuple(words)) == ("unidiffuser", command, player.folder, request.words)
    read = Request(command, tuple(words)).options(model)
    assert (read.steps, read.seed, read.guidance, read.solver) == (3, 4, 1.5, "ddim")
    place = {}
    exec(player.python(request), place)
    found = place["found"]
    frames = [found] if isinstance(found, dict) else [row.decode(place["model"]) for row in found]
    assert [list(frame.raws[name]) for frame in shown if frame.title != "given"] == [row[name] for row in frames]
    assert len(shown[-1].raws[name]) >= 1


def test_the_command_writes_what_the_page_shows(player, value, tmp_path):
    request, _ = requests(value)["sample"]
    shown = last(player.play(request)).frames[0].raws["a"]
    COMMANDS["sample"].run([player.folder, *request.words, f"--out={tmp_path / 'out'}"])
    assert [float(path.read_text()) for path in sorted((tmp_path / "out/a").iterdir())] == shown


@pytest.mark.parametrize(
    ("forms", "settings", "says"),
    [
        ({"a": Form(IGNORED), "b": Form(IGNORED)}, {}, "the timestep spec is empty; name what to sample"),
        ({"a": Form(GENERATE), "b": Form(GIVEN)}, {}, "a | b holds 'b', but no value of it is given; give one"),
        ({"a": Form(GENERATE), "b": Form(GIVEN, "no.num")}, {}, "no such file: no.num"),
        ({"a": Form(GENERATE)}, {"steps": 0}, "steps is a whole number, at least 1, not 0"),
        ({"a": Form(GENERATE)}, {"num": 0}, "num is a whole number, at least 1, not 0"),
        ({"a": Form(GENERATE)}, {"solver": "ddmi"}, "unknown solver 'ddmi'"),
        ({"a": Form(GENERATE)}, {"guidance": "x"}, "guidance"),
    ],
)
def test_what_is_wrong_is_told_as_the_command_line_tells_it(forms, settings, says, player, capsys):
    request = sample_request(forms, settings)
    with pytest.raises(Refused) as refused:
        player.check(request)
        last(player.play(request))
    assert says in str(refused.value)
    with pytest.raises(SystemExit):
        from unidiff_core.cli.main import main

        main([request.command, player.folder, *request.words])
    printed = " ".join(line.strip() for line in capsys.readouterr().err.splitlines() if not line.startswith("a: "))
    assert str(refused.value) in printed


def test_latents_are_no_value_on_a_page():
    with pytest.raises(ValueError, match="latents are given on the command line"):
        sample_request({"a": Form(GENERATE), "b": Form(GIVEN, "/etc/x.safetensors")}, {})


def test_looks_in_between_are_few_and_decode_few(player, monkeypatch):
    """What is shown before the end: estimates of some samples, not at every step."""
    slow = player.model.predict
    monkeypatch.setattr(player.model, "predict", lambda *given, **more: time.sleep(0.01) or slow(*given, **more))
    request = sample_request({"a": Form(GENERATE), "b": Form(GENERATE)}, {"num": 9, "steps": 150})
    *looks, end = player.play(request)
    assert 1 <= len(looks) <= 150 * 0.1 / PAUSE + 1 and all(row.step < row.steps == 150 for row in looks)
    assert all(len(raws) == LOOKS for row in looks for frame in row.frames for raws in frame.raws.values())
    assert {*looks[0].frames[0].raws} == {"a", "b"} and len(end.frames[0].raws["a"]) == 9


def test_a_closed_page_ends_its_sampling_and_lets_the_next_one_in(player):
    views = player.play(sample_request({"a": Form(GENERATE)}, {"steps": 20_000}))
    next(views)
    views.close()
    started = time.monotonic()
    assert last(player.play(sample_request({"a": Form(GENERATE)}, {"steps": 2}))).frames
    assert time.monotonic() - started < 30


def test_two_at_once_have_the_model_one_after_the_other(player, monkeypatch):
    at_once, most = [0], [0]
    step = player.model.predict

    def counted(*given, **more):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.002)
        found = step(*given, **more)
        at_once[0] -= 1
        return found

    monkeypatch.setattr(player.model, "predict", counted)
    request = sample_request({"a": Form(GENERATE), "b": Form(IGNORED)}, {"steps": 10, "num": 1})
    found = []
    threads = [threading.Thread(target=lambda: found.append(last(player.play(request)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(found) == 3 and len({str(view.frames) for view in found}) == 1


def test_how_it_was_loaded_stands_in_the_call_lines(player):
    other = Player(player.model, "m", sentence_of, {"weights": "model", "allow_hub": True}, "cuda")
    request = sample_request({"a": Form(GENERATE)}, {"num": 1})
    assert other.line(request).endswith("--weights=model --allow_hub=true --device=cuda")
    assert 'from_pretrained("m", weights="model", allow_hub=True).to("cuda")' in other.python(request)


def test_html_escapes_titles_and_shows_each_sample_by_its_codec(player):
    codecs = {name: row.codec for name, row in player.model.modalities.items()}
    frames = [Frame("<1>", {"a": [1.0, 2.0]}), Frame("2", {"a": [3.0, 4.0], "b": [5.0, 6.0]})]
    html = html_of(View(3, 3, frames, is_done=True), codecs)
    assert "&lt;1&gt;" in html and html.count("<code>") == 6 and "data-done" in html
    assert "step 1 of 3" in html_of(View(1, 3), codecs)


def test_a_guess_of_symbols_is_the_likeliest():
    import torch

    logits = torch.tensor([[[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]]])
    assert guess(logits, (2,)).tolist() == [[1, 0]] and guess(logits, (2, 3)) is logits


def test_without_gradio_the_command_names_the_extra(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('No module named gradio')")
    done = run_command("demo", "m", env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 2 and "pip install 'unidiff-core[demo]'" in " ".join(done.err.split())


def test_a_port_that_is_taken_is_told_before_the_model_is_read():
    import socket

    from unidiff_core.cli.demo import check_port

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1, --port={port}: .*name another"):
            check_port("127.0.0.1", port)
    with pytest.raises(ValueError, match="--port=99999"):
        check_port("127.0.0.1", 99999)


def test_gradio_is_imported_by_the_layout_alone():
    """So that nothing else of core needs it; and the layout is imported by the command when it runs."""
    root = Path(unidiff_core.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        nodes = ast.parse(path.read_text()).body
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        found[path.relative_to(root).as_posix()] = names
    assert [path for path, names in found.items() if "gradio" in names] == ["cli/page/layout.py"]
    assert not [path for path, names in found.items() if "unidiff_core.cli.page.layout" in names]
