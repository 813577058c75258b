"""Memory of matching many images, and the time for a pair among a thousand and among a million.

Fills a database with made-up features and matches growing parts of all pairs, with a matcher that does next to nothing,
so that what is measured is ours: reading, ordering, verification (few matches, so none is estimated), writing. Reports
time per pair, resident memory, and how often images were read. The model to extrapolate with is in
`tiepoint.mapping.blocks`: constant work for a pair, plus at most 4 / B reads of an image, plus 30 bytes in this process
for every pair of the list.

glibc keeps freed memory by rules that change with what was freed before. ``MALLOC_MMAP_THRESHOLD_=131072`` gives it
back, so that two versions of the code can be compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tiepoint import Features, Matches
from tiepoint.mapping.pairs import exhaustive
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import NewImage, Store
from tiepoint.matchers.base import Matcher, Pair, make_matches

RESULTS = Path(__file__).parent / "results" / "mapping_memory"


class Trivial(Matcher):
    """Match the first eight keypoints of one image to those of the other, after looking at all descriptors."""

    name = "trivial"

    def _match_many(self, pairs: Sequence[Pair]) -> list[Matches]:
        index = np.arange(8).repeat(2).reshape(-1, 2)
        return [make_matches(a, b, index, (a.descriptors[:8] @ b.descriptors[0]).sigmoid().numpy()) for a, b in pairs]


def fill(path: Path, images: int, keypoints: int) -> None:
    """Enter images with random features, 128 numbers for each keypoint as SIFT has."""
    import pycolmap

    rng = np.random.default_rng(0)
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=1024, height=768, params=[1200, 512, 384])
    with Store.open(path) as store:
        ids = store.add_images([NewImage(f"{n:06}.jpg", camera, "shared") for n in range(images)])
        for at in range(0, images, 100):
            store.write_features((image, synthetic(rng, keypoints)) for image in list(ids.values())[at : at + 100])


def synthetic(rng: np.random.Generator, keypoints: int) -> Features:
    """Return random features."""
    descriptors = torch.from_numpy(rng.random((keypoints, 128), np.float32))
    points = torch.from_numpy(rng.uniform(0, 700, (keypoints, 2)).astype(np.float32))
    return Features(points, torch.ones(keypoints), torch.nn.functional.normalize(descriptors), (1024, 768), "synthetic")


def resident() -> int:
    """Return how many bytes this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Run the benchmark and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--keypoints", type=int, default=1024)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the database goes; by default a temporary folder")
    arguments = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, Store.open(Path(folder, "database.db")) as store:
        # In a process of its own: what it frees would be used again, and hide what matching needs.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as filling:
            filling.submit(fill, store.path, arguments.images, arguments.keypoints).result()
        before = resident()
        everything = exhaustive([image.image_id for image in store.images()])
        done = 0
        for count in arguments.pairs:
            # The first so many images, all with all: the block of pairs in one corner grows.
            corner = everything[everything[:, 1] <= np.ceil((1 + np.sqrt(1 + 8 * count)) / 2)][:count]
            begin = time.perf_counter()
            found = match_into(store, corner, Trivial())
            seconds = time.perf_counter() - begin
            rows.append(
                {
                    "pairs": found.matched,
                    "milliseconds_per_pair": round(1000 * seconds / max(1, found.matched), 3),
                    "reads_per_pair": round(found.reads / max(1, found.matched), 4),
                    "resident_MiB": resident() >> 20,
                }
            )
            done += found.matched
            print(rows[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{arguments.images} images: {before >> 20} MiB before matching, peak {peak} MiB, {done} pairs")
    RESULTS.mkdir(parents=True, exist_ok=True)
    summary = {
        "images": arguments.images,
        "keypoints": arguments.keypoints,
        "before_MiB": before >> 20,
        "peak_MiB": peak,
        "rows": rows,
    }
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
