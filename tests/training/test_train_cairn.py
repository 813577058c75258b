"""Training of Cairn: geometry of pairs against OpenCV and closed forms, the objective where the answer is known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import tiepoint as tp
from tiepoint.cli import main
from tiepoint.errors import ArgumentError, InputError
from tiepoint.features.cairn import CairnConfig, CairnNet
from tiepoint.matchers.lightglue import LightGlueConfig, LightGlueNet
from tiepoint.training.data.ground_truth import UNMATCHABLE
from tiepoint.training.data.photographs import PhotoCache, build_cache
from tiepoint.training.initialise import start_as_nearest_neighbour
from tiepoint.training.loop import FitConfig
from tiepoint.training.objectives import cairn as objective_module
from tiepoint.training.objectives.cairn import CairnObjective
from tiepoint.training.objectives.joint import EndToEndNet, EndToEndObjective
from tiepoint.training.objectives.lightglue import LightGlueObjective
from tiepoint.training.pairs.batch import Batch
from tiepoint.training.pairs.views import Carried, ViewConfig, ViewMaker, Views
from tiepoint.training.runs import presets
from tiepoint.training.runs.features import FeatureSettings, train
from tiepoint.training.runs.presets import FeaturePreset

MODEL = CairnConfig(levels=3, width=8, rings=8, angles=16, channels=8, dim=16)
MINIATURE = FeaturePreset(
    model=MODEL,
    views=ViewConfig((64, 96), photometric="mild", max_scale=1.5, scenes=0.3),
    fit=FitConfig(steps=4, learning_rate=1e-3, warmup=1, log_every=1, evaluate_every=4, save_every=2, bfloat16=False),
    batch=4,
    keypoints=40,
    held_out=1,
)


@pytest.fixture(scope="module")
def photos(images: Path) -> PhotoCache:
    return build_cache(images, images / "photos.cache")


def views_of(pictures: torch.Tensor, H: torch.Tensor) -> Views:
    nothing = torch.zeros(0)
    return Views(
        pictures, H, nothing.view(0, *pictures.shape[2:]), nothing.view(0, 3, 3), nothing.view(0, 3, 3),
        nothing.view(0, 3), torch.tensor(1),
    )  # fmt: skip


def test_homographies_carry_as_opencv_does() -> None:
    H = np.array([[0.9, 0.2, -3], [-0.1, 1.1, 4], [2e-4, -3e-4, 1]])
    views = views_of(torch.zeros(2, 3, 60, 80, dtype=torch.uint8), torch.tensor(-H[None], dtype=torch.float32))
    points = np.random.default_rng(0).uniform(0, 60, (1, 30, 2))
    for forward, matrix in ((True, H), (False, np.linalg.inv(H))):
        carried = views.carry(torch.tensor(points, dtype=torch.float32), forward)
        expected = cv2.perspectiveTransform(points, matrix)
        assert np.allclose(carried.points, expected, atol=1e-3)
        for axis in (0, 1):
            step = np.eye(2)[axis] * 1e-3
            slope = (cv2.perspectiveTransform(points + step, matrix) - expected) / 1e-3
            assert np.allclose(carried.jacobian[..., axis], slope, atol=1e-3)
        inside = ((expected > -0.5) & (expected < [79.5, 59.5])).all(-1)
        assert np.array_equal(carried.seen, inside)


def test_depth_carries_forth_and_back(photos: PhotoCache) -> None:
    views = ViewMaker(photos, ViewConfig((64, 96), photometric="none", scenes=1.0), 5)(0, range(2))
    points = torch.rand(8, 200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([95.0, 63.0])
    there = views.carry(points, True)
    assert there.seen.float().mean() > 0.1
    back = views.carry(torch.where(there.seen[..., None], there.points, 0.0), False)
    both = there.seen & back.seen
    assert both.sum() > 0.7 * there.seen.sum()
    assert (back.points - points)[both].norm(dim=1).median() < 0.05
    product = (back.jacobian @ there.jacobian)[both]
    assert (product - torch.eye(2)).abs().flatten(1).amax(1).median() < 0.05


@pytest.mark.parametrize(("scenes", "share"), [(0.0, 0.4), (1.0, 0.8)])  # scenes come in another light
def test_the_same_place_looks_the_same(photos: PhotoCache, scenes: float, share: float) -> None:
    views = ViewMaker(photos, ViewConfig((64, 96), photometric="none", max_scale=1.2, scenes=scenes), 3)(1, range(2))
    points = torch.rand(8, 300, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([95.0, 63.0])
    carried = views.carry(points, True)

    def colours(side: int, at: torch.Tensor) -> torch.Tensor:
        blurred = F.avg_pool2d(views.images[side::2].float(), 5, 1, 2)
        grid = ((at + 0.5) / torch.tensor([96, 64]) * 2 - 1)[:, None]
        return F.grid_sample(blurred, grid, align_corners=False)[:, :, 0].transpose(1, 2)

    first, second = colours(0, points), colours(1, torch.where(carried.seen[..., None], carried.points, 0.0))
    difference = (first - second).abs().mean(2)[carried.seen].median()
    strangers = (first - second.roll(1, 0)).abs().mean(2).median()
    assert difference < share * strangers


def test_steps_are_the_same_at_every_call_and_however_shared(photos: PhotoCache) -> None:
    maker = ViewMaker(photos, ViewConfig((64, 96), scenes=0.0), 3)
    whole = maker(7, range(2))
    assert torch.equal(whole.images, maker(7, range(2)).images)
    parts = Views.cat([maker(7, range(1)), maker(7, range(1, 2))])
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.homography, parts.homography)
    assert not torch.equal(whole.images, maker(8, range(2)).images)


def test_surprise_is_the_density_of_a_normal_distribution() -> None:
    root = torch.randn(5, 7, 2, 2, generator=torch.Generator().manual_seed(0)).tril()
    covariance = root @ root.mT + 0.1 * torch.eye(2)
    offset = torch.randn(5, 7, 2)
    expected = -torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(offset)
    ours = objective_module._surprise(offset, covariance) + np.log(2 * np.pi)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_two_equal_pictures_are_matched_without_fault(texture: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    objective = CairnObjective(CairnNet(MODEL), 60).eval()
    picture = torch.from_numpy(texture[:96, :128].copy()).permute(2, 0, 1)
    with torch.no_grad():
        output = objective(views_of(torch.stack([picture, picture]), torch.eye(3)[None]))
    parts = {name: float(value) for name, value in output.parts.items()}
    assert parts["repeated"] == 1 and parts["matched"] > 0.95
    assert parts["precise"] < 1e-6 and parts["direction"] < 1e-5
    assert (output.labels.matches0[0] == torch.arange(60)).float().mean() > 0.95


def test_pictures_that_share_nothing_teach_nothing(texture: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    objective = CairnObjective(CairnNet(MODEL), 60)
    picture = torch.from_numpy(texture[:96, :128].copy()).permute(2, 0, 1)
    away = torch.tensor([[[1.0, 0, 500], [0, 1, 0], [0, 0, 1]]])
    output = objective(views_of(torch.stack([picture, picture]), away))
    assert float(output.loss.detach()) == 0
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("scenes", [0.0, 1.0])
def test_every_parameter_learns(photos: PhotoCache, scenes: float) -> None:
    torch.manual_seed(0)
    objective = CairnObjective(CairnNet(MODEL), 80)
    maker = ViewMaker(photos, ViewConfig((96, 128), photometric="none", max_scale=1.2, max_roll=0.2, scenes=scenes), 1)
    batch = maker(0, range(1))
    objective(batch).loss.backward()
    torch.optim.SGD(objective.parameters(), 1e-3).step()  # context begins at zero, and what leads to it learns later
    objective.zero_grad()
    output = objective(batch)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for name, parameter in objective.net.named_parameters():
        if scenes and "spread" in name:
            continue  # learns from right matches, of which an untrained network finds none in a made-up scene
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_points_at_the_horizon_do_no_harm(photos: PhotoCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a keypoint is not seen, the derivative of where it would be may be infinite."""
    true = Views.carry

    def carry(self: Views, points: torch.Tensor, forward: bool) -> Carried:
        carried = true(self, points, forward)
        return carried._replace(jacobian=carried.jacobian.masked_fill(~carried.seen[..., None, None], torch.inf))

    monkeypatch.setattr(Views, "carry", carry)
    objective = CairnObjective(CairnNet(MODEL), 80)
    objective(ViewMaker(photos, MINIATURE.views, 5)(0, range(2))).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_training_lowers_the_loss(photos: PhotoCache) -> None:
    torch.manual_seed(0)
    objective = CairnObjective(CairnNet(MODEL), 80)
    batch = ViewMaker(photos, ViewConfig((96, 128), photometric="none", max_scale=1.2, scenes=0.0), 1)(0, range(1))
    optimiser = torch.optim.AdamW(objective.parameters(), 3e-3)
    history = []
    for _ in range(25):
        output = objective(batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        history.append(float(output.parts["what"] + output.parts["where"]))
    assert np.mean(history[-5:]) < 0.9 * np.mean(history[:5])


def test_a_run_stopped_and_resumed_is_the_run_that_never_stopped(images: Path, tmp_path: Path) -> None:
    options = FeatureSettings(images=images, output=tmp_path / "whole", preset=MINIATURE, workers=0, device="cpu")
    whole = train(options)
    options = replace(options, output=tmp_path / "parts")
    asked = iter([False, True, True, True])
    with pytest.raises(KeyboardInterrupt):
        train(options, stop=lambda: next(asked))
    parts = train(options)
    for name in ("loss", "held_out_loss", "held_out_repeated", "held_out_matched"):
        assert whole[name] == parts[name]
    other = replace(MINIATURE, keypoints=41)
    with pytest.raises(InputError, match="keypoints is 40 there and 41 here"):
        train(replace(options, preset=other))


def end_to_end(seed: int = 0) -> EndToEndObjective:
    torch.manual_seed(seed)
    config = LightGlueConfig(
        features=("cairn",), input_dim=16, dim=64, heads=2, layers=2, scale_orientation=True, log_scale=True, align=True
    )
    matcher = LightGlueNet(config)
    start_as_nearest_neighbour(matcher)
    return EndToEndObjective(EndToEndNet(CairnNet(MODEL), matcher), 60)


def test_compiled_end_to_end_computes_the_same(photos: PhotoCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only traces; it is given parts of both networks."""
    torch._dynamo.reset()
    traced = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        traced.append(graph)
        return graph.forward

    trace = partial(torch.compile, backend=backend)

    def compile(self: torch.nn.Module, dynamic: bool) -> None:
        self._compiled_call_impl = trace(self._call_impl, dynamic=dynamic)
        compiled.append(self)

    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    monkeypatch.setattr(torch, "compile", trace)
    objective = end_to_end().eval()
    views = ViewMaker(photos, ViewConfig((64, 96), photometric="none", scenes=0.0), 5)(0, range(1))
    expected = objective(views).loss
    objective.compile_parts()
    torch.testing.assert_close(objective(views).loss, expected)
    assert objective.extractor.detector in compiled and traced
    assert any(part in compiled for part in objective.matching.modules())


@pytest.mark.parametrize("scenes", [0.0, 1.0])
def test_the_matcher_is_told_the_truth(photos: PhotoCache, scenes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matches are within 3 pixels, what is said to have no partner has none, and unrelated pictures share nothing."""
    objective = end_to_end()
    views = ViewMaker(photos, ViewConfig((96, 128), photometric="none", scenes=scenes), 5)(0, range(2))
    given: list[Batch] = []
    monkeypatch.setattr(objective.matching, "forward", lambda batch: given.append(batch) or LightGlueObjective.forward(
        objective.matching, batch))  # fmt: skip
    output = objective(views)
    (batch,) = given
    assert output.labels.matches0 is batch.matches0 and len(batch) == len(views) + 1
    assert batch.related.tolist() == [True] * len(views) + [False]
    assert (batch.matches0[-1] < 0).all() and (batch.matches0[-1] == UNMATCHABLE).sum() == batch.counts[-2]
    assert torch.equal(batch.keypoints[-2], batch.keypoints[0]) and torch.equal(batch.keypoints[-1], batch.keypoints[3])
    present = batch.present.unflatten(0, (-1, 2))
    points = batch.keypoints.unflatten(0, (-1, 2))[: len(views)]
    carried, back = views.carry(points[:, 0], True), views.carry(points[:, 1], False)
    matched = 0
    for pair in range(len(views)):
        distance = torch.cdist(carried.points[pair], points[pair, 1])
        distance[:, ~(present[pair, 1] & back.seen[pair])] = torch.inf
        for i, j in enumerate(batch.matches0[pair].tolist()):
            if j >= 0:
                matched += 1
                assert batch.matches1[pair, j] == i and carried.seen[pair, i]
                assert min(distance[i, j], (back.points[pair, j] - points[pair, 0, i]).norm()) < 3
            elif j == UNMATCHABLE:
                assert present[pair, 0, i]
                assert not carried.seen[pair, i] or distance[i].min() > 6
    assert matched > 10


def test_the_assignment_loss_reaches_the_describer_and_nothing_before_it(photos: PhotoCache) -> None:
    objective = end_to_end()
    views = ViewMaker(photos, ViewConfig((96, 128), photometric="none", scenes=0.0), 5)(0, range(1))
    objective(views).parts["assignment"].backward()
    for name, parameter in objective.net.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        if name.startswith("extractor.detector") or "spread" in name or "confidence" in name:
            assert not reached, name
        elif name.startswith("extractor.describer") or "heads" in name:
            assert reached, name


def test_command_line_end_to_end(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.FEATURE_PRESETS, "tiny", replace(MINIATURE, keypoints=60))
    objective = end_to_end()
    first, matcher = tmp_path / "first.safetensors", tmp_path / "matcher.safetensors"
    net = objective.net
    tp.weights.save(first, net.extractor.state_dict(), asdict(net.config.extractor))
    thresholds = {"exit_confidence": [0.9], "prune_matchability": [0.1], "overlap_threshold": 1.0}
    config = {**asdict(net.config.matcher), **thresholds, "training": {"kind": "lightglue", "pairs": 1}}
    tp.weights.save(matcher, net.matcher.state_dict(), config)
    run = tmp_path / "run"
    base = ["train", "features", "--images", str(images), "-o", str(run), "--workers", "0", "--device", "cpu"]
    assert main([*base, "--matcher", str(matcher)]) == ArgumentError.exit_code
    assert main([*base, "--start", str(first), "--matcher", str(first)]) == ArgumentError.exit_code
    assert main([*base, "--start", str(first), "--matcher", str(matcher)]) == 0
    assert "cairn.safetensors and" in capsys.readouterr().out
    before = json.loads((run / "before.json").read_text())
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert before.keys() == {name for name in after if name.startswith("held_out")}
    state, told = tp.weights.load(run / "cairn.safetensors")
    assert any(not torch.equal(value, net.extractor.state_dict()[name]) for name, value in state.items())
    told = tp.weights.load(run / "lightglue.safetensors")[1]
    assert told["training"]["kind"] == "lightglue" and told["training"]["pairs"] == 1
    assert told["training"]["end to end"]["start"] == tp.weights.sha256(first)
    assert all(told[name] is None for name in thresholds), "chosen for the features before"
    features, pairer = f"cairn@{run / 'cairn.safetensors'}", f"lightglue@{run / 'lightglue.safetensors'}"
    assert main(["match", str(images / "0.png"), str(images / "1.png"), "-f", features, "-m", pairer]) == 0
    assert main(["export-weights", str(run)]) == ArgumentError.exit_code
    assert main(["export-weights", str(run / "cairn.safetensors"), "--half"]) == ArgumentError.exit_code, "itself"
    half = tmp_path / "half.safetensors"
    assert main(["export-weights", str(run / "cairn.safetensors"), "--half", "-o", str(half)]) == 0
    assert half.stat().st_size < (run / "cairn.safetensors").stat().st_size


def test_command_line_from_photographs_to_features(
    images: Path, tmp_path: Path, texture: NDArray[np.uint8], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(presets.FEATURE_PRESETS, "tiny", MINIATURE)
    run = tmp_path / "run"
    base = ["train", "features", "--images", str(images), "-o", str(run), "--workers", "0", "--device", "cpu"]
    assert main([*base, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == sum(p.numel() for p in CairnNet(MODEL).parameters())
    assert all(Path(path).is_file() for path in told["pictures"])
    assert main([*base, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["held_out_repeated"] <= 1
    assert main(["export-weights", str(run), "--half"]) == 0
    extractor = tp.features.load("cairn", weights=run / "cairn.safetensors", detection_threshold=0.0, max_keypoints=50)
    assert len(extractor(texture)) == 50
    photo, features = images / "0.png", f"cairn@{run / 'cairn.safetensors'}"
    assert main(["extract", str(photo), "-f", features, "-k", "20", "-o", str(tmp_path / "own.h5")]) == 0
    capsys.readouterr()
    assert main(["match", str(photo), str(photo), "-f", features, "--json"]) == 0
    assert "name the matcher" in capsys.readouterr().out
    assert main(["export-weights", str(run), "--layout", "upstream"]) == ArgumentError.exit_code
    assert main(["train", "confidence", str(run)]) == InputError.exit_code
