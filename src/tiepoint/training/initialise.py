"""Networks as training begins with them: a LightGlue that is a soft nearest-neighbour matcher, or given weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import weights
from ..errors import ArgumentError
from ..features.steerable import steer
from ..matchers.lightglue import FRAME_CODE, LightGlueConfig, LightGlueNet
from ..matchers.superglue import SuperGlueConfig, SuperGlueNet
from .objectives.lightglue import lightglue_inputs
from .pairs.batch import Batch
from .pairs.traits import Traits

_SLOWEST, _FASTEST = 1.0, 40.0  # radians over half the long side of a picture
_NEARNESS = 10.0  # logarithm of how much more than a far point the nearest one is attended to
_WHITENING = 0.5  # 0: principal axes as they are, 1: all of the same variance


@torch.no_grad()
def start_as_nearest_neighbour(
    net: LightGlueNet, descriptors: Tensor | None = None, sharpness: float = 14.0, geometry: float = 8.0
) -> None:
    """Initialise a LightGlue so that it begins as a soft nearest-neighbour matcher, and has only to improve on it.

    The last linear layer of every residual branch is zero, so states are projected descriptors, and each head
    multiplies by a temperature such that S_ij = ``sharpness`` * cosine. Where pairs are aligned, the agreement of
    places, scales and orientations (`tiepoint.matchers.lightglue.frame_code`) adds up to ``geometry``. Points know
    their neighbourhood from the first step: frequencies of the positional encoding span all distances.

    Parameters
    ----------
    net : LightGlueNet
        Changed in place. Its random numbers (see `torch.manual_seed`) are those of its construction.
    descriptors : (N, D), optional
        Some of those to match, unit vectors, at least a few times D. With them the first projection is their principal
        axes, half whitened: on SIFT as good a start as thousands of steps of training.
    sharpness : float
        Similarity of two equal descriptors.
    geometry : float
        Similarity of two keypoints that agree perfectly in place, scale and orientation.
    """
    coded = FRAME_CODE if net.config.align else 0
    kept = net.config.dim - coded  # numbers of the state that tell what a keypoint looks like
    similarity = torch.full((net.config.dim,), sharpness)
    similarity[kept:] = geometry
    norm = _start_states(net, descriptors, kept)
    _start_heads(net, similarity, norm)
    of_place, octave = _start_frequencies(net)
    _attend_to_neighbours(net, of_place, octave)


def _start_states(net: LightGlueNet, descriptors: Tensor | None, kept: int) -> Tensor:
    """Make states projected descriptors that every layer leaves as they are; return the norm of a state's parts (dim,).

    The first ``kept`` numbers of a state are the descriptor's, the rest the code of the frame.
    """
    config = net.config
    dim, coded = config.dim, config.dim - kept
    gain = dim**0.5  # unit descriptors have entries of 1 / gain; layers like entries of about 1
    norm = torch.ones(dim)
    for layer in net.layers:
        for unit in (layer.self_attention, layer.cross_attention):
            unit.update.reduce.weight.zero_()
            unit.update.reduce.bias.zero_()
    if isinstance(net.input, nn.Identity):
        for layer in net.layers:
            layer.self_attention.qkv.weight.mul_(gain)
            layer.cross_attention.kv.weight.mul_(gain)
            for unit in (layer.self_attention, layer.cross_attention):
                unit.update.expand.weight[:, :dim].mul_(gain)
        return norm
    weight = net.input.weight.zero_()
    net.input.bias.zero_()
    if descriptors is None:
        nn.init.orthogonal_(weight[:kept, : config.input_dim]).mul_(kept**0.5)
    else:
        axes, mean = _whitening(descriptors, kept)
        weight[: len(axes), : config.input_dim] = axes * kept**0.5
        net.input.bias[: len(axes)] = -(axes @ mean) * kept**0.5
    weight[kept:, config.input_dim :] = torch.eye(coded) * coded**0.5
    norm[:kept], norm[kept:] = kept**0.5, coded**0.5
    return norm


def _start_heads(net: LightGlueNet, similarity: Tensor, norm: Tensor) -> None:
    """Give equal states of this ``norm`` (dim,) this ``similarity`` (dim,); no head is sure of anything else."""
    # S = |m0| |m1| cos / sqrt(dim) with m = temperature * state
    temperature = (similarity * net.config.dim**0.5).sqrt() / norm
    for head in net.heads:
        head.project.weight.copy_(temperature.diag())
        head.project.bias.zero_()
        head.matchability.weight.zero_()
        head.matchability.bias.fill_(2.0)  # most points may match: P of a sure match is 0.78, far above any threshold
    for classifier in net.confidence:
        classifier.weight.zero_()
        classifier.bias.zero_()


def _start_frequencies(net: LightGlueNet) -> tuple[Tensor, Tensor]:
    """Spread the frequencies of the positional encoding; return which tell place alone, and their octaves in [0, 1].

    From one wave over the picture to several between neighbouring keypoints, so that what is near is known at the start
    and need not be discovered.
    """
    rates = net.frequencies.weight
    count = len(rates)
    number = torch.arange(count)
    octave = (number // 4) / max(1, (count - 1) // 4)
    direction = torch.atan2(rates[:, 1], rates[:, 0])
    size = _SLOWEST * (_FASTEST / _SLOWEST) ** octave
    rates[:, :2] = torch.stack([direction.cos(), direction.sin()], 1) * size[:, None]
    if not net.config.scale_orientation:
        return torch.ones(count, dtype=torch.bool), octave
    # Of four, two tell position alone, one also orientation, and one orientation and scale without position. A full
    # turn changes nothing: turns are whole numbers.
    kind = number % 4
    rates[:, 3] = torch.tensor([0.0, 0.0, 1.0, 2.0])[kind]
    rates[:, 2] = torch.where(kind == 3, 0.5 + 0.8 * octave, 0.0)  # radians for each octave
    rates[kind == 3, :2] = 0.0
    return kind < 2, octave


def _attend_to_neighbours(net: LightGlueNet, of_place: Tensor, octave: Tensor) -> None:
    """Let self-attention begin with what is near, and cross-attention with what is alike.

    Constant queries and keys, turned by the positions, attend to what is near: the sum of cosines peaks at distance
    zero. The first head looks at the nearest points, the others, which have only the slow half, wider.
    """
    count = len(octave)
    for layer in net.layers:
        bias = layer.self_attention.qkv.bias.view(3, net.config.heads, 2, count)
        bias[:2] = 0.0
        for head in range(net.config.heads):
            there = of_place & ((octave <= 0.5) if head else True)
            bias[:2, head, 0] = there * (_NEARNESS * (2 * count) ** 0.5 / there.sum()) ** 0.5
        if isinstance(net.input, nn.Linear):
            nn.init.orthogonal_(layer.cross_attention.kv.weight[: net.config.dim])


def _whitening(descriptors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Principal axes (K, D), at most so many, and mean (D,): projections have length 1 on average, half whitened."""
    mean = descriptors.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(descriptors.T))
    values, axes = values.flip(0)[:most], axes.flip(1)[:, :most]
    values = values.clamp(min=1e-4 * float(values[0]))  # directions that the sample hardly has are not blown up
    axes = axes * values ** -(_WHITENING / 2)
    return (axes / ((descriptors - mean) @ axes).norm(dim=1).mean()).T, mean


def new_lightglue(
    model: LightGlueConfig, features: str, traits: Traits, seed: int, pairs: Batch | None, start: Path | None = None
) -> LightGlueNet:
    """Return a LightGlue as training begins with it.

    Parameters
    ----------
    model : LightGlueConfig
        Its size; what depends on the features is filled in.
    features : str
        Name of the extractor.
    traits : Traits
        Of its features.
    seed : int
        Of the random choices.
    pairs : Batch or None
        Some of those to match, for `start_as_nearest_neighbour`.
    start : path, optional
        LightGlue weights of ours, of the same shape, to begin with instead. Their match threshold stays.

    Raises
    ------
    ArgumentError
        Those weights do not fit.
    """
    config = replace(
        model,
        features=(features,),
        input_dim=traits.input_dim,
        scale_orientation=traits.scale_orientation,
        log_scale=traits.scale_orientation,
        align=traits.scale_orientation,
        harmonics=traits.harmonics,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LightGlueNet(config)
        if start is None:
            descriptors = None
            if pairs is not None:
                descriptors, positions, _ = lightglue_inputs(pairs, config)
                if traits.harmonics:
                    descriptors = steer(descriptors, positions[:, 3], traits.harmonics)
            start_as_nearest_neighbour(net, descriptors)
            return net
    state, metadata = weights.load(start)
    if not metadata.get("features") or "layers" not in metadata:
        raise ArgumentError(f"{start} holds no LightGlue weights of ours")
    there = LightGlueConfig.from_dict(metadata)
    names = ("features", "scale_orientation", "log_scale", "align", "harmonics", "input_dim", "dim", "heads", "layers")
    if differing := [name for name in names if getattr(there, name) != getattr(config, name)]:
        what = "; ".join(f"{name} is {getattr(there, name)} there, {getattr(config, name)} here" for name in differing)
        raise ArgumentError(f"{start} cannot start this training: {what}. Choose the preset it was trained with")
    net.config = replace(config, match_threshold=there.match_threshold)
    return weights.load_into(net, state, start).train().requires_grad_(True)


def new_superglue(model: LightGlueConfig, features: str, traits: Traits, seed: int) -> SuperGlueNet:
    """Return a SuperGlue as training begins with it; parameters are those of `new_lightglue`.

    It has one self- and one cross-attention layer for each layer of LightGlue. The paper's solver iterates 100 times;
    half of that is as good in training, and is what public training code uses.
    """
    config = SuperGlueConfig(
        features=(features,),
        dim=traits.input_dim,
        keypoint_encoder=tuple(width for width in (32, 64, 128, 256) if width <= traits.input_dim),
        heads=model.heads,
        layers=2 * model.layers,
        sinkhorn_iterations=50,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SuperGlueNet(config)
