"""``tiepoint export``: networks for runtimes without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import completion
from .console import JsonOption, bar, print_json

Runtime = Literal["onnx", "openvino"]  # those of `tiepoint.exporting`, which imports torch; a test compares
Precision = Literal["float32", "bfloat16"]  # the same


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=completion.combinations,
            help="cairn+lightglue, or cairn@WEIGHTS+lightglue@WEIGHTS.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; an older export there is replaced.")],
    to: Annotated[Runtime, typer.Option(help="ONNX, for ONNX Runtime and others, or OpenVINO.")] = "onnx",
    precision: Annotated[
        Precision,
        typer.Option(help="Of LightGlue's layers; bfloat16, of --to openvino alone, is faster."),
    ] = "float32",
    json: JsonOption = False,
) -> None:
    """Write extractor and matcher for ONNX Runtime or OpenVINO.

    The folder is used by --features cairn@FOLDER, or runs by itself: python FOLDER/run.py A.jpg B.jpg.
    """
    from ..exporting import export

    with bar("exporting") as advance:
        written = export(
            model, output, to, precision=precision, progress=lambda name, done, total: advance(done, total)
        )
    if json:
        print_json(written.summary())
        return
    for part, licence in written.licences.items():
        print(f"licence of the {part}'s weights: {licence}")
    print(f"wrote {output}: {len(written.files)} files, {sum(written.files.values()) / 1e6:.1f} MB")
