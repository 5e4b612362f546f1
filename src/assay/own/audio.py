"""A folder of wav files with one subfolder for each class, or with train and test folders that hold those; or named in a table.

Every recording becomes a log-mel spectrogram as soon as it is read, so that memory holds no waveforms.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from assay.errors import AssayError
from assay.nn.audio import Mel, log_mel
from assay.own.folders import Files, in_class_folders
from assay.own.limits import memory_bound
from assay.own.material import Material

SUFFIXES = {".wav", ".wave"}
#: Of other formats, which are named in the error.
OTHER_SUFFIXES = {".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma"}
#: Recordings with more samples a second are brought down to this rate: it holds what speech and most sounds tell.
_HIGHEST_RATE = 16_000
#: Of longer recordings the first part counts.
_LONGEST_SECONDS = 10.0
#: A spectrogram has at most about so many columns; longer recordings get a longer window and hop.
_MOST_COLUMNS = 128
_BANDS = 64
#: Bytes of memory at the peak for each value of an input: floats, their scaled copies, their splits.
_BYTES = 16


@dataclass(frozen=True)
class Sound:
    """How recordings are read: what makes new ones comparable with those that a network was trained on.

    Args:
        mel: settings of the spectrogram.
        samples: length of every recording, at the rate of ``mel``: longer ones are cut, shorter ones get silence behind.
    """

    mel: Mel
    samples: int

    @classmethod
    def fitting(cls, rates: Sequence[int], seconds: Sequence[float]) -> Self:
        """For recordings of these rates and lengths: the most frequent rate, and a length that holds 95 of 100."""
        rate = min(_HIGHEST_RATE, Counter(rates).most_common(1)[0][0])
        longest = min(_LONGEST_SECONDS, float(np.quantile(seconds, 0.95, method="higher")))
        samples = max(1, math.ceil(longest * rate))
        hop = max(round(0.010 * rate), math.ceil(samples / _MOST_COLUMNS), 1)
        window = max(round(0.025 * rate), 2 * hop, 2)
        return cls(Mel(rate, window, hop, _BANDS), samples)

    def as_form(self) -> dict[str, Any]:
        """As plain values, for :class:`~assay.own.preparing.Preparation`."""
        return {"kind": "audio", "samples": self.samples, **vars(self.mel)}

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> Self:
        """What :meth:`as_form` gave."""
        return cls(Mel(*(int(form[name]) for name in ("rate", "window", "hop", "bands"))), int(form["samples"]))

    @property
    def history(self) -> tuple[str, ...]:
        """As lines of a data set's history."""
        settings = ", ".join(f"{name}={value}" for name, value in (*vars(self.mel).items(), ("samples", self.samples)))
        return (f"log_mel({settings})",)

    @property
    def columns(self) -> int:
        """Of a spectrogram."""
        return 1 + self.samples // self.mel.hop


def read_audio(folder: Path) -> Material:
    """Log-mel spectrograms (N, 64, T) of the recordings in a folder.

    Raises:
        AssayError: no wav files, no class folders, links that lead out, or more than a few unreadable files.
    """
    files, inputs, what, sound = recordings(in_class_folders(folder, SUFFIXES, "wav files"))
    return Material(
        name=folder.name or str(folder),
        what=what,
        inputs=inputs,
        target=files.target,
        parts=files.parts,
        notes=files.notes,
        form=sound.as_form(),
        history=sound.history,
        task="classification",
        files=files.places,
    )


def recordings(files: Files) -> tuple[Files, Tensor, str, Sound]:
    """Read wav files.

    Returns:
        The files that could be read, their spectrograms (N, 64, T), what they are, and how to read others alike.

    Raises:
        AssayError: more than a few cannot be read.
    """
    files = files.within(memory_bound() // (_BANDS * _MOST_COLUMNS * _BYTES), "recordings")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked = list(pool.map(_look, files.paths))
    files.refuse_many({place for place, seen in enumerate(looked) if seen is None}, "wav files")
    good = [seen for seen in looked if seen is not None]
    rates, channels = [seen.rate for seen in good], [seen.channels for seen in good]
    seconds = [seen.samples / seen.rate for seen in good]
    sound = Sound.fitting(rates, seconds)
    found = spectrograms(files.paths, sound)
    kept = files.without({place for place, one in enumerate(found) if one is None}, "wav files")
    inputs = torch.stack([one for one in found if one is not None])
    if max(rates) != min(rates) or rates[0] != sound.mel.rate:
        span = f"{min(rates)} to {max(rates)}" if max(rates) != min(rates) else f"{rates[0]}"
        kept.notes.append(f"{span} samples a second brought to {sound.mel.rate}")
    if max(channels) > 1:
        kept.notes.append(f"{sum(count > 1 for count in channels)} recordings of {max(channels)} channels mixed down to one")
    length = sound.samples / sound.mel.rate
    shorter = sum(one < length - 0.001 for one in seconds)
    longer = sum(one > length + 0.001 for one in seconds)
    if shorter or longer:
        steps = [f"{shorter} filled up with silence"] * bool(shorter) + [f"{longer} cut to their beginning"] * bool(longer)
        kept.notes.append(
            f"recordings of {min(seconds):.2g} to {max(seconds):.3g} s brought to {length:.2f} s ({', '.join(steps)})"
        )
    early = [place for place, seen in enumerate(looked) if seen is not None and seen.cut]
    if early:
        kept.notes.append(f"{len(early)} recordings end before their header says (first: {files.name(early[0])})")
    silent = (inputs.amax(dim=(1, 2)) - inputs.amin(dim=(1, 2)) < 1e-3).nonzero().flatten().tolist()
    if silent:
        kept.notes.append(f"{len(silent)} recordings are silent (first: {kept.name(silent[0])})")
    what = f"recordings of {length:.2f} s as log-mel spectrograms of {sound.mel.bands} bands and {sound.columns} columns"
    return kept, inputs, what, sound


def spectrograms(files: Sequence[Path | bytes], sound: Sound) -> list[Tensor | None]:
    """A log-mel spectrogram (bands, T) of each file; ``None`` where one is broken or has no samples."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _spectrogram(path, sound), files))


def _spectrogram(path: Path | bytes, sound: Sound) -> Tensor | None:
    wave = waveform(path, sound.mel.rate, sound.samples)
    if wave is None:
        return None
    padded = np.zeros(sound.samples, dtype=np.float32)
    padded[: len(wave)] = wave
    return log_mel(torch.from_numpy(padded).unsqueeze(0), sound.mel)[0]


def waveform(path: Path | bytes, rate: int, samples: int) -> NDArray[np.float32] | None:
    """At most the first ``samples`` samples of a recording at this rate, in [-1, 1] and in one channel; ``None`` if broken."""
    try:
        found, values = _opened(path)
        if not len(values):
            return None
        values = values[
            : math.ceil((samples + 64) * found / rate) + 64
        ]  # a little more, so that the end is filtered like the rest
        scaled = _as_floats(values)
        mono = scaled if scaled.ndim == 1 else scaled.mean(axis=1)
        if not np.isfinite(mono).all():
            return None
        if found != rate:
            common = math.gcd(found, rate)
            mono = resample_poly(mono, rate // common, found // common)
        return np.ascontiguousarray(mono[:samples], dtype=np.float32)
    except Exception:  # a broken file fails in many ways
        return None


class _Seen(NamedTuple):
    """What the head of a recording tells; ``cut``: it holds less than it says."""

    rate: int
    samples: int
    channels: int
    cut: bool


def _look(path: Path | bytes) -> _Seen | None:
    """``None`` for what is no recording or an empty one."""
    try:
        rate, values = _opened(path)
        if isinstance(path, bytes):
            head, size = path[:8], len(path)
        else:
            with path.open("rb") as file:
                head, size = file.read(8), path.stat().st_size
    except Exception:
        return None
    if not len(values) or not 0 < rate <= 768_000:
        return None
    return _Seen(rate, len(values), 1 if values.ndim == 1 else values.shape[1], int.from_bytes(head[4:], "little") + 8 > size + 1)


def _opened(path: Path | bytes) -> tuple[int, NDArray[Any]]:
    """Rate and samples of a wav file; where the format allows it, they stay on disk until they are looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about chunks that are not sound
        if isinstance(path, bytes):
            return wavfile.read(io.BytesIO(path))  # type: ignore[no-any-return]
        try:
            return wavfile.read(path, mmap=True)  # type: ignore[no-any-return]
        except ValueError:  # 24 bits are unpacked
            return wavfile.read(path)  # type: ignore[no-any-return]


def _as_floats(values: NDArray[Any]) -> NDArray[np.float32]:
    """PCM of 8 (unsigned), 16, 24 or 32 bits or floats, as float32 in [-1, 1]."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / np.float32(128)
    if values.dtype.kind == "i":
        return (values / float(2 ** (8 * values.dtype.itemsize - 1))).astype(np.float32)
    raise AssayError(f"samples of the type {values.dtype} are not known")
