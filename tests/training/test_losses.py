"""Losses against values worked by hand, and the invariances they must have."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tiepoint.training.data.ground_truth import Labels
from tiepoint.training.objectives.losses import (
    MatchStatistics,
    assignment_nll,
    confidence_bce,
    lightglue_nll,
    match_statistics,
    mean_over_labelled,
    partners,
    superglue_nll,
)


def labels(rows0, rows1) -> Labels:
    return Labels(torch.tensor(rows0), torch.tensor(rows1))


def random_batch(seed=0, batch=3, n=6, m=5):
    """LightGlue's outputs from random similarities and logits, and labels with all three kinds."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(batch, n, m, generator=generator, requires_grad=True)
    z0 = torch.randn(batch, n, generator=generator, requires_grad=True)
    z1 = torch.randn(batch, m, generator=generator, requires_grad=True)
    rows0, rows1 = torch.full((batch, n), -2), torch.full((batch, m), -2)
    for b in range(batch):
        rows0[b, :4] = torch.tensor([2, 0, -1, -1])
        rows1[b, [2, 0, 1]] = torch.tensor([0, 1, -1])
    return similarity, z0, z1, Labels(rows0, rows1)


def log_p(similarity, z0, z1):
    return (
        similarity.log_softmax(2) + similarity.log_softmax(1) + F.logsigmoid(z0)[:, :, None] + F.logsigmoid(z1)[:, None]
    )


def test_by_hand():
    # Two matches with P = 1/2 and 1/8, unmatchables with probability 1/4 (image 0) and 1/2, 1/8 (image 1).
    P = torch.tensor([[[0.9, 0.5, 0.1, 0.1, 0.1], [0.125, 0.3, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1]]])
    unmatched0, unmatched1 = torch.tensor([[0.9, 0.9, 0.25]]), torch.tensor([[0.9, 0.9, 0.5, 0.125, 0.7]])
    truth = labels([[1, 0, -1]], [[1, 0, -1, -1, -2]])
    loss = assignment_nll(P.log(), unmatched0.log(), unmatched1.log(), truth)
    log2 = math.log(2)
    expected = 0.5 * (1 + 3) / 2 * log2 + 0.25 * 2 * log2 + 0.25 * (1 + 3) / 2 * log2
    assert loss.item() == pytest.approx(expected, abs=1e-6)

    # The same numbers as SuperGlue's matrix with dustbins.
    matrix = torch.zeros(1, 4, 6)
    matrix[:, :3, :5], matrix[:, :3, 5], matrix[:, 3, :5] = P.log(), unmatched0.log(), unmatched1.log()
    assert superglue_nll(matrix, truth).item() == pytest.approx(expected, abs=1e-6)


def test_lightglue_turns_logits_into_the_probability_of_no_partner():
    z = torch.tensor([[math.log(3.0)]])  # σ = 3/4
    loss = lightglue_nll(torch.zeros(1, 1, 1), z, -z, labels([[-1]], [[-1]]))
    assert loss.item() == pytest.approx(0.25 * math.log(4) + 0.25 * math.log(4 / 3), abs=1e-6)


def test_unrelated_pairs_cost_their_unmatchables_alone():
    similarity, z0, z1, _ = random_batch()
    unmatched = Labels.unmatched(torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool))
    loss = lightglue_nll(log_p(similarity, z0, z1), z0, z1, unmatched)
    expected = -0.25 * (F.logsigmoid(-z0).mean(1) + F.logsigmoid(-z1).mean(1))
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert (similarity.grad == 0).all() and (z0.grad > 0).all() and (z1.grad > 0).all()


def test_gradients_raise_matches_and_matchability_of_matched_points():
    similarity, z0, z1, truth = random_batch()
    mean_over_labelled(lightglue_nll(log_p(similarity, z0, z1), z0, z1, truth), truth).backward()
    for b in range(3):
        assert similarity.grad[b, 0, 2] < 0 and similarity.grad[b, 1, 0] < 0
        assert similarity.grad[b, 0, 0] > 0  # competitor of both matches
        assert (z0.grad[b, :2] < 0).all() and (z0.grad[b, 2:4] > 0).all() and (z0.grad[b, 4:] == 0).all()
        assert (z1.grad[b, [0, 2]] < 0).all() and z1.grad[b, 1] > 0 and (z1.grad[b, 3:] == 0).all()


def test_order_of_keypoints_does_not_matter():
    similarity, z0, z1, truth = random_batch()
    scores = log_p(similarity, z0, z1)
    order0, order1 = torch.tensor([3, 1, 5, 0, 4, 2]), torch.tensor([4, 2, 0, 3, 1])
    inverse0, inverse1 = order0.argsort(), order1.argsort()
    shuffled = Labels(
        torch.where(truth.matches0 >= 0, inverse1[truth.matches0], truth.matches0)[:, order0],
        torch.where(truth.matches1 >= 0, inverse0[truth.matches1], truth.matches1)[:, order1],
    )
    permuted = scores[:, order0][:, :, order1]
    torch.testing.assert_close(
        lightglue_nll(permuted, z0[:, order0], z1[:, order1], shuffled), lightglue_nll(scores, z0, z1, truth)
    )
    assert match_statistics(permuted, shuffled, 0.0) == match_statistics(scores, truth, 0.0)


def test_padding_and_ignored_points_have_no_influence():
    similarity, z0, z1, truth = random_batch()
    scores = log_p(similarity, z0, z1)
    wide = F.pad(scores, (0, 3, 0, 2), value=-torch.inf)
    padded = Labels(F.pad(truth.matches0, (0, 2), value=-2), F.pad(truth.matches1, (0, 3), value=-2))
    wide_z0, wide_z1 = F.pad(z0, (0, 2), value=50.0), F.pad(z1, (0, 3), value=-torch.inf)
    loss, expected = lightglue_nll(wide, wide_z0, wide_z1, padded), lightglue_nll(scores, z0, z1, truth)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss.sum(), (similarity, z0, z1), retain_graph=True)
    for a, b in zip(gradients, torch.autograd.grad(expected.sum(), (similarity, z0, z1)), strict=True):
        torch.testing.assert_close(a, b)
    assert match_statistics(wide, padded, 0.0) == match_statistics(scores, truth, 0.0)
    # Ignored points: changing what the network says of them changes nothing.
    changed = scores.detach().clone()
    changed[:, 4:], changed[:, :, 3:] = 7.0, 7.0
    torch.testing.assert_close(lightglue_nll(changed, z0, z1, truth), expected)


def test_mean_leaves_out_pairs_without_labels():
    truth = labels([[0], [-2], [-1]], [[0], [-2], [-2]])
    losses = torch.tensor([1.0, 0.0, 2.0])
    assert mean_over_labelled(losses, truth).item() == pytest.approx(1.5)
    layers = torch.stack([losses, 3 * losses])
    assert mean_over_labelled(layers, truth).item() == pytest.approx(3.0)
    nothing = labels([[-2]], [[-2]])
    assert mean_over_labelled(torch.zeros(1), nothing).item() == 0


def test_empty_sides():
    truth = Labels(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[-1, -1]]))
    z = torch.zeros(1, 2)
    loss = lightglue_nll(torch.zeros(1, 0, 2), torch.zeros(1, 0), z, truth)
    assert loss.item() == pytest.approx(0.25 * math.log(2))
    swapped = Labels(truth.matches1, truth.matches0)
    assert lightglue_nll(torch.zeros(1, 2, 0), z, torch.zeros(1, 0), swapped).item() == loss.item()
    assert match_statistics(torch.zeros(1, 0, 2), truth) == MatchStatistics(0, 0, 0)
    assert match_statistics(torch.zeros(1, 2, 0), swapped) == MatchStatistics(0, 0, 0)
    assert partners(torch.zeros(1, 2, 0), z, torch.zeros(1, 0))[0].tolist() == [[-1, -1]]


def test_bfloat16_is_computed_in_float32():
    similarity, z0, z1, truth = random_batch()
    half = [a.detach().bfloat16() for a in (log_p(similarity, z0, z1), z0, z1)]
    loss = lightglue_nll(*half, truth)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, lightglue_nll(*(a.float() for a in half), truth))


def test_partners_include_having_none():
    scores = torch.tensor([[[0.6, 0.1], [0.2, 0.1]]]).log()
    of0, of1 = partners(scores, torch.tensor([[0.3, 0.3]]).log(), torch.tensor([[0.3, 0.05]]).log())
    assert of0.tolist() == [[0, -1]]
    assert of1.tolist() == [[0, 0]]


def test_confidence():
    # σ = 3/4. Pair 0: one right, one wrong, one padded; pair 1: one wrong; pair 2: all padding, left out.
    logits = torch.full((3, 3), math.log(3.0), requires_grad=True)
    agrees = torch.tensor([[True, False, False], [False, True, True], [False] * 3])
    valid = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    loss = confidence_bce(logits, agrees, valid)
    assert loss.item() == pytest.approx(((math.log(4 / 3) + math.log(4)) / 2 + math.log(4)) / 2)
    loss.backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]
    assert (logits.grad[~valid] == 0).all()


def test_statistics_by_hand():
    scores = torch.full((1, 4, 4), 0.01)
    scores[0, 0, 0] = 0.9  # right
    scores[0, 1, 2] = 0.8  # wrong: 1 belongs to 1
    scores[0, 2, 3] = 0.7  # keypoint 2 is ignored
    scores[0, 3, 1] = 0.05  # below the threshold
    truth = labels([[0, 1, -2, -1]], [[0, 1, -1, -2]])
    statistics = match_statistics(scores.log(), truth, 0.1)
    assert statistics == MatchStatistics(predicted=2, correct=1, matchable=2)
    assert (statistics.precision, statistics.recall) == (0.5, 0.5)
    assert statistics + statistics == MatchStatistics(predicted=4, correct=2, matchable=4)
    nothing = match_statistics(torch.full((1, 1, 1), -9.0), labels([[-1]], [[-1]]))
    assert math.isnan(nothing.precision) and math.isnan(nothing.recall)


def test_statistics_count_mutual_matches_only():
    scores = torch.tensor([[[0.9], [0.8]]]).log()
    assert match_statistics(scores, labels([[0, -1]], [[0]])).predicted == 1
