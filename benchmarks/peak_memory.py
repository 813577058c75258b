"""Peak memory of what people run: each command in a process of its own.

A command that starts processes counts with the largest of them. Linux counts what the parent held when it started a
command as the command's, so nothing large is imported here before the last one has ended.

``python benchmarks/peak_memory.py``; two photographs of ``sacre_coeur`` and the eleven of ``sceaux``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
COLMAP = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from mapping_quality import map_with_colmap, match_with_colmap
images, work = map(pathlib.Path, sys.argv[2:])
match_with_colmap(images, work / "database.db", None)
(work / "model").mkdir()
map_with_colmap(images, work / "database.db", work / "model", None)
"""


def peak(*command: object) -> tuple[float, float]:
    """Run a command, and return its peak memory in MiB and its CPU seconds, those of processes it started included."""
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()  # until it ends
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{said}")
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds demo/ and eval/.")] = DATA,
    output: Annotated[Path, typer.Option("-o", "--output")] = HERE / "results" / "peak_memory.md",
) -> None:
    """Print and write one table."""
    tiepoint = "-m", "tiepoint"
    pair = sorted((data / "eval" / "sacre_coeur" / "images").iterdir())[:2]
    sceaux = data / "demo" / "sceaux" / "images"
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)

        def match(*options: object) -> tuple[object, ...]:
            return *tiepoint, "match", *pair, *options

        def mapped(name: str, *options: object) -> tuple[object, ...]:
            return *tiepoint, "map", sceaux, "-o", work / name, *options

        rows: dict[str, tuple[object, ...]] = {
            "`import tiepoint`": ("-c", "import tiepoint"),
            "extract, 2,048 keypoints": (*tiepoint, "extract", pair[0], "-o", work / "features"),
            "match, the default": match(),
            "match, `--effort fast`": match("--effort", "fast"),
            "match, `--effort thorough`": match("--effort", "thorough"),
            "match, `-f xfeat --effort fast`": match("-f", "xfeat", "--effort", "fast"),
            "match, `-f aliked-n16 --effort fast`": match("-f", "aliked-n16", "--effort", "fast"),
        }
        for runtime in ("onnx", "openvino"):
            folder = work / runtime
            rows[f"export to {runtime}"] = (*tiepoint, "export", "cairn+lightglue", "--to", runtime, "-o", folder)
            rows[f"match with {runtime}, `run.py` of the exported folder"] = (folder / "run.py", *pair)
        for quality in ("fast", "balanced", "dense"):
            rows[f"map of sceaux, `--quality {quality}`"] = mapped(quality, "--quality", quality)
        rows["map of sceaux, `-f sift -m nearest`"] = mapped("sift", "-f", "sift", "-m", "nearest")
        (work / "colmap").mkdir()
        rows["map of sceaux, COLMAP's SIFT pipeline"] = ("-c", COLMAP, HERE, sceaux, work / "colmap")
        table = Table("what", "peak MiB", "CPU s")
        lines = ["| what | peak MiB | CPU s |", "|---|---:|---:|"]
        for name, command in rows.items():
            memory, seconds = peak(*command)
            table.add_row(name, f"{memory:.0f}", f"{seconds:.1f}")
            lines.append(f"| {name} | {memory:.0f} | {seconds:.1f} |")
    Console(width=100).print(table)
    from tiepoint.devices import environment

    where = ", ".join(f"{key} {value}" for key, value in environment().items())
    output.write_text("\n".join(lines) + f"\n\nTwo photographs, eleven in a map. {where}.\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
