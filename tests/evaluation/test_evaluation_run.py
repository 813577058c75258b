"""Running benchmarks: perfect and random matches, failures, resuming, tables."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import tiepoint as tp
from tiepoint import evaluation
from tiepoint.errors import ArgumentError, InputError
from tiepoint.evaluation import EvalPair, HomographyTruth, Picture, PoseTruth, Row, Run, evaluate_pairs, summarise
from tiepoint.evaluation.speed import cpu_threads, made_up_pair
from tiepoint.geometry.homography import transform
from tiepoint.matchers.base import make_matches
from tiepoint.types import Features, Image

SIZE = (320, 240)
H = np.array([[0.9, 0.08, 12.0], [-0.06, 1.05, -4.0], [1e-4, -5e-5, 1.0]])
K = np.array([[400.0, 0, 160], [0, 400, 120], [0, 0, 1]])
R = cv2.Rodrigues(np.array([0.05, -0.1, 0.02]))[0]
T = np.array([0.5, 0.1, -0.05])


class Oracle:
    """Knows where the same 80 world points appear in every made-up picture, and which is which."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(3)
        flat = rng.uniform([20, 20], [260, 210], (80, 2))
        world = rng.uniform([-1, -0.8, 4], [1, 0.8, 8], (80, 3))
        moved = world @ R.T + T
        self.points = {
            "flat0": flat,
            "flat1": transform(H, flat),
            "deep0": (world @ K.T)[:, :2] / world[:, 2:],
            "deep1": (moved @ K.T)[:, :2] / moved[:, 2:],
        }
        self.extracted: list[str] = []
        grey = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        for name in self.points:
            cv2.imwrite(str(folder / f"{name}.png"), grey)
        flat_pair = [Picture(folder / "flat0.png"), Picture(folder / "flat1.png")]
        deep_pair = [Picture(folder / "deep0.png"), Picture(folder / "deep1.png")]
        self.pairs = [
            EvalPair("plane", "a", *flat_pair, HomographyTruth(H)),
            EvalPair("plane", "b", *flat_pair, HomographyTruth(H)),
            EvalPair("scene", "a", *deep_pair, PoseTruth(K, K, R, T)),
        ]

    def extract(self, image: Image) -> Features:
        name = Path(image.name).stem
        self.extracted.append(name)
        points = torch.tensor(self.points[name], dtype=torch.float32)
        descriptors = torch.eye(80)
        return Features(points, torch.ones(80), descriptors, image.size, "oracle")

    def match(self, features0: Features, features1: Features):
        index = np.arange(80)
        return make_matches(features0, features1, np.stack([index, index], 1), np.ones(80, np.float32))


def random_match(features0: Features, features1: Features):
    pairs = np.stack([np.arange(80), np.random.default_rng(1).permutation(80)], 1)
    return make_matches(features0, features1, pairs, np.ones(80, np.float32))


@pytest.fixture
def oracle(tmp_path) -> Oracle:
    return Oracle(tmp_path)


def lines_without_times(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def test_perfect_matches_score_one(oracle) -> None:
    run = evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle")
    plane, scene, mean = summarise(run)
    assert plane["pairs"] == 2 and mean["pairs"] == 3 and mean["failed"] == 0
    for key in ("dlt_auc_1px", "ransac_auc_1px", "ransac_auc_5px", "precision", "recall"):
        assert plane[key] > 0.99, key
    assert scene["pose_auc_5deg"] > 0.99 and scene["precision"] == 1.0
    assert scene["recall"] is None and scene["dlt_auc_1px"] is None and plane["pose_auc_5deg"] is None
    assert mean["matches"] == 80 and mean["stop_layer"] is None
    assert mean["pose_auc_5deg"] == scene["pose_auc_5deg"]


def test_random_matches_score_zero(oracle) -> None:
    plane, scene, _ = summarise(evaluate_pairs(oracle.pairs, oracle.extract, random_match, "chance"))
    assert plane["dlt_auc_5px"] < 0.01 and plane["ransac_auc_5px"] < 0.01
    assert scene["pose_auc_5deg"] < 0.3
    assert plane["precision"] < 0.1 and plane["recall"] < 0.1


def test_features_are_extracted_once_per_picture(oracle) -> None:
    evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle")
    assert sorted(oracle.extracted) == ["deep0", "deep1", "flat0", "flat1"]


def test_adaptive_matchers_report_layers(oracle) -> None:
    def match(features0: Features, features1: Features):
        layers = np.where(np.arange(80) < 20, 2, 4)
        return replace(
            oracle.match(features0, features1), stop_layer=4, prune_layer0=layers, prune_layer1=np.full(80, 4)
        )

    row = evaluate_pairs(oracle.pairs[:1], oracle.extract, match, "adaptive").rows[0]
    assert row.stop_layer == 4
    assert row.pruned == 20 / 160


def test_solved_pairs_that_the_verdict_keeps(oracle) -> None:
    """A wrong "no" counts where the pair is solved; where chance matched it, it is right."""

    def match(features0: Features, features1: Features):
        solve = random_match if next(numbers) == 1 else oracle.match
        return replace(solve(features0, features1), overlaps=next(verdicts))

    numbers, verdicts = iter(range(3)), iter([True, False, False])
    plane, scene, _ = summarise(evaluate_pairs(oracle.pairs, oracle.extract, match, "verdict"))
    assert (plane["kept"], scene["kept"]) == (1.0, 0.0)
    silent = summarise(evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle"))
    assert silent[0]["kept"] is None


def test_a_failed_pair_is_a_row_and_an_infinite_error(oracle, tmp_path) -> None:
    gone = EvalPair("plane", "gone", Picture(tmp_path / "gone.png"), oracle.pairs[0].image1, HomographyTruth(H))
    run = evaluate_pairs([*oracle.pairs[:1], gone], oracle.extract, oracle.match, "oracle")
    assert run.rows[1].failure is not None and "gone.png" in run.rows[1].failure
    (plane,) = summarise(run)
    assert plane["failed"] == 1
    assert plane["dlt_auc_5px"] == pytest.approx(0.5, abs=0.01)
    assert plane["precision"] == 1.0  # of the pairs that ran

    def broken(features0: Features, features1: Features):
        raise RuntimeError("out of memory")

    failed = evaluate_pairs(oracle.pairs, oracle.extract, broken, "broken")
    assert {row.failure for row in failed.rows} == {"RuntimeError: out of memory"}
    assert summarise(failed)[0]["ransac_auc_5px"] == 0.0


def test_no_matches_is_an_infinite_error_not_a_failure(oracle) -> None:
    def nothing(features0: Features, features1: Features):
        return make_matches(features0, features1, np.zeros((0, 2), np.int64), np.zeros(0, np.float32))

    run = evaluate_pairs(oracle.pairs, oracle.extract, nothing, "nothing")
    assert [row.failure for row in run.rows] == [None] * 3
    plane, scene, _ = summarise(run)
    assert plane["ransac_auc_5px"] == plane["dlt_auc_5px"] == scene["pose_auc_20deg"] == 0.0
    assert plane["precision"] == plane["recall"] == 0.0


@pytest.mark.parametrize("damage", ["interrupted", "half a line", "not even a header"])
def test_resuming_equals_an_undisturbed_run(oracle, tmp_path, damage) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle", {"k": 1}, whole)
    lines = whole.read_text().splitlines(keepends=True)
    broken.write_text(
        {
            "interrupted": "".join(lines[:2]),
            "half a line": "".join(lines[:2]) + lines[2][:30],
            "not even a header": lines[0][:20],
        }[damage]
    )
    oracle.extracted.clear()
    again = evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle", {"k": 1}, broken)
    assert lines_without_times(broken) == lines_without_times(whole)
    assert [(row.set, row.pair) for row in again.rows] == [(p.set, p.name) for p in oracle.pairs]
    if damage != "not even a header":
        assert asdict(again.rows[0]) == json.loads(lines[1])  # taken over, times and all
    # A finished run does no work at all.
    oracle.extracted.clear()
    evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle", {"k": 1}, broken)
    assert oracle.extracted == []


def test_failed_rows_are_tried_again(oracle, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"

    def broken(features0: Features, features1: Features):
        raise RuntimeError("interrupted network drive")

    evaluate_pairs(oracle.pairs[:2], oracle.extract, broken, "oracle", path=path)
    run = evaluate_pairs(oracle.pairs[:2], oracle.extract, oracle.match, "oracle", path=path)
    assert [row.failure for row in run.rows] == [None, None]


def test_another_configuration_is_refused_unless_restarted(oracle, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    evaluate_pairs(oracle.pairs[:1], oracle.extract, oracle.match, "oracle", {"max_keypoints": 100}, path)
    with pytest.raises(ArgumentError, match="max_keypoints: 100 there, 200 now"):
        evaluate_pairs(oracle.pairs[:1], oracle.extract, oracle.match, "oracle", {"max_keypoints": 200}, path)
    fresh = evaluate_pairs(
        oracle.pairs[:1], oracle.extract, oracle.match, "oracle", {"max_keypoints": 200}, path, resume=False
    )
    assert len(lines_without_times(path)) == len(fresh.rows) == 1
    path.write_text("this is\nno result file\n")
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        evaluate_pairs(oracle.pairs[:1], oracle.extract, oracle.match, "oracle", path=path)


def test_tables_and_files(oracle, tmp_path) -> None:
    runs = [
        evaluate_pairs(oracle.pairs, oracle.extract, oracle.match, "oracle"),
        evaluate_pairs(oracle.pairs, oracle.extract, random_match, "chance"),
    ]
    titles = [str(table.title) for table in evaluation.rich_tables(runs)]
    assert titles == ["plane", "scene", "mean"]
    paths = evaluation.save(runs, tmp_path / "out")
    assert [path.name for path in paths] == ["summary.json", "summary.csv", "summary.md"]
    document = json.loads(paths[0].read_text())
    assert document[0]["label"] == "oracle" and len(document[0]["sets"]) == 3
    assert document[0]["environment"]["torch"] == torch.__version__
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[0]["dlt_auc_5px"]) > 0.99 and rows[0]["pose_auc_5deg"] == ""
    text = paths[2].read_text()
    assert "## plane" in text and "| oracle | 2 |" in text and "AUC pose @5/10/20°" in text
    assert "failed" not in text.split("## scene")[0]  # nothing failed, nothing said


def test_means_are_over_sets_not_pairs() -> None:
    rows = [Row("a", str(i), "homography", precision=1.0, dlt_error=0.0) for i in range(9)]
    rows += [Row("b", "0", "homography", precision=0.0), Row("b", "1", "pose", pose_error=0.0)]
    *_, mean = summarise(Run("x", rows, {}))
    assert mean["set"] == "mean" and mean["precision"] == 0.5 and mean["dlt_auc_5px"] == 0.5
    assert mean["pose_auc_5deg"] == 1.0


def test_cpu_threads_are_restored() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    with pytest.raises(KeyError), cpu_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    with pytest.raises(ArgumentError), cpu_threads(0):
        pass


def test_made_up_pair_is_always_the_same() -> None:
    first, again = made_up_pair((160, 120)), made_up_pair((160, 120))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))
    assert first[0].pixels.std() > 20 and not np.array_equal(first[0].pixels, first[1].pixels)


def test_combinations() -> None:
    assert evaluation.parse_combination("sift+nearest") == ("sift", "nearest")
    assert evaluation.parse_combination("sift+lightglue@a/b.safetensors").label == "sift+lightglue@a/b.safetensors"
    assert evaluation.parse_combination("cairn@a/b+lightglue@c") == ("cairn@a/b", "lightglue@c")
    assert evaluation.parse_combination("cairn@a/b") == ("cairn@a/b", "nearest"), "whose matcher would fit, who knows"
    for vague in ("auto@a/b.safetensors", "sift+auto@a/b.safetensors", "auto+lightglue@a/b.safetensors"):
        with pytest.raises(ArgumentError, match="name the"):
            evaluation.parse_combination(vague)
    for wrong in ("shift+nearest", "sift+furthest", ""):
        with pytest.raises(ArgumentError, match="there are"):
            evaluation.parse_combination(wrong)


def test_effort(data_dir, tmp_path) -> None:
    """Two efforts of one combination are two lines of one table, each with rows of its own."""
    both = evaluation.evaluate(
        data_dir / "eval",
        ["sift+nearest"],
        sets=["graf"],
        limit=1,
        max_keypoints=600,
        effort=["fast", "auto"],
        output=tmp_path,
    )
    assert [run.label for run in both] == ["sift+nearest", "sift+nearest, auto"]
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"sift+nearest.jsonl", "sift+nearest-auto.jsonl"}
    fast, auto = (run.rows[0] for run in both)
    assert fast.failure is None and auto.failure is None
    assert both[1].configuration["effort"] == "auto" and "effort" not in both[0].configuration
    pair = evaluation.load_pairs(data_dir / "eval", ["graf"], 1)[0]
    images = pair.image0.read(), pair.image1.read()
    expected = [
        tp.match(*images, "sift", "nearest", max_keypoints=600, long_side=None, effort=effort)
        for effort in ("fast", "auto")
    ]
    assert [fast.matches, auto.matches] == [len(found) for found in expected]
    with pytest.raises(ArgumentError, match="no effort is called 'heroic'"):
        evaluation.evaluate(data_dir / "eval", ["sift+nearest"], effort=["heroic"])


def test_sift_on_real_photographs(data_dir, tmp_path) -> None:
    """The whole way by names; the sets' README says that kodak's homographies are easy for SIFT."""
    seen = []
    (run,) = evaluation.evaluate(
        data_dir / "eval",
        ["sift+nearest"],
        sets=["kodak", "graf"],
        limit=3,
        max_keypoints=1000,
        output=tmp_path,
        progress=lambda label, row, done, total: seen.append((label, done, total)),
    )
    assert seen[-1] == ("sift+nearest", 6, 6)
    lines = {line["set"]: line for line in summarise(run)}
    assert lines["kodak"]["ransac_auc_5px"] > 0.8 and lines["kodak"]["precision"] > 0.8
    assert lines["kodak"]["failed"] == 0
    assert (tmp_path / "sift+nearest.jsonl").is_file()
