"""Standard recipes: the plain training that several papers start from, so that they share one network."""

from __future__ import annotations

from functools import partial

import torch

from assay.data import Dataset
from assay.errors import AssayError
from assay.nn import lenet
from assay.nn.detector import GridDetector, detection_loss
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.recipe import Recipe
from assay.train.schedules import cosine


def lenet_on(data: Dataset, epochs: int = 8) -> Recipe:
    """A LeNet trained plainly: SGD, rate 0.05 falling along a cosine, momentum 0.9, batches of 64.

    With the default 8 epochs on ``mnist5k`` the network classifies about 97 % of the test digits correctly.

    Args:
        data: square images (N, C, S, S) with S a multiple of 4.
        epochs: passes over the training split.
    """
    channels, size, _ = data.input_shape
    return Recipe(
        data,
        model=partial(lenet, channels, data.num_classes, size),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        schedule=cosine,
        epochs=epochs,
        batch_size=64,
    )


def small_photos(data: Dataset, epochs: int = 30) -> Recipe:
    """A ResNet-8 on photos of half their size: SGD, rate 0.1 falling along a cosine, momentum 0.9, weight decay 5e-4.

    On 2,000 photos of CIFAR-10 a training of 30 epochs takes some 15 seconds of one core, and learns them by heart.

    Args:
        data: photos (N, C, S, S) of ten classes or so.
        epochs: passes over the training split.
    """
    net = partial(cifar_resnet, 8, num_classes=data.num_classes, in_channels=data.input_shape[0])
    return Recipe(
        data,
        model=partial(half_size, net),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        epochs=epochs,
    )


def detector_on(data: Dataset, epochs: int = 15) -> Recipe:
    """A small grid detector (:mod:`assay.nn.detector`): Adam, rate 3e-3 falling along a cosine, batches of 32.

    Args:
        data: pictures with boxes, as ``scenes(...).detection()`` has them; height and width multiples of 8.
        epochs: passes over the training split.

    Raises:
        AssayError: the data set is of another task.
    """
    if data.task != "detection":
        raise AssayError(f"A detector learns from boxes, and {data.name!r} is a {data.task} data set: make scenes of it.")
    return Recipe(
        data,
        model=partial(GridDetector, data.num_classes, data.input_shape[0]),
        loss=detection_loss,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        schedule=cosine,
        epochs=epochs,
        batch_size=32,
    )
