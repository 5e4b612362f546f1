"""What data say about themselves before anybody trains a network on them: one finding a function.

All are functions of arrays: nothing is read, nothing is drawn without a seed, and each can be checked against data whose
truth was planted. :mod:`assay.own.suggesting` decides what they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from assay.own.doubting import Floats, Ints, doubted, plant

Severity = Literal["fine", "look", "act"]

#: Of the probabilities, the surest so large a part tells wrong labels from hard examples.
_SUREST = 0.25
_RESAMPLES = 100
#: Deviations from the prediction beyond which a number is far off.
FAR = 8


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what it is about; one of :data:`assay.catalogue.NEEDS`, by which papers say what they help against.
        value: the number that was found.
        words: what it means and how sure it is, in a sentence without a full stop.
        severity: ``"fine"``, ``"look"`` (worth a look) or ``"act"`` (deal with it before anything else).
        rows: positions of the examples concerned, worst first; in the training split unless the words say otherwise.
        low: where the value lies at least, with 95 % confidence, if that was found.
        high: where it lies at most.
        advice: what to do about the data themselves.
    """

    name: str
    value: float
    words: str
    severity: Severity = "fine"
    rows: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    advice: str = ""


# ---------------------------------------------------------------------------------------------------- labels


def confident_joint(probabilities: Floats, labels: Ints) -> Floats:
    """The joint distribution of given and true labels: (K, K), rows are given, columns are true; sums to 1.

    An example counts as truly of a class if its probability is at least the mean probability that this class has among the
    examples that carry its label; of several such classes the most probable counts. Rows are scaled to the frequencies of
    the given labels (Northcutt, Jiang and Chuang, "Confident Learning", 2021).

    Args:
        probabilities: (N, K) of each class, predicted by a model that did not see the example.
        labels: (N,) as given; every class occurs.
    """
    classes = probabilities.shape[1]
    given = np.bincount(labels, minlength=classes)
    thresholds = np.array([probabilities[labels == k, k].mean() if given[k] else np.inf for k in range(classes)])
    above = probabilities >= thresholds - 1e-12
    true = np.where(above, probabilities, -1.0).argmax(axis=1)
    sure = above.any(axis=1)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels[sure], true[sure]), 1)
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(classes))
    joint: Floats = shares * given[:, None] / len(labels)
    return joint


def surest_error(probabilities: Floats, labels: Ints, part: float = _SUREST) -> tuple[float, float]:
    """How often the labels contradict the predictions that the model is surest of, with its standard error.

    The surest part is taken for each predicted class, by the gap between the two most probable classes. An example that is
    merely hard is seldom among them; a wrong label is as often there as elsewhere.
    """
    predicted = probabilities.argmax(axis=1)
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    margin = two[:, 1] - two[:, 0]
    wrong: list[NDArray[np.bool_]] = []
    for k in np.unique(predicted):
        members = np.flatnonzero(predicted == k)
        members = members[np.argsort(-margin[members], kind="stable")[: max(1, round(part * len(members)))]]
        wrong.append(labels[members] != k)
    found = np.concatenate(wrong)
    # With a success and a failure more than were seen, so that 0 of 30 is not taken for certain.
    smoothed = (found.sum() + 1) / (len(found) + 2)
    return float(found.mean()), math.sqrt(smoothed * (1 - smoothed) / len(found))


def noise_rate(probabilities: Floats, labels: Ints) -> float:
    """Share of wrong labels.

    The confident joint counts every example whose label a model contradicts, and so also the hard ones that a simple model
    gets wrong: on clean but hard data it finds noise. Among the surest predictions there are fewer of these, so that what
    the two differ by comes from hard examples; it is taken off once more for those that are left among the surest.
    """
    every = float(1 - np.trace(confident_joint(probabilities, labels)))
    surest, error = surest_error(probabilities, labels)
    return max(0.0, every - 2 * max(0.0, every - surest - error / 2))


def noise_interval(probabilities: Floats, labels: Ints, seed: int = 0) -> tuple[float, float, float]:
    """:func:`noise_rate`, and where it lies in 95 of 100 resamples of the predictions: at least, at most."""
    rate = noise_rate(probabilities, labels)
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, len(labels), len(labels)) for _ in range(_RESAMPLES)]
    low, high = np.quantile([noise_rate(probabilities[rows], labels[rows]) for rows in drawn], [0.025, 0.975])
    return rate, min(float(low), rate), max(float(high), rate)


def label_noise(probabilities: Floats, labels: Ints, classes: Sequence[str], seed: int = 0) -> Finding:
    """Wrong labels, estimated from predictions of a model that did not see them.

    Args:
        probabilities: (N, K) out-of-fold.
        labels: (N,).
        classes: K names.
        seed: of the resampling that gives the interval.
    """
    rate, low, high = noise_interval(probabilities, labels, seed)
    scores = doubted(probabilities, labels, plant(probabilities, labels, seed), (rate,)).scores
    rows = np.argsort(-scores, kind="stable")[: round(rate * len(labels))]
    rows = rows[probabilities[rows].argmax(axis=1) != labels[rows]]
    # Seen in some samples of clean and hard data, a few per cent are within what the estimate errs by.
    severity: Severity = "act" if rate >= 0.08 and low >= 0.03 else "look" if rate >= 0.03 and low >= 0.01 else "fine"
    words = f"about {_percent(rate)} of the labels look wrong ({_percent(low)} to {_percent(high)})"
    if severity != "fine":
        joint = confident_joint(probabilities, labels)
        np.fill_diagonal(joint, 0)
        given, true = divmod(int(joint.argmax()), len(classes))
        words += f", most often {classes[true]} that is labelled {classes[given]}"
    advice = "look at the examples named and correct their labels (assay suspects, assay relabel)" if severity != "fine" else ""
    return Finding("label-noise", rate, words, severity, _some(rows), low, high, advice)


def deviations(predicted: Floats, targets: Floats) -> Floats:
    """How far each number is from its prediction, in robust deviations (1.4826 times the median distance): (N,)."""
    residual = targets - predicted
    distance = np.abs(residual - np.median(residual))
    found: Floats = distance / max(1.4826 * float(np.median(distance)), 1e-12)
    return found


def target_outliers(predicted: Floats, targets: Floats) -> Finding:
    """Numbers that are far from what a model says that did not see them: typing errors, mixed units.

    Args:
        predicted: (N,) out-of-fold.
        targets: (N,).
    """
    deviation = deviations(predicted, targets)
    far = deviation > FAR
    rate = float(far.mean())
    severity: Severity = "act" if rate >= 0.05 else "look" if rate >= 0.003 and far.sum() > 1 else "fine"
    rows = np.argsort(-deviation, kind="stable")[: int(far.sum())]
    words = f"{int(far.sum())} of {len(far)} targets are more than {FAR} deviations from what the others let expect"
    advice = "look at the rows named for typing errors and mixed units" if severity != "fine" else ""
    return Finding("label-noise", rate, words, severity, _some(rows), advice=advice)


def imbalance(labels: Ints, classes: Sequence[str]) -> Finding:
    """How unequal the classes are: the value is the largest class over the smallest."""
    counts = np.bincount(labels, minlength=len(classes))
    there = counts[counts > 0]
    shares = there / there.sum()
    evenness = float(-(shares * np.log(shares)).sum() / math.log(max(len(classes), 2)))
    smallest, largest = int(np.where(counts > 0, counts, counts.max() + 1).argmin()), int(counts.argmax())
    ratio = float(counts[largest] / counts[smallest])
    severity: Severity = "act" if ratio >= 10 else "look" if ratio >= 3 else "fine"
    words = (
        f"{classes[largest]} has {counts[largest]} training examples, {classes[smallest]} {counts[smallest]} (1 to {ratio:.3g}; "
        f"evenness {evenness:.2f} of 1)"
    )
    advice = "look at the accuracy of each class, not at the whole" if severity != "fine" else ""
    return Finding("imbalance", ratio, words, severity, advice=advice)


def signal(probabilities: Floats, labels: Ints, learner: str) -> Finding:
    """Whether the inputs tell anything about the labels: the area under the ROC curve of a simple model, classes averaged."""
    from sklearn.metrics import roc_auc_score

    areas, errors = [], []
    for k in range(probabilities.shape[1]):
        ours = labels == k
        if 0 < ours.sum() < len(ours):
            areas.append(float(roc_auc_score(ours, probabilities[:, k])))
            errors.append(auc_error(areas[-1], int(ours.sum()), int((~ours).sum())))
    area = float(np.mean(areas))
    error = float(np.mean(errors))
    low, high = max(0.0, area - 1.96 * error), min(1.0, area + 1.96 * error)
    right = float((probabilities.argmax(axis=1) == labels).mean())
    usual = float(np.bincount(labels).max() / len(labels))
    words = f"{learner} is right on {_percent(right)} (always the largest class: {_percent(usual)}); AUC {area:.3f}"
    if low <= 0.5:
        words += f", within {low:.2f} to {high:.2f} of guessing"
        return Finding("no-signal", area, words, "act", low=low, high=high, advice="find better inputs first")
    return Finding("no-signal", area, words, low=low, high=high)


def explained(predicted: Floats, targets: Floats, learner: str) -> Finding:
    """Whether the inputs tell anything about the numbers: R² of a simple model that did not see them."""
    spread = ((targets - targets.mean()) ** 2).sum()
    share = float(1 - ((targets - predicted) ** 2).sum() / max(spread, 1e-12))
    words = f"{learner} explains {_percent(max(share, 0.0))} of the variance (R² {share:.3f})"
    if share <= 0.02:
        return Finding("no-signal", share, f"{words}, hardly more than the mean does", "act", advice="find better inputs first")
    return Finding("no-signal", share, words)


# ---------------------------------------------------------------------------------------------------- size


def few_examples(
    count: int, classes: int, parameters: int, half: float | None = None, whole: float | None = None, metric: str = "accuracy"
) -> Finding:
    """Whether there are few examples: the value is their number for each class.

    Args:
        count: training examples.
        classes: number of classes; 0 for regression.
        parameters: of the baseline network.
        half: what a simple model reaches when it is trained on half of them; ``None`` if that was not measured.
        whole: what it reaches when it is trained on four fifths.
        metric: what that is.
    """
    each = count / max(classes, 1)
    severity: Severity = "act" if each < 20 else "look" if each < 100 else "fine"
    many = f"{each:.0f} training examples for each class" if classes else f"{count} training examples"
    words = f"{many}, {count / parameters:.2g} for each parameter of the baseline"
    if half is not None and whole is not None:
        if classes and whole >= 0.97:
            severity = "fine"  # few as they are, they are enough
        error = math.sqrt(max(whole * (1 - whole), 0.0) / count) if classes else 0.02
        grows = whole - half > max(0.02, 2 * error)
        words += f"; trained on 1.6 times as many a simple model went from {half:.3f} to {whole:.3f} {metric}"
        if grows and severity == "fine":
            severity = "look"
    advice = "more data would help more than most methods" if severity != "fine" else ""
    return Finding("few-examples", each, words, severity, advice=advice)


# ---------------------------------------------------------------------------------------------------- repeats


@dataclass(frozen=True)
class Near:
    """Examples that are nearly the same, found among some that were looked at closely.

    Args:
        within: pairs of positions in training, the earlier first.
        across: test examples that are nearly the same as one in training.
        train: how many of training were looked at.
        test: how many of the test.
    """

    within: tuple[tuple[int, int], ...] = ()
    across: int = 0
    train: int = 1
    test: int = 1


def repeats(train: Ints, test: Ints, labels: NDArray[Any], near: Near | None = None, chance: float = 0.0) -> Finding:
    """Examples that occur more than once: the value is the share of training examples that an earlier one repeats.

    Args:
        train: (N,) a number for each training example, the same where the content is the same.
        test: (M,) the same for the test.
        labels: (N,) of the training examples.
        near: those that are nearly the same; ``None`` where that was not looked for.
        chance: the share of repeats that there would be if the columns had nothing to do with each other.
    """
    near = near or Near()
    _, first, inverse = np.unique(train, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(train)))
    share = len(again) / max(len(train), 1)
    contrary = again[labels[again] != labels[first[inverse[again]]]]
    across = np.isin(test, train)
    leaked = float(across.mean()) if len(test) else 0.0
    words = f"{len(again)} of {len(train)} training examples occur before"
    if len(contrary):
        words += f", {len(contrary)} of them with another label"
    words += f"; {int(across.sum())} of {len(test)} test examples occur in training"
    if near.within or near.across:
        words += f"; {len(near.within)} more of {near.train} are nearly the same as one before"
        words += f", {near.across} of {near.test} in the test nearly as one in training"
    excess = max(0.0, share - chance, len(near.within) / near.train)
    leak = max(0.0, leaked - chance, near.across / near.test)
    severity: Severity = "fine"
    if (excess >= 0.01 and len(again) + len(near.within) > 2) or leak >= 0.005:
        severity = "act" if leak >= 0.05 or len(contrary) >= 0.05 * len(train) else "look"
    advice = ""
    if severity != "fine":
        advice = "keep repeats in one split (--group) and remove those that contradict" if leak else "remove the repeats"
    elif share > 0.01:
        words += " (as many as columns of few values give by chance)"
    rows = np.array([*contrary, *again, *(later for _, later in near.within)], dtype=np.int64)
    return Finding("duplicates", share, words, severity, _some(rows), advice=advice)


def repeats_by_chance(frame: pd.DataFrame, seed: int = 0) -> float:
    """Share of repeated rows after every column was shuffled on its own: what few distinct values alone bring about."""
    rng = np.random.default_rng(seed)
    mixed = pd.DataFrame({name: frame[name].to_numpy()[rng.permutation(len(frame))] for name in frame})
    return float(mixed.duplicated().mean())


def near_repeats(vectors: Floats, alike: float, first: int | None = None, block: int = 1024) -> list[tuple[int, int]]:
    """Pairs of rows whose cosine is at least ``alike``: (earlier, later). Each later row is named once, with the nearest.

    Args:
        vectors: (N, D) numbers; rows are centred and scaled first. Rows without any variation are left out.
        alike: least cosine.
        first: only these first rows count as earlier ones; ``None`` is all. So the rest is compared with them alone.
        block: rows that are compared at a time.
    """
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    units = (centred / np.maximum(length, 1e-12)[:, None]).astype(np.float32)
    units[length < 1e-9] = 0
    pairs = []
    for begin in range(0, len(units), block):
        cosines = units[begin : begin + block] @ units[: min(begin + block, first or len(units))].T
        rows = np.arange(begin, begin + len(cosines))
        cosines[np.arange(cosines.shape[1])[None, :] >= rows[:, None]] = -1  # earlier rows only
        best = cosines.argmax(axis=1) if cosines.shape[1] else np.zeros(0, np.int64)
        found = np.flatnonzero(cosines[np.arange(len(cosines)), best] >= alike)
        pairs += [(int(best[place]), int(rows[place])) for place in found]
    return pairs


def near_texts(texts: Sequence[str], alike: float = 0.8, first: int | None = None, block: int = 512) -> list[tuple[int, int]]:
    """Pairs of texts that share most of their triples of words: (earlier, later); arguments as for :func:`near_repeats`."""
    from sklearn.feature_extraction.text import HashingVectorizer

    triples = HashingVectorizer(ngram_range=(3, 3), binary=True, norm="l2", alternate_sign=False, n_features=2**18)
    vectors = triples.transform(texts)
    pairs = []
    for begin in range(0, vectors.shape[0], block):
        cosines = (vectors[begin : begin + block] @ vectors[: first or len(texts)].T).tocoo()
        later = cosines.row + begin
        keep = (cosines.col < later) & (cosines.data >= alike)
        earliest: dict[int, int] = {}
        for one, other in zip(later[keep].tolist(), cosines.col[keep].tolist(), strict=True):
            earliest[one] = min(other, earliest.get(one, other))
        pairs += [(other, one) for one, other in sorted(earliest.items())]
    return pairs


# ---------------------------------------------------------------------------------------------------- columns


def constant_columns(frame: pd.DataFrame, share: float = 0.99) -> Finding:
    """Columns in which nearly all rows have one value: the value is their number."""
    found = [name for name in frame if _commonest(frame[name]) >= share]
    if not found:
        return Finding("constant-columns", 0, "every column varies")
    words = f"{len(found)} of {frame.shape[1]} columns have one value in {_percent(share)} of the rows: {_names(found)}"
    return Finding("constant-columns", len(found), words, "look", advice="see if what differs there is a typing error")


def _commonest(column: pd.Series) -> float:
    counts = column.value_counts(dropna=False)
    return float(counts.iloc[0] / len(column)) if len(counts) else 1.0


def id_columns(frame: pd.DataFrame) -> Finding:
    """Columns that number the rows: whole numbers, all different, or in the order of the rows."""
    found = []
    for name in frame:
        column = frame[name].dropna()
        if len(column) < 20 or not pd.api.types.is_numeric_dtype(column):
            continue
        values = column.to_numpy(np.float64)
        whole = bool((values == values.round()).all())
        steps = np.diff(values)
        counted = whole and len(steps) > 0 and bool((steps == steps[0]).all()) and steps[0] != 0
        if counted or (whole and column.nunique() == len(column) and np.ptp(values) >= len(values) - 1):
            found.append(name)
    if not found:
        return Finding("id-columns", 0, "no column numbers the rows")
    words = f"{len(found)} columns look like numbers of rows rather than measurements: {_names(found)}"
    return Finding("id-columns", len(found), words, "look", advice="leave them out, or group by them (--group)")


def missing(frame: pd.DataFrame, gap: str = "(missing)") -> Finding:
    """Cells without a value: the value is their share. Columns of words have the word ``gap`` there."""
    if not frame.size:
        return Finding("missing", 0.0, "no cell is empty")
    shares = pd.Series({name: float((frame[name].isna() | frame[name].eq(gap)).mean()) for name in frame})
    whole = float(shares.mean())
    worst = str(shares.idxmax())
    if not whole:
        return Finding("missing", 0.0, "no cell is empty")
    severity: Severity = "act" if whole >= 0.2 or shares.max() >= 0.6 else "look" if shares.max() >= 0.05 else "fine"
    words = f"{_percent(whole)} of the cells are empty; most in {worst} ({_percent(float(shares.max()))})"
    advice = "ask why they are empty; a column of its own that says so may tell much" if severity != "fine" else ""
    return Finding("missing", whole, words, severity, advice=advice)


def giveaways(frame: pd.DataFrame, target: NDArray[Any], classifies: bool, seed: int = 0) -> Finding:
    """Columns that give the answer away: the value is the best score of a small tree that sees one column alone.

    The score is the area under the ROC curve (classes averaged) or R², out of fold. A column counts if it is above 0.99
    and, for classes, if also 98 % of each class are found by it.

    Args:
        frame: N rows.
        target: (N,) class numbers or numbers.
        classifies: which.
        seed: of the folds.
    """
    scores = {str(name): _alone(frame[name], target, classifies, seed) for name in frame}
    ranked = sorted(scores, key=lambda name: -scores[name][0])
    if not ranked:
        return Finding("giveaway", 0.0, "there is no column")
    found = [name for name in ranked if scores[name][0] >= 0.99 and scores[name][1] >= 0.98]
    measure = "AUC" if classifies else "R²"
    best = f"{ranked[0]} ({measure} {scores[ranked[0]][0]:.3f})"
    if not found:
        return Finding("giveaway", scores[ranked[0]][0], f"no column gives the answer away; most tells {best}")
    words = f"{_names(found)} nearly give the answer away alone ({measure} {scores[found[0]][0]:.3f})"
    return Finding("giveaway", scores[found[0]][0], words, "act", advice="leave out what is not known before the answer is")


def _alone(column: pd.Series, target: NDArray[Any], classifies: bool, seed: int) -> tuple[float, float]:
    """Score of one column alone, and how many of each class it finds (1 for regression)."""
    from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    numeric = pd.api.types.is_numeric_dtype(column)
    values = column.to_numpy(np.float64) if numeric else pd.factorize(column)[0].astype(np.float64)
    if len(np.unique(values[~np.isnan(values)])) < 2 and not np.isnan(values).any():
        return 0.0, 0.0
    inputs = values[:, None]
    if not classifies:
        tree = DecisionTreeRegressor(min_samples_leaf=3, random_state=seed)
        folds = KFold(3, shuffle=True, random_state=seed)
        return float(r2_score(target, cross_val_predict(tree, inputs, target, cv=folds))), 1.0
    tree = DecisionTreeClassifier(max_leaf_nodes=64, min_samples_leaf=2, random_state=seed)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    found = cross_val_predict(tree, inputs, target, cv=folds, method="predict_proba")
    areas = [roc_auc_score(target == k, found[:, k]) for k in range(found.shape[1])]
    return float(np.mean(areas)), float(balanced_accuracy_score(target, found.argmax(axis=1)))


# ---------------------------------------------------------------------------------------------------- shift


def auc_error(area: float, positives: int, negatives: int) -> float:
    """Standard error of an area under the ROC curve (Hanley and McNeil 1982)."""
    area = min(max(area, 1e-3), 1 - 1e-3)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return math.sqrt(max(spread, 0.0) / (positives * negatives))


def shift(
    scores: Floats, is_test: NDArray[np.bool_], column: str = "", labels: Mapping[str, tuple[float, float]] | None = None
) -> Finding:
    """Whether the test is unlike the training data: the area under the ROC curve of a model that tells them apart.

    Args:
        scores: (N,) how much each example looks like the test to a model that did not see it.
        is_test: (N,) which are of the test.
        column: the column that differs most, with by how much, in words.
        labels: class -> share in training and in the test, for the class that differs most; ``None`` if there is none.
    """
    from sklearn.metrics import roc_auc_score

    area = float(roc_auc_score(is_test, scores))
    error = auc_error(area, int(is_test.sum()), int((~is_test).sum()))
    low, high = max(0.0, area - 1.96 * error), min(1.0, area + 1.96 * error)
    severity: Severity = "act" if low >= 0.7 else "look" if low >= 0.55 else "fine"
    words = f"a model tells training from test with AUC {area:.3f} ({low:.2f} to {high:.2f}; 0.5 is not at all)"
    if severity != "fine" and column:
        words += f", most by {column}"
    for name, (before, after) in (labels or {}).items():
        words += f"; {name} is {_percent(before)} of the training and {_percent(after)} of the test"
        severity = "look" if severity == "fine" else severity
    advice = "what is measured on this test is how well a method travels" if severity != "fine" else ""
    return Finding("shift", area, words, severity, low=low, high=high, advice=advice)


def most_moved(train: pd.DataFrame, test: pd.DataFrame) -> str:
    """The column whose distribution differs most between the two, and by how much (Kolmogorov-Smirnov, total variation)."""
    from scipy.stats import ks_2samp

    moved: dict[str, float] = {}
    for name in train:
        before, after = train[name].dropna(), test[name].dropna()
        if not len(before) or not len(after):
            continue
        if pd.api.types.is_numeric_dtype(before):
            moved[str(name)] = float(ks_2samp(before, after).statistic)
        else:
            shares = pd.concat([before.value_counts(normalize=True), after.value_counts(normalize=True)], axis=1).fillna(0)
            moved[str(name)] = float((shares.iloc[:, 0] - shares.iloc[:, 1]).abs().sum() / 2)
    if not moved:
        return ""
    worst = max(moved, key=lambda name: moved[name])
    return f"{worst} (distance {moved[worst]:.2f} of 1)"


def moved_class(train: Ints, test: Ints, classes: Sequence[str]) -> dict[str, tuple[float, float]] | None:
    """The class whose share differs most between the two, if the shares differ by more than chance (chi-square, p < 0.001)."""
    from scipy.stats import chi2_contingency

    counts = np.array([np.bincount(part, minlength=len(classes)) for part in (train, test)], dtype=np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2 or not counts.sum(axis=1).all() or chi2_contingency(counts).pvalue > 1e-3:
        return None
    names = [name for k, name in enumerate(classes) if (train == k).any() or (test == k).any()]
    shares = counts / counts.sum(axis=1, keepdims=True)
    gaps = np.abs(shares[0] - shares[1])
    if gaps.max() < 0.05:
        return None
    worst = int(gaps.argmax())
    return {names[worst]: (float(shares[0, worst]), float(shares[1, worst]))}


# ---------------------------------------------------------------------------------------------------- words


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _some(rows: NDArray[np.int64], most: int = 1000) -> tuple[int, ...]:
    return tuple(dict.fromkeys(rows[:most].tolist()))
