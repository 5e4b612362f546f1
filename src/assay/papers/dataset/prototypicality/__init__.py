"""Prototypes, outliers, memorised examples: five ways to ask how typical an example is of its data.

Some examples are what a class looks like, some are rare but right, some are wrong. The authors read that off the behaviour of
networks, in five scores that know nothing of each other, each large for typical examples. ``adv`` is how far an input must be
moved before the network says something else; ``ret`` how little the prediction changes when the network goes on training on
other data only; ``agr`` how much the networks of an ensemble agree; ``conf`` how sure they are; ``priv`` how much noise training
can stand (differential privacy: no example may matter much) and still get the example right.

They agree on most examples, and it tells something where they do not: what an ensemble is sure of but private training or
further training does not keep was learnt by heart.

Source: Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning: Metrics and
Applications", 2019 (arXiv:1910.13427), section 2. DP-SGD is algorithm 1 of Abadi et al., "Deep Learning with Differential
Privacy", 2016. Here ``adv``, ``agr`` and ``conf`` come from networks that were trained without the example: those that were
trained on it are sure of nearly everything. The sentence above is then about labels: where the ensemble is sure and private
training does not keep the label, the ensemble mostly says another class.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from assay.nn import lenet, mlp
from assay.paper import Above, Cost, Curve, Higher, Lower, claim
from assay.papers.dataset.prototypicality.private import ClippedGradient, without_batch_norm
from assay.papers.dataset.prototypicality.scores import adversarial_distance, agreement, confidence, noise_withstood, retention
from assay.recipe import Recipe, probe
from assay.train.replicas import train_replicas
from assay.train.schedules import cosine
from assay.view import Ranked

if TYPE_CHECKING:
    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import Collection

__all__ = [
    "ClippedGradient",
    "Prototypicality",
    "adversarial_distance",
    "agreement",
    "confidence",
    "noise_withstood",
    "retention",
    "without_batch_norm",
]

METRICS = ("adv", "ret", "agr", "conf", "priv")


class Prototypicality(BaseEstimator):  # type: ignore[misc]
    """Score every example of a data set by all five, or some.

    Trained are ``n_models * folds`` networks for ``adv``, ``agr`` and ``conf`` (each of ``n_models`` cross-validations has
    other folds; ``adv`` looks at the first two), 4 for ``ret`` and ``len(noises) * private_runs`` for ``priv``.

    Args:
        make_model: makes a fresh network, inputs (B, ...) float -> logits (B, C), one for each value that y has.
        metrics: out of :data:`METRICS`.
        n_models: networks of the ensemble that say something of an example without having seen it, at least 2.
        folds: of each cross-validation.
        epochs: of the networks of the ensemble.
        ret_epochs: of the networks for ``ret``, which should know their half by heart; then as many on the other half, at a
            tenth of the rate.
        batch_size: of the networks that are not private.
        rate: of AdamW, for these.
        noises: levels of noise of DP-SGD, as multiples of ``clip`` (the sum of a lot's gradients gets such a deviation), at
            least one, none below 0.
        private_runs: trainings at each level.
        private_epochs: of these, with SGD.
        private_rate: of SGD.
        lot: examples in a private step.
        clip: largest norm of an example's gradient in private training; finite, since the noise is measured by it.
        seed: of everything.
        device: where to compute.

    Private training shuffles where the theory draws: noise levels order the runs, and no epsilon is claimed.

    Attributes:
        scores_: DataFrame (N, metrics), large = typical. ``ranks_``: the same as places in (0, 1], ties share theirs.
        mean_rank_: (N,) over the metrics. ``correlation_``: Spearman's, DataFrame (metrics, metrics).
        classes_: the values of y. ``probabilities_``: (N, C) the ensemble's prediction by networks that did not see the
        example; ``None`` without ``agr`` and ``conf``.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        metrics: Sequence[str] = METRICS,
        n_models: int = 5,
        folds: int = 3,
        epochs: int = 10,
        ret_epochs: int = 50,
        batch_size: int = 64,
        rate: float = 1e-3,
        noises: Sequence[float] = (0.0, 1.0, 2.0, 4.0),
        private_runs: int = 3,
        private_epochs: int = 5,
        private_rate: float = 0.5,
        lot: int = 256,
        clip: float = 1.0,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.make_model = make_model
        self.metrics = metrics
        self.n_models = n_models
        self.folds = folds
        self.epochs = epochs
        self.ret_epochs = ret_epochs
        self.batch_size = batch_size
        self.rate = rate
        self.noises = noises
        self.private_runs = private_runs
        self.private_epochs = private_epochs
        self.private_rate = private_rate
        self.lot = lot
        self.clip = clip
        self.seed = seed
        self.device = device

    def fit(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, report: Callable[[float, float, str], None] | None = None
    ) -> Prototypicality:
        """Train, and score every example.

        Args:
            X: (N, ...) float.
            y: (N,) classes, of two kinds or more.
            report: ``report(done, total, note)`` is told how far it is.

        Raises:
            ValueError: a setting is wrong, or the network has not one output for each class.
        """
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"there is no metric {unknown[0]!r}: choose among {', '.join(METRICS)}" if unknown else "no metric")
        inputs = torch.as_tensor(np.asarray(X) if not isinstance(X, Tensor) else X).float().to(self.device)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        labels = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        if len(self.classes_) < 2 or len(labels) < 2 * self.folds or self.n_models < 2 or self.folds < 2:
            raise ValueError("give examples of two classes, two for every fold, and at least two models and folds")
        if "priv" in self.metrics and not (len(self.noises) and min(self.noises) >= 0 and self.private_runs >= 1):
            raise ValueError("priv needs a level of noise, none of them below 0, and at least one private run")
        if "priv" in self.metrics and not 0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip}: noise is measured by it, so that it must be above 0 and finite")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = self.make_model().to(self.device).eval()(inputs[:1]).shape[1]
        if outputs != len(self.classes_):
            raise ValueError(f"the network has {outputs} outputs and y has {len(self.classes_)} classes: give it one for each")
        shuffle = torch.Generator().manual_seed(self.seed)
        tell = report or (lambda done, total, note: None)
        self.probabilities_: NDArray[np.float64] | None = None
        found: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if {"adv", "agr", "conf"} & set(self.metrics):
                found |= self._ensemble(inputs, labels, shuffle, lambda part: tell(part, 3, "the ensemble"))
            if "ret" in self.metrics:
                found["ret"] = self._retrained(inputs, labels, shuffle, lambda part: tell(1 + part, 3, "training on others"))
            if "priv" in self.metrics:
                found["priv"] = self._private(inputs, labels, lambda part: tell(2 + part, 3, "private training"))
        self.scores_ = pd.DataFrame({name: found[name].cpu().double().numpy() for name in self.metrics})
        self.ranks_ = self.scores_.rank(pct=True)
        self.mean_rank_ = self.ranks_.mean(axis=1).to_numpy()
        self.correlation_ = self.scores_.corr(method="spearman")
        self.labels_ = codes
        self._inputs = inputs.cpu()
        return self

    # ---- what they tell

    def prototypes(self, k_per_class: int = 10) -> dict[Any, NDArray[np.int64]]:
        """Of each class the ``k_per_class`` examples with the highest mean rank, the most typical first."""
        order = np.argsort(-self.mean_rank_, kind="stable")
        return {name: order[self.labels_[order] == code][:k_per_class] for code, name in enumerate(self.classes_)}

    def outliers(self, k: int = 10) -> NDArray[np.int64]:
        """The ``k`` examples with the lowest mean rank, the least typical first."""
        return np.argsort(self.mean_rank_, kind="stable")[:k]

    def memorization(self) -> NDArray[np.float64]:
        """The rank of ``conf`` minus that of ``priv``, in (-1, 1): high where private training does not keep the label of an
        example although networks that did not see it are sure of a class. Such an example looks like another class, and its
        label can only be learnt by heart. Rare examples of which the ensemble is not sure are low in both and not among them."""
        missing = [name for name in ("conf", "priv") if name not in self.scores_]
        if missing:
            raise ValueError(f"memorised examples are told by conf and priv, and {missing[0]} is not among the metrics")
        found: NDArray[np.float64] = (self.ranks_["conf"] - self.ranks_["priv"]).to_numpy()
        return found

    def memorized(self, k: int = 10) -> NDArray[np.int64]:
        """The ``k`` examples with the highest :meth:`memorization`."""
        return np.argsort(-self.memorization(), kind="stable")[:k]

    def submodes(self, min_size: int = 5, share: float = 0.3) -> list[NDArray[np.int64]]:
        """Rare kinds of examples: clusters of a class (HDBSCAN on 40 principal components) that private training loses early.

        Args:
            min_size: fewest examples of a cluster, at least 2.
            share: a cluster counts whose median of ``priv`` lies in the lowest ``share`` of its class.

        Returns:
            Positions, the largest cluster first.

        Raises:
            ValueError: ``priv`` is not among the metrics.
        """
        if "priv" not in self.scores_:
            raise ValueError("rare kinds are those that priv finds hard, and priv is not among the metrics")
        from sklearn.cluster import HDBSCAN
        from sklearn.decomposition import PCA

        flat, priv = self._inputs.flatten(1).numpy(), self.scores_["priv"].to_numpy()
        clusters = []
        for code in range(len(self.classes_)):
            members = np.flatnonzero(self.labels_ == code)
            if len(members) < min_size:
                continue
            few = PCA(min(40, flat.shape[1], len(members)), random_state=0).fit_transform(flat[members])
            found = HDBSCAN(min_cluster_size=min_size, copy=True).fit_predict(few)
            own = [members[found == number] for number in range(found.max() + 1)]
            clusters += [one for one in own if np.median(priv[one]) <= np.quantile(priv[members], share)]
        return sorted(clusters, key=lambda one: -len(one))

    # ---- training

    def _ensemble(
        self, inputs: Tensor, labels: Tensor, shuffle: torch.Generator, tell: Callable[[float], None]
    ) -> dict[str, Tensor]:
        """Cross-validations with other folds each; what is said of an example is said by a network that did not see it."""
        dealt = torch.stack([_dealt(labels.cpu(), self.folds, shuffle) for _ in range(self.n_models)])  # (M, N): its fold
        rows = [(folds != fold).nonzero().flatten() for folds in dealt for fold in range(self.folds)]
        models = [self.make_model().to(inputs.device) for _ in rows]
        train_replicas(
            models,
            inputs,
            labels,
            rows,
            partial(torch.optim.AdamW, lr=self.rate, fused=True),
            self.epochs,
            self.batch_size,
            self._seeds(len(rows), 0),
            report=lambda done, total: tell(0.8 * done / total),
        )
        said = torch.zeros(self.n_models, len(labels), len(self.classes_), dtype=torch.float64, device=inputs.device)
        distance = torch.zeros(min(2, self.n_models), len(labels), device=inputs.device)
        for number, model in enumerate(models):
            turn, fold = divmod(number, self.folds)
            unseen = (dealt[turn] == fold).nonzero().flatten().to(inputs.device)
            said[turn, unseen] = _probabilities(model, inputs[unseen])
            if "adv" in self.metrics and turn < len(distance):
                distance[turn, unseen] = adversarial_distance(model, inputs[unseen], labels[unseen])
                tell(0.8 + 0.2 * (number + 1) / (len(distance) * self.folds))
        self.probabilities_ = said.mean(dim=0).cpu().numpy()
        return {"adv": _mean_distance(distance), "agr": agreement(said), "conf": confidence(said)}

    def _retrained(self, inputs: Tensor, labels: Tensor, shuffle: torch.Generator, tell: Callable[[float], None]) -> Tensor:
        """Train on one half, then on the other alone, twice with other halves."""
        dealt = torch.stack([_dealt(labels.cpu(), 2, shuffle) for _ in range(2)])  # (2, N)
        halves = [(folds == half).nonzero().flatten() for folds in dealt for half in (0, 1)]
        models = [self.make_model().to(inputs.device) for _ in halves]

        def go_on(rows: list[Tensor], rate: float, seeds: list[int], begin: float) -> list[Tensor]:
            train_replicas(
                models,
                inputs,
                labels,
                rows,
                partial(torch.optim.AdamW, lr=rate, fused=True),
                self.ret_epochs,
                self.batch_size,
                seeds,
                report=lambda done, total: tell(begin + done / total / 2),
            )
            return [_probabilities(model, inputs[half.to(inputs.device)]) for model, half in zip(models, halves, strict=True)]

        before = go_on(halves, self.rate, self._seeds(4, 1), 0.0)
        after = go_on([halves[1], halves[0], halves[3], halves[2]], self.rate / 10, self._seeds(4, 2), 0.5)
        kept = torch.zeros(2, len(labels), dtype=torch.float64, device=inputs.device)
        for number, half in enumerate(halves):
            kept[number // 2, half.to(inputs.device)] = retention(before[number], after[number])
        return kept.mean(dim=0)

    def _private(self, inputs: Tensor, labels: Tensor, tell: Callable[[float], None]) -> Tensor:
        levels = sorted(self.noises)
        deviations = [level for level in levels for _ in range(self.private_runs)]
        models = [without_batch_norm(self.make_model()).to(inputs.device) for _ in deviations]
        lot = min(self.lot, len(labels))
        train_replicas(
            models,
            inputs,
            labels,
            [torch.arange(len(labels))] * len(models),
            partial(torch.optim.SGD, lr=self.private_rate),
            self.private_epochs,
            lot,
            self._seeds(len(models), 3),
            gradient=ClippedGradient(models[0], inputs[:1], self.clip),
            noise=[level * self.clip / lot for level in deviations],
            report=lambda done, total: tell(done / total),
        )
        said = torch.stack([_probabilities(model, inputs) for model in models])  # (S * R, N, C)
        return noise_withstood(said.unflatten(0, (len(levels), self.private_runs)), labels)

    def _seeds(self, count: int, part: int) -> list[int]:
        return [self.seed * 1_000_003 + part * 10_007 + number for number in range(count)]


def _dealt(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Deal the examples of each class to folds at random, one after the other: (N,) in 0 ... folds - 1."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    dealt = torch.empty_like(order)
    dealt[order] = torch.arange(len(order)) % folds
    return dealt


@torch.no_grad()
def _probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """(N, C) float64, in evaluation mode."""
    model.eval()
    return torch.cat([model(part).double().softmax(dim=1) for part in inputs.split(512)])


class _Outputs(nn.Module):
    """Some of the outputs: logits (B, C) -> (B, K)."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, self.kept)


def _without(make_model: Callable[[], nn.Module], kept: Tensor) -> nn.Module:
    """A fresh network that knows the ``kept`` classes alone."""
    return nn.Sequential(make_model(), _Outputs(kept))


@probe
def typicality(data: Collection, models: int = 5, folds: int = 3, steps: int = 400, shown: int = 20) -> Ranked:
    """How typical each example is of its class, which are outliers, and which can only be learnt by heart.

    Args:
        data: examples with classes.
        models: networks that say something of each example without having seen it.
        folds: of each cross-validation.
        steps: that a network would do on all examples, from which the number of passes follows: 5 to 60. The networks of the
            ensemble do so many passes over their folds, those for ``ret`` three times as many over each half; private
            ones do half as many steps, with larger batches.
        shown: how many examples the lists of outliers and memorised ones have.
    """
    labels = data.answers()
    present = labels.unique().cpu()
    make_model: Callable[[], nn.Module] = data.make_model
    if 1 < len(present) < len(data.classes):  # a draw may leave the rarest out
        make_model = partial(_without, data.make_model, present)
    batch, lot = min(64, max(8, len(labels) // 8)), min(256, max(16, len(labels) // 4))
    epochs = min(60, max(5, math.ceil(steps * batch / len(labels))))
    found = Prototypicality(
        make_model,
        n_models=models,
        folds=folds,
        epochs=epochs,
        ret_epochs=3 * epochs,
        batch_size=batch,
        private_epochs=min(60, max(5, math.ceil(steps * lot / 2 / len(labels)))),
        lot=lot,
        seed=data.seed,
        device=data.device,
    ).fit(data.inputs, labels, data.report)
    each = {name: torch.tensor(found.scores_[name].to_numpy()) for name in METRICS}
    each["mean rank"] = torch.tensor(found.mean_rank_)
    each["memorised"] = torch.tensor(found.memorization())
    pairs = {f"{a} with {b}": float(found.correlation_.loc[a, b]) for a, b in itertools.combinations(METRICS, 2)}
    notes = ["conf and agr do not look at the label, so that a wrong label does not lower them"]
    if len(present) < len(data.classes):
        absent = [name for code, name in enumerate(data.classes) if code not in present.tolist()]
        notes.append(f"none of the examples is of class {', '.join(absent)}, which the networks were not asked for")
    if any(isinstance(module, _BatchNorm) for module in data.make_model().modules()):
        notes.append("batch normalisation was replaced by group normalisation in private training")
    return Ranked(
        each=each,
        by="mean rank",
        lists={
            "outliers": torch.tensor(found.outliers(shown)),
            "learnt by heart: the ensemble is sure, private training loses it": torch.tensor(found.memorized(shown)),
        },
        numbers=pairs,
        notes=tuple(notes),
    )


# ------------------------------------------------------------------------------------------------- claims


def _scored(inputs: Tensor, labels: Tensor, make_model: Callable[[], nn.Module], **settings: Any) -> dict[str, Tensor]:
    """The five scores, and the probability of the label by networks that did not see the example."""
    found = Prototypicality(make_model, **settings).fit(inputs, labels)
    assert found.probabilities_ is not None
    scores = {name: torch.tensor(found.scores_[name].to_numpy()) for name in METRICS}
    own = torch.from_numpy(found.probabilities_).gather(1, torch.from_numpy(found.labels_).unsqueeze(1)).squeeze(1)
    return {**scores, "memorised": torch.tensor(found.memorization()), "self-confidence": own}


def _data(lab: Lab) -> Dataset:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    return data.subset(train=240, test=100) if lab.scale == "smoke" else data


def _model(lab: Lab) -> Callable[[], nn.Module]:
    return partial(lenet, 1, 10, 28) if lab.scale == "full" else partial(mlp, 784, 10, (128,))


def _scores(lab: Lab, data: Dataset, seed: int) -> tuple[pd.DataFrame, float]:
    """Scores of the training examples, and the seconds that they took."""
    settings: dict[str, Any] = lab.pick(
        smoke={
            "n_models": 2,
            "folds": 2,
            "epochs": 2,
            "ret_epochs": 2,
            "noises": (0.0, 2.0),
            "private_runs": 1,
            "batch_size": 32,
        },
        laptop={},
        full={"n_models": 10, "epochs": 20, "noises": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), "private_runs": 10, "private_epochs": 20},
    )
    found = lab.remember(
        _scored,
        inputs=data.train.inputs,
        labels=data.train.labels,
        make_model=_model(lab),
        seed=seed,
        device=str(lab.device),
        **settings,
    )
    seconds = float(found["seconds"])
    return pd.DataFrame({name: value.numpy() for name, value in found.items() if name != "seconds"}), seconds


def _mean_distance(distances: Tensor) -> Tensor:
    """(M, N) distances by network -> (N,); where no move was found in one network, the largest found in it stands in.

    Else an example that one network gets wrong would count as the most typical because an attack on another gave up.
    """
    found = distances.where(distances.isfinite(), 0.0)
    return distances.minimum(found.amax(dim=1, keepdim=True)).mean(dim=0)


def _mean_rank(scores: pd.DataFrame) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = scores[list(METRICS)].rank(pct=True).mean(axis=1).to_numpy()
    return mean


_SCALED_DOWN = (
    "MNIST 5k and a perceptron (784-128-10) instead of MNIST, Fashion-MNIST and CIFAR-10 with convolutional networks; an "
    "ensemble of 5 out of 3-fold cross-validations, 3 private trainings at each of 4 levels of noise, DeepFool as the attack."
)


@claim(
    "All ten rank correlations between the five scores are positive, and their mean is above 0.3.",
    expect=(Above("lowest of the ten", 0.0), Above("mean of the ten", 0.3)),
    scaled_down=_SCALED_DOWN,
    unit="Spearman's correlation over training examples",
)
def metrics_agree(lab: Lab) -> Measured:
    data = _data(lab)
    scores, seconds = _scores(lab, data, lab.seed)
    pairs = list(itertools.combinations(METRICS, 2))

    def correlations(table: pd.DataFrame) -> list[float]:
        matrix = table[list(METRICS)].corr(method="spearman")
        return [float(matrix.loc[a, b]) for a, b in pairs]

    found = correlations(scores)
    # What is left when each score keeps only what it knows of the classes.
    random = np.random.default_rng(lab.seed)
    labels = pd.Series(data.train.labels.numpy())
    shuffled = scores.apply(lambda column: column.groupby(labels).transform(lambda part: random.permutation(part.to_numpy())))
    return {
        "lowest of the ten": min(found),
        "mean of the ten": Curve(
            sorted(found), value=float(np.mean(found)), cost=Cost(seconds), x_name="pair, from the lowest", y_name="correlation"
        ),
        "mean of the ten, shuffled within classes": float(np.mean(correlations(shuffled))),
        **{f"{a} with {b}": value for (a, b), value in zip(pairs, found, strict=True)},
    }


_FLIPPED = 0.05


def _flipped(lab: Lab, seed: int) -> tuple[pd.DataFrame, NDArray[np.bool_], float]:
    """Scores, the largest for the most typical, of data with wrong labels; which labels are wrong; seconds."""
    data = _data(lab).flip_labels(_FLIPPED, seed=seed)
    scores, seconds = _scores(lab, data, seed)
    assert data.train.clean_labels is not None
    scores["memorised"] *= -1  # large for what is learnt by heart
    scores["mean rank"] = _mean_rank(scores)
    scores["random"] = np.random.default_rng(seed).random(len(scores))
    return scores, (data.train.labels != data.train.clean_labels).numpy(), seconds


@claim(
    "With 5 % of the labels flipped, the tenth of the examples with the lowest mean rank of the five scores holds more than 80 % "
    "of the flipped ones, and more of them than the tenth with the lowest confidence does.",
    expect=(Above("mean rank", 0.8), Higher("mean rank", than="conf")),
    scaled_down=_SCALED_DOWN,
    unit="share of the flipped labels in the lowest tenth",
)
def lowest_tenth_holds_wrong_labels(lab: Lab) -> Measured:
    scores, wrong, seconds = _flipped(lab, lab.seed)
    inspected = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
    arms = {}
    for name in ("mean rank", *METRICS, "self-confidence", "random"):
        order = np.argsort(scores[name].to_numpy(), kind="stable")
        held = [float(wrong[order[: round(share * len(order))]].sum() / wrong.sum()) for share in inspected]
        arms[name] = Curve(
            held, x=inspected, value=held[3], cost=Cost(seconds), x_name="share of examples inspected", y_name="flipped found"
        )
    return arms


@claim(
    "With 5 % of the labels flipped, wrong labels are told from examples that are merely rare by private training: priv alone, "
    "and where it contradicts the ensemble (the rank of conf minus that of priv), find them with an average precision more than "
    "0.2 above that of the mean rank of all five scores.",
    expect=(Higher("priv", than="mean rank", by=0.2), Higher("memorised", than="mean rank", by=0.2)),
    scaled_down=_SCALED_DOWN
    + " This claim was written after one such run had been seen; it is judged by others: other wrong labels, other networks.",
    unit="average precision for flipped labels",
)
def wrong_labels_are_memorised(lab: Lab) -> Measured:
    from sklearn.metrics import average_precision_score, precision_recall_curve

    # This claim was written after one run with seed 0 had been seen: that run is not among those that judge it.
    scores, wrong, seconds = _flipped(lab, lab.seed + 100)
    arms = {}
    # Self-confidence, the probability of the label out of fold, is what cleanlab ranks by.
    for name in ("priv", "memorised", "mean rank", "adv", "ret", "conf", "agr", "self-confidence", "random"):
        suspicion = -scores[name].rank().to_numpy()
        precision, recall, _ = precision_recall_curve(wrong, suspicion)
        few = np.linspace(0, len(recall) - 1, min(60, len(recall))).round().astype(int)[::-1]
        arms[name] = Curve(
            precision[few].tolist(),
            x=recall[few].tolist(),
            value=float(average_precision_score(wrong, suspicion)),
            cost=Cost(seconds),
            x_name="recall",
            y_name="precision",
        )
    return arms


def _chosen(data: Dataset, scores: NDArray[np.float64], count: int, what: str) -> Dataset:
    """The ``count`` training examples with the highest scores, each class in proportion."""
    labels = data.train.labels.numpy()
    place = pd.Series(-scores).groupby(labels).rank(method="first") - 0.5
    share = place / np.bincount(labels)[labels]  # as `stratified` draws: in proportion without a rule for rounding
    rows = np.sort(np.argsort(share.to_numpy(), kind="stable")[:count])
    return dataclasses.replace(data, train=data.train.take(torch.from_numpy(rows)), history=(*data.history, f"{count} {what}"))


@claim(
    "With few examples (500) a network that is trained on the most typical ones is more accurate than one that is trained on the "
    "least typical, by more than 5 points; with many (2500) this order is turned around, or at least the advantage is below one "
    "point.",
    expect=(
        Higher("most typical, 500", than="least typical, 500", by=0.05),
        Lower("most typical, 2500", than="least typical, 2500", by=-0.01),
    ),
    scaled_down=_SCALED_DOWN + " Slices of up to 2,500 images instead of 5,000.",
    unit="test accuracy",
)
def typical_examples_for_small_sets(lab: Lab) -> Measured:
    data = _data(lab)
    scores, seconds = _scores(lab, data, lab.seed)
    rank = _mean_rank(scores)
    few, many = lab.pick(smoke=(60, 160), laptop=(500, 2500), full=(500, 2500))
    sizes = lab.pick(smoke=[few, many], laptop=[250, few, 1000, many], full=[250, few, 1000, many, 5000, 15_000])
    ways = {"most typical": rank, "least typical": -rank, "random": np.random.default_rng(lab.seed).random(len(rank))}
    arms: dict[str, float | Curve] = {}
    for way, order in ways.items():
        reached = {}
        for size in sizes:
            recipe = Recipe(
                _chosen(data, order, size, way),
                model=_model(lab),
                optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
                schedule=cosine,
                epochs=lab.pick(smoke=2, laptop=20, full=40),
                batch_size=32,
                watch=(),
            )
            reached[size] = lab.train(recipe).accuracy()
        arms[f"{way}, 500"] = Curve(
            list(reached.values()),
            x=sizes,
            value=float(reached[few]),
            cost=Cost(seconds) if way != "random" else Cost(),
            x_name="training examples",
            y_name="test accuracy",
        )
        arms[f"{way}, 2500"] = reached[many]
    return arms
