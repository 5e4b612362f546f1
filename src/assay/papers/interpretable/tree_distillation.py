"""Distilling a network into one ordinary decision tree, by regression on its logits.

A tree grown on labels knows of an example that it is a 7. The network that learnt the same labels says how much like a 1 or a 9
it is as well, and that is more to choose a split by. So the tree is grown as a regression tree with a vector in each leaf: the
targets are the network's logits (which is what distillation at a high temperature matches), a split is chosen by how much it
reduces their variance, summed over the classes, a leaf holds the mean of its targets, and the largest entry is the class that is
said. Grown on labels as 0 and 1 this is the classification tree with Gini's criterion: only the targets differ.

What is left is a tree of single comparisons, as everybody knows them; more rows can be had for nothing by letting the network
label them.

Source: Liu, Wang and Matwin, "Improving the Interpretability of Deep Neural Networks with Knowledge Distillation", ICDM Workshops
2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from assay.nn import mlp
from assay.paper import Cost, Curve, Higher, claim
from assay.recipe import Recipe, probe
from assay.recipes import lenet_on
from assay.train.augment import warp
from assay.train.schedules import cosine
from assay.trees import Split, cart, picture, shortest
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """Why a tree says what it says: the comparisons on the way, the same without those that others imply, the leaf's vector."""

    way: tuple[Split, ...]
    rule: tuple[Split, ...]
    leaf: int
    values: Floats  # (K,)
    said: Any

    def words(self, features: Sequence[str] = (), classes: Sequence[str] = ()) -> str:
        """``alcohol > 12.8 and ash <= 2.1: barolo``; without ``classes`` the label that was learnt."""
        said = classes[int(self.values.argmax())] if len(classes) else self.said
        return f"{' and '.join(split.words(features) for split in self.rule) or 'always'}: {said}"


class DistilledTree(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A decision tree that is taught by scores for the classes.

    Args:
        max_depth: comparisons on the way to a leaf, at most.
        min_samples_leaf: examples that a leaf must have.
        random_state: decides between equally good splits.

    Attributes:
        classes_: (K,) labels; 0 to K - 1 after :meth:`fit` on scores.
        tree_: the scikit-learn ``DecisionTreeRegressor``.
    """

    def __init__(self, max_depth: int | None = 8, min_samples_leaf: int = 1, random_state: int | None = None) -> None:
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> DistilledTree:
        """Grow the tree.

        Args:
            X: (N, D) examples. Labels are not needed, so that any inputs will do that the teacher can look at.
            y: (N, K) scores of the teacher, logits (the paper) or probabilities; or (N,) labels, which grow the tree of Gini.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True)
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] > 1:
            self.classes_ = np.arange(y.shape[1])
            # A number added to all logits of a row changes nothing of what the network says, but would be split by.
            targets = y - y.mean(axis=1, keepdims=True)
        else:
            y = column_or_1d(y, warn=True)
            check_classification_targets(y)
            self.classes_, codes = np.unique(y, return_inverse=True)
            targets = np.eye(max(len(self.classes_), 2))[codes]
        tree = DecisionTreeRegressor(
            max_depth=self.max_depth, min_samples_leaf=self.min_samples_leaf, random_state=self.random_state
        )
        self.tree_ = tree.fit(X, targets)
        return self

    def values(self, X: ArrayLike, depth: int | None = None) -> Floats:
        """The vectors (N, K) of the leaves; with ``depth``, of the tree that was stopped there."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        return node_values(self.tree_)[at_depth(self.tree_, self.tree_.apply(rows), depth)]

    def predict(self, X: ArrayLike, depth: int | None = None) -> NDArray[Any]:
        """Labels (N,)."""
        check_is_fitted(self)
        labels: NDArray[Any] = self.classes_[self.values(X, depth).argmax(axis=1).clip(max=len(self.classes_) - 1)]
        return labels

    def credit(self, X: ArrayLike, target: ArrayLike) -> Floats:
        """What each feature did for a class: the change of its value at each split goes to the feature that was compared.

        Args:
            X: (N, D).
            target: (N,) positions in ``classes_``.

        Returns:
            (N, D). Rows sum to the value of the leaf less that of the root.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        inner = self.tree_.tree_
        above = parents(inner)
        gained = node_values(self.tree_) - node_values(self.tree_)[above]  # (nodes, K), 0 for the root
        passed = self.tree_.decision_path(rows).tocoo()
        credit = np.zeros(rows.shape)
        feature = inner.feature[above[passed.col]]
        moved = np.where(passed.col > 0, gained[passed.col, np.asarray(target)[passed.row]], 0.0)
        np.add.at(credit, (passed.row, np.where(passed.col > 0, feature, 0)), moved)
        return credit

    def explain(self, x: ArrayLike) -> Explanation:
        """The comparisons that lead one example (D,) to its leaf."""
        row = np.asarray(x, dtype=np.float32).reshape(1, -1)
        values = self.values(row)[0]
        found = cart(self.tree_.tree_)
        leaf = int(np.flatnonzero(found.leaves == self.tree_.apply(row)[0])[0])
        way = found.ways()[leaf]
        return Explanation(tuple(way), tuple(shortest(way)), leaf, values, self.predict(row)[0])

    def picture(self, features: Sequence[str] = (), example: ArrayLike | None = None, levels: int = 5) -> str:
        """The tree as an SVG, with the way of one example marked."""
        check_is_fitted(self)
        found = cart(self.tree_.tree_)
        tests = [
            Split(int(feature), float(at), True).words(features)
            for feature, at in zip(found.feature, found.threshold, strict=True)
        ]
        best = node_values(self.tree_)[found.leaves].argmax(axis=1).clip(max=len(self.classes_) - 1)
        leaves = [str(self.classes_[one]) for one in best]
        leaf = None if example is None else self.explain(example).leaf
        return picture(found.children, tests, leaves, [] if leaf is None else found.nodes(leaf), leaf, levels)


def node_values(tree: DecisionTreeRegressor | DecisionTreeClassifier) -> Floats:
    """What a tree would say at each of its nodes: (nodes, K), shares of the classes or means of the targets."""
    values: Floats = tree.tree_.value.reshape(tree.tree_.node_count, -1)
    return values


def parents(tree: Any) -> NDArray[np.int64]:
    """The node above each node (nodes,); the root is above itself."""
    above = np.zeros(tree.node_count, dtype=np.int64)
    inner = np.flatnonzero(tree.children_left >= 0)
    above[tree.children_left[inner]] = above[tree.children_right[inner]] = inner
    return above


def at_depth(
    tree: DecisionTreeRegressor | DecisionTreeClassifier, leaves: NDArray[np.int64], depth: int | None
) -> NDArray[np.int64]:
    """The nodes (N,) at which examples would end that come to these leaves, had the tree been stopped at ``depth``.

    Trees are grown greedily from the root down, so the first levels of a deep tree are the shallow tree (another one of equally
    good splits may be drawn).
    """
    if depth is None:
        return leaves
    above = parents(tree.tree_)
    level = np.zeros(len(above), dtype=np.int64)
    for node in range(1, len(above)):  # a node's number is larger than its parent's
        level[node] = level[above[node]] + 1
    nodes = leaves
    while (deep := level[nodes] > depth).any():
        nodes = np.where(deep, above[nodes], nodes)
    return nodes


@probe
def as_a_tree(view: View, depth: int = 6) -> Seen:
    """One decision tree in the network's place: how often it says the same, and what each input did for the class.

    Args:
        view: any classifier of images, series or tables, and a background, which the network labels for the tree.
        depth: comparisons on the way to a leaf, at most.
    """
    view.classifier()
    view.only("images", "audio", "series", "table")
    usual = _flat(view.background)
    if len(usual) < 2:
        raise ValueError("a tree needs examples to grow on, and there is no background")
    scores = _scores(view.model, view.background).double().numpy()
    shown, said = _flat(view.inputs), _scores(view.model, view.inputs).argmax(dim=1).numpy()
    tree = DistilledTree(depth, random_state=view.seed).fit(usual, scores)
    same = tree.predict(shown) == said
    credit = tree.credit(shown, view.target.cpu().numpy()).reshape(view.inputs.shape)
    rules = tree.explain(shown[0])
    return Seen(
        numbers={
            "share of these examples of which the tree says the network's class": float(same.mean()),
            "share of the examples that it was grown on": float((tree.predict(usual) == scores.argmax(axis=1)).mean()),
            "leaves": float(tree.tree_.get_n_leaves()),
        },
        each={"tree says the network's class": torch.from_numpy(same.astype(np.float64))},
        attributions={"credit along the tree's way": torch.from_numpy(credit).to(view.inputs.dtype)},
        notes=(f"the tree's rule for the first example: {rules.words(view.features, view.classes)}",),
    )


def _flat(inputs: Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = inputs.detach().flatten(1).float().cpu().numpy()
    return rows


@torch.no_grad()
def _scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits (N, K) on the CPU."""
    device = next((parameter.device for parameter in model.parameters()), inputs.device)
    return torch.cat([model(part.to(device)).float().cpu() for part in inputs.split(500)])


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to a tenth and moved by up to two pixels of 28: (B, C, H, W)."""
    draw = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle, scale = draw[0] * math.radians(10), 1 + 0.1 * draw[1]
    moved = 2 * (2 / 28) * draw[2:]
    rows = [torch.stack([scale * angle.cos(), -scale * angle.sin(), moved[0]], dim=1)]
    rows.append(torch.stack([scale * angle.sin(), scale * angle.cos(), moved[1]], dim=1))
    return warp(images, torch.stack(rows, dim=1).to(images))


# ------------------------------------------------------------------------------------------------------------ claims


def grow(inputs: Tensor, targets: Tensor, tests: Tensor, depth: int, seed: int) -> dict[str, Tensor]:
    """What a tree on these targets says of test inputs when it is stopped at depth 1 to ``depth``: ``said`` (depth, N).

    Labels (N,) int64 grow a classification tree with Gini's criterion.
    """
    rows, goal = inputs.flatten(1).numpy(), targets.numpy()
    if goal.ndim == 1:
        tree = DecisionTreeClassifier(max_depth=depth, random_state=seed).fit(rows, goal)
    else:
        tree = DistilledTree(depth, random_state=seed).fit(rows, goal).tree_
    leaves, best = tree.apply(tests.flatten(1).numpy()), node_values(tree).argmax(axis=1)
    said = np.stack([best[at_depth(tree, leaves, one)] for one in range(1, depth + 1)])
    return {"said": torch.from_numpy(said), "leaves": torch.tensor(tree.get_n_leaves())}


def _digits(lab: Lab) -> Dataset:
    return lab.data(lab.pick(smoke="digits", laptop="mnist5k", full="mnist"))


def _letters(lab: Lab) -> Dataset:
    data = lab.data("keel-letter").normalise()
    return data.subset(train=1000, test=300) if lab.scale == "smoke" else data


def _teacher_of_digits(lab: Lab, data: Dataset, jittered: bool = False) -> Recipe:
    recipe = lenet_on(data, epochs=lab.pick(smoke=1, laptop=8, full=12))
    return recipe.replace(augment=jitter) if jittered else recipe


def _teacher_of_letters(lab: Lab, data: Dataset) -> Recipe:
    return Recipe(
        data,
        model=partial(mlp, data.input_shape[0], data.num_classes, (128, 128)),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=20, full=60),
    )


def _said(lab: Lab, recipe: Recipe, deepest: int, copies: int = 0) -> tuple[dict[str, Tensor], dict[str, float], Tensor]:
    """What the trees say of the test split at every depth, what they took, and what their teacher says.

    Args:
        lab: which seed and scale.
        recipe: of the teacher.
        deepest: the largest depth.
        copies: jittered copies of every training image, beside the image itself; trees on labels get them too.
    """
    trained, data = lab.train(recipe), recipe.data
    inputs, tests = data.train.inputs, data.test.inputs
    assert isinstance(inputs, Tensor)
    assert isinstance(tests, Tensor)
    generator = lab.generator()
    inputs = torch.cat([inputs, *(jitter(inputs, generator) for _ in range(copies))])
    scores = _scores(trained.model, inputs)
    targets = {"labels": data.train.labels.repeat(copies + 1), "probabilities": scores.softmax(dim=1), "logits": scores}
    said, seconds = {}, {}
    for arm, goal in targets.items():
        grown = lab.remember(grow, inputs=inputs, targets=goal, tests=tests, depth=deepest, seed=lab.seed)
        said[arm] = grown["said"]
        seconds[arm] = grown["seconds"].item() + (0.0 if arm == "labels" else trained.seconds)
    return said, seconds, _scores(trained.model, tests).argmax(dim=1)


def _curves(
    said: dict[str, Tensor], seconds: dict[str, float], right: Tensor, first: int, last: int, name: str
) -> dict[str, float | Curve]:
    """Share of ``right`` by depth for each tree; its mean from depth ``first`` to ``last`` counts."""
    arms: dict[str, float | Curve] = {}
    for arm, found in said.items():
        share = (found == right).double().mean(dim=1)
        value = share[first - 1 : last].mean().item()
        depths = range(1, len(share) + 1)
        arms[arm] = Curve(share.tolist(), x=depths, value=value, cost=Cost(seconds[arm]), x_name="depth", y_name=name)
    return arms


_DIGITS = "MNIST 5k (4,000 training digits) and a LeNet of 97 % as the teacher instead of 60,000 and one of about 99 %."
_BY = "The paper reports one to five points."


@claim(
    "At equal depth a tree grown on a network's logits for the training digits is more accurate than the classification tree "
    "grown on their labels (mean over depths 4 to 12).",
    expect=Higher("logits", than="labels"),
    scaled_down=f"{_DIGITS} {_BY}",
    unit="test accuracy, mean over depths 4 to 12",
)
def beats_the_tree_of_labels(lab: Lab) -> Measured:
    data = _digits(lab)
    said, seconds, teacher = _said(lab, _teacher_of_digits(lab, data), lab.pick(smoke=6, laptop=12, full=20))
    right = data.test.labels
    return {**_curves(said, seconds, right, 4, 12, "test accuracy"), "teacher": (teacher == right).double().mean().item()}


@claim(
    "On a table too: at equal depth a tree grown on a network's logits for 16,000 printed letters is more accurate than the "
    "classification tree grown on their labels (mean over depths 6 to 14).",
    expect=Higher("logits", than="labels"),
    scaled_down=f"16 measurements and 26 classes in the place of the positions of Connect-4. {_BY}",
    unit="test accuracy, mean over depths 6 to 14",
    needs=("keel-letter",),
)
def beats_it_on_a_table(lab: Lab) -> Measured:
    data = _letters(lab)
    said, seconds, teacher = _said(lab, _teacher_of_letters(lab, data), lab.pick(smoke=8, laptop=14, full=20))
    right = data.test.labels
    return {**_curves(said, seconds, right, 6, 14, "test accuracy"), "teacher": (teacher == right).double().mean().item()}


@claim(
    "At equal depth the tree grown on logits says the network's class of test inputs more often than the tree grown on labels, "
    "of digits and of letters.",
    expect=(Higher("digits, logits", than="digits, labels"), Higher("letters, logits", than="letters, labels")),
    scaled_down=_DIGITS,
    unit="share of test inputs given the network's class, mean over depths",
    needs=("keel-letter",),
)
def is_more_faithful(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, recipe, deepest, first, last in (
        ("digits", _teacher_of_digits(lab, _digits(lab)), lab.pick(smoke=6, laptop=12, full=20), 4, 12),
        ("letters", _teacher_of_letters(lab, _letters(lab)), lab.pick(smoke=8, laptop=14, full=20), 6, 14),
    ):
        said, seconds, teacher = _said(lab, recipe, deepest)
        curves = _curves(said, seconds, teacher, first, last, "share given the network's class")
        arms |= {f"{name}, {arm}": curve for arm, curve in curves.items()}
    return arms


@claim(
    "Where the network labels four jittered copies of every digit besides, the tree grown on its logits is more accurate than "
    "the tree grown on the labels of the same digits and copies (mean over depths 8 to 12).",
    expect=Higher("logits", than="labels"),
    scaled_down=f"{_DIGITS} The paper has no copies.",
    unit="test accuracy, mean over depths 8 to 12",
)
def with_more_rows(lab: Lab) -> Measured:
    data = _digits(lab)
    recipe = _teacher_of_digits(lab, data, jittered=True)
    said, seconds, teacher = _said(lab, recipe, lab.pick(smoke=8, laptop=12, full=20), copies=lab.pick(smoke=1, laptop=4, full=1))
    right = data.test.labels
    return {**_curves(said, seconds, right, 8, 12, "test accuracy"), "teacher": (teacher == right).double().mean().item()}
