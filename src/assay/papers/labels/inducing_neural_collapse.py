"""Inducing neural collapse: rare classes get features as good as frequent ones.

Where all classes are equally frequent, long training ends in neural collapse: features of a class shrink to its mean, and the
class means lie at equal angles, as far apart as they can. Where some classes are rare, cross-entropy lets them merge: their means
come to lie in nearly one direction, and what is seen of them at test time is taken for a frequent class. Two terms ask for the
collapse outright. With a centre C_k for each class:

    L_NC1 = 1/K sum_k 1/n_k sum_{i: y_i = k} |h_i - C_k|^2          n_k: examples of class k in the batch
    L_NC2 = -1/K sum_k min_{j != k} angle(C_k - C, C_j - C)         C: mean of the centres
    L     = CE + intra * L_NC1 + inter * L_NC2

L_NC1 draws features to their centre, with the same force for every class that a batch holds, however many of its examples. L_NC2
moves the centres apart, and the features follow through L_NC1; it is lowest at the simplex, where all angles are
arccos(-1 / (K - 1)).

Centres are not the network's: as in the authors' code they take plain steps of their own, at a rate of 1/2 on L / intra, without
momentum, decay or schedule. Here they take them inside the loss, so that it works beside any optimizer. The mean of a batch
would not do for a centre: most batches hold no example of a rare class.

Source: Liu, Zhang, Hu, Cao, Yao and Pan, "Inducing Neural Collapse in Deep Long-tailed Learning", AISTATS 2023.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn import mlp
from assay.nn.collapse import centred_cosines, class_means, last_layer, neural_collapse
from assay.paper import Curve, Higher, Lower, claim
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.recipe import Recipe, per_example, probe, treatment, with_loss
from assay.train.augment import flip_and_crop
from assay.train.losses import balanced_cross_entropy, inverse_frequencies
from assay.train.schedules import cosine
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def intra_class(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """L_NC1: mean squared distance to the centre, within each class and then over all classes.

    Args:
        features: (B, F).
        labels: (B,) int64; or (B, K) float, shares of the classes in each example, by which distances then count.
        centers: (K, F).

    Returns:
        A scalar; classes that the batch has no example of count as 0.
    """
    if labels.is_floating_point():
        distances = torch.cdist(features, centers, compute_mode="donot_use_mm_for_euclid_dist").square()  # (B, K)
        return (distances * labels / labels.sum(dim=0).clamp_min(1e-10)).sum() / len(centers)
    counts = torch.bincount(labels, minlength=len(centers))
    distances = (features - centers[labels]).square().sum(dim=1)  # (B,)
    return (distances / counts[labels]).sum() / len(centers)


def inter_class(centers: Tensor) -> Tensor:
    """L_NC2: minus the angle (radians) between a class and its nearest other class, mean over classes; (K, F) -> scalar.

    Seen from the centre of all, for features behind a ReLU are positive and lie at sharp angles, whatever their class. The slope
    of an angle is infinite at 0 and 180 degrees; where a cosine is closer than 1e-5 to 1 or -1 it is left alone.
    """
    cosines = centred_cosines(centers)
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    nearest = cosines.masked_fill(own, -1.0).amax(dim=1)
    return -nearest.clamp(-0.99999, 0.99999).acos().mean()


class NeuralCollapseRegularizer(nn.Module):
    """Draws features to class centres that lie at equal angles; add it to the loss of a classifier.

    Args:
        num_classes: K.
        feature_dim: F, width of the last hidden layer. Equal angles need F >= K - 1.
        intra: weight of L_NC1, above 0; the authors' scripts start from 0.01.
        inter: weight of L_NC2; 0.1 in the authors' scripts. 0 leaves centres that follow their classes alone.
        center_lr: rate of the centres' steps; 0.5 in the authors' scripts.

    Shape: features (B, F) float, labels (B,) int64 or (B, K) float -> scalar.

    ``centers`` (K, F) start from N(0, 1). They are a buffer, no parameter, and take a step with every call in training mode,
    after the loss was computed; ``regularizer.eval()`` lets one look at the loss without moving them.
    """

    centers: Tensor

    def __init__(
        self, num_classes: int, feature_dim: int, intra: float = 0.01, inter: float = 0.1, center_lr: float = 0.5
    ) -> None:
        super().__init__()
        if intra <= 0:
            raise ValueError(f"intra must be positive, not {intra}: it is what makes features follow their centres")
        if inter < 0 or center_lr < 0:
            raise ValueError(f"inter and center_lr must not be negative, not {inter} and {center_lr}")
        self.intra, self.inter, self.center_lr = intra, inter, center_lr
        self.register_buffer("centers", torch.randn(num_classes, feature_dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.centers.shape[1]:
            raise ValueError(f"features must be (B, {self.centers.shape[1]}), not {tuple(features.shape)}")
        features = features.to(torch.promote_types(features.dtype, self.centers.dtype))
        centers = self.centers.to(features.dtype)
        loss = self.intra * intra_class(features, labels, centers) + self.inter * inter_class(centers)
        if self.training:
            moved = _pull(features.detach(), labels, centers) + self.inter / self.intra * _push(centers)
            # A new tensor: the backward pass of the loss still needs the old one.
            self.centers = (centers - self.center_lr * moved).to(self.centers.dtype)
        return loss


def _pull(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """The gradient of :func:`intra_class` in the centres, 2/K (C_k - mean of class k); 0 for absent classes: (K, F)."""
    shares = labels if labels.is_floating_point() else F.one_hot(labels, len(centers))
    shares = shares.to(features.dtype)
    shares = shares / shares.sum(dim=0).clamp_min(1e-10)  # (B, K)
    return 2 / len(centers) * (shares.sum(dim=0)[:, None] * centers - shares.T @ features)


def _push(centers: Tensor) -> Tensor:
    """The gradient of :func:`inter_class`: (K, F)."""
    with torch.enable_grad():
        leaf = centers.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(inter_class(leaf), leaf)
    return gradient


class NeuralCollapseLoss(nn.Module):
    """Cross-entropy and :class:`NeuralCollapseRegularizer`, which has the arguments.

    Shape: logits (B, K), labels (B,) int64 or (B, K) float, features (B, F) -> scalar.
    """

    def __init__(
        self, num_classes: int, feature_dim: int, intra: float = 0.01, inter: float = 0.1, center_lr: float = 0.5
    ) -> None:
        super().__init__()
        self.regularizer = NeuralCollapseRegularizer(num_classes, feature_dim, intra, inter, center_lr)

    def forward(self, logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        regular: Tensor = self.regularizer(features.flatten(1), labels)
        return F.cross_entropy(logits, labels) + regular


@treatment
def inducing_neural_collapse(recipe: Recipe, intra: float = 0.01, inter: float = 0.1, center_lr: float = 0.5) -> Recipe:
    """Add the two terms to the recipe's loss; features are what goes into the network's last linear layer."""
    return with_loss(recipe, per_example(NeuralCollapseLoss, intra=intra, inter=inter, center_lr=center_lr))


@probe
def collapse(view: View) -> Seen:
    """How far the last hidden layer has collapsed on examples with known labels, and how far each input is from its class.

    Args:
        view: a classifier with a linear last layer, and a background with labels.
    """
    view.classifier()
    view.only("images", "audio", "series", "table")
    if view.background_labels is None or not len(view.background):
        raise AssayError("class means need examples with labels, and the data have none of the network's classes")
    if not view.layered:
        view.layer()  # says what to do
    try:
        known, shown = last_layer(view.model, view.background), last_layer(view.model, view.inputs)
        found = neural_collapse(known.features, view.background_labels, known.weight, known.bias)
    except ValueError as error:  # no last linear layer, or examples of one class only
        raise AssayError(f"There is nothing to say about collapse: {error}.") from error
    present, place = view.background_labels.unique(return_inverse=True)
    means = class_means(known.features, place, len(present))
    centre = means.mean(dim=0)
    toward = F.cosine_similarity((shown.features - centre)[:, None], means - centre, dim=2)  # (B, K)
    nearest = present[torch.cdist(shown.features, means).argmin(dim=1)]
    own = (present == view.target[:, None]).double()
    angle = (own * toward).sum(dim=1).clamp(-1, 1).acos().rad2deg()
    best = math.degrees(math.acos(-1 / (len(present) - 1)))
    return Seen(
        numbers={
            "NC1, spread within classes against between": found.nc1,
            "NC2, distance from equal angles": found.nc2,
            "NC3, weights against class means": found.nc3,
            "NC4, share not in the class of the nearest mean": found.nc4,
            "smallest angle between classes, degrees": found.smallest_angle,
        },
        each={
            "degrees from its class": torch.where(own.any(dim=1), angle, torch.nan),
            "nearest mean is that class": (nearest == view.target).double(),
        },
        notes=(f"equal angles of {len(present)} classes would be {best:.1f} degrees",),
    )


# -------------------------------------------------------------------------------------------------------- the claims

RATIO = 100  # of the most frequent class over the rarest


def _photos(lab: Lab, data: Dataset) -> Recipe:
    """The paper's training on CIFAR (its code); at smaller scale one with which cross-entropy fits most of the training set."""
    full = lab.scale == "full"
    net = partial(cifar_resnet, 32) if full else partial(cifar_resnet, 8, width=8, in_channels=data.input_shape[0])
    return Recipe(
        data.normalise(),
        model=net if full else partial(half_size, net),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        augment=flip_and_crop if full else None,
        epochs=lab.pick(smoke=1, laptop=18, full=200),
        batch_size=128 if full else 32,
        watch=("valid",),
    )


def _recipe(lab: Lab, balanced: bool = False) -> Recipe:
    """Cross-entropy on long-tailed digits (full scale: photos); a tenth was held out before, as balanced as it came.

    Args:
        lab: which seed and scale.
        balanced: whether to train on as many examples with equal classes instead, for comparison.
    """
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="cifar10"))
    if lab.scale == "smoke":
        data = data.subset(train=600, test=200)
    data = data.holdout(0.1, seed=lab.seed)
    thin = data.long_tail(RATIO, seed=lab.seed)
    data = data.subset(train=len(thin.train), seed=lab.seed) if balanced else thin
    if lab.scale == "full":
        return _photos(lab, data)
    return Recipe(
        data,
        model=partial(mlp, 784, 10, (256, 64)),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        epochs=lab.pick(smoke=2, laptop=60, full=200),
        batch_size=64,
        watch=("valid",),
    )


def _angles(trained: Trained) -> tuple[Curve, float]:
    """Angles between class means of test images, in order, with the smallest as its number; and the spread of their cosines."""
    test = trained.recipe.data.test
    assert isinstance(test.inputs, Tensor)
    found = neural_collapse(last_layer(trained.model, test.inputs).features.cpu(), test.labels)
    pairs = found.cosines[torch.triu(torch.ones_like(found.cosines, dtype=torch.bool), diagonal=1)]
    angles = pairs.clamp(-1, 1).acos().rad2deg().sort().values.tolist()
    curve = Curve(
        angles, value=angles[0], cost=trained.cost, x_name="pair of classes, by its angle", y_name="degrees between class means"
    )
    return curve, found.spread


def _geometry(lab: Lab, recipes: dict[str, Recipe]) -> dict[str, float | Curve]:
    arms: dict[str, float | Curve] = {}
    for name, recipe in recipes.items():
        trained = lab.train(recipe)
        arms[name], arms[f"{name}: spread"] = _angles(trained)
        arms[f"{name}: accuracy"] = trained.accuracy()
    return arms


_SCALED_DOWN = (
    "About 900 digits of MNIST 5k, 360 of the most frequent class and 4 of the rarest, and a perceptron (784-256-64-10, 60 "
    "epochs) instead of CIFAR and a ResNet-32 for 200 epochs; on all 1,000 test images."
)
_PHOTOS = (
    "About 2,000 training images of CIFAR-10 at 16x16, 800 of the most frequent class and 8 of the rarest, a residual network of "
    "8 layers and 8, 16 and 32 planes, 18 epochs without augmentation in batches of 32, instead of 12,406 images, 32 layers and "
    "200 epochs in batches of 128; 2,000 test images."
)
_EXPECT_ANGLES = (
    Higher("regularised", than="cross-entropy", by=5.0),
    Lower("regularised: spread", than="cross-entropy: spread"),
)


@claim(
    "On long-tailed images (the first class 100 times as frequent as the last) the two terms restore equal angles: the smallest "
    "angle between class means of test images is more than 5 degrees larger than with cross-entropy, and the cosines of all "
    "pairs spread less.",
    expect=_EXPECT_ANGLES,
    scaled_down=_SCALED_DOWN,
    unit="smallest angle between class means (degrees), spread of cosines, or test accuracy",
)
def restores_equal_angles(lab: Lab) -> Measured:
    plain = _recipe(lab)
    return _geometry(
        lab,
        {
            "cross-entropy": plain,
            "regularised": inducing_neural_collapse(plain),
            "regularised, centres not spread": inducing_neural_collapse(plain, inter=0.0),
            "cross-entropy, balanced data": _recipe(lab, balanced=True),
        },
    )


@claim(
    "The same on long-tailed photos with a residual network: the smallest angle between class means of test images is more than "
    "5 degrees larger with the two terms than with cross-entropy, and the cosines of all pairs spread less.",
    expect=_EXPECT_ANGLES,
    scaled_down=_PHOTOS,
    unit="smallest angle between class means (degrees), spread of cosines, or test accuracy",
    needs=("cifar10-20k",),
)
def restores_equal_angles_on_photos(lab: Lab) -> Measured:
    if lab.scale == "full":  # where the other claims are about photos too
        plain = _recipe(lab)
    else:
        name, train, test = ("digits", 300, 100) if lab.scale == "smoke" else ("cifar10-20k", 8000, 2000)
        plain = _photos(lab, lab.data(name).subset(train, test, seed=lab.seed).long_tail(RATIO, seed=lab.seed))
    return _geometry(lab, {"cross-entropy": plain, "regularised": inducing_neural_collapse(plain)})


def _best(lab: Lab, trials: list[Recipe]) -> Trained:
    """The training whose network is most accurate on held-out examples, as balanced as the test."""
    return max((lab.train(recipe) for recipe in trials), key=lambda trained: trained.history["valid_accuracy"][-1])


def _chosen(lab: Lab) -> dict[str, Trained]:
    """Every arm at the best of its four settings: two rates, and two decays of weights or two strengths of the method."""
    plain = _recipe(lab)
    weights = inverse_frequencies(plain.data.train.labels, plain.data.num_classes)
    arms: dict[str, Trained] = {}
    for name, loss in {
        "cross-entropy": F.cross_entropy,
        "classes balanced": partial(balanced_cross_entropy, weights=weights),
    }.items():
        without, regularised = [], []
        for rate in (0.05, 0.1):
            for decay in (5e-4, 5e-3):
                optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=decay)
                without.append(plain.replace(loss=loss, optimizer=optimizer))
            for strength in (1, 10):
                recipe = plain.replace(loss=loss, optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4))
                regularised.append(inducing_neural_collapse(recipe, intra=0.01 * strength, inter=0.1 * strength))
        arms[name], arms[f"{name}, regularised"] = _best(lab, without), _best(lab, regularised)
    return arms


def _by_class(trained: Trained) -> Curve:
    """Test accuracy of every class against how many examples it is trained on; the mean over classes counts."""
    data = trained.recipe.data
    right = (trained.logits("test").argmax(dim=1) == data.test.labels).double()
    shares = class_means(right[:, None], data.test.labels, data.num_classes).flatten().tolist()
    counts = torch.bincount(data.train.labels, minlength=data.num_classes).tolist()
    return Curve(
        shares, counts, value=sum(shares) / len(shares), cost=trained.cost, x_name="training images", y_name="test accuracy"
    )


_TUNED = " Every arm has four trials, chosen on a held-out tenth of the full data: 400 images, as balanced as the test."


@claim(
    "On long-tailed images the two terms make cross-entropy more accurate, counting every class alike, and the three rarest "
    "classes gain more than the three most frequent ones.",
    expect=(
        Higher("cross-entropy, regularised", than="cross-entropy"),
        Higher("gain of the rarest classes", than="gain of the most frequent classes"),
    ),
    scaled_down=_SCALED_DOWN + _TUNED,
    unit="test accuracy, mean over classes",
)
def rare_classes_gain(lab: Lab) -> Measured:
    curves = {name: _by_class(trained) for name, trained in _chosen(lab).items()}
    gains = torch.tensor(curves["cross-entropy, regularised"].y) - torch.tensor(curves["cross-entropy"].y)  # frequent first
    return {
        **curves,
        "gain of the rarest classes": gains[-3:].mean().item(),
        "gain of the most frequent classes": gains[:3].mean().item(),
    }


@claim(
    "The two terms add to a loss that counts all classes alike already: with them, class-balanced cross-entropy is more accurate "
    "on the balanced test.",
    expect=Higher("classes balanced, regularised", than="classes balanced"),
    scaled_down=_SCALED_DOWN + _TUNED,
    unit="test accuracy, mean over classes",
)
def adds_to_balanced_classes(lab: Lab) -> Measured:
    return {name: _by_class(trained) for name, trained in _chosen(lab).items()}
