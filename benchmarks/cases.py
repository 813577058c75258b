"""The small inputs that once went wrong, and what tiepoint makes of them: one row each.

Every row runs the command line as a user would and compares with what the cases' README calls right. The exit code is 1
if a row is not.

``python benchmarks/cases.py --cases ../shared/cases``
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pycolmap
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

import tiepoint as tp
from tiepoint.mapping.store import Store, pairs_of

CASES = Path(__file__).parents[2] / "shared" / "cases"


@dataclass
class Ran:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def is_clean(self) -> bool:
        """Whether it ended as a program should: no traceback, no crash, no fault that it calls a bug of its own."""
        return self.code in (0, 2, 3) and "Traceback" not in self.err and "bug in tiepoint" not in self.err

    @property
    def sentence(self) -> str:
        """What it said last."""
        return " / ".join(self.err.strip().splitlines()[-2:])


def run(*arguments: Any) -> Ran:
    """Run tiepoint with these arguments."""
    command = [sys.executable, "-m", "tiepoint", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "400"})
    return Ran(done.returncode, done.stdout, done.stderr)


def fisheye(cases: Path, out: Path) -> tuple[bool, str]:
    """Walls are straight: the undistorted camera is a pinhole of the file's size, and sees less than the fisheye."""
    options = "--camera-model", "SIMPLE_FISHEYE", "--focal", 244, "--undistort", "--json"
    ran = run("map", cases / "fisheye150", "-o", out, *options)
    if ran.code:
        return False, ran.sentence
    model = pycolmap.Reconstruction(out / "undistorted" / "sparse" / "0")
    problems = []
    for image in model.images.values():
        with Image.open(out / "undistorted" / "images" / image.name) as written:
            camera = model.cameras[image.camera_id]
            if camera.model_name != "PINHOLE" or written.size != (camera.width, camera.height):
                problems.append(
                    f"{image.name}: {camera.model_name} {camera.width}x{camera.height}, file {written.size}"
                )
            before = tp.read_image(cases / "fisheye150" / image.name).pixels
            if np.array_equal(np.asarray(written), before):
                problems.append(f"{image.name}: the fisheye picture byte for byte")
    registered = json.loads(ran.out)["models"][0]["registered"]
    return not problems and registered == 10, problems[0] if problems else f"{registered} of 10 images, all PINHOLE"


def burnt_in(cases: Path, out: Path) -> tuple[bool, str]:
    """One model with all 24 frames, and no match on the clock or the logo."""
    ran = run("map", cases / "burnt_in", "-o", out, "--json")
    if ran.code:
        return False, ran.sentence
    registered = [model["registered"] for model in json.loads(ran.out)["models"]]

    def burnt(points: NDArray[np.float32]) -> NDArray[np.bool_]:
        boxes = ((0, 2), (205, 25)), ((513, 446), (626, 478))
        return np.array([((points >= low) & (points <= high)).all(axis=1) for low, high in boxes])

    on_it = 0
    with Store.open(out / "database.db", read_only=True) as store:
        points = {image.image_id: store.features(image.image_id).keypoints.numpy() for image in store.images()}
        for a, b in pairs_of(store.matched_pair_ids()).tolist():
            found = store.matches(a, b)
            assert found is not None
            rows = found.indices
            on_it += int((burnt(points[a][rows[:, 0]]) & burnt(points[b][rows[:, 1]])).sum())
    return registered == [24] and not on_it, f"models of {registered} images, {on_it} matches on the overlay"


def panorama(cases: Path, out: Path) -> tuple[bool, str]:
    """Expect a model, or a refusal before the work; never a crash."""
    ran = run("map", cases / "panorama", "-o", out, "--camera-model", "EQUIRECTANGULAR", "--json")
    if ran.code:
        return ran.is_clean, ran.sentence
    return True, f"models of {[model['registered'] for model in json.loads(ran.out)['models']]} images"


def panorama_by_default(cases: Path, out: Path) -> tuple[bool, str]:
    """Whatever comes, it is not called a bug."""
    ran = run("map", cases / "panorama", "-o", out)
    return ran.is_clean, ran.sentence


def tripod(cases: Path, out: Path) -> tuple[bool, str]:
    """No 3D model is claimed, and a sentence says why."""
    ran = run("map", cases / "tripod", "-o", out)
    why = any(word in ran.err for word in ("rotat", "parallax", "turned", "panorama"))
    return ran.is_clean and ran.code != 0 and why, ran.sentence


def gps_far_apart(cases: Path, out: Path) -> tuple[bool, str]:
    """Each photograph is matched with its nearest, whatever the distance."""
    ran = run("map", cases / "gps_far_apart", "-o", out, "--pairs", "position", "--json")
    if ran.code:
        return False, ran.sentence
    report = json.loads(ran.out)
    return report["pairs"][0][
        "pairs"
    ] >= 8, f"{report['pairs'][0]['pairs']} pairs, {report['models'][0]['registered']} images"


def thermal(name: str) -> Callable[[Path, Path], tuple[bool, str]]:
    """No data is masked: keypoints as in the picture without its border."""

    def check(cases: Path, out: Path) -> tuple[bool, str]:
        ran = run("extract", cases / "thermal" / f"{name}.tif", "-o", out, "--json")
        if ran.code:
            return False, ran.sentence
        found = json.loads(ran.out)["keypoints"][f"{name}.tif"]
        return found >= 200, f"{found} keypoints"

    return check


def five_bands(cases: Path, out: Path) -> tuple[bool, str]:
    """Expect an error that says so, and the bands that are named."""
    path = cases / "thermal" / "five_01.tif"
    without, named = run("extract", path, "-o", out), run("extract", path, "-o", out, "--bands", "3,2,1", "--json")
    told = without.code == 3 and "bands" in without.err
    if named.code:
        return False, named.sentence
    return told, f"{without.sentence}; --bands 3,2,1: {json.loads(named.out)['keypoints']['five_01.tif']} keypoints"


ROWS: tuple[tuple[str, Callable[[Path, Path], tuple[bool, str]]], ...] = (
    ("fisheye150, --undistort", fisheye),
    ("burnt_in", burnt_in),
    ("panorama, EQUIRECTANGULAR", panorama),
    ("panorama, default model", panorama_by_default),
    ("tripod", tripod),
    ("gps_far_apart, --pairs position", gps_far_apart),
    ("thermal, float with -9999", thermal("nodata9999_01")),
    ("thermal, uint16 with 0", thermal("u16zero_01")),
    ("thermal, five bands", five_bands),
)


def main(
    cases: Annotated[Path, typer.Option(help="Folder of the cases.")] = CASES,
    only: Annotated[str, typer.Option(help="Only rows whose name holds this.")] = "",
) -> None:
    """Run all cases and print a row each."""
    table = Table("case", "right", "seconds", "what came")
    wrong = 0
    for name, check in _chosen(only):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            right, what = check(cases, Path(folder) / "out")
        wrong += not right
        table.add_row(name, "yes" if right else "NO", f"{time.monotonic() - begun:.0f}", what[:300])
    Console(width=140).print(table)
    raise typer.Exit(1 if wrong else 0)


def _chosen(only: str) -> Iterable[tuple[str, Callable[[Path, Path], tuple[bool, str]]]]:
    return [row for row in ROWS if only in row[0]]


if __name__ == "__main__":
    typer.run(main)
