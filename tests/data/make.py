"""Make the photographs of this folder: pairs with known homographies, and a few views of one place.

    python tests/data/make.py ../shared/data/train

The source is the project's pool of photographs; only files under CC0-1.0 are taken. Each photograph is shown three
times: as it is, from another viewpoint in other light (`viewpoint`), and rolled (`roll`). Each is warped once from the
pool's file, so the homography between the pictures is exact. `unrelated.txt` lists pairs of different photographs.
`views` are photographs of one field from a drone, without ground truth.
"""

from __future__ import annotations

import csv
import json
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

HERE = Path(__file__).parent
LONG_SIDE, QUALITY = 480, 90
PHOTOGRAPHS = {
    "bakery": "ibm_max/0001.webp",
    "street": "ibm_max/0002.webp",
    "paris": "ibm_max/0003.webp",
    "ruins": "ibm_max/0004.webp",
    "room-1": "rooms/0001.webp",
    "room-2": "rooms/0002.webp",
    "room-3": "rooms/0003.webp",
    "kitten": "budgie/0002.webp",
    "spices": "budgie/0003.webp",
    "wall": "budgie/0006.webp",
    "casa-mila": "budgie/0008.webp",
    "otters": "budgie/0010.webp",
    "hallway": "budgie/0014.webp",
    "singapore": "budgie/0017.webp",
    "circuits": "budgie/0019.webp",
    "beacon-street": "budgie/0020.webp",
    "tea-gardens": "budgie/0022.webp",
    "san-francisco": "budgie/0023.webp",
    "colosseum": "budgie/0025.webp",
    "metro": "washington/0006.webp",
    "field": "uav_seneca/0006.webp",
    "houses": "uav_caliterra/0046.webp",
}
VIEWS = (
    "uav_caliterra/0031.webp",
    "uav_caliterra/0053.webp",
    "uav_caliterra/0004.webp",
    "uav_caliterra/0019.webp",
    "uav_caliterra/0003.webp",
    "uav_caliterra/0049.webp",
    "uav_caliterra/0023.webp",
    "uav_caliterra/0028.webp",
)


def resized(size: tuple[int, int]) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the matrix from pixels of a file to those of the picture, and the picture's size."""
    factor = LONG_SIDE / max(size)
    small = round(size[0] * factor), round(size[1] * factor)
    sx, sy = small[0] / size[0], small[1] / size[1]
    return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]]), small


def from_the_side(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a homography that moves each corner by up to a fifth of the picture, and zooms in a little."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (np.array(size) - 1.0)
    moved = corners + rng.uniform(-0.2, 0.2, (4, 2)) * size
    middle = moved.mean(axis=0)
    moved = (moved - middle) * rng.uniform(1.0, 1.3) + middle
    return cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))


def rolled(size: tuple[int, int], angle: float) -> NDArray[np.float64]:
    """Return the rotation by ``angle`` radians about the centre, clockwise as seen."""
    turn = np.eye(3)
    turn[:2] = cv2.getRotationMatrix2D(((size[0] - 1) / 2, (size[1] - 1) / 2), -np.degrees(angle), 1.0)
    return turn


def relit(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture in other light: gain and colour, a gradient across it, gamma, noise."""
    height, width = pixels.shape[:2]
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.35)
    gradient = 1 + depth * (np.cos(angle) * x + np.sin(angle) * y)
    light = rng.uniform(0.6, 1.1) * rng.uniform(0.85, 1.15, 3) * gradient[..., None]
    changed = 255 * np.clip(pixels / 255 * light, 0, 1) ** rng.uniform(0.7, 1.4)
    return np.clip(changed + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def warp(pixels: NDArray[np.uint8], H: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the picture of ``size`` whose pixel ``H x`` shows pixel ``x``; what is not known is black."""
    smooth = cv2.GaussianBlur(pixels, (0, 0), 0.5)  # a little less detail, because most warps shrink
    return np.asarray(cv2.warpPerspective(smooth, H, size, flags=cv2.INTER_LINEAR), np.uint8)


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write one WebP file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, quality=QUALITY, method=6)


def main(pool: Path) -> None:
    """Write everything beside this script."""
    with (pool / "MANIFEST.csv").open(newline="") as file:
        manifest = {row["file"]: row for row in csv.DictReader(file)}
    rows = []
    listing: dict[str, list[dict[str, object]]] = {"viewpoint": [], "roll": []}
    for number, (name, source) in enumerate(PHOTOGRAPHS.items()):
        rng = np.random.default_rng(number)
        pixels = np.asarray(PIL.Image.open(pool / source).convert("RGB"))
        shrink, size = resized((pixels.shape[1], pixels.shape[0]))
        save(warp(pixels, shrink, size), HERE / "viewpoint" / "images" / f"{name}.webp")
        rows.append((f"{name}*.webp", source))
        warps = {"viewpoint": from_the_side(size, rng), "roll": rolled(size, np.radians(30 * (number % 11 + 1)))}
        for kind, H in warps.items():
            image = f"images/{name}-{kind}.webp"
            save(relit(warp(pixels, H @ shrink, size), rng), HERE / kind / image)
            first = f"images/{name}.webp" if kind == "viewpoint" else f"../viewpoint/images/{name}.webp"
            listing[kind].append({"image0": first, "image1": image, "H": (H / H[2, 2]).tolist()})
    for kind, pairs in listing.items():
        (HERE / kind / "pairs.json").write_text(json.dumps({"type": "homography", "pairs": pairs}, indent=1) + "\n")
    names = list(PHOTOGRAPHS)
    unrelated = [f"viewpoint/images/{a}.webp viewpoint/images/{b}.webp\n" for a, b in pairwise(names)]
    (HERE / "unrelated.txt").write_text("".join(unrelated))
    for source in VIEWS:
        pixels = np.asarray(PIL.Image.open(pool / source).convert("RGB"))
        name = Path(manifest[source]["original"]).stem + ".webp"
        save(warp(pixels, *resized((pixels.shape[1], pixels.shape[0]))), HERE / "views" / name)
        rows.append((f"views/{name}", source))
    with (HERE / "LICENCES.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("files", "licence", "source", "original"))
        for files, source in rows:
            row = manifest[source]
            if row["licence"] != "CC0-1.0":
                raise SystemExit(f"{source} is under {row['licence']}, not CC0-1.0")
            out.writerow((files, row["licence"], row["source"], row["original"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
