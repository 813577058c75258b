"""Labels against cases worked by hand, against brute force, and against the symmetries they must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiepoint.errors import ArgumentError
from tiepoint.training.data.ground_truth import IGNORED, UNMATCHABLE, Labels, from_depth, from_homography

X, Q = UNMATCHABLE, IGNORED
SIZE = torch.tensor([[100, 80]])
IDENTITY = torch.eye(3)[None]
K = torch.tensor([[[100.0, 0, 49.5], [0, 100, 39.5], [0, 0, 1]]])


def points(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float32).reshape(1, -1, 2)


def shift(dx: float, dy: float = 0) -> torch.Tensor:
    return torch.tensor([[[1.0, 0, dx], [0, 1, dy], [0, 0, 1]]])


def check_consistent(labels: Labels) -> None:
    for a, b in ((labels.matches0, labels.matches1), (labels.matches1, labels.matches0)):
        for pair, i in zip(*torch.nonzero(a >= 0, as_tuple=True), strict=True):
            assert b[pair, a[pair, i]] == i
    assert (labels.matches0 >= IGNORED).all() and (labels.matches1 >= IGNORED).all()


# --- homographies


def test_homography_bands():
    # Errors of 0, 2.9, 4 and 6 px: matched, matched, ignored, unmatchable.
    labels = from_homography(
        points((10, 10), (10, 30), (10, 50), (10, 70)),
        points((30, 10), (32.9, 30), (34, 50), (36, 70)),
        shift(20),
        SIZE,
        SIZE,
    )
    assert labels.matches0.tolist() == [[0, 1, Q, X]]
    assert labels.matches1.tolist() == [[0, 1, Q, X]]


def test_homography_nearest_must_be_mutual():
    # Both points of image 0 lie within 3 px of the one in image 1; the nearer wins, the other is ignored.
    labels = from_homography(points((10, 10), (12, 10)), points((11.5, 10)), IDENTITY, SIZE, SIZE)
    assert labels.matches0.tolist() == [[Q, 0]]
    assert labels.matches1.tolist() == [[1]]


def test_homography_threshold_holds_in_both_images():
    # Image 1 is four times as large: 2 px in image 0 are 8 px in image 1, which is no match. Seen from image
    # 0 that proves it unmatchable; seen from image 1 the error is 2 px, which proves nothing.
    H = torch.tensor([[[4.0, 0, 0], [0, 4, 0], [0, 0, 1]]])
    labels = from_homography(points((10, 10)), points((48, 40)), H, SIZE, SIZE)
    assert (labels.matches0.tolist(), labels.matches1.tolist()) == ([[X]], [[Q]])


@pytest.mark.parametrize(
    ("x", "neighbour", "expected"),
    [
        (99.4, 98.0, (0, 0)),  # on the last pixel
        (99.6, 98.0, (Q, Q)),  # just outside: no match, and a keypoint too near to be sure
        (99.6, 90.0, (X, X)),  # just outside, nothing near
        (110.0, 98.0, (X, X)),  # far outside
    ],
)
def test_homography_border(x, neighbour, expected):
    labels = from_homography(points((x - 40, 10)), points((neighbour, 10)), shift(40), SIZE, SIZE)
    assert (labels.matches0.item(), labels.matches1.item()) == expected


def test_homography_behind_the_camera():
    # w = 1 - x / 50: points beyond x = 50 lie behind camera 1 and come out inside the picture all the same.
    H = torch.tensor([[[-1.0, 0, 100], [0, -1, 80], [-0.02, 0, 1]]])
    H[:, :2] *= 0.5
    w = 1 - 0.02 * 70
    mapped = (0.5 * (100 - 70) / w, 0.5 * (80 - 60) / w)
    far = torch.tensor([[1000, 1000]])
    assert mapped[0] < 0  # behind: on the other side
    labels = from_homography(points((70, 60)), points((0, 0)), H, far, far)
    assert labels.matches0.tolist() == [[X]]


def test_homography_scale_and_sign_do_not_matter():
    H = torch.tensor([[[1.1, 0.2, 3], [-0.1, 0.9, 5], [1e-3, -5e-4, 1]]])
    rng = np.random.default_rng(0)
    points0 = torch.tensor(rng.uniform(0, 80, (1, 60, 2)), dtype=torch.float32)
    points1 = torch.tensor(rng.uniform(0, 80, (1, 60, 2)), dtype=torch.float32)
    expected = from_homography(points0, points1, H, SIZE, SIZE)
    assert (expected.matches0 >= 0).any() and (expected.matches0 == X).any()
    for factor in (-1.0, 1e-6, -1e6):
        labels = from_homography(points0, points1, H * factor, SIZE, SIZE)
        assert torch.equal(labels.matches0, expected.matches0)
        assert torch.equal(labels.matches1, expected.matches1)


def random_homography(rng: np.random.Generator) -> np.ndarray:
    angle, scale = rng.uniform(-3, 3), rng.uniform(0.5, 2)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    move = np.array([[1, 0, 50 + rng.normal(0, 10)], [0, 1, 40 + rng.normal(0, 10)], [0, 0, 1]])
    return (
        move
        @ np.array([[c, -s, 0], [s, c, 0], [*rng.normal(0, 2e-3, 2), 1]])
        @ np.array([[1, 0, -50], [0, 1, -40], [0, 0, 1.0]])
    )


def brute_force(points0, points1, H, size, positive=3.0, negative=5.0):
    """The definition, in loops and double precision."""

    def carry(H, p):
        x = H @ [*p, 1]
        return x[:2] / x[2] if x[2] > 0 else np.full(2, np.inf)

    def inside(p):
        return (p >= -0.5).all() and (p < np.array(size) - 0.5).all()

    mapped0 = [carry(H, p) for p in points0]
    mapped1 = [carry(np.linalg.inv(H), p) for p in points1]
    e0 = np.array([[np.linalg.norm(a - p) for p in points1] for a in mapped0])
    e1 = np.array([[np.linalg.norm(a - p) for a in mapped1] for p in points0])
    both = np.maximum(e0, e1)
    both[[not inside(p) for p in mapped0]] = np.inf
    both[:, [not inside(p) for p in mapped1]] = np.inf
    matches0 = np.where(e0.min(1) > negative, X, Q)
    matches1 = np.where(e1.min(0) > negative, X, Q)
    for i in range(len(points0)):
        j = both[i].argmin()
        if both[i, j] <= positive and both[:, j].argmin() == i:
            matches0[i], matches1[j] = j, i
    return matches0, matches1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_homography_equals_brute_force_and_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    H = np.stack([random_homography(rng) for _ in range(2)])
    points0 = rng.uniform(0, 79, (2, 30, 2))
    points1 = rng.uniform(0, 79, (2, 25, 2))
    labels = from_homography(*(torch.tensor(a, dtype=torch.float32) for a in (points0, points1, H)), SIZE, SIZE)
    check_consistent(labels)
    for b in range(2):
        matches0, matches1 = brute_force(points0[b], points1[b], H[b], (100, 80))
        assert labels.matches0[b].tolist() == matches0.tolist()
        assert labels.matches1[b].tolist() == matches1.tolist()
    swapped = from_homography(
        *(torch.tensor(a, dtype=torch.float32) for a in (points1, points0, np.linalg.inv(H))), SIZE, SIZE
    )
    assert torch.equal(swapped.matches0, labels.matches1)
    assert torch.equal(swapped.matches1, labels.matches0)


def test_padding_is_ignored_and_has_no_influence():
    points0, points1 = points((10, 10), (50, 50), (11, 10)), points((10, 10), (50, 51))
    valid0, valid1 = torch.tensor([[True, True, False]]), torch.tensor([[True, False]])
    labels = from_homography(points0, points1, IDENTITY, SIZE, SIZE, valid0, valid1)
    assert labels.matches0.tolist() == [[0, X, Q]]
    assert labels.matches1.tolist() == [[0, Q]]
    flat = torch.full((1, 80, 100), 2.0)
    t = torch.tensor([[1e-6, 0, 0]])
    labels = from_depth(points0, points1, flat, flat, K, K, IDENTITY, t, valid0=valid0, valid1=valid1)
    assert labels.matches0.tolist() == [[0, X, Q]]
    assert labels.matches1.tolist() == [[0, Q]]


def test_an_image_without_keypoints():
    nothing = torch.zeros(1, 0, 2)
    labels = from_homography(points((10, 10)), nothing, IDENTITY, SIZE, SIZE)
    assert labels.matches0.tolist() == [[X]] and labels.matches1.shape == (1, 0)
    flat = torch.full((1, 80, 100), 2.0)
    labels = from_depth(nothing, points((10, 10)), flat, flat, K, K, IDENTITY, torch.ones(1, 3))
    assert labels.matches1.tolist() == [[X]] and labels.matches0.shape == (1, 0)


@pytest.mark.parametrize("change", [{"H": torch.eye(3)}, {"positive": 6.0}, {"valid0": torch.ones(1, 5).bool()}])
def test_wrong_arguments(change):
    arguments = {"keypoints0": points((1, 1)), "keypoints1": points((1, 1)), "H": IDENTITY, "size0": SIZE}
    with pytest.raises(ArgumentError):
        from_homography(**{**arguments, "size1": SIZE, **change})


# --- depth and pose. Camera 1 stands 1 to the right of camera 0 (t = -1): a point at depth z moves 100 / z px
# left.

RIGHT = torch.tensor([[-1.0, 0, 0]])


def wall(z: float) -> torch.Tensor:
    return torch.full((1, 80, 100), z)


def with_box(background: float, z: float, columns: slice) -> torch.Tensor:
    depth = wall(background)
    depth[:, 20:60, columns] = z
    return depth


def label(points0, points1, depth0, depth1, t=RIGHT, **options):
    labels = from_depth(points0, points1, depth0, depth1, K, K, IDENTITY, t, **options)
    check_consistent(labels)
    # Exchange of the images exchanges the labels.
    swapped = from_depth(points1, points0, depth1, depth0, K, K, IDENTITY, -t, **options)
    assert torch.equal(swapped.matches0, labels.matches1)
    assert torch.equal(swapped.matches1, labels.matches0)
    return labels.matches0[0].tolist(), labels.matches1[0].tolist()


def test_depth_bands():
    assert label(
        points((70, 10), (70, 30), (70, 50), (70, 70)),
        points((20, 10), (22.9, 30), (24, 50), (26, 70)),
        wall(2),
        wall(2),
    ) == ([0, 1, Q, X], [0, 1, Q, X])


def test_occluded_points_are_unmatchable():
    # A box at depth 1 before a wall at 4 (disparities 100 and 25). It covers columns 30 to 39 of image 1. The
    # point of the wall at x = 60 goes to x = 35, behind the box, where a keypoint of the box lies.
    depth1 = with_box(4, 1, slice(30, 40))
    assert label(points((60, 40)), points((35, 40)), wall(4), depth1) == ([X], [X])
    # A keypoint of the wall beside the box is no match either, though only 2.5 px from it in both images.
    depth1 = with_box(4, 1, slice(30, 37))
    assert label(points((60, 40)), points((37.5, 40)), wall(4), depth1) == ([X], [Q])
    # Without the box it is the match.
    assert label(points((60, 40)), points((35, 40)), wall(4), wall(4)) == ([0], [0])


def test_a_moved_object_is_ignored_not_unmatchable():
    # The box stands at columns 60 to 80 in image 0 (disparity 50). Image 1 shows the wall in its place: it
    # moved, and where to nobody says. Its true partner may be any keypoint.
    depth0 = with_box(4, 2, slice(60, 81))
    assert label(points((70, 40)), points((80, 10)), depth0, wall(4))[0] == [Q]


def test_objects_known_to_have_moved_are_ignored():
    # The box is at columns 60 to 80 of image 0 and, 12 rows lower, at 10 to 30 of image 1: off the epipolar line.
    depth0, depth1 = with_box(4, 2, slice(60, 81)), torch.roll(with_box(4, 2, slice(10, 31)), 12, 1)
    moved0, moved1 = depth0 == 2, depth1 == 2
    i, j = points((70, 40)), points((20, 52))
    assert label(i, j, depth0, depth1) == ([X], [X])
    args = K, K, IDENTITY, RIGHT
    labels = from_depth(i, j, depth0, depth1, *args, moved0=moved0, moved1=moved1)
    assert (labels.matches0.item(), labels.matches1.item()) == (Q, Q)
    # With depth zeroed but nothing said, the epipolar line would exclude it; said of one image, it is kept there alone.
    labels = from_depth(i, j, depth0 * ~moved0, depth1 * ~moved1, *args, moved0=moved0)
    assert (labels.matches0.item(), labels.matches1.item()) == (Q, X)


def test_depth_edges_are_not_interpolated():
    # Keypoints on the edge of the box may belong to either surface: no label by depth, and each lies on the
    # other's epipolar line (row 40), so that does not exclude them either.
    depth0 = with_box(4, 2, slice(60, 81))
    depth1 = with_box(4, 2, slice(10, 31))
    assert label(points((59.5, 40)), points((9.5, 40)), depth0, depth1) == ([Q], [Q])
    # One pixel into the box all is certain: disparity 50.
    assert label(points((61, 40)), points((11, 40)), depth0, depth1) == ([0], [0])


def test_depth_is_interpolated_exactly_on_a_slanted_plane():
    # The plane z = 2 + x: 1/z is linear in the image, z is not. With pixel 1 wide steps the interpolation is
    # exact.
    u = (torch.arange(100.0) - 49.5) / 100
    depth = (2 / (1 - u)).expand(1, 80, 100)
    x = 70.5
    z = 2 / (1 - (x - 49.5) / 100)
    from tiepoint.training.data.ground_truth import _depth_at

    sampled, measured = _depth_at(points((x, 33.25)), depth, 0.05)
    assert measured.item() and sampled.item() == pytest.approx(z, abs=1e-5)


def test_outside_and_behind():
    # x = 20 goes to -30: outside. Then camera 1 stands 3 ahead, beyond the wall at 2: everything is behind
    # it.
    assert label(points((20, 40)), points((90, 40)), wall(2), wall(2)) == ([X], [X])
    ahead = torch.tensor([[0.0, 0, -3]])
    assert label(points((49.5, 39.5)), points((49.5, 39.5)), wall(2), wall(2), ahead)[0] == [X]


def test_epipolar_lines_decide_where_depth_is_missing():
    # No depth at all. Epipolar lines are rows. The first keypoints are 4 rows apart, the second 10.
    points0, points1 = points((70, 10), (70, 40)), points((33, 14), (80, 50))
    nothing = torch.zeros(1, 80, 100)
    assert label(points0, points1, nothing, nothing) == ([Q, X], [Q, X])
    # With depth in image 1 its first keypoint turns out to have no partner: it goes to x = 83. So neither has
    # the other.
    assert label(points0, points1, nothing, wall(2)) == ([X, X], [X, X])
    # A keypoint that has its partner already excludes nothing more: row 40 has one, matched to a measured
    # keypoint.
    depth0 = wall(2)
    depth0[:, :, 80:] = 0
    assert label(points((70, 40), (90, 40)), points((20, 40)), depth0, wall(2)) == ([0, X], [0])


def test_without_translation_there_are_no_epipolar_lines():
    nothing = torch.zeros(1, 80, 100)
    assert label(points((70, 10)), points((20, 70)), nothing, nothing, torch.zeros(1, 3)) == ([Q], [Q])


def test_padded_depth_maps():
    # Maps are padded to 100 columns, the pictures have 60: what lands at x = 70 lands outside.
    left = torch.tensor([[1.0, 0, 0]])
    size = torch.tensor([[60, 80]])
    depth = wall(2)
    assert label(points((20, 40)), points((55, 40)), depth, depth, left) == ([X], [X])
    near_edge = points((12, 40)), points((62, 40))
    assert label(*near_edge, depth, depth, left) == ([0], [0])
    assert label(*near_edge, depth, depth, left, size0=size, size1=size) == ([Q], [Q])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_depth_of_a_plane_agrees_with_its_homography(seed):
    # For a plane both functions must say the same, up to keypoints at the borders, where depth knows less.
    rng = np.random.default_rng(seed)
    normal = np.array([*rng.normal(0, 0.2, 2), 1.0])
    angles = rng.normal(0, 0.15, 3)
    R = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        R = R @ np.roll(np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), axis, 0), axis, 1)
    t = rng.normal(0, 0.3, 3)
    intrinsics = K[0].double().numpy()
    H = intrinsics @ (R + np.outer(t, normal) / 3) @ np.linalg.inv(intrinsics)  # the plane normal . X = 3
    grid = np.stack([*np.meshgrid(np.arange(100), np.arange(80)), np.ones((80, 100))], -1)
    rays = grid @ np.linalg.inv(intrinsics).T
    normal1, offset1 = R @ normal, 3 + R @ normal @ t
    depth0, depth1 = 3 / (rays @ normal), offset1 / (rays @ normal1)
    points0 = rng.uniform(5, 74, (1, 60, 2))
    points1 = rng.uniform(5, 74, (1, 60, 2))
    as_tensor = (torch.tensor(np.asarray(a), dtype=torch.float32) for a in (points0, points1))
    points0, points1 = as_tensor
    by_homography = from_homography(points0, points1, torch.tensor(H)[None], SIZE, SIZE)
    by_depth = from_depth(
        points0,
        points1,
        *(torch.tensor(d, dtype=torch.float32)[None] for d in (depth0, depth1)),
        K,
        K,
        *(torch.tensor(a, dtype=torch.float32)[None] for a in (R, t)),
    )
    check_consistent(by_depth)
    assert torch.equal(by_depth.matches0, by_homography.matches0)
    assert torch.equal(by_depth.matches1, by_homography.matches1)


def test_rendered_scenes():
    """Without light a surface has one colour in both views: matched pixels share it, occluded ones meet another."""
    from tiepoint.training.data import scenes
    from tiepoint.training.data.scene_layouts import SceneConfig

    generator = torch.Generator().manual_seed(3)
    textures = torch.nn.functional.interpolate(torch.rand(12, 3, 5, 5, generator=generator), 64, mode="bilinear")
    config = SceneConfig(size=(120, 160), overlap=(0.4, 0.7), lit=False, moved=0.5)
    pairs = scenes.make_pairs(textures, 4, config, generator)
    # A coarse grid of image 0 against every pixel of image 1: whatever is seen there finds a partner.
    points0, points1 = (
        torch.stack(torch.meshgrid(torch.arange(0.0, 160, step), torch.arange(0.0, 120, step), indexing="xy"), -1)
        .reshape(1, -1, 2)
        .expand(4, -1, 2)
        for step in (6, 1)
    )
    names = ("depth0", "depth1", "K0", "K1", "R", "t")
    labels = from_depth(
        points0,
        points1,
        *(getattr(pairs, name) for name in names),
        moved0=pairs.moved0,
        moved1=pairs.moved1,
        positive=1.0,
    )
    colour0 = pairs.images0[:, :, ::6, ::6].flatten(2).transpose(1, 2)
    colour1 = pairs.images1.flatten(2).transpose(1, 2)
    # Where each point of the grid would be seen if nothing stood before it.
    rays = torch.nn.functional.pad(points0, (0, 1), value=1.0) @ pairs.K0.inverse().transpose(1, 2)
    there = rays * pairs.depth0[:, ::6, ::6].reshape(4, -1, 1) @ pairs.R.transpose(1, 2) + pairs.t[:, None]
    pixel = there @ pairs.K1.transpose(1, 2)
    pixel = (pixel[..., :2] / pixel[..., 2:]).round()
    inside = (there[..., 2] > 0) & ((pixel >= 0) & (pixel < torch.tensor([160, 120]))).all(-1)
    index = torch.where(inside, pixel[..., 1] * 160 + pixel[..., 0], 0).long()
    difference = (colour0 - colour1.gather(1, index[..., None].expand(-1, -1, 3))).abs().mean(-1)
    matched = labels.matches0 >= 0
    occluded = (labels.matches0 == X) & (pairs.depth0[:, ::6, ::6].flatten(1) > 0) & inside
    assert matched.sum() > 500 and difference[matched].quantile(0.9) < 0.05
    assert occluded.sum() > 50 and difference[occluded].median() > 0.15


def test_unmatched():
    labels = Labels.unmatched(torch.tensor([[True, True, False]]), torch.tensor([[True]]))
    assert labels.matches0.tolist() == [[X, X, Q]] and labels.matches1.tolist() == [[X]]
    assert labels.matches0.dtype == torch.int64


def test_real_depth_and_pose(data_dir):
    """On 7-Scenes, pixels labelled as matches look alike; with the pose inverted they do not."""
    import json

    from PIL import Image

    folder = data_dir / "eval" / "7scenes"
    meta = json.loads((folder / "pairs.json").read_text())
    K_depth = torch.tensor(meta["K_depth"])[None]
    grid = torch.stack(torch.meshgrid(torch.arange(8.0, 632, 24), torch.arange(8.0, 472, 24), indexing="xy"), -1)

    def depth_and_grey(pair, side):
        depth = np.asarray(Image.open(folder / pair[f"depth{side}"])).astype(np.float32) / 1000
        K = np.array(pair[f"K{side}"])
        grey = Image.open(folder / pair[f"image{side}"]).convert("L")
        # The colour picture as the depth camera would see it (the 2.5 cm between them are neglected).
        A = K @ np.linalg.inv(K_depth[0].numpy())
        return depth, np.asarray(grey.transform((640, 480), Image.Transform.AFFINE, A[:2].ravel().tolist()), float)

    def similarity(pair, R, t):
        depth0, grey0 = depth_and_grey(pair, 0)
        depth1, grey1 = depth_and_grey(pair, 1)
        dense = torch.stack(torch.meshgrid(torch.arange(0.0, 640, 5), torch.arange(0.0, 480, 5), indexing="xy"), -1)
        points0, points1 = grid.reshape(1, -1, 2), dense.reshape(1, -1, 2)
        depths = (torch.tensor(d)[None] for d in (depth0, depth1))
        matches = from_depth(points0, points1, *depths, K_depth, K_depth, R[None], t[None]).matches0[0]
        a, b = points0[0, matches >= 0].long(), points1[0, matches[matches >= 0]].long()
        return np.corrcoef(grey0[a[:, 1], a[:, 0]], grey1[b[:, 1], b[:, 0]])[0, 1], len(a)

    for pair in meta["pairs"][:1]:
        R, t = torch.tensor(pair["R"]), torch.tensor(pair["t"])
        right, count = similarity(pair, R, t)
        wrong, _ = similarity(pair, R.T, -R.T @ t)
        assert count > 50 and right > 0.6 and right > wrong + 0.2
