"""Blocks in a Redis or Valkey server, shared by every engine that reaches it.

    greenroom:SPACE:b:KEY       a record (docs/kv-record.md); KEY is the block's key
    greenroom:SPACE:o:OWNER     the set of an owner's block keys, so that it can be deleted
    greenroom:SPACE:owners      the set of owners, so that a tenant can

Everything but what is being used expires after `ttl_seconds`; how much there may be is the
server's to say (maxmemory with an LRU policy). It is another machine: each call waits `deadline`
seconds at most, a failure is a miss, and a server that failed is left alone for a while.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvstore.api import TierStats
from kvstore.breaker import Breaker
from kvstore.errors import RecordDamaged, StoreError
from kvstore.record import decode_head, encode_head, encode_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvstore.api import Block, BlockKey, Scope

__all__ = ["RemoteTier"]

log = structlog.get_logger()

BATCH_BYTES = 8 << 20
BATCH_KEYS = 256
R = TypeVar("R")


class RemoteTier:
    """Implements `kvstore.api.Tier` over `redis://HOST:PORT/DB` or `unix:///PATH`.

    Making one connects to nothing. Raises `StoreError` for an address that is none.
    """

    name = "remote"
    near = False

    def __init__(
        self,
        url: str,
        *,
        deadline: float = 0.25,
        ttl_seconds: int = 7 * 86400,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadline = deadline
        self._ttl = ttl_seconds
        self._clock = clock
        self._breaker = Breaker()
        self._lock = threading.Lock()
        self._counts = TierStats(self.name)
        self._closed = False
        try:
            self._server = redis.Redis.from_url(
                url,
                socket_timeout=deadline,
                socket_connect_timeout=deadline,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
        except ValueError as error:
            raise StoreError(f"remote KV address {url!r}: {error}") from error

    def leading(self, keys: Sequence[BlockKey]) -> int:
        def ask() -> int:
            with self._server.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.exists(_name(key))
                answers = pipe.execute()
            return next((i for i, there in enumerate(answers) if not there), len(keys))

        return (self._asked(ask) or 0) if keys else 0

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        ids: list[bytes | None] = [None] * len(keys)
        until = self._clock() + self._deadline
        for part in _parts([buffer.nbytes for buffer in into]):
            if self._clock() > until:
                break  # what came is whole; the rest is a miss
            records = self._asked(partial(self._get, [_name(keys[i]) for i in part]))
            if records is None:
                break
            for i, record in zip(part, records, strict=True):
                if record is not None:
                    ids[i] = self._taken(keys[i], record, into[i])
        hits = sum(run is not None for run in ids)
        self._count(hits=hits, misses=len(keys) - hits)
        return ids

    def put(self, blocks: Sequence[Block]) -> int:
        held = 0
        for part in _parts([len(block.payload) for block in blocks]):
            some = [blocks[i] for i in part]
            new = self._asked(partial(self._put, some))
            if new is None:
                self._count(refused=len(some))
                continue
            held += len(some)
            self._count(stored=new)
        return held

    def held(self) -> list[BlockKey]:
        return []

    def discard(self, keys: Sequence[BlockKey]) -> None:
        if keys:
            self._asked(lambda: self._server.unlink(*map(_name, keys)))

    def purge(self, scope: Scope) -> int:
        if self._closed:
            return 0
        try:
            if scope.owner is not None:
                return self._purge(scope.space, scope.owner)
            owners = self._members(_owners(scope.space))
            return sum([self._purge(scope.space, owner) for owner in owners])
        except (redis.RedisError, OSError) as error:
            self._breaker.failed(self._clock())
            self._count(errors=1)
            raise StoreError(f"deletion from the remote store is not whole: {error}") from error

    def stats(self) -> TierStats:
        return self._counts

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._server.close()

    def _put(self, blocks: Sequence[Block]) -> int:
        """Stores blocks with their owners' lists; how many were not there before."""
        with self._server.pipeline(transaction=False) as pipe:
            for block in blocks:
                space, name = block.key.prefix.space, _name(block.key)
                # The lists first: a block that is stored can always be deleted.
                of = _of(space, block.owner)
                for members, member in ((_owners(space), block.owner), (of, name)):
                    pipe.sadd(members, member)
                    pipe.expire(members, self._ttl)
                record = b"".join((encode_head(block), block.payload))
                pipe.set(name, record, ex=self._ttl, nx=True)
            answers = pipe.execute()
        return sum(answer is not None for answer in answers[4::5])

    def _purge(self, space: bytes, owner: bytes) -> int:
        names = self._members(_of(space, owner))
        gone = 0
        for start in range(0, len(names), BATCH_KEYS):
            gone += self._server.unlink(*names[start : start + BATCH_KEYS])
        self._server.unlink(_of(space, owner))
        self._server.srem(_owners(space), owner)
        return gone

    def _get(self, names: list[bytes]) -> list[bytes | None]:
        return [v if isinstance(v, bytes) else None for v in self._server.mget(names)]

    def _members(self, name: bytes) -> list[bytes]:
        return [m for m in self._server.smembers(name) if isinstance(m, bytes)]

    def _taken(self, key: BlockKey, record: bytes, into: memoryview) -> bytes | None:
        try:
            head = decode_head(record)
            payload = memoryview(record)[head.size :]
            if head.key != key or payload.nbytes != into.nbytes or not head.fits(payload):
                raise RecordDamaged("another record, or a payload that is not its own")
        except RecordDamaged as error:
            log.warning("kv_record_damaged", tier=self.name, problem=str(error))
            self._count(damaged=1)
            return None
        into[:] = payload
        return head.ids

    def _asked(self, ask: Callable[[], R]) -> R | None:
        """The answer, or None where there is none."""
        if self._closed or not self._breaker.allows(self._clock()):
            return None
        try:
            answer = ask()
        except (redis.RedisError, OSError) as error:
            if self._breaker.is_closed:
                log.warning("kv_remote_lost", problem=str(error) or type(error).__name__)
            self._breaker.failed(self._clock())
            self._count(errors=1)
            return None
        if not self._breaker.is_closed:
            log.info("kv_remote_back")
        self._breaker.succeeded()
        return answer

    def _count(
        self,
        *,
        hits: int = 0,
        misses: int = 0,
        stored: int = 0,
        damaged: int = 0,
        refused: int = 0,
        errors: int = 0,
    ) -> None:
        with self._lock:
            c = self._counts
            self._counts = replace(
                c,
                hits=c.hits + hits,
                misses=c.misses + misses,
                stored=c.stored + stored,
                damaged=c.damaged + damaged,
                refused=c.refused + refused,
                errors=c.errors + errors,
            )


def _name(key: BlockKey) -> bytes:
    return b"greenroom:%s:b:%s" % (key.prefix.space.hex().encode(), encode_key(key))


def _of(space: bytes, owner: bytes) -> bytes:
    return b"greenroom:%s:o:%s" % (space.hex().encode(), owner)


def _owners(space: bytes) -> bytes:
    return b"greenroom:%s:owners" % space.hex().encode()


def _parts(sizes: Sequence[int]) -> Iterator[range]:
    """Runs of items of about eight megabytes and at most 256 each."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (total + size > BATCH_BYTES or i - start >= BATCH_KEYS):
            yield range(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))
