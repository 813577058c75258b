"""The store against pycolmap, which reads and writes the same file, and against death, full disks and old versions."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import made_up_features
import tiepoint as tp
from made_up_features import SIZE, camera, features
from stored import matched_pairs
from tiepoint.errors import ArgumentError, InputError
from tiepoint.geometry.colmap import quaternion_of, rotation_of
from tiepoint.mapping.store import CONFIGS, MAX_IMAGES, NewImage, PairResult, Store, pair_ids, pairs_of
from tiepoint.types import Features

pycolmap = pytest.importorskip("pycolmap")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with images a.jpg, b.jpg and sub/c.jpg of one camera, ids 1 to 3."""
    with Store.open(tmp_path / "database.db") as opened:
        opened.add_images([NewImage(name, camera(), "phone") for name in ("a.jpg", "b.jpg", "sub/c.jpg")])
        yield opened


@contextmanager
def in_colmap(store: Store) -> Iterator[pycolmap.Database]:
    with pycolmap.Database.open(store.path) as database:
        yield database


def is_whole(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ---- ids ----


@given(st.lists(st.tuples(st.integers(0, MAX_IMAGES - 1), st.integers(0, MAX_IMAGES - 1)), max_size=20))
def test_pair_ids_are_colmaps(pairs: list[tuple[int, int]]) -> None:
    pairs = [(a, b) for a, b in pairs if a != b]
    ids = pair_ids(np.array(pairs).reshape(-1, 2))
    assert ids.tolist() == [pycolmap.image_pair_to_pair_id(a, b) for a, b in pairs]
    assert pairs_of(ids).tolist() == [sorted(pair) for pair in pairs]


def test_configs_are_colmaps() -> None:
    theirs = pycolmap.TwoViewGeometryConfiguration.__members__
    assert {name: CONFIGS.index(name) for name in CONFIGS} == {name: int(value) for name, value in theirs.items()}


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_quaternions_against_colmap(q: list[float]) -> None:
    theirs = pycolmap.Rotation3d(np.array([*q[1:], q[0]]) / np.linalg.norm(q))
    np.testing.assert_allclose(rotation_of(np.array(q)), theirs.matrix(), atol=1e-12)
    ours = quaternion_of(theirs.matrix())
    assert abs(abs(ours @ np.array(q)) / np.linalg.norm(q) - 1) < 1e-12
    assert ours[0] >= 0


# ---- images ----


def test_colmap_reads_images_and_cameras(tmp_path: Path) -> None:
    phone, other = camera(), camera((480, 640))
    other.has_prior_focal_length = True
    with Store.open(tmp_path / "a.db") as store:
        ids = store.add_images(
            [
                NewImage("b.jpg", phone, "phone", (48.1, -11.5, 520.0)),
                NewImage("a/é b.jpg", phone, "phone"),
                NewImage("c.jpg", other),
                NewImage("d.jpg", other),
            ]
        )
        with in_colmap(store) as db:
            for name, image_id in ids.items():
                assert db.read_image(image_id).name == name
            assert db.num_cameras() == db.num_rigs() == 3
            first = db.read_image(ids["b.jpg"])
            assert db.read_image(ids["a/é b.jpg"]).camera_id == first.camera_id
            read = db.read_camera(first.camera_id)
            assert (read.model_name, read.width, read.height) == ("SIMPLE_RADIAL", *SIZE)
            np.testing.assert_array_equal(read.params, phone.params)
            assert not read.has_prior_focal_length
            assert db.read_camera(db.read_image(ids["c.jpg"]).camera_id).has_prior_focal_length
            frames = {frame.frame_id: frame for frame in db.read_all_frames()}
            assert len(frames) == 4
            for image in db.read_all_images():
                (data,) = frames[image.frame_id].data_ids
                assert (data.id, data.sensor_id.id) == (image.image_id, image.camera_id)
                assert db.read_rig(frames[image.frame_id].rig_id).ref_sensor_id.id == image.camera_id
            (prior,) = db.read_all_pose_priors()
            assert prior.position.tolist() == [48.1, -11.5, 520.0]
            assert prior.coordinate_system.name == "WGS84"
            assert prior.corr_data_id.id == ids["b.jpg"]
            assert prior.has_position() and not prior.has_position_cov()
        found = store.images()
    assert [image.name for image in found] == ["a/é b.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert found[1].position == (48.1, -11.5, 520.0) and found[0].position is None
    assert found[0].camera is found[1].camera and found[2].camera_id != found[3].camera_id
    assert found[2].size == (480, 640)
    assert [image.image_id for image in found] == [ids[image.name] for image in found]


def test_adding_again_changes_nothing_and_keys_last(store: Store) -> None:
    before = store.images()
    ids = store.add_images([NewImage("b.jpg", camera((10, 10)), "other"), NewImage("d.jpg", camera(), "phone")])
    after = {image.name: image for image in store.images()}
    assert ids == {"b.jpg": 2, "d.jpg": 4}
    assert [after[image.name].image_id for image in before] == [image.image_id for image in before]
    assert after["b.jpg"].size == SIZE and len({image.camera_id for image in after.values()}) == 1
    assert store.add_images([]) == {}


def test_one_camera_has_one_size(store: Store) -> None:
    with pytest.raises(ArgumentError, match=r"e\.jpg: is 480x640 .* 'phone' .* 640x480"):
        store.add_images([NewImage("d.jpg", camera(), "phone"), NewImage("e.jpg", camera((480, 640)), "phone")])
    assert len(store.images()) == 3


# ---- features ----


@pytest.mark.parametrize("shaped", [True, False])
def test_sift_features_come_back_and_colmap_reads_them(store: Store, shaped: bool) -> None:
    given_ = features(50, shaped=shaped)
    store.write_features([(1, given_)])
    back = store.features(1)
    assert (back.extractor, back.image_size) == ("sift", SIZE)
    # x + 0.5 in float32 may round, by half of the last place of a number up to 512
    np.testing.assert_allclose(back.keypoints, given_.keypoints, rtol=0, atol=2**-15)
    assert torch.equal(back.scores, given_.scores)
    # a 512th, rounded; then scaled back to unit length
    assert (back.descriptors - given_.descriptors).abs().max() < 1.5 / 512
    assert (back.descriptors.norm(dim=1) - 1).abs().max() < 1e-6
    if shaped:
        assert torch.equal(back.scales, given_.scales) and torch.equal(back.orientations, given_.orientations)
    else:
        assert back.scales is None and back.orientations is None
    with in_colmap(store) as db:
        table = db.read_keypoints(1)
        assert table.shape == (50, 4 if shaped else 2)
        np.testing.assert_array_equal(table[:, :2], given_.keypoints.numpy() + np.float32(0.5))
        theirs = db.read_descriptors(1)
        assert theirs.type.name == "SIFT" and theirs.data.dtype == np.uint8
        np.testing.assert_allclose(theirs.data, given_.descriptors * 512, atol=0.51)
        assert db.num_keypoints() == 50


def test_writing_what_was_read_changes_nothing(store: Store) -> None:
    store.write_features([(1, features(300))])
    once = store.features(1)
    store.write_features([(2, once)])
    twice = store.features(2)
    for part in ("keypoints", "scores", "scales", "orientations"):
        assert torch.equal(getattr(once, part), getattr(twice, part))
    assert torch.equal((once.descriptors * 512).round(), (twice.descriptors * 512).round())


def test_other_descriptors_are_kept_beside_colmaps(store: Store) -> None:
    floats = features(20, "xfeat", 64, shaped=False)
    rng = np.random.default_rng(1)
    bits = Features(
        floats.keypoints, floats.scores, torch.from_numpy(rng.integers(0, 256, (20, 32), np.uint8)), SIZE, "orb"
    )
    store.write_features([(1, floats), (2, bits), (3, features(0, "xfeat", 64, shaped=False))])
    assert (store.features(1).descriptors - floats.descriptors).abs().max() < 2**-11
    assert store.features(1).descriptors.dtype == torch.float32
    assert torch.equal(store.features(2).descriptors, bits.descriptors) and store.features(2).is_binary
    assert store.features(3).descriptors.shape == (0, 64)
    assert store.has_features() == {1, 2, 3} and store.keypoint_counts() == {1: 20, 2: 20, 3: 0}
    assert store.features(1, descriptors=False).descriptors.shape == (20, 0)
    with in_colmap(store) as db:
        assert db.num_keypoints_for_image(1) == 20 and not db.exists_descriptors(1)
        assert db.read_keypoints(3).shape[0] == 0


def test_only_scales_or_only_orientations(store: Store) -> None:
    both = features(5)
    store.write_features(
        [
            (1, Features(both.keypoints, both.scores, both.descriptors, SIZE, "sift", scales=both.scales)),
            (2, Features(both.keypoints, both.scores, both.descriptors, SIZE, "sift", orientations=both.orientations)),
        ]
    )
    assert torch.equal(store.features(1).scales, both.scales) and store.features(1).orientations is None
    assert torch.equal(store.features(2).orientations, both.orientations) and store.features(2).scales is None


def test_covariances_come_back(store: Store) -> None:
    plain, spread = features(7), torch.rand(7, 2, 2, generator=torch.Generator().manual_seed(0))
    store.write_features([(1, replace(plain, covariances=spread)), (2, plain)])
    back = store.features(1).covariances
    assert back is not None and torch.equal(back, spread)
    assert store.features(2).covariances is None
    store.write_features([(1, plain)])
    assert store.features(1).covariances is None


def test_scale_and_orientation_mean_what_colmap_means(texture: NDArray[np.uint8], tmp_path: Path) -> None:
    """COLMAP's SIFT and OpenCV's find many of the same blobs; all they say of them must agree after conversion."""
    PIL = pytest.importorskip("PIL.Image")
    PIL.fromarray(texture).save(tmp_path / "t.png")
    path = tmp_path / "colmap.db"
    options = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    pycolmap.extract_features(path, tmp_path, ["t.png"], extraction_options=options)
    with Store.open(path) as store:
        assert [image.name for image in store.images()] == ["t.png"]
        assert store.has_features() == {1}
        theirs = store.features(1)
    ours = tp.features.load("sift", max_keypoints=None)(texture)
    assert theirs.extractor == "sift" and theirs.image_size == ours.image_size
    assert (theirs.descriptors.norm(dim=1) - 1).abs().max() < 1e-5

    similarity, partner = (ours.descriptors @ theirs.descriptors.T).max(dim=1)
    same = similarity > 0.97
    assert same.sum() > 50
    a, b = ours.select(same), theirs.select(partner[same])
    offset = (a.keypoints - b.keypoints).median(dim=0).values
    assert offset.abs().max() < 0.1  # half a pixel would show
    assert a.scales is not None and b.scales is not None and a.orientations is not None and b.orientations is not None
    assert abs((a.scales / b.scales).median() - 1) < 0.05
    turn = torch.remainder(a.orientations - b.orientations + torch.pi, 2 * torch.pi) - torch.pi
    assert (
        abs(turn.median()) < 0.03 and turn.abs().median() < 0.1
    )  # radians; the two smooth their histograms differently


def test_our_matches_go_into_colmaps_database(texture: NDArray[np.uint8], tmp_path: Path) -> None:
    PIL = pytest.importorskip("PIL.Image")
    PIL.fromarray(texture).save(tmp_path / "a.png")
    PIL.fromarray(np.ascontiguousarray(texture[20:, 30:])).save(tmp_path / "b.png")
    path = tmp_path / "colmap.db"
    options = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    pycolmap.extract_features(path, tmp_path, ["a.png", "b.png"], extraction_options=options)
    with Store.open(path) as store:
        a, b = store.features(1), store.features(2)
        found = tp.matchers.load("nearest")(a, b)
        shift = np.median(found.points0 - found.points1, axis=0)
        np.testing.assert_allclose(shift, [30, 20], atol=0.1)
        store.write_matches([PairResult(1, 2, found.indices, found.scores)])
    with pycolmap.Database.open(path) as db:
        np.testing.assert_array_equal(db.read_matches(1, 2), found.indices)
        kept = db.read_keypoints(1)
    assert kept.shape[1] == 6  # COLMAP's own table, untouched
    # The other way round: COLMAP made the matches.
    with pycolmap.Database.open(path) as db:
        db.delete_matches(1, 2)
        db.write_matches(1, 2, found.indices[:5].astype(np.uint32))
    with Store.open(path) as store:
        store.write_features([])  # nothing happens
        got = store.matches(1, 2)
    assert got is not None and got.indices.tolist() == found.indices[:5].tolist()


def test_replacing_features_drops_their_matches(store: Store) -> None:
    store.write_features([(i, features(9, seed=i)) for i in (1, 2, 3)])
    one = np.array([[0, 0]])
    store.write_matches(
        [PairResult(a, b, one, np.ones(1), None, np.ones(1, bool)) for a, b in ((1, 2), (2, 3), (1, 3))]
    )
    store.write_features([(2, features(9, seed=7))])
    assert matched_pairs(store) == {(1, 3)}
    assert store.verified_pairs() == {(1, 3): 1}
    assert store.matches(1, 2) is None and store.geometry(2, 3) is None


def test_features_of_the_wrong_image_are_refused(store: Store) -> None:
    with pytest.raises(ArgumentError, match=r"no image 9 .* add_images"):
        store.write_features([(1, features(3)), (9, features(3))])
    turned = Features(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 128), (480, 640), "sift")
    with pytest.raises(ArgumentError, match=r"image 2: .* 480x640 .* 640x480"):
        store.write_features([(1, features(3)), (2, turned)])
    assert store.has_features() == set()
    with pytest.raises(ArgumentError, match=r"image 1 are not in .*; extract them"):
        store.features(1)


# ---- pairs ----


def two_view() -> dict[str, NDArray[np.float64]]:
    """A relative pose and the matrices that follow from it, for a plane 5 in front of image 0."""
    R = rotation_of(np.array([0.95, 0.1, -0.2, 0.05]))
    t, normal = np.array([0.6, 0.0, 0.8]), np.array([0.0, 0.0, 1.0])
    skew = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    K = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
    F = np.linalg.inv(K).T @ skew @ R @ np.linalg.inv(K)
    return {"E": skew @ R, "F": F, "H": K @ (R + np.outer(t, normal) / 5) @ np.linalg.inv(K), "R": R, "t": t}


@pytest.mark.parametrize("swap", [False, True])
def test_matches_and_geometry_come_back_and_colmap_reads_them(store: Store, swap: bool) -> None:
    store.write_features([(i, features(30, seed=i)) for i in (1, 2)])
    rng = np.random.default_rng(3)
    matches = np.stack([np.sort(rng.permutation(30)[:12]), rng.permutation(30)[:12]], axis=1)
    scores, inliers = rng.random(12, np.float32), rng.random(12) < 0.6
    id0, id1 = (2, 1) if swap else (1, 2)
    model = two_view()
    store.write_matches([PairResult(id0, id1, matches, scores, True, inliers, "CALIBRATED", **model)])

    back = store.matches(id0, id1)
    assert back is not None and back.overlaps is True
    np.testing.assert_array_equal(back.indices, matches)
    np.testing.assert_array_equal(back.scores, scores)
    other = store.matches(id1, id0)
    assert other is not None
    order = np.argsort(matches[:, 1])
    np.testing.assert_array_equal(other.indices, matches[order][:, ::-1])
    np.testing.assert_array_equal(other.scores, scores[order])

    pair = store.geometry(id0, id1)
    assert pair is not None and pair.config == "CALIBRATED"
    np.testing.assert_array_equal(pair.matches, matches[inliers])
    for name, value in model.items():
        np.testing.assert_allclose(getattr(pair, name), value, rtol=1e-9, atol=1e-12)

    with in_colmap(store) as db:
        np.testing.assert_array_equal(db.read_matches(id0, id1), matches)
        theirs = db.read_two_view_geometry(id0, id1)
        assert theirs.config == CONFIGS.index("CALIBRATED")
        rows = theirs.inlier_matches.tolist()
        assert sorted(rows) == matches[inliers].tolist()
        for name in ("E", "F"):
            np.testing.assert_allclose(getattr(theirs, name), model[name], rtol=1e-9, atol=1e-12)
        # COLMAP inverts homographies too, each up to its own scale
        H = theirs.H / theirs.H[2, 2]
        np.testing.assert_allclose(H, model["H"] / model["H"][2, 2], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(theirs.cam2_from_cam1.rotation.matrix(), model["R"], atol=1e-12)
        np.testing.assert_allclose(theirs.cam2_from_cam1.translation, model["t"], atol=1e-12)


def test_pairs_without_matches_and_without_geometry(store: Store) -> None:
    store.write_features([(i, features(4, seed=i)) for i in (1, 2, 3)])
    nothing = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    store.write_matches(
        [
            PairResult(2, 1, *nothing, overlaps=False),
            PairResult(1, 3, *nothing, None, np.zeros(0, bool), "DEGENERATE"),
            PairResult(2, 3, np.array([[0, 1]]), np.array([0.25])),
        ]
    )
    assert matched_pairs(store) == {(1, 2), (1, 3), (2, 3)}
    assert store.matched_pair_ids().tolist() == sorted(pair_ids([(1, 2), (1, 3), (2, 3)]).tolist())
    assert store.verified_pairs() == {}
    assert store.verified_pair_ids().tolist() == pair_ids([(1, 3)]).tolist()
    empty = store.matches(1, 2)
    assert empty is not None and empty.indices.shape == (0, 2) and empty.overlaps is False
    assert store.geometry(2, 3) is None
    failed = store.geometry(3, 1)
    assert failed is not None and failed.config == "DEGENERATE" and failed.E is None and len(failed.matches) == 0
    with in_colmap(store) as db:
        assert db.exists_matches(1, 2) and db.read_matches(1, 2).shape == (0, 2)
        assert db.num_matched_image_pairs() == 3 and db.num_inlier_matches() == 0
    # Matched again, not verified: the geometry of the old matches would lie.
    store.write_matches([PairResult(1, 3, np.array([[1, 1]]), np.ones(1))])
    assert store.geometry(1, 3) is None


def test_impossible_results_are_refused(store: Store) -> None:
    store.write_features([(1, features(4)), (2, features(5))])
    one, score = np.array([[0, 0]]), np.ones(1)
    with pytest.raises(ArgumentError, match=r"\(1, 2\): .* do not exist; the images have 4 and 5"):
        store.write_matches([PairResult(1, 2, np.array([[0, 0], [4, 4]]), np.ones(2))])
    with pytest.raises(ArgumentError, match="do not exist"):
        store.write_matches([PairResult(1, 2, np.array([[0, -1]]), score)])
    with pytest.raises(ArgumentError, match="image 3 are not in"):
        store.write_matches([PairResult(1, 2, one, score), PairResult(1, 3, one, score)])
    assert matched_pairs(store) == set()
    for bad in (
        lambda: PairResult(1, 1, one, score),
        lambda: PairResult(1, 2, one, np.ones(2)),
        lambda: PairResult(1, 2, np.zeros(2), score),
        lambda: PairResult(1, 2, one, score, inliers=np.ones(1)),  # type: ignore[arg-type]
        lambda: PairResult(1, 2, one, score, config="nice"),  # type: ignore[arg-type]
        lambda: PairResult(1, 2, one, score, R=np.eye(3)),
    ):
        with pytest.raises(ArgumentError):
            bad()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 7), st.booleans()).filter(
            lambda p: p[0] != p[1]
        ),
        max_size=25,
    )
)
def test_the_last_result_of_a_pair_counts(history: list[tuple[int, int, int, bool]]) -> None:
    """Any sequence of writes, in either order of the images, leaves what a dictionary would hold."""
    expected: dict[tuple[int, int], tuple[list[list[int]], bool]] = {}
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "a.db")) as store:
        ids = store.add_images([NewImage(f"{i}.jpg", camera(), "c") for i in range(6)])
        store.write_features([(i, features(8, seed=i)) for i in ids.values()])
        for a, b, k, verified in history:
            matches = np.stack([np.arange(k), np.arange(k)[::-1]], axis=1).reshape(-1, 2)
            store.write_matches([PairResult(a, b, matches, np.ones(k), None, np.ones(k, bool) if verified else None)])
            rows = sorted(matches[:, :: 1 if a < b else -1].tolist())
            expected[min(a, b), max(a, b)] = rows, verified
        assert matched_pairs(store) == set(expected)
        assert store.verified_pairs() == {pair: len(rows) for pair, (rows, ok) in expected.items() if ok and rows}
        for (a, b), (rows, _) in expected.items():
            found = store.matches(a, b)
            assert found is not None and found.indices.tolist() == rows


def test_a_million_pairs_are_listed_without_reading_them(store: Store) -> None:
    """The list comes from the small index, not from the table that holds the matches."""
    with closing(sqlite3.connect(store.path)) as db:
        for table, index in (("matches", "tiepoint_matched"), ("two_view_geometries", "tiepoint_verified")):
            query = f"EXPLAIN QUERY PLAN SELECT pair_id, rows FROM {table} INDEXED BY {index}"
            assert "COVERING INDEX" in db.execute(query).fetchall()[0][-1]


# ---- living with COLMAP ----


def test_colmap_may_open_and_close_the_file_between_our_writes(store: Store) -> None:
    """pycolmap's SQLite takes the log away when it closes the file; nothing may be lost by that."""
    for i in (1, 2, 3):
        store.write_features([(i, features(10 * i))])
        with pycolmap.Database.open(store.path) as db:
            assert db.num_keypoints() == sum(10 * j for j in range(1, i + 1))
            assert store.has_features() == set(range(1, i + 1))
    # Seen from outside, as after a kill: without closing the store first.
    store.write_matches([PairResult(1, 2, np.array([[0, 0]]), np.ones(1))])
    code = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT rows FROM matches'))"
    assert subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True).stdout == "(1,)\n"
    with pycolmap.Database.open(store.path) as db:
        assert db.num_matches() == 1


def test_incremental_mapper_runs_on_our_database(tmp_path: Path) -> None:
    """Six views of made-up points: COLMAP's mapper finds the true cameras, and no error above rounding."""
    rng = np.random.default_rng(5)
    points = rng.uniform(-1, 1, (150, 3))
    truth = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[600, 320, 240])
    truth.has_prior_focal_length = True
    poses = []
    for angle in np.linspace(-0.5, 0.5, 6):
        R = rotation_of(np.array([np.cos(angle / 2), 0, np.sin(angle / 2), 0]))
        poses.append((R, np.array([0.1 * angle, 0.05 * angle, 5.0])))
    with Store.open(tmp_path / "a.db") as store:
        ids = list(store.add_images([NewImage(f"{i}.png", truth, "one") for i in range(6)]).values())
        seen = []
        for R, t in poses:
            p = points @ R.T + t
            seen.append((p[:, :2] / p[:, 2:] * 600 + (319.5, 239.5)).astype(np.float32))  # our convention
        store.write_features(
            (i, Features(torch.from_numpy(xy), torch.ones(150), torch.eye(150)[:, :64], SIZE, "xfeat"))
            for i, xy in zip(ids, seen, strict=True)
        )
        every, rows = np.repeat(np.arange(150)[:, None], 2, axis=1), []
        for a in range(6):
            for b in range(a + 1, 6):
                R = poses[b][0] @ poses[a][0].T
                t = poses[b][1] - R @ poses[a][1]
                E = np.cross(np.eye(3), t / np.linalg.norm(t)) @ R
                one = PairResult(ids[a], ids[b], every, np.ones(150), True, np.ones(150, bool), "CALIBRATED", E=E)
                rows.append(one)
        store.write_matches(rows)
    options = pycolmap.IncrementalPipelineOptions(num_threads=1, ba_refine_focal_length=False)
    models = pycolmap.incremental_mapping(tmp_path / "a.db", tmp_path, tmp_path / "out", options)
    assert len(models) == 1
    model = models[0]
    assert model.num_reg_images() == 6 and model.num_points3D() == 150
    assert model.compute_mean_reprojection_error() < 1e-3
    centres = np.array([-R.T @ t for R, t in poses])
    found = np.array([model.image(i).projection_center() for i in ids])
    scale = np.linalg.norm(centres[0] - centres[-1]) / np.linalg.norm(found[0] - found[-1])
    gaps = np.linalg.norm(found[:, None] - found[None], axis=2) * scale
    np.testing.assert_allclose(gaps, np.linalg.norm(centres[:, None] - centres[None], axis=2), atol=1e-3)


# ---- death, disks and versions ----

WRITER = """
    import itertools, sys, numpy as np
    sys.path.insert(0, sys.argv[2])
    from made_up_features import camera, features
    from tiepoint.mapping.store import NewImage, PairResult, Store
    with Store.open(sys.argv[1]) as store:
        ids = list(store.add_images([NewImage(f"{i}.jpg", camera(), "c") for i in range(40)]).values())
        store.write_features((i, features(50, seed=i)) for i in ids)
        print("ready", flush=True)
        k = np.repeat(np.arange(40)[:, None], 2, axis=1)
        for i in itertools.cycle(ids):
            store.write_matches(
                PairResult(i, j, k, np.full(40, 0.5), True, np.ones(40, bool), "UNCALIBRATED", F=np.eye(3))
                for j in ids if j > i
            )
            print(i, flush=True)
"""


@pytest.mark.parametrize("batches", [1, 17])
def test_kill_9_loses_only_the_open_transaction(tmp_path: Path, batches: int) -> None:
    """What the writer reported as written is there; of what it was writing all or nothing."""
    path = tmp_path / "a.db"
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(Path(made_up_features.__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    written = [int(process.stdout.readline()) for _ in range(batches)]
    os.kill(process.pid, signal.SIGKILL)
    written += map(int, process.stdout.read().split())  # reported between our last look and its death
    process.wait()
    with pycolmap.Database.open(path) as db:  # COLMAP recovers the log as well as we do
        assert db.num_images() == 40
    assert is_whole(path)
    with Store.open(path) as store:
        assert store.has_features() == set(range(1, 41))
        found = matched_pairs(store)
        reported = {(i, j) for i in written for j in range(i + 1, 41)}
        assert reported <= found
        last = written[-1] + 1
        assert found - reported in (set(), {(last, j) for j in range(last + 1, 41)})
        assert store.verified_pairs() == dict.fromkeys(found, 40)
        pair = store.matches(1, 40)
        assert pair is not None and len(pair.indices) == 40


def test_failing_batch_writes_nothing(store: Store) -> None:
    store.write_features([(1, features(5)), (2, features(5))])

    def items() -> Iterator[PairResult]:
        yield PairResult(1, 2, np.array([[0, 0]]), np.ones(1))
        raise RuntimeError("the worker died")

    with pytest.raises(RuntimeError, match="died"):
        store.write_matches(items())
    assert matched_pairs(store) == set()


def test_full_disk(store: Store) -> None:
    store.write_features([(1, features(100))])
    with store.file.reading() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(InputError, match=r"database\.db: .*disk is full; free some space and run the same again"):
        store.write_features([(2, features(2000)), (3, features(2000))])
    assert store.has_features() == {1} and len(store.features(1)) == 100
    with store.file.reading() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    store.write_features([(2, features(2000))])
    assert store.has_features() == {1, 2}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the right of root to write to everything."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_read_only_file_and_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name, "a.db")
        Store.open(path).close()
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            with as_nobody(), pytest.raises(InputError, match=r"a\.db: .*; .*give the right to write to"):
                Store.open(path)
            with as_nobody(), pytest.raises(InputError, match=r"new\.db: the database cannot be made"):
                Store.open(folder / "new.db")
        finally:
            folder.chmod(0o755)
        assert [p.name for p in folder.iterdir()] == ["a.db"]


def test_closed_store_stays_closed(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(ArgumentError, match="the store is closed"):
        store.has_features()


def test_file_that_is_deleted_meanwhile(store: Store) -> None:
    for path in store.path.parent.glob("database.db*"):
        path.unlink()
    with pytest.raises(InputError, match=r"database\.db: unable to open .*; if it is there"):
        store.has_features()
    assert not store.path.exists()


def test_files_that_are_no_colmap_database(tmp_path: Path) -> None:
    missing = tmp_path / "none.db"
    with pytest.raises(InputError, match=r"none\.db: does not exist"):
        Store.open(missing, create=False)
    assert not missing.exists()
    with pytest.raises(InputError, match=r"the folder .* does not exist; create it"):
        Store.open(tmp_path / "no" / "a.db")
    with pytest.raises(InputError, match="is a folder"):
        Store.open(tmp_path)
    text = tmp_path / "text.db"
    text.write_text("this is not a database, only a text\n")
    with pytest.raises(InputError, match="not a database; give the path"):
        Store.open(text)
    torn = tmp_path / "torn.db"
    torn.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    with pytest.raises(InputError, match=r"torn\.db: "):
        Store.open(torn)
    other = tmp_path / "firefox.sqlite"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
        db.commit()
    before = other.read_bytes()
    with pytest.raises(InputError, match="not one of COLMAP's"):
        Store.open(other)
    assert other.read_bytes() == before


def test_databases_of_other_versions(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    Store.open(newer).close()
    with closing(sqlite3.connect(newer)) as db:
        db.execute("PRAGMA user_version = 99010000")
    with pytest.raises(InputError, match=r"COLMAP 99\.1, .* newer than .* pip install --upgrade pycolmap"):
        Store.open(newer)
    with closing(sqlite3.connect(newer)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99010000,)

    # COLMAP 3.8, from memory: no rigs, no frames, and image poses in the table of images.
    older = tmp_path / "older.db"
    with closing(sqlite3.connect(older)) as db:
        db.executescript(
            """
            CREATE TABLE cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, model INTEGER NOT NULL,
                width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB, prior_focal_length INTEGER NOT NULL);
            CREATE TABLE images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE,
                camera_id INTEGER NOT NULL, prior_qw REAL, prior_qx REAL, prior_qy REAL, prior_qz REAL,
                prior_tx REAL, prior_ty REAL, prior_tz REAL);
            CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
                cols INTEGER NOT NULL, data BLOB);
            CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
                cols INTEGER NOT NULL, data BLOB);
            CREATE TABLE matches (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
                cols INTEGER NOT NULL, data BLOB);
            CREATE TABLE two_view_geometries (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL,
                cols INTEGER NOT NULL, data BLOB, config INTEGER NOT NULL, F BLOB, E BLOB, H BLOB,
                qvec BLOB, tvec BLOB);
            PRAGMA user_version = 3800;
            """
        )
        db.execute("INSERT INTO cameras VALUES (1, 2, 640, 480, ?, 0)", (np.array([600.0, 320, 240, 0]).tobytes(),))
        db.execute("INSERT INTO images (image_id, name, camera_id) VALUES (7, 'old.jpg', 1)")
        db.execute("INSERT INTO keypoints VALUES (7, 1, 2, ?)", (np.array([[3.5, 4.5]], np.float32).tobytes(),))
        db.execute("INSERT INTO descriptors VALUES (7, 1, 128, ?)", (bytes([45] * 128),))
        db.commit()
    with pytest.raises(InputError, match=r"made by COLMAP .* 'rigs' lacks .*; make a copy, .* python -c"):
        Store.open(older)
    # Its advice works.
    pycolmap.Database.open(older).close()
    with Store.open(older) as store:
        assert [image.name for image in store.images()] == ["old.jpg"]
        assert store.features(7).keypoints.tolist() == [[3.0, 4.0]]
        store.add_images([NewImage("new.jpg", camera())])
        assert len(store.images()) == 2


def test_two_stores_on_one_file_see_each_others_commits(store: Store) -> None:
    with Store.open(store.path) as reader:
        store.write_features([(1, features(5))])
        assert reader.has_features() == {1}
        assert len(reader.features(1)) == 5


def test_public_names() -> None:
    for name in tp.mapping.__all__:
        assert getattr(tp.mapping, name) is not None


def test_import_needs_no_optional_package() -> None:
    code = """
        import sys
        for name in ("pycolmap", "h5py", "faiss", "ray"):
            sys.modules[name] = None
        import tiepoint, tiepoint.mapping
        from tiepoint.mapping import Store, pair_ids
        try:
            Store.open("/nonexistent/a.db")
        except tiepoint.errors.MissingDependencyError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert "pip install 'tiepoint[map]'" in done.stdout, done.stderr


def test_images_are_renamed_removed_and_get_other_cameras_as_colmap_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(path) as store:
        ids = store.add_images([NewImage(f"{n}.jpg", camera(), "one", (48.0, 11.0, float(n))) for n in range(4)])
        store.write_features([(image_id, features(20, seed=image_id)) for image_id in ids.values()])
        k = np.repeat(np.arange(20)[:, None], 2, axis=1)
        store.write_matches(
            PairResult(a, b, k, np.ones(20), None, np.ones(20, bool), "UNCALIBRATED", F=np.eye(3))
            for a in ids.values()
            for b in ids.values()
            if a < b
        )
        store.rename_images({ids["0.jpg"]: "1.jpg", ids["1.jpg"]: "0.jpg"})
        store.remove_images([ids["3.jpg"]])
        other = camera()
        other.params = [other.params[0] + 1, *other.params[1:]]
        moved = [NewImage("0.jpg", other), NewImage("1.jpg", camera(), "one"), NewImage("2.jpg", camera(), "one")]
        assert store.update_cameras(moved) == ["0.jpg"]
        assert store.update_cameras(moved) == []
        assert {image.name: image.image_id for image in store.images()} == {
            "0.jpg": ids["1.jpg"], "1.jpg": ids["0.jpg"], "2.jpg": ids["2.jpg"]
        }  # fmt: skip
        assert all(image.position is None for image in store.images())
        assert len(matched_pairs(store)) == 3
        assert set(store.verified_pairs()) == {tuple(sorted((ids["0.jpg"], ids["2.jpg"])))}  # of unchanged cameras
        assert store.has_features() == {ids["0.jpg"], ids["1.jpg"], ids["2.jpg"]}
    database = pycolmap.Database.open(path)
    assert (database.num_images(), database.num_cameras(), database.num_rigs(), database.num_frames()) == (3, 2, 2, 3)
    assert database.num_matched_image_pairs() == 3
    for frame in database.read_all_frames():
        for data in frame.data_ids:
            image = database.read_image(data.id)
            assert data.sensor_id.id == image.camera_id
    assert database.read_all_pose_priors() == []
    database.close()
