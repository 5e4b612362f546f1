"""Log-mel spectrograms against closed forms and scipy's transform (and librosa if installed), and the network on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import ShortTimeFFT

from assay.nn.audio import FLOOR, AudioCNN, Mel, band_edges, log_mel, mel_filters


def _sine(hertz: float, rate: int, samples: int, amplitude: float = 1.0) -> torch.Tensor:
    return (amplitude * torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate)).float()


def test_bands_are_equally_wide_on_the_mel_scale() -> None:
    edges = band_edges(16_000, 40)
    mel = 1127.01048 * np.log1p(edges.numpy() / 700)  # the same scale, written with natural logarithms
    np.testing.assert_allclose(np.diff(mel), mel[-1] / 41, rtol=1e-6)
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(8000)


def test_filters_are_triangles() -> None:
    """With a bin on every edge the filters are exact: 1 at the peak, 0 at the neighbours' peaks, a sum of 1 in between."""
    filters = mel_filters(16_000, 2**15, 20).double()
    frequencies = torch.linspace(0, 8000, 2**14 + 1, dtype=torch.float64)
    edges = band_edges(16_000, 20)
    for band in (0, 7, 19):
        expected = np.interp(frequencies, edges[band : band + 3], [0.0, 1.0, 0.0], left=0, right=0)
        np.testing.assert_allclose(filters[band], expected, atol=1e-6)
    between = (frequencies > edges[1]) & (frequencies < edges[-2])
    torch.testing.assert_close(
        filters.sum(dim=0)[between], torch.ones(int(between.sum()), dtype=torch.float64), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_every_band_hears_something(rate: int) -> None:
    settings = Mel(rate, window=round(0.025 * rate), hop=round(0.01 * rate))
    assert (mel_filters(rate, settings.fft, settings.bands).amax(dim=1) > 0.5).all()


def test_power_is_that_of_scipys_transform() -> None:
    settings = Mel(rate=8000, window=200, hop=80, bands=32)
    wave = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    window = np.hanning(201)[:-1]  # periodic
    padding = (settings.fft - settings.window) // 2
    transform = ShortTimeFFT(np.pad(window, padding), settings.hop, fs=8000, mfft=settings.fft)
    spectrum = transform.stft(wave[0].numpy(), p0=0, p1=51) * 2 / np.sqrt(settings.fft * (window**2).sum())
    filters = mel_filters(8000, settings.fft, 32).numpy()
    expected = 10 * np.log10(filters @ np.abs(spectrum) ** 2 + FLOOR)
    np.testing.assert_allclose(log_mel(wave, settings)[0], expected, atol=2e-3)


def test_levels_are_in_decibels_of_a_full_scale_sine() -> None:
    settings = Mel(rate=16_000, bands=64)
    peak = band_edges(16_000, 64)[31].item()  # the peak of band 30
    loud, soft = (log_mel(_sine(peak, 16_000, 16_000, a).unsqueeze(0), settings)[0, :, 10:-10] for a in (1.0, 0.1))
    assert (loud.argmax(dim=0) == 30).all()
    # The filters sum up to 1 at every frequency, so nothing of the sine's power is lost.
    torch.testing.assert_close((10 ** (loud / 10)).sum(dim=0), torch.ones(loud.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close((10 ** (soft / 10)).sum(dim=0), torch.full((loud.shape[1],), 0.01), atol=1e-4, rtol=0)


def test_silence_is_a_number_and_columns_stand_where_they_should() -> None:
    settings = Mel(rate=8000, window=200, hop=80, bands=16)
    wave = torch.zeros(1, 8000)
    silence = log_mel(wave, settings)
    torch.testing.assert_close(silence, torch.full_like(silence, 10 * math.log10(FLOOR)))
    wave[0, 4000] = 1.0  # a click
    columns = log_mel(wave, settings)[0].sum(dim=0)
    assert columns.shape == (101,)
    assert columns.argmax() == 50


def test_filters_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=64, htk=True, norm=None)
    np.testing.assert_allclose(mel_filters(16_000, 1024, 64), expected, atol=1e-5)


def test_network_takes_any_length_and_knows_pitch_but_not_time() -> None:
    torch.manual_seed(0)
    network = AudioCNN(bands=20, num_classes=3).eval()
    spectrogram = torch.randn(2, 20, 16)
    assert network(spectrogram).shape == (2, 3)
    assert network(spectrogram[:, :, :1]).shape == (2, 3)
    # A whole number of strides, in silence on both sides: the same event somewhere else in time gives the same logits.
    event = torch.zeros(1, 20, 128)
    event[:, :, 48:64] = spectrogram[:1]
    moved = event.roll(16, dims=2)
    torch.testing.assert_close(network(event), network(moved), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(event), network(event.flip(1)), atol=1e-3)
