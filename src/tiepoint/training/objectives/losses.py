"""Losses of matchers: negative log-likelihood of the labels, cross-entropy of the confidence classifiers.

All losses are computed in float32 whatever the network ran in, and ignore keypoints labelled `IGNORED`, which
includes padding. Scores of padded keypoints must be ``-inf`` (or belong to a soft-max that excluded them):
then padding changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...matchers.mutual import mutual_nearest
from ..data.ground_truth import IGNORED, UNMATCHABLE, Labels


def lightglue_nll(scores: torch.Tensor, z0: torch.Tensor, z1: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Return the loss of the assignment that one layer of LightGlue predicts, one number per pair.

    Parameters
    ----------
    scores : tensor (B, N, M)
        log P of the soft assignment matrix, ``log σ(z0_i) σ(z1_j) softmax(S)_ij softmax(Sᵀ)_ji``.
    z0, z1 : tensors (B, N), (B, M)
        Matchability logits.
    labels : Labels

    Returns
    -------
    float32 tensor (B,)
        See `assignment_nll`.

    Examples
    --------
    One keypoint on each side, matched with P = 1/4: half of -log 1/4.

    >>> labels = Labels(torch.tensor([[0]]), torch.tensor([[0]]))
    >>> scores, z = torch.tensor([[[0.25]]]).log(), torch.zeros(1, 1)
    >>> round(lightglue_nll(scores, z, z, labels).item(), 4)
    0.6931
    """
    # log(1 - σ(z)) = log σ(-z)
    return assignment_nll(scores, F.logsigmoid(-z0.float()), F.logsigmoid(-z1.float()), labels)


def superglue_nll(log_assignment: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Return the loss of SuperGlue's assignment, one number per pair, balanced as LightGlue's is.

    Parameters
    ----------
    log_assignment : tensor (B, N + 1, M + 1)
        Logarithm of the optimal partial assignment; the last row and column are the dustbins (arXiv
        1911.11763).
    labels : Labels

    Returns
    -------
    float32 tensor (B,)
        See `assignment_nll`. The published loss is a plain sum; balanced, the two matchers can be compared.
    """
    return assignment_nll(log_assignment[:, :-1, :-1], log_assignment[:, :-1, -1], log_assignment[:, -1, :-1], labels)


def assignment_nll(
    log_matched: torch.Tensor, log_unmatched0: torch.Tensor, log_unmatched1: torch.Tensor, labels: Labels
) -> torch.Tensor:
    """Return the balanced negative log-likelihood of the labels, one number per pair.

    ``1/2 mean over matches of -log P_ij  +  1/2 (1/2 mean over unmatchables of image 0 of -log P(i unmatched)
    + 1/2 the same of image 1)``: LightGlue's loss (arXiv 2306.13643, section 3.4) times 1/2. (Its public
    training code pools the unmatchables of both images into one mean; the difference is slight.) A term
    without points is zero: a pair of unrelated photographs, which has no matches, costs its second half
    alone, so that an unmatchable point weighs the same in every pair.

    Parameters
    ----------
    log_matched : tensor (B, N, M)
        log-probability of each match.
    log_unmatched0, log_unmatched1 : tensors (B, N), (B, M)
        log-probability of having no partner.
    labels : Labels

    Returns
    -------
    float32 tensor (B,)
        Zero for a pair all of whose points are ignored.
    """
    matched = labels.matches0 >= 0
    if log_matched.shape[2] == 0:  # nothing to gather from
        log_matched = F.pad(log_matched, (0, 1))
    log_match = log_matched.gather(2, labels.matches0.clamp(min=0)[..., None])[..., 0]
    unmatched0 = _masked_mean(-log_unmatched0.float(), labels.matches0 == UNMATCHABLE)
    unmatched1 = _masked_mean(-log_unmatched1.float(), labels.matches1 == UNMATCHABLE)
    return 0.5 * _masked_mean(-log_match.float(), matched) + 0.25 * (unmatched0 + unmatched1)


def mean_over_labelled(losses: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Return the mean of per-pair losses (B,) over the pairs that have any label; zero if none has.

    Losses of all layers, stacked to (L, B), give the mean over layers too: every layer counts the same (deep
    supervision), so that stopping at any of them gives matches.

    Examples
    --------
    >>> labels = Labels(torch.tensor([[-1], [-2]]), torch.tensor([[-1], [-2]]))
    >>> mean_over_labelled(torch.tensor([3.0, 0.0]), labels)
    tensor(3.)
    """
    labelled = ((labels.matches0 != IGNORED).any(1) | (labels.matches1 != IGNORED).any(1)).expand_as(losses)
    return _masked_mean(losses.flatten(), labelled.flatten())


def partners(
    scores: torch.Tensor, log_unmatched0: torch.Tensor, log_unmatched1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each keypoint's most likely label: the index of a partner, or -1 for "has none".

    Parameters
    ----------
    scores : tensor (B, N, M)
        log-probability of each match.
    log_unmatched0, log_unmatched1 : tensors (B, N), (B, M)
        log-probability of having no partner: for LightGlue ``logsigmoid(-z)``.

    Returns
    -------
    int64 tensors (B, N), (B, M)
    """
    result = []
    for dim, log_unmatched in ((2, log_unmatched0), (1, log_unmatched1)):
        if scores.shape[dim] == 0:
            result.append(torch.full_like(log_unmatched, -1, dtype=torch.int64))
            continue
        best, index = scores.max(dim)
        result.append(torch.where(best >= log_unmatched, index, -1))
    return result[0], result[1]


def confidence_bce(logits: torch.Tensor, agrees: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of one layer's confidence for one image: mean over points, then over pairs.

    A point's confidence predicts whether this layer has already decided as the last one will. The target is
    what the public training code of LightGlue uses: the arg-max over all partners *and* the choice "has none"
    (`partners`) is the same at this layer and at the last. Neither the descriptors under the logits nor the
    target may carry gradients: the classifier must not teach the network to be easy to predict.

    Parameters
    ----------
    logits : tensor (B, N)
        Confidence before the sigmoid, computed from detached descriptors.
    agrees : bool tensor (B, N)
        Target: ``partners`` of this layer equals ``partners`` of the last.
    valid : bool tensor (B, N)
        False for padding.

    Examples
    --------
    >>> half_sure, yes = torch.zeros(1, 2), torch.tensor([[True, True]])
    >>> round(confidence_bce(half_sure, yes, yes).item(), 4)
    0.6931
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), agrees.float(), reduction="none")
    return _masked_mean(_masked_mean(losses, valid), valid.any(1))


@dataclass(frozen=True)
class MatchStatistics:
    """Counts of right and wrong predictions; add those of several batches or machines, then read the ratios.

    Attributes
    ----------
    predicted : int
        Predicted matches whose keypoint in image 0 has a label.
    correct : int
        Those that are labelled matches.
    matchable : int
        Labelled matches.
    """

    predicted: int
    correct: int
    matchable: int

    def __add__(self, other: MatchStatistics) -> MatchStatistics:
        return MatchStatistics(
            self.predicted + other.predicted, self.correct + other.correct, self.matchable + other.matchable
        )

    @property
    def precision(self) -> float:
        """Fraction of the predicted matches that are right; nan if nothing was predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> float:
        """Fraction of the true matches that were predicted; nan if there are none."""
        return _ratio(self.correct, self.matchable)


@torch.no_grad()
def predicted_partners(scores: torch.Tensor, threshold: float = 0.1) -> torch.Tensor:
    """Return the matches to report (B, N): mutual arg-max with P above ``threshold``, else `UNMATCHABLE`.

    Parameters
    ----------
    scores : tensor (B, N, M)
        log-probability of each match (for SuperGlue without the dustbins).
    threshold : float
        Smallest probability of a match.

    Examples
    --------
    >>> predicted_partners(torch.tensor([[[0.9], [0.2]]]).log())
    tensor([[ 0, -1]])
    """
    batch, n, m = scores.shape
    if not n or not m:
        return torch.full((batch, n), UNMATCHABLE, device=scores.device)
    best, index, mutual = mutual_nearest(scores)
    return torch.where(mutual & (best.float().exp() > threshold), index, UNMATCHABLE)


@torch.no_grad()
def match_statistics(scores: torch.Tensor, labels: Labels, threshold: float = 0.1) -> MatchStatistics:
    """Compare `predicted_partners` with the labels.

    Examples
    --------
    >>> labels = Labels(torch.tensor([[0, -1]]), torch.tensor([[0]]))
    >>> statistics = match_statistics(torch.tensor([[[0.9], [0.2]]]).log(), labels)
    >>> statistics.precision, statistics.recall
    (1.0, 1.0)
    """
    predicted = predicted_partners(scores, threshold)
    found = predicted >= 0
    counts = torch.stack(
        [
            (found & (labels.matches0 != IGNORED)).sum(),
            (found & (predicted == labels.matches0)).sum(),
            (labels.matches0 >= 0).sum(),
        ]
    )
    return MatchStatistics(*counts.tolist())


def mean_where(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values where true; zero if nowhere."""
    return _masked_mean(values.flatten(), where.flatten())


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the last dimension where ``mask``; zero where it is empty.

    `torch.where`, not a product: masked values may be infinite.
    """
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
