"""DeepFool: the smallest push that makes a classifier change its mind.

How robust is a classifier? The distance from an input to the nearest decision boundary says it, but boundaries of deep
networks are curved and cannot be computed. For an affine classifier the distance is a formula: project on the nearest
hyperplane. DeepFool pretends that the network is affine around the present point, projects on the nearest of the
linearised boundaries, and repeats there until the label changes, which mostly takes two to four rounds. The mean of the
relative perturbation norms is a robustness number for a model.

Source: Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks",
CVPR 2016. Equation numbers are the paper's.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Split
from assay.nn.frozen import frozen
from assay.paper import Curve, Higher, Lower, Reported, claim
from assay.recipe import Recipe, probe
from assay.recipes import lenet_on
from assay.train.hooks import Hook, Run
from assay.view import Seen

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View

# Images that are linearised together: their feature maps stay in the cache while the classes' gradients are taken.
_CHUNK = 128


@dataclass(frozen=True)
class DeepFoolResult:
    """What :func:`deepfool` found for each of B images.

    Attributes:
        adversarial: (B, ...) the perturbed images.
        perturbation: (B, ...) ``adversarial`` minus the images.
        iterations: (B,) int64, linearisations that were used.
        label: (B,) int64, what the network said before.
        new_label: (B,) int64, what it says now; equal to ``label`` where ``max_iter`` did not suffice.
    """

    adversarial: Tensor
    perturbation: Tensor
    iterations: Tensor
    label: Tensor
    new_label: Tensor


@probe
def deepfool(
    model: nn.Module,
    images: Tensor,
    num_classes: int = 10,
    overshoot: float = 0.02,
    max_iter: int = 50,
    norm: float = 2,
    clip: tuple[float, float] | None = None,
) -> DeepFoolResult:
    """A nearly minimal perturbation of each image that changes the label the network gives it (algorithm 2).

    The label that must change is the network's own, right or wrong. The network is used in evaluation mode and left as it
    was found.

    Args:
        model: maps images to logits (B, C). Not probabilities: their gradients vanish where the network is sure.
        images: (B, ...) float.
        num_classes: how many of the classes most likely at the start are candidates, the label among them (paper: 10).
        overshoot: how far to step over the boundary, as a fraction of the whole perturbation (paper: 0.02).
        max_iter: most linearisations an image (paper: 50).
        norm: 2 (eqs. 8, 9) or ``math.inf`` (eqs. 11, 12): the norm in which the perturbation is small.
        clip: range of valid pixels, as (0, 1); ``None`` leaves images free to leave it, as the paper does.

    Raises:
        ValueError: another norm, or fewer than two candidate classes.
    """
    if norm not in (2, math.inf):
        raise ValueError(f"norm must be 2 or math.inf, not {norm}")
    images = images.detach()
    adversarial = images.clone()
    total = torch.zeros_like(images)
    iterations = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    with frozen(model, images), torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(_CHUNK)])
        if min(num_classes, logits.shape[1]) < 2:
            raise ValueError(f"DeepFool needs two classes, not {min(num_classes, logits.shape[1])}")
        label = logits.argmax(dim=1)
        # The label first, then the classes that come next; set above all others, since equal logits have no order.
        ranked = logits.scatter(1, label.unsqueeze(1), math.inf)
        candidates = ranked.topk(min(num_classes, logits.shape[1]), dim=1).indices  # (B, K)
        new_label = label.clone()
        active = torch.arange(len(images), device=images.device)
        for _ in range(max_iter):
            for rows in active.split(_CHUNK):
                total[rows] += _step(model, adversarial[rows], candidates[rows], norm)
                moved = images[rows] + (1 + overshoot) * total[rows]
                adversarial[rows] = moved if clip is None else moved.clamp(*clip)
                # A forward pass of its own: those that are done leave before gradients are taken again.
                new_label[rows] = model(adversarial[rows]).argmax(dim=1)
            iterations[active] += 1
            active = active[new_label[active] == label[active]]
            if not len(active):
                break
    return DeepFoolResult(adversarial, adversarial - images, iterations, label, new_label)


def _step(model: nn.Module, images: Tensor, candidates: Tensor, norm: float) -> Tensor:
    """From each image to the nearest of its linearised boundaries: (b, ...)."""
    size, classes = candidates.shape
    with torch.enable_grad():
        images = images.requires_grad_()
        logits = model(images)  # (b, C)
        nearest = torch.full((size,), math.inf, dtype=images.dtype, device=images.device)
        direction = torch.zeros_like(images)
        scale = torch.ones_like(nearest)
        for other in range(1, classes):
            # f'_k = f_k - f_label and w_k, its gradient. One graph, and one backward pass for each boundary: on a CPU this
            # is faster than all boundaries at once (vmap), whose gradients do not fit the cache.
            difference = logits.gather(1, candidates[:, [other]]) - logits.gather(1, candidates[:, :1])  # (b, 1)
            keep = other < classes - 1
            (gradient,) = torch.autograd.grad(difference.sum(), images, retain_graph=keep)
            # The distance in a norm is measured with its dual norm: 2 with 2, infinity with 1.
            length = gradient.flatten(1).norm(p=2 if norm == 2 else 1, dim=1).clamp_min(1e-8)
            distance = difference.detach().squeeze(1).abs() / length  # (b,)
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            scale = torch.where(closer, length, scale)
            direction = torch.where(_as_wide(closer, images), gradient, direction)
    # 1e-4 further than the boundary, as the authors' code does: on the boundary itself the steps would come to nothing.
    unit = direction / _as_wide(scale, images) if norm == 2 else direction.sign()
    return _as_wide(nearest + 1e-4, images) * unit


def _as_wide(values: Tensor, images: Tensor) -> Tensor:
    """(b,) -> (b, 1, 1, ...), so that it broadcasts over images."""
    return values.view(-1, *[1] * (images.dim() - 1))


def _relative(perturbation: Tensor, images: Tensor, norm: float = 2) -> Tensor:
    """||r|| / ||x|| of every image: (B,)."""
    ratio: Tensor = perturbation.flatten(1).norm(p=norm, dim=1) / images.flatten(1).norm(p=norm, dim=1)
    return ratio


@probe
def robustness(model: nn.Module, images: Tensor, norm: float = 2, num_classes: int = 10) -> float:
    """rho_adv: the mean of ||r|| / ||x|| over images, r from DeepFool (eq. 1 and sec. 4.1). Higher is more robust.

    The number depends on the scale of the inputs: standardised images have another norm than images in [0, 1]. It is
    infinite where an image is not fooled within the iterations: gradients that lead nowhere are no measure of a distance.

    Args:
        model: maps images to logits (B, C).
        images: (B, ...) float, none of them all zero.
        norm: 2 or ``math.inf``.
        num_classes: candidate classes, as for :func:`deepfool`.
    """
    found = deepfool(model, images, num_classes=num_classes, norm=norm)
    size = _relative(found.perturbation, images, norm)
    return torch.where(found.new_label == found.label, math.inf, size).mean().item()


@probe
def smallest_push(view: View, norm: float = 2, max_iter: int = 50, candidates: int = 10, overshoot: float = 0.02) -> Seen:
    """How far each input must move before the network says something else.

    Args:
        view: a classifier and examples.
        norm: in which the move is small: 2, or inf for the largest change of a single entry.
        max_iter: most linearisations an example.
        candidates: how many of the likeliest classes are looked at.
        overshoot: how far to step over the boundary, as a fraction of the whole move.
    """
    view.classifier()
    found = deepfool(view.model, view.inputs, candidates, overshoot, max_iter, norm)
    fooled = found.new_label != found.label
    size = found.perturbation.flatten(1).norm(p=norm, dim=1)
    # What was not fooled is at no known distance: leaving it out would make the network look weaker than it is.
    far = torch.where(fooled, size, math.inf)
    notes = () if bool(fooled.all()) else (f"{int((~fooled).sum())} examples kept their class through {max_iter} rounds",)
    return Seen(
        numbers={"share that changed class": fooled.double().mean().item(), "median size of the push": far.median().item()},
        each={
            "size of the push": far,
            "relative to the input": far / view.inputs.flatten(1).norm(p=norm, dim=1),
            "rounds": found.iterations,
        },
        attributions={"push": found.perturbation},
        inputs={"pushed over the boundary": found.adversarial},
        notes=notes,
    )


# ------------------------------------------------------------------------------------------------------------ claims


def _digits(lab: Lab) -> Dataset:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    return data.subset(train=200, test=100) if lab.scale == "smoke" else data


def _plain(lab: Lab) -> Recipe:
    return lenet_on(_digits(lab), epochs=lab.pick(smoke=1, laptop=8, full=8))


def _some(lab: Lab, images: Tensor | tuple[str, ...], count: int) -> Tensor:
    """``count`` of the images, drawn with the lab's seed, on its device."""
    assert isinstance(images, Tensor)
    return images[torch.randperm(len(images), generator=lab.generator())[:count]].to(lab.device)


@torch.no_grad()
def _label(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(dim=1) for part in images.split(512)])


def _sign(model: nn.Module, images: Tensor) -> Tensor:
    """The direction of the fast gradient sign method, away from the network's own label: (B, ...) of -1, 0 and 1."""
    signs = []
    with frozen(model, images):
        for part in images.split(512):
            leaf = part.clone().requires_grad_()
            logits = model(leaf)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(dim=1), reduction="sum"), leaf)
            signs.append(gradient.sign())
    return torch.cat(signs)


#: Sizes of a sign step that are tried, in units of the pixel range. What no size fools counts with the last one.
_SIZES = torch.linspace(0.01, 1.0, 100)


def _smallest_fgsm(model: nn.Module, images: Tensor) -> Tensor:
    """The smallest sign step that changes each label: the first size of a grid that does, then bisection. (B, ...)"""
    label, sign = _label(model, images), _sign(model, images)
    high = torch.full((len(images),), float(_SIZES[-1])).to(images)
    waiting = torch.arange(len(images), device=images.device)
    for size in _SIZES.tolist():
        fooled = _label(model, images[waiting] + size * sign[waiting]) != label[waiting]
        high[waiting[fooled]] = size
        waiting = waiting[~fooled]
    low = high - float(_SIZES[1] - _SIZES[0])
    for _ in range(6):
        middle = (low + high) / 2
        fooled = _label(model, images + _as_wide(middle, images) * sign) != label
        high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
    return _as_wide(high, images) * sign


def _smallest_pgd(model: nn.Module, images: Tensor, high: Tensor, steps: int = 20, halvings: int = 7) -> Tensor:
    """The radius of the smallest L2 ball in which projected gradient ascent finds another label, by bisection: (B,).

    Args:
        model: maps images to logits.
        images: (B, ...).
        high: (B,) radii that are known to be enough.
        steps: of 2.5 radii / steps each, up the largest other logit minus the label's.
        halvings: of the interval from 0 to ``high``.
    """
    label, low = _label(model, images), torch.zeros_like(high)
    with frozen(model, images):
        for _ in range(halvings):
            radius = (low + high) / 2
            wide = _as_wide(radius, images)
            moved, fooled = torch.zeros_like(images), torch.zeros_like(label, dtype=torch.bool)
            for _ in range(steps):
                leaf = (images + moved).requires_grad_()
                logits = model(leaf)
                own = F.one_hot(label, logits.shape[1]).bool()
                margin = logits.masked_fill(own, -math.inf).amax(dim=1) - logits[own]  # (B,)
                (gradient,) = torch.autograd.grad(margin.sum(), leaf)
                moved = moved + 2.5 * wide / steps * F.normalize(gradient.flatten(1), dim=1).view_as(images)
                length = _as_wide(moved.flatten(1).norm(dim=1), images)
                moved = moved * (wide / length.clamp_min(1e-12)).clamp_max(1)
                fooled |= _label(model, images + moved) != label
            high, low = torch.where(fooled, radius, high), torch.where(fooled, low, radius)
    return high


def _spread(relative: Tensor) -> Curve:
    """Relative norms of all images as a line: how large a perturbation fools this share of them; value: the mean."""
    shares = torch.linspace(0, 1, 41)
    norms = relative.double().cpu().quantile(shares.double())
    return Curve(
        norms.tolist(), x=shares.tolist(), value=relative.mean().item(), x_name="share of images fooled", y_name="|r| / |x|"
    )


@claim(
    "DeepFool fools a LeNet on MNIST with perturbations less than half as large (mean of ||r|| / ||x||) as the smallest fast "
    "gradient sign steps that fool it on the same images.",
    expect=Lower("DeepFool", than="FGSM, smallest step", times=0.5),
    reported=Reported(
        "MNIST, LeNet with 1% test error: rho_adv", {"DeepFool": 0.20, "FGSM, smallest step": 1.0, "L-BFGS": 0.25}, "Table 1"
    ),
    scaled_down="MNIST 5k; 500 test images (100 for projected gradient ascent, which stands for a near-minimal search).",
    unit="mean of ||r||_2 / ||x||_2",
)
def smaller_than_fgsm(lab: Lab) -> Measured:
    recipe = _plain(lab)
    model = lab.train(recipe).model
    images = _some(lab, recipe.data.test.inputs, lab.pick(smoke=20, laptop=500, full=10_000))
    fgsm = _smallest_fgsm(model, images)
    few = images[: lab.pick(smoke=5, laptop=100, full=1000)]
    radius = _smallest_pgd(model, few, fgsm[: len(few)].flatten(1).norm(dim=1))
    return {
        "DeepFool": _spread(_relative(deepfool(model, images).perturbation, images)),
        "FGSM, smallest step": _spread(_relative(fgsm, images)),
        "L2 gradient ascent, smallest ball": _spread(radius / few.flatten(1).norm(dim=1)),
    }


@dataclass(frozen=True)
class _Robustness(Hook):
    """Keeps the robustness on some images before training and after every epoch."""

    images: Tensor

    def on_start(self, run: Run) -> None:
        run.memory["robustness"] = self._now(run)

    def after_epoch(self, run: Run) -> None:
        run.memory["robustness"] = torch.cat([run.memory["robustness"], self._now(run)])

    def _now(self, run: Run) -> Tensor:
        return torch.tensor([robustness(run.model, self.images)], device=run.device)


def _perturb(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The training images that each arm is tuned on; made once, from the network before tuning."""
    push = deepfool(model, images).perturbation
    label, sign = _label(model, images), _sign(model, images)
    # As in the paper, one size for all: the smallest that fools 90 % of them.
    fooled = [(_label(model, images + size * sign) != label).double().mean().item() for size in _SIZES[::5].tolist()]
    enough = next((place for place, share in enumerate(fooled) if share >= 0.9), len(fooled) - 1)
    return {
        "DeepFool": images + push,
        "DeepFool, three times as far": images + 3 * push,
        "FGSM": images + _SIZES[::5][enough] * sign,
        "clean": images,
    }


def _tuned(lab: Lab) -> dict[str, float | Curve]:
    """Robustness by epoch of fine-tuning for each arm, and before it; both claims below share the trainings."""
    recipe = _plain(lab)
    plain = lab.train(recipe)
    train, test = recipe.data.train, recipe.data.test
    watched = _some(lab, test.inputs, lab.pick(smoke=10, laptop=200, full=1000))
    assert isinstance(train.inputs, Tensor)
    sets = lab.remember(_perturb, model=plain.model, images=train.inputs.to(lab.device))
    arms: dict[str, float | Curve] = {}
    for arm in ("DeepFool", "DeepFool, three times as far", "FGSM", "clean"):
        perturbed = dataclasses.replace(
            recipe.data, train=Split(sets[arm].cpu(), train.labels), history=(*recipe.data.history, f"perturbed: {arm}")
        )
        tuned = lab.train(
            Recipe(
                perturbed,
                model=partial(copy.deepcopy, plain.model),
                optimizer=partial(torch.optim.SGD, lr=0.025, momentum=0.9),  # half the rate, as in the paper
                epochs=lab.pick(smoke=1, laptop=3, full=5),
                batch_size=64,
                hooks=(_Robustness(watched),),
            )
        )
        rho = tuned.memory["robustness"].tolist()
        arms[f"{arm}: test accuracy"] = tuned.history["test_accuracy"][-1]
        arms[arm] = Curve(rho, x=range(len(rho)), cost=tuned.cost, x_name="epochs of fine-tuning", y_name="rho_adv")
        arms["before"] = rho[0]
    return arms


_TUNING = "MNIST 5k; 3 epochs of fine-tuning instead of 5, robustness on 200 test images."


@claim(
    "Fine-tuning a LeNet for a few epochs on DeepFool's perturbations of its training images makes it more robust than it "
    "was, and more robust than fine-tuning on the clean images does, with at most two points less test accuracy.",
    expect=(
        Higher("DeepFool", than="before"),
        Higher("DeepFool", than="clean"),
        Higher("DeepFool: test accuracy", than="clean: test accuracy", by=-0.02),
    ),
    scaled_down=_TUNING,
    unit="rho_adv on test images after fine-tuning",
)
def finetune_raises_robustness(lab: Lab) -> Measured:
    return _tuned(lab)


@claim(
    "Fine-tuning on perturbations that are far larger than needed (fast gradient sign steps that fool 90 % of the training "
    "images, or DeepFool's made three times as long) makes a LeNet less robust than it was, instead of more.",
    expect=(Lower("FGSM", than="before"), Lower("DeepFool, three times as far", than="before")),
    scaled_down=_TUNING,
    unit="rho_adv on test images after fine-tuning",
)
def oversized_examples_lower_robustness(lab: Lab) -> Measured:
    return _tuned(lab)
