"""What a map leaves beside its models: a page, points, a trajectory, undistorted photographs, and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from ..errors import ArgumentError
from .exchange import colmap as exports
from .settings import MapSettings
from .steps.align import Alignment
from .steps.reconstruct import Scene


def export(
    scene: Scene,
    alignments: Sequence[Alignment],
    asked: MapSettings,
    folder: Path,
    times: Mapping[str, float] | None,
    choice: str,
    notes: list[str],
) -> None:
    """Write a page with all models, and what else can be made of the largest.

    Parameters
    ----------
    scene : Scene
    alignments : sequence of Alignment
        How its models came to metres.
    asked : MapSettings
    folder : path
        Of the photographs.
    times : mapping or None
        Name of a photograph -> seconds, for the trajectory.
    choice : str
        Which extractor and matcher, and why these.
    notes : list of str
        Gets a line for each folder of an earlier run that does not follow this one.
    """
    from .exchange.web_page import write_scene_page

    out, model = asked.output, scene.models[0]
    for name, given in (("text", asked.text), ("undistorted", asked.undistort)):
        if not given and (out / name).exists():
            notes.append(
                f"{out / name} is of an earlier run, and does not follow this one; delete it, or ask for it again"
            )
    aligned = bool(alignments) and not any(alignment.problem for alignment in alignments)
    write_scene_page(
        scene,
        out / "database.db",
        out / "scene.html",
        photographs=folder,
        title=out.resolve().name,
        description=choice,
        unit="m" if aligned else "",
        up=(0.0, 0.0, 1.0) if aligned and alignments[0].by == "gps" else None,  # east, north, up
    )
    exports.write_ply(model, out / "points.ply")
    exports.write_trajectory(model, out / "trajectory.txt", times)
    if asked.text:
        exports.write_model(model, out / "text", "text")
    if asked.undistort:
        exports.write_undistorted(model, folder, out / "undistorted", asked.masks, asked.bands)


def next_step(scene: Scene, asked: MapSettings) -> str:
    """Return which command follows: for a splat where the photographs can be undistorted, else COLMAP's window."""
    out = asked.output
    try:
        exports.check_can_be_undistorted(scene.models[0].cameras.values(), [])
    except ArgumentError:
        folders = {"database_path": out / "database.db", "import_path": out / "sparse/0"}
        options = {**folders, "image_path": out / "frames" if asked.photographs.is_file() else asked.photographs}
        return " ".join(["colmap gui", *(f"--{name} {quote(str(path))}" for name, path in options.items())])
    train = f"ns-train splatfacto --data {quote(str(out / 'undistorted'))}"
    return train if asked.undistort else f"for a splat, run the same command with --undistort; then {train}"
