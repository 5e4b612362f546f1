"""Neighbour consistency: an example should be predicted as its nearest neighbours in the batch are.

A wrong label contradicts the examples that look like its own. So, besides fitting the labels, make each prediction agree with
a mean of the predictions of its k nearest neighbours, as the network's last hidden layer sees them:

    s_ij = max(0, cos(v_i, v_j))                      similarity of two examples of the batch, j not i
    w_ij = s_ij^gamma / sum over the k nearest        (eq. 4)
    q_i  = sum_j w_ij softmax(z_j / T)
    L    = (1 - a) CE(z, y) + a T^2 mean_i KL(q_i || softmax(z_i / T))       (eq. 5, 6)

In the first epochs the features say little, so that cross-entropy trains alone. With a = 1 and fixed features a step would be
label propagation on the graph of neighbours. It needs one network, one pass and a B x B matrix a batch.

As in the authors' code, gradients flow through the neighbours' predictions and the similarities too.

Source: Iscen, Valmadre, Arnab and Schmid, "Learning with Neighbor Consistency for Noisy Labels", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn import mlp
from assay.paper import Below, Curve, Higher, claim
from assay.papers.labels.elr import elr
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.recipes import small_photos
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def neighbour_targets(logits: Tensor, features: Tensor, k: int = 10, temperature: float = 2.0, gamma: float = 1.0) -> Tensor:
    """The mean prediction of every example's nearest neighbours in the batch.

    Args:
        logits: (B, C).
        features: (B, F), what the logits are computed from.
        k: neighbours; at most B - 1 are taken. About as many as a batch has of a class.
        temperature: T, by which logits are divided.
        gamma: power of the similarities; above 1 the nearest count for more.

    Returns:
        (B, C), rows that sum to 1, in float32 at least.

    Raises:
        ValueError: a batch of one, which has no neighbours.
    """
    if len(logits) < 2:
        raise ValueError("a batch of one example has no neighbours")
    precision = torch.promote_types(logits.dtype, torch.float32)
    units = F.normalize(features.flatten(1).to(precision), dim=1)
    similar = (units @ units.T).relu()  # (B, B)
    # An example is not its own neighbour: with itself among them, the term would tell it to believe itself.
    own = torch.eye(len(similar), dtype=torch.bool, device=similar.device)
    values, nearest = similar.masked_fill(own, -1.0).topk(min(k, len(similar) - 1), dim=1)  # (B, k)
    # Relative to the nearest, so that no power of small numbers vanishes; where nothing is similar, all count the same.
    values = (values.clamp_min(1e-8) / values[:, :1].clamp_min(1e-8)) ** gamma
    weights = torch.zeros_like(similar).scatter(1, nearest, values / values.sum(dim=1, keepdim=True))
    return weights @ (logits.to(precision) / temperature).softmax(
        dim=1
    )  # a product with zeros is quicker than gathering (B, k, C)


class NeighborConsistencyLoss(nn.Module):
    """Cross-entropy plus agreement with the nearest neighbours in the batch (eq. 6).

    Args:
        k: neighbours. The paper takes 10 to 250, depending on the data set.
        temperature: T. The paper uses 2.
        weight: a, share of the consistency term, in [0, 1]. The paper tunes it for each data set, as far down as 0.3.
        gamma: power of the similarities; 1 in the authors' settings.
        start_epoch: epochs of plain cross-entropy before.
        detach_neighbours: whether to stop the gradient through the neighbours' predictions; the authors' code does not.

    Shape: logits (B, C) float, labels (B,) int64, features (B, F), epoch an int -> scalar.
    """

    def __init__(
        self,
        k: int = 10,
        temperature: float = 2.0,
        weight: float = 0.9,
        gamma: float = 1.0,
        start_epoch: int = 5,
        detach_neighbours: bool = False,
    ) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], not {weight}")
        if temperature <= 0 or gamma <= 0:
            raise ValueError(f"temperature and gamma must be positive, not {temperature} and {gamma}")
        self.k, self.temperature, self.weight, self.gamma = k, temperature, weight, gamma
        self.start_epoch, self.detach_neighbours = start_epoch, detach_neighbours

    def forward(self, logits: Tensor, labels: Tensor, features: Tensor, epoch: int) -> Tensor:
        fit = F.cross_entropy(logits, labels)
        if epoch < self.start_epoch or len(logits) < 2:  # a batch of one has no neighbours
            return fit
        targets = self.targets(logits, features)
        if self.detach_neighbours:
            targets = targets.detach()
        own = (logits / self.temperature).log_softmax(dim=1)
        # KL(q || p): 1e-16 is the authors' guard against the logarithm of nothing.
        divergence = (targets * ((targets + 1e-16).log() - own)).sum(dim=1).mean()
        return (1 - self.weight) * fit + self.weight * self.temperature**2 * divergence

    def targets(self, logits: Tensor, features: Tensor) -> Tensor:
        """(B, C): what every prediction should agree with."""
        return neighbour_targets(logits, features, self.k, self.temperature, self.gamma)


@treatment
def ncr(
    recipe: Recipe, k: int = 10, temperature: float = 2.0, weight: float = 0.9, gamma: float = 1.0, start_epoch: int | None = None
) -> Recipe:
    """Train with neighbour consistency. ``start_epoch=None`` gives a twelfth of the epochs to cross-entropy alone."""
    if recipe.accumulate > 1:
        raise AssayError(
            "Neighbours are looked for in the whole batch, which a recipe with accumulate takes in parts: train with 1."
        )
    start = _start(recipe) if start_epoch is None else start_epoch
    loss = per_example(NeighborConsistencyLoss, k=k, temperature=temperature, weight=weight, gamma=gamma, start_epoch=start)
    return with_loss(recipe, loss)


def _start(recipe: Recipe) -> int:
    """A twelfth of the epochs (the paper: 10 of 130), and one at least where there are several."""
    return min(max(1, recipe.epochs // 12), recipe.epochs - 1)


# -------------------------------------------------------------------------------------------------------- the claims


class _RandomNeighbours(NeighborConsistencyLoss):
    """A control: every example gets the neighbours of another one; all else, gradients too, stays as it is."""

    def targets(self, logits: Tensor, features: Tensor) -> Tensor:
        return super().targets(logits, features[torch.randperm(len(features), device=features.device)])


class _Bootstrap(nn.Module):
    """A control: the prediction itself instead of the neighbours', ``(1 - a) CE(z, y) + a CE(z, softmax(z))``."""

    def __init__(self, weight: float = 0.9, start_epoch: int = 5) -> None:
        super().__init__()
        self.weight, self.start_epoch = weight, start_epoch

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        fit = F.cross_entropy(logits, labels)
        if epoch < self.start_epoch:
            return fit
        entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        return (1 - self.weight) * fit + self.weight * entropy


def _plain(lab: Lab, rate: float = 0.4) -> Recipe:
    data = lab.data("mnist5k")
    if lab.scale == "smoke":
        data = data.subset(train=500, test=200)
    return Recipe(
        data.flip_labels(rate, seed=lab.seed).holdout(0.1, seed=lab.seed),
        model=partial(mlp, 784, 10),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        schedule=cosine,
        epochs=lab.pick(smoke=2, laptop=60, full=150),
        watch=("valid", "test"),
    )


_WEIGHTS = (0.3, 0.6, 0.9)


def _chosen(lab: Lab, recipes: Iterable[Recipe]) -> Trained:
    """The training that ends with the highest accuracy on the held-out tenth, whose labels are as wrong as the others."""
    return max((lab.train(recipe) for recipe in recipes), key=lambda trained: trained.history["valid_accuracy"][-1])


def _curve(trained: Trained) -> Curve:
    return Curve(trained.history["test_accuracy"], cost=trained.cost, y_name="test accuracy")


_SCALED_DOWN = (
    "MNIST 5k and a perceptron (784-256-256-10) for 60 epochs instead of CIFAR and mini-ImageNet with a ResNet-18; k = 10, T = "
    "2, and a one of 0.3, 0.6 and 0.9 by a held-out tenth with wrong labels, for every arm that has an a."
)


@claim(
    "With 40% of the training labels wrong, a network trained to the end with neighbour consistency is more than 15 points more "
    "accurate than with cross-entropy, and has fallen by less than 2 points from its best epoch.",
    expect=(Higher("NCR", than="cross-entropy", by=0.15), Below("NCR, fall from its best epoch", 0.02)),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def resists_wrong_labels(lab: Lab) -> Measured:
    plain = _plain(lab)
    smoothed = plain.replace(loss=partial(F.cross_entropy, label_smoothing=0.1))
    recipes = {"cross-entropy": plain, "label smoothing": smoothed, "ELR": elr(plain)}
    arms = {name: _curve(lab.train(recipe)) for name, recipe in recipes.items()}
    arms["NCR"] = _curve(_chosen(lab, [ncr(plain, weight=weight) for weight in _WEIGHTS]))
    falls = {f"{name}, fall from its best epoch": max(line.y) - line.number for name, line in arms.items()}
    return {**arms, **falls}


@claim(
    "It is the neighbours that help: with the example's own prediction in their place (bootstrap), or with any others of the "
    "batch, the network ends more than 5 points lower.",
    expect=(Higher("NCR", than="bootstrap", by=0.05), Higher("NCR", than="random neighbours", by=0.05)),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def neighbours_make_the_difference(lab: Lab) -> Measured:
    plain = _plain(lab)
    kinds = {"NCR": NeighborConsistencyLoss, "bootstrap": _Bootstrap, "random neighbours": _RandomNeighbours}
    arms = {}
    for name, kind in kinds.items():
        losses = [per_example(kind, weight=weight, start_epoch=_start(plain)) for weight in _WEIGHTS]
        arms[name] = _curve(_chosen(lab, [plain.replace(loss=loss) for loss in losses]))
    return arms


@claim(
    "On clean labels neighbour consistency at its strongest here (a = 0.9) costs less than 2 points of accuracy, and with a "
    "fifth of the labels wrong it already gains.",
    expect=(
        Higher("NCR, no wrong labels", than="cross-entropy, no wrong labels", by=-0.02),
        Higher("NCR, a fifth wrong", than="cross-entropy, a fifth wrong"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def harmless_on_clean_labels(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, rate in (("no wrong labels", 0.0), ("a fifth wrong", 0.2)):
        plain = _plain(lab, rate)
        arms[f"cross-entropy, {name}"] = _curve(lab.train(plain))
        arms[f"NCR, {name}"] = _curve(lab.train(ncr(plain, weight=0.9)))
    return arms


@claim(
    "On photos, too: with 40% of the training labels wrong, a residual network trained to the end with neighbour consistency has "
    "a higher test accuracy than with cross-entropy.",
    expect=Higher("NCR", than="cross-entropy"),
    scaled_down="2,000 photos of CIFAR-10 at 16x16 and a ResNet-8 for 30 epochs instead of 50,000, a ResNet-18 and 250; a = 0.9.",
    unit="test accuracy after the last epoch",
    needs=("cifar10-20k",),
)
def resists_wrong_labels_on_photos(lab: Lab) -> Measured:
    train, test, epochs = lab.pick(smoke=(100, 100, 2), laptop=(2_000, 1_000, 30), full=(20_000, 4_000, 150))
    data = lab.data("cifar10-20k").normalise().subset(train=train, test=test)
    plain = small_photos(data.flip_labels(0.4, seed=lab.seed), epochs)
    return {"cross-entropy": _curve(lab.train(plain)), "NCR": _curve(lab.train(ncr(plain, weight=0.9)))}
