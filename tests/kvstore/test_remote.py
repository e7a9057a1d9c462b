"""Blocks in a real Redis server, and what happens when it is not one."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis

from kvstore.api import Scope
from kvstore.errors import StoreError
from kvstore.host import HostTier
from kvstore.null import NullTier
from kvstore.remote import RemoteTier
from kvstore.testing import LAYOUT, TierContract, blocks, bring, chain, check, got, keep, settle
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.api import Tier
    from tests.redis_server import RedisServer


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server


class TestContract(TierContract):
    @pytest.fixture
    def tier(self, server: RedisServer) -> Iterator[Tier]:
        made = RemoteTier(server.url, deadline=5.0)
        yield made
        made.close()


def test_another_engine_restores_it(server: RedisServer) -> None:
    """What one store wrote another finds, at block ends and message ends, and promotes."""
    mine = chain(range(45))
    first = TieredStore(LAYOUT, NullTier(), HostTier(1 << 20), [RemoteTier(server.url, deadline=5)])
    keep(first, mine, 29)
    keep(first, mine, 45)
    settle(first)
    first.close()
    host = HostTier(1 << 20)
    second = TieredStore(LAYOUT, NullTier(), host, [RemoteTier(server.url, deadline=5.0)])
    assert second.match(mine).length == 0  # nothing near
    assert second.asks_far
    loaded, room = bring(second, mine, boundaries=(29, 45))
    check(loaded, room, mine)
    assert (loaded.match.length, loaded.match.by_tier) == (45, (("remote", 45),))
    assert second.match(mine).by_tier == (("host", 45),)
    edited = chain([*range(29), 7, 7])
    host.discard(host.held())
    loaded, room = bring(second, edited, boundaries=(29,))
    check(loaded, room, edited)
    assert loaded.match.length == 29
    second.close()


def test_nothing_of_a_deleted_owner_stays(server: RedisServer) -> None:
    """After a deletion the server has no key of the owner, then none of the tenant."""
    tier = RemoteTier(server.url, deadline=5.0)
    ann, ben = b"a" * 16, b"b" * 16
    hers, his = blocks(chain(range(40)), owner=ann), blocks(chain(range(60, 80)), owner=ben)
    tier.put(hers + his)
    space = hers[0].key.prefix.space
    assert tier.purge(Scope(space, ann)) == len(hers)
    assert not any(ann in key for key in server.names())
    assert len([key for key in server.names() if b":b:" in key]) == len(his)
    assert tier.purge(Scope(space)) == len(his)
    assert server.names() == []
    tier.close()


def test_damaged_records_are_misses(server: RedisServer) -> None:
    """Flipped, swapped, cut and foreign values are counted misses."""
    tier = RemoteTier(server.url, deadline=5.0)
    mine = blocks(chain(range(64)))
    tier.put(mine)
    chance = random.Random(0)
    with redis.Redis.from_url(server.url) as client:
        names = sorted(key for key in server.names() if b":b:" in key)
        values = client.mget(names)
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            harmed = bytearray(value)
            match i % 4:
                case 0:
                    harmed[chance.randrange(len(harmed))] ^= 1
                case 1:
                    del harmed[chance.randrange(len(harmed)) :]
                case 2:
                    harmed = bytearray(values[(i + 1) % len(values)])
                case _:
                    harmed = bytearray(b"something else")
            client.set(name, bytes(harmed))
    assert got(tier, mine) == [None] * len(mine)
    assert tier.stats().damaged == len(mine)
    tier.close()


def test_a_dead_server_is_left_alone(tmp_path: Path, server: RedisServer) -> None:
    """A server that is gone costs misses and no time; when it is back it is used again."""
    now = 0.0
    tier = RemoteTier(f"unix://{tmp_path}/none.sock", deadline=0.2, clock=lambda: now)
    mine = blocks(chain(range(20)))
    began = time.monotonic()
    for _ in range(50):
        assert got(tier, mine) == [None] * len(mine)
        assert tier.put(mine) == 0
        assert tier.leading([mine[0].key]) == 0
    assert time.monotonic() - began < 2
    assert tier.stats().errors == 1
    with pytest.raises(StoreError, match="not whole"):
        tier.purge(Scope(mine[0].key.prefix.space))
    os.symlink(server.path, tmp_path / "none.sock")
    assert tier.put(mine) == 0  # not yet
    now = 100.0
    assert tier.put(mine) == len(mine)
    assert got(tier, mine) == mine
    tier.close()


@pytest.mark.parametrize("manner", ["silent", "closing", "garbage"])
def test_a_server_that_is_none(manner: str) -> None:
    """Whatever answers on the port: misses within the deadline, nothing raised."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        ended = threading.Event()

        def serve() -> None:
            kept = []
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                if manner == "garbage":
                    connection.sendall(random.Random(1).randbytes(4096))
                if manner == "closing":
                    connection.close()
                else:
                    kept.append(connection)
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        tier = RemoteTier(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", deadline=0.2)
        mine = blocks(chain(range(8)))
        began = time.monotonic()
        assert got(tier, mine) == [None] * len(mine)
        assert tier.put(mine) == 0
        assert time.monotonic() - began < 2
        assert tier.stats().errors >= 1
        tier.close()
        ended.set()
        thread.join()


def test_an_address_that_is_none() -> None:
    """An address of no known kind is refused with one line."""
    with pytest.raises(StoreError, match="remote KV address"):
        RemoteTier("http://example.invalid/")
