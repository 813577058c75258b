"""``tiepoint train`` and ``tiepoint export-weights``: photographs -> an extractor or a matcher of one's own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from .console import DeviceOption, JsonOption, Minutely, is_terminal, none_if_auto, print_json, print_table, say

if TYPE_CHECKING:
    from ..training.loop import FitConfig
    from ..training.runs.features import FeatureTask
    from ..training.runs.matcher import Task

app = typer.Typer(help="Train on your own photographs: features; or matcher, then confidence.", no_args_is_help=True)


class PresetName(str, Enum):
    """What ``--preset`` accepts."""

    tiny = "tiny"
    small = "small"
    standard = "standard"


class Kind(str, Enum):
    """What ``--kind`` accepts."""

    lightglue = "lightglue"
    superglue = "superglue"


class Light(str, Enum):
    """What ``--light`` accepts."""

    none = "none"
    mild = "mild"
    strong = "strong"
    extreme = "extreme"


class Layout(str, Enum):
    """What ``--layout`` accepts."""

    tiepoint = "tiepoint"
    upstream = "upstream"


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of 'tiepoint train'.")]
ImagesOption = Annotated[Path, typer.Option("--images", help="Folder of photographs, with its sub-folders.")]
RunOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; a run there is resumed.")]
StepsOption = Annotated[Optional[int], typer.Option(min=1, help="Optimiser steps.")]  # noqa: UP045
MinutesOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0, help="Train no longer than this (making pairs first is not counted); 0 for no limit."),
]
LightOption = Annotated[
    Optional[Light],  # noqa: UP045
    typer.Option(help="How much light, lens and camera of the two views may differ; by default the preset's."),
]
AverageOption = Annotated[
    bool, typer.Option("--average", help="End with the mean of the weights of --start and those come to from there.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of all random choices.")]
CacheOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="File of decoded photographs, shared by runs; by default in RUN."),
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Draw a few pairs, time a few steps, tell what training would need.")
]
WorkersOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Processes that make pairs; by default one for each core but one, or none on a GPU."),
]


@app.command("matcher")
def matcher(
    images: ImagesOption,
    output: RunOption,
    features: Annotated[str, typer.Option("--features", "-f", help="Extractor: sift, cairn@WEIGHTS …")] = "sift",
    preset: Annotated[PresetName, typer.Option(help="Size, pairs and length of the training.")] = PresetName.tiny,
    kind: Annotated[Kind, typer.Option(help="Architecture.")] = Kind.lightglue,
    start: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--start", help="Train these LightGlue weights on: a file, or a name of 'tiepoint weights list'."),
    ] = None,
    posed: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Scenes with depth and pose: MegaDepth, COLMAP's dense workspace, 7-Scenes, TUM RGB-D."),
    ] = None,
    posed_share: Annotated[
        float, typer.Option("--posed-share", min=0, max=1, help="Share of the pairs that come from them.")
    ] = 0.5,
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Learn from photographs that overlap, too, as this extractor's LightGlue matches them."),
    ] = None,
    pairs: Annotated[
        str, typer.Option(help="Which overlap, with --teacher: a file, two names a line; auto finds them.")
    ] = "auto",
    pairs_share: Annotated[
        float, typer.Option("--pairs-share", min=0, max=1, help="Share of the pairs that come from them.")
    ] = 0.5,
    light: LightOption = None,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch: Annotated[Optional[int], typer.Option(min=8, help="Pairs of one step, a multiple of 8.")] = None,  # noqa: UP045
    detection_threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Of the extractor; lower finds more points in dark and blurred pictures."),
    ] = None,
    seed: SeedOption = 1,
    cache: CacheOption = None,
    chunks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of finished pairs, shared by runs; by default in RUN."),
    ] = None,
    distinct: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Make this many chunks of 8 pairs and reuse them; 0 makes new ones all the time."),
    ] = None,
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
    saves; the same command goes on.
    """
    from ..errors import ArgumentError
    from ..training.runs import matcher as run_matcher
    from ..training.runs import presets

    chosen = presets.preset(preset.value)
    fit = _limits(chosen.fit, steps, minutes)
    made = replace(chosen.pairs, features=features, detection_threshold=detection_threshold)
    if light is not None:
        made = replace(made, photometric=light.value)
    if posed is not None:
        made = replace(made, posed=posed_share, scenes=made.scenes * (1 - posed_share))
    if teacher is not None:
        left = 1 - pairs_share
        made = replace(made, real=pairs_share, posed=made.posed * left, scenes=made.scenes * left)
    elif pairs != "auto":
        raise ArgumentError("--pairs lists photographs for a teacher to match: give --teacher, too")
    chosen = replace(
        chosen,
        pairs=made,
        fit=replace(fit, average=average, compile=compile),
        batch=batch or chosen.batch,
        distinct=chosen.distinct if distinct is None else distinct or None,
    )
    with _console("checking photographs and extractor"):
        task = run_matcher.prepare(
            images,
            output,
            chosen,
            kind.value,
            seed,
            cache,
            chunks,
            workers,
            none_if_auto(device),
            posed,
            start,
            teacher,
            None if pairs == "auto" else pairs,
        )
    if dry_run:
        with _console("making pairs, timing steps"):
            told = run_matcher.rehearse(task, output, save_memory=save_memory)
        if task.rank == 0:
            _print_rehearsal(told, json)
        return
    _make_ahead(task, "pairs", "chunks")
    with _live(f"training {kind.value} on {features}") as report, _graceful() as stop:
        row = run_matcher.train_matcher(task, output, save_memory, report, stop)
    if task.rank == 0:
        _print_result(row, output, json)


@app.command("features")
def features(
    images: ImagesOption,
    output: RunOption,
    preset: Annotated[PresetName, typer.Option(help="Pairs and length of the training.")] = PresetName.tiny,
    start: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--start", help="Train these weights of Cairn on: a file, or a name of 'tiepoint weights list'."),
    ] = None,
    matcher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--matcher", help="End to end: with this LightGlue on top, trained on the features of --start."),
    ] = None,
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Learn descriptors from this extractor (aliked-n16 …) at the keypoints of --start."),
    ] = None,
    answers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the teacher's answers, shared by runs; by default in RUN."),
    ] = None,
    light: LightOption = None,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch: Annotated[Optional[int], typer.Option(min=4, help="Pairs of one step, a multiple of 4.")] = None,  # noqa: UP045
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
    'torchrun --nproc-per-node N -m tiepoint train features …'. Ctrl-C saves; the same command goes on.
    """
    from ..training.runs import features as run_features
    from ..training.runs import presets

    chosen = presets.feature_preset(preset.value)
    fit = replace(_limits(chosen.fit, steps, minutes), average=average, compile=compile)
    views = chosen.views if light is None else replace(chosen.views, photometric=light.value)
    chosen = replace(chosen, views=views, fit=fit, batch=batch or chosen.batch)
    with _console("checking photographs"):
        task = run_features.prepare(
            images, output, chosen, seed, cache, workers, none_if_auto(device), start, matcher, teacher, answers
        )
    if dry_run:
        with _console("making pairs, timing steps"):
            told = run_features.rehearse(task, output)
        if task.rank == 0:
            _print_rehearsal(told, json)
        return
    if task.answers is not None and task.answers.missing:
        asked = len(task.answers.missing)
        say(f"tiepoint: {teacher} is asked about {asked} photographs, {task.answers.bytes / 1e6:.0f} MB in all")
        _make_ahead(task, "answers", "photographs")
    with _live("training cairn" + (" and lightglue" if matcher else "")) as report, _graceful() as stop:
        row = run_features.train_features(task, output, report, stop)
    if task.rank > 0:
        return
    if json:
        print_json({**_finite(row), "run": str(output)})
        return
    if teacher:
        print(f"on held-out pairs: {row['held_out_explained']:.1%} of the teacher's descriptors explained, ", end="")
    else:
        print(f"on held-out pairs: {row['held_out_repeated']:.1%} of the keypoints repeated, ", end="")
    print(f"{row['held_out_matched']:.1%} matched rightly by {'the matcher' if matcher else 'nearest neighbours'}")
    files = ["cairn.safetensors"] if teacher else ["weights.safetensors"]
    if matcher:
        files = ["cairn.safetensors", "lightglue.safetensors"]
    written = " and ".join(str(output / file) for file in files)
    print(f"{row['step']} steps in {row['seconds'] / 60:.1f} minutes, wrote {written}")


class SuperPointPresetName(str, Enum):
    """What ``--preset`` of SuperPoint accepts."""

    tiny = "tiny"
    standard = "standard"


@app.command("superpoint")
def superpoint(
    images: ImagesOption,
    output: RunOption,
    preset: Annotated[SuperPointPresetName, typer.Option(help="Length of the training.")] = SuperPointPresetName.tiny,
    seed: SeedOption = 1,
    cache: CacheOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train the classic SuperPoint on photographs of your own, by its published recipe.

    Corners of synthetic shapes, then of photographs seen through many homographies, then detector and descriptor
    together. The weights are yours: 'superpoint-open@RUN/weights.safetensors'. Ctrl-C saves; the same command goes on.
    """
    from ..training.runs import presets
    from ..training.runs import superpoint as run_superpoint

    chosen = presets.superpoint_preset(preset.value)
    with _console("checking photographs"):
        task = run_superpoint.prepare(images, output, chosen, seed, cache, workers, none_if_auto(device))
    with _live("training superpoint") as live, _graceful() as stop:

        def report(stage: str, row: dict[str, Any]) -> None:
            if stage == "corners":
                say(f"tiepoint: corners of {row['done']} of {row['total']} photographs")
            else:
                live(row)

        row = run_superpoint.train_superpoint(task, output, report, stop)
    if task.rank > 0:
        return
    if json:
        print_json({**_finite(row), "run": str(output)})
        return
    print(f"on held-out pairs: {row['held_out_found']:.1%} of the corners found, ", end="")
    print(f"cells matched with precision {row['held_out_precision']:.3f}, recall {row['held_out_recall']:.3f}")
    print(f"{row['step']} steps in {row['seconds'] / 60:.1f} minutes, wrote {output / 'weights.safetensors'}")


@app.command("confidence")
def confidence(
    run: RunArgument,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 500,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train the confidence classifiers of a finished matcher, which stays as it is; they let it stop early."""
    from ..training.runs import matcher as training

    with _console("opening the run"):
        task = training.reopen(run, workers, none_if_auto(device))
    _make_ahead(task, "pairs", "chunks")
    with _live("training confidence") as report, _graceful() as stop:
        row = training.train_confidence(task, run, steps, report, stop)
    if task.rank > 0:
        return
    if json:
        print_json({**_finite(row), "run": str(run / "confidence")})
    else:
        print(f"cross-entropy on held-out pairs {row['held_out_loss']:.3f} (knowing nothing: 0.693)")
        print(f"wrote {run / 'confidence' / 'weights.safetensors'}")


def export_weights(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|WEIGHTS", help="Folder of a run of 'tiepoint train', or one of its weights.")
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="File; by default FEATURES-KIND.safetensors (upstream: .pth) in RUN."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit numbers: half the size.")] = False,
    layout: Annotated[
        Layout, typer.Option(help="upstream: for the original authors' LightGlue and what builds on it.")
    ] = Layout.tiepoint,
    json: JsonOption = False,
) -> None:
    """Write the weights of a run's last stage as one file, with configuration, thresholds and origin in it."""
    from ..training.runs import share as export

    path, note = export.export_weights(run, output, half, layout.value)
    if note:
        say(f"tiepoint: {note}")
    if json:
        print_json({"output": str(path), "bytes": path.stat().st_size})
    else:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _limits(fit: FitConfig, steps: int | None, minutes: float | None) -> FitConfig:
    """Return the preset's settings with the length that was asked for."""
    if steps is not None:  # who counts steps wants them all
        fit = replace(fit, steps=steps, minutes=None, warmup=min(fit.warmup, steps // 5))
    return fit if minutes is None else replace(fit, minutes=minutes or None)


@contextmanager
def _graceful() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C, or a cluster's SIGTERM, into a request to save and stop; the second one interrupts."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("tiepoint: saving after this step; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _console(text: str) -> Iterator[None]:
    """Say what is going on, if a person watches."""
    with Console(stderr=True).status(escape(text)) if is_terminal() else _nothing():
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _make_ahead(task: Task | FeatureTask, what: str, unit: str) -> None:
    """Make what a run uses again and again, and show how much of it there is."""
    with Progress(console=Console(stderr=True), disable=not is_terminal(), transient=True) as bar:
        shown, minutely = bar.add_task(f"making {what}", total=None), Minutely()
        for done, total in task.make_ahead():
            bar.update(shown, completed=done, total=total)
            minutely.say(f"making {what}: {done} of {total} {unit}")


@contextmanager
def _live(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show the newest row of metrics on a bar, or, if nobody watches, one a minute as a line; evaluations as lines."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        console=Console(stderr=True),
        disable=not is_terminal(),
    )
    with bar:
        shown = bar.add_task(title, total=1.0)
        minutely = Minutely()

        def report(row: dict[str, Any]) -> None:
            whole = row["seconds"] + row["seconds_left"]
            text = (
                f"step {row['step']}  loss {row['loss']:.3f}  precision {row['precision']:.3f}  recall "
                f"{row['recall']:.3f}  {row['pairs_per_s']:.0f} pairs/s  {row['waiting']:.0%} waiting  "
                f"{row['seconds_left'] / 60:.0f} min left"
            )
            bar.update(shown, description=text, completed=row["seconds"] / whole)
            minutely.say(text)
            if "held_out_loss" in row:
                bar.console.print(
                    f"step {row['step']}: held-out loss {row['held_out_loss']:.3f}, precision "
                    f"{row['held_out_precision']:.3f}, recall {row['held_out_recall']:.3f}",
                    highlight=False,
                    soft_wrap=True,
                )

        yield report


def _print_result(row: dict[str, Any], folder: Path, json: bool) -> None:
    if json:
        print_json({**_finite(row), "run": str(folder)})
        return
    rows = [
        (f"nearest neighbours, ratio {ratio}", f"{told['precision']:.3f}", f"{told['recall']:.3f}")
        for ratio, told in row["baseline"].items()
    ]
    rows.append(("this matcher", f"{row['held_out_precision']:.3f}", f"{row['held_out_recall']:.3f}"))
    print_table(("on held-out pairs", "precision", "recall"), rows)
    print(f"{row['step']} steps in {row['seconds'] / 60:.1f} minutes, wrote {folder / 'weights.safetensors'}")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if value != value else value for name, value in row.items()}


def _print_rehearsal(told: dict[str, Any], json: bool) -> None:
    if json:
        print_json(told)
        return
    print(f"{told['parameters'] / 1e6:.1f} million parameters, {told['memory_mb']:.0f} MB of memory at most")
    print(f"{told['seconds_per_step']:.2f} s a step")
    if "answers" in told:
        print(f"{told['seconds_per_answer']:.2f} s for a teacher's answer; {told['answers']} photographs to ask about")
    print(f"{told['seconds_per_pair_made']:.2f} s to make a pair, by each of {max(1, told['workers'])} processes")
    print(f"about {told['minutes']:.0f} minutes in all")
    print(f"wrote {Path(told['pictures'][0]).parent}: pairs as they are trained on")
