"""ResNet strikes back: how to train a plain ResNet today.

A new architecture is usually compared with the ResNet-50 of 2015, number and all: 76 % on ImageNet, trained for 90 epochs with
SGD, crops and mirror images. Six years of progress in training are then counted as progress in architecture. Trained with what
has been found since, the same network reaches 80.4 %.

The ingredients are none of them new. LAMB takes the place of SGD, for batches of 2048; its rate rises for five epochs and falls
along a cosine. Every batch is mixed with itself, by mixup or by CutMix, and the loss is binary cross-entropy: each class by
itself is there or not, so that in a mixture of two images both are there (target 1; as in the authors' code, from a share of a
fifth on), where cross-entropy has to ask for shares of one probability. Images go through RandAugment on top of crops and
mirror images; a batch holds three versions of a third of its images (repeated augmentation); and residual branches are left out
at random (drop path).

Three procedures, A1 to A3, differ in length and strength (:data:`PROCEDURES`). The ingredients are parts of their own, for any
loop: :func:`assay.train.optim.lamb`, :func:`assay.train.losses.multi_label_loss`, :func:`assay.train.mixing.mixup_cutmix`,
:func:`assay.train.rand_augment.rand_augment`, :func:`assay.nn.drop_path.with_drop_path`.

Source: Wightman, Touvron and Jégou, "ResNet strikes back: An improved training procedure in timm", 2021. Table numbers are the
paper's. Left out is what belongs to ImageNet: training at another size than testing, the crop at test time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assay.errors import AssayError
from assay.nn.drop_path import residual_branches, with_drop_path
from assay.paper import Curve, Higher, Lower, Reported, claim
from assay.papers.architectures.resnet import cifar_resnet, half_size
from assay.recipe import Recipe, treatment, with_loss
from assay.train.augment import flip_and_crop, in_turn, random_resized_crop
from assay.train.losses import multi_label_loss
from assay.train.mixing import Mixing, RepeatedAugmentation
from assay.train.optim import lamb
from assay.train.rand_augment import colours_of, rand_augment
from assay.train.schedules import steps_at, warmup_cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured


@dataclass(frozen=True)
class Procedure:
    """A column of Table 2.

    Args:
        epochs: passes over ImageNet, in batches of 2048.
        rate: of LAMB.
        weight_decay: of LAMB, for matrices and filters.
        magnitude: of RandAugment, with standard deviation 0.5.
        mixup: alpha; CutMix has 1.0 in all of them.
        copies: of each image in a batch.
        drop_path: probability at the last branch.
        smoothing: of the labels.
    """

    epochs: int
    rate: float
    weight_decay: float
    magnitude: float
    mixup: float
    copies: int = 3
    drop_path: float = 0.05
    smoothing: float = 0.0


PROCEDURES = {
    "A1": Procedure(epochs=600, rate=5e-3, weight_decay=0.01, magnitude=7, mixup=0.2, smoothing=0.1),
    "A2": Procedure(epochs=300, rate=5e-3, weight_decay=0.02, magnitude=7, mixup=0.1),
    "A3": Procedure(epochs=100, rate=8e-3, weight_decay=0.02, magnitude=6, mixup=0.1, copies=1, drop_path=0.0),
}

#: What may be left out, to see what it is good for.
INGREDIENTS = ("lamb", "bce", "rand_augment", "mixing", "repeats", "drop_path")

_STEPS_PER_EPOCH = 1_281_167 / 2048
_HIGHEST_RATE = 0.02


def rate_for(procedure: Procedure, steps: int) -> float:
    """LAMB's rate for a training of another length: that of the paper times the root of how many times fewer the steps are.

    For another batch size this is the square-root rule that LAMB comes with; and A3, with a third of A2's steps, has 1.6 times
    its rate. Not above 0.02, which is the paper's for A2 with a sixteenth of its steps (about 11,700) and holds for all shorter
    trainings: every step is that share of the weights' length, and on held-out images of our smallest trainings 0.05 was too
    much.

    Args:
        procedure: one of :data:`PROCEDURES`.
        steps: optimizer steps of the whole training.
    """
    return min(_HIGHEST_RATE, procedure.rate * math.sqrt(procedure.epochs * _STEPS_PER_EPOCH / steps))


@treatment
def resnet_strikes_back(
    recipe: Recipe, procedure: str = "A2", rate: float | None = None, without: Collection[str] = ()
) -> Recipe:
    """Train by one of the paper's procedures, for as many epochs and in batches as large as before.

    Images get everything. Images below 64 pixels are cropped as small ones usually are (shifted by up to an eighth), larger
    ones get random resized crops, and both are mirrored; a recipe that has an augmentation keeps it instead, which is the way
    where left and right matter, as for digits. With repeated augmentation every copy of an image goes through it by itself.
    Networks without residual branches have no drop path. Other numbers (tables, series, sound) get LAMB, binary cross-entropy
    and mixup; texts, which cannot be mixed, the first two.

    Args:
        recipe: what to change. It has to be about classes.
        procedure: ``"A1"``, ``"A2"`` or ``"A3"``.
        rate: of LAMB; ``None`` takes :func:`rate_for` the length of the training.
        without: ingredients to leave out, out of :data:`INGREDIENTS`; without ``"lamb"`` optimizer and schedule stay.

    Raises:
        AssayError: there is no such procedure or ingredient, or the recipe predicts numbers.
    """
    if procedure not in PROCEDURES:
        raise AssayError(f"There is no procedure {procedure!r}: choose {', '.join(PROCEDURES)}.")
    if unknown := set(without) - set(INGREDIENTS):
        raise AssayError(f"There is no ingredient {min(unknown)!r}: choose among {', '.join(INGREDIENTS)}.")
    settings = PROCEDURES[procedure]
    if "bce" not in without:
        recipe = with_loss(recipe, partial(multi_label_loss, smoothing=settings.smoothing))
    if "lamb" not in without:
        recipe = _by_lamb(recipe, settings, rate, recipe.data.num_classes if "bce" not in without else 1)
    inputs = recipe.data.train.inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return recipe
    if inputs.dim() == 4:
        recipe = _images(recipe, inputs, settings, without)
    if "mixing" not in without:
        recipe = recipe.replace(hooks=(*recipe.hooks, Mixing(mixup=settings.mixup)))
    return recipe


def _by_lamb(recipe: Recipe, settings: Procedure, rate: float | None, scale: float) -> Recipe:
    """LAMB for a loss that is ``scale`` times the paper's.

    The paper takes the mean of binary cross-entropy over classes. Their sum, which can be put together with other losses, makes
    gradients longer by the number of classes; with the bounds on them growing along, every step is the same.
    """
    steps = recipe.epochs * math.ceil(len(recipe.data.train) / recipe.batch_size)
    rate = rate_for(settings, steps) if rate is None else rate
    made = partial(lamb, lr=rate, weight_decay=settings.weight_decay, max_grad_norm=1.0 * scale, eps=1e-6 * scale)
    return recipe.replace(optimizer=made, schedule=partial(warmup_cosine, warmup=5 / settings.epochs))


def _images(recipe: Recipe, images: Tensor, settings: Procedure, without: Collection[str]) -> Recipe:
    """What only images get."""
    steps: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (recipe.augment or _crop(min(images.shape[2:])),)
    if "rand_augment" not in without:
        steps = (*steps, partial(rand_augment, magnitude=settings.magnitude, **colours_of(images)))
    if settings.copies > 1 and "repeats" not in without:
        hook = RepeatedAugmentation(partial(in_turn, steps=steps), settings.copies)
        recipe = recipe.replace(hooks=(*recipe.hooks, hook), augment=None)  # the copies are made before they are augmented
    else:
        recipe = recipe.replace(augment=partial(in_turn, steps=steps))
    if settings.drop_path and "drop_path" not in without and _is_residual(recipe):
        recipe = recipe.replace(model=partial(with_drop_path, recipe.model, settings.drop_path))
    return recipe


def _crop(side: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Crops and mirror images, as is usual for images of this size."""
    return partial(flip_and_crop, pad=max(1, side // 8)) if side < 64 else random_resized_crop


def _is_residual(recipe: Recipe) -> bool:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # nothing is drawn or computed
        return bool(residual_branches(recipe.model()))


def classic(recipe: Recipe, rate: float | None = None) -> Recipe:
    """The procedure of 2015: SGD with momentum, a tenth of the rate after one and two thirds, cross-entropy.

    With crops and mirror images, as :func:`resnet_strikes_back` has them.

    Args:
        recipe: what to change.
        rate: at the beginning; ``None`` takes 0.1 for each 256 images of a batch.
    """
    rate = 0.1 * recipe.batch_size / 256 if rate is None else rate
    return recipe.replace(
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=1e-4),
        schedule=partial(steps_at, at=(1 / 3, 2 / 3), gamma=0.1),
        augment=_crop(min(recipe.data.input_shape[1:])),
    )


# ---------------------------------------------------------------------------------------------------- claims

# Rates: for every procedure the best of three (SGD 0.05, 0.1, 0.2; LAMB and AdamW below) on 3,000 held-out images that no
# claim trains on, at the middle length, before anything was judged.
_CLASSIC_RATE = 0.05
_LAMB_RATE = 0.02  # of 0.01, 0.02, 0.04, for A2 and for A3; also what rate_for gives
_ADAMW_RATE = 0.01  # of 0.001, 0.003, 0.01


def _plain(lab: Lab, length: str) -> Recipe:
    """What all arms have in common; ``length`` is short, middle or long."""
    epochs = lab.pick(
        smoke={"short": 1, "middle": 1, "long": 2},
        laptop={"short": 10, "middle": 60, "long": 150},
        full={"short": 10, "middle": 100, "long": 300},
    )[length]
    data = lab.data(lab.pick(smoke="digits", laptop="fashion-mnist", full="cifar10"))
    net: Callable[[], Any] = partial(cifar_resnet, 8, width=8, in_channels=1)
    if lab.scale == "smoke":
        data = data.subset(train=128, test=100)
    elif lab.scale == "laptop":
        data, net = data.subset(train=256, seed=lab.seed), partial(half_size, net)
    else:
        net = partial(cifar_resnet, 20)
    return Recipe(
        data.normalise(),
        model=net,
        # What stays where LAMB is left out.
        optimizer=partial(torch.optim.AdamW, lr=_ADAMW_RATE, weight_decay=0.01),
        schedule=warmup_cosine,
        epochs=epochs,
        batch_size=lab.pick(smoke=64, laptop=32, full=128),
        watch=(),
    )


def _classic(lab: Lab, length: str) -> Recipe:
    # At full scale batches are those that the usual rates are meant for.
    return classic(_plain(lab, length), rate=lab.pick(smoke=_CLASSIC_RATE, laptop=_CLASSIC_RATE, full=None))


def _procedure(lab: Lab, name: str, length: str, without: tuple[str, ...] = ()) -> Recipe:
    rate = lab.pick(smoke=_LAMB_RATE, laptop=_LAMB_RATE, full=None)
    return resnet_strikes_back(_plain(lab, length), name, rate=rate, without=without)


_SCALED_DOWN = (
    "256 Fashion-MNIST images of 14x14 (all 10,000 tests) in batches of 32, a ResNet-8 of 8 to 32 planes and 10, 60 and 150 "
    "epochs (1,200 steps), instead of ImageNet, batches of 2048, a ResNet-50 and 100 to 600 epochs (62,000 to 375,000 steps). "
    "The rate of every procedure is the best of three on held-out images."
)


@claim(
    "After 150 epochs procedure A3 (LAMB, binary cross-entropy, mixing, RandAugment) classifies test images better than the "
    "classic one (SGD, cross-entropy, crops and mirror images) does after as many.",
    expect=Higher("A3, long", than="classic, long"),
    reported=Reported(
        "ImageNet, ResNet-50: top-1 accuracy after 90 (classic, torchvision's), 100, 300 and 600 epochs",
        {"classic": 0.761, "A3": 0.781, "A2": 0.798, "A1": 0.804},
        where="Tables 1 and 3",
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def pays_in_long_trainings(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name in ("classic", "A3"):
        lengths = ("short", "middle", "long")
        runs = [lab.train(_classic(lab, length) if name == "classic" else _procedure(lab, name, length)) for length in lengths]
        scores = [trained.accuracy() for trained in runs]
        arms[f"{name}, long"] = scores[-1]
        arms[name] = Curve(
            scores,
            [trained.recipe.epochs for trained in runs],
            cost=runs[-1].cost,
            x_name="epochs of the whole training",
            y_name="test accuracy",
        )
    # The stronger procedure, which the paper has for three times as long a training.
    return {**arms, "A2, long": lab.train(_procedure(lab, "A2", "long")).accuracy()}


@claim(
    "In a short training it does not pay: after 10 epochs the classic procedure classifies test images better than A3.",
    expect=Lower("A3, short", than="classic, short"),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def does_not_pay_in_short_trainings(lab: Lab) -> Measured:
    return {
        "A3, short": lab.train(_procedure(lab, "A3", "short")).accuracy(),
        "classic, short": lab.train(_classic(lab, "short")).accuracy(),
    }


@claim(
    "On mixed batches binary cross-entropy, with all classes that make up more than a fifth of a mixture as there, is less than "
    "a point worse than cross-entropy with shares of the classes, all else being as in A3.",
    expect=Higher("binary cross-entropy", than="cross-entropy", by=-0.01),
    scaled_down=_SCALED_DOWN + " 60 epochs.",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def binary_cross_entropy_suits_mixtures(lab: Lab) -> Measured:
    return {
        "binary cross-entropy": lab.train(_procedure(lab, "A3", "middle")).accuracy(),
        "cross-entropy": lab.train(_procedure(lab, "A3", "middle", without=("bce",))).accuracy(),
    }


@claim(
    "No ingredient is in the way: leaving any one of them out of A3 (AdamW instead of LAMB, cross-entropy instead of binary "
    "cross-entropy, no RandAugment, no mixing) makes it better by less than a point.",
    expect=(
        Lower("without lamb", than="A3", by=-0.01),
        Lower("without bce", than="A3", by=-0.01),
        Lower("without rand_augment", than="A3", by=-0.01),
        Lower("without mixing", than="A3", by=-0.01),
    ),
    scaled_down=_SCALED_DOWN + " 60 epochs.",
    unit="test accuracy",
    needs=("fashion-mnist",),
)
def every_ingredient_is_worth_it(lab: Lab) -> Measured:
    arms = {"A3": lab.train(_procedure(lab, "A3", "middle")).accuracy()}
    for name in ("lamb", "bce", "rand_augment", "mixing"):
        arms[f"without {name}"] = lab.train(_procedure(lab, "A3", "middle", without=(name,))).accuracy()
    return arms
