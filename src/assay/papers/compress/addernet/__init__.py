"""Adder networks: convolutional layers without multiplications.

A filter of a convolution answers strongly where the picture is like the filter; likeness is a product, and multiplying is what
a chip spends area and energy on. But likeness can be measured by a distance as well. An adder layer returns minus the L1
distance of each patch of the picture from each filter, which takes additions alone:

    Y[m, n, t] = - sum_ijk | X[m + i, n + j, k] - F[i, j, k, t] |                                                 (eq. 2)

Three things keep such a net from learning, and each has its remedy:

- answers are never above 0 and spread far, so batch normalisation stands behind every adder layer;
- the derivative is a sign, which tells the direction of an octant at best. Filters get the difference itself, X - F (eq. 5),
  and what goes on to the layer before is the difference cut at -1 and 1 (eq. 6, 7), so that it does not grow on its way;
- the gradients of filters are small and of another size in every layer. Each layer has a rate of its own, eta sqrt(k) over
  the length of its gradient, k being its number of weights (eq. 12, 13).

**Nothing here is faster on a processor**, whose multiplications cost no more than additions: the gain is on chips made for it
(:class:`Operations`). So the point of this layer is to train such nets in bearable time. Written down as above, differences of
all patches and all filters fill (patches x weights) numbers, several times over. Here they are taken in tiles that stay in the
processor's cache, patches are cut out for a few examples at a time, and the gradient of the filters is a matrix product: memory
grows with input and output, as that of a convolution does.

Source: Chen, Wang, Xu, Shi, Xu, Tian and Xu, "AdderNet: Do We Really Need Multiplications in Deep Learning?", CVPR 2020. The
rate's eta is that of the authors' code, 0.2; their text has 0.1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn.convnet import classifier, plain_layers
from assay.nn.measure import macs
from assay.paper import Configuration, Curve, Higher, Lower, Reported, claim
from assay.papers.architectures.resnet import IMAGENET, ResNet, cifar_resnet, resnet
from assay.papers.compress.addernet.layer import AdderConv2d, Gradient, adder2d
from assay.recipe import Recipe, treatment
from assay.train.augment import flip_and_crop
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

__all__ = [
    "AdderConv2d",
    "Operations",
    "adder2d",
    "adder_resnet",
    "addernet",
    "gradient_lengths",
    "operations",
    "small",
    "to_adder",
]


def to_adder(model: nn.Module, eta: float = 0.2, gradient: Gradient = "full", adaptive: bool = True) -> nn.Module:
    """Put adder layers with new filters in the place of a network's convolutions, but for its first and its last layer.

    A convolution keeps its shape and loses its bias. Where the module that its parent registers next is no batch normalisation
    of its planes, one is put behind it. Convolutions of groups, with dilation or with another padding than zeros stay.
    A convolution that stands in several places becomes one adder layer in all of them.

    Args:
        model: changed in place.
        eta: the local rate, as for :class:`AdderConv2d`.
        gradient: ``"full"`` or ``"sign"``, as for :class:`AdderConv2d`.
        adaptive: ``False`` multiplies gradients of filters by ``eta`` itself.

    Returns:
        The network.

    Raises:
        AssayError: it has no convolution between its first and its last layer.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    found = [layer for layer in layers[1:-1] if isinstance(layer, nn.Conv2d) and _plain(layer)]
    if not found:
        raise AssayError("Adder layers take the place of convolutions behind the first layer, and this network has none.")
    made: dict[nn.Module, AdderConv2d] = {}
    for conv in found:
        sizes: Any = conv.kernel_size, conv.stride, conv.padding
        adder = AdderConv2d(conv.in_channels, conv.out_channels, *sizes, eta, gradient, adaptive)  # type: ignore[call-arg]
        made[conv] = adder.to(conv.weight)
    normed: dict[nn.Module, nn.Module] = {}  # where no normalisation follows
    for parent in list(model.modules()):
        places = list(parent._modules.items())  # named_children() leaves out what stands here a second time
        for (name, child), (_, after) in zip(places, [*places, ("", None)][1:], strict=True):
            if child is None or child not in made:
                continue
            adder = made[child]
            if isinstance(after, nn.BatchNorm2d) and after.num_features == adder.out_channels:
                setattr(parent, name, adder)
                continue
            if adder not in normed:
                normed[adder] = nn.Sequential(adder, nn.BatchNorm2d(adder.out_channels).to(adder.weight))
            setattr(parent, name, normed[adder])
    return model


def _plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def adder_resnet(depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int | None = None) -> ResNet:
    """The residual networks of the paper: adder layers throughout, also in the shortcuts (B), an ordinary first and last layer.

    Logits are batch-normalised, too, as in the authors' code.

    Args:
        depth: 20, 32 ... (6n + 2) for small images, 18, 34, 50, 101 or 152 for large ones.
        num_classes: number of logits.
        in_channels: channels of the input.
        width: planes of the first stage; ``None`` is 16, or 64 for large images.

    Shape: (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: there is no network of this depth.
    """
    large = depth in IMAGENET
    if large:
        net = resnet(depth, num_classes, in_channels, "B", width or 64)
    else:
        net = cifar_resnet(depth, "B", width=width or 16, num_classes=num_classes, in_channels=in_channels)
    to_adder(net)
    head, last = net.get_submodule("head"), net.get_submodule("head.fc")
    assert isinstance(last, nn.Linear)
    if not large:  # as in the authors' code
        last.register_parameter("bias", None)
    head.add_module("norm", nn.BatchNorm1d(num_classes))
    return net


adder_resnet20, adder_resnet32, adder_resnet18, adder_resnet50 = (
    partial(adder_resnet, depth, classes) for depth, classes in ((20, 10), (32, 10), (18, 1000), (50, 1000))
)


def small(num_classes: int = 10, in_channels: int = 1, depth: int = 8) -> nn.Sequential:
    """The paper's CIFAR net at half its width on images of half the height and width, for a core without an accelerator.

    Its twin with convolutions is ``half_size(partial(cifar_resnet, depth, "B", width=8))`` of ``resnet``.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        depth: 8, or 20 as in the paper, which takes three times as long.
    """
    return nn.Sequential(nn.AvgPool2d(2), adder_resnet(depth, num_classes, in_channels, width=8))


#: The standard networks, and what they are known to measure. Adder layers have no multiply-adds: what is left is the first and
#: the last layer.
CONFIGURATIONS = {
    "adder_resnet20()": Configuration((3, 32, 32), parameters=272_484, macs=443_008, layers=20, sees=81, activations=200_704),
    "adder_resnet32()": Configuration((3, 32, 32), parameters=466_916, macs=443_008, layers=32, sees=137, activations=315_392),
    "adder_resnet18()": Configuration(
        (3, 224, 224), parameters=11_691_512, macs=118_525_952, layers=18, sees=435, activations=2_483_712
    ),
    "adder_resnet50()": Configuration(
        (3, 224, 224), parameters=25_559_032, macs=120_061_952, layers=50, sees=427, activations=11_113_984
    ),
}


@dataclass(frozen=True)
class Operations:
    """What layers with weights compute for one example.

    Attributes:
        multiplications: of numbers.
        additions: and subtractions; taking an absolute value is none.
    """

    multiplications: int
    additions: int

    def picojoules(self, multiplication: float = 3.7, addition: float = 0.9) -> float:
        """Energy; the prices of one operation are those of float32 in 45 nm (Horowitz, ISSCC 2014). For int8: 0.2 and 0.03."""
        return self.multiplications * multiplication + self.additions * addition


def operations(model: nn.Module, shape: tuple[int, ...]) -> Operations:
    """Count multiplications and additions of convolutions, linear and adder layers; nothing is computed.

    Args:
        model: it is left as it is.
        shape: of one example, e.g. ``(3, 32, 32)``.
    """
    shadow, additions = copy.deepcopy(model).to("meta").eval(), 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal additions
        assert isinstance(layer, AdderConv2d)
        additions += 2 * out[0].numel() * layer.weight[0].numel()  # a difference, and adding it up

    for layer in shadow.modules():
        if isinstance(layer, AdderConv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    ordinary = macs(model, shape)
    return Operations(ordinary, ordinary + additions)


@treatment
def addernet(recipe: Recipe, eta: float = 0.2) -> Recipe:
    """Adder layers in the place of the network's convolutions, but for its first and its last layer.

    Expect somewhat lower accuracy and a longer training: what is gained is energy, on a chip without multipliers.

    Args:
        recipe: of a network of images with two convolutions or more. The paper trains with SGD, momentum 0.9 and a rate of 0.1
            along a cosine. With Adam-like optimizers, which even out the lengths of gradients by themselves, ``eta`` is idle.
        eta: the local rate of every layer, above 0.

    Raises:
        AssayError: the network has no convolutions behind its first layer, or ``eta`` is no rate.
    """
    if eta <= 0:
        raise AssayError(f"The local rate of adder layers is eta={eta}, which is none: take one above 0.")
    made = partial(_converted, recipe.model, eta)
    with torch.device("meta"):
        made()  # refuses now rather than when training begins
    return recipe.replace(model=made)


def _converted(make: Callable[[], nn.Module], eta: float, gradient: Gradient = "full", adaptive: bool = True) -> nn.Module:
    return to_adder(make(), eta, gradient, adaptive)


# ---------------------------------------------------------------------------------------------------- claims

# Chosen before anything was judged: the net by the time of its training, what is tried for each arm a decade or so apart.
_ETAS, _RATES, _GAINS = (0.05, 0.2, 0.8), (0.01, 0.1, 1.0), (10.0, 100.0, 1000.0)


def small_plain(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Four convolutions with batch normalisation and one linear layer: what the claims convert, 7,690 parameters."""
    return nn.Sequential(plain_layers("8 8 M 16 M 32", in_channels, batch_norm=True), classifier(32, num_classes))


def _ordinary(lab: Lab) -> Callable[[], nn.Module]:
    return partial(cifar_resnet, 20, "B") if lab.scale == "full" else small_plain


def _adder(lab: Lab, eta: float = 0.2, gradient: Gradient = "full", adaptive: bool = True) -> Callable[[], nn.Module]:
    return partial(_converted, _ordinary(lab), eta, gradient, adaptive)


def _recipe(lab: Lab, model: Callable[[], nn.Module], rate: float = 0.1) -> Recipe:
    """The paper's training (sec. 4.2): momentum 0.9, weight decay 5e-4, a rate of 0.1 along a cosine."""
    data = lab.data(lab.pick(smoke="digits", laptop="digits", full="cifar10"))
    if lab.scale == "smoke":
        data = data.subset(train=256, test=100)
    return Recipe(
        data.holdout(0.15, seed=lab.seed).normalise(),
        model=model,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4),
        schedule=cosine,
        augment=flip_and_crop if lab.scale == "full" else None,
        epochs=lab.pick(smoke=1, laptop=10, full=400),
        batch_size=lab.pick(smoke=128, laptop=128, full=256),
    )


def _curve(trained: Trained) -> Curve:
    return Curve(trained.history["test_accuracy"], cost=trained.cost, y_name="test accuracy")


def _best(lab: Lab, tried: Sequence[Recipe]) -> Curve:
    """The test accuracy of the one that does best on held-out data."""
    return _curve(max((lab.train(recipe) for recipe in tried), key=lambda trained: float(trained.accuracy("valid"))))


_SCALED_DOWN = (
    "Digits of 8x8 and a net of four convolutions with 8 to 32 planes, three of them adder layers, 10 epochs with batches of "
    "128; the paper trains a ResNet-20 on CIFAR-10 for 400 epochs with batches of 256."
)
_LENET = (
    "Digits of 8x8 and a net of three adder layers, 10 epochs; the paper's comparison is of a LeNet-5 with batch normalisation "
    "on MNIST, where the larger rate is a hundred times as large."
)


@claim(
    "With adder layers in the place of its convolutions a net classifies test images no more than 3 points worse.",
    expect=Higher("adder layers", than="convolutions", by=-0.03),
    reported=(
        Reported("CIFAR-10, ResNet-20: test accuracy", {"convolutions": 0.9225, "adder layers": 0.9184}, where="Table 2"),
        Reported("ImageNet, ResNet-50: top-1 accuracy", {"convolutions": 0.762, "adder layers": 0.749}, where="Table 3"),
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
)
def close_to_convolutions(lab: Lab) -> Measured:
    return {
        "convolutions": _curve(lab.train(_recipe(lab, _ordinary(lab)))),
        "adder layers": _curve(lab.train(_recipe(lab, _adder(lab)))),
    }


@claim(
    "With signs as gradients, which are the true derivatives, an adder net is more than a point less accurate than with "
    "differences.",
    expect=Higher("differences", than="signs", by=0.01),
    reported=Reported(
        "MNIST, LeNet-5 with batch normalisation, adaptive rates: test accuracy",
        {"convolutions": 0.994, "differences": 0.994, "signs": 0.9799},
        where="sec. 4.4",
    ),
    scaled_down=_LENET,
    unit="test accuracy",
)
def differences_instead_of_signs(lab: Lab) -> Measured:
    return {
        "differences": _curve(lab.train(_recipe(lab, _adder(lab)))),
        "signs": _curve(lab.train(_recipe(lab, _adder(lab, gradient="sign")))),
        "convolutions": _curve(lab.train(_recipe(lab, _ordinary(lab)))),
    }


def _adaptive(lab: Lab) -> Curve:
    return _best(lab, [_recipe(lab, _adder(lab, eta)) for eta in _ETAS])


@claim(
    "With one rate for all layers, the best of three, an adder net is more than 2 points less accurate than with a rate for each "
    "layer (the best of three eta).",
    expect=Higher("a rate for each layer", than="one rate", by=0.02),
    reported=Reported(
        "MNIST, LeNet-5 with batch normalisation, differences as gradients: test accuracy",
        {"a rate for each layer": 0.994, "one rate": 0.5491},
        where="sec. 4.4",
    ),
    scaled_down=_LENET + " Settings are chosen on 15% of the training data.",
    unit="test accuracy",
)
def one_rate_is_not_enough(lab: Lab) -> Measured:
    plain = _adder(lab, eta=1.0, adaptive=False)
    return {
        "a rate for each layer": _adaptive(lab),
        "one rate": _best(lab, [_recipe(lab, plain, rate) for rate in _RATES]),
    }


@claim(
    "Nor is it enough to raise the rate of all filters by one factor: with the best of 10, 100 and 1000 an adder net is less "
    "accurate than with a rate for each layer (the best of three eta).",
    expect=Higher("a rate for each layer", than="a larger rate for filters"),
    reported=Reported(
        "MNIST, LeNet-5 with batch normalisation, differences as gradients: test accuracy",
        {"a rate for each layer": 0.994, "a larger rate for filters": 0.9899},
        where="sec. 4.4",
    ),
    scaled_down=_LENET + " Settings are chosen on 15% of the training data.",
    unit="test accuracy",
)
def one_larger_rate_is_not_enough(lab: Lab) -> Measured:
    raised = [_adder(lab, eta=gain, adaptive=False) for gain in _GAINS]
    return {
        "a rate for each layer": _adaptive(lab),
        "a larger rate for filters": _best(lab, [_recipe(lab, model) for model in raised]),
    }


def gradient_lengths(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """L2 length of the gradient of cross-entropy with respect to each layer of filters, local rates left out (Table 1).

    Args:
        model: left as it is.
        images: (B, C, H, W).
        labels: (B,).
    """
    shadow = copy.deepcopy(model).train()
    layers = [layer for layer in shadow.modules() if isinstance(layer, (nn.Conv2d, AdderConv2d))]
    for layer in layers:
        if isinstance(layer, AdderConv2d):
            layer.eta, layer.adaptive = 1.0, False
    gradients = torch.autograd.grad(F.cross_entropy(shadow(images), labels), [layer.weight for layer in layers])
    return [gradient.norm().item() for gradient in gradients]


@claim(
    "Before the first step the gradients of adder filters have less than a tenth of the length of those of convolutions in their "
    "places (geometric mean), and the longest and the shortest of a net are farther apart (their ratio).",
    expect=(
        Lower("adder layers", than="convolutions", times=0.1),
        Higher("adder layers, longest over shortest", than="convolutions, longest over shortest"),
    ),
    reported=(
        Reported(
            "MNIST, LeNet-5 with batch normalisation, first iteration: lengths of the three layers' gradients",
            {"adder layers, 1": 0.0009, "adder layers, 2": 0.0012, "adder layers, 3": 0.0146},
            where="Table 1",
        ),
        Reported(
            "MNIST, LeNet-5 with batch normalisation, first iteration: lengths of the three layers' gradients",
            {"convolutions, 1": 0.2261, "convolutions, 2": 0.2990, "convolutions, 3": 0.4646},
            where="Table 1",
        ),
    ),
    scaled_down="Three layers behind the first of a net on digits of 8x8, means over 10 draws of the initial weights.",
    unit="length of the gradient",
)
def small_and_unequal_gradients(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, make in (("convolutions", _ordinary(lab)), ("adder layers", _adder(lab))):
        data = _recipe(lab, make).data.train
        assert isinstance(data.inputs, Tensor)
        images, labels = data.inputs[:512].to(lab.device), data.labels[:512].to(lab.device)
        found = []
        for draw in range(10):
            with torch.random.fork_rng():
                torch.manual_seed(1000 * lab.seed + draw)
                found.append(gradient_lengths(make().to(lab.device), images, labels)[1:])  # the first layer is no adder layer
        logs = torch.tensor(found, dtype=torch.float64).log().mean(0)
        arms[name] = Curve(logs.exp().tolist(), value=logs.mean().exp().item(), x_name="layer", y_name="length of the gradient")
        arms[f"{name}, longest over shortest"] = (logs.max() - logs.min()).exp().item()
    return arms
