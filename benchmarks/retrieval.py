"""Of the pairs that exhaustive matching verifies, which does retrieval keep, and at how many pairs.

    python benchmarks/retrieval.py

throws all evaluation and demo photographs into one collection. Two of them are a true pair if SIFT (1024 keypoints),
mutual nearest neighbours with a ratio test, and a fundamental matrix find at least 30 inliers. Matching the 34,980
pairs takes 11 minutes of one core, once: features and inliers are kept in ``--cache``, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiepoint import features, geometry
from tiepoint.mapping.pairs import Pairs, by_retrieval, expand_covisibility
from tiepoint.mapping.pairs.retrieval import DIMENSIONS, WORDS, Vocabulary, most_similar
from tiepoint.types import Features

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"
KEYPOINTS, LONG_SIDE, RATIO = 1024, 1024, 0.8
MIN_MATCHES, MAX_ITERATIONS = 15, 2000  # pairs with fewer matches are not verified
TRUE = 30  # inliers
TOP = (5, 10, 15, 20)
HARD = ("lund", "sacre_coeur", "7scenes")  # each also as a collection by itself
SEEDS = (0, 1, 2)

Vectors = NDArray[np.float32]
Describe = Callable[[list[Features], list[Features], int], Vectors]


def extract(paths: list[Path], file: Path) -> list[Features]:
    """Extract every photograph once; later runs read the file."""
    if not file.exists():
        extractor = features.load("sift", max_keypoints=KEYPOINTS, long_side=LONG_SIDE)
        torch.save([vars(extractor(path)) for path in paths], file)
    return [Features(**item) for item in torch.load(file, weights_only=True)]


def mutual_matches(a: torch.Tensor, b: torch.Tensor) -> NDArray[np.int64]:
    """Match unit descriptors (N, D) and (M, D) by mutual nearest neighbours and ratio, in float32 for speed."""
    similarity = a @ b.T
    best0, nearest0 = similarity.max(1)
    nearest1 = similarity.argmax(0)
    index0 = torch.nonzero(nearest1[nearest0] == torch.arange(len(a))).flatten()
    index1 = nearest0[index0]
    best = best0[index0]
    similarity[index0, index1] = -1  # leaves the second nearest of every mutual match, seen from either side
    second = torch.maximum(similarity[index0].amax(1), similarity[:, index1].amax(0))
    keep = (2 - 2 * best).clamp(min=0) < RATIO**2 * (2 - 2 * second)
    return torch.stack([index0, index1], 1)[keep].numpy()


def count_inliers(found: list[Features], file: Path) -> NDArray[np.int64]:
    """Count the inliers of every pair, int64 (N, N), symmetric; goes on where it was interrupted."""
    inliers = np.load(file) if file.exists() else np.full((len(found), len(found)), -1)
    for i in range(len(found)):
        if (inliers[i, i + 1 :] >= 0).all():
            continue
        for j in range(i + 1, len(found)):
            matches = mutual_matches(found[i].descriptors, found[j].descriptors)
            inliers[i, j] = 0
            if len(matches) >= MIN_MATCHES:
                points = found[i].keypoints[matches[:, 0]].numpy(), found[j].keypoints[matches[:, 1]].numpy()
                inliers[i, j] = geometry.estimate_fundamental(*points, max_iterations=MAX_ITERATIONS).inliers.sum()
        np.save(file, inliers)
        print(f"{i + 1}/{len(found)}: {(inliers[i] >= TRUE).sum()} true pairs", flush=True)
    return np.maximum(np.maximum(inliers, inliers.T), 0)


# ---- ways to describe photographs: (to describe, to learn from, seed) -> float32 (N, M) ----


def vlad(words: int, dimensions: int) -> Describe:
    """As the package does it, with another vocabulary."""

    def describe(photos: list[Features], teachers: list[Features], seed: int) -> Vectors:
        vocabulary = Vocabulary.train(teachers, words, dimensions, seed)
        return np.stack([vocabulary.describe(photo) for photo in photos])

    return describe


def power_law(describe: Describe) -> Describe:
    """Take the square root of every number, keeping its sign."""

    def powered(photos: list[Features], teachers: list[Features], seed: int) -> Vectors:
        vectors = describe(photos, teachers, seed)
        return unit(np.sign(vectors) * np.sqrt(np.abs(vectors)))

    return powered


def whitened(describe: Describe, dimensions: int, exponent: float) -> Describe:
    """Keep the principal axes of the photographs learned from, each divided by its deviation to a power."""

    def white(photos: list[Features], teachers: list[Features], seed: int) -> Vectors:
        both = describe(photos + teachers, teachers, seed)
        vectors, learned = both[: len(photos)], both[len(photos) :]
        mean = learned.mean(0)
        _, deviation, axes = np.linalg.svd(learned - mean, full_matrices=False)
        kept = min(dimensions, int((deviation > 1e-3 * deviation[0]).sum()))
        return unit((vectors - mean) @ axes[:kept].T / deviation[:kept] ** exponent)

    return white


def fisher(words: int, dimensions: int, rounds: int = 10) -> Describe:
    """Gradients by the means and variances of a mixture of Gaussians, with power law (Perronnin et al., ECCV 2010)."""

    def describe(photos: list[Features], teachers: list[Features], seed: int) -> Vectors:
        start = Vocabulary.train(teachers, words, dimensions, seed)

        def projected(photo: Features, most: int) -> Vectors:
            rows = np.random.default_rng(seed).permutation(len(photo))[:most]
            return (photo.descriptors.numpy()[rows] - start.mean) @ start.axes.T

        sample = np.concatenate([projected(photo, 150) for photo in teachers])
        means, variances = start.words, np.tile(sample.var(0), (len(start.words), 1))
        priors = np.full(len(means), 1 / len(means), np.float32)

        def shares(x: Vectors) -> Vectors:
            log = np.log(priors) - 0.5 * (np.log(variances) + means**2 / variances).sum(1)
            log = log + x @ (means / variances).T - 0.5 * x**2 @ (1 / variances).T
            share = np.exp(log - log.max(1, keepdims=True))
            return share / share.sum(1, keepdims=True)

        for _ in range(rounds):
            share = shares(sample)
            weight = share.sum(0)[:, None] + 1e-6
            means = share.T @ sample / weight
            variances = np.maximum(share.T @ sample**2 / weight - means**2, 1e-4)
            priors = weight[:, 0] / weight.sum()

        vectors = []
        for photo in photos:
            x = projected(photo, len(photo))
            share = shares(x)
            weight, first, second = share.sum(0)[:, None], share.T @ x, share.T @ x**2
            by_mean = (first - weight * means) / np.sqrt(variances * priors[:, None])
            by_variance = (second - 2 * means * first + weight * (means**2 - variances)) / variances
            parts = np.stack([by_mean, by_variance / np.sqrt(2 * priors[:, None])])
            vectors.append((np.sign(parts) * np.sqrt(np.abs(parts))).ravel())
        return unit(np.stack(vectors))

    return describe


def unit(vectors: Vectors) -> Vectors:
    """Scale rows to unit length."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors / lengths, np.float32)


# ---- what is measured ----


def filled(looks: Vectors, true: NDArray[np.bool_], top_k: int) -> float:
    """Of the places that true partners could fill among each image's ``top_k``, return the share that they do fill."""
    rows, _ = most_similar(looks, looks, top_k + 1)
    hits = sum(true[i, [j for j in row if j != i][:top_k]].sum() for i, row in enumerate(rows))
    return float(hits / np.minimum(true.sum(1), top_k).sum())


def recall(pairs: Pairs, true: NDArray[np.bool_]) -> float:
    """Return the share of the true pairs, bool (N, N), symmetric, that a list of pairs (P, 2) holds."""
    return float(true[pairs[:, 0], pairs[:, 1]].sum() / (true.sum() / 2))


def bound(true: NDArray[np.bool_], top_k: int) -> float:
    """Return a recall that no choice of ``top_k`` partners for each image can exceed, however good.

    In a group of photographs that all overlap, as on a turntable, each has more true partners than it may choose.
    """
    few = true.sum(1) <= top_k
    crowded = true & ~few[:, None] & ~few
    all_pairs, crowded_pairs = true.sum() / 2, crowded.sum() / 2
    chosen = min(crowded_pairs, np.minimum(crowded.sum(1), top_k).sum())
    return float((all_pairs - crowded_pairs + chosen) / all_pairs)


def expanded(pairs: Pairs, inliers: NDArray[np.int64], rounds: int) -> Pairs:
    """Add pairs by covisibility, at most so many times; ``inliers`` plays matching and verification."""
    for _ in range(rounds):
        tried = {(i, j) for i, j in pairs.tolist()}
        new = expand_covisibility({pair: int(inliers[pair]) for pair in tried if inliers[pair] >= TRUE}, tried)
        if len(new) == 0:
            break
        pairs = np.concatenate([pairs, new])
    return pairs


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table; fractions are written as percentages."""
    text = [[f"{100 * cell:.1f}" if isinstance(cell, float) else f"{cell}" for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *text])


def main() -> None:
    """Measure, print the tables, and write them and their numbers to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with eval/, demo/ and train/")
    parser.add_argument("--cache", type=Path, default=HERE.parents[1] / "runs" / "retrieval")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "retrieval")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)

    paths = sorted(path for kind in ("eval", "demo") for path in (options.data / kind).glob("*/images/*"))
    photos = extract(paths, options.cache / "features.pt")
    pool = extract(sorted((options.data / "train").glob("*/*.webp"))[::8], options.cache / "pool.pt")
    inliers = count_inliers(photos, options.cache / "inliers.npy")
    true = inliers >= TRUE
    sets = np.array([path.parent.parent.name for path in paths])
    collections = [np.arange(len(paths)), *(np.flatnonzero(sets == name) for name in HARD)]

    ways: list[tuple[str, Describe, bool]] = [
        (f"VLAD {words} x {dimensions}, from {'the pool' if pooled else 'itself'}", vlad(words, dimensions), pooled)
        for words, dimensions, pooled in (
            (WORDS, DIMENSIONS, False),
            (WORDS, DIMENSIONS, True),
            (64, 32, False),
            (32, 64, False),
            (256, 8, False),
            (256, 16, False),
            (128, 64, False),
        )
    ]
    chosen = vlad(WORDS, DIMENSIONS)
    ways += [
        ("the first, with power law", power_law(chosen), False),
        ("the first, half whitened to 256", whitened(chosen, 256, 0.5), False),
        ("the second, PCA to 256", whitened(chosen, 256, 0.0), True),
        ("the second, half whitened to 256", whitened(chosen, 256, 0.5), True),
        ("Fisher 64 x 16, from itself", fisher(64, 16), False),
        ("Fisher 64 x 32, from itself", fisher(64, 32), False),
    ]
    compared = []
    for name, describe, pooled in ways:
        runs = []
        for seed in SEEDS:
            scores = []
            for members in collections:
                own = [photos[i] for i in members]
                looks = describe(own, pool if pooled else own, seed)
                part = true[np.ix_(members, members)]
                tops = (5, 10, 20) if len(members) == len(paths) else (5,)
                scores += [filled(looks, part, top_k) for top_k in tops]
                if len(members) == len(paths):
                    length = looks.shape[1]
            runs.append(scores)
        compared.append([name, length, *np.mean(runs, axis=0).tolist()])
        print(compared[-1], flush=True)

    looks = chosen(photos, photos, 0)
    rounds = (0, 1, 2, len(paths))
    growth = {
        top_k: [expanded(by_retrieval(np.arange(len(paths)), looks, top_k), inliers, n) for n in rounds]
        for top_k in TOP
    }
    curve = [
        [top_k, bound(true, top_k), filled(looks, true, top_k), *(x for p in stages for x in (len(p), recall(p, true)))]
        for top_k, stages in growth.items()
    ]
    by_set = []
    for name in sorted(set(sets)):
        mask = true & (sets == name)[:, None] & (sets == name)
        if mask.any():
            shares = [recall(pairs, mask) for pairs in growth[10]]
            by_set.append([name, int((sets == name).sum()), int(mask.sum() // 2), bound(mask, 10), *shares])
    crossing = int((true & (sets[:, None] != sets)).sum() // 2)

    stages = ["top k alone", "+ 1 round", "+ 2 rounds", "+ all rounds"]
    crowded = int((true.sum(1) > 10).sum())
    report = f"""# Retrieval

{len(paths)} photographs in one collection. Of their {len(paths) * (len(paths) - 1) // 2:,} pairs {true.sum() // 2:,}
are true (SIFT, {KEYPOINTS} keypoints, at least {TRUE} inliers); {crossing} of these join photographs of different
sets. All shares are in percent.

## Pairs and recall

"Bound" is the share of the true pairs that any choice of k partners for each photograph could hold at most:
{crowded} of the photographs have more than 10 true partners. "Filled" is the share of the places that true partners
could fill among the k that they do fill. A round is one call of `expand_covisibility`.

{table(["k", "bound", "filled", *(part for stage in stages for part in (f"pairs, {stage}", "recall"))], curve)}

## By set, k = 10

{table(["set", "photographs", "true pairs", "bound", *(f"recall, {stage}" for stage in stages)], by_set)}

## Ways to describe a photograph

Share of places filled, mean of {len(SEEDS)} seeds: in the whole collection, and in three sets as collections of
their own. "The pool" is {len(pool)} training photographs, none of them from these sets.

{table(["", "numbers", "k = 5", "k = 10", "k = 20", *(f"{name}, k = 5" for name in HARD)], compared)}
"""
    (options.output / "results.md").write_text(report)
    numbers = {"curve": curve, "by set": by_set, "ways": compared}
    (options.output / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(report)


if __name__ == "__main__":
    main()
