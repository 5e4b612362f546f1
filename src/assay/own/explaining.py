"""Which way of explaining suits this network and these data? All that fit are put side by side and judged by the network itself.

    compared = explain(on="photos/", model="photos-1")
    compared.take                       # the fastest of those that are as good as the best
    compared.methods                    # the best first, with all that was measured

What a method says mattered is taken out of the input, or put into an empty one, step by step; a method is faithful where the
score falls early and rises early. Random order is measured beside them: what does no better explains nothing. Two further
columns say what a ranking by such curves cannot: whether attributions add up to the score that they share out, and whether they
still look the same when the network has forgotten all that it learnt.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from assay import clock
from assay.data import Dataset
from assay.errors import AssayError
from assay.explain import (
    Epsilon,
    Gamma,
    Layer,
    deconvnet,
    deeplift,
    grad_cam,
    gradient,
    guided_backprop,
    input_x_gradient,
    lrp,
    occlusion,
)
from assay.explain.curves import Explain, Fill, Score, area, deletion_curve, insertion_curve, sanity_check
from assay.explain.relevance import WeightedRule
from assay.numbers import listed
from assay.own.named import Named
from assay.own.opening import Subject, open_subject
from assay.own.probing import Looked, parse, see
from assay.papers.explain.integrated_gradients import integrated_gradients
from assay.train.loop import Report
from assay.view import Seen, View

#: The control.
CHANCE = "random order"
#: Attributions whose ranks agree more than this after all weights were shuffled show the input more than what was learnt.
ALIKE = 0.5
#: What a method must keep of the best one's lead over random order to be taken for its speed. That it cannot be told from the
#: best is not enough: with few examples that is soon so.
KEPT = 0.9
#: Random orders of each example that the control is the mean of, so that it has little noise of its own.
_ORDERS = 5
#: Below so many examples not even a method that wins on all of them is told from the others.
_FEW = 8
#: A change of a probability that is none.
_SAME = 0.05


@dataclass(frozen=True)
class Way:
    """A method, and what its attributions ought to add up to.

    Args:
        name: what it is called.
        explain: ``(model, inputs, target) -> attributions``.
        total: ``"gain"`` over the baseline's score, ``"score"``, or ``""`` where they are in no units of the score.
        kinds: of examples that it is for; all if empty.
    """

    name: str
    explain: Explain
    total: str = ""
    kinds: tuple[str, ...] = ()


def ways(kind: str, baseline: float = 0.0) -> tuple[Way, ...]:
    """The methods that are compared.

    Args:
        kind: of the examples.
        baseline: what an input is that says nothing, for those that need one.
    """

    def covered(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        if kind == "text":  # the places of a text are its words, which come before their coordinates
            found = _tensor(occlusion(_Turned(model), inputs.transpose(1, 2), target, window=1, fill=baseline))
            return found.transpose(1, 2)
        # An eighth of each side of what has many places, or one column of a table.
        window = 1 if kind == "table" else tuple(math.ceil(side / 8) for side in inputs.shape[2:])
        return _tensor(occlusion(model, inputs, target, window=window, fill=baseline))

    return (
        Way("gradient size", lambda model, inputs, target: _tensor(gradient(model, inputs, target)).abs()),
        Way("gradient x input", _of_tensor(input_x_gradient), "gain"),
        Way("integrated gradients", _of_tensor(integrated_gradients, baseline=baseline), "gain"),
        Way("DeepLIFT", _of_tensor(deeplift, baseline=baseline), "gain"),
        Way("LRP", _of_tensor(lrp, rule=_by_kind), "score"),
        Way("deconvnet", _of_tensor(deconvnet)),
        Way("guided backpropagation", _of_tensor(guided_backprop)),
        Way("Grad-CAM", _last_maps, kinds=("images", "audio", "series")),
        Way("occlusion", covered),
    )


def _of_tensor(method: Callable[..., Tensor | tuple[Tensor, ...]], **options: Any) -> Explain:
    """A method with its options, for networks that take one tensor."""

    def explain(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        return _tensor(method(model, inputs, target, **options))

    return explain


def _tensor(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    assert isinstance(found, Tensor)
    return found


class _Turned(nn.Module):
    """A network that takes the last two dimensions of its inputs in the other order."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs.transpose(1, 2))
        return outputs


def _by_kind(layer: Layer) -> WeightedRule:
    """LRP's usual choice without a rule of its own for pixels: inputs may have any scale here."""
    return Gamma() if layer.kind == "convolution" else Epsilon()


def _last_maps(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM of the last convolution."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d)]
    if not names:
        raise AssayError("it needs a convolution, and the network has none.")
    return grad_cam(model, inputs, target, layer=names[-1])


# ---------------------------------------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Judged:
    """One method, and what was measured of it, in the mean over the examples.

    Args:
        name: of the method.
        faithful: area under the insertion curve minus area under the deletion curve, over all fills; large is good, in units of
            the score.
        p_best: how probable it is that a method as good as the best falls so far behind it on such examples (Wilcoxon's signed
            ranks, times the number of methods); 1 for the best itself.
        p_chance: how probable it is that random order does so well, in the same way.
        areas: fill -> areas under deletion (small is good) and insertion (large is good).
        curves: fill -> deletion and insertion curve, each (steps + 1).
        gap: by how much the attributions miss what they share out, as a part of it (median); ``None`` where they need not add up.
        shuffled: layer -> how much the attributions still agree (size of the rank correlation) once this layer and all behind it
            were shuffled; the last is the whole network. Empty where that could not be done.
        seconds: that one example took.
    """

    name: str
    faithful: float
    p_best: float
    p_chance: float
    areas: dict[str, tuple[float, float]]
    curves: dict[str, tuple[list[float], list[float]]]
    gap: float | None
    shuffled: dict[str, float]
    seconds: float

    @property
    def best(self) -> bool:
        """Whether it cannot be told from the best."""
        return self.p_best > 0.05

    @property
    def over_chance(self) -> bool:
        """Whether it is better than random order."""
        return self.p_chance <= 0.05

    @property
    def deletion(self) -> float:
        """Area under the deletion curve, in the mean over the fills."""
        return statistics.fmean(taken for taken, _ in self.areas.values())

    @property
    def insertion(self) -> float:
        """Area under the insertion curve, in the mean over the fills."""
        return statistics.fmean(put for _, put in self.areas.values())

    @property
    def alike(self) -> float | None:
        """How much the attributions agree with those of a network that has forgotten everything."""
        return list(self.shuffled.values())[-1] if self.shuffled else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": self.name,
            "faithful": self.faithful,
            "p_best": self.p_best,
            "p_chance": self.p_chance,
            "deletion": {fill: areas[0] for fill, areas in self.areas.items()},
            "insertion": {fill: areas[1] for fill, areas in self.areas.items()},
            "deletion_curve": {fill: curves[0] for fill, curves in self.curves.items()},
            "insertion_curve": {fill: curves[1] for fill, curves in self.curves.items()},
            "completeness_gap": _plain(self.gap),
            "after_shuffling": self.shuffled,
            "seconds": self.seconds,
            "as_good_as_the_best": self.best,
            "better_than_chance": self.over_chance,
        }


@dataclass
class Compared:
    """Methods side by side on one network.

    Args:
        looked: the network, the examples and the attributions of every method, the best first.
        methods: what was measured, the best first.
        chance: the same of random order.
        score: what the curves show: ``"probability"`` of the class, or the network's ``"output"``.
        unfit: method -> why it does not work here.
    """

    looked: Looked
    methods: list[Judged]
    chance: Judged
    score: Score
    unfit: dict[str, str] = field(default_factory=dict)

    @property
    def take(self) -> str | None:
        """The fastest of those that are as good as the best; ``None`` where none is better than chance.

        As good is what cannot be told from the best and keeps nine tenths of its lead over random order. Methods that still say
        the same when the network has forgotten everything are taken only where there is no other.
        """
        least = KEPT * (self.methods[0].faithful - self.chance.faithful)
        good = [one for one in self.methods if one.best and one.over_chance and one.faithful - self.chance.faithful >= least]
        aware = [one for one in good if one.alike is None or one.alike <= ALIKE]
        return min(aware or good, key=lambda one: one.seconds).name if good else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = self.looked.as_dict()
        return {
            "probe": "explain",
            **{name: plain[name] for name in ("model", "data", "kind", "accuracy", "target", "seconds")},
            "score": self.score,
            "take": self.take,
            "methods": [one.as_dict() for one in self.methods],
            "chance": self.chance.as_dict(),
            "unfit": self.unfit,
            "examples": plain["examples"],
            "notes": plain["notes"],
        }


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------- comparing


def explain(
    on: str | Path | Dataset,
    model: str | None = None,
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    examples: int = 16,
    seed: int = 0,
    of: str = "said",
    raw: bool = False,
    device: str = "cpu",
    settings: Sequence[str] = (),
    trusted: Collection[str] = (),
    report: Report | None = None,
) -> Compared:
    """Put all methods of attribution that fit on a network and examples, and judge them.

    Args:
        on: the data; see :func:`assay.own.opening.open_subject`, also for the next two and ``raw``.
        model: the network; ``None`` trains the baseline on the data.
        named: columns of the data that have a meaning.
        examples: how many are drawn and looked at. Few examples tell few methods apart.
        seed: of the draw, of the baseline's training and of what is random.
        of: which output is looked at: ``"said"``, ``"right"`` or the name of a class.
        raw: hand columns and series to the network as they stand in the file.
        device: where the baseline is trained.
        settings: options of :meth:`_Judge.explain`, as ``"steps=20"``.
        trusted: modules whose functions may be called to make the network of a saved run again.
        report: is told how far a training is.

    Raises:
        AssayError: the network, the data or an option is wrong, or they do not fit together.
    """
    if examples < 1:
        raise AssayError(f"{examples} examples were asked for: give at least 1.")
    options = parse(_Judge().explain, settings)
    _chosen(**options)  # before a network is trained
    subject = open_subject(model, on, named, raw, seed, device, trusted, report)
    return compare(subject, options, examples, seed, of)


def compare(
    subject: Subject, options: Mapping[str, Any] | None = None, examples: int = 16, seed: int = 0, of: str = "said"
) -> Compared:
    """Judge methods of attribution on a network and examples.

    Args:
        subject: both of them.
        options: those of :meth:`_Judge.explain`.
        examples: how many are drawn.
        seed: of the draw and of what is random.
        of: which output is looked at.

    Raises:
        AssayError: an option is wrong, or no method works on this network.
    """
    judge = _Judge()
    looked = see(judge.explain, subject, options or {}, examples, seed, of)
    found, chance = judge.ranked()
    looked.attributions = {one.name: looked.attributions[one.name] for one in found}
    compared = Compared(looked, found, chance, judge.score, judge.unfit)
    looked.notes += _notes(compared, judge)
    return compared


def _chosen(methods: str = "", steps: int = 10, stages: int = 2, baseline: float = 0.0, kind: str = "images") -> tuple[Way, ...]:
    """The methods of these names, for examples of a kind.

    Raises:
        AssayError: there is none of a name, or a number is too small.
    """
    if steps < 1 or stages < 1:
        raise AssayError(f"steps={steps} and stages={stages} were asked for: give at least 1 of each.")
    there = {way.name.lower(): way for way in ways(kind, baseline)}
    names = [name.strip().lower() for name in methods.split(",") if name.strip()]
    for name in names:
        if name not in there:
            known = ", ".join(way.name for way in there.values())
            raise AssayError(f"There is no method {name!r} to compare: name some of {known}.")
    return tuple(way for name, way in there.items() if not names or name in names)


def _notes(compared: Compared, judge: _Judge) -> list[str]:
    notes = []
    alike = [one.name for one in compared.methods if one.alike is not None and one.alike > ALIKE]
    if alike:
        notes.append(
            f"much of what {listed(alike)} {'say' if len(alike) > 1 else 'says'} stays when all weights are shuffled: that part "
            "shows the input, not what was learnt"
        )
    if len(compared.looked.examples) < _FEW:
        notes.append(f"{len(compared.looked.examples)} examples can hardly tell methods apart: raise --examples")
    if judge.silent:
        notes.append(
            f"{judge.silent} of {len(compared.looked.examples)} examples tell nothing: the network says the class as surely when "
            "everything is taken out"
        )
    if judge.unshuffled:
        notes.append(f"the weights could not be shuffled: {judge.unshuffled}")
    return notes


class _Judge:
    """Measures every method on one view after another (texts come one by one), and sums up at the end."""

    def __init__(self) -> None:
        self.steps, self.stages, self.baseline = 10, 2, 0.0
        self.score: Score = "probability"
        self.unfit: dict[str, str] = {}
        self.unshuffled = ""
        self.silent = 0
        self.measured: dict[str, list[_Measured]] = {}
        self.random = torch.Generator()

    def explain(self, view: View, methods: str = "", steps: int = 10, stages: int = 2, baseline: float = 0.0) -> Seen:
        """Which way of explaining suits this network and these data?

        Args:
            view: any network and examples.
            methods: names, with commas between them; all if empty.
            steps: of deletion and insertion.
            stages: layers at which the weights are shuffled, from the last on.
            baseline: what an input is that says nothing, in the units that the network takes.
        """
        chosen = _chosen(methods, steps, stages, baseline, view.kind)
        self.steps, self.stages, self.baseline = steps, stages, baseline
        if not self.measured:
            self.score = "probability" if len(view.classes) > 1 else "output"
            self.random = view.generator()
        with contextlib.suppress(Exception):  # what comes first pays for what is loaded late; whether it works is seen below
            gradient(view.model, view.inputs[:1], view.target[:1])
        attributions: dict[str, Tensor] = {}
        for way in chosen:
            if way.kinds and view.kind not in way.kinds:
                self.unfit[way.name] = f"it is for {listed(way.kinds)}"
            elif way.name not in self.unfit and (found := self._tried(way, view)) is not None:
                attributions[way.name] = found
        if not attributions:
            raise AssayError(f"no method works on this network: {'; '.join(f'{k}: {v}' for k, v in self.unfit.items())}")
        orders = [torch.rand(view.inputs.shape, generator=self.random).to(view.inputs) for _ in range(_ORDERS)]
        drawn = [self._curves(view, order) for order in orders]
        mean = {name: (_mean([one[name][0] for one in drawn]), _mean([one[name][1] for one in drawn])) for name in drawn[0]}
        self.measured.setdefault(CHANCE, []).append(_Measured(mean, None, {}, 0.0))
        return Seen(attributions=attributions)

    def _tried(self, way: Way, view: View) -> Tensor | None:
        """The attributions, once they were measured; ``None`` where the method does not work here, and why is written down."""
        try:
            began = clock.seconds()
            found = way.explain(view.model, view.inputs, view.target)
            seconds = (clock.seconds() - began) / len(view.inputs)
            if not found.isfinite().all():
                raise AssayError("its attributions are not finite")
        except Exception as error:  # what somebody's network does to a method cannot be foreseen
            if way.name in self.measured:
                raise AssayError(
                    f"{way.name} works on some of these examples and not on others: leave it out with --set methods=..."
                ) from error
            self.unfit[way.name] = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            return None
        measured = _Measured(self._curves(view, found), self._gap(way, view, found), self._shuffled(way, view), seconds)
        self.measured.setdefault(way.name, []).append(measured)
        return found

    def _curves(self, view: View, attributions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Fill -> deletion and insertion curves (B, steps + 1)."""
        found = {}
        for name, fill in _fills(view).items():
            both = [
                curve(
                    view.model,
                    view.inputs,
                    view.target,
                    attributions,
                    self.steps,
                    fill,
                    channels=_channels(view.kind),
                    score=self.score,
                )
                for curve in (deletion_curve, insertion_curve)
            ]
            found[name] = (both[0], both[1])
        return found

    @torch.no_grad()
    def _gap(self, way: Way, view: View, attributions: Tensor) -> Tensor | None:
        """By which part the attributions miss what they should add up to: (B,)."""
        if not way.total:
            return None
        wanted = _score(view.model, view.inputs, view.target)
        if way.total == "gain":
            wanted = wanted - _score(view.model, torch.full_like(view.inputs, self.baseline), view.target)
        total = attributions.expand_as(view.inputs).flatten(1).sum(dim=1)
        return (total - wanted).abs() / wanted.abs()

    def _shuffled(self, way: Way, view: View) -> dict[str, Tensor]:
        """Layer -> how much attributions agree with those after shuffling: (B,)."""
        try:
            found = sanity_check(
                way.explain,
                view.model,
                view.inputs,
                view.target,
                stages=self.stages,
                channels=_channels(view.kind),
                generator=view.generator(),
            )
        except Exception as error:  # copies of somebody's network may fail as it pleases
            self.unshuffled = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            return {}
        return {name: values.abs() for name, values in found.items()}

    def ranked(self) -> tuple[list[Judged], Judged]:
        """All methods, the best first, and random order."""
        joined = {name: _joined(parts) for name, parts in self.measured.items()}
        chance = joined.pop(CHANCE)
        lost = torch.stack([taken[:, 0] - taken[:, -1] for taken, _ in chance.curves.values()])  # (fills, B)
        self.silent = int((lost.abs() < _SAME).all(dim=0).sum()) if self.score == "probability" else 0
        order = sorted(joined, key=lambda name: -float(joined[name].faithful.mean()))
        best = joined[order[0]]
        found = []
        for name in order:
            one = joined[name]
            behind, ahead = best.faithful - one.faithful, one.faithful - chance.faithful
            found.append(one.judged(name, _p(behind, len(order) - 1), _p(ahead, len(order))))
        return found, chance.judged(CHANCE, _p(best.faithful - chance.faithful, 1), 1.0)


@dataclass(frozen=True)
class _Measured:
    """What was measured of a method on some examples."""

    curves: Mapping[str, tuple[Tensor, Tensor]]
    gap: Tensor | None
    shuffled: Mapping[str, Tensor]
    seconds: float

    @property
    def faithful(self) -> Tensor:
        """Insertion area minus deletion area, in the mean over the fills: (B,)."""
        return _mean([area(put) - area(taken) for taken, put in self.curves.values()])

    def judged(self, name: str, p_best: float, p_chance: float) -> Judged:
        """In the mean over the examples."""
        return Judged(
            name=name,
            faithful=float(self.faithful.mean()),
            p_best=p_best,
            p_chance=p_chance,
            areas={fill: (float(area(a).mean()), float(area(b).mean())) for fill, (a, b) in self.curves.items()},
            curves={fill: (a.mean(dim=0).tolist(), b.mean(dim=0).tolist()) for fill, (a, b) in self.curves.items()},
            gap=None if self.gap is None else float(self.gap.median()),
            shuffled={layer: float(values.mean()) for layer, values in self.shuffled.items()},
            seconds=self.seconds,
        )


def _joined(parts: Sequence[_Measured]) -> _Measured:
    first = parts[0]
    return _Measured(
        {
            fill: (torch.cat([part.curves[fill][0] for part in parts]), torch.cat([part.curves[fill][1] for part in parts]))
            for fill in first.curves
        },
        None if first.gap is None else torch.cat([part.gap for part in parts if part.gap is not None]),
        {layer: torch.cat([part.shuffled[layer] for part in parts]) for layer in first.shuffled},
        statistics.fmean(part.seconds for part in parts),
    )


def _p(differences: Tensor, comparisons: int) -> float:
    """How probable differences so far above 0 are where there is none, times the comparisons: one-sided, by signed ranks.

    Ranks, because examples of one class may lose all when a place is taken out, and those of another nothing.
    """
    if not differences.any():
        return 1.0
    p = float(wilcoxon(differences.double().numpy(), alternative="greater").pvalue)
    return min(1.0, p * max(1, comparisons))


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)


def _score(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    return torch.as_tensor(model(inputs)).gather(1, target.unsqueeze(1)).squeeze(1)


def _channels(kind: str) -> int | None:
    """The dimension whose entries come and go together: colours, channels of a series, coordinates of a word."""
    return {"images": 1, "series": 1, "text": 2}.get(kind)


def _fills(view: View) -> dict[str, Fill]:
    """What stands for nothing in such examples. Several, as each is an input that the network may never have seen."""
    if view.kind == "text":
        return {"no word": 0.0}
    if view.kind != "table":
        return {"mean": "mean", "blur": "blur"}
    usual = view.background if len(view.background) else view.inputs
    drawn = torch.randint(len(usual), view.inputs.shape, generator=view.generator())
    return {"mean": usual.mean(dim=0), "another row": usual.gather(0, drawn.to(usual.device))}
