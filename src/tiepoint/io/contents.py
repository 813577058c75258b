"""What files hold: the lines of a text, and a digest that tells one content from another."""

from __future__ import annotations

import hashlib
import os

from .files import open_file


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return BLAKE2b (32 bytes, in hex) of a file, read block by block, as it may be larger than the memory.

    Raises
    ------
    InputError
        See `open_file`.
    """
    digest = hashlib.blake2b(digest_size=32)
    with open_file(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def numbered_lines(text: str) -> list[tuple[int, str]]:
    r"""Return the number, from 1, and the content of each line that is neither empty nor a comment.

    Examples
    --------
    >>> numbered_lines("# comment\n\na line")
    [(3, 'a line')]
    """
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
