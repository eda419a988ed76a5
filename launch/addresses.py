"""Addresses of services in a config, and the secrets that go with them. Importing this imports no torch."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from launch.errors import UserError

_SECRET = re.compile(r"key|token|secret|passw|auth|signature", re.IGNORECASE)


def check_url(field: str, url: str) -> None:
    """ValueError unless it is an http(s) address without a secret: the config is written into the run's records."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    odd = not url.isascii() or any(character.isspace() for character in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or odd:
        shown = url.partition("?")[0].rpartition("@")[2]  # without what may be a secret
        raise ValueError(f"{field}: '{shown}' is no address; write http://host:port/path or https://...")
    if "@" in parts.netloc or any(_SECRET.search(key) for key, _ in parse_qsl(parts.query)):
        raise ValueError(f"{field}: it holds a secret, which would be recorded with the run; use token_env")


def check_variable(field: str, name: str | None) -> None:
    """ValueError unless this is the name of an environment variable, or None."""
    if name is not None and not name.isidentifier():  # perhaps the token itself: not repeated
        raise ValueError(f"{field}: this is no name of an environment variable; put the token into one, name it here")


def read_secret(field: str, variable: str | None) -> str:
    """The value of an environment variable that a config names; empty when it names none. UserError when it is not set."""
    if variable is None:
        return ""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"{field}: the environment variable {variable} is not set; export it before the run")
    if not value.isascii() or not value.isprintable():  # http.client would show it in its complaint
        raise UserError(f"{field}: what the environment variable {variable} holds is no token: one line of ASCII is")
    return value
