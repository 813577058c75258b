"""LightGlue against independent implementations, with trained weights and real photographs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import tiepoint as tp
from tiepoint import weights
from tiepoint.errors import ArgumentError, WeightsError
from tiepoint.features.steerable import steer
from tiepoint.matchers import lightglue
from tiepoint.matchers.lightglue import Layout, LightGlue, LightGlueConfig, LightGlueNet, from_upstream, to_upstream
from tiepoint.training.initialise import start_as_nearest_neighbour
from tiepoint.types import Features

OFFICIAL = {"aliked-n16": "aliked-lightglue", "disk": "disk-lightglue", "xfeat": "xfeat-lighterglue"}


def official(features: str, **options: Any) -> LightGlue:
    try:
        return LightGlue(features, **options)
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def real_pair(data_dir: Path) -> Callable[[str], tuple[Features, Features]]:
    """Features of two photographs of Sacré-Coeur; different numbers of keypoints on purpose."""
    photos = sorted((data_dir / "eval" / "sacre_coeur" / "images").glob("*.jpg"))[:2]
    known: dict[str, tuple[Features, Features]] = {}

    def extract(name: str) -> tuple[Features, Features]:
        if name not in known:
            try:
                sizes = (512, 400)
                extractors = [tp.features.load(name, max_keypoints=n, long_side=480) for n in sizes]
            except (WeightsError, tp.errors.MissingDependencyError) as error:
                pytest.skip(str(error))
            known[name] = tuple(extractor(photo) for extractor, photo in zip(extractors, photos, strict=True))  # type: ignore[assignment]
        return known[name]

    return extract


def kornia_lightglue(features: str, adaptive: bool) -> torch.nn.Module:
    kornia_lg = pytest.importorskip("kornia.feature.lightglue")
    path = weights.resolve(OFFICIAL[features])
    load = kornia_lg.load_state_dict_from_url
    kornia_lg.load_state_dict_from_url = lambda *_, **__: torch.load(path, weights_only=True, map_location="cpu")
    try:
        off = {} if adaptive else {"depth_confidence": -1, "width_confidence": -1}
        net = kornia_lg.LightGlue(features.split("-")[0], **off).eval()
        if not adaptive:  # kornia lets its table overrule the caller
            net.conf.depth_confidence = net.conf.width_confidence = -1
        return net
    finally:
        kornia_lg.load_state_dict_from_url = load


def kornia_match(
    net: torch.nn.Module, f0: Features, f1: Features, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    data = {
        f"image{i}": {
            "keypoints": f.keypoints[None].to(dtype),
            "descriptors": f.descriptors[None].to(dtype),
            "image_size": torch.tensor([f.image_size], dtype=dtype),
        }
        for i, f in enumerate((f0, f1))
    }
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net(data)


def log_assignment(matcher: LightGlue, f0: Features, f1: Features) -> Tensor:
    """Full-depth log assignment (N, M) of the network, without the matcher around it."""
    dtype = next(matcher.net.parameters()).dtype
    inputs = [
        (f.descriptors.to(dtype), lightglue.normalise_positions(f.keypoints.to(dtype), f.image_size)) for f in (f0, f1)
    ]
    with torch.inference_mode():
        return matcher.net(*inputs[0], *inputs[1])


@pytest.mark.parametrize("features", OFFICIAL)
@pytest.mark.parametrize("adaptive", [False, True])
def test_kornia_agrees(features: str, adaptive: bool, real_pair: Callable[..., Any]) -> None:
    f0, f1 = real_pair(features)
    matcher = official(features, adaptive=adaptive)
    ours = matcher(f0, f1)
    theirs = kornia_match(kornia_lightglue(features, adaptive), f0, f1)
    np.testing.assert_array_equal(ours.indices, theirs["matches"][0].numpy())
    # LighterGlue's logits are larger, and so is the rounding in them: see the comparison in float64 below.
    np.testing.assert_allclose(ours.scores, theirs["scores"][0].numpy(), atol=1e-4 if features != "xfeat" else 3e-4)
    assert ours.stop_layer == theirs["stop"]
    assert len(ours) > 30
    if adaptive:
        np.testing.assert_array_equal(ours.prune_layer0, theirs["prune0"][0].numpy())
        np.testing.assert_array_equal(ours.prune_layer1, theirs["prune1"][0].numpy())
        assert ours.prune_layer0 is not None and ours.prune_layer0.min() < ours.stop_layer, "nothing was pruned"


@pytest.mark.parametrize("features", OFFICIAL)
def test_kornia_agrees_in_float64(features: str, real_pair: Callable[..., Any]) -> None:
    """The same algebra, to the last digits: what differs in float32 is rounding, theirs as much as ours."""
    f0, f1 = real_pair(features)
    matcher = official(features)
    matcher.net.double().load_state_dict(from_upstream(weights.load(OFFICIAL[features])[0], matcher.config.heads))
    theirs = kornia_match(kornia_lightglue(features, adaptive=False).double(), f0, f1, torch.float64)
    expected = theirs["log_assignment"][0, :-1, :-1]
    torch.testing.assert_close(log_assignment(matcher, f0, f1), expected, atol=1e-7, rtol=0)


def transformers_lightglue(features: str, adaptive: bool) -> Any:
    """Build transformers' LightGlue with the official weights, renamed here by hand."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LightGlueConfig(
        keypoint_detector_config=transformers.SuperPointConfig(descriptor_decoder_dim=128),
        depth_confidence=0.95 if adaptive else -1.0,
        width_confidence=0.99 if adaptive else -1.0,
        filter_threshold=0.1,
        attn_implementation="eager",
    )
    net = transformers.LightGlueForKeypointMatching(config).eval()
    old, _ = weights.load(OFFICIAL[features])
    old = {
        f"transformers.{k.split('.')[1]}.{k.split('.')[0]}.{k.split('.', 2)[2]}"
        if k.split(".")[0][-4:] == "attn"
        else k: v
        for k, v in old.items()
    }
    new: dict[str, Tensor] = {"positional_encoder.projector.weight": old["posenc.Wr.weight"]}
    for part in ("weight", "bias"):
        new[f"input_projection.{part}"] = old[f"input_proj.{part}"]
        for i in range(9):
            a, b = f"transformers.{i}", f"transformer_layers.{i}"
            for n, projected in enumerate(old[f"{a}.self_attn.Wqkv.{part}"].unflatten(0, (256, 3)).unbind(1)):
                new[f"{b}.self_attention.{'qkv'[n]}_proj.{part}"] = projected
            new[f"{b}.self_attention.o_proj.{part}"] = old[f"{a}.self_attn.out_proj.{part}"]
            for name, source in (("q", "qk"), ("k", "qk"), ("v", "v")):
                new[f"{b}.cross_attention.{name}_proj.{part}"] = old[f"{a}.cross_attn.to_{source}.{part}"]
            new[f"{b}.cross_attention.o_proj.{part}"] = old[f"{a}.cross_attn.to_out.{part}"]
            for kind in ("self", "cross"):
                for name, n in (("fc1", 0), ("layer_norm", 1), ("fc2", 3)):
                    new[f"{b}.{kind}_mlp.{name}.{part}"] = old[f"{a}.{kind}_attn.ffn.{n}.{part}"]
            new[f"match_assignment_layers.{i}.final_projection.{part}"] = old[f"log_assignment.{i}.final_proj.{part}"]
            new[f"match_assignment_layers.{i}.matchability.{part}"] = old[f"log_assignment.{i}.matchability.{part}"]
            if i < 8:
                new[f"token_confidence.{i}.token.{part}"] = old[f"token_confidence.{i}.token.0.{part}"]
    missing, unexpected = net.load_state_dict(new, strict=False)
    assert not unexpected and all(name.startswith("keypoint_detector") for name in missing), (missing, unexpected)
    return net


@pytest.mark.parametrize("features", ["aliked-n16", "disk"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_transformers_agrees(features: str, adaptive: bool, real_pair: Callable[..., Any]) -> None:
    net = transformers_lightglue(features, adaptive)
    f0, f1 = (f.select(torch.arange(min(len(f), 384))) for f in real_pair(features))
    n = min(len(f0), len(f1))
    f0, f1 = (f.select(torch.arange(n)) for f in (f0, f1))
    # transformers takes one size for both photographs: give ours the same
    f0, f1 = (
        Features(f.keypoints, f.scores, f.descriptors, (640, 640), f.extractor, f.scales, f.orientations)
        for f in (f0, f1)
    )
    with torch.inference_mode():
        matches, scores, *_ = net._match_image_pair(
            torch.stack([f0.keypoints, f1.keypoints])[None],
            torch.stack([f0.descriptors, f1.descriptors])[None],
            640,
            640,
            mask=torch.ones(1, 2, n, dtype=torch.int),
        )
    ours = official(features, adaptive=adaptive)(f0, f1)
    partner = matches.reshape(2, n)[0].numpy()
    np.testing.assert_array_equal(ours.indices[:, 0], np.flatnonzero(partner >= 0))
    np.testing.assert_array_equal(ours.indices[:, 1], partner[partner >= 0])
    np.testing.assert_allclose(ours.scores, scores.reshape(2, n)[0].numpy()[partner >= 0], atol=1e-4)
    assert len(ours) > 30


# The plain form, straight from the paper: interleaved q, k, v, materialised attention, separate output projection.


def plain_layer(state: dict[str, Tensor], i: int, x0: Tensor, x1: Tensor, heads: int, *angles: Tensor) -> list[Tensor]:
    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"transformers.{i}.{name}.weight"].T + state[f"transformers.{i}.{name}.bias"]

    def mlp(unit: str, x: Tensor, message: Tensor) -> Tensor:
        h = linear(f"{unit}.ffn.0", torch.cat([x, message], -1))
        h = torch.nn.functional.layer_norm(
            h,
            h.shape[-1:],
            state[f"transformers.{i}.{unit}.ffn.1.weight"],
            state[f"transformers.{i}.{unit}.ffn.1.bias"],
        )
        return x + linear(f"{unit}.ffn.3", torch.nn.functional.gelu(h))

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(0, 1)

    def join(x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1)

    result = []
    for x, angle in zip((x0, x1), angles, strict=True):
        q, k, v = linear("self_attn.Wqkv", x).unflatten(-1, (heads, -1, 3)).transpose(0, 1).unbind(-1)
        turn = torch.polar(torch.ones_like(angle), angle)
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn) for t in (q, k))
        a = (q.flatten(-2) @ k.flatten(-2).mT / math.sqrt(v.shape[-1])).softmax(-1)
        result.append(mlp("self_attn", x, linear("self_attn.out_proj", join(a @ v))))
    x0, x1 = result
    k0, k1 = (split(linear("cross_attn.to_qk", x)) for x in (x0, x1))
    v0, v1 = (split(linear("cross_attn.to_v", x)) for x in (x0, x1))
    s = k0 @ k1.mT / math.sqrt(k0.shape[-1])
    messages = [join(s.softmax(-1) @ v1), join(s.mT.softmax(-1) @ v0)]
    return [mlp("cross_attn", x, linear("cross_attn.to_out", m)) for x, m in zip((x0, x1), messages, strict=True)]


def random_state(config: LightGlueConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the original layout with all parts away from zero."""
    torch.manual_seed(seed)
    state = to_upstream(LightGlueNet(config).state_dict(), config.heads)
    for name, tensor in state.items():
        if "out_proj" in name or "to_out" in name:
            state[name] = tensor + 0.1 * torch.randn_like(tensor)
    return state


def random_features(n: int, config: LightGlueConfig, seed: int) -> Features:
    g = torch.Generator().manual_seed(seed)
    return Features(
        torch.rand(n, 2, generator=g) * 400,
        torch.rand(n, generator=g),
        torch.nn.functional.normalize(torch.randn(n, config.input_dim, generator=g), dim=-1),
        (480, 400),
        "random",
        torch.rand(n, generator=g) * 30 + 2,
        torch.rand(n, generator=g) * 6.28,
    )


@pytest.mark.parametrize(
    "config",
    [
        LightGlueConfig(input_dim=128, dim=256, heads=4, layers=3),
        LightGlueConfig(input_dim=64, dim=64, heads=2, layers=2, scale_orientation=True),
        LightGlueConfig(input_dim=64, dim=96, heads=1, layers=2),
    ],
)
def test_plain_form_agrees(config: LightGlueConfig) -> None:
    state = {name: tensor.double() for name, tensor in random_state(config).items()}
    net = LightGlueNet(config)
    net.load_state_dict(from_upstream(state, config.heads))
    images = [random_features(n, config, seed) for seed, n in enumerate((37, 21))]
    positions = [
        lightglue.normalise_positions(
            f.keypoints, f.image_size, *((f.scales, f.orientations) if config.scale_orientation else ())
        )
        for f in images
    ]
    with torch.inference_mode():
        ours = lightglue.run_layers(
            net, torch.cat([f.descriptors for f in images]), torch.cat(positions), Layout([37, 21])
        )
        x0, x1 = (
            f.descriptors.double() @ state["input_proj.weight"].T + state["input_proj.bias"]
            if "input_proj.weight" in state
            else f.descriptors.double()
            for f in images
        )
        angles = [p.double() @ state["posenc.Wr.weight"].T for p in positions]
        for i in range(config.layers):
            x0, x1 = plain_layer(state, i, x0, x1, config.heads, *angles)
            torch.testing.assert_close(ours[i].double(), torch.cat([x0, x1]), atol=2e-5, rtol=1e-4)


def test_upstream_layout_survives_the_round_trip() -> None:
    config = LightGlueConfig(input_dim=64, dim=96, heads=2, layers=2)
    torch.manual_seed(1)
    state = LightGlueNet(config).state_dict()
    again = from_upstream(to_upstream(state, 2), 2)
    assert again.keys() == state.keys()
    for name in state:
        torch.testing.assert_close(again[name].float(), state[name], atol=1e-6, rtol=1e-6)


@pytest.fixture
def ragged_pairs(real_pair: Callable[..., Any]) -> list[tuple[Features, Features]]:
    f0, f1 = real_pair("aliked-n16")
    rng = np.random.default_rng(5)

    def some(f: Features) -> Features:
        index = np.sort(rng.choice(len(f), rng.integers(1, len(f)), replace=False))
        return f.select(torch.from_numpy(index))

    pairs = [(some(f0), some(f1)) for _ in range(14)]
    return [*pairs, (f0, f1), (f1, some(f1))]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_many_pairs_equal_single_calls(device: str, ragged_pairs: list[tuple[Features, Features]]) -> None:
    matcher = official("aliked-n16", device=device)
    together = matcher.match_many(ragged_pairs)
    assert len({m.stop_layer for m in together}) > 2, "the pairs should need different depths"
    for pair, many in zip(ragged_pairs, together, strict=True):
        single = matcher(*pair)
        np.testing.assert_array_equal(many.indices, single.indices)
        np.testing.assert_allclose(many.scores, single.scores, atol=1e-5 if device == "cpu" else 1e-4)
        assert many.stop_layer == single.stop_layer
        np.testing.assert_array_equal(many.prune_layer0, single.prune_layer0)
        np.testing.assert_array_equal(many.prune_layer1, single.prune_layer1)


def test_swapping_images_swaps_columns(ragged_pairs: list[tuple[Features, Features]]) -> None:
    matcher = official("aliked-n16")
    for f0, f1 in ragged_pairs[-6:]:
        forward, backward = matcher(f0, f1), matcher(f1, f0).swapped()
        np.testing.assert_array_equal(forward.indices, backward.indices)
        np.testing.assert_array_equal(forward.scores, backward.scores)
        np.testing.assert_array_equal(forward.matchability0, backward.matchability0)


def test_order_of_keypoints_does_not_matter(real_pair: Callable[..., Any]) -> None:
    matcher = official("aliked-n16")
    f0, f1 = real_pair("aliked-n16")
    order = torch.randperm(len(f0), generator=torch.Generator().manual_seed(0))
    plain, shuffled = matcher(f0, f1), matcher(f0.select(order), f1)
    back = np.stack([order.numpy()[shuffled.indices[:, 0]], shuffled.indices[:, 1]], axis=1)
    np.testing.assert_array_equal(plain.indices, back[np.argsort(back[:, 0])])


def test_history_of_every_point(real_pair: Callable[..., Any]) -> None:
    f0, f1 = real_pair("aliked-n16")
    result = official("aliked-n16")(f0, f1)
    assert result.stop_layer is not None and result.prune_layer0 is not None and result.matchability0 is not None
    assert result.prune_layer0.max() == result.stop_layer and result.prune_layer0.min() >= 1
    pruned = result.prune_layer0 < result.stop_layer
    assert (result.matchability0[pruned] <= 0.01 + 1e-6).all()
    assert not pruned[result.indices[:, 0]].any(), "a pruned point cannot be matched"


def test_bfloat16_finds_nearly_the_same(real_pair: Callable[..., Any]) -> None:
    f0, f1 = real_pair("disk")
    full, half = (official("disk", adaptive=False, precision=p)(f0, f1) for p in ("float32", "bfloat16"))
    common = {tuple(m) for m in full.indices} & {tuple(m) for m in half.indices}
    assert len(common) > 0.9 * max(len(full), len(half))


def test_padding_in_the_head_has_no_influence() -> None:
    torch.manual_seed(0)
    head = lightglue.AssignmentHead(16)
    x0, x1 = torch.randn(5, 16), torch.randn(7, 16)
    padded = [torch.cat([x, 100 * torch.randn(4, 16)])[None] for x in (x0, x1)]
    present = [torch.arange(len(x) + 4)[None] < len(x) for x in (x0, x1)]
    expected = head(x0, x1)
    log_p, _, _ = lightglue.assign(head, *padded, *present)
    torch.testing.assert_close(log_p[0, :5, :7], expected)
    assert torch.isneginf(log_p[0, 5:]).all() and torch.isneginf(log_p[0, :, 7:]).all()


@pytest.mark.parametrize("cross", [False, True])
def test_three_ways_to_attend_agree(cross: bool) -> None:
    """The loop of a CPU, the masked call of a GPU, and one pair at a time, on images of different sizes."""
    layout = Layout([5, 9, 3, 3])
    q, k, v = (torch.randn(20, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    expected = []
    for i in range(4):
        here, there = (layout.split(torch.arange(20))[n] for n in (i, i ^ cross))
        weight = (torch.einsum("nhd,mhd->hnm", q[here], k[there]) / 8**0.5).softmax(-1)
        expected.append(torch.einsum("hnm,mhd->nhd", weight, v[there]).flatten(1))
    torch.testing.assert_close(lightglue.attend(q, k, v, layout, cross), torch.cat(expected))
    torch.testing.assert_close(lightglue.attend_padded(q, k, v, layout, cross), torch.cat(expected))


def test_refuses_what_it_was_not_trained_for(real_pair: Callable[..., Any]) -> None:
    f0, f1 = real_pair("aliked-n16")
    with pytest.raises(ArgumentError, match="aliked"):
        official("disk")(f0, f1)
    with pytest.raises(ArgumentError, match="no LightGlue weights"):
        LightGlue("orb")
    with pytest.raises(ArgumentError, match="precision"):
        LightGlue("aliked-n16", precision="int3")


def test_no_keypoints_is_no_match(real_pair: Callable[..., Any]) -> None:
    f0, f1 = real_pair("aliked-n16")
    nothing = f0.select(torch.zeros(0, dtype=torch.int64))
    matcher = official("aliked-n16")
    results = matcher.match_many([(nothing, f1), (f0, f1), (nothing, nothing)])
    assert [len(r) for r in results[::2]] == [0, 0] and len(results[1]) > 30


@pytest.mark.parametrize(("quarters", "shrink"), [(0, 1.0), (1, 1.0), (2, 0.5), (3, 0.6)])
def test_roll_and_scale_are_seen_before_matching(quarters: int, shrink: float, texture: np.ndarray) -> None:
    """SIFT of a picture and of the same picture turned by quarters of a circle and shrunk."""
    turned = np.ascontiguousarray(np.rot90(texture, -quarters))  # clockwise: angles grow in y-down pictures
    height, width = (round(side * shrink) for side in turned.shape[:2])
    turned = cv2.resize(turned, (width, height), interpolation=cv2.INTER_AREA)
    sift = tp.features.load("sift")
    first, second = sift(texture), sift(turned)
    position0, position1 = (
        lightglue.normalise_positions(f.keypoints, f.image_size, f.scales.log2(), f.orientations)
        for f in (first, second)
    )
    sides = max(first.image_size), max(second.image_size)
    aligned0, aligned1 = lightglue.align(first.descriptors, second.descriptors, position0, position1, *sides)
    # In truth: where a point of the first picture is in the second, by the centre of both.
    cos, sin = round(math.cos(quarters * math.pi / 2)), round(math.sin(quarters * math.pi / 2))
    x, y = (first.keypoints - (torch.tensor(first.image_size) - 1) / 2).unbind(1)
    there = torch.stack([cos * x - sin * y, sin * x + cos * y], 1) * shrink
    there += (torch.tensor(second.image_size) - 1) / 2
    distance, j = torch.cdist(there, second.keypoints).min(1)
    same = distance < 0.5
    assert same.sum() > 100
    error = (aligned1[j] - aligned0)[same]
    assert error[:, :2].norm(dim=1).median() < 0.01
    assert error[:, 2].median().abs() < 0.1
    assert torch.remainder(error[:, 3] + math.pi, 2 * math.pi).sub(math.pi).median().abs() < 0.03


def test_alignment_needs_frames_and_room_for_them() -> None:
    with pytest.raises(ArgumentError, match="scale_orientation"):
        LightGlueConfig(align=True)
    with pytest.raises(ArgumentError, match="dim above 32"):
        LightGlueConfig(dim=32, heads=2, layers=2, scale_orientation=True, log_scale=True, align=True)


@pytest.mark.parametrize("harmonics", [(), (8, 6, 4, 2)])
def test_aligned_matching_does_not_see_roll_and_scale(tmp_path: Path, harmonics: tuple[int, ...]) -> None:
    """The same network finds the same matches however image 1 is rolled and scaled."""
    torch.manual_seed(0)
    config = LightGlueConfig(
        input_dim=32, dim=64, heads=2, layers=2, scale_orientation=True, log_scale=True, match_threshold=0.0, align=True
    )
    config = replace(config, harmonics=harmonics)
    net = LightGlueNet(config)
    start_as_nearest_neighbour(net)  # attends to what is near
    state = net.state_dict()
    for name in state:
        if "update.reduce" in name:
            state[name] = 0.1 * torch.randn(state[name].shape, generator=torch.Generator().manual_seed(0))
    without = {**state, "input.weight": state["input.weight"][:, :32].clone()}
    first = random_features(80, config, 1)
    rows = torch.arange(79, 9, -1)  # as many, in another order
    second = first.select(torch.cat([rows, torch.arange(10)]))
    turn, factor = 2.0, 3.0
    x, y = (second.keypoints - torch.tensor(second.image_size) / 2).unbind(1)
    across = torch.stack([math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y], 1)
    moved = replace(
        second,
        keypoints=across * factor + 720,
        scales=second.scales * factor,
        orientations=second.orientations + turn,  # not wrapped: of these random frequencies none is a whole number
        image_size=(1440, 1440),
    )
    for aligned in (True, False):
        told = asdict(replace(config, align=aligned, harmonics=harmonics if aligned else ()))
        weights.save(tmp_path / f"{aligned}.safetensors", state if aligned else without, told)
        matcher = LightGlue("random", weights=str(tmp_path / f"{aligned}.safetensors"))
        before, after = (matcher(first, other) for other in (second, moved))
        same = np.array_equal(before.indices, after.indices) and np.allclose(before.scores, after.scores, atol=1e-4)
        assert len(before) > 20 and same == aligned


def test_steerable_descriptors_are_read_as_the_image_stands() -> None:
    """A keypoint whose direction is found wrongly, and its descriptor turned with it, enters the network as before."""
    harmonics = (8, 6, 4, 2)
    config = LightGlueConfig(
        input_dim=32, dim=64, heads=2, layers=1, scale_orientation=True, log_scale=True, align=True, harmonics=harmonics
    )
    torch.manual_seed(0)
    net = LightGlueNet(config)
    net.input.weight.data[:, 32:] = 0  # the code of the keypoint's frame, which does tell its direction
    descriptors, positions = torch.randn(20, 32), torch.rand(20, 4)
    error = 3 * torch.randn(20)
    wrong = positions + torch.stack([torch.zeros(20)] * 3 + [error], 1)
    right, other = (
        net.encode(d, p)[0] for d, p in ((descriptors, positions), (steer(descriptors, -error, harmonics), wrong))
    )
    torch.testing.assert_close(right, other, atol=1e-4, rtol=0)
    with pytest.raises(ArgumentError, match="harmonics"):
        replace(config, align=False)


@pytest.mark.parametrize(
    "config", [LightGlueConfig(input_dim=64, dim=64, heads=2, layers=3), LightGlueConfig(layers=2)]
)
def test_a_foreign_file_tells_its_sizes_by_its_tensors(config: LightGlueConfig, tmp_path: Path) -> None:
    net = LightGlueNet(config)
    torch.save(to_upstream(net.state_dict(), config.heads), tmp_path / "theirs.pth")
    matcher = LightGlue("cairn", weights=str(tmp_path / "theirs.pth"))
    assert matcher.config == config
    for name, tensor in matcher.net.state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_weights_say_which_features_they_match() -> None:
    assert LightGlue(weights="cairn-lightglue").features == ("cairn",)
    with pytest.raises(ArgumentError, match="cairn-lightglue match cairn, not sift"):
        LightGlue("sift", weights="cairn-lightglue")
