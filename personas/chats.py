"""Chats in and out: SillyTavern's lines, CAI Tools, text-generation-webui, our own, plain text.

A `ChatFile` keeps beside the conversation what it has no place for, line by line, so that a chat
of SillyTavern goes out as it came in, with what was said since.
"""

from __future__ import annotations

import html
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from backends.api import Role
from personas.chatfile import (
    FORMAT,
    ChatFile,
    branches,
    dump,
    from_json,
    swipes,
    to_json,
)
from personas.conversation import ChatMessage, Conversation
from personas.jsontext import decode_text, load_json
from personas.limits import Findings, ImportLimits
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from personas.persona import JsonValue

__all__ = [
    "ChatFile",
    "branches",
    "read_chats",
    "to_cai_tools",
    "to_json",
    "to_jsonl",
    "to_text",
    "to_webui",
]

_BEGIN = "<|BEGIN-VISIBLE-CHAT|>"
_FATAL = frozenset({"too_large", "too_deep", "too_many_values"})


class _Said(NamedTuple):
    """One message with all its candidates; `chosen` is the one that is shown."""

    role: Role
    name: str
    texts: tuple[str, ...]
    chosen: int


def read_chats(
    raw: bytes,
    *,
    persona_id: str = "",
    persona_revision: str = "",
    new_id: Callable[[], str] | None = None,
    limits: ImportLimits | None = None,
) -> tuple[ChatFile, ...]:
    """The chats of a file: several from CAI Tools, else one.

    Swipes become candidates, the shown one is on the line to the head. `new_id` names messages and
    conversations, by default `1`, `2`, … in this file. Lines that are no JSON are findings. The
    persona's id and revision are given to chats that do not name their own. Raises `CardError`:
    `too_large`, `too_deep`, `too_many_values`, `too_many_messages`, `bad_json`, `bad_encoding`,
    `bad_chat`.
    """
    limits = limits or ImportLimits()
    if len(raw) > limits.file_bytes:
        raise CardError("too_large", f"the chat has more than {limits.file_bytes} bytes")
    numbers = count(1)
    build = _Builder(persona_id, persona_revision, new_id or (lambda: str(next(numbers))), limits)
    text = decode_text(raw)
    first, _, more = text.strip().partition("\n")
    findings = Findings()
    try:
        head = load_json(first.encode(errors="backslashreplace"), limits, Findings())[0]
    except CardError:
        head = None
    if head is not None and (more.strip() or head.keys() & {"mes", "user_name", "chat_metadata"}):
        return (build.jsonl(text, findings),)
    try:
        whole, _ = load_json(raw, limits, findings)
    except CardError as error:
        if error.code != "bad_json" or not more:
            raise
        return (build.jsonl(text, Findings()),)  # lines of which the first is broken
    if whole.get("format") == FORMAT:
        return (replace(from_json(whole, limits), findings=findings.done()),)
    if isinstance(pairs := whole.get("internal", whole.get("data")), list):
        return (build.webui(whole, pairs, findings),)
    if chats := _histories(whole):
        return tuple(build.cai_tools(whole, chat, findings) for chat in chats)
    raise CardError("bad_chat", "the file is no chat of a program known here")


def to_jsonl(chat: ChatFile) -> bytes:
    """SillyTavern's lines for the line to the head, candidates of replies as swipes.

    A message that is as it was read is written value for value; so are the header and the lines
    that were hidden. Other branches: see `branches`.
    """
    conversation = chat.conversation
    path = conversation.path()
    char = next((m.name for m in path if m.role is Role.ASSISTANT), "")
    header: dict[str, JsonValue] = {
        "user_name": conversation.user,
        "character_name": char,
        "create_date": "",
        "chat_metadata": {},
    }
    if chat.format == "sillytavern":
        header = dict(chat.header)
    lines = [header] if header else []
    mapped = set(chat.line_of.values())
    alike = swipes(conversation)

    def hidden_from(number: int) -> Iterator[dict[str, JsonValue]]:
        while number < len(chat.lines) and number not in mapped:
            yield dict(chat.lines[number])
            number += 1

    lines += hidden_from(0)
    for message in path:
        number = chat.line_of.get(message.id)
        written = chat.lines[number] if number is not None else {}
        lines.append(_line(message, alike[message.parent, message.role, message.name], written))
        if number is not None:
            lines += hidden_from(number + 1)
    return b"".join(dump(line) + b"\n" for line in lines)


def to_webui(chat: ChatFile) -> bytes:
    """text-generation-webui's pairs for the line to the head; `visible` is escaped for HTML."""
    pairs: list[tuple[str, str]] = []
    waiting: str | None = None
    for message in chat.conversation.path():
        if message.role is Role.USER:
            if waiting is not None:
                pairs.append((waiting, ""))
            waiting = message.text
        elif message.role is Role.ASSISTANT:
            nothing = "" if pairs else _BEGIN
            pairs.append((nothing if waiting is None else waiting, message.text))
            waiting = None
    if waiting is not None:
        pairs.append((waiting, ""))
    visible = [["" if part == _BEGIN else html.escape(part) for part in pair] for pair in pairs]
    kept = dict(chat.header) if chat.format == "text-generation-webui" else {}
    kept = {key: value for key, value in kept.items() if key not in ("data", "data_visible")}
    whole: dict[str, JsonValue] = {**kept, "internal": [[*pair] for pair in pairs]}
    whole["visible"] = [[*pair] for pair in visible]
    return dump(whole, indent=2) + b"\n"


def to_cai_tools(chat: ChatFile) -> bytes:
    """CAI Tools' history for the line to the head."""
    messages: list[JsonValue] = [
        {"src": {"is_human": message.role is Role.USER, "name": message.name}, "text": message.text}
        for message in chat.conversation.path()
    ]
    return dump({"histories": {"histories": [{"msgs": messages}]}}, indent=2) + b"\n"


def to_text(conversation: Conversation) -> str:
    """The line to the head for people: a name, what was said, an empty line."""
    return "\n\n".join(f"{said.name}: {said.text}" for said in conversation.path()) + "\n"


class _Builder:
    """Makes conversations out of what was said."""

    def __init__(
        self, persona_id: str, revision: str, new_id: Callable[[], str], limits: ImportLimits
    ) -> None:
        self._persona = (persona_id, revision)
        self._new_id = new_id
        self._limits = limits

    def jsonl(self, text: str, findings: Findings) -> ChatFile:
        if text.count("\n") > self._limits.chat_messages:
            message = f"the chat has more than {self._limits.chat_messages} lines"
            raise CardError("too_many_messages", message)
        header: dict[str, JsonValue] = {}
        lines: list[dict[str, JsonValue]] = []
        said: list[tuple[_Said, int | None]] = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                raw = line.encode(errors="backslashreplace")
                read, _ = load_json(raw, self._limits, findings)
            except CardError as error:
                if error.code in _FATAL:
                    raise
                findings.add("bad_line", f"skipped: {error.message}", where=f"line {number}")
                continue
            if not header and not lines and "mes" not in read:
                header = read
                continue
            spoken = _said(read)
            if spoken is None or read.get("is_system") is True:
                findings.add("hidden", "kept, not part of the chat", where=f"line {number}")
            else:
                said.append((spoken, len(lines)))
            lines.append(read)
        user = _text(header.get("user_name")) or next(
            (each.name for each, _ in said if each.role is Role.USER), "User"
        )
        return self._chat("sillytavern", user, said, header, tuple(lines), findings)

    def webui(
        self, whole: dict[str, JsonValue], pairs: list[JsonValue], findings: Findings
    ) -> ChatFile:
        user, char = _text(whole.get("name1")) or "User", _text(whole.get("name2")) or "Character"
        said: list[tuple[_Said, int | None]] = []
        for number, pair in enumerate(pairs):
            if not isinstance(pair, list) or len(pair) != 2:
                findings.add("bad_line", "skipped: no pair of texts", where=f"pair {number}")
                continue
            roles = (Role.USER, user), (Role.ASSISTANT, char)
            for (role, name), text in zip(roles, pair, strict=True):
                if isinstance(text, str) and text and text != _BEGIN:
                    said.append((_Said(role, name, (text,), 0), None))
        header = {key: value for key, value in whole.items() if key not in ("internal", "visible")}
        return self._chat("text-generation-webui", user, said, header, (), findings)

    def cai_tools(
        self, whole: dict[str, JsonValue], chat: dict[str, JsonValue], findings: Findings
    ) -> ChatFile:
        character = whole.get("character")
        named = _text(character.get("name")) if isinstance(character, dict) else ""
        said: list[tuple[_Said, int | None]] = []
        messages = chat.get("msgs")
        user = "User"
        for number, item in enumerate(messages if isinstance(messages, list) else []):
            source = item.get("src") if isinstance(item, dict) else None
            text = item.get("text") if isinstance(item, dict) else None
            if not isinstance(source, dict) or not isinstance(text, str):
                findings.add("bad_line", "skipped: no message", where=f"message {number}")
                continue
            human = source.get("is_human") is True
            name = _text(source.get("name"))
            if human:
                user = name or user
            role = Role.USER if human else Role.ASSISTANT
            name = name or (user if human else named or "Character")
            said.append((_Said(role, name, (text,), 0), None))
        header = {key: value for key, value in chat.items() if key != "msgs"}
        return self._chat("cai-tools", user, said, header, (), findings)

    def _chat(
        self,
        format: str,
        user: str,
        said: list[tuple[_Said, int | None]],
        header: dict[str, JsonValue],
        lines: tuple[dict[str, JsonValue], ...],
        findings: Findings,
    ) -> ChatFile:
        if not said and not header:
            raise CardError("bad_chat", "the file has no message")
        messages: list[ChatMessage] = []
        line_of: dict[str, int] = {}
        head: str | None = None
        for (role, name, texts, chosen), number in said:
            if len(messages) + len(texts) > self._limits.chat_messages:
                most = self._limits.chat_messages
                raise CardError("too_many_messages", f"the chat has more than {most} messages")
            siblings = [ChatMessage(self._new_id(), head, role, name, text) for text in texts]
            messages += siblings
            if number is not None:
                line_of |= {sibling.id: number for sibling in siblings}
            head = siblings[chosen].id
        persona_id, revision = self._persona
        conversation = Conversation(
            self._new_id(), persona_id, revision, user, tuple(messages), head
        )
        return ChatFile(conversation, format, header, lines, line_of, findings.done())


def _said(line: Mapping[str, JsonValue]) -> _Said | None:
    """What a line of SillyTavern says, or of Chub, which nests the texts; None for nothing."""
    shown = _nested(line.get("mes"))
    if shown is None:
        return None
    swipes = line.get("swipes")
    texts = [_nested(swipe) for swipe in swipes] if isinstance(swipes, list) else []
    known = [text for text in texts if text is not None]
    number = line.get("swipe_id")
    if not known or len(known) != len(texts):
        known, chosen = [shown], 0
    elif isinstance(number, int) and 0 <= number < len(known):
        chosen = int(number)
        known[chosen] = shown  # an edit that did not reach the swipes: what is shown counts
    else:
        chosen = known.index(shown) if shown in known else 0
        known[chosen] = shown
    role = Role.USER if line.get("is_user") is True else Role.ASSISTANT
    return _Said(role, _text(line.get("name")), tuple(known), chosen)


def _line(
    message: ChatMessage, alike: list[ChatMessage], written: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """The line of a message: as it was written, where it still says that."""
    texts, chosen = tuple(each.text for each in alike), alike.index(message)
    if written and _said(written) == _Said(message.role, message.name, texts, chosen):
        return dict(written)
    line: dict[str, JsonValue] = dict(written) or {"send_date": "", "extra": {}}
    line |= {
        "name": message.name,
        "is_user": message.role is Role.USER,
        "is_system": False,
        "mes": message.text,
    }
    if len(texts) > 1 or "swipes" in line:
        infos = line.get("swipe_info")
        known = infos[: len(texts)] if isinstance(infos, list) else []
        line["swipe_id"], line["swipes"] = chosen, [*texts]
        line["swipe_info"] = [*known, *({} for _ in range(len(texts) - len(known)))]
    return line


def _histories(whole: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
    found: JsonValue = whole.get("histories")
    if isinstance(found, dict):
        found = found.get("histories")
    if found is None and "msgs" in whole:
        return [dict(whole)]
    return [chat for chat in found if isinstance(chat, dict)] if isinstance(found, list) else []


def _nested(value: JsonValue) -> str | None:
    if isinstance(value, dict):
        value = value.get("message")
    return value if isinstance(value, str) else None


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""
