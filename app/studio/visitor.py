"""Who asks: a browser by a secret cookie, a program by the name that its client gives itself."""

from __future__ import annotations

import re
import secrets
from typing import Any

from starlette.requests import cookie_parser

COOKIE = "splatsmith"
COOKIE_DAYS = 400  # since the last visit; browsers keep none longer
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 bits, as `new_secret` makes them


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def secret_of(cookie_header: str) -> str | None:
    """The visitor's secret in a Cookie header; None where there is none of the right form."""
    found = cookie_parser(cookie_header).get(COOKIE, "")
    return found if SECRET.fullmatch(found) else None


def session_of(request: Any) -> str:
    """The session of a request of gradio or Starlette: text to be hashed, never part of a path.

    A browser's is the secret of its cookie, which no script reads. `gradio_client` keeps no cookies; what it has is the random
    session hash that it makes for each `Client`, and sends with every call. The two kinds never meet, and who has neither is a
    stranger each time.
    """
    if secret := secret_of(request.headers.get("cookie", "")):
        return f"browser {secret}"
    if client := getattr(request, "session_hash", None):
        return f"client {client}"
    return f"stranger {new_secret()}"
