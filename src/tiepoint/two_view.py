"""Two photographs in, trustworthy correspondences out: `match`."""

from __future__ import annotations

import os
import re
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from . import effort as ladder
from . import geometry, pipeline
from .effort import Attempt, Effort
from .errors import ArgumentError, MissingDependencyError
from .features import Extractor, ExtractorOptions
from .geometry import Camera, Estimate
from .geometry.camera import FOCAL_FACTOR
from .groups import find_groups
from .io import files
from .io.arrays import write_csv, write_hloc_pair, write_npz
from .io.images import ImageSource, check_bands, read_image
from .matchers import Matcher
from .types import Features, Image, Matches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 15  # fewer matches than this happen by chance between photographs of different things

Geometry = Literal["homography", "fundamental", "essential"]
GEOMETRIES: tuple[Geometry, ...] = ("homography", "fundamental", "essential")
Picture = Literal["matches", "attempts", "pruning", "scores"]
PICTURES: tuple[Picture, ...] = ("matches", "attempts", "pruning", "scores")
FILES = (".npz", ".h5", ".csv", ".json", ".html", ".png", ".jpg", ".pdf", ".svg")


@dataclass(frozen=True, eq=False, repr=False)
class TwoView:
    """What `match` found out about two photographs.

    Attributes
    ----------
    image0, image1 : Image
        The photographs as read.
    features0, features1 : Features
        All keypoints, matched or not. Those that further tries matched (see `tiepoint.effort`) come last, in pixels of
        the photograph; their descriptors are zeros where another extractor found them.
    matches : Matches
        Indices, scores, points, and what the matcher tells about its layers.
    choice : str
        One line: which extractor and matcher made this, and why these.
    kind : {"homography", "fundamental", "essential"} or None
        The geometry that was asked for.
    geometry : Estimate or None
        The estimated model and its inliers; None if no geometry was asked for.
    seconds : dict
        Time spent on ``read``, ``load``, ``extract``, ``match`` and ``geometry``.
    attempts : tuple of Attempt
        What was tried, in order: name, matches, evidence, seconds, and how many of its matches were kept.
    sources : int64 array (K,)
        Which of ``attempts`` each match comes from.
    """

    image0: Image
    image1: Image
    features0: Features
    features1: Features
    matches: Matches
    choice: str = ""
    kind: Geometry | None = None
    geometry: Estimate | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    sources: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.matches)

    def __repr__(self) -> str:
        inliers = "" if self.inliers is None else f", {self.inliers.sum()} inliers ({self.kind})"
        return f"<TwoView: {len(self)} matches{inliers}; {self.choice}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the result in words, and the matches if matplotlib is there to draw them."""
        words = "<br>".join(escape(line) for line in (repr(self)[1:-1], self.verdict) if line)
        try:
            figure = self.plot()
        except MissingDependencyError:
            return f"<p>{words}</p>"
        assert figure is not None  # only of a page there is none
        from .viz.pictures import as_png

        return f'<p>{words}</p><img alt="matches" src="data:image/png;base64,{b64encode(as_png(figure)).decode()}">'

    @property
    def points0(self) -> NDArray[np.float32]:
        """Matched points in image 0, float32 (K, 2), pixels of the original photograph."""
        return self.matches.points0

    @property
    def points1(self) -> NDArray[np.float32]:
        """Matched points in image 1, float32 (K, 2), pixels of the original photograph."""
        return self.matches.points1

    @property
    def scores(self) -> NDArray[np.float32]:
        """How sure the matcher is of each match, float32 (K,), in [0, 1]."""
        return self.matches.scores

    @property
    def inliers(self) -> NDArray[np.bool_] | None:
        """Which matches agree with the geometry, bool (K,); None if no geometry was asked for."""
        return None if self.geometry is None else self.geometry.inliers

    @property
    def note(self) -> str:
        """A warning in words if the result is thin, else an empty string."""
        if len(self) == 0:
            return "No matches found: the photographs probably do not show the same thing."
        if len(self) < FEW:
            return f"Fewer than {FEW} matches: the photographs probably do not overlap, or only a little."
        if self.geometry is not None and self.geometry.model is None:
            return f"No {self.kind} matrix agrees with the matches."
        if self.inliers is not None and self.inliers.sum() < FEW:
            return f"Fewer than {FEW} inliers: the photographs probably do not overlap, or only a little."
        return ""

    @property
    def verdict(self) -> str:
        """Whether the photographs show the same thing, in words; empty if nothing tells."""
        overlaps = {True: "The photographs overlap.", False: "The photographs do not seem to overlap."}
        told = "" if self.matches.overlaps is None else overlaps[self.matches.overlaps]
        return " ".join(part for part in (told, self.note) if part)

    @property
    def method(self) -> str:
        """The extractor and the matcher, without the reason for them."""
        return re.split("[:,]", self.choice)[0]

    @property
    def tried(self) -> list[str]:
        """Lines: what was tried if that was more than one pass, the verdict if there is one, and the instances."""
        lines = []
        if len(self.attempts) > 1:
            lines += [
                f"{a.name}: {a.matches} matches, evidence {a.evidence:.1f}, {a.kept} kept, {a.seconds:.1f} s"
                for a in self.attempts
            ]
        if self.matches.overlaps is not None:
            lines.append(f"overlap: {'yes' if self.matches.overlaps else 'no'}")
        for number, group in enumerate(self.matches.groups, start=1):
            rival = ", the same thing elsewhere" if group.rival else ""
            lines.append(f"instance {number}: {len(group.matches)} matches{rival}")
        if self.matches.ambiguous:
            lines.append(f"ambiguous: the first instance is ahead of another by {self.matches.margin:.0%} only")
        return lines

    def summary(self) -> dict[str, Any]:
        """Return the result without its points, as plain values that JSON can hold."""
        pose = self.geometry
        model = None if pose is None else pose.model
        return {
            "image0": self.image0.name,
            "image1": self.image1.name,
            "size0": list(self.image0.size),
            "size1": list(self.image1.size),
            "choice": self.choice,
            "keypoints0": len(self.features0),
            "keypoints1": len(self.features1),
            "matches": len(self),
            "overlaps": self.matches.overlaps,
            "attempts": [asdict(attempt) for attempt in self.attempts],
            "groups": [
                {"matches": len(group.matches), "homography": group.homography.tolist(), "rival": group.rival}
                for group in self.matches.groups
            ],
            "margin": self.matches.margin,
            "ambiguous": self.matches.ambiguous,
            "stop_layer": self.matches.stop_layer,
            "geometry": self.kind,
            "model": None if model is None else model.tolist(),
            "R": None if pose is None or pose.R is None else pose.R.tolist(),
            "t": None if pose is None or pose.t is None else pose.t.tolist(),
            "inliers": None if self.inliers is None else int(self.inliers.sum()),
            "note": self.note,
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        picture: Picture = "matches",
        color: str | None = None,
        overwrite: bool = False,
    ) -> Figure | None:
        """Draw the result.

        Parameters
        ----------
        path : path, optional
            Write the picture to this .png, .jpg, .pdf or .svg file, atomically; or the matches to an interactive .html
            page.
        picture : {"matches", "attempts", "pruning", "scores"}
            Matches side by side, the same coloured by the try that found them, keypoints by the layer at which they
            were pruned, or the histogram of the scores.
        color : {"score", "inlier"}, optional
            What the colour of a match says; by default inliers where a geometry was asked for, else the
            score.
        overwrite : bool
            Replace a .png or .jpg file that is there already; it may be somebody's photograph.

        Returns
        -------
        matplotlib.figure.Figure, or None for a page
            Shows itself at the end of a notebook's cell.

        Raises
        ------
        ArgumentError
            Unknown suffix, picture or colour, or one that this result has no data for; ``path`` is one of the two
            photographs, or a picture that is not to be replaced.
        MissingDependencyError
            matplotlib is not installed; the page does not need it.
        """
        from . import viz  # here, because most uses of `match` draw nothing

        views = self.image0, self.image1
        if picture not in PICTURES:
            raise ArgumentError(f"no picture is called {picture!r}; there are: {', '.join(PICTURES)}")
        if path is not None:
            self._check_output(path, FILES, overwrite)
            if Path(path).suffix.lower() == ".html":
                if picture != "matches":
                    raise ArgumentError(f"{path}: a page shows the matches; write the picture {picture!r} to a .png")
                description = "; ".join([self.choice, *self.tried])
                viz.write_page(
                    *views, self.matches, path, inliers=self.inliers, description=description, verdict=self.verdict
                )
                return None
        if picture == "pruning":
            return viz.plot_pruning(*views, self.features0, self.features1, self.matches, path)
        if picture == "scores":
            return viz.plot_scores(self.matches, path)
        if picture == "attempts":
            names = [attempt.name for attempt in self.attempts]
            attempts = names, self.sources
            return viz.plot_matches(*views, self.matches, path, color="attempt", attempts=attempts, method=self.method)
        color = color or ("score" if self.inliers is None else "inlier")
        return viz.plot_matches(*views, self.matches, path, inliers=self.inliers, color=color, method=self.method)

    def save(self, path: str | os.PathLike[str], picture: Picture = "matches", overwrite: bool = False) -> None:
        """Write the result; the suffix says how. The file appears whole or not at all.

        Parameters
        ----------
        path : path
            ``.npz``: ``points0``, ``points1`` (K, 2), ``scores`` (K,), ``matches`` (K, 2) and, with a
            geometry, ``inliers`` (K,) and ``model``. ``.csv``: one match a line. ``.json``: `summary` and
            the matches. ``.h5``: keypoints and matches in hloc's layout. ``.html``, ``.png``, ``.jpg``,
            ``.pdf``, ``.svg``: see `plot`.
        picture : {"matches", "attempts", "pruning", "scores"}
            What a picture shows, see `plot`; pages and tables hold the matches.
        overwrite : bool
            See `plot`; files that are no pictures are replaced in any case.

        Raises
        ------
        ArgumentError
            Unknown suffix, the folder does not exist, or ``path`` is one of the two photographs.
        InputError
            The file cannot be written.
        MissingDependencyError
            h5py or matplotlib is needed and not installed.
        """
        target = self._check_output(path, FILES, overwrite)
        suffix = target.suffix.lower()
        if suffix == ".npz":
            arrays = {"matches": self.matches.indices, **self._columns()}
            if self.geometry is not None and self.geometry.model is not None:
                arrays["model"] = self.geometry.model
            write_npz(target, arrays)
        elif suffix == ".csv":
            columns = {
                f"{axis}{side}": points[:, i]
                for side, points in enumerate((self.points0, self.points1))
                for i, axis in enumerate("xy")
            }
            columns.update({k: v for k, v in self._columns().items() if v.ndim == 1})
            write_csv(target, {name.removesuffix("s"): column for name, column in columns.items()})
        elif suffix == ".json":
            arrays = {"indices": self.matches.indices, **self._columns()}
            lists = {name: array.tolist() for name, array in arrays.items()}
            files.write_json(target, {**self.summary(), "correspondences": lists})
        elif suffix == ".h5":
            names = _distinct_names(self.image0.name, self.image1.name)
            both = (self.features0, self.features1)
            write_hloc_pair(target, names, both, self.matches.indices, self.scores)
        else:
            self.plot(target, "matches" if suffix == ".html" else picture, overwrite=overwrite)

    def _check_output(self, path: str | os.PathLike[str], suffixes: tuple[str, ...], overwrite: bool) -> Path:
        return files.check_output(path, suffixes, inputs=(self.image0.name, self.image1.name), overwrite=overwrite)

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Return what every file holds of each match."""
        columns: dict[str, NDArray[Any]] = {
            "points0": self.points0,
            "points1": self.points1,
            "scores": self.scores,
        }
        if self.inliers is not None:
            columns["inliers"] = self.inliers
        return columns


def match(
    image0: ImageSource,
    image1: ImageSource,
    features: str | Extractor = "auto",
    matcher: str | Matcher = "auto",
    *,
    max_keypoints: int | None = 2048,
    long_side: int | None = 1024,
    detection_threshold: float | None = None,
    nms_radius: int | None = None,
    mask0: ImageSource | None = None,
    mask1: ImageSource | None = None,
    bands: Sequence[int] | None = None,
    effort: Effort = "auto",
    budget: float | None = None,
    instances: int | None = None,
    geometry: Geometry | None = None,
    focal: float | None = None,
    camera0: Camera | None = None,
    camera1: Camera | None = None,
    device: torch.device | str | None = "auto",
) -> TwoView:
    """Find the points that two photographs share.

    Parameters
    ----------
    image0, image1 : path, array, Pillow image, tensor, file object or Image
        The photographs, see `tiepoint.read_image`.
    features : str or Extractor
        One of `tiepoint.features.names`, an extractor that is already loaded, or ``"auto"``: the best whose
        weights are on this machine and may be used commercially. Nothing is downloaded.
    matcher : str or Matcher
        One of `tiepoint.matchers.names`, a loaded matcher, or ``"auto"``: the best for these features.
    max_keypoints : int or None
        Keep the best this many of each image; None keeps all. A loaded extractor has its own number.
    long_side : int or None
        Shrink larger photographs to this long side, in pixels, to find keypoints; None works at full size.
        Points come back in original pixels either way. A loaded extractor has its own number.
    detection_threshold, nms_radius : number or None
        See `tiepoint.features.ExtractorOptions`; None is the extractor's own default.
    mask0, mask1 : same kinds as the images, or None
        0 means "no keypoints here".
    bands : one or three ints, optional
        Which bands of the photographs to use, see `tiepoint.read_image`. A loaded extractor has its own.
    effort : {"fast", "auto", "thorough"}
        One pass; further tries while what was found does not convince; or all tries: see `tiepoint.effort`. Matches of
        a second extractor join only with ``"thorough"``, or where ``features`` is ``"auto"``.
    budget : float, optional
        No further try begins this many seconds after the call; with it the result depends on the machine's speed.
    instances : int, optional
        Also look for things that repeat, and leave out matches with another copy than the first: see `tiepoint.groups`
        and `Matches.groups`. With 1 the copies of parts of a scene are told apart; with N up to N copies of an object
        are found that ``image0`` shows alone.
    geometry : {"homography", "fundamental", "essential"}, optional
        Also estimate this model robustly and tell which matches agree with it.
    focal : float, optional
        For ``"essential"``: focal length of both photographs, in pixels. Without it, or the cameras, 1.2 times the long
        side is assumed.
    camera0, camera1 : Camera, optional
        The same, where more is known than the focal length.
    device : torch.device or str
        Where networks run; ``"auto"`` is `tiepoint.devices.best_device`.

    Returns
    -------
    TwoView
        ``points0`` (K, 2), ``points1`` (K, 2), ``scores`` (K,), and everything they came from.

    Raises
    ------
    ArgumentError
        An unknown name, or an option out of range.
    InputError
        A photograph or mask cannot be read.
    WeightsError
        The extractor or matcher that was asked for needs weights that are not on this machine.
    MissingDependencyError
        It needs an optional package.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)
    >>> photo = np.kron(noise, np.ones((4, 4), np.uint8))
    >>> result = match(photo, photo[8:, 12:], features="sift", matcher="nearest")
    >>> result.choice
    'sift + nearest, as asked'
    >>> bool(np.median(result.points0 - result.points1, axis=0).round().tolist() == [12.0, 8.0])
    True
    """
    if geometry is not None and geometry not in GEOMETRIES:
        raise ArgumentError(f"no geometry is called {geometry!r}; there are: {', '.join(GEOMETRIES)}")
    if focal is not None and geometry != "essential":
        raise ArgumentError("a focal length is for the geometry 'essential' only")
    if focal is not None and (camera0 is not None or camera1 is not None):
        raise ArgumentError("give a focal length or cameras, not both: a camera has its focal length")
    if instances is not None and instances < 1:
        raise ArgumentError(f"instances must be at least 1, not {instances}")
    ladder.check(effort, budget)
    clock = _Clock()
    bands = features.options.bands if isinstance(features, Extractor) else check_bands(bands)
    view0, view1 = read_image(image0, mask0, bands=bands), read_image(image1, mask1, bands=bands)
    clock.lap("read")

    options = ExtractorOptions(max_keypoints, detection_threshold, nms_radius, long_side, bands=bands)
    extractor, pairer, choice = pipeline.load(features, matcher, device, options)
    clock.lap("load")
    second = pipeline.another(extractor) if features == "auto" or effort == "thorough" else None
    state = ladder.State.begin((view0, view1), extractor, pairer, second)
    clock.lap("extract")
    state = ladder.climb(state, effort, budget, spent=sum(clock.seconds.values()))
    matches, sources, attempts = state.matches, state.sources, state.attempts
    if instances is not None:
        groups, keep = find_groups(state.own(0), state.own(1), matches, instances)
        matches, sources = replace(matches[keep], groups=groups, overlaps=matches.overlaps), sources[keep]
        attempts = tuple(replace(a, kept=int((sources == i).sum())) for i, a in enumerate(attempts))
    clock.lap("match")
    estimate = None
    if geometry is not None:
        if focal is not None:
            camera0, camera1 = (Camera.from_focal(focal, view.size) for view in (view0, view1))
        estimate = _estimate(geometry, matches, view0, view1, camera0, camera1)
        clock.lap("geometry")
    return TwoView(
        view0,
        view1,
        *state.features,
        matches,
        choice,
        geometry,
        estimate,
        clock.seconds,
        attempts,
        sources,
    )


def _estimate(
    kind: Geometry,
    matches: Matches,
    view0: Image,
    view1: Image,
    camera0: Camera | None,
    camera1: Camera | None,
) -> Estimate:
    if kind == "homography":
        return geometry.estimate_homography(matches.points0, matches.points1, covariances=matches.covariances)
    if kind == "fundamental":
        return geometry.estimate_fundamental(matches.points0, matches.points1)
    camera0 = camera0 or Camera.from_focal(FOCAL_FACTOR * max(view0.size), view0.size)
    camera1 = camera1 or Camera.from_focal(FOCAL_FACTOR * max(view1.size), view1.size)
    return geometry.estimate_relative_pose(
        matches.points0, matches.points1, camera0, camera1, covariances=matches.covariances
    )


def _distinct_names(name0: str, name1: str) -> tuple[str, str]:
    """Return file names, with their folders only where they are needed to tell the two apart."""
    short = Path(name0).name, Path(name1).name
    if short[0] != short[1]:
        return short
    if name0 != name1:
        return Path(name0).as_posix().lstrip("/"), Path(name1).as_posix().lstrip("/")
    return f"{short[0]}#0", f"{short[1]}#1"


class _Clock:
    """Seconds between calls of `lap`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
