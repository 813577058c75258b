"""Exports the weights of a run as one file, for tiepoint or for other programs."""

from __future__ import annotations

import os
from pathlib import Path

from ... import weights
from ...errors import ArgumentError, InputError
from ...io.files import check_output
from ...matchers.lightglue import to_upstream
from ..loop import save_state
from .task import read_config


def export_weights(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    half: bool = False,
    layout: str = "tiepoint",
) -> tuple[Path, str]:
    """Write the weights of a run's last stage, with the model's configuration, thresholds and origin as metadata.

    Parameters
    ----------
    run : path
        Folder of the run, or a file of weights.
    output : path, optional
        A ``.safetensors`` file, or a ``.pth`` for upstream's layout; by default one named after extractor and matcher
        in the run's folder.
    half : bool
        Store 16-bit floats. Loading widens them again.
    layout : str
        ``"tiepoint"``, or ``"upstream"``: names and order of LightGlue's original code.

    Returns
    -------
    path, note : Path, str
        What was written, and a note for its user (or an empty text).

    Raises
    ------
    InputError
        The folder holds no run, or its stages do not belong together.
    ArgumentError
        Unknown layout or suffix, or there is no upstream layout for this kind of matcher.
    """
    if layout not in ("tiepoint", "upstream"):
        raise ArgumentError(f"the layout must be tiepoint or upstream, not {layout!r}")
    source = Path(run) if Path(run).is_file() else newest_weights(run)
    state, config = weights.load(source)
    kind = config.get("training", {}).get("kind")
    if kind == "end-to-end":
        raise ArgumentError(f"{run} trained two networks: give {run}/cairn.safetensors or {run}/lightglue.safetensors")
    if kind == "distillation":
        raise ArgumentError(f"{run} trained an extractor and a map to its teacher: give {run}/cairn.safetensors")
    if kind is None:
        raise ArgumentError(f"{source} was not written by 'tiepoint train'")
    suffix = ".safetensors" if layout == "tiepoint" else ".pth"
    name = f"{config['features'][0]}-{kind}" if "features" in config else kind
    path = Path(output) if output else (source.parent if source == Path(run) else Path(run)) / f"{name}{suffix}"
    check_output(path, (suffix,), inputs=[source])
    note = ""
    if layout == "upstream":
        if kind != "lightglue":
            raise ArgumentError(f"only LightGlue can be written in upstream's layout, not {kind}")
        state = to_upstream(state, config["heads"])
        if config["log_scale"]:
            note = "these weights want log2 of a keypoint's scale; upstream's code passes it plain"
        if config.get("align"):
            note += (
                ", and expect pairs aligned, with `tiepoint.matchers.lightglue.frame_code` joined to descriptors, "
                "which upstream's code does not do"
            )
    if half:
        state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    if layout == "tiepoint":
        weights.save(path, state, config)
    else:
        save_state(path, state)
    return path, note


def newest_weights(run: str | os.PathLike[str], calibrated: bool = True) -> Path:
    """Return the weights file of a run's last finished stage: calibrated (if wanted), confidence, or matcher.

    Raises
    ------
    InputError
        There is none yet, or an earlier stage was trained again after a later one.
    """
    run = Path(run)
    matcher, confidence, last = (
        run / name for name in ("weights.safetensors", "confidence/weights.safetensors", "calibrated.safetensors")
    )
    there = [file for file in (confidence, matcher) if file.is_file()]
    if not there:
        raise InputError(f"{run} holds no weights; 'tiepoint train matcher -o {run}' writes them")
    stage = run / "confidence"
    seen = read_config(stage)["config"]["matcher"] if (stage / "config.json").is_file() else None
    if seen and matcher.is_file() and seen != weights.sha256(matcher):
        raise InputError(
            f"{run}: the matcher was trained again after its confidence stage; delete {stage} and run "
            f"'tiepoint train confidence {run}' again"
        )
    if not calibrated or not last.is_file():
        return there[0]
    if weights.load(last)[1].get("calibration", {}).get("weights") != weights.sha256(there[0]):
        raise InputError(f"{last} is of weights that were trained on since; run 'tiepoint calibrate {run}' again")
    return last
