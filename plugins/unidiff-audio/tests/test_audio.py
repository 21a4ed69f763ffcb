import base64
import json
import os
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from unidiff_audio.autoencoder import MelAutoencoder
from unidiff_audio.codec import AudioCodec
from unidiff_audio.neural import NeuralAudioCodec
from unidiff_audio.spectrogram import LogMel
from unidiff_audio.training import AudioData, MelAutoencoderTraining, initialise, sounds_of
from unidiff_audio.vocoder import GriffinLimVocoder, Vocoder

from unidiff_core import Codec, CodecTraining, Modality, ShardData, Stream, UniDiffuser, Waveform, write_shards
from unidiff_core.codec.waveform import fitted, from_wav, to_wav
from unidiff_core.evaluation.report import write_report
from unidiff_core.evaluation.run import Evaluation, Example, Query, Settings
from unidiff_core.foundation.plugin import load_plugins
from unidiff_core.network.uvit import UViT
from unidiff_core.serialization.description import build, describe
from unidiff_core.testing import check_codec

RATE = 8000
MEL = {"rate": RATE, "window": 128, "hop": 32, "bands": 24, "floor": -50.0}
DECLARED = {"rate": RATE, "seconds": 0.128, "hop": 32, "downsampling": 4, "channels": 3}


def tone(frequency, *, seconds=0.128, rate=RATE, amplitude=0.5):
    return Waveform(amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate), rate)


def pitch(waveform):
    """Frequency of the strongest component, Hz."""
    spectrum = np.abs(np.fft.rfft(waveform.samples * np.hanning(len(waveform.samples))))
    return spectrum.argmax() * waveform.rate / len(waveform.samples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A mel autoencoder, untrained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    network = MelAutoencoder(**MEL, channels=3, levels=2, width=8)
    initialise(network)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def codec(folder):
    return AudioCodec(str(folder), **DECLARED)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    rows = [(f"{i:03d}", tone(rng.uniform(300, 2000), seconds=rng.uniform(0.05, 0.12))) for i in range(60)]
    write_shards(folder, [{"__key__": key, "wav": to_wav(sound)} for key, sound in rows])
    return folder


# --- sounds and files ---


def test_a_file_is_read_and_written_as_wav():
    data = to_wav(tone(440))
    codec = AudioCodec()
    assert codec.to_bytes(codec.from_bytes(data)) == data
    for bad in (b"", b"not a sound", data[:30], data[:44]):
        with pytest.raises(ValueError, match="sound file"):
            codec.from_bytes(bad)


def test_a_sound_is_resampled_filled_up_or_cut_with_a_warning():
    assert pitch(Waveform(fitted(tone(1000, rate=16000), RATE, 1024), RATE)) == pytest.approx(1000, abs=8)
    short = fitted(tone(440, seconds=0.1), RATE, 1024)
    assert short[:800].abs().max() > 0.4 and not short[800:].any()
    with pytest.warns(UserWarning, match=r"a sound of 0.2 s is cut at the 0.128 s"):
        assert len(fitted(tone(440, seconds=0.2), RATE, 1024)) == 1024


# --- spectrogram and vocoder ---


def test_the_scale_of_the_spectrogram():
    mel = LogMel(**MEL)
    loud, quiet, silent = mel(torch.from_numpy(np.stack([tone(1000, amplitude=a).samples for a in (1, 0.1, 0)])))
    assert loud.shape == (24, 32)
    assert loud.max() == pytest.approx(1, abs=0.1)
    assert loud.max() - quiet.max() == pytest.approx(2 * 20 / 50, abs=1e-3)  # 20 of 50 dB
    assert (silent == -1).all()
    torch.testing.assert_close(mel(torch.zeros(1, 1024)), -torch.ones(1, 24, 32))
    with pytest.raises(ValueError, match="less than 0, not 3"):
        LogMel(**MEL | {"floor": 3})


def test_griffin_lim_gives_the_sound_back_without_chance():
    mel = LogMel(RATE, window=256, hop=64, bands=64, floor=-60.0)
    sounds = torch.from_numpy(np.stack([tone(f, seconds=0.256).samples for f in (500, 1000, 1500)]))
    magnitudes = mel.magnitudes(mel(sounds))
    torch.manual_seed(0)
    heard = GriffinLimVocoder()(magnitudes, mel)
    torch.manual_seed(1)
    assert torch.equal(GriffinLimVocoder()(magnitudes, mel), heard)
    assert heard.shape == sounds.shape
    assert [pitch(Waveform(row, RATE)) for row in heard] == pytest.approx([500, 1000, 1500], abs=20)
    assert heard.square().mean(1).sqrt().tolist() == pytest.approx([0.5 / 2**0.5] * 3, rel=0.25)
    # Iterations bring the spectrogram of what is heard nearer to what was asked for.
    asked = mel.linear(magnitudes)
    spectra = [mel.spectrogram(GriffinLimVocoder(n)(magnitudes, mel))[..., :-1] for n in (0, 4, 32)]
    errors = [float((spectrum - asked).norm() / asked.norm()) for spectrum in spectra]
    assert errors[0] > errors[1] > errors[2]


def test_mel_bands_are_inverted_without_negative_magnitudes():
    mel = LogMel(RATE, window=256, hop=64, bands=64, floor=-60.0)
    spectrum = mel.spectrogram(torch.from_numpy(tone(1000).samples)[None])
    inverted = mel.linear(mel.scale(spectrum))
    assert (inverted >= 0).all()
    torch.testing.assert_close(mel.scale(inverted), mel.scale(spectrum), rtol=0.1, atol=0.5)
    assert (inverted - spectrum).norm() < 0.3 * spectrum.norm()


# --- the codec ---


def test_the_region_of_a_stretch_is_the_cells_that_it_touches():
    codec = AudioCodec()  # 16 cells
    cell = codec.seconds / 16
    inside = codec.mask([2.5 * cell, 4 * cell])["mel"]
    assert inside.shape == (16, 16) and inside[0].nonzero().flatten().tolist() == [2, 3] and inside.sum() == 32
    assert torch.equal(codec.mask({"mel": [[2, 4]]})["mel"], inside)
    for region in ([1.0, 0.5], [0, 99.0]):
        with pytest.raises(ValueError, match="is not within the"):
            codec.mask(region)
    with pytest.raises(ValueError, match=r"\[from, to\] in seconds"):
        codec.mask("all")


def test_streams_are_declared_without_loading_anything():
    codec = AudioCodec()
    assert codec.streams == {"mel": Stream.grid(16, 16)} and not list(codec.parameters())
    assert AudioCodec(patch=2).streams["mel"].num_tokens == 8
    with pytest.raises(ValueError, match=r"2\.1 s at 16000 Hz do not divide .* 2\.048 s would"):
        AudioCodec(seconds=2.1)


def test_round_trip_shapes_and_silence(codec):
    stored = codec.encode([tone(440), tone(880, seconds=0.05), tone(440, rate=11025)])
    assert stored["mel"].shape == (3, *codec.streams["mel"].shape) == (3, 3, 8)
    assert codec.latent(stored, None)["mel"] is stored["mel"]
    sounds = codec.decode(stored)
    assert [(len(sound.samples), sound.rate) for sound in sounds] == [(1024, RATE)] * 3
    assert codec.encode([])["mel"].shape == (0, 3, 8) and codec.decode({"mel": torch.empty(0, 3, 8)}) == []
    with pytest.raises(ValueError, match="a Waveform, not list"):
        codec.encode([[0.0, 1.0]])


def test_encoding_and_decoding_repeat_and_each_sample_stands_alone(codec, folder, monkeypatch):
    sounds = [tone(f) for f in (400, 800, 1600)]
    whole = codec.encode(sounds)
    other = AudioCodec(str(folder), **DECLARED)
    monkeypatch.setattr("unidiff_audio.codec.SECONDS_AT_ONCE", 0.2)
    torch.testing.assert_close(other.encode(sounds), whole, atol=1e-5, rtol=1e-5)
    alone = other.decode({"mel": whole["mel"][1:2]})[0]
    assert np.array_equal(alone.samples, codec.decode(whole)[1].samples)


@pytest.mark.parametrize("kind", ["mel", "dac", "encodec"])
def test_the_contract_is_kept(kind, codec, tmp_path):
    if kind != "mel":
        save_neural(kind, tmp_path)
        codec = NeuralAudioCodec(str(tmp_path), RATE, 0.128, downsampling=32, channels=32)
    sounds = [from_wav(to_wav(tone(f, amplitude=a))) for f, a in ((440, 0.5), (880, 0.5), (1500, 0.1))]
    assert "batch independence" in check_codec(codec, sounds).clauses


def test_the_network_is_frozen(codec):
    codec.encode([tone(440)])
    codec.train()
    assert not any(module.training for module in codec.modules())
    assert list(codec.parameters()) and not any(p.requires_grad for p in codec.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 4}, "has channels 3; declared are channels 4"),
        ({"rate": 4000, "seconds": 0.256}, "has rate 8000; declared are rate 4000"),
        ({"autoencoder": "no/such/folder"}, "no folder of weights"),
    ],
)
def test_a_network_that_is_not_as_declared(folder, change, message):
    with pytest.raises(ValueError, match=message):
        AudioCodec(**{"autoencoder": str(folder), **DECLARED, **change}).encode([tone(440)])


def test_damaged_weights_are_named(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for change, message in (({"width": 9}, "does not fit its config"), ({"depth": 1}, "not a mel autoencoder's")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            MelAutoencoder.from_pretrained(str(tmp_path))


def test_the_distance_of_sounds():
    codec = AudioCodec()
    assert codec.distance(tone(440), tone(440)) == 0
    assert codec.distance(tone(440), tone(440, amplitude=0.25)) == pytest.approx(0.25, abs=0.01)
    assert codec.distance(tone(440), tone(440, rate=16000)) == codec.distance(tone(440), tone(440, seconds=1)) == np.inf


def test_saving_and_showing(codec, tmp_path):
    paths = codec.save([tone(440), tone(880)], tmp_path, first_index=3)
    assert [path.name for path in paths] == ["00003.wav", "00004.wav"]
    assert pitch(codec.parse(str(paths[1]))) == pytest.approx(880, abs=8)
    html = codec.html(tone(440))
    data = re.fullmatch(r'<audio controls style="[^"]*" src="data:audio/wav;base64,([^"]+)"></audio>', html)[1]
    assert base64.b64decode(data) == to_wav(tone(440))


# --- as a plugin ---


class Buzz(Vocoder):
    """A stranger's vocoder: noise-free, phase-free, and of little beauty."""

    def __init__(self, level=0.1):
        super().__init__()
        self.level = level

    def forward(self, magnitudes, mel):
        return self.level * torch.ones(len(magnitudes), magnitudes.shape[-1] * mel.hop)


def test_the_plugin_registers():
    registry = load_plugins()
    assert not registry.failures
    assert registry.find("AudioCodec", Codec) is AudioCodec
    assert registry.find("MelAutoencoderTraining", CodecTraining) is MelAutoencoderTraining
    assert registry.find("AudioData", ShardData) is AudioData
    names = ("AudioCodec", "NeuralAudioCodec", "GriffinLimVocoder", "MelAutoencoderTraining", "AudioData")
    assert {registry.registrations[name].distribution for name in names} == {"unidiff-audio"}


def test_a_vocoder_is_given_by_class_path_and_recorded(folder, monkeypatch):
    parser = ArgumentParser()
    parser.add_argument("--codec", type=Codec)
    monkeypatch.setitem(sys.modules, "strange", SimpleNamespace(Buzz=Buzz))
    vocoder = {"class_path": "strange.Buzz", "init_args": {"level": 0.25}}
    config = {"class_path": "AudioCodec", "init_args": {"autoencoder": str(folder), **DECLARED, "vocoder": vocoder}}
    codec = parser.instantiate_classes(parser.parse_object({"codec": config})).codec
    assert type(codec.vocoder) is Buzz
    assert set(codec.decode(codec.encode([tone(440)]))[0].samples) == {0.25}
    registry = load_plugins()
    with pytest.raises(ValueError, match="unknown object 'Buzz'"):
        describe(codec, registry)
    registry.add(Buzz)
    copy = build(describe(codec, registry), registry)
    assert type(copy.vocoder) is Buzz and copy.vocoder.level == 0.25


def test_a_model_with_sound_is_saved_loaded_and_sampled_into_files(codec, tmp_path, capsys):
    from unidiff_core.cli.sample import run

    codec.vocoder = GriffinLimVocoder(iterations=7)
    model = UniDiffuser({"sound": Modality(codec)}, lambda ports: UViT(ports, width=16, depth=3, heads=2))
    model.save_pretrained(tmp_path / "model")
    assert UniDiffuser.from_pretrained(tmp_path / "model").modalities["sound"].codec.vocoder.iterations == 7
    run([str(tmp_path / "model"), "sound", "--num=3", "--steps=2", f"--out={tmp_path / 'out'}"])
    assert "3 sound" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out/sound").iterdir())
    assert names == ["00000.wav", "00001.wav", "00002.wav"]
    assert len(from_wav((tmp_path / "out/sound/00002.wav").read_bytes()).samples) == 1024


def test_a_report_has_a_player(codec, tmp_path):
    shown = Evaluation({"sound": {}}, {}, Settings("train", "test", {"sound": Query()}))
    shown.examples["sound"] = [Example({}, {"sound": tone(440)}, ())]
    write_report(tmp_path / "report.html", shown, {"sound": codec}, title="Sounds")
    assert (tmp_path / "report.html").read_text().count("<audio controls") == 1


# --- training ---


def test_fit_codec_trains_and_exports(shards, tmp_path):
    sizes = MEL | {"channels": 3, "levels": 2, "width": 8}
    config = {
        "output": str(tmp_path / "ae"),
        "model": {"class_path": "MelAutoencoderTraining", "init_args": sizes},
        "data": {
            "class_path": "AudioData",
            "init_args": {"folder": str(shards), "rate": RATE, "seconds": 0.128, "batch_size": 16, "holdout": 0.2},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 4, "enable_progress_bar": False},
    }
    (tmp_path / "ae.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "unidiff_core.cli.main", "fit-codec", "-c", str(tmp_path / "ae.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error_db" in done.stdout
    assert json.loads((tmp_path / "ae/metrics.json").read_text())["code_numbers"] == 3 * 8
    heard = sorted((tmp_path / "ae/reconstructions").iterdir())
    assert len(heard) == 24 and len(from_wav(heard[0].read_bytes()).samples) == 1024
    codes = AudioCodec(str(tmp_path / "ae"), **DECLARED).encode([tone(f) for f in (300, 900)])["mel"]
    assert codes.shape == (2, 3, 8) and codes.isfinite().all()


def test_training_learns_and_standardises(shards, tmp_path):
    torch.manual_seed(0)
    data = AudioData(str(shards), RATE, 0.128, holdout=0.2)
    data.setup()
    assert (len(data.training), len(data.held_out)) == (48, 12)
    sounds, held_out = sounds_of(data.training), sounds_of(data.held_out)
    assert sounds.shape == (48, 1024)
    training = MelAutoencoderTraining(**MEL, channels=4, levels=2, width=32, noise=0.1)
    training.log = lambda *arguments, **options: None
    optimizer = torch.optim.Adam(training.parameters(), 5e-3)
    with torch.no_grad():
        before = float(training._error(held_out))
    for _ in range(100):
        optimizer.zero_grad()
        training.training_step({"sound": sounds}, 0).backward()
        optimizer.step()
    metrics = training.export(tmp_path, data)
    assert metrics["error_db"] < 0.7 * before
    network = MelAutoencoder.from_pretrained(str(tmp_path))
    codes = network.encode(network.mel(sounds))
    torch.testing.assert_close(codes.mean((0, 2)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(codes.std((0, 2)), torch.ones(4), atol=1e-2, rtol=0)


def test_data_that_will_not_do_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"no sample of .* has \.flac"):
        AudioData(str(shards), RATE, 0.128, member="flac").setup()
    with pytest.raises(ValueError, match="60 samples, of which 0 are held out"):
        AudioData(str(shards), RATE, 0.128, holdout=0.001).setup()
    write_shards(tmp_path, [{"__key__": "bad", "wav": b"RIFF"}])
    with pytest.raises(ValueError, match=r"sample 'bad' .* not a readable sound file"):
        AudioData(str(tmp_path), RATE, 0.128).setup()


# --- neural codecs ---


def save_neural(kind, folder, **changes):
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    torch.manual_seed(0)
    if kind == "dac":
        sizes = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 4, 4], "decoder_hidden_size": 16}
        model = DacModel(DacConfig(**sizes, n_codebooks=2, codebook_size=8, codebook_dim=2, sampling_rate=RATE))
    else:
        sizes = {"num_filters": 4, "hidden_size": 32, "upsampling_ratios": [4, 4, 2], "num_lstm_layers": 1}
        model = EncodecModel(EncodecConfig(**sizes | {"codebook_size": 8, "sampling_rate": RATE} | changes))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["dac", "encodec"])
def test_a_neural_codec_is_its_encoder_and_decoder_without_the_quantiser(kind, tmp_path):
    network = save_neural(kind, tmp_path)
    codec = NeuralAudioCodec(str(tmp_path), RATE, 0.128, downsampling=32, channels=32, mean=0.5, std=2.0)
    assert codec.streams == {"codec": Stream.grid(32, 32)} and not list(codec.parameters())
    sounds = [tone(440), tone(880, seconds=0.1)]
    latents = codec.encode(sounds)
    with torch.no_grad():
        raw = network.encoder(codec.samples(sounds)[:, None])
        expected = network.decoder(raw)[:, 0].clamp(-1, 1)
    torch.testing.assert_close(latents["codec"], (raw - 0.5) / 2)
    assert latents["codec"].shape[1:] == codec.streams["codec"].shape
    heard = codec.decode(latents)
    assert [len(sound.samples) for sound in heard] == [1024, 1024]
    width = min(expected.shape[-1], 1024)
    np.testing.assert_allclose(heard[1].samples[:width], expected[1, :width], atol=1e-5)
    assert codec.statistics(sounds) == pytest.approx((float(raw.mean()), float(raw.std())), rel=1e-4, abs=1e-6)
    assert codec.encode([])["codec"].shape == (0, 32, 32)
    assert len(pickle.dumps(codec)) > 1000
    assert not any(p.requires_grad for p in codec.parameters())


def test_a_neural_codec_that_is_not_as_declared(tmp_path):
    save_neural("encodec", tmp_path / "mono")
    save_neural("encodec", tmp_path / "stereo", audio_channels=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "whisper"}')
    (tmp_path / "other/model.safetensors").write_bytes(b"")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/config.json").write_text('{"model_type": "dac"}')
    cases = {
        "mono": "has rate 8000, downsampling 32 and channels 32; declared are rate 8000, downsampling 16",
        "stereo": "stereo",
        "other": "'whisper'; known: encodec, dac",
        "pickled": "lacks model.safetensors",
        "absent": "no folder of weights",
    }
    for name, message in cases.items():
        codec = NeuralAudioCodec(str(tmp_path / name), RATE, 0.128, downsampling=16, channels=32)
        with pytest.raises(ValueError, match=message):
            codec.encode([tone(440)])
    with pytest.raises(ValueError, match="std is positive"):
        NeuralAudioCodec(std=0)
