"""Recordings: every format of samples, rates, lengths and channels come out alike; what was done is said."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import wavfile

from assay.data import Dataset
from assay.errors import AssayError
from assay.own import read
from assay.own.audio import Sound, waveform
from assay.own.baselines import baseline, kind, reference
from assay.own.fresh import stream
from assay.own.reading import understand
from assay.train.loop import fit

RATE = 8000


def sine(hertz: float, seconds: float = 0.5, rate: int = RATE, amplitude: float = 0.5) -> NDArray[np.float64]:
    return np.asarray(amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate))


def write(path: Path, samples: NDArray[np.float64], rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, (samples * 32767).astype(np.int16))


def tones(folder: Path, count: int = 12, seconds: float = 0.5) -> Path:
    """Low tones in one class, high ones in the other."""
    rng = np.random.default_rng(0)
    for name, low in (("low", 200), ("high", 1500)):
        for place in range(count):
            noise = rng.normal(size=round(seconds * RATE)) * 0.01
            write(folder / name / f"{place}.wav", sine(low * rng.uniform(1, 1.5), seconds) + noise)
    return folder


def whole(data: Dataset) -> int:
    return len(data.train) + len(data.valid) + len(data.test)


def test_folder_becomes_spectrograms_that_are_learnt(tmp_path: Path) -> None:
    data, preparation = understand(tones(tmp_path / "tones", 30))
    assert kind(data) == "audio"
    assert data.input_shape == (64, 51)
    assert data.classes == ("high", "low")
    assert "recordings of 0.50 s as log-mel spectrograms of 64 bands" in data.source
    assert Sound.from_form(preparation.form).mel.rate == RATE
    assert isinstance(data.train.inputs, torch.Tensor)
    torch.testing.assert_close(data.train.inputs.mean(dim=(0, 2)), torch.zeros(64), atol=1e-4, rtol=0)
    recipe = baseline(data)
    assert fit(recipe.replace(epochs=6), seed=0).accuracy() == 1.0
    assert torch.equal(reference(data, 0)["predicted"], data.test.labels.double())


def test_new_recordings_are_read_as_those_in_training(tmp_path: Path) -> None:
    folder = tones(tmp_path / "tones", 30)
    data, preparation = understand(folder)
    write(folder / "low" / "30.wav", sine(250, 2.0, 44_100), 44_100)
    (piece,) = stream(folder, preparation, [])
    assert len(piece) == 61
    assert piece.inputs.shape[1:] == data.input_shape  # type: ignore[union-attr]
    assert list(piece.target) == ["high"] * 30 + ["low"] * 31  # type: ignore[arg-type]
    prepared = preparation(piece.inputs)
    everything = torch.cat([split.inputs for split in (data.train, data.valid, data.test)])  # type: ignore[misc]
    assert all(any(torch.equal(one, other) for other in prepared) for one in everything)
    (alone,) = stream(folder / "low" / "30.wav", preparation, [])
    torch.testing.assert_close(alone.inputs[0], piece.inputs[piece.ids.index("low/30.wav")])  # type: ignore[index]


def _pcm24(path: Path, samples: NDArray[np.float64]) -> None:
    content = b"".join(struct.pack("<i", int(value * 8388607))[:3] for value in samples)
    head = struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 3, 3, 24)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(content)) + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(content)) + content
    )


def test_all_formats_of_samples_are_the_same_sound(tmp_path: Path) -> None:
    wave = sine(440)
    formats = {
        "u8": np.round(wave * 127 + 128).astype(np.uint8),
        "i16": (wave * 32767).astype(np.int16),
        "i32": (wave * 2147483647).astype(np.int32),
        "f32": wave.astype(np.float32),
        "f64": wave,
        "stereo": np.stack([wave * 2, wave * 0], axis=1).astype(np.float32),
    }
    for name, samples in formats.items():
        wavfile.write(tmp_path / f"{name}.wav", RATE, samples)
    _pcm24(tmp_path / "i24.wav", wave)
    for name in (*formats, "i24"):
        found = waveform(tmp_path / f"{name}.wav", RATE, len(wave))
        assert found is not None
        np.testing.assert_allclose(found, wave, atol=0.01 if name == "u8" else 1e-4)


@pytest.mark.parametrize("rate", [4000, 11_025, 44_100])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    write(tmp_path / "a.wav", sine(440, rate=rate), rate)
    found = waveform(tmp_path / "a.wav", RATE, 4000)
    assert found is not None
    assert len(found) == 4000
    np.testing.assert_allclose(found[200:-200], sine(440)[200:-200], atol=0.01)


def test_repairs_are_said(tmp_path: Path) -> None:
    folder = tones(tmp_path / "tones", 30)
    write(folder / "low" / "0.wav", sine(250, 2.0))
    write(folder / "low" / "1.wav", sine(250, 0.2))
    write(folder / "low" / "2.wav", sine(250, 0.5, 44_100), 44_100)
    wavfile.write(folder / "low" / "3.wav", RATE, np.zeros((4000, 2), dtype=np.int16))
    wavfile.write(folder / "low" / "4.wav", RATE, np.zeros(0, dtype=np.int16))
    content = (folder / "low" / "5.wav").read_bytes()
    (folder / "low" / "5.wav").write_bytes(content[: len(content) // 2])
    write(folder / "lost.wav", sine(250))
    data = read(folder)
    assert whole(data) == 59
    for part in (
        "recordings of 0.2 to 2 s brought to 0.50 s (2 filled up with silence, 1 cut to their beginning)",
        "8000 to 44100 samples a second brought to 8000",
        "1 recordings of 2 channels mixed down to one",
        "1 unreadable files left out (low/4.wav)",
        "1 recordings end before their header says (first: low/5.wav)",
        "1 recordings are silent (first: low/3.wav)",
        "1 wav files outside of the class folders left out",
    ):
        assert part in data.source


def test_own_split_is_kept(tmp_path: Path) -> None:
    tones(tmp_path / "tones" / "train")
    tones(tmp_path / "tones" / "test", 5)
    data = read(tmp_path / "tones")
    assert len(data.test) == 10
    assert "training and test as found" in data.source


def test_long_recordings_get_a_longer_hop(tmp_path: Path) -> None:
    folder = tmp_path / "tones"
    for name in "ab":
        for place in range(6):
            write(folder / name / f"{place}.wav", sine(300 + place, 12.0))
    data = read(folder)
    assert data.input_shape[1] <= 129
    assert "brought to 10.00 s" in data.source


def test_too_many_recordings_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_MEMORY", f"{20 * 64 * 128 * 16 / 1024}K")
    data = read(tones(tmp_path / "tones", 30))
    assert whole(data) == 20
    assert "20 of 60 recordings, drawn at random" in data.source


def test_other_formats_are_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "a.mp3").write_bytes(b"ID3")
    with pytest.raises(AssayError, match=r"are \.mp3 files, which are not read: convert them to \.wav"):
        read(tmp_path / "x")
