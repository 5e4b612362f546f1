"""Massive label noise: a plain network learns from labels of which most are wrong, if it sees enough of them.

Keep every correct label and add ``alpha`` random ones for the same image. The correct class is then still the most frequent
one: among its 1 + alpha labels an image has

    P(true) = (1 + alpha / K) / (1 + alpha),   P(any other) = (alpha / K) / (1 + alpha),   margin 1 / (1 + alpha),

so the best classifier of the noisy world is the best one of the clean world, however large alpha is. What the noise costs is
signal: a batch of B pairs carries that of B / (1 + alpha), buried in gradients that cancel only on average. Hence the paper's
advice for noisy labels: more data, larger batches, smaller steps, and no passes enough to learn single labels by heart.
Noise that prefers one wrong class is harder, and noise on images from elsewhere easier.

Nothing is corrected or filtered here: this is what cross-entropy does by itself, and the yardstick for methods that do more.

Source: Rolnick, Veit, Belongie and Shavit, "Deep Learning is Robust to Massive Label Noise", 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.paper import Above, Below, Close, Curve, Higher, Reported, claim
from assay.recipe import Recipe, treatment
from assay.recipes import small_photos
from assay.train.hooks import Hook, Run

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def dilute_labels(
    labels: Tensor, alpha: int, num_classes: int, generator: torch.Generator, probabilities: Tensor | None = None
) -> Tensor:
    """Every example's labels: the given one first, then ``alpha`` random ones, drawn with replacement from all classes.

    Args:
        labels: (N,) int64, the correct labels.
        alpha: noisy labels for each correct one, at least 0. The paper goes up to 100.
        num_classes: K.
        generator: source of the noise.
        probabilities: (K, K) where row k is the distribution of the noisy labels of class k, as from
            :func:`confusable`; ``None`` is uniform.

    Returns:
        (N, 1 + alpha) int64. The training set is all N (1 + alpha) pairs of an image and one of its labels.
    """
    if alpha < 0:
        raise ValueError(f"alpha must not be negative, not {alpha}")
    if probabilities is None:
        noise = torch.randint(num_classes, (len(labels), alpha), generator=generator, device=generator.device)
    else:
        rows = probabilities.to(generator.device, torch.float64)[labels.to(generator.device)]
        noise = rows.multinomial(alpha, replacement=True, generator=generator) if alpha else labels.new_empty(len(labels), 0)
    return torch.cat([labels[:, None], noise.to(labels.device)], dim=1)


def confusable(confusion: Tensor, delta: float) -> Tensor:
    """Structured noise: a share ``delta`` of the noisy labels goes where a clean model's mistakes go, the rest anywhere.

    Args:
        confusion: (K, K) counts, row k of the true class k; its diagonal is left out.
        delta: in [0, 1].

    Returns:
        (K, K) probabilities, for :func:`dilute_labels`.
    """
    if not 0 <= delta <= 1:
        raise ValueError(f"delta must be in [0, 1], not {delta}")
    mistakes = confusion.double().clone().fill_diagonal_(0) + 1e-6  # a class that is never mistaken spreads evenly
    mistakes.fill_diagonal_(0)
    return (1 - delta) / len(confusion) + delta * mistakes / mistakes.sum(dim=1, keepdim=True)


def noise_rates(alpha: float, num_classes: int) -> tuple[float, float]:
    """P(label is the true class) and P(label is one given other class) under uniform dilution."""
    return (1 + alpha / num_classes) / (1 + alpha), (alpha / num_classes) / (1 + alpha)


@dataclass(frozen=True)
class Dilution(Hook):
    """Train on diluted labels without copying an image: in epoch e every example carries one of its 1 + alpha labels.

    An example's labels come in a random order of its own, each once in 1 + alpha epochs; so 1 + alpha epochs are one pass
    over all pairs.

    Args:
        alpha: noisy labels for each correct one.
        seed: of the labels and their order.
        probabilities: rows of a (K, K) matrix; see :func:`dilute_labels`. Empty is uniform.
        keep: ``False`` leaves the correct labels out, so that nothing can be learnt.

    The training loss is that on the noisy labels; the training accuracy counts the given ones.
    """

    alpha: int
    seed: int = 0
    probabilities: tuple[tuple[float, ...], ...] = ()
    keep: bool = True

    def __post_init__(self) -> None:
        if self.alpha < (0 if self.keep else 1):
            raise ValueError(f"alpha must be at least {0 if self.keep else 1}, not {self.alpha}")

    def on_start(self, run: Run) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        given = run.data.train.labels.cpu()
        matrix = torch.tensor(self.probabilities, dtype=torch.float64) if self.probabilities else None
        labels = dilute_labels(given, self.alpha, run.data.num_classes, generator, matrix)[:, 0 if self.keep else 1 :]
        order = torch.rand(labels.shape, generator=generator).argsort(dim=1)
        run.memory["dilution.labels"] = labels.gather(1, order).to(run.device)

    def before_loss(self, run: Run) -> None:
        labels = run.memory["dilution.labels"]
        run.labels = labels[run.index, run.epoch % labels.shape[1]]


@treatment
def massive_label_noise(recipe: Recipe, rate: float = 0.4) -> Recipe:
    """The paper's advice for noisy labels: larger batches, at the same rate and for as many epochs, hence fewer steps.

    Of a batch only the margin between the true class and any other tells anything, so the batch grows by one over it.

    Args:
        recipe: whose training labels are noisy.
        rate: share of labels that are wrong, spread evenly over the wrong classes.

    Raises:
        AssayError: with so many wrong labels the true class is no longer the most frequent.
    """
    margin = (1 - rate) - rate / (recipe.data.num_classes - 1) if recipe.data.num_classes > 1 else 0.0
    if not 0 <= rate < 1 or margin <= 0:
        raise AssayError(f"With a share of {rate:g} wrong labels in {recipe.data.num_classes} classes nothing is left to learn.")
    larger = round(recipe.batch_size / margin)
    return recipe.replace(batch_size=max(recipe.batch_size, min(larger, len(recipe.data.train))))


# -------------------------------------------------------------------------------------------------------- the claims


def _recipe(
    data: Dataset, alpha: int, seed: int, examples: float, batch_size: int = 512, net: str = "one hidden layer"
) -> Recipe:
    """Plain SGD until so many examples have been seen; ``alpha`` changes the labels and nothing else."""
    nets: dict[str, Callable[[], nn.Module]] = {
        "perceptron": partial(mlp, 784, 10, ()),
        "one hidden layer": partial(mlp, 784, 10, (128,)),
        "LeNet": lenet,
    }
    return Recipe(
        data,
        model=nets[net],
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        hooks=(Dilution(alpha, seed),) if alpha else (),
        epochs=max(1, round(examples / len(data.train))),
        batch_size=batch_size,
        watch=(),
    )


def _digits(lab: Lab, name: str, train: int | None = None) -> Dataset:
    data = lab.data(name)
    return data.subset(train=500, test=200) if lab.scale == "smoke" else data.subset(train=train) if train else data


_PAIRS = "plain SGD with momentum, rate 0.05, batches of 512"


@claim(
    "With 20 random labels for every correct one (one label in seven is right) a plain network still classifies more "
    "than 90% of MNIST's test digits correctly, and with 100 more than half; without the correct labels it stays at chance.",
    expect=(
        Above("one hidden layer, alpha 20", 0.9),
        Above("LeNet, alpha 20", 0.9),
        Above("one hidden layer, alpha 100", 0.5),
        Below("random labels only", 0.2),
    ),
    reported=Reported("MNIST, four convolutions, alpha 100: test accuracy, above", {"the paper's network": 0.9}, "abstract"),
    scaled_down="Small networks; every alpha sees as many images as one pass over the pairs of alpha = 20 has (21 epochs of "
    f"60,000), LeNet a third; {_PAIRS}.",
    unit="test accuracy",
    needs=("mnist",),
)
def survives_dilution(lab: Lab) -> Measured:
    data = _digits(lab, "mnist")
    examples = lab.pick(smoke=1_000, laptop=21 * 60_000, full=101 * 60_000)
    arms: dict[str, float | Curve] = {}
    for alpha in (0, 5, 20, 100):
        arms[f"one hidden layer, alpha {alpha}"] = lab.train(_recipe(data, alpha, lab.seed, examples)).accuracy()
    arms["perceptron, alpha 20"] = lab.train(_recipe(data, 20, lab.seed, examples, net="perceptron")).accuracy()
    # Convolutions cost more, and need less: a third of a pass.
    few = lab.pick(smoke=1_000, laptop=7 * 60_000, full=101 * 60_000)
    arms["LeNet, alpha 20"] = lab.train(_recipe(data, 20, lab.seed, few, net="LeNet")).accuracy()
    noise = _recipe(data, 20, lab.seed, examples).replace(hooks=(Dilution(20, lab.seed, keep=False),))
    arms["random labels only"] = lab.train(noise).accuracy()
    return arms


@claim(
    "Larger batches recover what the noise takes: with 10 random labels for every correct one, batches of 512 are more accurate"
    " than batches of 32 by more than 5 points, at the same rate and number of examples seen; on clean labels they are not by "
    "2.",
    expect=(
        Higher("alpha 10", than="alpha 10, batches of 32", by=0.05),
        Close("alpha 0", to="alpha 0, batches of 32", within=0.02),
    ),
    scaled_down=(
        "MNIST 5k, one hidden layer of 128 units, 400,000 examples seen; the paper varies 32 to 256 with four convolutions."
    ),
    unit="test accuracy in batches of 512",
)
def larger_batches_recover(lab: Lab) -> Measured:
    data = _digits(lab, "mnist5k")
    sizes = (32, 128, 512, 1024)
    arms: dict[str, float | Curve] = {}
    for alpha in (0, 10):
        examples = lab.pick(smoke=1_000, laptop=400_000, full=4_000_000)
        found = [lab.train(_recipe(data, alpha, lab.seed, examples, batch_size=size)).accuracy() for size in sizes]
        line = partial(Curve, found, x=sizes, x_name="examples in a batch", y_name="test accuracy")
        arms[f"alpha {alpha}"] = line(value=found[2], cost=found[2].cost)
        arms[f"alpha {alpha}, batches of 32"] = found[0]
    # Larger batches are fewer steps: so as few small ones, and as many shorter ones, stand beside them.
    small = _recipe(data, 10, lab.seed, lab.pick(smoke=1_000, laptop=400_000, full=4_000_000), batch_size=32)
    arms["alpha 10, batches of 32, as few steps"] = lab.train(small.replace(epochs=max(1, small.epochs // 16))).accuracy()
    slow = partial(torch.optim.SGD, lr=0.05 / 16, momentum=0.9)
    arms["alpha 10, batches of 32, steps a sixteenth as long"] = lab.train(small.replace(optimizer=slow)).accuracy()
    return arms


@claim(
    "The treatment of the same name is that advice for data as people have them: with 40% of the labels wrong, each image with "
    "one label, batches 1.8 times as large (one over the margin) are more accurate after as many epochs.",
    expect=Higher("larger batches", than="plain"),
    scaled_down="MNIST 5k, one hidden layer of 128 units, 30 epochs, batches of 64 against 115.",
    unit="test accuracy",
)
def larger_batches_help_with_single_labels(lab: Lab) -> Measured:
    data = _digits(lab, "mnist5k").flip_labels(0.4, seed=lab.seed)
    plain = _recipe(data, 0, lab.seed, lab.pick(smoke=500, laptop=120_000, full=1_200_000), batch_size=64)
    return {"plain": lab.train(plain).accuracy(), "larger batches": lab.train(massive_label_noise(plain)).accuracy()}


@claim(
    "The noisier the labels, the more data it takes: five random labels for every correct one at least double the number of "
    "images that reach 90%, and 20 at least double it again.",
    expect=(Higher("alpha 5", than="alpha 0", by=0.301), Higher("alpha 20", than="alpha 5", by=0.301)),
    scaled_down="MNIST, one hidden layer of 128 units, 64,000 correct labels seen, whatever alpha; between sizes a straight line "
    "in the logarithm.",
    unit="images that reach 90% test accuracy, as a power of ten",
    needs=("mnist",),
)
def more_data_buys_noise(lab: Lab) -> Measured:
    sizes = lab.pick(smoke=(100, 400), laptop=(500, 2_000, 8_000, 32_000), full=(500, 1_000, 2_000, 4_000, 8_000, 16_000, 60_000))
    arms: dict[str, float | Curve] = {}
    for alpha in (0, 5, 20):
        found = []
        for size in sizes:
            data = lab.data("mnist").subset(train=size, seed=lab.seed)
            examples = (1 + alpha) * lab.pick(smoke=100, laptop=64_000, full=640_000)
            found.append(float(lab.train(_recipe(data, alpha, lab.seed, examples)).accuracy()))
        arms[f"alpha {alpha}"] = Curve(
            found, x=sizes, value=_where(np.log10(sizes), found, 0.9), x_name="training images", y_name="test accuracy"
        )
    return arms


def _where(x: np.ndarray, y: list[float], level: float) -> float:
    """Where a rising line first reaches ``level``; one that never does counts with its last point, which favours the control."""
    reached = [number for number, value in enumerate(y) if value >= level]
    if not reached:
        return float(x[-1])
    at = reached[0]
    if at == 0:
        return float(x[0])
    share = (level - y[at - 1]) / (y[at] - y[at - 1])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


@claim(
    "Where the noise falls matters: with 20 noisy labels for every correct one, a tenth of them on the classes that a clean "
    "model confuses costs accuracy against uniform noise but is survived (above 70%); four tenths is not (below half).",
    expect=(
        Higher("uniform", than="a tenth confusable"),
        Above("a tenth confusable", 0.7),
        Below("four tenths confusable", 0.5),
    ),
    scaled_down=f"MNIST, one hidden layer of 128 units, half a pass over the pairs; {_PAIRS}.",
    unit="test accuracy",
    needs=("mnist",),
)
def confusable_noise_is_harder(lab: Lab) -> Measured:
    data = _digits(lab, "mnist")
    examples = lab.pick(smoke=1_000, laptop=10 * 60_000, full=101 * 60_000)
    clean = lab.train(_recipe(data, 0, lab.seed, examples / 10))
    predicted = clean.logits("train").argmax(dim=1)
    confusion = (F.one_hot(data.train.labels, 10).T.double() @ F.one_hot(predicted, 10).double()).float()
    arms: dict[str, float | Curve] = {"uniform": lab.train(_recipe(data, 20, lab.seed, examples)).accuracy()}
    for name, delta in (("a tenth confusable", 0.1), ("four tenths confusable", 0.4)):
        rows = tuple(tuple(row) for row in confusable(confusion, delta).tolist())
        recipe = _recipe(data, 20, lab.seed, examples).replace(hooks=(Dilution(20, lab.seed, rows),))
        arms[name] = lab.train(recipe).accuracy()
    return arms


@claim(
    "Noise on images from elsewhere harms less: five random labels for every correct one cost less accuracy on clothes or on "
    "white noise than on the digits themselves.",
    expect=(Higher("on clothes", than="on the digits"), Higher("on white noise", than="on the digits")),
    scaled_down="2,000 digits of MNIST 5k, one hidden layer of 128 units, as many steps for every arm.",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def noise_elsewhere_harms_less(lab: Lab) -> Measured:
    alpha = 5
    digits = lab.data("mnist5k").subset(train=lab.pick(smoke=200, laptop=2_000, full=4_000), seed=lab.seed)
    generator = lab.generator()
    count = alpha * len(digits.train)
    clothes = lab.data("fashion-mnist").subset(train=count, seed=lab.seed).train.inputs
    assert isinstance(clothes, Tensor)
    examples = lab.pick(smoke=1_000, laptop=200_000, full=2_000_000)
    arms: dict[str, float | Curve] = {
        "no noise": lab.train(_recipe(digits, 0, lab.seed, examples)).accuracy(),
        "on the digits": lab.train(_recipe(digits, alpha, lab.seed, examples)).accuracy(),
    }
    for name, images in (("on clothes", clothes), ("on white noise", torch.rand(clothes.shape, generator=generator))):
        assert isinstance(digits.train.inputs, Tensor)
        labels = torch.randint(10, (count,), generator=generator)
        whole = Split(torch.cat([digits.train.inputs, images]), torch.cat([digits.train.labels, labels]))
        # The clean labels are seen as rarely as among the diluted digits: one pair in six.
        noisy = dataclasses.replace(
            digits, train=whole, history=(*digits.history, f"{count} noisy images {name}, seed {lab.seed}")
        )
        arms[name] = _trained(lab, noisy, examples)
    return arms


def _trained(lab: Lab, data: Dataset, examples: float) -> float:
    trained: Trained = lab.train(_recipe(data, 0, lab.seed, examples))
    return trained.accuracy()


@claim(
    "Photos are harder, and still: with two random labels for every correct one a residual network classifies more than a fifth "
    "of CIFAR-10's test photos correctly, twice what chance would.",
    expect=(Above("alpha 2", 0.2), Below("random labels only", 0.15)),
    scaled_down="2,000 photos of CIFAR-10 at 16x16, a ResNet-8, batches of 512, ten passes for each label of a photo.",
    unit="test accuracy",
    needs=("cifar10-20k",),
)
def survives_dilution_on_photos(lab: Lab) -> Measured:
    train, test, epochs = lab.pick(smoke=(100, 100, 1), laptop=(2_000, 1_000, 10), full=(20_000, 4_000, 100))
    data = lab.data("cifar10-20k").normalise().subset(train=train, test=test)
    plain = small_photos(data, epochs).replace(batch_size=512, watch=())
    diluted = plain.replace(hooks=(Dilution(2, lab.seed),), epochs=3 * epochs)
    return {
        "alpha 0": lab.train(plain).accuracy(),
        "alpha 2": lab.train(diluted).accuracy(),
        "random labels only": lab.train(diluted.replace(hooks=(Dilution(2, lab.seed, keep=False),))).accuracy(),
    }
