"""People talk with characters: a real server, a real socket, a backend on a leash."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backends.api import Finished, FinishReason, Role, SampledTokens, Timings, Usage
from backends.errors import BackendErrorCode
from backends.scripted import Script, ScriptedBackend
from gateway.app import Server, serve
from gateway.protocol import (
    ChatEvent,
    ChatSnapshot,
    ChatUnsubscribe,
    ErrorFrame,
    MessageStatus,
    Ping,
    Place,
    Pong,
    Subprotocol,
    TurnAccepted,
    TurnCancel,
    TurnCancelled,
    TurnCreate,
    TurnDelta,
    TurnDone,
    TurnFailed,
    TurnStarted,
)
from gateway.testing import Client, PromptedBackend, connected

if TYPE_CHECKING:
    from gateway.config import Config


def spoken(events: list[ChatEvent]) -> str:
    return "".join(e.text for e in events if isinstance(e, TurnDelta))


async def test_talk(server: Server, backend: PromptedBackend, persona: str) -> None:
    """A greeting, a question, a reply in pieces that fit, and the numbers under it."""
    async with connected(server.url) as client:
        chat = await client.open(persona, "Ann")
        [greeting] = chat.messages
        assert (greeting.role, greeting.status) == (Role.ASSISTANT, MessageStatus.COMPLETE)
        assert greeting.text == "Mind the third step, Ann."
        accepted = await client.say(chat.chat, "Who is 🚪 there?")
        assert accepted.user_message.text == "Who is 🚪 there?"
        assert accepted.user_message.name == "Ann"
        for word in ("Only ", "me 🐈", " and", " the cat."):
            backend.say(word)
        backend.finish(
            Finished(
                FinishReason.COMPLETE,
                Usage(20, 12, 6, (("host", 8), ("disk", 4)), "new_text"),
                Timings(decode_ms=50.0),
                SampledTokens("t", (1, 2, 3)),
            )
        )
        done = await client.end()
    assert isinstance(done, TurnDone)
    assert done.reason is FinishReason.COMPLETE
    assert done.message.text == spoken(client.events) == "Only me 🐈 and the cat."
    assert done.message.id == accepted.reply_id
    stats = done.message.stats
    assert stats is not None
    assert stats.ttft_ms > 0
    assert stats.tokens_per_s == 100.0
    assert stats.cached_by_tier == {"host": 8, "disk": 4}
    assert (stats.prompt_tokens, stats.cached_tokens, stats.miss) == (20, 12, "new_text")
    kinds = [type(e) for e in client.events if not isinstance(e, TurnDelta)]
    assert kinds == [TurnAccepted, TurnStarted, TurnDone]
    assert [e.seq for e in client.events] == list(range(1, len(client.events) + 1))
    off = 0
    for event in client.events:
        if isinstance(event, TurnDelta):
            assert event.off == off
            off += len(event.text.encode("utf-16-le")) // 2


async def test_sampled_ids_come_back(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """The ids that were sampled for a reply are in the next prompt, beside its message."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        await client.say(chat.chat, "One?")
        backend.say("One.")
        backend.finish(Finished(FinishReason.COMPLETE, sampled=SampledTokens("t", (7, 9))))
        await client.end()
        await client.say(chat.chat, "Two?")
        backend.say("Two.")
        backend.finish()
        await client.end()
    turn = backend.turns[1]
    by_text = dict(zip((m.text for m in turn.messages), turn.sampled, strict=True))
    assert by_text["One."] == SampledTokens("t", (7, 9))
    assert turn.conversation == chat.chat


async def test_stop(server: Server, backend: PromptedBackend, persona: str) -> None:
    """Stop ends the reply at once, keeps what was said, and the chat goes on."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        accepted = await client.say(chat.chat, "Tell me everything.")
        backend.say("In the beginning")
        await client.text("beginning")
        await client.stop(accepted)
        cancelled = await client.end()
        assert isinstance(cancelled, TurnCancelled)
        assert cancelled.message.text == "In the beginning"
        assert cancelled.message.status is MessageStatus.CANCELLED
        assert backend.open_streams == 0
        late = await client.refused(TurnCancel(id="x", chat=chat.chat, turn=accepted.turn))
        assert late.code == "turn_over"
        await client.say(chat.chat, "Go on.")
        backend.say("There was tea.")
        backend.finish()
        assert isinstance(await client.end(), TurnDone)
    assert "In the beginning" in [m.text for m in backend.turns[1].messages]


async def test_stop_before_the_first_word(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """A turn that was stopped before it said anything ends cancelled, with no text."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        accepted = await client.say(chat.chat, "Well?")
        await client.stop(accepted)
        cancelled = await client.end()
        assert isinstance(cancelled, TurnCancelled)
        assert cancelled.message.text == ""
        await client.say(chat.chat, "Hello?")
        backend.say("Yes.")
        backend.finish()
        done = await client.end()
    assert isinstance(done, TurnDone)
    asked = [m.text for m in backend.turns[-1].messages if m.role is Role.USER]
    assert asked[-2:] == ["Well?", "Hello?"]


async def test_reload(server: Server, backend: PromptedBackend, persona: str) -> None:
    """A new socket finds the whole chat, in the middle of a reply and after it."""
    async with connected(server.url) as client:
        chat = await client.open(persona, "Ann")
        accepted = await client.say(chat.chat, "Hello?")
        backend.say("Come 🐈 in")
        await client.text("in")
    async with connected(server.url) as client:
        middle = await client.subscribe(chat.chat)
        assert isinstance(middle, ChatSnapshot)
        assert middle.live is not None
        assert (middle.live.turn, middle.live.message) == (accepted.turn, accepted.reply_id)
        assert (middle.live.text, middle.live.off) == ("Come 🐈 in", 10)
        assert [m.text for m in middle.messages][1:] == ["Hello?"]
        backend.say(" and sit.")
        backend.finish()
        await client.end()
        assert spoken(client.events) == " and sit."
    async with connected(server.url) as client:
        after = await client.subscribe(chat.chat)
    assert isinstance(after, ChatSnapshot)
    assert after.live is None
    assert [m.text for m in after.messages][1:] == ["Hello?", "Come 🐈 in and sit."]
    assert (after.user, after.persona.id) == ("Ann", persona)


async def test_resume_without_gap_or_repeat(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """A socket that drops in the middle of a reply resumes exactly where it was."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        await client.say(chat.chat, "Count.")
        for word in ("one ", "two "):
            backend.say(word)
            await client.text(word)
        before = client.events
    backend.say("three ")
    async with connected(server.url) as watcher:  # has it been published yet?
        seen = await watcher.subscribe(chat.chat)
        assert isinstance(seen, ChatSnapshot)
        if seen.live is None or "three" not in seen.live.text:
            await watcher.text("three")
    last = before[-1]
    assert last.epoch is not None
    assert last.seq is not None
    async with connected(server.url) as client:
        first = await client.subscribe(chat.chat, Place(epoch=last.epoch, seq=last.seq))
        assert isinstance(first, TurnDelta)
        backend.say("four")
        backend.finish()
        done = await client.end()
        events = before + client.events
    assert isinstance(done, TurnDone)
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert spoken(events) == done.message.text == "one two three four"


async def test_resume_from_nowhere_is_a_snapshot(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """A place that the server does not have, or that missed nothing, is answered by a snapshot."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        for place in (
            Place(epoch="e_of_another_life", seq=3),
            Place(epoch=chat.epoch, seq=99),
            Place(epoch=chat.epoch, seq=chat.seq),
        ):
            assert isinstance(await client.subscribe(chat.chat, place), ChatSnapshot)


async def test_two_sockets_on_a_chat(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """Both sockets see the same events; either may stop; one that leaves hears no more."""
    async with connected(server.url) as one, connected(server.url, Subprotocol.MSGPACK) as two:
        chat = await one.open(persona)
        await two.subscribe(chat.chat)
        accepted = await one.say(chat.chat, "Hello?")
        backend.say("Hm.")
        await one.text("Hm.")
        await two.text("Hm.")
        await two.stop(accepted)
        assert isinstance(await one.end(), TurnCancelled)
        assert isinstance(await two.end(), TurnCancelled)
        assert [(e.seq, type(e)) for e in one.events] == [(e.seq, type(e)) for e in two.events]
        assert one.events[0].re is not None
        assert two.events[0].re is None
        await two.send(ChatUnsubscribe(chat=chat.chat))
        await two.send(Ping(n=1))
        await two.until(Pong)
        await one.say(chat.chat, "Again?")
        backend.say("Again.")
        backend.finish()
        await one.end()
        await two.send(Ping(n=2))
        assert await two.receive() == Pong(n=2)


async def test_two_turns_at_once(server: Server, backend: PromptedBackend, persona: str) -> None:
    """While a reply is spoken a second message is refused and not stored."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        first = await client.say(chat.chat, "One.")
        error = await client.refused(TurnCreate(id="two", chat=chat.chat, text="Two."))
        assert (error.code, error.chat) == ("turn_in_progress", chat.chat)
        assert error.detail == {"turn": first.turn}
        backend.say("Hm.")
        backend.finish()
        await client.end()
        after = await client.subscribe(chat.chat)
    assert isinstance(after, ChatSnapshot)
    assert [m.text for m in after.messages][1:] == ["One.", "Hm."]


async def test_two_sockets_race_for_a_turn(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """Of two messages that arrive together one is accepted and the other refused."""
    async with connected(server.url) as one, connected(server.url) as two:
        chat = await one.open(persona)
        await asyncio.gather(
            one.send(TurnCreate(id="one", chat=chat.chat, text="One.")),
            two.send(TurnCreate(id="two", chat=chat.chat, text="Two.")),
        )
        answers = [
            await client.until(TurnAccepted, ErrorFrame, re=name)
            for client, name in ((one, "one"), (two, "two"))
        ]
        assert sorted(type(a).__name__ for a in answers) == ["ErrorFrame", "TurnAccepted"]
    assert len(server.parts.chats.live()[0].chat.turns) == 1


async def test_repeated_request(server: Server, backend: PromptedBackend, persona: str) -> None:
    """A repeated id gets the first answer, during the reply, after it and on another socket."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        first = await client.say(chat.chat, "Once.", "the-id")
        during = await client.say(chat.chat, "Once.", "the-id")
        backend.say("Only once.")
        backend.finish()
        await client.end()
        after = await client.say(chat.chat, "Other text.", "the-id")
    async with connected(server.url) as other:
        elsewhere = await other.say(chat.chat, "Once.", "the-id")
    for repeated in (during, after, elsewhere):
        assert (repeated.turn, repeated.reply_id) == (first.turn, first.reply_id)
        assert repeated.user_message == first.user_message
        assert (repeated.epoch, repeated.seq) == (None, None)
    assert len(backend.turns) == 1


async def test_repeated_open(server: Server, persona: str) -> None:
    """chat.open with the same id again is the same chat, not a second one."""
    from gateway.protocol import ChatOpen

    async with connected(server.url) as client:
        chats = set()
        for _ in range(2):
            await client.send(ChatOpen(id="open-1", persona=persona))
            chats.add((await client.until(ChatSnapshot, re="open-1")).chat)
        await client.send(ChatOpen(id="open-1", persona=persona, user="Someone else"))
        chats.add((await client.until(ChatSnapshot, re="open-1")).chat)
    assert len(chats) == 2


@pytest.mark.parametrize("pieces", [[], ["Half of "]])
async def test_backend_fails(
    server: Server, backend: PromptedBackend, persona: str, pieces: list[str]
) -> None:
    """A backend that breaks fails the turn with its code, keeps the text, and the chat goes on."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        await client.say(chat.chat, "Hello?")
        for piece in pieces:
            backend.say(piece)
        backend.fail(BackendErrorCode.CRASHED)
        failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert (failed.error.code, failed.error.retry_after_ms) == ("crashed", 2000)
        assert failed.error.retryable
        assert failed.message.text == "".join(pieces)
        assert failed.message.status is MessageStatus.FAILED
        assert failed.message.stats is None
        await client.say(chat.chat, "And now?")
        backend.say("Better.")
        backend.finish()
        assert isinstance(await client.end(), TurnDone)
        again = await client.subscribe(chat.chat)
    assert isinstance(again, ChatSnapshot)
    assert [m.status for m in again.messages][2] is MessageStatus.FAILED


async def test_scripted_backend_cut(config: Config) -> None:
    """The shipped double's fault arrives as a failed turn with the partial kept on disk."""
    backend = ScriptedBackend(Script(lines=("one two three",), delay=0, fail_after=2))
    server = await serve(config, backend=backend)
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Go.")
            failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert failed.error.code == "cut"
        stored = await server.parts.history.load(chat.chat)
        assert stored
        assert stored.messages[-1].text == failed.message.text == "one two"
    finally:
        await server.stop()


async def test_prompt_too_long(config: Config) -> None:
    """A persona that does not fit the model's context fails the turn with the numbers."""
    server = await serve(config, backend=PromptedBackend(context=230))
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Hello?")
            failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert failed.error.code == "prompt_too_long"
        needed, room = failed.error.detail["needed"], failed.error.detail["room"]
        assert isinstance(needed, int)
        assert isinstance(room, int)
        assert needed > room
    finally:
        await server.stop()


async def test_subprotocols_are_equal(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """The same talk over JSON and over msgpack gives the same events."""
    talks: list[list[ChatEvent]] = []
    for subprotocol in Subprotocol:
        async with connected(server.url, subprotocol) as client:
            chat = await client.open(persona)
            await client.say(chat.chat, "Hello?")
            await client.until(TurnStarted)
            backend.say("Tea 🍵?")
            await client.text("?")
            backend.finish()
            await client.end()
            talks.append(client.events)
    one, two = talks
    assert [(type(e), e.seq) for e in one] == [(type(e), e.seq) for e in two]
    assert spoken(one) == spoken(two) == "Tea 🍵?"


async def test_replies_side_by_side(config: Config) -> None:
    """Twenty chats speak at the same time and none loses or mixes a word."""
    backend = ScriptedBackend(Script(lines=("one two three four five",), delay=0.002))
    server = await serve(config, backend=backend)

    async def talk(client: Client, persona: str) -> str:
        chat = await client.open(persona)
        await client.say(chat.chat, "Go.")
        done = await client.end()
        assert isinstance(done, TurnDone)
        assert spoken(client.events) == done.message.text
        return done.message.text

    try:

        async def one() -> str:
            async with connected(server.url) as client:
                return await talk(client, "tess")

        texts = await asyncio.gather(*(one() for _ in range(20)))
        assert set(texts) == {"one two three four five"}
    finally:
        await server.stop()


async def test_stop_with_the_message(
    server: Server, backend: PromptedBackend, persona: str
) -> None:
    """A stop that comes the moment a turn is accepted still ends it."""
    async with connected(server.url) as client, connected(server.url) as other:
        chat = await client.open(persona)
        await other.subscribe(chat.chat)
        for n in range(20):
            await client.send(TurnCreate(id=f"r{n}", chat=chat.chat, text="Hi"))
            await other.stop(await other.until(TurnAccepted))
            assert isinstance(await client.end(), TurnCancelled)
    assert backend.open_streams == 0
