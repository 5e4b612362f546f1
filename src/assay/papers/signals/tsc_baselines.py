"""Three networks for series that need no features: a perceptron, a convolutional and a residual network.

Series were long classified by distances or by hand-made features. Wang, Yan and Oates asked how far plain networks come
with one setting for every problem, and found that convolutions with batch normalisation and no pooling inside (FCN), with
or without shortcuts (ResNet), equal the best ensembles of their day. Since a mean over time stands before the last
layer, the score of a class is itself a mean over time, and its summands, the class activation map, say which stretch of
the series speaks for the class.

Source: Wang, Yan and Oates, "Time Series Classification from Scratch with Deep Neural Networks: A Strong Baseline", IJCNN
2017. Equation numbers are the paper's. Where its text and its published code differ, the text is followed: the code
leaves out the dropout of the perceptron's inputs, puts one more batch normalisation before the residual network and a
convolution into its last shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.nn.series import euclidean_neighbours, random_convolution_ridge, warped_neighbours
from assay.paper import Cost, Curve, Higher, Lower, Reported, Score, claim
from assay.recipe import Recipe, probe
from assay.train.hooks import BestEpoch, Hook, Run
from assay.train.loop import fit

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

Net = Literal["mlp", "fcn", "resnet"]


class MLP(nn.Module):
    """The perceptron: three layers of 500 units, each behind dropout (eq. 1).

    Args:
        in_channels: channels of a series.
        num_classes: number of logits.
        length: steps of a series; the perceptron takes no other.

    Shape: (B, in_channels, length) -> (B, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int, length: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        wide = in_channels * length
        for dropout in (0.1, 0.2, 0.2):
            layers += [nn.Dropout(dropout), nn.Linear(wide, 500), nn.ReLU()]
            wide = 500
        self.layers = nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(wide, num_classes))
        self.apply(_glorot)

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.layers(series)
        return logits


class PooledNet(nn.Module):
    """Blocks that keep the length, the mean over time, one layer: what the two convolutional networks share.

    Args:
        blocks: (B, C, 1, T) -> (B, planes, 1, T).
        planes: feature maps at the end.
        num_classes: number of logits.
    """

    def __init__(self, blocks: nn.Module, planes: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.head = nn.Linear(planes, num_classes)
        self.apply(_glorot)

    def features(self, series: Tensor) -> Tensor:
        """The last feature maps, one number for each filter and step: (B, C, T) -> (B, planes, T)."""
        # In two dimensions, as images one pixel high: these can lie in memory with the channels last, which is faster.
        images = series.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.blocks(images).squeeze(2)
        return maps

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(series).mean(dim=2))
        return logits


class FCN(PooledNet):
    """The fully convolutional network: three convolutions with 128, 256 and 128 filters (eq. 2).

    Args:
        in_channels: channels of a series.
        num_classes: number of logits.
        bn_momentum: weight of the newest batch in the running statistics. The published code has 0.01, which suits its
            thousands of epochs; in a short training such means lag behind the weights.

    Shape: (B, in_channels, T) -> (B, num_classes), for any T.
    """

    def __init__(self, in_channels: int, num_classes: int, bn_momentum: float = 0.1) -> None:
        layers: list[nn.Module] = []
        for before, after, width in ((in_channels, 128, 8), (128, 256, 5), (256, 128, 3)):
            layers += [*_convolution(before, after, width, bn_momentum), nn.ReLU(inplace=True)]
        super().__init__(nn.Sequential(*layers), 128, num_classes)


class ResNet(PooledNet):
    """The residual network: three blocks of three convolutions with 64, 128 and 128 filters (eq. 3).

    Args:
        in_channels: channels of a series.
        num_classes: number of logits.
        bn_momentum: as for :class:`FCN`.

    Shape: (B, in_channels, T) -> (B, num_classes), for any T.
    """

    def __init__(self, in_channels: int, num_classes: int, bn_momentum: float = 0.1) -> None:
        planes = ((in_channels, 64), (64, 128), (128, 128))
        super().__init__(nn.Sequential(*(_Residual(*pair, bn_momentum) for pair in planes)), 128, num_classes)


class _Residual(nn.Module):
    """Three convolutions around which the input is led; where the number of planes changes, through a 1x1 convolution."""

    def __init__(self, before: int, after: int, bn_momentum: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(before, after, 8, bn_momentum),
            nn.ReLU(inplace=True),
            *_convolution(after, after, 5, bn_momentum),
            nn.ReLU(inplace=True),
            *_convolution(after, after, 3, bn_momentum),
        )
        led = _convolution(before, after, 1, bn_momentum)
        self.shortcut = nn.Sequential(*(led if before != after else led[1:]))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.convolutions(maps) + self.shortcut(maps))


def _convolution(before: int, after: int, width: int, bn_momentum: float) -> list[nn.Module]:
    """A convolution over time that keeps the length, and its batch normalisation.

    An even width sees one step more of the future than of the past, as in Keras.
    """
    past = (width - 1) // 2
    pad: list[nn.Module] = [nn.ZeroPad2d((past, past + 1, 0, 0))] if width % 2 == 0 else []
    convolution = nn.Conv2d(before, after, (1, width), padding=(0, 0 if pad else past))
    return [*pad, convolution, nn.BatchNorm2d(after, eps=1e-3, momentum=bn_momentum)]


def _glorot(module: nn.Module) -> None:
    """The start that the published code has: Glorot's uniform weights, no bias."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


@probe
@torch.no_grad()
def class_activation_map(model: PooledNet, series: Tensor, classes: Tensor | int) -> Tensor:
    """What each step of a series contributes to the score of a class: M_c(t) = sum over k of w_kc A_k(t).

    The mean of the map over time, plus the bias of the class, is the logit of the class. The network is used in the mode
    that it is in: call ``model.eval()`` first.

    Args:
        model: :class:`FCN`, :class:`ResNet`, or another network that has their ``features`` and ``head``.
        series: (B, C, T).
        classes: of each series (B,) int64, or one class for all.

    Returns:
        (B, T).
    """
    wanted = torch.as_tensor(classes, device=series.device).expand(len(series))
    return torch.einsum("bk,bkt->bt", model.head.weight[wanted], model.features(series))


# ---------------------------------------------------------------------------------------------- as it was trained


@dataclass(frozen=True)
class Plateau(Hook):
    """Lower the learning rate when the training loss has not fallen for a while.

    Args:
        patience: epochs without a new lowest loss (by more than 1e-4) after which the rate falls.
        least: the lowest rate.
        factor: by which the rate falls.
    """

    patience: int
    least: float
    factor: float = 0.5

    def after_epoch(self, run: Run) -> None:
        """Compare the loss of this epoch with the lowest so far."""
        loss = run.history["train_loss"][-1]
        lowest, waited = run.memory.get("plateau", torch.tensor([torch.inf, 0.0], dtype=torch.float64)).tolist()
        lowest, waited = (loss, 0.0) if loss < lowest - 1e-4 else (lowest, waited + 1)
        if waited > self.patience:
            waited = 0.0
            for group in run.optimizer.param_groups:
                group["lr"] = max(self.least, group["lr"] * self.factor)
        run.memory["plateau"] = torch.tensor([lowest, waited], dtype=torch.float64)


_EPOCHS: dict[Net, int] = {"mlp": 5000, "fcn": 2000, "resnet": 1500}


def published(data: Dataset, net: Net = "fcn", epochs: int | None = None, patience: int | None = None) -> Recipe:
    """Train one of the three networks as in the paper: with the same settings whatever the data are.

    Batches hold a tenth of the training set, at most 16. The rate is halved when the training loss stands still, and the
    weights of the epoch with the lowest training loss are kept; no example is held out.

    Args:
        data: series (N, C, T), standardised (the paper: with one mean and one standard deviation of the training set).
        net: ``"mlp"``, ``"fcn"`` or ``"resnet"``.
        epochs: passes over the training set; ``None`` takes the paper's 5000, 2000 or 1500. Below 1000, the running
            statistics of the batch normalisation follow the weights faster than the paper's do, which would lag behind.
        patience: epochs before the rate is halved; ``None`` takes the paper's 200, 50 or 50.

    Raises:
        ValueError: another ``net``.
    """
    if net not in _EPOCHS:
        raise ValueError(f"net is {net!r}; choose one of {', '.join(_EPOCHS)}")
    channels, length = data.input_shape
    epochs = _EPOCHS[net] if epochs is None else epochs
    model: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    if net == "mlp":
        model = partial(MLP, channels, data.num_classes, length)
        optimizer = partial(torch.optim.Adadelta, lr=1.0, rho=0.95, eps=1e-8)
        plateau = Plateau(200 if patience is None else patience, least=0.1)
    else:
        kind = FCN if net == "fcn" else ResNet
        model = partial(kind, channels, data.num_classes, bn_momentum=0.1 if epochs < 1000 else 0.01)
        optimizer = partial(torch.optim.Adam, lr=1e-3)
        plateau = Plateau(50 if patience is None else patience, least=1e-4)
    return Recipe(
        data,
        model=model,
        optimizer=optimizer,
        hooks=(plateau, BestEpoch(by="train_loss", lowest=True)),
        epochs=epochs,
        batch_size=max(1, min(len(data.train) // 10, 16)),
        watch=(),
    )


class TimeSeriesClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The three networks as scikit-learn classifiers of series.

    Args:
        net: ``"fcn"``, ``"resnet"`` or ``"mlp"``.
        epochs: passes over the training set; ``None`` takes the paper's 2000, 1500 or 5000, which is minutes for fifty
            series of 150 steps and hours for thousands of them. 100 to 200 do for a first look.
        patience: epochs without a lower training loss before the rate is halved; ``None`` takes the paper's.
        device: where to train.
        verbose: print the epoch about once a second.
        random_state: seed of the initial weights, the order of the series and dropout.

    Attributes:
        classes_: (K,) labels.
        model_: the trained network, in evaluation mode.
        history_: ``train_loss`` and ``train_accuracy`` of every epoch.
        mean_, std_: of all values of the training set; series are standardised with them.
    """

    def __init__(
        self,
        net: Net = "fcn",
        epochs: int | None = None,
        patience: int | None = None,
        device: str = "cpu",
        verbose: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.net = net
        self.epochs = epochs
        self.patience = patience
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> TimeSeriesClassifier:
        """Train.

        Args:
            X: (N, T) series, or (N, C, T) with C channels.
            y: (N,) labels.

        Raises:
            ValueError: another ``net``, a shape that is none of these, a value that is not finite, or one class only.
        """
        series, labels = self._series(X, reset=True), column_or_1d(y, warn=True)
        check_classification_targets(labels)
        if len(labels) != len(series):
            raise ValueError(f"{len(series)} series but {len(labels)} labels")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class only; there is nothing to tell apart")
        self.mean_, self.std_ = series.double().mean().item(), series.double().std(correction=0).item() or 1.0
        train = Split((series - self.mean_) / self.std_, torch.from_numpy(codes))
        none = train.take(torch.arange(0))
        data = Dataset("X", "classification", train, none, none, classes=tuple(map(str, self.classes_)))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        tell = _print_epoch if self.verbose else None
        trained = fit(published(data, self.net, self.epochs, self.patience), seed, self.device, report=tell)
        self.model_, self.history_ = trained.model, trained.history
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the classes: (N, K)."""
        check_is_fitted(self)
        series = (self._series(X, reset=False) - self.mean_) / self.std_
        with torch.inference_mode():
            parts = [self.model_(part.to(self.device)).softmax(dim=1).cpu() for part in series.split(256)]
        probabilities: NDArray[np.float32] = torch.cat(parts).numpy()
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,)."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def activation_map(self, X: ArrayLike, y: ArrayLike | None = None) -> NDArray[np.float32]:
        """What each step contributes to the score of a class (:func:`class_activation_map`); not for the perceptron.

        Args:
            X: (N, T) or (N, C, T) series.
            y: (N,) the class of interest of each series, as a label; ``None`` takes the predicted ones.

        Returns:
            (N, T).
        """
        check_is_fitted(self)
        if not isinstance(self.model_, PooledNet):
            raise ValueError("the perceptron has no class activation map; use net='fcn' or 'resnet'")
        labels = self.predict(X) if y is None else column_or_1d(y)
        unknown = set(labels) - set(self.classes_)
        if unknown:
            raise ValueError(f"{min(map(str, unknown))!r} is none of the classes")
        series = (self._series(X, reset=False) - self.mean_) / self.std_
        codes = torch.from_numpy(np.searchsorted(self.classes_, labels))
        found: NDArray[np.float32] = class_activation_map(self.model_, series.to(self.device), codes).cpu().numpy()
        return found

    def _series(self, X: ArrayLike, reset: bool) -> Tensor:
        """(N, C, T)."""
        values = validate_data(self, X, dtype=np.float32, reset=reset, allow_nd=True)
        if values.ndim not in (2, 3):
            raise ValueError(f"X has the shape {values.shape}; give series (N, T) or (N, C, T)")
        series = torch.from_numpy(values)
        return series.unsqueeze(1) if values.ndim == 2 else series


def _print_epoch(done: float, total: float, note: str) -> None:
    print(f"\r{note} ({done / total:.0%})", end="\n" if done >= total else "", flush=True)


# ------------------------------------------------------------------------------------------------------- claims

_SETS = {"GunPoint": "gunpoint", "ItalyPowerDemand": "italypowerdemand", "OSULeaf": "osuleaf"}
_REPORTED = Reported(
    "GunPoint, ItalyPowerDemand and OSULeaf, whole: mean of the test accuracies",
    {"MLP": 0.823, "FCN": 0.986, "ResNet": 0.977, "1-NN, warping": 0.816},
    where="table of results in the official repository",
)
_SCALED_DOWN = (
    "Three of the paper's 44 sets, those of them that an open package holds, OSULeaf with every second step. GunPoint and "
    "ItalyPowerDemand: 60 epochs (MLP 150) instead of 2000 (5000); OSULeaf, whose epochs take longer: 20 (50). Patience 10 (MLP "
    "40) instead of 50 (200). Running statistics of the batch normalisation with momentum 0.9 instead of 0.99, since they would "
    "lag behind the weights in so few epochs (seen in the loss on the training series). Random convolutions with ridge "
    "regression, which the paper could not know, stand beside."
)


def _sets(lab: Lab, names: Iterable[str] = _SETS) -> dict[str, Dataset]:
    """Standardised by name: all have one channel, so with one mean and one standard deviation each."""
    sets = {name: lab.data(_SETS[name]) for name in names}
    if lab.scale != "full" and "OSULeaf" in sets:
        sets["OSULeaf"] = every_second(sets["OSULeaf"])
    if lab.scale == "smoke":
        sets = {name: data.subset(train=20, test=20) for name, data in sets.items()}
    return {name: data.normalise() for name, data in sets.items()}


def every_second(data: Dataset) -> Dataset:
    """The series with every second step left out."""

    def halved(split: Split) -> Split:
        assert isinstance(split.inputs, Tensor)
        return replace(split, inputs=split.inputs[:, :, ::2].contiguous())

    train, valid, test = halved(data.train), halved(data.valid), halved(data.test)
    return replace(data, train=train, valid=valid, test=test, history=(*data.history, "every second step"))


def _recipe(lab: Lab, data: Dataset, net: Net) -> Recipe:
    if lab.scale == "full":
        return published(data, net)
    share = 0.001 if lab.scale == "smoke" else 0.01 if data.name == "osuleaf" else 0.03
    return published(data, net, round(share * _EPOCHS[net]), patience=40 if net == "mlp" else 10)


def _networks(lab: Lab, sets: Mapping[str, Dataset], nets: Mapping[str, Net]) -> dict[str, Curve]:
    """Test accuracy on each set; its mean counts."""
    arms = {}
    for arm, net in nets.items():
        runs = [lab.train(_recipe(lab, data, net)) for data in sets.values()]
        cost = Cost(sum(run.seconds for run in runs), max(run.parameters for run in runs))
        arms[arm] = _by_set(sets, [float(run.accuracy()) for run in runs], cost)
    return arms


def _controls(lab: Lab, sets: Mapping[str, Dataset]) -> dict[str, Curve]:
    """Without gradients: neighbours, which no seed changes, and random convolutions."""
    reached: dict[str, list[float]] = {}
    for data in sets.values():
        predicted = {
            "1-NN, Euclidean": euclidean_neighbours(data)["predicted"],
            "1-NN, warping": lab.remember(warped_neighbours, data=data)["predicted"],
            "random convolutions, ridge": lab.remember(random_convolution_ridge, data=data, seed=lab.seed)["predicted"],
        }
        for arm, labels in predicted.items():
            reached.setdefault(arm, []).append((labels == data.test.labels).double().mean().item())
    return {arm: _by_set(sets, accuracies, Cost()) for arm, accuracies in reached.items()}


def _by_set(sets: Mapping[str, Dataset], accuracies: list[float], cost: Cost) -> Curve:
    return Curve(
        accuracies,
        [len(data.train) for data in sets.values()],
        value=sum(accuracies) / len(accuracies),
        cost=cost,
        x_name=f"training series of {', '.join(sets)}",
        y_name="test accuracy",
    )


@claim(
    "Averaged over three sets of series, the FCN has a test accuracy more than five points above that of the perceptron and of "
    "the nearest neighbour, by Euclidean distance or dynamic time warping.",
    expect=[
        Higher("FCN", than="MLP", by=0.05),
        Higher("FCN", than="1-NN, Euclidean", by=0.05),
        Higher("FCN", than="1-NN, warping", by=0.05),
    ],
    reported=_REPORTED,
    scaled_down=_SCALED_DOWN,
    unit="test accuracy, mean of three sets",
    needs=tuple(_SETS.values()),
)
def fcn_is_strong(lab: Lab) -> Measured:
    sets = _sets(lab)
    return {**_networks(lab, sets, {"FCN": "fcn", "MLP": "mlp"}), **_controls(lab, sets)}


@claim(
    "On the outlines of leaves (OSULeaf) the ResNet has a test accuracy more than 15 points above that of the perceptron and of "
    "the nearest neighbour, by Euclidean distance or dynamic time warping.",
    expect=[
        Higher("ResNet", than="MLP", by=0.15),
        Higher("ResNet", than="1-NN, Euclidean", by=0.15),
        Higher("ResNet", than="1-NN, warping", by=0.15),
    ],
    reported=Reported(
        "OSULeaf: test accuracy",
        {"MLP": 0.570, "FCN": 0.988, "ResNet": 0.979, "1-NN, warping": 0.591},
        where="table of results in the official repository",
    ),
    scaled_down="Every second step of the series; 15 epochs (MLP 50, FCN 20) instead of 1500 (5000, 2000); patience and batch "
    "normalisation as in fcn_is_strong.",
    unit="test accuracy",
    needs=("osuleaf",),
)
def resnet_is_strong(lab: Lab) -> Measured:
    sets = _sets(lab, ["OSULeaf"])
    arms = {**_networks(lab, sets, {"ResNet": "resnet", "FCN": "fcn", "MLP": "mlp"}), **_controls(lab, sets)}
    return {arm: Score(curve.number, curve.cost) for arm, curve in arms.items()}


_SHARES = (0.0, 0.1, 0.2, 0.4)
_DRAWS = 3  # random masks of every series


@claim(
    "The class activation map of the FCN finds the stretches that decide: with the 20% of the steps that it values most set to "
    "the mean of the series, the true class keeps less probability than with a random block of as many steps, by more than "
    "five points, and less than with the steps that it values least.",
    expect=[
        Lower("highest in the map", than="random block", by=0.05),
        Lower("highest in the map", than="lowest in the map"),
    ],
    scaled_down="The FCNs of fcn_is_strong on GunPoint and OSULeaf, with fewer epochs than in the paper. The paper shows "
    "maps of two series and measures nothing. Random single steps and gradient times input stand beside.",
    unit="probability of the true class with 20% of the steps masked, mean of two sets",
    needs=("gunpoint", "osuleaf"),
)
def map_finds_what_decides(lab: Lab) -> Measured:
    lines: dict[str, list[list[float]]] = {}
    for data in _sets(lab, ("GunPoint", "OSULeaf")).values():
        model, series, labels = lab.train(_recipe(lab, data, "fcn")).model.cpu(), data.test.inputs, data.test.labels
        assert isinstance(model, FCN)
        assert isinstance(series, Tensor)
        for arm, masks in _masks(model, series, labels, lab.generator()).items():
            lines.setdefault(arm, []).append([_kept(model, series, labels, masks(share)) for share in _SHARES])
    at = _SHARES.index(0.2)
    means = {arm: torch.tensor(line).mean(dim=0).tolist() for arm, line in lines.items()}
    return {
        arm: Curve(line, _SHARES, value=line[at], x_name="share of the steps that is masked", y_name="true class's probability")
        for arm, line in means.items()
    }


def _masks(
    model: FCN, series: Tensor, labels: Tensor, generator: torch.Generator
) -> dict[str, Callable[[float], Iterable[Tensor]]]:
    """Ways to choose a share of the steps: each returns masks (N, T) bool."""
    size, _, length = series.shape
    activation = class_activation_map(model, series, labels)
    inputs = series.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs).gather(1, labels.unsqueeze(1)).sum(), inputs)
    product = (gradient * series).sum(dim=1)

    def top(scores: Tensor, share: float) -> Tensor:
        chosen = scores.topk(round(share * length), dim=1).indices
        return torch.zeros(size, length, dtype=torch.bool).scatter_(1, chosen, True)

    def block(share: float) -> Tensor:
        wide = round(share * length)
        start = torch.randint(length - wide + 1, (size, 1), generator=generator)
        steps = torch.arange(length)
        return (steps >= start) & (steps < start + wide)

    return {
        "highest in the map": lambda share: [top(activation, share)],
        "lowest in the map": lambda share: [top(-activation, share)],
        "random block": lambda share: [block(share) for _ in range(_DRAWS)],
        "random steps": lambda share: [top(torch.rand(size, length, generator=generator), share) for _ in range(_DRAWS)],
        "highest gradient times input": lambda share: [top(product, share)],
    }


@torch.no_grad()
def _kept(model: FCN, series: Tensor, labels: Tensor, masks: Iterable[Tensor]) -> float:
    """Mean probability of the true class where masked steps are set to the mean of their series."""
    means = series.mean(dim=2, keepdim=True)
    kept = [model(torch.where(mask.unsqueeze(1), means, series)).softmax(dim=1).gather(1, labels.unsqueeze(1)) for mask in masks]
    return torch.cat(kept).double().mean().item()
