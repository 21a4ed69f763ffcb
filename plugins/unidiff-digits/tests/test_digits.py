import io
import json
import wave
from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from unidiff_digits import grammar, tone
from unidiff_digits.judge import DigitsJudge
from unidiff_digits.source import DigitsSource, draw, load_scans

from unidiff_core.foundation.plugin import load_plugins


def unpack(source, split):
    rows = list(source.samples(split))
    labels = [json.loads(row["json"]) for row in rows]
    images = [Image.open(io.BytesIO(row["png"])) for row in rows]
    return images, [row["txt"].decode() for row in rows], {key: [row[key] for row in labels] for key in labels[0]}


@pytest.fixture(scope="module")
def train():
    return unpack(DigitsSource(renderings_train=2), "train")


@pytest.fixture(scope="module")
def test():
    return unpack(DigitsSource(), "test")


@pytest.fixture(scope="module")
def judge(train):
    judge = DigitsJudge()
    judge.fit("image", train[0], train[2])
    return judge


def test_every_sentence_parses_back():
    rows = product(range(len(grammar.PHRASINGS)), map(str, range(10)), grammar.COLOURS, grammar.GROUNDS)
    for phrasing, digit, colour, ground in rows:
        sentence = grammar.phrase(phrasing, digit, colour, ground)
        expected = (digit, colour, ground if grammar.names_ground(phrasing) else None)
        assert tuple(grammar.parse(sentence)) == expected
        assert tuple(grammar.spot(sentence)) == expected
        assert len(sentence.split()) <= 14 and sentence == sentence.lower()


@pytest.mark.parametrize("text", ["", "red", "a red seven ", "A red seven", "a eight drawn in red", "a red red seven"])
def test_what_the_grammar_does_not_produce_is_not_well_formed(text):
    assert grammar.parse(text) is None
    assert DigitsJudge().well_formed("text", text) is False


def test_spotting_is_tolerant_but_not_credulous():
    assert grammar.spot("seven in RED , red") == ("7", "red", None)
    assert grammar.spot("a red blue 7 or 3 on grey") == (None, None, "grey")


def test_no_test_scan_is_in_train():
    source = DigitsSource(renderings_train=1, renderings_test=1)
    keys = {split: {row["__key__"][:5] for row in source.samples(split)} for split in source.splits}
    assert source.splits == {"train": 1437, "test": 360}
    assert not keys["train"] & keys["test"]
    assert max(keys["train"]) < min(keys["test"])


def test_samples_repeat_and_follow_the_seed():
    first, again, other = (list(DigitsSource(scans=3, seed=seed).samples("train")) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == DigitsSource(scans=3).splits["train"] == 24


def test_looks_are_balanced(test):
    _, captions, labels = test
    assert len(captions) == 1080
    counts = Counter(zip(labels["colour"], labels["ground"], strict=True))
    assert set(counts.values()) == {60}


def test_a_caption_says_what_its_labels_say(test):
    _, captions, labels = test
    for caption, digit, colour, ground in zip(
        captions, labels["digit"], labels["colour"], labels["ground"], strict=True
    ):
        reading = grammar.parse(caption)
        assert (reading.digit, reading.colour) == (digit, colour)
        assert reading.ground in (None, ground)


def test_sentences_are_held_out_of_training_alone():
    source = DigitsSource(unseen=0.1)
    carried = {
        split: Counter(row["txt"].decode() for row in DigitsSource(unseen=0.1).samples(split))
        for split in source.splits
    }
    unseen = source.unseen_sentences()
    assert not unseen & carried["train"].keys() and all(map(grammar.parse, unseen))
    assert 0.06 < sum(carried["test"][sentence] for sentence in unseen) / carried["test"].total() < 0.14
    assert carried["test"] == Counter(row["txt"].decode() for row in DigitsSource().samples("test"))
    assert carried["train"].total() == 11496
    assert next(DigitsSource(unseen=0.99, scans=1).samples("train"))["txt"].decode() in {
        grammar.phrase(0, "0", ink, "grey") for ink in grammar.COLOURS
    }


@pytest.mark.parametrize("options", [{"scans": 0}, {"renderings_train": 0}])
def test_bad_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        DigitsSource(**options)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train and test"):
        list(DigitsSource().samples("valid"))


def test_the_judge_reads_other_writers(judge, test):
    images, captions, labels = test
    for modality, raws in (("image", images), ("text", captions)):
        readings = judge.read(modality, raws)
        accuracy = {
            label: np.mean([a == b for a, b in zip(readings[label], labels[label], strict=True)]) for label in labels
        }
        assert accuracy["digit"] >= (0.95 if modality == "image" else 1.0)
        assert accuracy["colour"] == 1.0
        assert accuracy["ground"] == (1.0 if modality == "image" else pytest.approx(3 / 8, abs=0.01))
    assert all(judge.well_formed("text", caption) for caption in captions)
    assert judge.well_formed("image", images[0]) is None


def test_the_judge_fails_on_nonsense(judge, test):
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(20)]
    for readings in judge.read("image", [*noise, Image.new("RGB", (32, 32), "red")]).values():
        assert set(readings) == {None}
    upside_down = [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for image in test[0]]
    digits = judge.read("image", upside_down)["digit"]
    assert np.mean([a == b for a, b in zip(digits, test[2]["digit"], strict=True)]) < 0.6


def test_the_judge_tolerates_noise_and_other_sizes(judge):
    rng = np.random.default_rng(0)
    scan = load_scans()[0][0]
    clean = draw(scan, "blue", "grey")
    noisy = Image.fromarray(np.clip(np.asarray(clean) + rng.normal(0, 15, (32, 32, 3)), 0, 255).astype(np.uint8))
    for image in (noisy, clean.resize((64, 64)), clean.convert("RGBA")):
        assert judge.read("image", [image]) == {"digit": ["0"], "colour": ["blue"], "ground": ["grey"]}


def test_features_see_a_copy_in_any_ink_and_no_copy_in_another_scan(judge):
    scans = load_scans()[0]
    a, copy, other = judge.features(
        "image", [draw(scans[0], "red", "black"), draw(scans[0], "cyan", "white"), draw(scans[10], "red", "black")]
    )
    assert np.linalg.norm(a - copy) < 0.1 < 0.5 < np.linalg.norm(a - other)


def test_an_unknown_modality_and_an_unfitted_judge_are_named():
    with pytest.raises(ValueError, match="'sound'"):
        DigitsJudge().read("sound", [])
    with pytest.raises(ValueError, match="fit"):
        DigitsJudge().read("image", [])


def test_the_plugin_registers():
    registered = load_plugins()
    assert not registered.failures
    assert {"DigitsSource", "DigitsJudge"} <= set(registered.registrations)
    assert registered.registrations["DigitsJudge"].distribution == "unidiff-digits"


def sounds(source, split):
    for row in source.samples(split):
        with wave.open(io.BytesIO(row["wav"])) as file:
            form = file.getnchannels(), file.getsampwidth(), file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
        assert form == (1, 2, tone.RATE)
        yield json.loads(row["json"])["digit"], SimpleNamespace(samples=samples, rate=tone.RATE)


def test_a_sound_is_written_as_the_standard_library_writes_it():
    """Byte for byte, so that shards stay what they are, whoever writes the files."""
    for samples in (tone.synthesise("7", np.random.default_rng(0)), np.array([-1.0, 0.5, 1.0])):
        stream = io.BytesIO()
        with wave.open(stream, "wb") as file:
            file.setparams((1, 2, tone.RATE, 0, "NONE", ""))
            file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
        assert tone.wav(samples) == stream.getvalue()


@pytest.fixture(scope="module")
def dialled():
    return list(sounds(DigitsSource(sound=True, renderings_train=1), "train"))


def test_sound_changes_nothing_else():
    silent, sounding = (list(DigitsSource(scans=5, sound=sound).samples("test")) for sound in (False, True))
    assert [{key: value for key, value in row.items() if key != "wav"} for row in sounding] == silent
    assert len({row["wav"] for row in sounding}) == 15


def test_the_judge_reads_what_was_dialled(dialled):
    readings = DigitsJudge().read("audio", [sound for _, sound in dialled])
    right = np.mean([a == digit for a, (digit, _) in zip(readings["digit"], dialled, strict=True)])
    assert len(dialled) == 1437 and right >= 0.999
    assert set(readings["colour"] + readings["ground"]) == {None}


def test_the_judge_reads_through_more_noise_silence_and_other_rates(dialled):
    rng = np.random.default_rng(0)
    for digit, sound in dialled[:50]:
        x = sound.samples
        louder = x + np.sqrt((x**2).mean()) * 10 ** (-5 / 20) * rng.standard_normal(len(x))  # 5 dB below the tone
        assert tone.read(louder, tone.RATE) == tone.read(np.pad(x, 3000), tone.RATE) == digit
        assert tone.read(np.repeat(x, 2), 2 * tone.RATE) == digit


def test_what_is_no_dial_tone_of_a_digit_reads_as_none(dialled):
    rng = np.random.default_rng(0)
    time = np.arange(2400) / tone.RATE
    star, single, low = (
        sum(np.sin(2 * np.pi * f * time) for f in row) / 4 for row in ((941, 1209), (770,), (300, 450))
    )
    two_keys = dialled[0][1].samples[:1000] + next(s.samples[:1000] for d, s in dialled if d != dialled[0][0])
    for samples in (star, single, low, two_keys, rng.normal(0, 0.2, 2400), np.zeros(2400), np.zeros(0)):
        assert tone.read(samples, tone.RATE) is None
    assert tone.read(dialled[0][1].samples, 2000) is None  # below twice the highest frequency nothing can be said


def test_goertzel_is_the_energy_of_a_sinusoid():
    time = np.arange(4000) / tone.RATE
    frames = tone._frames(0.3 * np.sin(2 * np.pi * 770 * time + 1), 320)
    energies = tone.goertzel(frames, tone.RATE, (697, 770, 852)).sum(axis=0) / (frames**2).sum()
    assert energies[1] == pytest.approx(1, abs=0.01) and max(energies[[0, 2]]) < 0.01


def test_each_digit_has_its_own_frequencies():
    assert {tone.frequencies(str(digit)) for digit in range(10)} == {
        *product((697, 770, 852), (1209, 1336, 1477)),
        (941, 1336),
    }


def test_training_samples_may_lack_members():
    whole, source = (DigitsSource(renderings_train=2, scans=60, sound=True, lacks=lacks) for lacks in (None, LACKS))
    rows, full = list(source.samples("train")), list(whole.samples("train"))
    shares = {member: sum(member not in row for row in rows) / len(rows) for member in ("png", "txt", "wav")}
    assert shares == {"png": 0, "txt": pytest.approx(0.5, abs=0.15), "wav": pytest.approx(0.2, abs=0.12)}
    assert all(row.items() <= other.items() for row, other in zip(rows, full, strict=True))
    assert all({"png", "txt", "wav"} <= row.keys() for row in source.samples("test"))
    with pytest.raises(ValueError, match="gif"):
        DigitsSource(lacks={"gif": 0.5})


LACKS = {"txt": 0.5, "wav": 0.2}


def test_the_judge_says_none_of_what_is_no_digit_and_seldom_of_one(judge, test):
    images, _, _ = test
    scans, numerals = load_scans()
    rng = np.random.default_rng(0)
    halves = []
    while len(halves) < 200:
        first, second = rng.integers(1437, size=2)
        if numerals[first] != numerals[second]:
            halves.append(draw(np.concatenate([scans[first][:4], scans[second][4:]]), "red", "black"))
    none = {
        name: np.mean([reading is None for reading in judge.read("image", raws)["digit"]])
        for name, raws in (("real", images), ("halves", halves))
    }
    assert none["real"] <= 0.04 and none["halves"] >= 0.2
    assert judge.read("image", halves)["colour"] == ["red"] * 200  # it is a drawing in red all the same
