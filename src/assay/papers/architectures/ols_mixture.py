"""A mixture of networks whose weights are solved for, by ordinary least squares.

Several networks that are averaged count the same, the good ones and the poor ones. Which of them to believe how much can be
learnt, and with squared error there is nothing to train: the mixture

    F(x) = sum_m w_m f_m(x),        w = argmin_w |P w - y|^2 = (P'P)^-1 P' y,

is a linear regression of the targets y (1 for the class that is looked for, else 0) on the probabilities f_m of the networks,
one column of P for each. A network that adds nothing gets a weight near 0; one that errs where another does, a negative one. The
answer is yes where F > 1/2. With more than two classes every class is a row of its own, the networks keep one weight each, and
the largest F wins.

Probabilities of good networks are nearly collinear, so that single weights can be huge and of opposite signs; the condition
number says how nearly. A little ridge, or weights that may not be negative, help.

The rows of P must be examples that the networks were not trained on: on their own training data, those look best that have
learnt it by heart. (The paper's text reads as if it fitted them there.) Its networks kept images unfit for work from an office;
here the filter looks for two kinds of clothes.

Source: Connie, Al-Shabi and Goh, "Smart Content Recognition from Images Using a Mixture of Convolutional Neural Networks", ICCST
2017 (arXiv 2016, with Teoh); the sizes of its networks are not copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from assay.committee import ask, average, probabilities, weighted
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn.convnet import plain_layers
from assay.paper import Configuration, Cost, Curve, Lower, Reported, Score, claim
from assay.recipe import Recipe, per_example, treatment, with_loss
from assay.train.hooks import Hook, Run
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


class Weights(NamedTuple):
    """What :func:`ols_weights` found.

    Attributes:
        members: (M,) float64.
        intercept: (1,) for two classes, else (C,): added to F; zeros without one.
        condition: largest over smallest singular value of what was regressed on; from about 1e3 on single weights mean little.
    """

    members: Tensor
    intercept: Tensor
    condition: float


def ols_weights(probs: Tensor, labels: Tensor, intercept: bool = False, ridge: float = 0.0, nonneg: bool = False) -> Weights:
    """The weights with which the members' probabilities are nearest to the targets.

    Args:
        probs: (M, N, C) probabilities, of examples that no member was trained on. Of two classes the second counts.
        labels: (N,) int64.
        intercept: whether a constant (one for each class) is added, which moves the threshold where classes are rare.
        ridge: added to the mean squared error, times the squared length of the weights; the paper has 0.
        nonneg: whether weights must be at least 0.

    Where members are copies of one another, the solution of the smallest length is taken: copies share a weight.
    """
    columns = _columns(probs)  # (N, K, M)
    targets = F.one_hot(labels.cpu(), probs.shape[2])[:, -columns.shape[1] :].double()  # (N, K)
    means = columns.mean(dim=0), targets.mean(dim=0)
    if intercept:
        columns, targets = columns - means[0], targets - means[1]
    design, wanted = columns.flatten(0, 1), targets.flatten()
    scale = len(design) ** -0.5
    lines = torch.cat([scale * design, ridge**0.5 * torch.eye(len(probs), dtype=torch.float64)])
    wanted = torch.cat([scale * wanted, wanted.new_zeros(len(probs))])
    if nonneg:
        weights = torch.from_numpy(nnls(lines.numpy(), wanted.numpy())[0])
    else:
        weights = torch.linalg.lstsq(lines, wanted[:, None], driver="gelsd").solution[:, 0]
    constant = means[1] - means[0] @ weights if intercept else torch.zeros(columns.shape[1], dtype=torch.float64)
    return Weights(weights, constant, float(torch.linalg.cond(design)))


def mixture(probs: Tensor, weights: Weights) -> Tensor:
    """F for every example and class: (M, N, C) -> (N, C) float64. Of two classes the first is 1 - F. It can leave [0, 1]."""
    found = weighted(_columns(probs).permute(2, 0, 1), weights.members) + weights.intercept
    return torch.cat([1 - found, found], dim=1) if probs.shape[2] == 2 else found


def _columns(probs: Tensor) -> Tensor:
    """What is regressed on: (M, N, C) -> (N, K, M), K = 1 for two classes, whose probabilities say the same twice."""
    if probs.dim() != 3:
        raise AssayError(f"Probabilities have the shape {tuple(probs.shape)}; give (members, examples, classes).")
    return (probs[:, :, 1:] if probs.shape[2] == 2 else probs).permute(1, 2, 0).double().cpu()


class OLSMixture(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifiers put together with weights by least squares, in scikit-learn's terms.

        OLSMixture([net, forest, other]).fit(X_held_out, y_held_out)      # they are trained already
        OLSMixture([RandomForestClassifier(), LogisticRegression()], cv=5).fit(X, y)      # or they are trained here

    Args:
        models: classifiers with ``predict_proba``, all of the same classes; networks (``nn.Module``) that give logits for a
            float32 tensor of X may be among them if ``cv`` is ``None``.
        cv: ``None`` takes the models as they are and fits the weights alone, so that ``fit`` wants examples that no model was
            trained on. A number of folds trains them: the weights are fitted to what models say that have not seen the example,
            then every model is trained on all of X.
        intercept: see :func:`ols_weights`.
        ridge: see :func:`ols_weights`; 1e-6 to 1e-2 are sensible.
        nonneg: see :func:`ols_weights`.

    Attributes:
        weights_: (M,).
        intercept_: (1,) for two classes, else (C,).
        condition_: of the regression; from about 1e3 on single weights mean little.
        models_: that predict.
        classes_: (C,).
    """

    def __init__(
        self, models: Sequence[Any], cv: int | None = None, intercept: bool = False, ridge: float = 0.0, nonneg: bool = False
    ) -> None:
        self.models = models
        self.cv = cv
        self.intercept = intercept
        self.ridge = ridge
        self.nonneg = nonneg

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Solve for the weights; with ``cv`` train the models, too.

        Args:
            X: what the models take.
            y: (N,) labels.

        Raises:
            ValueError: the models know other classes than ``y``, or a network was to be trained.
            AssayError: they know other classes than one another.
        """
        labels = np.asarray(y)
        if self.cv is None:
            self.models_ = list(self.models)
            said = ask(self.models_, X)
            self.classes_ = self._known(labels, said.shape[2])
        else:
            if any(isinstance(model, nn.Module) for model in self.models):
                raise ValueError("cv trains the models, and a network has no fit: train it, and leave cv=None")
            self.classes_ = np.unique(labels)
            folds = [cross_val_predict(clone(m), X, labels, cv=self.cv, method="predict_proba") for m in self.models]
            said = torch.from_numpy(np.stack(folds))
            self.models_ = [clone(model).fit(X, labels) for model in self.models]
        codes = torch.from_numpy(np.searchsorted(self.classes_, labels))
        found = ols_weights(said, codes, self.intercept, self.ridge, self.nonneg)
        self.weights_, self.intercept_, self.condition_ = found.members.numpy(), found.intercept.numpy(), found.condition
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """F, as it is: of the second class (N,) where there are two, else (N, C)."""
        check_is_fitted(self)
        found = self._mixed(X).numpy()
        return found[:, 1] if len(self.classes_) == 2 else found

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the largest F; of two, the second where F > 1/2."""
        check_is_fitted(self)
        found: NDArray[Any] = self.classes_[self._mixed(X).argmax(dim=1).numpy()]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """F as distributions (N, C): below 0 is 0, and the rest is scaled to sum to 1."""
        check_is_fitted(self)
        return as_distribution(self._mixed(X)).numpy()

    def _mixed(self, X: Any) -> Tensor:
        weights = Weights(torch.from_numpy(self.weights_), torch.from_numpy(self.intercept_), self.condition_)
        return mixture(ask(self.models_, X), weights)

    def _known(self, labels: NDArray[Any], count: int) -> NDArray[Any]:
        """The classes of models that are trained already."""
        named = [model.classes_ for model in self.models_ if hasattr(model, "classes_")]
        classes = named[0] if named else np.unique(labels)
        if not named and len(classes) != count and labels.dtype.kind in "iu":
            classes = np.arange(count)  # of networks: a class that y lacks
        if len(classes) != count or any(not np.array_equal(classes, other) for other in named):
            raise ValueError(f"the models give {count} columns for the classes {[list(one) for one in named] or list(classes)}")
        if not np.isin(labels, classes).all():
            raise ValueError(f"y has labels that the models do not know: they know {list(classes)}")
        return np.asarray(classes)


def as_distribution(found: Tensor) -> Tensor:
    """F (N, C) without its negative parts, scaled to sum to 1; the largest stays the largest."""
    # Where nothing is above 0, all is lifted until the largest is 1.
    lifted = found + (1 - found.amax(dim=1, keepdim=True)) * (found.amax(dim=1, keepdim=True) <= 0)
    return lifted.clamp_min(0) / lifted.clamp_min(0).sum(dim=1, keepdim=True)


# --------------------------------------------------------------------------------------------------- treatment


class MixtureNet(nn.Module):
    """Networks side by side; gives the logarithm of their mean in training, and of the mixture afterwards.

    Args:
        make: makes a member, without arguments.
        members: how many; they differ in their first weights and dropout.

    Shape: (B, ...) -> (B, C).
    """

    def __init__(self, make: Callable[[], nn.Module], members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(members))
        self.register_buffer("weights", torch.full((members,), 1 / members))

    weights: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        said = torch.stack([member(inputs).softmax(dim=1) for member in self.members])  # (M, B, C)
        found = average(said) if self.training else weighted(said, self.weights)
        if found.shape[1] == 2:  # the second class counts, as in the regression
            found = torch.stack([1 - found[:, 1], found[:, 1]], dim=1)
        return found.clamp_min(1e-7).log()


class Apart(nn.Module):
    """The sum of the members' own losses, so that each is trained as if it were alone.

    Args:
        members: how many the network has.

    Shape: logits (B, C), which count for nothing, labels (B,), layers (the members' logits) -> scalar.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        self.watches = tuple(f"members.{number}" for number in range(members))

    def forward(self, logits: Tensor, labels: Tensor, layers: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([F.cross_entropy(layers[name], labels) for name in self.watches]).sum()


@dataclass(frozen=True)
class FitWeights(Hook):
    """Solves for the weights of a :class:`MixtureNet` on the validation split after every epoch.

    Args:
        ridge: see :func:`ols_weights`.
        nonneg: see :func:`ols_weights`.
    """

    ridge: float = 0.0
    nonneg: bool = False

    def after_epoch(self, run: Run) -> None:
        """New weights."""
        net, held = run.model, run.data.valid
        if not isinstance(net, MixtureNet) or not isinstance(held.inputs, Tensor):
            raise AssayError("ols_mixture mixes the members of its own network, which another method has replaced: put it last.")
        said = probabilities(list(net.members), held.inputs.to(run.device))
        found = ols_weights(said, held.labels, ridge=self.ridge, nonneg=self.nonneg)
        net.weights.copy_(found.members)


@treatment
def ols_mixture(recipe: Recipe, members: int = 4, ridge: float = 1e-4, nonneg: bool = False) -> Recipe:
    """Train several of the recipe's network, each as if it were alone, and mix them by least squares on held-out examples.

    A training takes ``members`` times as long. Members of one kind are about equally good, so that the mixture is little else
    than their mean; members of different kinds are for :class:`OLSMixture`.

    Args:
        recipe: of a classification, with a validation split.
        members: networks.
        ridge: see :func:`ols_weights`.
        nonneg: see :func:`ols_weights`.

    Raises:
        AssayError: nothing validates, the task is not classification, the network is such a mixture already, or a number is out
            of its range.
    """
    if members < 1 or ridge < 0:
        raise AssayError(f"ols_mixture was asked for {members} members and a ridge of {ridge}: give 1 or more, and 0 or more.")
    if not len(recipe.data.valid):
        raise AssayError("ols_mixture finds its weights on held-out examples, and there are none: use data.holdout(0.2, seed).")
    if any(isinstance(hook, FitWeights) for hook in recipe.hooks):
        raise AssayError("the network of this recipe is a mixture already: leave ols_mixture out, and raise its members.")
    net = partial(MixtureNet, recipe.model, members)
    apart = with_loss(recipe, per_example(Apart, members=members))
    return apart.replace(model=net, hooks=(*recipe.hooks, FitWeights(ridge, nonneg)))


# ------------------------------------------------------------------------------------------------------ claims

#: Networks like VGG's of three to five convolutions: planes, ``k`` and the kernel, ``M`` for a 2x2 maximum.
LAYERS = (
    "8 M 16 M 16",
    "8 8 M 16 16 M",
    "8k5 M 16k5 M 16",
    "8 8 M 16 16 M 16",
    "16 M 16 16 M",
    "8k5 8 M 16 M 16",
)


def filter_net(words: str, size: int, in_channels: int = 1, width: float = 1.0, dropout: float = 0.3) -> nn.Sequential:
    """A network in the manner of the paper, for two classes: convolutions with ReLU, maxima, dropout, one linear layer.

    Args:
        words: its layers; see :func:`assay.nn.convnet.plain_layers`.
        size: height and width of the images.
        in_channels: of the images.
        width: factor of all planes.
        dropout: before the linear layer.

    Shape: (B, in_channels, size, size) -> (B, 2).
    """
    layers = plain_layers(words, in_channels, width)
    planes = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][-1]
    side = size // 2 ** words.split().count("M")
    return nn.Sequential(layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(planes * side * side, 2))


#: The least and the largest of the networks that are mixed, and what they are known to measure.
CONFIGURATIONS = {
    "filter_net('8 M 16 M 16', 28)": Configuration(
        (1, 28, 28), parameters=5_138, macs=396_704, layers=4, sees=18, activations=10_192
    ),
    "filter_net('8 8 M 16 16 M 16', 28)": Configuration(
        (1, 28, 28), parameters=8_042, macs=1_299_872, layers=6, sees=24, activations=19_600
    ),
}


def filtered(data: Dataset, wanted: Sequence[int], half: bool) -> Dataset:
    """Images of some classes against all others, at half their size if so asked."""
    train, valid, test = (_filtered(split, wanted, half) for split in (data.train, data.valid, data.test))
    line = f"filtered(wanted={tuple(wanted)}, half={half})"
    classes = ("others", "wanted")
    return dataclasses.replace(data, train=train, valid=valid, test=test, classes=classes, history=(*data.history, line))


def _filtered(split: Split, wanted: Sequence[int], half: bool) -> Split:
    assert isinstance(split.inputs, Tensor)
    images = F.avg_pool2d(split.inputs, 2) if half else split.inputs
    return Split(images, torch.isin(split.labels, torch.tensor(wanted)).long())


def _images(lab: Lab, train: int, held: int) -> Dataset:
    """Pullovers and shirts against other clothes; ``held`` images of the ``train + held`` are held out."""
    name = lab.pick(smoke="mnist5k", laptop="fashion-mnist", full="cifar10")
    animals, clothes = (2, 3, 4, 5, 6, 7), (2, 6)
    tests = lab.pick(smoke=200, laptop=4_000, full=10_000)
    whole = lab.data(name).subset(train=train + held, test=tests, seed=lab.seed).holdout(held / (train + held), seed=lab.seed)
    return filtered(whole, animals if lab.scale == "full" else clothes, half=lab.scale != "full").normalise()


def _recipe(lab: Lab, data: Dataset, number: int, epochs: int, width: float = 1.0, dropout: float = 0.3) -> Recipe:
    """How the network of a line of :data:`LAYERS` is trained; all are trained alike."""
    channels, size, _ = data.input_shape
    return Recipe(
        data,
        model=partial(filter_net, LAYERS[number], size, channels, width * lab.pick(smoke=1, laptop=1, full=4), dropout),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        epochs=epochs,
        batch_size=64,
        watch=(),
    )


def _unequal(lab: Lab, data: Dataset, epochs: int) -> list[Trained]:
    """Two good networks, two that are trained for a sixth of the time, and two of a quarter of the planes."""
    plan = ((0, epochs, 1.0), (1, epochs, 1.0), (4, max(1, epochs // 6), 1.0), (5, max(1, epochs // 6), 1.0))
    return [lab.train(_recipe(lab, data, *row)) for row in (*plan, (0, epochs, 0.25), (1, epochs, 0.25))]


def _said(members: Sequence[Trained], split: str) -> Tensor:
    """(M, N, 2) on a split."""
    return torch.stack([trained.logits(split).softmax(dim=1) for trained in members])


def _error(found: Tensor, members: Sequence[Trained]) -> Score:
    """Share of test images that are not what the scores (N, 2) say, at the price of the members."""
    labels = members[0].recipe.data.test.labels
    seconds = sum(trained.seconds for trained in members)
    cost = Cost(seconds, sum(trained.parameters for trained in members))
    return Score((found.argmax(dim=1) != labels).double().mean().item(), cost)


def _by_ols(members: Sequence[Trained], fitted_on: str, **options: bool) -> tuple[Score, Weights]:
    """Test error of the mixture whose weights were fitted on a split."""
    labels = getattr(members[0].recipe.data, fitted_on).labels
    weights = ols_weights(_said(members, fitted_on), labels, **options)
    return _error(mixture(_said(members, "test"), weights), members), weights


def _stacked(members: Sequence[Trained]) -> Score:
    """Test error of a logistic regression on the members' probabilities, fitted on held-out images."""
    held, test = (_said(members, split)[:, :, 1].T.numpy() for split in ("valid", "test"))
    model = LogisticRegression(max_iter=1000).fit(held, members[0].recipe.data.valid.labels.numpy())
    return _error(torch.from_numpy(model.predict_proba(test)), members)


_SCALED_DOWN = (
    "Pullovers and shirts among the clothes of Fashion-MNIST, at 14x14, in the place of images from the web; networks of three "
    "to five convolutions with 8 and 16 planes"
)


_SIZES = f"{_SCALED_DOWN}, trained on 3,000 images for 6 epochs; 1,000 are held out, for the weights and for choosing."


def _held_out(lab: Lab) -> tuple[Dataset, int]:
    """The images of the first two claims, and the epochs of a good network."""
    train, held = lab.pick(smoke=(200, 100), laptop=(3_000, 1_000), full=(45_000, 5_000))
    return _images(lab, train, held), lab.pick(smoke=2, laptop=6, full=60)


@claim(
    "Of six networks, four of which are poor (trained for one epoch, or of two and four planes), the mixture by least squares is "
    "wrong less often than their average; of four good ones it is wrong at most 0.3 points more often than their average.",
    expect=(
        Lower("OLS, unequal", than="average, unequal"),
        Lower("OLS, equal", than="average, equal", by=-0.003),
    ),
    reported=Reported(
        "images unfit for work, or not: test error; the paper has single networks and their average behind the mixture",
        {"OLS, unequal": 0.04},
        where="results: 'over 96%' accuracy",
    ),
    scaled_down=_SIZES,
    unit="test error",
    needs=("fashion-mnist",),
)
def ols_beats_average(lab: Lab) -> Measured:
    data, epochs = _held_out(lab)
    unequal = _unequal(lab, data, epochs)
    good = [*unequal[:2], *(lab.train(_recipe(lab, data, number, epochs)) for number in (2, 3))]
    some = [unequal[:count] for count in range(2, 7)]  # the good ones, with more and more poor ones among them
    means = [_error(average(_said(members, "test")), members) for members in some]
    solved = [_by_ols(members, "valid")[0] for members in some]
    steps = [len(members) - 2 for members in some]
    curve = partial(Curve, x=steps, x_name="poor members beside two good ones", y_name="test error")
    best = max(unequal, key=lambda trained: trained.accuracy("valid"))
    singles = [_error(_said([trained], "test")[0], [trained]) for trained in unequal]
    return {
        "average, unequal": curve(means, cost=means[-1].cost),
        "OLS, unequal": curve(solved, cost=solved[-1].cost),
        "OLS, not negative, unequal": _by_ols(unequal, "valid", nonneg=True)[0],
        "OLS with intercept, unequal": _by_ols(unequal, "valid", intercept=True)[0],
        "logistic regression, unequal": _stacked(unequal),
        "best on held-out images, unequal": _error(_said([best], "test")[0], [best]),
        "mean of the members, unequal": sum(singles) / len(singles),
        "average, equal": _error(average(_said(good, "test")), good),
        "OLS, equal": _by_ols(good, "valid")[0],
    }


@claim(
    "Held-out images are better spent on the weights than on the networks: of six networks, four of which are poor, the mixture "
    "by least squares is wrong less often than the average of networks that learn from its held-out images, too.",
    expect=Lower("OLS", than="average of networks that learn from all images"),
    scaled_down=f"The paper does not ask this. {_SIZES}",
    unit="test error",
    needs=("fashion-mnist",),
)
def worth_its_held_out_images(lab: Lab) -> Measured:
    data, epochs = _held_out(lab)
    fewer, all_of_them = _unequal(lab, data, epochs), _unequal(lab, _joined(data), epochs)
    return {
        "OLS": _by_ols(fewer, "valid")[0],
        "average of networks that learn from all images": _error(average(_said(all_of_them, "test")), all_of_them),
        "average": _error(average(_said(fewer, "test")), fewer),
    }


def _joined(data: Dataset) -> Dataset:
    """The same with the held-out images among the training images."""
    assert isinstance(data.train.inputs, Tensor)
    assert isinstance(data.valid.inputs, Tensor)
    inputs = torch.cat([data.train.inputs, data.valid.inputs])
    whole = Split(inputs, torch.cat([data.train.labels, data.valid.labels]))
    return dataclasses.replace(data, train=whole, history=(*data.history, "valid among train"))


@claim(
    "Of six networks that have learnt 500 images by heart (60 epochs, no dropout), the mixture whose weights were fitted on "
    "these images is wrong more often than the one whose weights were fitted on 500 others.",
    expect=Lower("fitted on held-out images", than="fitted on training images"),
    scaled_down=f"{_SCALED_DOWN}, two of them of a quarter of the planes.",
    unit="test error",
    needs=("fashion-mnist",),
)
def training_set_weights_overfit(lab: Lab) -> Measured:
    count = lab.pick(smoke=100, laptop=500, full=5_000)
    data = _images(lab, count, count)
    epochs = lab.pick(smoke=2, laptop=60, full=200)
    members = []
    for number in range(6):
        recipe = _recipe(lab, data, number, epochs, width=1.0 if number < 4 else 0.25, dropout=0.0)
        by_heart = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        members.append(lab.train(recipe.replace(optimizer=by_heart, batch_size=32)))
    arms: dict[str, float | Curve] = {
        "average": _error(average(_said(members, "test")), members),
        "mean of the members, on training images": 1 - sum(trained.accuracy("train") for trained in members) / len(members),
    }
    for arm, split in (("fitted on held-out images", "valid"), ("fitted on training images", "train")):
        error, weights = _by_ols(members, split)
        arms[arm] = error
        arms[f"weights, {arm}"] = Curve(
            weights.members.tolist(), value=weights.members.abs().sum().item(), x_name="member", y_name="weight"
        )
    return arms
