"""SIFT, ORB, BRIEF, SURF, HOG: the right points, at the right place, described as the references describe them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint.errors import MissingDependencyError

NAMES = ["sift", "orb", "brief", "surf", "hog"]
ORIENTED = ["sift", "orb", "surf"]


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Skip what needs an optional package that is not here."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name in ("brief", "surf"):
        pytest.importorskip({"brief": "skimage", "surf": "mahotas"}[name])


def photograph() -> NDArray[np.uint8]:
    """A real picture, 512 x 512, that scikit-image carries (public domain, NASA)."""
    return pytest.importorskip("skimage.data").astronaut()


def similarity(degrees: float, scale: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """Rotation (from +x towards +y) and scaling about the centre of an image of that (width, height)."""
    angle, (cx, cy) = np.deg2rad(degrees), ((size[0] - 1) / 2, (size[1] - 1) / 2)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, cx - c * cx + s * cy], [s, c, cy - s * cx - c * cy], [0, 0, 1]])


def project(h: NDArray[np.float64], points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Apply a homography to points (N, 2)."""
    return cv2.perspectiveTransform(points[None].astype(np.float64), h)[0]


def blob(x: float, y: float, sigma: float, size: int = 240) -> NDArray[np.uint8]:
    """A Gaussian blob centred at (x, y), 8 bit."""
    rows, columns = np.mgrid[:size, :size]
    return np.round(30 + 200 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))).astype(np.uint8)


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return all distances between (N, 2) and (M, 2) points; exact, unlike `torch.cdist` of many points."""
    return (a[:, None] - b[None]).norm(dim=2)


def same_points(a: tp.Features, b: tp.Features, tolerance: float = 0.01) -> NDArray[np.bool_]:
    """For each keypoint of ``a``: is one of ``b`` at the same place?"""
    return (distances(a.keypoints, b.keypoints).amin(dim=1) < tolerance).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, texture: NDArray[np.uint8]) -> None:
    found = tp.features.load(name, max_keypoints=None)(texture)
    assert len(found) > 20
    assert found.extractor == name and found.image_size == (320, 240)
    assert found.scores.min() >= 0 and found.scores.max() <= 1
    assert (found.scores.diff() <= 0).all()
    assert (found.keypoints >= -0.5).all() and (found.keypoints < torch.tensor([319.5, 239.5])).all()
    if name in ("orb", "brief"):
        assert found.descriptors.shape[1] == 32 and found.is_binary
    else:
        assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(len(found)), atol=1e-5)
    if name in ORIENTED:
        assert found.orientations.min() >= 0 and found.orientations.max() <= 2 * np.pi + 1e-6
        assert found.scales.min() > 0
    else:
        assert found.scales is None and found.orientations is None


@pytest.mark.parametrize("name", NAMES)
def test_same_input_same_output(name: str, texture: NDArray[np.uint8]) -> None:
    extractor = tp.features.load(name)
    a, b = extractor(texture), extractor(texture)
    for part in ("keypoints", "scores", "descriptors"):
        assert torch.equal(getattr(a, part), getattr(b, part))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("picture", ["texture", "photograph"])
def test_a_warped_view_matches(name: str, picture: str, texture: NDArray[np.uint8]) -> None:
    image = texture if picture == "texture" else photograph()
    size = image.shape[1::-1]
    degrees, scale = (35, 1.2) if name in ORIENTED else (4, 1.0)
    h = similarity(degrees, scale, size)
    h[2, :2] = [2e-4, -1e-4]
    view = cv2.warpPerspective(image, h, size, flags=cv2.INTER_AREA)
    view = np.clip(view * 0.8 + 20, 0, 255).astype(np.uint8)
    extractor = tp.features.load(name, max_keypoints=1000)
    found = tp.matchers.load("nearest", features=name)(extractor(image), extractor(view))
    error = np.linalg.norm(project(h, found.points0) - found.points1, axis=1)
    assert len(found) >= 25
    assert (error < 3).mean() > (0.75 if name == "surf" else 0.9)
    # No common offset: a wrong pixel convention would show here even if every match were within 3 pixels.
    offset = np.median((project(h, found.points0) - found.points1)[error < 3], axis=0)
    assert np.abs(offset).max() < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_a_shifted_image_shifts_its_keypoints(name: str, texture: NDArray[np.uint8]) -> None:
    # 16 is a multiple of every sampling step of SIFT's and SURF's octaves up to the fourth; ORB's pyramid levels are
    # not aligned with any shift, so only its finest level moves exactly.
    extractor = tp.features.load(name, max_keypoints=None)
    wide = cv2.copyMakeBorder(texture, 80, 80, 80, 80, cv2.BORDER_REFLECT_101)
    a, b = extractor(wide[16:-16, 16:-16]), extractor(wide[32:, 48:])
    moved = a.keypoints - torch.tensor([32.0, 16.0])
    inner = ((moved > 60) & (moved < torch.tensor([280.0, 200.0]))).all(dim=1)
    if name == "orb":
        inner &= a.scales < 32
    assert inner.sum() > 20
    nearest = distances(moved[inner], b.keypoints).amin(dim=1)
    assert (nearest < 1e-2).float().mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns(name: str, turns: int, texture: NDArray[np.uint8]) -> None:
    extractor = tp.features.load(name, max_keypoints=300)
    a, b = extractor(texture), extractor(np.rot90(texture, turns).copy())
    height, width = texture.shape[:2]
    x, y, turned, angle = a.keypoints[:, 0], a.keypoints[:, 1], None, a.orientations
    for _ in range(turns):  # np.rot90 takes the right-hand column to the top row
        x, y, width, height = y, width - 1 - x, height, width
    turned = torch.stack([x, y], dim=1)
    distance, partner = distances(turned, b.keypoints).min(dim=1)
    near = distance < 0.5
    assert near.float().mean() > 0.85
    assert (turned - b.keypoints[partner])[near].mean(dim=0).abs().max() < 0.05
    if name in ORIENTED:
        # A point may have several orientations: compare with the nearest of them.
        close = distances(turned, b.keypoints) < 0.5
        difference = b.orientations[None] - (angle[:, None] - turns * np.pi / 2)
        difference = torch.atan2(difference.sin(), difference.cos()).abs().where(close, torch.inf).amin(dim=1)
        assert difference[near].median() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_mask(name: str, texture: NDArray[np.uint8]) -> None:
    mask = np.zeros(texture.shape[:2], np.uint8)
    mask[40:200, 160:] = 1
    extractor = tp.features.load(name, max_keypoints=None)
    everywhere, allowed = extractor(texture), extractor(texture, mask)
    assert len(allowed) > 5
    x, y = allowed.keypoints.T
    assert (x >= 159.5).all() and (y >= 39.5).all() and (y <= 199.5).all()
    if name not in ("brief", "hog"):  # there NMS may keep other points near the border of the mask
        x, y = everywhere.keypoints.T
        deep = (x > 165) & (y > 45) & (y < 195)
        assert same_points(everywhere.select(deep), allowed).all()
    best = tp.features.load(name, max_keypoints=5)(texture, mask)
    assert torch.equal(best.keypoints, allowed.keypoints[:5])
    assert len(extractor(texture, np.zeros_like(mask))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_max_keypoints_keeps_the_best(name: str, texture: NDArray[np.uint8]) -> None:
    everything = tp.features.load(name, max_keypoints=None)(texture)
    best = tp.features.load(name, max_keypoints=15)(texture)
    assert len(best) == 15
    for part in ("keypoints", "scores", "descriptors", "scales", "orientations"):
        whole, cut = getattr(everything, part), getattr(best, part)
        assert (whole is None and cut is None) or torch.equal(whole[:15], cut)


@pytest.mark.parametrize("name", NAMES)
def test_threshold_and_nms(name: str, texture: NDArray[np.uint8]) -> None:
    everything = tp.features.load(name, max_keypoints=None, nms_radius=0)(texture)
    threshold = 60 if name == "orb" else float(everything.scores.median()) * (3 if name == "sift" else 1)
    fewer = tp.features.load(name, max_keypoints=None, nms_radius=0, detection_threshold=threshold)(texture)
    assert 0 < len(fewer) < len(everything)
    if name != "orb":
        assert abs(len(fewer) / len(everything) - 0.5) < 0.1
    apart = tp.features.load(name, max_keypoints=None, nms_radius=8)(texture)
    gaps = (apart.keypoints[:, None] - apart.keypoints[None]).abs().amax(dim=2)
    gaps.fill_diagonal_(torch.inf)
    assert 0 < len(apart) < len(everything) and gaps.min() > 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (3, 500), (31, 31), (49, 49), (63, 64), (70, 66)])
def test_small_and_blank_images(name: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    extractor = tp.features.load(name)
    noise = extractor(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert noise.image_size == shape[::-1]
    blank = extractor(np.full((*shape, 3), 128, np.uint8))
    assert len(blank) == 0 and blank.keypoints.shape == (0, 2)
    assert blank.descriptors.shape == (0, {"sift": 128, "surf": 64, "hog": 144}.get(name, 32))
    assert (
        blank.descriptors.dtype
        == noise.descriptors.dtype
        == (torch.uint8 if name in ("orb", "brief") else torch.float32)
    )
    assert (blank.orientations is None) == (name not in ORIENTED)


@pytest.mark.parametrize(("name", "tolerance"), [("sift", 0.05), ("surf", 0.1)])
@pytest.mark.parametrize("sigma", [2.5, 4.0, 7.0])
def test_a_blob_is_found_where_it_is(name: str, tolerance: float, sigma: float, rng: np.random.Generator) -> None:
    extractor, errors = tp.features.load(name, max_keypoints=1), []
    for _ in range(8):
        x, y = rng.uniform(115, 125, 2)
        found = extractor(blob(x, y, sigma))
        if len(found) == 0:  # 8 bits make plateaus; now and then no pixel of one is the strict maximum
            continue
        errors.append(found.keypoints[0].numpy() - [x, y])
        if name == "sift":  # the difference of Gaussians peaks at sigma / 2^(1/6); the size is twice that
            assert found.scales[0] == pytest.approx(1.78 * sigma, rel=0.06)
    assert len(errors) >= 6
    assert np.abs(np.mean(errors, axis=0)).max() < tolerance
    assert np.abs(errors).max() < 2 * tolerance


@pytest.mark.parametrize("name", ["brief", "hog"])
def test_corners_have_sub_pixel_positions(name: str) -> None:
    image = photograph()
    shift = np.array([0.4, -0.3])
    moved = cv2.warpAffine(image, np.c_[np.eye(2), shift], image.shape[1::-1], flags=cv2.INTER_CUBIC)
    extractor = tp.features.load(name, max_keypoints=500)
    found = tp.matchers.load("nearest", features=name)(extractor(image), extractor(moved))
    error = found.points1 - found.points0 - shift
    assert len(found) > 200
    assert np.median(np.linalg.norm(error, axis=1)) < 0.4  # whole pixels: 0.5
    assert np.abs(np.median(error, axis=0)).max() < 0.1


@pytest.mark.parametrize(("name", "tolerance"), [("sift", 0.03), ("surf", 0.1)])
def test_twice_the_size_twice_the_scale(name: str, tolerance: float, texture: NDArray[np.uint8]) -> None:
    large = cv2.resize(texture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    extractor = tp.features.load(name, max_keypoints=150)
    a, b = extractor(texture), extractor(large)
    distance, partner = distances((a.keypoints + 0.5) * 2 - 0.5, b.keypoints).min(dim=1)
    near = distance < 1.5
    ratio = b.scales[partner] / a.scales
    near &= (ratio > 1.6) & (ratio < 2.5)
    assert near.sum() > 25
    assert ratio[near].median() == pytest.approx(2, rel=tolerance)
    offset = (b.keypoints[partner] - ((a.keypoints + 0.5) * 2 - 0.5))[near].median(dim=0).values
    assert offset.abs().max() < 3 * tolerance


def test_sift_is_opencvs_sift_with_root_descriptors(texture: NDArray[np.uint8]) -> None:
    ours = tp.features.load("sift", max_keypoints=None)(texture)
    sift = cv2.SIFT_create(contrastThreshold=0.02, enable_precise_upscale=True)
    found, raw = sift.detectAndCompute(cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY), None)
    theirs = np.array([(*k.pt, k.size, np.deg2rad(k.angle), k.response) for k in found], np.float32)
    unit = raw / np.abs(raw).sum(axis=1, keepdims=True)
    reference = np.concatenate([theirs, np.sqrt(unit)], axis=1)
    result = torch.cat(
        [ours.keypoints, ours.scales[:, None], ours.orientations[:, None], ours.scores[:, None], ours.descriptors], 1
    ).numpy()
    assert len(found) == len(ours) > 100
    by_place = [rows[np.lexsort(rows[:, [3, 1, 0]].T)] for rows in (result, reference)]
    np.testing.assert_allclose(*by_place, atol=1e-5)


def test_sift_keeps_every_orientation_unless_nms_is_on(texture: NDArray[np.uint8]) -> None:
    everything = tp.features.load("sift", max_keypoints=None)(texture)
    places = torch.unique(everything.keypoints, dim=0)
    assert len(places) < len(everything)
    single = tp.features.load("sift", max_keypoints=None, nms_radius=1)(texture)
    assert len(torch.unique(single.keypoints, dim=0)) == len(single)


def test_orb_levels_share_one_coordinate_frame() -> None:
    # Turned by 180 degrees, x becomes width - 1 - x at every level of the pyramid only if the levels' pixel centres
    # are carried back rightly; OpenCV's own coordinates miss by up to 2.6 pixels.
    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.integers(0, 256, (400, 500, 3), dtype=np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    extractor = tp.features.load("orb", max_keypoints=None)
    a, b = extractor(image), extractor(np.ascontiguousarray(image[::-1, ::-1]))
    turned = torch.tensor([499.0, 399.0]) - a.keypoints
    for level in range(8):
        mine, other = ((f.scales - 31 * 1.2**level).abs() < 0.1 for f in (a, b))
        assert mine.sum() > 5 and other.sum() > 5
        distance = distances(turned[mine], b.keypoints[other]).amin(dim=1)
        assert distance.median() < 1e-2


def test_orb_descriptors_are_opencvs(texture: NDArray[np.uint8]) -> None:
    ours = tp.features.load("orb", max_keypoints=None)(texture)
    found, raw = cv2.ORB_create(10**6).detectAndCompute(cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY), None)
    assert len(ours) == len(found)
    assert sorted(map(bytes, raw)) == sorted(map(bytes, ours.descriptors.numpy()))


def test_hog_resembles_scikit_images() -> None:
    skimage_feature = pytest.importorskip("skimage.feature")
    image = photograph()
    ours = tp.features.load("hog", max_keypoints=60)(image)
    gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
    reference = []
    for x, y in np.rint(ours.keypoints.numpy()).astype(int):
        patch = gray[y - 16 : y + 16, x - 16 : x + 16]
        # Theirs has bins centred at 10, 30, … degrees and ours at 0, 20, …: shift by binning twice as finely.
        fine = skimage_feature.hog(patch, 18, (8, 8), (4, 4), block_norm="L1").reshape(4, 4, 18)
        coarse = fine[..., 0::2] + np.roll(fine, 1, axis=-1)[..., 0::2]
        unit = coarse.ravel() / np.linalg.norm(coarse)
        unit = np.minimum(unit, 0.2)
        reference.append(unit / np.linalg.norm(unit))
    cosine = ours.descriptors.numpy() @ np.array(reference).T
    assert np.median(np.diag(cosine)) > 0.85
    assert (cosine.argmax(axis=1) == np.arange(len(ours))).mean() > 0.9


def test_brief_compares_the_pixels_it_says(texture: NDArray[np.uint8]) -> None:
    pytest.importorskip("skimage")
    found = tp.features.load("brief", max_keypoints=50)(texture)
    # An inverted image has the opposite sign in every comparison, apart from ties.
    inverted = tp.features.load("brief", max_keypoints=50)(255 - texture)
    assert same_points(found, inverted).mean() > 0.9
    partner = distances(found.keypoints, inverted.keypoints).argmin(dim=1)
    bits = np.unpackbits(found.descriptors.numpy() ^ inverted.descriptors.numpy()[partner], axis=1)
    assert np.median(bits.mean(axis=1)) > 0.97


def test_surf_descriptor_ignores_added_brightness() -> None:
    pytest.importorskip("mahotas")
    image = (photograph() // 2).astype(np.uint8)
    extractor = tp.features.load("surf", max_keypoints=200)
    a, b = extractor(image), extractor(image + 100)
    partner = distances(a.keypoints, b.keypoints).argmin(dim=1)
    cosine = (a.descriptors * b.descriptors[partner]).sum(dim=1)
    assert torch.quantile(cosine, 0.02) > 0.99


@pytest.mark.parametrize(("name", "package"), [("brief", "skimage.feature"), ("surf", "mahotas.features")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    extractor = tp.features.load(name)
    with pytest.raises(MissingDependencyError, match=r"tiepoint\[classic\]"):
        extractor(np.zeros((80, 80, 3), np.uint8))
