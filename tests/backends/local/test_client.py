"""The local backend over its real engine process: side by side, cancel, crash, refusal, end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backends
from backends.api import BackendState, Finished, Sampling, TextDelta
from backends.errors import BackendError, BackendErrorCode
from backends.local.client import LocalBackend
from backends.local.settings import EngineSettings
from backends.testing import speak, turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.api import TurnEvent

LONG = Sampling(temperature=0.0, max_tokens=3000)
BOUND_S = 30.0


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> EngineSettings:
    return EngineSettings(
        data_dir=tmp_path, model=str(tiny_folder), threads=1, host_bytes=1 << 24, disk_bytes=1 << 24
    )


@pytest.fixture
async def backend(settings: EngineSettings) -> AsyncIterator[LocalBackend]:
    made = LocalBackend(settings)
    yield made
    await made.aclose()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody reaped yet is dead too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(BOUND_S):
        while alive(pid):  # noqa: ASYNC110 (another process's end is no event of ours)
            await asyncio.sleep(0.02)


async def first_text(stream: object) -> None:
    event = await anext(stream)  # type: ignore[call-overload]
    assert isinstance(event, TextDelta)


async def test_turn_and_next_turn(backend: LocalBackend, settings: EngineSettings) -> None:
    """A second process with the same data folder speaks the same; the cache counts add up."""
    capabilities = await backend.start()
    assert capabilities.model == settings.model
    assert capabilities.context == settings.context
    text, events = await speak(backend.stream(turn()))
    again, more = await speak(backend.stream(turn(id="again")))
    assert again == text
    first, second = events[-1], more[-1]
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens > 0
    assert second.sampled == first.sampled


async def test_restart_is_warm(settings: EngineSettings) -> None:
    """A new engine process finds on disk what the last one kept."""
    texts = []
    for cached in (False, True):
        backend = LocalBackend(settings)
        await backend.start()
        text, events = await speak(backend.stream(turn()))
        texts.append(text)
        await backend.aclose()
        last = events[-1]
        assert isinstance(last, Finished)
        assert (last.usage.cached_tokens > 0) is cached
        assert dict(last.usage.cached_by_tier).keys() == ({"disk"} if cached else set())
    assert texts[0] == texts[1]


async def test_store_none(settings: EngineSettings) -> None:
    """With no store nothing is cached and nothing else changes."""
    backend = LocalBackend(replace(settings, store="none"))
    await backend.start()
    try:
        said = [await speak(backend.stream(turn(id=f"t{i}"))) for i in range(2)]
    finally:
        await backend.aclose()
    assert said[0][0] == said[1][0]
    for _, events in said:
        last = events[-1]
        assert isinstance(last, Finished)
        assert last.usage.cached_tokens == 0


async def test_cancel_frees_the_engine(settings: EngineSettings) -> None:
    """With one place to run, a closed stream makes room for the next turn at once."""
    backend = LocalBackend(replace(settings, max_running=1))
    await backend.start()
    try:
        async with aclosing(backend.stream(turn(sampling=LONG))) as stream:
            await first_text(stream)
        began = time.monotonic()
        await speak(backend.stream(turn(id="next", sampling=replace(LONG, max_tokens=2))))
        assert time.monotonic() - began < 2.0
    finally:
        await backend.aclose()


async def test_kill_mid_turn(backend: LocalBackend) -> None:
    """SIGKILL of the engine fails every open turn as CRASHED; the next turn works by itself."""
    await backend.start()
    pid = backend.pid
    assert pid is not None
    streams = [backend.stream(turn(id=f"t{i}", sampling=LONG)) for i in range(3)]
    for stream in streams:
        await first_text(stream)
    os.kill(pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(BackendError) as caught:
            async with asyncio.timeout(BOUND_S):
                [event async for event in stream]
        assert caught.value.code is BackendErrorCode.CRASHED
        assert caught.value.retryable
    assert backend.status().state is BackendState.STARTING
    assert "died" in backend.status().detail
    async with asyncio.timeout(BOUND_S):
        text, events = await speak(backend.stream(turn()))
    assert text
    assert isinstance(events[-1], Finished)
    assert backend.pid not in (None, pid)
    assert backend.status().state is BackendState.READY


@pytest.mark.parametrize("heard", [0, 1, 2, 5, 8])
async def test_kill_at_every_step_of_a_turn(backend: LocalBackend, heard: int) -> None:
    """Killed after so many events, from none on, a turn fails or is whole; the next one works."""
    await backend.start()
    reference, whole = await speak(backend.stream(turn()))
    pid = backend.pid
    assert pid is not None
    assert len(whole) > 8
    events: list[TurnEvent] = []
    failed: BackendErrorCode | None = None
    try:
        async with asyncio.timeout(BOUND_S):
            async with aclosing(backend.stream(turn(id="hit"))) as stream:
                running = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)  # it is on its way
                while True:
                    if len(events) == heard:
                        os.kill(pid, signal.SIGKILL)
                    events.append(await running)
                    running = asyncio.ensure_future(anext(stream))
    except StopAsyncIteration:
        ends = [event for event in (events[-1], whole[-1]) if isinstance(event, Finished)]
        assert [end.sampled for end in ends] == [whole[-1].sampled] * 2  # type: ignore[union-attr]
    except BackendError as error:
        failed = error.code
    assert failed in (None, BackendErrorCode.CRASHED)
    async with asyncio.timeout(BOUND_S):
        while backend.pid == pid:  # noqa: ASYNC110 (a whole turn may end before the death is seen)
            await asyncio.sleep(0.01)
        text, _ = await speak(backend.stream(turn(id="next")))
    assert text == reference


async def test_missing_model(settings: EngineSettings) -> None:
    """A model that is not there is refused in one line, once, and another start says it again."""
    backend = LocalBackend(replace(settings, model="no-such-model"))
    try:
        for _ in range(2):
            with pytest.raises(BackendError, match="no-such-model") as caught:
                await backend.start()
            assert caught.value.code is BackendErrorCode.UNAVAILABLE
            assert "\n" not in caught.value.message
            assert backend.status().state is BackendState.DOWN
            assert "no-such-model" in backend.status().detail
        with pytest.raises(BackendError, match="no-such-model"):
            await speak(backend.stream(turn()))
    finally:
        await backend.aclose()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step_tokens": 2}, "step_tokens"),
        ({"store": "tape"}, "store"),
        ({"context": 1}, "context"),
    ],
)
async def test_bad_settings(settings: EngineSettings, change: dict[str, int], named: str) -> None:
    """Settings that cannot work are refused by name at the start."""
    backend = LocalBackend(replace(settings, **change))  # type: ignore[arg-type]
    try:
        with pytest.raises(BackendError, match=named):
            await backend.start()
    finally:
        await backend.aclose()


async def test_dies_before_ready(settings: EngineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that dies while it loads is tried a few times, then given up with the reason."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    backend = LocalBackend(settings)
    try:
        with pytest.raises(BackendError, match=r"died 3 times before it was ready \(exit code 1\)"):
            await backend.start()
        assert backend.status().state is BackendState.DOWN
    finally:
        await backend.aclose()


async def test_not_started(settings: EngineSettings) -> None:
    """A turn before start is refused."""
    with pytest.raises(BackendError, match="not started") as caught:
        await speak(LocalBackend(settings).stream(turn()))
    assert caught.value.code is BackendErrorCode.UNAVAILABLE


async def test_aclose_ends_the_process(backend: LocalBackend) -> None:
    """aclose leaves no process behind."""
    await backend.start()
    pid = backend.pid
    assert pid is not None
    await backend.aclose()
    assert not alive(pid)


async def test_aclose_while_starting(settings: EngineSettings) -> None:
    """aclose during the start ends the start with UNAVAILABLE, and the process."""
    backend = LocalBackend(settings)
    starting = asyncio.create_task(backend.start())
    await asyncio.sleep(0.2)
    await asyncio.wait_for(backend.aclose(), BOUND_S)
    with pytest.raises(BackendError, match="closed"):
        await starting


async def test_no_orphan(settings: EngineSettings) -> None:
    """An engine whose gateway is killed with SIGKILL exits by itself."""
    program = f"""
import asyncio, pathlib
from backends.local.client import LocalBackend
from backends.local.settings import EngineSettings
async def main():
    backend = LocalBackend(EngineSettings(
        pathlib.Path({str(settings.data_dir)!r}), model={settings.model!r}, threads=1))
    await backend.start()
    print(backend.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    root = str(Path(backends.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    gateway = subprocess.Popen(  # noqa: ASYNC220 (starting it is quick)
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with gateway:
        assert gateway.stdout is not None
        line = await asyncio.to_thread(gateway.stdout.readline)
        # The first line may be a log event; the number is what we print.
        while not line.strip().isdigit():
            assert line, "the gateway ended early"
            line = await asyncio.to_thread(gateway.stdout.readline)
        pid = int(line)
        assert alive(pid)
        gateway.kill()
    await until_dead(pid)


async def test_overflow_over_the_wire(backend: LocalBackend) -> None:
    """A prompt past the context fails with both numbers; the stream beside it goes on."""
    await backend.start()
    beside = asyncio.create_task(speak(backend.stream(turn())))
    with pytest.raises(BackendError) as caught:
        await speak(backend.stream(turn("word " * 2000, id="huge")))
    assert caught.value.code is BackendErrorCode.CONTEXT_OVERFLOW
    detail = caught.value.detail
    assert int(detail["prompt_tokens"]) > int(detail["context"]) == 4096
    text, _ = await beside
    assert text


async def test_unwritable_turn(backend: LocalBackend) -> None:
    """Text that is not Unicode is the caller's fault."""
    await backend.start()
    with pytest.raises(BackendError) as caught:
        await speak(backend.stream(turn("\ud800")))
    assert caught.value.code is BackendErrorCode.BAD_REQUEST


def test_import_is_light() -> None:
    """The gateway's side loads neither torch nor transformers nor numpy."""
    program = (
        "import sys, backends.local.client\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    root = str(Path(backends.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.stdout.strip() == "[]"
