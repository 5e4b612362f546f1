"""Against wrong labels: which method should one take?

Every method has the settings that its paper recommends, or the customary ones, and none is tuned: this is what somebody gets
who takes it as it is. All train on the same nine tenths of the data with the same network, optimizer and epochs; the last
tenth, whose labels are as wrong as the others, serves early stopping alone. What counts is the accuracy on clean test labels.

Rows are a data set and a kind of noise: symmetric noise moves a share of the labels to any other class; asymmetric noise
moves 40 % of the labels of some classes to the class they are most like (on AG News: to the next class); human noise moves
40 % of all labels to the classes that people mistake the true one for (the votes of CIFAR-10H). MNIST is 4,000 digits and
Fashion 4,000 clothes, both with a perceptron for 40 epochs; CIFAR-10 is 2,000 photos of half their size with a ResNet-8 for 20;
AG News is 6,000 news with a TextCNN for 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset
from assay.lab import Lab
from assay.lab.comparing import Comparison
from assay.nn import mlp
from assay.nn.text import encode
from assay.paper import Score
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.papers.labels.elr import elr
from assay.papers.labels.massive_label_noise import massive_label_noise
from assay.papers.labels.ncr import ncr
from assay.papers.text.text_cnn import TextCNN
from assay.recipe import Recipe
from assay.train.hooks import BestEpoch
from assay.train.mixing import Mixing
from assay.train.schedules import cosine

# ------------------------------------------------------------------------------------------------------------ tasks

#: Class -> the class that it is most like, among those that the literature moves; AG News has no such custom.
_LIKE: dict[str, dict[int, int]] = {
    "mnist5k": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
    "fashion-mnist": {0: 6, 6: 0, 2: 4, 4: 2, 7: 5, 9: 7},
    "cifar10-20k": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "ag-news": {0: 1, 1: 2, 2: 3, 3: 0},
}
_SHORT = {"symmetric": "sym", "asymmetric": "asym"}
_SIZES = {"fashion-mnist": (4000, 2000), "cifar10-20k": (2000, 1000)}
_NAMES = {"mnist5k": "MNIST", "fashion-mnist": "Fashion", "cifar10-20k": "CIFAR-10", "ag-news": "AG News"}


@dataclass(frozen=True)
class Task:
    """One row: a data set and its noise."""

    data: str
    noise: str
    rate: float

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{_NAMES[self.data]} {_SHORT.get(self.noise, self.noise)} {self.rate:.0%}"

    def wrong(self, lab: Lab, data: Dataset) -> Dataset:
        """The data with the wrong labels."""
        if self.noise == "symmetric":
            return data.flip_labels(self.rate, seed=lab.seed)
        if self.noise == "human":
            return data.flip_labels(self.rate, seed=lab.seed, kind="asymmetric", matrix=mistaken(lab.data("cifar10h")))
        matrix = torch.eye(data.num_classes, dtype=torch.float64)
        for true, like in _LIKE[self.data].items():
            matrix[true, true], matrix[true, like] = 1 - self.rate, self.rate
        return data.flip_labels(1.0, seed=lab.seed, kind="asymmetric", matrix=matrix)


TASKS = {
    task.name: task
    for data in _NAMES
    for task in (
        *(Task(data, "symmetric", rate) for rate in (0.2, 0.4, 0.6)),
        Task(data, "asymmetric", 0.4),
        *([Task(data, "human", 0.4)] if data == "cifar10-20k" else []),
    )
}


def mistaken(votes: Dataset) -> Tensor:
    """(K, K), rows that sum to 1: which class people name instead of the right one, as often as they do."""
    assert isinstance(votes.train.inputs, Tensor)
    matrix = torch.zeros(votes.num_classes, votes.num_classes, dtype=torch.float64)
    matrix.index_add_(0, votes.train.labels, votes.train.inputs.double())
    matrix.fill_diagonal_(0)
    return matrix / matrix.sum(dim=1, keepdim=True)


def plain(lab: Lab, task: Task) -> Recipe:
    """Training with cross-entropy on the task's wrong labels."""
    smoke = lab.scale == "smoke"
    data = lab.data(task.data)
    train, test = (200, 200) if smoke else _SIZES.get(task.data, (len(data.train), len(data.test)))
    data = data.subset(train=train, test=test)
    model: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    if task.data == "ag-news":
        data = encode(data, length=48, size=5000)
        model = partial(TextCNN, len(data.features), data.num_classes, dim=64, maps=32)
        optimizer, epochs = partial(torch.optim.AdamW, lr=2e-3), 8
    elif task.data == "cifar10-20k":
        data = data.normalise()
        model = partial(half_size, partial(cifar_resnet, 8))
        optimizer, epochs = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4), 20
    else:
        model = partial(mlp, 784, data.num_classes)
        optimizer, epochs = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4), 40
    return Recipe(
        task.wrong(lab, data).holdout(0.1, seed=lab.seed),
        model=model,
        optimizer=optimizer,
        schedule=cosine,
        epochs=2 if smoke else epochs,
        watch=(),
    )


# ---------------------------------------------------------------------------------------------------------- methods


def _smoothed(recipe: Recipe) -> Recipe:
    return recipe.replace(loss=partial(F.cross_entropy, label_smoothing=0.1))


def _stopped(recipe: Recipe) -> Recipe:
    return recipe.replace(hooks=(*recipe.hooks, BestEpoch()), watch=("valid",))


def _mixed(recipe: Recipe) -> Recipe:
    return recipe.replace(hooks=(*recipe.hooks, Mixing(mixup=1.0, cutmix=0.0)))


def _both(recipe: Recipe) -> Recipe:
    return elr(ncr(recipe))


ARMS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "cross-entropy": lambda recipe: recipe,
    "label smoothing": _smoothed,
    "mixup": _mixed,
    "early stopping": _stopped,
    "larger batches": massive_label_noise,
    "ELR": elr,
    "NCR": ncr,
    "ELR + NCR": _both,
}


def fits(row: str, arm: str) -> bool:
    """Whether the method can be had for the task: the ids of words cannot be mixed."""
    return arm != "mixup" or TASKS[row].data != "ag-news"


def measure(lab: Lab, row: str, arm: str) -> Score:
    """Accuracy on clean test labels after the last epoch."""
    return lab.train(ARMS[arm](plain(lab, TASKS[row]))).accuracy()


COMPARISON = Comparison(
    title="Which method against wrong labels?",
    rows=tuple(TASKS),
    arms=tuple(ARMS),
    control="cross-entropy",
    unit="accuracy on clean test labels",
    measure=measure,
    fits=fits,
)
