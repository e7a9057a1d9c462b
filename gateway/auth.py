"""Who may talk to this server: pure checks of the Host and Origin headers.

A page of another site can make a browser open a socket to 127.0.0.1, and by DNS rebinding even
under a name of its own; both show in these headers, which a page cannot forge.
"""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["host_allowed", "origin_allowed"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def host_allowed(host: str, allowed: frozenset[str]) -> bool:
    """Whether the Host header names loopback or one of `allowed`, exactly, with any port."""
    name = _name(host)
    return name is not None and name in LOOPBACK | allowed


def origin_allowed(origin: str | None, host: str, allowed: frozenset[str]) -> bool:
    """Whether a page of `origin` may open a socket that it reached as `host`.

    Programs send no Origin and may; browsers always send one, which must be this very host and
    port, or one of `allowed` (`scheme://host[:port]`).
    """
    if origin is None or origin in allowed:
        return True
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return False
    default = 443 if parts.scheme == "https" else 80
    return (parts.hostname, port or default) == _name_and_port(host, default)


def _name(host: str) -> str | None:
    found = _name_and_port(host, 0)
    return found and found[0]


def _name_and_port(host: str, default: int) -> tuple[str, int] | None:
    if not host or any(c in host for c in "/@?#\\ \t"):
        return None
    try:
        parts = urlsplit("//" + host)
        return (parts.hostname, parts.port or default) if parts.hostname else None
    except ValueError:
        return None
