"""A clip's label by the vote of its frames, each seen by two different networks.

Whether a video is fit for work is a question about the whole of it, and networks see single frames. The paper trains two networks
on key frames that have their video's label, AlexNet and GoogLeNet, averages what they say of a frame,

    p(frame) = (p_A + p_G) / 2,                a frame says yes where p > 1/2,

and lets the frames vote: a video is what most of its key frames say. The networks are fine-tuned ones: their last layer is new
and learns ten times as fast as the others. Half of the negative videos are hard, for much in them looks like the positive ones.
They are split by video: frames of one video on both sides would be a leak. (A second rule of fusion, AGbNet, is not described
here; the maximum and the mean of the logits are offered instead.)

Here a clip is a recording of a spoken digit, and its frames are overlapping pieces of 160 ms of its log-mel spectrogram. *Six*
and *seven* are looked for; *five* and *nine*, which share sounds with them, are the hard negatives, *two* and *four* the easy
ones; speakers that are tested are never heard in training.

Source: Moustafa, "Applying deep learning to classify pornographic images and videos", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from assay.committee import Groups, ask, at_least, average, by_group, majority
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn.audio import Mel, log_mel
from assay.nn.convnet import ConvNorm
from assay.nn.ending import last_linear
from assay.nn.inception import Mixed, chain
from assay.paper import Configuration, Cost, Curve, Higher, Lower, Reported, Score, claim
from assay.recipe import Recipe, treatment
from assay.train.augment import in_turn
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

_FUSIONS: dict[str, Literal["probabilities", "max", "logits"]] = {"mean": "probabilities", "max": "max", "logit": "logits"}


class ClipClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifiers of frames, put together, and a vote of the frames of each clip; in scikit-learn's terms.

        model = ClipClassifier([forest, network]).fit(frames, labels, clips)
        clips, labels = model.predict_clips(new_frames, new_clips)

    Args:
        nets: classifiers with ``predict_proba``, which are cloned and trained; or networks (``nn.Module``) that are trained
            already and give logits for a float32 tensor of frames, class k being the k-th label in order.
        fuse: how their probabilities become one: ``"mean"`` (the paper's), ``"max"`` or ``"logit"`` (mean of the logits).
        vote: ``"majority"`` (the paper's; of a tie, the class with the largest mean), ``"mean"`` (the largest mean of the
            probabilities), or a number k: of two classes the second wherever k frames say so.

    Attributes:
        nets_: that predict.
        classes_: (C,).
    """

    def __init__(
        self,
        nets: Sequence[Any],
        fuse: Literal["mean", "max", "logit"] = "mean",
        vote: Literal["majority", "mean"] | int = "majority",
    ) -> None:
        self.nets = nets
        self.fuse = fuse
        self.vote = vote

    def fit(self, frames: Any, labels: ArrayLike, clips: ArrayLike | None = None) -> Self:
        """Train every classifier on frames that have their clip's label.

        Args:
            frames: (N, ...) what the classifiers take.
            labels: (N,) of the clip that each frame is from.
            clips: (N,) its id; with it, frames of one clip are seen to have one label.

        Raises:
            ValueError: an argument is none of its values, or frames of one clip have several labels.
        """
        if self.fuse not in _FUSIONS:
            raise ValueError(f"fuse must be one of {', '.join(_FUSIONS)}, not {self.fuse!r}")
        if self.vote not in ("majority", "mean") and not (isinstance(self.vote, int) and self.vote >= 1):
            raise ValueError(f"vote must be 'majority', 'mean' or a number of frames from 1 on, not {self.vote!r}")
        given = np.asarray(labels)
        self.classes_, codes = np.unique(given, return_inverse=True)
        if isinstance(self.vote, int) and len(self.classes_) != 2:
            raise ValueError(f"vote={self.vote} looks for the second of two classes, and there are {len(self.classes_)}")
        if clips is not None:
            ids, first, places = np.unique(np.asarray(clips), return_index=True, return_inverse=True)
            other = ids[places][codes != codes[first][places]]
            if len(other):
                raise ValueError(f"frames of one clip have several labels, for example those of {other[0]}")
        self.nets_ = [net if isinstance(net, nn.Module) else clone(net).fit(frames, given) for net in self.nets]
        return self

    def predict_proba(self, frames: Any) -> NDArray[np.float64]:
        """What the classifiers say of each frame together: (N, C)."""
        check_is_fitted(self)
        said = ask(self.nets_, frames)
        if said.shape[2] != len(self.classes_):
            raise ValueError(f"the networks know {said.shape[2]} classes, and fit was given {len(self.classes_)}")
        return average(said, _FUSIONS[self.fuse]).numpy()

    def predict(self, frames: Any) -> NDArray[Any]:
        """The label of each frame (N,)."""
        check_is_fitted(self)
        found: NDArray[Any] = self.classes_[self.predict_proba(frames).argmax(axis=1)]
        return found

    def predict_clips(self, frames: Any, clips: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        """The ids of the clips (G,), in order, and the label of each (G,)."""
        ids, places = np.unique(np.asarray(clips), return_inverse=True)
        groups = by_group(torch.from_numpy(self.predict_proba(frames)), torch.from_numpy(places))
        return ids, self.classes_[voted(groups, self.vote).numpy()]

    def score_clips(self, frames: Any, labels: ArrayLike, clips: ArrayLike) -> float:
        """Share of the clips whose label is right; ``labels`` (N,) are those of the frames' clips."""
        _, first = np.unique(np.asarray(clips), return_index=True)
        return float((self.predict_clips(frames, clips)[1] == np.asarray(labels)[first]).mean())


def voted(groups: Groups, vote: Literal["majority", "mean"] | int = "majority") -> Tensor:
    """The class of every group (G,): see ``vote`` of :class:`ClipClassifier`."""
    if vote == "mean":
        return groups.mean.argmax(dim=1)
    return majority(groups) if vote == "majority" else at_least(groups, vote)


def group_folds(labels: ArrayLike, groups: ArrayLike, k: int = 5, seed: int = 0) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Positions of training and test frames for k folds, no group (clip, speaker) on both sides, classes about in proportion.

    Args:
        labels: (N,).
        groups: (N,) what must stay together.
        k: folds.
        seed: which groups go together.
    """
    folds = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(np.asarray(labels))), np.asarray(labels), np.asarray(groups)))


def fine_tuning(model: nn.Module, num_classes: int, rate: float, factor: float = 10.0) -> list[dict[str, Any]]:
    """Give a trained network a new last layer, and make that layer learn faster than the others.

    Args:
        model: whose last linear layer (:func:`assay.nn.ending.last_linear`) gives the logits; it is replaced in place.
        num_classes: of the new task.
        rate: learning rate of all layers that stay.
        factor: the new layer's rate is so many times as high; 10 in the paper.

    Returns:
        Groups of parameters for an optimizer.
    """
    found = last_linear(model)
    if found is None or not found[0]:
        raise AssayError("The network has no linear layer inside it that could be replaced; give it one of its own.")
    name, old = found
    owner, _, attribute = name.rpartition(".")
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None).to(old.weight.device, old.weight.dtype)
    setattr(model.get_submodule(owner), attribute, new)
    fresh = {id(parameter) for parameter in new.parameters()}
    kept = [parameter for parameter in model.parameters() if id(parameter) not in fresh]
    return [{"params": kept, "lr": rate}, {"params": list(new.parameters()), "lr": factor * rate}]


# ------------------------------------------------------------------------------------------------- frames of sounds


def sounding(inputs: Tensor) -> Tensor:
    """How many columns of (N, C, T) there are before nothing changes any more, at least 1: (N,)."""
    changes = (inputs != inputs[..., -1:]).any(dim=1)  # (N, T)
    columns = torch.arange(1, inputs.shape[2] + 1, device=inputs.device)
    length = (changes * columns).amax(dim=1).clamp_min(1)
    # A last column that is unlike the one before it is no silence.
    return length.masked_fill(length == inputs.shape[2] - 1, inputs.shape[2])


def cut_frames(spectrograms: Tensor, width: int = 32, stride: int = 8) -> tuple[Tensor, Tensor]:
    """Overlapping pieces of spectrograms, as images.

    Args:
        spectrograms: (N, F, T), T at least ``width``, with silence behind what is shorter.
        width: columns of a frame.
        stride: columns from one frame to the next.

    Returns:
        Frames (M, 1, F, width), none of which reaches into the silence but the only one of a short clip; and the clip (M,) of
        each.
    """
    pieces = spectrograms.unfold(2, width, stride)  # (N, F, n, width)
    starts = torch.arange(pieces.shape[2], device=spectrograms.device) * stride
    inside = starts <= (sounding(spectrograms) - width).clamp_min(0)[:, None]  # (N, n)
    return pieces.permute(0, 2, 1, 3)[inside].unsqueeze(1).contiguous(), inside.nonzero()[:, 0]


# ------------------------------------------------------------------------------------------------------- treatment


def random_window(inputs: Tensor, generator: torch.Generator, width: int) -> Tensor:
    """One window of ``width`` columns from each of (B, C, T), drawn from where something is heard: (B, C, width)."""
    last = (sounding(inputs) - width).clamp_min(0)  # (B,)
    start = (torch.rand(len(inputs), generator=generator, device=inputs.device) * (last + 1)).long().minimum(last)
    return _windows(inputs, start[:, None], width)[:, 0]


def _windows(inputs: Tensor, starts: Tensor, width: int) -> Tensor:
    """Windows of (B, C, T) that begin at (B, n): (B, n, C, width)."""
    columns = starts[:, :, None, None] + torch.arange(width, device=inputs.device)  # (B, n, 1, width)
    whole = inputs[:, None].expand(-1, starts.shape[1], -1, -1)
    return whole.gather(3, columns.expand(-1, -1, inputs.shape[1], -1))


class FrameVote(nn.Module):
    """A network that learns from windows of a sound or series, and labels the whole by the vote of windows.

    Args:
        make: makes the network, without arguments; it takes windows of any width.
        width: columns of a window.
        windows: that vote, evenly spread over what is heard; in a short recording they overlap, or are one and the same.

    Shape: in training a window (B, C, width), later the whole (B, C, T) -> (B, K). What comes out of the vote is the logarithm of
    (votes + mean probability) / (windows + 1): the largest is what most say, and of a tie what is likelier on the average.
    """

    def __init__(self, make: Callable[[], nn.Module], width: int, windows: int) -> None:
        super().__init__()
        self.net = make()
        self.width, self.windows = width, windows

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            logits: Tensor = self.net(inputs)
            return logits
        last = (sounding(inputs) - self.width).clamp_min(0)  # (B,)
        places = torch.linspace(0, 1, self.windows, device=inputs.device)
        pieces = _windows(inputs, (last[:, None] * places).round().long(), self.width)  # (B, n, C, width)
        said = self.net(pieces.flatten(0, 1)).softmax(dim=1).unflatten(0, pieces.shape[:2])  # (B, n, K)
        votes = F.one_hot(said.argmax(dim=2), said.shape[2]).sum(dim=1)
        shares: Tensor = (votes + said.mean(dim=1)) / (self.windows + 1)
        return shares.clamp_min(1e-7).log()


@treatment
def frame_vote(recipe: Recipe, share: float = 0.5, windows: int = 9) -> Recipe:
    """Learn from one random window of each recording or series a step, and label the whole by a vote of windows.

    Args:
        recipe: of a classification of recordings or series; its network must take inputs of any length.
        share: of the columns that a window has.
        windows: that vote.

    Raises:
        AssayError: the inputs have no time, the share is not in (0, 1), no window votes, the network takes one length only, or it
            votes already.
    """
    inputs = recipe.data.train.inputs
    if recipe.data.task != "classification" or not isinstance(inputs, Tensor) or inputs.dim() != 3:
        raise AssayError(
            f"frame_vote votes over windows in time, and {recipe.data.name!r} has none: it is for sounds and series."
        )
    if not 0 < share < 1:
        raise AssayError(f"frame_vote was given windows of a share of {share}; give one between 0 and 1.")
    if windows < 1:
        raise AssayError(f"frame_vote lets {windows} windows vote; give at least 1.")
    width = max(1, round(share * inputs.shape[2]))
    with torch.device("meta"):
        net = recipe.model().eval()
        if any(isinstance(module, FrameVote) for module in net.modules()):
            raise AssayError("The network of this recipe votes over windows already: leave frame_vote out.")
        try:
            net(torch.empty(2, inputs.shape[1], width, dtype=inputs.dtype))
        except (RuntimeError, ValueError) as error:
            raise AssayError(
                f"frame_vote gives the network windows of {width} of {inputs.shape[2]} columns, which it does not take: give the "
                "recipe a network for inputs of any length, as AudioCNN."
            ) from error
    cut = partial(random_window, width=width)
    augment = cut if recipe.augment is None else partial(in_turn, steps=(recipe.augment, cut))
    return recipe.replace(model=partial(FrameVote, recipe.model, width, windows), augment=augment)


# --------------------------------------------------------------------------------------------------------- networks


def mini_alexnet(num_classes: int = 2, width: int = 1) -> nn.Sequential:
    """Five convolutions and two linear layers, in the order of AlexNet, for frames of 32x32; with batch normalisation.

    Args:
        num_classes: number of logits.
        width: factor of all planes; 1 has 70,514 parameters for two classes.

    Shape: (B, 1, 32, 32) -> (B, num_classes).
    """
    first, second, third, last, hidden = (width * planes for planes in (16, 32, 48, 32, 128))
    return nn.Sequential(
        ConvNorm(1, first, 5, stride=2),
        nn.MaxPool2d(2),
        ConvNorm(first, second, 3),
        nn.MaxPool2d(2),
        ConvNorm(second, third, 3),
        ConvNorm(third, third, 3),
        ConvNorm(third, last, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * last, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, num_classes),
    )


def _inception(in_planes: int, planes: int) -> Mixed:
    """GoogLeNet's block: 1x1, 3x3 and 5x5 convolutions and a maximum side by side, each with so many planes."""
    lines = (f"{planes}", f"{planes} {planes}k3", f"{planes // 2} {planes}k5")
    maximum = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), ConvNorm(in_planes, planes, 1))
    return Mixed([*(chain(line, in_planes)[0] for line in lines), maximum], 4 * planes)


def mini_googlenet(num_classes: int = 2, width: int = 1) -> nn.Sequential:
    """A stem and three inception blocks, in the order of GoogLeNet, for frames of 32x32; with batch normalisation.

    Args:
        num_classes: number of logits.
        width: factor of all planes; 1 has 63,978 parameters for two classes.

    Shape: (B, 1, 32, 32) -> (B, num_classes).
    """
    first, second, *blocks = (width * planes for planes in (16, 32, 16, 24, 32))
    return nn.Sequential(
        ConvNorm(1, first, 5, stride=2),
        nn.MaxPool2d(2),
        ConvNorm(first, second, 3),
        _inception(second, blocks[0]),
        nn.MaxPool2d(2),
        _inception(4 * blocks[0], blocks[1]),
        _inception(4 * blocks[1], blocks[2]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(4 * blocks[2], num_classes),
    )


#: Both networks, and what they are known to measure.
CONFIGURATIONS = {
    "mini_alexnet()": Configuration((1, 32, 32), parameters=70_514, macs=1_188_096, layers=7, sees=75, activations=8_192),
    "mini_googlenet()": Configuration((1, 32, 32), parameters=63_978, macs=1_672_960, layers=9, sees=99, activations=16_704),
}


# --------------------------------------------------------------------------------------------------------- claims

_WANTED, _HARD, _EASY = (6, 7), (5, 9), (2, 4)
_SPEAKERS = 6


class _Clips:
    """Recordings cut into frames, with two speakers of six held out for testing.

    Attributes:
        data: frames to learn from, to choose by (a tenth of the recordings of the speakers that are heard) and to test on.
        clips: of every test frame, the clip that it is from.
        digits: (G,) what is said in each test clip, by its id.
    """

    def __init__(self, lab: Lab) -> None:
        digits, speakers, waves = _recordings(lab.data("spoken-digits"), every=lab.pick(smoke=6, laptop=1, full=1))
        cut = lab.remember(spoken_frames, waves=waves)
        frames, clip_of = cut["frames"], cut["clips"]
        labels = torch.isin(digits, torch.tensor(_WANTED)).long()
        learnt, tested = group_folds(labels, speakers, k=3, seed=lab.seed)[0]
        held = torch.from_numpy(learnt)[torch.randperm(len(learnt), generator=lab.generator())[: len(learnt) // 10]]
        part = torch.zeros(len(digits), dtype=torch.int64)  # 0 learn, 1 choose, 2 test
        part[torch.from_numpy(tested)] = 2
        part[held] = 1
        train, valid, test = (
            Split(frames[rows], labels[clip_of[rows]]) for rows in (part[clip_of] == which for which in range(3))
        )
        line = f"six or seven; frames of 32 columns, every 8; seed {lab.seed}"
        told = lab.data("spoken-digits")
        self.data = Dataset(
            "spoken frames", "classification", train, valid, test, ("others", "wanted"), told.licence, told.source, (line,)
        ).normalise()
        self.clips = clip_of[part[clip_of] == 2]
        self.digits = digits


def _recordings(data: Dataset, every: int) -> tuple[Tensor, Tensor, Tensor]:
    """Digits (G,), speakers (G,) and waveforms (G, 8000): all of the wanted digits and every other one of the negatives."""
    labels = torch.cat([data.train.labels, data.test.labels])
    speakers = torch.cat([torch.arange(len(split)) // (len(split) // _SPEAKERS) for split in (data.train, data.test)])
    alternate = torch.arange(len(labels)) % 2 == 0
    chosen = torch.isin(labels, torch.tensor(_WANTED)) | (torch.isin(labels, torch.tensor(_HARD + _EASY)) & alternate)
    rows = chosen.nonzero()[::every, 0]
    assert isinstance(data.train.inputs, Tensor)
    assert isinstance(data.test.inputs, Tensor)
    return labels[rows], speakers[rows], torch.cat([data.train.inputs, data.test.inputs])[rows, 0]


def spoken_frames(waves: Tensor) -> dict[str, Tensor]:
    """Frames (M, 1, 32, 32) of recordings (G, L) at 8 kHz and the clip of each: windows of 25 ms every 5 ms, 32 bands."""
    frames, clips = cut_frames(log_mel(waves, Mel(rate=8_000, window=200, hop=40, bands=32)))
    return {"frames": frames, "clips": clips}


_NETS = {"A": mini_alexnet, "G": mini_googlenet}


def _train(lab: Lab, data: Dataset, net: str, again: bool = False) -> Trained:
    """One of the two networks; ``again`` is a second training of it."""
    recipe = Recipe(
        data,
        model=partial(_NETS[net], width=lab.pick(smoke=1, laptop=1, full=4)),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=3, full=30),
        batch_size=64,
        watch=(),
    )
    return lab.train(recipe, seed=lab.seed + 1_000_000 if again else lab.seed)


def _fused(members: Sequence[Trained], split: str = "test", fuse: str = "mean") -> Tensor:
    """What the networks say of the frames together: (N, 2)."""
    return average(torch.stack([trained.logits(split).softmax(dim=1) for trained in members]), _FUSIONS[fuse])


def _right(groups: Groups, digits: Tensor) -> Tensor:
    """Whether the vote of each clip (G,) is right."""
    return majority(groups) == torch.isin(digits[groups.ids], torch.tensor(_WANTED)).long()


def _cost(members: Sequence[Trained]) -> Cost:
    return Cost(sum(trained.seconds for trained in members), sum(trained.parameters for trained in members))


def _clip_accuracy(found: _Clips, members: Sequence[Trained], fuse: str = "mean") -> Score:
    right = _right(by_group(_fused(members, fuse=fuse), found.clips), found.digits)
    return Score(right.double().mean().item(), _cost(members))


_SCALED_DOWN = (
    "Recordings of spoken digits (six and seven against five, nine, two and four), 400 of two speakers for testing and 720 of "
    "four others for training, in the place of 800 videos; networks of 71,000 and 64,000 parameters from scratch, with batch "
    "normalisation and for 3 epochs, in the place of pretrained ones. Each seed holds other speakers out."
)


@claim(
    "The average of two networks of different architecture classifies clips better than either of them, and better than the "
    "average of two trainings of the better one.",
    expect=(
        Higher("A and G", than="A: five convolutions"),
        Higher("A and G", than="G: inception"),
        Higher("A and G", than="twice the better one"),
    ),
    reported=Reported(
        "NPDI videos, 5 folds: accuracy of the best fusion, and of the best method without networks",
        {"A and G": 0.941, "BossaNova": 0.895},
        where="results table",
    ),
    scaled_down=_SCALED_DOWN,
    unit="accuracy on clips",
    needs=("spoken-digits",),
)
def fusion_beats_members(lab: Lab) -> Measured:
    found = _Clips(lab)
    one, other = (_train(lab, found.data, net) for net in _NETS)
    twice = [[first, _train(lab, found.data, net, again=True)] for net, first in zip(_NETS, (one, other), strict=True)]
    better = twice[0] if one.accuracy("valid") >= other.accuracy("valid") else twice[1]
    return {
        "A: five convolutions": _clip_accuracy(found, [one]),
        "G: inception": _clip_accuracy(found, [other]),
        "A and G": _clip_accuracy(found, [one, other]),
        "twice the better one": _clip_accuracy(found, better),
        "A twice": _clip_accuracy(found, twice[0]),
        "G twice": _clip_accuracy(found, twice[1]),
        "A and G, maximum": _clip_accuracy(found, [one, other], "max"),
        "A and G, mean of logits": _clip_accuracy(found, [one, other], "logit"),
        "frames, A": one.accuracy(),
        "frames, G": other.accuracy(),
        "frames, A and G": (_fused([one, other]).argmax(dim=1) == found.data.test.labels).double().mean().item(),
    }


#: How many frames vote.
_VOTERS = (1, 3, 5, 7)


@claim(
    "The vote of a clip's frames is right more often than a single one of them; seven frames gain on three, but less than three "
    "on one, and less than seven frames would whose errors are independent.",
    expect=(
        Higher("all frames", than="one frame"),
        Higher("7 frames", than="3 frames"),
        Lower("gain from 3 to 7 frames", than="gain from 1 to 3 frames"),
        Lower("7 frames", than="7 independent frames"),
    ),
    scaled_down=f"The paper shows no single frames. Clips with at least 7 frames. {_SCALED_DOWN}",
    unit="accuracy on clips",
    needs=("spoken-digits",),
)
def vote_beats_frame(lab: Lab) -> Measured:
    found = _Clips(lab)
    members = [_train(lab, found.data, net) for net in _NETS]
    scores, clips = _fused(members), found.clips
    long = torch.isin(clips, (torch.bincount(clips) >= max(_VOTERS)).nonzero()[:, 0])
    scores, clips = scores[long], clips[long]
    draws = lab.pick(smoke=2, laptop=50, full=200)
    curve = [_vote_of_some(scores, clips, found.digits, count, draws, lab.generator(count)) for count in _VOTERS]
    independent = [float(binom.sf(count // 2, count, curve[0])) for count in _VOTERS]
    axis = partial(Curve, x=_VOTERS, x_name="frames that vote", y_name="accuracy on clips")
    everyone = _right(by_group(scores, clips), found.digits).double().mean().item()
    one, three, _, seven = curve
    return {
        "one frame": one,
        "3 frames": three,
        "7 frames": axis(curve, cost=_cost(members)),
        "7 independent frames": axis(independent),
        "all frames": Score(everyone, _cost(members)),
        "gain from 1 to 3 frames": three - one,
        "gain from 3 to 7 frames": seven - three,
    }


def _vote_of_some(scores: Tensor, clips: Tensor, digits: Tensor, count: int, draws: int, generator: torch.Generator) -> float:
    """Accuracy on clips where so many of their frames vote, drawn at random; mean over draws."""
    right = []
    for _ in range(draws):
        order = torch.randperm(len(clips), generator=generator)
        order = order[clips[order].argsort(stable=True)]  # by clip, at random within each
        sorted_clips = clips[order]
        rank = torch.arange(len(order)) - torch.searchsorted(sorted_clips, sorted_clips)
        rows = order[rank < count]
        right.append(_right(by_group(scores[rows], clips[rows]), digits).double().mean())
    return torch.stack(right).mean().item()


@claim(
    "Hard negatives, which share sounds with what is looked for, are taken for it at least twice as often as easy ones.",
    expect=Higher("five and nine", than="two and four", times=2),
    scaled_down=f"The paper does not give its errors by kind. {_SCALED_DOWN}",
    unit="share of the clips that are misclassified",
    needs=("spoken-digits",),
)
def hard_negatives_cost(lab: Lab) -> Measured:
    found = _Clips(lab)
    members = [_train(lab, found.data, net) for net in _NETS]
    scores = _fused(members)
    groups = by_group(scores, found.clips)
    wrong, digits = (~_right(groups, found.digits)).double(), found.digits[groups.ids]
    frames = (scores.argmax(dim=1) != found.data.test.labels).double()
    kinds = {"five and nine": _HARD, "two and four": _EASY, "six and seven": _WANTED}
    arms = {kind: wrong[torch.isin(digits, torch.tensor(those))].mean().item() for kind, those in kinds.items()}
    of_frames = found.digits[found.clips]
    return arms | {
        f"frames of {kind}": frames[torch.isin(of_frames, torch.tensor(those))].mean().item() for kind, those in kinds.items()
    }
