"""The commands that compose samples: they write what Python gives, and say what is wrong."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.core.tiny import make
from unidiff_core import UniDiffuser, inpaint, interpolate, vary
from unidiff_core.cli.main import main


@pytest.fixture
def model(tmp_path, registered):
    """A model directory of two modalities, a and b, of numbers; and a file with a number."""
    make().save_pretrained(tmp_path / "model")
    (tmp_path / "value.num").write_text("0.25")
    (tmp_path / "other.num").write_text("-0.5")
    return tmp_path


def numbers(folder):
    return [float(path.read_text()) for path in sorted(folder.glob("*.num"))]


def test_vary_and_chain_write_the_last_of_each_and_a_film(model, capsys):
    options = [f"--given=a={model / 'value.num'}", "--num=3", "--steps=2", f"--out={model / 'out'}"]
    main(["vary", str(model / "model"), "a > b > a", *options])
    loaded = UniDiffuser.from_pretrained(model / "model")
    last = vary(loaded, "a > b > a", {"a": 0.25}, 3, steps=2)
    assert numbers(model / "out/a") == last.decode(loaded)["a"]
    assert numbers(model / "out/b") == loaded.decode(last.latents, ["b"])["b"]
    main(["chain", str(model / "model"), "b | a", "{a: [1, 0], b: 0.5}", "--rounds=2", *options])
    page = (model / "out/film.html").read_text()
    assert page.count("<th>") == 5 and page.count("<td>") == 15 and "given" in page and "a | b@0.5" in page
    assert "4 moments" in capsys.readouterr().out


def test_interpolate_writes_its_frames(model):
    ends = [f"--start=a={model / 'value.num'}", f"--end=a={model / 'other.num'}"]
    main(["interpolate", str(model / "model"), "a", *ends, "--through=b", "--frames=3", "--steps=2",
          f"--out={model / 'out'}"])  # fmt: skip
    loaded = UniDiffuser.from_pretrained(model / "model")
    frames = interpolate(loaded, "a", ({"a": 0.25}, {"a": -0.5}), through=["b"], frames=3, steps=2)
    assert numbers(model / "out/a") == frames[-1].decode(loaded)["a"]
    assert (model / "out/film.html").read_text().count("<td>") == 3


def test_inpaint_keeps_the_rest(model, monkeypatch):
    options = [f"--given=b={model / 'value.num'}", "--steps=10", "--num=2", f"--out={model / 'out'}"]
    main(["inpaint", str(model / "model"), "b", "--region=b={s: [0, 1]}", *options, "--resamples=2", "--kept_at=0.2"])
    loaded = UniDiffuser.from_pretrained(model / "model")
    expected = inpaint(loaded, "b", {"b": 0.25}, {"b": {"s": [0, 1]}}, 2, steps=10, resamples=2, kept_at=0.2)["b"]
    assert numbers(model / "out/b") == expected
    kept = inpaint(loaded, "b", {"b": 0.25}, {"b": {"s": [0, 1]}}, 2, steps=10, outside=True, latents=True)["b.s"]
    assert (kept[:, 0] == 0.25).all() and (kept[:, 1] != 0.25).all()


def test_an_inversion_goes_out_as_latents_and_comes_back_as_states(model, capsys):
    out, value = f"--out={model / 'noise'}", f"--given=a={model / 'value.num'}"
    main(["sample", str(model / "model"), "--spec={a: [0, 1]}", value, "--latents", "--steps=40", out])
    assert "a.v (1, 3)" in capsys.readouterr().out
    file = model / "noise/latents.safetensors"
    main(["sample", str(model / "model"), "a", f"--states={file}", "--steps=40", f"--out={model / 'back'}"])
    assert numbers(model / "back/a") == pytest.approx([0.25], abs=2e-3)
    main(["sample", str(model / "model"), "b | a", f"--given=a={file}", "--latents", "--steps=2", out])
    loaded = UniDiffuser.from_pretrained(model / "model")
    up = loaded.sample({"a": [0, 1]}, {"a": 0.25}, latents=True, steps=40)
    expected = loaded.sample("b | a", up, latents=True, steps=2)["b.s"]
    assert torch.allclose(load_file(file)["b.s"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "a", "--states=nowhere.safetensors"], "no such file: nowhere.safetensors"),
        (["sample", "a", "--states=value.num"], "value.num is no safetensors file"),
        (["sample", "a", "--against=b=value.num"], "a value to lead away from is given of 'b'"),
        (["vary", "a"], "two stations at least"),
        (["chain", "a | b"], "link 1, a | b, needs 'b'"),
        (["chain", "a", "--rounds=0"], "a chain has one round at least"),
        (["inpaint", "a", "--given=a=value.num"], "no region is given"),
        (["inpaint", "b", "--given=b=value.num", "--region=b=left"], "no mapping from streams to a range"),
        (["interpolate", "c", "--start=a=value.num"], "unknown modality 'c'"),
        (["interpolate", "a", "--start=c=value.num"], "--start 'c=value.num': unknown modality 'c'"),
    ],
)
def test_what_is_wrong_is_one_paragraph_and_exit_code_2(model, arguments, says, capsys, monkeypatch):
    monkeypatch.chdir(model)
    with pytest.raises(SystemExit) as exit:
        main([arguments[0], "model", *arguments[1:]])
    said = " ".join(capsys.readouterr().err.split())
    assert exit.value.code == 2 and says in said, said
    assert not (model / "out").exists()
