"""`tiepoint.match`: right points in original pixels, honest choices, files that read back."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import pipeline, two_view
from tiepoint.errors import ArgumentError, InputError, MissingDependencyError, TiepointError
from tiepoint.io import files

CLASSIC: Any = {"features": "sift", "matcher": "nearest"}


@pytest.fixture(scope="module")
def warped(texture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any]]:
    """A picture, the same from elsewhere, and the homography between them."""
    H = np.array([[0.9, -0.1, 30], [0.12, 0.95, -12], [2e-4, 1e-4, 1]])
    return texture, cv2.warpPerspective(texture, H, (320, 240)), H


@pytest.fixture(scope="module")
def result(warped: tuple[Any, Any, Any]) -> tp.TwoView:
    return tp.match(*warped[:2], **CLASSIC, geometry="homography")


def test_points_agree_with_the_known_homography(result: tp.TwoView, warped: tuple[Any, Any, Any]) -> None:
    error = tp.geometry.reprojection_error(warped[2], result.points0, result.points1)
    assert len(result) > 50 and np.mean(error < 2) > 0.9
    assert result.geometry is not None and result.geometry.model is not None
    assert np.abs(result.geometry.model - warped[2]).max() < 1
    assert result.inliers is not None and np.median(error[result.inliers]) < 0.5


def test_points_are_in_original_pixels_whatever_the_long_side(warped: tuple[Any, Any, Any]) -> None:
    """Doubling one photograph and shrinking it inside again must double its points."""
    small0, small1, H = warped
    large0 = cv2.resize(small0, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    found = tp.match(large0, small1, **CLASSIC, long_side=320)
    error = tp.geometry.reprojection_error(H, (found.points0 + 0.5) / 2 - 0.5, found.points1)
    good = error < 2
    assert good.mean() > 0.8
    offset = tp.geometry.transform(H, (found.points0[good] + 0.5) / 2 - 0.5) - found.points1[good]
    assert np.abs(np.mean(offset, axis=0)).max() < 0.15


def test_swapping_the_photographs_swaps_the_result(warped: tuple[Any, Any, Any]) -> None:
    forth, back = tp.match(*warped[:2], **CLASSIC), tp.match(*warped[1::-1], **CLASSIC)
    pairs = {tuple(row) for row in forth.matches.indices.tolist()}
    assert pairs == {tuple(row[::-1]) for row in back.matches.indices.tolist()} and len(pairs) > 50


def test_masks_are_honoured(warped: tuple[Any, Any, Any]) -> None:
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 255
    found = tp.match(*warped[:2], **CLASSIC, mask0=mask)
    assert len(found) > 10 and found.points0[:, 0].min() >= 159.5


def test_loaded_extractor_and_matcher_are_used_as_they_are(warped: tuple[Any, Any, Any]) -> None:
    extractor = tp.features.load("orb", max_keypoints=77)
    found = tp.match(*warped[:2], features=extractor, effort="fast")
    assert len(found.features0) <= 77 and found.features0.extractor == "orb"
    assert found.choice.startswith("orb + nearest")
    again = tp.match(*warped[:2], extractor, tp.matchers.load("nearest", features="orb"), effort="fast")
    np.testing.assert_array_equal(found.matches.indices, again.matches.indices)


@pytest.mark.parametrize("kind", ["fundamental", "essential"])
def test_epipolar_geometry_on_photographs(data_dir: Path, kind: Any) -> None:
    from tiepoint import evaluation

    pair = evaluation.load_pairs(data_dir / "eval", ["fountain"], 1)[0]
    truth: Any = pair.truth
    cameras = [tp.Camera.from_K(K, p.read().size) for K, p in ((truth.K0, pair.image0), (truth.K1, pair.image1))]
    found = tp.match(
        pair.image0.read(),
        pair.image1.read(),
        **CLASSIC,
        geometry=kind,
        camera0=cameras[0],
        camera1=cameras[1],
    )
    assert found.inliers is not None and found.inliers.sum() > 50 and found.note == ""
    if kind == "essential":
        assert found.geometry is not None and found.geometry.R is not None and found.geometry.t is not None
        assert np.rad2deg(max(tp.geometry.pose_error(found.geometry.R, found.geometry.t, truth.R, truth.t))) < 5
        assert np.allclose(found.summary()["R"], found.geometry.R)


def test_nothing_in_common_is_a_result(texture: NDArray[np.uint8], rng: np.random.Generator) -> None:
    blank = tp.match(texture, np.full((50, 60), 90, np.uint8), **CLASSIC, geometry="fundamental")
    assert len(blank) == 0 and "No matches" in blank.note
    assert blank.geometry is not None and blank.geometry.model is None
    noise = rng.integers(0, 255, (240, 320), dtype=np.uint8)
    assert "probably do not" in tp.match(texture, noise, **CLASSIC).note


def test_wrong_arguments(texture: NDArray[np.uint8]) -> None:
    with pytest.raises(ArgumentError, match="homography, fundamental, essential"):
        tp.match(texture, texture, geometry="affine")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="device 'abacus'"):
        tp.match(texture, texture, device="abacus")
    with pytest.raises(ArgumentError, match="no extractor"):
        tp.match(texture, texture, features="sitf")
    with pytest.raises(InputError, match=r"gone\.jpg"):
        tp.match(texture, "gone.jpg")


# Cairn's nearest neighbours leave next to nothing to find on this pair, and its matcher stops early.
@pytest.mark.parametrize(("features", "share"), [("cairn", 0.95), ("sift", 1.0)])
def test_our_weights_on_photographs(data_dir: Path, features: str, share: float) -> None:
    """Our LightGlue against nearest neighbours: two photographs with known cameras, and two unrelated ones."""
    fountain = data_dir / "eval" / "fountain"
    pair = json.loads((fountain / "pairs.json").read_text())["pairs"][0]
    images = [fountain / pair[name] for name in ("image0", "image1")]
    R, t, K0, K1 = (np.array(pair[name], float) for name in ("R", "t", "K0", "K1"))
    right = []
    for matcher in ("lightglue", "nearest"):
        found = tp.match(*images, features, matcher, long_side=None)
        error = tp.geometry.symmetric_epipolar_error(
            tp.geometry.fundamental_from_pose(K0, K1, R, t), found.points0, found.points1
        )
        right.append(int((error < 3).sum()))
        assert (error < 3).mean() > 0.85
        assert found.matches.overlaps is (True if matcher == "lightglue" else None)
    assert right[0] >= share * right[1]
    other = data_dir / "demo" / "cup" / "images" / "0000.jpg"
    assert not tp.match(images[0], other, features, "lightglue").matches.overlaps


def test_learned_default_on_photographs(data_dir: Path) -> None:
    """The whole default path with trained weights, where they are on this machine."""
    choice = next(choice for choice in pipeline.PREFERENCES if choice.features == "aliked-n16")
    if not choice.is_usable():
        pytest.skip("the weights aliked-n16 and aliked-lightglue are not on this machine")
    images = sorted((data_dir / "demo" / "sceaux" / "images").glob("*.jpg"))[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options: Any = {"max_keypoints": 256, "long_side": 480, "effort": "fast", "geometry": "fundamental"}
        found = tp.match(*images, "aliked-n16", "lightglue", **options)
    assert found.inliers is not None and found.inliers.sum() > 50 and found.inliers.mean() > 0.8
    assert found.matches.stop_layer is not None


# Files.


def test_npz(result: tp.TwoView, tmp_path: Path) -> None:
    result.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["points0"], result.points0)
        np.testing.assert_array_equal(file["points1"], result.points1)
        np.testing.assert_array_equal(file["scores"], result.scores)
        np.testing.assert_array_equal(file["matches"], result.matches.indices)
        np.testing.assert_array_equal(file["inliers"], result.inliers)
        assert file["model"].shape == (3, 3)


def test_csv(result: tp.TwoView, tmp_path: Path) -> None:
    result.save(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    points1 = np.array([[row["x1"], row["y1"]] for row in rows], np.float32)
    np.testing.assert_array_equal(points1, result.points1)
    np.testing.assert_array_equal([row["inlier"] == "1" for row in rows], result.inliers)
    assert list(rows[0]) == ["x0", "y0", "x1", "y1", "score", "inlier"]


def test_json(result: tp.TwoView, tmp_path: Path) -> None:
    result.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    np.testing.assert_array_equal(np.float32(content["correspondences"]["points0"]), result.points0)
    assert content["matches"] == len(result) and content["geometry"] == "homography"
    assert content["size0"] == [320, 240]


def test_h5_is_hlocs_layout(result: tp.TwoView, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    result.save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        names = [name for name in file if name != "/"]
        assert len(names) == 2
        keypoints = file[names[0]]["keypoints"][()]
        assert file[names[0]]["descriptors"].shape == (128, len(keypoints))
        partner = file[names[0]][names[1]]["matches0"][()]
        scores = file[names[0]][names[1]]["matching_scores0"][()]
        other = file[names[1]]["keypoints"][()]
    matched = np.flatnonzero(partner >= 0)
    np.testing.assert_array_equal(keypoints[matched], result.points0)
    np.testing.assert_array_equal(other[partner[matched]], result.points1)
    np.testing.assert_array_equal(scores[matched], result.scores)


def test_names_in_h5_tell_the_photographs_apart() -> None:
    names = two_view._distinct_names
    assert names("x/a.jpg", "y/b.jpg") == ("a.jpg", "b.jpg")
    assert names("/x/a.jpg", "/y/a.jpg") == ("x/a.jpg", "y/a.jpg")
    assert len(set(names("<array>", "<array>"))) == 2


@pytest.mark.parametrize("suffix", two_view.FILES)
def test_every_kind_of_file_is_written_whole_and_alone(result: tp.TwoView, tmp_path: Path, suffix: str) -> None:
    result.save(tmp_path / f"a{suffix.upper() if suffix == '.csv' else suffix}")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", two_view.FILES)
def test_a_failed_write_keeps_the_old_file(
    result: tp.TwoView, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / f"a{suffix}"
    target.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        result.save(target)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_interrupted_while_writing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_outputs_are_checked(result: tp.TwoView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="must end in one of"):
        result.save(tmp_path / "a.doc")
    with pytest.raises(ArgumentError, match="does not exist"):
        result.save(tmp_path / "no" / "a.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ArgumentError, match="is a folder"):
        result.save(tmp_path / "folder.npz")
    with pytest.raises(ArgumentError, match="no picture"):
        result.plot(tmp_path / "a.png", "portrait")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match="hdf5"):
        result.save(tmp_path / "a.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.npz"]


def test_empty_results_can_be_saved_in_every_format(texture: NDArray[np.uint8], tmp_path: Path) -> None:
    empty = tp.match(texture, np.zeros((30, 40), np.uint8), **CLASSIC, geometry="homography")
    for suffix in two_view.FILES:
        empty.save(tmp_path / f"a{suffix}")
    with np.load(tmp_path / "a.npz") as file:
        assert file["points0"].shape == (0, 2) and "model" not in file
    assert json.loads((tmp_path / "a.json").read_text())["model"] is None


def test_public_names_exist() -> None:
    for name in tp.__all__:
        assert getattr(tp, name) is not None
    assert set(tp.__all__) <= set(dir(tp))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tp.nonsense
    assert issubclass(TiepointError, Exception)
