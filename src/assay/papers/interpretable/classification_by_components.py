"""Classification by components: a class is what is there and what is not, and the distance to another answer is a formula.

A prototype network says "this looks like that". A "4" also has something that a "9" must not have, and its absence is
evidence too. Here all classes share a set of components. A detector says how probably each is present in the input, and each
class has probabilities of what it reasons with: that component k should be there (positive), or that it should not be
(negative); all of a class sum to one. The class score is the probability that detection and reasoning agree, so that every
term of the sum is a vote that can be shown.

If the detection is exp(-distance / sigma), no shift of the input by eps can change it by more than the factor exp(eps / sigma).
Then the smallest shift that could make another class win is bounded by the root of a quadratic equation: a certificate of
robustness without any attack, and a loss that asks for it.

Source: Saralajew, Rana, Villmann and Shaker, "A Robust Prototype-Based Network with Interpretable RBF Classifier
Foundations", AAAI 2025. Its theorem 1 bounds every reasoning probability by itself. Here both votes of two classes on one
component are added up before they are bounded, which is sound by the same argument and never certifies less
(``paired=False`` is the theorem as it stands).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack import pgd
from assay.drawing import Tile, as_image, tiles
from assay.errors import AssayError
from assay.nn.ending import last_linear
from assay.nn.prototypes import distances, kmeans_centres, rbf
from assay.paper import Above, Below, Cost, Curve, Higher, Score, claim
from assay.papers.robust.deepfool import deepfool
from assay.recipe import Recipe, with_loss
from assay.train.hooks import Hook, Run

if TYPE_CHECKING:
    from assay.data import Dataset, Split
    from assay.lab import Lab
    from assay.paper import Measured

_TINY, _LEAST = 1e-12, 1e-24


class Reasoning(nn.Module):
    """From what is detected to the probability of agreement with each class.

    p_c = sum_k r+_kc d_k + r-_kc (1 - d_k). The numbers of different classes need not sum to one.

    Args:
        num_components: K.
        num_classes: C.
        negative: whether a class may reason with absence; without, all r- are 0 and a class is a convex mixture of detections,
            which with :func:`assay.nn.prototypes.rbf` is a radial basis function classifier.

    Shape: (B, K) detections in [0, 1] -> (B, C) in [0, 1].
    """

    def __init__(self, num_components: int, num_classes: int, negative: bool = True) -> None:
        super().__init__()
        self.negative = negative
        # One softmax over everything that a class reasons with; different at the start, or no class could part from another.
        self.logits = nn.Parameter(0.2 * torch.randn(2 if negative else 1, num_components, num_classes))

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Positive and negative reasoning r+ and r-: (K, C) each; both together sum to one for every class."""
        shares = self.logits.flatten(0, 1).softmax(dim=0).view_as(self.logits)
        return shares[0], shares[1] if self.negative else torch.zeros_like(shares[0])

    def forward(self, detections: Tensor) -> Tensor:
        positive, negative = self.probabilities()
        agreement: Tensor = detections @ (positive - negative) + negative.sum(dim=0)
        return agreement


class ComponentNet(nn.Module):
    """Components as points, detected by their distance, with reasoning about them.

    Args:
        components: (K, D) where they start; they are trained.
        num_classes: C.
        sigma: distance at which a component is detected with probability 1/e; trained as well.
        negative: see :class:`Reasoning`.

    Shape: (B, ...) with D numbers an example -> (B, C) agreement in [0, 1].
    """

    def __init__(self, components: Tensor, num_classes: int, sigma: float, negative: bool = True) -> None:
        super().__init__()
        self.components = nn.Parameter(components.clone())
        self.log_sigma = nn.Parameter(torch.tensor(float(sigma)).log())
        self.reasoning = Reasoning(len(components), num_classes, negative)

    def detections(self, inputs: Tensor) -> Tensor:
        """How probably every component is present: (B, ...) -> (B, K)."""
        return rbf(inputs.flatten(1), self.components, self.log_sigma.exp())

    def forward(self, inputs: Tensor) -> Tensor:
        agreement: Tensor = self.reasoning(self.detections(inputs))
        return agreement

    def certified_radius(self, inputs: Tensor, target: Tensor, paired: bool = True) -> Tensor:
        """:func:`certified_radius` of these inputs: (B, ...), (B,) -> (B,), in the units of the inputs."""
        positive, negative = self.reasoning.probabilities()
        return certified_radius(self.detections(inputs), positive, negative, self.log_sigma.exp(), target, paired)


def certified_radius(
    detections: Tensor, positive: Tensor, negative: Tensor, sigma: Tensor | float, target: Tensor, paired: bool = True
) -> Tensor:
    """Below which L2 norm no change of the input can lift another class above ``target`` (theorem 1).

    For detections exp(-|x - w_k| / sigma) only. Where the input moves by eps, every d_k stays between t d_k and d_k / t with
    t = exp(-eps / sigma). The lead over a rival is at least A t - B / t + C, where A sums the detections that speak for the
    target by their weight, B those that speak for the rival, and C is what absence alone contributes. It vanishes at
    t* = (sqrt(C^2 + 4 A B) - C) / 2A, and the radius is -sigma ln t*, the smallest over all rivals.

    Args:
        detections: (B, K).
        positive: (K, C) r+.
        negative: (K, C) r-.
        sigma: of the detection.
        target: (B,) int64: the predicted class for a certificate, the right class for a loss.
        paired: whether both classes' votes on one component are added up before they are bounded.

    Returns:
        (B,), differentiable; negative where the target does not win: then at least so far the input must move to be right.
        Where only absence decides there is no bound, and some 55 sigma stand for infinity.
    """
    votes = (positive - negative).T  # (C, K)
    constant = negative.sum(dim=0)
    constant = constant[target][:, None] - constant  # (B, C)
    if paired:
        lead = votes[target][:, None] - votes  # (B, C, K)
        mine = (lead.clamp_min(0) * detections[:, None]).sum(dim=2)
        theirs = ((-lead).clamp_min(0) * detections[:, None]).sum(dim=2)
    else:
        present, absent = detections @ positive, detections @ negative  # (B, C)
        rows = torch.arange(len(target), device=target.device)
        mine = present[rows, target][:, None] + absent
        theirs = absent[rows, target][:, None] + present
    mine, theirs = mine.clamp_min(_LEAST), theirs.clamp_min(_LEAST)
    root = (constant.square() + 4 * mine * theirs + 1e-6 * _LEAST).sqrt()
    # -ln t* in the form that never subtracts nearly equal numbers: t* = 2B / (C + root) = (root - C) / 2A.
    sums = (constant.abs() + root).log()
    margins = torch.where(constant >= 0, sums - (2 * theirs).log(), (2 * mine).log() - sums)
    own = F.one_hot(target, votes.shape[0]).bool()
    radius: Tensor = margins.masked_fill(own, torch.inf).amin(dim=1) * sigma
    return radius


def margin_loss(agreement: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """How much the best wrong class comes within ``margin`` of the right one, mean over the batch.

    Args:
        agreement: (B, C).
        labels: (B,) int64, or (B, C) shares of the classes, by which the margins of all are then averaged.
        margin: which lead is enough.
    """
    best = agreement.topk(2, dim=1)
    first = F.one_hot(best.indices[:, 0], agreement.shape[1]).bool()
    rival = torch.where(first, best.values[:, 1:], best.values[:, :1])  # (B, C): the best of the others
    missing = F.relu(rival - agreement + margin)
    if labels.is_floating_point():
        return (labels * missing).sum(dim=1).mean()
    return missing.gather(1, labels[:, None]).mean()


def robustness_loss(radius: Tensor, margin: float = 1.0) -> Tensor:
    """How much the certified radii (B,) fall short of ``margin``, mean over the batch; those beyond it are left alone."""
    return F.relu(margin - radius).mean()


class Vote(NamedTuple):
    """One term of a class score: the component's number, how probably it was detected, what the class wants, how much it adds."""

    component: int
    detected: float
    wants: Literal["present", "absent"]
    share: float


class ClassificationByComponents(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classification by components on the inputs themselves, as a scikit-learn classifier.

    Distances are measured on the columns as they are: bring them to one scale first.

    Args:
        n_components: K, shared by all classes; they start at centres of k-means.
        loss: ``"margin"`` (of the agreement) or ``"robust"`` (of the certified radius).
        margin: which lead, or which radius, is enough; 0.3 of agreement, or as many units of the inputs.
        negative: whether a class may reason with absence.
        sigma: where the detection's width starts; ``None`` takes a third of the median distance to the nearest component.
        learning_rate: of Adam, for components and width; the reasoning takes ``reasoning_rate``.
        reasoning_rate: of Adam, for the logits of the reasoning.
        epochs: passes over the training set.
        batch_size: examples in one step.
        random_state: seed of k-means, the reasoning and the order of the examples.

    Attributes:
        classes_: (C,) labels.
        net_: the :class:`ComponentNet`.
        components_: (K, D).
        reasoning_: r+ and r-, (K, C) each.
        loss_curve_: mean loss of every epoch.
    """

    def __init__(
        self,
        n_components: int = 50,
        loss: Literal["margin", "robust"] = "margin",
        margin: float = 0.3,
        negative: bool = True,
        sigma: float | None = None,
        learning_rate: float = 1e-2,
        reasoning_rate: float = 5e-2,
        epochs: int = 50,
        batch_size: int = 64,
        random_state: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.loss = loss
        self.margin = margin
        self.negative = negative
        self.sigma = sigma
        self.learning_rate = learning_rate
        self.reasoning_rate = reasoning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> ClassificationByComponents:
        """Learn components and reasoning from X (N, D) and labels y (N,).

        Raises:
            ValueError: fewer examples than components, one class only, or another loss.
        """
        if self.loss not in ("margin", "robust"):
            raise ValueError(f"loss must be 'margin' or 'robust', not {self.loss!r}")
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("components tell classes apart, and y has 1 class")
        inputs, labels = torch.as_tensor(X), torch.as_tensor(codes)
        if len(inputs) < self.n_components:
            raise ValueError(f"n_components={self.n_components} with n_samples = {len(inputs)}: take fewer components")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = kmeans_centres(inputs, self.n_components, seed)
            sigma = self.sigma or max(distances(inputs, start).amin(dim=1).median().item() / 3, 1e-3)
            self.net_ = ComponentNet(start, len(self.classes_), sigma, self.negative)
            self._train(inputs, labels)
        self.components_ = self.net_.components.detach().numpy()
        self.reasoning_ = tuple(part.detach().numpy() for part in self.net_.reasoning.probabilities())
        return self

    def _train(self, inputs: Tensor, labels: Tensor) -> None:
        net = self.net_
        groups = [
            {"params": [net.components, net.log_sigma], "lr": self.learning_rate},
            {"params": net.reasoning.parameters(), "lr": self.reasoning_rate},
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        self.loss_curve_ = []
        for _ in range(self.epochs):
            total = 0.0
            for index in torch.randperm(len(inputs)).split(self.batch_size):
                if self.loss == "margin":
                    loss = margin_loss(net(inputs[index]), labels[index], self.margin)
                else:
                    loss = robustness_loss(net.certified_radius(inputs[index], labels[index]), self.margin)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(index)
            self.loss_curve_.append(total / len(inputs))
        net.eval()

    def agreement(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability (N, C) that detection and reasoning agree; rows need not sum to one."""
        with torch.inference_mode():
            scores: NDArray[np.float64] = self._exact(self._inputs(X)).numpy()
        return scores

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The agreement with each class, divided by that with all: (N, C)."""
        scores = self.agreement(X) + _TINY  # nothing detected, nobody reasons with absence: all alike
        shares: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return shares

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,) of the classes with the most agreement."""
        best = self.agreement(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def certified_radius(self, X: ArrayLike, paired: bool = True) -> NDArray[np.float64]:
        """L2 radius (N,) within which no change of the input changes its prediction, in the units of X."""
        inputs = self._inputs(X)
        with torch.inference_mode():
            net = self._exact
            radius: NDArray[np.float64] = net.certified_radius(inputs, net(inputs).argmax(dim=1), paired).numpy()
        return radius

    def explain(self, x: ArrayLike, label: Any = None) -> list[Vote]:
        """The votes that make up the score of one example (D,), the largest first; their shares sum to it.

        Args:
            x: (D,).
            label: of which class; ``None`` takes the one that is predicted.
        """
        row = np.asarray(x).reshape(1, -1)
        column = int(np.flatnonzero(self.classes_ == (self.predict(row)[0] if label is None else label))[0])
        with torch.inference_mode():
            detected = self._exact.detections(self._inputs(row))[0].numpy()
            positive, negative = (part[:, column].numpy() for part in self._exact.reasoning.probabilities())
        votes = [Vote(k, float(d), "present", float(r * d)) for k, (r, d) in enumerate(zip(positive, detected, strict=True))]
        if self.negative:
            absent = zip(negative, detected, strict=True)
            votes += [Vote(k, float(d), "absent", float(r * (1 - d))) for k, (r, d) in enumerate(absent)]
        return sorted(votes, key=lambda vote: -vote.share)

    def picture(self, x: ArrayLike, shape: tuple[int, ...] | None = None, most: int = 6) -> str:
        """One decision as an SVG: the example, then the largest votes for the class that won and for the one that came next.

        Args:
            x: (D,).
            shape: (H, W) or (channels, H, W) of an image; ``None`` draws strips of columns.
            most: votes to show of each class.
        """
        row = np.asarray(x, dtype=np.float32).reshape(1, -1)
        scores = self.agreement(row)[0]
        rows, titles = [], []
        radius = self.certified_radius(row)[0]
        for place, column in enumerate(np.argsort(-scores)[:2]):
            label = self.classes_[column]
            first = Tile(as_image(row[0], shape), ("the example",))
            votes = [
                Tile(
                    as_image(self.components_[vote.component], shape),
                    (f"wanted {vote.wants}", f"detected {vote.detected:.0%}"),
                    vote.share,
                )
                for vote in self.explain(row, label)[:most]
            ]
            rows.append([first, *votes])
            safe = f", certain within a distance of {radius:.2f}" if place == 0 else ""
            titles.append(f"{label}: agreement {scores[column]:.3f}{safe}")
        return tiles(rows, titles)

    @property
    def _exact(self) -> ComponentNet:
        """The network in double precision: a certificate must not hang on rounding."""
        check_is_fitted(self)
        return copy.deepcopy(self.net_).double()

    def _inputs(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        return torch.as_tensor(validate_data(self, X, dtype=np.float32, reset=False)).double()


# ------------------------------------------------------------------------------------------------- any network's last layer


@dataclass(frozen=True)
class ComponentsFromFeatures(Hook):
    """Before the first step: components start at k-means of the features of every class, and reason for that class."""

    most: int = 2000

    def on_start(self, run: Run) -> None:
        """Place the components of the network's :class:`ComponentNet`."""
        (head,) = (module for module in run.model.modules() if isinstance(module, ComponentNet))
        order = torch.randperm(len(run.data.train), generator=run.generator, device=run.generator.device).cpu()[: self.most]
        part = run.data.train.take(order)
        assert isinstance(part.inputs, Tensor)
        kept: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, given: kept.append(given[0].flatten(1).float()))
        modes = [(module, module.training) for module in run.model.modules()]
        run.model.eval()
        try:
            with torch.no_grad():
                for inputs in part.inputs.split(500):
                    run.model(inputs.to(run.device))
        finally:
            handle.remove()
            for module, training in modes:
                module.training = training
        features = torch.cat(kept)
        start, owner = _starts(features, part.labels.to(features.device), len(head.components), run.data.num_classes)
        with torch.no_grad():
            head.components.copy_(start)
            head.log_sigma.fill_(max(distances(features, start).mean().item(), 1e-3)).log_()
            # Present, if it was found in the class; absent, if in another.
            mine = F.one_hot(owner, run.data.num_classes).to(features)  # (K, C)
            head.reasoning.logits.add_(torch.stack([mine, 1 - mine]) * 2)


def _starts(features: Tensor, labels: Tensor, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Starts (count, F) for components, as many for every class as goes, and the class (count,) of each."""
    places, owners = [], []
    for label in range(classes):
        own = features[labels == label]
        number = min(count // classes + (label < count % classes), len(own))
        if number:
            places.append(kmeans_centres(own, number, seed=label))
            owners += [label] * number
    missing = count - len(owners)  # of classes that have too few examples
    extra = torch.arange(missing) % len(features)
    start = torch.cat([*places, features[extra]])
    return start, torch.cat([torch.tensor(owners, device=labels.device), labels[extra]])


def _with_components(make: Any, num_classes: int, components: int) -> nn.Module:
    """A network whose last linear layer is a :class:`ComponentNet` of its features."""
    model: nn.Module = make()
    found = last_linear(model)
    if found is None or found[1].out_features != num_classes:
        raise AssayError("Components stand in the place of the last linear layer, and this network does not end in one.")
    name, last = found
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, ComponentNet(torch.randn(components, last.in_features), num_classes, 1.0))
    return model


def classification_by_components(recipe: Recipe, per_class: int = 5, margin: float = 0.3) -> Recipe:
    """Reason about components of the last features instead of weighing these, with the margin loss.

    Args:
        recipe: of a classifier that ends in a linear layer.
        per_class: components, times the number of classes; all classes share them.
        margin: which lead of agreement is enough.

    Raises:
        AssayError: there are no classes, or the network has another end.
    """
    data = recipe.data
    if data.task != "classification":
        raise AssayError(f"Components vote for classes, and {data.name!r} has none: leave classification_by_components out.")
    make = partial(_with_components, recipe.model, data.num_classes, per_class * data.num_classes)
    with torch.device("meta"):
        make()  # says now what does not fit
    changed = with_loss(recipe, partial(margin_loss, margin=margin))
    return changed.replace(model=make, hooks=(*recipe.hooks, ComponentsFromFeatures()))


# ------------------------------------------------------------------------------------------------------------ claims


class _Glvq(nn.Module):
    """The control: the nearest of some prototypes of each class (generalised learning vector quantisation).

    It is certified by geometry: no distance changes by more than the input moves, so half the difference of two is safe.
    """

    def __init__(self, prototypes: Tensor, owner: Tensor, num_classes: int) -> None:
        super().__init__()
        self.prototypes, self.owner, self.num_classes = nn.Parameter(prototypes.clone()), owner, num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        far = distances(inputs.flatten(1), self.prototypes)
        nearest = [far[:, self.owner == label].amin(dim=1) for label in range(self.num_classes)]
        return -torch.stack(nearest, dim=1)

    def certified_radius(self, inputs: Tensor, target: Tensor) -> Tensor:
        """(B, ...), (B,) -> (B,)."""
        own = F.one_hot(target, self.num_classes).bool()
        score: Tensor = self(inputs)
        return (score[own] - score.masked_fill(own, -torch.inf).amax(dim=1)) / 2

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """(d+ - d-) / (d+ + d-), mean over the batch."""
        own = F.one_hot(labels, self.num_classes).bool()
        score: Tensor = self(inputs)
        right, wrong = -score[own], -score.masked_fill(own, -torch.inf).amax(dim=1)
        return ((right - wrong) / (right + wrong)).mean()


def learn(data: Dataset, seed: int, **settings: Any) -> dict[str, Tensor]:
    """The state of a network of components that was trained on the training split."""
    model = ClassificationByComponents(random_state=seed, **settings)
    model.fit(_flat(data.train).numpy(), data.train.labels.numpy())
    return {name: value.detach() for name, value in model.net_.state_dict().items()}


def learn_glvq(data: Dataset, seed: int, per_class: int, learning_rate: float, epochs: int, batch_size: int) -> dict[str, Tensor]:
    """The prototypes of the control, as many steps as the others take."""
    inputs, labels = _flat(data.train), data.train.labels
    start = kmeans_centres(inputs, per_class, seed, labels)
    owner = torch.arange(data.num_classes).repeat_interleave(per_class)
    net, generator = _Glvq(start, owner, data.num_classes), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(len(inputs), generator=generator).split(batch_size):
            optimizer.zero_grad()
            net.loss(inputs[index], labels[index]).backward()
            optimizer.step()
    return {"prototypes": net.prototypes.detach(), "owner": owner}


def _flat(split: Split) -> Tensor:
    assert isinstance(split.inputs, Tensor)
    return split.inputs.flatten(1)


def _pictures(lab: Lab, name: str) -> Dataset:
    """Some pictures with a fifth held out, by which margins are chosen."""
    if lab.scale == "full":
        return lab.data(name).holdout(0.1, seed=lab.seed)
    data = lab.data("mnist5k" if name == "mnist" else name)
    return data.subset(train=lab.pick(smoke=300, laptop=4000, full=0), test=lab.pick(smoke=100, laptop=1000, full=0)).holdout(
        0.2, seed=lab.seed
    )


class _Fitted(NamedTuple):
    """A network in double precision, and what it cost."""

    net: ComponentNet | _Glvq
    cost: Cost


def _budget(lab: Lab) -> dict[str, int]:
    return {"epochs": lab.pick(smoke=2, laptop=20, full=50), "batch_size": 128}


def _components(lab: Lab, data: Dataset, components: int, **changes: Any) -> _Fitted:
    settings = {"n_components": components, **_budget(lab), **changes}
    state = lab.remember(learn, data=data, seed=lab.seed, **settings)
    seconds = state.pop("seconds").item()
    parameters = sum(part.numel() for part in state.values())
    net = ComponentNet(state["components"], data.num_classes, 1.0, changes.get("negative", True))
    net.load_state_dict(state)
    return _Fitted(net.double().eval(), Cost(seconds, parameters))


def _glvq(lab: Lab, data: Dataset, components: int, learning_rate: float) -> _Fitted:
    per_class = components // data.num_classes
    state = lab.remember(learn_glvq, data=data, seed=lab.seed, per_class=per_class, learning_rate=learning_rate, **_budget(lab))
    net = _Glvq(state["prototypes"], state["owner"], data.num_classes).double().eval()
    return _Fitted(net, Cost(state["seconds"].item(), state["prototypes"].numel()))


@torch.no_grad()
def _certified(net: ComponentNet | _Glvq, split: Split) -> tuple[Tensor, Tensor]:
    """Which examples are classified as labelled (N,), and the radius (N,) within which the prediction is certain."""
    right, radius = [], []
    for inputs, labels in zip(_flat(split).double().split(1000), split.labels.split(1000), strict=True):
        said = net(inputs).argmax(dim=1)
        right.append(said == labels)
        radius.append(net.certified_radius(inputs, said))
    return torch.cat(right), torch.cat(radius)


def _certified_accuracy(net: ComponentNet | _Glvq, split: Split, at: float) -> float:
    right, radius = _certified(net, split)
    return (right & (radius > at)).double().mean().item()


_SETS = {"MNIST": "mnist", "Fashion-MNIST": "fashion-mnist"}
_SMALLER = (
    "3,200 training images of MNIST 5k and of Fashion-MNIST, 1,000 test images, 20 epochs; the shallow model, whose certificate "
    "is in pixels."
)


def _smallest_attack(net: ComponentNet | _Glvq, images: Tensor, certified: Tensor) -> Tensor:
    """The L2 norm (B,) of the smallest change of the prediction that is found; infinite where none is.

    DeepFool, and projected ascent of the margin in balls a quarter larger than what is certified (images are attacked in
    groups of like radius). What succeeds is drawn back towards the image as far as it still succeeds.
    """
    said = net(images).argmax(dim=1)
    moved = [deepfool(net, images).adversarial]
    climbed = images.clone()
    for group in certified.argsort().chunk(8):
        eps = 1.25 * certified[group].max().item()
        climbed[group] = pgd(net, images[group], said[group], eps=eps, norm=2, steps=40, loss="margin", random_start=False)
    moved.append(climbed)
    smallest = torch.full_like(certified, torch.inf)
    for adversarial in moved:
        fooled = net(adversarial).argmax(dim=1) != said
        low, high = torch.zeros_like(certified), torch.ones_like(certified)
        for _ in range(20):
            middle = (low + high) / 2
            still = net(images + middle[:, None] * (adversarial - images)).argmax(dim=1) != said
            low, high = torch.where(still, low, middle), torch.where(still, middle, high)
        size = high * (adversarial - images).norm(dim=1)
        smallest = torch.where(fooled, torch.minimum(smallest, size), smallest)
    return smallest


@claim(
    "No attack (DeepFool, projected ascent of the margin) changes a prediction within its certified radius, on MNIST and on "
    "Fashion-MNIST; and the certificates say something: the median radius is more than a quarter of the smallest change found.",
    expect=(
        *(Below(f"largest, {name}", 1.0) for name in _SETS),
        *(Above(f"median, {name}", 0.25) for name in _SETS),
    ),
    scaled_down=f"{_SMALLER} 100 test images are attacked.",
    unit="certified radius over the smallest change of the prediction found",
    needs=("fashion-mnist",),
)
def certificates_hold(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, source in _SETS.items():
        data = _pictures(lab, source)
        net, cost = _components(lab, data, 50, loss="robust", margin=2.0)
        images = _flat(data.test).double()
        images = images[torch.randperm(len(images), generator=lab.generator())[: lab.pick(smoke=20, laptop=100, full=1000)]]
        with torch.no_grad():
            said = net(images).argmax(dim=1)
            certified = net.certified_radius(images, said)
            theorem = net.certified_radius(images, said, paired=False) if isinstance(net, ComponentNet) else certified
        found = _smallest_attack(net, images, certified)
        ratio = certified / found
        order = found.argsort()
        arms[f"largest, {name}"] = Curve(
            ratio[order].tolist(),
            x=found[order].tolist(),
            value=ratio.max().item(),
            cost=cost,
            x_name="smallest change found, L2",
            y_name="certified radius over it",
        )
        arms[f"median, {name}"] = Score(ratio.median().item(), cost)
        arms[f"median, {name}, theorem 1 as it stands"] = (theorem / found).median().item()
    return arms


@claim(
    "The robustness loss certifies more test images within an L2 radius of 1 than the margin loss and than GLVQ with as many "
    "prototypes, on MNIST and on Fashion-MNIST; every arm has two settings, chosen on held-out images by that share.",
    expect=tuple(
        Higher(f"robustness loss, {name}", than=f"{other}, {name}") for name in _SETS for other in ("margin loss", "GLVQ")
    ),
    scaled_down=_SMALLER,
    unit="share of test images right and certified at radius 1",
    needs=("fashion-mnist",),
)
def robust_loss_certifies_more(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, source in _SETS.items():
        data = _pictures(lab, source)
        tried = {
            "robustness loss": [_components(lab, data, 50, loss="robust", margin=margin) for margin in (1.0, 2.0)],
            "margin loss": [_components(lab, data, 50, loss="margin", margin=margin) for margin in (0.1, 0.3)],
            "GLVQ": [_glvq(lab, data, 50, rate) for rate in (1e-2, 3e-2)],
        }
        for arm, trials in tried.items():
            best = max(trials, key=lambda trial: _certified_accuracy(trial.net, data.valid, at=1.0))
            right, radius = _certified(best.net, data.test)
            at = torch.linspace(0, 2, 41)
            shares = [(right & (radius > eps)).double().mean().item() for eps in at.tolist()]
            arms[f"{arm}, {name}"] = Curve(
                shares, x=at.tolist(), value=shares[20], cost=best.cost, x_name="L2 radius", y_name="right and certified"
            )
    return arms


@claim(
    "With 20 components for ten classes, reasoning with absence as well as presence classifies test images of MNIST and of "
    "Fashion-MNIST better than reasoning with presence alone; each has two margins, chosen on held-out images.",
    expect=tuple(Higher(f"with absence, {name}", than=f"presence alone, {name}") for name in _SETS),
    scaled_down=_SMALLER,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def absence_helps(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, source in _SETS.items():
        data = _pictures(lab, source)
        for arm, negative in (("with absence", True), ("presence alone", False)):
            trials = [_components(lab, data, 20, margin=margin, negative=negative) for margin in (0.03, 0.3)]
            best = max(trials, key=lambda trial: _certified_accuracy(trial.net, data.valid, at=-torch.inf))
            arms[f"{arm}, {name}"] = Score(_certified_accuracy(best.net, data.test, at=-torch.inf), best.cost)
    return arms
