"""A front end for sound, and a small network on top of it: waveforms become log-mel spectrograms.

A mel filter bank sums the power spectrum up in bands that are as wide as the ear hears them: equally wide on the mel scale,
so narrow at low frequencies and wide at high ones. The logarithm of it is what most networks for sound start from.

    spectrograms = log_mel(waveforms, Mel(rate=16_000))          # (N, L) -> (N, 64, T)
    logits = AudioCNN(bands=64, num_classes=10)(spectrograms)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

#: Power that is added before the logarithm: -80 dB of a full-scale sine, so that silence is a number.
FLOOR = 1e-8


@dataclass(frozen=True)
class Mel:
    """Settings of a log-mel spectrogram.

    Args:
        rate: samples a second.
        window: samples that one column of the spectrogram looks at (a Hann window); 25 ms are usual.
        hop: samples from one column to the next; 10 ms are usual.
        bands: rows of the spectrogram.
    """

    rate: int
    window: int = 400
    hop: int = 160
    bands: int = 64

    @property
    def fft(self) -> int:
        """Length of the Fourier transform: a power of two that holds the window and gives every band a frequency of its own."""
        narrowest = _hertz(_mel(torch.tensor(self.rate / 2)) / (self.bands + 1)).item()
        length = 2
        while length < self.window or self.rate / length > narrowest / 2:
            length *= 2
        return length


def _mel(hertz: Tensor) -> Tensor:
    """Frequencies on the mel scale of O'Shaughnessy 1987 ("HTK"), on which 1000 Hz are about 1000 mel."""
    return 2595 * torch.log10(1 + hertz / 700)


def _hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


def band_edges(rate: int, bands: int) -> Tensor:
    """Frequencies (bands + 2,) in Hz, equally far apart on the mel scale: band k rises from entry k to k + 1, falls to k + 2."""
    top = _mel(torch.tensor(rate / 2, dtype=torch.float64))
    return _hertz(torch.linspace(0, top.item(), bands + 2, dtype=torch.float64))


@cache
def mel_filters(rate: int, fft: int, bands: int) -> Tensor:
    """Triangular filters of height 1: (bands, fft // 2 + 1) float32."""
    frequencies = torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64)
    low, peak, high = band_edges(rate, bands).unfold(0, 3, 1).unbind(1)  # (bands,) each
    rising = (frequencies - low[:, None]) / (peak - low)[:, None]
    falling = (high[:, None] - frequencies) / (high - peak)[:, None]
    return torch.minimum(rising, falling).clamp_min(0).float()


def log_mel(waveforms: Tensor, settings: Mel) -> Tensor:
    """Log-mel spectrograms: the power in each band in dB of a full-scale sine, not below -80.

    Args:
        waveforms: (N, L) float32 in [-1, 1].
        settings: rate, window, hop and bands.

    Shape: (N, L) -> (N, bands, 1 + L // hop). Column t is centred on sample ``t * hop``; outside the recording is silence.
    """
    window = torch.hann_window(settings.window, device=waveforms.device)
    spectrum = torch.stft(
        waveforms,
        settings.fft,
        hop_length=settings.hop,
        win_length=settings.window,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    # Parseval: so scaled, the power of a sine of amplitude 1 sums up to 1 over all frequencies, however long the transform.
    power = spectrum.abs().square() * (4 / (settings.fft * window.square().sum()))  # (N, fft // 2 + 1, T)
    filters = mel_filters(settings.rate, settings.fft, settings.bands).to(waveforms.device)
    return 10 * torch.log10(filters @ power + FLOOR)


class AudioCNN(nn.Module):
    """Four convolutions over a spectrogram, each with batch normalisation and half as many rows and columns as before.

    A plain, small relative of the networks that are usual for tagging sound. At the end the rows stay apart while the columns
    become their mean and maximum: a pitch is something else when it is moved, and a moment is not.

    Args:
        bands: rows of the spectrogram.
        num_classes: number of logits.
        channels: planes of the four convolutions.
        dropout: before the linear layer.

    Shape: (B, bands, T), T at least 1 -> (B, num_classes).
    """

    def __init__(
        self,
        bands: int,
        num_classes: int,
        channels: tuple[int, int, int, int] = (16, 32, 64, 64),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        planes, rows = 1, bands
        for wide, width in zip(channels, (5, 3, 3, 3), strict=True):
            convolution = nn.Conv2d(planes, wide, width, stride=2, padding=width // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide), nn.ReLU()]
            planes, rows = wide, (rows + 1) // 2
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * planes * rows, num_classes)

    def forward(self, spectrograms: Tensor) -> Tensor:
        maps = self.features(spectrograms.unsqueeze(1))  # (B, C, rows, columns)
        over_time = torch.cat([maps.mean(dim=3), maps.amax(dim=3)], dim=1)
        logits: Tensor = self.head(self.dropout(over_time.flatten(1)))
        return logits
