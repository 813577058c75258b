"""Readers of posed photographs, on small data sets made here: a painted wall, seen by three cameras.

The wall is the plane z = 4 + x / 4 of the world, and its paint is its coordinates: red is linear in x, green
in y. Lifting every pixel of what a reader returns must give points on the plane of the right colour; half a
pixel of offset, a swapped pose or a wrong unit of depth shifts one or the other.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from scipy.spatial.transform import Rotation

from tiepoint.errors import InputError
from tiepoint.training.data.depth_maps import read_depth
from tiepoint.training.data.ground_truth import from_depth
from tiepoint.training.data.posed import PosedPair, View, overlap_matrix
from tiepoint.training.data.posed_datasets import colmap_views, megadepth_views, seven_scenes_views, tum_views

SIZE = (96, 72)
K = np.array([[80.0, 0, 47.0], [0, 82, 36], [0, 0, 1]])
POSES = [
    (Rotation.from_euler("yxz", angles, degrees=True).as_matrix(), np.array(t))
    for angles, t in (
        ((0, 0, 0), (0.0, 0, 0)),
        ((8, -3, 5), (-0.4, 0.1, 0.2)),
        ((-12, 4, -20), (0.3, 0, -0.5)),
    )
]


def lift(K, R, t, depth=None, size=SIZE, rays=None):
    """Return world points of all pixels, where rays meet the wall or at a given depth, and that depth."""
    if rays is None:
        x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T
    normal, centre = np.array([-0.25, 0, 1]), -R.T @ t
    if depth is None:
        depth = (4 - normal @ centre) / (rays @ R @ normal)
    return rays * depth[..., None] @ R + centre, depth


def paint(world):
    return np.clip(np.stack([128 + 45 * world[..., 0], 128 + 45 * world[..., 1], 0 * world[..., 0]], -1), 0, 255)


def picture(world):
    return PIL.Image.fromarray(np.round(paint(world)).astype(np.uint8))


def check(view: View, tolerance: float = 2e-3, size=SIZE, long_side=None) -> None:
    image = view.read(long_side)
    assert image.pixels.shape == (size[1], size[0], 3) and image.depth.shape == size[::-1]
    world, _ = lift(image.K, view.R, view.t, image.depth, size)
    measured = image.depth > 0
    assert measured.mean() > 0.8
    assert abs(world[..., 2] - 4 - world[..., 0] / 4)[measured].max() < tolerance
    # Where nothing is clipped; one pixel is about 2.2 steps of colour.
    expected = paint(world)
    inside = measured & (expected[..., :2] > 3).all(-1) & (expected[..., :2] < 252).all(-1)
    error = (image.pixels - expected)[inside][:, :2]
    assert abs(error.mean(0)).max() < 0.25 and abs(error).max() < 2


def check_all(views: list[View], **options) -> None:
    assert len(views) == len(POSES)
    for view, (R, t) in zip(views, POSES, strict=True):
        np.testing.assert_allclose(view.R, R, atol=1e-6)
        np.testing.assert_allclose(view.t, t, atol=1e-6)
        check(view, **options)


def write_colmap_depth(path: Path, depth) -> None:
    height, width = depth.shape
    path.write_bytes(f"{width}&{height}&1&".encode() + struct.pack(f"<{depth.size}f", *depth.ravel()))


def write_model(folder: Path, names, camera: str) -> None:
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"1 {camera}\n")
    (folder / "points3D.txt").write_text("")
    lines = []
    for i, (name, (R, t)) in enumerate(zip(names, POSES, strict=True), 1):
        x, y, z, w = Rotation.from_matrix(R).as_quat()
        lines += [" ".join(map(str, (i, w, x, y, z, *t, 1, name))), ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def colmap(tmp_path):
    """A dense workspace in COLMAP's layout; COLMAP's principal point is half a pixel larger than ours."""
    names = ["a/0.png", "a/1.png", "b.png"]
    write_model(tmp_path / "sparse", names, f"PINHOLE 96 72 {K[0, 0]} {K[1, 1]} {K[0, 2] + 0.5} {K[1, 2] + 0.5}")
    for name, (R, t) in zip(names, POSES, strict=True):
        world, depth = lift(K, R, t)
        for folder in ("images", "depths"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(world).save(tmp_path / "images" / name)
        write_colmap_depth(tmp_path / "depths" / f"{name}.geometric.bin", depth.astype(np.float32))
    return tmp_path


def test_colmap(colmap):
    pytest.importorskip("pycolmap")
    check_all(colmap_views(colmap / "sparse", colmap / "images", colmap / "depths"))


def test_colmap_binary_model(colmap):
    pycolmap = pytest.importorskip("pycolmap")
    (colmap / "binary").mkdir()
    pycolmap.Reconstruction(str(colmap / "sparse")).write_binary(str(colmap / "binary"))
    check_all(colmap_views(colmap / "binary", colmap / "images", colmap / "depths"))


@pytest.mark.parametrize("kind", ["npy", "h5", "photometric.bin"])
def test_colmap_with_other_depth_maps(colmap, kind):
    pytest.importorskip("pycolmap")
    for path in (colmap / "depths").rglob("*.geometric.bin"):
        depth = read_depth(path)
        name = path.name.removesuffix(".png.geometric.bin")
        if kind == "npy":
            np.save(path.with_name(f"{name}.npy"), depth)
        elif kind == "h5":
            with pytest.importorskip("h5py").File(path.with_name(f"{name}.png.h5"), "w") as file:
                file["depth"] = depth
        else:
            write_colmap_depth(path.with_name(f"{name}.png.photometric.bin"), depth)
        path.unlink()
    check_all(colmap_views(colmap / "sparse", colmap / "images", colmap / "depths"))


def test_images_without_depth_are_left_out_and_distortion_is_refused(colmap):
    pytest.importorskip("pycolmap")
    (colmap / "depths/b.png.geometric.bin").unlink()
    (colmap / "images/a/1.png").unlink()
    views = colmap_views(colmap / "sparse", colmap / "images", colmap / "depths")
    assert [view.image.name for view in views] == ["0.png"]
    with pytest.raises(InputError, match="none of its images"):
        colmap_views(colmap / "sparse", colmap / "nowhere", colmap / "depths")
    with pytest.raises(InputError, match="no COLMAP model"):
        colmap_views(colmap / "images", colmap / "images", colmap / "depths")
    write_model(colmap / "bent", ["a/0.png", "a/1.png", "b.png"], "SIMPLE_RADIAL 96 72 80 48 36 0.1")
    with pytest.raises(InputError, match="image_undistorter"):
        colmap_views(colmap / "bent", colmap / "images", colmap / "depths")


@pytest.mark.parametrize("shrink", [1, 2])
def test_megadepth(tmp_path, shrink):
    """The photographs are undistorted by COLMAP itself, from pictures drawn with a distorted camera."""
    pycolmap, h5py = pytest.importorskip("pycolmap"), pytest.importorskip("h5py")
    model = tmp_path / "MegaDepth_v1_SfM/0015/sparse/manhattan/0"
    names = ["0.png", "1.png", "2.png"]
    write_model(model, names, "SIMPLE_RADIAL 200 150 160 100 75 -0.12")
    camera = next(iter(pycolmap.Reconstruction(str(model)).cameras.values()))
    x, y = np.meshgrid(np.arange(200) + 0.5, np.arange(150) + 0.5)
    rays = np.asarray(camera.cam_from_img(np.stack([x.ravel(), y.ravel()], -1))).reshape(150, 200, -1)
    rays = np.concatenate([rays[..., :2], np.ones((150, 200, 1))], -1)
    (tmp_path / "raw").mkdir()
    for name, (R, t) in zip(names, POSES, strict=True):
        picture(lift(None, R, t, rays=rays)[0]).save(tmp_path / "raw" / name)
    pycolmap.undistort_images(str(tmp_path / "flat"), str(model), str(tmp_path / "raw"))
    straight = next(iter(pycolmap.Reconstruction(str(tmp_path / "flat/sparse")).cameras.values()))

    dense = tmp_path / "phoenix/S6/zl548/MegaDepth_v1/0015/dense0"
    (dense / "imgs").mkdir(parents=True)
    (dense / "depths").mkdir()
    size = (straight.width // shrink, straight.height // shrink)
    flat_K = np.array(straight.calibration_matrix())
    flat_K[:2] *= np.array([[size[0] / straight.width], [size[1] / straight.height]])
    flat_K[:2, 2] -= 0.5
    for i, (R, t) in enumerate(POSES):
        image = PIL.Image.open(tmp_path / "flat/images" / names[i])
        image.resize(size, PIL.Image.Resampling.LANCZOS).save(dense / "imgs" / names[i])
        depth = lift(flat_K, R, t, size=size)[1]
        with h5py.File(dense / f"depths/{i}.h5", "w") as file:
            file["depth"] = depth if i < 2 else -depth  # the last one is ordinal
    (views,) = megadepth_views(tmp_path, "0015")
    assert len(views) == 3
    # The border of COLMAP's undistorted pictures may be black by a pixel.
    for view in views[:2]:
        check_interior(view, size)
    assert (views[2].read().depth == 0).all()
    PIL.Image.new("RGB", (size[0], size[1] // 2)).save(dense / "imgs/1.png")
    with pytest.warns(UserWarning, match=r"1 images left out.*1\.png"):
        assert len(megadepth_views(tmp_path, "0015")[0]) == 2
    with pytest.raises(InputError, match="MegaDepth"):
        megadepth_views(tmp_path, "0016")


def check_interior(view: View, size) -> None:
    image = view.read()
    world, _ = lift(image.K, view.R, view.t, image.depth, size)
    error = (image.pixels - paint(world))[4:-4, 4:-4, :2]
    inside = (abs(paint(world)[4:-4, 4:-4, :2] - 128) < 115).all(-1)
    assert inside.mean() > 0.5
    # One pixel is 1.1 steps of colour, or 2.2 when shrunk.
    assert abs(error[inside].mean(0)).max() < 0.2


def test_seven_scenes(tmp_path):
    """640 x 480; depth from a camera of longer focal length at the same place, in millimetres."""
    size, colour_K = (640, 480), np.array([[525.0, 0, 320], [0, 525, 240], [0, 0, 1]])
    depth_K = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
    for i, (R, t) in enumerate(POSES):
        picture(lift(colour_K, R, t, size=size)[0]).save(tmp_path / f"frame-{i:06}.color.png")
        depth = np.round(1000 * lift(depth_K, R, t, size=size)[1]).astype(np.uint16)
        depth[:20] = 65535
        PIL.Image.fromarray(depth).save(tmp_path / f"frame-{i:06}.depth.png")
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = R.T, -R.T @ t
        np.savetxt(tmp_path / f"frame-{i:06}.pose.txt", pose)
    np.savetxt(tmp_path / "frame-000003.pose.txt", np.full((4, 4), -np.inf))  # tracking was lost
    views = seven_scenes_views(tmp_path)
    # The depth camera sees less: the frame of the colour picture has no depth.
    image = views[0].read()
    assert image.depth[240, 20] == 0 and image.depth[240, 40] > 0
    assert image.depth[35, 320] == 0 and image.depth[50, 320] > 0  # what was 65535
    # Sampling costs half a pixel of the wall's slope: a millimetre or so, beside the half of rounding.
    for view, (R, t) in zip(views, POSES, strict=True):
        np.testing.assert_allclose(view.R, R, atol=1e-6)
        np.testing.assert_allclose(view.t, t, atol=1e-6)
        image = view.read(160)
        world, _ = lift(image.K, view.R, view.t, image.depth, (160, 120))
        measured = image.depth > 0
        assert 0.6 < measured.mean() < 0.85
        assert abs(world[..., 2] - 4 - world[..., 0] / 4)[measured].max() < 0.01
    (tmp_path / "frame-000000.pose.txt").write_text("1 0 0")
    with pytest.raises(InputError, match=r"frame-000000.pose.txt.*16 numbers"):
        seven_scenes_views(tmp_path)


def test_tum(tmp_path):
    """Depth and poses are stamped a little off the pictures; one picture has no pose in time."""
    for folder in ("rgb", "depth"):
        (tmp_path / folder).mkdir()
    rgb, depths, truth = (
        ["# timestamp filename"],
        ["# timestamp filename"],
        ["# timestamp tx ty tz qx qy qz qw"],
    )
    for i, (R, t) in enumerate([*POSES, POSES[0]]):
        world, depth = lift(K, R, t)
        picture(world).save(tmp_path / f"rgb/{i}.png")
        PIL.Image.fromarray(np.round(5000 * depth).astype(np.uint16)).save(tmp_path / f"depth/{i}.png")
        rgb.append(f"{10 + i} rgb/{i}.png")
        depths.append(f"{10 + i + 0.015} depth/{i}.png")
        for offset in (-0.1, 0.008) if i < 3 else ():
            centre = -R.T @ t if offset > 0 else np.ones(3)  # the farther pose in time is wrong
            quaternion = Rotation.from_matrix(R.T).as_quat()
            truth.append(f"{10 + i + offset} " + " ".join(map(str, (*centre, *quaternion))))
    for name, lines in (("rgb", rgb), ("depth", depths), ("groundtruth", truth)):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    check_all(tum_views(tmp_path, (K[0, 0], K[1, 1]), (K[0, 2], K[1, 2])))
    with pytest.raises(InputError, match="no colour image"):
        tum_views(tmp_path, max_time_difference=0.001)
    (tmp_path / "groundtruth.txt").write_text("# x\n10 1 2 3\n")
    with pytest.raises(InputError, match=r"groundtruth.txt, line 2"):
        tum_views(tmp_path)


def made_up_view(folder: Path, i: int, R, t, size=SIZE, depth_size=None) -> View:
    world, depth = lift(K, R, t, size=size)
    picture(world).save(folder / f"{i}.png")
    if depth_size:
        factors = np.array([depth_size[0] / size[0], depth_size[1] / size[1]])
        small_K = K.copy()
        small_K[:2] *= factors[:, None]
        small_K[:2, 2] += (factors - 1) / 2
        depth = lift(small_K, R, t, size=depth_size)[1]
    np.save(folder / f"{i}.npy", depth)
    return View(folder / f"{i}.png", folder / f"{i}.npy", K, R, t)


def test_resizing_keeps_the_geometry(tmp_path):
    view = made_up_view(tmp_path, 0, *POSES[1])
    # Depth is sampled up to half a (stored) pixel off, on a slope of a few centimetres a pixel.
    check(view, 0.03, (48, 36), 48)
    image = view.read(48)
    world, _ = lift(image.K, view.R, view.t, size=(48, 36))
    assert abs((image.pixels - paint(world))[..., :2].mean((0, 1))).max() < 0.2
    assert view.read(1000).pixels.shape == (72, 96, 3)  # never enlarged


def test_depth_maps_of_another_resolution(tmp_path):
    check(made_up_view(tmp_path, 0, *POSES[1], depth_size=(192, 144)), 0.03)
    check(made_up_view(tmp_path, 0, *POSES[1], depth_size=(48, 36)), 0.05)
    view = made_up_view(tmp_path, 0, *POSES[1])
    np.save(view.depth, np.ones((72, 72)))
    with pytest.raises(InputError, match="proportions"):
        view.read()


def test_pairs_feed_the_ground_truth(tmp_path):
    """The relative pose of a pair is what `from_depth` expects: a grid finds itself again on the wall."""
    import torch

    pair = PosedPair(*(made_up_view(tmp_path, i, *POSES[i]) for i in (2, 1)))
    images = pair.view0.read(), pair.view1.read()
    grid = np.stack(np.meshgrid(np.arange(8, 90, 8), np.arange(8, 66, 8)), -1).reshape(-1, 2)
    world, _ = lift(K, *POSES[2])
    there = (world[grid[:, 1], grid[:, 0]] @ POSES[1][0].T + POSES[1][1]) @ K.T
    there = there[:, :2] / there[:, 2:]
    inside = ((there > 1) & (there < np.array(SIZE) - 2)).all(1)
    assert 30 < inside.sum() < len(grid)
    arrays = (grid, there, images[0].depth, images[1].depth, images[0].K, images[1].K, pair.R, pair.t)
    labels = from_depth(*(torch.tensor(np.asarray(a), dtype=torch.float32)[None] for a in arrays), positive=0.5)
    assert (labels.matches0[0, inside] == torch.arange(len(grid))[inside]).all()
    outside = ((there < -0.5) | (there >= np.array(SIZE) - 0.5)).any(1)
    assert outside.any() and (labels.matches0[0, outside] < 0).all()


def exact_overlap(views) -> float:
    """All pixels, exact depth: the wall is the only surface, so what is inside is seen."""
    shares = []
    for a, b in ((0, 1), (1, 0)):
        world, _ = lift(K, views[a].R, views[a].t)
        pixels = (world @ views[b].R.T + views[b].t) @ K.T
        pixels = pixels[..., :2] / pixels[..., 2:]
        shares.append(((pixels >= -0.5) & (pixels < np.array(SIZE) - 0.5)).all(-1).mean())
    return min(shares)


def test_overlap(tmp_path):
    poses = [*POSES, (Rotation.from_euler("y", 180, degrees=True).as_matrix(), np.zeros(3))]
    views = [made_up_view(tmp_path, i, *pose) for i, pose in enumerate(poses)]
    overlaps = overlap_matrix(views)
    assert np.array_equal(overlaps, overlaps.T)
    np.testing.assert_allclose(np.diag(overlaps)[:3], 1)
    assert (overlaps[3, :3] == 0).all()  # it looks the other way
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert overlaps[i, j] == pytest.approx(exact_overlap([views[i], views[j]]), abs=0.06)
    # A screen at depth 1 before the left half of view 1 hides what lies behind.
    depth = np.load(views[1].depth)
    depth[:, :48] = 1
    np.save(views[1].depth, depth)
    assert overlap_matrix(views)[0, 1] < 0.65 * overlaps[0, 1]
    assert overlap_matrix([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.bin", b"3&2&1&abc"),
        ("a.bin", b"nonsense"),
        ("a.bin", b"1&1&3&" + bytes(12)),
        ("a.npy", b""),
        ("a.h5", b"no"),
        ("a.png", b"no"),
        ("a.exr", b"no"),
    ],
)
def test_damaged_depth_maps_name_the_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(name)):
        read_depth(tmp_path / name)


@pytest.mark.parametrize("kind", ["huge", "external", "linked", "virtual", "text", "missing", "scalar"])
def test_hdf5_depth_maps_are_not_believed(tmp_path, kind):
    import h5py

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if kind == "huge":  # a kilobyte that claims 36 TB
            file.create_dataset("depth", shape=(3_000_000, 3_000_000), dtype="f4", chunks=(64, 64))
        elif kind == "external":
            file.create_dataset("depth", shape=(2, 3), dtype="u1", external=[("/etc/passwd", 0, 6)])
        elif kind == "linked":
            file["depth"] = h5py.ExternalLink("/etc/passwd", "depth")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=(2, 3), dtype="f4")
            layout[:] = h5py.VirtualSource("/etc/passwd", "depth", shape=(2, 3))
            file.create_virtual_dataset("depth", layout)
        elif kind == "text":
            file["depth"] = np.array([[b"x"] * 3] * 2)
        elif kind == "scalar":
            file["depth"] = 3.0
        else:
            file["disparity"] = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match=r"a\.h5: "):
        read_depth(path)


def test_no_pickle(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy"):
        read_depth(tmp_path / "a.npy")
    PIL.Image.new("RGB", (3, 3)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="16-bit"):
        read_depth(tmp_path / "b.png")
    for suffix in (".bin", ".npy", ".h5", ".png"):
        with pytest.raises(InputError, match="missing"):
            read_depth(tmp_path / f"missing{suffix}")


def test_overlap_on_real_depth(data_dir):
    """On 7-Scenes it agrees with the overlap that came with the pairs, counted over every pixel."""
    import json

    folder = data_dir / "eval/7scenes"
    meta = json.loads((folder / "pairs.json").read_text())
    for pair in meta["pairs"][:4]:
        views = [
            View(
                folder / pair[f"image{side}"],
                folder / pair[f"depth{side}"],
                np.array(pair[f"K{side}"]),
                *((np.eye(3), np.zeros(3)), (np.array(pair["R"]), np.array(pair["t"])))[side],
                K_depth=np.array(meta["K_depth"]),
                depth_unit=1e-3,
            )
            for side in (0, 1)
        ]
        assert overlap_matrix(views)[0, 1] == pytest.approx(pair["overlap"], abs=0.1)
