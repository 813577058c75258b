"""Maps made by tiepoint beside those of COLMAP's own SIFT pipeline: registered images, errors, ground truth.

- sceaux: nothing is known but the photographs, as for ``tiepoint map``; no ground truth
- fountain, entry (laser), lund_door (structure from motion): the cameras' calibration is given to both, and stays fixed

All pairs are matched. From each database of matches several maps are made, so that one sees what comes of features
and matches, and what of the steps after. ``python benchmarks/mapping_quality.py --sets fountain --systems colmap`` is
a rehearsal. What was done is not done again; delete its file in ``results/mapping_quality/`` for that.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import pycolmap
import typer
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint.devices import environment
from tiepoint.geometry import Camera, relative_pose
from tiepoint.mapping import NewImage, Store, extract_into, map_photographs, match_into, pairs
from tiepoint.mapping.steps.reconstruct import Quality, reconstruct
from tiepoint.pipeline import choose

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
RESULTS = HERE / "results" / "mapping_quality"

COLMAP = "colmap"  # stands for COLMAP's own SIFT among the systems, whose other names are FEATURES+MATCHER
KEYPOINTS, LONG_SIDE = 2048, 1600

Matrix = NDArray[np.float64]
Pose = tuple[Matrix, Matrix]


def read_truth(path: Path) -> tuple[dict[str, Pose], Camera]:
    """Return image name -> world-to-camera pose, and the camera, of a pairs.json.

    Its relative poses are chained from the first image on, which is the world. They agree with each other to 1e-5.
    """
    content = json.loads(path.read_text("utf-8"))["pairs"]
    identity = np.eye(3), np.zeros(3)
    steps: dict[str, list[tuple[str, Pose]]] = {}
    for pair in content:
        pose = np.array(pair["R"]), np.array(pair["t"])
        steps.setdefault(pair["image0"], []).append((pair["image1"], pose))
        steps.setdefault(pair["image1"], []).append((pair["image0"], relative_pose(pose, identity)))
    start = content[0]["image0"]
    found, waiting = {start: identity}, [start]
    while waiting:
        image = waiting.pop()
        R0, t0 = found[image]
        for other, (R, t) in steps[image]:
            if other not in found:
                found[other] = R @ R0, R @ t0 + t
                waiting.append(other)
    with PIL.Image.open(path.parent / start) as picture:
        camera = Camera.from_K(content[0]["K0"], picture.size)
    return {Path(name).name: pose for name, pose in found.items()}, camera


def pose_errors(estimated: dict[str, Pose], truth: dict[str, Pose]) -> tuple[Matrix, Matrix]:
    """Return rotation errors in degrees and position errors, in the unit of the truth, of the images in both.

    The model's frame is aligned first: its rotation by the cameras' rotations (chordal mean), which also works for
    cameras on a line; then scale and shift by their positions.
    """
    names = sorted(estimated.keys() & truth.keys())
    R0, R1 = (np.array([poses[name][0] for name in names]) for poses in (estimated, truth))
    c0, c1 = (np.array([-poses[n][0].T @ poses[n][1] for n in names]) for poses in (estimated, truth))
    U, _, Vt = np.linalg.svd(
        np.einsum("nki,nkj->ij", R1, R0)
    )  # sum of R1^T R0: from the estimated world to the true one
    turn = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
    angles = np.einsum("nij,nij->n", R1 @ turn, R0)  # traces of (R1 turn)^T R0
    rotation = np.degrees(np.arccos(np.clip((angles - 1) / 2, -1, 1)))
    a, b = (c0 - c0.mean(axis=0)) @ turn.T, c1 - c1.mean(axis=0)
    return rotation, np.linalg.norm(b - (a * b).sum() / (a * a).sum() * a, axis=1)


def match_with_colmap(images: Path, database: Path, camera: Camera | None) -> None:
    """Extract and match with COLMAP's SIFT, as its own command line does by default."""
    reader = pycolmap.ImageReaderOptions()
    if camera is not None:
        reader.camera_model, _, _, params = camera.to_colmap()
        reader.camera_params = ",".join(map(repr, params))
    mode = pycolmap.CameraMode.AUTO if camera is None else pycolmap.CameraMode.SINGLE
    pycolmap.extract_features(database, images, camera_mode=mode, reader_options=reader)
    pycolmap.match_exhaustive(database)


def match_with_tiepoint(images: Path, database: Path, camera: Camera, features: str, matcher: str) -> None:
    """Do what `map_photographs` does up to the database, but with a known camera."""
    model, width, height, params = camera.to_colmap()
    known = pycolmap.Camera(model=model, width=width, height=height, params=params, has_prior_focal_length=True)
    with Store.open(database) as store:
        ids = store.add_images([NewImage(path.name, known, "one") for path in sorted(images.iterdir())])
        extract_into(store, images, tp.features.load(features, max_keypoints=KEYPOINTS, long_side=LONG_SIDE))
        match_into(store, pairs.exhaustive(sorted(ids.values())), tp.matchers.load(matcher, features=features))


def map_with_colmap(images: Path, database: Path, output: Path, camera: Camera | None) -> pycolmap.Reconstruction:
    """Return the largest model of COLMAP's own incremental mapper."""
    options = pycolmap.IncrementalPipelineOptions(random_seed=0, num_threads=1)
    options.ba_refine_focal_length = options.ba_refine_extra_params = camera is None
    models = pycolmap.incremental_mapping(database, images, output, options).values()
    return max(models, key=lambda model: model.num_reg_images())


def measure(name: str, system: str, data: Path) -> list[dict[str, Any]]:
    """Match one set in one way, make maps of the matches, and return their lines of the table."""
    calibrated = name != "sceaux"
    folder = data / ("eval" if calibrated else "demo") / name
    images, truth, camera = folder / "images", {}, None
    if calibrated:
        truth, camera = read_truth(folder / "pairs.json")
    features, _, matcher = system.partition("+")
    lines = []

    def add(steps: str, model: pycolmap.Reconstruction, begin: float) -> None:
        quality = Quality.of(model, total)
        line = {
            "set": name,
            "system": system,
            "steps": steps,
            "registered": quality.registered,
            "total": quality.total,
            "points": quality.points,
            "observations": quality.observations,
            "track_length": quality.track_length,
            "error_px": quality.error,
            "weakest": [(image.name, image.observations) for image in quality.images[:3]],
            "matching_seconds": matching_seconds,
            "mapping_seconds": time.perf_counter() - begin,
        }
        lines.append(line | (against_truth(model, truth) if truth else {}))

    total = len(list(images.iterdir()))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        database, begin = work / "database.db", time.perf_counter()
        if system == COLMAP:
            match_with_colmap(images, database, camera)
        elif camera is not None:
            match_with_tiepoint(images, database, camera, features, matcher)
        else:  # the whole command; its map is made once more below, in one thread as all others
            limits = {"max_keypoints": KEYPOINTS, "long_side": LONG_SIDE}
            map_photographs(images, work, quality="fast", features=features, matcher=matcher, **limits)
        matching_seconds = time.perf_counter() - begin
        if system == COLMAP:
            (work / "colmap").mkdir()
            begin = time.perf_counter()
            add("COLMAP", map_with_colmap(images, database, work / "colmap", camera), begin)
        for steps, mapper, refine in (
            ("reconstruct", "incremental", False),
            ("reconstruct, keypoints refined", "incremental", True),
            ("reconstruct, global", "global", False),
        ):
            begin = time.perf_counter()
            scene = reconstruct(
                database,
                images,
                work / "map",
                mapper=mapper,
                refine_cameras=camera is None,
                refine_keypoints=refine,
                threads=1,
            )
            add(steps, scene.models[0], begin)
    return lines


def against_truth(model: pycolmap.Reconstruction, truth: dict[str, Pose]) -> dict[str, Any]:
    """Return median and largest errors; positions in percent of the distance between the cameras furthest apart."""
    poses = {}
    for image in model.images.values():
        pose = image.cam_from_world()
        poses[image.name] = pose.rotation.matrix(), pose.translation
    rotation, position = pose_errors(poses, truth)
    centres = np.array([-R.T @ t for R, t in truth.values()])
    extent = float(np.linalg.norm(centres[:, None] - centres, axis=2).max())
    share = position / extent * 100
    return {
        "rotation_deg": {"median": float(np.median(rotation)), "max": float(rotation.max())},
        "position_percent": {"median": float(np.median(share)), "max": float(share.max())},
        "extent": extent,  # metres in fountain and entry
    }


def markdown(lines: Sequence[dict[str, Any]], where: dict[str, str]) -> str:
    """Return the table, and what it means."""
    table = [
        "| set | matches | map | images | points | track length | error px | rotation ° | position % | seconds |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in lines:
        rotation, position = (
            "–" if key not in line else f"{line[key]['median']:.3f} / {line[key]['max']:.3f}"
            for key in ("rotation_deg", "position_percent")
        )
        table.append(
            f"| {line['set']} | {line['system']} | {line['steps']} | {line['registered']} / {line['total']} | "
            f"{line['points']} | {line['track_length']:.2f} | {line['error_px']:.3f} | {rotation} | {position} | "
            f"{line['matching_seconds']:.0f} + {line['mapping_seconds']:.0f} |"
        )
    legend = """
The largest model of each. `colmap`: COLMAP's SIFT with its default options, matched exhaustively; with the map `COLMAP`
that is COLMAP's pipeline and nothing of ours. Error: mean reprojection error over all observations; fewer or easier
points make it smaller, so read it beside their number. Rotation and position: median / largest error against the
ground truth once the frames are aligned; positions in percent of the distance between the two cameras furthest apart.
Seconds: matches + map, whatever else the machine was doing; `sceaux` without calibration is timed through the whole
of `tiepoint map`."""
    return "\n".join(table) + "\n" + legend + "\n\n" + ", ".join(f"{k} {v}" for k, v in where.items()) + "\n"


def main(
    systems: Annotated[list[str], typer.Option(help="'colmap' or FEATURES+MATCHER; repeatable.")] = [  # noqa: B006
        COLMAP,
        "auto+auto",
        "sift+nearest",
    ],
    sets: Annotated[list[str], typer.Option(help="Repeatable.")] = ["sceaux", "fountain", "entry", "lund_door"],  # noqa: B006
    data: Annotated[Path, typer.Option(help="Folder that holds demo/ and eval/.")] = DATA,
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = RESULTS,
) -> None:
    """Compare maps."""
    results.mkdir(parents=True, exist_ok=True)
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR
    for name in sets:
        for system in systems:
            if system != COLMAP:  # say what auto stands for today
                system = "+".join(choose(*system.split("+"))[:2])
            path = results / f"{name}-{system}.json"
            if not path.exists():
                path.write_text(json.dumps(measure(name, system, data), indent=1) + "\n", "utf-8")
    done = sorted(path for path in results.glob("*-*.json"))
    text = markdown([line for path in done for line in json.loads(path.read_text("utf-8"))], environment())
    (results / "summary.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
