"""A map on a Ray cluster that loses workers, and its driver, beside one made by a single process: the same, row by row.

Three runs over a folder of photographs, each in a process of its own: one without Ray; one on a local cluster whose
worker, while it extracts and again while it matches, is ended with SIGKILL when half of the work is done; and one whose
driver is ended with SIGKILL when some random number of images and pairs is done, again and again, before it may finish.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mapping_kill import digests, progress, started
from tiepoint import features, matchers
from tiepoint.mapping.cluster import cluster, extract_on_ray, match_on_ray
from tiepoint.mapping.pairs import exhaustive
from tiepoint.mapping.progress import Progress, Report, silent
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.images import new_images
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import Store

RESULTS = Path(__file__).parent / "results" / "ray_kill"


def run(photographs: Path, database: Path, workers: int, kill: bool) -> None:
    """Extract and match: with as many workers, or none, without Ray; once each, kill a worker half-way."""
    sift = features.load("sift", max_keypoints=4096)
    nearest = matchers.load("nearest", "sift")
    with Store.open(database) as store:
        store.add_images(new_images(photographs)[0])
        if workers:
            with cluster("local", workers):
                print("ready", flush=True)
                extract_on_ray(store, photographs, sift, shard=1, report=killer() if kill else silent)
                pairs = exhaustive(sorted(store.has_features()))
                match_on_ray(store, pairs, nearest, shard=8, report=killer() if kill else silent)
        else:
            print("ready", flush=True)
            extract_into(store, photographs, sift, workers=0)
            match_into(store, exhaustive(sorted(store.has_features())), nearest)


def killer() -> Report:
    """Return a callback that kills one worker that is at work when half of everything is done."""
    import psutil  # Ray brings it along

    done: list[int] = []

    def report(step: Progress) -> None:
        if done or step.done < step.total / 2:
            return
        for process in psutil.Process().children(recursive=True):
            title = process.cmdline()[:1]
            if title in (["ray::_extract_shard"], ["ray::_match_shard"]):
                os.kill(process.pid, signal.SIGKILL)
                done.append(process.pid)
                print(f"{step.step}: {step.done} of {step.total}: killed {title[0]}", flush=True)
                return

    return report


def finish(command: list[str]) -> tuple[float, list[str]]:
    """Run to the end; return the seconds since it was ready, and what it said."""
    process = started(command)
    begin = time.monotonic()
    said = process.communicate()[0].decode().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.monotonic() - begin, said


def main() -> None:
    """Run the benchmark and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, default=Path("../shared/data/demo/sceaux/images"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--driver-kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # what the processes do
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.photographs, arguments.run, arguments.workers, arguments.kill)
        return

    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, lost, again = (Path(folder, f"{name}.db") for name in ("alone", "lost", "again"))
        command = [sys.executable, __file__, "--photographs", str(arguments.photographs)]
        seconds_alone, _ = finish([*command, "--workers", "0", "--run", str(alone)])
        expected = digests(alone)
        print(f"one process: {seconds_alone:.0f} s", flush=True)

        command += ["--workers", str(arguments.workers)]
        seconds_lost, said = finish([*command, "--kill", "--run", str(lost)])
        print(*said, f"{arguments.workers} workers: {seconds_lost:.0f} s", sep="\n", flush=True)

        kills: list[dict[str, int]] = []
        rows = expected["keypoints"][0] + expected["matches"][0]
        for least in np.sort(rng.choice(np.arange(1, rows), arguments.driver_kills, replace=False)):
            process = started([*command, "--run", str(again)])
            while sum(progress(again)) < least:
                time.sleep(0.02)
                if process.poll() is not None:
                    raise SystemExit(f"a run ended early, with exit code {process.returncode}")
            process.kill()
            process.wait()
            images, pairs = progress(again)
            shards = len(list(again.with_name("again.db-shards").glob("[!.]*.npz")))
            kills.append({"images": images, "pairs": pairs, "shards": shards})
            print(f"driver killed: there are {images} images, {pairs} pairs, {shards} shards not merged", flush=True)
        finish([*command, "--run", str(again)])
        equal = {"worker killed": digests(lost) == expected, "driver killed": digests(again) == expected}
    tables = {table: rows for table, (rows, _) in expected.items() if rows}
    print(f"equal: {equal}; rows: {tables}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    summary = {
        "equal": equal,
        "workers": arguments.workers,
        "workers_killed": said,
        "driver_kills": kills,
        "seconds": {"one process": round(seconds_alone, 1), "cluster, worker killed": round(seconds_lost, 1)},
        "rows": tables,
    }
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    sys.exit(not all(equal.values()))


if __name__ == "__main__":
    main()
