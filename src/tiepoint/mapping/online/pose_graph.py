"""Similarities of space, and the graph of key frames that a closed loop bends: `optimise`.

One camera does not measure scale, so that the map's unit drifts as its position and direction do. A loop therefore
gives a similarity, not a rigid motion: Sim(3), of seven degrees of freedom (Strasdat, Montiel and Davison, Scale
Drift-Aware Large Scale Monocular SLAM, RSS 2010).

A node is a key frame's similarity S, which takes world coordinates to those of its camera: x = s (R X + t) is kept as
R' = R, t' = s t, s' = s. An edge (i, j) holds what S_j S_i^-1 was measured to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

MOST_STEPS = 20
SMALL_STEP = 1e-6  # radians, depths, log of scale
DIFFERENCE = 1e-6  # for derivatives, in the same units
DAMPING = 1e-9  # keeps the equations regular where a part of the graph hangs on nothing


@dataclass(frozen=True, eq=False)
class Similarity:
    """N similarities ``x -> s R x + t``: R (N, 3, 3), t (N, 3), s (N,).

    Examples
    --------
    >>> twice = Similarity(np.eye(3)[None], np.ones((1, 3)), np.array([2.0]))
    >>> twice(np.array([[1.0, 2.0, 3.0]]))
    array([[3., 5., 7.]])
    >>> (twice.inverse() @ twice)(np.array([[1.0, 2.0, 3.0]]))
    array([[1., 2., 3.]])
    """

    R: Array
    t: Array
    s: Array

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, rows: Indices | slice) -> Similarity:
        return Similarity(self.R[rows], self.t[rows], self.s[rows])

    def __call__(self, points: Array) -> Array:
        """Transform points (N, 3), each by the similarity of its row."""
        return self.s[:, None] * np.einsum("nij,nj->ni", self.R, points) + self.t

    def __matmul__(self, first: Similarity) -> Similarity:
        return Similarity(self.R @ first.R, self(first.t), self.s * first.s)

    def inverse(self) -> Similarity:
        """Return what undoes each of them."""
        R = self.R.transpose(0, 2, 1)
        return Similarity(R, -np.einsum("nij,nj->ni", R, self.t) / self.s[:, None], 1 / self.s)

    @classmethod
    def of(cls, vectors: Array) -> Similarity:
        """Make them of rows (N, 7): rotation vector in radians, translation, natural log of the scale."""
        from scipy.spatial.transform import Rotation

        return cls(Rotation.from_rotvec(vectors[:, :3]).as_matrix(), vectors[:, 3:6], np.exp(vectors[:, 6]))

    def vectors(self) -> Array:
        """Return the rows (N, 7) of which `of` makes these similarities."""
        from scipy.spatial.transform import Rotation

        return np.column_stack([Rotation.from_matrix(self.R).as_rotvec(), self.t, np.log(self.s)])

    @staticmethod
    def stack(parts: list[Similarity]) -> Similarity:
        """Return them one after the other."""
        return Similarity(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("R", "t", "s")))


def optimise(nodes: Similarity, edges: Indices, measured: Similarity, depths: Array, weights: Array) -> Similarity:
    """Move nodes so that the edges between them agree with what was measured, the errors spread over all.

    Gauss-Newton on the sum of squares. The error of an edge is S_j S_i^-1 over what was measured, as a rotation vector,
    a translation in depths of the scene, and the log of a scale: all three then weigh as they move pixels.

    Parameters
    ----------
    nodes : Similarity
        N; the first stays where it is.
    edges : int64 array (E, 2)
        Numbers (i, j) of nodes.
    measured : Similarity
        S_j S_i^-1 of each edge.
    depths : float64 array (N,)
        Of the scene before each camera, in its own unit.
    weights : float64 array (E,)
        Of the errors of each edge.

    Returns
    -------
    Similarity
        N.

    Examples
    --------
    Three key frames in a row, 1 apart; a loop has found that the last is 1.7 from the first, not 2. Scale gives way,
    too.

    >>> row = Similarity.of(np.array([[0.0, 0, 0, -k, 0, 0, 0] for k in (0.0, 1.0, 2.0)]))
    >>> edges = np.array([[0, 1], [1, 2], [0, 2]])
    >>> step = (row[edges[:, 1]] @ row[edges[:, 0]].inverse()).vectors()
    >>> step[2, 3] = -1.7
    >>> moved = optimise(row, edges, Similarity.of(step), np.ones(3), np.ones(3))
    >>> moved.inverse().t[1:, 0].round(2)
    array([0.92, 1.79])
    """
    from scipy.sparse import csr_array, diags_array
    from scipy.sparse.linalg import splu

    count, unknowns = len(edges), 7 * len(nodes)
    expected, factors = measured.inverse(), np.tile(weights[:, None], 7)
    factors[:, 3:6] /= depths[edges[:, 1], None]

    def errors(first: Similarity, second: Similarity) -> Array:
        return factors * (second @ first.inverse() @ expected).vectors()

    # Which rows and columns the derivatives (E, 7, 14) of errors by the two nodes of an edge have.
    columns = (7 * edges[:, :, None] + np.arange(7)).reshape(count, 1, 14) + np.zeros((1, 7, 1), np.int64)
    rows = np.arange(7 * count).reshape(count, 7, 1) + np.zeros((1, 1, 14), np.int64)
    for _ in range(MOST_STEPS):
        first, second = nodes[edges[:, 0]], nodes[edges[:, 1]]
        now = errors(first, second)
        derivatives = np.empty((count, 7, 14))
        for k in range(7):
            nudge = Similarity.of(np.tile(DIFFERENCE * np.eye(7)[k], (count, 1)))
            derivatives[:, :, k] = (errors(nudge @ first, second) - now) / DIFFERENCE
            derivatives[:, :, 7 + k] = (errors(first, nudge @ second) - now) / DIFFERENCE
        J = csr_array((derivatives.ravel(), (rows.ravel(), columns.ravel())), shape=(7 * count, unknowns))[:, 7:]
        step = -splu((J.T @ J + diags_array(np.full(unknowns - 7, DAMPING))).tocsc()).solve(J.T @ now.ravel())
        nodes = Similarity.of(np.concatenate([np.zeros(7), step]).reshape(-1, 7)) @ nodes
        if np.abs(step).max() < SMALL_STEP:
            break
    return nodes
