"""The statistics of calibration: which thresholds keep their promise, and how sure we may be.

A matcher that stops early or prunes points is cheaper and loses matches. How many depends on the photographs,
so the thresholds are chosen on image pairs that were not trained on, and the choice comes with a guarantee.

**Theorem** (Learn then Test: Angelopoulos, Bates, Candès, Jordan, Lei, arXiv 2110.01052, Theorem 1 with
fixed-sequence testing). Let the settings be ordered before the calibration pairs are looked at. For each
setting let p be a valid p-value of the hypothesis "its expected loss exceeds ``1 - keep``". Accept settings
in order while ``p <= 1 - confidence``, and stop at the first that fails. Then, with probability at least
``confidence`` over the draw of the calibration pairs, *every* accepted setting has expected loss at most ``1
- keep``; so any of them may be picked by looking at the data, such as the cheapest.

**Assumption.** The calibration pairs are independent draws from the distribution of pairs that the matcher
will meet. A pair is the unit, not a keypoint: keypoints of one pair are right or wrong together. Frames of one video
that overlap are not independent, and pairs from a garden say nothing of pairs from a street: calibrate on
your own photographs.

**What is promised** is the expected loss of a new pair, averaged over pairs, not the loss of each.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError


def choose(losses: ArrayLike, costs: ArrayLike, keep: float = 0.99, confidence: float = 0.95) -> int | None:
    """Choose the cheapest setting that keeps the promise, by Learn then Test with fixed-sequence testing.

    Parameters
    ----------
    losses : array (S, n)
        Loss in [0, 1] of each setting on each of n image pairs, see `share_lost`. Settings are ordered from
        the most cautious to the boldest, and that order must not come from these losses.
    costs : array (S,)
        What each setting costs (time, layers); may be measured on the same pairs.
    keep : float
        Share to keep: the expected loss shall be at most ``1 - keep``.
    confidence : float
        Probability with which that holds.

    Returns
    -------
    int or None
        Row of the cheapest accepted setting (the bolder of two that cost the same); None if none is accepted,
        which means: use the full model. Fewer than `pairs_needed` pairs always give None.

    Examples
    --------
    >>> losses = np.zeros((3, 500))
    >>> losses[1, :2] = 1.0  # loses everything in two pairs of 500
    >>> losses[2, :50] = 1.0
    >>> choose(losses, [3.0, 2.0, 1.0], keep=0.98)
    1
    >>> choose(losses[:, :100], [3.0, 2.0, 1.0], keep=0.98) is None
    True
    """
    losses, costs = np.asarray(losses, np.float64), np.asarray(costs, np.float64)
    if losses.ndim != 2 or costs.shape != losses.shape[:1]:
        raise ArgumentError(f"need losses (S, n) and costs (S,), not {losses.shape} and {costs.shape}")
    accepted = count_acceptable(losses, losses.shape[1], keep, confidence)
    if accepted == 0:
        return None
    return accepted - 1 - int(np.argmin(costs[:accepted][::-1]))


def count_acceptable(losses: ArrayLike, expected: int, keep: float = 0.99, confidence: float = 0.95) -> int:
    """Count the leading settings that will be accepted if the pairs to come lose nothing.

    Parameters
    ----------
    losses : array (S, n)
        Of the pairs so far, as for `choose`.
    expected : int
        How many pairs there will be; with n, the count of those that are accepted.
    keep, confidence : float
        See `choose`.

    Examples
    --------
    >>> losses = np.zeros((3, 10))
    >>> losses[2] = 1.0  # loses everything in each of the first ten pairs
    >>> count_acceptable(losses, expected=500, keep=0.99)
    2
    """
    losses = np.asarray(losses, np.float64)
    _check_losses(losses)
    _check_probability(keep=keep, confidence=confidence)
    to_come = np.zeros(max(0, expected - losses.shape[1]))
    for accepted, row in enumerate(losses):
        if hoeffding_bentkus_p_value(np.append(row, to_come), 1 - keep) > 1 - confidence:
            return accepted
    return len(losses)


def choose_pair_threshold(
    scores: ArrayLike, max_false_positive: float = 0.05, confidence: float = 0.95
) -> float | None:
    """Choose the lowest threshold that at most a given fraction of unrelated pairs exceeds.

    With n unrelated pairs, let k be the largest number with ``P(Binomial(n, max_false_positive) <= k) <= 1 -
    confidence``; the threshold is the score of rank k + 1 from the top. Were its true false-positive rate too
    high, at most k calibration scores would lie at or above the quantile that is just right, whose
    probability is the binomial tail (a one-sided tolerance limit; equivalently, the Clopper-Pearson bound of
    k among n is at most ``max_false_positive``). Ties and discrete scores are covered. The assumption is the
    module's.

    Parameters
    ----------
    scores : array (n,)
        Pair confidence of pairs known to be unrelated; higher is more alike.
    max_false_positive : float
        Share of unrelated pairs that may be called overlapping.
    confidence : float
        Probability, over the draw of the n pairs, that this holds.

    Returns
    -------
    float or None
        Call a pair overlapping if its score is **greater** than this. None if there are too few pairs to
        promise anything: fewer than ``pairs_needed(1 - max_false_positive, confidence)``.

    Examples
    --------
    >>> choose_pair_threshold(np.arange(100) / 100)  # one of a hundred may lie above
    0.98
    >>> choose_pair_threshold(np.arange(50) / 50) is None
    True
    """
    values = np.sort(np.asarray(scores, np.float64))[::-1]
    if values.ndim != 1 or np.isnan(values).any():
        raise ArgumentError("scores must be one number per pair, none of them nan")
    _check_probability(max_false_positive=max_false_positive, confidence=confidence)
    n = len(values)
    allowed = int((_binomial_cdfs(n - 1, n, max_false_positive) <= 1 - confidence).sum())  # k + 1
    return float(values[allowed - 1]) if allowed else None


def share_lost(kept: ArrayLike, full: ArrayLike) -> NDArray[np.float64]:
    """Return the loss of each pair: the fraction of the full model's matches that a setting does not find.

    Parameters
    ----------
    kept : integer array (..., n)
        Per pair, how many of the full model's (correct) matches the setting finds.
    full : integer array (n,)
        Per pair, how many there are. Where there are none, none can be lost.

    Examples
    --------
    >>> share_lost([[9, 0], [10, 0]], [10, 0]).tolist()
    [[0.1, 0.0], [0.0, 0.0]]
    """
    kept, full = np.asarray(kept, np.float64), np.asarray(full, np.float64)
    if (kept < 0).any() or (kept > full).any():
        raise ArgumentError("kept matches are among the full model's: need 0 <= kept <= full")
    return (full - kept) / np.maximum(full, 1)


def pairs_needed(keep: float, confidence: float = 0.95) -> int:
    """Return the number of pairs below which not even a setting without any loss can be accepted.

    Examples
    --------
    >>> [pairs_needed(keep) for keep in (0.95, 0.99, 0.999)]
    [59, 299, 2995]
    """
    _check_probability(keep=keep, confidence=confidence)
    return math.ceil(math.log(1 - confidence) / math.log(keep))


def hoeffding_bentkus_p_value(losses: ArrayLike, limit: float) -> float:
    """Return a p-value of "the expected loss exceeds ``limit``", from independent losses in [0, 1].

    The smaller of Hoeffding's ``exp(-n kl(mean, limit))`` and Bentkus' ``e P(Binomial(n, limit) <= ceil(n
    mean))`` (Bates et al., arXiv 2101.02703, section 3.1; arXiv 2110.01052, proposition 1). Valid for every
    n.

    Examples
    --------
    >>> round(hoeffding_bentkus_p_value([0.0] * 100, 0.05), 5)  # 0.95 ** 100
    0.00592
    >>> hoeffding_bentkus_p_value([0.1] * 100, 0.05)
    1.0
    """
    values = np.asarray(losses, np.float64)
    _check_losses(values)
    _check_probability(limit=limit)
    n, total = values.size, float(values.sum())
    if n == 0 or total >= n * limit:
        return 1.0
    mean = total / n
    kl = (mean * math.log(mean / limit) if mean else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - limit))
    # Rounding in the sum must not push a whole number of losses to the next: 1e-9 of a loss is nothing.
    bentkus = math.e * binomial_cdf(math.ceil(total - 1e-9), n, limit)
    return min(1.0, math.exp(-n * kl), bentkus)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, p).

    Examples
    --------
    >>> binomial_cdf(1, 2, 0.5)
    0.75
    """
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    return float(_binomial_cdfs(k, n, p)[-1])


def _binomial_cdfs(k: int, n: int, p: float) -> NDArray[np.float64]:
    """Return P(X <= i) for i = 0 ... k < n, summed from logarithms of the terms, with 0 < p < 1."""
    # log C(n, i) = log C(n, i - 1) + log((n - i + 1) / i)
    i = np.arange(1, k + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((n - i + 1) / i))])
    terms = log_choose + np.arange(k + 1) * math.log(p) + (n - np.arange(k + 1)) * math.log1p(-p)
    return np.minimum(np.exp(terms).cumsum(), 1.0)


def _check_losses(losses: NDArray[np.float64]) -> None:
    if not ((losses >= 0) & (losses <= 1)).all():  # also catches nan
        raise ArgumentError("losses must lie in [0, 1]: the guarantee rests on it")


def _check_probability(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < 1:
            raise ArgumentError(f"{name} must lie strictly between 0 and 1, not {value}")
