"""The store: a COLMAP database, the only state between the steps of mapping.

COLMAP's own tables are the truth: cameras, images, keypoints, matches, two-view geometries; any tool that reads
a COLMAP database reads this one. What COLMAP has no place for lies in tables of the same file that it ignores:

======================== ============================================================================
``tiepoint_features``    extractor, detection scores, descriptors that are not SIFT's (float16, or bits)
``tiepoint_covariances`` of keypoints, where the extractor predicts them
``tiepoint_matches``     matching scores, whether the matcher believes that the two photographs overlap
``tiepoint_cameras``     which key (see `NewImage`) stands for which camera
``tiepoint_files``       size, times and hash of the files that an image was made of (see `Fingerprint`)
======================== ============================================================================

Two conventions differ from ours, and are converted here and nowhere else. COLMAP counts pixels from the image's
corner, so keypoints and principal points are 0.5 larger there. Its SIFT scale is the standard deviation of the blob,
half of our diameter. A keypoint comes back bit for bit, except that x + 0.5 in float32 may round
(by less than 0.0003 pixels in photographs up to 8192 pixels wide); writing it again changes nothing more.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...errors import ArgumentError, InputError, TiepointError
from ...geometry.colmap import Matrix, import_pycolmap, quaternion_of, rotation_of
from ...io.files import atomic, check_image_name, open_file, scratch_folder
from ...types import Features

if TYPE_CHECKING:
    import pycolmap

MAX_IMAGES = 2**31 - 1
"""COLMAP's: image ids are smaller, and a pair's id is ``MAX_IMAGES * smaller + larger``."""

Config = Literal[
    "UNDEFINED",
    "DEGENERATE",
    "CALIBRATED",
    "UNCALIBRATED",
    "PLANAR",
    "PANORAMIC",
    "PLANAR_OR_PANORAMIC",
    "WATERMARK",
    "MULTIPLE",
    "CALIBRATED_RIG",
]
CONFIGS: tuple[Config, ...] = Config.__args__  # type: ignore[attr-defined]
"""COLMAP's kinds of two-view geometry; the place in this list is the number in the database."""


def pair_ids(pairs: ArrayLike) -> NDArray[np.int64]:
    """Return COLMAP's ids of image pairs.

    Parameters
    ----------
    pairs : int array (P, 2)
        Image ids, in either order.

    Returns
    -------
    int64 array (P,)
        Ids sort as pairs (smaller, larger) do.

    Examples
    --------
    >>> pair_ids([(1, 2), (2, 1)])
    array([2147483649, 2147483649])
    """
    table = np.asarray(pairs, np.int64).reshape(-1, 2)
    return table.min(axis=1) * MAX_IMAGES + table.max(axis=1)


def pairs_of(ids: ArrayLike) -> NDArray[np.int64]:
    """Return the pairs (smaller id, larger id), int64 (P, 2), of COLMAP's pair ids (P,).

    Examples
    --------
    >>> pairs_of(pair_ids([(7, 3)]))
    array([[3, 7]])
    """
    return np.stack(np.divmod(np.asarray(ids, np.int64), MAX_IMAGES), axis=1)


@dataclass(frozen=True)
class NewImage:
    """A photograph to be entered into a `Store`.

    Attributes
    ----------
    name : str
        Path relative to the folder of the photographs, with forward slashes.
    camera : pycolmap.Camera
        In COLMAP's convention; its id does not matter.
    camera_key : str or None
        Images with the same key share the camera that the first of them brought, also across calls. None is a
        camera of its own.
    position : (float, float, float) or None
        WGS84 latitude and longitude in degrees and altitude in metres; the altitude may be nan.
    """

    name: str
    camera: pycolmap.Camera
    camera_key: str | None = None
    position: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Fingerprint:
    """What tells a file from another one: its size in bytes, times (mtime, ctime) in ns, and BLAKE2b in hex.

    A file of the same size and times is taken to be the same; only if these differ, its bytes are read.
    """

    bytes: int
    modified: int
    changed: int
    digest: str

    @classmethod
    def of(cls, path: Path, known: Fingerprint | None = None) -> Fingerprint:
        """Look at a file; ``known`` saves reading it if neither size nor times are others.

        Raises
        ------
        OSError
            It cannot be read.
        """
        now = path.stat()
        times = now.st_size, now.st_mtime_ns, now.st_ctime_ns
        if known is not None and times == (known.bytes, known.modified, known.changed):
            return known
        digest = hashlib.blake2b(digest_size=32)
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return cls(*times, digest.hexdigest())


FileFingerprints = dict[str, Fingerprint]
"""Of an image: ``"photograph"``, and ``"mask"`` if it has one."""


@dataclass(frozen=True)
class StoredImage:
    """A photograph as a `Store` knows it; ``camera`` is in COLMAP's convention, ``size`` is (width, height)."""

    image_id: int
    name: str
    camera_id: int
    camera: pycolmap.Camera
    size: tuple[int, int]
    position: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class PairResult:
    """What matching, and verification if it took place, found out about two images.

    Attributes
    ----------
    id0, id1 : int
        Image ids, in either order.
    matches : int array (K, 2)
        Each row is (keypoint of image ``id0``, keypoint of image ``id1``).
    scores : float array (K,)
        In [0, 1].
    overlaps : bool or None
        See `Matches.overlaps`.
    inliers : bool array (K,) or None
        Which matches agree with the two-view geometry; None if the pair has not been verified.
    config : str
        Kind of the geometry, one of `CONFIGS`. COLMAP's mappers use CALIBRATED (by E), UNCALIBRATED (by F) and
        the planar and panoramic ones (by H).
    F, E, H : float array (3, 3) or None
        Fundamental, essential matrix and homography from image ``id0`` to image ``id1``, as far as they were
        estimated, **in COLMAP's pixels**: centre of the top-left pixel at (0.5, 0.5).
    R, t : float array (3, 3) and (3,), or None
        Relative pose, ``x_1 = R x_0 + t``.
    """

    id0: int
    id1: int
    matches: NDArray[np.integer[Any]]
    scores: NDArray[np.floating[Any]]
    overlaps: bool | None = None
    inliers: NDArray[np.bool_] | None = None
    config: Config = "UNDEFINED"
    F: Matrix | None = None
    E: Matrix | None = None
    H: Matrix | None = None
    R: Matrix | None = None
    t: Matrix | None = None

    def __post_init__(self) -> None:
        pair, count = f"pair ({self.id0}, {self.id1})", len(self.matches)
        if self.id0 == self.id1 or min(self.id0, self.id1) < 0:
            raise ArgumentError(f"{pair}: a pair is two different image ids, 0 or larger")
        if np.shape(self.matches) != (count, 2) or np.shape(self.scores) != (count,):
            raise ArgumentError(
                f"{pair}: matches must be (K, 2) and scores (K,), not {np.shape(self.matches)} and "
                f"{np.shape(self.scores)}"
            )
        if self.inliers is not None and (self.inliers.shape != (count,) or self.inliers.dtype != np.bool_):
            raise ArgumentError(
                f"{pair}: inliers must be bool ({count},), not {self.inliers.dtype} {self.inliers.shape}"
            )
        if not np.isfinite(self.scores).all():
            raise ArgumentError(f"{pair}: scores must be finite numbers")
        if self.config not in CONFIGS:
            raise ArgumentError(f"{pair}: no geometry is called {self.config!r}; there are: {', '.join(CONFIGS)}")
        if (self.R is None) != (self.t is None):
            raise ArgumentError(f"{pair}: R and t go together")


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Matches of two images: ``indices`` int64 (K, 2), sorted by the first, and ``scores`` float32 (K,).

    ``overlaps`` is as in `Matches`. Scores of matches that COLMAP made are 1.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    overlaps: bool | None = None


@dataclass(frozen=True, eq=False)
class StoredGeometry:
    """Two-view geometry of two images: ``matches`` int64 (K, 2) that agree with it, and the fields of `PairResult`."""

    matches: NDArray[np.int64]
    config: Config
    F: Matrix | None = None
    E: Matrix | None = None
    H: Matrix | None = None
    R: Matrix | None = None
    t: Matrix | None = None


class Store:
    """A COLMAP database, read and written in whole transactions; make one with `Store.open`.

    Each ``write_`` method first gathers everything it was given and then commits it at once, within
    milliseconds. A process that dies loses the open transaction and nothing else. Write in batches: a
    transaction for each image or pair is slow.

    Any number of processes may read at the same time, COLMAP among them, but only one should write. (COLMAP itself
    writes when it opens a file, if only its version, and so fails in the milliseconds that a transaction takes.) One
    `Store` belongs to the thread that opened it; other threads open their own.

    Notes
    -----
    The file is in SQLite's write-ahead mode, as COLMAP leaves it: while somebody has it open, recent
    transactions are in the file beside it whose name ends in ``-wal``. Copy or move the two together.

    pycolmap brings its own copy of SQLite, and two copies in one process do not see each other's locks: when
    `pycolmap.Database` closes the file, the log of a store that is open in the same process is gone. The store notices
    before each of its operations and opens the file anew, so the two may take turns; but let no other thread of the
    process have the file open in pycolmap while a store writes to it.

    Examples
    --------
    >>> import pycolmap, tempfile, torch, numpy as np
    >>> camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[768, 320, 240, 0])
    >>> features = Features(torch.tensor([[3.0, 4.0]]), torch.ones(1), torch.eye(64)[:1], (640, 480), "xfeat")
    >>> with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "database.db")) as store:
    ...     ids = store.add_images([NewImage("a.jpg", camera, "phone"), NewImage("b.jpg", camera, "phone")])
    ...     store.write_features([(ids["a.jpg"], features), (ids["b.jpg"], features)])
    ...     store.write_matches([PairResult(1, 2, np.array([[0, 0]]), np.array([0.9]))])
    ...     store.matched_pairs(), store.matches(1, 2).indices.tolist(), store.features(1)
    ({(1, 2)}, [[0, 0]], <Features: 1 xfeat keypoints in 640x480 pixels>)
    """

    path: Path

    def __init__(self, path: Path, immutable: bool = False) -> None:
        self.path = path
        self._immutable = immutable
        self._closed = False
        self._db = self._connect()

    @classmethod
    def open(cls, path: str | os.PathLike[str], create: bool = True, read_only: bool = False) -> Store:
        """Open a database, of ours or of COLMAP's making.

        Parameters
        ----------
        path : path
            The database file.
        create : bool
            Make it if it does not exist; its folder must.
        read_only : bool
            True does without the right to write to the file and its folder, where it is missing; nothing can then be
            written.

        Raises
        ------
        InputError
            Missing, read-only, not a COLMAP database, or one that a newer or a much older COLMAP made; or one that was
            not closed properly and cannot be written to.
        MissingDependencyError
            pycolmap is not installed.
        """
        path = Path(path)
        pycolmap = import_pycolmap()
        if not path.exists():
            if not create:
                raise InputError(f"{path}: does not exist; 'tiepoint map' makes one")
            _create(path)
            try:
                return cls.open(path, create=False)
            except BaseException:  # most often the disk is full; what has nothing in it yet is no use to anybody
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                raise
        try:
            with open_file(path) as stream:
                start = stream.read(16)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; give the path of a COLMAP database") from error
        if start != b"SQLite format 3\0":
            raise InputError(f"{path}: not a database; give the path of a COLMAP database, or a new one")
        immutable = read_only and not (os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK))
        if immutable and (log := path.with_name(f"{path.name}-wal")).exists() and log.stat().st_size:
            raise InputError(
                f"{path}: was not closed properly, and what {log.name} holds can be taken over only where both may be "
                "written to; work on a copy of both"
            )
        _check_version(path, pycolmap.__version__, immutable)
        store = cls(path, immutable)
        try:
            if immutable:
                store._check_own_tables()
            else:
                with store._transaction() as db:  # also finds out whether the file may be written to
                    for statement in _OWN_TABLES:
                        db.execute(statement)
        except BaseException:
            with suppress(InputError):
                store.close()
            raise
        return store

    def close(self) -> None:
        """Close the file; nothing is waiting to be written.

        Raises
        ------
        InputError
            Not all could be moved from the log into the file, most often because the disk is full. It is kept in the
            log.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._immutable and self._log == self._log_now():
                with _explained(self.path):  # SQLite does the same when it closes, but would not say that it failed
                    self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(InputError) if kind is not None else nullcontext():  # the first error says more
            self.close()

    def _check_own_tables(self) -> None:
        with self._reading() as db:
            present = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if lacking := [name for name in (*_OWN_COLUMNS, *_OWN_INDICES) if name not in present]:
            raise InputError(
                f"{self.path}: lacks {lacking[0]}, which tiepoint adds to a database, and cannot be written to; work "
                "on a copy"
            )

    # ---- images ----

    def add_images(self, images: Sequence[NewImage]) -> dict[str, int]:
        """Enter photographs and their cameras; those that are there already stay as they are.

        Parameters
        ----------
        images : sequence of NewImage

        Returns
        -------
        dict
            Name -> image id, for all of ``images``.

        Raises
        ------
        ArgumentError
            Two images of different size are to share a camera.
        InputError
            The database cannot be written to, or a name leads out of the folder of the photographs.
        """
        with self._transaction() as db:
            known = dict(db.execute("SELECT name, image_id FROM images"))
            first = {new.name: new for new in reversed(images)}  # of several with one name
            fresh = [new for new in images if new.name not in known and first[new.name] is new]
            for new in fresh:
                check_image_name(new.name, "add_images")
            known.update(_enter(db, fresh))
        return {new.name: known[new.name] for new in images}

    def images(self) -> list[StoredImage]:
        """Return all photographs, sorted by name; those that share a camera hold the same object.

        Raises
        ------
        InputError
            A camera or a position is damaged, or a name leads out of the folder of the photographs
            (`tiepoint.io.files.check_image_name`).
        """
        with self._reading() as db, self._well_formed("images"):
            cameras = {row[0]: _camera(*row) for row in db.execute(f"SELECT {_COLUMNS['cameras']} FROM cameras")}
            priors = db.execute(
                "SELECT corr_data_id, position FROM pose_priors WHERE corr_sensor_type = 0 AND coordinate_system = ?",
                (_WGS84,),
            )
            positions = {image_id: tuple(_numbers(blob, np.float64, 3).tolist()) for image_id, blob in priors}
            return [
                StoredImage(
                    image_id,
                    check_image_name(name, self.path),
                    camera_id,
                    cameras[camera_id],
                    (cameras[camera_id].width, cameras[camera_id].height),
                    positions.get(image_id),
                )
                for image_id, name, camera_id in db.execute(
                    "SELECT image_id, name, camera_id FROM images ORDER BY name"
                )
            ]

    # ---- changes of what is there ----

    def fingerprints(self) -> dict[int, FileFingerprints]:
        """Return image id -> the files that the image was made of, for the images of which that is known."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT image_id, kind, bytes, modified, changed, digest "
                "FROM tiepoint_files JOIN images USING (image_id)"
            ).fetchall()
        found: dict[int, FileFingerprints] = {}
        for image_id, kind, *values in rows:
            found.setdefault(image_id, {})[kind] = Fingerprint(*values)
        return found

    def set_fingerprints(self, files: Mapping[int, FileFingerprints], replaced: Collection[int] = ()) -> None:
        """Record what images were made of; the features and pairs of those that were ``replaced`` go, in one step."""
        ids = [(int(image_id),) for image_id in files]
        rows = [
            (int(image_id), kind, *astuple(one)) for image_id, kinds in files.items() for kind, one in kinds.items()
        ]
        with self._transaction() as db:
            _delete_features_of(db, set(replaced))
            db.executemany("DELETE FROM tiepoint_files WHERE image_id = ?", ids)
            db.executemany(_INSERT["tiepoint_files"], rows)

    def rename_images(self, names: Mapping[int, str]) -> None:
        """Give images (by id) other names; they keep their features and pairs."""
        for name in names.values():
            check_image_name(name, "rename_images")
        ids = [int(image_id) for image_id in names]
        with self._transaction() as db:
            # By way of names that no file has, because a may become b while b becomes a.
            db.executemany("UPDATE images SET name = ? WHERE image_id = ?", [(f"\n{i}", i) for i in ids])
            db.executemany("UPDATE images SET name = ? WHERE image_id = ?", [(names[i], i) for i in ids])

    def remove_images(self, image_ids: Iterable[int]) -> None:
        """Remove images with their features and pairs; a camera that took no other image goes with them."""
        gone = [(int(image_id),) for image_id in image_ids]
        with self._transaction() as db:
            _delete_features_of(db, {i for (i,) in gone})
            _delete_frames_of(db, [i for (i,) in gone])
            db.executemany("DELETE FROM images WHERE image_id = ?", gone)
            _delete_unused_cameras(db)

    def remove_pairs(self, ids: ArrayLike) -> None:
        """Remove the matches and geometries of pairs, by their ids (see `pair_ids`)."""
        rows = [(pair_id,) for pair_id in np.asarray(ids, np.int64).tolist()]
        with self._transaction() as db:
            for table in _PAIR_TABLES:
                db.executemany(f"DELETE FROM {table} WHERE pair_id = ?", rows)

    def update_cameras(self, images: Sequence[NewImage]) -> list[str]:
        """Give images that are in the store the cameras that `add_images` would give them in an empty one.

        The two-view geometries that depend on a camera that changed go; matches stay.

        Parameters
        ----------
        images : sequence of NewImage
            All of the store whose camera is to be looked at; any other keeps its own, and shares it with none of them.

        Returns
        -------
        list of str
            Names of the images whose camera is another one now.

        Raises
        ------
        InputError
            The cameras are to change, but several of them sit on one rig, which tiepoint does not make.
        """
        wanted = {new.name: new for new in images}
        stored = [image for image in self.images() if image.name in wanted]
        with self._reading() as db:
            keys = {camera_id: key for key, camera_id in db.execute("SELECT key, camera_id FROM tiepoint_cameras")}
            rigs = db.execute("SELECT count(*) FROM rig_sensors").fetchone()[0]
        users = Counter(image.camera_id for image in stored)
        changed, regrouped, moved = [], [], []
        for image in stored:
            new = wanted[image.name]
            if _camera_values(new.camera) != _camera_values(image.camera):
                changed.append(image)
            elif keys.get(image.camera_id) != new.camera_key or (new.camera_key is None and users[image.camera_id] > 1):
                regrouped.append(image)
            if not np.array_equal(image.position or (), new.position or (), equal_nan=True):
                moved.append(image)
        if not (changed or regrouped or moved):
            return []
        if rigs:
            raise InputError(f"{self.path}: has cameras on rigs, which cannot be exchanged; start over with --fresh")
        with self._transaction() as db:
            db.execute("PRAGMA defer_foreign_keys = ON")  # until all is there again
            _delete_pairs_of(db, {image.image_id for image in changed}, ("two_view_geometries",))
            _delete_frames_of(db, [image.image_id for image in stored])
            db.executemany("DELETE FROM tiepoint_cameras WHERE camera_id = ?", [(camera_id,) for camera_id in users])
            _enter(db, [wanted[image.name] for image in stored], {image.name: image.image_id for image in stored})
            _delete_unused_cameras(db)
        return [image.name for image in changed + regrouped]

    # ---- features ----

    def write_features(self, items: Iterable[tuple[int, Features]]) -> None:
        """Write the features of some images in one transaction.

        Descriptors of the extractor "sift" are kept as COLMAP keeps its own: one byte each, 512 for 1. All other
        real ones are kept as float16.

        Features that were there are replaced, and the matches of these images deleted: they point to the old
        keypoints.

        Parameters
        ----------
        items : iterable of (image id, Features)

        Raises
        ------
        ArgumentError
            An id that is not in the store, features made of a photograph of another size, or with keypoints outside
            of it, or with numbers that are not finite.
        InputError
            The database cannot be written to.
        """
        batch = dict(items)
        with self._reading() as db:
            for image_id, features in batch.items():
                size = db.execute(
                    "SELECT width, height FROM images JOIN cameras USING (camera_id) WHERE image_id = ?",
                    (int(image_id),),
                ).fetchone()
                if size is None:
                    raise ArgumentError(f"there is no image {image_id} in {self.path}; enter it with add_images")
                if size != tuple(features.image_size):
                    width, height = features.image_size
                    raise ArgumentError(
                        f"image {image_id}: the features are of {width}x{height} pixels, but its camera in {self.path} "
                        f"has {size[0]}x{size[1]}; extract them from the same file"
                    )
        rows = [_feature_rows(int(image_id), features) for image_id, features in batch.items()]
        ids = [(int(image_id),) for image_id in batch]
        with self._transaction() as db:
            old = {i for (i,) in ids if db.execute("SELECT 1 FROM keypoints WHERE image_id = ?", (i,)).fetchone()}
            if old:
                _delete_pairs_of(db, old)
            for table in ("keypoints", "descriptors", "tiepoint_features", "tiepoint_covariances"):
                db.executemany(f"DELETE FROM {table} WHERE image_id = ?", ids)
                db.executemany(_INSERT[table], [row[table] for row in rows if table in row])

    def keypoint_counts(self) -> dict[int, int]:
        """Return image id -> number of keypoints, for the images whose features are in the store."""
        with self._reading() as db:
            found = db.execute("SELECT image_id, rows, cols, coalesce(length(data), 0) FROM keypoints").fetchall()
        with self._well_formed("keypoints"):
            for image_id, rows, columns, size in found:
                if rows * columns * 4 != size or rows < 0:
                    raise ValueError(f"{rows!r}x{columns!r} numbers of image {image_id} in {size} bytes")
        return {image_id: rows for image_id, rows, _, _ in found}

    def has_features(self) -> set[int]:
        """Return the ids of the images whose features are in the store, be it that none were found."""
        return set(self.keypoint_counts())

    def features(self, image_id: int, descriptors: bool = True) -> Features:
        """Return the features of one image, on the CPU.

        Features made by COLMAP's SIFT come back with all scores 1, and RootSIFT descriptors of unit length.

        Parameters
        ----------
        image_id : int
        descriptors : bool
            False leaves them in the file, and gives an array (N, 0) in their place.

        Raises
        ------
        ArgumentError
            No such image, or its features are not in the store.
        InputError
            COLMAP made them by a method other than SIFT, or they are damaged.
        """
        image_id = int(image_id)
        with self._reading() as db:
            found = db.execute(
                "SELECT k.rows, k.cols, k.data, c.width, c.height, t.extractor, t.shape, t.scores, v.data "
                "FROM keypoints AS k JOIN images USING (image_id) JOIN cameras AS c USING (camera_id) "
                "LEFT JOIN tiepoint_features AS t USING (image_id) "
                "LEFT JOIN tiepoint_covariances AS v USING (image_id) WHERE image_id = ?",
                (image_id,),
            ).fetchone()
            if found is None:
                raise ArgumentError(f"the features of image {image_id} are not in {self.path}; extract them first")
            n, columns, data, width, height, extractor, shape, scores, covariances = found
            with self._well_formed(f"the keypoints of image {image_id}"):
                table = _numbers(data, np.float32, n, columns) if n else np.zeros((0, 2), np.float32)
                if table.shape[1] not in (2, 4, 6):
                    raise ValueError(f"{columns} numbers each")
            if extractor is None:
                kind = db.execute("SELECT type FROM descriptors WHERE image_id = ?", (image_id,)).fetchone()
                if kind is None or kind[0] != _SIFT:
                    raise InputError(
                        f"{self.path}: the features of image {image_id} were made elsewhere, and not by SIFT; extract "
                        "into a new database"
                    )
                extractor, shape = "sift", "so" if columns > 2 else ""
            with self._well_formed(f"the features of image {image_id}"):
                values = self._descriptors(db, image_id, n) if descriptors else np.zeros((n, 0), np.float32)
                scores = np.ones(n, np.float32) if scores is None else _numbers(scores, np.float32, n)
                covariances = None if covariances is None else _numbers(covariances, np.float32, n, 2, 2)
                scales, orientations = _scale_and_orientation(table)
                features = Features(
                    keypoints=torch.from_numpy(table[:, :2] - np.float32(0.5)),
                    scores=torch.from_numpy(scores),
                    descriptors=torch.from_numpy(values),
                    image_size=(width, height),
                    extractor=str(extractor),
                    scales=torch.from_numpy(scales) if "s" in shape else None,
                    orientations=torch.from_numpy(orientations) if "o" in shape else None,
                    covariances=None if covariances is None else torch.from_numpy(covariances),
                )
                if fault := fault_of(features):
                    raise ValueError(fault)
        return features

    def _descriptors(self, db: sqlite3.Connection, image_id: int, n: int) -> NDArray[Any]:
        own = db.execute("SELECT kind, cols, descriptors FROM tiepoint_features WHERE image_id = ?", (image_id,))
        kind, columns, data = own.fetchone() or ("colmap", 0, None)
        if kind == "float16":
            return _numbers(data, np.float16, n, columns).astype(np.float32)
        if kind == "bits":
            return _numbers(data, np.uint8, n, columns)
        if kind != "colmap":
            raise ValueError(f"descriptors of the kind {kind!r}")
        found = db.execute("SELECT cols, data FROM descriptors WHERE image_id = ?", (image_id,)).fetchone()
        columns, data = found or (128, None)
        values = _numbers(data, np.uint8, n, columns).astype(np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1)

    # ---- pairs ----

    def write_matches(self, items: Iterable[PairResult]) -> None:
        """Write the matches of some pairs, and the geometry of those that were verified, in one transaction.

        What was there of a pair is replaced; if the new result is not verified, the old geometry goes. Of a pair that
        is given twice, in whatever order of its images, the last result counts.

        Parameters
        ----------
        items : iterable of PairResult

        Raises
        ------
        ArgumentError
            Matches of an image without features in the store, or beyond its last keypoint.
        InputError
            The database cannot be written to.
        """
        batch = list({_pair_id(item.id0, item.id1): item for item in items}.values())
        with self._reading() as db:
            counts = {}
            for image_id in {int(i) for item in batch for i in (item.id0, item.id1)}:
                row = db.execute("SELECT rows FROM keypoints WHERE image_id = ?", (image_id,)).fetchone()
                if row is None:
                    raise ArgumentError(f"the features of image {image_id} are not in {self.path}; write them first")
                counts[image_id] = row[0]
        rows = []
        for item in batch:
            last = counts[int(item.id0)], counts[int(item.id1)]
            if len(item.matches) and ((item.matches < 0) | (item.matches >= last)).any():
                raise ArgumentError(
                    f"pair ({item.id0}, {item.id1}): matches of keypoints that do not exist; the images have {last[0]} "
                    f"and {last[1]}"
                )
            rows.append(_pair_rows(item))
        ids = [row["matches"][:1] for row in rows]
        with self._transaction() as db:
            for table in _PAIR_TABLES:
                db.executemany(f"DELETE FROM {table} WHERE pair_id = ?", ids)
                db.executemany(_INSERT[table], [row[table] for row in rows if table in row])

    def matched_pair_ids(self) -> NDArray[np.int64]:
        """Return the ids (see `pair_ids`) of all pairs that were matched, sorted: int64 (P,), 8 bytes a pair."""
        with self._reading() as db, self._well_formed("matches"):
            ids = (pair_id for (pair_id,) in db.execute("SELECT pair_id FROM matches INDEXED BY tiepoint_matched"))
            return np.sort(np.fromiter(ids, np.int64))

    def matched_pairs(self) -> set[tuple[int, int]]:
        """Return all pairs (smaller id, larger id) that were matched, be it that nothing was found.

        A million of them take more than 100 MB; `matched_pair_ids` takes 8.
        """
        smaller, larger = pairs_of(self.matched_pair_ids()).T.tolist()
        return set(zip(smaller, larger, strict=True))

    def verified_pair_ids(self) -> NDArray[np.int64]:
        """Return the ids of all pairs that were verified, be it that no geometry was found, sorted: int64 (P,)."""
        with self._reading() as db, self._well_formed("two-view geometries"):
            found = db.execute("SELECT pair_id FROM two_view_geometries INDEXED BY tiepoint_verified")
            return np.sort(np.fromiter((pair_id for (pair_id,) in found), np.int64))

    def matches(self, id0: int, id1: int) -> PairMatches | None:
        """Return the matches of two images; their columns follow the order of the arguments.

        Returns
        -------
        PairMatches or None
            None if the pair was not matched yet.

        Raises
        ------
        InputError
            The matches are damaged, or of keypoints that do not exist.
        """
        first, second = sorted((int(id0), int(id1)))
        with self._reading() as db:
            row = db.execute(
                "SELECT m.rows, m.data, t.scores, t.overlaps, (SELECT rows FROM keypoints WHERE image_id = ?), "
                "(SELECT rows FROM keypoints WHERE image_id = ?) "
                "FROM matches AS m LEFT JOIN tiepoint_matches AS t USING (pair_id) WHERE pair_id = ?",
                (first, second, _pair_id(id0, id1)),
            ).fetchone()
        if row is None:
            return None
        with self._well_formed(f"the matches of images {first} and {second}"):
            count, data, scores, overlaps, *have = row
            indices = _indices(count, data, have)
            if scores is not None and len(scores) != 4 * count:
                scores = None  # of matches that COLMAP has replaced
            values = np.ones(count, np.float32) if scores is None else _numbers(scores, np.float32, count)
            if not np.isfinite(values).all():
                raise ValueError("scores that are not finite")
        indices = indices[:, :: -1 if id0 > id1 else 1]
        order = np.lexsort(indices.T[::-1])
        return PairMatches(indices[order], values[order], None if overlaps is None else bool(overlaps))

    def verified_pairs(self) -> dict[tuple[int, int], int]:
        """Return the pairs (smaller id, larger id) with a two-view geometry -> the number of its inliers, above 0."""
        with self._reading() as db, self._well_formed("two-view geometries"):
            found = db.execute(
                "SELECT pair_id, rows FROM two_view_geometries INDEXED BY tiepoint_verified WHERE rows > 0"
            )
            table = np.array(found.fetchall(), np.int64).reshape(-1, 2)
        table = table[np.argsort(table[:, 0])]
        smaller, larger = pairs_of(table[:, 0]).T.tolist()
        return dict(zip(zip(smaller, larger, strict=True), table[:, 1].tolist(), strict=True))

    def geometry(self, id0: int, id1: int) -> StoredGeometry | None:
        """Return the two-view geometry from image ``id0`` to image ``id1``; None if the pair was not verified.

        Raises
        ------
        InputError
            It is damaged, or its matches are of keypoints that do not exist.
        """
        first, second = sorted((int(id0), int(id1)))
        with self._reading() as db:
            row = db.execute(
                "SELECT (SELECT rows FROM keypoints WHERE image_id = ?), "
                "(SELECT rows FROM keypoints WHERE image_id = ?), rows, data, config, F, E, H, qvec, tvec "
                "FROM two_view_geometries WHERE pair_id = ?",
                (first, second, _pair_id(id0, id1)),
            ).fetchone()
        if row is None:
            return None
        with self._well_formed(f"the geometry of images {first} and {second}"):
            *have, count, data, config, F, E, H, q, t = row
            indices = _indices(count, data, have)
            F, E, H = (None if blob is None else _numbers(blob, np.float64, 3, 3) for blob in (F, E, H))
            R = None if q is None else rotation_of(_numbers(q, np.float64, 4))
            t = None if t is None else _numbers(t, np.float64, 3)
            if config not in range(len(CONFIGS)):
                raise ValueError(f"its kind is {config!r}")
            model = (F, E, H, R, t) if id0 < id1 else _inverse(F, E, H, R, t)
        indices = indices[:, :: -1 if id0 > id1 else 1]
        return StoredGeometry(indices[np.lexsort(indices.T[::-1])], CONFIGS[config], *model)

    # ---- the file ----

    def _connect(self) -> sqlite3.Connection:
        with _explained(self.path):
            db = _connect(self.path, self._immutable)
            if self._immutable:
                self._log = None
                return db
            try:
                db.execute("PRAGMA journal_mode = WAL")
                # In this mode a power failure may undo the last transactions, a dying process none; neither does harm.
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA foreign_keys = ON")
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes the log exist
            except BaseException:
                db.close()
                raise
            self._log = self._log_now()
        return db

    def _log_now(self) -> tuple[int, int] | None:
        """Return which file the log is, or None if there is none."""
        try:
            found = os.stat(f"{self.path}-wal")  # noqa: PTH116 - called before every operation
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise ArgumentError(f"{self.path}: the store is closed; open it again with Store.open")
        if (
            not self._immutable and self._log != self._log_now()
        ):  # pycolmap took it away, after moving its content into the database
            self._db.close()
            self._db = self._connect()
        with _explained(self.path):
            yield self._db

    @contextmanager
    def _well_formed(self, what: str) -> Iterator[None]:
        """Say what is damaged where the content of the file makes no sense."""
        try:
            yield
        except TiepointError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, np.linalg.LinAlgError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.path}: damaged: {what} ({reason}); go back to a copy, or start with a new one"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has done so already where the disk is full
                    db.execute("ROLLBACK")
                raise


_SIFT = 0  # of COLMAP's FeatureExtractorType
_WGS84 = 0  # of COLMAP's PosePriorCoordinateSystem

_COLUMNS = {
    "cameras": "camera_id, model, width, height, params, prior_focal_length",
    "rigs": "rig_id, ref_sensor_id, ref_sensor_type",
    "images": "image_id, name, camera_id",
    "frames": "frame_id, rig_id",
    "frame_data": "frame_id, data_id, sensor_id, sensor_type",
    "pose_priors": "pose_prior_id, corr_data_id, corr_sensor_id, corr_sensor_type, position, position_covariance, "
    "gravity, coordinate_system",
    "keypoints": "image_id, rows, cols, data",
    "descriptors": "image_id, type, rows, cols, data",
    "matches": "pair_id, rows, cols, data",
    "two_view_geometries": "pair_id, rows, cols, data, config, F, E, H, qvec, tvec",
}
"""COLMAP's tables and their columns, as far as they are read or written here."""

_PAIR_TABLES = ("matches", "tiepoint_matches", "two_view_geometries")

_OWN_COLUMNS = {
    "tiepoint_cameras": "key, camera_id",
    "tiepoint_features": "image_id, extractor, shape, scores, kind, cols, descriptors",
    "tiepoint_covariances": "image_id, data",
    "tiepoint_matches": "pair_id, scores, overlaps",
    "tiepoint_files": "image_id, kind, bytes, modified, changed, digest",
}

_INSERT = {
    table: f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(columns.split(',')))})"
    for table, columns in {**_COLUMNS, **_OWN_COLUMNS}.items()
}

_OWN_TABLES = (
    "CREATE TABLE IF NOT EXISTS tiepoint_cameras (key TEXT PRIMARY KEY NOT NULL, camera_id INTEGER NOT NULL)",
    # shape: which of scales (s) and orientations (o) there are. kind: float16, bits, or colmap (see write_features).
    "CREATE TABLE IF NOT EXISTS tiepoint_features (image_id INTEGER PRIMARY KEY NOT NULL, extractor TEXT NOT NULL, "
    "shape TEXT NOT NULL, scores BLOB NOT NULL, kind TEXT NOT NULL, cols INTEGER NOT NULL, descriptors BLOB, "
    "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE)",
    "CREATE TABLE IF NOT EXISTS tiepoint_covariances (image_id INTEGER PRIMARY KEY NOT NULL, data BLOB NOT NULL, "
    "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE)",
    "CREATE TABLE IF NOT EXISTS tiepoint_matches (pair_id INTEGER PRIMARY KEY NOT NULL, scores BLOB NOT NULL, "
    "overlaps INTEGER)",
    "CREATE TABLE IF NOT EXISTS tiepoint_files (image_id INTEGER NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL, "
    "modified INTEGER NOT NULL, changed INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(image_id, kind), "
    "FOREIGN KEY(image_id) REFERENCES images(image_id) ON DELETE CASCADE)",
    # With these, listing all pairs does not read all matches. COLMAP's own counts use them too.
    "CREATE INDEX IF NOT EXISTS tiepoint_matched ON matches(rows)",
    "CREATE INDEX IF NOT EXISTS tiepoint_verified ON two_view_geometries(rows)",
)


_OWN_INDICES = ("tiepoint_matched", "tiepoint_verified")


def _enter(
    db: sqlite3.Connection, images: Sequence[NewImage], there: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """Enter images with their cameras, rigs, frames and positions; return name -> image id.

    Those that are ``there`` already, by name, keep their id and get the rest anew.
    """
    known = dict(there)
    keys = dict(db.execute("SELECT key, camera_id FROM tiepoint_cameras"))
    sizes = {i: (w, h) for i, w, h in db.execute("SELECT camera_id, width, height FROM cameras")}
    rigs = dict(db.execute("SELECT ref_sensor_id, rig_id FROM rigs WHERE ref_sensor_type = 0"))
    next_image, next_camera, next_rig, next_frame, next_prior = (
        1 + (db.execute(f"SELECT max({column}) FROM {table}").fetchone()[0] or 0)
        for table, column in (
            ("images", "image_id"),
            ("cameras", "camera_id"),
            ("rigs", "rig_id"),
            ("frames", "frame_id"),
            ("pose_priors", "pose_prior_id"),
        )
    )
    rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in _INSERT}
    for new in images:
        camera, camera_id = new.camera, keys.get(new.camera_key)
        size = (camera.width, camera.height)
        if camera_id is None:
            camera_id, next_camera = next_camera, next_camera + 1
            params = np.asarray(camera.params, np.float64).tobytes()
            prior = int(camera.has_prior_focal_length)
            rows["cameras"].append((camera_id, int(camera.model), *size, params, prior))
            sizes[camera_id] = size
            if new.camera_key is not None:
                keys[new.camera_key] = camera_id
                rows["tiepoint_cameras"].append((new.camera_key, camera_id))
        elif sizes[camera_id] != size:
            raise ArgumentError(
                f"{new.name}: is {size[0]}x{size[1]} pixels, but the camera {new.camera_key!r} that it is to "
                f"share is {sizes[camera_id][0]}x{sizes[camera_id][1]}; give it another key"
            )
        if camera_id not in rigs:  # since COLMAP 4 every camera sits on a rig, if only on its own
            rigs[camera_id], next_rig = next_rig, next_rig + 1
            rows["rigs"].append((rigs[camera_id], camera_id, 0))
        if new.name in there:
            db.execute("UPDATE images SET camera_id = ? WHERE image_id = ?", (camera_id, there[new.name]))
        else:
            known[new.name], next_image = next_image, next_image + 1
            rows["images"].append((known[new.name], new.name, camera_id))
        rows["frames"].append((next_frame, rigs[camera_id]))
        rows["frame_data"].append((next_frame, known[new.name], camera_id, 0))
        next_frame += 1
        if new.position is not None:
            position, unknown = np.asarray(new.position, np.float64), np.full(12, np.nan)
            blobs = position.tobytes(), unknown[:9].tobytes(), unknown[:3].tobytes()
            rows["pose_priors"].append((next_prior, known[new.name], camera_id, 0, *blobs, _WGS84))
            next_prior += 1
    for table, values in rows.items():
        db.executemany(_INSERT[table], values)
    return known


def _create(path: Path) -> None:
    """Make an empty COLMAP database, whole or not at all.

    COLMAP does not notice when a disk is full. So it makes the file elsewhere, and what it made is checked and copied.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    pycolmap = import_pycolmap()
    try:
        with scratch_folder() as folder:
            made = folder / "database.db"
            pycolmap.Database.open(made).close()
            Store.open(made).close()  # adds our own tables
            content = made.read_bytes()
    except (RuntimeError, OSError, InputError) as error:
        raise InputError(
            f"{path}: the database cannot be made: no space for temporary files ({error}); free some, or name another "
            "folder in the environment variable TMPDIR"
        ) from error
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    except InputError as error:
        raise InputError(f"{path}: the database cannot be made: {error.__cause__ or error}") from error


def _connect(path: Path, immutable: bool = False) -> sqlite3.Connection:
    """Open a file that exists; SQLite would make one where there is none.

    ``immutable`` is SQLite's word for a file that nobody changes: it is read without the log beside it, which could not
    be made where nothing can be written.
    """
    how = "mode=ro&immutable=1" if immutable else "mode=rw"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=60, isolation_level=None)


def _check_version(path: Path, installed: str, immutable: bool = False) -> None:
    """Raise `InputError` unless this is a COLMAP database with the tables and columns that are used here."""
    with _explained(path), closing(_connect(path, immutable)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]  # 4020100 is 4.2.1
        present = {
            table: {row[1] for row in db.execute(f"PRAGMA table_info({table})")}  # of a table that is not there: none
            for table in _COLUMNS
        }
    if not present["images"]:
        raise InputError(f"{path}: an SQLite database, but not one of COLMAP's; give another path")
    made_by = f"{version // 1_000_000}.{version // 10_000 % 100}" if version else "an early version"
    if (version // 1_000_000, version // 10_000 % 100) > tuple(int(part) for part in installed.split(".")[:2]):
        raise InputError(
            f"{path}: made by COLMAP {made_by}, which is newer than the installed pycolmap {installed}; "
            "pip install --upgrade pycolmap"
        )
    for table, columns in _COLUMNS.items():
        lacking = [column for column in columns.split(", ") if column not in present[table]]
        if lacking:
            raise InputError(
                f"{path}: made by COLMAP {made_by}, its table {table!r} lacks {', '.join(lacking)}; make a copy, and "
                f"let pycolmap {installed} bring it up to date: "
                f"""python -c "import pycolmap; pycolmap.Database.open('{path}').close()\""""
            )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into `InputError` that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        reason = str(error)
        advice = next((advice for words, advice in _ADVICE.items() if words in reason), None)
        if advice is None:
            if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
                raise  # a fault of ours
            advice = "check the disk and the permissions"
        raise InputError(f"{path}: {reason}; {advice}") from error
    except UnicodeDecodeError as error:  # the message of an SQLite error that quotes the file
        raise InputError(f"{path}: damaged; go back to a copy, or start with a new one") from error


_ADVICE = {
    "disk is full": "free some space and run the same again: what was written before is kept",
    "disk I/O error": "is the disk full, or failing? What was written before is kept",
    "readonly": "give the right to write to the file and its folder, or work on a copy",
    "unable to open": "if it is there, give the right to write to it and its folder, or work on a copy",
    "locked": "another program has been writing to it for a minute; wait until it is done, or end it",
    "not a database": "give the path of a COLMAP database, or a new one",
    "malformed": "the file is damaged; go back to a copy, or start with a new one",
}


def fault_of(features: Features) -> str:
    """Return what no extractor would say of a photograph, or an empty string.

    Examples
    --------
    >>> f = Features(torch.tensor([[9.0, 0.0]]), torch.ones(1), torch.eye(4)[:1], (8, 8), "mine")
    >>> fault_of(f)
    'a keypoint at (9, 0), outside of the picture of 8x8 pixels'
    """
    for name in ("keypoints", "scores", "descriptors", "scales", "orientations", "covariances"):
        value = getattr(features, name)
        if value is not None and value.is_floating_point() and not torch.isfinite(value).all():
            return f"{name} that are not finite numbers"
    size = torch.tensor(features.image_size, dtype=torch.float32, device=features.keypoints.device)
    # Pixels end half a pixel beyond their centres; another half for what is placed between pixels.
    outside = ((features.keypoints < -1) | (features.keypoints > size)).any(dim=1)
    if outside.any():
        x, y = features.keypoints[outside][0].tolist()
        return f"a keypoint at ({x:g}, {y:g}), outside of the picture of {size[0]:g}x{size[1]:g} pixels"
    return ""


def _feature_rows(image_id: int, features: Features) -> dict[str, tuple[Any, ...]]:
    """Return table -> row."""
    if fault := fault_of(features):
        raise ArgumentError(f"image {image_id}: features with {fault}")
    parts = [
        None if part is None else part.detach().cpu().numpy().astype(np.float32, copy=False)
        for part in (features.keypoints, features.scales, features.orientations)
    ]
    points, scales, orientations = parts
    assert points is not None
    columns = [points + np.float32(0.5)]
    shape = ("" if scales is None else "s") + ("" if orientations is None else "o")
    if shape:  # COLMAP wants both or neither
        columns += [
            np.ones(len(points), np.float32)[:, None] if scales is None else scales[:, None] / 2,
            np.zeros(len(points), np.float32)[:, None] if orientations is None else orientations[:, None],
        ]
    table = np.concatenate(columns, axis=1)
    n, descriptors = len(points), features.descriptors.detach().cpu().numpy()
    rows: dict[str, tuple[Any, ...]] = {"keypoints": (image_id, n, table.shape[1], _blob(table))}
    blob = None
    if features.is_binary:
        kind, blob = "bits", _blob(descriptors)
    elif features.extractor == "sift" and descriptors.shape[1] == 128:
        kind, quantised = "colmap", np.rint(descriptors * 512).clip(0, 255).astype(np.uint8)
        rows["descriptors"] = (image_id, _SIFT, n, 128, _blob(quantised))
    else:
        kind, blob = "float16", _blob(descriptors.astype(np.float16))
    if features.covariances is not None:
        covariances = features.covariances.detach().cpu().numpy().astype(np.float32)
        rows["tiepoint_covariances"] = image_id, covariances.tobytes()
    scores = features.scores.detach().cpu().numpy().astype(np.float32).tobytes()
    extra = (image_id, features.extractor, shape, scores, kind, descriptors.shape[1], blob)
    return {**rows, "tiepoint_features": extra}


def _scale_and_orientation(table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return diameters (N,) and angles (N,) of COLMAP's keypoints (N, 2), (N, 4) or (N, 6)."""
    if table.shape[1] == 4:
        return table[:, 2] * 2, table[:, 3].copy()
    if table.shape[1] == 6:  # x, y, and the affine shape [[a, b], [c, d]], for SIFT a scaled rotation
        a, b, c, d = table[:, 2:].T
        return np.hypot(a, c) + np.hypot(b, d), np.arctan2(c, a)
    return np.ones(len(table), np.float32), np.zeros(len(table), np.float32)


def _pair_rows(item: PairResult) -> dict[str, tuple[Any, ...]]:
    """Return table -> row."""
    pair_id, swap = _pair_id(item.id0, item.id1), item.id0 > item.id1
    matches = np.asarray(item.matches, np.uint32)[:, :: -1 if swap else 1]
    scores = np.asarray(item.scores, np.float32).tobytes()
    rows: dict[str, tuple[Any, ...]] = {
        "matches": (pair_id, len(matches), 2, _blob(matches)),
        "tiepoint_matches": (pair_id, scores, None if item.overlaps is None else int(item.overlaps)),
    }
    if item.inliers is not None:
        model = item.F, item.E, item.H, item.R, item.t
        F, E, H, R, t = _inverse(*model) if swap else model
        blobs = [
            None if part is None else np.asarray(part, np.float64).tobytes()
            for part in (F, E, H, None if R is None else quaternion_of(R), t)
        ]
        kept = matches[item.inliers]
        rows["two_view_geometries"] = (pair_id, len(kept), 2, _blob(kept), CONFIGS.index(item.config), *blobs)
    return rows


def _delete_pairs_of(db: sqlite3.Connection, image_ids: set[int], tables: Iterable[str] = _PAIR_TABLES) -> None:
    """Delete what the tables hold of all pairs of some images."""
    for table in tables if image_ids else ():
        ids = np.fromiter((pair_id for (pair_id,) in db.execute(f"SELECT pair_id FROM {table}")), np.int64)
        stale = ids[np.isin(pairs_of(ids), list(image_ids)).any(axis=1)]
        db.executemany(f"DELETE FROM {table} WHERE pair_id = ?", [(pair_id,) for pair_id in stale.tolist()])


def _delete_features_of(db: sqlite3.Connection, image_ids: set[int]) -> None:
    """Delete the features of some images, and their pairs."""
    _delete_pairs_of(db, image_ids)
    for table in ("keypoints", "descriptors", "tiepoint_features", "tiepoint_covariances"):
        db.executemany(f"DELETE FROM {table} WHERE image_id = ?", [(image_id,) for image_id in image_ids])


def _delete_frames_of(db: sqlite3.Connection, image_ids: Iterable[int]) -> None:
    """Delete the frames of some images, and where they were taken."""
    ids = [(image_id,) for image_id in image_ids]
    frames = "SELECT frame_id FROM frame_data WHERE data_id = ? AND sensor_type = 0"
    db.executemany(f"DELETE FROM frames WHERE frame_id IN ({frames})", ids)  # frame_data goes along
    db.executemany("DELETE FROM pose_priors WHERE corr_data_id = ? AND corr_sensor_type = 0", ids)


def _delete_unused_cameras(db: sqlite3.Connection) -> None:
    """Delete cameras that took no image, unless they are part of a larger rig, and their own rigs."""
    db.execute(
        "DELETE FROM cameras WHERE camera_id NOT IN (SELECT camera_id FROM images) AND camera_id NOT IN "
        "(SELECT sensor_id FROM rig_sensors WHERE sensor_type = 0)"
    )
    gone = "NOT IN (SELECT camera_id FROM cameras)"
    db.execute(f"DELETE FROM rigs WHERE ref_sensor_type = 0 AND ref_sensor_id {gone}")
    db.execute(f"DELETE FROM tiepoint_cameras WHERE camera_id {gone}")


def _camera_values(camera: pycolmap.Camera) -> tuple[Any, ...]:
    return (
        int(camera.model), camera.width, camera.height, tuple(camera.params), bool(camera.has_prior_focal_length)
    )  # fmt: skip


def _pair_id(id0: int, id1: int) -> int:
    return int(pair_ids((id0, id1))[0])


def _blob(array: NDArray[Any]) -> bytes | None:
    """Return the bytes row by row; as in COLMAP, NULL stands for no rows."""
    return array.tobytes() if array.size else None


def _numbers(blob: bytes | None, dtype: type, *shape: int) -> NDArray[Any]:
    """Return an array of its own that was stored as its bytes; NULL stands for no rows.

    Raises
    ------
    ValueError
        The bytes are not those of an array of this shape, or there are none.
    """
    values: NDArray[Any] = np.frombuffer(blob or b"", dtype)
    if min(shape) < 0 or values.size != math.prod(shape):
        raise ValueError(f"{values.size} numbers instead of {' x '.join(map(str, shape))}")
    return values.reshape(shape).copy()


def _indices(count: int, blob: bytes | None, have: list[int | None]) -> NDArray[np.int64]:
    """Return matches (K, 2) of keypoints, of which two images have so many, where that is known."""
    indices = _numbers(blob, np.uint32, count, 2).astype(np.int64)
    for column, most in zip(indices.T, have, strict=True):
        if most is not None and column.max(initial=-1) >= most:
            raise ValueError(f"a match of keypoint {column.max()}, of {most}")
    return indices


def _camera(camera_id: int, model: int, width: int, height: int, params: bytes, prior: int) -> pycolmap.Camera:
    """Return a camera as a row of the database describes it; raises `ValueError` if that makes no sense."""
    pycolmap = import_pycolmap()
    values = np.frombuffer(params, np.float64)
    camera = pycolmap.Camera(
        camera_id=camera_id,
        model=pycolmap.CameraModelId(model),
        width=width,
        height=height,
        params=values,
        has_prior_focal_length=bool(prior),
    )
    if not camera.verify_params() or not np.isfinite(values).all() or min(width, height) < 1:
        raise ValueError(f"camera {camera_id}: {width}x{height} pixels, parameters {values.tolist()}")
    return camera


def _inverse(
    F: Matrix | None, E: Matrix | None, H: Matrix | None, R: Matrix | None, t: Matrix | None
) -> tuple[Matrix | None, Matrix | None, Matrix | None, Matrix | None, Matrix | None]:
    """Return the same geometry seen from the other image."""
    return (
        None if F is None else np.ascontiguousarray(np.transpose(F)),
        None if E is None else np.ascontiguousarray(np.transpose(E)),
        None if H is None else np.asarray(np.linalg.inv(H), np.float64),
        None if R is None else np.ascontiguousarray(np.transpose(R)),
        None if R is None or t is None else -np.transpose(R) @ t,
    )
