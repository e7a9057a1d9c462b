"""What a person chooses of a chat, over a real socket: the greeting, the note, who they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from backends.api import Role
from gateway.app import serve
from gateway.protocol import (
    ChatOpen,
    ChatSet,
    ChatSnapshot,
    ChatUpdated,
    ChatUse,
    Subprotocol,
    TurnDone,
)
from gateway.testing import PromptedBackend, connected
from personas.persona import Note

if TYPE_CHECKING:
    from gateway.app import Server
    from gateway.config import Config
    from gateway.testing import Client

CARD = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "Wren",
        "description": "{{char}} keeps a mill.",
        "first_mes": "Mind the wheel, {{user}}.",
        "alternate_greetings": ["Flour or gossip?", "Again, {{user}}?"],
    },
}


@pytest.fixture
def config(config: Config) -> Config:
    """With a character who has three greetings."""
    path = config.data.folder / "personas" / "wren.json"
    path.write_text(json.dumps(CARD), encoding="utf-8")
    return config


async def spoken(client: Client, backend: PromptedBackend, chat: str, text: str) -> list[str]:
    """One whole turn; the texts of its prompt."""
    backend.say("So.")
    backend.finish()
    await client.say(chat, text)
    await client.until(TurnDone)
    return [message.text for message in backend.turns[-1].messages]


@pytest.mark.parametrize("subprotocol", Subprotocol)
async def test_note_and_person_reach_the_prompt(
    server: Server, backend: PromptedBackend, subprotocol: Subprotocol
) -> None:
    """What is given at the start and changed later stands in the next prompt, and in no earlier."""
    about = "{{user}} owes {{char}} a sack of flour."
    async with (
        connected(server.url, subprotocol) as ann,
        connected(server.url, subprotocol) as bob,
    ):
        opening = ChatOpen(id="a", persona="wren", user="Ann", about=about, note=Note("Be dry."))
        await ann.send(opening)
        opened = await ann.until(ChatSnapshot)
        assert (opened.user, opened.about, opened.note) == ("Ann", about, Note("Be dry."))
        await ann.send(opening)
        assert (await ann.until(ChatSnapshot)).chat == opened.chat
        await bob.subscribe(opened.chat)
        prompt = await spoken(ann, backend, opened.chat, "Good day.")
        assert "Ann: Ann owes Wren a sack of flour." in prompt
        assert "Be dry." in prompt

        # While a reply is spoken: it counts from the next turn on.
        await ann.say(opened.chat, "Tell me more.")
        change = ChatSet(
            id="s", chat=opened.chat, user="Bea", about="A thief.", note=Note("Whisper.", 0)
        )
        await ann.send(change)
        updated = await ann.until(ChatUpdated, re="s")
        assert (updated.user, updated.about, updated.note) == (
            "Bea",
            "A thief.",
            Note("Whisper.", 0),
        )
        assert (await bob.until(ChatUpdated)).about == "A thief."
        backend.say("No.")
        backend.finish()
        await ann.until(TurnDone)
        assert "Whisper." not in [m.text for m in backend.turns[-1].messages]
        prompt = await spoken(ann, backend, opened.chat, "Why?")
        assert "Bea: A thief." in prompt
        assert backend.turns[-1].messages[-1].role is Role.SYSTEM
        assert prompt[-1] == "Whisper."
        assert "Be dry." not in prompt

        # The same request again changes nothing, though the person changed it since.
        await bob.send(ChatSet(id="t", chat=opened.chat, note=Note("")))
        assert (await bob.until(ChatUpdated, re="t")).note is None
        await ann.send(change)
        again = await ann.until(ChatUpdated, re="s")
        assert (again.note, again.seq) == (None, None)
        assert "Whisper." not in await spoken(ann, backend, opened.chat, "Well?")


async def test_backend_is_chosen_once_a_request(server: Server) -> None:
    """A repeated `chat.use` is answered as the chat is now, and is no second event."""
    async with connected(server.url) as ann, connected(server.url) as bob:
        opened = await ann.open("wren")
        await bob.subscribe(opened.chat)
        use = ChatUse(id="u", chat=opened.chat, backend="prompted")
        await ann.send(use)
        first = await ann.until(ChatUpdated, re="u")
        assert (first.backend, first.seq) == ("prompted", opened.seq + 1)
        await ann.send(use)
        assert (await ann.until(ChatUpdated, re="u")).seq is None
        await ann.send(ChatSet(id="s", chat=opened.chat, about="a miller"))
        heard = [await bob.until(ChatUpdated) for _ in range(2)]
        assert [(e.seq, e.about) for e in heard] == [
            (opened.seq + 1, ""),
            (opened.seq + 2, "a miller"),
        ]


async def test_greeting_is_chosen_once(config: Config) -> None:
    """Any greeting may be chosen until something is said; it survives restarts, as all else."""
    backend = PromptedBackend()
    server = await serve(config, backend=backend)
    async with connected(server.url) as ann, connected(server.url) as bob:
        opened = await ann.open("wren", "Ann")
        assert [m.text for m in opened.greetings] == [
            "Mind the wheel, Ann.",
            "Flour or gossip?",
            "Again, Ann?",
        ]
        assert (opened.greeting, opened.messages) == (0, opened.greetings[:1])
        await bob.subscribe(opened.chat)
        await ann.send(ChatSet(id="g", chat=opened.chat, greeting=2, note=Note("Be dry.", 1)))
        assert (await ann.until(ChatUpdated, re="g")).greeting == 2
        heard = await bob.until(ChatUpdated)
        assert heard.greeting is not None
        assert heard.greetings[heard.greeting].text == "Again, Ann?"
        refused = await ann.refused(ChatSet(id="h", chat=opened.chat, greeting=3))
        assert (refused.code, refused.detail) == ("bad_field", {"field": "d.greeting"})
        refused = await ann.refused(ChatSet(id="h", chat="c_none", greeting=0))
        assert refused.code == "unknown_chat"
        async with (
            aiohttp.ClientSession(server.url) as web,
            web.get(f"/v1/chats/{opened.chat}/export?format=json") as answer,
        ):
            written = (await answer.json(content_type=None))["conversation"]
        assert written["head"] == opened.greetings[2].id
    await server.stop()

    server = await serve(config, backend=backend)
    async with connected(server.url) as ann:
        snapshot = await ann.subscribe(opened.chat)
        assert isinstance(snapshot, ChatSnapshot)
        assert (snapshot.greeting, snapshot.note) == (2, Note("Be dry.", 1))
        assert [m.text for m in snapshot.messages] == ["Again, Ann?"]
        await ann.send(ChatSet(id="n", chat=opened.chat, user="Bea"))
        named = await ann.until(ChatUpdated, re="n")
        assert named.greetings[2].text == "Again, Bea?"
        prompt = await spoken(ann, backend, opened.chat, "Good day.")
        assert prompt[1:] == ["Again, Bea?", "Be dry.", "Good day."]
        refused = await ann.refused(ChatSet(id="i", chat=opened.chat, about="x", greeting=0))
        assert refused.code == "chat_begun"
    await server.stop()

    server = await serve(config, backend=backend)
    async with connected(server.url) as ann:
        snapshot = await ann.subscribe(opened.chat)
        assert isinstance(snapshot, ChatSnapshot)
        assert (snapshot.greetings, snapshot.greeting, snapshot.about) == ((), None, "")
        assert (snapshot.user, snapshot.note) == ("Bea", Note("Be dry.", 1))
        assert [m.name for m in snapshot.messages] == ["Wren", "Bea", "Wren"]
    await server.stop()
