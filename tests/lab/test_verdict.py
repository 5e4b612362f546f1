"""Verdicts against scipy, against calculations by hand, and against simulated claims of which the truth is known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from assay.errors import AssayError
from assay.lab.verdict import Verdict, adjust, judge
from assay.paper import Above, Below, Close, Correlates, Curve, Expectation, Higher, Lower


def rows(**arms):
    """Seed -> arm -> value, from arm -> values in the order of the seeds."""
    return {
        seed: dict(zip(arms, map(float, values), strict=True)) for seed, values in enumerate(zip(*arms.values(), strict=True))
    }


def judged(a, b, *expect: Expectation) -> Verdict:
    return judge(expect, rows(a=a, b=b))


A = [0.966, 0.971, 0.969, 0.960, 0.972]
B = [0.801, 0.783, 0.737, 0.790, 0.760]


def test_difference_agrees_with_scipys_paired_t_test():
    verdict = judged(A, B, Higher("a", than="b", by=0.1))
    (test,) = verdict.tests
    peer = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx((peer.low, peer.high), rel=1e-9)
    assert test.p == pytest.approx(stats.ttest_1samp(np.subtract(A, B), 0.1, alternative="greater").pvalue, rel=1e-9)
    assert test.effect == pytest.approx(np.mean(A) - np.mean(B))
    assert (verdict.verdict, verdict.seeds, test.method, test.level) == ("holds", 5, "t", 0.95)
    assert test.wanted == (0.1, math.inf)


def test_margin_decides_between_holds_fails_and_inconclusive():
    assert judged(A, B, Higher("a", than="b", by=0.15)).verdict == "holds"
    assert judged(A, B, Higher("a", than="b", by=0.19)).verdict == "inconclusive"
    assert judged(A, B, Higher("a", than="b", by=0.25)).verdict == "fails"


def test_lower_is_higher_turned_round():
    higher = judged(A, B, Higher("a", than="b", by=0.18, times=1.1)).tests[0]
    lower = judged([-x for x in A], [-x for x in B], Lower("a", than="b", by=0.18, times=1.1)).tests[0]
    assert (lower.effect, lower.low, lower.high) == pytest.approx((-higher.effect, -higher.high, -higher.low))
    assert (lower.p, lower.verdict) == (pytest.approx(higher.p), higher.verdict)
    assert lower.wanted == (-math.inf, -0.18)


def test_factor_enters_the_effect_and_its_interval():
    test = judged(A, B, Higher("a", than="b", times=1.2)).tests[0]
    peer = stats.ttest_1samp(np.array(A) - 1.2 * np.array(B), 0, alternative="greater")
    assert test.p == pytest.approx(peer.pvalue)
    assert test.effect == pytest.approx(np.mean(np.array(A) - 1.2 * np.array(B)))


def test_constants_are_one_sample_tests():
    above, below = judged(A, B, Above("a", 0.96), Below("b", 0.8)).tests
    peer = stats.ttest_1samp(A, 0.96, alternative="greater")
    assert above.p == pytest.approx(peer.pvalue)
    assert (above.effect, above.verdict) == (pytest.approx(np.mean(A)), "holds")
    assert below.p == pytest.approx(stats.ttest_1samp(B, 0.8, alternative="less").pvalue)
    assert above.standardised > 0 > below.standardised


def test_close_is_two_one_sided_tests():
    d = [0.002, -0.001, 0.004, 0.001]
    test = judged(d, [0.0] * 4, Close("a", to="b", within=0.005)).tests[0]
    # by hand: mean 0.0015, sd sqrt((0.25 + 6.25 + 6.25 + 0.25) / 3) * 1e-3, the nearer end 0.005 is 0.0035 away
    se = math.sqrt(13 / 3) * 1e-3 / 2
    assert test.p == pytest.approx(stats.t.sf(0.0035 / se, 3))
    half = 2.3533634348 * se  # the 95 % quantile of t with 3 degrees of freedom: a 90 % interval
    assert (test.low, test.high) == pytest.approx((0.0015 - half, 0.0015 + half))
    assert (test.verdict, test.level) == ("holds", 0.90)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "holds"), (0.01, "inconclusive"), (0.03, "fails"), (-0.03, "fails")])
def test_close_fails_only_wholly_outside(shift, verdict):
    d = np.array([0.002, -0.001, 0.004, 0.001]) + shift
    assert judged(d, np.zeros(4), Close("a", to="b", within=0.01)).verdict == verdict


def test_standardised_effect_is_hedges_g_of_the_differences():
    test = judged(A, B, Higher("a", than="b", by=0.1)).tests[0]
    d = np.subtract(A, B)
    assert test.standardised == pytest.approx(d.mean() / d.std(ddof=1) * (1 - 3 / (4 * 4 - 1)), rel=0.01)
    assert judged(A[:2], B[:2], Higher("a", than="b")).tests[0].standardised is None


def test_correlation_is_taken_within_each_seed():
    rng = np.random.default_rng(0)
    measured = {}
    for seed in range(6):
        x = rng.normal(size=30)
        measured[seed] = {"x": Curve(x.tolist()), "y": Curve((-x + rng.normal(size=30)).round(1).tolist())}
    test = judge((Correlates("x", "y", above=0.3, sign=-1),), measured).tests[0]
    peers = [stats.spearmanr(row["x"].y, row["y"].y).statistic for row in measured.values()]
    assert test.effect == pytest.approx(np.mean(peers))
    assert test.p == pytest.approx(stats.ttest_1samp(peers, -0.3, alternative="less").pvalue)
    assert test.verdict == "holds"
    assert judge((Correlates("x", "y", above=0.3),), measured).verdict == "fails"


def test_constant_curve_correlates_with_nothing():
    flat = {seed: {"x": Curve([1, 2, 3]), "y": Curve([5, 5, 5])} for seed in range(3)}
    assert judge((Correlates("x", "y"),), flat).tests[0].effect == 0


def test_curve_enters_with_its_number():
    measured = {seed: {"a": Curve([0.1, 0.9 + seed / 100]), "b": 0.5} for seed in range(3)}
    assert judge((Higher("a", than="b"),), measured).tests[0].effect == pytest.approx(0.41)


def test_skewed_differences_are_bootstrapped_as_scipy_does():
    d, zero = np.random.default_rng(3).exponential(size=14) ** 2, np.zeros(14)
    test = judged(d, zero, Higher("a", than="b")).tests[0]
    assert test.method == "bootstrap"
    widened = 2 * stats.norm.cdf(math.sqrt(14 / 13) * stats.t.ppf(0.975, 13)) - 1  # Hesterberg's correction
    settings = {"confidence_level": widened, "method": "BCa", "n_resamples": 999_999, "batch": 99_999, "random_state": 0}
    peer = stats.bootstrap((d,), np.mean, **settings).confidence_interval
    assert (test.low, test.high) == pytest.approx((peer.low, peer.high), rel=0.03)
    assert test == judged(d, zero, Higher("a", than="b")).tests[0]  # the same every time
    # p is what the interval says: 2.5 % at its end
    assert judged(d, zero, Higher("a", than="b", by=test.low)).tests[0].p == pytest.approx(0.025, abs=2e-3)
    assert judged(d, zero, Lower("a", than="b", by=-test.high)).tests[0].p == pytest.approx(0.025, abs=2e-3)


def test_no_spread_is_decided_by_the_sign():
    exact = judged([3, 3], [2, 2], Higher("a", than="b", by=0.5)).tests[0]
    assert (exact.verdict, exact.method, exact.low, exact.high, exact.p) == ("holds", "exact", 1, 1, 0)
    assert exact.standardised is None
    assert judged([3, 3], [2, 2], Higher("a", than="b", by=1.5)).verdict == "fails"
    assert judged([3, 3], [3, 3], Higher("a", than="b")).verdict == "fails"
    assert judged([3, 3], [3, 3], Close("a", to="b", within=0.1)).verdict == "holds"
    assert judged([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], Close("a", to="b", within=1e-6)).verdict == "holds"
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit only
    assert judged([0.3, 0.2, 0.4], [0.2, 0.1, 0.3], Higher("a", than="b")).tests[0].method == "exact"


def test_two_equal_differences_of_noisy_arms_may_be_chance():
    test = judged([0.9, 0.8], [0.8, 0.7], Higher("a", than="b")).tests[0]
    assert (test.verdict, test.more_seeds) == ("inconclusive", 1)
    assert "cannot decide" in test.note


def test_one_seed_cannot_decide():
    verdict = judged([1.0], [0.0], Higher("a", than="b"))
    assert (verdict.verdict, verdict.p, verdict.more_seeds) == ("inconclusive", 1.0, None)
    assert verdict.tests[0].note == "one seed cannot decide"
    assert verdict.tests[0].effect == 1.0
    assert judge((Higher("a", than="b"),), {}).tests[0].note == "no seed has been measured"


def test_several_expectations_must_all_be_met():
    good, poor, bad = Higher("a", "b"), Higher("a", "b", by=0.19), Lower("a", "b")
    assert judged(A, B, good, Above("a", 0.9)).verdict == "holds"
    assert judged(A, B, good, poor).verdict == "inconclusive"
    assert judged(A, B, good, poor, bad).verdict == "fails"
    both = judged(A, B, good, poor)
    assert both.p == max(test.p for test in both.tests)
    assert both.more_seeds == both.tests[1].more_seeds


def test_errors_name_what_is_wrong():
    with pytest.raises(AssayError, match=r"'c'.*seed 0.*'a', 'b'"):
        judged(A, B, Higher("c", than="b"))
    with pytest.raises(AssayError, match=r"'b' is nan for seed 1"):
        judged([1, 2], [1, math.nan], Higher("a", than="b"))
    with pytest.raises(AssayError, match="needs a Curve"):
        judged(A, B, Correlates("a", "b"))
    with pytest.raises(AssayError, match="2 and 3 points"):
        judge((Correlates("a", "b"),), {0: {"a": Curve([1, 2]), "b": Curve([1, 2, 3])}})


@pytest.mark.parametrize(
    ("expectation", "words"),
    [
        (Higher("a", than="b", by=0.1, times=2), "a above 2 × b + 0.1"),
        (Lower("a", than="b", by=0.1), "a below b − 0.1"),
        (Close("a", to="b", within=0.01), "a within ±0.01 of b"),
        (Above("a", 0.9), "a above 0.9"),
        (Below("a", 0.9), "a below 0.9"),
    ],
)
def test_expectations_in_words(expectation, words):
    assert judged(A, B, expectation).tests[0].expectation == words


def test_verdict_goes_into_json():
    verdict = judged([1.0], [0.0], Higher("a", than="b"))
    text = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert text["tests"][0]["low"] is None
    assert text["tests"][0]["wanted"] == [0.0, None]
    assert text["verdict"] == "inconclusive"
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.p = 0.0


def test_adjusted_p_values_agree_with_scipy():
    p = np.random.default_rng(0).uniform(size=50) ** 2
    assert adjust(p.tolist()) == pytest.approx(stats.false_discovery_control(p))
    assert adjust([0.01, 0.01, 1.0]) == pytest.approx([0.015, 0.015, 1.0])
    assert adjust([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        adjust([1.2])


def share_that_holds(draw, *expect: Expectation, claims: int = 1000) -> float:
    return sum(judged(*draw(), *expect).verdict == "holds" for _ in range(claims)) / claims


def test_at_most_five_percent_of_untrue_claims_hold():
    rng = np.random.default_rng(0)
    slack = 3 * math.sqrt(0.05 * 0.95 / 1000)  # of a simulation with 1000 claims
    for seeds in (2, 3, 5):
        none = share_that_holds(lambda n=seeds: rng.normal(size=(2, n)), Higher("a", than="b"))
        assert none <= 0.025 + slack
        boundary = share_that_holds(
            lambda n=seeds: (1 + 0.2 * rng.normal(size=n), 0.2 * rng.normal(size=n)), Close("a", to="b", within=1)
        )
        assert boundary <= 0.05 + slack
    coarse = share_that_holds(lambda: rng.normal(scale=2, size=(2, 2)).round(), Higher("a", than="b"))
    assert coarse <= 0.025 + slack
    # one expectation true, one at its margin: the whole claim is untrue
    both = share_that_holds(lambda: rng.normal(size=(2, 5)), Higher("a", than="b"), Above("a", -9))
    assert both <= 0.025 + slack
    many = share_that_holds(lambda: rng.normal(size=(2, 12)), Higher("a", than="b"), claims=400)
    assert many <= 0.05


@pytest.mark.parametrize(
    ("expectation", "effect", "verdict"),
    [
        (Higher("a", than="b"), 0.5, "holds"),
        (Higher("a", than="b"), -0.5, "fails"),
        (Close("a", to="b", within=0.5), 0.0, "holds"),
        (Close("a", to="b", within=0.5), 1.0, "fails"),
    ],
)
def test_asked_for_seeds_mostly_decide(expectation, effect, verdict):
    rng = np.random.default_rng(0)
    first = np.array([-1.0, 0.0, 1.0])  # standard deviation 1
    pilot = judged(first + effect, np.zeros(3), expectation)
    assert pilot.verdict == "inconclusive"
    n = 3 + pilot.more_seeds
    outcomes = [judged(effect + rng.normal(size=n), np.zeros(n), expectation).verdict for _ in range(150)]
    assert 0.7 <= outcomes.count(verdict) / 150 <= 0.95  # 80 % are meant: enough, and not far too many


def test_no_number_of_seeds_helps_at_the_margin():
    assert judged([1.0, 2.0, 3.0], np.zeros(3), Higher("a", than="b", by=2.0)).more_seeds is None
    assert judged([1.0, 2.0, 3.0], np.zeros(3), Higher("a", than="b", by=1.99)).more_seeds is None
