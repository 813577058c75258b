"""``tiepoint calibrate``: thresholds for a stated price."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import completion
from .console import DeviceOption, JsonOption, options_of, print_json, print_table, spinner


def calibrate(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|WEIGHTS",
            autocompletion=completion.lightglue_weights,
            help="A run's folder, or weights of a LightGlue.",
        ),
    ],
    images: Annotated[Path, typer.Option(help="Photographs like those that will be matched.")],
    keep: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Fraction of the full model's right matches to keep.")
    ] = 0.99,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Probability that the promise holds.")] = 0.95,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Text file with two image names a line, to calibrate on instead of pairs made from single photographs "
            "(says nothing of overlap)."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            "-f",
            autocompletion=completion.extractors,
            help="Extractor of the keypoints; by default the one trained on.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Pairs to make; by default enough for the promise.")] = None,
    match_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least score of a match, stored too; by default that of the weights."),
    ] = None,
    max_keypoints: Annotated[
        int,
        typer.Option("--max-keypoints", "-k", min=32, help="Keypoints of each picture: as many as will be matched."),
    ] = 1024,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File; by default RUN/calibrated.safetensors, or NAME-calibrated.safetensors."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File of decoded photographs, shared by runs; by default they are decoded anew.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make pairs.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the pairs.")] = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Choose when to stop early, which points to drop, and when two photographs overlap.

    The cheapest setting that, with the given confidence, keeps the given fraction of what the full model finds is
    stored with the weights. The promise is about pairs like those calibrated on.
    """
    options = options_of(locals())
    from ..calibration.calibrate import calibrate_file

    with spinner("preparing photographs") as show:
        result, path = calibrate_file(
            **options,
            progress=lambda related, unrelated: show(f"matched {related} related and {unrelated} unrelated pairs"),
        )
    if json:
        threshold = result.config.overlap_threshold
        print_json({"output": str(path), **result.summary(), "overlap_threshold": threshold})
        return
    print_table(
        ("exit at confidence", "prune below", "lost", "p-value", "work", "time", ""),
        [
            (
                f"{s['exit_confidence']:g}",
                f"{s['prune_matchability']:g}",
                f"{s['lost']:.2%}",
                *(
                    (f"{s['p_value']:.3f}", f"{s['work']:.0%}", f"{s['seconds']:.1f} s")
                    if s["pairs"] == result.pairs
                    else ("", "", f"given up after {s['pairs']} pairs")
                ),
                "<- chosen" if s["chosen"] else "",
            )
            for s in result.settings
        ],
    )
    print(
        f"the full model took {result.seconds:.1f} s for {result.pairs} related and {result.unrelated} unrelated pairs"
    )
    if result.chosen is None:
        print(f"No setting keeps {keep:g} with confidence {confidence:g} on these pairs: the full model is used.")
    else:
        print(f"{result.speed_up:.2f} times as fast as the full model; keeps {keep:g} with confidence {confidence:g}")
    if result.config.overlap_threshold is not None and pairs is None:
        print(
            f"photographs overlap from evidence {result.config.overlap_threshold:.1f} on"
            + ("" if result.solved_kept is None else f"; {result.solved_kept:.0%} of the pairs that can be matched do")
        )
    print(f"wrote {path}")
