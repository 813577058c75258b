"""Checkpoints of the original authors' LightGlue and of XFeat's LighterGlue, converted to and from ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def from_upstream(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Convert a checkpoint of the original authors, or of LighterGlue, to `LightGlueNet`'s parameters.

    Understands the current key names, the older ones (``self_attn.0.`` for ``transformers.0.self_attn.``) and
    the prefix ``matcher.`` of XFeat's file. Products of weights are formed, and returned, in float64.
    """
    old = {name.removeprefix("matcher."): tensor.double() for name, tensor in state.items()}
    for kind in ("self_attn", "cross_attn"):
        old = {
            f"transformers.{name.split('.')[1]}.{kind}.{name.split('.', 2)[2]}" if name.startswith(kind) else name: t
            for name, t in old.items()
        }
    new = {"frequencies.weight": old["posenc.Wr.weight"]}
    for part in ("weight", "bias"):
        if f"input_proj.{part}" in old:
            new[f"input.{part}"] = old[f"input_proj.{part}"]

    def fold_update(source: str, output: str, target: str) -> None:
        """Fold the output projection of an attention unit into the first linear layer of its update."""
        w, b = old[f"{source}.ffn.0.weight"], old[f"{source}.ffn.0.bias"]
        w_x, w_message = w.chunk(2, dim=1)
        new[f"{target}.expand.weight"] = torch.cat([w_x, w_message @ old[f"{source}.{output}.weight"]], dim=1)
        new[f"{target}.expand.bias"] = b + w_message @ old[f"{source}.{output}.bias"]
        for part in ("weight", "bias"):
            new[f"{target}.norm.{part}"] = old[f"{source}.ffn.1.{part}"]
            new[f"{target}.reduce.{part}"] = old[f"{source}.ffn.3.{part}"]

    layers = 1 + max(int(name.split(".")[1]) for name in old if name.startswith("transformers."))
    for i in range(layers):
        source, target = f"transformers.{i}", f"layers.{i}"
        for part in ("weight", "bias"):
            # Rows of Wqkv are ordered (head, D, qkv); rotary pairs are neighbours in D.
            qkv = old[f"{source}.self_attn.Wqkv.{part}"].unflatten(0, (heads, -1, 3))
            q, k, v = qkv.unbind(2)
            q, k = (t.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) for t in (q, k))
            new[f"{target}.self_attention.qkv.{part}"] = torch.stack([q, k, v]).flatten(0, 2)
            new[f"{target}.cross_attention.kv.{part}"] = torch.cat(
                [old[f"{source}.cross_attn.to_{name}.{part}"] for name in ("qk", "v")]
            )
            new[f"heads.{i}.project.{part}"] = old[f"log_assignment.{i}.final_proj.{part}"]
            new[f"heads.{i}.matchability.{part}"] = old[f"log_assignment.{i}.matchability.{part}"]
            if i < layers - 1:
                new[f"confidence.{i}.{part}"] = old[f"token_confidence.{i}.token.0.{part}"]
        fold_update(f"{source}.self_attn", "out_proj", f"{target}.self_attention.update")
        fold_update(f"{source}.cross_attn", "to_out", f"{target}.cross_attention.update")
    return new


def shape_of_upstream(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of a checkpoint of the original authors, which holds no configuration, for `LightGlueConfig`."""
    shapes = {name.removeprefix("matcher."): tensor.shape for name, tensor in state.items()}
    if "posenc.Wr.weight" not in shapes or "log_assignment.0.final_proj.weight" not in shapes:
        return {}
    waves, numbers = shapes["posenc.Wr.weight"]
    dim = shapes["log_assignment.0.final_proj.weight"][0]
    return {
        "input_dim": shapes.get("input_proj.weight", (dim, dim))[1],
        "dim": dim,
        "heads": dim // (2 * waves),
        "layers": sum(name.startswith("log_assignment.") and name.endswith("final_proj.weight") for name in shapes),
        "scale_orientation": numbers == 4,
    }


def to_upstream(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Convert `LightGlueNet`'s parameters to the original layout, for the original authors' code and hloc.

    The folded output projection becomes an identity; what the network computes is the same.
    """
    new = {"posenc.Wr.weight": state["frequencies.weight"]}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    for i in range(layers):
        source, target = f"layers.{i}", f"transformers.{i}"
        for part in ("weight", "bias"):
            if f"input.{part}" in state:
                new[f"input_proj.{part}"] = state[f"input.{part}"]
            q, k, v = state[f"{source}.self_attention.qkv.{part}"].unflatten(0, (3, heads, -1)).unbind(0)
            q, k = (t.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) for t in (q, k))
            new[f"{target}.self_attn.Wqkv.{part}"] = torch.stack([q, k, v], dim=2).flatten(0, 2)
            kv = state[f"{source}.cross_attention.kv.{part}"].chunk(2)
            new[f"{target}.cross_attn.to_qk.{part}"], new[f"{target}.cross_attn.to_v.{part}"] = kv
            new[f"log_assignment.{i}.final_proj.{part}"] = state[f"heads.{i}.project.{part}"]
            new[f"log_assignment.{i}.matchability.{part}"] = state[f"heads.{i}.matchability.{part}"]
            if i < layers - 1:
                new[f"token_confidence.{i}.token.0.{part}"] = state[f"confidence.{i}.{part}"]
            for unit, output in (("self", "out_proj"), ("cross", "to_out")):
                update = f"{source}.{unit}_attention.update"
                new[f"{target}.{unit}_attn.ffn.0.{part}"] = state[f"{update}.expand.{part}"]
                new[f"{target}.{unit}_attn.ffn.1.{part}"] = state[f"{update}.norm.{part}"]
                new[f"{target}.{unit}_attn.ffn.3.{part}"] = state[f"{update}.reduce.{part}"]
                dim = len(state[f"{update}.reduce.bias"])
                identity = torch.eye(dim) if part == "weight" else torch.zeros(dim)
                new[f"{target}.{unit}_attn.{output}.{part}"] = identity
    return new
