"""Several replicas of :class:`LeCun1989` trained together, one example a step, written out in numpy.

A step on one example is 0.17 million multiply-adds, a few microseconds of work; through autograd it takes a millisecond,
because some sixty small tensor operations each cost several microseconds before they begin. Here the forward and
backward pass are written by hand for S replicas at once, in arrays that are allocated once: about fifty numpy calls for
all replicas. No compiler is needed, and a replica's numbers do not depend on how many others train beside it.

All parameters of a replica lie in one row of ``theta`` (S, P), so that an optimizer step is a few operations on one array.
Positions come before planes in every array here (channels last), which makes each row of patches contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from assay.papers.architectures.lecun1989 import LeCun1989, Stage

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: One replica's parameters, in the order in which they lie in its row. H2 is kept dense (12 planes read 12 planes) with
#: zeros where the wiring has no connection: one product instead of three.
_SHAPES = {
    "w1": (25, 12),
    "b1": (64, 12),
    "w2": (12, 300),
    "b2": (16, 12),
    "w3": (30, 192),
    "b3": (1, 30),
    "w4": (10, 30),
    "b4": (1, 10),
}
_CHUNK = 128  # presentations whose patches, shifts and masks are prepared together
_BETA1, _BETA2, _EPS, _WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01  # AdamW's defaults in torch


def train_replicas(
    nets: Sequence[LeCun1989],
    images: Tensor,
    labels: Tensor,
    stage: Stage,
    seeds: Sequence[int],
    passes: int | None = None,
    after_pass: Callable[[int], None] | None = None,
) -> None:
    """Train networks in place, all on the same examples in the same fixed order, one example a step.

    Args:
        nets: the replicas, each made by ``stage.model()``; they differ in their initial weights.
        images: (N, 1, 16, 16) in [-1, 1].
        labels: (N,) int64 in 0..9.
        stage: what to do (:func:`time_travel`).
        seeds: one for each replica: of its shifts and dropout masks (see :func:`draws`).
        passes: passes over the examples; the stage's own number by default. The rate's decay is spread over them.
        after_pass: called with the number of passes done (1, 2, ...), when ``nets`` hold the weights reached so far.

    Raises:
        ValueError: a shape is wrong, there are not as many seeds as networks, or these are another stage's networks.
    """
    if images.shape[1:] != (1, 16, 16) or len(images) != len(labels):
        raise ValueError(f"need images (N, 1, 16, 16) and N labels, not {tuple(images.shape)} and {tuple(labels.shape)}")
    if len(seeds) != len(nets) or not nets:
        raise ValueError(f"need one seed for each network, not {len(seeds)} for {len(nets)}")
    if any((net.activation, net.head, net.dropout.p) != (stage.activation, stage.head, stage.dropout) for net in nets):
        raise ValueError(f"the networks are not those of the stage {stage.name!r}: make them with stage.model()")
    passes = stage.passes if passes is None else passes
    pixels = np.full((len(images), 257), -1, np.float32)  # the last one is the padding
    pixels[:, :256] = images.detach().cpu().reshape(-1, 256).numpy()
    classes = np.eye(10, dtype=np.float32)[labels.cpu().numpy()]  # (N, 10)
    targets = classes if stage.head == "linear" else 2 * classes - 1
    generators = [np.random.default_rng(seed) for seed in seeds]
    replicas = _Replicas(nets, stage)
    # Averages of gradients that stay zero decay into denormal numbers, with which a CPU is a hundred times slower.
    flushing = np.float32(1e-38) * np.float32(1e-3) == 0
    torch.set_flush_denormal(True)
    try:
        for done in range(passes):
            rate = stage.rate(done, passes)
            for start in range(0, len(pixels), _CHUNK):
                part = slice(start, start + _CHUNK)
                replicas.train(pixels[part], targets[part], rate, generators)
            replicas.write_to(nets)
            if after_pass is not None:
                after_pass(done + 1)
    finally:
        torch.set_flush_denormal(bool(flushing))


def draws(generator: np.random.Generator, count: int, stage: Stage) -> tuple[Ints, Floats]:
    """What one replica draws for ``count`` presentations (a pass is cut into portions of 128).

    Returns:
        Shifts down and to the right (count, 2), and the factors of H2's units (count, 192) in the order of
        ``flatten``: 0 for a dropped unit, ``1 / (1 - dropout)`` for the others.
    """
    shifts = generator.integers(-stage.shift, stage.shift + 1, size=(count, 2))
    if not stage.dropout:
        return shifts, np.ones((count, 192), np.float32)
    kept = generator.random((count, 192), dtype=np.float32) >= stage.dropout
    return shifts, kept.astype(np.float32) / np.float32(1 - stage.dropout)


class _Replicas:
    """S networks, their gradients, and room for every number in between."""

    def __init__(self, nets: Sequence[LeCun1989], stage: Stage) -> None:
        count = len(nets)
        self.stage = stage
        self.places = _places(nets[0].h2.reads)
        self.theta = np.stack([_packed(net, self.places) for net in nets])  # (S, P)
        self.grad = np.zeros_like(self.theta)
        self.mean, self.square, self.steps = np.zeros_like(self.theta), np.zeros_like(self.theta), 0
        self.weights, self.gradients = _split(self.theta), _split(self.grad)
        self.wired = (_split(self.places)["w2"] >= 0).astype(np.float32)  # (12, 300)
        self.padded = np.full((count, 12, 12, 12), -1, np.float32)  # H1 with its frame of -1
        self.h1 = self.padded[:, 2:10, 2:10]
        self.z1, self.slope1 = np.empty((count, 64, 12), np.float32), np.empty((count, 8, 8, 12), np.float32)
        replica, row, column, _ = self.padded.strides
        windows = (count, 4, 4, 5, 60)  # a row of a 5x5 window is 5 pixels of 12 planes, side by side in memory
        self.windows = as_strided(self.padded, windows, (replica, 2 * row, 2 * column, row, 4))
        self.patches2, self.d_patches2 = np.empty((count, 16, 300), np.float32), np.empty((count, 16, 300), np.float32)
        self.rows = np.empty((count, 4, 4, 2, 5, 12), np.float32)
        self.d_h1 = np.empty((count, 4, 2, 4, 2, 12), np.float32)
        self.h2, self.kept2, self.slope2 = np.empty((3, count, 16, 12), np.float32)
        self.h3, self.slope3 = np.empty((2, count, 1, 30), np.float32)
        self.y, self.slope4 = np.empty((2, count, 1, 10), np.float32)
        self.largest = np.empty((count, 1, 1), np.float32)

    def write_to(self, nets: Sequence[LeCun1989]) -> None:
        for net, row in zip(nets, self.theta, strict=True):
            vector = torch.empty(int(self.places.max()) + 1)
            vector[torch.from_numpy(self.places[self.places >= 0])] = torch.from_numpy(row[self.places >= 0])
            torch.nn.utils.vector_to_parameters(vector, net.parameters())

    def train(self, pixels: Floats, targets: Floats, rate: float, generators: list[np.random.Generator]) -> None:
        """One step for each row of ``pixels`` (M, 257) with its ``targets`` (M, 10)."""
        stage, keep = self.stage, None
        if stage.shift or stage.dropout:
            drawn = [draws(generator, len(pixels), stage) for generator in generators]
            patches = _patches(pixels, np.stack([shifts for shifts, _ in drawn], axis=1))
            if stage.dropout:
                keep = np.stack([kept.reshape(-1, 12, 16).swapaxes(1, 2) for _, kept in drawn], axis=1)  # (M, S, 16, 12)
        else:
            patches = _patches(pixels, np.zeros((len(pixels), 1, 2), np.int64))
        sgd = stage.optimizer == "sgd"
        # SGD's rate scales the error at the output, so that no pass over all gradients is needed for it.
        scale = rate if sgd else 1.0
        for step in range(len(pixels)):
            kept = None if keep is None else keep[step]
            self.forward(patches[step], kept)
            self.backward(patches[step], targets[step], kept, scale)
            if sgd:
                np.subtract(self.theta, self.grad, out=self.theta)
            else:
                self.adamw(rate)

    def forward(self, patches: Floats, keep: Floats | None) -> None:
        """Outputs ``y`` (S, 1, 10) for one image, given as patches (S or 1, 64, 25)."""
        w, squash = self.weights, np.tanh if self.stage.activation == "tanh" else _relu
        count = len(self.theta)
        np.matmul(patches, w["w1"], out=self.z1)
        np.add(self.z1, w["b1"], out=self.z1)
        squash(self.z1.reshape(count, 8, 8, 12), out=self.h1)
        np.copyto(self.patches2.reshape(self.windows.shape), self.windows)
        np.matmul(self.patches2, _t(w["w2"]), out=self.h2)
        np.add(self.h2, w["b2"], out=self.h2)
        squash(self.h2, out=self.h2)
        if keep is not None:
            np.multiply(self.h2, keep, out=self.kept2)
        else:
            self.kept2 = self.h2
        np.matmul(self.kept2.reshape(count, 1, 192), _t(w["w3"]), out=self.h3)
        np.add(self.h3, w["b3"], out=self.h3)
        squash(self.h3, out=self.h3)
        np.matmul(self.h3, _t(w["w4"]), out=self.y)
        np.add(self.y, w["b4"], out=self.y)

    def backward(self, patches: Floats, target: Floats, keep: Floats | None, scale: float) -> None:
        """Gradients of ``scale`` times the loss of the image that :meth:`forward` has just seen. Spoils ``y``."""
        w, g = self.weights, self.gradients
        slope = _tanh_slope if self.stage.activation == "tanh" else np.sign  # of ReLU, at its outputs: 0 or 1
        count = len(self.theta)
        # The error at a layer's sums is the gradient of its biases: each unit has its own.
        d1, d2, d3, d4 = g["b1"].reshape(count, 8, 8, 12), g["b2"], g["b3"], g["b4"]
        if self.stage.head == "tanh":  # d/dz of the mean over ten outputs of (tanh(z) - t)^2
            np.tanh(self.y, out=self.y)
            np.subtract(self.y, target, out=d4)
            np.multiply(d4, 0.2 * scale, out=d4)
            np.multiply(d4, _tanh_slope(self.y, out=self.slope4), out=d4)
        else:  # of cross-entropy: softmax(z) - t
            np.maximum.reduce(self.y, axis=2, keepdims=True, out=self.largest)
            np.exp(np.subtract(self.y, self.largest, out=self.y), out=self.y)
            np.divide(self.y, np.add.reduce(self.y, axis=2, keepdims=True, out=self.largest), out=d4)
            np.subtract(d4, target, out=d4)
            np.multiply(d4, scale, out=d4)
        np.multiply(_t(d4), self.h3, out=g["w4"])
        np.matmul(d4, w["w4"], out=d3)
        np.multiply(d3, slope(self.h3, out=self.slope3), out=d3)
        np.multiply(_t(d3), self.kept2.reshape(count, 1, 192), out=g["w3"])
        np.matmul(d3, w["w3"], out=d2.reshape(count, 1, 192))
        if keep is not None:
            np.multiply(d2, keep, out=d2)
        np.multiply(d2, slope(self.h2, out=self.slope2), out=d2)
        np.matmul(_t(d2), self.patches2, out=g["w2"])
        np.multiply(g["w2"], self.wired, out=g["w2"])
        np.matmul(d2, w["w2"], out=self.d_patches2)
        self._fold()
        np.multiply(self.d_h1.reshape(count, 8, 8, 12), slope(self.h1, out=self.slope1), out=d1)
        np.matmul(_t(patches), g["b1"], out=g["w1"])

    def _fold(self) -> None:
        """Add the overlapping windows of ``d_patches2`` up to ``d_h1``, rows first and then columns.

        Pixel 2m + p (p = 0, 1) lies in window m at offset p + 2, in window m + 1 at offset p and, if p = 0, in window
        m - 1 at offset 4.
        """
        windows = self.d_patches2.reshape(-1, 4, 4, 5, 5, 12)  # (S, window row, window column, row, column, planes)
        rows = self.rows  # (S, m, window column, p, column, planes)
        np.copyto(rows, windows[:, :, :, 2:4])
        np.add(rows[:, :3], windows[:, 1:, :, :2], out=rows[:, :3])
        np.add(rows[:, 1:, :, 0], windows[:, :3, :, 4], out=rows[:, 1:, :, 0])
        columns, out = rows.transpose(0, 1, 3, 2, 4, 5), self.d_h1  # (S, m, p, window column, column, planes)
        np.copyto(out, columns[:, :, :, :, 2:4])
        np.add(out[:, :, :, :3], columns[:, :, :, 1:, :2], out=out[:, :, :, :3])
        np.add(out[:, :, :, 1:, 0], columns[:, :, :, :3, 4], out=out[:, :, :, 1:, 0])

    def adamw(self, rate: float) -> None:
        """AdamW as torch has it, weight decay decoupled; spoils ``grad``.

        Both averages are kept without their factors (1 - beta), which saves two passes over them.
        """
        grad, mean, square = self.grad, self.mean, self.square
        self.steps += 1
        root = math.sqrt((1 - _BETA2) / (1 - _BETA2**self.steps))
        np.multiply(mean, _BETA1, out=mean)
        np.add(mean, grad, out=mean)
        np.multiply(grad, grad, out=grad)
        np.multiply(square, _BETA2, out=square)
        np.add(square, grad, out=square)
        np.sqrt(square, out=grad)
        np.add(grad, _EPS / root, out=grad)
        np.divide(mean, grad, out=grad)
        np.multiply(grad, rate * (1 - _BETA1) / (1 - _BETA1**self.steps) / root, out=grad)
        np.multiply(self.theta, 1 - rate * _WEIGHT_DECAY, out=self.theta)
        np.subtract(self.theta, grad, out=self.theta)


def _t(stack: Floats) -> Floats:
    return stack.transpose(0, 2, 1)


def _relu(x: Floats, out: Floats) -> Floats:
    result: Floats = np.maximum(x, 0, out=out)
    return result


def _tanh_slope(y: Floats, out: Floats) -> Floats:
    """1 - y^2, the slope of tanh where its value is y."""
    np.multiply(y, y, out=out)
    result: Floats = np.subtract(1, out, out=out)
    return result


def _split(row: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Parts of the last axis of (..., P) under their names, as views."""
    parts, start = {}, 0
    for name, (height, width) in _SHAPES.items():
        parts[name] = row[..., start : start + height * width].reshape(*row.shape[:-1], height, width)
        start += height * width
    return parts


def _places(reads: Sequence[Sequence[int]]) -> Ints:
    """For each of the P numbers of a row its position among the network's 9,760 parameters; -1: no such connection."""
    sizes = [300, 768, 2400, 192, 5760, 30, 300, 10]
    w1, b1, w2, b2, w3, b3, w4, b4 = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    dense = np.full((12, 12, 5, 5), -1)
    planes = 12 // len(reads)
    for group, sources in enumerate(reads):
        own = slice(group * planes, (group + 1) * planes)
        dense[own, list(sources)] = w2.reshape(12, 8, 5, 5)[own]
    parts = [
        w1.reshape(12, 25).T,
        b1.reshape(12, 64).T,
        dense.transpose(0, 2, 3, 1),
        b2.reshape(12, 16).T,
        w3.reshape(30, 12, 16).swapaxes(1, 2),
        b3,
        w4,
        b4,
    ]
    return np.concatenate([part.reshape(-1) for part in parts])


def _packed(net: LeCun1989, places: Ints) -> Floats:
    vector = torch.nn.utils.parameters_to_vector(net.parameters()).detach().cpu().numpy()
    return np.append(vector, np.float32(0))[places].astype(np.float32)


def _patch_places() -> Ints:
    """(3, 3, 1600): where in a row of 257 pixels the 64 patches of 25 lie, after a circular shift by (dy, dx).

    A shift of -1 is found at index -1, as Python counts from the end.
    """
    at = 2 * np.arange(8)[:, None] + np.arange(5) - 2  # (8, 5): the row (or column) of a patch's pixel
    inside = (at >= 0) & (at < 16)
    both = inside[:, None, :, None] & inside[None, :, None, :]  # (8, 8, 5, 5)
    places = np.empty((3, 3, 1600), np.int64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            place = 16 * ((at - dy) % 16)[:, None, :, None] + ((at - dx) % 16)[None, :, None, :]
            places[dy, dx] = np.where(both, place, 256).reshape(-1)
    return places


_PATCH_PLACES = _patch_places()


def _patches(pixels: Floats, shifts: Ints) -> Floats:
    """Patches (M, S, 64, 25) of the images (M, 257), shifted as ``shifts`` (M, S, 2) says."""
    patches = np.empty((*shifts.shape[:2], 1600), np.float32)
    for dy, dx in np.unique(shifts.reshape(-1, 2), axis=0):
        image, replica = np.nonzero((shifts == (dy, dx)).all(axis=2))
        patches[image, replica] = pixels[image][:, _PATCH_PLACES[dy, dx]]
    return patches.reshape(*shifts.shape[:2], 64, 25)
