"""Networks without normalisation: keep signals at variance 1 by arithmetic, and clip gradients unit by unit.

Batch normalisation makes deep residual networks trainable, and has its price: time, memory, examples that depend on the rest of
their batch, trouble with small batches and several devices. What does it do at the start of training? A signal propagation plot
tells: without it each residual branch is as strong as its input, so that the variance doubles with every block; with it the
branch is brought back to variance 1, so that the variance grows by 1 a block only, and the mean that ReLU gives to every channel
is taken out. Both can be had without looking at any batch:

    h_{l+1} = h_l + alpha * f(h_l / beta_l),    beta_l^2 = Var(h_l),    Var(h_{l+1}) = Var(h_l) + alpha^2

where Var is what arithmetic predicts from Var(h_0) = 1, and not measured. Where a stage changes the shape, the shortcut is a
convolution of the scaled signal, and the prediction begins again at 1. All this takes for granted that f keeps the variance, and
scaled weight standardisation makes it so (:mod:`assay.nn.standardised`). Each branch may begin at 0 (SkipInit). With clipping
that follows the length of each filter (:mod:`assay.train.clip`), such networks stand large batches and high rates, and the family
NFNet-F0 to F6 reached 83.6 to 86.5 % on ImageNet.

An older way for plain networks without shortcuts is an activation whose fixed point is mean 0 and variance 1, SELU, with weights
of variance 1 / fan-in (:func:`selu_mlp`).

Sources: Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized ResNets", ICLR 2021
(2021a); Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021
(2021b); Klambauer, Unterthiner, Mayr and Hochreiter, "Self-Normalizing Neural Networks", NeurIPS 2017; put together by Hoedt,
Hochreiter and Klambauer, "Normalization is dead, long live normalization!", ICLR blog track 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assay.errors import AssayError, Diverged
from assay.nn.measure import nearest_width, parameters
from assay.nn.propagation import signal_propagation
from assay.nn.standardised import WSConv2d, WSLinear, folded, lecun_normal_, standardise, variance_gain
from assay.paper import Above, Below, Curve, Higher, Reported, Score, claim
from assay.papers.architectures.nfnet.networks import (
    ACTIVATIONS,
    CONFIGURATIONS,
    DEPTHS,
    NFBlock,
    NFNet,
    Style,
    authors,
    cifar_nf_resnet,
    exact,
    load_pretrained,
    nf_resnet,
    nf_resnet26,
    nf_resnet50,
    nf_resnet101,
    nfnet,
    nfnet_f0,
    nfnet_f1,
    nfnet_f2,
    nfnet_f3,
    nfnet_f4,
    nfnet_f5,
    nfnet_f6,
    selu_mlp,
    small,
    timms,
)
from assay.recipe import Recipe, network_of_images, probe, treatment
from assay.train.clip import AGC, AdaptiveClipping, adaptive_clip_
from assay.train.optim import without_decay_of_vectors
from assay.train.schedules import one_cycle
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


@treatment
def agc(recipe: Recipe, clip: float = 0.16, eps: float = 1e-3) -> Recipe:
    """Clip the gradient of every unit to ``clip`` lengths of its weights, before the optimizer sees it; any network.

    Args:
        recipe: anything. A recipe's own bound on the norm of the whole gradient comes first.
        clip: 0.01 for batches of 4096 in the paper, and up to 0.16 for small ones. Too low a value slows a training down.
        eps: least length that weights count as.

    Raises:
        AssayError: the recipe clips like this already.
    """
    if any(isinstance(hook, AdaptiveClipping) for hook in recipe.hooks):
        raise AssayError("This recipe clips its gradients unit by unit already: take one of the two bounds.")
    return recipe.replace(hooks=(AdaptiveClipping(clip, eps), *recipe.hooks))


@treatment
def normalizer_free(recipe: Recipe, depth: int = 20) -> Recipe:
    """A residual network without normalisation in place of the recipe's, as wide as comes nearest to its number of parameters.

    Everything else stays. Such networks like high rates; AGC is a treatment of its own.

    Args:
        recipe: of a classifier of images.
        depth: 6n + 2.

    Raises:
        AssayError: the data are no images or no classes, or the recipe's network is such a network already.
    """
    now, data = network_of_images(recipe, "These networks", "normalizer_free"), recipe.data
    if any(isinstance(module, NFBlock) for module in now.modules()):
        raise AssayError("The network of this recipe has no normalisation already: leave normalizer_free out.")
    make = partial(cifar_nf_resnet, depth, num_classes=data.num_classes, in_channels=data.input_shape[0])
    width = nearest_width(lambda width: make(width=width), parameters(now), range(2, 260))  # 1x1 filters of one weight are 0
    return recipe.replace(model=partial(make, width=width))


@probe
def signal_plot(view: View) -> Seen:
    """What a network does to the mean and variance of its signals, block by block, on these data.

    Args:
        view: a network and examples; batch normalisation normalises by them.
    """
    view.only("images", "audio", "series", "table")
    if not view.layered:
        raise AssayError("this probe looks into layers, which an exported program has not: give the network itself")
    try:
        seen = signal_propagation(view.model, torch.cat([view.inputs, view.background]))
    except ValueError as error:
        raise AssayError(str(error)) from None
    numbers: dict[str, float] = {}
    for row in seen.itertuples():
        numbers |= {f"variance after {row.block}": row.var, f"squared mean after {row.block}": row.mu2}
        if row.res_var == row.res_var:
            numbers[f"variance of the branch in {row.block}"] = row.res_var
    return Seen(
        numbers=numbers,
        notes=("where the squared mean is many times the variance, channels have nearly the same value for every input",),
    )


def nesterov(parameters: Iterable[Any], lr: float = 0.5, weight_decay: float = 2e-5) -> torch.optim.SGD:
    """The paper's optimizer: Nesterov's momentum of 0.9, weight decay for filters and matrices, none for biases and gains."""
    return torch.optim.SGD(without_decay_of_vectors(parameters, weight_decay), lr=lr, momentum=0.9, nesterov=True)


def paper_training(recipe: Recipe) -> Recipe:
    """How such networks are trained (2021b, section 6.1): Nesterov's momentum and AGC, here in batches of 128.

    The rate is higher than the paper's, 0.1 for every 256 examples, since branches that begin at 0 need time, or long steps.
    """
    return agc(recipe.replace(optimizer=nesterov, schedule=one_cycle, batch_size=128))


# ---------------------------------------------------------------------------------------------------- claims


def drawn(in_planes: int, planes: int, kernel: int, stride: int, padding: int, groups: int = 1, gamma: float = 1.0) -> nn.Conv2d:
    """A plain convolution with weights from N(0, gamma^2 / fan-in): He's, where gamma is the root of 2."""
    conv = nn.Conv2d(in_planes, planes, kernel, stride, padding, groups=groups)
    lecun_normal_(conv.weight, gamma)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def normed(planes: int) -> nn.Sequential:
    """Batch normalisation and ReLU."""
    return nn.Sequential(nn.BatchNorm2d(planes), nn.ReLU())


# The same table of convolutions in four ways. He's initial weights stand where there is no standardisation.
PLAIN = Style(2**0.5, conv=drawn, alpha=1.0, predicted=False, start="full")
NORMED = replace(PLAIN, act=normed)
SCALED = replace(PLAIN, alpha=0.2, predicted=True)

# Chosen before anything was judged: the rate in a pilot with another network, the bound as the paper's for its smallest batches.
RATE, CLIP = 0.5, 0.16
# At first from 0.5 to 8. One seed showed that without clipping nothing trains there, so that two of these are lower.
RATES = (0.25, 0.5, 1.0, 2.0)


def moments(style: Style, depth: int, width: int, shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """The signal propagation plot of a fresh network on noise: mu2, var and res_var by block."""
    torch.manual_seed(seed)
    seen = signal_propagation(nf_resnet(depth, style=style, width=width), torch.randn(shape), batch_size=64)
    return {name: torch.tensor(seen[name].to_numpy()) for name in ("mu2", "var", "res_var")}


def _plot(lab: Lab, style: Style) -> dict[str, Tensor]:
    depth, width, shape = lab.pick(
        smoke=(26, 4, (8, 3, 64, 64)), laptop=(50, 32, (16, 3, 224, 224)), full=(50, 64, (1000, 3, 224, 224))
    )
    return lab.remember(moments, style=style, depth=depth, width=width, shape=shape, seed=lab.seed)


def _places(lab: Lab) -> Tensor:
    """Which block of its stage each block is, from 1."""
    return torch.cat([torch.arange(1, count + 1) for count in DEPTHS[lab.pick(smoke=26, laptop=50, full=50)]])


_NOISE = "16 pictures of noise of 224x224 instead of 1,000, and half of the planes of ResNet-50."


@claim(
    "At the start the variance of a pre-activation residual net without normalisation grows by more than half with every block; "
    "with batch normalisation, or scaled branches and standardised weights, that of the k-th block of a stage is at most a fifth "
    "above 1 + k alpha^2 (alpha = 1 and 0.2).",
    expect=(
        Above("growth a block, no normalisation", 1.5),
        Below("batch normalisation", 1.2),
        Below("normaliser-free", 1.2),
    ),
    scaled_down=_NOISE,
    unit="variance by block; judged: the largest over 1 + k alpha^2",
)
def variance_explodes_without_norm(lab: Lab) -> Measured:
    places, arms = _places(lab), {}
    styles = {"no normalisation": PLAIN, "batch normalisation": NORMED, "normaliser-free": replace(exact(), start="full")}
    for arm, style in styles.items():
        seen = _plot(lab, style)
        over = (seen["var"] / (1 + places * style.alpha**2)).max().item()
        arms[arm] = Curve(seen["var"].tolist(), value=over, x_name="block", y_name="variance")
    growth = _plot(lab, PLAIN)["var"].log().diff()[places[1:] > 1].mean().exp().item()
    return arms | {"growth a block, no normalisation": growth}


@claim(
    "Scaled branches alone leave a squared mean more than ten times that with standardised weights, and branches more than a "
    "fifth off variance 1; with standardised weights the squared mean stays below 0.01, and branches within a fifth of 1.",
    expect=(
        Below("squared mean, standardised", 0.01),
        Below("branches, standardised", 0.2),
        Higher("squared mean, scaled alone", than="squared mean, standardised", times=10),
        Above("branches, scaled alone", 0.2),
    ),
    scaled_down=_NOISE,
    unit="squared mean, largest over the blocks, and largest distance of a branch's variance from 1",
)
def standardised_weights_remove_the_mean(lab: Lab) -> Measured:
    arms = {}
    for arm, style in {"scaled alone": SCALED, "standardised": replace(exact(), start="full")}.items():
        seen = _plot(lab, style)
        mean, branch = seen["mu2"], seen["res_var"]
        off = (branch - 1).abs().max().item()
        arms[f"squared mean, {arm}"] = Curve(mean.tolist(), value=mean.max().item(), x_name="block", y_name="squared mean")
        arms[f"branches, {arm}"] = Curve(branch.tolist(), value=off, x_name="block", y_name="variance of the branch")
    return arms


def _recipe(lab: Lab, style: Style, depth: int, rate: float, batch_size: int, epochs: int) -> Recipe:
    """Nesterov's momentum at a rate that rises to ``rate`` and falls again, no weight decay, no augmentation."""
    data = lab.data(lab.pick(smoke="digits", laptop="digits", full="cifar10"))
    if lab.scale == "smoke":
        data = data.subset(train=256, test=100)
    width = lab.pick(smoke=4, laptop=8, full=16)
    return Recipe(
        data.normalise(),
        model=partial(cifar_nf_resnet, lab.pick(smoke=8, laptop=depth, full=depth), width, 10, data.input_shape[0], style),
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, nesterov=True),
        schedule=one_cycle,
        epochs=lab.pick(smoke=1, laptop=epochs, full=100),
        batch_size=batch_size,
    )


def _tried(lab: Lab, recipe: Recipe) -> Trained | None:
    """The training, or nothing where its loss ceased to be a number."""
    try:
        return lab.train(recipe)
    except Diverged:
        return None


def _guessing(recipe: Recipe) -> Score:
    """What a network that diverged is worth."""
    return Score(1 / recipe.data.num_classes)


_TRAINED = (
    "1,437 digits of 8x8, 32 layers of 8, 16 and 32 planes, 12 epochs in batches of 128 at a rate of 0.5 that rises and falls, "
    "instead of ImageNet in batches of 1024 and 4096."
)


def _arm(lab: Lab, style: Style, clip: float | None = None) -> Curve | Score:
    recipe = _recipe(lab, style, 32, RATE, 128, 12)
    if clip is not None:
        recipe = agc(recipe, clip)
    trained = _tried(lab, recipe)
    return _guessing(recipe) if trained is None else Curve(trained.history["test_accuracy"], cost=trained.cost)


@claim(
    "At a high rate (0.5), where a residual net of 32 layers without normalisation does not train, scaled branches and "
    "standardised weights make it classify more than 50 points better.",
    expect=Higher("normaliser-free", than="no normalisation", by=0.5),
    scaled_down=_TRAINED,
    unit="test accuracy",
)
def trains_without_norm(lab: Lab) -> Measured:
    return {"no normalisation": _arm(lab, PLAIN), "normaliser-free": _arm(lab, exact())}


@claim(
    "At a high rate (0.5) a normaliser-free net of 32 layers with AGC classifies no more than 5 points worse than one with batch "
    "normalisation.",
    expect=Higher("normaliser-free, AGC", than="batch normalisation", by=-0.05),
    reported=Reported(
        "ImageNet top-1: NFNet-F1, and EfficientNet-B7, whose step takes 8.7 times as long",
        {"normaliser-free, AGC": 0.847, "batch normalisation": 0.847},
        where="2021b, Table 3",
    ),
    scaled_down=_TRAINED,
    unit="test accuracy",
)
def agc_reaches_batch_norm(lab: Lab) -> Measured:
    return {"batch normalisation": _arm(lab, NORMED), "normaliser-free, AGC": _arm(lab, exact(), CLIP)}


@claim(
    "In batches of 512 the highest rate at which a normaliser-free net still trains (more than half of the test images right) is "
    "at least twice as high with AGC as without.",
    expect=Higher("AGC", than="no clipping", times=2, by=-0.01),
    scaled_down="1,437 digits, nets of 14 layers of 8, 16 and 32 planes, 10 epochs; the paper: ImageNet in batches of 4096.",
    unit="test accuracy by rate; judged: the highest rate of 1/4, 1/2, 1, 2 that trains, 1/8 if none does",
)
def agc_allows_high_rates(lab: Lab) -> Measured:
    arms: dict[str, Callable[[Recipe], Recipe]] = {
        "no clipping": lambda plain: plain,
        "norm of the whole gradient": lambda plain: plain.replace(clip_norm=1.0),
        "AGC": lambda plain: agc(plain, CLIP),
    }
    found = {}
    for arm, clipped in arms.items():
        reached = []
        for rate in RATES:
            recipe = clipped(_recipe(lab, exact(), 14, rate, 512, 10).replace(watch=()))
            trained = _tried(lab, recipe)
            reached.append(_guessing(recipe) if trained is None else trained.accuracy())
        highest = max((rate for rate, right in zip(RATES, reached, strict=True) if right > 0.5), default=RATES[0] / 2)
        found[arm] = Curve(reached, RATES, value=highest, x_name="rate", y_name="test accuracy")
    return found


__all__ = [
    "ACTIVATIONS",
    "AGC",
    "CONFIGURATIONS",
    "NFBlock",
    "NFNet",
    "Style",
    "WSConv2d",
    "WSLinear",
    "adaptive_clip_",
    "agc",
    "agc_allows_high_rates",
    "agc_reaches_batch_norm",
    "authors",
    "cifar_nf_resnet",
    "exact",
    "folded",
    "load_pretrained",
    "nf_resnet",
    "nf_resnet26",
    "nf_resnet50",
    "nf_resnet101",
    "nfnet",
    "nfnet_f0",
    "nfnet_f1",
    "nfnet_f2",
    "nfnet_f3",
    "nfnet_f4",
    "nfnet_f5",
    "nfnet_f6",
    "normalizer_free",
    "paper_training",
    "selu_mlp",
    "signal_plot",
    "signal_propagation",
    "small",
    "standardise",
    "standardised_weights_remove_the_mean",
    "timms",
    "trains_without_norm",
    "variance_explodes_without_norm",
    "variance_gain",
]
