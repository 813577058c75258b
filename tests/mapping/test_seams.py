"""Parts of a model that stand wrong to each other are found where they meet."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from synthetic_scene import SyntheticScene
from tiepoint.mapping import Store
from tiepoint.mapping.steps.assess import assess
from tiepoint.mapping.steps.seams import seams

NAMES = [f"{n}.jpg" for n in range(7)]


def part_in_two(model: pycolmap.Reconstruction, images: set[int], points: list[int], scale: float = 1.0) -> None:
    """Give the images of a part points of their own, scaled about the origin, instead of those that all see."""
    for point_id in points:
        seen = [(element.image_id, element.point2D_idx) for element in model.points3D[point_id].track.elements]
        part = [(image, index) for image, index in seen if image in images]
        if len(part) < 2 or len(seen) - len(part) < 2:
            continue
        xyz = model.points3D[point_id].xyz.copy()
        for image, index in part:
            model.delete_observation(image, index)
        track = pycolmap.Track([pycolmap.TrackElement(image, index) for image, index in part])
        model.add_point3D(scale * xyz, track, np.zeros(3, np.uint8))


@pytest.mark.parametrize("seed", range(4))
def test_seams_are_the_cuts_of_the_heaviest_tree(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = SyntheticScene(NAMES, seed=seed, points=60)
    chain = [(i, i + 1) for i in range(len(NAMES) - 1)]
    more = [pair for pair in combinations(range(len(NAMES)), 2) if rng.random() < 0.4 and pair not in chain]
    world.write_database(tmp_path / "world.db", pairs=chain + more)
    model = world.model()
    for _ in range(3):
        part = {int(i) for i in rng.permutation(np.arange(1, 8))[:3]}
        part_in_two(model, part, [int(p) for p in rng.permutation(sorted(model.point3D_ids()))[:20]])
    with Store.open(tmp_path / "world.db") as store:
        pairs = sorted(store.verified_pairs())
        found = seams(model, store, pairs)
        counts: dict[tuple[int, int], Counter[bool]] = {}
        for a, b in pairs:
            points = [model.images[i].points2D for i in (a, b)]
            ends = [(points[0][m], points[1][n]) for m, n in store.geometry(a, b).matches]
            seen = [pair for pair in ends if all(end.has_point3D() for end in pair)]
            counts[a, b] = Counter(left.point3D_id == right.point3D_id for left, right in seen)

    # Kruskal's algorithm: pairs, the heaviest first, that join two groups.
    group = {i: {i} for i in range(1, 8)}
    weight = 0
    for a, b in sorted(pairs, key=lambda pair: -counts[pair][True]):
        if group[a] is not group[b]:
            weight += counts[a, b][True]
            joined = group[a] | group[b]
            group |= dict.fromkeys(joined, joined)
    edges = [(min(seam.image, seam.other), max(seam.image, seam.other)) for seam in found]
    assert len(set(edges)) == len(NAMES) - 1
    assert sum(counts[edge][True] for edge in edges) == weight

    for seam, edge in zip(found, edges, strict=True):
        side = {seam.image}
        while more_of_it := {j for e in edges for i, j in (e, e[::-1]) if e != edge and i in side and j not in side}:
            side |= more_of_it
        across = sum((counts[pair] for pair in pairs if len(side & set(pair)) == 1), Counter())
        assert (seam.size, seam.one, seam.two) == (len(side), across[True], across[False])
        assert 2 * seam.size <= len(NAMES)
    assert [seam.torn for seam in found] == sorted((seam.torn for seam in found), reverse=True)


def test_a_part_at_the_wrong_scale_is_doubted(tmp_path: Path) -> None:
    world = SyntheticScene([f"{n}.jpg" for n in range(8)], points=400, noise=0.3)
    world.write_database(tmp_path / "world.db")
    model = world.model()
    points = sorted(model.point3D_ids())
    with Store.open(tmp_path / "world.db") as store:
        for torn, share in (("", 0.3), ("two points of the model", 0.85)):
            part_in_two(model, {5, 6, 7, 8}, points[: int(share * len(points))], scale=3)
            told = assess(model, store, store.verified_pairs(), 8)
            assert torn in str(told)
            assert (told.verdict == "doubtful") == bool(torn), told
        assert "4 of its photographs, those that" in str(told)
        assert told.torn > 0.7


def test_a_photograph_that_hangs_on_a_few_matches_is_named(tmp_path: Path) -> None:
    world = SyntheticScene([f"{n}.jpg" for n in range(8)], points=400, noise=0.3)
    world.write_database(tmp_path / "world.db")
    model = world.model()
    kept = 0
    for index, point in enumerate(list(model.images[8].points2D)):
        if point.has_point3D() and len(model.points3D[point.point3D_id].track.elements) > 2:
            kept += 1
            if kept > 2:
                model.delete_observation(8, index)
    with Store.open(tmp_path / "world.db") as store:
        told = assess(model, store, store.verified_pairs(), 8)
    assert told.verdict == "doubtful"
    assert "only 14 matches, between 7.jpg and 0.jpg, " in str(told)
    assert "hold 1 of its photographs to the others" in str(told)
