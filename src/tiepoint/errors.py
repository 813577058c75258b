"""Every error tiepoint raises on purpose.

Each message says what was wrong, with which file or argument, and what to do. The command line prints the
message alone and exits with ``exit_code``; a traceback on the command line is a bug.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class TiepointError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ArgumentError(TiepointError, ValueError):
    """An argument or option does not make sense (wrong name, wrong shape, out of range)."""

    exit_code = 2


class InputError(TiepointError, ValueError):
    """A file or array given as input cannot be used (missing, damaged, wrong kind, too large)."""

    exit_code = 3


class WeightsError(TiepointError):
    """A weights file is missing, damaged, or not the one its name promises."""

    exit_code = 4


class MissingDependencyError(TiepointError, ImportError):
    """An optional package is not installed; the message holds the line that installs it."""

    exit_code = 5

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'tiepoint[{extra}]'")
        self._arguments = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), self._arguments  # so that it comes whole out of another process


def import_optional(module: str, package: str, extra: str, purpose: str) -> Any:
    """Return a module of an optional package, or raise `MissingDependencyError`, whose arguments the others are."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(package, extra, purpose) from error
