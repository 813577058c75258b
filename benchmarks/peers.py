"""Other packages' matchers beside tiepoint's, in one process, on the same pairs and, where possible, features.

- LightGlue of kornia and of transformers (both equivalent to the original code), on ALIKED and DISK features
- XFeat with LighterGlue: tiepoint's and kornia's
- SuperPoint with SuperGlue: tiepoint's
- SIFT and ORB of OpenCV itself with brute-force matching and ratio test

Run ``python benchmarks/peers.py --limit 2`` for a rehearsal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import cv2
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import tiepoint as tp
from tiepoint import evaluation
from tiepoint.errors import TiepointError
from tiepoint.evaluation.speed import cpu_threads
from tiepoint.matchers.base import make_matches, no_matches
from tiepoint.matchers.lightglue import WEIGHTS_FOR
from tiepoint.types import Features, Image, Matches

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval"

# kornia's names of what it calls the features of a LightGlue.
KORNIA_NAMES = {"aliked-n16": "aliked", "disk": "disk", "xfeat": "xfeat"}


class KorniaLightGlue:
    """kornia's LightGlue with the official weights, read from this machine instead of downloaded."""

    def __init__(self, features: str, adaptive: bool, device: str = "cpu") -> None:
        import kornia.feature

        path = tp.weights.resolve(WEIGHTS_FOR[features])
        read = mock.Mock(return_value=torch.load(path, map_location="cpu", weights_only=True))
        with mock.patch("kornia.feature.lightglue.load_state_dict_from_url", read):
            self.model = kornia.feature.LightGlue(KORNIA_NAMES[features]).eval().to(device)
        read.assert_called_once()
        self.device = device
        if not adaptive:
            self.model.conf.depth_confidence = self.model.conf.width_confidence = -1

    @torch.inference_mode()
    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Match one pair."""
        if not len(features0) or not len(features1):
            return no_matches(features0, features1)
        sides = {"image0": self._side(features0), "image1": self._side(features1)}
        found = self.model(sides)
        matches = make_matches(
            features0, features1, found["matches"][0].cpu().numpy(), found["scores"][0].cpu().numpy()
        )
        return with_layers(matches, found["stop"], found["prune0"][0], found["prune1"][0])

    def _side(self, features: Features) -> dict[str, Tensor]:
        size = torch.tensor(features.image_size, dtype=torch.float32)
        # kornia refuses the half pixel that lies left of the first pixel's centre.
        keypoints = torch.minimum(features.keypoints.cpu().clamp(min=0), size)
        side = {"keypoints": keypoints, "descriptors": features.descriptors, "image_size": size}
        return {name: value[None].to(self.device) for name, value in side.items()}


class TransformersLightGlue:
    """transformers' LightGlue with the official weights; full depth.

    It detects keypoints itself and takes pairs of one image size; called below that, it takes ours. Positions
    are normalised here, by each image's own size, and handed over such that its normalisation changes nothing.
    """

    def __init__(self, features: str, device: str = "cpu") -> None:
        from transformers import LightGlueConfig, LightGlueForKeypointMatching, SuperPointConfig

        state, config = tp.weights.load(WEIGHTS_FOR[features])
        self.model = LightGlueForKeypointMatching(
            LightGlueConfig(
                keypoint_detector_config=SuperPointConfig(descriptor_decoder_dim=config["input_dim"]),
                depth_confidence=-1.0,
                width_confidence=-1.0,
            )
        )
        renamed = rename_for_transformers(state, heads=self.model.config.num_attention_heads)
        # The original files also hold parameters that no code uses; what counts is that every one here is set.
        missing = [name for name in self.model.state_dict() if name not in renamed]
        if any(not name.startswith("keypoint_detector.") for name in missing):
            raise RuntimeError(f"transformers' LightGlue has parameters without a value: {missing}")
        self.model.load_state_dict(renamed, strict=False)
        self.model.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, features0: Features, features1: Features) -> Matches:
        """Match one pair."""
        sides = features0, features1
        longest = max(map(len, sides))
        if not min(map(len, sides)):
            return no_matches(features0, features1)
        width = features0.descriptors.shape[1]
        keypoints, descriptors = torch.zeros(1, 2, longest, 2), torch.zeros(1, 2, longest, width)
        mask = torch.zeros(1, 2, longest, dtype=torch.int)
        for i, side in enumerate(sides):
            size = torch.tensor(side.image_size, dtype=torch.float32)
            keypoints[0, i, : len(side)] = (side.keypoints.cpu() - size / 2) / (size.max() / 2) + 1
            descriptors[0, i, : len(side)] = side.descriptors
            mask[0, i, : len(side)] = 1
        inputs = (t.to(self.device) for t in (keypoints, descriptors))
        found, scores, *_ = self.model._match_image_pair(*inputs, 2, 2, mask=mask.to(self.device))
        partner = found.reshape(2, longest)[0, : len(features0)].cpu().numpy()
        score = scores.reshape(2, longest)[0, : len(features0)].cpu().numpy()
        index = np.flatnonzero(partner >= 0)
        pairs = np.stack([index, partner[index]], axis=1).astype(np.int64)
        matches = make_matches(features0, features1, pairs, score[index])
        return with_layers(matches, self.model.num_layers)


def rename_for_transformers(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Give the original parameters transformers' names, and cut the interleaved q, k, v apart."""
    renamed: dict[str, Tensor] = {}
    names = {
        "input_proj": "input_projection",
        "posenc.Wr": "positional_encoder.projector",
        "out_proj": "o_proj",
        "to_out": "o_proj",
        "to_v": "v_proj",
        "final_proj": "final_projection",
        "token.0": "token",
        "log_assignment": "match_assignment_layers",
    }
    for old, tensor in state.items():
        parts = old.split(".")
        if parts[0] in ("self_attn", "cross_attn"):  # older key order: self_attn.0, not transformers.0.self_attn
            old = ".".join(["transformers", parts[1], parts[0], *parts[2:]])
        if not old.startswith(("input_proj", "posenc", "transformers", "log_assignment", "token_confidence")):
            continue
        name = old.replace("transformers.", "transformer_layers.")
        for before, after in names.items():
            name = name.replace(before, after)
        for unit in ("self", "cross"):
            for before, after in (("ffn.0", "fc1"), ("ffn.1", "layer_norm"), ("ffn.3", "fc2")):
                name = name.replace(f"{unit}_attn.{before}", f"{unit}_mlp.{after}")
            name = name.replace(f"{unit}_attn.", f"{unit}_attention.")
        if "Wqkv" in name:
            by_head = tensor.unflatten(0, (heads, -1, 3))
            for i, kind in enumerate("qkv"):
                renamed[name.replace("Wqkv", f"{kind}_proj")] = by_head[:, :, i].flatten(0, 1)
        elif "to_qk" in name:  # one matrix for queries and keys
            renamed[name.replace("to_qk", "q_proj")] = renamed[name.replace("to_qk", "k_proj")] = tensor
        else:
            renamed[name] = tensor
    return renamed


class OpenCVDetector:
    """A detector of OpenCV with its own descriptors, as its tutorials use it."""

    def __init__(self, detector: cv2.Feature2D, name: str) -> None:
        self.detector = detector
        self.name = name

    def __call__(self, image: Image) -> Features:
        """Detect and describe."""
        grey = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY)
        keypoints, descriptors = self.detector.detectAndCompute(grey, None)
        if descriptors is None:
            size, dtype = self.detector.descriptorSize(), np.uint8 if self.name == "orb" else np.float32
            descriptors = np.zeros((0, size), dtype)
        return Features(
            torch.tensor(np.array([k.pt for k in keypoints], np.float32).reshape(-1, 2)),
            torch.ones(len(keypoints)),
            torch.from_numpy(descriptors),
            image.size,
            self.name,
        )


def opencv_ratio_test(features0: Features, features1: Features, ratio: float = 0.75) -> Matches:
    """Match with OpenCV's brute force, Lowe's ratio test in both directions, and a mutual check."""
    norm = cv2.NORM_HAMMING if features0.is_binary else cv2.NORM_L2
    if min(len(features0), len(features1)) < 2:
        return no_matches(features0, features1)
    one, two = features0.descriptors.numpy(), features1.descriptors.numpy()

    def good(query: Any, train: Any) -> dict[int, int]:
        candidates = cv2.BFMatcher(norm).knnMatch(query, train, k=2)
        return {a.queryIdx: a.trainIdx for a, b in candidates if a.distance < ratio * b.distance}

    forth, back = good(one, two), good(two, one)
    pairs = np.array([(i, j) for i, j in forth.items() if back.get(j) == i], np.int64).reshape(-1, 2)
    return make_matches(features0, features1, pairs, np.ones(len(pairs), np.float32))


def with_layers(matches: Matches, stop: int, prune0: Tensor | None = None, prune1: Tensor | None = None) -> Matches:
    """Add what an adaptive matcher tells about its layers."""
    layers = {
        name: None if prune is None else prune.cpu().numpy().astype(np.int64)
        for name, prune in (("prune_layer0", prune0), ("prune_layer1", prune1))
    }
    return replace(matches, stop_layer=int(stop), **layers)


class Remembered:
    """An extractor that remembers its results, so that all matchers see the same features at no cost."""

    def __init__(self, extract: Callable[[Image], Features]) -> None:
        self.extract = extract
        self.known: dict[bytes, Features] = {}

    def __call__(self, image: Image) -> Features:
        """Extract, once per content."""
        key = hashlib.blake2b(image.pixels.tobytes() + repr(image.size).encode()).digest()
        if key not in self.known:
            self.known[key] = self.extract(image)
        return self.known[key]


def peers(max_keypoints: int, device: str) -> list[tuple[str, Callable[[], tuple[Any, Any]]]]:
    """Return label and a function that loads extractor and matcher, for every peer."""

    @lru_cache(maxsize=1)  # consecutive peers share one extractor
    def extractor(name: str) -> Remembered:
        return Remembered(tp.features.load(name, device=device, max_keypoints=max_keypoints))

    def ours(features: str, matcher: str, **options: Any) -> Callable[[], tuple[Any, Any]]:
        return lambda: (
            extractor(features),
            tp.matchers.load(matcher, features=features, device=device, **options),
        )

    table: list[tuple[str, Callable[[], tuple[Any, Any]]]] = []
    for features, name in (
        ("aliked-n16", "ALIKED+LightGlue"),
        ("disk", "DISK+LightGlue"),
        ("xfeat", "XFeat+LighterGlue"),
    ):
        table.append((f"{name}, tiepoint", ours(features, "lightglue")))
        table.append((f"{name}, tiepoint full depth", ours(features, "lightglue", adaptive=False)))
        for adaptive in (True, False):
            table.append(
                (
                    f"{name}, kornia" + ("" if adaptive else " full depth"),
                    lambda f=features, a=adaptive: (extractor(f), KorniaLightGlue(f, a, device)),
                )
            )
        if features != "xfeat":
            table.append(
                (
                    f"{name}, transformers full depth",
                    lambda f=features: (extractor(f), TransformersLightGlue(f, device)),
                )
            )
    table.append(("SuperPoint+SuperGlue, tiepoint", ours("superpoint", "superglue")))
    table.append(("SIFT+nearest, tiepoint", ours("sift", "nearest")))
    table.append(
        (
            "SIFT+ratio test, OpenCV",
            lambda: (OpenCVDetector(cv2.SIFT_create(max_keypoints), "sift"), opencv_ratio_test),
        )
    )
    table.append(
        (
            "ORB+ratio test, OpenCV",
            lambda: (OpenCVDetector(cv2.ORB_create(max_keypoints), "orb"), opencv_ratio_test),
        )
    )
    return table


def main(
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Only this set; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many pairs of each set.")] = None,
    max_keypoints: int = 2048,
    device: str = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "peers",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the folder holds.")] = False,
) -> None:
    """Evaluate tiepoint's matchers and their peers on the same pairs."""
    pairs = evaluation.load_pairs(data, set_, limit)
    runs = []
    with cpu_threads(threads), Progress(transient=True) as progress:
        for label, load in peers(max_keypoints, device):
            task = progress.add_task(label, total=len(pairs))
            try:
                extract, match = load()
            except (TiepointError, ImportError) as error:
                print(f"left out {label}: {error}")
                continue
            runs.append(
                evaluation.evaluate_pairs(
                    pairs,
                    extract,
                    match,
                    label,
                    {"max_keypoints": max_keypoints, "device": device},
                    output / f"{label.replace(' ', '_').replace(',', '')}.jsonl",
                    not fresh,
                    lambda row, done, total, task=task: progress.update(task, completed=done),
                )
            )
    console = Console() if Console().is_terminal else Console(width=200)  # a file has no width
    console.print(*evaluation.rich_tables(runs))
    for path in evaluation.save(runs, output):
        print(f"wrote {path}")
    print("Extraction is timed for the first of the peers that share features.")


if __name__ == "__main__":
    typer.run(main)
