"""Key frames: where the picture moved, the sharpest at hand, the same after an interruption."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiepoint.errors import ArgumentError, InputError
from tiepoint.io import video
from tiepoint.io.video import KeyFrame, read_frames, read_key_frames, write_key_frames

SIZE = (320, 240)


def _pan(texture: NDArray[np.uint8], shifts: Sequence[float], blurred: set[int] = frozenset()) -> list:
    """Frames that slide over a picture by ``shifts`` pixels; some of them smeared."""
    wide = cv2.resize(texture, (960, 320), interpolation=cv2.INTER_CUBIC)
    frames = []
    for i, shift in enumerate(shifts):
        frame = cv2.warpAffine(wide, np.float32([[1, 0, -shift], [0, 1, -40]]), SIZE)
        frames.append(cv2.blur(frame, (9, 1)) if i in blurred else frame)
    return frames


def _write(path: Path, frames: Sequence[NDArray[np.uint8]], rate: float = 25.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture
def clip(tmp_path: Path, texture: NDArray[np.uint8]) -> Path:
    """Forty frames moving 5 pixels each, every third sharp."""
    blurred = {i for i in range(40) if i % 3}
    return _write(tmp_path / "clip.mp4", _pan(texture, [5.0 * i for i in range(40)], blurred))


def test_frames_and_their_times(clip: Path, texture: NDArray[np.uint8]) -> None:
    frames = list(read_frames(clip))
    assert [frame.index for frame in frames] == list(range(40))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(40) / 25, atol=1e-3)
    difference = frames[30].pixels.astype(int) - _pan(texture, [150.0])[0]
    assert np.abs(difference).mean() < 12  # the right frame, in RGB: blue and red swapped would be 40 off
    tail = list(read_frames(clip, start=30))
    assert tail[0].index == 30 and tail[0].time == frames[30].time
    np.testing.assert_array_equal(tail[0].pixels, frames[30].pixels)


def test_motion_decides_when_and_sharpness_which(clip: Path, tmp_path: Path) -> None:
    kept = write_key_frames(clip, tmp_path / "out", motion=28 / 320, window=3)
    # 28 pixels are 6 frames; of that frame and the two after it the sharp one is every third of the clip.
    assert all(one.index % 3 == 0 for one in kept)
    steps = np.diff([one.index for one in kept])
    assert set(steps[:-1]) == {6}, steps
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(one.name for one in kept), "key_frames.json"]
    )
    assert read_key_frames(tmp_path / "out") == kept
    assert [one.time for one in kept] == pytest.approx([one.index / 25 for one in kept], abs=1e-3)


def test_a_camera_at_rest_gives_one_key_frame(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    still = _pan(texture, [0.0])[0].astype(float)
    frames = [np.clip(still + rng.normal(0, 3, still.shape), 0, 255).astype(np.uint8) for _ in range(25)]
    assert len(write_key_frames(_write(tmp_path / "still.mp4", frames), tmp_path / "out")) == 1


def test_a_cut_and_dark_frames(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    first = _pan(texture, [0.0])[0]
    dark = [rng.normal(8, 4, first.shape).clip(0, 255).astype(np.uint8) for _ in range(10)]
    second = np.ascontiguousarray(_pan(texture, [300.0])[0][::-1])
    clip = _write(tmp_path / "cut.mp4", [first] * 10 + dark + [second] * 10)
    kept = write_key_frames(clip, tmp_path / "out")
    assert len(kept) == 2
    assert kept[0].index < 10 and kept[1].index >= 20


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(clip: Path, tmp_path: Path, after: int) -> None:
    whole = write_key_frames(clip, tmp_path / "whole", motion=0.07)

    def interrupt(_: int, kept: list[KeyFrame]) -> None:
        if len(kept) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_key_frames(clip, tmp_path / "part", motion=0.07, progress=interrupt)
    assert len(read_key_frames(tmp_path / "part")) == after
    stamp = (tmp_path / "part" / whole[0].name).stat().st_mtime_ns
    assert write_key_frames(clip, tmp_path / "part", motion=0.07) == whole
    assert (tmp_path / "part" / whole[0].name).stat().st_mtime_ns == stamp  # not done again
    for one in whole:
        assert (tmp_path / "part" / one.name).read_bytes() == (tmp_path / "whole" / one.name).read_bytes()


def test_a_finished_folder_is_not_made_again(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = write_key_frames(clip, tmp_path / "out")
    monkeypatch.setattr(video, "read_frames", lambda *_, **__: pytest.fail("read again"))
    assert write_key_frames(clip, tmp_path / "out") == kept
    with pytest.raises(ArgumentError, match="another motion"):
        write_key_frames(clip, tmp_path / "out", motion=0.2)


def test_a_folder_of_pictures_in_order_of_names(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for i, frame in enumerate(_pan(texture, [0.0, 20.0, 40.0])):
        cv2.imwrite(str(source / f"{'cab'[i]}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    (source / "notes.txt").write_text("no picture")
    (source / "bad.png").write_bytes(b"\x89PNG, but no more")
    with pytest.warns(UserWarning, match=r"bad\.png"):
        names = [frame.name for frame in read_frames(source)]
    assert names == ["a.png", "b.png", "c.png"]


def test_broken_files(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.mp4: no such file"):
        read_frames(tmp_path / "absent.mp4")
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"noise\.mp4: no video"):
        list(read_frames(noise))
    with pytest.raises(InputError, match="holds no pictures"):
        (tmp_path / "empty").mkdir()
        list(read_frames(tmp_path / "empty"))
    black = _write(tmp_path / "black.mp4", [np.zeros((*SIZE[::-1], 3), np.uint8)] * 5)
    with pytest.raises(InputError, match="all its frames are empty"):
        write_key_frames(black, tmp_path / "out")
    with pytest.raises(InputError, match="not a list of key frames"):
        (tmp_path / "out" / "key_frames.json").write_text("{}")
        read_key_frames(tmp_path / "out")


def test_a_cut_off_file_is_used_as_far_as_it_goes(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    frames = _pan(texture, [5.0 * i for i in range(60)])
    clip = tmp_path / "clip.avi"  # its header stands in front, so that a part of it can be read
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 25, SIZE)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="of 60 frames"):
        kept = write_key_frames(clip, tmp_path / "out")
    assert len(kept) >= 2 and kept[-1].index < 40


@pytest.mark.parametrize("options", [{"motion": 0.0}, {"window": 0}, {"suffix": ".gif"}])
def test_options_out_of_range(clip: Path, tmp_path: Path, options: dict) -> None:
    with pytest.raises(ArgumentError), warnings.catch_warnings():
        write_key_frames(clip, tmp_path / "out", **options)


def test_frames_of_a_folder_are_in_order_of_time(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    for number in (9, 10, 2):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), texture[:100, : 100 + number])
    frames = list(read_frames(tmp_path))
    assert [frame.name for frame in frames] == ["frame2.png", "frame9.png", "frame10.png"]
    assert [frame.pixels.shape[1] for frame in frames] == [102, 109, 110]
    assert [frame.time for frame in frames] == [0, 1, 2]


def test_times_of_a_folder_are_kept(clip: Path, tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    """Those that names are made of (TUM), and those of a video whose key frames a folder holds."""
    stamps = ["1305031102.175304", "1305031102.211214"]
    folder = tmp_path / "rgb"
    folder.mkdir()
    for stamp in stamps:
        cv2.imwrite(str(folder / f"{stamp}.png"), texture)
    assert [frame.time for frame in read_frames(folder)] == [float(stamp) for stamp in stamps]
    kept = write_key_frames(clip, tmp_path / "frames")
    assert [frame.time for frame in read_frames(tmp_path / "frames")] == [frame.time for frame in kept]


def test_frames_without_data_are_masked(tmp_path: Path, texture: NDArray[np.uint8]) -> None:
    deep = 28_000 + texture[..., 0].astype(np.uint16)
    deep[:, :9] = deep[:, -9:] = deep[:9] = deep[-9:] = 0
    cv2.imwrite(str(tmp_path / "1.png"), deep)
    cv2.imwrite(str(tmp_path / "2.png"), texture)
    first, second = read_frames(tmp_path)
    assert first.mask is not None and np.array_equal(first.mask == 0, deep == 0) and second.mask is None


@pytest.mark.parametrize("suffix", [".ts", ".m2ts", ".wmv", ".flv", ".mkv"])
def test_more_kinds_of_video(tmp_path: Path, texture: NDArray[np.uint8], suffix: str) -> None:
    """What OpenCV can write it can read; what `tiepoint map` takes for a video it can read too."""
    code = {".ts": "mp2v", ".m2ts": "mp2v", ".wmv": "WMV2", ".flv": "FLV1", ".mkv": "mp4v"}[suffix]
    path = tmp_path / f"clip{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 25.0, SIZE)
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {suffix}")
    for frame in _pan(texture, [5.0 * i for i in range(12)]):
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    assert suffix in video.VIDEO_SUFFIXES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a number of frames that a stream does not say
        assert len(list(read_frames(path))) >= 11


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(InputError, match="a pipe"):
        read_frames(tmp_path / "clip.mp4")
    os.mkfifo(tmp_path / "frame1.png")
    with pytest.raises(InputError, match="holds no pictures"):
        list(read_frames(tmp_path))


def test_bands_of_frames(tmp_path: Path, texture: NDArray[np.uint8], clip: Path) -> None:
    import tifffile

    stored = np.dstack([texture[..., ::-1], texture[..., :2]])
    tifffile.imwrite(tmp_path / "1.tif", stored, photometric="minisblack", planarconfig="contig")
    (frame,) = read_frames(tmp_path, bands=(3, 2, 1))
    assert np.array_equal(frame.pixels, texture)
    for source in (clip, 0):
        with pytest.raises(ArgumentError, match="bands are of pictures in a folder"):
            read_frames(source, bands=(1,))


def test_frames_at_even_distances(clip: Path) -> None:
    """Each part of the clip gives the sharpest of its first frames; every third frame is sharp."""
    chosen = [frame.index for frame in video.choose_frames(clip, frames=5, window=3)]
    assert chosen == [0, 9, 18, 24, 33]  # parts begin at 0, 8, 16, 24, 32
    assert [frame.index for frame in video.choose_frames(clip, every=0.4, window=3)] == [0, 12, 21, 30]
    assert [frame.index for frame in video.choose_frames(clip)] == list(range(40))
    assert len(list(video.choose_frames(clip, frames=400))) == 40
    for wrong in ({"frames": 0}, {"every": 0.0}, {"every": float("nan")}, {"frames": 3, "every": 1.0}):
        with pytest.raises(ArgumentError):
            video.choose_frames(clip, **wrong)
    with pytest.raises(ArgumentError, match="no end"):
        video.choose_frames(0, frames=3)


def test_chosen_frames_are_written_and_resumed(clip: Path, tmp_path: Path) -> None:
    whole = video.write_key_frames(clip, tmp_path / "whole", frames=6)
    assert len(whole) == 6 and [frame.name for frame in whole] == sorted(
        path.name for path in (tmp_path / "whole").glob("*.jpg")
    )

    def stop(_: int, kept: list[video.KeyFrame]) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write_key_frames(clip, tmp_path / "part", frames=6, progress=stop)
    assert video.write_key_frames(clip, tmp_path / "part", frames=6) == whole
    for other in ({}, {"frames": 7}, {"every": 1.0}):
        with pytest.raises(ArgumentError, match="made with another"):
            video.write_key_frames(clip, tmp_path / "part", **other)
