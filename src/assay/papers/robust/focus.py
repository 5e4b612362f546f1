"""Familiar objects in uncommon settings: a stress test of classifiers by where, when and in what weather things are seen.

A classifier that has seen planes in the sky by day may not know one in a forest at night. Annotate the test examples with
attributes of their setting, call a value uncommon for a class when it is rare among the class's training examples, and look at
the accuracy by the number of uncommon attributes: P_0, P_1, P_2, ... For each value also the gap, accuracy without it minus
accuracy with it, and, since values come together, a logistic regression of being right on all of them and the class.

FOCUS lists by hand which values are uncommon; here the rule is P_train(value | class) < threshold, so that it works on any
table of attributes. Features of the last layer that move with the setting, though the class stays, can be found likewise, and
set to their mean.

Source: Kattakinda and Feizi, "FOCUS: Familiar Objects in Common and Uncommon Settings", ICML 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.data.scenes import roughness, scenes
from assay.data.shift import blur
from assay.errors import AssayError
from assay.nn.collapse import LastLayer, last_layer
from assay.nn.convnet import ConvNorm, classifier
from assay.paper import Above, Close, Curve, Higher, claim
from assay.recipe import Recipe, probe
from assay.train.schedules import cosine
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.data.scenes import Scenes
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


# ------------------------------------------------------------------------------------------------------- stress test


@dataclass(frozen=True)
class StressReport:
    """How a classifier does in common and uncommon settings.

    Attributes:
        partition: a row for each number of uncommon attributes: ``examples``, ``accuracy``, ``low`` and ``high`` (Wilson, 95 %).
            Cells of few examples are noise: look at the counts.
        gaps: a row for each value of each attribute: ``examples`` with it, ``gap`` (accuracy without it minus accuracy with
            it), ``low`` and ``high`` (bootstrap, 95 %).
        effects: a row for each attribute: change of the log-odds of being right where its value is uncommon, the class and
            the other attributes held fixed; NaN where the examples do not tell.
        uncommon: (n, A) bool, which attributes of which example are uncommon.
    """

    partition: pd.DataFrame
    gaps: pd.DataFrame
    effects: pd.Series
    uncommon: np.ndarray


class SettingStressTest:
    """Which settings are common for a class is learnt from training examples; then any predictions can be looked at.

    Args:
        attributes: a row for each training example, a column for each attribute (time, weather, place); any values.
        labels: (n,) classes of the training examples.
        threshold: a value is uncommon for a class of whose training examples a smaller share has it (0.05).
    """

    def __init__(self, attributes: pd.DataFrame, labels: np.ndarray, threshold: float = 0.05) -> None:
        if len(attributes) != len(labels):
            raise ValueError(f"{len(attributes)} rows of attributes and {len(labels)} labels do not belong together")
        self.names, self.threshold = list(attributes.columns), threshold
        self.shares = {
            name: pd.crosstab(np.asarray(labels), attributes[name].to_numpy(), normalize="index") for name in self.names
        }

    def uncommon(self, attributes: pd.DataFrame, labels: np.ndarray) -> np.ndarray:
        """(n, A) bool: which attributes of these examples are uncommon for their class. What was never seen is uncommon."""
        columns = []
        for name in self.names:
            shares = self.shares[name]
            row, column = shares.index.get_indexer(np.asarray(labels)), shares.columns.get_indexer(attributes[name].to_numpy())
            known = (row >= 0) & (column >= 0)
            columns.append(np.where(known, shares.to_numpy()[row, column], 0.0) < self.threshold)
        return np.stack(columns, axis=1)

    def evaluate(self, attributes: pd.DataFrame, labels: np.ndarray, predictions: np.ndarray, seed: int = 0) -> StressReport:
        """Look at the predictions for some examples.

        Args:
            attributes: their attributes, with the columns of the training examples.
            labels: (n,) their classes.
            predictions: (n,) what the classifier said.
            seed: of the bootstrap.
        """
        labels, right = np.asarray(labels), np.asarray(predictions) == np.asarray(labels)
        uncommon = self.uncommon(attributes, labels)
        count = uncommon.sum(axis=1)
        rows = {k: _interval(right[count == k]) for k in range(len(self.names) + 1)}
        partition = pd.DataFrame.from_dict(rows, orient="index", columns=["examples", "accuracy", "low", "high"])
        draw = np.random.default_rng(seed)
        gaps = {
            (name, value): _gap(right, (attributes[name] == value).to_numpy(), draw)
            for name in self.names
            for value in pd.unique(attributes[name])
        }
        columns = ["examples", "gap", "low", "high"]
        table = pd.DataFrame(gaps.values(), index=pd.MultiIndex.from_tuples(gaps, names=["attribute", "value"]), columns=columns)
        return StressReport(partition, table, self._effects(uncommon, labels, right), uncommon)

    def _effects(self, uncommon: np.ndarray, labels: np.ndarray, right: np.ndarray) -> pd.Series:
        """Coefficients of a logistic regression; classes enter with an intercept each."""
        from sklearn.linear_model import LogisticRegression  # a second of importing

        if right.all() or not right.any():
            return pd.Series(np.nan, index=self.names)
        inputs = np.concatenate([uncommon, pd.get_dummies(labels).to_numpy()], axis=1).astype(float)
        # Hardly regularised: enough to stay finite where an attribute decides alone.
        fitted = LogisticRegression(C=100.0, max_iter=500, fit_intercept=False).fit(inputs, right)
        return pd.Series(fitted.coef_[0, : len(self.names)], index=self.names)


def _interval(right: np.ndarray) -> tuple[int, float, float, float]:
    if not len(right):
        return 0, np.nan, np.nan, np.nan
    found = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return len(right), float(right.mean()), float(found.low), float(found.high)


def _gap(right: np.ndarray, has: np.ndarray, draw: np.random.Generator, rounds: int = 500) -> tuple[int, float, float, float]:
    inside, outside = right[has], right[~has]
    if not len(inside) or not len(outside):
        return len(inside), np.nan, np.nan, np.nan
    # Resampling zeros and ones is drawing binomial counts.
    drawn = draw.binomial(len(outside), outside.mean(), rounds) / len(outside)
    drawn = drawn - draw.binomial(len(inside), inside.mean(), rounds) / len(inside)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return len(inside), float(outside.mean() - inside.mean()), float(low), float(high)


def spurious_features(features: Tensor, labels: Tensor, uncommon: Tensor) -> Tensor:
    """How much each feature moves between common and uncommon settings while the class stays.

    Args:
        features: (n, F), of the last hidden layer.
        labels: (n,) int64.
        uncommon: (n,) bool: which examples have an uncommon setting.

    Returns:
        (F,): |mean where uncommon - mean where common| / standard deviation, each within a class, then the mean over the
        classes that have at least two examples of both.
    """
    moved = []
    for one in labels.unique():
        here, there = features[(labels == one) & ~uncommon], features[(labels == one) & uncommon]
        if min(len(here), len(there)) < 2:
            continue
        spread = torch.cat([here - here.mean(dim=0), there - there.mean(dim=0)]).square().mean(dim=0).sqrt()
        moved.append((there.mean(dim=0) - here.mean(dim=0)).abs() / spread.clamp_min(1e-8))
    return torch.stack(moved).mean(dim=0) if moved else torch.zeros(features.shape[1])


@probe
def by_setting(view: View, bins: int = 4, threshold: float = 0.05) -> Seen:
    """Accuracy by how uncommon a picture's light, contrast and roughness are for its class.

    No attributes are needed: these three are measured, and cut into equally frequent bins of the background examples. For
    attributes that people wrote down, see :class:`SettingStressTest`.

    Args:
        view: a classifier of images, with labels and background examples.
        bins: values that each attribute has.
        threshold: a value is uncommon for a class of whose background examples a smaller share has it.
    """
    view.only("images")
    view.classifier()
    labels = view.answers()
    if view.background_labels is None or not len(view.background):
        raise AssayError("this probe learns from further examples with labels what is common, and there are none")
    known, here = _measured(view.background), _measured(view.inputs)
    attributes, given = {}, {}
    for name in known:
        edges = known[name].quantile(torch.linspace(0, 1, bins + 1)[1:-1])
        attributes[name], given[name] = (torch.bucketize(values[name], edges).numpy() for values in (known, here))
    test = SettingStressTest(pd.DataFrame(attributes), view.background_labels.numpy(), threshold)
    with torch.no_grad():
        said = torch.cat([view.model(part).argmax(dim=1) for part in view.inputs.split(256)])
    report = test.evaluate(pd.DataFrame(given), labels.numpy(), said.numpy(), view.seed)
    rows = [(k, row.examples, row.accuracy) for k, row in report.partition.iterrows() if row.examples]
    numbers = {f"accuracy with {k} uncommon attributes ({int(n)} examples)": float(accuracy) for k, n, accuracy in rows}
    flags = torch.from_numpy(report.uncommon)  # (B, 3)
    each = {"uncommon attributes": flags.sum(dim=1)} | {f"uncommon {name}": flags[:, i].float() for i, name in enumerate(known)}
    return Seen(numbers=numbers, each=each)


def _measured(images: Tensor) -> dict[str, Tensor]:
    """(B, C, H, W) -> name -> (B,)."""
    grey = images.mean(dim=1)
    return {"light": grey.mean(dim=(1, 2)), "contrast": grey.std(dim=(1, 2)), "roughness": roughness(grey)}


# ------------------------------------------------------------------------------------------------- composed settings

_WEATHER = ("clear", "fog", "rain", "snow")
_TIME = ("day", "night")
_PLACES = 2
#: Share of a class's training examples in its common value of each attribute.
_COMMON = 0.95
#: Between the shares of rare values (0.05, 0.05 / 3) and those of common ones, far from either for samples of 400.
_RARE = 0.1
#: Eight classes, so that settings can be balanced; of the clothes, coats and shirts are left out, which look like pullovers.
_CLASSES = {"mnist5k": (0, 1, 2, 3, 4, 5, 6, 7), "fashion-mnist": (0, 1, 2, 3, 5, 7, 8, 9)}


def weathered(images: Tensor, weather: Tensor, night: Tensor, generator: torch.Generator) -> Tensor:
    """Weather and time over pictures (B, 1, H, W) in [0, 1]: 0 clear, 1 fog, 2 rain, 3 snow (B,); night (B,) bool."""
    count, _, height, width = images.shape
    fog = 0.35 + 0.5 * blur(images, 0.03, generator)
    # Drops are drawn as points and drawn out along a diagonal.
    drops = (torch.rand(count, 1, height, width, generator=generator) < 0.02).float()
    streaks = F.conv2d(drops, torch.eye(5).view(1, 1, 5, 5), padding=2).clamp_max(1)
    rain = images * (1 - 0.6 * streaks) + 0.6 * streaks
    snow = torch.where(torch.rand(images.shape, generator=generator) < 0.08, 1.0, images)
    kinds = torch.stack([images, fog, rain, snow])  # (4, B, 1, H, W)
    shown = kinds[weather, torch.arange(count)]
    return torch.where(night.view(-1, 1, 1, 1), 0.35 * shown, shown).clamp(0, 1)


def _values(common: Tensor, number: int, share: float, generator: torch.Generator) -> Tensor:
    """Each example's common value with probability ``share``, otherwise one of the others, evenly: (n,)."""
    other = (common + torch.randint(1, number, common.shape, generator=generator)) % number
    return torch.where(torch.rand(len(common), generator=generator) < share, common, other)


def common_settings(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Common place (0, 1), weather (0 to 3) and time (0, 1) of classes 0 to 7: three (n,) int64.

    Every pair of values of two attributes is common for equally many classes. Were snow, say, common for none, pictures with
    three uncommon attributes would be harder than those with none for a classifier without any bias.
    """
    place, weather = labels % 2, labels // 2
    return place, weather, (place + weather % 2 + weather // 2) % 2


def _settings(part: Scenes, share: float | None, generator: torch.Generator) -> tuple[Split, pd.DataFrame]:
    """Pictures in their settings, and the settings; ``None`` draws them independently of the class."""
    labels = part.labels[:, 0]
    _, weathers, times = common_settings(labels)  # places are the scenes' own
    weather = _values(weathers, 4, 1 / 4 if share is None else share, generator)
    time = _values(times, 2, 1 / 2 if share is None else share, generator)
    images = weathered(part.images, weather, time == 1, generator)
    table = {"place": part.background.numpy(), "weather": np.array(_WEATHER)[weather], "time": np.array(_TIME)[time]}
    return Split(images, labels), pd.DataFrame(table)


@dataclass(frozen=True)
class _Composed:
    data: Dataset
    train: pd.DataFrame
    test: pd.DataFrame


def _composed(lab: Lab, items: str, biased: bool) -> _Composed:
    """Training pictures whose settings follow the class, or do not; test pictures with half of the attributes common."""
    count = lab.pick(smoke=(200, 0, 160), laptop=(3000, 0, 8000), full=(20_000, 0, 20_000))

    def correlation(share: float) -> float:  # of scenes, whose other value may be the common one again
        return (share - 1 / _PLACES) / (1 - 1 / _PLACES)

    made = scenes(
        lab.data(items),
        lab.data("cbsd68"),
        size=32,
        objects=(1, 1),
        scale=(0.8, 1.0),
        kinds=_PLACES,
        correlation=correlation(_COMMON) if biased else 0.0,
        test_correlation=correlation(0.5),
        classes=_CLASSES[items],
        count=count,
        seed=lab.seed,
    )
    train, attributes = _settings(made.train, _COMMON if biased else None, lab.generator(1))
    test, tested = _settings(made.test, 0.5, lab.generator(2))
    data = Dataset(
        f"{made.name} in settings",
        "classification",
        train,
        train.take(torch.arange(0)),
        test,
        made.classes,
        made.licence,
        made.name,
        (*made.history, f"settings(biased={biased})"),
    )
    return _Composed(data, attributes, tested)


def _net(num_classes: int) -> nn.Sequential:
    body = [ConvNorm(1, 16, 3, stride=2), ConvNorm(16, 32, 3, stride=2), ConvNorm(32, 64, 3, stride=2)]
    return nn.Sequential(*body, classifier(64, num_classes))


def _trained(lab: Lab, composed: _Composed) -> Trained:
    recipe = Recipe(
        composed.data,
        model=partial(_net, composed.data.num_classes),
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=20, full=30),
        batch_size=64,
        watch=(),
    )
    return lab.train(recipe)


_SCALED_DOWN = (
    "Settings are composed, objects are real: eight classes of digits or clothes on smooth or rough photos (32x32 pixels), with "
    "drawn fog, rain, snow and night, instead of 21,000 photos with annotations; 3,000 training pictures and three convolutions."
)
_ITEMS = {"digits": "mnist5k", "clothes": "fashion-mnist"}


@claim(
    "Where each class has one common place, weather and time in 95 % of its training pictures, accuracy falls with every "
    "uncommon attribute, by more than 10 points from none to three; where settings do not follow the class, it stays within 3.",
    expect=tuple(
        expectation
        for name in _ITEMS
        for expectation in (
            Above(f"{name}: fall from P_0 to P_3", 0.10),
            Above(f"{name}: smallest fall in a step", 0.0),
            Close(f"{name}, independent: P_3", to=f"{name}, independent: P_0", within=0.03),
            Above(f"{name}, independent: P_0", 0.5),  # what has learnt nothing is flat, too
        )
    ),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy by the number of uncommon attributes",
    needs=("fashion-mnist", "cbsd68"),
)
def accuracy_falls_with_uncommonness(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, items in _ITEMS.items():
        biased = _composed(lab, items, biased=True)
        test = SettingStressTest(biased.train, biased.data.train.labels.numpy(), _RARE)
        for arm, composed in {name: biased, f"{name}, independent": _composed(lab, items, biased=False)}.items():
            trained = _trained(lab, composed)
            said = trained.logits().argmax(dim=1).numpy()
            # What is uncommon is told by the biased training pictures for both: the same cells, with or without the bias.
            line = test.evaluate(composed.test, composed.data.test.labels.numpy(), said).partition["accuracy"].tolist()
            arms[arm] = Curve(line, x=range(4), cost=trained.cost, x_name="uncommon attributes", y_name="accuracy")
            arms |= {f"{arm}: P_0": line[0], f"{arm}: P_3": line[3], f"{arm}: fall from P_0 to P_3": line[0] - line[3]}
            arms[f"{arm}: smallest fall in a step"] = min(one - other for one, other in pairwise(line))
    return arms


@claim(
    "Setting the tenth of the last layer's features that move most with the setting to their mean raises the accuracy on "
    "pictures with three uncommon attributes at least 2 points above what setting as many random features does.",
    expect=tuple(Higher(f"{name}: features that move", than=f"{name}: random features", by=0.02) for name in _ITEMS),
    scaled_down=_SCALED_DOWN,
    unit="accuracy on P_3",
    needs=("fashion-mnist", "cbsd68"),
)
def spurious_feature_explains(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, items in _ITEMS.items():
        composed = _composed(lab, items, biased=True)
        labels = composed.data.train.labels
        test = SettingStressTest(composed.train, labels.numpy(), _RARE)
        model = _trained(lab, composed).model
        train, held = composed.data.train.inputs, composed.data.test
        assert isinstance(train, Tensor)
        assert isinstance(held.inputs, Tensor)
        seen, shown = last_layer(model, train), last_layer(model, held.inputs)
        rare = torch.from_numpy(test.uncommon(composed.train, labels.numpy()).any(axis=1))
        ranked = spurious_features(seen.features, labels, rare).argsort(descending=True)
        counts = torch.from_numpy(test.uncommon(composed.test, held.labels.numpy()).sum(axis=1))
        mean = seen.features.mean(dim=0)

        def reset(which: Tensor, of: Tensor, seen: LastLayer = shown, mean: Tensor = mean, right: Tensor = held.labels) -> float:
            """Accuracy on the examples ``of`` with the features ``which`` at their mean."""
            changed = seen.features[of].clone()
            changed[:, which] = mean[which]
            return float((F.linear(changed, seen.weight, seen.bias).argmax(dim=1) == right[of]).double().mean())

        hard, easy, number = counts == 3, counts == 0, max(1, len(ranked) // 10)
        random = [ranked[torch.randperm(len(ranked), generator=lab.generator(3 + i))[:number]] for i in range(10)]
        sizes = [0, number, 2 * number, 3 * number, 5 * number]
        arms |= {
            f"{name}: nothing": reset(ranked[:0], hard),
            f"{name}: features that move": reset(ranked[:number], hard),
            f"{name}: random features": sum(reset(which, hard) for which in random) / len(random),
            f"{name}: features that move, P_0": reset(ranked[:number], easy),
            f"{name}: P_3 by number": Curve(
                [reset(ranked[:n], hard) for n in sizes], x=sizes, x_name="features set to their mean"
            ),
        }
    return arms
