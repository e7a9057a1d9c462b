"""gateway.auth: exact names only."""

from __future__ import annotations

import pytest

from gateway.auth import host_allowed, origin_allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8642", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8642", True),
        ("chat.example:9", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:8642", False),
        ("localhost.evil.example", False),
        ("evil.example#localhost", False),
        ("evil.example@localhost", False),
        ("localhost:port", False),
        ("localhost:99999", False),
        ("xchat.example", False),
        ("127.1", False),
        ("", False),
        ("[::1", False),
        ("localhost/..", False),
    ],
)
def test_host(host: str, allowed: bool) -> None:
    """Only loopback and configured names pass, whatever a name is dressed up as."""
    assert host_allowed(host, frozenset({"chat.example"})) is allowed


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "localhost:8642", True),
        ("http://localhost:8642", "localhost:8642", True),
        ("http://LOCALHOST:8642", "localhost:8642", True),
        ("http://localhost", "localhost", True),
        ("http://localhost:80", "localhost", True),
        ("https://localhost", "localhost:443", True),
        ("http://[::1]:8642", "[::1]:8642", True),
        ("https://chat.example", "localhost:8642", True),
        ("http://chat.example", "localhost:8642", False),
        ("http://localhost:8643", "localhost:8642", False),
        ("http://127.0.0.1:8642", "localhost:8642", False),
        ("http://evil.example", "localhost:8642", False),
        ("http://localhost:8642.evil.example", "localhost:8642", False),
        ("http://evil.localhost:8642", "localhost:8642", False),
        ("null", "localhost:8642", False),
        ("", "localhost:8642", False),
        ("file://", "localhost:8642", False),
        ("http://localhost:port", "localhost:8642", False),
        ("ftp://localhost:8642", "localhost:8642", False),
    ],
)
def test_origin(origin: str | None, host: str, allowed: bool) -> None:
    """A page may open a socket to its own host and port, or from a configured origin."""
    assert origin_allowed(origin, host, frozenset({"https://chat.example"})) is allowed
