"""What every request passes first: sizes and paths are judged, and a browser gets its secret cookie.

Gradio itself would fetch pages that a visitor names by URL, take uploads of any number, and try passwords as fast as they come.
"""

from __future__ import annotations

import collections
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from app.studio.visitor import COOKIE, COOKIE_DAYS, new_secret, secret_of
from app.uploads import folder_bytes

LENT = "lent"  # folder, in that of uploads, of results on their way out: links, which take no room
FORM_BYTES = 1_000_000  # of a request that is no upload
ROOM_FOR_UPLOADS = 4  # times the most for one job, of all visitors together; what lies there is removed after hours
TRIES_A_MINUTE = 10  # passwords from one address
# Whatever the page holds, the browser asks no other machine for anything, and no other page shows this one in a frame. Gradio
# and the viewer are scripts and styles in the page itself.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'"
)


@dataclass
class Guard:
    """ASGI middleware."""

    app: Callable
    uploads: Path  # folder of gradio's uploads
    upload_bytes: int  # most of one request
    names: frozenset[str] | None = None  # by which the server may be asked for beside addresses; None: by any
    tries: dict[str, collections.deque[float]] = field(default_factory=dict)  # passwords, by address

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        cookie = None
        if scope["path"] == "/":
            secret = secret_of(headers.get("cookie", "")) or new_secret()
            # Lax: who follows a link from another site comes with the cookie, or a new secret would take the old one's place;
            # what other sites send on their own, and every POST of theirs, comes without.
            cookie = f"{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Lax; Max-Age={COOKIE_DAYS * 86400}"
            cookie += "; Secure" if scope.get("scheme") == "https" else ""

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["Content-Security-Policy"] = POLICY
                added["X-Content-Type-Options"] = "nosniff"
                added["Referrer-Policy"] = "no-referrer"
                if cookie:
                    added.append("Set-Cookie", cookie)
            await send(message)

        await (refused or self.app)(scope, receive, answer)

    def _refused(self, scope: dict, headers: Headers) -> PlainTextResponse | None:
        if not self._asked_for(headers.get("host", "")):
            return PlainTextResponse("The page does not go by this name; --server-name gives it one.", 421)
        path = scope["path"].lower()
        if "/proxy=" in path or "/file=http" in path:
            return PlainTextResponse("Nothing is fetched from other servers.", 403)
        if path.rstrip("/") == "/login" and scope["method"] == "POST" and not self._may_try(scope):
            return PlainTextResponse("Too many tries; wait a minute.", 429)
        if "transfer-encoding" in headers:  # then the server reads chunks without end, whatever length is stated
            return PlainTextResponse("A request must say how long it is, and not come in chunks.", 411)
        if scope["method"] in ("POST", "PUT", "PATCH"):
            return self._too_large(headers, is_upload=path.rstrip("/").endswith("/upload"))
        return None

    def _asked_for(self, host: str) -> bool:
        """A web site whose name is made to point at this machine (DNS rebinding) comes by that name, never by an address."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        return self.names is None or name in self.names or _is_address(name)

    def _too_large(self, headers: Headers, is_upload: bool) -> PlainTextResponse | None:
        """By the length that the request states, which the server holds it to where it has no Transfer-Encoding."""
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("A request must say how long it is.", 411)
        size, most = int(length), self.upload_bytes if is_upload else FORM_BYTES
        if size > most:
            return PlainTextResponse(
                f"{size / 1e6:.1f} MB were sent, more than the {most / 1e6:.0f} MB allowed; send less.", 413
            )
        waiting = folder_bytes(self.uploads) - folder_bytes(self.uploads / LENT) if is_upload else 0
        if is_upload and waiting + size > ROOM_FOR_UPLOADS * self.upload_bytes:
            return PlainTextResponse("The server's room for uploads is full; try again in an hour.", 507)
        return None

    def _may_try(self, scope: dict) -> bool:
        address, now = (scope.get("client") or ("",))[0], time.monotonic()
        for other in [a for a, times in self.tries.items() if now - times[-1] > 60]:
            del self.tries[other]
        times = self.tries.setdefault(address, collections.deque(maxlen=TRIES_A_MINUTE))
        if len(times) == TRIES_A_MINUTE and now - times[0] < 60:
            return False
        times.append(now)
        return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
