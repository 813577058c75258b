"""Self-contained HTML pages from templates: data, text and a strict Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import Any

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def fill_template(template: str, data: Any = None, **texts: str) -> str:
    """Fill a page's template: ``@DATA@`` becomes JSON, ``@NAME@`` the text given as ``name``, escaped.

    The data belong into ``<script type="application/json">``, which no browser executes. The page's own script and
    style, each in an element without attributes, are the only ones that run: ``@POLICY@``, the content of a meta
    element, becomes a Content-Security-Policy with their digests. A page made of hostile file names can therefore
    neither run a script of its own nor contact any server.

    Examples
    --------
    >>> page = fill_template('<script type="application/json">@DATA@</script><h1>@TITLE@</h1>', [1], title="a < b")
    >>> page
    '<script type="application/json">[1]</script><h1>a &lt; b</h1>'
    """
    values: Mapping[str, str] = {
        **{name.upper(): html.escape(text) for name, text in texts.items()},
        # In a script element, only "</script" and "<!--" could end the data early.
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "POLICY": content_policy(template),
    }
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], template)


def content_policy(page: str, connect: bool = False) -> str:
    """Return the policy that allows a page nothing but its own script, style and embedded images.

    Parameters
    ----------
    page : str
        The page, or its template.
    connect : bool
        Whether the script may talk to the server that the page came from, and show images from there.
    """
    digests: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        digests[kind].append(f"'sha256-{digest}'")
    rules = {
        "default-src": ["'none'"],
        "script-src": digests["script"] or ["'none'"],
        "style-src": digests["style"] or ["'none'"],
        "img-src": ["data:", "blob:"] + ["'self'"] * connect,
        "connect-src": ["'self'"] if connect else ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"] if connect else ["'none'"],
    }
    return "; ".join(" ".join([name, *sources]) for name, sources in rules.items())
