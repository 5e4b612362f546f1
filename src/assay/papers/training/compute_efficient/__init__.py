"""Compute-efficient deep learning: ways to train faster, and rules by which one sees which of them pays.

A network is trained by a program of three components: the function (model and weights), the data (examples and what is made of
them) and the optimisation (objective and algorithm). A speed-up changes what that program means, in one of five ways:

    remove     selective_backprop, data_pruning, layer_freezing
    restrict   progressive_resizing (what a thing may be)
    reorder    budgeted, superconvergence (when it happens)
    replace    architectures, which have papers of their own
    retrofit   averaged_weights, label_smoothing

Most such papers cannot be compared with one another, and the survey says how they could: by curves of quality against price, from
trainings of several lengths whose schedules all come to their end; in seconds and in operations, since an operation saved is not
always a second saved; baseline and method tuned alike. :func:`benchmark` does that for any recipe and any treatments:

    methods = {"small first": progressive_resizing, "pruned": data_pruning}
    print(benchmark(recipe, methods, epochs=(4, 8, 16)).table())

Source: Bartoldson, Kailkhura and Blalock, "Compute-Efficient Deep Learning: Algorithmic Trends and Opportunities", JMLR 24,
2023. Methods: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019; Paul, Ganguli and Dziugaite,
"Deep Learning on a Data Diet", NeurIPS 2021; Brock et al., "FreezeOut", 2017; Li, Yumer and Ramanan, "Budgeted Training",
ICLR 2020; Smith and Topin, "Super-Convergence", 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from assay.nn import mlp
from assay.nn.convnet import classifier, plain_layers
from assay.paper import Above, Below, Cost, Curve, Higher, Score, claim
from assay.papers.training.compute_efficient.benchmark import (
    BASELINE,
    Benchmark,
    Point,
    benchmark,
    price_at,
    training_flops,
    where_time_goes,
)
from assay.papers.training.compute_efficient.methods import (
    averaged_weights,
    budgeted,
    chosen,
    data_pruning,
    label_smoothing,
    layer_freezing,
    progressive_resizing,
    selective_backprop,
    size_at,
    superconvergence,
)
from assay.recipe import Recipe

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

__all__ = [
    "Benchmark",
    "Point",
    "averaged_weights",
    "benchmark",
    "budgeted",
    "chosen",
    "data_pruning",
    "label_smoothing",
    "layer_freezing",
    "price_at",
    "progressive_resizing",
    "selective_backprop",
    "size_at",
    "superconvergence",
    "training_flops",
    "where_time_goes",
]

METHODS: dict[str, Callable[[Recipe], Recipe]] = {
    "small images first": progressive_resizing,
    "hard examples only": selective_backprop,
    "easy examples pruned": data_pruning,
    "layers frozen": layer_freezing,
    "averaged weights": averaged_weights,
    "one cycle": superconvergence,
    "label smoothing": label_smoothing,
}

# -------------------------------------------------------------------------------------------------------- the claims


def _clothes(lab: Lab, train: int, test: int) -> Dataset:
    """So many articles to learn, and half as many held out; digits at smoke scale, all at full scale."""
    if lab.scale == "smoke":
        return lab.data("mnist5k").subset(train=192, test=100).holdout(1 / 3, seed=lab.seed)
    data = lab.data("fashion-mnist")
    if lab.scale == "full":
        return data.holdout(1 / 6, seed=lab.seed)
    return data.subset(train=3 * train // 2, test=test, seed=lab.seed).holdout(1 / 3, seed=lab.seed)


@claim(
    "A quarter of the epochs with the schedule brought to its end reaches within 1 point of the full length, and more than 1 "
    "point above the full-length training stopped at the same time, each with the best of three rates.",
    expect=(
        Higher("quarter, schedule finished", than="full length", by=-0.01),
        Higher("quarter, schedule finished", than="quarter, stopped", by=0.01),
    ),
    scaled_down="4,000 articles of Fashion-MNIST and a perceptron of 64 hidden units, 60 epochs (3,780 steps) and 15; the rate "
    "is chosen on 2,000 held-out articles.",
    unit="test accuracy",
)
def finish_the_schedule(lab: Lab) -> Measured:
    data = _clothes(lab, train=4000, test=5000)
    plain = budgeted(Recipe(data, partial(mlp, 784, data.num_classes, (64,)), batch_size=64, watch=("valid", "test")))
    full, quarter = lab.pick(smoke=(4, 1), laptop=(60, 15), full=(120, 30))

    def runs(epochs: int) -> list[Trained]:
        rates = (0.01, 0.03, 0.1)
        return [
            lab.train(plain.replace(epochs=epochs, optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9))) for rate in rates
        ]

    def best(trained: list[Trained], epochs: int) -> Curve:
        """Test accuracy by epoch of the run that is best on held-out data after ``epochs``, at the price of so many."""
        run = max(trained, key=lambda run: run.history["valid_accuracy"][epochs - 1])
        price = Cost(run.seconds * epochs / run.recipe.epochs, run.parameters, run.flops)
        return Curve(run.history["test_accuracy"][:epochs], cost=price, y_name="test accuracy")

    long = runs(full)
    return {
        "full length": best(long, full),
        "quarter, schedule finished": best(runs(quarter), quarter),
        "quarter, stopped": best(long, quarter),
    }


def small_net(in_channels: int, num_classes: int, width: float = 1.0) -> nn.Sequential:
    """Three 3x3 convolutions of 8, 16 and 32 planes with batch normalisation, for images of any size.

    Shape: (B, in_channels, H, W) -> (B, num_classes).
    """
    body = plain_layers("8 M 16 M 32", in_channels, width, batch_norm=True)
    return nn.Sequential(body, classifier(round(32 * width), num_classes))


@claim(
    "At least one of seven methods reaches the baseline's accuracy more than 1.2 times faster in seconds (the one that is "
    "fastest on held-out data, measured on test data), and at least one that saves more than 20% of the operations saves less "
    "than 5% of the seconds.",
    expect=(Above("fastest method, speed-up", 1.2), Below("least of the seconds saved with 20% of the operations", 0.05)),
    scaled_down="2,000 articles of Fashion-MNIST and three convolutions (6,330 weights), in batches of 32. Lengths of 4, 8 and "
    "16 epochs, each with its own schedule; three rates for every arm at 8 epochs, chosen on 1,000 held-out articles. The "
    "accuracy to reach is the baseline's after 8 epochs; between lengths a price is read from a straight line over its "
    "logarithm, and a method that does not get there counts with its longest training, which flatters it.",
    unit="speed-up factor at equal test accuracy, or share of the baseline's seconds or operations saved at equal length",
)
def which_speedups_pay(lab: Lab) -> Measured:
    data = _clothes(lab, train=2000, test=4000)
    net = partial(small_net, 1, data.num_classes, lab.pick(smoke=1.0, laptop=1.0, full=4.0))
    optimizer = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4)
    plain = budgeted(Recipe(data, net, optimizer=optimizer, batch_size=32, watch=()))
    lengths = lab.pick(smoke=(1, 2, 3), laptop=(4, 8, 16), full=(10, 20, 40))
    methods = dict(list(METHODS.items())[: lab.pick(smoke=3, laptop=7, full=7)])
    rates = lab.pick(smoke=(0.1,), laptop=(0.03, 0.1, 0.3), full=(0.03, 0.1, 0.3))
    found = benchmark(plain, methods, lengths, rates, (lab.seed,), lab.train)
    arms: dict[str, float | Curve] = {}
    for method in found.methods:
        points = found.of(method, lab.seed)
        reached, price = [point.test for point in points], [point.seconds for point in points]
        factor, _ = found.speedup(method, lab.seed)
        cost = Cost(seconds=points[-1].seconds)
        arms[method] = Curve(reached, price, factor, cost, x_name="seconds", y_name="test accuracy")
    others = [method for method in found.methods if method != BASELINE]
    held_out = {method: found.speedup(method, lab.seed, on="valid") for method in others}
    # One that never gets there is none to choose, however cheap it is.
    fastest = max(others, key=lambda method: held_out[method][0] if held_out[method][1] != "<" else 0.0)
    savers = [method for method in others if found.saved(method, lab.seed, "flops") > 0.2]
    for method in others:
        arms[f"{method}, seconds saved"] = found.saved(method, lab.seed)
        arms[f"{method}, operations saved"] = found.saved(method, lab.seed, "flops")
    arms["fastest method, speed-up"] = Score(found.speedup(fastest, lab.seed)[0])
    arms["least of the seconds saved with 20% of the operations"] = min((found.saved(m, lab.seed) for m in savers), default=1.0)
    return arms
