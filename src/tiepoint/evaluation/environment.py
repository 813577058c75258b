"""Where, when and with which versions numbers were measured."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import cv2
import torch

from .. import devices


def environment() -> dict[str, str]:
    """Return date, machine and versions, and the git revision where tiepoint runs from its checkout.

    Examples
    --------
    >>> sorted(environment())[:4]
    ['cpu', 'date', 'device', 'opencv']
    """
    machine = devices.describe()
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{machine['cpu']['model']}, {machine['cpu']['cores']} cores",
        "device": machine["device"],
        "system": machine["platform"],
        "python": machine["python"],
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "poselib": version("poselib"),
        "tiepoint": version("tiepoint"),
    }
    revision = _revision()
    return {**found, "revision": revision} if revision else found


def _revision() -> str | None:
    """Return the commit tiepoint runs from, "+" if its sources differ from it; None outside its checkout."""
    package = Path(__file__).resolve().parents[1]
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
