"""Explaining a black box on a wide table: find its few important columns, and grow a tree on them in its place.

A tree on thousands of columns is nothing to read, and neither is the ranking of thousands of importances. So: a black box is
trained on all columns; probes of it rank the columns, by what permuting a column changes, by what setting it to its mean changes,
and, if the network has attention, by how much it attends to the column; the ranks are averaged. On the k first columns a shallow
tree is grown to the black box's probabilities (not to the labels: that would be another model of the world, none of the black
box). How far it may be trusted is its fidelity on other rows: R^2 on the probabilities and the share of equal classes. From the
tree come rules with their support, reasons for one row, and counterfactuals: the nearest leaf of another class, to be checked on
the black box.

Source: Karim et al., "Interpreting Black-box Machine Learning Models for High Dimensional Datasets", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import f_classif
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.paper import Curve, Higher, claim
from assay.recipe import Recipe, per_example, probe
from assay.train.schedules import cosine
from assay.trees import Cart, cart, picture, shortest
from assay.trees import Split as Condition
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

Floats = NDArray[np.float64]
BlackBox = Callable[[Floats], Floats]  # rows (N, D) -> probabilities (N, K)


# ------------------------------------------------------------------------------------------------- probes of columns


def permutation_importance(black_box: BlackBox, X: Floats, labels: NDArray[Any], repeats: int, random: Any) -> Floats:
    """By how much the share of rows given their label falls when a column is permuted, mean over repeats: (D,)."""
    right = _share(black_box(X), labels)
    fall = np.zeros(X.shape[1])
    for column in range(X.shape[1]):
        copies = np.tile(X, (repeats, 1))  # all repeats in one call
        copies[:, column] = np.concatenate([random.permutation(X[:, column]) for _ in range(repeats)])
        fall[column] = right - _share(black_box(copies), np.tile(labels, repeats))
    return fall


def sensitivity(black_box: BlackBox, X: Floats) -> Floats:
    """By how much the probabilities change when a column is set to its mean, half the sum over classes, mean over rows: (D,)."""
    before, change = black_box(X), np.zeros(X.shape[1])
    for column in range(X.shape[1]):
        moved = X.copy()
        moved[:, column] = X[:, column].mean()
        change[column] = np.abs(black_box(moved) - before).sum(axis=1).mean() / 2
    return change


def mean_rank(importances: Sequence[Floats]) -> Floats:
    """Importances that are not on one scale, as one: their ranks, averaged; the larger the more important."""
    mean: Floats = np.mean([rankdata(one) for one in importances], axis=0)
    return mean


def _share(probabilities: Floats, labels: NDArray[Any]) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


# ------------------------------------------------------------------------------------------------------ the surrogate


@dataclass(frozen=True)
class Rule:
    """A leaf as a sentence: its conditions, the class, the share of rows it covers, and of those the black box agrees on."""

    conditions: tuple[Condition, ...]
    said: int
    support: float
    confidence: float

    def words(self, features: Sequence[str] = (), classes: Sequence[str] = ()) -> str:
        """``a > 1 and b <= 2: class 0``, or the name of the class."""
        said = classes[self.said] if len(classes) else f"class {self.said}"
        return f"{' and '.join(one.words(features) for one in self.conditions) or 'always'}: {said}"


class BlackBoxSurrogate(BaseEstimator):  # type: ignore[misc]
    """A shallow tree on the most important columns, in a black box's place.

    Args:
        black_box: rows (N, D) -> probabilities (N, K).
        k: columns that are kept.
        max_depth: of the tree.
        repeats: permutations of a column.
        attention: (D,) how much the black box attends to each column, if it does, as a further probe.
        rows: rows that are probed, drawn from those given.
        random_state: of the draws.

    Attributes:
        importance_: (D,) mean rank.
        top_: (k,) the columns, the most important first.
        tree_: the ``DecisionTreeRegressor`` on them.
        rules_: a rule for each leaf.
    """

    def __init__(
        self,
        black_box: BlackBox,
        k: int = 20,
        max_depth: int = 6,
        repeats: int = 2,
        attention: ArrayLike | None = None,
        rows: int = 200,
        random_state: int | None = None,
    ) -> None:
        self.black_box = black_box
        self.k = k
        self.max_depth = max_depth
        self.repeats = repeats
        self.attention = attention
        self.rows = rows
        self.random_state = random_state

    def fit(self, X: ArrayLike, held_out: ArrayLike | None = None) -> BlackBoxSurrogate:
        """Rank the columns and grow the tree on what the black box says of X; no labels are needed.

        Args:
            X: (N, D).
            held_out: (M, D) rows on which the columns are ranked, that the black box has not learnt by heart; ``None`` takes X.
        """
        rows = np.asarray(X, dtype=np.float64)
        random = check_random_state(self.random_state)
        others = rows if held_out is None else np.asarray(held_out, dtype=np.float64)
        some = others[random.permutation(len(others))[: self.rows]]
        said = self.black_box(some).argmax(axis=1)
        probes = [permutation_importance(self.black_box, some, said, self.repeats, random), sensitivity(self.black_box, some)]
        if self.attention is not None:
            probes.append(np.asarray(self.attention, dtype=np.float64))
        self.importance_ = mean_rank(probes)
        return self.grow(rows, np.argsort(-self.importance_, kind="stable")[: self.k])

    def grow(self, X: ArrayLike, columns: ArrayLike) -> BlackBoxSurrogate:
        """The tree on given columns, whoever chose them."""
        rows, self.top_ = np.asarray(X, dtype=np.float64), np.asarray(columns)
        self.scale_ = rows[:, self.top_].std(axis=0).clip(1e-12)
        goal = self.black_box(rows)
        self.tree_ = DecisionTreeRegressor(max_depth=self.max_depth, random_state=0).fit(rows[:, self.top_], goal)
        self.cart_: Cart = cart(self.tree_.tree_)
        leaf = self.tree_.apply(rows[:, self.top_])
        values = self.tree_.tree_.value.reshape(self.tree_.tree_.node_count, -1)
        self.rules_ = []
        for number, way in zip(self.cart_.leaves, self.cart_.ways(), strict=True):
            said, here = int(values[number].argmax()), leaf == number
            conditions = tuple(Condition(int(self.top_[one.feature]), one.threshold, one.above) for one in shortest(way))
            self.rules_.append(Rule(conditions, said, float(here.mean()), _share(goal[here], np.full(here.sum(), said))))
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """The tree's probabilities (N, K)."""
        check_is_fitted(self, "tree_")
        found: Floats = self.tree_.predict(np.asarray(X, dtype=np.float64)[:, self.top_])
        return found

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Classes (N,), as positions."""
        best: NDArray[np.int64] = self.predict_proba(X).argmax(axis=1)
        return best

    def fidelity(self, X: ArrayLike) -> dict[str, float]:
        """``r2`` on the black box's probabilities, and ``agreement`` of classes, on rows that the tree was not grown on."""
        theirs, ours = self.black_box(np.asarray(X, dtype=np.float64)), self.predict_proba(X)
        whole = 1 - ((theirs - ours) ** 2).sum() / ((theirs - theirs.mean(axis=0)) ** 2).sum()
        return {"r2": float(whole), "agreement": _share(ours, theirs.argmax(axis=1))}

    def explain(self, x: ArrayLike) -> Rule:
        """The rule that fires for one row (D,)."""
        return self.rules_[self._leaf(x)]

    def counterfactual(self, x: ArrayLike, target: int | None = None) -> Floats:
        """The row (D,) changed as little as brings it into a leaf of another class (or of ``target``).

        Changes are measured in standard deviations of the columns and added up. It flips the tree by construction; whether it
        flips the black box is to be asked.

        Raises:
            ValueError: no leaf says another class.
        """
        row = np.asarray(x, dtype=np.float64).reshape(-1)
        said, best, cost = self.explain(row).said, None, np.inf
        for rule in self.rules_:
            if rule.said == said or (target is not None and rule.said != target):
                continue
            moved = row.copy()
            for one in rule.conditions:  # the tree compares in float32: go one step of it beyond the threshold
                if (float(np.float32(moved[one.feature])) > one.threshold) != one.above:
                    edge = np.float32(one.threshold)
                    inside = (float(edge) > one.threshold) == one.above
                    beyond = np.float32(np.inf if one.above else -np.inf)
                    moved[one.feature] = edge if inside else np.nextafter(edge, beyond)
            price = (np.abs(moved - row)[self.top_] / self.scale_).sum()
            if price < cost:
                best, cost = moved, price
        if best is None:
            raise ValueError("no leaf of the tree says another class")
        return best

    def picture(self, features: Sequence[str] = (), example: ArrayLike | None = None, levels: int = 5) -> str:
        """The tree as an SVG, with the way of one row marked."""
        tests = [
            Condition(int(self.top_[feature]), float(at), True).words(features)
            for feature, at in zip(self.cart_.feature, self.cart_.threshold, strict=True)
        ]
        leaves = [f"class {rule.said} ({rule.support:.0%})" for rule in self.rules_]
        leaf = None if example is None else self._leaf(example)
        return picture(self.cart_.children, tests, leaves, [] if leaf is None else self.cart_.nodes(leaf), leaf, levels)

    def _leaf(self, x: ArrayLike) -> int:
        check_is_fitted(self, "tree_")
        row = np.asarray(x, dtype=np.float64).reshape(1, -1)[:, self.top_]
        return int(np.flatnonzero(self.cart_.leaves == self.tree_.apply(row)[0])[0])


# ------------------------------------------------------------------------------------------------------ the black box


class AttentiveAutoencoder(nn.Module):
    """Columns weighed by self-attention, an embedding of them, a decoder that rebuilds the columns, and a classifier.

    Args:
        in_features: D.
        num_classes: K.
        embedding: width of the embedding.
        heads: of the attention; Omega = mean over heads of x * D softmax(W_h x + b_h), where D keeps the scale of x.

    Shape: (B, D) -> logits (B, K).
    """

    def __init__(self, in_features: int, num_classes: int, embedding: int = 32, heads: int = 1) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(in_features, in_features) for _ in range(heads))
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]
        self.encoder = nn.Sequential(nn.Linear(in_features, 128), nn.ReLU(), nn.Linear(128, embedding), nn.ReLU())
        self.decoder = nn.Linear(embedding, in_features)
        self.classifier = nn.Linear(embedding, num_classes)

    def attention(self, inputs: Tensor) -> Tensor:
        """How much each column is attended to: (B, D), rows that sum to 1."""
        return torch.stack([head(inputs.flatten(1)).softmax(dim=1) for head in self.heads]).mean(dim=0)

    def forward(self, inputs: Tensor) -> Tensor:
        columns = inputs.flatten(1)
        embedded = self.encoder(columns * columns.shape[1] * self.attention(columns))
        self.decoder(embedded)  # the loss looks at it
        logits: Tensor = self.classifier(embedded)
        return logits


class WithReconstruction(nn.Module):
    """Cross-entropy plus the mean squared error of the rebuilt columns.

    Args:
        weight: of the error.
    """

    watches = ("decoder",)

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor, layers: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits, labels) + self.weight * F.mse_loss(layers["decoder"], inputs.flatten(1))


def probabilities(model: nn.Module) -> BlackBox:
    """A classifier of tensors as a function of rows."""

    def black_box(rows: Floats) -> Floats:
        first = next(model.parameters())
        inputs = torch.as_tensor(rows, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            said: Floats = torch.cat([model(part) for part in inputs.split(2000)]).softmax(dim=1).double().cpu().numpy()
        return said

    return black_box


@probe
def surrogate(view: View, k: int = 10, depth: int = 4) -> Seen:
    """A shallow tree on the columns that matter most to the network: how faithful it is, its rules, and counterfactuals.

    Args:
        view: a classifier of a table, with a background.
        k: columns of the tree.
        depth: of the tree.
    """
    view.classifier()
    view.only("table")
    if len(view.background) < 2:
        raise ValueError("a tree needs rows to grow on, and there is no background")
    black_box = probabilities(view.model)
    found = BlackBoxSurrogate(black_box, min(k, view.inputs.shape[1]), depth, random_state=view.seed)
    found.fit(view.background.double().cpu().numpy())
    rows = view.inputs.double().cpu().numpy()
    fidelity = found.fidelity(rows)
    said = black_box(rows).argmax(axis=1)
    moved = np.array([found.counterfactual(row) if len({r.said for r in found.rules_}) > 1 else row for row in rows])
    flips = black_box(moved).argmax(axis=1) != said
    fires = [found.explain(row) for row in rows]
    return Seen(
        numbers={"share given the network's class": fidelity["agreement"], "R^2 of the probabilities": fidelity["r2"]},
        each={
            "support of its rule": torch.tensor([rule.support for rule in fires]),
            "confidence of its rule": torch.tensor([rule.confidence for rule in fires]),
            "counterfactual flips the network": torch.from_numpy(flips.astype(np.float64)),
        },
        attributions={"change to the nearest leaf of another class": torch.from_numpy(moved - rows).to(view.inputs.dtype)},
        inputs={"counterfactual": torch.from_numpy(moved).to(view.inputs.dtype)},
        notes=(f"the rule of the first example: {fires[0].words(view.features, view.classes)}",),
    )


# ------------------------------------------------------------------------------------------------------------ claims


def _rows(split: Split) -> Tensor:
    assert isinstance(split.inputs, Tensor)
    return split.inputs.flatten(1)


def _f_test(rows: Floats, classes: NDArray[Any]) -> Floats:
    """The F-statistic of each column; 0 for columns with one value."""
    varies = rows.std(axis=0) > 0
    found = np.zeros(rows.shape[1])
    found[varies] = np.nan_to_num(f_classif(rows[:, varies], classes)[0])
    return found


def _with_noise(data: Dataset, columns: int, seed: int) -> Dataset:
    """A table with so many columns of noise behind its own."""
    data, generator = data.normalise(), torch.Generator().manual_seed(seed)

    def wider(split: Split) -> Split:
        noise = torch.randn(len(split), columns, generator=generator)
        return Split(torch.cat([_rows(split), noise], dim=1), split.labels)

    parts = (wider(data.train), wider(data.valid), wider(data.test))
    return Dataset(f"{data.name}+{columns}", data.task, *parts, classes=data.classes, licence=data.licence, source=data.source)


def _black_box(lab: Lab, data: Dataset, rate: float = 2e-3) -> Recipe:
    width = _rows(data.train).shape[1]
    return Recipe(
        data,
        model=partial(AttentiveAutoencoder, width, data.num_classes),
        loss=per_example(WithReconstruction, weight=0.1),
        optimizer=partial(torch.optim.Adam, lr=rate),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=10, full=40),
        batch_size=64,
    )


@claim(
    "A tree of depth 8 on the 50 columns that matter most to a network gives test rows its class about as often as the same tree "
    "on all columns, at most 3 points less, and at least 3 points more often than on 50 random columns: of digits and of tumours "
    "among 500 columns of noise.",
    expect=[
        *(Higher(f"{data}, top 50", than=f"{data}, all columns", by=-0.03) for data in ("digits", "tumours")),
        *(Higher(f"{data}, top 50", than=f"{data}, random 50", by=0.03) for data in ("digits", "tumours")),
    ],
    scaled_down="784 and 530 columns instead of 50 to 20,000, and a dense embedding instead of a convolutional one.",
    unit="share of test rows given the network's class",
)
def few_columns_do(lab: Lab) -> Measured:
    digits = lab.data(lab.pick(smoke="digits", laptop="mnist5k", full="mnist")).holdout(0.1, seed=lab.seed)
    noise = lab.pick(smoke=20, laptop=500, full=2000)
    tumours = _with_noise(lab.data("breast-cancer"), noise, lab.seed).holdout(0.2, seed=lab.seed)
    arms: dict[str, float | Curve] = {}
    for name, data in {"digits": digits, "tumours": tumours}.items():
        model = lab.train(_black_box(lab, data)).model
        train, valid, test = (_rows(part).double().numpy() for part in (data.train, data.valid, data.test))
        assert isinstance(model, AttentiveAutoencoder)
        with torch.no_grad():
            attended = model.attention(_rows(data.valid).to(lab.device)).mean(dim=0).cpu().numpy()
        box = probabilities(model)
        some = lab.pick(smoke=30, laptop=100, full=1000)
        found = BlackBoxSurrogate(box, 50, 8, attention=attended, rows=some, random_state=lab.seed)
        found.fit(train, valid)
        said = box(train).argmax(axis=1)
        orders = {
            "top": np.argsort(-found.importance_, kind="stable"),
            "random": np.random.default_rng(lab.seed).permutation(train.shape[1]),
            "F-test": np.argsort(-_f_test(train, said), kind="stable"),
        }
        counts = lab.pick(smoke=(10, 50), laptop=(5, 10, 20, 50, 100), full=(5, 10, 20, 50, 100))
        for order, columns in orders.items():
            shares = [found.grow(train, columns[:k]).fidelity(test)["agreement"] for k in counts]
            arms[f"{name}, {order} 50"] = Curve(
                shares, x=counts, value=shares[counts.index(50)], x_name="columns", y_name="share given the network's class"
            )
        whole = found.grow(train, np.arange(train.shape[1])).fidelity(test)
        arms[f"{name}, all columns"] = whole["agreement"]
    return arms


@claim(
    "Among many columns of noise, a network that learns an embedding and rebuilds the columns is more accurate than gradient "
    "boosting on the columns: images of outdoor regions with 19 measurements and 200 columns of noise.",
    expect=Higher("embedding, 200", than="boosting, 200"),
    scaled_down="1,800 rows and 219 columns; scikit-learn's histogram boosting instead of XGBoost and TabNet. Two settings each.",
    unit="test accuracy",
    needs=("keel-segment",),
)
def embedding_beats_boosting(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for noise in lab.pick(smoke=(200,), laptop=(0, 200), full=(0, 200, 1000)):
        data = lab.data("keel-segment")
        data = data.subset(train=200, test=100) if lab.scale == "smoke" else data
        data = _with_noise(data, noise, lab.seed).holdout(0.2, seed=lab.seed)
        epochs = lab.pick(smoke=1, laptop=30, full=60)
        tried = [lab.train(_black_box(lab, data, rate).replace(epochs=epochs)) for rate in (1e-3, 4e-3)]
        arms[f"embedding, {noise}"] = max(tried, key=lambda one: float(one.accuracy("valid"))).accuracy()
        boosted = lab.remember(boost, data=data, rounds=lab.pick(smoke=5, laptop=100, full=200), seed=lab.seed)
        arms[f"boosting, {noise}"] = float(boosted["accuracy"])
    return arms


def boost(data: Dataset, rounds: int, seed: int) -> dict[str, Tensor]:
    """Test accuracy of gradient boosting with the learning rate, of two, that is better on the held-out rows."""
    train, valid, test = data.train, data.valid, data.test
    tried = [
        HistGradientBoostingClassifier(learning_rate=rate, max_iter=rounds, early_stopping=False, random_state=seed).fit(
            train.inputs, train.labels
        )
        for rate in (0.05, 0.2)
    ]
    best = max(tried, key=lambda one: float(one.score(valid.inputs, valid.labels)))
    return {"accuracy": torch.tensor(float(best.score(test.inputs, test.labels)))}
