"""Who may ask: the checks before every request, and the headers of every answer.

A page of another site can make a visitor's browser send requests to 127.0.0.1. Two checks stop that: ``Host`` must be a
name of this server, which defeats a foreign name that resolves to 127.0.0.1 (DNS rebinding); and a request that changes
something must come from a page of this server (``Origin``, ``Sec-Fetch-Site``). Whoever reaches the server from another
machine needs the token as well.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ArgumentError

COOKIE = "tiepoint_token"
SHORTEST_TOKEN = 16  # characters
OPEN = ("/login",)  # needs no token
SAFE = ("GET", "HEAD")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms say "Origin: null"
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a host reaches this machine alone.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    address = _address(host.strip("[]"))
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host's name is, or None if it is no address in numbers."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_token(host: str, token: str | None) -> None:
    """Raise `ArgumentError` if others could reach ``host`` without a token, or the token can be guessed."""
    if token is None and not is_loopback(host):
        raise ArgumentError(
            f"--host {host} can be reached from other machines: choose a token of {SHORTEST_TOKEN} characters or more "
            "and set it as TIEPOINT_TOKEN in the environment"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ArgumentError(f"a token has {SHORTEST_TOKEN} printable ASCII characters or more")


class Guard:
    """ASGI middleware: refuse what may not ask, and add `HEADERS` to every answer.

    Parameters
    ----------
    app : ASGI application
    host : str
        The address that the server listens at.
    token : str or None
        What every request has to bring along, as ``Authorization: Bearer`` or as the cookie of ``/login``.
    names : list of str
        Further names under which browsers reach the server.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None, names: Iterable[str] = ()) -> None:
        self.app, self.token = app, token
        self.local = is_loopback(host)
        self.names = {"localhost", *(name.lower() for name in names)}
        if not self.local:
            self.names |= {host.lower(), socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.lower().encode() not in there),
                ]
            await send(message)

        refusal = self._refusal(request)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if len(request.headers.getlist("host")) != 1 or not self._is_ours(host):
            return _error(421, "This server does not answer to that name; open it by the address that it printed.")
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
        from_elsewhere = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if from_elsewhere or (request.method not in SAFE and site not in ("same-origin", "none")):
            return _error(403, "Requests from pages of other sites are refused.")
        if self.token is None or request.url.path in OPEN or self.holds_token(request):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return _error(401, "Bring the token along: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        """Whether ``Host`` is a name of this server; an address in numbers cannot be made to resolve elsewhere."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        address = _address(name)
        return name in self.names or (address is not None and (address.is_loopback or not self.local))

    def holds_token(self, request: Request) -> bool:
        """Whether a request brings the token along."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        candidates = [given.strip() if kind.lower() == "bearer" else "", request.cookies.get(COOKIE, "")]
        return any(is_token(candidate, self.token) for candidate in candidates)


def is_token(given: str, token: str | None) -> bool:
    """Whether ``given`` is the token; compared in constant time."""
    return token is not None and hmac.compare_digest(given.encode(), token.encode())


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": message}, status, headers)
