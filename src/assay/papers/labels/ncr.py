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

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import mlp
from assay.paper import Below, Curve, Higher, claim
from assay.papers.labels.elr import elr
from assay.recipe import Recipe, per_example, treatment
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
        (B, C), rows that sum to 1.
    """
    units = F.normalize(features.flatten(1), dim=1)
    similar = (units @ units.T).relu()  # (B, B)
    # An example is not its own neighbour: with itself among them, the term would tell it to believe itself.
    own = torch.eye(len(similar), dtype=torch.bool, device=similar.device)
    values, nearest = similar.masked_fill(own, -1.0).topk(min(k, len(similar) - 1), dim=1)  # (B, k)
    values = values.clamp_min(1e-8) ** gamma  # where nothing is similar, all count the same
    weights = torch.zeros_like(similar).scatter(1, nearest, values / values.sum(dim=1, keepdim=True))
    return weights @ (logits / temperature).softmax(dim=1)  # a product with zeros is quicker than gathering (B, k, C)


class NeighborConsistencyLoss(nn.Module):
    """Cross-entropy plus agreement with the nearest neighbours in the batch (eq. 6).

    Args:
        k: neighbours. The paper takes 10 to 250, depending on the data set.
        temperature: T. The paper uses 2.
        weight: a, share of the consistency term, in [0, 1].
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
    start = recipe.epochs // 12 if start_epoch is None else start_epoch
    loss = per_example(NeighborConsistencyLoss, k=k, temperature=temperature, weight=weight, gamma=gamma, start_epoch=start)
    return recipe.replace(loss=loss)


# -------------------------------------------------------------------------------------------------------- the claims


class _RandomNeighbours(NeighborConsistencyLoss):
    """A control: any k examples of the batch, with the weights that unrelated features give."""

    def targets(self, logits: Tensor, features: Tensor) -> Tensor:
        return super().targets(logits, torch.randn_like(features))


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
        data.flip_labels(rate, seed=lab.seed),
        model=partial(mlp, 784, 10),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        schedule=cosine,
        epochs=lab.pick(smoke=2, laptop=60, full=150),
    )


def _curve(trained: Trained) -> Curve:
    return Curve(trained.history["test_accuracy"], cost=trained.cost, y_name="test accuracy")


_SCALED_DOWN = (
    "MNIST 5k and a perceptron (784-256-256-10) for 60 epochs instead of CIFAR and mini-ImageNet with a ResNet-18; "
    "k = 10, T = 2, a = 0.9."
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
    recipes = {"cross-entropy": plain, "label smoothing": smoothed, "ELR": elr(plain), "NCR": ncr(plain)}
    arms = {name: _curve(lab.train(recipe)) for name, recipe in recipes.items()}
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
    start = plain.epochs // 12
    losses = {
        "bootstrap": per_example(_Bootstrap, start_epoch=start),
        "random neighbours": per_example(_RandomNeighbours, start_epoch=start),
    }
    recipes = {name: plain.replace(loss=loss) for name, loss in losses.items()}
    return {name: _curve(lab.train(recipe)) for name, recipe in {"NCR": ncr(plain), **recipes}.items()}


@claim(
    "On clean labels neighbour consistency costs less than 2 points of accuracy.",
    expect=Higher("NCR, no wrong labels", than="cross-entropy, no wrong labels", by=-0.02),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def harmless_on_clean_labels(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, rate in (("no wrong labels", 0.0), ("a fifth wrong", 0.2)):
        plain = _plain(lab, rate)
        arms[f"cross-entropy, {name}"] = _curve(lab.train(plain))
        arms[f"NCR, {name}"] = _curve(lab.train(ncr(plain)))
    return arms
