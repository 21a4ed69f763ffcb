from __future__ import annotations

import json

import pytest
import torch
from unidiff_codecs.clip import TextState
from unidiff_codecs.text import TextCodec
from unidiff_codecs.text_decoder import TextDecoder

from unidiff_core.foundation.stream import Stream

from .conftest import CAPTIONS, draw


def test_full_size_is_declared_without_loading_anything():
    codec = TextCodec()
    assert codec.streams == {"states": Stream.sequence(77, 64)}
    assert not list(codec.parameters())


def test_round_trip_and_independence(text_arguments):
    codec = TextCodec(**text_arguments)
    stored = codec.encode(CAPTIONS[:4])
    assert stored["states"].shape == (4, 10, 4)
    assert torch.equal(TextCodec(**text_arguments).encode(CAPTIONS[:4])["states"], stored["states"])
    torch.testing.assert_close(codec.encode(CAPTIONS[2:3])["states"][0], stored["states"][2], atol=1e-5, rtol=1e-5)
    latents = codec.latent(stored, draw)
    assert torch.equal(latents["states"], stored["states"])
    texts = codec.decode(latents)
    assert len(texts) == 4 and all(isinstance(text, str) for text in texts)
    assert codec.decode({"states": latents["states"][1:2]}) == texts[1:2]
    assert not any(module.training for module in codec.modules())


def test_an_empty_caption_is_its_start_and_its_end(text_arguments):
    codec = TextCodec(**text_arguments)
    tower, decoder = TextState(text_arguments["clip"]), TextDecoder.from_pretrained(text_arguments["text_decoder"])
    ids = torch.full((1, 10), tower.tokenizer.eot_token_id)
    ids[0, 0] = tower.tokenizer.sot_token_id
    with torch.no_grad():
        torch.testing.assert_close(codec.encode_empty()["states"], decoder.encode(tower(ids)), atol=1e-5, rtol=1e-5)


def test_the_region_of_a_word_is_from_there_on(text_arguments):
    """A causal network's states: those before a word do not tell of it, that of the word and those after do."""
    codec = TextCodec(**text_arguments)
    first, other = (codec.encode([text])["states"][0] for text in ("a red one", "a blue one"))
    same = torch.isclose(first, other, atol=1e-5).all(1)
    inside = codec.mask("red", "a red one")["states"]
    assert torch.equal(inside.any(1), ~same) and torch.equal(inside.all(1), inside.any(1))
    with pytest.raises(ValueError, match="'blue' does not stand in the text 'a red one'"):
        codec.mask("blue", "a red one")


def test_states_are_those_after_the_final_norm_padded_with_the_end_token(clip):
    tower = TextState(str(clip))
    ids = tower.tokenize(["a red one"])
    end = tower.tokenizer.eot_token_id
    assert ids.shape == (1, 10) and ids[0, 0] == tower.tokenizer.sot_token_id and (ids[0, 4:] == end).all()
    pooled = tower(ids)[0, 4] @ tower.clip.text_projection  # the first end token is CLIP's own feature
    torch.testing.assert_close(pooled, tower.clip.encode_text(ids)[0], atol=1e-5, rtol=1e-5)


CLEANED = {
    "a picture drawn by hand .": "a picture drawn by hand.",
    "a cat , a dog , and a bird": "a cat, a dog, and a bird",
    "is this an owl ?": "is this an owl?",
    "stop !": "stop!",
    "the dog 's bone": "the dog's bone",
    "it does n't rain": "it doesn't rain",
    "i 'm on a horse": "i'm on a horse",
    "they 've gone home": "they've gone home",
    "we 're at the sea .": "we're at the sea.",
    "rock ' n ' roll": "rock'n'roll",
    "the boys ' room": "the boys'room",
    "no . 5 , from 1920": "no. 5, from 1920",
    "3 . 5 meters": "3. 5 meters",
    "3.5 meters for 1,000 people": "3.5 meters for 1,000 people",
    "wait . . .": "wait...",
    "what ? !": "what?!",
    "a sign ( red ) : stop ; go": "a sign ( red ) : stop ; go",
    '"hello" , he said .': '"hello", he said.',
    "it's 5 o'clock.": "it's 5 o'clock.",
    "he 'll be 30 , and she 'd be 29 .": "he 'll be 30, and she 'd be 29.",
    "l'été , un café à 2 € .": "l'été, un café à 2 €.",
}


@pytest.mark.parametrize("written", CLEANED)
def test_a_decoded_caption_is_cleaned_up_as_the_originals_is(text_decoder, monkeypatch, written):
    decoder = TextDecoder.from_pretrained(str(text_decoder))
    ids = decoder.tokenize([f" {written}"])
    monkeypatch.setattr(decoder.transformer, "generate", lambda **options: ids)
    assert decoder.generate(torch.zeros(1, 10, 4), beams=1, max_new_tokens=67) == [CLEANED[written]]
    assert decoder.tokenizer.clean_up_tokenization(written) == CLEANED[written]


def test_the_prefix_carries_no_loss(text_decoder):
    decoder = TextDecoder.from_pretrained(str(text_decoder))
    ids = decoder.tokenize(["a red one", "a green three"])
    assert decoder.logits(torch.zeros(2, 10, 4), ids).shape[:2] == ids.shape
    longer = torch.nn.functional.pad(ids, (0, 3), value=-100)
    torch.testing.assert_close(decoder.loss(torch.zeros(2, 10, 4), ids), decoder.loss(torch.zeros(2, 10, 4), longer))


def test_decoder_learns_its_captions_by_heart(clip, text_decoder):
    """A hundred steps on four captions, then beam search with cached keys gives them back."""
    decoder = TextDecoder.from_pretrained(str(text_decoder)).requires_grad_(True)
    texts = ["a red one", "a green two", "a blue four", "a grey three"]
    tower = TextState(str(clip))
    states, ids = tower(tower.tokenize(texts)), decoder.tokenize(texts)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        decoder.loss(decoder.encode(states), ids).backward()
        optimizer.step()
    decoder.eval()
    assert decoder.generate(decoder.encode(states), beams=5, max_new_tokens=67) == texts


def test_long_captions_are_cut_with_a_warning(text_arguments):
    codec = TextCodec(**text_arguments)
    text = " ".join(["red"] * 30)
    with pytest.warns(UserWarning, match="a caption of 32 tokens is cut at the 10"):
        assert codec.encode([text])["states"].shape == (1, 10, 4)


@pytest.mark.parametrize("bad", ["", "   ", "\n"])
def test_empty_captions(text_arguments, bad):
    codec = TextCodec(**text_arguments)
    for call in (codec.parse, lambda text: codec.encode([text]), lambda text: codec.from_bytes(text.encode())):
        with pytest.raises(ValueError, match="empty caption"):
            call(bad)


def test_what_is_not_a_text(text_arguments):
    with pytest.raises(ValueError, match="a text must be a string, not int 7"):
        TextCodec(**text_arguments).encode([7])
    with pytest.raises(ValueError, match="UTF-8"):
        TextCodec().from_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 12}, "declares length 12"),
        ({"width": 5}, "width 5"),
        ({"text_decoder": "no/such"}, "no folder of weights"),
        ({"clip": "hf-hub:nonsense"}, "not a hub id"),
    ],
)
def test_a_network_that_is_not_as_declared(text_arguments, change, message):
    with pytest.raises(ValueError, match=message):
        TextCodec(**text_arguments | change).encode(["a red one"])


def test_texts_are_saved_as_lines_batch_after_batch(tmp_path):
    codec = TextCodec()
    codec.save(["a", "zwölf"], tmp_path)
    codec.save(["c"], tmp_path, first_index=2)
    lines = (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"index": i, "text": text} for i, text in enumerate(["a", "zwölf", "c"])
    ]
    codec.save(["anew"], tmp_path)
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 1
    assert codec.html("<b>") == "<span>&lt;b&gt;</span>"
    assert codec.from_bytes(codec.to_bytes("a red one")) == codec.parse("a red one") == "a red one"


def test_what_looks_like_a_path_is_read_or_said_to_be_no_file(text_arguments, tmp_path, monkeypatch, recwarn):
    codec = TextCodec(**text_arguments)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caption.txt").write_text("a red seven\n")
    (tmp_path / "seven").write_text("8")
    assert [codec.parse(text) for text in ("caption.txt", "./seven", "seven", "two words.txt")] == [
        *("a red seven", "8", "seven", "two words.txt")
    ]
    assert not recwarn.list
    for text in ("captoin.txt", "runs/digits", "seven.png"):
        with pytest.warns(UserWarning, match=f"no file {text}: taken as text"):
            assert codec.parse(text) == text
