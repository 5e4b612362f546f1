"""What claims cost at a scale, counted instead of run.

A claim runs with a lab that trains nothing. Of every recipe it builds the real network and counts the floating-point
operations of one step, forward and backward, on tensors without memory (torch's own counter; matrix products, convolutions
and attention, a multiplication and an addition being two); the rest is multiplication. The claim goes on with the untrained
network, so that its later trainings are seen. The same training is counted once, whoever asks for it.

What a claim does besides (``lab.remember``, and work of its own) is really done, for a few seconds. Work that says how far it
is counts in proportion; what neither ends nor says so is extrapolated from the recorded evidence. Every piece is marked:

- ``counted``: operations of the real network times the steps;
- ``run``: done to its end;
- ``in part``: begun, and multiplied by the fraction that was done;
- ``extrapolated``: the seconds of the recorded laptop run, times the ratio of the two scales' trainings.

Work of hooks within a training is not seen.
"""

from __future__ import annotations

import copy
import heapq
import inspect
import math
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from assay import catalogue
from assay.catalogue import Paper
from assay.data import Dataset, Split, load
from assay.data.registry import find as find_data
from assay.data.registry import is_here
from assay.errors import AssayError
from assay.fingerprint import fingerprint
from assay.lab import evidence
from assay.lab.lab import Lab
from assay.lab.memory import recipe_fingerprint
from assay.lab.running import check
from assay.paper import Claim, Score
from assay.recipe import Recipe
from assay.train.loop import Report, Trained, seeded

#: Peak of dense matrix products in operations a second, as the makers state it (A100 SXM, H100 SXM; no sparsity, no TF32).
GPUS = {
    "a100": {"float32": 19.5e12, "bfloat16": 312e12},
    "h100": {"float32": 67e12, "bfloat16": 989e12},
}

#: Launching one operation from Python; small networks on a GPU wait for that and not for arithmetic.
LAUNCH_SECONDS = 8e-6


@dataclass(frozen=True)
class Rates:
    """What a second of hardware does.

    Args:
        float32: operations a second of one GPU that are really achieved in float32.
        bfloat16: the same in bfloat16.
        core: operations a second of one core of a processor.
        launch: seconds that a GPU needs for any operation at least.
    """

    float32: float
    bfloat16: float
    core: float
    launch: float = LAUNCH_SECONDS

    @classmethod
    def of(cls, gpu: str, utilisation: float, core: float) -> Rates:
        """Those of a named GPU of which a fraction of the peak is achieved."""
        if gpu not in GPUS:
            raise AssayError(f"--gpu is {gpu!r}: choose one of {', '.join(GPUS)}.")
        if not 0 < utilisation <= 1:
            raise AssayError(f"--utilisation is {utilisation}: give a fraction of the peak, such as 0.35.")
        peak = GPUS[gpu]
        return cls(peak["float32"] * utilisation, peak["bfloat16"] * utilisation, core)


@dataclass(frozen=True)
class Work:
    """One training, or one other piece of work.

    Attributes:
        what: in words.
        how: ``counted``, ``run``, ``in part`` or ``extrapolated``.
        flops: floating-point operations (0 for work that has none worth counting, and where they were not counted).
        launches: operations that are launched one after the other.
        seconds: on a core of this machine, for work that was run; ``None`` for what was counted.
        training: whether it is a training through a recipe.
        precision: of a training.
    """

    what: str
    how: str
    flops: float = 0.0
    launches: float = 0.0
    seconds: float | None = None
    training: bool = False
    precision: str = "float32"

    def gpu_seconds(self, rates: Rates, precision: str | None = None) -> float:
        """Of one GPU; 0 for work that no GPU can do."""
        rate = rates.bfloat16 if (precision or self.precision) == "bfloat16" else rates.float32
        return max(self.flops / rate, self.launches * rates.launch)

    def core_seconds(self, rates: Rates) -> float:
        """Of one core."""
        return self.flops / rates.core if self.seconds is None else self.seconds

    def hours(self, rates: Rates, precision: str | None = None) -> float:
        """Of whatever machine does it faster: a GPU, or for what was run on one here, a core."""
        found = self.gpu_seconds(rates, precision) if self.flops else math.inf
        return min(found, math.inf if self.seconds is None else self.seconds) / 3600


@dataclass
class ClaimCost:
    """One claim, one seed.

    Attributes:
        works: marks of pieces of work, in order; shared ones occur in several claims.
        block: seeds that are run together.
        notes: what was not seen, and why.
        error: why nothing could be counted.
    """

    paper: str
    topic: str
    claim: str
    block: int = 1
    works: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class Costs:
    """Claims at one scale, and the distinct work that they are made of."""

    scale: str
    claims: list[ClaimCost] = field(default_factory=list)
    works: dict[str, Work] = field(default_factory=dict)

    def distinct(self, chosen: Sequence[ClaimCost] | None = None) -> list[Work]:
        """The work of these claims (of all), each piece once."""
        marks = dict.fromkeys(mark for one in (self.claims if chosen is None else chosen) for mark in one.works)
        return [self.works[mark] for mark in marks]

    def units(self, rates: Rates, seeds: int = 5, precision: str | None = None) -> list[tuple[str, float]]:
        """Hours of every unit; work that claims share belongs to the first of them."""
        done: set[str] = set()
        found = []
        for one in self.claims:
            fresh = [self.works[mark] for mark in dict.fromkeys(one.works) if mark not in done]
            done |= set(one.works)
            hours = sum(work.hours(rates, precision) for work in fresh)
            blocks = [min(one.block, seeds - start) for start in range(0, seeds, one.block)]
            found += [(f"{one.paper}:{one.claim}", hours * block) for block in blocks]
        return found


#: Numbers of machines in the table of how long all takes.
MACHINES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def count(
    what: list[str],
    everything: bool,
    scale: str,
    seeds: int,
    gpu: str,
    utilisation: float,
    budget: float,
) -> dict[str, Any]:
    """For the command line: what :func:`summary` says about the claims that were named."""
    check(what, everything, scale)
    if seeds < 1:
        raise AssayError(f"--seeds is {seeds}: give at least 1.")
    console = Console(stderr=True)
    with console.status("measuring this machine") as status:
        rates = Rates.of(gpu, utilisation, core_rate())
        chosen = catalogue.select(what, everything)
        costs = cost(chosen, scale, budget, lambda done, name: status.update(f"{done + 1}/{len(chosen)} {name}"))
    return summary(costs, rates, seeds)


def summary(costs: Costs, rates: Rates, seeds: int) -> dict[str, Any]:
    """All numbers, for a table or as JSON. Hours are of all seeds."""
    papers = []
    for key in dict.fromkeys(one.paper for one in costs.claims):
        mine = [one for one in costs.claims if one.paper == key]
        papers.append({"paper": key, "topic": mine[0].topic, **_totals(costs, mine, rates, seeds)})
    units = {name: costs.units(rates, seeds, name) for name in ("float32", "bfloat16")}
    return {
        "scale": costs.scale,
        "seeds": seeds,
        "rates": asdict(rates),
        "papers": papers,
        "total": _totals(costs, costs.claims, rates, seeds),
        "claims": [
            asdict(one) | {"works": [{"mark": mark, **asdict(costs.works[mark])} for mark in one.works]} for one in costs.claims
        ],
        "longest": {name: _longest(some) for name, some in units.items()},
        "machines": [
            {"machines": count, **{name: makespan([hours for _, hours in some], count) for name, some in units.items()}}
            for count in MACHINES
        ],
    }


def _longest(units: list[tuple[str, float]]) -> dict[str, Any]:
    name, hours = max(units, key=lambda unit: unit[1])
    return {"unit": name, "hours": hours}


def _totals(costs: Costs, claims: list[ClaimCost], rates: Rates, seeds: int) -> dict[str, Any]:
    works = costs.distinct(claims)
    asked = [costs.works[mark] for one in claims for mark in one.works]
    counted = [one for one in claims if one.works]
    return {
        "claims": len(claims),
        "uncounted": len(claims) - len(counted),
        "trainings": seeds * sum(work.training for work in asked),
        "distinct": seeds * sum(work.training for work in works),
        "flops": seeds * sum(work.flops for work in works),
        "gpu_hours": seeds * sum(work.gpu_seconds(rates, "float32") for work in works) / 3600,
        "gpu_hours_bfloat16": seeds * sum(work.gpu_seconds(rates, "bfloat16") for work in works) / 3600,
        "other_core_hours": seeds * sum(work.core_seconds(rates) for work in works if not work.flops) / 3600,
        "core_hours": seeds * sum(work.core_seconds(rates) for work in works) / 3600,
        "extrapolated_core_hours": seeds * sum(w.core_seconds(rates) for w in works if w.how == "extrapolated") / 3600,
        "how": sorted({work.how for work in works}),
    }


def cost(
    chosen: Sequence[tuple[Paper, Claim]],
    scale: str = "full",
    budget: float = 5.0,
    report: Callable[[int, str], None] | None = None,
) -> Costs:
    """Count what the claims cost for one seed.

    Args:
        chosen: papers with their claims.
        scale: as in :class:`~assay.lab.Lab`.
        budget: seconds of a processor that a piece of remembered work is run for; a claim's own work, which is mostly getting
            its data ready, has 20 more.
        report: is told how many claims are done and which one comes next.
    """
    costs = Costs(scale)
    for done, (paper, claim) in enumerate(chosen):
        if report is not None:
            report(done, f"{paper.key}:{claim.name}")
        costs.claims.append(_cost_of(paper, claim, costs, budget))
    return costs


def _cost_of(paper: Paper, claim: Claim, costs: Costs, budget: float) -> ClaimCost:
    found = ClaimCost(paper.key, paper.topic, claim.name, max(1, claim.block))
    lab = _CostLab(claim, costs, found, budget)
    cut = False
    try:
        with torch.random.fork_rng(devices=[]), _limit(20.0 + budget) as lab.limit:
            began = time.process_time()
            try:
                claim(lab)
            finally:
                own = time.process_time() - began - lab.apart
    except _Cut:
        cut = True
    except AssayError as error:
        found.error = str(error)
    except Exception as error:
        # An untrained network and stand-ins for results are not what a claim was written for.
        found.notes.append(f"what follows was not seen, for it was given stand-ins ({type(error).__name__}: {error})"[:200])
    finally:
        lab.close()
    mark = f"own {paper.key}:{claim.name}"
    block = max(1, claim.block)
    if lab.unfinished or cut:
        seconds = _from_evidence(paper, claim, costs, found, budget)
        if seconds is None:
            found.notes.append("work besides trainings is left out: it did not end in time, and there is no laptop evidence")
        else:
            costs.works[mark] = Work("work besides trainings", "extrapolated", seconds=seconds)
            found.works.append(mark)
    elif own > 0.05:
        costs.works[mark] = Work("work besides trainings", "run", seconds=own / block)
        found.works.append(mark)
    return found


def _from_evidence(paper: Paper, claim: Claim, costs: Costs, found: ClaimCost, budget: float) -> float | None:
    """Seconds of one seed in the recorded laptop run, times what the trainings grew by since (1 without trainings)."""
    entry = evidence.recorded(paper.key).get(claim.name)
    if entry is None or entry.get("scale") != "laptop" or costs.scale == "laptop":
        return None
    small = Costs("laptop")
    lab = _CostLab(claim, small, ClaimCost(paper.key, paper.topic, claim.name), budget=0.2)
    try:
        with torch.random.fork_rng(devices=[]), _limit(budget) as lab.limit:
            claim(lab)
    except (Exception, _Cut):
        pass  # what was seen of it is what there is
    finally:
        lab.close()
    before = sum(work.flops for work in small.works.values() if work.training)
    now = sum(costs.works[mark].flops for mark in dict.fromkeys(found.works) if costs.works[mark].training)
    ratio = now / before if before and now else 1.0
    return float(entry["seconds"]) / max(1, int(entry["seeds"])) * ratio


# ------------------------------------------------------------------------------------------------ the lab that counts


class _CostLab(Lab):
    """Trains nothing and counts."""

    def __init__(self, claim: Claim, costs: Costs, found: ClaimCost, budget: float) -> None:
        super().__init__(scale=costs.scale, seeds=tuple(range(max(1, claim.block))))
        self.claim = claim
        self.costs = costs
        self.found = found
        self.budget = budget
        self.apart = 0.0  # seconds that are no work of the claim
        self.unfinished = False
        self.limit: _Limit | None = None
        self.smoke: list[tuple[Any, dict[str, Any], dict[str, Tensor]]] | None = None

    def data(self, name: str) -> Dataset:
        with self._apart():
            return load(name) if is_here(find_data(name)) else stand_in(name) or load(name)

    def train(self, recipe: Recipe, seed: int | None = None) -> Trained:
        with self._apart():
            seed = self.seed if seed is None else seed
            mark = recipe_fingerprint(recipe, seed, self.device)
            with seeded(seed, self.device):
                model = recipe.model()
            if mark not in self.costs.works:
                self.costs.works[mark] = count_training(recipe, model, max(1, self.claim.block))
            self.found.works.append(mark)
            if recipe.hooks:
                names = ", ".join(sorted({type(hook).__name__ for hook in recipe.hooks}))
                note = f"the work of {names} during training is left out"
                self.found.notes += [note] if note not in self.found.notes else []
            return _Untrained(recipe, model.eval(), _History(recipe.epochs), 1.0, _parameters(model), 0, _Memory(recipe.epochs))

    def remember(self, function: Callable[..., dict[str, Tensor]], **arguments: Any) -> dict[str, Tensor]:
        with self._apart():
            mark = fingerprint("work", function, arguments)
            result, work = _run_in_part(function, arguments, self.budget)
            if work is None:
                self.unfinished = True
            elif mark not in self.costs.works:
                block = max(1, self.claim.block)
                assert work.seconds is not None
                self.costs.works[mark] = replace(
                    work, flops=work.flops / block, launches=work.launches / block, seconds=work.seconds / block
                )
            if work is not None:
                self.found.works.append(mark)
            return self._template(function, arguments) if result is None else {**result, "seconds": torch.tensor(1.0).double()}

    def _template(self, function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Tensor]:
        """A result of the shape that ``function`` would have returned: that of the smoke run, stretched to these arguments."""
        if self.smoke is None:
            self.smoke = []
            small = _SmokeLab(self.smoke, self.seeds)
            try:
                self.claim(small)
            except Exception:
                pass  # what it remembered until then is what there is
            finally:
                small.close()
        place = next((i for i, (known, _, _) in enumerate(self.smoke) if known is function), None)
        if place is None:
            raise AssayError(f"{function.__name__} did not end within {self.budget:.0f} s, and has no result at smoke scale.")
        _, small_arguments, result = self.smoke[place]
        if sum(known is function for known, _, _ in self.smoke) > 1:
            self.smoke.pop(place)
        before, now = _sizes(small_arguments), _sizes(arguments)
        grown = {before[name]: now[name] for name in reversed(before) if name in now}
        return {name: _stretched(tensor, grown) for name, tensor in result.items()}

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What the costing does itself counts neither as the claim's work nor against its limit."""
        began = time.process_time()
        if self.limit is not None:
            self.limit.pause()
        try:
            yield
        finally:
            self.apart += time.process_time() - began
            if self.limit is not None:
                self.limit.go_on()


class _SmokeLab(Lab):
    """A real lab at smoke scale that keeps what was remembered."""

    def __init__(self, kept: list[tuple[Any, dict[str, Any], dict[str, Tensor]]], seeds: tuple[int, ...]) -> None:
        super().__init__(scale="smoke", seeds=seeds)
        self.kept = kept

    def remember(self, function: Callable[..., dict[str, Tensor]], **arguments: Any) -> dict[str, Tensor]:
        result = super().remember(function, **arguments)
        self.kept.append((function, arguments, result))
        return result


class _Untrained(Trained):
    """A training that was counted: its network is the real one, its outputs and accuracies are made up."""

    def logits(self, split: str = "test") -> Tensor:
        examples = getattr(self.recipe.data, split)
        classes = self.recipe.data.num_classes
        return torch.randn(len(examples), classes, generator=torch.Generator().manual_seed(0))

    def accuracy(self, split: str = "test") -> Score:
        return Score(0.5, self.cost)

    def loss(self, split: str = "test") -> float:
        return 1.0


class _History(dict[str, list[float]]):
    """A value for every epoch of whatever is asked for."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def __missing__(self, name: str) -> list[float]:
        return [0.5] * self.epochs


class _Memory(dict[str, Tensor]):
    """What a hook may have kept: a value before the training and one for every epoch."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def __missing__(self, name: str) -> Tensor:
        return torch.full((self.epochs + 1,), 0.5)


class _StandIn(Dataset):
    """Made ready once for all claims that ask for the same: that is what costing would else spend its time on."""

    def normalise(self) -> Dataset:
        return _normalised(self)


@lru_cache(maxsize=4)
def _normalised(data: Dataset) -> Dataset:
    return Dataset.normalise(data)


@cache
def stand_in(name: str) -> Dataset | None:
    """Images of the sizes that the registry states for a data set, black but for one; ``None`` where it states none."""
    entry = find_data(name)
    shape = re.search(r"\b((?:\d+x)?\d+x\d+)\b", entry.what)
    sizes = re.search(r"([\d,]+) / ([\d,]+)", entry.what)
    if entry.task != "classification" or shape is None or sizes is None:
        return None
    dims = [int(side) for side in shape[1].split("x")]
    dims = dims if len(dims) == 3 else [1, *dims]
    classes = dict(entry.arguments).get("classes", tuple("0123456789"))
    train, test, empty = (_black(int(size.replace(",", "")), dims, len(classes)) for size in (*sizes.groups(), "0"))
    return _StandIn(name, "classification", train, empty, test, tuple(classes), history=("a stand-in of the same sizes",))


def _black(count: int, shape: list[int], classes: int) -> Split:
    shades = torch.zeros(count, 1, 1, 1)
    shades[:1] = 1.0  # one is white: what is all alike cannot be scaled
    return Split(shades.expand(count, *shape), torch.arange(count) % classes)


# ------------------------------------------------------------------------------------------------ counting


class _Launches(TorchDispatchMode):
    """Counts operations that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Step:
    """One batch: floating-point operations and launches, of training on it and of only looking at it."""

    train: float
    train_launches: float
    look: float
    look_launches: float


def count_step(model: nn.Module, inputs: Tensor, batch: int) -> Step:
    """Count a step on a batch of so many examples like ``inputs`` ((N, ...), at least one).

    Nothing is computed where the network runs on tensors without memory; one that does not (it looks at values, say) runs on a
    few examples, and their operations are multiplied.
    """
    shape = (batch, *inputs.shape[1:])
    try:
        bare = copy.deepcopy(model).to("meta")
        return _counted(bare, torch.empty(shape, dtype=inputs.dtype, device="meta"), 1.0)
    except Exception:
        few = min(batch, len(inputs), 4)
        with _in_the_open():
            return _counted(copy.deepcopy(model), inputs[:few], batch / few)


@contextmanager
def _in_the_open() -> Iterator[None]:
    """Recurrent networks as the matrix products that they are: as one piece of mkldnn they would not be counted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _counted(model: nn.Module, inputs: Tensor, times: float) -> Step:
    found = []
    for training in (True, False):
        model.train(training)
        flops, launches = FlopCounterMode(display=False), _Launches()
        with torch.set_grad_enabled(training), flops, launches:
            outputs = model(inputs)
            if training:
                outputs.float().sum().backward()
        found += [flops.get_total_flops() * times, float(launches.count)]
    return Step(*found)


def count_training(recipe: Recipe, model: nn.Module, block: int = 1) -> Work:
    """What a training takes, with looking at the watched splits after every epoch; divided by ``block`` seeds."""
    data = recipe.data
    inputs = data.train.inputs
    if not isinstance(inputs, Tensor):
        raise AssayError(f"{data.name} holds texts, which no network takes: the recipe cannot be counted.")
    count = len(data.train)
    part = math.ceil(min(recipe.batch_size, count) / recipe.accumulate)
    step = count_step(model, inputs[:8], part)
    batches = math.ceil(count / recipe.batch_size) * recipe.accumulate
    watched = sum(len(getattr(data, name)) for name in recipe.watch)
    flops = step.train * count / part + step.look * watched / part
    launches = step.train_launches * batches + step.look_launches * math.ceil(watched / 1024)
    inner = getattr(recipe.model, "func", recipe.model)
    name = str(getattr(inner, "__qualname__", type(inner).__qualname__))
    return Work(
        what=f"{name} on {data.name}, {count} examples, {recipe.epochs} epochs",
        how="counted",
        flops=flops * recipe.epochs / block,
        launches=launches * recipe.epochs / block,
        training=True,
        precision=recipe.precision,
    )


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def core_rate(seconds: float = 1.0) -> float:
    """Floating-point operations a second that one core of this machine achieves in training a convolutional network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(16, 64, 32, 32).contiguous(memory_format=torch.channels_last)
        flops = _counted(copy.deepcopy(net).to("meta"), torch.empty(images.shape, device="meta"), 1.0).train
        net(images).sum().backward()
        began, count = time.process_time(), 0
        while time.process_time() - began < seconds:
            net(images).sum().backward()
            count += 1
        return flops * count / (time.process_time() - began)
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ other work, for a while


class _Cut(BaseException):
    """The time for a piece of work is over. No Exception: a claim that catches those must not catch this."""


class _Limit:
    """Raises :class:`_Cut` in the main thread after so many seconds of processor time, pauses not counted."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.active = threading.current_thread() is threading.main_thread()

    def go_on(self) -> None:
        self.began = time.process_time()
        if self.active:
            signal.setitimer(signal.ITIMER_PROF, max(0.01, self.left))

    def pause(self) -> None:
        if self.active:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.left -= time.process_time() - self.began


@contextmanager
def _limit(seconds: float) -> Iterator[_Limit]:
    limit = _Limit(seconds)
    outside = _imports(sys._getframe())

    def cut(signum: int, frame: FrameType | None) -> None:
        if _imports(frame) > outside:  # half of a module would stay behind, and be taken for the whole by whoever imports it next
            signal.setitimer(signal.ITIMER_PROF, 0.01)
            return
        raise _Cut

    before = signal.signal(signal.SIGPROF, cut) if limit.active else None
    limit.go_on()
    try:
        yield limit
    finally:
        limit.pause()
        if limit.active:
            signal.signal(signal.SIGPROF, before)


def _imports(frame: FrameType | None) -> int:
    """How many imports are going on in a frame."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return found


def _run_in_part(
    function: Callable[..., dict[str, Tensor]], arguments: dict[str, Any], budget: float
) -> tuple[dict[str, Tensor] | None, Work | None]:
    """Run work for a while, once for its time and once for its operations: its result if it ended, and what all of it takes.

    The second is ``None`` if it neither ended nor said how far it was.
    """
    result, seconds, share, _ = _attempt(function, arguments, budget)
    if not share:
        return None, None
    with FlopCounterMode(display=False), _Launches():
        torch.ones(1, 1) @ torch.ones(1, 1)  # the first use imports a lot, which is no part of the work
    for longer in (1, 2, 4, 8, 16):  # to be counted takes time, too
        flops, launches = FlopCounterMode(display=False), _Launches()

        def look(flops: FlopCounterMode = flops, launches: _Launches = launches) -> tuple[float, float]:
            return flops.get_total_flops(), launches.count

        with _in_the_open(), flops, launches:
            _, _, counted, seen = _attempt(function, arguments, longer * budget, look)
        if counted:
            how = "run" if result is not None else "in part"
            return result, Work(function.__name__, how, seen[0] / counted, seen[1] / counted, seconds / share)
    return None, None


def _attempt(
    function: Callable[..., dict[str, Tensor]],
    arguments: dict[str, Any],
    budget: float,
    look: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
) -> tuple[dict[str, Tensor] | None, float, float, tuple[float, float]]:
    """The result (``None`` if time was up), the seconds, the share that was done in them (0: unknown), what was seen then."""
    began = time.process_time()
    done = (0.0, began, (0.0, 0.0))

    def progress(now: float, total: float, note: str = "") -> None:
        nonlocal done
        done = (now / total if total else 0.0, time.process_time(), look())

    extra: Mapping[str, Report] = {"progress": progress} if "progress" in inspect.signature(function).parameters else {}
    try:
        with torch.random.fork_rng(devices=[]), _limit(budget):
            result = function(**arguments, **extra)
    except _Cut:
        return None, done[1] - began, min(done[0], 1.0), done[2]
    return result, time.process_time() - began, 1.0, look()


def _sizes(arguments: Mapping[str, Any]) -> dict[str, int]:
    """How many entries the arguments have, by name: rows of tensors, examples of data sets, lengths of sequences."""
    found: dict[str, int] = {}
    for name, value in arguments.items():
        if isinstance(value, Dataset):
            found |= {f"{name}.{part}": len(getattr(value, part)) for part in ("train", "valid", "test")}
        elif isinstance(value, (tuple, list)) or (isinstance(value, Tensor) and value.dim()):
            found[name] = len(value)
    return found


def _stretched(tensor: Tensor, grown: Mapping[int, int]) -> Tensor:
    """Rows and columns that are as many as an argument has entries become as many as it has now."""
    for dim, size in enumerate(tensor.shape):
        if grown.get(size, size) != size:
            tensor = tensor.index_select(dim, torch.arange(grown[size]) % max(size, 1))
    return tensor


# ------------------------------------------------------------------------------------------------ many machines


def makespan(seconds: Sequence[float], machines: int) -> float:
    """When the last of ``machines`` is done if every one, when free, takes the longest piece that is left."""
    ends = [0.0] * machines
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


__all__ = [
    "GPUS",
    "ClaimCost",
    "Costs",
    "Rates",
    "Step",
    "Work",
    "core_rate",
    "cost",
    "count_step",
    "count_training",
    "makespan",
    "stand_in",
    "summary",
]
