"""A data set as a value: it cannot be changed, knows where it came from, and has a fingerprint of its content.

Every corruption is a method that returns a new :class:`Dataset` with one more line in ``history``. A training that is
remembered under the fingerprint of its data can therefore never be confused with another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from assay.data.shift import corrupt_images
from assay.errors import AssayError

Inputs = Tensor | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one part of a data set; ``index`` everywhere in assay is a position in the training split.

    Args:
        inputs: float tensor of images (N, C, H, W), series (N, C, L) or a table (N, D); int64 (N, 2) for triples and
            ratings; or a tuple of N strings.
        labels: (N,) int64 classes, or float32 numbers for regression and ratings; (N, L) float32 zeros and ones where an
            example may have several labels.
        clean_labels: (N,) the true labels where ``labels`` were corrupted, else ``None``.

    Raises:
        AssayError: if the lengths differ or a number is not finite.
    """

    inputs: Inputs
    labels: Tensor
    clean_labels: Tensor | None = None
    _versions: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Tensor | tuple):
            raise AssayError(f"Inputs are a {type(self.inputs).__name__}; give a tensor or a tuple of strings.")
        if len(self.inputs) != len(self.labels):
            raise AssayError(f"A split has {len(self.inputs)} inputs but {len(self.labels)} labels; give each input one label.")
        if self.clean_labels is not None and self.clean_labels.shape != self.labels.shape:
            raise AssayError("clean_labels must have the shape of labels; give every example its true label.")
        object.__setattr__(self, "_versions", tuple(_version(tensor) for tensor in self._tensors()))

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Split, (self.inputs, self.labels, self.clean_labels))

    def take(self, positions: Tensor) -> Split:
        """The examples at ``positions`` ((M,) int64), in that order."""
        if isinstance(self.inputs, Tensor):
            inputs: Inputs = self.inputs[positions]
        else:
            inputs = tuple(self.inputs[i] for i in positions.tolist())
        clean = None if self.clean_labels is None else self.clean_labels[positions]
        return Split(inputs, self.labels[positions], clean)

    def _tensors(self) -> list[Tensor]:
        return [part for part in (self.inputs, self.labels, self.clean_labels) if isinstance(part, Tensor)]

    def _was_written(self) -> bool:
        return self._versions != tuple(_version(tensor) for tensor in self._tensors())


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set with its splits, where it came from and everything that was done to it.

    Args:
        name: its name in the registry, or a name of your own.
        task: ``"classification"``, ``"multilabel"``, ``"regression"``, ``"triples"`` (head, relation -> tail) or ``"rating"``
            (user, item -> number).
        train: what a model learns from.
        valid: what choices are made on; may be empty.
        test: what results are reported on.
        classes: names of the classes; entities for triples; empty where labels are numbers.
        licence: the licence as the source states it.
        source: where it came from and how it was split.
        history: every corruption, subset and scaling, in order, with its seed and parameters.
        features: names of the columns of a table, else empty.

    Raises:
        AssayError: if a number is not finite, a label is outside the classes, or the training examples have one class.
    """

    name: str
    task: str
    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...] = ()
    licence: str = "not stated"
    source: str = ""
    history: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, split in self._splits():
            _require_finite(self.name, part, split)
            if self.task == "classification" and len(split):
                _require_classes(self.name, part, split.labels, len(self.classes))
        if not len(self.train):
            raise AssayError(f"Data set {self.name!r} has no training examples; give it at least one per class.")
        if self.task == "classification" and int(self.train.labels.min()) == int(self.train.labels.max()):
            only = self.classes[int(self.train.labels[0])]
            raise AssayError(
                f"All {len(self.train)} training examples of {self.name!r} have the class {only!r}; "
                "give it examples of two or more."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return (Dataset, tuple(getattr(self, f.name) for f in fields(self)))

    # ---- what it is

    @property
    def num_classes(self) -> int:
        """How many outputs a model needs: the number of classes, or 1 where the labels are numbers."""
        return len(self.classes) or 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, e.g. (1, 28, 28); () for a text."""
        return tuple(self.train.inputs.shape[1:]) if isinstance(self.train.inputs, Tensor) else ()

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for the content: every input and label, the task, classes and history."""
        self.require_unwritten()
        return self._digest

    def require_unwritten(self) -> None:
        """Raise an :class:`AssayError` if somebody wrote into the tensors: every fingerprint would be a lie."""
        for part, split in self._splits():
            if split._was_written():
                raise AssayError(
                    f"Somebody wrote into the {part} tensors of data set {self.name!r}; write into a .clone() instead."
                )

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for text in (self.task, *self.classes, "|", *self.history):
            _update_text(digest, text)
        for part, split in self._splits():
            _update_text(digest, part)
            for content in (split.inputs, split.labels, split.clean_labels):
                digest.update(_content_digest(content))
        return digest.hexdigest()

    def _splits(self) -> tuple[tuple[str, Split], ...]:
        return (("train", self.train), ("valid", self.valid), ("test", self.test))

    def _but(self, step: str, **changes: Any) -> Dataset:
        return replace(self, history=(*self.history, step), **changes)

    # ---- seeded corruptions; each returns a new data set

    def flip_labels(
        self,
        rate: float,
        seed: int,
        kind: str = "symmetric",
        include_true: bool = False,
        matrix: Tensor | Sequence[Sequence[float]] | None = None,
    ) -> Dataset:
        """Make some labels of ``train`` and ``valid`` wrong; ``test`` stays clean and ``clean_labels`` keep the truth.

        Exactly ``round(rate * n)`` examples of each split are drawn without replacement. Their new label is

        - ``"symmetric"``: uniform over the wrong classes, or over all classes with ``include_true`` (then about
          ``rate * (K - 1) / K`` of the labels end up wrong; papers differ here, so look);
        - ``"pairwise"``: class k becomes k + 1 (modulo K), as if two neighbours were confused;
        - ``"asymmetric"``: drawn from row k of ``matrix``; with ``rate=1.0`` the matrix alone rules.

        Args:
            rate: fraction of the examples that are drawn, in [0, 1].
            seed: the same seed gives the same labels.
            kind: one of the three above.
            include_true: only for symmetric noise.
            matrix: (K, K), rows that sum to 1: row k holds the probabilities of what a true k is labelled as.
        """
        self._only("flip_labels", "classification")
        if not 0.0 <= rate <= 1.0:
            raise AssayError(f"The rate of wrong labels is {rate}; give a fraction from 0 to 1.")
        if kind not in ("symmetric", "pairwise", "asymmetric"):
            raise AssayError(f"There is no label noise {kind!r}; choose symmetric, pairwise or asymmetric.")
        if (matrix is not None) != (kind == "asymmetric"):
            raise AssayError("Asymmetric label noise needs a matrix, and only that kind takes one.")
        if include_true and kind != "symmetric":
            raise AssayError("include_true belongs to symmetric label noise; leave it out for other kinds.")
        table = None if matrix is None else _row_stochastic(matrix, self.num_classes)
        generator = _generator("flip_labels", seed)
        changes = {
            part: _flip(split, rate, kind, include_true, table, self.num_classes, generator)
            for part, split in (("train", self.train), ("valid", self.valid))
        }
        shown = "" if table is None else f", matrix={[[round(p, 6) for p in row] for row in table.tolist()]}"
        return self._but(f"flip_labels(rate={rate}, seed={seed}, kind={kind!r}, include_true={include_true}{shown})", **changes)

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """Keep so many training and test examples, each class in proportion and in order; ``None`` keeps all."""
        changes: dict[str, Split] = {}
        generator = _generator("subset", seed)
        for part, wanted in (("train", train), ("test", test)):
            if wanted is None:
                continue
            split: Split = getattr(self, part)
            if not 1 <= wanted <= len(split):
                raise AssayError(f"{wanted} {part} examples of {self.name!r} were asked for; choose from 1 to {len(split)}.")
            changes[part] = split.take(stratified(split.labels, wanted, generator))
        return self._but(f"subset(train={train}, test={test}, seed={seed})", **changes)

    def long_tail(self, ratio: float, seed: int) -> Dataset:
        """Thin the training classes out exponentially: the first class stays ``ratio`` times as frequent as the last.

        Class k of K keeps n_k = n_0 * ratio ** (-k / (K - 1)) examples (Cui et al. 2019), with the largest n_0 for
        which every class has enough; at least one example of each class stays.

        Args:
            ratio: frequency of the first class over that of the last, at least 1.
            seed: which examples stay.
        """
        self._only("long_tail", "classification")
        if ratio < 1.0:
            raise AssayError(f"The imbalance ratio is {ratio}; give the most over the least frequent class, 1 or more.")
        steps = torch.arange(self.num_classes, dtype=torch.float64) / max(self.num_classes - 1, 1)
        profile = ratio**-steps  # (K,)
        counts = torch.bincount(self.train.labels, minlength=self.num_classes).double()  # (K,)
        kept = (profile * (counts / profile).min()).round().clamp_min(1).long()
        order = torch.randperm(len(self.train), generator=_generator("long_tail", seed))
        chosen = []
        for label, n in enumerate(kept.tolist()):
            members = order[self.train.labels[order] == label]
            chosen.append(members[:n])
        positions = torch.cat(chosen).sort().values
        return self._but(f"long_tail(ratio={ratio}, seed={seed})", train=self.train.take(positions))

    def shift(self, kind: str, severity: int, seed: int) -> Dataset:
        """Corrupt the TEST images: what happens when the camera gets worse after training.

        Args:
            kind: gaussian_noise, impulse_noise, blur, contrast, brightness, pixelate, rotate or occlude.
            severity: 1 (slight) to 5 (hard).
            seed: noise, angles and places.
        """
        images = self._images("shift")
        test = self.test.inputs
        assert isinstance(test, Tensor)
        low, high = _range(images)
        scale = (high - low).clamp_min(1e-12)
        damaged = corrupt_images((test - low) / scale, kind, severity, _generator("shift", seed)) * scale + low
        return self._but(
            f"shift(kind={kind!r}, severity={severity}, seed={seed})",
            test=Split(damaged, self.test.labels, self.test.clean_labels),
        )

    def holdout(self, fraction: float, seed: int) -> Dataset:
        """Move a fraction of the training examples, each class in proportion, to ``valid`` (after what is there)."""
        count = round(fraction * len(self.train))
        if not 0.0 < fraction < 1.0 or not 0 < count < len(self.train):
            raise AssayError(
                f"A holdout of {fraction} of {len(self.train)} training examples leaves one side empty; "
                "give a fraction between 0 and 1 that leaves some on both."
            )
        moved = stratified(self.train.labels, count, _generator("holdout", seed))
        stays = torch.ones(len(self.train), dtype=torch.bool)
        stays[moved] = False
        valid = self.train.take(moved)
        if len(self.valid):
            valid = _join(self.valid, valid)
        return self._but(
            f"holdout(fraction={fraction}, seed={seed})", train=self.train.take(stays.nonzero().flatten()), valid=valid
        )

    def normalise(self) -> Dataset:
        """Mean 0 and standard deviation 1 per channel or column; both are measured on ``train`` alone."""
        inputs = self._numbers("normalise")
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        mean, std = channel_scale(inputs)
        return self._map("normalise()", mean.view(shape), std.view(shape))

    def rescale(self, low: float, high: float) -> Dataset:
        """One straight line for all inputs: the smallest training value becomes ``low``, the largest ``high``."""
        inputs = self._numbers("rescale")
        if not low < high:
            raise AssayError(f"Inputs cannot be rescaled to [{low}, {high}]; give the smaller number first.")
        smallest, largest = (value.double() for value in inputs.aminmax())
        if smallest == largest:
            raise AssayError(f"All training inputs of {self.name!r} are equal, so there is nothing to rescale.")
        std = (largest - smallest) / (high - low)
        return self._map(f"rescale(low={low}, high={high})", smallest - low * std, std)

    # ---- helpers

    def _map(self, step: str, shift: Tensor, scale: Tensor) -> Dataset:
        changes = {}
        for part, split in self._splits():
            assert isinstance(split.inputs, Tensor)
            moved = split.inputs if not len(split) else (split.inputs - shift.float()) / scale.float()
            changes[part] = Split(moved, split.labels, split.clean_labels)
        return self._but(step, **changes)

    def _only(self, what: str, task: str) -> None:
        if self.task != task:
            raise AssayError(f"{what} is for {task}, and {self.name!r} is a {self.task} data set; choose another data set.")

    def _numbers(self, what: str) -> Tensor:
        inputs = self.train.inputs
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            kind = "ids" if isinstance(inputs, Tensor) else "texts"
            raise AssayError(f"{what} is for numbers, and the inputs of {self.name!r} are {kind}; leave it out.")
        return inputs

    def _images(self, what: str) -> Tensor:
        inputs = self._numbers(what)
        if inputs.dim() != 4:
            raise AssayError(
                f"{what} is for images (N, C, H, W), and {self.name!r} has inputs {tuple(inputs.shape)}; leave it out."
            )
        return inputs


def channel_scale(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel or column: (N, C, ...) -> (C,), (C,) float64."""
    dims = [0, *range(2, inputs.dim())]
    wide = inputs.double()
    std = wide.std(dim=dims, correction=0)
    # A constant column carries nothing: centre it and leave its scale alone instead of dividing by zero.
    return wide.mean(dim=dims), torch.where(std > 1e-12, std, torch.ones_like(std))


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` positions, each class in proportion (to within one), in ascending order.

    Numbers instead of classes are drawn evenly at random.

    Shape: labels (N,) -> positions (count,) int64.
    """
    order = torch.randperm(len(labels), generator=generator)
    if labels.is_floating_point():
        return order[:count].sort().values
    # The i-th drawn of n members of a class stands at (i + 1/2) / n in line: in proportion, without a rounding rule.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = (labels[order] == label).nonzero().flatten()
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place.argsort(stable=True)[:count]].sort().values


def _generator(step: str, seed: int) -> torch.Generator:
    """Random numbers of one step alone.

    People give one seed to the corruption and to the training. Without the step's name in it, the permutation that picks
    the wrong labels would be the order of the first epoch, and all wrong labels would come first.
    """
    digest = hashlib.blake2b(f"{step} {seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to in place; tensors made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _flip(
    split: Split,
    rate: float,
    kind: str,
    include_true: bool,
    table: Tensor | None,
    classes: int,
    generator: torch.Generator,
) -> Split:
    drawn = torch.randperm(len(split), generator=generator)[: round(rate * len(split))]
    old = split.labels[drawn]
    if kind == "pairwise":
        new = (old + 1) % classes
    elif table is not None:
        new = torch.multinomial(table[old], 1, generator=generator).flatten() if len(old) else old
    elif include_true:
        new = torch.randint(classes, old.shape, generator=generator)
    else:
        new = (old + torch.randint(1, classes, old.shape, generator=generator)) % classes
    labels = split.labels.clone()
    labels[drawn] = new
    return Split(split.inputs, labels, split.labels if split.clean_labels is None else split.clean_labels)


def _row_stochastic(matrix: Tensor | Sequence[Sequence[float]], classes: int) -> Tensor:
    table = torch.as_tensor(matrix, dtype=torch.float64)
    if table.shape != (classes, classes) or bool((table < 0).any()) or bool(((table.sum(dim=1) - 1).abs() > 1e-6).any()):
        raise AssayError(f"The noise matrix must be {classes} x {classes} with no negative entry and rows that sum to 1.")
    return table


def _join(first: Split, second: Split) -> Split:
    if isinstance(first.inputs, Tensor) and isinstance(second.inputs, Tensor):
        inputs: Inputs = torch.cat([first.inputs, second.inputs])
    else:
        inputs = (*first.inputs, *second.inputs)
    clean = None
    if first.clean_labels is not None or second.clean_labels is not None:
        clean = torch.cat([s.labels if s.clean_labels is None else s.clean_labels for s in (first, second)])
    return Split(inputs, torch.cat([first.labels, second.labels]), clean)


def _range(images: Tensor) -> tuple[Tensor, Tensor]:
    """Darkest and brightest value, (1, C, 1, 1) each: 0 and 1, or measured per channel where inputs were rescaled."""
    low, high = images.amin(dim=(0, 2, 3), keepdim=True), images.amax(dim=(0, 2, 3), keepdim=True)
    if bool((low >= 0).all()) and bool((high <= 1).all()):
        return torch.zeros_like(low), torch.ones_like(high)
    return low, high


def _require_finite(name: str, part: str, split: Split) -> None:
    for what, content in (("inputs", split.inputs), ("labels", split.labels)):
        if not isinstance(content, Tensor) or not content.is_floating_point() or not content.numel():
            continue
        smallest, largest = content.aminmax()  # one pass and no temporary; both are NaN if any value is
        if not bool(torch.isfinite(smallest)) or not bool(torch.isfinite(largest)):
            place = (~torch.isfinite(content)).nonzero()[0].tolist()
            value = float(content[tuple(place)])
            raise AssayError(
                f"The {part} {what} of {name!r} hold {value} at position {place[0]}"
                + (f" (entry {tuple(place[1:])})" if len(place) > 1 else "")
                + "; remove that example or fill the value in."
            )


def _require_classes(name: str, part: str, labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise AssayError(
            f"The {part} labels of {name!r} are {labels.dtype} {tuple(labels.shape)}; give (N,) int64 class numbers."
        )
    if classes < 2:
        raise AssayError(f"Data set {name!r} has {classes} classes; a classification needs the names of at least two.")
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        place = int(wrong[0])
        raise AssayError(
            f"The {part} label at position {place} of {name!r} is {int(labels[place])}; "
            f"use class numbers from 0 to {classes - 1}."
        )


# Digests of tensors that are still alive: data sets made from one another share most of theirs.
_DIGESTS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _content_digest(content: Inputs | None) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    if content is None:
        return digest.digest()
    if isinstance(content, tuple):
        _update_text(digest, f"texts {len(content)}")
        for text in content:
            _update_text(digest, text)
        return digest.digest()
    known = _DIGESTS.get(content)
    if known is not None and known[0] == _version(content):
        return bytes(known[1])
    _update_text(digest, f"{content.dtype} {tuple(content.shape)}")
    digest.update(tensor_bytes(content))
    _DIGESTS[content] = (_version(content), digest.digest())
    return digest.digest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as bytes, row by row; no copy where it lies so in memory already."""
    values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def _update_text(digest: hashlib.blake2b, text: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    digest.update(len(encoded).to_bytes(8, "little"))
    digest.update(encoded)
