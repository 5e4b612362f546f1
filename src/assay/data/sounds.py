"""Public sets of sounds, as waveforms in [-1, 1]."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

from assay.data.archives import read_tar_members
from assay.data.build import dataset, parsed
from assay.data.dataset import Dataset, Split
from assay.data.files import fetch_entry
from assay.data.registry import Entry

_SAMPLES = 8_000  # one second; 20 of the 3,000 recordings are longer
_TEST = 5  # recordings number 0 to 4 of every digit and speaker


def spoken_digits(entry: Entry) -> Dataset:
    """Waveforms (N, 1, 8000) at 8 kHz, cut to their first second or with silence behind; labels are the digits.

    In order of speaker, digit and number: position // 450 is the speaker of a training recording, // 50 that of a test one.
    """
    ((file, place),) = fetch_entry(entry)
    raw = parsed("spoken-digits", file.sha256, lambda: _waves(place, entry["speakers"]))
    waves = raw["waves"].view(len(entry["speakers"]), 10, 50, 1, _SAMPLES)
    digits = torch.arange(10)[None, :, None].expand(waves.shape[:3])
    test, train = (
        Split(waves[:, :, part].flatten(0, 2).float() / 32768, digits[:, :, part].flatten())
        for part in (slice(_TEST), slice(_TEST, None))
    )
    return dataset(entry, train, test, classes=entry["classes"])


def _waves(place: Path, speakers: tuple[str, ...]) -> dict[str, Tensor]:
    """(3000, 8000) int16, in order of speaker, digit and number."""
    folder = "recordings" if place.suffix == ".xz" else "free-spoken-digit-dataset-1.0.10/recordings"
    names = [f"{folder}/{digit}_{speaker}_{number}.wav" for speaker, digit, number in product(speakers, range(10), range(50))]
    members = read_tar_members(place, names)
    waves = np.zeros((len(names), _SAMPLES), dtype=np.int16)
    for row, name in enumerate(names):
        _, samples = wavfile.read(io.BytesIO(members[name]))
        waves[row, : len(samples)] = samples[:_SAMPLES]
    return {"waves": torch.from_numpy(waves)}
