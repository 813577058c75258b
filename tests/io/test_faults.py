"""What a fault must not cost: no input, no whole result, no batch, no process that stays behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import tiepoint as tp
from tiepoint.cli import main
from tiepoint.errors import ArgumentError, InputError
from tiepoint.io import files, video
from tiepoint.mapping.exchange import hloc

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and files")
linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.fixture
def photos(tmp_path: Path, texture: np.ndarray) -> Path:
    """Twenty photographs, the texture moved a little further each time."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        PIL.Image.fromarray(np.roll(texture, 3 * i, 1)).save(folder / f"{i:02}.png")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# ---- an output is never an input ----


@posix_only
@pytest.mark.parametrize("way", ["the same", "another spelling", "symbolic link", "hard link"])
def test_match_never_replaces_its_own_photographs(photos: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = photos / "00.png", photos / "01.png"
    output = photos / "out.png"
    if way == "the same":
        output = a
    elif way == "another spelling":
        output = photos / ".." / photos.name / a.name
    elif way == "symbolic link":
        output.symlink_to(a)
    else:
        output.hardlink_to(a)
    before = tree(photos)
    assert main(["match", "-o", str(output), "--overwrite", str(a), str(b), "-f", "sift", "-m", "nearest"]) == 2
    assert "is one of the inputs" in said(capsys)
    assert tree(photos) == before


def test_a_photograph_is_replaced_only_if_that_is_asked_for(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = photos / "05.png"
    before = mine.read_bytes()
    words = ["match", "-o", str(mine), str(photos / "00.png"), str(photos / "01.png"), "-f", "sift", "-m", "nearest"]
    assert main(words) == 2
    assert "--overwrite" in said(capsys)
    assert mine.read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert mine.read_bytes() != before


def test_the_library_refuses_as_the_command_line_does(photos: Path) -> None:
    a, b = photos / "00.png", photos / "01.png"
    result = tp.match(a, b, features="sift", matcher="nearest")
    before = tree(photos)
    for path in (a, b, photos / "02.png"):
        for write in (result.save, result.plot):
            with pytest.raises(ArgumentError, match=r"inputs|exists"):
                write(path)
    assert tree(photos) == before


def test_other_verbs_keep_their_inputs(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disguised = photos / "z.npz"
    disguised.write_bytes((photos / "00.png").read_bytes())
    clip = tmp_path / "clip.txt"
    clip.write_bytes(b"a video, perhaps")
    database = tmp_path / "database.db"
    tp.mapping.Store.open(database).close()
    before = tree(tmp_path)
    for words in (
        ["extract", str(disguised), "-o", str(disguised), "-f", "sift"],
        ["track", str(clip), "-o", str(clip)],
        ["track", str(photos), "-o", str(clip), "--camera", str(clip)],
        ["db", "export", str(database), "--pairs", str(database)],
    ):
        assert main(words) == 2, words
        assert "is one of the inputs" in said(capsys)
    assert tree(tmp_path) == before


@posix_only
def test_links_in_a_folder_of_features_do_not_lead_to_photographs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = tmp_path / "features", tmp_path / "elsewhere.bin"
    folder.mkdir()
    (folder / "00.png.npz").symlink_to(photos / "00.png")
    (folder / "01.png.npz").symlink_to(elsewhere)
    before = tree(photos)
    assert main(["extract", str(photos), "-o", str(folder), "-f", "sift", "-k", "50"]) == 3
    assert "is one of the inputs" in said(capsys)
    assert tree(photos) == before
    assert np.load(elsewhere)["keypoints"].shape == (50, 2)  # a link to anything else is followed
    assert {path.name for path in folder.iterdir()} == {f"{i:02}.png.npz" for i in range(20)}


def test_folders_that_are_replaced_hold_no_inputs(photos: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    inside = scene / "undistorted" / "images"
    inside.parent.mkdir(parents=True)
    photos.rename(inside)
    before = tree(scene)
    with pytest.raises(ArgumentError, match=r"the input .* lies in it"):
        tp.mapping.map_photographs(inside, scene, features="sift", undistort=True)
    assert tree(scene) == before


def test_key_frames_do_not_replace_photographs(tmp_path: Path, photos: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "frame_000000.jpg").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match="no key frames"):
        video.write_key_frames(photos, mine)
    assert tree(mine) == {"frame_000000.jpg": b"mine"}


# ---- what is in the way of an output ----


@posix_only
def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/full"), Path("/dev/null"), tmp_path):
        kind = stat.S_IFMT(place.stat().st_mode)
        with pytest.raises(InputError, match=r"device or a pipe|is a folder"), files.atomic(place) as temporary:
            temporary.write_text("new")
        assert stat.S_IFMT(place.stat().st_mode) == kind
    link.symlink_to(target)
    for text in ("made", "replaced"):
        with files.atomic(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]


@posix_only
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_takes_the_place_of_a_link_and_not_of_what_it_leads_to(tmp_path: Path, there: bool) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "scene" / "sparse"
    place.parent.mkdir()
    place.symlink_to(elsewhere)
    if there:
        elsewhere.mkdir()
        (elsewhere / "model").write_text("somebody's")
    with pytest.raises(InputError, match="full"), files.atomic_folder(place):
        raise OSError(28, "the disk is full")
    assert place.is_symlink()
    for text in ("new", "newer"):
        with files.atomic_folder(place) as temporary:
            (temporary / "model").write_text(text)
        assert not place.is_symlink()
        assert tree(place.parent) == {"sparse/model": text.encode()}
        assert list(place.parent.iterdir()) == [place]
    assert tree(tmp_path).get("elsewhere/model") == (b"somebody's" if there else None)


def test_what_is_missing_is_named_before_a_package(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    a, gone = str(photos / "00.png"), str(tmp_path / "gone.png")
    for words, code, what in (
        (["match", gone, a, "-o", "out.h5"], 3, "gone.png: no such file"),
        (["match", a, a, "--mask1", gone, "-o", "out.pdf"], 3, "gone.png: no such file"),
        (["match", "--pairs", gone, "-o", "out.h5"], 3, "gone.png: no such file"),
        (["track", gone, "-o", "out.png"], 3, "gone.png: no such file"),
        (["match", a, a, "-o", "out.h5"], 5, "tiepoint[hdf5]"),
        (["track", str(photos), "-o", "out.txt"], 5, "tiepoint[map]"),
    ):
        assert main(words) == code, words
        assert what in said(capsys), words


def test_a_folder_survives_when_its_successor_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "sparse"
    place.mkdir()
    (place / "model").write_text("old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == place and not self.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="Input/output error"), files.atomic_folder(place) as temporary:
        (temporary / "model").write_text("new")
    assert tree(tmp_path) == {"sparse/model": b"old"}


KILLED = """
import os, sys
from pathlib import Path
from tiepoint.io import files
place, rename = Path(sys.argv[1]), Path.rename
def killed(self, target):
    if target == place:
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.rename = killed
with files.atomic(place.with_name("result.csv")) as a, files.atomic_folder(place) as b:
    a.write_text("half"), Path(b, "model").write_text("new")
"""


@posix_only
def test_what_killed_runs_leave_is_put_right(tmp_path: Path) -> None:
    place = tmp_path / "sparse"
    place.mkdir()
    (place / "model").write_text("old")
    (tmp_path / ".hidden-by-the-user.csv").write_text("mine")
    assert subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False).returncode == -signal.SIGKILL
    assert not place.exists()  # killed between the two renames
    files._looked_through.clear()
    with files.atomic(tmp_path / "result.csv") as temporary:
        temporary.write_text("whole")
    assert tree(tmp_path) == {"sparse/model": b"old", "result.csv": b"whole", ".hidden-by-the-user.csv": b"mine"}


@posix_only
def test_what_living_runs_write_is_left_alone(tmp_path: Path) -> None:
    with files.atomic(tmp_path / "a.csv") as mine:
        mine.write_text("under way")
        files._looked_through.clear()
        with files.atomic(tmp_path / "b.csv") as other:
            other.write_text("whole")
    assert tree(tmp_path) == {"a.csv": b"under way", "b.csv": b"whole"}


@posix_only
def test_temporary_folders_of_killed_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os\nfrom tiepoint.io.files import scratch_folder\n"
        "with scratch_folder() as folder:\n    (folder / 'a').write_text('x'), os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    (tmp_path / "tiepoint-notes").mkdir()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with files.scratch_folder() as mine, files.scratch_folder() as other:
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name, "tiepoint-notes"}
    assert [path.name for path in tmp_path.iterdir()] == ["tiepoint-notes"]


# ---- sources that end ----


def test_a_camera_that_is_taken_away_leaves_a_path(
    tmp_path: Path, texture: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Camera:
        def __init__(self, number: int) -> None:
            self.left = 4

        def set(self, *_: object) -> bool:
            return True

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return (True, np.roll(texture, 5 * self.left, 1)) if self.left >= 0 else (False, None)

        def release(self) -> None: ...

    monkeypatch.setattr(video.cv2, "VideoCapture", Camera)
    monkeypatch.chdir(tmp_path)
    assert main(["track", "7", "-o", "path.txt", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["frames"] == 4
    assert "no more pictures after 4" in err
    assert Path("path.txt").read_text().startswith("#")


def test_a_source_that_fails_on_the_way_leaves_a_path(
    tmp_path: Path, texture: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def frames(source: object, **options: object) -> Iterator[video.Frame]:
        yield video.Frame(0, 0.0, texture, "a")
        yield video.Frame(1, 0.1, np.roll(texture, 4, 1), "b")
        raise InputError("the stream broke off")

    monkeypatch.setattr(video, "read_frames", frames)
    path = tmp_path / "path.txt"
    assert main(["track", "7", "-o", str(path)]) == 3
    out, err = capsys.readouterr()
    assert "the stream broke off; wrote the path so far" in err
    assert "of 2 frames" in out
    assert path.exists()


# ---- packages that are missing ----


@pytest.mark.parametrize(("package", "suffix"), [("h5py", ".h5"), ("matplotlib", ".png"), ("matplotlib", ".svg")])
def test_a_missing_package_is_found_before_the_work(
    package: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    photograph = tmp_path / "a.jpg"
    photograph.write_bytes(b"damaged: reading it, the first piece of work, would say so")
    assert main(["match", str(photograph), str(photograph), "-o", str(tmp_path / f"a{suffix}")]) == 5
    assert "pip install 'tiepoint[" in said(capsys)


def test_map_asks_for_its_packages_before_it_cuts_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"no video at all, which cutting it would find out")
    for package, options in (("ray", ["--ray", "local"]), ("pycolmap", [])):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert main(["map", str(clip), "-o", str(tmp_path / "out"), *options]) == 5
        assert "pip install" in said(capsys)
    assert not (tmp_path / "out").exists()


PACKAGES = [
    ("pycolmap", ["map", "none", "-o", "out"]),
    ("pycolmap", ["db", "info", "none.db"]),
    ("kornia", ["map", "photos", "-o", "out", "-f", "keynet"]),
    ("kornia", ["extract", "none.jpg", "-f", "keynet", "-o", "features"]),
]


@pytest.mark.parametrize(
    ("package", "words"), PACKAGES, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_each_verb_asks_for_its_packages_first(
    package: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The inputs do not exist, or hold nothing that can be read: the first piece of work would say so."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/a.jpg").write_text("no photograph")
    for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)  # another test may have imported it
    monkeypatch.setitem(sys.modules, package, None)
    before = tree(tmp_path)
    assert main(words) == 5, said(capsys)
    assert "pip install" in said(capsys)
    assert tree(tmp_path) == before


# ---- scripts and signals ----

SCRIPT = """
import tiepoint as tp
from pathlib import Path
from tiepoint.mapping.steps.images import new_images
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.store import Store
print("begun")
found, left_out = new_images("photos")
with Store.open("database.db") as store:
    store.add_images(found)
    print(extract_into(store, "photos", tp.features.load("sift", max_keypoints=64), workers=2))
"""


def test_the_documented_script_needs_no_main_guard(photos: Path) -> None:
    script = photos.parent / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], cwd=photos.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begun") == 1  # the workers did not run it again
    assert "extracted=20" in done.stdout


def test_workers_know_the_classes_of_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiepoint.features.sift import SIFT
    from tiepoint.mapping.workers import context_for

    class Mine(SIFT): ...

    Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    default = multiprocessing.get_context("spawn")
    assert context_for(SIFT()) is not default
    assert context_for(Mine()) is default  # its workers run the script, to know it


def children(parent: int) -> set[int]:
    """Return the processes that this one started, also after it died: those of its group."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == parent and fields[0] != "Z" and int(entry.name) != parent:  # group
                found.add(int(entry.name))
    return found


@linux_only
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)])
def test_no_worker_outlives_a_map_that_was_stopped(photos: Path, texture: np.ndarray, name: str, code: int) -> None:
    for i in range(20, 30):
        PIL.Image.fromarray(np.roll(texture, (i, 3 * i), (0, 1)).repeat(5, 0).repeat(5, 1)).save(photos / f"{i}.jpg")
    words = [sys.executable, "-m", "tiepoint", "map", "photos", "-o", "out", "--features", "sift", "--workers", "2"]
    with subprocess.Popen(
        words,
        cwd=photos.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # `nohup pytest` would hand on SIG_IGN
    ) as run:
        deadline = time.monotonic() + 120
        database = photos.parent / "out/database.db"
        while time.monotonic() < deadline:
            with sqlite3.connect(database) if database.exists() else sqlite3.connect(":memory:") as db:
                try:
                    if db.execute("SELECT count(*) FROM keypoints").fetchone()[0] > 2:  # two are the plan's
                        break
                except sqlite3.Error:
                    pass
            assert run.poll() is None, run.stderr and run.stderr.read()
            time.sleep(0.1)
        assert len(children(run.pid)) >= 2
        run.send_signal(getattr(signal, name))
        _, err = run.communicate(timeout=30)
        assert run.returncode == code
    while children(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children(run.pid)
    if name != "SIGKILL":
        assert err.splitlines()[-1] == "tiepoint: interrupted"
        assert "***" not in err  # how a C++ trace begins
    assert {"PRAGMA", "ok"} & {sqlite3.connect(database).execute("PRAGMA integrity_check").fetchone()[0]}


# ---- the operating system refuses ----


def test_evaluation_on_a_disk_that_cannot_be_written(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    data = next(path.parent for path in sorted((data_dir / "eval").glob("*/pairs.json")))
    assert main(["evaluate", "sift+nearest", "--data", str(data), "--limit", "1", "-o", str(in_the_way / "out")]) == 3
    err = said(capsys)
    assert "cannot be written" in err
    assert "bug" not in err


def test_summaries_of_an_evaluation_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiepoint import evaluation

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="No space left"):
            evaluation.save([], tmp_path)
    assert tree(tmp_path) == {}
    assert {path.name for path in evaluation.save([], tmp_path)} == {"summary.json", "summary.csv", "summary.md"}


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error", "disk"), PermissionError(13, "Permission denied", "disk")]
)
def test_refusals_of_the_system_are_no_bug(
    error: OSError, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tiepoint.two_view.match", refuse)
    assert main(["match", str(photos / "00.png"), str(photos / "01.png")]) == 3
    err = said(capsys)
    assert err.startswith(f"tiepoint: disk: {error.strerror}")
    assert "bug" not in err


@posix_only
def test_a_reader_that_has_seen_enough_is_no_bug(tmp_path: Path) -> None:
    script = "import sys, time; from tiepoint.cli import main; time.sleep(0.5); sys.exit(main(['weights', 'list']))"
    words = f'{sys.executable} -c "{script}"'
    done = subprocess.run(["sh", "-c", f"{words} | true"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


@posix_only
def test_pipes_do_not_hang_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiepoint.mapping.pairs import from_list
    from tiepoint.mapping.steps.align import read_distances, read_positions
    from tiepoint.mapping.steps.images import given_cameras
    from tiepoint.mapping.store import Store

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (
        lambda: from_list(pipe, {}),
        lambda: given_cameras(pipe),
        lambda: read_distances(pipe, ["a.jpg"]),
        lambda: read_positions(pipe, ["a.jpg"]),
        lambda: Store.open(pipe),
        lambda: next(video.read_frames(pipe)),
        lambda: files.read_json(pipe),
        lambda: hloc._opened(pipe).__enter__(),
    ):
        with pytest.raises(InputError, match="device or a pipe"):
            read()


def test_progress_of_a_map_is_said_where_nobody_watches(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiepoint.mapping import progress

    for path in sorted(photos.iterdir())[6:]:
        path.unlink()
    clock = iter(range(0, 10**9, 61))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    main(["map", str(photos), "-o", str(tmp_path / "out"), "-f", "sift", "--workers", "0", "-k", "100"])
    err = said(capsys)
    assert "extracting sift: 6 of 6" in err
    assert "matching: 15 of 15" in err


@posix_only
def test_a_name_with_a_line_break_costs_one_photograph(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiepoint.mapping.steps.images import new_images

    (photos / "03.png").rename(photos / "a\nb.png")
    found, skipped = new_images(photos)
    assert len(found) == 19
    assert [name for name, _ in skipped] == ["a\nb.png"]
    assert main(["extract", str(photos), "-o", str(tmp_path / "out"), "-f", "sift", "-k", "50"]) == 3
    assert "1 of 20 images could not be used" in said(capsys)
    assert len(list((tmp_path / "out").iterdir())) == 19
