"""What changed since a scene was made: photographs and masks that were added, removed or replaced; options.

A rerun gives the scene that the same command would make in an empty folder. It compares its inputs with those that the
scene was made of, and repeats what depends on a difference:

========================================= ==============================================================
a photograph is new, or has other bytes   extracted, and matched
its mask is new, removed, or replaced     the same
a photograph is removed                   removed from the scene with its features and pairs
a photograph has another name             keeps its features and pairs
cameras (by options, EXIF, or sharing)    pairs verified again
pairs (another choice or list)            pairs not in it are removed
mapper, seed, fixed cameras, alignment    applied in any case: the models are made in each run
features, matcher, keypoints, long side   refused: nothing of the scene would be left; ``--fresh`` starts over
========================================= ==============================================================
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import features as extractors
from .. import pipeline
from ..errors import ArgumentError, InputError
from ..io.files import check_output_folder, read_json
from ..io.folders import mask_of
from ..io.images import check_bands
from ..names import split
from .quality import preset_of
from .store import FileFingerprints, Fingerprint, NewImage, Store

if TYPE_CHECKING:
    from .settings import MapSettings

OUTPUTS = (
    "database.db", "database.db-wal", "database.db-shm", "settings.json", "sparse", "quality.json", "points.ply",
    "trajectory.txt", "text", "undistorted", "scene.html", "report.json", "frames.jpg",
)  # fmt: skip
"""What ``tiepoint map`` writes into its folder, the frames of a video aside."""


@dataclass(frozen=True)
class FileChanges:
    """Names of photographs that changed since the scene was made; none for a new scene.

    Attributes
    ----------
    added, removed, replaced, remasked : tuple of str
        ``remasked``: the photograph is the same, its mask is not.
    renamed : tuple of (str, str)
        (Old name, new name).
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    remasked: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = (
            (self.added, "new"),
            (self.removed, "removed, and left out of the map"),
            (self.replaced, "replaced, and done again"),
            (self.remasked, "with another mask, and done again"),
            (tuple(f"{old} -> {new}" for old, new in self.renamed), "renamed"),
        )
        return "; ".join(f"{len(names)} {what} ({_some(names)})" for names, what in parts if names)


def follow_files(
    store: Store, folder: Path, found: Sequence[NewImage], masks: Path | None, update_cameras: bool = True
) -> tuple[FileChanges, list[str]]:
    """Make a store hold the photographs of a folder as they are now, and delete what was made of others.

    Parameters
    ----------
    store : Store
    folder : path
        Of the photographs.
    found : sequence of NewImage
        All photographs that can be used, see `tiepoint.mapping.steps.images.new_images`.
    masks : path or None
        Folder of masks.
    update_cameras : bool
        Whether images that are in the store get the cameras of ``found``, too.

    Returns
    -------
    changes : FileChanges
    cameras : list of str
        Names of the images that were there and have another camera now; their pairs have to be verified again.

    Raises
    ------
    InputError
        The folder holds none of the store's photographs, a photograph cannot be read, or the store not written.

    Notes
    -----
    Images that are in the store but whose files tiepoint has never seen, as in a database that another program made,
    stay as they are.
    """
    stored = {image.name: image.image_id for image in store.images()}
    known = store.fingerprints()

    def look(new: NewImage) -> FileFingerprints:
        before = known.get(stored.get(new.name, -1), {})
        paths = {"photograph": folder / new.name, "mask": mask_of(masks, new.name)}
        try:
            return {
                kind: Fingerprint.of(path, before.get(kind))
                for kind, path in paths.items()
                if path is not None and path.is_file()
            }
        except OSError as error:
            raise InputError(f"{folder / new.name}: cannot be read: {error.strerror or error}") from error

    with ThreadPoolExecutor() as pool:
        now = {new.name: files for new, files in zip(found, pool.map(look, found), strict=True)}
    names = {image_id: name for name, image_id in stored.items()}
    before = {image_id: _digests(files) for image_id, files in known.items()}
    after = {name: _digests(files) for name, files in now.items()}
    missing = {image_id for image_id in known if names[image_id] not in now}
    elsewhere = {before[i][0] for i in missing} & {photograph for photograph, _ in after.values()}
    if missing and not now.keys() & stored.keys() and not elsewhere:
        raise InputError(
            f"{folder}: holds none of the {len(missing)} photographs that {store.path.parent} was made of; give the "
            "folder that holds them, or start over with --fresh"
        )
    renamed: dict[int, str] = {}
    by_content = {before[image_id]: image_id for image_id in sorted(missing, reverse=True)}
    for name in now.keys() - stored.keys():
        image_id = by_content.pop(after[name], None)
        if image_id is not None:
            renamed[image_id] = name
    removed = missing - renamed.keys()
    kept = {name: image_id for name, image_id in stored.items() if name in now}
    other = {i: name for name, i in kept.items() if i in known and before[i] != after[name]}
    replaced = {i: name for i, name in other.items() if before[i][0] != after[name][0]}
    remasked = {i: name for i, name in other.items() if i not in replaced}
    added = sorted(now.keys() - stored.keys() - set(renamed.values())) if stored else []

    store.remove_images(removed)
    store.rename_images(renamed)
    store.set_fingerprints({image_id: now[name] for name, image_id in kept.items()}, replaced=other.keys())
    cameras = store.update_cameras(found) if update_cameras else []
    ids = store.add_images(found)
    store.set_fingerprints({ids[name]: files for name, files in now.items()})
    changes = FileChanges(
        added=tuple(added),
        removed=tuple(sorted(names[i] for i in removed)),
        replaced=tuple(sorted(replaced.values())),
        remasked=tuple(sorted(remasked.values())),
        renamed=tuple(sorted((names[i], new) for i, new in renamed.items())),
    )
    return changes, sorted(set(cameras) - set(replaced.values()))


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a map from its ``settings.json``; only those that a rerun uses are checked.

    Raises
    ------
    InputError
        It cannot be read, lacks something, or has something of another type than tiepoint writes.
    """
    settings = {"bands": None, "quality": "fast", "first_pass": None, **read_json(path)}
    kinds: dict[str, tuple[type, ...]] = {
        **{"features": (str,), "matcher": (str,), "bands": (list, type(None))},
        **{"max_keypoints": (int, type(None)), "long_side": (int, type(None))},
        **{"quality": (str,), "first_pass": (int, type(None))},
    }
    for key, kind in kinds.items():
        if not isinstance(settings.get(key, ...), kind):
            raise InputError(f"{path}: {key} is missing, or not what tiepoint writes")
    try:
        check_bands(settings["bands"])
        if settings.get("video") is not None:
            Fingerprint(**settings["video"])
    except (ArgumentError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    return settings


def read_begun(output: Path) -> dict[str, Any]:
    """Return the settings that an earlier run recorded in a map's folder, {} if there was none."""
    path = output / "settings.json"
    try:
        return read_settings(path) if path.exists() else {}
    except InputError as error:
        raise InputError(f"{error}; start over with --fresh, or choose another folder") from error


def settle(
    asked: MapSettings, begun: dict[str, Any], store: Store, video: dict[str, Any] | None
) -> tuple[dict[str, Any], str]:
    """Return the settings that a map is made with, and a line that says how features and matcher were chosen.

    Raises
    ------
    ArgumentError
        The map was begun with other features, keypoints or sizes: nothing of it would be left.
    """
    if not begun:
        have = store.has_features()
        features = asked.features
        if have and features == "auto":  # a database that somebody brought along
            features = store.features(min(have), descriptors=False).extractor
        features, matcher, choice = pipeline.choose(features, asked.matcher)
        first_pass = None if have else _first_pass(asked, features, matcher)  # what was brought along may be unsorted
        settings = {**_extraction(asked), "features": features, "matcher": matcher, "first_pass": first_pass}
    else:
        other = [key for key, value in _extraction(asked).items() if value not in ("auto", begun.get(key))]
        if other:
            had = ", ".join(f"{key} {begun.get(key)}" for key in other if key not in asked.chosen) or "other options"
            # What the quality that the map was begun with does not choose by itself.
            begun_by = preset_of(begun["quality"]).options() if "quality" in other else {}
            needed = dict.fromkeys(["quality", *begun_by, *other]) if begun_by else other
            line = " ".join(
                _option(key, begun[key]) for key in needed if key in begun and begun[key] != begun_by.get(key, ...)
            )
            raise ArgumentError(
                f"{asked.output}: was begun with {had}; continue with {line}, or start over with --fresh, which "
                "deletes that map"
            )
        settings = begun
        choice = f"{begun['features']} + {begun['matcher']}, as {asked.output} was begun"
    # A database that somebody brought along has cameras of its own, which only an option replaces.
    own_cameras = begun.get("own_cameras", True) if begun else not store.images()
    return {**settings, "own_cameras": own_cameras or asked.chooses_cameras, "video": video}, choice


def same_video(output: Path, video: Path, begun: dict[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a video; raise `ArgumentError` if the map's key frames are of another one."""
    known = begun.get("video")
    now = Fingerprint.of(video, None if known is None else Fingerprint(**known))
    if known is not None and now.digest != known["digest"]:
        raise ArgumentError(f"{output}: was made of another video than {video} is now; start over with --fresh")
    return asdict(now)


def start_over(output: Path, source: Path) -> None:
    """Delete what an earlier ``tiepoint map`` wrote into a folder, and nothing else."""
    if not (output / "settings.json").exists():
        return
    for path in _outputs(output, source):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_outputs_are_ours(output: Path, fresh: bool) -> None:
    """Raise `ArgumentError` if a map would replace, or a fresh one delete, what ``tiepoint map`` has not written.

    It writes ``settings.json`` before anything but the database. Without one, a model is that of COLMAP, say; only a
    database may be brought along.
    """
    if (output / "settings.json").exists():
        return
    kept = () if fresh else ("database.db", "database.db-wal", "database.db-shm")
    foreign = [name for name in OUTPUTS if name not in kept and os.path.lexists(output / name)]
    if foreign:
        raise ArgumentError(
            f"{output}: holds {_some(foreign)}, but no settings.json: this is not from 'tiepoint map', and would be "
            "lost; move it away, or choose another folder"
        )


def check_inputs_survive(output: Path, source: Path, others: Sequence[Path]) -> None:
    """Raise `ArgumentError` if an input lies where ``tiepoint map`` writes: the map would replace it."""
    for path in _outputs(output, source):
        check_output_folder(path, inputs=(source, *others))


def _outputs(output: Path, source: Path) -> list[Path]:
    """Return what a map writes; key frames are no one's photographs only where they were made of this video."""
    return [output / name for name in (*OUTPUTS, *(("frames",) if source.is_file() else ()))]


def _first_pass(asked: MapSettings, features: str, matcher: str) -> int | None:
    """Return how many keypoints of each photograph are matched in the first pass, the best; None is all."""
    if len(split(features, extractors.names())) > 1:
        return None  # the keypoints of an ensemble stand one member after the other, so that the first are not the best
    most = asked.preset.nearest_first_pass if matcher == "nearest" else asked.preset.first_pass
    if most is None or asked.max_keypoints is None:
        return most
    return most if most < asked.max_keypoints else None


def _extraction(asked: MapSettings) -> dict[str, Any]:
    """Return the settings that everything else in a map is made of."""
    values = {key: getattr(asked, key) for key in ("quality", "features", "matcher", "max_keypoints", "long_side")}
    return {**values, "bands": None if asked.bands is None else list(asked.bands)}


def _option(key: str, value: Any) -> str:
    """Return what asks for a setting on the command line."""
    if key == "bands":
        return f"--bands {','.join(map(str, value))}" if value else "no --bands"
    return f"--{key.replace('_', '-')} {value or 0}"


def _digests(files: FileFingerprints) -> tuple[str | None, str | None]:
    """Return what tells the content of a photograph and its mask; None for what is not there."""
    photograph, mask = (files[kind].digest if kind in files else None for kind in ("photograph", "mask"))
    return photograph, mask


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
