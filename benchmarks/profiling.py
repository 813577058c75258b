"""Where the time of a pair goes: reading, extraction by part, matching by layer, geometry.

Cairn and our LightGlue on photograph pairs, every stage called as the library calls it. Of each stage: the median of
its seconds, the operators that PyTorch dispatches, its floating-point operations, and their rate against that of a
matrix product of 2048 x 2048 x 2048 on the same threads in the same minutes. With one thread, with two, and with two
beside a process that keeps one core busy; the conditions alternate, so that a machine that slows down slows all.

Run ``python benchmarks/profiling.py --pairs 1 --repeats 2`` for a rehearsal.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tiepoint as tp
from tiepoint import devices
from tiepoint.features.cairn import Cairn, to_grey
from tiepoint.geometry import estimate_fundamental
from tiepoint.io.images import read_image, resize
from tiepoint.matchers.lightglue import Adaptive, Layout, LightGlue, pair_positions

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "eval"
CONDITIONS = {"1 thread": (1, False), "2 threads": (2, False), "2 threads, busy neighbour": (2, True)}
GEMM = 2048


class CountOperators(TorchDispatchMode):
    """Count what is dispatched to a backend; views count too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Floating-point operations of attention (images, heads, N, D): two products."""
    images, heads, n, d = q
    return 4 * images * heads * n * k[2] * d


class Meter:
    """Adds up seconds, operators or floating-point operations by stage."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.sums: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure what is done within."""
        if self.what == "seconds":
            start = time.perf_counter()
            yield
            self.sums[stage] += time.perf_counter() - start
        elif self.what == "operators":
            with CountOperators() as counter:
                yield
            self.sums[stage] += counter.count
        else:
            op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            with FlopCounterMode(display=False, custom_mapping={op: attention_flops}) as counter:
                yield
            self.sums[stage] += counter.get_total_flops()


@torch.no_grad()
def run_pair(meter: Meter, extractor: Cairn, matcher: LightGlue, paths: tuple[Path, Path], keypoints: int) -> None:
    """Do what `tp.match` does for one pair, stage by stage."""
    net, both = extractor.net, []
    for path in paths:
        with meter("read"):
            pixels = resize(read_image(path).pixels, 1024)
        with meter("extract: pyramid"):
            levels = net.levels(to_grey(torch.tensor(pixels).permute(2, 0, 1))[None])
        with meter("extract: detector"):
            scores = net.score(levels)
        with meter("extract: choose and place"):
            found = net.detect(scores, 4 * keypoints)
            found = type(found)(*(part[:, :keypoints] for part in found))
        with meter("extract: patches"):
            patches = net.patches(levels, found.positions, found.levels)[0]
        with meter("extract: descriptor head"):
            described = net.read(patches)
        size = pixels.shape[1], pixels.shape[0]
        direction = described.directions
        scales = 8 * torch.exp2(found.levels[0] / 2)
        orientations = torch.atan2(direction[:, 1], direction[:, 0])
        sigma = found.ranks[0].sigmoid()
        both.append(tp.Features(found.positions[0], sigma, described.descriptors, size, "cairn", scales, orientations))
    with meter("match: align"):
        positions = pair_positions(matcher.config, both[0], both[1])
    with meter("match: encode"):
        layout = Layout([len(image) for image in both])
        run = Adaptive(
            matcher.net, matcher.config, torch.cat([f.descriptors for f in both]), torch.cat(positions), layout
        )
    for i in range(matcher.config.layers):
        with meter(f"match: layer {i + 1}" + (" and read-out" if i + 1 == matcher.config.layers else "")):
            if not run.step(i):
                break
    with meter("geometry"):
        index = run.finish()[0].pairs
        estimate_fundamental(*(f.keypoints[index[:, side]].numpy() for side, f in enumerate(both)))


def gemm_rate() -> float:
    """GFLOP/s of a large float32 product, the best of five."""
    a = torch.randn(GEMM, GEMM)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * GEMM**3 / min(seconds) / 1e9


def keep_busy() -> None:
    """Use one core until ended."""
    while True:
        pass


@contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """Keep another process busy meanwhile."""
    if not wanted:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=keep_busy, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def main(
    pairs: Annotated[int, typer.Option(help="Photograph pairs.")] = 4,
    repeats: Annotated[int, typer.Option(help="Turns; in each, every condition measures every pair.")] = 5,
    keypoints: Annotated[int, typer.Option(help="Keypoints of each image.")] = 2048,
    conditions: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CONDITIONS)}; repeatable.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of evaluation sets.")] = DATA,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "profile",
) -> None:
    """Measure the stages of a pair."""
    if unknown := set(conditions or ()) - set(CONDITIONS):
        raise typer.BadParameter(f"no condition is called {', '.join(unknown)}")
    chosen = conditions or list(CONDITIONS)
    folders = sorted(folder for folder in data.iterdir() if len(list((folder / "images").glob("*.*"))) > 1)
    photos = [tuple(sorted((folder / "images").glob("*.*"))[:2]) for folder in folders[:pairs]]
    extractor, matcher = tp.features.load("cairn"), LightGlue("cairn")
    assert isinstance(extractor, Cairn)
    counts = {}
    for what in ("operators", "flops"):
        counts[what] = Meter(what)
        for pair in photos:
            run_pair(counts[what], extractor, matcher, pair, keypoints)
    seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name in chosen:
            threads, busy = CONDITIONS[name]
            torch.set_num_threads(threads)
            with neighbour(busy):
                rates[name].append(gemm_rate())
                for pair in photos:
                    meter = Meter("seconds")
                    run_pair(meter, extractor, matcher, pair, keypoints)
                    seconds[name].append(dict(meter.sums))
    stages = list(counts["operators"].sums)
    rows = []
    for stage in stages:
        row: dict[str, Any] = {"stage": stage}
        for what, meter in counts.items():
            row[what] = meter.sums[stage] / len(photos)
        for name in chosen:
            row[name] = statistics.median(turn.get(stage, 0.0) for turn in seconds[name])
        rows.append(row)
    machine = devices.environment()
    limit = {name: statistics.median(rates[name]) for name in chosen}
    total: dict[str, Any] = {"stage": "sum"} | {key: sum(row[key] for row in rows) for key in ("operators", "flops")}
    for name in chosen:
        total[name] = statistics.median(sum(turn.values()) for turn in seconds[name])
    lines = [
        f"{len(photos)} pairs, {keypoints} keypoints, long side 1024, {repeats} alternating turns, medians; "
        f"{machine['cpu']}, {machine['date']}.",
        "",
        "GEMM, GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in limit.items()) + ".",
        "",
        "| stage | operators | GFLOP | " + " | ".join(f"{name}, ms | share of GEMM" for name in chosen) + " |",
        "|---|---|---|" + "---|---|" * len(chosen),
    ]
    for row in [*rows, total]:
        cells = [row["stage"], f"{row['operators']:.0f}", f"{row['flops'] / 1e9:.2f}"]
        for name in chosen:
            rate = row["flops"] / max(row[name], 1e-9) / 1e9 / limit[name]
            cells += [f"{1e3 * row[name]:.0f}", f"{rate:.0%}" if row["flops"] else ""]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    print(table)
    output.mkdir(parents=True, exist_ok=True)
    (output / "README.md").write_text(table + "\n")
    raw = {"environment": machine, "gemm": rates, "rows": rows, "seconds": seconds}
    (output / "profile.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
