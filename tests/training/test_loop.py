"""The loop and what it minimises: learns, resumes exactly, shares work exactly, stops when it must."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tiepoint import weights
from tiepoint.calibration import calibrate
from tiepoint.matchers.lightglue import LightGlue, LightGlueConfig, LightGlueNet, from_upstream, run_layers, to_upstream
from tiepoint.matchers.nearest import NearestNeighbour
from tiepoint.matchers.superglue import SuperGlueConfig, SuperGlueNet
from tiepoint.training.data.ground_truth import IGNORED, UNMATCHABLE
from tiepoint.training.initialise import start_as_nearest_neighbour
from tiepoint.training.loop import FitConfig, TrainingError, fit
from tiepoint.training.objectives.base import Objective
from tiepoint.training.objectives.lightglue import ConfidenceObjective, LightGlueObjective, lightglue_inputs
from tiepoint.training.objectives.losses import match_statistics
from tiepoint.training.objectives.superglue import SuperGlueObjective
from tiepoint.training.pairs.batch import Batch
from tiepoint.types import Features

TINY = LightGlueConfig(
    features=("made-up",), input_dim=32, dim=32, heads=2, layers=3, scale_orientation=True, log_scale=True
)
FIT = FitConfig(steps=12, learning_rate=1e-3, warmup=2, bfloat16=False, evaluate_every=100, log_every=4, save_every=4)


def make_batch(seed: int, pairs: int = 4, n: int = 24, ragged: bool = True) -> Batch:
    """Make pairs of shifted point sets with noisy descriptors; a third of the points have no partner."""
    rng = np.random.default_rng(seed)
    shared = 2 * n // 3
    rows: dict[str, list] = {name: [] for name in ("d", "k", "m0", "m1", "counts")}
    for _ in range(pairs):
        order = rng.permutation(n)
        points = rng.uniform(20, 300, (n, 2)), rng.uniform(20, 300, (n, 2))
        descriptors = rng.normal(size=(n, 32)), rng.normal(size=(n, 32))
        points[1][order[:shared]] = points[0][:shared] + 5
        descriptors[1][order[:shared]] = descriptors[0][:shared] + 0.6 * rng.normal(size=(shared, 32))
        matches0, matches1 = np.full(n, UNMATCHABLE), np.full(n, UNMATCHABLE)
        matches0[:shared] = order[:shared]
        matches1[order[:shared]] = np.arange(shared)
        counts = (n, int(rng.integers(n // 2, n))) if ragged else (n, n)
        matches0[matches0 >= counts[1]] = UNMATCHABLE
        matches1[counts[1] :] = IGNORED
        for side in (0, 1):
            d = descriptors[side] / np.linalg.norm(descriptors[side], axis=1, keepdims=True)
            d[counts[side] :], points[side][counts[side] :] = 0, 0
            rows["d"].append(torch.tensor(d).half())
            rows["k"].append(torch.tensor(points[side]).float())
            rows["counts"].append(counts[side])
        rows["m0"].append(torch.tensor(matches0))
        rows["m1"].append(torch.tensor(matches1))
    return Batch(
        descriptors=torch.stack(rows["d"]),
        keypoints=torch.stack(rows["k"]),
        scores=torch.full((2 * pairs, n), 0.5),
        scales=torch.tensor(rng.uniform(2, 9, (2 * pairs, n))).float(),
        orientations=torch.tensor(rng.uniform(0, 6, (2 * pairs, n))).float(),
        counts=torch.tensor(rows["counts"]),
        sizes=torch.tensor([[320.0, 320.0]]).repeat(2 * pairs, 1),
        matches0=torch.stack(rows["m0"]),
        matches1=torch.stack(rows["m1"]),
        related=torch.ones(pairs, dtype=torch.bool),
    )


def make_net(config: LightGlueConfig = TINY, nearest: bool = True) -> LightGlueNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = LightGlueNet(config)
    if nearest:
        start_as_nearest_neighbour(net)
    return net


def fresh(start: int) -> Iterator[Batch]:
    """Batches as training sees them: a new one at each step, the same whenever it is asked for."""
    return (make_batch(step) for step in range(start, 10_000))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["net"]


def test_loss_falls_on_a_fixed_batch(tmp_path: Path) -> None:
    rows: list[dict] = []
    batch = make_batch(0)
    config = replace(FIT, steps=60, learning_rate=3e-3, log_every=1, decay=0.3)
    last = fit(
        LightGlueObjective(make_net()), lambda _: iter([batch] * 60), config, tmp_path, {"a": 1}, report=rows.append
    )
    assert rows[-1] == last and [row["step"] for row in rows] == list(range(1, 61))
    assert last["loss"] < 0.35 < 1.0 < rows[0]["loss"]
    assert last["precision"] > 0.95 and last["recall"] > 0.95
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in written] == [row["loss"] for row in rows]
    state, config_read = weights.load(tmp_path / "weights.safetensors")
    assert config_read == {"a": 1} and set(state) == set(make_net().state_dict())


def test_memory_saving_changes_nothing() -> None:
    gradients = []
    for save_memory in (False, True):
        objective = LightGlueObjective(make_net(nearest=False), save_memory)
        objective(make_batch(1)).loss.backward()
        gradients.append([p.grad for p in objective.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = FitConfig(steps=1000, learning_rate=2.0, warmup=100, decay=0.3)
    rates = [config.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02) and rates[100:700] == [2.0] * 600
    assert all(a >= b for a, b in pairwise(rates[700:]))
    assert rates[850] == pytest.approx(1.0, abs=0.01) and rates[-1] < 1e-4
    timed = replace(config, minutes=10)
    assert timed.rate(200, 0.0) == 2.0
    assert timed.rate(200, 510.0) == pytest.approx(1.0) and timed.rate(200, 600.0) == pytest.approx(0.0)
    assert timed.done(200, 600.0) == 1 and timed.done(1000, 0.0) == 1


def test_a_time_limit_ends_a_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks) * 0.005)  # a machine whose steps all take as long
    config = replace(FIT, steps=1_000_000, minutes=0.02)
    last = fit(LightGlueObjective(make_net()), fresh, config, tmp_path, {})
    assert 10 < last["step"] < 300 and last["seconds_left"] <= 0
    assert last["learning_rate"] < 0.1 * config.learning_rate
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == last["step"]


def test_stopped_on_request_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(LightGlueObjective(make_net()), fresh, FIT, whole, {})
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 7  # between checkpoints and between rows

    with pytest.raises(KeyboardInterrupt):
        fit(LightGlueObjective(make_net()), fresh, FIT, parts, {}, stop=stop)
    assert torch.load(parts / "checkpoint.pt", weights_only=True)["step"] == 7
    fit(LightGlueObjective(make_net(nearest=False)), fresh, FIT, parts, {})
    for name, tensor in state_of(whole).items():
        assert torch.equal(tensor, state_of(parts)[name]), name
    finals = [weights.load(folder / "weights.safetensors")[0] for folder in (whole, parts)]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    assert fit(LightGlueObjective(make_net()), fresh, FIT, parts, {}) == {}, "a finished run stays as it is"


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import test_loop as t
def slowly(start):
    import time
    for batch in t.fresh(start):
        time.sleep({pause})
        yield batch
t.fit(t.LightGlueObjective(t.make_net()), slowly, t.FIT, Path({folder!r}), {{}})
"""


def test_ends_half_way_between_what_it_began_with_and_came_to(tmp_path: Path) -> None:
    def train(name: str, average: bool, steps: int = FIT.steps) -> dict[str, torch.Tensor]:
        """Train, in that folder, up to a step; return the weights that are kept."""
        asked = itertools.count(1)
        interrupted = pytest.raises(KeyboardInterrupt) if steps < FIT.steps else nullcontext()
        seen: dict[str, torch.Tensor] = {}

        def evaluate(trained: Objective) -> dict[str, float]:
            seen.update({name: tensor.clone() for name, tensor in trained.net.state_dict().items()})
            return {}

        with interrupted:
            config, objective = replace(FIT, average=average), LightGlueObjective(make_net())
            stop = (lambda: next(asked) == steps) if steps < FIT.steps else (lambda: False)
            fit(objective, fresh, config, tmp_path / name, {}, "cpu", evaluate, stop=stop)
        kept = weights.load(tmp_path / name / "weights.safetensors")[0]
        assert all(torch.equal(kept[name], tensor) for name, tensor in seen.items()), "what is kept was evaluated last"
        return kept

    began, came_to, mean = make_net().state_dict(), train("plain", False), train("mean", True)
    for name, tensor in came_to.items():
        torch.testing.assert_close(mean[name], (began[name] + tensor) / 2, atol=1e-6, rtol=0)
    assert max((tensor - began[name]).abs().max() for name, tensor in came_to.items()) > 1e-3
    train("resumed", True, steps=5)
    resumed = train("resumed", True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in mean.items())


def test_killed_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    def command(folder: str, pause: float) -> list[str]:
        tests = str(Path(__file__).parent)
        return [sys.executable, "-c", SCRIPT.format(tests=tests, folder=str(tmp_path / folder), pause=pause)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command("killed", 0.5), env=environment)
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "killed" / "checkpoint.pt").exists():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.6)  # some steps after the checkpoint, which are lost
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] < FIT.steps
    (tmp_path / "killed" / "metrics.jsonl").open("a").write('{"step": 4, "los')  # killed while writing
    fit(LightGlueObjective(make_net()), fresh, FIT, tmp_path / "killed", {})
    fit(LightGlueObjective(make_net()), fresh, FIT, tmp_path / "whole", {})
    for name, tensor in state_of(tmp_path / "whole").items():
        assert torch.equal(tensor, state_of(tmp_path / "killed")[name]), name
    rows = [
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("whole", "killed")
    ]
    assert [(row["step"], row["loss"]) for row in rows[0]] == [(row["step"], row["loss"]) for row in rows[1]]


def shared_work(rank: int, world: int, port: int, folder: str) -> None:
    """Train on one half of each batch."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0"
    )
    torch.set_num_threads(1)
    from tiepoint.training.loop import join_processes

    processes = join_processes("cpu")
    assert (processes.rank, processes.world) == (rank, world)

    def halves(start: int) -> Iterator[Batch]:
        for batch in fresh(start):
            half = len(batch) // world
            tensors = {
                name: t[rank * half * (len(t) // len(batch)) :][: half * (len(t) // len(batch))]
                for name, t in batch.tensors().items()
            }
            yield Batch(**tensors)

    fit(LightGlueObjective(make_net()), halves, FIT, Path(folder), {})
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(shared_work, (2, port, str(tmp_path / "two")), nprocs=2)
    alone = fit(LightGlueObjective(make_net()), fresh, FIT, tmp_path / "one", {})
    together = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)


def test_nan_stops_with_the_batch_saved(tmp_path: Path) -> None:
    import safetensors.torch

    def poisoned(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(fresh(0)):
            if step == 3:
                batch.keypoints[0, 0] = math.nan
            yield batch

    with pytest.raises(TrainingError, match=r"step 3 .*culprit-0000003"):
        fit(LightGlueObjective(make_net()), poisoned, FIT, tmp_path, {})
    saved = Batch(**safetensors.torch.load_file(tmp_path / "culprit-0000003-0.safetensors"))
    assert saved.keypoints[0, 0].isnan().all() and torch.equal(saved.matches0, make_batch(3).matches0)
    assert not (tmp_path / "checkpoint.pt").exists(), "nothing poisoned is kept"


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(LightGlueObjective(make_net()), fresh, replace(FIT, steps=1), tmp_path, {})
    other = make_net(replace(TINY, layers=2))
    with pytest.raises(TrainingError, match="does not fit"):
        fit(LightGlueObjective(other), fresh, FIT, tmp_path, {})


def lightglue(net: LightGlueNet, folder: Path) -> LightGlue:
    config = {name: getattr(net.config, name) for name in net.config.__dataclass_fields__}
    weights.save(folder / "net.safetensors", net.state_dict(), config)
    return LightGlue("made-up", weights=str(folder / "net.safetensors"), match_threshold=0.0)


def test_padding_has_no_influence(tmp_path: Path) -> None:
    """Every pair of a padded batch comes out as the matcher itself, which knows no padding, sees it."""
    batch, net = make_batch(2), make_net(nearest=False)
    with torch.no_grad():
        log_p = LightGlueObjective(net)(batch).log_p
    matcher = lightglue(net, tmp_path)
    for p, (f0, f1) in enumerate(batch.features("made-up")):
        alone = matcher._match_many([(f0, f1)])[0]
        inside = log_p[p, : len(f0), : len(f1)]
        best, j = inside.max(1)
        mutual = inside.argmax(0)[j] == torch.arange(len(f0))
        np.testing.assert_array_equal(alone.indices, torch.stack([torch.arange(len(f0)), j], 1)[mutual].numpy())
        np.testing.assert_allclose(alone.scores, best[mutual].exp().numpy(), rtol=1e-3)
        assert torch.isinf(log_p[p, len(f0) :]).all() and torch.isinf(log_p[p, :, len(f1) :]).all()
    # The loss is the mean over pairs, each of which could be a batch of its own.
    wide = {
        name: torch.cat([t, torch.zeros_like(t[:, :7])], 1) if t.ndim > 1 and t.shape[1] == 24 else t
        for name, t in batch.tensors().items()
    }
    for name in ("matches0", "matches1"):
        wide[name][:, 24:] = IGNORED
    wide["scales"][:, 24:] = 1
    with torch.no_grad():
        losses = [LightGlueObjective(net)(b).loss for b in (batch, Batch(**wide))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def test_superglue_without_padding_equals_superglue() -> None:
    batch = make_batch(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SuperGlueNet(SuperGlueConfig(dim=32, keypoint_encoder=(16,), heads=2, layers=4, sinkhorn_iterations=15))
    objective = SuperGlueObjective(net).eval()
    with torch.no_grad():
        log_p = objective(batch).log_p
        for p, pair in enumerate(batch.features("made-up")):
            size = torch.tensor([[320, 320]])
            inputs = [x for f in pair for x in (f.descriptors[None], f.keypoints[None], f.scores[None], size)]
            alone = net(*inputs)[0, :-1, :-1]
            torch.testing.assert_close(log_p[p, : len(pair[0]), : len(pair[1])], alone, atol=1e-5, rtol=1e-5)
    objective.train()
    objective(batch).loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in net.parameters() if p.requires_grad)


def test_superglue_learns_in_the_same_loop(tmp_path: Path) -> None:
    net = SuperGlueNet(SuperGlueConfig(dim=32, keypoint_encoder=(16,), heads=2, layers=2, sinkhorn_iterations=10))
    rows: list[dict] = []
    batch = make_batch(0)
    config = replace(FIT, steps=30, learning_rate=3e-3, log_every=1)
    fit(SuperGlueObjective(net), lambda _: iter([batch] * 30), config, tmp_path, {}, report=rows.append)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert "layers.0.mlp.1.running_mean" in weights.load(tmp_path / "weights.safetensors")[0]


@pytest.mark.parametrize("dim", [32, 64], ids=["no-projection", "projection"])
def test_starts_as_nearest_neighbour(dim: int) -> None:
    """At every layer the similarity is a temperature times the cosine, so whom it points to is the nearest."""
    net = make_net(replace(TINY, dim=dim))
    batch = make_batch(7, n=48, ragged=False)
    matcher = NearestNeighbour("made-up", ratio=None)
    with torch.no_grad():
        states = run_layers(net, *lightglue_inputs(batch, net.config))
        for x, head in zip(states, net.heads, strict=True):
            m = head.project(x).unflatten(0, (-1, 2, 48))
            similarity = m[:, 0] @ m[:, 1].mT / dim**0.5
            cosine = batch.descriptors[0::2].float() @ batch.descriptors[1::2].float().mT
            torch.testing.assert_close(similarity, 14 * cosine, atol=0.02, rtol=1e-3)
            for p, (f0, f1) in enumerate(batch.features("made-up")):
                j = similarity[p].argmax(1)
                mutual = similarity[p].argmax(0)[j] == torch.arange(48)
                found = torch.stack([torch.arange(48), j], 1)[mutual]
                np.testing.assert_array_equal(found.numpy(), matcher(f0, f1).indices)
        statistics = match_statistics(LightGlueObjective(net)(batch).log_p, batch.labels, threshold=0.0)
    assert statistics.recall > 0.9, "and the assignment, a soft-max of it both ways, is nearly that"


def test_starts_with_geometry_and_whitened_descriptors() -> None:
    """Similarity is what half-whitened descriptors, by the closed form, and agreement of frames say together."""
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(500, 32)) * np.linspace(1, 0.2, 32) + 0.3
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    positions = rng.normal(size=(40, 4))
    config = LightGlueConfig(
        input_dim=32, dim=64, heads=2, layers=2, scale_orientation=True, log_scale=True, align=True
    )
    net = LightGlueNet(config)
    start_as_nearest_neighbour(net, torch.from_numpy(sample).float(), sharpness=10.0, geometry=6.0)
    with torch.no_grad():
        x, _, _ = net.encode(torch.from_numpy(sample[:40]).float(), torch.from_numpy(positions).float())
        projected = net.heads[0].project(x)
        similarity = (projected @ projected.T / 64**0.5).numpy()

    variances, axes = np.linalg.eigh(np.cov(sample.T))
    white = (sample - sample.mean(0)) @ axes / variances**0.25
    white /= np.linalg.norm(white, axis=1).mean()
    by_place = np.zeros((40, 40))
    for wave in (1.0, 2.2, 5.0):
        for turn in range(4):
            along = positions[:, :2] @ [np.cos(turn * np.pi / 4), np.sin(turn * np.pi / 4)]
            by_place += np.cos(wave * np.subtract.outer(along, along)) / 20
    for column, wave in ((3, 1.0), (3, 2.0), (2, 0.8), (2, 1.6)):
        by_place += np.cos(wave * np.subtract.outer(positions[:, column], positions[:, column])) / 10
    np.testing.assert_allclose(similarity, 10 * white[:40] @ white[:40].T + 6 * by_place, atol=2e-3)


@pytest.mark.parametrize("dim", [128, 256])
def test_a_new_matcher_is_loadable_upstream(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours to upstream's layout and back; kornia's port of upstream runs it and finds the same matches."""
    kornia_lg = pytest.importorskip("kornia.feature.lightglue")
    config = LightGlueConfig(input_dim=128, dim=dim, heads=4, layers=2, scale_orientation=True)
    net = make_net(config)
    upstream = to_upstream(net.state_dict(), config.heads)
    back = from_upstream(upstream, config.heads)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(back[name].float(), tensor, atol=1e-6, rtol=1e-6)
    monkeypatch.setattr(
        kornia_lg, "load_state_dict_from_url", lambda *_, **__: {k: v.clone() for k, v in upstream.items()}
    )
    options = {"descriptor_dim": dim, "n_layers": 2, "depth_confidence": -1, "width_confidence": -1}
    theirs = kornia_lg.LightGlue("sift", **options, filter_threshold=0.0, flash=False).eval()
    assert torch.equal(theirs.state_dict()["posenc.Wr.weight"], net.frequencies.weight), "kornia took the weights"
    rng = torch.Generator().manual_seed(0)
    n = 40
    d0 = F.normalize(torch.randn(1, n, 128, generator=rng), dim=-1)
    d1 = F.normalize(d0 + 0.08 * torch.randn(1, n, 128, generator=rng), dim=-1)
    k, size = torch.rand(1, n, 2, generator=rng) * 300, torch.tensor([[320.0, 320.0]])
    data = {"image_size": size, "keypoints": k, "scales": torch.ones(1, n) * 4, "oris": torch.zeros(1, n)}
    with torch.no_grad():
        found = theirs({"image0": {**data, "descriptors": d0}, "image1": {**data, "descriptors": d1}})
        positions = torch.cat([(k[0] - 160) / 160, torch.full((n, 1), 4.0), torch.zeros(n, 1)], 1)
        log_p = net(d0[0], positions, d1[0], positions)
    best, j = log_p.max(1)
    mutual = log_p.argmax(0)[j] == torch.arange(n)
    np.testing.assert_array_equal(found["matches0"][0].numpy(), torch.where(mutual, j, -1).numpy())
    np.testing.assert_allclose(found["matching_scores0"][0][mutual].numpy(), best[mutual].exp().numpy(), atol=1e-5)
    assert mutual.sum() > 30


def test_confidence_stage_trains_the_classifiers_alone(tmp_path: Path) -> None:
    net = make_net(nearest=False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rows: list[dict] = []
    config = replace(FIT, steps=60, learning_rate=0.02, log_every=1, ema=0.5)
    batch = make_batch(1, pairs=8)
    fit(ConfidenceObjective(net), lambda _: iter([batch] * 60), config, tmp_path, {}, report=rows.append)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    after = weights.load(tmp_path / "weights.safetensors")[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"confidence.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}


def test_compiled_parts_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler replaced by one that only traces, which is quick and finds what cannot be compiled."""
    torch._dynamo.reset()
    traced = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        traced.append(graph)
        return graph.forward

    batch = make_batch(3)
    expected = LightGlueObjective(make_net(nearest=False))(batch).loss
    trace = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", trace)
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, dynamic: setattr(self, "_compiled_call_impl", trace(self._call_impl, dynamic=dynamic)),
    )
    objective = LightGlueObjective(make_net(nearest=False))
    objective.compile_parts()
    for size in (batch, make_batch(5), make_batch(6)):
        objective(size).loss.backward()
    torch.testing.assert_close(objective(batch).loss, expected)
    assert 0 < len(traced) < 20, "new layouts must not be compiled anew"
    assert set(objective.net.state_dict()) == set(make_net().state_dict())


def pairs_like(batch: Batch) -> list[calibrate.Sample]:
    return [
        calibrate.Sample(f0, f1, batch.matches0[p].numpy(), bool(batch.related[p]))
        for p, (f0, f1) in enumerate(batch.features("made-up"))
    ]


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> LightGlue:
    """A matcher that has learned a little, and its classifiers too."""
    folder = tmp_path_factory.mktemp("calibrated")
    torch.set_num_threads(1)
    net = make_net(replace(TINY, layers=4))
    config = replace(FIT, steps=40, learning_rate=2e-3, ema=0.8)
    batches = [make_batch(1000 + i, pairs=16) for i in range(10)]
    fit(LightGlueObjective(net), lambda _: iter(4 * batches), config, folder / "a", {})
    fit(ConfidenceObjective(net), lambda _: iter(4 * batches), replace(config, learning_rate=0.03), folder / "b", {})
    net.load_state_dict(weights.load(folder / "b" / "weights.safetensors")[0])
    made = lightglue(net, folder)
    made.match_threshold = 0.1
    return made


def unrelated(batch: Batch) -> list[calibrate.Sample]:
    related = pairs_like(batch)
    return [
        calibrate.Sample(a.features0, b.features1, np.full(len(a.features0), -1), False) for a, b in pairwise(related)
    ]


@pytest.fixture(scope="module")
def samples() -> list[list[calibrate.Sample]]:
    return [[*pairs_like(batch), *unrelated(batch)] for batch in (make_batch(i, pairs=20) for i in range(6))]


@pytest.fixture(scope="module")
def patient(matcher: LightGlue, samples: list[list[calibrate.Sample]]) -> calibrate.Calibration:
    return calibrate.calibrate(matcher, iter(samples), keep=0.97)


def test_calibration_keeps_its_promise_on_new_pairs(matcher: LightGlue, patient: calibrate.Calibration) -> None:
    found = patient
    assert found.pairs == 120 and found.unrelated == 114
    lost = [setting["lost"] for setting in found.settings]
    work = [setting["work"] for setting in found.settings]
    assert all(a >= b for a, b in pairwise(work)), "bolder settings work less"
    assert found.chosen is not None and found.chosen["p_value"] <= 0.05 and found.chosen["work"] < 1
    assert found.chosen["lost"] <= 0.03 and max(lost) <= 1
    assert found.config.exit_confidence == (found.chosen["exit_confidence"],) * 3

    full = calibrate._with_config(matcher, matcher.config, adaptive=False)
    quick = calibrate._with_config(matcher, found.config)
    new: list[float] = []
    strangers: list[bool | None] = []
    for i in range(100, 106):
        batch = make_batch(i, pairs=20)
        related = pairs_like(batch)
        pairs = [(sample.features0, sample.features1) for sample in related]
        for sample, whole, matches in zip(related, full.match_many(pairs), quick.match_many(pairs), strict=True):
            truth = calibrate._right(whole, sample)
            new.append(1 - np.isin(truth, calibrate._keys(matches.indices, sample)).sum() / max(1, len(truth)))
        strangers += [m.overlaps for m in quick.match_many([(s.features0, s.features1) for s in unrelated(batch)])]
    assert np.mean(new) <= 0.03 + 0.02  # 120 new pairs scatter too
    assert np.mean(strangers) <= 0.05 + 0.03
    assert found.solved_kept is not None and found.solved_kept > 0.5


def test_calibration_gives_up_hopeless_settings_and_chooses_the_same(
    matcher: LightGlue, samples: list[list[calibrate.Sample]], patient: calibrate.Calibration
) -> None:
    hasty = calibrate.calibrate(matcher, iter(samples), keep=0.97, expected=120)
    assert hasty.config == patient.config and hasty.chosen is not None
    runs = [setting["pairs"] for setting in hasty.settings]
    assert {setting["pairs"] for setting in patient.settings} == {120}
    assert runs == sorted(runs, reverse=True) and runs[-1] < 120
    told = "exit_confidence", "lost", "p_value", "work"
    for one, other in zip(hasty.settings, patient.settings, strict=True):
        assert one["pairs"] < 120 or all(one[name] == other[name] for name in told)


def test_calibration_promises_nothing_on_too_few_pairs(matcher: LightGlue) -> None:
    found = calibrate.calibrate(matcher, iter([pairs_like(make_batch(0))]), keep=0.99)
    assert found.chosen is None and found.speed_up == 1
    assert found.config.exit_confidence is None and found.config.overlap_threshold is None


def test_overlap_is_judged_from_both_sides_and_for_empty_images(matcher: LightGlue) -> None:
    judging = calibrate._with_config(matcher, replace(matcher.config, overlap_threshold=2.0))
    f0, f1 = make_batch(0).features("made-up")[0]
    assert judging(f0, f1).overlaps is True and judging(f1, f0).overlaps is True
    nothing = f0.select(torch.zeros(len(f0), dtype=torch.bool))
    assert judging(nothing, f1).overlaps is False
    assert matcher(f0, f1).overlaps is None
    matches = judging(f0, f1)
    assert matches.evidence == pytest.approx(matches.scores.sum()) and matches.swapped().overlaps is True
    assert isinstance(f0, Features)
