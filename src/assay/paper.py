"""What the literature says: claims, what they expect, and the numbers that were reported.

A paper's facts (title, authors, year, link) stand in ``papers/references.bib``; its claims stand in its module as
functions of a :class:`~assay.lab.Lab` that return ``{arm: number}`` for one seed. This module gives them their words.
It imports nothing heavy: reading what a paper claims must not cost a second of importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.lab import Lab


@dataclass(frozen=True)
class Cost:
    """The price of one arm: what somebody pays who takes the method.

    Args:
        seconds: of the work itself, as :func:`assay.clock.seconds` tells them (a memoised training keeps what it once took).
        parameters: trainable parameters.
        flops: floating-point operations of one forward pass of one example.
        bytes: peak memory in bytes, where it was measured.
    """

    seconds: float | None = None
    parameters: int | None = None
    flops: int | None = None
    bytes: int | None = None


class Score(float):
    """A number that knows its price; everywhere else it is a plain float.

    ``Trained.accuracy()`` returns one, so that a claim which returns ``{"ELR": trained.accuracy()}`` also says what the
    arm cost. For work without a training: ``Score(0.93, Cost(seconds=1.2))``.
    """

    cost: Cost

    def __new__(cls, value: float, cost: Cost | None = None) -> Score:
        self = super().__new__(cls, value)
        self.cost = cost or Cost()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Score, (float(self), self.cost))


@dataclass(frozen=True)
class Curve:
    """A line instead of a number: accuracy per epoch, gap against steps.

    Args:
        y: the values.
        x: where they were taken; ``None`` counts 1, 2, 3 ...
        value: the number that enters the verdict; ``None`` takes the last value of ``y``.
        cost: what the arm cost.
        x_name: what the horizontal axis is, with its unit.
        y_name: what the vertical axis is, with its unit.
    """

    y: Sequence[float]
    x: Sequence[float] | None = None
    value: float | None = None
    cost: Cost = field(default_factory=Cost)
    x_name: str = "epoch"
    y_name: str = ""

    def __post_init__(self) -> None:
        if not len(self.y):
            raise ValueError("a curve needs at least one point")
        if self.x is not None and len(self.x) != len(self.y):
            raise ValueError(f"a curve with {len(self.y)} values of y has {len(self.x)} of x")

    @property
    def number(self) -> float:
        """The number that enters the verdict."""
        return float(self.y[-1] if self.value is None else self.value)


#: What a claim returns for one seed: a number (or a curve) for every arm.
Measured = Mapping[str, "float | Curve"]


@dataclass(frozen=True)
class Reported:
    """The paper's own numbers.

    Args:
        what: setting and measure, as in ``"CIFAR-10, ResNet-34, 40% symmetric noise: test accuracy"``.
        values: arm -> number, with the arms' names as the claim returns them where they correspond.
        where: table, figure or section of the paper.
    """

    what: str
    values: Mapping[str, float]
    where: str


@dataclass(frozen=True)
class Configuration:
    """A standard network of a paper by its numbers, for the module's ``CONFIGURATIONS``; a test measures each of them.

    Written as ``{"resnet50()": Configuration((3, 224, 224), parameters=..., ...)}`` with plain numbers: the key is the call
    that makes it, and ``assay show`` reads the numbers from the file without importing it.

    Args:
        input: shape of one example.
        parameters: trainable ones.
        macs: multiply-adds of one example (:func:`assay.nn.measure.macs`).
        layers: layers with weights on the longest way.
        sees: receptive field of one place of the last map, pixels a side; 0 where it has none.
        activations: numbers that convolutions return for one example (:func:`assay.nn.measure.activations`).
    """

    input: tuple[int, ...]
    parameters: int
    macs: int
    layers: int
    sees: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Higher:
    """``arm`` is above ``times * than + by``, pairwise over seeds."""

    arm: str
    than: str
    by: float = 0.0
    times: float = 1.0


@dataclass(frozen=True)
class Lower:
    """``arm`` is below ``times * than - by``, pairwise over seeds."""

    arm: str
    than: str
    by: float = 0.0
    times: float = 1.0


@dataclass(frozen=True)
class Close:
    """``arm`` is as good as ``to``: their difference lies inside ``(-within, within)`` (two one-sided tests)."""

    arm: str
    to: str
    within: float


@dataclass(frozen=True)
class Above:
    """``arm`` is above a constant."""

    arm: str
    value: float


@dataclass(frozen=True)
class Below:
    """``arm`` is below a constant."""

    arm: str
    value: float


@dataclass(frozen=True)
class Correlates:
    """The curves of ``arm`` and ``other`` have a rank correlation above ``above`` (with ``sign=-1``: below ``-above``).

    Spearman's correlation of the two ``y`` is taken within each seed; the verdict is over seeds.
    """

    arm: str
    other: str
    above: float = 0.0
    sign: int = 1


Expectation = Higher | Lower | Close | Above | Below | Correlates


@dataclass(frozen=True)
class Claim:
    """One falsifiable sentence of a paper, and how it is put to the test.

    Calling a claim with a lab measures it for that lab's seed. Made by the :func:`claim` decorator.
    """

    name: str
    statement: str
    measure: Callable[[Lab], Any]
    expect: tuple[Expectation, ...]
    reported: tuple[Reported, ...] = ()
    scaled_down: str = ""
    unit: str = ""
    block: int = 1
    time_limit: float = 1800.0
    needs: tuple[str, ...] = ()

    def __call__(self, lab: Lab) -> Any:
        return self.measure(lab)


def claim(
    statement: str,
    *,
    expect: Expectation | Iterable[Expectation],
    reported: Reported | Iterable[Reported] = (),
    scaled_down: str = "",
    unit: str = "",
    block: int = 1,
    time_limit: float = 1800.0,
    needs: Iterable[str] = (),
) -> Callable[[Callable[[Lab], Any]], Claim]:
    """Make a claim out of a function that measures every arm for one seed.

    Args:
        statement: the sentence, with the setting that it is tested in.
        expect: what must be seen; several expectations must all be met.
        reported: the paper's own numbers.
        scaled_down: what is smaller here than in the paper (data, network, epochs), in one sentence.
        unit: what the numbers are, e.g. ``"test accuracy"``; for table headings and axes.
        block: how many seeds one unit measures together. With ``block > 1`` the function uses ``lab.seeds`` and returns
            ``{seed: {arm: number}}``; results are still saved seed by seed.
        time_limit: seconds after which a unit is stopped.
        needs: names of data sets without which the claim cannot run, so that a machine that lacks them can say so.
    """

    def wrap(measure: Callable[[Lab], Any]) -> Claim:
        return Claim(
            name=measure.__name__,
            statement=statement,
            measure=measure,
            expect=(expect,) if isinstance(expect, Expectation) else tuple(expect),
            reported=(reported,) if isinstance(reported, Reported) else tuple(reported),
            scaled_down=scaled_down,
            unit=unit,
            block=block,
            time_limit=time_limit,
            needs=tuple(needs),
        )

    return wrap
