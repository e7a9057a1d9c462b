"""The scripted backend keeps the contract, and fails when its script says so."""

from __future__ import annotations

import pytest

from backends.api import Backend, Finished, FinishReason, Sampling, TextDelta
from backends.errors import BackendError, BackendErrorCode
from backends.scripted import Script, ScriptedBackend, words
from backends.testing import BackendContract, speak, turn


class TestContract(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return ScriptedBackend(Script(delay=0.001))


async def test_speaks_the_line() -> None:
    """The first reply is the first line, whole."""
    text, events = await speak(ScriptedBackend(Script(("a b  c.\n",), delay=0)).stream(turn()))
    assert text == "a b  c.\n"
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.COMPLETE


async def test_length() -> None:
    """A reply longer than max_tokens ends as length."""
    backend = ScriptedBackend(Script(("one two three",), delay=0))
    text, events = await speak(backend.stream(turn(sampling=Sampling(max_tokens=2))))
    assert text == "one two"
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH


async def test_stop() -> None:
    """The reply ends before the first stop string, wherever that lies in a word."""
    backend = ScriptedBackend(Script(("one two three",), delay=0))
    sampling = Sampling(stop=("ree", "wo t", "four"))
    text, events = await speak(backend.stream(turn(sampling=sampling)))
    assert text == "one t"
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.COMPLETE


@pytest.mark.parametrize("after", [0, 2, 99])
async def test_fault(after: int) -> None:
    """fail_after raises the named failure after that many words, also past the last one."""
    backend = ScriptedBackend(Script(("one two three",), delay=0, fail_after=after))
    spoken: list[str] = []

    async def listen() -> None:
        async for event in backend.stream(turn()):
            assert isinstance(event, TextDelta)
            spoken.append(event.text)

    with pytest.raises(BackendError) as caught:
        await listen()
    assert caught.value.code is BackendErrorCode.CUT
    assert len(spoken) == min(after, 3)
    assert backend.live == 0


async def test_context_overflow() -> None:
    """A prompt past the context is refused with both numbers."""
    with pytest.raises(BackendError) as caught:
        await speak(ScriptedBackend(Script(context=3)).stream(turn()))
    assert caught.value.code is BackendErrorCode.CONTEXT_OVERFLOW
    assert caught.value.detail["context"] == 3


@pytest.mark.parametrize("text", ["", " a", "a ", "a  b\n\nc", "  "])
def test_words_join_back(text: str) -> None:
    """Joining the words gives the text back."""
    assert "".join(words(text)) == text


def test_script_refuses_nonsense() -> None:
    """An empty script and a negative delay are refused."""
    with pytest.raises(ValueError, match="lines"):
        Script(lines=())
    with pytest.raises(ValueError, match="delay"):
        Script(delay=-1)
