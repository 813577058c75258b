"""Cairn and LightGlue as graphs for ONNX Runtime or OpenVINO: `export`."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from .. import features as extractors
from .. import matchers, names, weights
from .._version import __version__
from ..devices import plain_torch
from ..errors import ArgumentError, MissingDependencyError
from ..features.cairn import Cairn
from ..features.cairn.network import level_of_ring
from ..io.files import atomic_folder, write_json
from ..matchers.lightglue import LightGlue
from ..runtimes import run
from .graphs import Assign, Begin, Describe, Detect, OneLayer

Runtime = Literal["onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("onnx", "openvino")
Precision = Literal["float32", "bfloat16"]
# What is faster by more than it costs in matches, see docs/how-to/export.md. ONNX Runtime has no bfloat16 on CPUs.
PRECISIONS: dict[Precision, tuple[Runtime, ...]] = {"float32": RUNTIMES, "bfloat16": ("openvino",)}
_OPSET = 18
# Sizes with which graphs are traced; no two equal, and all odd, lest something about them be taken for granted.
_EXAMPLE = {"h": 123, "w": 165, "n": 51, "m": 67, "levels": 5, "pixels": 2001}
_LEAST = {"h": 24, "w": 24}


class Port(NamedTuple):
    """An input or an output of a graph: letters of its shape are sizes that differ from call to call."""

    name: str
    type: str
    shape: tuple[str | int, ...]
    meaning: str


@dataclass(frozen=True)
class Graph:
    """A module and what goes in and comes out."""

    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class ExportedFolder:
    """What `export` wrote.

    Attributes
    ----------
    folder : Path
        Where.
    runtime : {"onnx", "openvino"}
        What runs it.
    precision : {"float32", "bfloat16"}
        Of LightGlue's layers.
    files : dict of str to int
        Bytes of each file.
    licences : dict of str to str
        Of the extractor's and the matcher's weights.
    """

    folder: Path
    runtime: Runtime
    precision: Precision
    files: dict[str, int] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        settings = {"output": str(self.folder), "to": self.runtime, "precision": self.precision}
        return {**settings, "files": self.files, "licences": self.licences}


@plain_torch(keep_seed=True)
def export(
    model: str,
    output: str | os.PathLike[str],
    to: Runtime = "onnx",
    *,
    precision: Precision = "float32",
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportedFolder:
    """Write an extractor and its matcher for a runtime that needs no PyTorch.

    The folder takes pictures of any size and any numbers of keypoints, one pair at a time. Each layer of LightGlue is a
    graph of its own, so that it still stops early and drops points. It is run by ``features="cairn@FOLDER"`` and
    ``matcher="lightglue@FOLDER"`` wherever tiepoint takes these names, by `tiepoint.runtimes.open_exported`, or by the
    program ``run.py`` in it. Nothing is downloaded.

    Parameters
    ----------
    model : str
        ``"cairn+lightglue"``; with weights of one's own ``"cairn@FILE+lightglue@FILE"``.
    output : path
        The folder. One that was exported before is replaced.
    to : {"onnx", "openvino"}
        ONNX Runtime and whatever else reads ONNX, or OpenVINO.
    precision : {"float32", "bfloat16"}
        In which LightGlue's layers are computed; all else is float32. bfloat16, of OpenVINO alone, is faster where the
        processor has it and moves some matches; other processors compute in float32.
    progress : callable, optional
        Called with (name of a graph, number done, number of all) after each graph.

    Returns
    -------
    ExportedFolder

    Raises
    ------
    ArgumentError
        Another extractor or matcher, weights that do not belong together, a precision that this runtime has not, or a
        folder that holds something else.
    InputError
        The folder cannot be written.
    WeightsError
        Weights are not on this machine, or damaged.
    MissingDependencyError
        The packages that write these files are not installed.

    Examples
    --------
    >>> import tiepoint as tp
    >>> tp.export("cairn+lightglue", "exported")  # doctest: +SKIP
    >>> tp.match("a.jpg", "b.jpg", features="cairn@exported")  # doctest: +SKIP
    """
    if to not in RUNTIMES:
        raise ArgumentError(f"tiepoint exports to {' or '.join(RUNTIMES)}, not to {to!r}")
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision is {', '.join(PRECISIONS)}, not {precision!r}")
    if to not in PRECISIONS[precision]:
        has = [one for one, runtimes in PRECISIONS.items() if to in runtimes]
        raise ArgumentError(f"--to {to} is exported in {' or '.join(has)}, not in {precision}")
    parts = names.split(model, ["cairn", "lightglue"])
    if [part.partition("@")[0] for part in parts] != ["cairn", "lightglue"]:
        raise ArgumentError(
            f"cairn+lightglue can be exported, also with weights as cairn@FILE+lightglue@FILE, not {model!r}"
        )
    _check_output(Path(output))
    openvino = _import_packages(to)
    extractor = extractors.load(parts[0])
    matcher = matchers.load(parts[1], features="cairn")
    if not isinstance(extractor, Cairn) or not isinstance(matcher, LightGlue) or not hasattr(extractor, "net"):
        raise ArgumentError(f"{model}: has been exported already; name the weights it was made of")
    if not matcher.config.scale_orientation or matcher.config.input_dim != extractor.net.config.dim:
        raise ArgumentError(f"{model}: this matcher was not trained on the descriptors of this extractor")
    graphs = {**_cairn(extractor), **_lightglue(matcher)}
    with atomic_folder(output) as folder, tempfile.TemporaryDirectory() as scratch:
        described = {}
        for number, (name, model_proto) in enumerate(_models(graphs), start=1):
            if openvino is None:
                file = f"{name}.onnx"
                (folder / file).write_bytes(model_proto)
            else:
                file = f"{name}.xml"
                source = Path(scratch, f"{name}.onnx")
                source.write_bytes(model_proto)
                # Not openvino.convert_model, which sends usage data to its makers at every call.
                openvino.save_model(openvino.Core().read_model(source), folder / file, compress_to_fp16=False)
            ports = {"inputs": graphs[name].inputs, "outputs": graphs[name].outputs}
            described[name] = {"file": file, **{k: [port._asdict() for port in v] for k, v in ports.items()}}
            if progress is not None:
                progress(name, number, len(graphs))
        shutil.copy(run.__file__, folder / "run.py")
        sources = {"extractor": _source(parts[0], "cairn"), "matcher": _source(parts[1], "cairn-lightglue")}
        content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        manifest = {
            "format": run.FORMAT,
            "tiepoint": __version__,
            "runtime": to,
            "precision": precision,
            "units": "pixels are (x, y) and (0, 0) is the centre of the first; angles are radians from +x towards +y",
            "extractor": {**_settings(extractor), **sources["extractor"]},
            "matcher": {**_thresholds(matcher), **sources["matcher"]},
            "graphs": described,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
        }
        write_json(folder / run.MANIFEST, manifest)
    licences = {name: source["licence"] for name, source in sources.items()}
    return ExportedFolder(Path(output), to, precision, {name: len(data) for name, data in content.items()}, licences)


def _check_output(output: Path) -> None:
    """Refuse a folder that holds anything but an export."""
    if output.is_dir() and any(output.iterdir()) and not (output / run.MANIFEST).is_file():
        raise ArgumentError(f"{output} holds files that are no export; name a new folder, or empty it first")


def _import_packages(to: Runtime) -> Any:
    """Import what writes the files; return OpenVINO if that is asked for."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise MissingDependencyError(str(error.name), "export", "exporting") from error
    if to == "onnx":
        return None
    try:
        return run.import_openvino()
    except ImportError as error:
        raise MissingDependencyError("openvino", "openvino", "exporting to OpenVINO") from error


def _cairn(extractor: Cairn) -> dict[str, Graph]:
    config = extractor.net.config
    position = Port("positions", "float32", ("n", 2), "(x, y) of keypoints, pixels of the image")
    return {
        "detect": Graph(
            Detect(extractor.net),
            (Port("image", "float32", ("h", "w"), "grey, in [0, 1], of one level of the pyramid"),),
            (
                Port("at", "float32", ("n", 2), "(x, y) of keypoints, pixels of this level"),
                Port("scores", "float32", ("n",), "in [0, 1]"),
            ),
        ),
        "describe": Graph(
            Describe(extractor.net),
            (
                Port("pixels", "float32", ("pixels",), "grey, in [0, 1], of all levels, row after row"),
                Port("places", "int64", ("levels", 3), "index of a level's first pixel, its width and height"),
                position,
                Port("level_of", "int64", ("n",), "level on which each keypoint was detected"),
            ),
            (
                Port("descriptors", "float32", ("n", config.dim), "of unit length"),
                Port("scales", "float32", ("n",), "diameter, pixels of the image"),
                Port("orientations", "float32", ("n",), "radians"),
                Port("covariances", "float32", ("n", 2, 2), "of the position, pixels of the image squared"),
            ),
        ),
    }


def _lightglue(matcher: LightGlue) -> dict[str, Graph]:
    config, net = matcher.config, matcher.net
    half = config.dim // config.heads // 2
    given: list[Port] = []
    states: list[Port] = []
    decided: list[Port] = []
    for side, n in enumerate("nm"):
        given += [
            Port(f"keypoints{side}", "float32", (n, 2), f"(x, y), pixels of image {side}"),
            Port(f"scales{side}", "float32", (n,), "diameter, pixels"),
            Port(f"orientations{side}", "float32", (n,), "radians"),
            Port(f"descriptors{side}", "float32", (n, config.input_dim), "of unit length"),
            Port(f"size{side}", "float32", (2,), f"width and height of image {side}, pixels"),
        ]
        states += [
            Port(f"x{side}", "float32", (n, config.dim), f"states of the points of image {side}"),
            Port(f"cos{side}", "float32", (n, half), "rotary encoding of their positions"),
            Port(f"sin{side}", "float32", (n, half), "rotary encoding of their positions"),
        ]
        decided += [
            Port(f"new_x{side}", "float32", (n, config.dim), f"states of the points of image {side} after this layer"),
            Port(f"matchability{side}", "float32", (n,), "probability of having a partner"),
            Port(f"confidence{side}", "float32", (n,), "probability that later layers change nothing"),
        ]
    threshold = Port("threshold", "float32", (), "least P of a match")
    matched = (
        Port("pairs", "int64", ("k", 2), "row of x0, row of x1"),
        Port("scores", "float32", ("k",), "P of each match"),
    )
    graphs = {"begin": Graph(Begin(net, config), tuple(given), tuple(states))}
    for i in range(config.layers):
        last = i + 1 == config.layers
        outputs = tuple(port for port in decided if not (last and port.name.startswith("confidence")))
        graphs[f"layer{i}"] = Graph(OneLayer(net, i), tuple(states), outputs)
        if last or config.exit_confidence is not None:
            graphs[f"assign{i}"] = Graph(Assign(net.heads[i]), (states[0], states[3], threshold), matched)
    return graphs


def _models(graphs: dict[str, Graph]) -> Iterator[tuple[str, bytes]]:
    """Yield each graph as an ONNX file.

    Layers differ by their parameters only: the first is traced, and filled with those of the others.
    """
    traced: dict[str, Any] = {}
    for name, graph in graphs.items():
        kind = name.rstrip("0123456789")
        if kind not in traced:
            traced[kind] = _trace(graph)
        model = type(traced[kind])()
        model.CopyFrom(traced[kind])
        state = graph.module.state_dict()
        for parameter in model.graph.initializer:
            if parameter.name in state:
                parameter.raw_data = state[parameter.name].numpy().tobytes()
        wanted = {port.name for port in graph.outputs}
        outputs = [one for one in model.graph.output if one.name in wanted]
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        _halve(model)
        yield name, model.SerializeToString()


def _halve(model: Any) -> None:
    """Keep parameters whose numbers all are numbers of float16 as such: half the bytes, and nothing is rounded.

    The bundled weights are of this kind. The runtimes make float32 of them when they load a graph.
    """
    import onnx

    casts = []
    for parameter in model.graph.initializer:
        values = onnx.numpy_helper.to_array(parameter)
        if values.dtype != np.float32 or values.size < 64:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = f"{parameter.name}.float16"
        casts.append(onnx.helper.make_node("Cast", [name], [parameter.name], to=onnx.TensorProto.FLOAT))
        parameter.CopyFrom(onnx.numpy_helper.from_array(half, name))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _trace(graph: Graph) -> Any:
    """Return a graph as an ONNX model, with the names of PyTorch for its parameters."""
    sizes: dict[str, Any] = {}
    tensors, dynamic = [], []
    for port in graph.inputs:
        shape = [_EXAMPLE[n] if isinstance(n, str) else n for n in port.shape]
        tensors.append(torch.zeros(shape, dtype=getattr(torch, port.type)))
        for n in port.shape:
            if isinstance(n, str):
                sizes.setdefault(n, torch.export.Dim(n, min=_LEAST.get(n, 2)))
        dynamic.append({axis: sizes[n] for axis, n in enumerate(port.shape) if isinstance(n, str)})
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(tensors),
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_shapes=tuple(dynamic),
            opset_version=_OPSET,
            dynamo=True,
            optimize=False,  # would give parameters other names; the runtimes do it when they load a graph
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where in the sources of this machine it comes from
        node.ClearField("doc_string")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch's exporter says about itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _settings(extractor: Cairn) -> dict[str, Any]:
    config = extractor.net.config
    return {
        "name": extractor.name,
        "detection_threshold": extractor.options.detection_threshold,
        "nms_radius": extractor.options.nms_radius,
        "min_side": extractor.min_side,
        "detection_levels": config.levels,
        "pyramid_levels": config.levels + level_of_ring(config.outermost_radius),
        "descriptor_size": config.dim,
        "harmonics": list(config.harmonics),
    }


def _thresholds(matcher: LightGlue) -> dict[str, Any]:
    return {"name": matcher.name, **asdict(matcher.config), "features": ["cairn"]}


def _source(part: str, known: str) -> dict[str, Any]:
    """Return which weights these are, and who may use them."""
    chosen = names.weights_file(part) or known
    entry = weights.entries().get(chosen)
    return {
        "weights": chosen if entry else Path(chosen).name,
        "weights_sha256": weights.sha256(chosen),
        "licence": entry.licence if entry else f"that of {Path(chosen).name}, which tiepoint does not know",
        "commercial": entry.commercial if entry else None,
        "trained_on": entry.trained_on if entry else None,
    }
