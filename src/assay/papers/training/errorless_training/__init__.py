"""Errorless training: walk to zero training errors along a path on which there are none.

Gradient descent ends with a few training examples wrong, and neither more steps nor other rates seem to help. So start where
there is nothing wrong. Train a network as usual; then give every example that it gets wrong a stand-in, an example of the same
class that it gets right. On these doctored data the network makes no error: its weights are a global minimum of the number of
errors. Now turn the stand-ins back into the real examples little by little,

    x_i(lambda) = (1 - lambda) x'_i + lambda x_i,     x'_i the stand-in,     lambda from 0 to 1,

and train at every stage until there are no errors again. If a stage does not get there, go back and take half the step; if it
is easily done, take twice the step. Where the minimum moves continuously with lambda, the path ends without errors on the real
data (the paper's argument is a uniform contraction theorem; the name is gradient descent tunnelling).

What no path can pass: one input that carries two labels. Of a group of identical inputs a network gets its most frequent label
right and no other, so that training accuracy has a ceiling which can be counted beforehand,

    sum over groups of identical inputs of max_c count_c / N.

Source: Deng and Heath, "Toward Errorless Training ImageNet-1k", 2025, with the method of Deng, "Error-free Training for
Artificial Neural Network", 2023 (arXiv:2312.16060). How a stage is trained, and how the step is controlled, is reconstructed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import mlp
from assay.paper import Below, Close, Cost, Curve, Lower, Reported, claim
from assay.papers.training.errorless_training.floor import ConflictFloor, label_conflict_floor
from assay.papers.training.errorless_training.tunnel import (
    Match,
    Point,
    Tunnel,
    clone_misclassified,
    descend,
    hybrid,
    logits_of,
    predictions,
    stand_ins,
    tunnel_train,
)
from assay.recipe import Recipe, probe, treatment
from assay.train.hooks import InputHook, Run
from assay.view import Collection, Ranked

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

__all__ = [
    "ConflictFloor",
    "Continuation",
    "Point",
    "Tunnel",
    "clone_misclassified",
    "contradict",
    "descend",
    "errorless_training",
    "hybrid",
    "label_conflict_floor",
    "label_conflicts",
    "predictions",
    "stand_ins",
    "tunnel_train",
]


# ---------------------------------------------------------------------------------------------------- in a recipe


@dataclass(frozen=True)
class Continuation(InputHook):
    """The path in a training of fixed length: as usual, then from stand-ins to the real examples, then the real ones.

    Lambda grows evenly with the steps instead of waiting for zero errors, so that the training takes as long as any other.

    Args:
        begin: share of the epochs after which wrong examples get their stand-ins.
        end: share of the epochs at which all are real again.
        match: which stand-in, see :func:`stand_ins`.

    Stand-ins come as they lie in the data, without the recipe's augmentation. In a class of which nothing is right yet the
    example that comes nearest to it stands in. A training of a single epoch leaves no room for a path and stays as it is.
    """

    begin: float = 0.3
    end: float = 0.9
    match: Match = "nearest"

    def __post_init__(self) -> None:
        if not 0 < self.begin < self.end <= 1:
            raise AssayError(f"Stand-ins come and go at shares 0 < begin < end <= 1 of the epochs, not {self.begin}, {self.end}.")

    def _starts(self, run: Run) -> int:
        return max(1, round(self.begin * run.epochs))

    def after_epoch(self, run: Run) -> None:
        if run.epoch != self._starts(run) or run.epoch == run.epochs:
            return
        X, y = run.data.train.inputs, run.data.train.labels
        assert isinstance(X, Tensor)  # the loop has seen to it
        logits = logits_of(run.model, X).cpu()
        right = logits.argmax(dim=1) == y
        margins = logits.log_softmax(dim=1).gather(1, y[:, None]).squeeze(1)
        for label in y.unique().tolist():
            if not (right & (y == label)).any():
                right[torch.where(y == label, margins, -torch.inf).argmax()] = True
        generator = torch.Generator().manual_seed(run.generator.initial_seed())
        run.memory["continuation.source"] = stand_ins(X, y, right, self.match, generator).to(run.device)

    def before_forward(self, run: Run) -> None:
        source = run.memory.get("continuation.source")
        begins, ends = self._starts(run) * run.steps_per_epoch, self.end * run.epochs * run.steps_per_epoch
        if source is None or run.step >= ends:
            return
        chosen = source[run.index]
        moved = (chosen != run.index).nonzero().flatten()
        if not len(moved):
            return
        X = run.data.train.inputs
        assert isinstance(X, Tensor)
        clones = X[chosen[moved].to(X.device)].to(run.device)
        inputs = run.inputs.clone()
        inputs[moved] = hybrid(inputs[moved], clones, (run.step - begins) / max(ends - begins, 1))
        run.inputs = inputs


@treatment
def errorless_training(recipe: Recipe, begin: float = 0.3, end: float = 0.9, match: Match = "nearest") -> Recipe:
    """Lead the training to its hard examples by a path: see :class:`Continuation`. In as many epochs as without.

    Raises:
        AssayError: examples have no single class that is right, or begin and end are out of order.
    """
    task = recipe.data.task
    if task != "classification":
        raise AssayError(f"Errorless training needs one right class for every example, and this is {task}: leave it out.")
    # First of the hooks: what mixes examples mixes those that the training is given.
    return recipe.replace(hooks=(Continuation(begin, end, match), *recipe.hooks))


@probe
def label_conflicts(data: Collection) -> Ranked:
    """Identical inputs with different labels, and the highest accuracy that they leave to any network."""
    floor = label_conflict_floor(data.inputs, data.answers())
    copies = torch.bincount(floor.groups)[floor.groups]
    contradicted = (floor.agreement < 1).nonzero().flatten()
    side_by_side = contradicted[floor.groups[contradicted].argsort(stable=True)]
    return Ranked(
        each={"agreement": floor.agreement, "copies": copies.double()},
        by="agreement",
        lists={"contradicted, copies side by side": side_by_side} if len(contradicted) else {},
        numbers={"highest possible accuracy": floor.best_accuracy, "unavoidable errors": float(floor.errors)},
    )


# -------------------------------------------------------------------------------------------------------- the claims

_BATCH = 200
_RATES = (1e-3, 3e-3, 1e-2)
_WAYS = ("continuation", "training on", "errors weigh more")


def train_as_usual(data: Dataset, hidden: int, steps: int, seed: int) -> dict[str, Tensor]:
    """Where every way starts: ``weights`` (P,) of a perceptron after so many steps of Adam."""
    X, y = data.train.inputs, data.train.labels
    assert isinstance(X, Tensor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(X[0].numel(), data.num_classes, (hidden,))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    descend(model, X, y, adam, steps, _BATCH, generator=torch.Generator().manual_seed(seed))
    return {"weights": nn.utils.parameters_to_vector(model.parameters()).detach()}


def train_on(data: Dataset, hidden: int, weights: Tensor, way: str, rate: float, steps: int, seed: int) -> dict[str, Tensor]:
    """From a perceptron with these weights, take so many steps of Adam in one of three ways.

    ``"continuation"`` is :func:`tunnel_train`; what it leaves of the steps, because it got stuck, is spent on the real data.
    Every way ends before its time where no avoidable error is left.

    Returns:
        (T,) for every pass over the data: ``steps``, ``lam``, ``errors`` on the real training data, ``accuracy`` on the test; and
        ``reached``, the lambda at which continuation ended.
    """
    X, y, test_X = data.train.inputs, data.train.labels, data.test.inputs
    assert isinstance(X, Tensor)
    assert isinstance(test_X, Tensor)
    rows: list[tuple[float, float, float, float]] = []
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = mlp(X[0].numel(), data.num_classes, (hidden,))
    nn.utils.vector_to_parameters(weights.clone(), model.parameters())  # or the training would change what the others start from

    def note(taken: int, lam: float, errors: int) -> None:
        rows.append((taken, lam, errors, (predictions(model, test_X) == data.test.labels).double().mean().item()))

    adam = partial(torch.optim.Adam, fused=True)  # as the loop takes it: of so small a network a step is a tenth
    note(0, 0.0, int((predictions(model, X) != y).sum()))
    taken, reached = 0, 0.0
    if way == "continuation":
        optimizer = adam(model.parameters(), lr=rate)
        told = partial(tunnel_train, watch=lambda point: note(point.steps, point.lam, point.errors))
        walk = told(model, X, y, optimizer, max_steps=steps, batch_size=_BATCH, generator=order)
        taken, reached = walk.steps, walk.lam
    enough, emphasis = label_conflict_floor(X, y).errors, 10.0 if way == "errors weigh more" else 1.0

    def look(further: int, wrong: Tensor) -> None:
        note(taken + further, 1.0, int(wrong.sum()))

    descend(model, X, y, adam(model.parameters(), lr=rate), steps - taken, _BATCH, enough, emphasis, order, look)
    columns = torch.tensor(rows, dtype=torch.float64).T
    named = dict(zip(("steps", "lam", "errors", "accuracy"), columns, strict=True))
    return {**named, "reached": torch.tensor(reached, dtype=torch.float64)}


def _ways(
    lab: Lab, data: Dataset, hidden: int, steps: int, ways: tuple[str, ...] = _WAYS, rates: tuple[float, ...] = _RATES
) -> dict[str, list[dict[str, Tensor]]]:
    """Each way at each of the rates, the one with the fewest training errors first."""
    common = {"data": data, "hidden": hidden, "seed": lab.seed}
    start = lab.remember(train_as_usual, **common, steps=lab.pick(smoke=200, laptop=1000, full=3000))
    found, given = {}, {**common, "weights": start["weights"], "steps": steps}
    for way in ways:
        runs = [
            lab.remember(train_on, **given, way=way, rate=rate) for rate in lab.pick(smoke=rates[:1], laptop=rates, full=rates)
        ]
        found[way] = sorted(runs, key=lambda run: float(run["errors"].min()))
    return found


def _curves(found: dict[str, list[dict[str, Tensor]]]) -> dict[str, float | Curve]:
    """Errors on the real data against steps, at the best rate; its fewest enter the verdict, for every way alike."""
    arms: dict[str, float | Curve] = {
        way: Curve(
            runs[0]["errors"].tolist(),
            x=runs[0]["steps"].tolist(),
            value=float(runs[0]["errors"].min()),
            cost=Cost(seconds=sum(float(run["seconds"]) for run in runs)),
            x_name="gradient steps after the usual training",
            y_name="errors on the training data",
        )
        for way, runs in found.items()
    }
    best = found["continuation"][0]
    return {**arms, "before": float(best["errors"][0]), "continuation, lambda at its end": float(best["reached"])}


def _digits(lab: Lab, wrong: float) -> Dataset:
    data = lab.data(lab.pick(smoke="digits16", laptop="digits16", full="mnist"))
    data = data.subset(train=lab.pick(smoke=400, laptop=2000, full=60_000), test=lab.pick(smoke=200, laptop=1000, full=10_000))
    return data.flip_labels(wrong, seed=lab.seed) if wrong else data


def _on_digits(lab: Lab, wrong: float, ways: tuple[str, ...] = _WAYS) -> dict[str, list[dict[str, Tensor]]]:
    steps = lab.pick(smoke=40, laptop=2000, full=100_000)
    return _ways(lab, _digits(lab, wrong), lab.pick(smoke=24, laptop=24, full=100), steps, ways)


_REPORTED = Reported(
    "ImageNet-1k, 322,430,160 parameters: training accuracy (no control is reported)", {"training accuracy": 0.983}, "abstract"
)
_UNIT = "fewest errors on the training data"
_TUNED = "after 1,000 of usual training; the best of three rates for each, Adam with batches of 200"


@claim(
    "With 10% of the labels wrong, continuation from a conventionally trained network comes down to fewer training errors than "
    "as many steps of training on, and than as many with a weight of ten on what is wrong.",
    expect=(Lower("continuation", than="training on"), Lower("continuation", than="errors weigh more")),
    reported=_REPORTED,
    scaled_down=f"2,000 digits of 16x16 pixels and a perceptron 256-24-10 for 2,000 steps instead of ImageNet; {_TUNED}.",
    unit=_UNIT,
)
def fewer_errors_on_wrong_labels(lab: Lab) -> Measured:
    return _curves(_on_digits(lab, 0.1))


@claim(
    "In a network just too small for plain training to end without errors, continuation from a conventionally trained one comes "
    "down to fewer training errors than as many steps of training on, and than as many with a weight of ten on what is wrong.",
    expect=(Lower("continuation", than="training on"), Lower("continuation", than="errors weigh more")),
    reported=_REPORTED,
    scaled_down=f"Digits of 8x8 pixels and a perceptron 64-5-10 for 3,000 steps instead of ImageNet; {_TUNED}.",
    unit=_UNIT,
)
def fewer_errors_in_a_small_network(lab: Lab) -> Measured:
    data = lab.data("digits")
    steps = lab.pick(smoke=40, laptop=3000, full=100_000)
    # The width was chosen by the control alone: with 6 hidden units and more, as many steps of training on leave no error.
    return _curves(_ways(lab, data, lab.pick(smoke=10, laptop=5, full=5), steps))


def contradict(X: Tensor, y: Tensor, share: float, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same examples, with copies of a share of them behind that carry another label."""
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    other = (y[chosen] + torch.randint(1, num_classes, chosen.shape, generator=generator)) % num_classes
    return torch.cat([X, X[chosen]]), torch.cat([y, other])


@claim(
    "Where 1, 2 or 5% of the training images occur a second time under another label, no way of training makes fewer errors than "
    "the floor that is counted beforehand, and continuation ends within half a point of it.",
    expect=(Below("highest accuracy, above the ceiling", 1e-9), Below("continuation, farthest below the ceiling", 0.005)),
    scaled_down="2,000 digits of 16x16 pixels and a perceptron 256-64-10 for 2,000 steps instead of ImageNet; one rate.",
    unit="training accuracy",
)
def no_run_beats_the_floor(lab: Lab) -> Measured:
    shares = lab.pick(smoke=(0.05,), laptop=(0.01, 0.02, 0.05), full=(0.01, 0.02, 0.05))
    data = _digits(lab, 0.0)
    steps = lab.pick(smoke=40, laptop=2000, full=100_000)
    reached: dict[str, list[float]] = {"ceiling": [], "continuation": [], "training on": []}
    for share in shares:
        assert isinstance(data.train.inputs, Tensor)
        X, y = contradict(data.train.inputs, data.train.labels, share, data.num_classes, lab.generator())
        twice = dataclasses.replace(data, train=Split(X, y), history=(*data.history, f"contradict(share={share})"))
        reached["ceiling"].append(label_conflict_floor(X, y).best_accuracy)
        for way, runs in _ways(lab, twice, 64, steps, ("continuation", "training on"), (3e-3,)).items():
            reached[way].append(1 - float(runs[0]["errors"].min()) / len(y))
    arms: dict[str, float | Curve] = {
        name: Curve(values, x=shares, x_name="share of images that occur under two labels", y_name="training accuracy")
        for name, values in reached.items()
    }
    above = {
        way: [value - ceiling for value, ceiling in zip(reached[way], reached["ceiling"], strict=True)]
        for way in ("continuation", "training on")
    }
    arms["highest accuracy, above the ceiling"] = max(max(values) for values in above.values())
    arms["continuation, farthest below the ceiling"] = -min(above["continuation"])
    return arms


@claim(
    "On clean labels, continuation towards zero training errors changes test accuracy by less than a point; with 10% of the "
    "labels wrong it costs test accuracy.",
    expect=(
        Close("clean labels, continuation", to="clean labels, before", within=0.01),
        Lower("a tenth wrong, continuation", than="a tenth wrong, before"),
    ),
    scaled_down=f"2,000 digits of 16x16 pixels and a perceptron 256-24-10 for 2,000 steps; {_TUNED}, chosen by training errors.",
    unit="test accuracy",
)
def zero_errors_cost_on_wrong_labels(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, wrong in (("clean labels", 0.0), ("a tenth wrong", 0.1)):
        for way, runs in _on_digits(lab, wrong, ("continuation", "training on")).items():
            errors, accuracy = runs[0]["errors"], runs[0]["accuracy"]
            arms[f"{name}, before"] = float(accuracy[0])
            arms[f"{name}, {way}"] = Curve(
                accuracy.tolist(),
                x=runs[0]["steps"].tolist(),
                value=float(accuracy[errors == errors.min()][-1]),
                cost=Cost(seconds=sum(float(run["seconds"]) for run in runs)),
                x_name="gradient steps after the usual training",
                y_name="test accuracy",
            )
    return arms
