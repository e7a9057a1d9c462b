"""A chat as a value that goes through files: its tree, and what its file said besides.

Our own format is the one that holds all of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from backends.api import Role, SampledTokens
from personas.conversation import ChatMessage, Conversation
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from personas.limits import Finding, ImportLimits
    from personas.persona import JsonValue

__all__ = ["FORMAT", "ChatFile", "branches", "dump", "from_json", "swipes", "to_json"]

FORMAT, _VERSION = "greenroom.chat", 1


@dataclass(frozen=True, slots=True)
class ChatFile:
    """A conversation, and what its file said that a conversation does not hold.

    `header` is the file's own, such as SillyTavern's first line. `lines` are its messages as they
    were written and `line_of` says which of them a message was read from; lines of no message are
    those that SillyTavern hides from its prompt.
    """

    conversation: Conversation
    format: str = FORMAT
    header: Mapping[str, JsonValue] = field(default_factory=lambda: MappingProxyType({}))
    lines: tuple[Mapping[str, JsonValue], ...] = ()
    line_of: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    findings: tuple[Finding, ...] = ()


def branches(conversation: Conversation) -> tuple[Conversation, ...]:
    """The same tree with heads that together show every message, for formats of one line.

    The conversation's own head comes first. Candidates of one message count as shown.
    """
    parents = {message.parent for message in conversation.messages}
    leaves = [m.id for m in reversed(conversation.messages) if m.id not in parents]
    heads = [conversation.head] if conversation.head is not None else []
    by_id = {message.id: message for message in conversation.messages}
    alike = swipes(conversation)
    shown: set[str] = set()
    found: list[Conversation] = []
    for head in [*heads, *leaves]:
        if head in shown:
            continue
        found.append(replace(conversation, head=head))
        at: str | None = head
        while at is not None and at not in shown:  # above what is shown all is shown
            message = by_id[at]
            shown |= {each.id for each in alike[message.parent, message.role, message.name]}
            at = message.parent
    return tuple(found)


def swipes(conversation: Conversation) -> dict[tuple[str | None, Role, str], list[ChatMessage]]:
    """By parent, role and name, oldest first: what one line of a file holds as swipes."""
    found: dict[tuple[str | None, Role, str], list[ChatMessage]] = {}
    for message in conversation.messages:
        found.setdefault((message.parent, message.role, message.name), []).append(message)
    return found


def to_json(chat: ChatFile) -> bytes:
    """Everything, the whole tree with sampled tokens and what the file it came from said."""
    conversation = chat.conversation
    messages: list[JsonValue] = []
    for said in conversation.messages:
        message: dict[str, JsonValue] = {
            "id": said.id,
            "parent": said.parent,
            "role": said.role.value,
            "name": said.name,
            "text": said.text,
        }
        if said.sampled is not None:
            ids: list[JsonValue] = [*said.sampled.ids]
            message["sampled"] = {"tokenizer": said.sampled.tokenizer, "ids": ids}
        messages.append(message)
    whole: dict[str, JsonValue] = {
        "format": FORMAT,
        "version": _VERSION,
        "conversation": {
            "id": conversation.id,
            "persona_id": conversation.persona_id,
            "persona_revision": conversation.persona_revision,
            "user": conversation.user,
            "head": conversation.head,
            "messages": messages,
        },
        "source": {
            "format": chat.format,
            "header": dict(chat.header),
            "lines": [dict(line) for line in chat.lines],
            "line_of": dict(chat.line_of),
        },
    }
    return dump(whole, indent=2) + b"\n"


def from_json(whole: Mapping[str, JsonValue], limits: ImportLimits) -> ChatFile:
    """A chat of our own format, decoded; read strictly. Raises `CardError`: `bad_chat`."""
    if whole.get("version") != _VERSION:
        raise CardError("bad_chat", f"version {whole.get('version')!r} of a chat is not read")
    written, source = whole.get("conversation"), whole.get("source")
    if not isinstance(written, dict) or not isinstance(source, dict):
        raise CardError("bad_chat", "the chat has no conversation and source", where="conversation")
    items, lines = written.get("messages"), source.get("lines")
    header, line_of = source.get("header"), source.get("line_of")
    if not isinstance(items, list) or len(items) > limits.chat_messages:
        raise CardError("bad_chat", "the chat has no list of messages, or too many")
    messages: dict[str, ChatMessage] = {}
    for number, item in enumerate(items):
        message = _own_message(item, f"messages.{number}")
        if message.id in messages or (
            message.parent is not None and message.parent not in messages
        ):
            raise CardError("bad_chat", "a message's id or parent is wrong", where=message.id)
        messages[message.id] = message
    head = written.get("head")
    if head is not None and (not isinstance(head, str) or head not in messages):
        raise CardError("bad_chat", "the head is no message", where="head")
    texts = [written.get(key) for key in ("id", "persona_id", "persona_revision", "user")]
    if not (
        all(isinstance(text, str) for text in texts)
        and isinstance(header, dict)
        and isinstance(lines, list)
        and isinstance(line_of, dict)
    ):
        raise CardError("bad_chat", "a field of the chat is missing", where="conversation")
    kept = tuple(line for line in lines if isinstance(line, dict))
    numbers = {key: n for key, n in line_of.items() if isinstance(n, int) and 0 <= n < len(kept)}
    id, persona_id, persona_revision, user = (str(text) for text in texts)
    conversation = Conversation(
        id=id,
        persona_id=persona_id,
        persona_revision=persona_revision,
        user=user,
        messages=tuple(messages.values()),
        head=head,
    )
    return ChatFile(conversation, str(source.get("format", FORMAT)), header, kept, numbers)


def _own_message(item: JsonValue, where: str) -> ChatMessage:
    if not isinstance(item, dict):
        raise CardError("bad_chat", "a message is no object", where=where)
    parent, role, sampled = item.get("parent"), item.get("role"), item.get("sampled")
    id, name, text = item.get("id"), item.get("name"), item.get("text")
    if (
        not (isinstance(id, str) and isinstance(name, str) and isinstance(text, str))
        or not (parent is None or isinstance(parent, str))
        or role not in tuple(Role)
    ):
        raise CardError("bad_chat", "a field of a message is missing or wrong", where=where)
    tokens = None
    if sampled is not None:
        ids = sampled.get("ids") if isinstance(sampled, dict) else None
        tokenizer = sampled.get("tokenizer") if isinstance(sampled, dict) else None
        if not isinstance(tokenizer, str) or not isinstance(ids, list):
            raise CardError("bad_chat", "sampled tokens are wrong", where=where)
        numbers = tuple(n for n in ids if isinstance(n, int) and not isinstance(n, bool))
        if len(numbers) != len(ids):
            raise CardError("bad_chat", "sampled tokens are no numbers", where=where)
        tokens = SampledTokens(tokenizer, numbers)
    return ChatMessage(id, parent, Role(str(role)), name, text, tokens)


def dump(whole: Mapping[str, JsonValue], indent: int | None = None) -> bytes:
    """JSON in UTF-8, also of text that has none."""
    # A lone surrogate has no UTF-8; JSON's own escape is what backslashreplace writes for it.
    return json.dumps(whole, ensure_ascii=False, indent=indent).encode(errors="backslashreplace")
