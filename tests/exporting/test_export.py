"""Exported networks find what PyTorch finds, on photographs, with trained weights; what does not fit is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint import devices
from tiepoint.errors import ArgumentError, MissingDependencyError, WeightsError
from tiepoint.exporting import graphs, write
from tiepoint.features.cairn import CairnConfig, CairnNet, pyramid, to_grey
from tiepoint.matchers.lightglue import LightGlueConfig, LightGlueNet, match, pair_positions
from tiepoint.runtimes import open_exported, run
from tiepoint.types import Features

SMALL = CairnConfig(levels=4, width=8, rings=10, angles=16, channels=16, dim=32)
STEERABLE = replace(SMALL, angles=32, dim=33, harmonics=(9, 6, 4, 2))
PAIRS = [("ruins.webp", "ruins-viewpoint.webp"), ("paris.webp", "paris-viewpoint.webp"), ("room-1.webp", "field.webp")]


@pytest.fixture(params=write.RUNTIMES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def grey(texture: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    return to_grey(torch.from_numpy(texture[:height, :width].copy()).permute(2, 0, 1))[None]


# The graphs as modules of PyTorch, and the loops of NumPy, against the networks.


@pytest.mark.parametrize("size", [(240, 320), (101, 163), (24, 24)])
def test_the_pyramid_of_numpy_is_that_of_torch(texture: NDArray[np.uint8], size: tuple[int, int]) -> None:
    image = grey(texture, *size)
    for ours, other in zip(run.pyramid(image[0, 0].numpy(), 9), pyramid(image, 9), strict=True):
        np.testing.assert_allclose(ours, other[0, 0], atol=1e-6)


@pytest.mark.parametrize("config", [SMALL, STEERABLE], ids=["one direction", "steerable"])
def test_the_graphs_of_cairn_compute_what_the_network_does(config: CairnConfig, texture: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    net = CairnNet(config).eval().requires_grad_(False)
    image = grey(texture, 121, 163)
    scores = net.score([image])
    found = net.detect(scores, int(scores.ranks.isfinite().sum()))
    at, values = graphs.Detect(net)(image[0, 0])
    order = values.sort(descending=True, stable=True).indices
    assert len(at) > 50
    torch.testing.assert_close(at[order], found.positions[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(values[order], found.ranks[0].sigmoid())

    images = net.levels(image)
    levels = torch.arange(len(at)) % 3
    described = net.describe(images, found.positions, levels[None])
    sizes = torch.tensor([level.shape[2:] for level in images])
    begins = sizes.prod(1).cumsum(0) - sizes.prod(1)
    places = torch.stack([begins, sizes[:, 1], sizes[:, 0]], 1)
    pixels = torch.cat([level.flatten() for level in images])
    descriptors, scales, angles, covariances = graphs.Describe(net)(pixels, places, found.positions[0], levels)
    torch.testing.assert_close(descriptors, described.descriptors, atol=1e-3, rtol=0)
    torch.testing.assert_close(scales, 8 * 2 ** (levels / 2))
    torch.testing.assert_close(torch.stack([angles.cos(), angles.sin()], 1), described.directions, atol=1e-3, rtol=0)
    spreads = described.spreads * (2 ** (levels / 2))[:, None, None]
    torch.testing.assert_close(covariances, spreads @ spreads.mT, rtol=1e-2, atol=1e-3)


def made_up(count: int, size: int, seed: int) -> Features:
    draw = torch.Generator().manual_seed(seed)
    return Features(
        torch.rand(count, 2, generator=draw) * torch.tensor([640.0, 480.0]),
        torch.rand(count, generator=draw),
        torch.nn.functional.normalize(torch.randn(count, size, generator=draw), dim=1),
        (640, 480),
        "cairn",
        scales=8 * 2 ** torch.rand(count, generator=draw),
        orientations=6 * torch.rand(count, generator=draw),
    )


@pytest.mark.parametrize("exits", [True, False], ids=["exit and pruning", "pruning alone"])
@pytest.mark.parametrize("align", [True, False], ids=["aligned", "not aligned"])
def test_the_layers_stop_and_drop_points_as_the_reference_does(align: bool, exits: bool) -> None:
    """The loop of NumPy around the graphs as modules, with thresholds in the midst of what a network says."""
    torch.manual_seed(1)
    config = LightGlueConfig(
        input_dim=32, dim=96, heads=2, layers=4, scale_orientation=True, log_scale=True, align=align
    )
    config = replace(config, match_threshold=0.0)
    net = LightGlueNet(config).eval().requires_grad_(False)
    a, b = made_up(90, 32, 0), made_up(110, 32, 1)
    inputs = list(zip((a.descriptors, b.descriptors), pair_positions(config, a, b), strict=True))
    typical = float(match(net, config, *inputs).matchability0.quantile(0.3))
    config = replace(config, prune_matchability=(typical,) * 3)
    if exits:  # after layer 1 half of the points are confident, after layer 2 all
        encoded = [net.encode(*one) for one in inputs]
        states = net.layers[0](encoded[0][0], encoded[1][0], encoded[0][1:], encoded[1][1:])
        half = float(net.confidence[0](torch.cat(states)).sigmoid().median())
        config = replace(config, exit_confidence=(half, 0.0, 0.0))
    wanted = match(net, config, *inputs)

    modules: dict[str, Any] = {"begin": graphs.Begin(net, config)}
    for i in range(config.layers):
        modules |= {f"layer{i}": graphs.OneLayer(net, i), f"assign{i}": graphs.Assign(net.heads[i])}

    class InTorch(run.Exported):
        def __init__(self) -> None:
            self.matcher = vars(config)

        def graph(self, name: str, *inputs: Any) -> Any:
            return [out.numpy() for out in modules[name](*(torch.from_numpy(np.asarray(one)) for one in inputs))]

    keypoints = [
        run.Keypoints(
            *(getattr(f, name).numpy() for name in ("keypoints", "scores", "descriptors", "scales", "orientations")),
            np.zeros(0),
            f.image_size,
        )
        for f in (a, b)
    ]
    found = InTorch().match(*keypoints)
    assert found.layers == wanted.layers
    assert len(found.pairs) > 3
    np.testing.assert_array_equal(found.pairs, wanted.pairs)
    np.testing.assert_array_equal(found.depth0, wanted.depth0)
    np.testing.assert_array_equal(found.depth1, wanted.depth1)
    assert len(set(found.depth0.tolist())) > 1, "no point was dropped"
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(found.matchability1, wanted.matchability1, atol=1e-5)
    back = InTorch().match(*keypoints[::-1])
    assert {tuple(pair) for pair in back.pairs[:, ::-1].tolist()} == {tuple(pair) for pair in found.pairs.tolist()}
    np.testing.assert_array_equal(back.depth1, found.depth0)


# What the runtimes compute.


def test_features_are_those_of_pytorch(folder: Path, small_pairs: Path) -> None:
    """The same keypoints, nearly all in the same order: scores that are nearly equal may change places."""
    for name, side in itertools.product(("ruins.webp", "room-1.webp"), (320, 211)):
        image = small_pairs / "viewpoint" / "images" / name
        ours, theirs = (
            tp.features.load(load, max_keypoints=400, long_side=side)(image) for load in ("cairn", f"cairn@{folder}")
        )
        assert isinstance(theirs, Features) and len(theirs) == len(ours)
        distances = torch.cdist(ours.keypoints, theirs.keypoints, compute_mode="donot_use_mm_for_euclid_dist")
        least, nearest = distances.min(1)
        same = least < 0.01
        assert same.float().mean() > 0.99
        for part, most in (("scores", 1e-3), ("scales", 1e-3), ("descriptors", 0.01)):
            a, b = getattr(ours, part)[same], getattr(theirs, part)[nearest[same]]
            torch.testing.assert_close(a, b, atol=most, rtol=0)
        turned = (ours.orientations - theirs.orientations[nearest])[same]  # type: ignore[operator, index]
        assert torch.remainder(turned + torch.pi, 2 * torch.pi).sub(torch.pi).abs().quantile(0.99) < 0.01
        torch.testing.assert_close(
            ours.covariances[same],
            theirs.covariances[nearest[same]],
            atol=0.02,
            rtol=0.02,  # type: ignore[index]
        )


def test_matches_are_those_of_pytorch(folder: Path, small_pairs: Path) -> None:
    extract = tp.features.load("cairn", max_keypoints=512)
    ours, theirs = (tp.matchers.load(name, "cairn") for name in ("lightglue", f"lightglue@{folder}"))
    for pair in PAIRS:
        a, b = (extract(small_pairs / "viewpoint" / "images" / name) for name in pair)
        for first, second in ((a, b), (b, a.select(torch.arange(301)))):
            wanted, found = ours(first, second), theirs(first, second)
            np.testing.assert_array_equal(found.indices, wanted.indices)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
            np.testing.assert_array_equal(found.prune_layer0, wanted.prune_layer0)
            assert (found.stop_layer, found.overlaps) == (wanted.stop_layer, wanted.overlaps)
    assert len(wanted) == 0 or not wanted.overlaps, "the last pair does not overlap"


def test_bfloat16_finds_nearly_the_same(folders: dict[str, Path], small_pairs: Path) -> None:
    extract = tp.features.load("cairn", max_keypoints=512)
    exact, reduced = (tp.matchers.load(f"lightglue@{folders[name]}", "cairn") for name in ("openvino", "bfloat16"))
    common = total = 0
    for name in ("ruins", "paris", "wall"):
        pair = [extract(small_pairs / "viewpoint" / "images" / f"{name}{end}.webp") for end in ("", "-viewpoint")]
        wanted, found = exact(*pair), reduced(*pair)
        a, b = ({tuple(match) for match in matches.indices.tolist()} for matches in (wanted, found))
        common, total = common + len(a & b), total + len(a | b)
        if "BF16" in openvino_abilities():
            assert not np.array_equal(wanted.matchability0, found.matchability0), "computed in float32"
    assert common >= 0.97 * total > 500


def openvino_abilities() -> list[str]:
    return list(run.import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def test_numbers_of_float16_are_kept_as_such(folders: dict[str, Path], tmp_path: Path) -> None:
    """The bundled weights are float16: half the bytes. Others keep all their bits."""
    import onnx

    weights = sum(values.nbytes for values in tp.weights.load("cairn-lightglue")[0].values())
    assert sum(path.stat().st_size for path in folders["onnx"].glob("layer*")) < 0.7 * weights
    model = onnx.load(folders["onnx"] / "layer0.onnx")
    floats = torch.randn(20, 20).numpy()
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([onnx.numpy_helper.from_array(floats, "mine")])
    write._halve(model)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), floats)


def test_no_keypoints_and_few(folder: Path, small_pairs: Path) -> None:
    extract, matcher = (
        tp.features.load(f"cairn@{folder}", max_keypoints=300),
        tp.matchers.load(f"lightglue@{folder}", "cairn"),
    )
    black = extract.with_options(detection_threshold=1.0)(np.zeros((97, 130, 3), np.uint8))
    some = extract(small_pairs / "viewpoint" / "images" / "ruins.webp")
    assert len(black) == 0 and len(some) == 300
    assert len(matcher(black, some)) == len(matcher(some.select(torch.arange(1)), some)) == 0
    two = matcher(some.select(torch.tensor([7, 40])), some)
    assert {tuple(pair) for pair in two.indices.tolist()} <= {(0, 7), (1, 40)}


def test_masks_hold_and_given_keypoints_are_described(folders: dict[str, Path], small_pairs: Path) -> None:
    image = tp.read_image(small_pairs / "viewpoint" / "images" / "ruins.webp")
    mask = np.zeros(image.pixels.shape[:2], np.uint8)
    mask[:, : mask.shape[1] // 2] = 255
    ours, theirs = (tp.features.load(name, max_keypoints=200) for name in ("cairn", f"cairn@{folders['onnx']}"))
    masked, wanted = theirs(image, mask), ours(image, mask)
    assert len(masked) == len(wanted) > 100 and (masked.keypoints[:, 0] < mask.shape[1] / 2).all()
    described = theirs.describe(image, wanted)
    torch.testing.assert_close(described.descriptors, ours.describe(image, wanted).descriptors, atol=0.01, rtol=0)


def test_match_takes_the_folder(folders: dict[str, Path], small_pairs: Path, tiepoint: Any) -> None:
    a, b = (small_pairs / "viewpoint" / "images" / name for name in PAIRS[0])
    folder = folders["onnx"]
    found = tiepoint("match", a, b, "-f", f"cairn@{folder}", "-k", 300, "--json")
    assert found.code == 0, found.err
    summary = json.loads(found.out)
    wanted = tp.match(a, b, f"cairn@{folder}", "lightglue", max_keypoints=300)
    assert summary["matches"] == len(wanted) > 50
    assert summary["choice"].startswith(f"cairn@{folder} + lightglue@{folder}")


def test_the_folder_runs_without_tiepoint_and_torch(folders: dict[str, Path], small_pairs: Path) -> None:
    a, b = (small_pairs / "viewpoint" / "images" / name for name in PAIRS[0])
    code = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['tiepoint'] = None; "
        f"sys.argv = ['run.py', {str(a)!r}, {str(b)!r}]; "
        f"runpy.run_path({str(folders['onnx'] / 'run.py')!r}, run_name='__main__')"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = np.array([[float(number) for number in line.split()] for line in printed.splitlines()])
    extract = tp.features.load(f"cairn@{folders['onnx']}", long_side=1024)
    wanted = tp.matchers.load(f"lightglue@{folders['onnx']}", "cairn")(extract(a), extract(b))
    ends = np.concatenate([wanted.points0, wanted.points1], 1)
    near = np.abs(found[:, None, :4] - ends).max(2).min(1) < 0.02
    assert len(found) == pytest.approx(len(ends), rel=0.02) and near.mean() > 0.98


def test_the_runtime_needs_no_torch(folders: dict[str, Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from tiepoint.runtimes import open_exported; "
        f"one = open_exported({str(folders['onnx'])!r}, threads=1); "
        "print(one.extract(np.zeros((50, 60, 3), np.uint8), detection_threshold=1.0).descriptors.shape)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "(0, 128)\n"
    )


def test_openvino_reports_to_nobody(folders: dict[str, Path], tmp_path: Path) -> None:
    """By itself it tells its makers of every import, and leaves an identity in the user's home."""
    code = (
        "import sys; import numpy as np; from tiepoint.runtimes import open_exported; "
        f"open_exported({str(folders['openvino'])!r}, threads=1); "
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "True False\n"
    assert not list(tmp_path.iterdir())


def test_the_manifest_says_what_a_program_needs(folders: dict[str, Path]) -> None:
    """Names and shapes are those of the files themselves; the licences are the registry's."""
    import onnx

    folder = folders["onnx"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for part, name in (("extractor", "cairn"), ("matcher", "cairn-lightglue")):
        entry = tp.weights.entries()[name]
        assert (manifest[part]["licence"], manifest[part]["commercial"]) == (entry.licence, True)
        assert manifest[part]["weights_sha256"] == entry.sha256
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["files"]}
    kinds = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    for graph in manifest["graphs"].values():
        model = onnx.load(folder / graph["file"])
        onnx.checker.check_model(model)
        assert str(Path(tp.__file__).parent).encode() not in (folder / graph["file"]).read_bytes()
        for ports, real in ((graph["inputs"], model.graph.input), (graph["outputs"], model.graph.output)):
            assert [port["name"] for port in ports] == [one.name for one in real]
            for port, one in zip(ports, real, strict=True):
                tensor = one.type.tensor_type
                assert tensor.elem_type == kinds[port["type"]] and port["meaning"]
                for wanted, axis in zip(port["shape"], tensor.shape.dim, strict=True):
                    assert isinstance(wanted, str) == (not axis.HasField("dim_value")), (port, axis)
                    assert isinstance(wanted, str) or axis.dim_value == wanted


# What is refused.


def test_a_folder_that_is_not_whole_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no manifest\.json"):
        open_exported(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(folders["onnx"], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "layer2.onnx").unlink()
    with pytest.raises(WeightsError, match=r"layer2\.onnx is missing.*export it again"):
        tp.matchers.load(f"lightglue@{folder}", "cairn")
    shutil.copy(folder / "layer1.onnx", folder / "layer2.onnx")
    with pytest.raises(WeightsError, match=r"layer2\.onnx has changed"):
        tp.features.load(f"cairn@{folder}")
    for text, message in (
        (json.dumps({**manifest, "format": 99}), "format 99"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({**manifest, "runtime": "tensorrt"}), "runtime"),
        (json.dumps({**manifest, "precision": "int8"}), "precision"),
        (json.dumps({"format": 1, "files": {}, "runtime": "onnx", "precision": "float32"}), "cannot be read"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            open_exported(folder)


@pytest.mark.parametrize(("runtime", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_runtime_is_named(
    folders: dict[str, Path], runtime: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'tiepoint\[{runtime}\]'"):
        open_exported(folders[runtime])


@pytest.mark.parametrize(
    ("package", "to", "extra"), [("onnxscript", "onnx", "export"), ("openvino", "openvino", "openvino")]
)
def test_what_exporting_lacks_is_named(
    package: str, to: write.Runtime, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'tiepoint\[{extra}\]'"):
        tp.export("cairn+lightglue", tmp_path / "new", to)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "abacus", torch.device("meta")])
def test_other_devices_are_refused(device: Any, folders: dict[str, Path]) -> None:
    for load, name in ((tp.features.load, "cairn"), (partial(tp.matchers.load, features="cairn"), "lightglue")):
        with pytest.raises(ArgumentError, match=rf"runs on the CPU only, not on '{device}'"):
            load(f"{name}@{folders['onnx']}", device=device)


def test_where_there_is_a_gpu_an_export_runs_on_the_cpu(
    folders: dict[str, Path], small_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device nobody has chosen is the GPU for networks of PyTorch, and the CPU for exported ones."""
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("meta"))
    a, b = (small_pairs / "viewpoint" / "images" / name for name in PAIRS[0])
    name = f"cairn@{folders['onnx']}"
    assert len(tp.match(a, b, name, max_keypoints=200)) > 20
    assert [
        extractor.device.type for extractor in (tp.features.load(name, "auto"), tp.features.load("sift", None))
    ] == [
        "cpu",
        "meta",
    ]
    assert list(tp.extract([a], features=name, max_keypoints=50).keypoints.values()) == [50]


def test_other_models_and_folders_in_use_are_refused(folders: dict[str, Path], tmp_path: Path, tiepoint: Any) -> None:
    for model in ("sift+lightglue", "cairn", "lightglue+cairn", "cairn+nearest"):
        with pytest.raises(ArgumentError, match=r"cairn\+lightglue can be exported"):
            tp.export(model, tmp_path / "new")
    with pytest.raises(ArgumentError, match="not to 'tflite'"):
        tp.export("cairn+lightglue", tmp_path / "new", "tflite")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="not 'float64'"):
        tp.export("cairn+lightglue", tmp_path / "new", precision="float64")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="onnx is exported in float32, not in bfloat16"):
        tp.export("cairn+lightglue", tmp_path / "new", precision="bfloat16")
    ran = tiepoint("export", "cairn+lightglue", "-o", tmp_path / "new", "--precision", "bfloat16")
    assert ran.code == 2 and "onnx is exported in float32, not in bfloat16" in ran.err
    with pytest.raises(ArgumentError, match="exported already"):
        tp.export(f"cairn@{folders['onnx']}+lightglue", tmp_path / "new")
    with pytest.raises(ArgumentError, match="only cairn is run"):
        tp.features.load(f"sift@{folders['onnx']}")
    with pytest.raises(ArgumentError, match="only lightglue is run"):
        tp.matchers.load(f"superglue@{folders['onnx']}", "superpoint")
    mine = tmp_path / "mine"
    mine.mkdir()
    PIL.Image.new("L", (9, 9)).save(mine / "photo.png")
    ran = tiepoint("export", "cairn+lightglue", "-o", mine)
    assert ran.code == 2 and "holds files that are no export" in ran.err
    assert [path.name for path in mine.iterdir()] == ["photo.png"]
