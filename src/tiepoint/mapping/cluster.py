"""Extraction and matching on many machines: `extract_on_ray`, `match_on_ray`, inside of a `cluster`.

They do what `extract_into` and `match_into` do, and leave the same database. Images, and blocks of pairs, are divided
into shards; each shard is a task of Ray. A worker writes what it found to a file of its own, which appears when it is
whole, in the folder ``database.db-shards`` beside the database. This process, the only one that writes to the
database, moves the shards into it in order, a transaction each.

Failures and their handling:

- *A worker dies*, or its machine: Ray starts its shard again elsewhere.
- *A worker is slow*, or hangs: when no shard is left to start, idle workers start those a second time that take longer
  than most. Both copies write the same to the same file; the first to finish counts, the other is cancelled.
- *This process dies*: the shards that are in the database are done. Those whose files are whole are not repeated.

The photographs and the folder of the database must be on a file system that all machines share, under the same path.
Only this process opens the database itself, for SQLite's log does not work across machines: the features that a task
needs are sent by Ray, one object for each image, once to each machine for several tasks.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, InputError, TiepointError, import_optional
from ..features import Extractor
from ..io.arrays import feature_arrays
from ..io.files import make_folder, scratch_folder
from ..io.folders import mask_of
from ..matchers import Matcher
from ..types import Features
from .overlays import Overlays
from .progress import Report, silent
from .shards import Arrays, digest_of, make, outcome_arrays, read_outcomes, read_results, result_arrays
from .steps import verify as verification
from .steps.extract import Extraction, ExtractionRun, extract_one
from .steps.match import Matching, MatchRun, match_batch
from .store import Store
from .workers import cores, stopping

# A shard is what one task does: long enough (seconds) not to be all overhead, short enough to be done again.
MOST_IMAGES = 16
MOST_PAIRS = {"cuda": 1024}  # a square of 32 x 32 images on a GPU; elsewhere one of 16 x 16
MOST_PAIRS_ON_CPU = 256
SHARDS_PER_WORKER = 4  # of a small collection: so many that the workers end at about the same time

SENT_PER_WORKER = 64  # images whose features Ray holds: those of the shards begun (two a worker, 32 images each)
BYTES_PER_WORKER = 100 << 20  # room for them, at 2048 keypoints with 128 float32 each
RETRIES = 3  # of a shard whose worker died; then the shard is to blame
SLOW = 2.0  # a shard that takes this many times as long as most is worth a second try, if somebody is idle


@contextmanager
def cluster(address: str, workers: int | None = None) -> Iterator[None]:
    """Join a Ray cluster, or start one on this machine, for a ``with`` block.

    Parameters
    ----------
    address : str
        ``"local"`` starts worker processes on this machine, which listen to this machine alone and end with the
        block. ``"auto"`` joins the cluster that was started on this machine with ``ray start``, ``"host:port"`` that
        one.
    workers : int, optional
        Processes of a local cluster; by default one for each core.

    Raises
    ------
    ArgumentError
        This process belongs to a cluster already, or ``workers`` is given for a cluster that exists.
    InputError
        There is no cluster at that address, or none can be started here.
    MissingDependencyError
        Ray is not installed.

    Examples
    --------
    ::

        with cluster("local", workers=4), Store.open("map/database.db") as store:
            extract_on_ray(store, "photos", tiepoint.features.load("sift"))
            match_on_ray(store, pairs, tiepoint.matchers.load("nearest", "sift"))
    """
    if workers is not None and address != "local":
        raise ArgumentError(f"the cluster at {address} has the workers it has; leave their number out")
    # Ray reads these when it is imported. It would print about lost workers on standard output, where results go.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if address == "local":
        # It would tell its makers that it is used, and listen on the network; and everybody with an account on this
        # machine could have it run programs, but for the token.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # its name for "other machines may join"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = import_ray()
    if ray.is_initialized():
        raise ArgumentError("this process belongs to a Ray cluster already; leave out the call of cluster()")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with scratch_folder() as scratch:
        try:
            if address == "local":
                count = workers or cores()
                ray.init(
                    address="local",
                    num_cpus=count,
                    object_store_memory=count * BYTES_PER_WORKER,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(scratch / "r"),  # Ray opens it to everybody: below one that is open to us alone
                    **quiet,
                )
            else:
                host, _, port = address.removeprefix("ray://").rpartition(":")
                if port.isdecimal():  # Ray itself would go on trying for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"no Ray cluster at {address!r}: {error}; start one with 'ray start --head', or use 'local'"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def extract_on_ray(
    store: Store,
    folder: str | os.PathLike[str],
    extractor: Extractor,
    *,
    masks: str | os.PathLike[str] | None = None,
    shard: int | None = None,
    report: Report = silent,
) -> Extraction:
    """Do what `extract_into` does on the Ray cluster that this process belongs to.

    Parameters
    ----------
    store, folder, extractor, masks, report
        As there. The folders must be at the same place on all machines. Each task takes one core; if the extractor is
        on a GPU, it takes one GPU.
    shard : int, optional
        Images of one task; by default 16, or fewer if there would be too few tasks.

    Returns
    -------
    Extraction

    Raises
    ------
    ArgumentError, InputError, TiepointError
        As there, and if this process belongs to no cluster, or the machines do not share the folders.

    Examples
    --------
    See `cluster`.
    """
    workers = _Workers(extractor.device)
    run = ExtractionRun(store, Path(folder).absolute(), extractor, report)
    masks = None if masks is None else Path(masks).absolute()
    size = shard or workers.shard_of(len(run.images), MOST_IMAGES)
    files = _folder_of(store)
    todo = {image.image_id for image in run.todo}
    shards = []
    for at in range(0, len(run.images), size):
        part = [image for image in run.images[at : at + size] if image.image_id in todo]
        jobs = [(run.folder / image.name, mask_of(masks, image.name)) for image in part]
        if part:
            shards.append((files / f"features-{digest_of(extractor.name, extractor.options, jobs)}.npz", part, jobs))

    sent = workers.ray.put(extractor)
    for path, part, _ in workers.in_order(_extract_shard, shards, lambda shard: (shard[0], sent, shard[2])):
        found = [(image, run.checked(image, one)) for image, one in zip(part, read_outcomes(path), strict=True)]
        store.write_features((image.image_id, one) for image, one in found if isinstance(one, Features))
        path.unlink()
        for image, one in found:
            run.count(image, one)
    shutil.rmtree(files, ignore_errors=True)
    return run.summary()


def match_on_ray(
    store: Store,
    pairs: ArrayLike | Iterable[tuple[int, int]],
    matcher: Matcher,
    *,
    verify: bool = True,
    most: int | None = None,
    shard: int | None = None,
    report: Report = silent,
) -> Matching:
    """Do what `match_into` does on the Ray cluster that this process belongs to.

    The same pairs are matched together as there, so that a network sees the same batches.

    Parameters
    ----------
    store, pairs, matcher, verify, most, report
        As there. Each task takes one core; if the matcher is on a GPU, it takes one GPU, and its share of the cores.
    shard : int, optional
        Pairs of one task, rounded up to whole batches; by default 256, on a GPU 1024, or fewer if there would be too
        few tasks.

    Returns
    -------
    Matching

    Raises
    ------
    ArgumentError, InputError, TiepointError
        As there, and if this process belongs to no cluster, or the machines do not share the folder of the database.

    Examples
    --------
    See `cluster`.
    """
    run = MatchRun(store, pairs, matcher, verify)
    workers = _Workers(matcher.device)
    if verify and run.already:
        verification.verify_into(store, run.matched_before, report=report)

    most_pairs = MOST_PAIRS.get(matcher.device.type, MOST_PAIRS_ON_CPU)
    size = shard or workers.shard_of(run.total, most_pairs)
    size = -(-size // run.batch_size) * run.batch_size
    shards = [at for at in range(0, len(run.ordered), size) if run.todo[at : at + size].any()]
    files = _folder_of(store)
    sent = workers.ray.put(matcher)

    @lru_cache(maxsize=SENT_PER_WORKER * workers.count)
    def features(image_id: int) -> Any:
        return workers.ray.put(store.features(image_id).first(most))

    def path_of(at: int) -> Path:
        return files / f"matches-{digest_of(matcher.name, verify, most, *run.batches(at, at + size))}.npz"

    def task_of(at: int) -> tuple[Any, ...]:
        batches = list(run.batches(at, at + size))
        ids = np.unique(np.concatenate(batches)).tolist()
        which = {image_id: run.cameras[image_id] for image_id in ids}
        return path_of(at), sent, verify, workers.cores_each, batches, which, run.overlays, *map(features, ids)

    report(run.progress())
    for at in workers.in_order(_match_shard, shards, task_of):
        path = path_of(at)
        found = read_results(path)
        store.write_matches(result for result, _ in found)
        path.unlink()
        for result, stop_layer in found:
            run.count(result, stop_layer)
        report(run.progress())
    shutil.rmtree(files, ignore_errors=True)
    return run.summary(features.cache_info().misses)


class _Workers:
    """What the cluster has for tasks that run on ``device``, and the way to run many of them."""

    def __init__(self, device: torch.device) -> None:
        self.ray = import_ray()
        if not self.ray.is_initialized():
            raise ArgumentError("this process belongs to no Ray cluster; call this inside of 'with cluster(...)'")
        has = self.ray.cluster_resources()
        self.gpus_each = 0 if device.type == "cpu" else 1
        if self.gpus_each and not has.get("GPU"):
            raise InputError("the Ray cluster has no GPU; choose device 'cpu', or add a machine that has one")
        self.cores_each = max(1, int(has.get("CPU", 0) // has["GPU"])) if self.gpus_each else 1

    @property
    def count(self) -> int:
        """How many tasks run at a time just now; machines come and go."""
        has = self.ray.cluster_resources()
        return max(1, int(has.get("GPU", 0) if self.gpus_each else has.get("CPU", 0)))

    def shard_of(self, total: int, most: int) -> int:
        """Return how many of ``total`` things one task should do."""
        return max(1, min(most, -(-total // (SHARDS_PER_WORKER * self.count))))

    def in_order(
        self, function: Callable[..., None], shards: Sequence[Any], arguments: Callable[[Any], tuple[Any, ...]]
    ) -> Iterator[Any]:
        """Run ``function(*arguments(shard))`` for all shards at once; yield each when it and all before are done."""
        ray = self.ray
        task = ray.remote(num_cpus=self.cores_each, num_gpus=self.gpus_each, max_retries=RETRIES)(function)
        running: dict[Any, int] = {}  # reference -> number of the shard, oldest first; of one there may be two
        given: dict[int, tuple[float, tuple[Any, ...]]] = {}  # of the shards that run: since when, and with what
        done: set[int] = set()
        took: list[float] = []
        begun = next_one = 0
        try:
            while next_one < len(shards):
                count = self.count
                while begun < len(shards) and len(running) < 2 * count:  # so that no worker waits for this process
                    given[begun] = time.monotonic(), arguments(shards[begun])
                    running[task.remote(*given[begun][1])] = begun
                    begun += 1
                if begun == len(shards) and len(running) < count:  # somebody is idle
                    before = time.monotonic() - SLOW * median(took or [math.inf])
                    alone = (n for n, copies in Counter(running.values()).items() if copies == 1)
                    for n in [n for n in alone if given[n][0] < before][: count - len(running)]:
                        running[task.remote(*given[n][1])] = n
                ready, _ = ray.wait(list(running), timeout=1.0)
                for reference in ready:
                    n = running.pop(reference)
                    copies = [other for other, m in running.items() if m == n]
                    try:
                        ray.get(reference)
                    except ray.exceptions.RayError as error:
                        if copies:
                            continue  # one that may still come to its end
                        raise _explained(error, ray) from error
                    for other in copies:
                        ray.cancel(other)
                        del running[other]
                    took.append(time.monotonic() - given.pop(n)[0])
                    done.add(n)
                while next_one in done:
                    yield shards[next_one]
                    next_one += 1
        finally:
            for reference in running:
                ray.cancel(reference)


def _extract_shard(path: Path, extractor: Extractor, jobs: list[tuple[Path, Path | None]]) -> None:
    """Extract the features of some photographs, on a worker."""
    stamps = [file and file.exists() and (file.stat().st_size, file.stat().st_mtime_ns) for file in chain(*jobs)]
    make(path, digest_of(stamps), lambda: outcome_arrays([extract_one(extractor, *job) for job in jobs]))


def _match_shard(
    path: Path,
    matcher: Matcher,
    verify: bool,
    threads: int,
    batches: list[NDArray[np.int32]],
    cameras: dict[int, Any],
    overlays: Overlays,
    *features: Features,
) -> None:
    """Match some batches of pairs, on a worker; ``features`` are those of the images that ``cameras`` names."""
    held = dict(zip(cameras, features, strict=True))

    def arrays() -> Arrays:
        with stopping(ThreadPoolExecutor(threads)) as pool:
            found = [match_batch(matcher, pairs.tolist(), held, cameras, overlays, pool, verify) for pairs in batches]
            return result_arrays([(future.result(), stop_layer) for future, stop_layer in chain.from_iterable(found)])

    made_of = [*(camera.todict() for camera in cameras.values()), *chain(*overlays.places.items())]
    make(path, digest_of(*made_of, *chain(*(feature_arrays(f).values() for f in features))), arrays)


def _folder_of(store: Store) -> Path:
    """Make the folder of the shards, beside the database."""
    path = store.path.absolute()
    folder = path.with_name(f"{path.name}-shards")
    return make_folder(folder)


def _explained(error: Exception, ray: Any) -> Exception:
    """Return the error of ours that a task raised, or one that says what Ray has to tell."""
    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, ray.exceptions.RayError):
            return TiepointError(f"a worker could not begin; is the same tiepoint installed there? {error.cause}")
        return error.cause if isinstance(error.cause, TiepointError) else error
    return TiepointError(
        f"{RETRIES + 1} workers died of one shard, most often because memory ran out on their machines; what was done "
        "is kept: run the same again, with fewer workers to a machine or a smaller --long-side"
    )


def import_ray() -> Any:
    """Return the package ray, or raise `MissingDependencyError` with the line that installs it."""
    return import_optional("ray", "ray", "ray", "running on a cluster")
