"""Human uncertainty: train on what all people said of an image, not on what most of them said.

Fifty people look at a small photo: forty say cat, eight say dog, two say deer. The usual label is *cat*, and cross-entropy
then asks the network to be certain of it. The other answers are not noise: they say which images are unclear, and what else
they could be. Train on the shares q of the answers instead,

    L = - sum_k q_k log p_k         with the gradient p - q on the logits,

and the network learns to be as unsure as people are, image by image. The loss is cross-entropy between two distributions,
which is ``F.cross_entropy(logits, shares)``; all that is new are the targets. They are worth their price only if they beat
what comes for free: label smoothing that leaves as much uncertainty on average, the mean answers of the class (what cats are
taken for), the answers to another image of the same class. If the latter does as well, it is the class that matters.

How well the second guess fits is told by the *second-best accuracy*: how often the class that the network finds second most
probable is the one that people named second most often.

Source: Peterson, Battleday, Griffiths and Russakovsky, "Human uncertainty makes classification more robust", ICCV 2019. They
train networks on the training photos of CIFAR-10, and go on training them on nine tenths of the 10,000 test photos, of which
each was looked at by about 50 people; the last tenth is what they measure on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

from assay.attack import fgsm, pgd
from assay.attack.worst import classified
from assay.data import Dataset
from assay.data.dataset import Inputs, stratified
from assay.errors import AssayError
from assay.nn import lenet
from assay.paper import Curve, Higher, Lower, Score, claim
from assay.papers.architectures.resnet import half_size
from assay.papers.architectures.wide_resnet import wide_resnet
from assay.recipe import Recipe, treatment
from assay.recipes import lenet_on, small_photos
from assay.train.augment import flip_and_crop
from assay.train.hooks import InputHook, Run

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def soft_labels(votes: Tensor, labels: Tensor) -> Tensor:
    """What share of the people named each class.

    Args:
        votes: (N, K), how many people gave an example each label.
        labels: (N,) int64, the label of those that nobody looked at.

    Returns:
        (N, K) float32, rows that sum to 1: targets for ``F.cross_entropy``.

    Raises:
        ValueError: the shapes do not fit, or a vote is negative.
    """
    if votes.dim() != 2 or labels.shape != votes.shape[:1]:
        raise ValueError(f"votes must be (N, K) with N labels, not {tuple(votes.shape)} with {tuple(labels.shape)}")
    if bool((votes < 0).any()):
        raise ValueError("a number of votes is negative")
    total = votes.sum(dim=1, keepdim=True)
    own = F.one_hot(labels, votes.shape[1]).double()
    return torch.where(total > 0, votes.double() / total.clamp_min(torch.finfo(torch.float32).tiny), own).float()


def votes_of_repeats(inputs: Inputs, labels: Tensor, num_classes: int) -> Tensor:
    """Votes from a data set with a row for each answer: equal inputs are one example, and their labels its votes.

    Args:
        inputs: (N, ...), or N texts.
        labels: (N,) int64.
        num_classes: K.

    Returns:
        (N, K) float32: for every row the votes on its example; a row that stands alone has one.
    """
    if isinstance(inputs, Tensor):
        rows = np.ascontiguousarray(inputs.detach().cpu().flatten(1).numpy())
        keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    else:
        keys = np.asarray(inputs)
    which = torch.from_numpy(np.unique(keys, return_inverse=True)[1].reshape(-1))
    votes = torch.zeros(int(which.max()) + 1, num_classes)
    votes.index_put_((which, labels), torch.ones(len(labels)), accumulate=True)
    return votes[which]


def second_best_accuracy(probs: Tensor, shares: Tensor) -> float:
    """How often the second most probable class is the one that people named second most often.

    Args:
        probs: (N, K) of the network; logits do as well.
        shares: (N, K) of the people. Examples without a clear second place (all people agree, or the second and the third class
            have equally many votes) do not count.
    """
    best = shares.topk(min(3, shares.shape[1]), dim=1)
    third = best.values[:, 2] if shares.shape[1] > 2 else torch.zeros_like(best.values[:, 1])
    clear = best.values[:, 1] > third
    return (probs.topk(2, dim=1).indices[:, 1] == best.indices[:, 1])[clear].double().mean().item()


# ------------------------------------------------------------------------------------------------------- the controls


def entropy(shares: Tensor) -> Tensor:
    """(N,): entropy of every row of (N, K), in nats."""
    each: Tensor = torch.special.entr(shares).sum(dim=1)
    return each


def smoothed_alike(shares: Tensor, labels: Tensor) -> Tensor:
    """Label smoothing that leaves as much entropy as the people's answers do on average: (N, K).

    Args:
        shares: (N, K).
        labels: (N,) int64.
    """
    classes = shares.shape[1]
    wanted = entropy(shares.double()).mean().item()
    own = F.one_hot(labels, classes).double()

    def excess(smoothing: float) -> float:
        row = torch.full((1, classes), smoothing / classes, dtype=torch.float64)
        row[0, 0] += 1 - smoothing
        return entropy(row).item() - wanted

    smoothing = brentq(excess, 0.0, 1.0) if wanted > 0 else 0.0
    return ((1 - smoothing) * own + smoothing / classes).float()


def class_means(shares: Tensor, labels: Tensor) -> Tensor:
    """For every example the mean answers of its class: (N, K). What cats are taken for, whichever cat it is."""
    own = F.one_hot(labels, shares.shape[1]).double()  # (N, K)
    means = own.T @ shares.double() / own.sum(dim=0).clamp_min(1)[:, None]
    return means[labels].float()


def permuted_in_class(shares: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """For every example the answers to another one of its class: (N, K)."""
    moved = shares.clone()
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        moved[order] = shares[order.roll(1)]  # one round through all of the class: nobody keeps their own
    return moved


# ------------------------------------------------------------------------------------------------------ the treatment


@dataclass(frozen=True, eq=False)
class HumanLabels(InputHook):
    """Every example of a batch is given its shares of the classes in place of its label.

    Args:
        shares: (N, K) float, a row for every training example.
    """

    shares: Tensor

    def on_start(self, run: Run) -> None:
        """See that there is a row for every example."""
        if len(self.shares) != len(run.data.train):
            raise AssayError(
                f"There are human labels for {len(self.shares)} training examples, and {run.data.name!r} has "
                f"{len(run.data.train)}: take examples away first, then give the labels of those that are left."
            )

    def before_forward(self, run: Run) -> None:
        """Look them up."""
        run.labels = self.shares[run.index.to(self.shares.device)].to(run.device)


def _with_shares(recipe: Recipe, shares: Tensor) -> Recipe:
    # Before other hooks: what mixes or chooses examples then does the same to their shares.
    return recipe.replace(hooks=(HumanLabels(shares), *recipe.hooks))


@treatment
def human_labels(recipe: Recipe, votes: Tensor | None = None) -> Recipe:
    """Train on what all people said of an example instead of on its label, with whatever loss takes shares of the classes.

    Args:
        recipe: of a classification.
        votes: (N, K), how many people gave each training example each label, in the order of the training split. Without them
            equal inputs with different labels are taken as several answers about one example, as in a table with a row for
            each answer.

    Raises:
        AssayError: there are no classes, the votes do not fit, or no example was given two labels.
    """
    train, classes = recipe.data.train, recipe.data.num_classes
    if recipe.data.task != "classification":
        raise AssayError(f"Human labels are shares of classes, and {recipe.data.name!r} has none: leave them out.")
    if votes is None:
        votes = votes_of_repeats(train.inputs, train.labels, classes)
    if votes.shape != (len(train), classes):
        raise AssayError(
            f"The votes are {tuple(votes.shape)}, and {recipe.data.name!r} has {len(train)} training examples of {classes} "
            "classes: give a row for every training example."
        )
    if not bool(((votes > 0).sum(dim=1) > 1).any()):
        raise AssayError(
            "Human labels need several people's answers, and no training example has two different labels: give votes=(N, K)."
        )
    return _with_shares(recipe, soft_labels(votes, train.labels))


# -------------------------------------------------------------------------------------------------------- the claims

_HARD, _SMOOTH, _OTHER, _CLASS, _HUMAN = (
    "hard labels",
    "label smoothing",
    "another image's answers",
    "mean answers of the class",
    "human labels",
)


def _photos(lab: Lab) -> tuple[Recipe, Dataset, Tensor, Tensor]:
    """How to train on photos without votes; then photos with votes to go on with, and the shares of their two parts."""
    whole = lab.data(lab.pick(smoke="cifar10-20k", laptop="cifar10-20k", full="cifar10"))
    counts = lab.data(lab.pick(smoke="cifar10h-4k", laptop="cifar10h-4k", full="cifar10h")).train.inputs
    assert isinstance(counts, Tensor)
    seen, epochs = lab.pick(smoke=(200, 1), laptop=(8_000, 6), full=(50_000, 200))
    photos = whole.subset(train=seen, seed=lab.seed)
    if lab.scale == "full":
        before = small_photos(photos, epochs).replace(model=partial(wide_resnet, 28, 10), augment=flip_and_crop, watch=())
    else:
        before = lenet_on(photos, epochs).replace(model=partial(half_size, partial(lenet, 3, 10, 16)), watch=())
    # People looked at the test photos: most of them are trained on, and the others are the test from here on.
    tested, learnt = lab.pick(smoke=(100, 100), laptop=(1_500, 2_500), full=(1_000, 9_000))
    rest = torch.ones(len(counts), dtype=torch.bool)
    test = stratified(whole.test.labels, tested, lab.generator())
    rest[test] = False
    learn = rest.nonzero().flatten()[:learnt]
    train, valid, held = (whole.test.take(rows) for rows in (learn, test[:0], test))
    data = Dataset("cifar10h", "classification", train, valid, held, whole.classes)
    return before, data, soft_labels(counts[learn], train.labels), soft_labels(counts[test], held.labels)


def _tuned(lab: Lab, arms: tuple[str, ...]) -> tuple[dict[str, Trained], Tensor]:
    """The same network trained on with each kind of label, and what people say of the photos that it is tested on."""
    before, data, shares, said = _photos(lab)
    start = lab.train(before).model
    plain = before.replace(
        data=data,
        model=partial(copy.deepcopy, start),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
        epochs=lab.pick(smoke=1, laptop=16, full=20),
    )
    labels = data.train.labels
    recipes = {
        _HARD: plain,
        _SMOOTH: _with_shares(plain, smoothed_alike(shares, labels)),
        _OTHER: _with_shares(plain, permuted_in_class(shares, labels, lab.generator(1))),
        _CLASS: _with_shares(plain, class_means(shares, labels)),
        _HUMAN: _with_shares(plain, shares),
    }
    return {arm: lab.train(recipes[arm]) for arm in arms}, said


def _measured(lab: Lab, arms: tuple[str, ...]) -> dict[str, float]:
    """For every arm: accuracy, cross-entropy to the labels and to the answers, second-best accuracy."""
    runs, said = _tuned(lab, arms)
    found: dict[str, float] = {}
    for arm, trained in runs.items():
        logits, labels = trained.logits("test"), trained.recipe.data.test.labels
        found[f"{arm}: accuracy"] = trained.accuracy()
        found[f"{arm}: cross-entropy"] = Score(F.cross_entropy(logits, labels).item(), trained.cost)
        found[f"{arm}: cross-entropy to people"] = Score(F.cross_entropy(logits, said).item(), trained.cost)
        found[f"{arm}: second guess"] = Score(second_best_accuracy(logits, said), trained.cost)
    return found


_SCALED_DOWN = (
    "A LeNet on photos at 16x16 that saw 8,000 training photos for 6 epochs and then 2,500 with votes for 16, tested on 1,500: "
    "it classifies about half of them rightly. The paper: large networks that have learnt all 50,000 photos, and 10-fold "
    "cross-validation on 10,000 with votes. One learning rate for all arms instead of a grid."
)


@claim(
    "Trained on with the shares of people's answers, a network has a lower cross-entropy on unseen photos (to their labels, and "
    "to people's answers) and a better second guess than with hard labels, and is less accurate by half a point at most.",
    expect=(
        Lower(f"{_HUMAN}: cross-entropy", than=f"{_HARD}: cross-entropy"),
        Lower(f"{_HUMAN}: cross-entropy to people", than=f"{_HARD}: cross-entropy to people"),
        Higher(f"{_HUMAN}: second guess", than=f"{_HARD}: second guess"),
        Higher(f"{_HUMAN}: accuracy", than=f"{_HARD}: accuracy", by=-0.005),
    ),
    scaled_down=_SCALED_DOWN,
    unit="share of the photos, or nats",
    needs=("cifar10-20k", "cifar10h-4k"),
)
def soft_beats_hard(lab: Lab) -> Measured:
    return _measured(lab, (_HARD, _SMOOTH, _HUMAN))


@claim(
    "It is what people said of the very image that helps: with label smoothing of the same entropy, with the mean answers of the "
    "class, or with those to another image of the class, the network comes less near to people on unseen photos (cross-entropy).",
    expect=tuple(
        Lower(f"{_HUMAN}: cross-entropy to people", than=f"{arm}: cross-entropy to people") for arm in (_SMOOTH, _CLASS, _OTHER)
    ),
    scaled_down=_SCALED_DOWN + " The last two controls are not the paper's.",
    unit="share of the photos, or nats",
    needs=("cifar10-20k", "cifar10h-4k"),
)
def the_image_matters(lab: Lab) -> Measured:
    return _measured(lab, (_SMOOTH, _CLASS, _OTHER, _HUMAN))


@claim(
    "Trained on with the shares of people's answers, a network withstands the fast gradient sign step of 4/255, and gradient "
    "ascent of the margin in the same ball, on more unseen photos than with hard labels, and than with label smoothing of the "
    "same entropy.",
    expect=tuple(
        Higher(f"{_HUMAN}: {attack}", than=f"{arm}: {attack}") for attack in ("FGSM", "margin") for arm in (_HARD, _SMOOTH)
    ),
    scaled_down=_SCALED_DOWN + " 500 photos are attacked. The paper has no attack on the margin.",
    unit="accuracy under the attack",
    needs=("cifar10-20k", "cifar10h-4k"),
)
def more_robust(lab: Lab) -> Measured:
    runs, _ = _tuned(lab, (_HARD, _SMOOTH, _HUMAN))
    count = lab.pick(smoke=20, laptop=500, full=1_000)
    arms: dict[str, float | Curve] = {}
    for arm, trained in runs.items():
        test = trained.recipe.data.test
        assert isinstance(test.inputs, Tensor)
        photos, labels = test.inputs[:count].to(lab.device), test.labels[:count].to(lab.device)
        model, clip = trained.model, (0.0, 1.0)
        sizes = (0, 1, 2, 4, 8)
        left = [
            classified(model, fgsm(model, photos, labels, eps=k / 255, clip=clip), labels).double().mean().item() for k in sizes
        ]
        arms[f"{arm}: FGSM"] = Curve(left, x=sizes, value=left[3], x_name="eps in 1/255", y_name="accuracy", cost=trained.cost)
        moved = pgd(
            model, photos, labels, eps=4 / 255, steps=10, loss="margin", restarts=2, clip=clip, generator=lab.generator(2)
        )
        arms[f"{arm}: margin"] = classified(model, moved, labels).double().mean().item()
        arms[f"{arm}: accuracy"] = left[0]
    return arms
