"""Whether dropping look-alike pairs keeps maps from folding, and what it costs where nothing looks alike.

Every set is matched exhaustively and mapped twice from the same database: with all verified pairs, and without the
suspicious ones. Two sets fold:

- `cup`, 64 real photographs on a ring around a cup with two nearly equal sides. A right model is the whole ring, in the
  order of the names; the table gives the largest empty sector around it, and the largest step from one to the next.
- `street`, made of real photographs: a row of house fronts, each one a photograph of its own, except that two are the
  same one, with other neighbours. A camera passes along it; its true path is known, and so is which pairs are wrong.
  `street, in two` leaves out the images between the twins, so that no chain of photographs links the two.

The others have no twins and must not lose anything.

    python benchmarks/doppelgangers.py --data ../shared/data --work ../runs/doppelgangers-benchmark
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pycolmap
import torch
import typer
from numpy.typing import NDArray

from tiepoint import features, matchers
from tiepoint.errors import InputError
from tiepoint.mapping import Store, pairs
from tiepoint.mapping.steps.doppelgangers import hide_doppelgangers
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.images import new_images
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.steps.reconstruct import reconstruct

KEYPOINTS, LONG_SIDE = 2048, 1600  # what tiepoint map takes by default
ORDINARY = ("demo/sceaux", "demo/lund", "demo/berlin", "eval/fountain", "eval/entry", "eval/lund_door")

WALL, HEIGHT, DISTANCE, FOCAL, VIEW = 4.0, 3.6, 5.0, 500.0, (640, 480)
TWIN = "demo/sceaux/images/100_7101.jpg"
FRONTS = [f"eval/kodak/images/{n:02d}.jpg" for n in (1, 8, 24, 5, 13, 19, 16, 22)]
STREET = [*FRONTS[:2], TWIN, *FRONTS[2:6], TWIN, *FRONTS[6:]]
SET_BACK = (0.0, 0.7, 0.2, 0.9, 0.0, 0.5, 0.0, 0.2, 0.6, 0.1)
POSITIONS = np.arange(3, len(STREET) * WALL - 3, 1.2)
BETWEEN_TWINS = (16.0, 24.0)
COMMON_VIEW = VIEW[0] / FOCAL * (DISTANCE + max(SET_BACK))  # cameras further apart than this see nothing in common


def draw_street(data: Path, folder: Path, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Photograph the street from ``positions`` (N,) along it; return the camera centres (N, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    fronts = [cv2.resize(cv2.imread(str(data / name)), (800, 720), interpolation=cv2.INTER_AREA) for name in STREET]
    corners = np.array([[0, 0], [800, 0], [800, 720], [0, 720]], np.float32) - 0.5
    K = np.array([[FOCAL, 0, VIEW[0] / 2 - 0.5], [0, FOCAL, VIEW[1] / 2 - 0.5], [0, 0, 1]])
    centres = np.stack([positions, rng.normal(0, 0.1, len(positions)), rng.normal(0, 0.3, len(positions))], axis=1)
    for number, centre in enumerate(centres):
        R = cv2.Rodrigues(rng.normal(0, (0.02, 0.1, 0.02)))[0]
        picture = np.full((VIEW[1], VIEW[0], 3), 170, np.uint8)
        for n in sorted(range(len(fronts)), key=lambda n: -SET_BACK[n]):  # far ones first
            x, z = n * WALL, DISTANCE + SET_BACK[n]
            wall = [(x, -HEIGHT / 2, z), (x + WALL, -HEIGHT / 2, z), (x + WALL, HEIGHT / 2, z), (x, HEIGHT / 2, z)]
            seen = (np.array(wall) - centre) @ R.T
            if (seen[:, 2] < 0.5).any() or abs(x + WALL / 2 - centre[0]) > 3 * WALL:
                continue
            image = seen @ K.T
            H = cv2.getPerspectiveTransform(corners, (image[:, :2] / image[:, 2:]).astype(np.float32))
            inside = cv2.warpPerspective(np.full(fronts[n].shape[:2], 255, np.uint8), H, VIEW) > 127
            picture[inside] = cv2.warpPerspective(fronts[n], H, VIEW, flags=cv2.INTER_AREA)[inside]
        noisy = picture * rng.uniform(0.9, 1.1) + rng.normal(0, 3, picture.shape)
        cv2.imwrite(str(folder / f"{number:02d}.png"), np.clip(noisy, 0, 255).astype(np.uint8))
    return centres


def build(folder: Path, database: Path, focal: float | None) -> None:
    """Fill a database with features, matches and geometries of all pairs; done once."""
    with Store.open(database) as store:
        found, _ = new_images(folder, share="all", focal=focal)
        ids = sorted(store.add_images(found).values())
        extract_into(store, folder, features.load("sift", max_keypoints=KEYPOINTS, long_side=LONG_SIDE), workers=1)
        match_into(store, pairs.exhaustive(ids), matchers.load("nearest", features="sift"), workers=1)


def ring(model: pycolmap.Reconstruction) -> str:
    """Describe how cameras that look inwards stand around what they look at."""
    images = sorted((i for i in model.images.values() if i.has_pose), key=lambda image: image.name)
    centres = np.array([image.projection_center() for image in images])
    rays = np.array([image.viewing_direction() for image in images])
    across = np.eye(3) - rays[:, :, None] * rays[:, None]
    middle = np.linalg.solve(across.sum(axis=0), (across @ centres[:, :, None]).sum(axis=0))[:, 0]
    around = centres - middle
    plane = np.linalg.svd(around - around.mean(axis=0))[2][:2]
    angles = np.degrees(np.arctan2(*(around @ plane.T).T))
    gap = np.diff(np.sort(angles), append=angles.min() + 360).max()
    step = abs((np.diff(angles) + 180) % 360 - 180).max()
    return f"largest gap {gap:.0f}°, step {step:.0f}°"


def path_error(model: pycolmap.Reconstruction, centres: NDArray[np.float64]) -> str:
    """Describe how far cameras lie from their true places once the model is aligned to them (Umeyama, PAMI 1991)."""
    images = [image for image in model.images.values() if image.has_pose]
    found = np.array([image.projection_center() for image in images])
    true = centres[[int(Path(image.name).stem) for image in images]]
    a, b = found - found.mean(axis=0), true - true.mean(axis=0)
    U, S, Vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    error = np.linalg.norm(a @ (U @ sign @ Vt).T * ((S * np.diag(sign)).sum() / (a**2).sum()) - b, axis=1)
    return f"largest position error {error.max():.2f} of {np.ptp(true[:, 0]):.0f}"


def wrong_pairs(found: list[tuple[int, int]], names: dict[int, str], centres: NDArray[np.float64]) -> int:
    """Count pairs of street views that have nothing in common."""
    at = {i: centres[int(Path(name).stem), 0] for i, name in names.items()}
    return sum(bool(abs(at[a] - at[b]) > COMMON_VIEW) for a, b in found)


def main(
    data: Annotated[Path, typer.Option(help="Folder with demo/ and eval/.")] = Path("../shared/data"),
    work: Annotated[Path, typer.Option(help="Databases and models; kept.")] = Path("../runs/doppelgangers-benchmark"),
    output: Path = Path("benchmarks/results/doppelgangers"),
    only: Annotated[str, typer.Option(help="Comma-separated names of sets.")] = "",
) -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    start, end = BETWEEN_TWINS
    streets = {"street": POSITIONS, "street, in two": np.array([x for x in POSITIONS if not start < x < end])}
    rows = []
    for name in ("demo/cup", *streets, *ORDINARY):
        if only and name not in only.split(";"):
            continue
        place = work / name.replace("/", "-").replace(", ", "-").replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        centres = draw_street(data, place / "images", streets[name]) if name in streets else None
        folder = data / name / "images" if centres is None else place / "images"
        focal = FOCAL
        if centres is None:
            known = data / name / "cameras.json"
            first = next(iter(json.loads(known.read_text()).values())) if known.exists() else {}
            focal = first.get("focal_px") or (first["K"][0][0] if "K" in first else None)
        build(folder, place / "database.db", focal)
        for option in ("off", "on"):
            begin = time.process_time()
            with Store.open(place / "database.db") as store:
                names = {image.image_id: image.name for image in store.images()}
                store.show_hidden_pairs()
                before = list(store.verified_pairs())
                dropped = hide_doppelgangers(store) if option == "on" else []
                after = list(store.verified_pairs())
            seconds = time.process_time() - begin
            row = {"set": name, "option": option, "pairs": len(before), "dropped": len(dropped), "seconds": seconds}
            if centres is not None:
                row["wrong"] = [wrong_pairs(p, names, centres) for p in (before, after)]
            try:
                scene = reconstruct(place / "database.db", folder, place / option, threads=1)
            except InputError as error:
                row["error"] = str(error)
                scene = None
            if scene:
                row["models"] = [[q.registered, q.points, round(q.error, 3)] for q in scene.qualities]
                if name == "demo/cup":
                    row["shape"] = ring(scene.models[0])
                elif centres is not None:
                    row["shape"] = "; ".join(path_error(model, centres) for model in scene.models)
            rows.append(row)
            print(json.dumps(row), flush=True)
        if centres is not None:
            shutil.rmtree(place / "images")
    (output / "doppelgangers.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "| set | option | verified pairs | kept | models: images, points, error px | shape |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        models = "; ".join("{}, {}, {:.2f}".format(*model) for model in row.get("models", []))
        wrong = [f", {n} wrong" for n in row["wrong"]] if "wrong" in row else ["", ""]
        kept = row["pairs"] - row["dropped"]
        cells = (
            row["set"],
            row["option"],
            f"{row['pairs']}{wrong[0]}",
            f"{kept}{wrong[1]}",
            models,
            row.get("shape", ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    (output / "doppelgangers.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
