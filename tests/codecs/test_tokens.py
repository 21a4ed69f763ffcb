from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from unidiff_codecs.tokens import Tokens, TokensCodec
from unidiff_codecs.training.tokens import train_tokens

from tests.command import run_command
from unidiff_core.testing import check_codec
from unidiff_core.testing.contract import CLAUSES

from .conftest import CAPTIONS


@pytest.fixture(scope="session", params=["words", "bpe"])
def trained(request, shards, tmp_path_factory):
    """A tokenizer that `fit-codec` made, and its metrics."""
    folder = tmp_path_factory.mktemp("tokens") / request.param
    done = run_command(
        *("fit-codec", "--model=TokensTraining", f"--model.kind={request.param}", "--model.vocabulary=300"),
        *("--data=CaptionData", f"--data.folder={shards}", "--data.holdout=0.3", "--output", folder),
    )
    assert done.code == 0, done.err
    return folder, json.loads((folder / "metrics.json").read_text())


def codec_of(trained, **options):
    folder, metrics = trained
    return TokensCodec(str(folder), int(metrics["vocabulary"]), **{"length": int(metrics["longest"]) + 1} | options)


def test_tokens_keep_the_contract_and_texts_come_back(trained):
    codec = codec_of(trained)
    report = check_codec(codec, CAPTIONS[:4])
    assert len(report.clauses) == len(CLAUSES) and "largest distance here is 0" in " ".join(report.remarks)
    assert trained[1]["exact"] == 1.0
    assert codec.encode(CAPTIONS[:2])["ids"].dtype == torch.int32


def test_an_empty_caption_is_padding(trained):
    codec = codec_of(trained)
    empty = codec.latent(codec.encode_empty(), None)
    assert codec.decode(empty) == [""] and empty["ids"].shape == (1, codec.length)
    assert empty["ids"].unique().tolist() == [codec._load().padding]


def test_a_text_ends_at_its_first_padding(trained):
    codec = codec_of(trained)
    ids = codec.latent(codec.encode(["a red one", "a red"]), None)["ids"]
    padding = codec._load().padding
    assert (ids[1] == padding).sum() > (ids[0] == padding).sum() >= 1
    assert codec.decode({"ids": torch.full_like(ids, padding)}) == ["", ""]
    ids[0, 1] = padding
    assert codec.decode({"ids": ids})[0] == "a"


def test_the_region_of_a_word_is_its_tokens_each_time_that_it_stands(trained):
    codec = codec_of(trained, length=12)
    text = "a red one a red one"
    ids = codec.encode([text])["ids"][0]
    tokens = codec._load().tokenizer
    inside = codec.mask("red", text)["ids"]
    assert tokens.decode(ids[inside].tolist()).split() == ["red"] * text.split().count("red")
    assert torch.equal(codec.mask(["red", "one"], "a red one")["ids"], codec.mask("red one", "a red one")["ids"])
    assert codec.mask({"ids": [1, 3]})["ids"].nonzero().flatten().tolist() == [1, 2]
    for region, raw, says in (("blue", text, "'blue' does not stand in the text"), ("re", text, "'re' does not stand"),
                              ("red", None, "give the text itself"), (3, text, "a word of it")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            codec.mask(region, raw)


def test_what_does_not_fit_is_refused_or_counted(trained):
    long = "a red one " * 9
    with pytest.raises(ValueError, match="more than the codec's length"):
        codec_of(trained).encode([long])
    with pytest.warns(UserWarning, match="of 2 texts 1 had more than"):
        ids = codec_of(trained, strict=False).encode([long, "a red one"])["ids"]
    assert (ids[0] != codec_of(trained)._load().padding).all()


def test_a_word_that_is_unknown(trained):
    codec = codec_of(trained, length=30)
    if trained[0].name == "bpe":  # pieces of bytes spell it
        assert codec.decode(codec.latent(codec.encode(["a purple one"]), None)) == ["a purple one"]
        return
    with pytest.raises(ValueError, match=r"does not know: purple, rain"):
        codec.encode(["a purple rain"])
    loose = codec_of(trained, length=30, strict=False)
    with pytest.warns(UserWarning, match=r"1 had words .* \(purple\)"):
        stored = loose.encode(["a purple one"])
    assert loose.decode(loose.latent(stored, None)) == ["a [UNK] one"]


def test_a_vocabulary_that_is_not_the_tokenizers(trained):
    codec = TokensCodec(str(trained[0]), 40)
    size = int(trained[1]["vocabulary"])
    with pytest.raises(ValueError, match=f"has {size} symbols with its padding.*write vocabulary: {size}"):
        codec.encode(["a red one"])


def test_a_tokenizer_that_names_its_padding_elsewhere_or_nowhere(tmp_path):
    tokenizer = train_tokens(CAPTIONS, "words", 100)
    tokenizer.no_padding()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    assert Tokens.read(str(tmp_path)).padding == size  # one more symbol
    for named in ("one", {"content": "one"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": named}))
        tokens = Tokens.read(str(tmp_path))
        assert tokens.padding == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("one")
        assert tokens.size == size


def test_folders_that_hold_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"lacks tokenizer.json.*save_pretrained"):
        TokensCodec(str(tmp_path), 40).encode(["a red one"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        TokensCodec(str(tmp_path), 40).encode(["a red one"])
    with pytest.raises(ValueError, match="no folder of weights"):
        TokensCodec("nowhere", 40).encode(["a red one"])


def test_a_transformers_tokenizer_of_another_kind(tmp_path):
    from transformers import PreTrainedTokenizerFast

    kept = PreTrainedTokenizerFast(tokenizer_object=train_tokens(CAPTIONS, "bpe", 280), pad_token="[PAD]")
    kept.save_pretrained(tmp_path)
    tokens = Tokens.read(str(tmp_path))
    assert tokens.padding == kept.pad_token_id and tokens.size == len(kept)
