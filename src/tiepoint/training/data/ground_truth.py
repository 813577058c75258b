"""Labels for training: which keypoint of image 1 is keypoint i of image 0, by homography or by depth.

Every keypoint gets one of three labels, as in LightGlue (arXiv 2306.13643, section 4 and appendix):

- *matched*: it and its partner are mutual nearest neighbours under the reprojection error, which is at most
  ``positive`` pixels in both directions;
- *unmatchable*: the geometry proves that no keypoint of the other image is its partner;
- *ignored*: everything between, such as a point 4 px from the nearest keypoint, or one whose depth nobody
  measured.

What counts as proof is stated in `from_homography` and `from_depth`. All functions work on batches padded to
a common number of keypoints, on any device, and do their geometry without matrix products: those may run in
TF32 or bfloat16, whose rounding is pixels wide at the coordinates of a photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import ArgumentError

UNMATCHABLE = -1
IGNORED = -2
DEPTH_TOLERANCE = 0.05  # relative difference of depths that still counts as the same surface


@dataclass(frozen=True, eq=False)
class Labels:
    """Ground truth of a batch of B pairs; padding is ignored.

    Attributes
    ----------
    matches0 : int64 tensor (B, N)
        For each keypoint of image 0 the index of its partner in image 1, `UNMATCHABLE` (-1) or `IGNORED`
        (-2).
    matches1 : int64 tensor (B, M)
        The same from image 1: ``matches0[b, i] == j`` exactly where ``matches1[b, j] == i``.
    """

    matches0: torch.Tensor
    matches1: torch.Tensor

    @staticmethod
    def unmatched(valid0: torch.Tensor, valid1: torch.Tensor) -> Labels:
        """Label pairs of unrelated photographs: every keypoint is unmatchable.

        Parameters
        ----------
        valid0, valid1 : bool tensors (B, N), (B, M)
            False for padding.

        Examples
        --------
        >>> labels = Labels.unmatched(torch.tensor([[True, False]]), torch.tensor([[True]]))
        >>> labels.matches0.tolist(), labels.matches1.tolist()
        ([[-1, -2]], [[-1]])
        """
        return Labels(*(torch.where(valid, UNMATCHABLE, IGNORED) for valid in (valid0, valid1)))


@torch.no_grad()
def from_homography(
    keypoints0: torch.Tensor,
    keypoints1: torch.Tensor,
    H: torch.Tensor,
    size0: torch.Tensor,
    size1: torch.Tensor,
    valid0: torch.Tensor | None = None,
    valid1: torch.Tensor | None = None,
    positive: float = 3.0,
    negative: float = 5.0,
) -> Labels:
    """Label keypoints of two views of a plane (or of one photograph warped twice).

    A keypoint is unmatchable when, mapped into the other image, it lies behind that camera or more than
    ``negative`` pixels from every keypoint there. A point that maps outside the other image is never matched;
    it is unmatchable unless a keypoint lies within ``negative`` pixels, just inside the border: then nobody
    can tell, and it is ignored.

    Parameters
    ----------
    keypoints0, keypoints1 : float tensors (B, N, 2), (B, M, 2)
        (x, y) in pixels; (0, 0) is the centre of the top-left pixel.
    H : float tensor (B, 3, 3)
        ``x1 ~ H x0``, at any scale and sign. Both views see the same side of the plane: H does not mirror.
    size0, size1 : tensors (B, 2)
        (width, height) of the images.
    valid0, valid1 : bool tensors (B, N), (B, M), optional
        False for padding.
    positive, negative : float
        Thresholds in pixels.

    Raises
    ------
    ArgumentError
        Shapes do not fit, or ``positive`` exceeds ``negative``.

    Examples
    --------
    Image 1 is image 0 moved by 10 px to the right; the second keypoint leaves the picture.

    >>> H = torch.tensor([[[1.0, 0, 10], [0, 1, 0], [0, 0, 1]]])
    >>> points0 = torch.tensor([[[20.0, 30], [95, 50]]])
    >>> points1 = torch.tensor([[[30.0, 30], [5, 50]]])
    >>> size = torch.tensor([[100, 100]])
    >>> labels = from_homography(points0, points1, H, size, size)
    >>> labels.matches0.tolist(), labels.matches1.tolist()
    ([[0, -1]], [[0, -1]])
    """
    valid0, valid1 = _check(keypoints0, keypoints1, valid0, valid1, positive, negative)
    _check_shape("H", H, (len(keypoints0), 3, 3))
    points0, points1, H = keypoints0.float(), keypoints1.float(), H.float()
    # H is known up to a factor. As it does not mirror, w > 0 means "in front of the camera" once det H > 0.
    H = H / H.abs().amax((1, 2), keepdim=True)
    H = H * torch.linalg.det(H).sign()[:, None, None]
    # The adjugate is the inverse up to a positive factor, without the condition number of a general inverse.
    h0, h1, h2 = H.unbind(1)
    inverse = torch.stack([torch.linalg.cross(h1, h2), torch.linalg.cross(h2, h0), torch.linalg.cross(h0, h1)], -1)

    mapped0, front0 = _to_pixels(_apply(H, _homogeneous(points0)))
    mapped1, front1 = _to_pixels(_apply(inverse, _homogeneous(points1)))
    error0 = _distances(mapped0, points1, front0 & valid0, valid1)
    error1 = _distances(points0, mapped1, valid0, front1 & valid1)
    matches0, matches1 = _mutual_nearest(
        torch.maximum(error0, error1), _inside(mapped0, size1) & valid0, _inside(mapped1, size0) & valid1, positive
    )
    alone0 = valid0 & (_smallest(error0, 2) > negative)
    alone1 = valid1 & (_smallest(error1, 1) > negative)
    return Labels(matches0.masked_fill(alone0, UNMATCHABLE), matches1.masked_fill(alone1, UNMATCHABLE))


@torch.no_grad()
def from_depth(
    keypoints0: torch.Tensor,
    keypoints1: torch.Tensor,
    depth0: torch.Tensor,
    depth1: torch.Tensor,
    K0: torch.Tensor,
    K1: torch.Tensor,
    R: torch.Tensor,
    t: torch.Tensor,
    size0: torch.Tensor | None = None,
    size1: torch.Tensor | None = None,
    valid0: torch.Tensor | None = None,
    valid1: torch.Tensor | None = None,
    moved0: torch.Tensor | None = None,
    moved1: torch.Tensor | None = None,
    positive: float = 3.0,
    negative: float = 5.0,
) -> Labels:
    """Label keypoints of two views of a rigid scene whose depth is known in both.

    **Depth of a keypoint.** The four pixels around it must all be measured and differ by less than
    `DEPTH_TOLERANCE`; 1/z is then interpolated, which is exact on planes. Across a depth edge nothing is
    interpolated: such a keypoint may belong to either surface and counts as unmeasured.

    **Visibility.** A measured keypoint is carried into the other image, to depth z. Compared with the four
    depths around that place it is *visible* if one of them is within `DEPTH_TOLERANCE` of z, *occluded* if
    all four are measured and nearer, *unexplained* if all four are measured and farther (an object moved, or
    the depth is wrong); otherwise visibility is unknown.

    **Matched**: both visible in the other image, and mutual nearest within ``positive`` pixels both ways.

    **Unmatchable** is a measured keypoint that is behind the other camera, or occluded, or that is carried to
    a place more than ``negative`` pixels from every keypoint (as is any that leaves the picture by more than
    that) and is not unexplained. So is an unmeasured keypoint whose epipolar line passes more than
    ``negative`` pixels from every keypoint not yet labelled by the rules above.

    **Ignored**: the rest, and every keypoint on an object that moved, since the pose does not bind it.

    Parameters
    ----------
    keypoints0, keypoints1 : float tensors (B, N, 2), (B, M, 2)
        (x, y) in pixels; (0, 0) is the centre of the top-left pixel.
    depth0, depth1 : float tensors (B, H0, W0), (B, H1, W1)
        z in the camera's frame, in the unit of ``t``, for every pixel of the image; 0 where nothing was
        measured.
    K0, K1 : float tensors (B, 3, 3)
        Intrinsics for the same pixel convention.
    R, t : float tensors (B, 3, 3), (B, 3)
        Relative pose: ``X1 = R X0 + t``.
    size0, size1 : tensors (B, 2), optional
        (width, height) of the images where the depth maps are padded; by default the size of the depth map.
    valid0, valid1 : bool tensors (B, N), (B, M), optional
        False for padding.
    moved0, moved1 : bool tensors (B, H0, W0), (B, H1, W1), optional
        True for pixels of objects known to have moved between the views.
    positive, negative : float
        Thresholds in pixels.

    Raises
    ------
    ArgumentError
        Shapes do not fit, or ``positive`` exceeds ``negative``.

    Examples
    --------
    A wall at depth 2, seen again by a camera 1 to the right: the wall moves 50 px to the left.

    >>> K = torch.tensor([[[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]])
    >>> wall, R, t = torch.full((1, 100, 100), 2.0), torch.eye(3)[None], torch.tensor([[-1.0, 0, 0]])
    >>> points0 = torch.tensor([[[80.0, 30], [20, 30]]])
    >>> points1 = torch.tensor([[[30.0, 30]]])
    >>> from_depth(points0, points1, wall, wall, K, K, R, t).matches0.tolist()
    [[0, -1]]
    """
    valid0, valid1 = _check(keypoints0, keypoints1, valid0, valid1, positive, negative)
    batch = len(keypoints0)
    for name, value, shape in (("K0", K0, (3, 3)), ("K1", K1, (3, 3)), ("R", R, (3, 3)), ("t", t, (3,))):
        _check_shape(name, value, (batch, *shape))
    for name, value in (("depth0", depth0), ("depth1", depth1)):
        _check_shape(name, value, (batch, *value.shape[-2:]))
    points0, points1, depth0, depth1 = keypoints0.float(), keypoints1.float(), depth0.float(), depth1.float()
    K0, K1, R, t = K0.float(), K1.float(), R.float(), t.float()
    depth0, rigid0 = _without_moved(points0, depth0, moved0)
    depth1, rigid1 = _without_moved(points1, depth1, moved1)
    size0 = _map_size(depth0) if size0 is None else size0
    size1 = _map_size(depth1) if size1 is None else size1
    back = R.transpose(1, 2)

    z0, measured0 = _depth_at(points0, depth0)
    z1, measured1 = _depth_at(points1, depth1)
    rays0, rays1 = _rays(points0, K0), _rays(points1, K1)
    seen1 = _apply(R, rays0 * z0[..., None]) + t[:, None]
    seen0 = _apply(back, rays1 * z1[..., None] - t[:, None])
    mapped0, front0 = _to_pixels(_apply(K1, seen1))
    mapped1, front1 = _to_pixels(_apply(K0, seen0))
    measured0, measured1 = measured0 & valid0, measured1 & valid1
    visible0, occluded0, unexplained0 = _visibility(mapped0, seen1[..., 2], depth1)
    visible1, occluded1, unexplained1 = _visibility(mapped1, seen0[..., 2], depth0)
    inside0, inside1 = front0 & _inside(mapped0, size1), front1 & _inside(mapped1, size0)

    error0 = _distances(mapped0, points1, measured0 & front0, valid1)
    error1 = _distances(points0, mapped1, valid0, measured1 & front1)
    matches0, matches1 = _mutual_nearest(
        torch.maximum(error0, error1), measured0 & inside0 & visible0, measured1 & inside1 & visible1, positive
    )
    far0 = (_smallest(error0, 2) > negative) & ~(inside0 & unexplained0)
    far1 = (_smallest(error1, 1) > negative) & ~(inside1 & unexplained1)
    # The error of an unmeasured point is infinite too, but proves nothing.
    alone0 = measured0 & (far0 | (inside0 & occluded0))
    alone1 = measured1 & (far1 | (inside1 & occluded1))
    matches0 = matches0.masked_fill(alone0, UNMATCHABLE)
    matches1 = matches1.masked_fill(alone1, UNMATCHABLE)

    # Epipolar lines decide for unmeasured points alone, against the keypoints that are still without a label.
    open0, open1 = valid0 & (matches0 == IGNORED), valid1 & (matches1 == IGNORED)
    # l1 ~ [e1]x K1 R ray0 in image 1, with the epipole e1 = K1 t; and the same from image 1. No translation:
    # the lines are zero, every distance is zero, and nothing is excluded.
    epipole1 = _apply(K1, t[:, None])
    epipole0 = _apply(K0, -_apply(back, t[:, None]))
    lines1 = torch.linalg.cross(epipole1.expand_as(rays0), _apply(K1, _apply(R, rays0)))
    lines0 = torch.linalg.cross(epipole0.expand_as(rays1), _apply(K0, _apply(back, rays1)))
    line_error0 = _line_distances(lines1, points1).masked_fill(~open1[:, None], torch.inf)
    line_error1 = _line_distances(lines0, points0).masked_fill(~open0[:, None], torch.inf)
    matches0 = matches0.masked_fill(open0 & rigid0 & ~measured0 & (_smallest(line_error0, 2) > negative), UNMATCHABLE)
    matches1 = matches1.masked_fill(open1 & rigid1 & ~measured1 & (_smallest(line_error1, 2) > negative), UNMATCHABLE)
    return Labels(matches0, matches1)


@torch.no_grad()
def carry_by_depth(
    points: torch.Tensor,
    depth0: torch.Tensor,
    depth1: torch.Tensor,
    K0: torch.Tensor,
    K1: torch.Tensor,
    R: torch.Tensor,
    t: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry points of image 0 into image 1; depth and visibility are those of `from_depth`.

    Parameters
    ----------
    points : float tensor (B, N, 2)
        (x, y) in pixels.
    depth0, depth1, K0, K1, R, t
        See `from_depth`.

    Returns
    -------
    float32 tensor (B, N, 2)
        Pixels of image 1; infinite where no depth was measured, and behind the camera.
    bool tensor (B, N)
        Whether the point lies inside image 1 and is visible there.

    Examples
    --------
    >>> K = torch.tensor([[[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]])
    >>> wall, R, t = torch.full((1, 100, 100), 2.0), torch.eye(3)[None], torch.tensor([[-1.0, 0, 0]])
    >>> carried, visible = carry_by_depth(torch.tensor([[[80.0, 30], [20, 30]]]), wall, wall, K, K, R, t)
    >>> carried.round().tolist(), visible.tolist()
    ([[[30.0, 30.0], [-30.0, 30.0]]], [[True, False]])
    """
    z, measured = _depth_at(points, depth0)
    there = _apply(R, _rays(points, K0) * z[..., None]) + t[:, None]
    mapped, front = _to_pixels(_apply(K1, there))
    known = measured & front
    mapped = torch.where(known[..., None], mapped, torch.inf)
    visible, _, _ = _visibility(mapped, there[..., 2], depth1)
    return mapped, known & visible & _inside(mapped, _map_size(depth1))


def _mutual_nearest(
    error: torch.Tensor, candidate0: torch.Tensor, candidate1: torch.Tensor, limit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mutual nearest neighbours under ``error`` (B, N, M) up to ``limit``; others are `IGNORED`."""
    batch, n, m = error.shape
    if n == 0 or m == 0:
        nobody = error.new_full((batch, n + m), IGNORED, dtype=torch.int64)
        return nobody[:, :n], nobody[:, n:]
    error = error.masked_fill_(~(candidate0[:, :, None] & candidate1[:, None]), torch.inf)
    smallest, nearest1 = error.min(2)
    nearest0 = error.argmin(1)
    mutual = (nearest0.gather(1, nearest1) == torch.arange(n, device=error.device)) & (smallest <= limit)
    matches0 = torch.where(mutual, nearest1, IGNORED)
    partner_of_1 = matches0.gather(1, nearest0)
    matches1 = torch.where(partner_of_1 == torch.arange(m, device=error.device), nearest0, IGNORED)
    return matches0, matches1


def _without_moved(
    points: torch.Tensor, depth: torch.Tensor, moved: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return depth with moved objects erased, and which points (B, N) touch none."""
    if moved is None:
        return depth, torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    _check_shape("moved", moved, tuple(depth.shape))
    return depth.masked_fill(moved, 0.0), ~_four_around(points, moved)[0].any(-1)


def _depth_at(
    points: torch.Tensor, depth: torch.Tensor, tolerance: float = DEPTH_TOLERANCE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return depth (B, N) at sub-pixel places and whether it is measured there and off any depth edge."""
    corners, fx, fy = _four_around(points, depth)
    measured = (corners > 0).all(-1) & (corners.amax(-1) <= corners.amin(-1) * (1 + tolerance))
    top_left, top_right, bottom_left, bottom_right = corners.clamp(min=1e-12).reciprocal().unbind(-1)
    top, bottom = torch.lerp(top_left, top_right, fx), torch.lerp(bottom_left, bottom_right, fx)
    return torch.where(measured, torch.lerp(top, bottom, fy).reciprocal(), 0.0), measured


def _visibility(
    points: torch.Tensor, z: torch.Tensor, depth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compare points carried here at depth ``z`` with the map: visible, occluded, unexplained (B, N).

    Four depths, not one: within a pixel of an occluding edge it depends on rounding which surface a single
    one shows.
    """
    corners, _, _ = _four_around(points, depth)
    measured, z = corners > 0, z[..., None]
    nearer, farther = corners * (1 + DEPTH_TOLERANCE) < z, corners > z * (1 + DEPTH_TOLERANCE)
    visible = (measured & ~nearer & ~farther).any(-1)
    return visible, (measured & nearer).all(-1), (measured & farther).all(-1)


def _four_around(points: torch.Tensor, depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the values (B, N, 4) of the pixels around each point and its fractional position among them."""
    _, height, width = depth.shape
    # Points may be infinite (behind the camera) or far outside; the caller asks `_inside` before using their
    # depth.
    x = points[..., 0].clamp(0, width - 1)
    y = points[..., 1].clamp(0, height - 1)
    x0, y0 = x.floor().clamp(max=max(width - 2, 0)), y.floor().clamp(max=max(height - 2, 0))
    left, top = x0.long(), y0.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    index = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], -1)
    return depth.flatten(1).gather(1, index.flatten(1)).view(index.shape), x - x0, y - y0


def _rays(points: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Return K^-1 (x, y, 1) for pixels (B, N, 2); K is upper triangular with K[2, 2] = 1."""
    y = (points[..., 1] - K[:, None, 1, 2]) / K[:, None, 1, 1]
    x = (points[..., 0] - K[:, None, 0, 2] - K[:, None, 0, 1] * y) / K[:, None, 0, 0]
    return torch.stack([x, y, torch.ones_like(x)], -1)


def _homogeneous(points: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(points, (0, 1), value=1.0)


def _apply(matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return matrix (B, 3, 3) times vectors (B, N, 3) in full float32, whatever matmul is set to."""
    return (matrix[:, None] * vectors[:, :, None]).sum(-1)


def _to_pixels(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors (B, N, 3) divided by the third coordinate, and if it is positive; else infinity."""
    w = vectors[..., 2:]
    front = w > 0
    return torch.where(front, vectors[..., :2] / torch.where(front, w, 1.0), torch.inf), front[..., 0]


def _inside(points: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Say which points (B, N, 2) lie on pixels of images of ``size`` (B, 2): from -0.5 to width - 0.5."""
    return ((points >= -0.5) & (points < size[:, None].to(points) - 0.5)).all(-1)


def _map_size(depth: torch.Tensor) -> torch.Tensor:
    return torch.tensor([depth.shape[2], depth.shape[1]], device=depth.device).expand(len(depth), 2)


def _distances(
    points0: torch.Tensor, points1: torch.Tensor, known0: torch.Tensor, known1: torch.Tensor
) -> torch.Tensor:
    """Return distances (B, N, M) between points; infinite where either is not known."""
    distances = torch.cdist(points0, points1, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill_(~(known0[:, :, None] & known1[:, None]), torch.inf)


def _line_distances(lines: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the distances (B, N, M) of points (B, M, 2) from lines (B, N, 3); zero for a line of zeros."""
    lines = lines / lines[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-12)
    a, b, c = lines[..., None].unbind(2)
    x, y = points[:, None].unbind(-1)
    return (a * x + b * y + c).abs()


def _smallest(error: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the minimum over ``dim``; infinity over nothing."""
    return error.amin(dim) if error.shape[dim] else error.new_full(error.sum(dim).shape, torch.inf)


def _check(
    keypoints0: torch.Tensor,
    keypoints1: torch.Tensor,
    valid0: torch.Tensor | None,
    valid1: torch.Tensor | None,
    positive: float,
    negative: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check shapes and thresholds; return the masks, all True where none was given."""
    if not 0 < positive <= negative:
        raise ArgumentError(f"need 0 < positive <= negative, not positive = {positive}, negative = {negative}")
    masks = []
    for name, points, valid in (("0", keypoints0, valid0), ("1", keypoints1, valid1)):
        if points.ndim != 3 or points.shape[2] != 2 or len(points) != len(keypoints0):
            raise ArgumentError(
                f"keypoints{name} must have shape (B, N, 2), the same B in both, not {tuple(points.shape)}"
            )
        mask = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device) if valid is None else valid
        _check_shape(f"valid{name}", mask, points.shape[:2])
        masks.append(mask)
    return masks[0], masks[1]


def _check_shape(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ArgumentError(f"{name} must have shape {tuple(shape)}, not {tuple(value.shape)}")
