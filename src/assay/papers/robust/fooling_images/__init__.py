"""Fooling images: what a network is certain of, and nobody would recognise.

An adversarial example is a photo that was changed a little. A fooling image never was a photo: it is evolved from noise, or
from nothing, until the network calls it a digit with a confidence of more than 99 %. A classifier learns borders between
classes, not what a class looks like; far away from all data the borders go on, and large regions behind them belong to some
class with certainty.

**MAP-Elites.** One cell for each class holds the image that the network is surest of. Every child of a generation is offered to
*every* cell, and takes the place of the elite where the network gives it a higher probability of that class: an image on the
way to one class is often a step on the way to another. Images are written down pixel by pixel (:class:`Direct`), which gives
noise, or as small networks that paint them (:class:`Cppn`), which gives regular patterns with some features of the class.

**Gradient ascent** climbs the probability itself: x <- (1 - decay) (x + rate g) around the mean image, with the rate that makes
the probability rise by 0.03, or by a tenth of what is missing, if it were linear: min(0.03, 0.1 (1 - p)) / ||g||^2.

Does it help to show fooling images to the network, as one class more? On MNIST it did not in 15 rounds.

Source: Nguyen, Yosinski and Clune, "Deep Neural Networks are Easily Fooled: High Confidence Predictions for Unrecognizable
Images", CVPR 2015, with details of the authors' code: images are rounded to 256 levels before the network sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.nn.frozen import frozen
from assay.paper import Above, Below, Curve, Higher, Reported, claim
from assay.papers.robust.fooling_images.encodings import Cppn, Direct, Encoding, Genomes
from assay.recipe import Recipe, probe
from assay.recipes import lenet_on
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View

__all__ = ["Cppn", "Direct", "FoolingSet", "climb", "fool", "map_elites"]

EncodingName = Literal["direct", "cppn", "gradient"]


def map_elites(
    evaluate: Callable[[Tensor], Tensor],
    encoding: Encoding,
    generations: int,
    population: int,
    generator: torch.Generator,
) -> tuple[Genomes, Tensor]:
    """Evolve the best image for each of many aims at once.

    Args:
        evaluate: images (P, ...) in [0, 1] -> (P, C), how well each meets each aim.
        encoding: how images are written down.
        generations: after the first, random one.
        population: children of a generation.
        generator: of all that is random.

    Returns:
        The C elites, and (generations + 1, C) what they reached, which never falls.
    """
    genomes = encoding.random(population, generator)
    reached, place = evaluate(encoding.express(genomes)).max(dim=0)  # (C,)
    elites = tuple(part[place.cpu()] for part in genomes)
    history = [reached]
    for _ in range(generations):
        one, other = torch.randint(len(reached), (2, population), generator=generator)
        children = encoding.vary(tuple(part[one] for part in elites), tuple(part[other] for part in elites), generator)
        found, place = evaluate(encoding.express(children)).max(dim=0)
        better = found > reached
        reached = torch.where(better, found, reached)
        cells = better.nonzero().flatten().cpu()
        for part, new in zip(elites, children, strict=True):
            part[cells] = new[place.cpu()[cells]]
        history.append(reached)
    return elites, torch.stack(history)


def climb(
    model: nn.Module,
    start: Tensor,
    target: Tensor,
    steps: int = 300,
    decay: float = 0.01,
    centre: Tensor | float = 0.0,
    low: Tensor | float = 0.0,
    high: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Gradient ascent of the probability of a class, with steps that promise a certain progress.

    Args:
        model: maps inputs to logits (B, C).
        start: (B, ...) where to begin.
        target: (B,) int64, the class to climb for.
        steps: how many.
        decay: share of the way back to ``centre`` after each step: 0 gives noise, more gives smoother images.
        centre: the mean image, which counts as nothing.
        low: smallest valid entry.
        high: largest valid entry.

    Returns:
        (B, ...) the images of the highest probability on the way, and (steps + 1, B) the highest so far.
    """
    x = torch.as_tensor(start).detach().clone()
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (low, high))
    best, highest = x.clone(), x.new_full((len(x),), -1.0)
    history = []
    with frozen(model, x):
        for _ in range(steps + 1):
            leaf = torch.minimum(torch.maximum(x, low), high).requires_grad_()
            probability = model(leaf).softmax(dim=1).gather(1, target[:, None]).squeeze(1)
            (gradient,) = torch.autograd.grad(probability.sum(), leaf)
            x, probability = leaf.detach(), probability.detach()
            better = probability > highest
            best[better], highest = x[better], torch.maximum(highest, probability)
            history.append(highest)
            wanted = (0.1 * (1 - probability)).clamp_max(0.03)
            rate = (wanted / gradient.flatten(1).square().sum(dim=1).clamp_min(1e-30)).clamp_max(1e12)
            moved = x + rate.view(-1, *[1] * (x.dim() - 1)) * gradient
            x = centre + (1 - decay) * (moved - centre)
    return best, torch.stack(history)


@dataclass(frozen=True)
class FoolingSet:
    """An image for each of C classes.

    Attributes:
        images: (C, ...), rounded.
        confidence: (C,) probability that the network gives the class, of the rounded images.
        history: (generations + 1, C) the highest so far (of gradient ascent: before rounding).
    """

    images: Tensor
    confidence: Tensor
    history: Tensor


def fool(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int = 10,
    encoding: EncodingName = "direct",
    generations: int = 200,
    population: int = 200,
    low: Tensor | float = 0.0,
    high: Tensor | float = 1.0,
    levels: int = 256,
    generator: torch.Generator | None = None,
) -> FoolingSet:
    """Images that the network takes for each of its classes with the highest confidence that can be found.

    Args:
        model: maps inputs to logits; the first ``classes`` of them are aimed at. It is left as it was.
        shape: of one input.
        classes: how many.
        encoding: ``"direct"``, ``"cppn"`` (images only) or ``"gradient"``.
        generations: of evolution (paper: up to 200 on MNIST, 5,000 and more on ImageNet), or steps of gradient ascent.
        population: images in a generation (paper: 200); gradient ascent does not use it.
        low: what a black pixel is to the network: a number, or a tensor that broadcasts over inputs.
        high: the same of a white one.
        levels: steps between both, as images are stored.
        generator: of all that is random; ``None`` takes seed 0.
    """
    generator = generator or torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    low, high = (torch.as_tensor(bound, dtype=torch.float32, device=device) for bound in (low, high))

    def shown(images: Tensor) -> Tensor:
        return low + (high - low) * (images * (levels - 1)).round() / (levels - 1)

    def evaluate(images: Tensor) -> Tensor:
        logits: Tensor = model(shown(images.to(device)))
        return logits.double().softmax(dim=1)[:, :classes]  # in float32 nothing lies between 1 - 6e-8 and 1

    if encoding == "gradient":
        centre = (low + high) / 2
        noise = torch.randn(classes, *shape, generator=generator).to(device) / (levels - 1)
        start = centre + (high - low) * noise
        found, history = climb(model, start, torch.arange(classes, device=device), generations, 0.01, centre, low, high)
        span = torch.where(high > low, high - low, 1)
        genomes: Tensor = ((found - low) / span).clamp(0, 1)
    elif encoding in ("direct", "cppn"):
        way: Encoding = Cppn(shape) if encoding == "cppn" else Direct(shape)
        with frozen(model, torch.zeros(1, *shape, device=device)), torch.no_grad():
            elites, history = map_elites(evaluate, way, generations, population, generator)
        genomes = way.express(elites).to(device)
    else:
        raise ValueError(f"encoding must be 'direct', 'cppn' or 'gradient', not {encoding!r}")
    with frozen(model, genomes), torch.no_grad():
        confidence = evaluate(genomes).diagonal()
    return FoolingSet(shown(genomes), confidence, history)


@probe
def fooling(view: View, encoding: str = "direct", generations: int = 100, population: int = 100) -> Seen:
    """Inputs far from all data that the network is certain of: for each class, the one found to fool it best.

    Args:
        view: a classifier and examples.
        encoding: direct (noise), cppn (patterns, for images) or gradient.
        generations: rounds of evolution, or steps of gradient ascent.
        population: inputs in a round.
    """
    count = view.classifier()
    if encoding == "cppn":
        view.only("images")
    known = torch.cat([view.inputs, view.background])
    # Of every column of a table; of every channel of all else.
    dims = [0, *range(2, known.dim())]
    low, high = known.amin(dim=dims, keepdim=True)[0], known.amax(dim=dims, keepdim=True)[0]
    found = fool(
        view.model,
        tuple(view.inputs.shape[1:]),
        count,
        encoding,  # type: ignore[arg-type]  # a word that somebody typed; fool says which there are
        generations,
        population,
        low,
        high,
        generator=view.generator(),
    )
    spread = known.flatten(1)
    away = torch.cdist(found.images.flatten(1), spread).amin(dim=1)
    usual = torch.cdist(spread, spread).fill_diagonal_(torch.inf).amin(dim=1).median()
    return Seen(
        numbers={
            "median confidence": found.confidence.median().item(),
            "lowest confidence": found.confidence.min().item(),
            "distance to the nearest example, over the usual one": (away.median() / usual).item(),
        },
        each={"confidence in the fooling input of its class": found.confidence[view.target].float()},
        inputs={"what the network is certain of": found.images[view.target]},
        notes=("beside each example stands the fooling input of the class that the network says",),
    )


# -------------------------------------------------------------------------------------------------------- the claims


def _digits(lab: Lab) -> Recipe:
    data = lab.data("mnist5k")
    if lab.scale == "smoke":
        data = data.subset(train=200, test=100)
    return lenet_on(data, epochs=lab.pick(smoke=1, laptop=5, full=20)).replace(watch=())


def _clothes(lab: Lab) -> Recipe:
    data = lab.data("fashion-mnist").subset(*lab.pick(smoke=(200, 100), laptop=(4_000, 1_000), full=(60_000, 10_000)))
    return lenet_on(data, epochs=lab.pick(smoke=1, laptop=5, full=20)).replace(watch=())


def _evolved(
    model: nn.Module, encoding: EncodingName, generations: int, population: int, runs: int, seed: int
) -> dict[str, Tensor]:
    """Fooling images of ten classes from independent runs: images (runs, 10, 1, 28, 28), confidence and history of each."""
    found = [
        fool(
            model, (1, 28, 28), 10, encoding, generations, population, generator=torch.Generator().manual_seed(1000 * seed + run)
        )
        for run in range(runs)
    ]
    return {name: torch.stack([getattr(one, name) for one in found]).cpu() for name in ("images", "confidence", "history")}


def _effort(lab: Lab) -> tuple[int, int]:
    """Generations, and images in each."""
    return lab.pick(smoke=(10, 20), laptop=(200, 100), full=(1_000, 200))


def _fooled(lab: Lab, model: nn.Module, encoding: EncodingName = "direct") -> dict[str, Tensor]:
    generations, population = _effort(lab)
    return lab.remember(
        _evolved, model=model, encoding=encoding, generations=generations, population=population, runs=1, seed=lab.seed
    )


def _rising(history: Tensor) -> Curve:
    """Median confidence over runs and classes by generation: (runs, G + 1, C)."""
    return Curve(
        history.transpose(0, 1).flatten(1).median(dim=1).values.tolist(),
        x=range(history.shape[1]),
        x_name="generation",
        y_name="median confidence over the classes",
    )


@torch.no_grad()
def _best_of_noise(model: nn.Module, count: int, seed: int) -> dict[str, Tensor]:
    """The highest confidence in each class among so many images of noise."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    best = torch.zeros(10, dtype=torch.float64)
    for start in range(0, count, 500):
        noise = (255 * torch.rand(min(500, count - start), 1, 28, 28, generator=generator)).round() / 255
        best = torch.maximum(best, model(noise.to(device)).double().softmax(dim=1).amax(dim=0).cpu())
    return {"confidence": best}


@claim(
    "Noise evolved pixel by pixel gets the median confidence of a LeNet over the ten digits above 99 %, and 10 points above the "
    "best of as many random images; yet the images lie more than one and a half times as far from every training image as test "
    "digits do.",
    expect=(
        Above("evolved", 0.99),
        Higher("evolved", than="random, best of as many", by=0.1),
        Higher("distance to the nearest digit, evolved", than="distance to the nearest digit, test digits", times=1.5),
    ),
    reported=Reported("MNIST, LeNet, direct encoding, 200 generations: median confidence", {"evolved": 0.9999}, "sec. 3.1"),
    scaled_down="MNIST 5k, 100 images a generation instead of 200.",
    unit="median confidence, or distance",
)
def noise_fools_with_certainty(lab: Lab) -> Measured:
    recipe = _digits(lab)
    model = lab.train(recipe).model
    found = _fooled(lab, model)
    tried = lab.pick(smoke=200, laptop=20_100, full=200_200)
    random = lab.remember(_best_of_noise, model=model, count=tried, seed=lab.seed)["confidence"]
    known = _neighbours(recipe.data)
    test = recipe.data.test.inputs
    assert isinstance(test, Tensor)
    apart = [float(known.kneighbors(rows.flatten(1).numpy(), 1)[0].mean()) for rows in (found["images"][0], test)]
    return {
        "evolved": _rising(found["history"]),
        "evolved, lowest of the classes": found["confidence"].min().item(),
        "random, best of as many": random.median().item(),
        "distance to the nearest digit, evolved": apart[0],
        "distance to the nearest digit, test digits": apart[1],
    }


def _neighbours(data: Dataset) -> KNeighborsClassifier:
    assert isinstance(data.train.inputs, Tensor)
    return KNeighborsClassifier(5).fit(data.train.inputs.flatten(1).numpy(), data.train.labels.numpy())


@claim(
    "Another kind of classifier sees no digit in the evolved noise: the five nearest neighbours among the training digits say "
    "what the network says for fewer than half of the ten images.",
    expect=Below("nearest neighbours agree", 0.5),
    scaled_down="MNIST 5k, 100 images a generation. The paper asks people; neighbours stand for them here.",
    unit="share of ten images",
)
def neighbours_see_no_digit(lab: Lab) -> Measured:
    recipe = _digits(lab)
    found = _fooled(lab, lab.train(recipe).model)
    said = torch.from_numpy(_neighbours(recipe.data).predict(found["images"][0].flatten(1).numpy()))
    return {"nearest neighbours agree": (said == torch.arange(10)).double().mean().item()}


@claim(
    "Patterns painted by small networks fool another LeNet, trained from another start, in the same class (confidence above one "
    "half) more often than pixel noise does, by 20 points, on digits as on clothes.",
    expect=(
        Higher("patterns, digits", than="noise, digits", by=0.2),
        Higher("patterns, clothes", than="noise, clothes", by=0.2),
    ),
    scaled_down="MNIST 5k and 4,000 clothes of Fashion-MNIST, 200 generations of 100 images, ten images an arm and seed.",
    unit="share of ten images that fool the other network",
    needs=("fashion-mnist",),
)
def patterns_transfer(lab: Lab) -> Measured:
    arms: dict[str, float] = {}
    for name, recipe in {"digits": _digits(lab), "clothes": _clothes(lab)}.items():
        model, other = lab.train(recipe).model, lab.train(recipe, seed=lab.seed + 1000).model
        for arm, encoding in (("patterns", "cppn"), ("noise", "direct")):
            found = _fooled(lab, model, encoding)  # type: ignore[arg-type]
            with torch.no_grad():
                confidence = other(found["images"][0].to(lab.device)).softmax(dim=1).diagonal()
            arms[f"{arm}, {name}"] = (confidence > 0.5).double().mean().item()
            arms[f"{arm}, {name}: median confidence of the first network"] = found["confidence"].median().item()
    return arms


def _with_fooling(data: Dataset, images: Tensor) -> Dataset:
    """One class more, of images that belong to none, each so often that the class is as frequent as the others."""
    assert isinstance(data.train.inputs, Tensor)
    times = max(1, round(len(data.train) / 10 / len(images)))
    more = images.repeat(times, 1, 1, 1)
    train = Split(torch.cat([data.train.inputs, more]), torch.cat([data.train.labels, torch.full((len(more),), 10)]))
    return Dataset("digits and fooling images", data.task, train, data.valid, data.test, (*data.classes, "fooling"))


@claim(
    "On MNIST it does not help to show fooling images to the network as one class more: against networks that were trained so, "
    "one and two rounds later, evolution reaches a median confidence above 99 % again.",
    expect=(Above("round 2", 0.99), Above("round 3", 0.99)),
    scaled_down="MNIST 5k; 3 rounds instead of 15, of 30 fooling images each, repeated to be as many as a digit has.",
    unit="median confidence over the ten digits and three evolutions",
)
def retraining_does_not_help(lab: Lab) -> Measured:
    recipe = _digits(lab)
    data, kept = recipe.data, torch.empty(0, 1, 28, 28)
    generations, population = _effort(lab)
    arms: dict[str, float | Curve] = {}
    for number in range(1, lab.pick(smoke=3, laptop=3, full=15) + 1):
        shown = _with_fooling(data, kept) if len(kept) else data
        trained = lab.train(lenet_on(shown, recipe.epochs).replace(watch=()))
        # What judges this network is what the next one is shown, so that it has seen images of the same effort.
        new = lab.remember(
            _evolved,
            model=trained.model,
            encoding="direct",
            generations=generations,
            population=population,
            runs=lab.pick(smoke=2, laptop=3, full=10),
            seed=lab.seed + 100 * number,
        )
        arms[f"round {number}"] = _rising(new["history"])
        arms[f"round {number}: test accuracy"] = trained.accuracy()
        kept = torch.cat([kept, new["images"].flatten(0, 1)])
    return arms
