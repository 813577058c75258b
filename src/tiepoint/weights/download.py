"""The only place that uses the network: `pull` fetches weights into the cache."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from ..errors import WeightsError
from .registry import Entry
from .store import available, cache_dir, entry, fault, resolve, ways

_BLOCK = 1 << 20


def pull(name: str, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Download weights from upstream into the cache, unless a good file is on this machine already.

    An interrupted download leaves a ``.part`` file, which the next call continues. The file gets its name
    only after its SHA-256 was found right. Of several processes that want the same file, one downloads it.

    Parameters
    ----------
    name : str
        A name of `entries`.
    progress : callable or None
        Called with (bytes there, bytes in all or None if unknown) after every block.

    Returns
    -------
    Path
        The verified file.

    Raises
    ------
    ArgumentError
        There is no such name.
    WeightsError
        Offline, refused by the server, interrupted, or the bytes are not the expected ones; and for weights
        without a SHA-256 on record, which only the user can vouch for.
    """
    wanted = entry(name)
    if wanted.sha256 is None or wanted.url is None:
        raise WeightsError("\n".join([f"the weights {name!r} cannot be downloaded for you", *ways(wanted)]))
    if available(name):
        return resolve(name)
    target = cache_dir() / wanted.file
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(target.name + ".lock")
        with FileLock(lock):  # another process may be at it
            if not available(name):
                _download(wanted, wanted.url, part, progress)
                problem = fault(wanted, part)
                if problem is not None:
                    part.unlink()
                    raise WeightsError(f"{wanted.url} did not send the file on record: {problem}; nothing was kept")
                part.replace(target)
            with suppress(OSError):  # who waits for it will find the weights
                lock.unlink()
    except (OSError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
        raise WeightsError("\n".join([f"could not download {wanted.url}: {error}", *ways(wanted)])) from error
    return resolve(name)


def _download(wanted: Entry, url: str, part: Path, progress: Callable[[int, int | None], None] | None) -> None:
    """Fetch ``url`` into ``part``, continuing what is there if the server can."""
    done = part.stat().st_size if part.exists() else 0
    if done and done == wanted.size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "tiepoint"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        return  # nothing lies beyond what we have; whether it is right, the hash will tell
    with response:
        if response.status != 206:
            done = 0  # the server does not resume: start again
        rest = response.headers.get("Content-Length")
        total = done + int(rest) if rest else wanted.size
        if wanted.size is not None and total != wanted.size:
            raise OSError(f"the server offers {total} bytes, not the {wanted.size} of the file on record")
        with part.open("ab" if done else "wb") as file:
            while block := response.read(_BLOCK):
                done += len(block)
                if total is not None and done > total:
                    break  # not our file; the size will not match
                file.write(block)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes; run it again to continue")
