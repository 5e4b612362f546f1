"""Soft decision tree: a classifier that can be read, taught by one that cannot.

A network's answer is spread over all its layers; a tree's answer is a short list of decisions. Here every inner node
is one linear filter whose sigmoid says how probably an example goes right, and every leaf is a fixed distribution over
the classes that looks at nothing. All is differentiable, so that the tree is trained by gradient descent, and it can be
trained on the soft outputs of a network, which say more about an example than its label. Only the likeliest leaf answers,
and the filters on the way to it are the explanation. A penalty asks every node to use both of its children alike, since
a node that sends everything one way early on gets no gradient to recover.

Source: Frosst and Hinton, "Distilling a Neural Network Into a Soft Decision Tree", 2017. Equation numbers are the
paper's. Its loss (eq. 3) takes the logarithm of a negative number as printed; the cross-entropy of the leaves, averaged
over the leaves, is meant and used here.
"""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from assay.drawing import short
from assay.paper import Cost, Curve, Higher, Reported, Score, claim
from assay.recipes import lenet_on

if TYPE_CHECKING:
    from assay.data import Dataset, Split
    from assay.lab import Lab
    from assay.paper import Measured

Mode = Literal["path", "mixture"]


class SoftTree(nn.Module):
    """A complete binary tree with a linear filter at every inner node and a class distribution at every leaf.

    Nodes are numbered breadth-first: the children of node i are 2i + 1 (left) and 2i + 2 (right), and the inner nodes
    come before the leaves. ``forward`` returns the log-probabilities of the mixture of all leaves, so that the tree can
    stand wherever a network with ``num_classes`` outputs can.

    Args:
        in_features: numbers in one example; inputs of any shape are flattened.
        num_classes: classes K.
        depth: decisions on the way to a leaf; 2^depth leaves. The paper uses 8 for MNIST.
        beta: inverse temperature of the decisions; towards infinity they become hard.

    Shape: (B, ...) -> (B, K).
    """

    def __init__(self, in_features: int, num_classes: int, depth: int = 8, beta: float = 1.0) -> None:
        super().__init__()
        self.depth, self.beta, self.inner = depth, beta, 2**depth - 1
        self.filters = nn.Linear(in_features, self.inner)
        self.leaves = nn.Parameter(torch.zeros(2**depth, num_classes))  # phi, the logits of the leaves

    def visits(self, inputs: Tensor) -> Tensor:
        """Probability that an example comes by a node: (B, ...) -> (B, 2^(depth+1) - 1), breadth-first.

        Every level sums to 1; the last 2^depth columns are the leaves' path probabilities P^l(x).
        """
        weight, bias = self.filters.weight, self.filters.bias
        # Nodes come first, (nodes, B), so that a level is one block of memory.
        right = torch.sigmoid(self.beta * torch.addmm(bias.unsqueeze(1), weight, inputs.flatten(1).t()))  # eq. 1
        levels = [right.new_ones(1, right.shape[1])]
        for depth in range(self.depth):
            here = levels[-1]
            to_right = here * right[2**depth - 1 : 2 ** (depth + 1) - 1]
            levels.append(torch.stack((here - to_right, to_right), dim=1).flatten(0, 1))
        return torch.cat(levels).t()

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.visits(inputs)[:, self.inner :] @ self.leaves.softmax(dim=1)).log()

    def loss(self, visits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every leaf with the target, weighted by the probability of the leaf (eq. 3), mean over the batch.

        Args:
            visits: (B, 2^(depth+1) - 1), from :meth:`visits`.
            targets: (B, K) distributions: a teacher's probabilities, or one-hot labels.
        """
        joint = visits[:, self.inner :].t() @ targets / len(targets)  # (leaves, K)
        return -(joint * self.leaves.log_softmax(dim=1)).sum()


class BalancePenalty(nn.Module):
    """Asks every inner node to send half of its examples each way (eqs. 4 and 5).

    alpha_i is the share of node i's visits that go right, and the penalty the cross-entropy of (1 - alpha_i, alpha_i)
    with (1/2, 1/2), weighted by ``weight * decay**depth``. A batch brings few visits to a deep node. Balance within
    the batch would mean to be undecided about each of them, so alpha_i is taken from running means whose window doubles
    with depth: the batch alone at the root, 2^d batches at depth d. The gradient passes through the batch's share in
    these means; undamped, so late a feedback makes deep nodes swing from side to side.

    Args:
        depth: of the tree.
        weight: lambda at the root; the paper uses 0.1.
        decay: factor of lambda from one level to the next; the paper uses 1/2.
        window: factor of the window from one level to the next; the paper uses 2, and 1 takes every batch alone.

    Shape: (B, 2^(depth+1) - 1) visits -> scalar.
    """

    weights: Tensor
    share: Tensor
    running: Tensor
    batches: Tensor

    def __init__(self, depth: int, weight: float = 0.1, decay: float = 0.5, window: float = 2.0) -> None:
        super().__init__()
        level = torch.cat([torch.full((2**d,), float(d)) for d in range(depth)])  # depth of every inner node
        self.register_buffer("weights", weight * decay**level)
        self.register_buffer("share", window**-level)  # of the newest batch in the running mean
        self.register_buffer("running", torch.zeros(2, len(level)))  # mean visits of every node's left and right child
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, visits: Tensor) -> Tensor:
        children = visits.mean(dim=0)[1:].view(-1, 2).t()  # (2, inner)
        self.batches += 1
        share = torch.maximum(self.share, 1 / self.batches)  # a plain mean until the window is full
        sides = self.running.lerp(children, share)
        self.running = sides.detach()
        sides = sides + 1e-12  # a side that nobody takes
        log_alpha = sides.log() - sides.sum(dim=0).log()  # (2, inner): log(1 - alpha), log(alpha)
        return -(self.weights * log_alpha.mean(dim=0)).sum()


class Decision(NamedTuple):
    """One step on the way to a leaf: the node's number, its filter (D,), the probability of going right, the way taken."""

    node: int
    filter: NDArray[np.float32]
    right: float
    taken: Literal["left", "right"]


class SoftDecisionTree(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A soft decision tree as a scikit-learn classifier.

    Args:
        depth: decisions on the way to a leaf; the paper uses 8.
        penalty: lambda, the weight of the balance penalty at the root; the paper uses 0.1.
        penalty_decay: factor of the penalty from one level to the next; the paper uses 1/2.
        penalty_window: factor of the penalty's window from one level to the next; the paper uses 2.
        beta: inverse temperature of the decisions. It only sets how fast they harden, since the filters can grow.
        learning_rate: of Adam.
        epochs: passes over the training set.
        batch_size: examples in one step.
        random_state: seed of the initial filters and of the order of the examples.

    Attributes:
        classes_: (K,) labels; 0 to K - 1 after training on soft targets.
        tree_: the :class:`SoftTree`.
        leaves_: (2^depth, K) class distributions of the leaves.
        usage_: (2^(depth+1) - 1,) mean probability that a training example comes by a node.
        loss_curve_: mean loss of every epoch, penalty left out.
    """

    def __init__(
        self,
        depth: int = 8,
        penalty: float = 0.1,
        penalty_decay: float = 0.5,
        penalty_window: float = 2.0,
        beta: float = 1.0,
        learning_rate: float = 0.005,
        epochs: int = 40,
        batch_size: int = 128,
        random_state: int | None = None,
    ) -> None:
        self.depth = depth
        self.penalty = penalty
        self.penalty_decay = penalty_decay
        self.penalty_window = penalty_window
        self.beta = beta
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> SoftDecisionTree:
        """Grow the tree.

        Args:
            X: (N, D) examples, best in a range of about one.
            y: (N,) labels, or (N, K) distributions over the classes, such as a teacher's probabilities.

        Raises:
            ValueError: the rows of soft targets are no distributions.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True)
        targets = torch.as_tensor(self._targets(np.asarray(y)))
        inputs = torch.as_tensor(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tree = SoftTree(inputs.shape[1], targets.shape[1], self.depth, self.beta)
        balance = BalancePenalty(self.depth, self.penalty, self.penalty_decay, self.penalty_window)
        optimizer = torch.optim.Adam(tree.parameters(), lr=self.learning_rate, fused=True)
        self.loss_curve_ = []
        for _ in range(self.epochs):
            total = torch.zeros(())
            for index in torch.randperm(len(inputs), generator=generator).split(self.batch_size):
                visits = tree.visits(inputs[index])
                loss = tree.loss(visits, targets[index])
                optimizer.zero_grad()
                (loss + balance(visits)).backward()
                optimizer.step()
                total += loss.detach() * len(index)
            self.loss_curve_.append(total.item() / len(inputs))
        self.tree_ = tree.eval()
        self.leaves_ = tree.leaves.detach().softmax(dim=1).numpy()
        self.usage_ = self._visits(X).mean(axis=0)
        return self

    def predict_proba(self, X: ArrayLike, mode: Mode = "path") -> NDArray[np.float32]:
        """Class distribution (N, K) of the likeliest leaf (``"path"``, which one can explain) or the mean over all
        leaves by their probability (``"mixture"``, mostly a little more accurate)."""
        if mode not in ("path", "mixture"):
            raise ValueError(f"mode must be 'path' or 'mixture', not {mode!r}")
        visits = self._visits(X)[:, 2**self.depth - 1 :]
        proba: NDArray[np.float32] = visits @ self.leaves_ if mode == "mixture" else self.leaves_[visits.argmax(axis=1)]
        return proba

    def predict(self, X: ArrayLike, mode: Mode = "path") -> NDArray[Any]:
        """Labels (N,), by the likeliest leaf or by the mixture of all."""
        best = self.predict_proba(X, mode).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def path(self, x: ArrayLike) -> list[Decision]:
        """The decisions that lead one example (D,) to its likeliest leaf, from the root down."""
        visits = self._visits(np.asarray(x).reshape(1, -1))[0]
        decisions: list[Decision] = []
        child = 2**self.depth - 1 + int(visits[2**self.depth - 1 :].argmax())
        while child > 0:
            node = (child - 1) // 2
            weight = self.tree_.filters.weight[node].detach().numpy()
            right = float(visits[2 * node + 2] / visits[node])
            decisions.append(Decision(node, weight, right, "right" if child % 2 == 0 else "left"))
            child = node
        return decisions[::-1]

    def picture(self, shape: tuple[int, int] | None = None, levels: int = 4, example: ArrayLike | None = None) -> str:
        """The top of the tree as an SVG: filters (bright pixels vote for right), and the classes that arrive below them.

        Args:
            shape: height and width of an image; ``None`` draws a filter as a strip.
            levels: decisions to draw from the root down.
            example: (D,) whose path is marked.
        """
        levels = min(levels, self.depth)
        rows, cell, height = shape or (1, self.n_features_in_), 60, 88
        mass = self.usage_[2**self.depth - 1 :, None] * self.leaves_  # (leaves, K): who ends where
        marked = {0}
        for step in [] if example is None else self.path(example):
            marked.add(2 * step.node + (2 if step.taken == "right" else 1))
        lines, boxes = [], []
        for node in range(2 ** (levels + 1) - 1):
            level = (node + 1).bit_length() - 1
            place = node + 1 - 2**level
            x, y = (place + 0.5) * cell * 2 ** (levels - level), 30 + height * level
            if node:
                above, colour = (place // 2 + 0.5) * cell * 2 ** (levels - level + 1), "#d33" if node in marked else "#999"
                width = 0.5 + 8 * self.usage_[node]
                lines.append(f'<path d="M{above} {y - height + 24}L{x} {y - 24}" stroke="{colour}" stroke-width="{width:.1f}"/>')
            if level < levels:
                weight = self.tree_.filters.weight[node].detach().numpy().reshape(rows)
                grey = (127.5 + 127.5 * weight / max(np.abs(weight).max(), 1e-12)).astype(np.uint8)
                boxes.append(
                    f'<image x="{x - 24}" y="{y - 24}" width="48" height="48" preserveAspectRatio="none" '
                    f'style="image-rendering:pixelated" href="{_png(grey)}"><title>node {node}, reached by '
                    f"{self.usage_[node]:.1%}</title></image>"
                )
            else:
                below = mass.reshape(2**levels, -1, mass.shape[1])[place].sum(axis=0)
                below /= max(below.sum(), 1e-12)
                likely = [f"{self.classes_[k]}" for k in np.argsort(-below)[:3] if below[k] >= 0.15]
                # One below the other: side by side, names of more than a few letters run into the next leaf's.
                rows_of_names = "".join(
                    f'<tspan x="{x}" dy="{15 if row else 0}">{escape(short(name, 7))}</tspan>' for row, name in enumerate(likely)
                )
                boxes.append(f'<text x="{x}" y="{y - 8}"><title>{escape(", ".join(likely))}</title>{rows_of_names}</text>')
        size = f'width="{cell * 2**levels}" height="{30 + height * levels + 40}"'
        style = 'font-family="sans-serif" font-size="14" text-anchor="middle"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(lines + boxes)}</svg>'

    def _visits(self, X: ArrayLike) -> NDArray[np.float32]:
        check_is_fitted(self)
        inputs = torch.as_tensor(validate_data(self, X, dtype=np.float32, reset=False))
        with torch.inference_mode():
            visits: NDArray[np.float32] = torch.cat([self.tree_.visits(part) for part in inputs.split(8192)]).numpy()
        return visits

    def _targets(self, y: NDArray[Any]) -> NDArray[np.float32]:
        """(N, K) distributions; sets ``classes_``."""
        if y.ndim == 2 and y.shape[1] > 1:
            if (y < 0).any() or not np.allclose(y.sum(axis=1), 1, atol=1e-3):
                raise ValueError("soft targets must be distributions: rows of numbers from 0 on that sum to 1")
            self.classes_ = np.arange(y.shape[1])
            return y.astype(np.float32)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        return np.eye(len(self.classes_), dtype=np.float32)[codes]


def _png(grey: NDArray[np.uint8]) -> str:
    """A grey image (H, W) as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in grey)  # every row says first that it is not filtered
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def smooth_labels(labels: Tensor, num_classes: int, entropy: float) -> Tensor:
    """Labels (N,) as distributions (N, K) that are smoothed evenly until each has the given entropy in nats."""

    def excess(rest: float) -> float:
        distribution = np.full(num_classes, rest / num_classes)
        distribution[0] += 1 - rest
        return float(-(distribution * np.log(distribution)).sum()) - entropy

    rest = float(brentq(excess, 1e-12, 1.0))
    return (1 - rest) * F.one_hot(labels, num_classes).float() + rest / num_classes


# ---------------------------------------------------------------------------------------------------- claims


def grow(data: Dataset, targets: Tensor, seed: int, **settings: Any) -> dict[str, Tensor]:
    """A tree grown on the training split with these targets, and what it does on the test split."""
    tree = SoftDecisionTree(random_state=seed, **settings)
    tree.fit(_images(data.train).flatten(1).numpy(), targets.numpy())
    images, labels = _images(data.test).flatten(1).numpy(), data.test.labels.numpy()
    return {
        "accuracy": torch.tensor(tree.score(images, labels)),
        "usage": torch.tensor(tree._visits(images)[:, 2**tree.depth - 1 :].mean(axis=0)),
        "parameters": torch.tensor(sum(p.numel() for p in tree.tree_.parameters())),
    }


def _images(split: Split) -> Tensor:
    assert isinstance(split.inputs, Tensor)
    return split.inputs


def _digits(lab: Lab) -> Dataset:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    return data.subset(train=500, test=200) if lab.scale == "smoke" else data


def _teacher(lab: Lab, data: Dataset, images: Tensor, times: int = 1) -> tuple[Score, Tensor]:
    """A LeNet trained on ``data``: its test accuracy, and what it says about images (N, C, H, W), probabilities (N, K)."""
    trained = lab.train(lenet_on(data, epochs=times * lab.pick(smoke=1, laptop=8, full=8)))
    with torch.inference_mode():
        said = [trained.model(part.to(lab.device)).softmax(dim=1).cpu() for part in images.split(1000)]
    return trained.accuracy(), torch.cat(said)


def _with_teacher(tree: Score, teacher: Score) -> Score:
    """A distilled tree costs its teacher's training too."""
    seconds = (tree.cost.seconds or 0.0) + (teacher.cost.seconds or 0.0)
    return Score(tree, Cost(seconds, tree.cost.parameters))


def _tree(lab: Lab, data: Dataset, targets: Tensor, times: int = 1, **changes: Any) -> tuple[Score, Tensor]:
    """Test accuracy of a tree, and how the test digits spread over its leaves (leaves,)."""
    settings = {"depth": lab.pick(smoke=4, laptop=8, full=8), "epochs": times * lab.pick(smoke=2, laptop=40, full=40)}
    grown = lab.remember(grow, data=data, targets=targets, seed=lab.seed, **settings, **changes)
    cost = Cost(seconds=grown["seconds"].item(), parameters=int(grown["parameters"]))
    return Score(grown["accuracy"].item(), cost), grown["usage"]


def _one_hot(data: Dataset) -> Tensor:
    return F.one_hot(data.train.labels, data.num_classes).float()


_SMALLER = "MNIST 5k (4,000 training digits) instead of 60,000, and a LeNet of 97 % as the teacher instead of one of 99.2 %."
_TABLE = Reported("MNIST, depth 8: test accuracy", {"labels": 0.9445, "soft targets": 0.9676, "teacher": 0.9921}, "Section 4")


@claim(
    "A soft decision tree trained on a network's soft outputs for the training digits is more accurate than the same tree "
    "trained on their labels, whether or not these are smoothed to the same entropy.",
    expect=[Higher("soft targets", than="labels"), Higher("soft targets", than="smoothed labels")],
    reported=_TABLE,
    scaled_down=_SMALLER,
    unit="test accuracy",
)
def soft_targets_help(lab: Lab) -> Measured:
    data = _digits(lab)
    teacher, soft = _teacher(lab, data, _images(data.train))
    entropy = torch.special.entr(soft).sum(dim=1).mean().item()
    smoothed = smooth_labels(data.train.labels, data.num_classes, entropy)
    return {
        "labels": _tree(lab, data, _one_hot(data))[0],
        "smoothed labels": _tree(lab, data, smoothed)[0],
        "soft targets": _with_teacher(_tree(lab, data, soft)[0], teacher),
        "teacher": teacher,
    }


@claim(
    "Where a quarter of the digits is labelled, a tree trained on what a network that has learned this quarter says about "
    "all digits is more accurate than a tree trained on the quarter itself.",
    expect=Higher("network's soft outputs for all", than="labels of a quarter"),
    scaled_down=f"The paper proposes this without a number. {_SMALLER}",
    unit="test accuracy",
)
def network_labels_the_rest(lab: Lab) -> Measured:
    data = _digits(lab)
    quarter = data.subset(train=len(data.train) // 4, seed=lab.seed)
    teacher, soft = _teacher(lab, quarter, _images(data.train), times=4)  # as many steps as on all digits
    return {
        "labels of a quarter": _tree(lab, quarter, _one_hot(quarter), times=4)[0],
        "network's classes for all": _with_teacher(
            _tree(lab, data, F.one_hot(soft.argmax(dim=1), data.num_classes).float())[0], teacher
        ),
        "network's soft outputs for all": _with_teacher(_tree(lab, data, soft)[0], teacher),
        "labels of all": _tree(lab, data, _one_hot(data))[0],
    }


#: Arm -> what differs from the paper's penalty.
_PENALTIES: dict[str, dict[str, Any]] = {
    "balance penalty": {},
    "no penalty": {"penalty": 0.0},
    "same penalty at every depth": {"penalty_decay": 1.0},
    "penalty within each batch": {"penalty_window": 1.0},
}


@claim(
    "With the balance penalty, a tree trained on labels is more accurate than without it.",
    expect=Higher("balance penalty", than="no penalty"),
    scaled_down=_SMALLER,
    unit="test accuracy",
)
def balance_penalty_needed(lab: Lab) -> Measured:
    data = _digits(lab)
    return {arm: _tree(lab, data, _one_hot(data), **changes)[0] for arm, changes in _PENALTIES.items()}


@claim(
    "Without the balance penalty a tree gets stuck using few of its leaves: with it, the effective number of leaves, the "
    "exponential of the entropy of their use, is at least twice as large.",
    expect=Higher("balance penalty", than="no penalty", times=2),
    scaled_down=_SMALLER,
    unit="effective number of leaves",
)
def balance_penalty_spreads(lab: Lab) -> Measured:
    data, arms = _digits(lab), {}
    for arm, changes in _PENALTIES.items():
        score, usage = _tree(lab, data, _one_hot(data), **changes)
        number = torch.special.entr(usage.double()).sum().exp().item()
        most = usage.sort(descending=True).values[:60].tolist()
        arms[arm] = Curve(most, value=number, cost=score.cost, x_name="leaf, most used first", y_name="share of test digits")
    return arms
