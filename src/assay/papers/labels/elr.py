"""Early-learning regularisation: train on wrong labels without memorising them.

A network learns the clean examples first and the wrong labels later: early in training its predictions for a mislabelled
example are often right, and only afterwards does cross-entropy pull them over to the wrong label. ELR remembers that early
phase. It keeps a running average of each training example's predictions and rewards agreement with it. Where the label
contradicts what the network believed, the reward's gradient cancels the pull of cross-entropy, and the label is not
memorised; where the label fits, it speeds learning up.

Source: Liu, Niles-Weed, Razavian and Fernandez-Granda, "Early-Learning Regularization Prevents Memorization of Noisy
Labels", NeurIPS 2020. Equation numbers are the paper's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import mlp
from assay.paper import Curve, Higher, Lower, Reported, claim
from assay.papers.architectures.wide_resnet import wide_resnet
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.recipes import small_photos
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


class EarlyLearningRegularization(nn.Module):
    """Cross-entropy plus agreement with each example's early predictions (eq. 6).

    Args:
        num_examples: size of the training set; one row of memory is kept for each example.
        num_classes: number of classes.
        momentum: how slowly the remembered predictions move, in [0, 1). The paper uses 0.7 for CIFAR-10 and 0.9 for CIFAR-100.
        weight: strength of the agreement term, at least 0. The paper uses 3 for CIFAR-10 and 7 for CIFAR-100.

    Shape: logits (B, C) float, labels (B,) int64, index (B,) int64 positions in the training set -> scalar.

    The memory is a buffer: it moves with ``.to(device)`` and is saved in the ``state_dict``. It moves on in training mode
    only, so that ``loss.eval()`` lets one look at the loss without changing it.
    """

    targets: Tensor  # (N, C): the running average of every example's predictions, zero before its first visit

    def __init__(self, num_examples: int, num_classes: int, momentum: float = 0.7, weight: float = 3.0) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        if weight < 0:
            raise ValueError(f"weight must not be negative, not {weight}")
        self.momentum = momentum
        self.weight = weight
        self.register_buffer("targets", torch.zeros(num_examples, num_classes))

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        # Bounded away from 0 and 1: with p = t = one-hot the logarithm below would be that of zero.
        # In float32 at least: half precision has no number between 1 - 1e-4 and 1.
        probs = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).clamp(1e-4, 1 - 1e-4)  # (B, C)
        targets = self._remember(index, probs.detach())
        agreement = (targets * probs).sum(dim=1)  # (B,)
        # The second term is negative and falls as the predictions come nearer to what was believed early.
        return F.cross_entropy(logits, labels) + self.weight * (1 - agreement).log().mean()

    @torch.no_grad()
    def _remember(self, index: Tensor, probs: Tensor) -> Tensor:
        """Move the memory towards the present predictions, then return it: (B, C) (temporal ensembling, sec. 4.2)."""
        if not self.training:
            return self.targets[index].to(probs.dtype)
        believed = probs / probs.sum(dim=1, keepdim=True)
        moved = self.targets[index].mul_(self.momentum).add_(believed.to(self.targets.dtype), alpha=1 - self.momentum)
        self.targets[index] = moved
        return moved.to(probs.dtype)


@treatment
def elr(recipe: Recipe, momentum: float = 0.7, weight: float = 3.0) -> Recipe:
    """Train with early-learning regularisation instead of the recipe's loss."""
    return with_loss(recipe, per_example(EarlyLearningRegularization, momentum=momentum, weight=weight))


NOISE = 0.4


def _plain(lab: Lab) -> Recipe:
    """The control: cross-entropy, with four of ten training labels exchanged."""
    if lab.scale == "full":
        # The paper draws the new label from all classes, so that one in ten of the exchanged labels is right after all.
        data = lab.data("cifar10").normalise().flip_labels(NOISE, seed=lab.seed, include_true=True)
        return Recipe(
            data,
            model=partial(wide_resnet, 16, 4),
            optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=1e-3),
            schedule=cosine,
            epochs=150,
        )
    data = lab.data("mnist5k")
    if lab.scale == "smoke":
        data = data.subset(train=500, test=200)
    return Recipe(
        data.flip_labels(NOISE, seed=lab.seed),
        model=partial(mlp, 784, 10),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        schedule=cosine,
        epochs=2 if lab.scale == "smoke" else 60,
    )


_SCALED_DOWN = (
    "MNIST 5k and a perceptron (784-256-256-10, which memorises within a minute) instead of CIFAR-10 and a ResNet-34; 60 epochs "
    "instead of 150. Here 40% of the labels are wrong; the paper's 40% are drawn from all classes, so that 36% are wrong."
)


@claim(
    "With 40% of the training labels wrong, a network trained to the end with ELR has a test accuracy more than 10 points above "
    "the same network trained with cross-entropy.",
    expect=Higher("ELR", than="cross-entropy", by=0.10),
    reported=Reported(
        "CIFAR-10, ResNet-34, 40% symmetric noise: test accuracy", {"cross-entropy": 0.819, "ELR": 0.892}, where="Table 1"
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy after the last epoch",
)
def resists_wrong_labels(lab: Lab) -> Measured:
    plain = _plain(lab)
    runs = {"cross-entropy": lab.train(plain), "ELR": lab.train(elr(plain))}
    return {arm: _curve(trained) for arm, trained in runs.items()}


def _curve(trained: Trained, epoch: int = -1) -> Curve:
    """Test accuracy by epoch. The last one counts: choosing the best on test data would hide the memorising."""
    accuracy = trained.history["test_accuracy"]
    return Curve(accuracy, value=accuracy[epoch], cost=trained.cost, y_name="test accuracy")


@claim(
    "ELR does more than stopping early: trained to the end, it beats cross-entropy that is stopped at the epoch which classifies "
    "a held-out tenth of the wrongly labelled data best.",
    expect=Higher("ELR", than="cross-entropy, stopped early"),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
)
def beats_early_stopping(lab: Lab) -> Measured:
    plain = _plain(lab)
    # Nine tenths for training in every arm; the rest, wrong labels and all, is what an honest user could stop on.
    plain = plain.replace(data=plain.data.holdout(0.1, seed=lab.seed), watch=("valid", "test"))
    arms: dict[str, float | Curve] = {}
    for arm, recipe in {"cross-entropy": plain, "ELR": elr(plain)}.items():
        trained = lab.train(recipe)
        held_out = trained.history["valid_accuracy"]
        arms[arm] = _curve(trained)
        arms[f"{arm}, stopped early"] = _curve(trained, held_out.index(max(held_out)))
    return arms


@claim(
    "At the end of training the share of mislabelled training examples that are predicted as their wrong label is at least 30 "
    "points lower with ELR than with cross-entropy, and the share predicted as their true class is higher.",
    expect=(
        Lower("ELR, memorised", than="cross-entropy, memorised", by=0.30),
        Higher("ELR, recovered", than="cross-entropy, recovered"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="share of the mislabelled training examples",
)
def memorises_less(lab: Lab) -> Measured:
    plain = _plain(lab)
    shares: dict[str, float] = {}
    for arm, recipe in {"cross-entropy": plain, "ELR": elr(plain)}.items():
        predicted = lab.train(recipe).logits("train").argmax(dim=1)  # (N,)
        split = recipe.data.train
        assert split.clean_labels is not None
        wrong = split.labels != split.clean_labels
        shares[f"{arm}, memorised"] = (predicted == split.labels)[wrong].double().mean().item()
        shares[f"{arm}, recovered"] = (predicted == split.clean_labels)[wrong].double().mean().item()
    return shares


@claim(
    "On photos, too: with 40% of the training labels wrong, a residual network trained to the end with ELR has a higher test "
    "accuracy than with cross-entropy.",
    expect=Higher("ELR", than="cross-entropy"),
    scaled_down="2,000 photos of CIFAR-10 at 16x16 and a ResNet-8 for 30 epochs instead of 50,000, a ResNet-34 and 150 epochs.",
    unit="test accuracy after the last epoch",
    needs=("cifar10-20k",),
)
def resists_wrong_labels_on_photos(lab: Lab) -> Measured:
    plain = _photos(lab)
    return {"cross-entropy": _curve(lab.train(plain)), "ELR": _curve(lab.train(elr(plain)))}


def _photos(lab: Lab) -> Recipe:
    train, test, epochs = lab.pick(smoke=(100, 100, 2), laptop=(2_000, 1_000, 30), full=(20_000, 4_000, 150))
    data = lab.data("cifar10-20k").normalise().subset(train=train, test=test)
    return small_photos(data.flip_labels(NOISE, seed=lab.seed), epochs)
