"""Outgoing HTTP, shared by every remote backend: the one place that knows aiohttp's exceptions.

A foreign server may be slow, cut, hostile or wrong. Whatever it does comes out as one
`BackendError` whose code says whose fault it was; no redirect is followed, nothing is unpacked,
and nothing is read without a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
from typing import TYPE_CHECKING

import aiohttp

from backends.errors import BackendError, BackendErrorCode
from backends.sse import EventTooLong, SseDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from backends.sse import Event

__all__ = ["Transport", "from_exception", "from_status", "parse", "printable"]

BODY_BYTES = 4 << 20
"""Most bytes of an answer that is read whole."""
STREAM_BYTES = 32 << 20
"""Most bytes of one event stream; the longest reply there may be takes about half of it."""
ERROR_CHARS = 300
"""Most characters of a server's own words in an error."""
SECRET_CHARS = 8
"""A key that is shorter is a placeholder such as `none`, and an ordinary word."""
CLOSED = "the backend is closed"


class Transport:
    """Requests to one server. `headers` may hold secrets: no log and no error shows them.

    `connect_s` bounds reaching the server: its name, the connection and TLS.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], *, connect_s: float = 10.0
    ) -> None:
        self._base = base_url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity"} | dict(headers)
        last_words = [word for value in headers.values() for word in value.split()[-1:]]
        self._secrets = tuple(word for word in last_words if len(word) >= SECRET_CHARS)
        self._connect_s = connect_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def get_json(self, path: str, within: float) -> object:
        """The JSON body of a GET, whole within so many seconds. Raises `BackendError`."""
        with self._translated():
            async with (
                asyncio.timeout(within),
                self._open().get(self._base + path, allow_redirects=False) as answer,
            ):
                body = await _read(answer)
                self._check(answer, body)
                return parse(body)

    async def post_events(
        self, path: str, body: Mapping[str, object]
    ) -> AsyncGenerator[Event, None]:
        """The events of a POST's answer. Closing the generator closes the connection.

        Raises `BackendError`; a connection that ends is simply the end of the events, and the
        caller knows whether it came too early. Read it with `next_event`, which knows the time.
        """
        with self._translated():
            async with self._open().post(
                self._base + path, json=dict(body), allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    self._check(answer, await _read(answer))
                _refuse_encoding(answer)
                if answer.content_type != "text/event-stream":
                    raise BackendError(
                        BackendErrorCode.CUT,
                        f"the server answered {printable(answer.content_type)}, no event stream",
                    )
                decoder = SseDecoder()
                size = 0
                while chunk := await answer.content.readany():
                    size += len(chunk)
                    if size > STREAM_BYTES:
                        raise _too_large(STREAM_BYTES)
                    for event in decoder.feed(chunk):
                        yield event

    async def next_event(
        self, events: AsyncGenerator[Event, None], deadline: float
    ) -> Event | None:
        """The next event, None at the end. `deadline` is in the event loop's time.

        Raises what the generator raises, and `BackendError` (TIMEOUT) past the deadline; the
        generator is closed then.
        """
        with self._translated():
            async with asyncio.timeout_at(deadline):
                return await anext(events, None)

    def failure(self, status: int, said: object, retry_after: float | None = None) -> BackendError:
        """What a status and a decoded error body mean, our own secrets struck out."""
        return from_status(status, said, retry_after, self._secrets)

    async def aclose(self) -> None:
        """Closes every connection. Idempotent; later requests are refused."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise BackendError(BackendErrorCode.UNAVAILABLE, CLOSED)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                # A fresh connection each: a kept one may be closed by the server just as a POST,
                # which must not be sent twice, goes out on it. No limit: whoever starts turns
                # has one, and here they would queue unseen.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_s),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    def _check(self, answer: aiohttp.ClientResponse, body: bytes) -> None:
        if answer.status == 200:
            return
        try:
            said = parse(body)
        except BackendError:
            said = None
        raise self.failure(answer.status, said, _seconds(answer.headers.get("Retry-After", "")))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Foreign exceptions as ours, cause kept."""
        try:
            yield
        except (aiohttp.ClientError, EventTooLong, OSError, RuntimeError) as error:
            if self._closed:
                raise BackendError(BackendErrorCode.UNAVAILABLE, CLOSED) from error
            if isinstance(error, RuntimeError):
                raise
            raise from_exception(error) from error


def from_exception(error: Exception) -> BackendError:
    """What an exception of aiohttp, of a socket or of the decoder means."""
    unavailable, cut = BackendErrorCode.UNAVAILABLE, BackendErrorCode.CUT
    match error:
        case aiohttp.ConnectionTimeoutError():
            return BackendError(
                unavailable, "cannot reach the server: it does not answer", retryable=True
            )
        case TimeoutError():
            return BackendError(
                BackendErrorCode.TIMEOUT, "the server did not answer in time", retryable=True
            )
        case aiohttp.ClientConnectorCertificateError():
            return BackendError(
                unavailable, "cannot reach the server: its certificate is not trusted"
            )
        case aiohttp.ClientConnectorSSLError():
            return BackendError(unavailable, "cannot reach the server: it does not speak TLS")
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or "no connection"
            return BackendError(
                unavailable, f"cannot reach the server: {printable(why)}", retryable=True
            )
        case EventTooLong():
            return BackendError(cut, f"the server sent {error}")
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return BackendError(cut, "the server cut the connection", retryable=True)
        case aiohttp.ClientResponseError():
            return BackendError(unavailable, "the server's answer is no valid HTTP")
        case _:
            return BackendError(unavailable, f"the request failed: {type(error).__name__}")


def from_status(
    status: int, said: object, retry_after: float | None = None, secrets: tuple[str, ...] = ()
) -> BackendError:
    """What an HTTP status other than 200 means.

    `said` is the decoded body of the error; `secrets` are struck out of what is quoted from it.
    """
    words, code = _described(said, secrets)
    text = f"HTTP {status}" + (f": {words}" if words else "")
    if status in (401, 403):
        # Servers like to quote the key that they refuse: their words are not repeated.
        return BackendError(BackendErrorCode.AUTH, f"HTTP {status}: the server refused our key")
    if status == 429:
        return BackendError(
            BackendErrorCode.RATE_LIMITED, text, retryable=True, retry_after=retry_after
        )
    if status in (408, 504):
        return BackendError(BackendErrorCode.TIMEOUT, text, retryable=True, retry_after=retry_after)
    if status == 413 or (status < 500 and _says_too_long(words, code)):
        return BackendError(BackendErrorCode.CONTEXT_OVERFLOW, text)
    if status >= 500:
        return BackendError(
            BackendErrorCode.UNAVAILABLE, text, retryable=True, retry_after=retry_after
        )
    if 300 <= status < 400:
        text = f"HTTP {status}: redirects are not followed; give the url where it leads"
    return BackendError(BackendErrorCode.BAD_REQUEST, text)


def parse(body: str | bytes) -> object:
    """The JSON that a server sent. Raises `BackendError` (CUT)."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BackendError(BackendErrorCode.CUT, "the server sent what is not JSON") from error
    return value


def printable(words: str) -> str:
    """A server's words, on one line, short and safe to print."""
    return "".join(c if c.isprintable() else " " for c in words[:ERROR_CHARS]).strip()


def _described(said: object, secrets: tuple[str, ...]) -> tuple[str, str]:
    """The words and the code of an error body, in the shapes that servers are known to use."""
    error = said.get("error", said) if isinstance(said, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return "", ""
    words = error.get("message") or error.get("detail")
    words = words if isinstance(words, str) else ""
    for secret in secrets:
        words = words.replace(secret, "***")
    return printable(words), f"{error.get('code')} {error.get('type')}"


def _says_too_long(words: str, code: str) -> bool:
    phrases = ("context length", "context window", "context size")
    return "context" in code or any(phrase in words.lower() for phrase in phrases)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    _refuse_encoding(answer)
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > BODY_BYTES:
            raise _too_large(BODY_BYTES)
    return bytes(body)


def _refuse_encoding(answer: aiohttp.ClientResponse) -> None:
    """Nothing packed is taken, so that nothing small unpacks to something huge."""
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise BackendError(BackendErrorCode.CUT, "the server packed its answer unasked")


def _too_large(limit: int) -> BackendError:
    return BackendError(BackendErrorCode.CUT, f"the server's answer is larger than {limit} bytes")


def _seconds(header: str) -> float | None:
    """Retry-After in seconds, from a number or a date; None when it is neither, or absurd."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
        seconds = max(0.0, seconds)
    return seconds if 0 <= seconds < 86400 else None
