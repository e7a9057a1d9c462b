"""The index of the disk tier, kept in LMDB by a process of its own.

LMDB maps its file into memory, so a file that is cut short or scribbled over while it is open can
end the process that touches it with SIGBUS or SIGSEGV. That process is a small child with nothing
to lose: `Keeper` starts it, asks it, and starts it anew when it is gone.

    parent -> child   [order, generation folder, ...]
    child -> parent   [True, answer] | [False, problem]

One msgpack array a frame behind four bytes of length (big-endian). Rows are (key, value).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgpack

from kvstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    import lmdb

__all__ = ["ENGINE", "Keeper", "KeeperLost", "serve"]

ENGINE = 0
"""LMDB 0.9; files of 1.x cannot be read by 0.9 and the other way round."""
PROGRAM = "from kvstore.keeper import serve; serve()"
MAP_BYTES = 16 << 20
MAP_MOST = 16 << 30
ROW_BYTES = 512
"""Room in the map for one row, with much to spare."""
OPEN_SECONDS = 120.0
"""The verifier walks the whole file, and a process that is ending may still be in the folder."""
ANSWER_SECONDS = 10.0
_FRAME = struct.Struct(">I")

Row = tuple[bytes, bytes]


class KeeperLost(StoreError):
    """The index process died or hung on an order: what it was told may be lost."""


class Keeper:
    """The parent's side. Not thread-safe.

    Every call raises `KeeperLost`, or `StoreError` with what LMDB had to say. `store` is the folder
    of the generations; only one child at a time works in it.
    """

    def __init__(self, store: Path, program: str = PROGRAM) -> None:
        self._command = [sys.executable, "-P", "-c", program, str(store)]
        self._child: subprocess.Popen[bytes] | None = None

    def open(self, folder: Path) -> list[Row]:
        """Verifies and opens a generation's index, made if need be; gives its rows."""
        answer = self._ask("open", str(folder))
        if not isinstance(answer, list):
            raise StoreError("the index process gave no list")
        return [(key, value) for key, value in answer]

    def put(self, folder: Path, rows: list[Row]) -> None:
        """Adds rows in one transaction."""
        self._ask("put", str(folder), rows)

    def rewrite(self, folder: Path, rows: list[Row]) -> None:
        """Makes the index anew from `rows`, on the disk; overwrites the old one with zeros."""
        self._ask("rewrite", str(folder), rows)

    def drop(self, folder: Path) -> None:
        """Closes a generation's index; its files may be deleted then."""
        self._ask("drop", str(folder))

    def state(self, folder: Path) -> dict[str, int]:
        """Of a generation's index: `entries`, `pages` in use, `file_pages`, `readers`."""
        answer = self._ask("state", str(folder))
        return answer if isinstance(answer, dict) else {}

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child else None

    def close(self) -> None:
        """Ends the child. Idempotent."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()  # the order to go
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _ask(self, *order: object) -> object:
        try:
            child = self._child or self._start()
            assert child.stdin is not None
            assert child.stdout is not None
            patience = OPEN_SECONDS if order[0] in ("open", "rewrite") else ANSWER_SECONDS
            _send(child.stdin, order)
            ok, answer = _receive(child.stdout, time.monotonic() + patience)
        except (OSError, EOFError, ValueError) as error:
            if self._child is not None:
                self._child.kill()
            self.close()
            raise KeeperLost(f"the index process was lost: {error}") from error
        if not ok:
            raise StoreError(str(answer))
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a Ctrl-C at the terminal is for the parent to act on
        )
        return self._child


def _send(to: IO[bytes], message: object) -> None:
    body = msgpack.packb(message)
    to.write(_FRAME.pack(len(body)) + body)
    to.flush()


def _receive(source: IO[bytes], deadline: float | None = None) -> list[object]:
    """The next message. Raises `EOFError` at the end, `OSError` after `deadline`."""

    def read(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([source], [], [], left)[0]:
                raise OSError("it did not answer")
            more = os.read(source.fileno(), size - len(data))
            if not more:
                raise EOFError("it died")
            data += more
        return bytes(data)

    (size,) = _FRAME.unpack(read(_FRAME.size))
    message: list[object] = msgpack.unpackb(read(size))
    return message


def serve(failpoint: Callable[[str], None] = lambda name: None) -> None:
    """The child: orders from standard input, answers to standard output, until it ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody else writes among the answers
    # Whoever was killed may have left a child that is still at its last order.
    alone = os.open(Path(sys.argv[1]) / "KEEPER", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(alone, fcntl.LOCK_EX)
    indexes = _Indexes(failpoint)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            name, folder, *rest = _receive(sys.stdin.buffer)
            try:
                answer = [True, indexes.obey(str(name), Path(str(folder)), *rest)]
            except Exception as error:
                # Whatever a foreign file makes the verifier or the library trip over.
                answer = [False, str(error) or type(error).__name__]
            _send(answers, answer)
    indexes.close()


class _Indexes:
    """The LMDB environments of the generations that are open."""

    def __init__(self, failpoint: Callable[[str], None]) -> None:
        self._failpoint = failpoint
        self._open: dict[Path, lmdb.Environment] = {}

    def obey(self, name: str, folder: Path, *rest: object) -> object:
        match name, rest:
            case "open", ():
                return self._read(folder)
            case "put", (list(rows),):
                self._put(self._open[folder], rows)
            case "rewrite", (list(rows),):
                self._rewrite(folder, rows)
            case "drop", ():
                self._drop(folder)
            case "state", ():
                return self._state(folder)
            case _:
                raise ValueError(f"unknown order {name}")
        return None

    def close(self) -> None:
        for env in self._open.values():
            env.close()

    def _drop(self, folder: Path) -> None:
        if (env := self._open.pop(folder, None)) is not None:
            env.close()

    def _read(self, folder: Path) -> list[Row]:
        from lmdb import verify

        data = folder / "data.mdb"
        # Reads the file without trusting it, and without the library.
        found = data.exists() and data.stat().st_size and verify.verify(str(folder))
        if found:
            raise ValueError(str(found[0]))
        env = self._environment(folder, MAP_BYTES)
        env.reader_check()
        with env.begin() as txn, txn.cursor() as cursor:
            rows = [(bytes(key), bytes(value)) for key, value in cursor]
        self._open[folder] = env
        return rows

    def _environment(self, folder: Path, map_bytes: int) -> lmdb.Environment:
        import lmdb

        return lmdb.open(
            str(folder),
            map_size=map_bytes,
            sync=False,
            writemap=False,  # a full disk would kill the process
            meminit=False,
            lock=False,  # KEEPER is the lock; one in a file that may be harmed can hang
            lib_version=ENGINE,
        )

    def _put(self, env: lmdb.Environment, rows: list[Row]) -> None:
        import lmdb

        while True:
            self._failpoint("index_begun")
            try:
                with env.begin(write=True) as txn:
                    for key, value in rows:
                        txn.put(key, value)
                    self._failpoint("index_written")
                self._failpoint("index_committed")
                return
            except lmdb.MapFullError:
                size = env.info()["map_size"]
                if size >= MAP_MOST:
                    raise
                env.set_mapsize(2 * size)

    def _rewrite(self, folder: Path, rows: list[Row]) -> None:
        self._drop(folder)
        fresh = folder / "index.new"
        fresh.mkdir(mode=0o700, exist_ok=True)
        (fresh / "data.mdb").unlink(missing_ok=True)
        env = self._environment(fresh, max(MAP_BYTES, ROW_BYTES * len(rows)))
        try:
            self._put(env, rows)
            env.sync(True)
        finally:
            env.close()
        self._failpoint("index_rewritten")
        _wipe(folder / "data.mdb")
        self._failpoint("index_removed")  # whoever opens this reads the segment instead
        (fresh / "data.mdb").rename(folder / "data.mdb")
        fresh.rmdir()
        self._open[folder] = self._environment(folder, max(MAP_BYTES, ROW_BYTES * len(rows)))

    def _state(self, folder: Path) -> dict[str, int]:
        info, stat = self._open[folder].info(), self._open[folder].stat()
        return {
            "entries": stat["entries"],
            "pages": stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"],
            "file_pages": info["last_pgno"] + 1,
            "readers": info["num_readers"],
        }


def _wipe(path: Path) -> None:
    """Deletes a file that nobody has open, its bytes first."""
    if not path.is_file():
        return
    with path.open("r+b", buffering=0) as file:
        size = path.stat().st_size
        for at in range(0, size, 1 << 20):
            file.write(bytes(min(1 << 20, size - at)))
        os.fdatasync(file.fileno())
    path.unlink()
