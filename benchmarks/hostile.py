"""Generated hostile inputs for every reader: each must end in a documented error or in a right result.

    python benchmarks/hostile.py            # 1,000 cases, about three minutes
    python benchmarks/hostile.py --cases 10000 --seed 7 --kind models

Valid files of every kind are made, and then bent: bytes are flipped, files cut off, sizes and names and types in them
replaced. Every case runs in a process whose memory and CPU time are limited; a crash of the process counts, too, and
so does waiting for something that never comes. The time is the CPU's, so that a busy machine changes nothing. What is
neither a result that makes sense nor one of tiepoint's own errors is printed with the number that makes it again,
and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

SECONDS = 20.0  # of CPU time for one case; also the wait after which a process that uses none counts as stuck
MEMORY = 3 << 30  # bytes beyond what the libraries take
ODD = [0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, 10**6, 0.5, 1e300, "x", "", None, True, [], [1], {}, "a" * 1000]

Case = Callable[[], Any]


def bend(data: bytes, rng: random.Random) -> bytes:
    """Flip bytes, cut off, repeat, or insert."""
    bent = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if not bent:
            break
        at = rng.randrange(min(len(bent), rng.choice([16, 256, len(bent)])))
        way = rng.random()
        if way < 0.5:
            bent[at] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif way < 0.7:
            size = rng.choice([2, 4, 8])
            bent[at : at + size] = rng.choice(
                [b"\xff" * size, b"\0" * size, struct.pack("<q", rng.choice([-1, 2**31, 2**40]))[:size]]
            )
        elif way < 0.9:
            del bent[at + 1 :]
        else:
            bent[at:at] = bent[at : at + rng.choice([1, 100, 5000])]
    return bytes(bent)


class _Kinds:
    """One method for each reader: it makes a case of a random number generator."""

    def __init__(self, folder: Path) -> None:
        import cv2
        import numpy as np
        import PIL.Image
        import pycolmap
        import torch

        import tiepoint as tp
        from tiepoint.mapping import Store
        from tiepoint.mapping.exchange import hloc
        from tiepoint.mapping.shards import outcome_arrays, result_arrays
        from tiepoint.mapping.store import NewImage, PairResult
        from tiepoint.types import Features

        self.folder, self.np, self.tp = folder, np, tp
        noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
        self.pixels = np.kron(noise, np.ones((8, 8, 1), np.uint8))
        picture = PIL.Image.fromarray(self.pixels)
        exif = PIL.Image.Exif()
        exif[0x010F], exif[0x0112] = "Maker", 6
        exif.get_ifd(0x8769).update({0x920A: 5.0, 0xA405: 28})
        exif.get_ifd(0x8825).update({1: "N", 2: (60.0, 1.0, 2.0), 3: "E", 4: (10.0, 1.0, 2.0), 6: 5.0})
        self.images = []
        for name, options in (
            ("JPEG", {"exif": exif}), ("PNG", {"exif": exif}), ("WEBP", {"exif": exif}), ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("BMP", {}), ("GIF", {}),
        ):  # fmt: skip
            stream = io.BytesIO()
            picture.save(stream, name, **options)
            self.images.append(stream.getvalue())
        self.photo = folder / "photo.png"
        picture.save(self.photo)

        size = (640, 480)
        camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[768, 320, 240, 0])
        points = torch.tensor([[10.0 * i, 5.0 * i] for i in range(20)])
        features = Features(points, torch.ones(20), torch.eye(64)[:20], size, "mine")
        pairs = np.stack([np.arange(9), np.arange(9)], 1)
        pair = PairResult(
            1, 2, pairs, np.ones(9), True, np.ones(9, bool), "CALIBRATED", E=np.eye(3), R=np.eye(3), t=np.ones(3)
        )
        self.database = folder / "whole.db"
        with Store.open(self.database) as store:
            store.add_images([NewImage(name, camera, "key", (60.0, 10.0, 5.0)) for name in ("a.jpg", "b/c.jpg")])
            store.write_features([(1, features), (2, features)])
            store.write_matches([pair])
            hloc.export_features(store, folder / "features.h5")
            hloc.export_matches(store, folder / "matches.h5")
        self.hdf5 = [(folder / name).read_bytes() for name in ("features.h5", "matches.h5")]
        arrays = {
            "keypoints": points.numpy(),
            "scores": np.ones(20, np.float32),
            "descriptors": np.eye(64, dtype=np.float32)[:20],
        }
        outcome = {**arrays, "image_size": np.array(size), "extractor": "mine"}
        self.npz = []
        for made in (outcome_arrays([outcome, "no such file"]), result_arrays([(pair, 3)])):
            stream = io.BytesIO()
            np.savez(stream, made_of=np.array("x"), **made)
            self.npz.append(stream.getvalue())
        model = pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions(num_points3D=60))
        self.model = {}
        for write, kind in ((model.write_binary, "bin"), (model.write_text, "txt")):
            place = folder / kind
            place.mkdir()
            write(place)
            self.model[kind] = {path.name: path.read_bytes() for path in place.iterdir()}
        self.videos = []
        for suffix, code in ((".avi", "MJPG"), (".mp4", "mp4v")):
            path = folder / f"clip{suffix}"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 25, (128, 96))
            for shift in range(8):
                writer.write(np.roll(self.pixels, shift, 1))
            writer.release()
            self.videos.append((suffix, path.read_bytes()))
        bundled = Path(tp.weights.__file__).parent / "bundled"
        self.weights = {
            name: (bundled / f"{file}.safetensors").read_bytes()
            for name, file in (("lightglue", "cairn-lightglue"), ("cairn", "cairn"))
        }
        stream = io.BytesIO()
        torch.save({"w": torch.zeros(3)}, stream)
        self.pickle = stream.getvalue()

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / "case" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def odd_place(self, rng: random.Random) -> Path:
        """Return the path of something that is no file."""
        path = self.folder / "case" / "odd.jpg"
        path.parent.mkdir(exist_ok=True)
        way = rng.randrange(5)
        if way == 0:
            path.mkdir()
        elif way == 1:
            os.mkfifo(path)
        elif way == 2:
            path.symlink_to(path)
        elif way == 3:
            path.write_bytes(b"")
        return path if way < 4 else Path("/dev/zero")

    def picture(self, rng: random.Random) -> Path:
        if rng.random() < 0.1:
            return self.odd_place(rng)
        return self.put(rng.choice(["a.jpg", "a.png", "a"]), bend(rng.choice(self.images), rng))

    def image(self, rng: random.Random) -> Case:
        path = self.picture(rng)

        def case() -> None:
            image = self.tp.read_image(path)
            assert image.pixels.dtype == "uint8" and image.pixels.shape == (*image.size[::-1], 3)

        return case

    def array(self, rng: random.Random) -> Case:
        np = self.np
        shape = tuple(rng.choice([0, 1, 3, 4, 5, 96]) for _ in range(rng.choice([0, 1, 2, 3, 3, 3, 4])))
        kind = rng.choice(["u1", "u2", "i4", "f2", "f4", "f8", "c8", "?", "O", "S1", ">u2", "M8[s]"])
        array = np.zeros(shape, kind)
        if array.size and array.dtype.kind == "f":
            array.flat[0] = rng.choice([np.nan, np.inf, -1, 0.5, 2.0])

        def case() -> None:
            image = self.tp.read_image(array)
            assert image.pixels.shape == (*shape[:2], 3)

        return case

    def mask(self, rng: random.Random) -> Case:
        path = self.picture(rng)

        def case() -> None:
            image = self.tp.read_image(self.photo, path)
            assert image.mask is not None and image.mask.shape == image.pixels.shape[:2]

        return case

    def exif(self, rng: random.Random) -> Case:
        from tiepoint.mapping.steps.images import camera_of

        path = self.picture(rng)

        def case() -> None:
            camera = camera_of(path)
            assert camera.verify_params() and 0 < camera.focal_length < 1e9

        return case

    def pairs(self, rng: random.Random) -> Case:
        from tiepoint.mapping.pairs import from_list

        words = [
            "a.jpg",
            "b/c.jpg",
            "no.jpg",
            " ",
            "\t",
            "\n",
            "\n",
            "#",
            "0.5",
            "\0",
            "\ud800",
            "é",
            "/",
            "\r",
            "x" * 300,
        ]
        good = ["a.jpg b/c.jpg", "b/c.jpg\ta.jpg 0.5", "in/a.jpg in/b/c.jpg", "# a.jpg", "a.jpg no.jpg"]
        lines = [rng.choice(good) for _ in range(rng.randrange(6))]
        if rng.random() < 0.6:
            odd = "".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.choice([2, 4, 60])))
            lines.insert(rng.randrange(len(lines) + 1), odd)
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        path = self.put("pairs.txt", bend(content, rng) if rng.random() < 0.3 else content)
        path = self.odd_place(rng) if rng.random() < 0.05 else path

        def case() -> None:
            listed = from_list(path, {"a.jpg": 1, "b/c.jpg": 2})
            assert listed.pairs.tolist() == [[1, 2]] and len(listed.unused) < listed.lines

        return case

    def databases(self, rng: random.Random) -> Case:
        from tiepoint.mapping import Store, pairs_of

        path = self.put("database.db", self.database.read_bytes())
        if rng.random() < 0.3:
            path.write_bytes(bend(path.read_bytes(), rng))
        else:
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("PRAGMA journal_mode = DELETE")
                tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                for _ in range(rng.choice([1, 1, 3])):
                    table = rng.choice([name for name in tables if not name.startswith("sqlite")])
                    column = rng.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
                    value = rng.choice([*ODD[:12], b"", b"\0", b"\xff" * 160, "../x", "/x", "a\nb", float("nan")])
                    old = db.execute(f"SELECT {column} FROM {table}").fetchone()
                    if old and isinstance(old[0], bytes) and rng.random() < 0.6:
                        value = bend(old[0], rng)
                    with suppress(sqlite3.Error, OverflowError):
                        db.execute(f"UPDATE {table} SET {column} = ?", (value,))

        def case() -> None:
            with Store.open(path, create=False) as store:
                images = store.images()
                counts = store.keypoint_counts()
                for image in images:
                    if image.image_id in counts:
                        features = store.features(image.image_id)
                        assert features.descriptors.shape[0] == len(features) == counts[image.image_id]
                        assert features.keypoints.isfinite().all() and features.scores.isfinite().all()
                for one, two in pairs_of(store.matched_pair_ids()).tolist():
                    store.matches(one, two)
                    store.geometry(one, two)

        return case

    def hdf5s(self, rng: random.Random) -> Case:
        import h5py

        from tiepoint.mapping import Store
        from tiepoint.mapping.exchange import hloc

        which = rng.randrange(2)
        path = self.put("file.h5", self.hdf5[which])
        if rng.random() < 0.5:
            path.write_bytes(bend(path.read_bytes(), rng))
        else:
            with h5py.File(path, "r+") as file:
                names: list[str] = []
                file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
                name = rng.choice(names)
                old = file[name][()]
                del file[name]
                way = rng.randrange(6)
                if way == 0:
                    file.create_dataset(name, shape=(3 * 10**9, 2), dtype="f4", chunks=(64, 2))
                elif way == 1:
                    file.create_dataset(name, shape=(20, 2), dtype="u1", external=[("/etc/passwd", 0, 40)])
                elif way == 2:
                    file[name] = rng.choice([h5py.SoftLink("/"), h5py.SoftLink("/no"), h5py.ExternalLink("/x", "/")])
                elif way == 3:
                    file[name] = rng.choice([3.0, b"text", self.np.zeros((2, 2, 2)), self.np.array([b"x"])])
                elif way == 4:
                    file[name] = self.np.full(old.shape, rng.choice([self.np.nan, 1e9, -5, 0]))
                else:
                    file[name] = old[: len(old) // 2]
        database = self.put("database.db", self.database.read_bytes())

        def case() -> None:
            with Store.open(database) as store:
                hloc.import_features(store, path, "mine")
                hloc.import_matches(store, path)
                for image in store.images():
                    store.features(image.image_id)
                store.matches(1, 2)

        return case

    def weight_files(self, rng: random.Random) -> Case:
        name, whole = rng.choice(list(self.weights.items()))
        (length,) = struct.unpack_from("<Q", whole)
        way = rng.random()
        suffix = ".safetensors"
        if way < 0.2:
            content = bend(whole, rng)
        elif way < 0.3:
            suffix, content = rng.choice([".pth", ".pt"]), bend(self.pickle, rng)
        else:
            header = json.loads(whole[8 : 8 + length])
            config = json.loads(header["__metadata__"]["tiepoint"])
            for key in rng.sample(sorted(config), min(len(config), rng.choice([1, 1, 2, 4]))):
                config[key] = rng.choice(ODD)
            text = (
                json.dumps(config)
                if way < 0.9
                else rng.choice(["[" * 99_999, "[]", "nul", "\\", '{"a":' * 20_000, "NaN"])
            )
            header["__metadata__"]["tiepoint"] = text
            packed = json.dumps(header).encode()
            content = struct.pack("<Q", len(packed)) + packed + whole[8 + length :]
        path = self.put(f"mine{suffix}", content)

        def case() -> None:
            if name == "cairn":
                self.tp.features.load(f"cairn@{path}", max_keypoints=20)(self.pixels)
            else:
                self.tp.matchers.load(f"lightglue@{path}", features="cairn")

        return case

    def cameras(self, rng: random.Random) -> Case:
        from tiepoint.mapping.steps.images import parse_camera

        models = {
            "PINHOLE": 4,
            "SIMPLE_PINHOLE": 3,
            "OPENCV": 8,
            "SIMPLE_RADIAL": 4,
            "OPENCV_FISHEYE": 8,
            "no": 1,
            "": 0,
        }
        model = rng.choice(sorted(models))
        numbers = ["500", "320", "240", "0", "0.01", "0", "0", "0"]
        for _ in range(rng.choice([0, 1, 1, 3])):
            odd = ["0", "-1", "nan", "inf", "1e400", "1e-300", "1e18", "x", "", "9" * 400, "\0"]
            numbers[rng.randrange(len(numbers))] = rng.choice(odd)
        count = models[model] + rng.choice([0, 0, 0, 1, -1])
        if model in ("PINHOLE", "OPENCV", "OPENCV_FISHEYE"):
            numbers.insert(1, "500")
        text = rng.choice([",", " ", ", "]).join([model, *numbers[: max(0, count)]])

        def case() -> None:
            camera = parse_camera(text, None, (640, 480))
            assert camera is not None
            pixels = camera.project([[0.1, 0.1, 1.0]])
            assert pixels.shape == (1, 2)
            assert all(map(self.np.isfinite, camera.params)) and min(camera.focal_lengths) > 0

        return case

    def video(self, rng: random.Random) -> Case:
        from tiepoint.io.video import read_frames

        suffix, whole = rng.choice(self.videos)
        path = self.put(f"clip{suffix}", bend(whole, rng))
        path = self.odd_place(rng) if rng.random() < 0.1 else path

        def case() -> None:
            for frame in islice(read_frames(path), 20):
                assert frame.pixels.ndim == 3 and frame.pixels.dtype == "uint8"

        return case

    def npzs(self, rng: random.Random) -> Case:
        from tiepoint.mapping.shards import read_outcomes, read_results

        np, which = self.np, rng.randrange(2)
        content = self.npz[which]
        if rng.random() < 0.5:
            content = bend(content, rng)
        else:
            with np.load(io.BytesIO(content)) as file:
                arrays = dict(file)
            name = rng.choice(sorted(arrays))
            changed = [np.zeros(0), np.array(3), np.array("x"), np.array([{}], object), np.full((2, 2), np.nan), None]
            value = rng.choice(changed)
            arrays = {key: one for key, one in arrays.items() if key != name} | ({} if value is None else {name: value})
            stream = io.BytesIO()
            np.savez(stream, **arrays)
            content = stream.getvalue()
        path = self.put("shard.npz", content)
        return lambda: list((read_outcomes, read_results)[which](path))

    def models(self, rng: random.Random) -> Case:
        from tiepoint.io.model_files import read_model

        kind = rng.choice(["bin", "bin", "bin", "txt"])
        bent = rng.choice(sorted(self.model[kind]))
        for name, content in self.model[kind].items():
            self.put(name, bend(content, rng) if name == bent else content)
        return lambda: read_model(self.folder / "case")

    def texts(self, rng: random.Random) -> Case:
        from tiepoint.evaluation.datasets import read_set
        from tiepoint.io.video import read_key_frames

        frame = {"name": "frame_000000.jpg", "index": 0, "time": 0.0, "sharpness": 1.0}
        entry = {"image0": "a.jpg", "image1": "b.jpg", "H": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
        content: Any = {"done": True, "key_frames": [frame], "type": "homography", "pairs": [entry]}
        part = rng.choice([content, frame, entry])
        part[rng.choice(sorted(part))] = rng.choice([*ODD, "../../x", float("nan")])
        text = json.dumps(content) if rng.random() < 0.7 else rng.choice(["[" * 99_999, "{}", "[]", "\ufeff", "nul"])
        data = text.encode() if rng.random() < 0.7 else bend(text.encode(), rng)
        frames, pairs = self.put("key_frames.json", data), self.put("pairs.json", data)
        return rng.choice([lambda: read_key_frames(frames.parent), lambda: read_set(pairs.parent)])


KINDS = {
    name: method for name, method in vars(_Kinds).items()
    if callable(method) and not name.startswith("_") and name not in ("put", "picture", "odd_place")
}  # fmt: skip


def work(kind: str, seed: int, first: int, count: int) -> None:
    """Run cases of one kind and print a line of JSON for each."""
    from tiepoint.errors import TiepointError

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        kinds = _Kinds(Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 22
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, first + count):
            shutil.rmtree(Path(folder, "case"), ignore_errors=True)
            case = KINDS[kind](kinds, random.Random(f"{kind} {seed} {number}"))
            print(json.dumps({"begun": number}), flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
            begin = time.process_time()
            try:
                case()
                outcome = "right"
            except TiepointError as error:
                outcome = "refused" if str(error) and "\n" not in str(error).strip() else f"unclear: {error}"
                if kind == "weight_files":  # lists every way to get weights, a line each
                    outcome = "refused"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {error}"[:300]
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds, memory = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"done": number, "outcome": outcome, "seconds": seconds, "memory": memory}), flush=True)


def ticks(process: int) -> int:
    """Return the CPU time that a process has used, of all its threads, in the system's clock ticks."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def run(kind: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Run cases of one kind in processes of their own; another takes over from one that crashes or hangs."""
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        words = [sys.executable, __file__, "--work", kind, str(seed), str(len(rows)), str(count - len(rows))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "OFF"}
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
        ):
            assert process.stdout is not None
            begun, fate, used = False, "crashed", -1
            while True:
                ready, _, _ = select.select([process.stdout], [], [], SECONDS)
                if not ready:
                    before, used = used, ticks(process.pid)
                    if used != before:
                        continue
                    fate = f"hangs: used no CPU time for {SECONDS:g} s"
                    process.kill()
                    break
                line = process.stdout.readline()
                if not line:
                    break
                said = json.loads(line)
                begun = "begun" in said
                if "done" in said:
                    rows.append(said)
            process.wait()
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        if len(rows) < count:
            if process.returncode == -signal.SIGPROF:
                fate = f"hangs: more than {SECONDS:g} s of CPU time"
            fate = f"{fate} ({process.returncode})"
            if not begun:
                raise SystemExit(f"{kind}: the process ended before case {len(rows)} began: {fate} {last}")
            rows.append({"done": len(rows), "outcome": fate, "seconds": SECONDS, "memory": 0})
    return rows


def main() -> int:
    """Run all cases and print a row for each reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="only this one; repeatable")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], *map(int, options.work[1:]))
        return 0
    kinds = options.kind or list(KINDS)
    faults = total = 0
    print(f"{'reader':14}{'cases':>7}{'refused':>9}{'right':>7}{'faults':>8}{'longest s':>11}{'memory MB':>11}")
    for i, kind in enumerate(kinds):
        count = options.cases // len(kinds) + (i < options.cases % len(kinds))
        rows = run(kind, options.seed, count)
        tally = Counter(row["outcome"] for row in rows)
        bad = [row for row in rows if row["outcome"] not in ("refused", "right")]
        faults, total = faults + len(bad), total + len(rows)
        longest, memory = max(row["seconds"] for row in rows), max(row["memory"] for row in rows) // 1024
        print(
            f"{kind:14}{len(rows):7}{tally['refused']:9}{tally['right']:7}{len(bad):8}{longest:11.2f}{memory:11}",
            flush=True,
        )
        for row in bad:
            print(f"  {kind} {options.seed} {row['done']}: {row['outcome']}")
    print(f"{total} cases, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
