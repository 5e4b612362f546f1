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

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

if TYPE_CHECKING:
    pass

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

    alpha_i is the share of node i's examples that go right, and the penalty the cross-entropy of (alpha_i, 1 - alpha_i)
    with (1/2, 1/2), weighted by ``weight * decay**depth``. Deeper nodes see fewer examples of a batch, so alpha_i is
    taken over a window of batches that doubles with depth: 1 for the root, 2^d at depth d. The gradient is that of the
    batch alone, measured against the window's visits, and so estimates that of alpha_i over all data; differentiating
    the moving average itself would shrink it by the length of the window.

    Args:
        depth: of the tree.
        weight: lambda at the root; the paper uses 0.1.
        decay: factor of lambda from one level to the next; the paper uses 1/2.

    Shape: (B, 2^(depth+1) - 1) visits -> scalar.
    """

    def __init__(self, depth: int, weight: float = 0.1, decay: float = 0.5) -> None:
        super().__init__()
        level = torch.cat([torch.full((2**d,), float(d)) for d in range(depth)])  # depth of every inner node
        self.register_buffer("weights", weight * decay**level)
        self.register_buffer("keep", 1 - 0.5**level)  # of the running mean: its window is 2^level batches
        self.register_buffer("running", torch.zeros(2, len(level)))  # mean visits of every node's left and right child
        self.register_buffer("batches", torch.zeros(()))
        self.weights: Tensor
        self.keep: Tensor
        self.running: Tensor
        self.batches: Tensor

    def forward(self, visits: Tensor) -> Tensor:
        children = visits.mean(dim=0)[1:].view(-1, 2).t()  # (2, inner): left, right
        with torch.no_grad():
            self.batches += 1
            keep = torch.minimum(self.keep, 1 - 1 / self.batches)  # a plain mean until the window is full
            self.running.lerp_(children, 1 - keep)
        # The value of the running mean with the gradient of the batch; 1e-12 for a side that nobody takes.
        sides = self.running + (children - children.detach()) + 1e-12
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
        beta: float = 1.0,
        learning_rate: float = 0.01,
        epochs: int = 40,
        batch_size: int = 128,
        random_state: int | None = None,
    ) -> None:
        self.depth = depth
        self.penalty = penalty
        self.penalty_decay = penalty_decay
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
        balance = BalancePenalty(self.depth, self.penalty, self.penalty_decay)
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
        visits = self._visits(X)[:, 2**self.depth - 1 :]
        proba: NDArray[np.float32] = visits @ self.leaves_ if mode == "mixture" else self.leaves_[visits.argmax(axis=1)]
        return proba

    def predict(self, X: ArrayLike, mode: Mode = "path") -> NDArray[Any]:
        """Labels (N,), by the likeliest leaf or by the mixture of all."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X, mode).argmax(axis=1)]
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
