"""Extract and match with networks that ``tiepoint export`` wrote: NumPy, and ONNX Runtime or OpenVINO.

Neither tiepoint nor PyTorch is imported here. ``tiepoint export`` copies this file into every folder it writes, so
that the folder runs by itself, and whoever ports it to another language reads one file:

    pip install numpy pillow onnxruntime
    python DIR/run.py A.jpg B.jpg

`manifest.json` says what each graph takes and returns. The loops around the graphs stand here: the image pyramid
(`pyramid`), the choice of keypoints (`suppress`), and the layers of LightGlue with early exit and pruning
(`Exported._match`). Pixels are (x, y), and (0, 0) is the centre of the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = 1  # of the manifest
MANIFEST = "manifest.json"
Array = NDArray[Any]
Graph = Callable[[list[Array]], list[Array]]  # inputs and outputs in the order of the manifest

_AT_ONCE = 128  # keypoints described together, so that their patches stay in the cache


class Pyramid(NamedTuple):
    """All levels of a grey image: their pixels in one row (P,), and for each its first pixel, width and height."""

    pixels: Array
    places: Array


class Keypoints(NamedTuple):
    """Keypoints of one image, sorted by falling score.

    Attributes
    ----------
    positions : float32 array (N, 2)
        (x, y) in pixels of the image.
    scores : float32 array (N,)
        In [0, 1].
    descriptors : float32 array (N, D)
        Of unit length.
    scales, orientations : float32 array (N,)
        Diameters in pixels, and radians from +x towards +y.
    covariances : float32 array (N, 2, 2)
        Of the position, pixels squared.
    size : (int, int)
        (width, height) of the image.
    """

    positions: Array
    scores: Array
    descriptors: Array
    scales: Array
    orientations: Array
    covariances: Array
    size: tuple[int, int]


class Found(NamedTuple):
    """Matches of two images.

    Attributes
    ----------
    pairs : int64 array (K, 2)
        Row numbers of keypoints, sorted by the first.
    scores : float32 array (K,)
        Probability of each match.
    layers : int
        How many layers were run.
    depth0, depth1 : int64 array (N,), (M,)
        How many layers each keypoint took part in.
    matchability0, matchability1 : float32 array (N,), (M,)
        How likely each keypoint has a partner, as the last of these layers saw it.
    """

    pairs: Array
    scores: Array
    layers: int
    depth0: Array
    depth1: Array
    matchability0: Array
    matchability1: Array


class Exported:
    """An exported folder, ready to run.

    Parameters
    ----------
    folder : path
        What ``tiepoint export`` wrote. Every file is compared with its SHA-256 in the manifest.
    threads : int, optional
        Threads of one operator; by default the runtime chooses.

    Raises
    ------
    ValueError
        There is no manifest, it is of another format, or a file is missing or has changed.
    ImportError
        The runtime that the folder was exported for is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.extractor: dict[str, Any] = self.manifest["extractor"]
        self.matcher: dict[str, Any] = self.manifest["matcher"]
        self._load = _RUNTIMES[self.manifest["runtime"]](threads, self.manifest["precision"])
        self._loaded: dict[str, Graph] = {}

    def graph(self, name: str, *inputs: Array) -> list[Array]:
        """Run a graph of the manifest, which is loaded on first use."""
        if name not in self._loaded:
            described = self.manifest["graphs"][name]
            self._loaded[name] = self._load(
                self.folder / described["file"], [one["name"] for one in described["inputs"]]
            )
        return self._loaded[name](list(inputs))

    def extract(
        self,
        pixels: Array,
        max_keypoints: int | None = 2048,
        detection_threshold: float | None = None,
        nms_radius: int | None = None,
    ) -> Keypoints:
        """Find and describe the keypoints of an RGB picture, uint8 (H, W, 3); None is the weights' own number."""
        least = self.extractor["detection_threshold"] if detection_threshold is None else detection_threshold
        radius = self.extractor["nms_radius"] if nms_radius is None else nms_radius
        levels = self.pyramid(pixels)
        positions, level, scores = self.detect(levels, None if max_keypoints is None else 4 * max_keypoints)
        good = np.flatnonzero(scores > least)
        kept = good[suppress(positions[good], radius, max_keypoints)]
        described = self.describe(levels, positions[kept], level[kept])
        return Keypoints(positions[kept], scores[kept], *described, (pixels.shape[1], pixels.shape[0]))

    def pyramid(self, pixels: Array) -> Pyramid:
        """Return the grey image and its smaller copies, two to the octave."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"a picture is uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
        if min(pixels.shape[:2]) < self.extractor["min_side"]:
            raise ValueError(f"a picture has at least {self.extractor['min_side']} pixels on each side")
        weights = np.array([0.299, 0.587, 0.114], np.float64) / 255
        red, green, blue = (np.float32(weights[i]) * pixels[..., i] for i in range(3))
        images = pyramid(red + green + blue, self.extractor["pyramid_levels"])
        ends = np.cumsum([image.size for image in images])
        places = [(end - image.size, image.shape[1], image.shape[0]) for end, image in zip(ends, images, strict=True)]
        return Pyramid(np.concatenate([image.ravel() for image in images]), np.array(places, np.int64))

    def detect(self, levels: Pyramid, most: int | None = None) -> tuple[Array, Array, Array]:
        """Return all keypoints of a picture by falling score: positions (N, 2), levels (N,) and scores (N,)."""
        found = []
        for level, (first, width, height) in enumerate(levels.places.tolist()):
            if level == self.extractor["detection_levels"] or (level and min(width, height) < 24):
                break
            image = levels.pixels[first : first + width * height].reshape(height, width)
            at, scores = self.graph("detect", image)
            ratio = levels.places[0, 1:].astype(np.float32) / np.array([width, height], np.float32)
            found.append(((at + np.float32(0.5)) * ratio - np.float32(0.5), np.full(len(at), level), scores))
        positions, level_of, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.argsort(-scores, kind="stable")[:most]
        return positions[order], level_of[order].astype(np.int64), scores[order]

    def describe(self, levels: Pyramid, positions: Array, level_of: Array) -> tuple[Array, Array, Array, Array]:
        """Return descriptors, diameters, directions and covariances of keypoints, see `Keypoints`."""
        parts = []
        for start in range(0, max(1, len(positions)), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            parts.append(self.graph("describe", *levels, positions[some], level_of[some]))
        descriptors, scales, orientations, covariances = (np.concatenate(part) for part in zip(*parts, strict=True))
        return descriptors, scales, orientations, covariances

    def match(self, first: Keypoints, second: Keypoints, threshold: float | None = None) -> Found:
        """Match two images by LightGlue; None is the weights' own threshold.

        Both orders of a pair have the same matches: it is the image with fewer keypoints that comes first, or that
        with the smaller coordinate where the two first differ. An image with fewer than two keypoints has no matches.
        """
        if _comes_before(second.positions, first.positions):
            found = self.match(second, first, threshold)
            order = np.argsort(found.pairs[:, 1], kind="stable")
            pairs, scores = np.ascontiguousarray(found.pairs[order, ::-1]), found.scores[order]
            return Found(pairs, scores, found.layers, *found[4:2:-1], *found[6:4:-1])
        return self._match(first, second, self.matcher["match_threshold"] if threshold is None else threshold)

    def _match(self, first: Keypoints, second: Keypoints, threshold: float) -> Found:
        """Run the layers, section 3.3 of the paper."""
        config = self.matcher
        both = first, second
        index = [np.arange(len(one.positions)) for one in both]  # of the points that still take part
        depth = [np.zeros(len(one), np.int64) for one in index]
        sigma = [np.zeros(len(one), np.float32) for one in index]
        pairs, scores = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
        if min(map(len, index)) < 2:
            return Found(pairs, scores, 0, *depth, *sigma)
        inputs = [
            part
            for one in both
            for part in (one.positions, one.scales, one.orientations, one.descriptors, np.array(one.size, np.float32))
        ]
        out = self.graph("begin", *inputs)
        x, rotation = [out[0], out[3]], [out[1:3], out[4:6]]
        for i in range(config["layers"]):
            last = i + 1 == config["layers"]
            out = self.graph(f"layer{i}", x[0], *rotation[0], x[1], *rotation[1])
            images = out[: len(out) // 2], out[len(out) // 2 :]  # states, matchability and, not last, confidence
            x = [image[0] for image in images]
            for a in (0, 1):
                depth[a][index[a]] = i + 1
                sigma[a][index[a]] = images[a][1]
            if last:
                break
            confident = [np.ones(len(one), bool) for one in index]
            if config["exit_confidence"] is not None:
                confident = [image[2] > np.float32(config["exit_confidence"][i]) for image in images]
                waiting = sum(int((~one).sum()) for one in confident)
                if (
                    np.float32(1) - np.float32(waiting) / np.float32(len(depth[0]) + len(depth[1]))
                    > config["exit_share"]
                ):
                    break
            if config["prune_matchability"] is not None:
                for a in (0, 1):
                    stays = ~(confident[a] & (images[a][1] <= np.float32(config["prune_matchability"][i])))
                    x[a], index[a] = x[a][stays], index[a][stays]
                    rotation[a] = [part[stays] for part in rotation[a]]
                if min(map(len, index)) == 0:
                    return Found(pairs, scores, i + 1, *depth, *sigma)
        rows, scores = self.graph(f"assign{i}", *x, np.array(threshold, np.float32))
        pairs = np.stack([index[0][rows[:, 0]], index[1][rows[:, 1]]], 1)
        return Found(pairs, scores, i + 1, *depth, *sigma)


def _comes_before(a: Array, b: Array) -> bool:
    """Whether points (N, 2) come before points (M, 2): fewer first, then the smaller coordinate."""
    if len(a) != len(b):
        return len(a) < len(b)
    differing = np.flatnonzero(a != b)
    return len(differing) > 0 and bool(a.flat[differing[0]] < b.flat[differing[0]])


def pyramid(grey: Array, levels: int) -> list[Array]:
    """Return an image (H, W) and copies of it, each smaller by the square root of 2, none under 8 pixels.

    Examples
    --------
    >>> [level.shape for level in pyramid(np.zeros((48, 64), np.float32), 9)]
    [(48, 64), (34, 45), (24, 32), (17, 23), (12, 16), (8, 11)]
    """
    images = [np.asarray(grey, np.float32)]
    for level in range(1, levels):
        height, width = (round(side / 2 ** (level / 2)) for side in grey.shape)
        if min(height, width) < 8:
            break
        source = images[max(0, level - 2)]  # from an octave before where there is one: fewer aliases
        narrow = _shrink_rows(np.ascontiguousarray(source.T), width)
        images.append(_shrink_rows(np.ascontiguousarray(narrow.T), height))
    return images


def _shrink_rows(image: Array, length: int) -> Array:
    """Shrink (H, W) to (length, W): triangular filters over twice the step, as PyTorch's antialiased bilinear has."""
    half = np.float32(0.5)
    step = np.float32(len(image)) / np.float32(length)
    centre = step * (np.arange(length, dtype=np.float32) + half)
    first = np.maximum(centre - step + half, 0).astype(np.int64)
    last = np.minimum(centre + step + half, len(image)).astype(np.int64)
    taps = first[:, None] + np.arange((last - first).max())
    away = np.abs(taps.astype(np.float32) - centre[:, None] + half)
    weights = np.where(taps < last[:, None], np.maximum(1 - away * (1 / step), 0), np.float32(0))
    weights /= weights.sum(1, keepdims=True)
    taps = np.minimum(taps, len(image) - 1)
    small = weights[:, :1] * image[taps[:, 0]]
    for k in range(1, taps.shape[1]):
        small += weights[:, k : k + 1] * image[taps[:, k]]
    return small


def suppress(positions: Array, radius: float, most: int | None = None) -> Array:
    """Choose points (N, 2) in their order so that no two are closer than ``radius`` both in x and in y.

    Returns the row numbers (K,) of the first ``most`` that are chosen.

    Examples
    --------
    >>> suppress(np.array([[3.0, 3.0], [0.0, 0.0], [9.0, 0.0]]), radius=3)
    array([0, 2])
    """
    if radius <= 0 or len(positions) == 0:
        return np.arange(len(positions))[:most]
    # In a cell as wide as the radius at most one point survives, and whatever suppresses a point lies in its own cell
    # or one of the eight around: nine look-ups decide each point.
    xy = np.asarray(positions, np.float64)
    cell = np.floor((xy - xy.min(axis=0)) / radius).astype(np.int64)
    row = int(cell[:, 0].max()) + 3
    keys = (cell[:, 1] * row + cell[:, 0]).tolist()
    around = [0, -1, 1, -row, row, -row - 1, -row + 1, row - 1, row + 1]
    chosen: dict[int, tuple[float, float]] = {}
    keep = []
    for i, (key, (x, y)) in enumerate(zip(keys, xy.tolist(), strict=True)):
        for step in around:
            other = chosen.get(key + step)
            if other is not None and abs(x - other[0]) <= radius and abs(y - other[1]) <= radius:
                break
        else:
            chosen[key] = (x, y)
            keep.append(i)
            if len(keep) == most:
                break
    return np.array(keep, np.int64)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an exported folder whose files are all as it says; raises `ValueError` if not."""
    again = "export it again: tiepoint export"
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"is of format {manifest['format']}, and this program reads format {FORMAT}")
        if manifest["precision"] not in ("float32", "bfloat16"):
            raise ValueError(f"names a precision that this program does not know, {manifest['precision']!r}")
        if manifest["runtime"] not in _RUNTIMES:
            raise ValueError(f"names a runtime that this program does not know, {manifest['runtime']!r}")
        files, _ = dict(manifest["files"]), [manifest[part] for part in ("extractor", "matcher", "graphs")]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {MANIFEST}: it is no folder that tiepoint exported") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if type(error) is ValueError else f"cannot be read ({type(error).__name__})"
        raise ValueError(f"{folder / MANIFEST} {reason}; {again}") from error
    for name, expected in files.items():
        try:
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"{folder / name} is missing or cannot be read; {again}") from error
        if digest != expected:
            raise ValueError(f"{folder / name} has changed: its SHA-256 is {digest}, not {expected}; {again}")
    return manifest


def _onnxruntime(threads: int | None, precision: str) -> Callable[[Path, list[str]], Graph]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the core to others

    def load(path: Path, names: list[str]) -> Graph:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))

    return load


def import_openvino() -> Any:
    """Return the package openvino, imported without what reports each import to its makers over the network."""
    known = "openvino_telemetry" in sys.modules
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # the import of it fails
    try:
        import openvino
    finally:
        if not known:
            del sys.modules["openvino_telemetry"]
    return openvino


def _openvino(threads: int | None, precision: str) -> Callable[[Path, list[str]], Graph]:
    core = import_openvino().Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads

    def load(path: Path, names: list[str]) -> Graph:
        # By itself it computes in 16 bits wherever the processor can.
        half = precision == "bfloat16" and path.name.startswith("layer")
        hint = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
        request = core.compile_model(core.read_model(path), "CPU", {**settings, **hint}).create_infer_request()

        def run(inputs: list[Array]) -> list[Array]:
            found = request.infer(dict(zip(names, inputs, strict=True)), share_inputs=True)
            return [np.array(found[i]) for i in range(len(found))]

        return run

    return load


_RUNTIMES = {"onnx": _onnxruntime, "openvino": _openvino}


def main(paths: list[str]) -> None:
    """Print the matches of two photographs, one a line: x0, y0, x1, y1 in pixels of the files, score."""
    from PIL import Image, ImageOps

    exported = Exported(Path(__file__).parent)
    keypoints, factors = [], []
    for path in paths:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        size = picture.size
        picture.thumbnail((1024, 1024), Image.Resampling.BOX)
        keypoints.append(exported.extract(np.asarray(picture)))
        factors.append(np.divide(size, picture.size))
    found = exported.match(keypoints[0], keypoints[1])
    for (i, j), score in zip(found.pairs, found.scores, strict=True):
        ends = ((one.positions[row] + 0.5) * by - 0.5 for one, row, by in zip(keypoints, (i, j), factors, strict=True))
        print(*(f"{number:.2f}" for end in ends for number in end), f"{score:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python run.py A.jpg B.jpg")
    main(sys.argv[1:])
