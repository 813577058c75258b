"""Bounds against scipy, and the promises by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiepoint.calibration.statistics import (
    binomial_cdf,
    choose,
    choose_pair_threshold,
    count_acceptable,
    hoeffding_bentkus_p_value,
    pairs_needed,
    share_lost,
)
from tiepoint.errors import ArgumentError

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is the independent reference")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_binomial_cdf_equals_scipy(n, data):
    k = data.draw(st.integers(-1, n))
    p = data.draw(st.floats(0, 1))
    assert binomial_cdf(k, n, p) == pytest.approx(scipy_stats.binom.cdf(k, n, p), rel=1e-8, abs=1e-250)


def test_p_value_by_hand():
    # No loss: Hoeffding's bound is (1 - limit)^n and Bentkus' is e times that.
    assert hoeffding_bentkus_p_value(np.zeros(50), 0.1) == pytest.approx(0.9**50)
    # Far from zero Bentkus is the smaller.
    losses = np.r_[np.ones(5), np.zeros(95)]
    kl = 0.05 * math.log(0.5) + 0.95 * math.log(0.95 / 0.9)
    assert hoeffding_bentkus_p_value(losses, 0.1) == pytest.approx(
        min(math.exp(-100 * kl), math.e * scipy_stats.binom.cdf(5, 100, 0.1))
    )
    # A sum of 4.5 counts as 5 in Bentkus' bound, which leaves Hoeffding's the smaller here.
    kl = 0.045 * math.log(0.45) + 0.955 * math.log(0.955 / 0.9)
    assert hoeffding_bentkus_p_value(np.full(100, 0.045), 0.1) == pytest.approx(math.exp(-100 * kl))
    # Thirty losses of 0.1 sum to 3.0000000000000004; that is 3, not 4.
    assert hoeffding_bentkus_p_value(np.r_[np.full(30, 0.1), np.zeros(70)], 0.2) <= math.e * (
        scipy_stats.binom.cdf(3, 100, 0.2)
    )
    assert hoeffding_bentkus_p_value([], 0.1) == 1


@pytest.mark.parametrize("kind", ["bernoulli", "beta"])
def test_p_value_is_valid(kind):
    """Under the hypothesis (at its boundary) it is at most u with probability at most u."""
    rng = np.random.default_rng(0)
    n, limit = 300, 0.05
    draw = (lambda: rng.random(n) < limit) if kind == "bernoulli" else (lambda: rng.beta(0.5, 0.5 / limit - 0.5, n))
    p = np.array([hoeffding_bentkus_p_value(np.asarray(draw(), float), limit) for _ in range(2000)])
    for u in (0.01, 0.05, 0.2):
        assert (p <= u).mean() <= u + 3 * math.sqrt(u / 2000)


def test_promise_is_kept_by_simulation():
    """Expected losses rise through the limit 0.02; a setting beyond it is chosen in at most 5 % of trials."""
    rng = np.random.default_rng(1)
    expected = np.array([0.0, 0.002, 0.005, 0.01, 0.021, 0.03, 0.1])
    costs = np.arange(7, 0, -1.0)
    trials, violations, chosen = 1000, 0, []
    for _ in range(trials):
        pairs = rng.random(800)  # a hard pair is hard for every setting
        losses = (pairs[None] < expected[:, None]).astype(float)
        index = choose(losses, costs, keep=0.98)
        chosen.append(-1 if index is None else index)
        violations += index is not None and expected[index] > 0.02
    assert violations / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    # Power: nearly always something beyond the two safest is found.
    assert np.mean(np.array(chosen) >= 2) > 0.95


def test_testing_stops_at_the_first_failure():
    losses = np.zeros((3, 400))
    losses[1] = 0.5
    assert choose(losses, [3, 2, 1]) == 0  # the third would pass, but came after a failure
    assert choose(losses[::-1], [1, 2, 3]) == 0


def test_the_cheapest_accepted_is_chosen():
    losses = np.zeros((4, 400))
    assert choose(losses, [3, 1, 2, 5]) == 1
    assert choose(losses, [1, 1, 1, 2]) == 2


@pytest.mark.parametrize("keep", [0.9, 0.95, 0.99])
def test_too_few_pairs_choose_the_full_model(keep):
    n = pairs_needed(keep)
    assert choose(np.zeros((1, n)), [1], keep) == 0
    assert choose(np.zeros((1, n - 1)), [1], keep) is None
    assert choose(np.zeros((1, 0)), [1], keep) is None
    assert choose_pair_threshold(np.arange(n) / n, 1 - keep) == (n - 1) / n  # none may lie above the largest
    assert choose_pair_threshold(np.arange(n - 1) / n, 1 - keep) is None
    assert choose_pair_threshold([], 1 - keep) is None


def test_pair_threshold_agrees_with_clopper_pearson():
    scores = np.random.default_rng(0).random(1000)
    threshold = choose_pair_threshold(scores, 0.05, 0.95)
    above = int((scores > threshold).sum())
    limits = [
        scipy_stats.binomtest(k, 1000, alternative="less").proportion_ci(0.95, "exact").high for k in (above, above + 1)
    ]
    assert limits[0] <= 0.05 < limits[1]


@pytest.mark.parametrize("levels", [None, 20])
def test_pair_threshold_keeps_its_promise(levels):
    """The true false-positive rate exceeds 5 % in at most 5 % of calibrations, ties included."""
    rng = np.random.default_rng(2)
    violations, rates = 0, []
    for _ in range(2000):
        scores = rng.random(300)
        if levels:
            scores = np.floor(scores * levels) / levels
        threshold = choose_pair_threshold(scores)
        above = 1 - threshold if not levels else (levels - 1 - round(threshold * levels)) / levels
        rates.append(above)
        violations += above > 0.05 + 1e-12
    assert violations / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    if not levels:
        assert np.mean(rates) > 0.02  # not needlessly strict


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.data())
def test_what_is_given_up_early_is_not_accepted_in_the_end(seen, data):
    """Whatever was lost so far and will be: no setting is accepted that had been given up."""
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    losses = np.cumsum(random.random((4, 400)) < 0.004, 0).clip(max=1) * random.random((4, 400))
    alive = count_acceptable(losses[:, :seen], 400, 0.99)
    assert count_acceptable(losses, 400, 0.99) <= alive
    assert count_acceptable(losses[:, :seen], 800, 0.99) >= alive


def test_share_lost():
    np.testing.assert_allclose(share_lost([[8, 0, 5]], [10, 0, 5]), [[0.2, 0, 0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda: choose(np.full((1, 3), 1.5), [1]),
        lambda: choose(np.full((1, 3), np.nan), [1]),
        lambda: choose(np.zeros((2, 3)), [1]),
        lambda: choose(np.zeros((1, 3)), [1], keep=1.0),
        lambda: choose_pair_threshold([0.1, np.nan]),
        lambda: share_lost([3], [2]),
    ],
)
def test_wrong_arguments(call):
    with pytest.raises(ArgumentError):
        call()
