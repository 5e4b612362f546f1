"""Verdicts: does a claim hold, given what its seeds measured?

Every expectation is a question about one number a seed, mostly a difference between two arms of that seed, and names
the region in which the mean of this number must lie. The mean gets an interval; *holds* when the interval lies inside
the region, *fails* when it lies wholly outside, else *inconclusive*. ``docs/verdicts.md`` explains it at leisure.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from assay.errors import AssayError
from assay.paper import Above, Below, Close, Correlates, Curve, Expectation, Higher, Lower

if TYPE_CHECKING:
    from numpy.typing import NDArray

Outcome = Literal["holds", "fails", "inconclusive"]
Method = Literal["t", "bootstrap", "exact", "none"]

#: An estimate of further seeds above this is no advice any more.
MOST_SEEDS = 1000
#: From this many seeds on, differences that do not look normal are bootstrapped.
BOOTSTRAP_FROM = 10
RESAMPLES = 9999


@dataclass(frozen=True)
class Test:
    """What the seeds say about one expectation.

    Args:
        expectation: the expectation in words.
        effect: mean over seeds of the tested number: ``arm - times * other``, the arm itself (``Above``, ``Below``) or
            the rank correlation. Margins are not subtracted; they stand in ``wanted``.
        low: lower end of the interval of ``effect``.
        high: upper end.
        level: confidence of the interval: 0.95, and 0.90 for ``Close`` (which is the two one-sided tests at 5 %).
        wanted: the open region in which ``effect`` is expected, ``(low, high)``; one side may be infinite.
        standardised: Hedges' g, the effect in standard deviations over seeds (of the paired difference), corrected for
            few seeds; ``Above`` and ``Below`` count from their constant. ``None`` below three seeds or without spread.
        p: p-value against the nearest point outside ``wanted`` (one-sided; ``Close``: the larger of both sides').
        verdict: ``"holds"``, ``"fails"`` or ``"inconclusive"``.
        more_seeds: how many further seeds would decide with a chance of about 80 %, should the effect be what it seems;
            ``None`` when decided, or when that cannot be said.
        method: where interval and p come from: Student's t, BCa bootstrap, ``"exact"`` (no spread), ``"none"``.
        note: what a reader should know besides; mostly empty.
    """

    __test__: ClassVar[bool] = False  # pytest would take the name for a test case

    expectation: str
    effect: float
    low: float
    high: float
    level: float
    wanted: tuple[float, float]
    standardised: float | None
    p: float
    verdict: Outcome
    more_seeds: int | None
    method: Method
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about a claim.

    Args:
        verdict: ``"holds"`` if every expectation holds, ``"fails"`` if one fails, else ``"inconclusive"``.
        seeds: number of seeds.
        p: the largest p-value of the expectations (all must be met).
        tests: one for each expectation, in their order.
    """

    verdict: Outcome
    seeds: int
    p: float
    tests: tuple[Test, ...]

    @property
    def more_seeds(self) -> int | None:
        """Further seeds that would probably decide; ``None`` when decided, or when that cannot be said."""
        asked = [test.more_seeds for test in self.tests if test.verdict == "inconclusive"]
        known = [seeds for seeds in asked if seeds is not None]
        return max(known) if known and self.verdict == "inconclusive" and len(known) == len(asked) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is infinite or not a number becomes ``None``."""
        plain: dict[str, Any] = _plain({**asdict(self), "more_seeds": self.more_seeds})
        return plain


def judge(expect: tuple[Expectation, ...], rows: Mapping[int, Mapping[str, float | Curve]]) -> Verdict:
    """The verdict on a claim.

    Args:
        expect: the claim's expectations; all must be met.
        rows: seed -> arm -> number or curve. Arms that no expectation names are ignored.

    Raises:
        AssayError: an arm is missing or not a finite number, or a correlation is asked of what is no curve.
    """
    if not expect:
        raise AssayError("A claim without an expectation has no verdict: give it at least one, such as Higher.")
    tests = tuple(_test(expectation, rows) for expectation in expect)
    outcomes = {test.verdict for test in tests}
    verdict: Outcome = "fails" if "fails" in outcomes else "holds" if outcomes == {"holds"} else "inconclusive"
    return Verdict(verdict, len(rows), max(test.p for test in tests), tests)


def adjust(p_values: Iterable[float]) -> list[float]:
    """Benjamini-Hochberg q-values, in the order of ``p_values``.

    Where many claims are shown together, believing only those that hold with ``q <= 0.05`` (*controlled*) keeps the
    expected share of false ones among them at 5 %.
    """
    p = list(p_values)
    if not all(0 <= value <= 1 for value in p):
        raise ValueError("p-values lie between 0 and 1")
    q, smallest = [0.0] * len(p), 1.0
    for rank, position in sorted(enumerate(sorted(range(len(p)), key=p.__getitem__), start=1), reverse=True):
        smallest = min(smallest, p[position] * len(p) / rank)
        q[position] = smallest
    return q


@dataclass(frozen=True)
class _Question:
    """An expectation, put to every seed: the numbers asked for and the region in which their mean is wanted."""

    words: str
    numbers: list[float]
    wanted: tuple[float, float]
    spread: bool  # do the values behind the numbers differ between seeds?
    rounding: float  # differences below this are rounding errors
    reference: float = 0.0  # where "no effect" lies


def _question(expectation: Expectation, rows: Mapping[int, Mapping[str, float | Curve]]) -> _Question:
    match expectation:
        case Higher(arm, than, by, times) | Lower(arm, than, by, times):
            pairs = [(_number(row, arm, seed), times * _number(row, than, seed)) for seed, row in rows.items()]
            higher = isinstance(expectation, Higher)
            margin = f" {'+' if (by >= 0) == higher else '−'} {abs(by):g}" if by else ""
            factor = f"{times:g} × " if times != 1 else ""
            return _differences(
                f"{arm} {'above' if higher else 'below'} {factor}{than}{margin}",
                pairs,
                (by, math.inf) if higher else (-math.inf, -by),
            )
        case Close(arm, to, within):
            pairs = [(_number(row, arm, seed), _number(row, to, seed)) for seed, row in rows.items()]
            return _differences(f"{arm} within ±{within:g} of {to}", pairs, (-within, within))
        case Above(arm, value) | Below(arm, value):
            pairs = [(_number(row, arm, seed), 0.0) for seed, row in rows.items()]
            above = isinstance(expectation, Above)
            return _differences(
                f"{arm} {'above' if above else 'below'} {value:g}",
                pairs,
                (value, math.inf) if above else (-math.inf, value),
                reference=value,
            )
        case Correlates(arm, other, above, sign):
            numbers = [_rank_correlation(row, arm, other, seed) for seed, row in rows.items()]
            words = f"rank correlation of {arm} and {other} {'above' if sign > 0 else 'below'} {sign * above:g}"
            wanted = (above, math.inf) if sign > 0 else (-math.inf, -above)
            return _Question(words, numbers, wanted, spread=True, rounding=1e-12)


def _differences(words: str, pairs: list[tuple[float, float]], wanted: tuple[float, float], reference: float = 0.0) -> _Question:
    rounding = 1e-14 * max((abs(value) for pair in pairs for value in pair), default=0.0)
    spread = any(max(arm) - min(arm) > rounding for arm in zip(*pairs, strict=True))
    return _Question(words, [a - b for a, b in pairs], wanted, spread, rounding, reference)


def _test(expectation: Expectation, rows: Mapping[int, Mapping[str, float | Curve]]) -> Test:
    question = _question(expectation, rows)
    n, wanted = len(question.numbers), question.wanted
    level = 0.90 if math.isfinite(wanted[0]) and math.isfinite(wanted[1]) else 0.95
    if n < 2:
        effect = question.numbers[0] if n else math.nan
        note = "one seed cannot decide" if n else "no seed has been measured"
        return Test(question.words, effect, -math.inf, math.inf, level, wanted, None, 1.0, "inconclusive", None, "none", note)
    sample = _sample(question)
    low, high = sample.interval(level)
    widest = sample.interval(0.95)
    verdict: Outcome = "inconclusive"
    note = ""
    if sample.sd == 0 and question.spread and n == 2:
        # On a small test set two differences agree to the last digit by chance, which is no absence of noise.
        note = "two equal differences between arms that vary cannot decide"
    elif wanted[0] < low and high < wanted[1]:
        verdict = "holds"
    elif widest[1] <= wanted[0] or widest[0] >= wanted[1]:
        verdict = "fails"
    p = max(
        sample.p(+1, wanted[0]) if math.isfinite(wanted[0]) else 0.0,
        sample.p(-1, wanted[1]) if math.isfinite(wanted[1]) else 0.0,
    )
    return Test(
        expectation=question.words,
        effect=sample.mean,
        low=low,
        high=high,
        level=level,
        wanted=wanted,
        standardised=_hedges_g(sample.mean - question.reference, sample.sd, n),
        p=1.0 if note else p,
        verdict=verdict,
        more_seeds=_more_seeds(sample, wanted) if verdict == "inconclusive" else None,
        method=sample.method,
        note=note,
    )


@dataclass(frozen=True)
class _Sample:
    """Numbers of independent seeds with what can be said about their mean."""

    mean: float
    sd: float
    n: int
    method: Method
    resampled: NDArray[Any] | None = None  # (RESAMPLES,) means of bootstrap samples, sorted
    bias: float = 0.0  # BCa's z0
    acceleration: float = 0.0  # BCa's a

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided interval of the mean."""
        from scipy.special import stdtrit

        t = float(stdtrit(self.n - 1, 0.5 + level / 2))
        if self.resampled is None:
            half = t * self.sd / math.sqrt(self.n)
            return self.mean - half, self.mean + half
        return self._quantile(-t), self._quantile(t)

    def p(self, side: int, bound: float) -> float:
        """One-sided p-value of "the mean lies above (``side=1``) or below (``side=-1``) the bound"."""
        from scipy.special import ndtri, stdtr

        if self.sd == 0:
            return 0.0 if side * (self.mean - bound) > 0 else 1.0
        if self.resampled is None:
            return float(stdtr(self.n - 1, side * (bound - self.mean) / (self.sd / math.sqrt(self.n))))
        # The t at which the interval's end meets the bound: _quantile, inverted.
        below = int(self.resampled.searchsorted(bound)) / RESAMPLES
        w = float(ndtri(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))) - self.bias
        t = (w / (1 + self.acceleration * w) - self.bias) * math.sqrt((self.n - 1) / self.n)
        return float(stdtr(self.n - 1, side * t))

    def _quantile(self, t: float) -> float:
        """End of the BCa interval (Efron 1987); sqrt(n/(n-1)) t for z corrects for few seeds (Hesterberg 2015)."""
        import numpy as np
        from scipy.special import ndtr

        assert self.resampled is not None
        z = self.bias + t * math.sqrt(self.n / (self.n - 1))
        return float(np.quantile(self.resampled, float(ndtr(self.bias + z / (1 - self.acceleration * z)))))


def _sample(question: _Question) -> _Sample:
    import numpy as np

    x = np.array(question.numbers)
    n, mean = len(x), float(x.mean())
    if float(x.max() - x.min()) <= question.rounding:
        return _Sample(mean, 0.0, n, "exact")
    sd = float(x.std(ddof=1))
    if n < BOOTSTRAP_FROM:
        return _Sample(mean, sd, n, "t")
    from scipy.special import ndtri
    from scipy.stats import shapiro

    if shapiro(x).pvalue >= 0.05:
        return _Sample(mean, sd, n, "t")
    means = np.sort(x[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].mean(axis=1))
    below = (np.searchsorted(means, mean) + np.searchsorted(means, mean, side="right")) / 2 / RESAMPLES
    centred = x - mean  # the jackknife's influence values of a mean, up to a factor that cancels
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    return _Sample(mean, sd, n, "bootstrap", means, float(ndtri(below)), acceleration)


def _hedges_g(difference: float, sd: float, n: int) -> float | None:
    if n < 3 or sd == 0:
        return None
    df = n - 1
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    return correction * difference / sd


def _more_seeds(sample: _Sample, wanted: tuple[float, float]) -> int | None:
    """Smallest number of further seeds with which a t-test decides in about 80 of 100 cases."""
    from scipy.special import stdtrit

    inside = wanted[0] < sample.mean < wanted[1]
    distance = min(abs(sample.mean - bound) for bound in wanted)
    both = inside and math.isfinite(wanted[0] - wanted[1])  # a region with two ends can be missed at either
    confidence, power = (0.95, 0.9) if both else (0.975, 0.8)

    def enough(further: int) -> bool:
        n = sample.n + further
        quantiles = float(stdtrit(n - 1, confidence) + stdtrit(n - 1, power))
        return distance > 0 and quantiles * sample.sd <= distance * math.sqrt(n)

    further = 1 + bisect_left(range(1, MOST_SEEDS + 1), True, key=enough)
    return further if further <= MOST_SEEDS else None


def _value(row: Mapping[str, float | Curve], arm: str, seed: int) -> float | Curve:
    if arm not in row:
        there = ", ".join(f"'{name}'" for name in row) or "none"
        raise AssayError(f"The claim expects an arm '{arm}', but seed {seed} measured only these: {there}.")
    return row[arm]


def _number(row: Mapping[str, float | Curve], arm: str, seed: int) -> float:
    value = _value(row, arm, seed)
    number = value.number if isinstance(value, Curve) else float(value)
    if not math.isfinite(number):
        raise AssayError(f"Arm '{arm}' is {number} for seed {seed}: there is no verdict on what was not measured.")
    return number


def _rank_correlation(row: Mapping[str, float | Curve], arm: str, other: str, seed: int) -> float:
    """Spearman's correlation of two curves of one seed; 0 if one is constant, which ranks nothing."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = []
    for name in (arm, other):
        curve = _value(row, name, seed)
        if not isinstance(curve, Curve):
            raise AssayError(f"Arm '{name}' of seed {seed} is a number; a rank correlation needs a Curve.")
        if not all(map(math.isfinite, curve.y)):
            raise AssayError(f"The curve of arm '{name}' has a value that is not finite for seed {seed}.")
        ranks.append(rankdata(curve.y) - (len(curve.y) + 1) / 2)
    if len(ranks[0]) != len(ranks[1]):
        raise AssayError(
            f"The curves of '{arm}' and '{other}' have {len(ranks[0])} and {len(ranks[1])} points for seed {seed}; "
            "a rank correlation needs as many in both."
        )
    norm = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
