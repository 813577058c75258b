"""Databases, models, HDF5 files and weights that others made: what they say is checked where it is read."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import safetensors.torch
import torch

import tiepoint as tp
from tiepoint import weights
from tiepoint.cli import main
from tiepoint.errors import ArgumentError, InputError, WeightsError
from tiepoint.features.cairn import CairnConfig
from tiepoint.io import arrays, files
from tiepoint.io.model_files import read_model
from tiepoint.mapping import Store
from tiepoint.mapping.exchange import colmap as exports
from tiepoint.mapping.exchange import hloc
from tiepoint.mapping.inputs import read_settings
from tiepoint.mapping.store import NewImage, PairResult
from tiepoint.matchers.lightglue import LightGlueConfig
from tiepoint.types import Features

h5py = pytest.importorskip("h5py")

BAD_NAMES = [
    "../../x.jpg",
    "/abs/x.jpg",
    "a/../../x.jpg",
    "..",
    "",
    "a\nb.jpg",
    "a\x1b[31m.jpg",
    "a\x00b",
    "a\u2028b.jpg",
]
CAMERA = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[768, 320, 240, 0])


def features(n: int = 3, **changes: Any) -> Features:
    values = {
        "keypoints": torch.tensor([[10.0 * i, 5.0 * i] for i in range(n)]),
        "scores": torch.ones(n),
        "descriptors": torch.eye(64)[:n],
        "image_size": (640, 480),
        "extractor": "mine",
    }
    return Features(**{**values, **changes})


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Two images with three keypoints each, and their matches."""
    path = tmp_path / "database.db"
    with Store.open(path) as store:
        store.add_images([NewImage("a.jpg", CAMERA, "one", (60.0, 10.0, 5.0)), NewImage("b.jpg", CAMERA, "one")])
        store.write_features([(1, features()), (2, features())])
        matches, E = np.array([[0, 0], [1, 2]]), np.eye(3)
        store.write_matches(
            [PairResult(1, 2, matches, np.ones(2), True, np.ones(2, bool), "CALIBRATED", E=E, R=E, t=E[0])]
        )
    return path


def change(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement, values).rowcount > 0


def read_all(path: Path) -> None:
    with Store.open(path, create=False) as store:
        for image in store.images():
            store.features(image.image_id)
        store.keypoint_counts()
        store.matches(1, 2)
        store.geometry(2, 1)


# ---- names ----


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_folder_are_refused(name: str, database: Path, tmp_path: Path) -> None:
    change(database, "UPDATE images SET name = ? WHERE image_id = 1", name)
    with pytest.raises(InputError, match="an image is called"):
        read_all(database)
    with pytest.raises(InputError, match="an image is called"):
        hloc.write_pairs(Store.open(database), tmp_path / "pairs.txt", [(1, 2)])
    assert not (tmp_path / "pairs.txt").exists()
    with pytest.raises(InputError, match="an image is called"):
        arrays.FeatureWriter(tmp_path / "out").write(name, features())


@pytest.mark.parametrize(
    "name", ["a.jpg", "day 1/a b.jpg", "..a.jpg", "a..jpg", "größe/写真.jpg", "a\u3000b.jpg", "a:b.jpg"]
)
def test_names_that_are_odd_but_harmless_are_read(name: str, database: Path) -> None:
    change(database, "UPDATE images SET name = ? WHERE image_id = 1", name)
    with Store.open(database) as store:
        assert name in {image.name for image in store.images()}


def test_undistortion_does_not_write_outside_of_its_folder(tmp_path: Path) -> None:
    model = pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions(num_points3D=50))
    next(iter(model.images.values())).name = "../../outside.jpg"
    with pytest.raises(InputError, match="an image is called"):
        exports.write_undistorted(model, tmp_path, tmp_path / "deep" / "er")
    assert not any(tmp_path.rglob("*.jpg"))


# ---- contents of databases ----

DAMAGE = [
    "UPDATE keypoints SET data = x'00' WHERE image_id = 1",
    "UPDATE keypoints SET data = NULL WHERE image_id = 1",
    "UPDATE keypoints SET rows = 3000000000 WHERE image_id = 1",
    "UPDATE keypoints SET rows = -1 WHERE image_id = 1",
    "UPDATE keypoints SET cols = 3 WHERE image_id = 1",
    "UPDATE keypoints SET rows = 'many' WHERE image_id = 1",
    "UPDATE keypoints SET data = 'text of 24 characters...' WHERE image_id = 1",
    "UPDATE tiepoint_features SET scores = x'0000' WHERE image_id = 1",
    "UPDATE tiepoint_features SET kind = 'telepathy' WHERE image_id = 1",
    "UPDATE tiepoint_features SET descriptors = x'00' WHERE image_id = 1",
    "UPDATE tiepoint_features SET cols = 7 WHERE image_id = 1",
    "UPDATE cameras SET params = x'00'",
    "UPDATE cameras SET params = x''",
    "UPDATE cameras SET model = 99",
    "UPDATE cameras SET width = 0",
    "UPDATE cameras SET width = -640",
    "UPDATE images SET camera_id = 77 WHERE image_id = 1",
    "UPDATE pose_priors SET position = x'00'",
    "UPDATE matches SET data = x'00'",
    "UPDATE matches SET rows = 1000000000",
    "UPDATE matches SET data = x'00000000ffffffff0000000000000000'",
    "UPDATE two_view_geometries SET data = x'00000000ffffffff0000000000000000'",
    "UPDATE two_view_geometries SET E = x'00'",
    "UPDATE two_view_geometries SET config = 99",
    "UPDATE two_view_geometries SET qvec = x'0000000000000000'",
]


@pytest.mark.parametrize("statement", DAMAGE)
def test_wrong_contents_are_named(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("PRAGMA foreign_keys = OFF")
        assert db.execute(statement).rowcount > 0
    lacking = ".*refers to 77, which is not there" if "77" in statement else ""
    with pytest.raises(InputError, match=rf"database\.db: damaged{lacking}"):
        read_all(database)


@pytest.mark.parametrize("value", [np.nan, np.inf, -50.0, 1e6])
def test_keypoints_outside_of_the_photograph_are_refused(database: Path, value: float) -> None:
    table = np.full((3, 2), 5, np.float32)
    table[1, 0] = value
    change(database, "UPDATE keypoints SET data = ? WHERE image_id = 1", table.tobytes())
    with pytest.raises(InputError, match="damaged"):
        read_all(database)
    bad = features(keypoints=torch.from_numpy(table))
    with Store.open(database) as store, pytest.raises(ArgumentError, match=r"not finite|outside"):
        store.write_features([(2, bad)])


def test_scores_that_are_no_numbers_are_refused(database: Path) -> None:
    with Store.open(database) as store, pytest.raises(ArgumentError, match="scores"):
        store.write_features([(1, features(scores=torch.tensor([1.0, np.nan, 1.0])))])
    with pytest.raises(ArgumentError, match="scores must be finite"):
        PairResult(1, 2, np.array([[0, 0]]), np.array([np.nan]))


def test_a_pair_in_both_directions_is_one_pair(database: Path) -> None:
    one = PairResult(1, 2, np.array([[0, 0]]), np.array([0.5]))
    other = PairResult(2, 1, np.array([[1, 2]]), np.array([0.7]))
    with Store.open(database) as store:
        store.write_matches([one, other])
        found = store.matches(1, 2)
    assert found is not None
    assert found.indices.tolist() == [[2, 1]]
    np.testing.assert_allclose(found.scores, [0.7])


# ---- a scene that cannot be written to ----


@pytest.mark.skipif(not hasattr(os, "geteuid") or shutil.which("setpriv") is None, reason="needs to drop root's rights")
def test_a_read_only_database_can_be_read(database: Path) -> None:
    with closing(sqlite3.connect(database)) as db:
        expected = db.execute("SELECT count(*) FROM keypoints").fetchone()
    database.chmod(0o444)
    folder = database.parent
    temporary = Path(tempfile.gettempdir())
    for parent in (parent for parent in folder.parents if parent.is_relative_to(temporary) and parent != temporary):
        parent.chmod(0o755)
    folder.chmod(0o555)
    script = (
        "import sys; from tiepoint.mapping import Store\n"
        "with Store.open(sys.argv[1], create=False, read_only=True) as store:\n"
        "    print(len(store.keypoint_counts()), len(store.features(1)), store.matches(1, 2).indices.tolist())\n"
    )
    try:
        words = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        words = (
            [*words, sys.executable, "-c", script, str(database)]
            if os.geteuid() == 0
            else [sys.executable, "-c", script, str(database)]
        )
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if "Permission denied" in done.stderr and "site-packages" in done.stderr:
            pytest.skip("this Python cannot be run by another user")
    finally:
        folder.chmod(0o755)
    assert done.stdout.split() == [str(expected[0]), "3", "[[0,", "0],", "[1,", "2]]"], done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["database.db"]


# ---- HDF5 ----


def hdf5(path: Path, fill: Callable[[Any], None]) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("a.jpg")
        group["keypoints"] = np.ones((3, 2), np.float32)
        group["descriptors"] = np.ones((64, 3), np.float32)
        fill(group)
    return path


def replace(name: str, value: Any) -> Callable[[Any], None]:
    def fill(group: Any) -> None:
        group.pop(name, None)
        group[name] = value

    return fill


def huge(group: Any) -> None:
    del group["keypoints"]
    group.create_dataset("keypoints", shape=(3_000_000_000, 2), dtype="f4", chunks=(1024, 2))


def external(group: Any) -> None:
    del group["keypoints"]
    group.create_dataset("keypoints", shape=(3, 2), dtype="u1", external=[("/etc/passwd", 0, 6)])


def linked(group: Any) -> None:
    del group["keypoints"]
    group["keypoints"] = h5py.ExternalLink("/etc/passwd", "keypoints")


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (huge, "more than any photograph"),
        (external, "no array of this file"),
        (linked, "no array of this file"),
        (replace("keypoints", np.full((3, 2), np.nan, np.float32)), "not finite"),
        (replace("keypoints", np.full((3, 2), 9999, np.float32)), "outside of the picture"),
        (replace("keypoints", np.array([b"x"] * 6).reshape(3, 2)), "no real numbers"),
        (replace("keypoints", 3.0), "do not fit"),
        (replace("scores", np.full(3, np.nan, np.float32)), "not finite"),
        (replace("scores", np.ones(7)), "do not fit"),
        (replace("image_size", np.array([np.nan, 1])), "belong to another version"),
        (replace("image_size", 5), "do not fit"),
        (replace("descriptors", np.full((64, 3), np.inf, np.float32)), "not finite"),
    ],
)
def test_hdf5_files_are_not_believed(fill: Callable[[Any], None], words: str, database: Path, tmp_path: Path) -> None:
    path = hdf5(tmp_path / "features.h5", fill)
    before = database.read_bytes()
    with Store.open(database) as store, pytest.raises(InputError, match=words):
        hloc.import_features(store, path, "mine")
    with Store.open(database) as store:
        assert len(store.features(1)) == 3
    assert len(before) == database.stat().st_size


def test_a_group_that_contains_itself_ends(database: Path, tmp_path: Path) -> None:
    def circle(group: Any) -> None:
        group.file["loop"] = h5py.SoftLink("/")
        inner = group.file.create_group("x")
        inner["x"] = inner

    path = hdf5(tmp_path / "features.h5", circle)
    with Store.open(database) as store, pytest.raises(InputError, match="deep"):
        hloc.import_features(store, path, "mine")


# ---- models ----


def test_a_model_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    model = pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions(num_points3D=50))
    model.write_binary(tmp_path)
    assert read_model(tmp_path).num_points3D() == 50
    for name in ("cameras.bin", "rigs.bin", "frames.bin", "images.bin", "points3D.bin"):
        whole = (tmp_path / name).read_bytes()
        for damaged in (
            whole[:-5],
            whole + b"\0",
            b"\xff" * 7 + b"\0" + whole[8:],
            b"",
        ):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(InputError, match=f"{name}: damaged"):
                read_model(tmp_path)
        (tmp_path / name).write_bytes(whole)


# ---- weights and JSON ----


@pytest.mark.parametrize(
    "values",
    [
        {"layers": 10**6},
        {"layers": 0},
        {"layers": -1},
        {"layers": "9"},
        {"layers": 9.0},
        {"layers": True},
        {"layers": None},
        {"layers": [9]},
        {"dim": 10**9},
        {"heads": 0},
        {"features": "sift"},
        {"features": [1, 2]},
        {"features": {"sift": 1}},
        {"align": "yes"},
        {"match_threshold": "0.1"},
        {"match_threshold": float("nan")},
        {"exit_confidence": [0.9, 0.9]},
        {"exit_confidence": "high"},
        {"exit_confidence": [[0.9]] * 8},
        {"dim": 100},
    ],
)
def test_configurations_of_weights_are_checked(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="mine: the configuration"):
        LightGlueConfig.from_dict(values, "mine")
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"tiepoint": json.dumps(values)})
    with pytest.raises(WeightsError):
        tp.matchers.load(f"lightglue@{path}", features="sift")


def test_large_networks_of_small_files_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    config = {"layers": 64, "dim": 4096, "heads": 4, "input_dim": 128}  # 60 GB, if it were made
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"tiepoint": json.dumps(config)})
    with pytest.raises(WeightsError, match="tensors differ"):
        tp.matchers.load(f"lightglue@{path}", features="sift")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[]", "3", "{", "\xff", "null"])
def test_odd_json_in_weights_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"tiepoint": text})
    for name in ("lightglue", "superglue"):
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            tp.matchers.load(f"{name}@{path}", features="sift")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        tp.features.load(f"cairn@{path}")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"3", b"{", b"\xff\xfe", b"", b"null"])
def test_odd_json_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"settings\.json: "):
        files.read_json(path)


@pytest.mark.parametrize(
    "change",
    [
        {"features": 3},
        {"matcher": None},
        {"long_side": "1600"},
        {"bands": [0]},
        {"bands": "1"},
        {"video": {"digest": "a"}},
        {"video": 7},
    ],
)
def test_settings_of_a_map_are_validated(change: dict[str, object], tmp_path: Path) -> None:
    good = {"features": "sift", "matcher": "nearest", "max_keypoints": None, "long_side": 1600, "video": None}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(good))
    assert read_settings(path) == {**good, "bands": None, "first_pass": None, "quality": "fast"}
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match=r"settings\.json: "):
        read_settings(path)


@pytest.mark.parametrize("harmonics", [[-2, 65], [64.0, 32], ["64", 32], 128, [[128]], [128, True]])
def test_harmonics_that_no_weights_have(harmonics: object) -> None:
    assert CairnConfig.from_dict({"dim": 128, "harmonics": [64, 32]}).harmonics == (64, 32)
    with pytest.raises(WeightsError, match=r"mine: the configuration says harmonics"):
        CairnConfig.from_dict({"dim": 128, "harmonics": harmonics}, "mine")


def test_fingerprints_of_no_image_are_passed_over(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db") as store:
        with store.file.reading() as db:
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute("INSERT INTO tiepoint_files VALUES (7, 'photograph', 1, 2, 3, 'f')")
        assert store.fingerprints() == {}


def test_weights_with_numbers_that_are_not_finite_are_damaged(tmp_path: Path) -> None:
    state, config = weights.load("sift-lightglue")
    state["confidence.0.bias"][0] = float("nan")
    weights.save(tmp_path / "mine.safetensors", state, config)
    with pytest.raises(WeightsError, match="not finite"):
        tp.matchers.load(f"lightglue@{tmp_path / 'mine.safetensors'}", features="sift")


def test_without_a_home_folder_the_default_works(
    texture: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "TIEPOINT_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert len(tp.match(texture, texture[8:], max_keypoints=200)) > 50
    with pytest.raises(WeightsError, match="TIEPOINT_CACHE"):
        weights.cache_dir()
    assert main(["weights", "list"]) == 0
    assert main(["weights", "path", "dedode-detector"]) == 4
    assert "TIEPOINT_CACHE" in capsys.readouterr().err


# ---- full disks ----

FULL = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from tiepoint.errors import InputError
from tiepoint.features.cairn import CairnConfig
from tiepoint.io import arrays, files
from tiepoint.mapping import Store
from tiepoint.io import model_files
from tiepoint.types import Features
import h5py, pycolmap
f = Features(torch.ones(300, 2), torch.ones(300), torch.ones(300, 64), (640, 480), "mine")
model = pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions(num_points3D=300))
def hdf5(path):
    with arrays.FeatureWriter(path) as writer:
        for i in range(5):
            writer.write(f"{i}.jpg", f)
def pair(path):
    arrays.write_hloc_pair(path, ("a", "b"), (f, f), np.zeros((1, 2), int), np.ones(1))
def binary(path):
    with files.atomic_folder(path) as temporary:
        model_files.write_model(model, temporary)
def text(path):
    with files.atomic_folder(path) as temporary:
        model_files.write_model(model, temporary, text=True)
def points(path):
    with files.atomic(path) as temporary:
        model_files.write_points(model, temporary)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit, folder in ((int(Path(path).name), Path(path)) for path in sys.argv[1:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
    for name, write in {"a.h5": hdf5, "b.h5": pair, "c.npz": hdf5, "binary": binary, "text": text, "p.ply": points,
                        "d.db": lambda path: Store.open(path).close()}.items():
        try:
            write(folder / name)
            print(limit, name, "written")
        except InputError as error:
            print(limit, name, "refused")
"""


def test_a_full_disk_leaves_nothing_and_kills_nobody(tmp_path: Path) -> None:
    """A limit on the size of files, as far as programs see, is a disk that is full."""
    limits = (0, 500, 4096, 9000, 24_576)
    folders = [tmp_path / str(limit) for limit in limits]
    for folder in folders:
        folder.mkdir()
    words = [sys.executable, "-c", FULL, *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.split() for line in done.stdout.splitlines()]
    assert len(said) == 7 * len(limits)
    for limit, folder in zip(limits, folders, strict=True):
        written = {name for at, name, outcome in said if int(at) == limit and outcome == "written"}
        assert {"a.h5", "b.h5", "c.npz", "binary", "text", "d.db"} & written == set()
        assert ("p.ply" in written) == (limit > 5000)
        assert {path.name for path in folder.iterdir()} == written


NO_ROOM = """
import resource, sys, torch
from pathlib import Path
from tiepoint.errors import InputError
from tiepoint.mapping import Store
from tiepoint.types import Features
path = Path(sys.argv[1])
store = Store.open(path)
limit = path.stat().st_size + 4096
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
many = Features(torch.ones(300, 2), torch.ones(300), torch.ones(300, 64), (640, 480), "mine")
store.write_features([(1, many)])  # into the log, for which there is room
try:
    store.close()
except InputError as error:
    print(error)
"""


def test_a_log_that_cannot_be_moved_into_the_database_is_said_and_kept(database: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_ROOM, str(database)], capture_output=True, text=True, timeout=60)
    assert "is kept" in done.stdout, done.stderr
    with Store.open(database, create=False) as store:
        assert len(store.features(1)) == 300
    assert sorted(path.name for path in database.parent.iterdir()) == ["database.db"]


FULL_LOG = """
import resource, sys, torch
from pathlib import Path
from tiepoint.errors import InputError
from tiepoint.mapping import Store
from tiepoint.types import Features
path = Path(sys.argv[1])
def features(n):
    return Features(torch.ones(n, 2), torch.ones(n), torch.ones(n, 64), (640, 480), "mine")
store = Store.open(path)
if sys.argv[2] == "after a write":
    store.write_features([(1, features(300))])
limit = path.stat().st_size + 100_000  # room for the first, not for the second
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store.write_features([(2, features(3000))])
except InputError as error:
    print("refused", error)
store.close()
"""


@pytest.mark.parametrize("when", ["at once", "after a write"])
def test_a_write_that_fails_on_a_full_disk_leaves_no_log(when: str, database: Path) -> None:
    """Only the database is left once the store is closed, with all that was written before."""
    words = [sys.executable, "-c", FULL_LOG, str(database), when]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused"), done.stdout
    assert [path.name for path in database.parent.iterdir()] == ["database.db"]
    with Store.open(database, create=False) as store:
        assert [len(store.features(i)) for i in (1, 2)] == [300 if when == "after a write" else 3, 3]
