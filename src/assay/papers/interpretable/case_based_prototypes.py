"""Case-based reasoning: a network whose reason for an answer is the cases that the example lies near, which can be looked at.

A network that is explained afterwards may have had other reasons. Here the computation is the explanation: an encoder maps
the example to a latent space where some prototypes lie, the distances to them are all that the last layer sees, and a decoder
draws every prototype. Two terms make that honest: each prototype must lie near some example (or its picture is no picture of
anything), and each example near some prototype (or the distances say nothing about it).

The last layer is linear in squared distances, so the telling weights are the negative ones: a prototype stands for the class
that its distance lowers most.

Source: Li, Liu, Chen and Rudin, "Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its
Predictions", AAAI 2018. R1 and R2 are the paper's. Reconstruction sums over the numbers of an example and averages over
examples, as the authors' code does. Padding is the same on both sides, where their framework pads one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from assay.drawing import Tile, as_image, short, tiles
from assay.errors import AssayError
from assay.nn.ending import last_linear
from assay.nn.prototypes import cover, squared_distances, support
from assay.paper import Close, Curve, Higher, Reported, claim
from assay.recipe import Recipe, per_example, treatment, with_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

#: Of classification, reconstruction, R1 and R2 (the authors' code, for MNIST).
WEIGHTS = (20.0, 1.0, 1.0, 1.0)


class PrototypeHead(nn.Module):
    """The part that reasons: distances to prototypes, a linear layer on them, and the decoder that draws them.

    Args:
        width: q, numbers in the latent space.
        num_classes: K.
        num_prototypes: m; the paper uses 15 for MNIST.
        decoder: (B, q) -> (B, ...) examples.

    Shape: (B, ...) features of q numbers -> (B, K) logits.
    """

    def __init__(self, width: int, num_classes: int, num_prototypes: int, decoder: nn.Module) -> None:
        super().__init__()
        self.latent = nn.Flatten()
        self.prototypes = nn.Parameter(torch.rand(num_prototypes, width))
        self.decoder = decoder
        # Behind the decoder, so that who looks for a network's last linear layer finds the one that decides.
        self.last = nn.Linear(num_prototypes, num_classes, bias=False)
        nn.init.uniform_(self.last.weight)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.last(squared_distances(self.latent(features), self.prototypes))
        return logits

    @property
    def weights(self) -> Tensor:
        """W (m, K): what a unit of squared distance to each prototype adds to each class."""
        return self.last.weight.T

    def stands_for(self) -> Tensor:
        """The class (m,) that each prototype speaks for: that with the most negative weight."""
        return self.weights.detach().argmin(dim=1)

    @torch.no_grad()
    def drawn(self) -> Tensor:
        """What the prototypes look like: (m, ...)."""
        pictures: Tensor = self.decoder(self.prototypes)
        return pictures


def encoder(channels: int = 1, planes: int = 32, last: int = 10) -> nn.Sequential:
    """Four 3x3 convolutions of stride 2 with ReLU; 28x28 pixels become 2x2 places with ``last`` numbers, q = 40."""
    layers: list[nn.Module] = []
    for before, after in ((channels, planes), (planes, planes), (planes, planes), (planes, last)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def decoder(shape: tuple[int, int, int], planes: int = 32, last: int = 10) -> nn.Sequential:
    """The mirror of :func:`encoder`: (B, q) -> (B, channels, H, W) in [0, 1]."""
    sizes = [shape[1:]]
    for _ in range(4):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))  # type: ignore[arg-type]
    sizes.reverse()
    layers: list[nn.Module] = [nn.Unflatten(1, (last, *sizes[0]))]
    wide = (last, planes, planes, planes, shape[0])
    for place in range(4):
        # A transposed convolution makes 2n - 1 of n; what is missing to the size that the encoder saw is added.
        missing = tuple(side - (2 * small - 1) for side, small in zip(sizes[place + 1], sizes[place], strict=True))
        layers.append(nn.ConvTranspose2d(wide[place], wide[place + 1], 3, 2, padding=1, output_padding=missing))  # type: ignore[arg-type]
        layers.append(nn.Sigmoid() if place == 3 else nn.ReLU())
    return nn.Sequential(*layers)


def prototype_network(shape: tuple[int, ...], num_classes: int, num_prototypes: int = 15) -> nn.Sequential:
    """The paper's network for images (channels, H, W) in [0, 1]; for columns (D,), one hidden layer of 64 on either side.

    ``prototype_network((1, 28, 28), 10)`` has 44,153 parameters.
    """
    if len(shape) == 3:
        latent = 10 * int(np.prod([-(-side // 16) for side in shape[1:]]))
        return nn.Sequential(
            encoder(shape[0]),
            PrototypeHead(latent, num_classes, num_prototypes, decoder((shape[0], shape[1], shape[2]))),
        )
    numbers = int(np.prod(shape))
    body = nn.Sequential(nn.Flatten(), nn.Linear(numbers, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
    return nn.Sequential(body, PrototypeHead(16, num_classes, num_prototypes, _plain_decoder(16, shape)))


def _plain_decoder(width: int, shape: tuple[int, ...]) -> nn.Sequential:
    numbers = int(np.prod(shape))
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, numbers), nn.Unflatten(1, shape))


def case_based_loss(
    head: PrototypeHead,
    latent: Tensor,
    logits: Tensor,
    inputs: Tensor,
    labels: Tensor,
    weights: tuple[float, float, float, float] = WEIGHTS,
) -> Tensor:
    """The paper's loss: cross-entropy, reconstruction, R1 and R2 with these weights.

    R1 takes for each prototype the nearest example of the batch, so that a batch should be much larger than the number of
    prototypes.

    Args:
        head: prototypes and decoder.
        latent: (B, q), the encoded batch.
        logits: (B, K), what the head said of it.
        inputs: (B, ...), the batch.
        labels: (B,) int64.
        weights: of the four terms; the paper's for MNIST are (20, 1, 1, 1).
    """
    classify, rebuild, r1, r2 = weights
    loss = classify * F.cross_entropy(logits, labels)
    if rebuild:
        loss = loss + rebuild * (head.decoder(latent) - inputs).square().flatten(1).sum(dim=1).mean()
    if r1 or r2:
        squares = squared_distances(latent, head.prototypes)
        loss = loss + r1 * support(squares) + r2 * cover(squares)
    return loss


class CaseBasedLoss(nn.Module):
    """:func:`case_based_loss` for a training loop that hands over inputs and the outputs of layers by name.

    Args:
        model: a network with one :class:`PrototypeHead`, anywhere.
        weights: as there.

    Shape: logits (B, K), labels (B,), inputs (B, ...), layers {name: (B, q)} -> scalar.
    """

    def __init__(self, model: nn.Module, weights: tuple[float, float, float, float] = WEIGHTS) -> None:
        super().__init__()
        name, head = next((n, m) for n, m in model.named_modules() if isinstance(m, PrototypeHead))
        self.head = (head,)  # in a tuple: its parameters are the network's, not the loss's
        self.watches = (f"{name}.latent" if name else "latent",)
        self.weights = weights

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor, layers: dict[str, Tensor]) -> Tensor:
        return case_based_loss(self.head[0], layers[self.watches[0]], logits, inputs, labels, self.weights)


def _with_prototypes(make: Callable[[], nn.Module], num_classes: int, prototypes: int, shape: tuple[int, ...]) -> nn.Module:
    model = make()
    found = last_linear(model)
    if found is None or found[1].out_features != num_classes:
        raise AssayError("Prototypes stand in the place of the last linear layer, and this network does not end in one.")
    name, last = found
    parent, _, own = name.rpartition(".")
    width = last.in_features
    setattr(model.get_submodule(parent), own, PrototypeHead(width, num_classes, prototypes, _plain_decoder(width, shape)))
    return model


@treatment
def case_based_prototypes(
    recipe: Recipe, per_class: int = 2, classify: float = 20.0, rebuild: float = 1.0, r1: float = 1.0, r2: float = 1.0
) -> Recipe:
    """Decide by the distances to prototypes among the network's last features; a small decoder draws them.

    The four terms keep the paper's proportions and are divided by the weight of classification, so that the recipe's learning
    rate still suits.

    Args:
        recipe: of a classifier that ends in a linear layer.
        per_class: prototypes, times the number of classes.
        classify: weight of cross-entropy.
        rebuild: weight of reconstruction, a mean over examples of sums.
        r1: weight of "each prototype near some example".
        r2: weight of "each example near some prototype".

    Raises:
        AssayError: there are no classes, or the network has another end.
    """
    data = recipe.data
    if data.task != "classification":
        raise AssayError(f"Prototypes stand for classes, and {data.name!r} has none: leave case_based_prototypes out.")
    make = partial(_with_prototypes, recipe.model, data.num_classes, per_class * data.num_classes, data.input_shape)
    with torch.device("meta"):
        make()  # says now what does not fit
    weights = (1.0, rebuild / classify, r1 / classify, r2 / classify)
    return with_loss(recipe, per_example(CaseBasedLoss, weights=weights)).replace(model=make)


class Case(NamedTuple):
    """One prototype's part in a decision: its number, the class it stands for, the squared distance, and what it adds to the lead
    of the class that won over the one that came next that this distance is not the usual one."""

    prototype: int
    stands_for: Any
    distance: float
    lead: float


class PrototypeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The paper's network as a scikit-learn classifier.

    Args:
        n_prototypes: m; the paper uses 15.
        shape: (channels, H, W) of images with numbers in [0, 1]; ``None`` for columns, which should be of one scale.
        weights: of cross-entropy, reconstruction, R1 and R2.
        learning_rate: of Adam; the paper uses 0.002.
        epochs: passes over the training set; the paper uses 1,500 with elastic deformations.
        batch_size: examples in one step, many more than prototypes; the paper uses 250.
        random_state: seed of the weights and the order of the examples.

    Attributes:
        classes_: (K,) labels.
        net_: encoder and :class:`PrototypeHead`.
        prototypes_: (m, q) in the latent space.
        stands_for_: (m,) the label that each speaks for.
        usual_: (m,) mean squared distance of the training examples from each.
        loss_curve_: mean loss of every epoch.
    """

    def __init__(
        self,
        n_prototypes: int = 15,
        shape: tuple[int, int, int] | None = None,
        weights: tuple[float, float, float, float] = WEIGHTS,
        learning_rate: float = 2e-3,
        epochs: int = 50,
        batch_size: int = 128,
        random_state: int | None = None,
    ) -> None:
        self.n_prototypes = n_prototypes
        self.shape = shape
        self.weights = weights
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> PrototypeClassifier:
        """Learn from X (N, D) and labels y (N,).

        Raises:
            ValueError: one class only, or a shape that does not hold D numbers.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("prototypes stand for classes, and y has 1 class")
        shape = self.shape or (self.n_features_in_,)
        if int(np.prod(shape)) != self.n_features_in_:
            raise ValueError(f"shape={self.shape} holds {int(np.prod(shape))} numbers, and X has {self.n_features_in_} columns")
        inputs, labels = torch.as_tensor(X).unflatten(1, shape), torch.as_tensor(codes)
        self.loss_curve_ = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
            self.net_ = prototype_network(shape, len(self.classes_), self.n_prototypes)
            optimizer = torch.optim.Adam(self.net_.parameters(), lr=self.learning_rate, fused=True)
            for _ in range(self.epochs):
                total = 0.0
                for index in torch.randperm(len(inputs)).split(self.batch_size):
                    latent = self.net_[0](inputs[index]).flatten(1)
                    logits = self._head(latent)
                    loss = case_based_loss(self._head, latent, logits, inputs[index], labels[index], self.weights)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(index)
                self.loss_curve_.append(total / len(inputs))
        self.net_.eval()
        self.prototypes_ = self._head.prototypes.detach().numpy()
        self.stands_for_ = self.classes_[self._head.stands_for().numpy()]
        self.usual_ = self._squares(X).mean(axis=0)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Logits (N, K); for two classes (N,), that of the second minus that of the first."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """(N, K)."""
        shares: NDArray[np.float32] = torch.as_tensor(self._logits(X)).softmax(dim=1).numpy()
        return shares

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,)."""
        best = self._logits(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def decode_prototypes(self) -> NDArray[np.float32]:
        """What the prototypes look like: (m, D)."""
        check_is_fitted(self)
        drawn: NDArray[np.float32] = self._head.drawn().flatten(1).numpy()
        return drawn

    def explain(self, x: ArrayLike) -> list[Case]:
        """The prototypes from the nearest to the farthest for one example (D,).

        A logit is a weighted sum of distances, in which a class's own prototypes weigh negatively: being near them shows only
        beside the distance that examples usually have. So the leads sum to the lead of the example's logits minus that of an
        example at the usual distance from every prototype, and a prototype that is nearer than usual speaks for its class.
        """
        row = np.asarray(x).reshape(1, -1)
        first, second = np.argsort(-self._logits(row)[0])[:2]
        squares = self._squares(row)[0]
        weights = self._head.weights.detach().numpy()
        lead = (squares - self.usual_) * (weights[:, first] - weights[:, second])
        return [Case(int(j), self.stands_for_[j], float(squares[j]), float(lead[j])) for j in np.argsort(squares)]

    def picture(self, x: ArrayLike, most: int = 7) -> str:
        """One decision as an SVG: the example, and the prototypes it lies nearest to as the decoder draws them.

        A bar to the right speaks for the class that won, one to the left for the one that came next (:meth:`explain`).

        Args:
            x: (D,).
            most: prototypes to show.
        """
        row = np.asarray(x, dtype=np.float32).reshape(-1)
        drawn = self.decode_prototypes()
        shown = [Tile(as_image(row, self.shape), ("the example",))]
        shown += [
            Tile(
                as_image(drawn[case.prototype], self.shape),
                (f"for {short(str(case.stands_for))}", f"distance {case.distance**0.5:.2f}"),
                case.lead,
            )
            for case in self.explain(x)[:most]
        ]
        first, second = self.classes_[np.argsort(-self._logits(row[None])[0])[:2]]
        return tiles([shown], [f"{first} rather than {second}, by the cases that lie near"])

    @property
    def _head(self) -> PrototypeHead:
        head = self.net_[1]
        assert isinstance(head, PrototypeHead)
        return head

    def _latent(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        inputs = torch.as_tensor(validate_data(self, X, dtype=np.float32, reset=False))
        parts = inputs.unflatten(1, self.shape or (inputs.shape[1],)).split(2048)
        return torch.cat([self.net_[0](part).flatten(1) for part in parts])

    @torch.no_grad()
    def _squares(self, X: ArrayLike) -> NDArray[np.float32]:
        latent = self._latent(X)
        squares: NDArray[np.float32] = squared_distances(latent, self._head.prototypes).numpy()
        return squares

    def _logits(self, X: ArrayLike) -> NDArray[np.float32]:
        with torch.no_grad():
            latent = self._latent(X)
            logits: NDArray[np.float32] = self._head(latent).numpy()
        return logits


# ------------------------------------------------------------------------------------------------------------ claims


def _linear(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """The control: the same encoder with an ordinary last layer."""
    latent = 10 * int(np.prod([-(-side // 16) for side in shape[1:]]))
    return nn.Sequential(encoder(shape[0]), nn.Flatten(), nn.Linear(latent, num_classes))


def _pictures(lab: Lab, name: str) -> Dataset:
    data = lab.data(name if lab.scale == "full" or name != "mnist" else "mnist5k")
    if lab.scale == "full":
        return data
    return data.subset(train=lab.pick(smoke=300, laptop=4000, full=0), test=lab.pick(smoke=100, laptop=1000, full=0))


def _recipe(lab: Lab, name: str, weights: tuple[float, float, float, float] | None = WEIGHTS) -> Recipe:
    """The paper's training; ``None`` for the control."""
    data = _pictures(lab, name)
    net = _linear if weights is None else prototype_network
    recipe = Recipe(
        data,
        model=partial(net, data.input_shape, data.num_classes),  # type: ignore[arg-type]
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        epochs=lab.pick(smoke=2, laptop=15, full=1500),
        batch_size=lab.pick(smoke=50, laptop=100, full=250),
        watch=(),
    )
    return recipe if weights is None else recipe.replace(loss=per_example(CaseBasedLoss, weights=weights))


_SMALLER = (
    "4,000 training images and 15 epochs with batches of 100, no elastic deformations, instead of 55,000 and 1,500 epochs with "
    "batches of 250."
)


@claim(
    "Deciding by distances to prototypes costs no accuracy: the network is within 1 point of the same encoder with an ordinary "
    "last layer, on MNIST and on Fashion-MNIST.",
    expect=(
        Close("prototypes, MNIST", to="linear layer, MNIST", within=0.01),
        Close("prototypes, Fashion-MNIST", to="linear layer, Fashion-MNIST", within=0.01),
    ),
    reported=Reported("test accuracy", {"prototypes, MNIST": 0.9922, "prototypes, Fashion-MNIST": 0.8995}, "Section 4, text"),
    scaled_down=_SMALLER,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def no_accuracy_price(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, source in (("MNIST", "mnist"), ("Fashion-MNIST", "fashion-mnist")):
        arms[f"prototypes, {name}"] = lab.train(_recipe(lab, source)).accuracy()
        arms[f"linear layer, {name}"] = lab.train(_recipe(lab, source, None)).accuracy()
    return arms


def _head(trained: Trained) -> PrototypeHead:
    (head,) = (module for module in trained.model.modules() if isinstance(module, PrototypeHead))
    return head


def _nearest(pictures: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (m,) of each picture to the nearest image, and which one that is."""
    squares = squared_distances(images.flatten(1), pictures.flatten(1))
    found = squares.min(dim=0)
    return found.values.sqrt(), found.indices


#: Arm -> weights of the loss.
_TERMS = {"R1 and R2": WEIGHTS, "neither": (20.0, 1.0, 0.0, 0.0)}


@claim(
    "Without R1 and R2 the decoder draws prototypes that are pictures of nothing: on MNIST they lie at least 1.5 times as far "
    "from the nearest training image as with these terms.",
    expect=Higher("neither", than="R1 and R2", times=1.5),
    scaled_down=_SMALLER,
    unit="mean distance of a drawn prototype to the nearest training image, over that of a test image",
)
def terms_make_pictures(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for arm, weights in _TERMS.items():
        trained = lab.train(_recipe(lab, "mnist", weights))
        data = trained.recipe.data
        assert isinstance(data.train.inputs, Tensor)
        assert isinstance(data.test.inputs, Tensor)
        usual = _nearest(data.test.inputs[:500], data.train.inputs)[0].mean()
        far = (_nearest(_head(trained).drawn().cpu(), data.train.inputs)[0] / usual).sort().values
        arms[arm] = Curve(
            far.tolist(),
            value=far.mean().item(),
            cost=trained.cost,
            x_name="prototype, nearest first",
            y_name="relative distance",
        )
    return arms


@claim(
    "With R1 and R2 the 15 prototypes show more of the ten digits than without: counted are the classes of the training images "
    "nearest to what is drawn.",
    expect=Higher("R1 and R2", than="neither"),
    scaled_down=_SMALLER,
    unit="digits shown, of 10",
)
def terms_cover_classes(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for arm, weights in _TERMS.items():
        trained = lab.train(_recipe(lab, "mnist", weights))
        data = trained.recipe.data
        assert isinstance(data.train.inputs, Tensor)
        nearest = _nearest(_head(trained).drawn().cpu(), data.train.inputs)[1]
        shown = torch.bincount(data.train.labels[nearest], minlength=data.num_classes)
        arms[arm] = Curve(
            shown.tolist(),
            x=list(range(data.num_classes)),
            value=float((shown > 0).sum()),
            cost=trained.cost,
            x_name="digit",
            y_name="prototypes that show it",
        )
    return arms
