"""DeepDIG: points on the boundary between two classes of any network, and what that boundary is like.

A network is told by where it changes its mind, and data hardly ever lie there. Halving the segment between an example of
class s and one of class t leads to a place where both are equally likely, but only if no third class lies in between, as it
often does. DeepDIG finds better pairs. (I) An autoencoder learns to copy examples of s so that the network says t of the copy.
(II) A second one learns to copy those copies so that the network says s again. Copy and copy of the copy lie close together,
on two sides of the boundary. (III) Their segment is halved until |p_s - p_t| < beta.

Of such points one asks: how often does the label change along lines between them (in the space of inputs), and how far are
they from the hyperplane that separates both classes in the last hidden layer?

Source: Karimi, Derr and Tang, "Characterizing the Decision Boundary of Deep Neural Networks", arXiv:1912.11460; details of the
networks as in the authors' code. Here all pairs are halved together, pairs that float32 cannot resolve are halved in float64, and
a pair that does not end on the boundary is always counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn import mlp
from assay.nn.collapse import last_layer
from assay.nn.frozen import frozen
from assay.nn.prototypes import squared_distances
from assay.paper import Cost, Curve, Higher, Lower, Score, claim
from assay.recipe import probe
from assay.recipes import lenet_on
from assay.view import Seen

if TYPE_CHECKING:
    from assay.data import Dataset, Split
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View

# Examples that go through the network together.
_CHUNK = 512


@dataclass(frozen=True)
class Bisected:
    """Where :func:`bisect_boundary` ended for each of B pairs.

    Attributes:
        samples: (B, ...) the last point that was looked at; float64 if some pair needed it, else as the pairs were.
        probs: (B, C) float64, what the network says there.
        success: (B,) bool, both classes are equally likely there, and no other is likelier.
        third: (B,) bool, a third class was met. What is neither, had no such point within the steps.
        steps: (B,) int64, points that were looked at.
        double: (B,) bool, found with a float64 copy of the network.
    """

    samples: Tensor
    probs: Tensor
    success: Tensor
    third: Tensor
    steps: Tensor
    double: Tensor

    @property
    def success_rate(self) -> float:
        """Share of all pairs that ended on the boundary; 0 without pairs."""
        return self.success.double().mean().item() if len(self.success) else 0.0

    @property
    def boundary(self) -> Tensor:
        """The samples on the boundary: (successes, ...)."""
        return self.samples[self.success]


@torch.no_grad()
def bisect_boundary(model: nn.Module, a: Tensor, b: Tensor, s: int, t: int, beta: float = 1e-4, max_steps: int = 60) -> Bisected:
    """Halve the segments from ``a`` to ``b`` until both classes are equally likely (stage III), all pairs at once.

    The network is used in evaluation mode and left as it was found. Where neighbouring float32 numbers lie on both sides of
    the boundary and neither is close enough, the pair is halved anew in float64, with a copy of the network on the CPU.

    Args:
        model: maps inputs to logits (B, C).
        a: (B, ...) float, the network says ``s`` of each.
        b: (B, ...) the network says ``t`` of each.
        s: the one class.
        t: the other.
        beta: how far both probabilities may lie apart (the authors': 1e-4).
        max_steps: most halvings of one pair.

    Raises:
        ValueError: the network says something else of an end, so that there need not be a boundary between them.
    """
    if a.shape != b.shape:
        raise ValueError(f"the two ends of pairs have different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    if not len(a):
        none = torch.zeros(0, dtype=torch.bool)
        return Bisected(a, torch.zeros(0, 0, dtype=torch.float64), none, none, none.long(), none)
    with frozen(model, a), torch.no_grad():
        if bool((_logits(model, a).argmax(dim=1) != s).any() or (_logits(model, b).argmax(dim=1) != t).any()):
            raise ValueError(f"every pair must have one end of which the network says {s} and one of which it says {t}")
        found = _halve(model, a, b, s, t, beta, max_steps)
    left = (~found.success & ~found.third & (found.steps < max_steps)).nonzero().squeeze(1)
    if not len(left) or a.dtype == torch.float64:
        return found
    # From the start: where float32 rounds, what is left of a segment need not hold the crossing any more.
    exact = copy.deepcopy(model).cpu().double().eval()
    again = _halve(exact, a[left].cpu().double(), b[left].cpu().double(), s, t, beta, max_steps)
    device = a.device
    return Bisected(
        found.samples.cpu().double().index_copy(0, left.cpu(), again.samples).to(device),
        found.probs.index_copy(0, left, again.probs.to(device)),
        found.success.index_copy(0, left, again.success.to(device)),
        found.third.index_copy(0, left, again.third.to(device)),
        found.steps.index_copy(0, left, again.steps.to(device)),
        found.double.index_fill(0, left, True),
    )


def _halve(model: nn.Module, a: Tensor, b: Tensor, s: int, t: int, beta: float, limit: int) -> Bisected:
    low, high, samples = a.clone(), b.clone(), (a + b) / 2
    success = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    third, steps = success.clone(), torch.zeros(len(a), dtype=torch.int64, device=a.device)
    probs: Tensor | None = None
    active = torch.arange(len(a), device=a.device)
    for _ in range(limit):
        middle = (low[active] + high[active]) / 2
        said = _logits(model, middle).double().softmax(dim=1)
        probs = torch.zeros(len(a), said.shape[1], dtype=torch.float64, device=a.device) if probs is None else probs
        samples[active], probs[active] = middle, said
        steps[active] += 1
        top = said.argmax(dim=1)
        other = (top != s) & (top != t)
        there = ~other & ((said[:, s] - said[:, t]).abs() < beta)
        success[active], third[active] = there, other
        same = ((middle == low[active]) | (middle == high[active])).flatten(1).all(dim=1)  # no number left in between
        on_a = top == s
        low[active[on_a]], high[active[~on_a & ~other]] = middle[on_a], middle[~on_a & ~other]
        active = active[~there & ~other & ~same]
        if not len(active):
            break
    assert probs is not None
    return Bisected(samples, probs, success, third, steps, torch.zeros_like(success))


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(part) for part in inputs.split(_CHUNK)])


class Autoencoder(nn.Module):
    """Three linear layers that copy what lies in [0, 1] (the authors' sizes for 28x28: 784-100-50-784, ReLU, sigmoid).

    Args:
        features: numbers in one example.
        hidden: units of the two hidden layers.

    Shape: (B, ...) of ``features`` numbers each -> the same.
    """

    def __init__(self, features: int, hidden: tuple[int, int] = (100, 50)) -> None:
        super().__init__()
        first, second = hidden
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(features, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, features)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        copied: Tensor = self.layers(inputs).sigmoid().view_as(inputs)
        return copied


@dataclass(frozen=True)
class Borderline:
    """What :func:`deepdig` found from N examples.

    Attributes:
        adversarial: (P, ...) copies of examples of s, of which the network says t.
        back: (P, ...) copies of these copies, of which it says s.
        origin: (P,) int64, the example that each pair was made from.
        bisected: where the pairs led.
    """

    adversarial: Tensor
    back: Tensor
    origin: Tensor
    bisected: Bisected


def deepdig(
    model: nn.Module,
    source: Tensor,
    s: int,
    t: int,
    *,
    low: Tensor | float = 0.0,
    high: Tensor | float = 1.0,
    alpha: float = 0.8,
    beta: float = 1e-4,
    steps: int = 5000,
    lr: float = 0.01,
    batch_size: int = 128,
    hidden: tuple[int, int] = (100, 50),
    max_steps: int = 60,
    seed: int = 0,
) -> Borderline:
    """Points on the boundary between two classes, from examples of the one (stages I to III); swap s and t for the other half.

    Args:
        model: maps inputs to logits (B, C); used in evaluation mode, left as it was found.
        source: (N, ...) float, examples of class ``s``. Those of which the network says something else start no pair.
        s: their class.
        t: the class on the other side.
        low: the least value of an input; a number, or a tensor that broadcasts over examples.
        high: the largest.
        alpha: weight of what the network says against likeness (the authors': 0.8).
        beta: see :func:`bisect_boundary`.
        steps: of Adam for each of the two autoencoders (the authors': 5000).
        lr: of Adam (the authors': 0.01, times 0.95 every thousand steps).
        batch_size: examples a step (the authors': 128).
        hidden: units of the autoencoders.
        max_steps: most halvings.
        seed: of weights and batches.

    Raises:
        ValueError: s and t are one class, there are no examples, or some leave the range.
    """
    if s == t or not len(source):
        raise ValueError(f"a boundary lies between two classes, each with examples, and was asked for between {s} and {t}")
    source = source.detach()
    floor = torch.as_tensor(low, dtype=source.dtype, device=source.device)
    span = torch.as_tensor(high, dtype=source.dtype, device=source.device) - floor
    unit = (source - floor) / span.clamp_min(torch.finfo(source.dtype).tiny)
    if unit.min() < -1e-4 or unit.max() > 1 + 1e-4:
        raise ValueError(f"inputs reach from {source.min():.3g} to {source.max():.3g}, outside the range: give low and high")
    unit = unit.clamp(0, 1)
    generator = torch.Generator().manual_seed(seed)

    def copies(given: Tensor, target: int) -> Tensor:
        if not len(given):
            return given
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            net = Autoencoder(given[0].numel(), hidden).to(given)
        optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000, gamma=0.95)
        for _ in range(steps):
            rows = torch.randperm(len(given), generator=generator)[:batch_size]
            batch = given[rows.to(given.device)]
            copied = net(batch)
            loss = F.binary_cross_entropy(copied, batch) + alpha * _says(model(floor + span * copied), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return torch.cat([net(part) for part in given.split(_CHUNK)])

    def said(given: Tensor) -> Tensor:
        return _logits(model, floor + span * given).argmax(dim=1) if len(given) else torch.zeros(0).to(source.device)

    with frozen(model, source):
        first = copies(unit, t)
        with torch.no_grad():
            origin = ((_logits(model, source).argmax(dim=1) == s) & (said(first) == t)).nonzero().squeeze(1)
        second = copies(first[origin], s)
        with torch.no_grad():
            kept = (said(second) == s).nonzero().squeeze(1)
    adversarial, back = floor + span * first[origin][kept], floor + span * second[kept]
    return Borderline(adversarial, back, origin[kept], bisect_boundary(model, back, adversarial, s, t, beta, max_steps))


def _says(logits: Tensor, target: int) -> Tensor:
    """Binary cross-entropy of softmax probabilities with a one-hot target, mean over examples and classes.

    The target's logarithm comes from the logits, so that its gradient lives where the network is quite sure of another class.
    """
    logs = logits.log_softmax(dim=1)
    others = torch.log1p(-logs.exp().clamp_max(1 - 1e-6))
    wanted = torch.zeros_like(logits, dtype=torch.bool)
    wanted[:, target] = True
    loss: Tensor = -torch.where(wanted, logs, others).mean()
    return loss


@torch.no_grad()
def label_changes(
    model: nn.Module, samples: Tensor, points: int = 50, partners: int = 50, generator: torch.Generator | None = None
) -> float:
    """How often the label changes along lines between samples: changes / ``points``, mean over lines. Lower is smoother.

    Args:
        model: maps inputs to logits (B, C).
        samples: (N, ...) points on the boundary.
        points: looked at on each line, evenly, the first of the two ends among them.
        partners: other samples, drawn at random, that each sample is joined with (the authors': 50).
        generator: draws them.

    Raises:
        ValueError: there are fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"lines need two samples on the boundary, and there are {count}")
    offset = torch.randint(1, count, (count, partners), generator=generator).flatten()
    one = torch.arange(count).repeat_interleave(partners)
    other = (one + offset) % count
    share = (torch.arange(points) / points).to(samples).view(points, *[1] * samples.dim())
    changes = 0
    with frozen(model, samples), torch.no_grad():
        for ends in torch.stack([one, other]).to(samples.device).split(max(1, _CHUNK // points), dim=1):
            line = samples[ends[0]] + share * (samples[ends[1]] - samples[ends[0]])  # (points, lines, ...)
            label = _logits(model, line.flatten(0, 1)).argmax(dim=1).view(points, -1)
            changes += int((label[1:] != label[:-1]).sum())
    return changes / points / len(one)


@dataclass(frozen=True)
class Hyperplane:
    """The hyperplane of a linear support vector machine between two classes, in the last hidden layer of a network.

    Attributes:
        weight: (F,) float64.
        bias: of the decision, which is 0 on the hyperplane and positive on the side of the second class.
    """

    weight: Tensor
    bias: float

    def distance(self, features: Tensor) -> Tensor:
        """How far features (N, F) lie from it: (N,) float64, at least 0."""
        signed: Tensor = (features.double().cpu() @ self.weight + self.bias) / self.weight.norm()
        return signed.abs()

    def closeness(self, features: Tensor) -> float:
        """d / (1 + d), d the mean distance of (N, F): 0 on the hyperplane, towards 1 far away."""
        mean = self.distance(features).mean().item()
        return mean / (1 + mean)


def hyperplane(first: Tensor, second: Tensor) -> Hyperplane:
    """Separate the features of two classes, (N, F) and (M, F), as the authors do: scikit-learn's LinearSVC with C = 1."""
    from sklearn.svm import LinearSVC

    rows = torch.cat([first, second]).double().cpu().numpy()
    machine = LinearSVC(C=1.0, max_iter=10_000, random_state=0, dual="auto").fit(rows, [0] * len(first) + [1] * len(second))
    return Hyperplane(torch.from_numpy(machine.coef_[0]), float(machine.intercept_[0]))


def random_pairs(first: Tensor, second: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """A control: pairs of one example of each class, at random, each used once. (N, ...), (M, ...) -> twice (min, ...)."""
    count = min(len(first), len(second))
    one, other = (torch.randperm(len(some), generator=generator)[:count].to(some.device) for some in (first, second))
    return first[one], second[other]


def nearest_pairs(first: Tensor, second: Tensor, first_features: Tensor, second_features: Tensor) -> tuple[Tensor, Tensor]:
    """A control: every example of the first class, and the one of the second whose features are nearest."""
    return first, second[squared_distances(first_features, second_features).argmin(dim=1)]


@probe
def boundary(
    view: View, first: str = "", second: str = "", steps: int = 1000, alpha: float = 0.8, beta: float = 1e-4, partners: int = 5
) -> Seen:
    """Points on the boundary between two classes, how straight that boundary is, and which of them is nearest to each example.

    Args:
        view: a classifier and examples; those of the background are used too.
        first: name of the one class; without names the two that are most often first and second choice.
        second: name of the other.
        steps: of training for each of four autoencoders.
        alpha: weight of what the network says against likeness to the examples.
        beta: how far apart both probabilities may be on the boundary.
        partners: lines from each point on the boundary to others, along which changes of the label are counted.
    """
    view.only("images", "audio", "series", "table")
    view.classifier()
    known = torch.cat([view.inputs, view.background.to(view.inputs)])
    with torch.no_grad():
        logits = _logits(view.model, known)
    s, t = _classes(view, logits, first, second)
    said = logits.argmax(dim=1)
    sides = known[said == s], known[said == t]
    for side, name in zip(sides, (view.classes[s], view.classes[t]), strict=True):
        if len(side) < 2:
            raise AssayError(f"the network says {name} of {len(side)} examples, and two are needed: name other classes")
    across = tuple(range(2, known.dim()))
    low, high = known.amin(dim=(0, *across), keepdim=True), known.amax(dim=(0, *across), keepdim=True)
    dig = partial(deepdig, view.model, low=low, high=high, alpha=alpha, beta=beta, steps=steps, seed=view.seed)
    there, back = dig(sides[0], s, t), dig(sides[1], t, s)
    pairs = len(there.origin) + len(back.origin)
    points = torch.cat([there.bisected.boundary, back.bisected.boundary]).to(known)
    if len(points) < 2:
        raise AssayError(
            f"of {pairs} pairs {len(points)} led to a boundary between {view.classes[s]} and {view.classes[t]}: allow more "
            "steps, a larger alpha, or name other classes"
        )
    control = bisect_boundary(view.model, *random_pairs(*sides, view.generator()), s, t, beta)
    far, nearest = squared_distances(view.inputs.flatten(1), points.flatten(1)).min(dim=1)
    counted = torch.cat([one.bisected.steps[one.bisected.success] for one in (there, back)])
    numbers = {
        "points on the boundary": float(len(points)),
        "share of pairs that led there": len(points) / max(pairs, 1),
        "the same of random pairs": control.success_rate,
        "share of examples that gave a pair": pairs / (len(sides[0]) + len(sides[1])),
        "halvings": counted.double().mean().item(),
        "changes of the label on lines": label_changes(view.model, points, partners=partners, generator=view.generator()),
    }
    return Seen(
        numbers=numbers | _embedded(view, sides, points),
        each={"distance to the nearest of them": far.sqrt()},
        inputs={f"on the boundary of {view.classes[s]} and {view.classes[t]}": points[nearest]},
        notes=(f"the boundary between {view.classes[s]} and {view.classes[t]}",),
    )


def _classes(view: View, logits: Tensor, first: str, second: str) -> tuple[int, int]:
    """The two classes that were named, or those that are together first and second choice of most examples."""
    if bool(first) != bool(second) or (first and first == second):
        raise AssayError("name two different classes, with --set first=NAME --set second=NAME, or none")
    for name in filter(None, (first, second)):
        if name not in view.classes:
            raise AssayError(f"the network has no class {name!r}: it has {', '.join(view.classes)}")
    if first:
        return view.classes.index(first), view.classes.index(second)
    said = logits.argmax(dim=1)
    pairs, counts = logits.topk(2, dim=1).indices.sort(dim=1).values.unique(dim=0, return_counts=True)
    # Both sides need examples: by how many the pair stands first and second, among those pairs where both classes are said.
    enough = torch.tensor([all(int((said == one).sum()) >= 2 for one in pair) for pair in pairs.tolist()])
    if not bool(enough.any()):
        raise AssayError("no two classes that lie beside each other are said of two examples each: look at more examples")
    s, t = pairs[torch.where(enough.to(counts.device), counts, 0).argmax()].tolist()
    return s, t


def _embedded(view: View, sides: tuple[Tensor, Tensor], points: Tensor) -> dict[str, float]:
    """Closeness to the hyperplane in the last hidden layer, where the network has one that can be seen."""
    if not view.layered or not any(isinstance(module, nn.Linear) for module in view.model.modules()):
        return {}
    features = [last_layer(view.model, some).features for some in (*sides, points)]
    plane = hyperplane(*features[:2])
    return {
        "closeness to the hyperplane, boundary": plane.closeness(features[2]),
        "closeness to the hyperplane, examples": plane.closeness(torch.cat(features[:2])),
    }


# ------------------------------------------------------------------------------------------------------------ claims

# MNIST: the authors' example of their command line. Fashion-MNIST: pullover and coat, with the shirt as a third class nearby.
_TASKS = {"MNIST": ("mnist5k", 1, 2), "Fashion-MNIST": ("fashion-mnist", 2, 4)}


def _pictures(lab: Lab, task: str) -> Dataset:
    name = _TASKS[task][0]
    data = lab.data("mnist" if name == "mnist5k" and lab.scale == "full" else name)
    if lab.scale == "full":
        return data
    return data.subset(train=lab.pick(smoke=500, laptop=2500, full=0), test=lab.pick(smoke=200, laptop=1000, full=0))


def _network(lab: Lab, task: str, kind: str) -> nn.Module:
    recipe = lenet_on(_pictures(lab, task), epochs=lab.pick(smoke=4, laptop=5, full=10))
    return lab.train(recipe if kind == "CNN" else recipe.replace(model=partial(mlp, 784, 10))).model


def _of(split: Split, label: int, device: torch.device) -> Tensor:
    assert isinstance(split.inputs, Tensor)
    return split.inputs[split.labels == label].to(device)


def _as_tensors(found: Bisected) -> dict[str, Tensor]:
    names = ("samples", "probs", "success", "third", "steps", "double")
    return {name: getattr(found, name) for name in names}


def _dug(model: nn.Module, source: Tensor, s: int, t: int, steps: int, batch_size: int, seed: int) -> dict[str, Tensor]:
    found = deepdig(model, source, s, t, steps=steps, batch_size=batch_size, seed=seed)
    return {"origin": found.origin, **_as_tensors(found.bisected)}


def _dig(lab: Lab, task: str, kind: str) -> tuple[Bisected, float, float]:
    """DeepDIG in both directions on one network: where the pairs led, the share of examples that gave one, seconds."""
    data, model, (_, *classes) = _pictures(lab, task), _network(lab, task, kind), _TASKS[task]
    parts, examples = [], 0
    for s, t in (classes, reversed(classes)):
        source = _of(data.train, s, lab.device)
        examples += len(source)
        parts.append(
            lab.remember(
                _dug,
                model=model,
                source=source,
                s=s,
                t=t,
                steps=lab.pick(smoke=60, laptop=300, full=5000),
                batch_size=lab.pick(smoke=16, laptop=16, full=128),
                seed=lab.seed,
            )
        )
    found = _joined([Bisected(**{name: part[name] for name in part if name not in ("origin", "seconds")}) for part in parts])
    return found, len(found.success) / examples, sum(part["seconds"].item() for part in parts)


def _joined(parts: Sequence[Bisected]) -> Bisected:
    some = [_as_tensors(part) for part in parts if len(part.success)]
    return Bisected(**{name: torch.cat([part[name] for part in some]) for name in some[0]}) if some else parts[0]


def _controls(lab: Lab, task: str, kind: str) -> dict[str, Bisected]:
    """The same bisection of random pairs, and of pairs whose features are nearest, from both sides."""
    data, model, (_, s, t) = _pictures(lab, task), _network(lab, task, kind), _TASKS[task]
    sides = []
    for label in (s, t):
        some = _of(data.train, label, lab.device)
        with torch.no_grad():
            sides.append(some[_logits(model, some).argmax(dim=1) == label])
    features = [last_layer(model, some).features for some in sides]
    to_t, to_s = nearest_pairs(*sides, *features), nearest_pairs(*reversed(sides), *reversed(features))
    return {
        "random pairs": bisect_boundary(model, *random_pairs(sides[0], sides[1], lab.generator()), s, t),
        "nearest pairs": _joined([bisect_boundary(model, *to_t, s, t), bisect_boundary(model, *to_s, t, s)]),
    }


def _halvings(found: Bisected) -> Curve:
    """Which share of the pairs is on the boundary after so many halvings; value: the mean of those that arrive (60 if none)."""
    arrived = found.steps[found.success].double()
    ends = range(1, 31)
    return Curve(
        [(arrived <= end).sum().item() / max(len(found.success), 1) for end in ends],
        x=list(ends),
        value=arrived.mean().item() if len(arrived) else 60.0,
        x_name="halvings",
        y_name="share of pairs on the boundary",
    )


_LESS = (
    "2,500 training pictures and a LeNet of 5 epochs; one pair of classes on each set (MNIST 1 and 2, pullover and coat), "
    "autoencoders of 300 steps of 16 pictures instead of 5,000 of 128."
)


@claim(
    "Halving the segment ends on the boundary, and not in a third class, for a larger share of DeepDIG's pairs than of random "
    "pairs (by five points) and of pairs that are nearest in the last hidden layer.",
    expect=[
        one
        for task in ("MNIST", "Fashion-MNIST")
        for one in (
            Higher(f"DeepDIG, {task}", than=f"random pairs, {task}", by=0.05),
            Higher(f"DeepDIG, {task}", than=f"nearest pairs, {task}"),
        )
    ],
    scaled_down=_LESS,
    unit="share of pairs",
    needs=("mnist5k", "fashion-mnist"),
)
def more_successes_than_pairs(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for task in _TASKS:
        found, gave, seconds = _dig(lab, task, "CNN")
        arms[f"DeepDIG, {task}"] = Score(found.success_rate, Cost(seconds=seconds))
        arms |= {f"{name}, {task}": pairs.success_rate for name, pairs in _controls(lab, task, "CNN").items()}
        # DeepDIG drops examples before it has a pair, and the controls drop none that the network gets right.
        arms[f"DeepDIG, of all examples, {task}"] = found.success_rate * gave
    return arms


@claim(
    "DeepDIG's pairs are on the boundary after fewer halvings than random pairs and than pairs that are nearest in the last "
    "hidden layer, of those that arrive at all.",
    expect=[
        Lower(f"DeepDIG, {task}", than=f"{control}, {task}")
        for task in ("MNIST", "Fashion-MNIST")
        for control in ("random pairs", "nearest pairs")
    ],
    scaled_down=_LESS,
    unit="halvings",
    needs=("mnist5k", "fashion-mnist"),
)
def fewer_halvings(lab: Lab) -> Measured:
    arms = {}
    for task in _TASKS:
        arms[f"DeepDIG, {task}"] = _halvings(_dig(lab, task, "CNN")[0])
        arms |= {f"{name}, {task}": _halvings(pairs) for name, pairs in _controls(lab, task, "CNN").items()}
    return arms


@claim(
    "In the last hidden layer DeepDIG's points lie less than half as far from the hyperplane between both classes as test "
    "pictures do, d / (1 + d) of the mean distance d.",
    expect=[Lower(f"boundary, {task}", than=f"test, {task}", times=0.5) for task in ("MNIST", "Fashion-MNIST")],
    scaled_down=_LESS,
    unit="d / (1 + d)",
    needs=("mnist5k", "fashion-mnist"),
)
def boundary_lies_at_the_hyperplane(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for task, (_, s, t) in _TASKS.items():
        data, model = _pictures(lab, task), _network(lab, task, "CNN")

        def features(inputs: Tensor, model: nn.Module = model) -> Tensor:
            return last_layer(model, inputs.float()).features

        train, test = ([features(_of(split, label, lab.device)) for label in (s, t)] for split in (data.train, data.test))
        plane = hyperplane(*train)
        # Any point where both logits are equal lies on a hyperplane of this layer; random pairs show what DeepDIG's add.
        arms |= {
            f"boundary, {task}": plane.closeness(features(_dig(lab, task, "CNN")[0].boundary)),
            f"boundary by random pairs, {task}": plane.closeness(features(_controls(lab, task, "CNN")["random pairs"].boundary)),
            f"test, {task}": plane.closeness(torch.cat(test)),
            f"train, {task}": plane.closeness(torch.cat(train)),
        }
    return arms


@claim(
    "Along lines between DeepDIG's points on the boundary the label changes more often for a fully connected network than for a "
    "convolutional one.",
    expect=[Higher(f"FCN, {task}", than=f"CNN, {task}") for task in ("MNIST", "Fashion-MNIST")],
    scaled_down=f"{_LESS} One line from each of 200 points instead of fifty from all.",
    unit="changes of the label / 50",
    needs=("mnist5k", "fashion-mnist"),
)
def fully_connected_changes_more(lab: Lab) -> Measured:
    arms = {}
    for task in _TASKS:
        for kind in ("CNN", "FCN"):
            points = _dig(lab, task, kind)[0].boundary.float()
            drawn = points[torch.randperm(len(points), generator=lab.generator(1))[: lab.pick(smoke=20, laptop=200, full=5000)]]
            lines = lab.pick(smoke=1, laptop=1, full=50)
            # Without two points there is no line and no number; 0 would look like the smoothest boundary of all.
            arms[f"{kind}, {task}"] = (
                label_changes(_network(lab, task, kind), drawn, partners=lines, generator=lab.generator(2))
                if len(drawn) > 1
                else math.nan
            )
    return arms
