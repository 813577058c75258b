"""The ladder of tries: each rung alone, what the ladder promises, and the geometry of warped views."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiepoint as tp
from sift_once import SIFTOnce
from tiepoint import effort
from tiepoint.cli import main
from tiepoint.effort import ladder, views
from tiepoint.effort.state import NEAR, add
from tiepoint.errors import ArgumentError
from tiepoint.features import Extractor, ExtractorOptions
from tiepoint.matchers import Matcher
from tiepoint.matchers.base import make_matches
from tiepoint.matchers.nearest import NearestNeighbour

CLASSIC: Any = {"features": "sift", "matcher": "nearest"}
TILT = np.array([[0.25, 0.05, 10], [-0.02, 0.95, 8], [0, 0, 1.0]])


@pytest.fixture(scope="module")
def tilted(texture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture, and the same tilted by about four: more than one pass with SIFT bears."""
    large = np.asarray(cv2.resize(texture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    fine = cv2.warpPerspective(large, np.diag([4, 1, 1]) @ TILT, (4 * 200, 480), borderMode=cv2.BORDER_REFLECT)
    return large, np.asarray(cv2.resize(fine, (200, 480), interpolation=cv2.INTER_AREA), np.uint8)


@pytest.fixture(scope="module")
def sift() -> tuple[Extractor, Matcher]:
    return SIFTOnce(ExtractorOptions(max_keypoints=800)), tp.matchers.load("nearest", features="sift")


@pytest.fixture(scope="module")
def start(tilted: tuple[Any, Any], sift: tuple[Extractor, Matcher]) -> effort.State:
    images = tp.read_image(tilted[0]), tp.read_image(tilted[1])
    orb = tp.features.load("orb", max_keypoints=300), tp.matchers.load("nearest", features="orb")
    return effort.State.begin(images, *sift, second=lambda: orb)


@pytest.fixture(scope="module")
def states(start: effort.State) -> list[effort.State]:
    """The state before and after every rung of the ladder."""
    states = [start]
    for rung, _ in effort.LADDER:
        states.append(rung(states[-1]))
    return states


@pytest.fixture(scope="module")
def viewed(start: effort.State) -> effort.State:
    """What synthetic views find, and nothing before them."""
    return effort.synthetic_views(start)


@pytest.fixture(scope="module")
def solved(viewed: effort.State) -> effort.State:
    return effort.second_pass(viewed)


@pytest.fixture(scope="module")
def everything(start: effort.State) -> effort.State:
    return effort.climb(start, "thorough")


@pytest.fixture(scope="module")
def found(tilted: tuple[Any, Any], sift: tuple[Extractor, Matcher]) -> tp.TwoView:
    return tp.match(*tilted, *sift, effort="thorough")


class Calibrated(NearestNeighbour):
    """Mutual nearest neighbours with a threshold."""

    threshold = 0.0

    @property
    def overlap_threshold(self) -> float:
        return self.threshold


def right(state: effort.State | tp.TwoView) -> int:
    errors = tp.geometry.reprojection_error(TILT, state.matches.points0, state.matches.points1)
    return int((errors < 2).sum())


def assert_equal(a: effort.State, b: effort.State) -> None:
    for name in ("indices", "scores", "points0", "points1"):
        np.testing.assert_array_equal(getattr(a.matches, name), getattr(b.matches, name))
    np.testing.assert_array_equal(a.sources, b.sources)
    for f, g in zip(a.features, b.features, strict=True):
        torch.testing.assert_close(f.keypoints, g.keypoints, rtol=0, atol=0)
        torch.testing.assert_close(f.descriptors, g.descriptors, rtol=0, atol=0)
    assert [replace(x, seconds=0) for x in a.attempts] == [replace(x, seconds=0) for x in b.attempts]


# What the ladder promises.


@pytest.mark.parametrize("level", effort.EFFORTS)
def test_swapping_the_photographs_swaps_the_result(start: effort.State, level: effort.Effort) -> None:
    forth, back = effort.climb(start, level), effort.climb(start.swapped(), level)
    assert_equal(forth, back.swapped())
    assert_equal(forth, effort.climb(start, level))  # and the same input gives the same output


def test_fast_is_one_pass(start: effort.State, sift: tuple[Extractor, Matcher]) -> None:
    found = effort.climb(start, "fast")
    expected = sift[1](*start.features)
    np.testing.assert_array_equal(found.matches.indices, expected.indices)
    np.testing.assert_array_equal(found.matches.scores, expected.scores)
    assert [a.name for a in found.attempts] == ["all keypoints"] and found.attempts[0].kept == len(expected)


def test_matches_index_the_features(states: list[effort.State]) -> None:
    """Every rung; and the keypoints of the photographs as they are stay where they were."""
    for state in states:
        for side, points in enumerate((state.matches.points0, state.matches.points1)):
            rows = state.matches.indices[:, side]
            keypoints = state.features[side].keypoints
            np.testing.assert_array_equal(keypoints.numpy()[rows], points)
            assert len(np.unique(rows)) == len(rows)
            assert torch.equal(keypoints[: state.detected[side]], states[0].features[side].keypoints)
            assert len(state.features[side].descriptors) == len(keypoints)
        assert (np.diff(state.matches.indices[:, 0]) > 0).all()


def test_attempts_tell_where_matches_come_from(states: list[effort.State]) -> None:
    # Four right matches or fewer determine no homography for a second pass before the synthetic views.
    names = ["best keypoints", "all keypoints", "synthetic views", "second pass", "second extractor", "guided"]
    assert [a.name for a in states[-1].attempts] == names
    for state in states[1:]:
        assert [a.kept for a in state.attempts] == np.bincount(state.sources, minlength=len(state.attempts)).tolist()
        assert all(a.kept <= a.matches for a in state.attempts)
        assert all(a.seconds > 0 for a in state.attempts)


def test_no_rung_lowers_the_evidence(states: list[effort.State]) -> None:
    evidence = [state.evidence for state in states]
    assert evidence == sorted(evidence) and evidence[-1] > evidence[1]


def test_a_rung_that_finds_less_is_dropped(states: list[effort.State]) -> None:
    """The first pass again, after better tries."""
    again = effort.all_keypoints(states[-1])
    assert_equal(replace(again, attempts=states[-1].attempts), states[-1])
    assert again.attempts[-1].kept == 0 and again.attempts[-1].evidence < again.evidence


def test_further_tries_solve_what_one_pass_does_not(states: list[effort.State]) -> None:
    one_pass, all_tries = effort.all_keypoints(states[0]), states[-1]
    assert right(all_tries) > 8 * max(10, right(one_pass))
    model = tp.geometry.estimate_homography(all_tries.matches.points0, all_tries.matches.points1).model
    assert model is not None
    assert tp.geometry.corner_error(model, TILT, states[0].images[0].size) < 1


def test_auto_ends_where_the_evidence_is_enough(
    start: effort.State, everything: effort.State, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [attempt.name for attempt in everything.attempts]
    place = names.index("synthetic views")
    views = everything.attempts[place].evidence
    assert views > max(attempt.evidence for attempt in everything.attempts[:place])
    after = [rung for rung, _ in effort.LADDER].index(effort.synthetic_views) + 1
    for enough, count in ((views, place + 1), (views + 1, place + 2)):
        limits = [np.inf] * after + [enough] + [views] * (len(effort.LADDER) - after - 1)
        rungs = tuple((rung, limit) for (rung, _), limit in zip(effort.LADDER, limits, strict=True))
        monkeypatch.setattr(ladder, "LADDER", rungs)
        monkeypatch.setattr(ladder, "SOLVED", np.inf)  # planes and scenes alike
        tried = [attempt.name for attempt in effort.climb(start, "auto").attempts]
        assert tried == names[:count]


def test_the_budget_is_kept_within_one_rung(start: effort.State, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def a_second(state: effort.State) -> effort.State:
        now[0] += 1
        return effort.all_keypoints(state)

    monkeypatch.setattr(ladder, "LADDER", ((a_second, np.inf),) * 6)
    monkeypatch.setattr(ladder, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for budget, attempts in ((1e-9, 1), (1.0, 1), (2.5, 3), (100.0, 6)):
        assert len(effort.climb(start, "thorough", budget=budget).attempts) == attempts


def test_masks_hold_in_warped_views(tilted: tuple[Any, Any], sift: tuple[Extractor, Matcher]) -> None:
    mask = np.zeros(tilted[0].shape[:2], np.uint8)
    mask[60:400, 120:500] = 255
    mask[200:240, 300:340] = 0
    found = tp.match(*tilted, *sift, mask0=mask, effort="thorough")
    assert any(a.kept for a in found.attempts if a.name in ("second pass", "synthetic views")) and right(found) > 50
    x, y = np.rint(found.features0.keypoints.numpy()).astype(int).T
    assert mask[y, x].all()


def test_pictures_without_keypoints_and_small_ones(texture: NDArray[np.uint8]) -> None:
    blank = np.full((40, 50), 90, np.uint8)
    for pair in ((blank, blank), (texture, blank), (texture[:30, :40], texture[:40, :30])):
        found = tp.match(*pair, **CLASSIC, effort="thorough", long_side=32)
        assert len(found) == len(found.sources) < 10


def test_wrong_arguments(texture: NDArray[np.uint8]) -> None:
    with pytest.raises(ArgumentError, match="fast, auto, thorough"):
        tp.match(texture, texture, effort="heroic")  # type: ignore[arg-type]
    for budget in (0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="budget must be"):
            tp.match(texture, texture, effort="auto", budget=budget)
    with pytest.raises(ArgumentError, match="'fast' has none"):
        tp.match(texture, texture, effort="fast", budget=3)


def test_the_verdict_asks_more_of_later_tries(start: effort.State, viewed: effort.State) -> None:
    """Evidence that convinces in a plain pass does not in one of many views; more than that does."""

    matcher = Calibrated("sift")
    state = replace(start, matcher=matcher)
    evidence = viewed.evidence
    assert evidence > 50
    for share, verdict in ((1.1, False), (0.9, True)):
        matcher.threshold = share * evidence / ladder.LATER
        assert effort.synthetic_views(state).matches.overlaps is verdict
    assert viewed.matches.overlaps is None


def test_photographs_with_a_logo_overlap_without_it(texture: NDArray[np.uint8]) -> None:
    """Matches on a logo that is burnt into both photographs go; the verdict on the others is still said."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    logo = cv2.resize(noise, (80, 60), interpolation=cv2.INTER_CUBIC)
    large = np.asarray(cv2.resize(texture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    pictures = [large[40:, 50:].copy(), large[:-40, :-50].copy()]
    for picture in pictures:
        picture[20:80, 20:100] = logo
    found = tp.match(*pictures, features="sift", matcher="lightglue").matches
    on_logo = ((found.points0 > [20, 20]) & (found.points0 < [100, 80])).all(axis=1)
    assert len(found) > 50 and found.overlaps
    assert not (on_logo & (np.abs(found.points0 - found.points1).max(axis=1) < 1)).any()


# Rungs alone.


def test_best_keypoints_are_a_prefix(texture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """With LightGlue, which also tells what became of each keypoint."""
    monkeypatch.setattr(ladder, "BEST", 60)
    extractor = tp.features.load("sift", max_keypoints=200)
    matcher = tp.matchers.load("lightglue", features="sift")
    images = tp.read_image(texture), tp.read_image(texture[10:, 15:])
    state = effort.best_keypoints(effort.State.begin(images, extractor, matcher))
    few = [tp.features.load("sift", max_keypoints=60)(image) for image in images]
    found = state.matches
    assert set(map(tuple, matcher(*few).indices)) <= set(map(tuple, found.indices))
    further = found[(found.indices >= 60).any(axis=1)]
    assert len(found) > 20 and len(further) > 20 and found.overlaps
    assert np.abs(further.points0 - further.points1 - [15, 10]).max() < 3
    assert state.evidence == pytest.approx(matcher(*few).evidence), "the others are no evidence"
    assert state.matches.prune_layer0 is None, "it would be of 60 of the 200 keypoints"
    assert effort.all_keypoints(state).matches.prune_layer0 is not None


def test_best_keypoints_do_not_apply_where_there_are_few(start: effort.State) -> None:
    few = replace(start, features=(start.own(0), start.own(1).first(100)), detected=(start.detected[0], 100))
    few = replace(few, features=(few.own(0).first(512), few.own(1)), detected=(512, 100))
    assert effort.best_keypoints(few) is few


def test_second_pass_needs_a_homography_and_news(
    start: effort.State, viewed: effort.State, solved: effort.State
) -> None:
    assert effort.second_pass(start) is start
    assert [a.name for a in solved.attempts] == ["synthetic views", "second pass"]
    assert solved.evidence > viewed.evidence
    assert right(solved) / len(solved.matches) > max(0.98, right(viewed) / len(viewed.matches))
    stale = replace(solved, attempts=(*solved.attempts, effort.Attempt("synthetic views", 3, 1.0, 0.1, 0)))
    assert effort.second_pass(stale) is stale


def test_a_second_extractor_joins(start: effort.State, solved: effort.State) -> None:
    both = effort.second_extractor(solved)
    assert both.attempts[-1].kept > 0 and len(both.matches) > len(solved.matches)
    new = both.matches.indices[both.sources == len(both.attempts) - 1]
    assert not both.features[0].descriptors[new[:, 0]].any(), "descriptors of ORB are no descriptors of SIFT"
    assert both.features[0].extractor == "sift"
    assert both.matches.covariances is not None, "each says how precise it is"
    sizes = np.sqrt(both.matches.covariances[0][:, 0, 0])
    assert sizes[both.sources == len(both.attempts) - 1] == pytest.approx(1.0)  # ORB, in pixels of the photograph
    assert sizes[both.sources < len(both.attempts) - 1] == pytest.approx(solved.extractor.deviation)
    without = replace(start, second=None)
    assert effort.second_extractor(without) is without


def test_a_try_that_sees_no_overlap_does_not_join_one_that_does(start: effort.State) -> None:
    matcher, other = Calibrated("sift"), Calibrated("orb")
    orb = tp.features.load("orb", max_keypoints=300)
    solved = effort.second_pass(effort.synthetic_views(replace(start, matcher=matcher, second=lambda: (orb, other))))
    assert solved.matches.overlaps
    assert effort.second_extractor(solved).attempts[-1].kept > 0
    other.threshold = 1e6
    dropped = effort.second_extractor(solved)
    assert dropped.attempts[-1].kept == 0 and dropped.attempts[-1].matches > 0
    assert_equal(replace(dropped, attempts=solved.attempts), solved)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_of_rivals_the_better_score_stays(start: effort.State, seed: int) -> None:
    """Against a plain loop: whatever is left has no rival, and whatever went had a better one."""
    rng = np.random.default_rng(seed)

    def features(points: NDArray[np.float32]) -> tp.Features:
        rows = torch.zeros(len(points), start.own(0).descriptors.shape[1])
        return tp.Features(torch.from_numpy(points), torch.ones(len(points)), rows, (640, 480), "sift")

    def part(count: int) -> effort.Found:
        first, second = (features(rng.integers(0, 12, (count, 2)).astype(np.float32)) for _ in range(2))
        index = np.stack([rng.permutation(count), rng.permutation(count)], 1)
        index = index[np.argsort(index[:, 0])]
        scores = rng.choice(np.array([0.2, 0.5, 0.9], np.float32), count)
        matches = make_matches(first, second, index, scores)
        return effort.Found(matches, matches.evidence, (first, second))

    old = add(start, part(15), 0)
    new = part(20)
    both = add(old, new, 1)

    def rivals(a: tp.Matches, i: int, b: tp.Matches, j: int) -> bool:
        near = [np.abs(p[i] - q[j]).max() <= NEAR for p, q in ((a.points0, b.points0), (a.points1, b.points1))]
        return all(near)

    n, k = new.matches, old.matches
    stays = [j for j in range(len(n)) if not any(rivals(k, i, n, j) and k.scores[i] >= n.scores[j] for i in range(15))]
    remains = [i for i in range(len(k)) if not any(rivals(k, i, n, j) for j in stays)]
    expected = {(*k.points0[i], *k.points1[i], k.scores[i]) for i in remains}
    expected |= {(*n.points0[j], *n.points1[j], n.scores[j]) for j in stays}
    m = both.matches
    assert {(*m.points0[i], *m.points1[i], m.scores[i]) for i in range(len(m))} == expected
    assert (both.sources == 1).sum() == len(stays) and (both.sources == 0).sum() == len(remains)


# Warped views.


def test_a_warped_gradient_is_the_gradient_at_the_warped_place() -> None:
    """Also where the warp shrinks by four along one axis, and only there samples are averaged."""
    x, y = np.meshgrid(np.arange(400.0), np.arange(300.0))
    pixels = np.stack([x / 2, y / 2, (x + y) / 4], -1).round().astype(np.uint8)
    warp = np.array([[0.22, 0.02, 5], [0.03, 0.9, -20], [1e-5, 2e-5, 1]])
    seen = views.warped(tp.Image(pixels), warp, (90, 240))
    assert seen.mask is not None
    rows, columns = np.nonzero(seen.mask)
    back = tp.geometry.transform(np.linalg.inv(warp), np.column_stack([columns, rows]))
    assert len(rows) > 10_000 and ((back > 3) & (back < np.array([396, 296]))).all()
    expected = np.column_stack([back / 2, back.sum(axis=1) / 4])
    assert np.abs(seen.pixels[rows, columns] - expected).max() < 1.1


def test_a_warp_averages_what_it_shrinks() -> None:
    stripes = np.zeros((200, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    seen = views.warped(tp.Image(stripes), views.scaling((400, 200), (100, 200)), (100, 200))
    assert np.abs(seen.pixels.astype(int)[20:-20, 20:-20] - 100).max() <= 1


def test_nothing_is_seen_beyond_infinity(texture: NDArray[np.uint8]) -> None:
    warp = np.array([[1, 0, 0], [0, 1, 0], [-1 / 160, 0, 1.0]])  # the column 160 goes to infinity
    seen = views.warped(tp.Image(texture), warp, (320, 240))
    assert seen.mask is not None
    rows, columns = np.nonzero(seen.mask)
    back = tp.geometry.transform(np.linalg.inv(warp), np.column_stack([columns, rows]))
    assert len(rows) and back[:, 0].max() < 160


def test_keypoints_map_back(texture: NDArray[np.uint8], sift: tuple[Extractor, Matcher]) -> None:
    """Turned by 0.5 rad and enlarged by 1.5: positions, scales and orientations in closed form."""
    c, s = 1.5 * np.cos(0.5), 1.5 * np.sin(0.5)
    warp = np.array([[c, -s, 140], [s, c, -30], [0, 0, 1]])
    view = views.look(sift[0], tp.Image(texture), warp, (560, 480))
    assert view.original is not None and len(view.features) > 100
    forth = tp.geometry.transform(warp, view.original.keypoints.numpy())
    np.testing.assert_allclose(forth, view.features.keypoints.numpy(), atol=1e-3)
    assert view.original.scales is not None and view.features.scales is not None
    torch.testing.assert_close(view.original.scales * 1.5, view.features.scales, rtol=1e-4, atol=0)
    assert view.original.orientations is not None and view.features.orientations is not None
    turn = view.features.orientations - view.original.orientations - 0.5
    assert torch.cos(turn).min() > 1 - 1e-6
    plain = sift[0](texture).keypoints.numpy()
    nearest = np.linalg.norm(plain[:50, None] - view.original.keypoints.numpy(), axis=2).min(axis=1)
    assert np.median(nearest) < 0.5  # the photograph's own best keypoints are found again


def test_covariances_map_back(texture: NDArray[np.uint8]) -> None:
    cairn = tp.features.load("cairn", max_keypoints=100)
    warp = np.diag([0.5, 2.0, 1.0])
    view = views.look(cairn, tp.Image(texture), warp, (160, 480))
    assert view.original is not None and view.original.covariances is not None
    assert view.features.covariances is not None
    back = torch.tensor([2.0, 0.5])
    expected = back[:, None] * view.features.covariances * back
    torch.testing.assert_close(view.original.covariances, expected, rtol=1e-3, atol=1e-6)


def test_tilts_cover_half_a_turn() -> None:
    warps = views.tilted((640, 480), tp.features.ExtractorOptions(long_side=320))
    assert len(warps) == 1 + sum(views.TILTS.values())
    assert warps[0][1] == (320, 240)
    for warp, size in warps:
        corners = tp.geometry.transform(warp, np.array([[0, 0], [640, 0], [640, 480], [0, 480]]) - 0.5)
        assert corners.min() > -0.501 and (corners <= np.array(size) - 0.49).all()
        singular = np.linalg.svd(warp[:2, :2] * 2)[1]
        assert singular[0] == pytest.approx(1) and singular[1] in (
            pytest.approx(1),
            pytest.approx(0.5),
            pytest.approx(0.25),
        )


# In `match`, on the command line, in pictures.


def test_match_tells_what_was_tried(found: tp.TwoView, tmp_path: Path) -> None:
    assert right(found) > 50 and len(found.sources) == len(found)
    summary = found.summary()
    assert [a["name"] for a in summary["attempts"]] == [a.name for a in found.attempts]
    assert summary["attempts"][0].keys() == {"name", "matches", "evidence", "seconds", "kept"}
    for suffix in (".json", ".npz", ".csv", ".html", ".h5"):
        found.save(tmp_path / f"a{suffix}")
    assert json.loads((tmp_path / "a.json").read_text())["attempts"] == summary["attempts"]


def test_matches_are_coloured_by_try(found: tp.TwoView, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tiepoint.viz.pictures import ATTEMPTS

    found.plot(tmp_path / "a.svg", "attempts")
    drawn = (tmp_path / "a.svg").read_text()
    for colour, attempt in zip(ATTEMPTS, found.attempts, strict=False):
        assert (colour in drawn) == bool(attempt.kept)
        assert (f"{attempt.name} {attempt.kept}" in drawn) == bool(attempt.kept)


def test_command_line(tilted: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pixels in zip("ab", tilted, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[..., ::-1])
    command = ["match", str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main([*command, "--effort", "thorough", "--budget", "0.001"]) == 0
    assert "overlap: " in capsys.readouterr().out
    assert main([*command, "--effort", "auto", "-f", "sift", "-m", "nearest", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["overlaps"] is None and content["attempts"][0]["name"] == "best keypoints"
