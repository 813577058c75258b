"""`tiepoint.track`: a whole sequence at once, of photographs in memory, too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from textured_room import CAMERA, Room, look
from tiepoint.errors import ArgumentError, InputError, MissingDependencyError
from tiepoint.mapping.online import live

pytest.importorskip("pycolmap")


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    """What a camera sees that moves to the right."""
    room = Room()
    return [room.photograph(look((0.12 * n - 0.5, 0.0, 0.0)), CAMERA) for n in range(8)]


def test_frames_of_every_kind_give_one_path(frames: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    for n, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(tmp_path / f"{n}.png")
    seen = []
    expected = tp.track(
        tmp_path, focal=260.0, max_keypoints=500, progress=lambda state, frame: seen.append((state.status, frame.index))
    )
    assert [index for _, index in seen] == list(range(8)) and seen[-1][0] == "tracked"
    centres = np.array([pose.centre for pose in expected.poses])
    steps = np.diff(centres, axis=0)
    assert len(centres) > 4 and (steps[:, 0] > 0).all() and np.abs(steps[:, 1:]).max() < 0.2 * steps[:, 0].min()
    mixed = [torch.from_numpy(f).permute(2, 0, 1) if n % 2 else PIL.Image.fromarray(f) for n, f in enumerate(frames)]
    found = tp.track(mixed, tmp_path / "path.txt", camera=CAMERA, max_keypoints=500)
    np.testing.assert_allclose([pose.centre for pose in found.poses], centres, atol=1e-6)
    assert len(np.loadtxt(tmp_path / "path.txt")) == len(centres)
    assert repr(found) == f"<Trajectory: {len(centres)} of 8 frames have a pose, {found.lost} were lost>"


def test_ctrl_c_and_a_broken_source_leave_the_path_so_far(frames: list[NDArray[np.uint8]]) -> None:
    def broken(error: BaseException) -> Iterator[NDArray[np.uint8]]:
        yield from frames[:3]
        raise error

    stopped = tp.track(broken(KeyboardInterrupt()), focal=260.0, max_keypoints=500)
    assert stopped.interrupted and stopped.frames == 3 and not stopped.problem
    torn = tp.track(broken(InputError("the stream broke off")), focal=260.0, max_keypoints=500)
    assert not torn.interrupted and torn.frames == 3 and torn.problem == "the stream broke off"


def test_what_cannot_be_tracked(frames: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames"):
        tp.track([])
    with pytest.raises(ArgumentError, match="must end in"):
        tp.track(frames, tmp_path / "path.csv")
    with pytest.raises(ArgumentError, match="exclude each other"):
        tp.track(frames, camera="SIMPLE_PINHOLE:260,160,120", focal=260.0)


def test_a_recording_holds_path_points_and_pictures(frames: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    """Read back with rerun's own reader."""
    outputs, told = [tmp_path / "path.rrd", tmp_path / "path.txt"], []
    found = tp.track(
        frames, outputs, camera=CAMERA, max_keypoints=500, progress=lambda state, frame: told.append(state.pose)
    )
    columns: dict[str, list[Any]] = {}
    for chunk in pytest.importorskip("rerun.chunk").RrdReader(tmp_path / "path.rrd").stream().to_chunks():
        batch = chunk.to_record_batch()
        for name in batch.schema.names:
            columns.setdefault(f"{chunk.entity_path} {name}", []).extend(batch.column(name).to_pylist())
    places = np.array(columns["/world/camera Transform3D:translation"]).reshape(-1, 3)
    assert len(places) > 4
    np.testing.assert_allclose(places, [pose.centre for pose in told if pose is not None], atol=1e-6)
    path = np.array(columns["/world/path LineStrips3D:strips"][-1][0])
    centres = np.array([pose.centre for pose in found.poses])
    np.testing.assert_allclose(path, centres, atol=1e-5)
    points = np.array(columns["/world/points Points3D:positions"][-1])
    expected = np.array([point.xyz for point in found.reconstruction.points3D.values()])
    np.testing.assert_allclose(points, expected, atol=1e-4)
    pictures = columns["/world/camera/picture EncodedImage:blob"]
    assert len(pictures) == len(frames)
    shown = [np.asarray(PIL.Image.open(BytesIO(bytes(picture[0]))), np.float64) for picture in pictures]
    assert [int(np.abs(one - frames).mean(axis=(1, 2, 3)).argmin()) for one in shown] == list(range(len(frames)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["path.rrd", "path.txt"]


@pytest.mark.parametrize("options", [{"view": True}, {"output": "path.rrd"}])
def test_rerun_is_asked_for_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(MissingDependencyError, match=r"tiepoint\[rerun\]"):
        tp.track([np.zeros((9, 9, 3), np.float64)], **options)  # the first frame, once looked at, would be refused
    assert not list(tmp_path.iterdir())


def test_without_a_screen_the_viewer_is_one_message(frames: list[NDArray[np.uint8]], monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "PORT", 47_513)  # where no viewer listens
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"there is no screen.*-o path\.rrd"):
        tp.track(frames, camera=CAMERA, view=True)
