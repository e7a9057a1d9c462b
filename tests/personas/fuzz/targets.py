"""What is fuzzed: each target takes any bytes, and may end in nothing worse than a `PersonaError`.

A target does not stop at reading: what was read is exported and read again, linted and rendered,
for a card that breaks the prompt of a chat is worse than one that is refused. `SEEDS` are sound
files that the mutations begin with. Limits are small, so that a bomb shows at a small size.
"""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backends.api import Role, Sampling
from personas import chats, exporter
from personas.binding import bind
from personas.card import read_card
from personas.conversation import ChatMessage, Conversation
from personas.importer import ImportedBook, read_any
from personas.limits import ImportLimits
from personas.lint import check
from personas.lorebook import Lore
from personas.lorebook_keys import Key, KeyIndex
from personas.lorebook_reading import read_lore
from personas.lorebook_watch import Watch
from personas.macros import draws, expand, tells_time
from personas.persona import Persona, PersonaError
from personas.prompt import Budget, Plan
from tests.personas import makers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from personas.importer import ImportedCard
    from personas.persona import JsonValue

__all__ = ["LIMITS", "SEEDS", "TARGETS"]

LIMITS = ImportLimits(
    file_bytes=1 << 20,
    json_bytes=1 << 19,
    json_values=20_000,
    yaml_bytes=1 << 15,
    lore_entries=400,
    png_chunks=500,
    chunk_bytes=1 << 19,
    inflated_bytes=1 << 21,
    ratio_floor=1 << 17,
    zip_entries=100,
    zip_entry_bytes=1 << 20,
    chat_messages=2_000,
    pixels=1 << 18,
    avatar_side=128,
)
ROOM = 1 << 18  # characters that the macros of one text may add
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def card(raw: bytes) -> None:
    """Any file at all."""
    with contextlib.suppress(PersonaError):
        imported = read_any(raw, filename="some.card", limits=LIMITS)
        if isinstance(imported, ImportedBook):
            json.dumps(imported.book)
            ada = read_card(makers.card(), id="ada").persona
            use(read_card(exporter.to_json(bind(ada, imported)), id="ada").persona)
        else:
            taken(imported)


def taken(imported: ImportedCard) -> None:
    """What a library does with a card: exports it, which loses nothing, and speaks as it."""
    persona = imported.persona
    check(persona, imported.report, len)
    whole = exporter.to_json(persona)
    again = read_card(whole, id=persona.id).persona
    assert exporter.to_json(again) == whole, "the export of an export is another one"
    assert texts(again) == texts(persona), "an export lost a text"
    assert again.lore == persona.lore, "an export changed the lore"
    exporter.losses(persona)
    v2 = read_card(exporter.to_json(persona, version=2), id=persona.id).persona
    assert texts(v2) == texts(persona), "V2 lost a text that it has a field for"
    if imported.avatar is not None:
        read_any(exporter.to_png(persona, imported.avatar), limits=LIMITS)
    use(persona)


def texts(persona: Persona) -> tuple[object, ...]:
    return (
        persona.name,
        persona.description,
        persona.personality,
        persona.scenario,
        persona.greeting,
        persona.alternate_greetings,
        persona.examples,
        persona.system_prompt,
        persona.post_history_instructions,
        persona.creator_notes,
        persona.tags,
    )


def use(persona: Persona) -> None:
    """A short chat that says the keys of the lore, with and without room for all of it."""
    keys = [key for book in persona.lore for entry in book.entries[:20] for key in entry.keys[:2]]
    conversation = Conversation("c", persona.id, persona.revision, "Sam")
    said = [persona.greeting or "Hello.", " ".join(keys)[:2_000] or "Hi.", "Well.", "And?"]
    for number, text in enumerate(said):
        role = (Role.ASSISTANT, Role.USER)[number % 2]
        head = conversation.head
        conversation = conversation.say(ChatMessage(f"m{number}", head, role, "Sam", text))
    plan = Plan(persona, conversation, now=NOON)
    costs = {text: 4 + len(text) // 4 for text in plan.texts}
    for context in (1 << 20, 2_000):
        with contextlib.suppress(PersonaError):  # a scene that is too long for a small model
            plan.render(
                turn_id="t", tenant="t", sampling=Sampling(), budget=Budget(context, 50, costs)
            )


def chat(raw: bytes) -> None:
    """Any file of chats."""
    with contextlib.suppress(PersonaError):
        for found in chats.read_chats(raw, limits=LIMITS):
            chats.to_text(found.conversation)
            chats.to_webui(found)
            chats.read_chats(chats.to_jsonl(found), limits=LIMITS)
            (again,) = chats.read_chats(chats.to_json(found), limits=LIMITS)
            assert again.conversation == found.conversation, "our own file lost something"


def macros(raw: bytes) -> None:
    """Any text with macros: the same twice, and never much longer."""
    text = raw.decode(errors="replace")
    values = {"char": "Ada", "user": "Sam", "description": "A clockmaker. " * 20}
    tells_time(text)
    draws(text)
    found = []
    for scan in (False, True, True):
        variables: dict[str, str] = {}
        made = expand(text, values, seed="c", variables=variables, now=NOON, scan=scan)
        assert len(made) <= len(text) + ROOM, "the macros added too much"
        assert sum(map(len, variables.values())) <= 1 << 22, "the variables hold too much"
        found.append(made)
    assert found[1] == found[2], "a frozen macro was drawn again"
    expand(text, values, seed=None)


def keys(raw: bytes) -> None:
    """Keys, one a line, and after an empty line the text that they are looked for in."""
    written, _, text = raw.decode(errors="replace").partition("\n\n")
    found = [
        Key(
            line, regex=number % 4 == 3, case_sensitive=number % 3 == 1, whole_words=number % 5 == 2
        )
        for number, line in enumerate(filter(None, written.split("\n")[:200]))
    ]
    index = KeyIndex(found)
    there = index.find(text)
    assert not there & index.broken.keys(), "a pattern that cannot run matched"
    for number, key in enumerate(found):
        if not key.is_pattern and not key.whole_words:
            plain = key.text in text if key.case_sensitive else key.text.lower() in text.lower()
            assert plain == (number in there), f"{key} is there, or is not"


def lorebook(raw: bytes) -> None:
    """Any JSON as a lorebook, followed through a chat of its own keys and texts."""
    try:
        value: JsonValue = json.loads(raw)
    except (ValueError, RecursionError):
        return
    read = read_lore({"character_book": value, "extensions": {"depth_prompt": value}}, "data.")
    lore = Lore(read.books)
    watch = Watch(lore, seed="c", greeting=0, fields={"description": "gate"})
    for number in range(8):
        spoken = [f"{entry.keys} {entry.content}" for _, entry in lore.entries[number::8]]
        watch.hear(" ".join(spoken)[:20_000], reply=number % 2 == 0)
        turnout = watch.turn()
        assert len(turnout.active) <= 256, "more entries came in than may"


BOOK: dict[str, JsonValue] = {
    "name": "places",
    "scan_depth": 3,
    "token_budget": 300,
    "recursive_scanning": True,
    "extensions": {},
    "entries": [
        {
            "keys": ["gate", "/wall(s)?/i", "{{char}}"],
            "secondary_keys": ["key", "lock"],
            "content": "@@depth 2\n@@role user\n@@@unknown 1\nThe gate has a lock. {{random:a,b}}",
            "enabled": True,
            "selective": True,
            "insertion_order": 10,
            "constant": False,
            "priority": 5,
            "use_regex": False,
            "extensions": {
                "position": 4,
                "depth": 2,
                "role": 1,
                "probability": 50,
                "useProbability": True,
                "selectiveLogic": 3,
                "group": "doors,walls",
                "group_weight": 10,
                "sticky": 2,
                "cooldown": 1,
                "delay": 1,
                "match_whole_words": True,
                "match_character_description": True,
                "scan_depth": None,
                "delay_until_recursion": 1,
            },
        },
        {"keys": "lock, door", "content": "A lock of the gate.", "extensions": {}, "id": 7},
        {"keys": ["^(a+)+$"], "use_regex": True, "content": "@@activate_only_after 2\nDeep."},
        {"keys": [], "constant": True, "content": "{{if x}}a{{else}}b{{/if}}", "position": 7},
    ],
}
FIELDS: dict[str, JsonValue] = {
    "name": "Ada",
    "nickname": "Adder",
    "description": "{{char}} mends {{random:clocks,watches}}.\r\n<USER> waits. Ünïcödé 時計",
    "personality": "dry",
    "scenario": "{{setvar::x::1}}{{getvar::x}} {{time}}",
    "first_mes": "Tick, {{user}}?",
    "alternate_greetings": ["Tock?", ""],
    "mes_example": "<START>\n{{user}}: Late?\n{{char}}: Never.\n<START>\n{{char}}: {{roll:2d6}}",
    "system_prompt": "{{original}} Be {{personality}}.",
    "post_history_instructions": "Stay at {{isotime}}.",
    "creator_notes": "[x](//example.invalid/a.png)",
    "tags": ["a", "b"],
    "assets": [{"type": "icon", "name": "main", "uri": "embeded://a/b.png", "ext": "png"}],
    "character_book": BOOK,
    "extensions": {"depth_prompt": {"prompt": "Hush.", "depth": 2, "role": "system"}, "x": 1.5},
}


def _seeds() -> dict[str, tuple[bytes, ...]]:
    v3 = json.dumps({"spec": "chara_card_v3", "spec_version": "3.0", "data": FIELDS}).encode()
    v2 = json.dumps({"spec": "chara_card_v2", "spec_version": "2.0", "data": FIELDS}).encode()
    v1 = json.dumps({key: FIELDS[key] for key in ("name", "description", "first_mes")}).encode()
    world: JsonValue = {"0": {"uid": 0, "key": ["gate"], "keysecondary": [], "content": "Iron."}}
    asset = makers.chunk(b"tEXt", b"chara-ext-asset_:a/b.png\0" + base64.b64encode(makers.png()))
    animated = makers.chunk(b"acTL", bytes(8))
    pygmalion = {"char_name": "Ada", "char_persona": "A [name_char].", "example_dialogue": "You: x"}
    history = {"character": {"name": "Ada", "greeting": "Hi"}, "histories": {"histories": []}}
    header = {"user_name": "Sam", "character_name": "Ada", "chat_metadata": {"note_prompt": "x"}}
    line = {"name": "Ada", "is_user": False, "mes": "Hi", "swipes": ["Hi", "Ho"], "swipe_id": 0}
    reply = {"name": "Sam", "is_user": True, "mes": "Yes", "send_date": "now", "extra": {}}
    jsonl = b"\n".join(json.dumps(each).encode() for each in (header, line, reply))
    (own,) = chats.read_chats(jsonl)
    return {
        "png": (
            makers.png(makers.text(v3), makers.text(v2, b"chara"), asset),
            makers.png(makers.ztext(v2, b"chara"), makers.itext(v3, packed=True), animated),
            makers.png(makers.itext(v3), after=[makers.text(v1, b"Chara")], end=b"tail"),
            makers.png(),
        ),
        "charx": (
            makers.archive({"card.json": v3, "a/b.png": makers.png(), "module.risum": b"x"}),
            makers.archive({"sub/card.json": v3}, prefix=makers.jpeg(makers.tiff(b"")), method=0),
            makers.archive(
                {
                    "manifest.json": b'{"characters":["characters/c/c.json"],"scenarios":["s"]}',
                    "characters/c/c.json": b'{"name":"Ada","persona":"{character}","images":[]}',
                    "s": b'{"firstMessages":[{"text":"Hi"}],"narrative":"#{user}"}',
                }
            ),
        ),
        "json": (
            v3,
            v2[:-1] + b",\n}",
            v1,
            json.dumps({"entries": world}).encode(),
            json.dumps(pygmalion).encode(),
            json.dumps(
                {"character": {"name": "Ada", "greeting": "Hi", "definition": "x: y"}}
            ).encode(),
            base64.b64encode(v1),
            "\ufeff".encode("utf-16-le") + v1.decode().encode("utf-16-le"),
        ),
        "yaml": (
            b"name: Ada\ncontext: |\n  A clockmaker.\n\n  <START>\n  You: Late?\n"
            b'greeting: "Ti\\x63k"\n',
            b"{name: Ada, context: [a, 'b', {c: d}], greeting: ~}\n",
            b"# note\nname: >-\n  Ada\n  Two\ngreeting: !!str 1\nbot: &a x\nyou: *a\n--- \nb: 1\n",
            b"{{char}}: Tick.\n{{user}}: Tock.\nEND_OF_DIALOG\n{{random_user_1}}: Hm.\n",
        ),
        "exif": (
            makers.jpeg(makers.tiff(v1)),
            makers.webp(makers.tiff(base64.b64encode(v2), order=">")),
            makers.jpeg(makers.tiff(",".join(map(str, v1)).encode())),
            makers.webp(makers.tiff(v1.decode().encode("utf-16-le"), charset=b"UNICODE\0")),
        ),
        "chat": (
            jsonl,
            chats.to_json(own),
            chats.to_webui(own),
            chats.to_cai_tools(own),
            json.dumps(history).encode(),
        ),
        "macros": (
            b"{{char}} {{random:a,b\\,c}} {{pick::a::b}} {{roll:2d6+1}} {{// {{x}} }}{{trim}}\n",
            b"{{setvar::a::{{getvar::b}}}}{{addvar::a::3}}{{incvar::a}}{{reverse:abc}}{{space::9}}",
            b"{{if {{getvar::a}}}}x{{else}}{{if !char}}y{{/if}}{{/if}}{{datetimeformat HH:mm}}",
            b"{{{{{{{{{{{{{{{{{{char}}}}}}}}}}}}}}}}}} <BOT> <USER> {{time_UTC-3}} {{hidden_key:}}",
        ),
        "keys": (
            "gate\nWall\n/wa(l+)s?/im\n^(a+)+$\n時\n\nThe wall of the gate 時計".encode(),
            b"/(?=x)/\n/[[:alpha:]]+/\n\\bx{1,900}\n(?i)\\Qa.b\n/\\u00e9/u\n\naaaaaaaaaaaab a.b",
            "ﬁ\nİ\nß\nﬀ\n\nİstanbul STRASSE straße ﬁt".encode(),
        ),
        "lorebook": (json.dumps(BOOK).encode(), json.dumps({"entries": world}).encode()),
    }


SEEDS: Mapping[str, tuple[bytes, ...]] = _seeds()
TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "png": card,
    "charx": card,
    "json": card,
    "yaml": card,
    "exif": card,
    "chat": chat,
    "macros": macros,
    "keys": keys,
    "lorebook": lorebook,
}
