"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# Several processes of tests, and the programs that they start, share the cores: threads that wait for work by spinning
# take the cores from each other. NumPy reads this when it is imported.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

# Why a test may be skipped under --strict-skips, which `make test` and continuous integration use. Each reason is
# something that a machine may lack for good; whatever can be installed is not among them.
ALLOWED_SKIPS = re.compile(
    "|".join(
        (
            "the evaluation photographs are not on this machine",
            "the cases are not on this machine",
            "needs a GPU",
            "no browser is installed",
            "node is not installed",
            # npm install in examples/web, which .ci/run does where there is npm
            "onnxruntime-web is not installed",
            "needs POSIX",
            "SIGINT is sent differently on Windows",
            "looks for processes in /proc",
            "needs a place where not even root can write",
            "needs to drop root's rights",
            "this user may read everything",
            "this Python cannot be run by another user",
            "this file system has",
            "this OpenCV cannot write",
            # kornia has had XFeat and ALIKED since 0.8.3, which wants Python 3.11
            "could not import 'kornia",
            "this kornia has no ALIKED",
            # no package carries these: tests/features run the networks with weights from a seed
            "the weights '(dedode-detector|affnet|superpoint-open)' are not on this machine",
        )
    )
)
unexpected_skips: list[tuple[str, str]] = []

# Files whose tests make maps, train, start processes or run networks for long; `make fast-test` leaves them out.
# Single tests elsewhere say so themselves by pytest.mark.slow.
SLOW = {
    "test_cli_map.py",
    "test_cli_train.py",
    "test_cluster.py",
    "test_densify.py",
    "test_distillation.py",
    "test_doppelgangers.py",
    "test_effort.py",
    "test_example_web.py",
    "test_examples.py",
    "test_export.py",
    "test_faults.py",
    "test_localize.py",
    "test_map_cases.py",
    "test_map_reruns.py",
    "test_real_pairs.py",
    "test_reconstruct.py",
    "test_retrieval.py",
    "test_serve_api.py",
    "test_serve_page.py",
    "test_small_pairs.py",
    "test_track.py",
    "test_train_cairn.py",
    "test_train_superpoint.py",
    "test_try_harder.py",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="fail if a test is skipped for an unlisted reason")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # so that no process waits in the end for one that began late


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not ALLOWED_SKIPS.search(reason):
            unexpected_skips.append((report.nodeid, reason))


pytest_runtest_logreport = _note_skip
pytest_collectreport = _note_skip


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    if session.config.getoption("--strict-skips") and unexpected_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--strict-skips") and unexpected_skips:
        terminalreporter.section("skipped for a reason that tests/conftest.py does not allow")
        for test, reason in unexpected_skips:
            terminalreporter.line(f"{test}: {reason}")


@pytest.fixture(scope="session")
def small_pairs() -> Path:
    """Folder of small photographs with known homographies, which travel with the repository."""
    return Path(__file__).resolve().parent / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real photographs with ground truth, which lies beside the repository on our machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the evaluation photographs are not on this machine (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Folder of small inputs that went wrong once; its README says what is right. It lies beside the photographs."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"the cases are not on this machine (looked in {folder})")
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Same thread count everywhere: floating-point sums then come out the same in every run."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def texture() -> NDArray[np.uint8]:
    """A made-up RGB picture (240, 320, 3) with corners and blobs at many scales, the same in every run."""
    rng = np.random.default_rng(7)
    picture = np.full((240, 320, 3), 110.0)
    y, x = np.mgrid[:240, :320]
    for _ in range(160):
        cx, cy, size = rng.uniform(0, 320), rng.uniform(0, 240), rng.uniform(3, 26)
        shape = (
            np.hypot(x - cx, y - cy) < size
            if rng.random() < 0.5
            else (abs(x - cx) < size) & (abs(y - cy) < size * rng.uniform(0.4, 1))
        )
        picture[shape] = picture[shape] * 0.4 + rng.uniform(0, 255, 3) * 0.6
    return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, texture: NDArray[np.uint8]) -> Path:
    """A folder of ten photographs to train on: the texture, shifted, in other colours."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for i in range(10):
        mixed = np.clip(np.roll(texture, rng.integers(0, 240, 2), (0, 1)) @ rng.dirichlet([1, 1, 1], 3).T, 0, 255)
        PIL.Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The bundled weights for both runtimes and in less precision: made once for all workers of pytest-xdist."""
    from filelock import FileLock

    import tiepoint as tp
    from tiepoint.exporting import write

    base = tmp_path_factory.getbasetemp()
    if base.name.startswith("popen-"):
        base = base.parent
    traced: dict[str, Any] = {}

    def trace_once(graph: Any) -> Any:
        name = type(graph.module).__name__
        if name not in traced:
            traced[name] = original(graph)
        return traced[name]

    original = write._trace
    kinds: Any = {
        "onnx": ("onnx", "float32"),
        "openvino": ("openvino", "float32"),
        "bfloat16": ("openvino", "bfloat16"),
    }
    found: dict[str, Path] = {name: base / f"exported-{name}" for name in kinds}
    with FileLock(base / "exported.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_trace", trace_once)
        for name, (runtime, precision) in kinds.items():
            if not found[name].exists():
                tp.export("cairn+lightglue", found[name], runtime, precision=precision)
    assert "openvino_telemetry" not in sys.modules  # it reports to its makers
    yield found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright, without access to any network but this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    flags = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    flags += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    flags += ["--disable-sync", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=flags)  # with a new profile
        yield chromium
        chromium.close()


class Ran:
    """Exit code, stdout and stderr of one run."""

    def __init__(self, code: int, captured: pytest.CaptureResult[str]) -> None:
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def tiepoint(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process."""

    from tiepoint.cli import main

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Ran(code, capsys.readouterr())

    return run
