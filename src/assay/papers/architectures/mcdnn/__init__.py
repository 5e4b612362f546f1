"""Multi-column networks: a committee whose members see the same picture prepared in different ways.

The mean of several networks' outputs is better than one of them as far as they err on different pictures. Networks that differ
by their first weights alone err alike. Here each member, a column, is trained on pictures that were preprocessed in a way of its
own: digits scaled to one of several widths, photographs with their light evened out by one of several methods. What is hard to
read in one form may be easy in another. A column is a max-pooling network (see ``ciresan_cnn``), trained on its own; the answer
is the plain mean of the columns' probabilities,

    y = 1/N sum_k softmax_k(P_k(x))                                                                                  (eq. 1)

and every column must see its own preprocessing P_k at test time as well.

Source: Ciresan, Meier and Schmidhuber, "Multi-column Deep Neural Networks for Image Classification", CVPR 2012. The authors
evened out the lightness of colours in Lab space; here it is the mean of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.committee import average, disagreement, error_by_size
from assay.data.mapped import map_inputs
from assay.errors import AssayError
from assay.paper import Configuration, Cost, Curve, Higher, Lower, Reported, Score, claim
from assay.papers.architectures.ciresan_cnn import CiresanCNN, deformed, framed, line_for
from assay.papers.architectures.mcdnn.preprocess import Adjust, Contrast, Equalize, LocalEqualize, WidthNormalize
from assay.recipe import Recipe, network_of_images, per_example, treatment, with_loss
from assay.train.schedules import exponential

if TYPE_CHECKING:
    from collections.abc import Callable

    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

__all__ = [
    "Adjust",
    "ColumnsLoss",
    "Contrast",
    "Equalize",
    "LocalEqualize",
    "MultiColumn",
    "WidthNormalize",
    "column",
    "multi_column",
]

#: The authors' columns: shape of a picture, and line (see ``CiresanCNN``).
COLUMNS: dict[str, tuple[tuple[int, int, int], str]] = {
    "mnist": ((1, 29, 29), "20C4-MP2-40C5-MP3-150N-10N"),
    "chinese": ((1, 48, 48), "100C3-MP2-200C2-MP2-300C2-MP2-400C2-MP2-500N-3755N"),
    "signs": ((3, 48, 48), "100C7-MP2-150C4-MP2-250C4-MP2-300N-43N"),
    "cifar10": ((3, 32, 32), "300C3-MP2-300C2-MP2-300C3-MP2-300C2-MP2-300N-100N-10N"),
}


def column(task: Literal["mnist", "chinese", "signs", "cifar10"] = "mnist") -> CiresanCNN:
    """One of the authors' networks (:data:`COLUMNS`), without preprocessing: digits, Chinese characters, traffic signs, photos.

    Raises:
        ValueError: there is no column for this task.
    """
    if task not in COLUMNS:
        raise ValueError(f"task must be one of {', '.join(COLUMNS)}, not {task!r}")
    in_shape, line = COLUMNS[task]
    return CiresanCNN(line, in_shape)


class MultiColumn(nn.Module):
    """Networks that answer together: the logarithm of the mean of their probabilities (eq. 1).

    The softmax of what it returns is that mean, so it stands wherever a classifier does. To train the columns as if each were
    alone, use :class:`ColumnsLoss`: cross-entropy of the mean would train them to complete one another. Columns that were
    trained before may be put together as well.

    Args:
        columns: each gives logits. What one alone sees belongs into it: ``nn.Sequential(WidthNormalize(10), net)``.

    Shape: (B, ...) -> (B, C) log-probabilities.

    Raises:
        ValueError: there are no columns.
    """

    def __init__(self, columns: Sequence[nn.Module]) -> None:
        super().__init__()
        if not columns:
            raise ValueError("a committee needs a column at least")
        self.columns = nn.ModuleList(columns)

    def forward(self, images: Tensor) -> Tensor:
        logs = torch.stack([column(images).log_softmax(dim=1) for column in self.columns])  # (N, B, C)
        return logs.logsumexp(dim=0) - math.log(len(self.columns))


class ColumnsLoss(nn.Module):
    """The sum of every column's own cross-entropy, whose gradient for each column is that which it would have alone.

    For a ``Recipe``: ``loss=per_example(ColumnsLoss)``. In a loop of your own, call it with a mapping of the columns' outputs by
    the names in ``watches``.

    Args:
        model: a :class:`MultiColumn`, or a network with one inside.

    Raises:
        AssayError: there is none, or more than one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        found = [(name, part) for name, part in model.named_modules() if isinstance(part, MultiColumn)]
        if len(found) != 1:
            raise AssayError(
                f"ColumnsLoss trains the columns of one committee, and the network has {len(found)}: leave "
                "other networks out, or mcdnn."
            )
        inside, committee = found[0]
        self.watches = tuple(f"{inside}.columns.{place}".lstrip(".") for place in range(len(committee.columns)))

    def forward(self, logits: Tensor, labels: Tensor, layers: Mapping[str, Tensor]) -> Tensor:
        """``logits`` (B, C) of the whole are not looked at; ``labels`` are (B,) int64 or (B, C) shares; -> scalar."""
        return torch.stack([F.cross_entropy(layers[name], labels) for name in self.watches]).sum()


#: The standard networks by their numbers.
CONFIGURATIONS = {
    'column("mnist")': Configuration((1, 29, 29), parameters=76_040, macs=1_891_820, layers=4, sees=17, activations=16_760),
    'column("chinese")': Configuration(
        (1, 48, 48), parameters=3_483_655, macs=74_981_900, layers=6, sees=32, activations=344_800
    ),
    'column("signs")': Configuration((3, 48, 48), parameters=1_543_443, macs=125_978_700, layers=5, sees=32, activations=234_000),
    'column("cifar10")': Configuration(
        (3, 32, 32), parameters=1_660_710, macs=99_661_000, layers=7, sees=36, activations=337_500
    ),
}


def photo_ways(channels: int) -> list[nn.Module]:
    """The five preprocessings for photographs: none, adjusted, equalised, equalised locally, contrasts."""
    return [nn.Identity(), Adjust(), Equalize(), LocalEqualize(), Contrast(channels)]


def digit_ways(canvas: int, widths: Sequence[float] = (10 / 29, 12 / 29, 14 / 29, 16 / 29, 18 / 29, 20 / 29)) -> list[nn.Module]:
    """The seven preprocessings for bright writing on a dark ground: none, and six widths, shares of a square canvas."""
    scaled = (WidthNormalize(max(2, round(share * canvas)), canvas) for share in widths)
    return [nn.Identity(), *scaled]


def _committee(make: Callable[[], nn.Module], columns: int, in_shape: tuple[int, ...], ways: str) -> MultiColumn:
    found: list[nn.Module] = []
    while len(found) < columns:
        found += photo_ways(in_shape[0]) if ways == "photos" else digit_ways(in_shape[1])
    return MultiColumn([nn.Sequential(way, make()) for way in found[:columns]])


@treatment
def multi_column(recipe: Recipe, columns: int = 5, ways: Literal["photos", "digits"] = "photos") -> Recipe:
    """A committee of networks like the recipe's, each on pictures that are preprocessed in its own way, each trained as if alone.

    It costs as many times as much as there are columns. All see the same batches, as the recipe augments them;
    the paper prepares first and deforms then, which for widths means that here all stay exactly as wide.
    Only where the recipe clips gradients by their norm do columns touch: it is the norm of all.

    Args:
        recipe: of a classifier of images.
        columns: how many; where they are more than the ways, these come again with other first weights.
        ways: ``"photos"`` evens out the light in four ways (:func:`photo_ways`); ``"digits"``, for bright writing on a dark
            ground in square pictures, scales its width (:func:`digit_ways`).

    Raises:
        AssayError: the data are no images or no classes, there are too few columns, or the network is a committee already.
    """
    now, data = network_of_images(recipe, "columns", "mcdnn"), recipe.data
    if columns < 2:
        raise AssayError(f"a committee of {columns} has nobody to ask: give columns=2 or more.")
    if ways not in ("photos", "digits"):
        raise AssayError(f"There are no ways {ways!r} to preprocess images; choose photos or digits.")
    if ways == "digits" and data.input_shape[1] != data.input_shape[2]:
        raise AssayError(f"widths are scaled on a square canvas, and images of {data.name!r} are not square: take ways='photos'.")
    if any(isinstance(part, MultiColumn) for part in now.modules()):
        raise AssayError("the network of this recipe is a committee already: leave mcdnn out.")
    return with_loss(
        recipe.replace(model=partial(_committee, recipe.model, columns, data.input_shape, ways)), per_example(ColumnsLoss)
    )


def small(num_classes: int = 10, in_channels: int = 1) -> MultiColumn:
    """For pictures of 28x28: five columns of 8 and 16 maps, 70,570 parameters on one channel."""
    in_shape = (in_channels, 28, 28)
    return _committee(partial(CiresanCNN, line_for(in_shape, num_classes, maps=8), in_shape), 5, in_shape, "photos")


def paper_training(recipe: Recipe) -> Recipe:
    """Every column trained as if alone, on images deformed anew in every pass; for recipes whose network is a committee."""
    return with_loss(deformed(recipe), per_example(ColumnsLoss))


# ---------------------------------------------------------------------------------------------------- claims

WIDTHS = (0, 10, 12, 14, 16, 18, 20)  # 0: as it is
#: Rates on a laptop, of a column and of one that is trained seven times as long: of 0.016, 0.04, 0.1 and 0.25 those with the
#: lowest error on held-out training digits, with a seed that is not among those of the evidence.
_RATE, _RATE_FOR_LONGER = 0.1, 0.04


def _column(lab: Lab, data: Dataset, width: int, init: int, times: int = 1) -> Trained:
    """A column for one width, trained alone: momentum and batches of 32 on a laptop, as the paper has it at full scale."""
    change = WidthNormalize(width) if width else framed
    full, rate = lab.scale == "full", _RATE if times == 1 else _RATE_FOR_LONGER
    recipe = Recipe(
        map_inputs(data, change, f"width {width} on 29x29" if width else "pad(29)").normalise(),
        model=partial(CiresanCNN, COLUMNS["mnist"][1] if full else "8C4-MP2-16C5-MP3-60N-10N", (1, 29, 29)),
        optimizer=partial(torch.optim.SGD, lr=1e-3) if full else partial(torch.optim.SGD, lr=rate, momentum=0.9),
        schedule=exponential,
        epochs=times * lab.pick(smoke=1, laptop=8, full=500),
        batch_size=lab.pick(smoke=16, laptop=32, full=1),
        watch=(),
    )
    return lab.train(deformed(recipe), seed=1000 * lab.seed + init)


def _digits(lab: Lab) -> Dataset:
    data = lab.data(lab.pick(smoke="digits", laptop="mnist", full="mnist"))
    if lab.scale == "full":
        return data
    return data.subset(
        train=lab.pick(smoke=150, laptop=1500, full=0), test=lab.pick(smoke=100, laptop=10_000, full=0), seed=lab.seed
    )


class _Columns:
    """Columns that were trained, their probabilities on the test (N, B, C), and what they cost together."""

    def __init__(self, trained: Sequence[Trained]) -> None:
        self.said = torch.stack([one.logits().softmax(dim=1) for one in trained]).double()
        self.labels = trained[0].recipe.data.test.labels
        self.cost = Cost(sum(one.seconds for one in trained), sum(one.parameters for one in trained))

    def error(self) -> float:
        """Of the committee."""
        return (average(self.said).argmax(dim=1) != self.labels).double().mean().item()

    def single(self) -> Tensor:
        """Of each column: (N,)."""
        return (self.said.argmax(dim=2) != self.labels).double().mean(dim=1)

    def curve(self) -> Curve:
        """Mean error of committees of 1, 2 ... N of the columns."""
        errors = error_by_size(self.said, self.labels).tolist()
        sizes = range(1, len(errors) + 1)
        return Curve(errors, sizes, value=self.error(), cost=self.cost, x_name="columns", y_name="test error")


def _by_width(lab: Lab) -> _Columns:
    data, inits = _digits(lab), lab.pick(smoke=1, laptop=1, full=5)
    places = [(width, init) for init in range(inits) for width in WIDTHS]
    return _Columns([_column(lab, data, width, place) for place, (width, _) in enumerate(places)])


def _by_init(lab: Lab) -> _Columns:
    data = _digits(lab)
    return _Columns([_column(lab, data, 0, place) for place in range(len(WIDTHS) * lab.pick(smoke=1, laptop=1, full=5))])


_SCALED_DOWN = (
    "1,500 MNIST digits instead of 60,000, 7 columns (each width once) instead of 35, 8 epochs instead of some 500, networks of "
    "8 and 16 maps with 60 neurons instead of 20 and 40 with 150, batches of 32 with momentum 0.9 instead of one image a step; "
    "the best of four rates, chosen on held-out digits."
)


@claim(
    "The mean of seven columns, one for each width of the digits, has at most 0.8 times the test error of the mean column, and "
    "less than the best one.",
    expect=(
        Lower("committee", than="mean column", times=0.8),
        Lower("committee", than="best column"),
    ),
    reported=Reported("MNIST, 35 columns: test error", {"committee": 0.0023, "mean column": 0.0044}, where="Table 1"),
    scaled_down=_SCALED_DOWN,
    unit="test error",
    needs=("mnist",),
)
def columns_average_better(lab: Lab) -> Measured:
    columns = _by_width(lab)
    single = columns.single()
    return {"committee": columns.curve(), "mean column": single.mean().item(), "best column": single.min().item()}


@claim(
    "Seven columns also have a lower test error than a single one that is trained seven times as long.",
    expect=Lower("committee", than="one column, 7 times as long"),
    scaled_down=_SCALED_DOWN,
    unit="test error",
    needs=("mnist",),
)
def better_than_training_longer(lab: Lab) -> Measured:
    columns, data = _by_width(lab), _digits(lab)
    longer = _Columns([_column(lab, data, 0, 0, times=len(columns.said))])
    arms = {"committee": columns, "one column, 7 times as long": longer, "one column": _Columns([_column(lab, data, 0, 0)])}
    return {arm: Score(one.error(), one.cost) for arm, one in arms.items()}


@claim(
    "A committee over seven widths has a lower test error than one of seven columns that differ by their first weights alone.",
    expect=Lower("seven widths", than="seven inits"),
    scaled_down=_SCALED_DOWN,
    unit="test error",
    needs=("mnist",),
)
def diversity_from_preprocessing(lab: Lab) -> Measured:
    committees = {"seven widths": _by_width(lab), "seven inits": _by_init(lab)}
    arms: dict[str, float | Curve] = {arm: columns.curve() for arm, columns in committees.items()}
    return {**arms, **{f"{arm}, mean column": columns.single().mean().item() for arm, columns in committees.items()}}


@claim(
    "Two columns of different widths give different answers at least 1.2 times as often as two that differ by their first "
    "weights.",
    expect=Higher("different widths", than="different inits", times=1.2),
    scaled_down=_SCALED_DOWN,
    unit="share of test digits that two columns class differently, mean over pairs",
    needs=("mnist",),
)
def widths_disagree_more(lab: Lab) -> Measured:
    def mean(columns: _Columns) -> Score:
        count = len(columns.said)
        return Score(disagreement(columns.said).sum().item() / (count * (count - 1)), columns.cost)

    return {"different widths": mean(_by_width(lab)), "different inits": mean(_by_init(lab))}
