"""Planted wrong labels, found by `assay suspects` and by cleanlab: average precision over five seeds, three kinds of data.

    python benchmarks/suspects.py [--seeds 5] [--output benchmarks/suspects.json] [--markdown]

Two comparisons. *Same probabilities*: both rank the same out-of-fold probabilities. *From the data on*: each makes its own, as a
person would let it: `CleanLearning` with its default classifier, and with the model that its user would rather give it
(`assay.own.baselines.reference`). Besides, how well each knows where to stop: precision and recall of what it would have people
look at, and the precision that `assay suspects` said beforehand.

Needs cleanlab (peers.txt). Ranking and calibration were made on other data (digits, breast-cancer, Fashion-MNIST, trec, mr); that
usual mistakes should count at all was seen on seed 0 of these.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from assay.data import load
from assay.lab.machine import machine, now
from assay.own import simple
from assay.own.examples import all_examples
from assay.own.suspecting import Suspects, suspects_among

#: Data set, examples.
DATA = (("mnist5k", 4000), ("keel-satimage", 4000), ("ag-news", 4000))
NOISE = (("symmetric", 0.1), ("pairwise", 0.1), ("symmetric", 0.3))
CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def measure(name: str, count: int, kind: str, rate: float, seed: int) -> dict[str, float]:
    """All arms for one data set, one kind of mistakes and one seed."""
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    data = load(name)
    data = data.subset(train=min(count, len(data.train)), seed=seed).flip_labels(rate, seed=seed, kind=kind)
    examples = all_examples(data)
    assert data.train.clean_labels is not None
    labels = data.train.labels.numpy()
    wrong = (data.train.labels != data.train.clean_labels).numpy()
    began = time.process_time()
    ours = suspects_among(examples, seed=seed)
    row = {"assay, seconds": time.process_time() - began}
    probabilities = _in_order(ours)
    row["assay"] = _precision(wrong[ours.places], ours.scores)
    for score in CLEANLAB:
        quality = get_label_quality_scores(labels, probabilities, method=score)
        row[f"cleanlab, {score}"] = _precision(wrong, -quality)
    row |= _stops("assay", wrong, np.isin(np.arange(len(labels)), ours.places[: ours.cut]))
    share = ours.expected(ours.cut)
    row["assay, precision said"] = share[0] if share else float("nan")
    row |= _stops("cleanlab", wrong, find_label_issues(labels, probabilities))
    vectors = simple.vectors(examples.data.train.inputs, examples.kind, np.arange(len(labels)))
    for arm, model in (("its default", None), (f"{type(_usual(examples.kind)).__name__}", _usual(examples.kind))):
        began = time.process_time()
        found = CleanLearning(model, seed=seed).find_label_issues(vectors, labels)
        row[f"CleanLearning, {arm}, seconds"] = time.process_time() - began
        row[f"CleanLearning, {arm}"] = _precision(wrong, -found["label_quality"].to_numpy())
    return row


def _usual(kind: str) -> Any:
    """What a sceptic would use for such data."""
    if kind == "text":
        return LogisticRegression(C=10.0, max_iter=1000)
    return HistGradientBoostingClassifier(random_state=0) if kind == "table" else KNeighborsClassifier(9)


def _in_order(found: Suspects) -> NDArray[np.float64]:
    """The probabilities in the order of the data."""
    assert found.probabilities is not None
    whole = np.zeros_like(found.probabilities)
    whole[found.places] = found.probabilities
    return whole


def _precision(wrong: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    return float(average_precision_score(wrong, scores))


def _stops(who: str, wrong: NDArray[np.bool_], shown: NDArray[np.bool_]) -> dict[str, float]:
    hits = float((wrong & shown).sum())
    return {f"{who}, precision": hits / max(1, int(shown.sum())), f"{who}, recall": hits / int(wrong.sum())}


def main() -> None:
    """Measure, write, and print the tables of docs/labels.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--markdown", action="store_true", help="print the tables from the file, measure nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if not given.markdown:
        rows = []
        for name, count in DATA:
            for kind, rate in NOISE:
                for seed in range(given.seeds):
                    rows.append(
                        {"data": name, "noise": f"{kind} {rate:.0%}", "seed": seed, **measure(name, count, kind, rate, seed)}
                    )
                    print(json.dumps(rows[-1]), flush=True)
        found = {"machine": machine(), "date": now(), "rows": rows}
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(_tables(json.loads(given.output.read_text(encoding="utf-8"))["rows"]))


def _tables(rows: list[dict[str, Any]]) -> str:
    """Average precision, and where to stop: means over seeds."""
    lines = [
        "| data | mistakes | assay | cleanlab: self-confidence | margin | entropy | CleanLearning | with the usual model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    stops = [
        "| data | mistakes | assay: precision said | precision | recall | cleanlab: precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, noise in dict.fromkeys((row["data"], row["noise"]) for row in rows):
        some = [row for row in rows if (row["data"], row["noise"]) == (data, noise)]

        def mean(name: str, some: list[dict[str, Any]] = some) -> str:
            return f"{statistics.fmean(row[name] for row in some):.3f}"

        ends = [name for name in some[0] if name.startswith("CleanLearning") and not name.endswith("seconds")]
        arms = ["assay", *(f"cleanlab, {score}" for score in CLEANLAB), *ends]
        lines.append(f"| {data} | {noise} | " + " | ".join(map(mean, arms)) + " |")
        shown = ["assay, precision said", "assay, precision", "assay, recall", "cleanlab, precision", "cleanlab, recall"]
        stops.append(f"| {data} | {noise} | " + " | ".join(map(mean, shown)) + " |")
    return "\n".join([*lines, "", *stops])


if __name__ == "__main__":
    main()
