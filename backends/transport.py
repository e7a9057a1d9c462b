"""Outgoing HTTP, shared by every remote backend: the one place that knows aiohttp's exceptions.

A foreign server may be slow, cut, hostile or wrong. Whatever it does comes out as one
`BackendError` whose code says whose fault it was; no redirect is followed and nothing is read
without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import aiohttp

from backends.errors import BackendError, BackendErrorCode
from backends.sse import EventTooLong, SseDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from backends.sse import Event

__all__ = ["Transport"]

BODY_BYTES = 4 << 20
ERROR_CHARS = 300


class Transport:
    """Requests to one server. `headers` may hold secrets: they are never logged nor in an error.

    `connect_s` bounds reaching the server, `first_s` the wait for the first byte of an answer, and
    `idle_s` every later wait.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        connect_s: float = 10.0,
        first_s: float = 120.0,
        idle_s: float = 60.0,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._headers = dict(headers)
        self._connect_s = connect_s
        self._first_s = first_s
        self._idle_s = idle_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def get_json(self, path: str) -> object:
        """The JSON body of a GET. Raises `BackendError`."""
        with _mapped():
            async with asyncio.timeout(self._first_s):
                async with self._open().get(self._base + path, allow_redirects=False) as answer:
                    body = await _read(answer)
                    _check_status(answer, body)
                    return _json(body)

    async def post_events(
        self, path: str, body: Mapping[str, object]
    ) -> AsyncGenerator[Event, None]:
        """The events of a POST's answer. Closing the generator closes the connection.

        Raises `BackendError`; a connection that ends is simply the end of the events, and the
        caller knows whether it came too early.
        """
        with _mapped():
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._first_s):
                    answer = await stack.enter_async_context(
                        self._open().post(self._base + path, json=dict(body), allow_redirects=False)
                    )
                    # Not released to the pool: a half-read stream is of use to nobody.
                    stack.callback(answer.close)
                    if answer.status != 200:
                        _check_status(answer, await _read(answer))
                    if answer.content_type != "text/event-stream":
                        raise BackendError(
                            BackendErrorCode.CUT,
                            f"the server answered {answer.content_type}, not an event stream",
                        )
                decoder = SseDecoder()
                wait = self._first_s
                while True:
                    try:
                        async with asyncio.timeout(wait):
                            chunk = await answer.content.readany()
                    except RuntimeError as error:  # how aiohttp says that `aclose` came between
                        raise BackendError(
                            BackendErrorCode.UNAVAILABLE, "the backend is closed"
                        ) from error
                    if not chunk:
                        return
                    wait = self._idle_s
                    for event in decoder.feed(chunk):
                        yield event

    async def aclose(self) -> None:
        """Closes every connection. Idempotent; later requests are refused."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed")
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s)
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=timeout,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """Foreign exceptions as ours, cause kept."""
    try:
        yield
    except TimeoutError as error:
        raise BackendError(
            BackendErrorCode.TIMEOUT, "the server did not answer in time", retryable=True
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise BackendError(
            BackendErrorCode.UNAVAILABLE,
            f"cannot reach the server: {error.os_error.strerror or 'no connection'}",
            retryable=True,
        ) from error
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
        raise BackendError(
            BackendErrorCode.CUT, "the server cut the connection", retryable=True
        ) from error
    except EventTooLong as error:
        raise BackendError(BackendErrorCode.CUT, f"the server sent {error}") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise BackendError(
            BackendErrorCode.UNAVAILABLE, f"the request failed: {type(error).__name__}"
        ) from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > BODY_BYTES:
            raise BackendError(
                BackendErrorCode.CUT, f"the server's answer is larger than {BODY_BYTES} bytes"
            )
    return bytes(body)


def _json(body: bytes) -> object:
    try:
        value: object = json.loads(body)
    except ValueError as error:
        raise BackendError(BackendErrorCode.CUT, "the server's answer is not JSON") from error
    return value


def _check_status(answer: aiohttp.ClientResponse, body: bytes) -> None:
    """Raises the `BackendError` that an HTTP status means."""
    status = answer.status
    if status == 200:
        return
    said, code = _error_text(body)
    text = f"HTTP {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        raise BackendError(BackendErrorCode.AUTH, text)
    if status == 429:
        after = _seconds(answer.headers.get("Retry-After", ""))
        raise BackendError(BackendErrorCode.RATE_LIMITED, text, retryable=True, retry_after=after)
    if status in (408, 504):
        raise BackendError(BackendErrorCode.TIMEOUT, text, retryable=True)
    if status == 413 or code == "context_length_exceeded" or "context" in said.lower():
        raise BackendError(BackendErrorCode.CONTEXT_OVERFLOW, text)
    if status >= 500:
        raise BackendError(BackendErrorCode.UNAVAILABLE, text, retryable=True)
    raise BackendError(BackendErrorCode.BAD_REQUEST, text)


def _error_text(body: bytes) -> tuple[str, str]:
    """The message and code of an OpenAI-shaped error body, printable and short."""
    try:
        error = json.loads(body)["error"]
        said, code = error["message"], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""
    printable = "".join(c if c.isprintable() else " " for c in str(said))
    return printable[:ERROR_CHARS], str(code)


def _seconds(header: str) -> float | None:
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86400 else None
