"""``tiepoint train`` and ``tiepoint export-weights``: photographs -> an extractor or a matcher of one's own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..mapping.progress import Minutely
from . import completion
from .console import DeviceOption, JsonOption, is_terminal, options_of, print_json, print_table, say, spinner

app = typer.Typer(help="Train on your own photographs: features; or matcher, then confidence.", no_args_is_help=True)

PresetName = Literal["tiny", "small", "standard"]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of 'tiepoint train'.")]
ImagesOption = Annotated[Path, typer.Option(help="Folder of photographs, with its sub-folders.")]
RunOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a run there is resumed.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")]
MinutesOption = Annotated[
    float | None,
    typer.Option(min=0, help="Train no longer than this, the making of pairs ahead not counted; 0 for no limit."),
]
LightOption = Annotated[
    Literal["none", "mild", "strong", "extreme"] | None,
    typer.Option(help="How much light, lens and camera of the two views may differ; by default the preset's."),
]
AverageOption = Annotated[
    bool, typer.Option("--average", help="End with the mean of the weights of --start and those come to from there.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of all random choices.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="File of decoded photographs, which several runs can use; by default in RUN.")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Draw a few pairs, time a few steps, print what training would need.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that make pairs; by default one for each core but one, or none on a GPU."),
]


@app.command("matcher")
def matcher(
    images: ImagesOption,
    output: RunOption,
    features: Annotated[
        str,
        typer.Option("--features", "-f", autocompletion=completion.extractors, help="Extractor: sift, cairn@WEIGHTS …"),
    ] = "sift",
    preset: Annotated[PresetName, typer.Option(help="Size, pairs and length of the training.")] = "tiny",
    kind: Annotated[Literal["lightglue", "superglue"], typer.Option(help="Architecture.")] = "lightglue",
    start: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.lightglue_weights,
            help="Train these LightGlue weights on: file, or name of 'tiepoint weights list'.",
        ),
    ] = None,
    posed: Annotated[
        Path | None,
        typer.Option(help="Scenes with depth and pose: MegaDepth, COLMAP's dense workspace, 7-Scenes, TUM RGB-D."),
    ] = None,
    posed_share: Annotated[float, typer.Option(min=0, max=1, help="Fraction of the pairs that come from them.")] = 0.5,
    teacher: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.extractors,
            help="Learn from photographs that overlap, too, as this extractor's LightGlue matches them.",
        ),
    ] = None,
    pairs: Annotated[
        str, typer.Option(help="Which overlap, with --teacher: a file, two names a line; auto finds them.")
    ] = "auto",
    pairs_share: Annotated[float, typer.Option(min=0, max=1, help="Fraction of the pairs that come from them.")] = 0.5,
    light: LightOption = None,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch: Annotated[int | None, typer.Option(min=8, help="Pairs of one step, a multiple of 8.")] = None,
    detection_threshold: Annotated[
        float | None, typer.Option(help="Of the extractor; lower finds more points in dark and blurred pictures.")
    ] = None,
    seed: SeedOption = 1,
    cache: CacheOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    average: AverageOption = False,
    compile: CompileOption = False,
    save_memory: Annotated[
        bool, typer.Option("--save-memory", help="Compute states again in the backward pass instead of keeping them.")
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train a matcher on photographs of your own.

    Pairs with exact ground truth are made from single photographs, or taken from photographs with depth and pose.
    One process uses one GPU; several run under 'torchrun --nproc-per-node N -m tiepoint train matcher …'. Ctrl-C
    saves; run the same command to resume.
    """
    options = options_of(locals())
    from ..training.runs import matcher as runs

    options["pairs"] = None if pairs == "auto" else pairs
    row = _train(runs, runs.MatcherSettings, options, json)
    if row is None:
        return
    table = [
        (f"nearest neighbours, ratio {ratio}", f"{found['precision']:.3f}", f"{found['recall']:.3f}")
        for ratio, found in row["baseline"].items()
    ]
    table.append(("this matcher", f"{row['held_out_precision']:.3f}", f"{row['held_out_recall']:.3f}"))
    print_table(("on held-out pairs", "precision", "recall"), table)
    _print_end(row, output / "weights.safetensors")


@app.command("features")
def features(
    images: ImagesOption,
    output: RunOption,
    preset: Annotated[PresetName, typer.Option(help="Pairs and length of the training.")] = "tiny",
    start: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.cairn_weights,
            help="Train these weights of Cairn on: file, or name of 'tiepoint weights list'.",
        ),
    ] = None,
    matcher: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.lightglue_weights,
            help="End to end: with this LightGlue on top, trained on the features of --start.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.extractors,
            help="Learn descriptors from this extractor (aliked-n16 …) at the keypoints of --start.",
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Folder of the teacher's answers, which several runs can use; by default in RUN."),
    ] = None,
    light: LightOption = None,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch: Annotated[int | None, typer.Option(min=4, help="Pairs of one step, a multiple of 4.")] = None,
    seed: SeedOption = 1,
    cache: CacheOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    average: AverageOption = False,
    compile: CompileOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train Cairn, tiepoint's own extractor, on photographs of your own.

    It learns from pairs made of single photographs; nothing needs to be marked. Several processes run under
    'torchrun --nproc-per-node N -m tiepoint train features …'. Ctrl-C saves; run the same command to resume.
    """
    options = options_of(locals())
    from ..training.runs import features as runs

    row = _train(runs, runs.FeatureSettings, options, json)
    if row is None:
        return
    if teacher:
        print(f"on held-out pairs: {row['held_out_explained']:.1%} of the teacher's descriptors explained, ", end="")
    else:
        print(f"on held-out pairs: {row['held_out_repeated']:.1%} of the keypoints repeated, ", end="")
    print(f"{row['held_out_matched']:.1%} matched rightly by {'the matcher' if matcher else 'nearest neighbours'}")
    files = ["cairn.safetensors"] if teacher or matcher else ["weights.safetensors"]
    _print_end(row, *(output / file for file in (*files, *(["lightglue.safetensors"] if matcher else []))))


@app.command("superpoint")
def superpoint(
    images: ImagesOption,
    output: RunOption,
    preset: Annotated[Literal["tiny", "standard"], typer.Option(help="Length of the training.")] = "tiny",
    seed: SeedOption = 1,
    cache: CacheOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train the classic SuperPoint on photographs of your own, by its published recipe.

    Corners of synthetic shapes, then of photographs seen through many homographies, then detector and descriptor
    together. The weights are yours: 'superpoint-open@RUN/weights.safetensors'. Ctrl-C saves; run the same command to
    resume.
    """
    options = options_of(locals())
    from ..training.runs import superpoint as runs

    row = _train(runs, runs.SuperPointSettings, options, json)
    if row is None:
        return
    print(f"on held-out pairs: {row['held_out_found']:.1%} of the corners found, ", end="")
    print(f"cells matched with precision {row['held_out_precision']:.3f}, recall {row['held_out_recall']:.3f}")
    _print_end(row, output / "weights.safetensors")


@app.command("confidence")
def confidence(
    run: RunArgument,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 500,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train the confidence classifiers of a finished matcher, which stays as it is; they let it stop early."""
    from ..training.runs.matcher import train_confidence

    with _watched() as (report, stop):
        row = train_confidence(run, steps, workers, device, report, stop)
    if _printed(row, run / "confidence", json):
        return
    print(f"cross-entropy on held-out pairs {row['held_out_loss']:.3f} (knowing nothing: 0.693)")
    print(f"wrote {run / 'confidence' / 'weights.safetensors'}")


def export_weights(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|WEIGHTS", help="Folder of a run of 'tiepoint train', or one of its weights.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File; by default FEATURES-KIND.safetensors (upstream: .pth) in RUN."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit numbers: half the size.")] = False,
    layout: Annotated[
        Literal["tiepoint", "upstream"],
        typer.Option(help="upstream: for the original authors' LightGlue and what builds on it."),
    ] = "tiepoint",
    json: JsonOption = False,
) -> None:
    """Write the weights of a run's last stage as one file, with configuration, thresholds and origin in it."""
    from ..training.runs import share

    path, note = share.export_weights(run, output, half, layout)
    if note:
        say(f"tiepoint: {note}")
    if json:
        print_json({"output": str(path), "bytes": path.stat().st_size})
    else:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _train(runs: Any, settings_type: type[Any], options: dict[str, Any], json: bool) -> dict[str, Any] | None:
    """Train, or do the dry run that is asked for.

    Returns
    -------
    dict or None
        The last row of metrics; None where everything is printed already, or another process prints it.
    """
    dry_run = options.pop("dry_run", False)
    settings = settings_type(**options)
    if dry_run:
        with spinner("making pairs, timing steps"):
            needs = runs.dry_run(settings)
        _print_dry_run(needs, json)
        return None
    with _watched() as (report, stop):
        row = runs.train(settings, report, stop)
    return None if _printed(row, settings.folder, json) else row


@contextmanager
def _watched() -> Iterator[tuple[Callable[[str, dict[str, Any]], None], Callable[[], bool]]]:
    """Give what a training reports to and what asks it to stop.

    The newest row is shown on a bar or, if nobody watches, one a minute as a line; evaluations are lines. The first
    Ctrl-C, or a cluster's SIGTERM, asks to save and stop; the second one interrupts.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("tiepoint: saving, then stopping; once more to stop at once")

    text, console = TextColumn("{task.description}", markup=False), Console(stderr=True)
    bar, minutely = Progress(text, BarColumn(), console=console, disable=not is_terminal()), Minutely()
    shown = bar.add_task("checking photographs", total=None)

    def report(stage: str, row: dict[str, Any]) -> None:
        if "total" in row:
            bar.update(shown, description=f"making {stage}", completed=row["done"], total=row["total"])
            minutely.say(f"making {stage}: {row['done']} of {row['total']}")
            return
        line = (
            f"{stage}: step {row['step']}  loss {row['loss']:.3f}  precision {row['precision']:.3f}  recall "
            f"{row['recall']:.3f}  {row['pairs_per_s']:.0f} pairs/s  {row['waiting']:.0%} waiting  "
            f"{row['seconds_left'] / 60:.0f} min left"
        )
        bar.update(shown, description=line, completed=row["seconds"], total=row["seconds"] + row["seconds_left"])
        minutely.say(line)
        if "held_out_loss" in row:
            found = f"precision {row['held_out_precision']:.3f}, recall {row['held_out_recall']:.3f}"
            line = f"step {row['step']}: held-out loss {row['held_out_loss']:.3f}, {found}"
            bar.console.print(line, highlight=False, soft_wrap=True)

    with bar:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield report, lambda: asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _printed(row: dict[str, Any], folder: Path, json: bool) -> bool:
    """Print the last row as JSON if that is asked for; whether there is nothing else to print for this process."""
    from ..training.loop import is_first_process

    if json and is_first_process():  # JSON has no NaN
        print_json({**{k: None if v != v else v for k, v in row.items()}, "run": str(folder)})
    return json or not is_first_process()


def _print_end(row: dict[str, Any], *files: Path) -> None:
    written = " and ".join(str(file) for file in files)
    print(f"{row['step']} steps in {row['seconds'] / 60:.1f} minutes, wrote {written}")


def _print_dry_run(needs: dict[str, Any], json: bool) -> None:
    from ..training.loop import is_first_process

    if not is_first_process():
        return
    if json:
        print_json(needs)
        return
    print(f"{needs['parameters'] / 1e6:.1f} million parameters, {needs['memory_mb']:.0f} MB of memory at most")
    print(f"{needs['seconds_per_step']:.2f} s a step")
    if "answers" in needs:
        print(f"{needs['seconds_per_answer']:.2f} s for an answer of the teacher; {needs['answers']} photographs left")
    print(f"{needs['seconds_per_pair_made']:.2f} s to make a pair, by each of {max(1, needs['workers'])} processes")
    print(f"about {needs['minutes']:.0f} minutes in all")
    print(f"wrote {Path(needs['pictures'][0]).parent}: pairs as they are trained on")
