"""A map that was killed twenty times beside one that was left alone: the same, row by row.

Runs `extract_into` and `match_into` over a folder of photographs in a process of its own, and ends that with SIGKILL
a random time after it began to work, again and again. Whenever a process comes to its end, its database is compared
with that of an undisturbed run, and a new one is begun, until there were enough kills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from tiepoint import features, matchers
from tiepoint.mapping.pairs import exhaustive
from tiepoint.mapping.steps.extract import extract_into
from tiepoint.mapping.steps.images import new_images
from tiepoint.mapping.steps.match import match_into
from tiepoint.mapping.store import Store

RESULTS = Path(__file__).parent / "results" / "mapping_kill"


def run(photographs: Path, database: Path, workers: int) -> None:
    """Do, or go on with, the part of a map that writes to the database."""
    print("ready", flush=True)
    with Store.open(database) as store:
        store.add_images(new_images(photographs)[0])
        extract_into(store, photographs, features.load("sift", max_keypoints=1024, long_side=640), workers=workers)
        match_into(store, exhaustive(sorted(store.has_features())), matchers.load("nearest", "sift"))


def digests(database: Path) -> dict[str, tuple[int, str]]:
    """Return table -> (number of rows, SHA-256 of all of them in order of their keys)."""
    found = {}
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall():
            digest, rows = hashlib.sha256(), 0
            for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):
                digest.update(repr(row).encode())
                rows += 1
            found[table] = rows, digest.hexdigest()
    return found


def progress(database: Path) -> tuple[int, int]:
    """Return how many images have features, and how many pairs are matched, according to what is committed."""
    if not database.exists():
        return 0, 0
    with closing(sqlite3.connect(database)) as db:
        try:
            return tuple(
                db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("keypoints", "matches")
            )
        except sqlite3.OperationalError:  # killed before the tables were made
            return 0, 0


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a run, and return when it has imported everything and begins to work."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main() -> None:
    """Run the benchmark and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, default=Path("../shared/data/demo/sceaux/images"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # what the process to be killed does
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.photographs, arguments.run, arguments.workers)
        return

    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        quiet, disturbed = Path(folder, "quiet.db"), Path(folder, "disturbed.db")
        command = [sys.executable, __file__, "--photographs", str(arguments.photographs)]
        command += ["--workers", str(arguments.workers)]
        undisturbed = started([*command, "--run", str(quiet)])
        begin = time.monotonic()
        if undisturbed.wait():
            raise SystemExit("the undisturbed run failed")
        whole = time.monotonic() - begin
        print(f"undisturbed: {whole:.0f} s")
        expected = digests(quiet)
        kills: list[dict[str, int]] = []
        compared: list[bool] = []
        while len(kills) < arguments.kills or disturbed.exists():
            process = started([*command, "--run", str(disturbed)])
            if len(kills) < arguments.kills:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(float(rng.uniform(0, 0.6)) * whole)
            else:
                process.wait()
            if process.poll() is None:
                process.kill()
                process.wait()
                images, pairs = progress(disturbed)
                kills.append({"images": images, "pairs": pairs})
                print(f"kill {len(kills)}: {images} images and {pairs} pairs are there", flush=True)
            elif process.returncode:
                raise SystemExit(f"a run failed with exit code {process.returncode}")
            else:
                found = digests(disturbed)
                different = [table for table in expected if found[table] != expected[table]]
                compared.append(not different)
                print(
                    f"came to its end: {'DIFFERENT in ' + ', '.join(different) if different else 'equal'}", flush=True
                )
                disturbed.unlink()
    equal = all(compared)
    tables = {table: rows for table, (rows, _) in expected.items() if rows}
    print(f"{len(kills)} kills, {sum(compared)} of {len(compared)} databases equal; rows: {tables}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    summary = {"equal": compared, "undisturbed_seconds": round(whole, 1), "kills": kills, "rows": tables}
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
