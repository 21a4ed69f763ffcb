"""The recipe of three modalities: its files fit together, and its evaluation asks everything there is to ask."""

import itertools
from pathlib import Path

import yaml

from unidiff_core.cli import encode, evaluate, shards
from unidiff_core.cli.fit import UniDiffuserCLI
from unidiff_core.data.shard import write_manifest, write_shard
from unidiff_core.sampling.spec import TimestepSpec
from unidiff_core.serialization.description import describe_codecs

RECIPE = Path(__file__).parents[3] / "recipes" / "digits_audio"


def read(name):
    return yaml.safe_load((RECIPE / f"{name}.yaml").read_text())


def test_every_query_over_three_modalities_is_asked():
    config = evaluate._parser().parse_args(["runs", "-c", str(RECIPE / "evaluate.yaml")])
    roles = ("solve", "hold", "ignore")
    names = ("image", "text", "audio")
    expected = {row for row in itertools.product(roles, repeat=3) if "solve" in row}
    specs = [TimestepSpec.parse(query, names) for query in config.queries]
    asked = {
        tuple("solve" if name in spec.solved else "hold" if name in spec.held else "ignore" for name in names)
        for spec in specs
    }
    assert len(specs) == 19 and asked == expected
    rules = {(rule.query, rule.metric) for rule in config.criteria}
    for query, spec in zip(config.queries, specs, strict=True):
        if len(spec.solved) == 3:
            pairs = itertools.combinations(names, 2)
            assert {(query, f"{a}+{b}.digit") for a, b in pairs} <= rules
        else:
            assert (query, "digit" if len(spec.solved) > 1 or spec.held else "digit_tv") in rules


def test_the_model_is_made_of_the_codecs_that_encode(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    codecs, fitted = read("encode")["codecs"], read("fit")
    assert fitted["model"]["modalities"].keys() == codecs.keys()
    parser = encode._parser()
    made = parser.instantiate_classes(parser.parse_args(["-c", str(RECIPE / "encode.yaml")])).codecs
    latents = Path(fitted["data"]["train"])
    written = write_shard(latents / "00000.tar", [])  # no sample, so that no network is loaded
    write_manifest(latents, [written], codecs=describe_codecs(made))  # as `encode` records them
    model = UniDiffuserCLI("fit", ["-c", str(RECIPE / "fit.yaml")]).model
    for name, row in codecs.items():
        codec = model.modalities[name].codec
        assert type(codec).__name__ == row["class_path"]
        assert {option: getattr(codec, option) for option in row["init_args"]} == row["init_args"]
    assert model.shapes["audio.mel"] == (8, 6) and list(model.modalities) == ["image", "text", "audio"]
    declared, trained = codecs["audio"]["init_args"], read("autoencoder")
    sizes = trained["model"]["init_args"]
    assert all(sizes[name] == declared[name] for name in ("rate", "hop", "channels"))
    assert 2 ** sizes["levels"] == declared["downsampling"]
    assert all(trained["data"]["init_args"][name] == declared[name] for name in ("rate", "seconds"))


def test_the_shards_have_sound():
    config = shards._parser().parse_args(["-c", str(RECIPE / "shards.yaml")])
    assert config.source.init_args.sound is True
