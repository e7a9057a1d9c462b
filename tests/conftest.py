"""What every test has: no way out of this machine, and no clock in Hypothesis."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

# A machine that is busy with other things is no defect. CI tries the same examples every time, so
# that a change is judged by what it changed; whoever runs the tests by hand looks for new ones.
settings.register_profile(
    "greenroom", deadline=None, max_examples=60, derandomize="TEST_SAME_EXAMPLES" in os.environ
)
settings.load_profile("greenroom")


class OutsideWorldError(AssertionError):
    """A test tried to reach an address that is not on this machine."""


def refuse_foreign(address: object) -> None:
    """Raises unless `address` is a unix path or on the loopback."""
    if not isinstance(address, tuple):
        return
    host = str(address[0])
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise OutsideWorldError(f"a test may not connect to {host}")


@pytest.fixture(autouse=True)
def no_outside_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every connection but loopback and unix sockets."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: socket._Address) -> None:
        refuse_foreign(address)
        connect(self, address)

    def guarded_ex(self: socket.socket, address: socket._Address) -> int:
        refuse_foreign(address)
        return connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis server; without the program the test is skipped, or fails where it must run."""
    if shutil.which("redis-server") is None:
        if os.environ.get("TEST_REQUIRE_REDIS"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
