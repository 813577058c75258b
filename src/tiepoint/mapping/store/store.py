"""`Store`: images, features and pairs, read from and written to a COLMAP database."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import ArgumentError, InputError
from ...io.files import check_image_name
from ...types import Features
from . import schema
from .file import DatabaseFile
from .records import (
    FileFingerprints,
    Fingerprint,
    NewImage,
    PairMatches,
    PairResult,
    StoredGeometry,
    StoredImage,
    pair_id_of,
    pairs_of,
)
from .rows import (
    camera_of_row,
    camera_values,
    features_of_row,
    geometry_of_row,
    matches_of_row,
    numbers,
    rows_of_features,
    rows_of_pair,
)
from .schema import COLUMNS, SIFT, WGS84

T = TypeVar("T")


class Store:
    """A COLMAP database, read and written in whole transactions; make one with `Store.open`.

    Each ``write_`` method first gathers everything it was given and then commits it at once, within
    milliseconds. A process that dies loses the open transaction and nothing else. Write in batches, which is faster.

    Any number of processes may read at the same time, COLMAP among them, but only one should write. (COLMAP writes its
    version whenever it opens a file, so opening fails during a transaction.) One `Store` belongs to the thread that
    opened it; other threads open their own.

    Notes
    -----
    The file is in SQLite's write-ahead mode, as COLMAP leaves it: while somebody has it open, recent
    transactions are in the file beside it whose name ends in ``-wal``. Copy or move the two together.

    A store and `pycolmap.Database` may take turns in one process (see `file.DatabaseFile`); but no other thread of the
    process may have the file open in pycolmap while a store writes to it.

    Examples
    --------
    >>> import pycolmap, tempfile, torch
    >>> camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[768, 320, 240, 0])
    >>> features = Features(torch.tensor([[3.0, 4.0]]), torch.ones(1), torch.eye(64)[:1], (640, 480), "xfeat")
    >>> with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "database.db")) as store:
    ...     ids = store.add_images([NewImage("a.jpg", camera, "phone"), NewImage("b.jpg", camera, "phone")])
    ...     store.write_features([(ids["a.jpg"], features), (ids["b.jpg"], features)])
    ...     store.write_matches([PairResult(1, 2, np.array([[0, 0]]), np.array([0.9]))])
    ...     store.matched_pair_ids().tolist(), store.matches(1, 2).indices.tolist(), store.features(1)
    ([2147483649], [[0, 0]], <Features: 1 xfeat keypoints in 640x480 pixels>)
    """

    def __init__(self, file: DatabaseFile) -> None:
        self.file = file
        self.path = file.path

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
        return cls(DatabaseFile.open(Path(path), create, read_only))

    def close(self) -> None:
        """Close the file; nothing is waiting to be written.

        Raises
        ------
        InputError
            Not all could be moved from the log into the file, most often because the disk is full. It is kept in the
            log.
        """
        self.file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(InputError) if kind is not None else nullcontext():  # the first error says more
            self.close()

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
        with self.file.transaction() as db:
            known = dict(db.execute("SELECT name, image_id FROM images"))
            first = {new.name: new for new in reversed(images)}  # of several with one name
            fresh = [new for new in images if new.name not in known and first[new.name] is new]
            for new in fresh:
                check_image_name(new.name, "add_images")
            known.update(schema.enter_images(db, fresh))
        return {new.name: known[new.name] for new in images}

    def images(self) -> list[StoredImage]:
        """Return all photographs, sorted by name; those that share a camera hold the same object.

        Raises
        ------
        InputError
            A camera or a position is damaged, or a name leads out of the folder of the photographs
            (`tiepoint.io.files.check_image_name`).
        """
        with self.file.reading() as db, self.file.well_formed("images"):
            cameras = {row[0]: camera_of_row(*row) for row in db.execute(f"SELECT {COLUMNS['cameras']} FROM cameras")}
            priors = db.execute(
                "SELECT corr_data_id, position FROM pose_priors WHERE corr_sensor_type = 0 AND coordinate_system = ?",
                (WGS84,),
            )
            positions = {image_id: tuple(numbers(blob, np.float64, 3).tolist()) for image_id, blob in priors}
            return [
                StoredImage(i, check_image_name(name, self.path), camera, cameras[camera], positions.get(i))
                for i, name, camera in db.execute("SELECT image_id, name, camera_id FROM images ORDER BY name")
            ]

    # ---- changes of what is there ----

    def fingerprints(self) -> dict[int, FileFingerprints]:
        """Return image id -> the files that the image was made of, for the images of which that is known."""
        with self.file.reading() as db:
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
        with self.file.transaction() as db:
            schema.delete_features_of(db, set(replaced))
            db.executemany("DELETE FROM tiepoint_files WHERE image_id = ?", ids)
            db.executemany(schema.INSERT["tiepoint_files"], rows)

    def rename_images(self, names: Mapping[int, str]) -> None:
        """Give images (by id) other names; they keep their features and pairs."""
        for name in names.values():
            check_image_name(name, "rename_images")
        ids = [int(image_id) for image_id in names]
        with self.file.transaction() as db:
            # By way of names that no file has, because a may become b while b becomes a.
            db.executemany("UPDATE images SET name = ? WHERE image_id = ?", [(f"\n{i}", i) for i in ids])
            db.executemany("UPDATE images SET name = ? WHERE image_id = ?", [(names[i], i) for i in ids])

    def remove_images(self, image_ids: Iterable[int]) -> None:
        """Remove images with their features and pairs; a camera that took no other image is removed with them."""
        ids = {int(image_id) for image_id in image_ids}
        with self.file.transaction() as db:
            schema.delete_features_of(db, ids)
            schema.delete_frames_of(db, ids)
            db.executemany("DELETE FROM images WHERE image_id = ?", [(i,) for i in ids])
            schema.delete_unused_cameras(db)

    def remove_pairs(self, ids: ArrayLike) -> None:
        """Remove the matches and geometries of pairs, by their ids (see `pair_ids`)."""
        rows = [(pair_id,) for pair_id in np.asarray(ids, np.int64).tolist()]
        with self.file.transaction() as db:
            schema.replace(db, schema.PAIR_TABLES, "pair_id", rows)

    def update_cameras(self, images: Sequence[NewImage]) -> list[str]:
        """Give images that are in the store the cameras that `add_images` would give them in an empty one.

        The two-view geometries that depend on a camera that changed go; matches stay.

        Parameters
        ----------
        images : sequence of NewImage
            Those whose camera is to be looked at; any other keeps its own, and shares it with none of them.

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
        with self.file.reading() as db:
            keys = {camera_id: key for key, camera_id in db.execute("SELECT key, camera_id FROM tiepoint_cameras")}
            rigs = db.execute("SELECT count(*) FROM rig_sensors").fetchone()[0]
        users = Counter(image.camera_id for image in stored)
        changed, regrouped, moved = [], [], []
        for image in stored:
            new = wanted[image.name]
            if camera_values(new.camera) != camera_values(image.camera):
                changed.append(image)
            elif keys.get(image.camera_id) != new.camera_key or (new.camera_key is None and users[image.camera_id] > 1):
                regrouped.append(image)
            if not np.array_equal(image.position or (), new.position or (), equal_nan=True):
                moved.append(image)
        if not (changed or regrouped or moved):
            return []
        if rigs:
            raise InputError(f"{self.path}: has cameras on rigs, which cannot be exchanged; start over with --fresh")
        with self.file.transaction() as db:
            db.execute("PRAGMA defer_foreign_keys = ON")  # until all is there again
            schema.delete_pairs_of(db, {image.image_id for image in changed}, ("two_view_geometries",))
            schema.delete_frames_of(db, [image.image_id for image in stored])
            db.executemany("DELETE FROM tiepoint_cameras WHERE camera_id = ?", [(camera_id,) for camera_id in users])
            ids = {image.name: image.image_id for image in stored}
            schema.enter_images(db, [wanted[name] for name in ids], ids)
            schema.delete_unused_cameras(db)
        return [image.name for image in changed + regrouped]

    # ---- features ----

    def write_features(self, items: Iterable[tuple[int, Features]]) -> None:
        """Write the features of some images in one transaction.

        Descriptors of the extractor "sift" are kept as COLMAP keeps its own, one byte a number, all other real ones as
        float16. Features that were there are replaced, and the matches of these images, which point to them, deleted.

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
        with self.file.reading() as db:
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
        rows = [rows_of_features(int(image_id), features) for image_id, features in batch.items()]
        ids = [(int(image_id),) for image_id in batch]
        with self.file.transaction() as db:
            old = {i for (i,) in ids if db.execute("SELECT 1 FROM keypoints WHERE image_id = ?", (i,)).fetchone()}
            schema.delete_pairs_of(db, old)
            schema.replace(db, schema.FEATURE_TABLES, "image_id", ids, rows)

    def keypoint_counts(self) -> dict[int, int]:
        """Return image id -> number of keypoints, for the images whose features are in the store."""
        with self.file.reading() as db:
            found = db.execute("SELECT image_id, rows, cols, coalesce(length(data), 0) FROM keypoints").fetchall()
        with self.file.well_formed("keypoints"):
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
        blobs = ", t.descriptors, d.data AS colmap_descriptors" if descriptors else ""
        row = self.file.row(
            f"SELECT t.extractor IS NULL AND d.type IS NOT {SIFT} AS is_foreign, c.width, c.height, "
            "k.rows AS n, k.cols AS columns, k.data AS keypoints, t.extractor, t.shape, t.scores, t.kind, "
            f"v.data AS covariances, t.cols AS length, d.cols AS colmap_length{blobs} "
            "FROM keypoints AS k JOIN images USING (image_id) "
            "JOIN cameras AS c USING (camera_id) LEFT JOIN tiepoint_features AS t USING (image_id) "
            "LEFT JOIN tiepoint_covariances AS v USING (image_id) LEFT JOIN descriptors AS d USING (image_id) "
            "WHERE image_id = ?",
            image_id,
        )
        if row is None:
            raise ArgumentError(f"the features of image {image_id} are not in {self.path}; extract them first")
        if row["is_foreign"]:
            raise InputError(
                f"{self.path}: the features of image {image_id} were made elsewhere, and not by SIFT; extract into a "
                "new database"
            )
        with self.file.well_formed(f"the features of image {image_id}"):
            return features_of_row(row, descriptors)

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
        batch = list({pair_id_of(item.id0, item.id1): item for item in items}.values())
        with self.file.reading() as db:
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
            rows.append(rows_of_pair(item))
        ids = [row["matches"][:1] for row in rows]
        with self.file.transaction() as db:
            schema.replace(db, schema.PAIR_TABLES, "pair_id", ids, rows)

    def matched_pair_ids(self) -> NDArray[np.int64]:
        """Return the ids (see `pair_ids`) of all pairs that were matched, sorted: int64 (P,), 8 bytes a pair."""
        return self._pair_ids("matches INDEXED BY tiepoint_matched")

    def verified_pair_ids(self) -> NDArray[np.int64]:
        """Return the ids of all pairs that were verified, with a geometry or without, sorted: int64 (P,)."""
        return self._pair_ids("two_view_geometries INDEXED BY tiepoint_verified")

    def _pair_ids(self, table: str) -> NDArray[np.int64]:
        with self.file.reading() as db, self.file.well_formed(table.split()[0]):
            return np.sort(
                np.fromiter((pair_id for (pair_id,) in db.execute(f"SELECT pair_id FROM {table}")), np.int64)
            )

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
        columns, table = "rows, data, scores, overlaps", "matches LEFT JOIN tiepoint_matches USING (pair_id)"
        return self._of_pair("matches", id0, id1, columns, table, matches_of_row)

    def verified_pairs(self) -> dict[tuple[int, int], int]:
        """Return the pairs (smaller id, larger id) with a two-view geometry -> the number of its inliers, above 0."""
        with self.file.reading() as db, self.file.well_formed("two-view geometries"):
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
        columns = "rows, data, config, F, E, H, qvec, tvec"
        return self._of_pair("geometry", id0, id1, columns, "two_view_geometries", geometry_of_row)

    def _of_pair(
        self, what: str, id0: int, id1: int, columns: str, table: str, convert: Callable[[sqlite3.Row, bool], T]
    ) -> T | None:
        """Return what ``convert`` makes of a pair's columns and of the numbers of keypoints of its two images."""
        first, second = sorted((int(id0), int(id1)))
        counts = ", ".join(f"(SELECT rows FROM keypoints WHERE image_id = ?) AS keypoints{side}" for side in (0, 1))
        query = f"SELECT {columns}, {counts} FROM {table} WHERE pair_id = ?"
        row = self.file.row(query, first, second, pair_id_of(id0, id1))
        if row is None:
            return None
        with self.file.well_formed(f"the {what} of images {first} and {second}"):
            return convert(row, id0 > id1)

    def hide_pairs(self, ids: ArrayLike) -> None:
        """Hide the two-view geometries of pairs (by their ids, see `pair_ids`) from mappers; the matches stay.

        The inliers, which mappers read, move to a table that COLMAP ignores. The pair then looks as if no geometry had
        been found for it.
        """
        rows = [(pair_id,) for pair_id in np.asarray(ids, np.int64).tolist()]
        with self.file.transaction() as db:
            db.executemany(
                "INSERT INTO tiepoint_hidden SELECT pair_id, rows, data, config FROM two_view_geometries "
                "WHERE pair_id = ?",
                rows,
            )
            db.executemany("UPDATE two_view_geometries SET rows = 0, data = NULL, config = 0 WHERE pair_id = ?", rows)

    def show_hidden_pairs(self) -> int:
        """Undo all that `hide_pairs` did; return the number of pairs that came back."""
        with self.file.transaction() as db:
            db.execute(
                "UPDATE two_view_geometries AS g SET (rows, data, config) = "
                "(SELECT rows, data, config FROM tiepoint_hidden AS h WHERE h.pair_id = g.pair_id) "
                "WHERE pair_id IN (SELECT pair_id FROM tiepoint_hidden)"
            )
            return db.execute("DELETE FROM tiepoint_hidden").rowcount
