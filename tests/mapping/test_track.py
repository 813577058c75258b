"""Visual odometry in a made-up room, where the true path is known."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from textured_room import CAMERA, Pose, Room, align, look
from tiepoint.cli import main
from tiepoint.cli.track import draw_path
from tiepoint.errors import ArgumentError, InputError
from tiepoint.geometry import Camera
from tiepoint.io.video import Frame
from tiepoint.mapping.exchange.trajectories import write_tum
from tiepoint.mapping.online.track import State, Tracker


def _walk(count: int) -> list[Pose]:
    """Forward through the room on a curve, looking about."""
    steps = np.linspace(0, 1, count)
    return [look((np.sin(2 * s), -0.3 * s, -2 + 4 * s), 0.35 * np.sin(3 * s), 0.1 * s) for s in steps]


def _frames(pictures: Sequence[NDArray[np.uint8]], start: int = 0) -> Iterator[Frame]:
    for i, picture in enumerate(pictures, start):
        yield Frame(i, i / 10, picture, f"frame_{i:06d}")


def _tracker(**options: object) -> Tracker:
    return Tracker(CAMERA, "sift", "nearest", **{"max_keypoints": 700, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def room() -> Room:
    return Room()


@pytest.fixture(scope="module")
def walk(room: Room) -> tuple[list[Pose], list[NDArray[np.uint8]]]:
    poses = _walk(40)
    return poses, [room.photograph(pose) for pose in poses]


@pytest.fixture(scope="module")
def tracked(walk: tuple[list[Pose], list[NDArray[np.uint8]]]) -> tuple[Tracker, list[State]]:
    tracker = _tracker()
    return tracker, [tracker(frame) for frame in _frames(walk[1])]


def _centres(poses: Sequence[Pose]) -> NDArray[np.float64]:
    return np.array([-R.T @ t for R, t in poses])


def test_the_path_is_the_true_one(walk: tuple, tracked: tuple[Tracker, list[State]]) -> None:
    tracker, _ = tracked
    found = tracker.trajectory()
    assert [pose.index for pose in found] == list(range(40))  # also those before the map began
    true = _centres(walk[0])
    error = np.linalg.norm(align(np.array([pose.centre for pose in found]), true) - true, axis=1)
    length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    assert np.sqrt((error**2).mean()) < 0.01 * length
    # World frames differ by a rotation, which is the same for all frames.
    turns = [found[i].R.T @ walk[0][i][0] for i in range(40)]
    angles = [np.rad2deg(np.linalg.norm(cv2.Rodrigues(turns[0].T @ turn)[0])) for turn in turns]
    assert max(angles) < 0.5


def test_states_tell_what_happens(tracked: tuple[Tracker, list[State]]) -> None:
    tracker, states = tracked
    first = next(i for i, state in enumerate(states) if state.status == "tracked")
    assert 0 < first < 10 and all(state.status == "starting" for state in states[:first])
    assert all(state.status == "tracked" and state.pose is not None for state in states[first:])
    assert states[first].is_key_frame and states[first].key_frames == 2
    assert 3 <= states[-1].key_frames < 30
    assert states[-1].key_frames == sum(state.is_key_frame for state in states) + 1  # the first of all was not told
    # The map is a model that COLMAP understands, with errors of less than a pixel.
    tracker.reconstruction.update_point_3d_errors()
    assert tracker.reconstruction.compute_mean_reprojection_error() < 0.7
    assert tracker.reconstruction.compute_mean_track_length() > 2.3  # of four key frames
    depth = [point.xyz[2] for point in tracker.reconstruction.points3D.values()]
    assert 0.1 < np.median(depth) < 10


def test_equal_frames_give_equal_paths(walk: tuple, tracked: tuple[Tracker, list[State]]) -> None:
    again = _tracker()
    for frame in _frames(walk[1][:15]):
        state = again(frame)
    before = tracked[1][14]
    assert state.pose is not None and before.pose is not None
    np.testing.assert_array_equal(state.pose.R, before.pose.R)
    np.testing.assert_array_equal(state.pose.t, before.pose.t)


def test_a_lens_with_distortion_and_pictures_that_are_let_go(room: Room) -> None:
    camera = Camera("SIMPLE_RADIAL", 320, 240, (260.0, 159.5, 119.5, -0.12))
    poses = _walk(40)[:14]
    tracker = Tracker(camera, "sift", "nearest", max_keypoints=700)
    pictures = []
    for i, pose in enumerate(poses):
        picture = room.photograph(pose, camera).copy()
        pictures.append(weakref.ref(picture))
        tracker(Frame(i, i / 10, picture, str(i)))
    del picture
    true = _centres(poses)
    found = np.array([pose.centre for pose in tracker.trajectory()])
    length = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
    assert np.linalg.norm(align(found, true) - true, axis=1).max() < 0.02 * length
    assert tracker.reconstruction.cameras[1].model_name == "PINHOLE"
    assert sum(reference() is not None for reference in pictures) == 0  # a long video must not fill the memory


def test_lost_and_found(walk: tuple, room: Room) -> None:
    poses, pictures = walk
    elsewhere = Room(seed=9)
    tracker = _tracker()
    for frame in _frames(pictures[:30]):
        tracker(frame)
    lost = [tracker(frame).status for frame in _frames([elsewhere.photograph(pose) for pose in poses[:3]], 30)]
    assert lost == ["lost"] * 3
    # It comes back at the place of frame 20, a little aside, and goes on from there.
    aside = [
        look(tuple(_centres(poses)[i] + (0.05, 0.02, 0)), 0.35 * np.sin(3 * i / 39), 0.1 * i / 39) for i in (20, 21)
    ]
    back = [tracker(frame) for frame in _frames([room.photograph(pose) for pose in aside], 33)]
    assert [state.status for state in back] == ["relocalised", "tracked"]
    found = {pose.index: pose.centre for pose in tracker.trajectory()}
    assert not found.keys() & {30, 31, 32}
    true = _centres([*poses[:30], *aside])
    got = align(np.array([found[i] for i in (*range(30), 33, 34)]), true)
    assert np.linalg.norm(got - true, axis=1)[-2:].max() < 0.1


def test_a_loop_is_closed(room: Room) -> None:
    """Round the room close to its walls, a little more than once: the end sees again what the start saw."""
    poses = []
    for a in np.linspace(0, 2 * np.pi, 106):
        centre = (1.7 * np.sin(a), 0.15 * np.sin(3 * a), 3 - 4.7 * np.cos(a))
        yaw = np.arctan2(1.7 * np.cos(a), 4.7 * np.sin(a)) - np.deg2rad(40)
        poses.append(look(centre, yaw, 0.05 * np.sin(5 * a)))
    tracker = _tracker(max_keypoints=400)
    for frame in _frames([room.photograph(pose) for pose in poses]):
        tracker(frame)
    closed = [loop for loop in tracker.loops if not loop.refused]
    assert closed and all(loop.index > 90 and loop.old_index < 10 for loop in closed)
    true = _centres(poses)

    def error() -> float:
        found = np.array([pose.centre for pose in tracker.trajectory()])
        return float(np.sqrt(((align(found, true) - true) ** 2).sum(axis=1).mean()))

    before = error()
    tracker.adjust()
    # Without the loop it is 0.03 m, and 0.01 m when all is adjusted.
    assert error() < 0.008 and error() < before


def test_turning_on_the_spot_gives_no_map(room: Room) -> None:
    tracker = _tracker()
    turning = [look((0, 0, 0), yaw) for yaw in np.linspace(0, 0.4, 8)]
    states = [tracker(frame) for frame in _frames([room.photograph(pose) for pose in turning])]
    assert all(state.status == "starting" and state.pose is None for state in states)
    assert tracker.trajectory() == []


def test_a_map_that_fails_at_once_is_thrown_away(walk: tuple) -> None:
    poses, pictures = walk
    elsewhere = Room(seed=9)
    tracker = _tracker()
    for frame in _frames(pictures[:8]):
        state = tracker(frame)
    assert state.key_frames >= 2
    states = [tracker(frame) for frame in _frames([elsewhere.photograph(pose) for pose in poses[:16]], 8)]
    assert states[0].status == "starting" and states[0].key_frames == 0
    assert states[-1].status == "tracked"
    assert min(pose.index for pose in tracker.trajectory()) == 8


def test_wrong_use(walk: tuple) -> None:
    with pytest.raises(InputError, match="is 100x80 pixels, but the camera has 320x240"):
        _tracker()(Frame(0, 0.0, np.zeros((80, 100, 3), np.uint8), "a.png"))
    tracker = _tracker()
    tracker(Frame(3, 0.3, walk[1][0], "a.png"))
    with pytest.raises(ArgumentError, match="frame 3 cannot follow frame 3"):
        tracker(Frame(3, 0.3, walk[1][1], "b.png"))
    with pytest.raises(ArgumentError, match="window"):
        _tracker(window=2)
    with pytest.raises(ArgumentError, match="no matcher is called"):
        Tracker(CAMERA, "sift", "none")


def test_tum_files(tracked: tuple[Tracker, list[State]], tmp_path: Path) -> None:
    poses = tracked[0].trajectory()
    write_tum(tmp_path / "path.txt", poses)
    table = np.loadtxt(tmp_path / "path.txt")
    assert table.shape == (40, 8)
    np.testing.assert_allclose(table[:, 0], np.arange(40) / 10)
    for row, pose in zip(table, poses, strict=True):
        x, y, z, w = row[4:]
        axis = np.array([x, y, z])
        turned, _ = cv2.Rodrigues(2 * np.arctan2(np.linalg.norm(axis), w) * axis / max(np.linalg.norm(axis), 1e-12))
        np.testing.assert_allclose(turned, pose.R.T, atol=1e-6)  # camera to world
        np.testing.assert_allclose(row[1:4], pose.centre, atol=1e-6)


def test_command_line(walk: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, picture in enumerate(walk[1][:10]):
        cv2.imwrite(str(folder / f"{i:03d}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path = tmp_path / "path.txt"
    options = ["--camera", "SIMPLE_PINHOLE,260,160,120", "-m", "nearest", "-k", "700"]
    others = [tmp_path / name for name in ("path.kitti", "points.ply", "page.html")]
    outputs = [word for other in others for word in ("-o", str(other))]
    assert main(["track", str(folder), "-o", str(path), *outputs, *options]) == 0
    said = capsys.readouterr().out
    assert "10 of 10 frames have a pose, 0 were lost" in said and "0 loops found, 0 closed" in said
    tum, kitti = np.loadtxt(path), np.loadtxt(others[0]).reshape(-1, 3, 4)
    assert len(tum) == 10
    np.testing.assert_allclose(kitti[:, :, 3], tum[:, 1:4], atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "path_times.txt"), tum[:, 0], atol=1e-6)
    cloud = pycolmap.Reconstruction()
    cloud.import_PLY(str(others[1]))
    colours = np.array([point.color for point in cloud.points3D.values()])
    assert len(colours) > 100 and colours.std() > 10  # as the walls have them
    page = others[2].read_text()
    assert '"000.png"' in page and "10 of 10 frames have a pose" in page
    assert page.count("/9j/") >= 2  # JPEGs of key frames
    assert main(["track", str(folder), "-o", str(path), "--focal", "260", *options]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main(["track", str(folder), "-o", str(path), "--camera", ""]) == 2
    assert main(["track", str(tmp_path / "none.mp4"), "-o", str(path)]) == 3
    assert main(["track", str(folder), "-o", str(tmp_path / "path.csv")]) == 2


def test_bands_on_the_command_line(walk: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path of the named bands is that of the colour pictures which they hold."""
    tifffile = pytest.importorskip("tifffile")
    bands, colours = tmp_path / "bands", tmp_path / "colours"
    for folder in (bands, colours):
        folder.mkdir()
    for i, picture in enumerate(walk[1][:10]):
        empty = np.zeros_like(picture[..., 0])
        five = np.dstack([empty, picture[..., ::-1], empty])  # blue, green and red are bands 2, 3 and 4
        tifffile.imwrite(bands / f"{i}.tif", five, photometric="minisblack", planarconfig="contig")
        cv2.imwrite(str(colours / f"{i}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    options = ["--camera", "SIMPLE_PINHOLE,260,160,120", "-m", "nearest", "-k", "700"]
    named, plain = tmp_path / "named.txt", tmp_path / "plain.txt"
    assert main(["track", str(bands), "-o", str(named), *options]) == 3
    assert "has 5 bands" in capsys.readouterr().err
    assert not named.exists()
    assert main(["track", str(bands), "-o", str(named), "--bands", "4,3,2", *options]) == 0
    assert main(["track", str(colours), "-o", str(plain), *options]) == 0
    np.testing.assert_array_equal(np.loadtxt(named), np.loadtxt(plain))
    assert len(np.loadtxt(plain)) == 10
    assert main(["track", str(bands), "-o", str(named), "--bands", "6", *options]) == 3
    assert "no band 6" in capsys.readouterr().err
    assert main(["track", str(bands), "-o", str(named), "--bands", "4,x", *options]) == 2


def test_the_drawn_path_keeps_its_shape() -> None:
    circle = [(float(np.cos(a)), float(np.sin(a))) for a in np.linspace(0, 2 * np.pi, 200)]
    drawn = draw_path(circle, 60, 21)
    rows = [i for i, line in enumerate(drawn) if line.strip()]
    columns = [i for i in range(60) if any(line[i] != " " for line in drawn)]
    assert len(rows) == 21 and abs(len(columns) - 41) <= 1  # round, where a character is twice as high as wide
    assert draw_path([(3.0, 4.0)], 5, 3) == ["     ", "  @  ", "     "]
    assert draw_path([], 2, 1) == ["  "]
