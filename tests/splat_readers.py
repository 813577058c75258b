"""Readers of what trains splats, written from the documented formats, without COLMAP or any code of ours.

- `read_transforms`: nerfstudio's ``transforms.json``, https://docs.nerf.studio/quickstart/data_conventions.html:
  camera-to-world, x right, y up, z backward; ``applied_transform`` is what its world was moved by.
- `read_sparse`: COLMAP's binary model, https://colmap.github.io/format.html: world-to-camera, x right, y down, z
  forward. gsplat reads ``sparse/0`` beside ``images``.

Pixels are counted from the corner of the picture by both.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8, 5: 8}  # of COLMAP's first camera models, by number
SIMPLE_PINHOLE, PINHOLE = 0, 1


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture below ``images``, its size, and where points of the world (N, 3) lie in it."""

    name: str
    size: tuple[int, int]
    pose: Matrix  # world to camera (4, 4), with OpenCV's axes
    K: Matrix
    distortion: tuple[float, ...] = ()  # k1, k2, p1, p2 (OpenCV)

    def project(self, points: Matrix) -> Matrix:
        """Return pixels (N, 2); nan for points behind the camera."""
        x, y, z = self.pose[:3, :3] @ points.T + self.pose[:3, 3:]
        x, y = np.where(z > 0, x / z, np.nan), np.where(z > 0, y / z, np.nan)
        k1, k2, p1, p2 = self.distortion or (0.0,) * 4
        r2 = x**2 + y**2
        radial = 1 + k1 * r2 + k2 * r2**2
        u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
        v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
        return np.column_stack([self.K[0, 0] * u + self.K[0, 2], self.K[1, 1] * v + self.K[1, 2]])


def read_transforms(folder: Path) -> tuple[dict[str, Shot], Matrix]:
    """Return the pictures of ``transforms.json``, and its points (N, 3), in one world."""
    content = json.loads((folder / "transforms.json").read_text())
    assert content["camera_model"] in ("PINHOLE", "OPENCV")  # of nerfstudio's names those of perspective cameras
    back = np.eye(4)
    back[:3] = content.get("applied_transform", back[:3])
    shots = {}
    for frame in content["frames"]:
        about: dict[str, Any] = {**content, **frame}
        K = np.array([[about["fl_x"], 0, about["cx"]], [0, about["fl_y"], about["cy"]], [0, 0, 1]])
        opencv = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        name = str(Path(frame["file_path"]).relative_to("images"))
        distortion = tuple(about.get(key, 0.0) for key in ("k1", "k2", "p1", "p2"))
        pose = np.linalg.inv(np.linalg.inv(back) @ opencv)
        shots[name] = Shot(name, (about["w"], about["h"]), pose, K, distortion)
    points = read_points(folder / content["ply_file_path"])
    return shots, (points - back[:3, 3]) @ np.linalg.inv(back[:3, :3]).T


def read_points(path: Path) -> Matrix:
    """Return the positions (N, 3) of a binary PLY file whose vertices come first."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii").split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "float32": "<f4", "double": "<f8", "uchar": "u1", "uint8": "u1"}
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    fields = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    table = np.frombuffer(body, fields, count)
    return np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)


def read_sparse(folder: Path) -> tuple[dict[str, Shot], dict[int, Matrix], dict[str, list[tuple[int, Matrix]]]]:
    """Return pictures by name, points by id, and of each picture which points it sees in which pixels."""
    cameras, shots, points, seen = {}, {}, {}, {}
    with (folder / "cameras.bin").open("rb") as file:
        for _ in range(*_unpack(file, "Q")):
            number, model, width, height = _unpack(file, "iiQQ")
            cameras[number] = model, (width, height), _unpack(file, f"{PARAMETERS[model]}d")
    with (folder / "images.bin").open("rb") as file:
        for _ in range(*_unpack(file, "Q")):
            _, w, x, y, z, *shift, camera = _unpack(file, "i7di")
            name = b"".join(iter(lambda: file.read(1), b"\0")).decode()
            rows = np.array(_unpack(file, f"{3 * _unpack(file, 'Q')[0]}d")).reshape(-1, 3)
            ids = rows[:, 2].copy().view(np.int64)
            seen[name] = [(int(point), xy) for point, xy in zip(ids, rows[:, :2], strict=True) if point != -1]
            pose = np.eye(4)
            pose[:3, :3] = _rotation(w, x, y, z)
            pose[:3, 3] = shift
            model, size, parameters = cameras[camera]
            assert model in (SIMPLE_PINHOLE, PINHOLE)  # gsplat warns of others
            fx, fy, cx, cy = (parameters[0], *parameters) if model == SIMPLE_PINHOLE else parameters
            shots[name] = Shot(name, size, pose, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    with (folder / "points3D.bin").open("rb") as file:
        for _ in range(*_unpack(file, "Q")):
            number, *xyz, _, _, _, _, length = _unpack(file, "Q3d3BdQ")
            points[number] = np.array(xyz)
            _unpack(file, f"{2 * length}i")
    return shots, points, seen


def _unpack(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _rotation(w: float, x: float, y: float, z: float) -> Matrix:
    """Return the rotation matrix of a unit quaternion (Hamilton)."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def reprojection_errors(folder: Path) -> tuple[Matrix, Matrix]:
    """Return by how many pixels each observation of ``sparse/0`` misses its point, through each of the two files.

    Points are those of ``points.ply`` for ``transforms.json``; each belongs to the nearest one of ``sparse/0``, which
    must be at the same place.
    """
    shots, points, seen = read_sparse(folder / "sparse" / "0")
    others, cloud = read_transforms(folder)
    assert shots.keys() == others.keys()
    files = {str(path.relative_to(folder / "images")) for path in (folder / "images").rglob("*") if path.is_file()}
    assert files == shots.keys()  # gsplat pairs sorted lists of both
    assert len(cloud) == len(points)
    by_id = {}
    for number, xyz in points.items():
        by_id[number] = cloud[np.linalg.norm(cloud - xyz, axis=1).argmin()]
        assert np.linalg.norm(by_id[number] - xyz) < 1e-5 * (1 + np.linalg.norm(xyz))
    errors: tuple[list[Matrix], list[Matrix]] = [], []
    for name, observed in seen.items():
        pixels = np.array([xy for _, xy in observed])
        for found, shot, places in zip(errors, (shots[name], others[name]), (points, by_id), strict=True):
            there = shot.project(np.array([places[number] for number, _ in observed]))
            found.append(np.linalg.norm(there - pixels, axis=1))
    return np.concatenate(errors[0]), np.concatenate(errors[1])
