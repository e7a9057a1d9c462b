"""Outgoing HTTP: whatever a server does is one BackendError."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import BackendError, BackendErrorCode
from backends.transport import Transport, from_exception, from_status, parse, printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UNAVAILABLE, CUT = BackendErrorCode.UNAVAILABLE, BackendErrorCode.CUT
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@asynccontextmanager
async def saying(
    answer: bytes, tls: ssl.SSLContext | None = None, linger: bool = False
) -> AsyncIterator[str]:
    """A server that reads a request, says `answer` whatever it was, and resets or hangs up.

    It resets at once when the answer is empty, or as the next request comes when it lingers.
    """
    serving: set[asyncio.Future[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.get_running_loop().create_future()
        serving.add(done)
        with contextlib.suppress(OSError):
            await reader.read(65536)
            writer.write(answer)
            await writer.drain()
            if linger:
                await reader.read(65536)
            if linger or not answer:
                writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        done.set_result(None)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(5):
            await asyncio.gather(*serving)


async def read(transport: Transport) -> list[str]:
    """The data of the events that a POST gives within two seconds."""
    deadline = asyncio.get_running_loop().time() + 2
    events = transport.post_events("/x", {})
    said = []
    async with contextlib.aclosing(events):
        while (event := await transport.next_event(events, deadline)) is not None:
            said.append(event.data)
    return said


async def post(url: str) -> list[str]:
    """The same through a transport of its own."""
    transport = Transport(url, {})
    try:
        return await read(transport)
    finally:
        await transport.aclose()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"220 mail.example ESMTP\r\n", UNAVAILABLE),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Flood: 1\r\n" * 10_000 + b"\r\n", UNAVAILABLE),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", UNAVAILABLE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", UNAVAILABLE),
        (OK + b"Content-Length: 99\r\n\r\ndata: half", CUT),
        (b"HTTP/1.1 200 OK\r\nContent-Type: \xff;;=\r\n\r\n", CUT),
    ],
    ids=["not-http", "header-flood", "long-header", "bad-chunk", "short", "odd-type"],
)
async def test_broken_servers(answer: bytes, code: BackendErrorCode) -> None:
    """What is no good HTTP is a typed error, and never an end that looks whole."""
    async with saying(answer) as url:
        with pytest.raises(BackendError) as caught:
            await post(url)
    assert caught.value.code is code
    assert caught.value.message.isprintable()


async def test_reset_before_an_answer() -> None:
    """A connection that is reset before it answers is cut, and worth another try."""
    async with saying(b"") as url:
        with pytest.raises(BackendError) as caught:
            await post(url)
    assert (caught.value.code, caught.value.retryable) == (CUT, True)


async def test_no_connection_is_used_twice() -> None:
    """A server that drops a kept connection as the next request comes fails no request."""
    kept = OK + b"Connection: keep-alive\r\nContent-Length: 9\r\n\r\ndata: a\n\n"
    async with saying(kept, linger=True) as url:
        transport = Transport(url, {})
        for _ in range(3):
            assert await read(transport) == ["a"]
        await transport.aclose()


async def test_events_until_the_end() -> None:
    """Events come through until the connection ends; one that is half sent does not."""
    async with saying(OK + b"\r\ndata: a\n\ndata: b\n\ndata: half") as url:
        assert await post(url) == ["a", "b"]


async def test_no_tls_there() -> None:
    """https to a server without TLS is unavailable, and another try is of no use."""
    async with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        with pytest.raises(BackendError, match="does not speak TLS") as caught:
            await post(url.replace("http:", "https:"))
    assert (caught.value.code, caught.value.retryable) == (UNAVAILABLE, False)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
async def test_certificate_that_nobody_signed(tmp_path: Path) -> None:
    """A certificate that is not trusted is refused, and another try is of no use."""
    async with saying(OK + b"\r\n", self_signed(tmp_path)) as url:
        with pytest.raises(BackendError, match="certificate is not trusted") as caught:
            await post(url)
    assert (caught.value.code, caught.value.retryable) == (UNAVAILABLE, False)


def self_signed(folder: Path) -> ssl.SSLContext:
    """TLS with a fresh certificate that nobody signed."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-subj", "/CN=127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return tls


async def test_connecting_has_a_bound() -> None:
    """A host that lets nobody in is unavailable after `connect_s`."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # the queue of connections that nobody accepts
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(("127.0.0.1", port))
            transport = Transport(f"http://127.0.0.1:{port}", {}, connect_s=0.2)
            with pytest.raises(BackendError, match="does not answer") as caught:
                await transport.get_json("/x", 5)
            await transport.aclose()
    assert (caught.value.code, caught.value.retryable) == (UNAVAILABLE, True)


async def test_get_json_has_a_bound() -> None:
    """A JSON answer that does not come in time is a timeout; one that is no JSON is cut."""
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{") as url:
        transport = Transport(url, {})
        with pytest.raises(BackendError):
            await transport.get_json("/x", 0.2)
        await transport.aclose()
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>") as url:
        transport = Transport(url, {})
        with pytest.raises(BackendError, match="not JSON"):
            await transport.get_json("/x", 2)
        await transport.aclose()


async def test_closed_is_closed() -> None:
    """After aclose requests are refused, also when none was ever made."""
    transport = Transport("http://127.0.0.1:1", {})
    await transport.aclose()
    with pytest.raises(BackendError, match="closed"):
        await transport.get_json("/x", 1)


def test_unknown_names_may_be_tried_again() -> None:
    """A name that does not resolve is unavailable for now."""
    error = OSError(-2, "Name or service not known")
    key = aiohttp.client_reqrep.ConnectionKey("far.invalid", 80, False, True, None, None, None)
    said = from_exception(aiohttp.ClientConnectorDNSError(key, error))
    assert (said.code, said.retryable) == (UNAVAILABLE, True)
    assert "Name or service not known" in said.message


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7.0), ("0.5", 0.5), ("-1", None), ("nan", None), ("soon", None), ("1e9", None)],
)
async def test_retry_after(header: str, expected: float | None) -> None:
    """Retry-After counts in seconds; what is no time, or absurd, is left out."""
    head = f"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: {header}\r\n\r\n"
    async with saying(head.encode()) as url:
        with pytest.raises(BackendError) as caught:
            await post(url)
    assert caught.value.retry_after == expected


async def test_retry_after_a_date() -> None:
    """Retry-After may be a date; one that is past means now."""
    for ahead, low, high in ((60, 50, 61), (-60, 0, 0)):
        when = formatdate(time.time() + ahead, usegmt=True)
        head = f"HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: {when}\r\n\r\n"
        async with saying(head.encode()) as url:
            with pytest.raises(BackendError) as caught:
                await post(url)
        assert caught.value.retry_after is not None
        assert low <= caught.value.retry_after <= high


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["error", "message", "code", "type", "detail"]), inner)
    ),
    max_leaves=8,
)


@given(st.integers(201, 599), JSON)
def test_any_error_body_has_a_meaning(status: int, said: object) -> None:
    """Whatever the body of an error is, there is a short printable BackendError for it."""
    error = from_status(status, said)
    assert error.message.startswith(f"HTTP {status}")
    assert error.message.isprintable()
    assert len(error.message) < 400
    assert error.retryable == (status in (408, 429) or status >= 500)


def test_secrets_are_struck_out_before_the_words_are_cut() -> None:
    """No part of a secret is left where a server's words are cut short."""
    said = {"error": {"message": "x" * 295 + "sk-canary-0123"}}
    assert "sk-c" not in from_status(400, said, secrets=("sk-canary-0123",)).message


@given(st.text())
def test_printable_is(words: str) -> None:
    """A server's words are one printable line of at most 300 characters."""
    shown = printable(words)
    assert shown.isprintable()
    assert len(shown) <= 300


@pytest.mark.parametrize("body", ["", "{", "[" * 200_000, b"\xff\xfe"])
def test_what_is_no_json_is_cut(body: str | bytes) -> None:
    """Bytes that are no JSON, or nested without end, are a typed error."""
    with pytest.raises(BackendError) as caught:
        parse(body)
    assert caught.value.code is CUT
