"""Which device to compute on, under which settings of torch, and what this machine and this version of tiepoint are."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ._version import __version__
from .errors import ArgumentError

# What `tiepoint info` reports: the core packages, then the optional ones.
PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "safetensors", "poselib", "typer", "rich")
OPTIONAL_PACKAGES = ("kornia", "scikit-image", "mahotas", "matplotlib", "h5py", "onnxruntime", "openvino")


def best_device() -> torch.device:
    """Return the fastest device that works here: a CUDA GPU, else Apple's, else the CPU.

    Examples
    --------
    >>> best_device().type in ("cuda", "mps", "cpu")
    True
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_device(device: torch.device | str | None) -> torch.device:
    """Return that device if it works here; ``"auto"`` and None are `best_device`.

    Raises
    ------
    ArgumentError
        torch knows no such device, or this machine has none.

    Examples
    --------
    >>> pick_device("cpu")
    device(type='cpu')
    """
    if device is None or device == "auto":
        return best_device()
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"the device {str(device)!r} cannot be used here: {reason}") from error
    return torch.device(device)


def keep_freed_memory() -> None:
    """Let glibc's `malloc` keep up to 64 MB of freed memory for the next tensor.

    By its defaults large tensors go back to the kernel, and come again page by page: a tenth of the time of an
    extraction. It learns the size from the largest block that was freed; no page of this one is touched.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")


_dtype_lock = threading.Lock()
_dtype_users = 0
_dtype_before = torch.float32


@contextmanager
def plain_torch(keep_seed: bool = False) -> Iterator[None]:
    """Compute as if the user had left torch's settings alone, in a ``with`` block or as a decorator.

    Default dtype and default device, which decide about every tensor that is made without naming them, and autocast
    are those of a fresh process inside, and the user's again afterwards.

    Parameters
    ----------
    keep_seed : bool
        Also leave torch's random numbers where they are: a network draws some when it is made.

    Notes
    -----
    The default dtype belongs to the whole process. It is set when the first of several threads enters, and set back
    when the last leaves.

    Examples
    --------
    >>> torch.set_default_dtype(torch.float64)
    >>> with plain_torch():
    ...     torch.ones(1).dtype
    torch.float32
    >>> torch.ones(1).dtype
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    with ExitStack() as stack:
        stack.enter_context(_default_dtype())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if keep_seed:
            stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


@contextmanager
def _default_dtype() -> Iterator[None]:
    global _dtype_before, _dtype_users
    with _dtype_lock:
        if _dtype_users == 0:
            _dtype_before = torch.get_default_dtype()
            if _dtype_before != torch.float32:
                torch.set_default_dtype(torch.float32)
        _dtype_users += 1
    try:
        yield
    finally:
        with _dtype_lock:
            _dtype_users -= 1
            if _dtype_users == 0 and _dtype_before != torch.float32:
                torch.set_default_dtype(_dtype_before)


def describe() -> dict[str, Any]:
    """Return what a bug report needs about this machine, as plain values.

    Returns
    -------
    dict
        ``python``, ``platform``, ``packages`` and ``optional_packages`` (name -> version or None),
        ``device`` (its name), ``cpu`` (``model``, ``cores`` this process may use, torch's ``threads``, and
        the vector instructions torch uses).

    Examples
    --------
    >>> sorted(describe())
    ['cpu', 'device', 'optional_packages', 'packages', 'platform', 'python']
    """
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "optional_packages": {package: _version(package) for package in OPTIONAL_PACKAGES},
        "device": f"cuda ({name})" if device.type == "cuda" else name,
        "cpu": {
            "model": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "features": [torch.backends.cpu.get_cpu_capability().lower(), *_matrix_features()],
        },
    }


def environment() -> dict[str, str]:
    """Return date, machine and versions, with which measurements are stored, as text.

    ``revision`` is among them where tiepoint runs from its checkout, see `revision`.

    Examples
    --------
    >>> sorted(environment())[:4]
    ['cpu', 'date', 'device', 'opencv']
    """
    machine = describe()
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{machine['cpu']['model']}, {machine['cpu']['cores']} cores",
        "device": machine["device"],
        "system": machine["platform"],
        "python": machine["python"],
        "torch": torch.__version__,
        "opencv": str(machine["packages"]["opencv-python-headless"]),
        "poselib": str(machine["packages"]["poselib"]),
        "tiepoint": __version__,
    }
    commit = revision()
    return {**found, "revision": commit} if commit else found


def revision() -> str | None:
    """Return the commit that tiepoint runs from, with "+" if its sources differ from it; None outside its checkout."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1]
    if not (checkout / ".git").exists() or package != checkout / "src" / "tiepoint":
        return None
    commit = _git(checkout, "rev-parse", "--short", "HEAD")
    return commit and commit + ("+" if _git(checkout, "status", "--porcelain", "src") else "")


def _git(checkout: Path, *arguments: str) -> str | None:
    """Return what git says, or None if it cannot be asked."""
    command = ["git", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    """Return the first value of ``key`` in Linux's /proc/cpuinfo, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _matrix_features() -> list[str]:
    """Return the instructions that make reduced precision fast; known on Linux only."""
    flags = _cpuinfo("flags").split()
    return [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags]
