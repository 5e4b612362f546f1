"""From 1989 to 2021: what did each idea of an architecture buy?

Every network is there in a form for small pictures, most of them with about two million multiply-adds. All learn the same
3,000 clothes of Fashion-MNIST (28 x 28) for eight epochs, and what counts is the accuracy on 2,000 others.

"One training" is the same for all: stochastic gradient descent with momentum 0.9, batches of 64, weight decay 5e-4, a rate
that rises for a tenth of the time and then falls along a cosine, and cross-entropy. Only its highest value differs: each
network has the best of three (0.01, 0.03, 0.1), chosen once on a tenth of the training pictures that was set aside. "The
paper's training" is what its authors did, as far as it fits into eight epochs: their optimizer, schedule, loss and augmentation.

Read it in pairs. The plain network and the residual one differ in the shortcuts alone, the residual and the wide one in how
their work is spent, AdderNet-8 and ResNet-8 in one operation: the first multiplies in its first and last layer only. Eight
epochs and so few pictures favour what learns fast: the large networks of the papers differ more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.lab import Lab
from assay.lab.comparing import Comparison
from assay.nn.measure import macs, parameters
from assay.paper import Score
from assay.papers.architectures import (
    ciresan_cnn,
    inception_resnet,
    inception_v3,
    neural_sampling_machine,
    nfnet,
    pyramidnet,
    simplenet,
)
from assay.papers.architectures.lecun1989 import LeCun1989
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.papers.architectures.vgg import vgg
from assay.papers.architectures.wide_resnet import half_size as half_wide
from assay.papers.compress import addernet
from assay.papers.training.compute_efficient.methods import averaged_weights
from assay.recipe import Recipe
from assay.train.augment import flip_and_crop
from assay.train.compare import compare
from assay.train.schedules import cosine, exponential, steps_at, warmup_cosine

ONE, OWN = "one training for all", "the paper's training"
RATES = (0.01, 0.03, 0.1)
#: The seed of the trainings that choose a rate: none of those that are reported.
CHOOSING = 1_000


@dataclass(frozen=True)
class Network:
    """One arm.

    Args:
        year: when the paper appeared, with its month as a fraction.
        make: the small network.
        own: changes the recipe to what the paper's authors did.
    """

    year: float
    make: Callable[[], nn.Module]
    own: Callable[[Recipe], Recipe]


# --------------------------------------------------------------------------------- networks, and how they were trained


def zip_code_net(head: str) -> nn.Module:
    """The net of 1989, which reads 16 x 16 pixels."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(16), LeCun1989(head="tanh" if head == "tanh" else "linear"))


def signs(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error to +1 for the right class and -1 for the others."""
    return F.mse_loss(outputs, 2.0 * F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) - 1.0)


def _of_1989(recipe: Recipe) -> Recipe:
    """One example a step, squared error to signs, a constant rate."""
    return recipe.replace(
        model=partial(zip_code_net, "tanh"),
        loss=signs,
        optimizer=partial(torch.optim.SGD, lr=0.03),
        schedule=None,
        batch_size=1,
    )


def _of_vgg(recipe: Recipe) -> Recipe:
    """Momentum, weight decay 5e-4, a rate of 0.01 that falls by ten three times; no normalisation."""
    return recipe.replace(
        model=partial(stacked, batch_norm=False),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=partial(steps_at, at=(0.5, 0.75, 0.9), gamma=0.1),
    )


def _of_resnet(recipe: Recipe) -> Recipe:
    """Batches of 128, weight decay 1e-4, a rate of 0.1 that falls by ten after a half and three quarters; flips and crops."""
    return recipe.replace(
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=partial(steps_at, at=(0.5, 0.75), gamma=0.1),
        augment=flip_and_crop,
        batch_size=128,
    )


def _of_wide_resnet(recipe: Recipe) -> Recipe:
    """Nesterov's momentum, weight decay 5e-4, a rate of 0.1 that falls by five three times; flips and crops; dropout 0.3."""
    return recipe.replace(
        model=partial(half_wide, 10, 2, dropout=0.3),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=partial(steps_at, at=(0.3, 0.6, 0.8), gamma=0.2),
        augment=flip_and_crop,
        batch_size=128,
    )


def stacked(batch_norm: bool = True) -> nn.Module:
    """VGG's layers, thin."""
    return vgg("8 8 M 16 16 M 32 32 32 M", 10, 1, batch_norm=batch_norm, head="gap")


def _residual(residual: bool, depth: int) -> nn.Module:
    return half_size(partial(cifar_resnet, depth, "B" if depth == 8 else "A", residual=residual, width=8, in_channels=1))


def _of_pyramidnet(recipe: Recipe) -> Recipe:
    """Nesterov's momentum, batches of 128, weight decay 1e-4, a rate of 0.1 that falls by ten twice; flips and crops."""
    return recipe.replace(
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=partial(steps_at, at=(0.5, 0.75), gamma=0.1),
        augment=flip_and_crop,
        batch_size=128,
    )


def _of_inception_resnet(recipe: Recipe) -> Recipe:
    """RMSProp at a rate that falls by 6 % fifty times, weights averaged at the end: as Inception-v3, without smoothing."""
    rms = partial(torch.optim.RMSprop, lr=0.045, alpha=0.9, eps=1.0)
    return averaged_weights(recipe).replace(optimizer=rms, schedule=partial(exponential, final=0.94**50))


def _of_addernet(recipe: Recipe) -> Recipe:
    """Batches of 256, weight decay 5e-4, a rate of 0.1 that falls along a cosine; flips and crops."""
    return recipe.replace(
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        augment=flip_and_crop,
        batch_size=256,
    )


NETWORKS = {
    "LeCun's net": Network(1989, partial(zip_code_net, "linear"), _of_1989),
    "max-pooling net": Network(2011.1, ciresan_cnn.small, ciresan_cnn.paper_training),
    "VGG": Network(2014.7, stacked, _of_vgg),
    "plain net, 20 layers": Network(2015.9, partial(_residual, False, 20), _of_resnet),
    "ResNet-20": Network(2015.95, partial(_residual, True, 20), _of_resnet),
    "Inception": Network(2015.92, inception_v3.small, inception_v3.paper_training),
    "Inception-ResNet": Network(2016.15, partial(inception_resnet.small, 10, 1), _of_inception_resnet),
    "wide ResNet-10": Network(2016.4, partial(half_wide, 10, 2), _of_wide_resnet),
    "SimpleNet": Network(2016.65, partial(half_size, partial(simplenet.small, in_channels=1)), simplenet.paper_training),
    "PyramidNet": Network(2016.8, partial(half_size, partial(pyramidnet.small, in_channels=1)), _of_pyramidnet),
    "sampling machine": Network(2019.8, partial(neural_sampling_machine.small, 10), neural_sampling_machine.paper_training),
    "ResNet-8": Network(2015.95, partial(_residual, True, 8), _of_resnet),
    "AdderNet-8": Network(2019.98, addernet.small, _of_addernet),
    "NFNet": Network(2021.1, nfnet.small, nfnet.paper_training),
}


# ------------------------------------------------------------------------------------------------------ what is measured


def _plain(lab: Lab, arm: str, rate: float, aside: bool = False) -> Recipe:
    """The training that is the same for all."""
    train, test = lab.pick(smoke=(200, 100), laptop=(3000, 2000), full=(60_000, 10_000))
    data = lab.data("fashion-mnist").subset(train=train, test=test).normalise()
    return Recipe(
        data.holdout(0.1, seed=0) if aside else data,
        model=NETWORKS[arm].make,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4),
        schedule=partial(warmup_cosine, warmup=0.1),
        epochs=lab.pick(smoke=1, laptop=8, full=60),
        batch_size=64,
        watch=(),
    )


def best_rate(lab: Lab, arm: str) -> float:
    """The rate with which the network does best on training pictures that were set aside."""
    trials = compare({arm: lambda rate: _plain(lab, arm, rate, aside=True)}, RATES, seeds=(CHOOSING,), train=lab.train)
    return trials.chosen(arm, CHOOSING).setting


def measure(lab: Lab, row: str, arm: str) -> Score:
    """Accuracy on test pictures after the last epoch."""
    if row == OWN:
        return lab.train(NETWORKS[arm].own(_plain(lab, arm, RATES[0]))).accuracy()
    return lab.train(_plain(lab, arm, best_rate(lab, arm))).accuracy()


@cache
def _sizes(arm: str) -> tuple[int, int]:
    with torch.device("meta"):
        net = NETWORKS[arm].make()
    return parameters(net), macs(net, (1, 28, 28))


def traits(arm: str) -> dict[str, float]:
    """What is known of a network without training it."""
    size, work = _sizes(arm)
    return {"year": NETWORKS[arm].year, "parameters": size, "multiply-adds": work}


COMPARISON = Comparison(
    title="What did each idea of an architecture buy, from 1989 to 2021?",
    rows=(ONE, OWN),
    arms=tuple(NETWORKS),
    control="LeCun's net",
    unit="accuracy on test clothes",
    measure=measure,
    traits=traits,
)
