"""Characters of other programs as V3 cards: which key is read as which, and what stays as it was.

Each converter takes the decoded file and returns a whole V3 card. What it has no field for is kept
under `extensions.greenroom.original`, so that nothing the author wrote is lost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from personas.limits import Findings
    from personas.persona import JsonValue

__all__ = [
    "card_from",
    "from_byaf",
    "from_cai",
    "from_definition",
    "from_pygmalion",
    "from_webui",
    "is_definition",
    "kind_of",
]

_PYGMALION = {
    "char_name": "name",
    "char_persona": "description",
    "char_greeting": "first_mes",
    "example_dialogue": "mes_example",
    "world_scenario": "scenario",
}
_WEBUI = {
    "name": "name",
    "bot": "name",
    "context": "description",
    "greeting": "first_mes",
    "example_dialogue": "mes_example",
}
# Of two keys for one field the one named later counts, where it says anything.
_CAI = {
    "participant__name": "name",
    "name": "name",
    "description": "description",
    "greeting": "first_mes",
    "user__username": "creator",
}
_END_OF_DIALOG = re.compile(r"^[ \t]*END_OF_DIALOG[ \t]*$", re.MULTILINE | re.IGNORECASE)
_SPEAKER = re.compile(r"^([^\s:\n][^:\n]{0,60}):", re.MULTILINE)
_MARKED = re.compile(
    r"^(?:\{\{(?:char|user|random_user_\d+)\}\}[ \t]*:|END_OF_DIALOG[ \t]*$)",
    re.MULTILINE | re.IGNORECASE,
)
_RANDOM_USER = re.compile(r"\{\{random_user_(\d{1,9})\}\}", re.IGNORECASE)
_USER = re.compile(r"\{\{user\}\}", re.IGNORECASE)
_BACKYARD = re.compile(r"(?<!\{)#?\{(character|user)\}(?!\})", re.IGNORECASE)
_PYGMALION_NAMES = re.compile(r"\[name_(user|char)\]", re.IGNORECASE)


def kind_of(card: Mapping[str, JsonValue]) -> str | None:
    """`pygmalion`, `character_ai` or `text-generation-webui`; None for a character card."""
    if isinstance(card.get("data"), dict) or "first_mes" in card or "mes_example" in card:
        return None
    inner = card.get("character")
    if isinstance(inner, dict) and "greeting" in inner:
        return "character_ai"
    if card.keys() & {"char_name", "char_persona", "char_greeting"}:
        return "pygmalion"
    if "definition" in card or "participant__name" in card:
        return "character_ai"
    if card.keys() & {"context", "greeting", "bot"} and card.keys() & {"name", "bot"}:
        return "text-generation-webui"
    return None


def card_from(
    kind: str, original: Mapping[str, JsonValue], findings: Findings
) -> dict[str, JsonValue]:
    """The card of a file whose kind is known."""
    return _CONVERTERS[kind](original, findings)


def from_pygmalion(original: Mapping[str, JsonValue], findings: Findings) -> dict[str, JsonValue]:
    """`char_name`, `char_persona`, … of Pygmalion and Gradio."""
    data, rest = _mapped(original, _PYGMALION, findings)
    for key, value in data.items():
        if key != "name" and isinstance(value, str):
            data[key] = _PYGMALION_NAMES.sub(lambda found: f"{{{{{found[1].lower()}}}}}", value)
    _label_examples(data, findings)
    return _card("pygmalion", data, rest)


def from_webui(original: Mapping[str, JsonValue], findings: Findings) -> dict[str, JsonValue]:
    """`name`, `context`, `greeting` of text-generation-webui; examples inside the context."""
    data, rest = _mapped(original, _WEBUI, findings)
    context = data.get("description")
    if isinstance(context, str) and "<START>" in context and not data.get("mes_example"):
        before, _, examples = context.partition("<START>")
        data["description"], data["mes_example"] = before.strip(), f"<START>{examples}"
        findings.add("split", "what follows <START> became example dialogue", where="context")
    _label_examples(data, findings)
    return _card("text-generation-webui", data, rest)


def from_cai(original: Mapping[str, JsonValue], findings: Findings) -> dict[str, JsonValue]:
    """A Character.AI character as browser exporters write it, inside `character` or bare."""
    inner = original.get("character")
    whole = inner if isinstance(inner, dict) else original
    data, rest = _mapped(whole, _CAI, findings)
    definition = rest.pop("definition", None)
    if isinstance(definition, str):
        _add_definition(data, definition, findings)
    extensions: dict[str, JsonValue] = {}
    if isinstance(title := rest.get("title"), str) and title.strip():
        extensions["tagline"] = title
        findings.add("converted", "read as the tagline", where="title")
    if whole is not original:
        rest |= {key: value for key, value in original.items() if key != "character"}
    return _card("character_ai", data, rest, extensions)


def is_definition(text: str) -> bool:
    """Whether a text has lines spoken by `{{char}}`, `{{user}}` or `{{random_user_N}}`."""
    return _MARKED.search(text) is not None


def from_definition(text: str, name: str, findings: Findings) -> dict[str, JsonValue]:
    """The text of a Character.AI definition; such a text has no name of its own.

    Source: Character Book, "Definition": `name:` at a line's start begins a speech.
    """
    data: dict[str, JsonValue] = {"name": name}
    _add_definition(data, text, findings)
    return _card("character_ai", data, {})


def from_byaf(
    manifest: Mapping[str, JsonValue],
    character: Mapping[str, JsonValue],
    scenarios: list[dict[str, JsonValue]],
    findings: Findings,
) -> dict[str, JsonValue]:
    """A Backyard archive's character; further scenarios give alternate greetings.

    Source: Backyard Archive Format 1.0.0.
    """
    name = _string(character.get("name"))
    shown = _string(character.get("displayName")) or name
    first = scenarios[0] if scenarios else {}
    greetings = [text for each in scenarios for text in _messages(each.get("firstMessages"))]
    examples = _messages(first.get("exampleMessages"))
    author = manifest.get("author")
    data: dict[str, JsonValue] = {
        "name": shown,
        "description": _backyard(_string(character.get("persona"))),
        "scenario": _backyard(_string(first.get("narrative"))),
        "first_mes": greetings[0] if greetings else "",
        "alternate_greetings": [*greetings[1:]],
        "mes_example": "<START>\n" + "\n".join(examples) if examples else "",
        "system_prompt": _backyard(_string(first.get("formattingInstructions"))),
        "creator": _string(author.get("name")) if isinstance(author, dict) else "",
        "tags": ["nsfw"] if character.get("isNSFW") is True else [],
    }
    if name and name != shown:
        data["nickname"] = name
    if entries := _backyard_lore(character.get("loreItems")):
        data["character_book"] = {"extensions": {}, "entries": entries}
    if len(scenarios) > 1:
        findings.add("scenarios", "only the first scenario is used, and the others' greetings")
    rest: dict[str, JsonValue] = {
        "manifest": dict(manifest),
        "character": dict(character),
        "scenarios": [*scenarios],
    }
    return _card("byaf", data, rest)


def _mapped(
    original: Mapping[str, JsonValue], fields: Mapping[str, str], findings: Findings
) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """The card's fields, and what of the original is none."""
    data: dict[str, JsonValue] = {}
    for key, field in fields.items():
        if key in original and (field not in data or original[key]):
            data[field] = original[key]
            if key != field:
                findings.add("converted", f"read as {field}", where=key)
    rest = {k: v for k, v in original.items() if k not in fields or data[fields[k]] != v}
    return data, rest


def _card(
    kind: str,
    data: dict[str, JsonValue],
    rest: dict[str, JsonValue],
    extensions: dict[str, JsonValue] | None = None,
) -> dict[str, JsonValue]:
    ours: dict[str, JsonValue] = {**(extensions or {}), "imported_from": kind}
    if rest:
        ours["original"] = rest
    whole: dict[str, JsonValue] = {**data, "extensions": {"greenroom": ours}}
    return {"spec": "chara_card_v3", "spec_version": "3.0", "data": whole}


def _label_examples(data: dict[str, JsonValue], findings: Findings) -> None:
    """`You:` and the character's own name at a line's start become the macros."""
    examples = data.get("mes_example")
    if not isinstance(examples, str) or not examples.strip():
        return
    labelled = _labelled(examples, data.get("name"), you="you")
    if not labelled.lstrip().startswith("<START>"):
        labelled = f"<START>\n{labelled.strip()}"
    if labelled != examples:
        findings.add("labelled", "speakers of the examples became macros", where="mes_example")
        data["mes_example"] = labelled


def _labelled(text: str, name: JsonValue, *, you: str = "") -> str:
    char = name.strip().casefold() if isinstance(name, str) else ""

    def label(found: re.Match[str]) -> str:
        speaker = found[1].strip().casefold()
        if char and speaker == char:
            return "{{char}}:"
        return "{{user}}:" if you and speaker == you else found[0]

    return _SPEAKER.sub(label, text)


def _add_definition(data: dict[str, JsonValue], definition: str, findings: Findings) -> None:
    """Dialogues become example blocks; text before the first speech joins the description."""
    text = _labelled(definition.replace("\r\n", "\n"), data.get("name"))
    about: list[str] = []
    blocks: list[str] = []
    for part in _END_OF_DIALOG.split(text):
        speech = _MARKED.search(part)
        told = part[: speech.start()] if speech else part
        if told.strip():
            about.append(told.strip())
        if speech:
            blocks.append("<START>\n" + _strangers(part[speech.start() :].strip(), findings))
    if about:
        written = data.get("description")
        data["description"] = "\n\n".join(
            [*([written] if isinstance(written, str) and written else []), *about]
        )
        findings.add("converted", "text outside of dialogue joined description", where="definition")
    if blocks:
        data["mes_example"] = "\n".join(blocks)
        findings.add("converted", f"{len(blocks)} dialogues became mes_example", where="definition")


def _strangers(block: str, findings: Findings) -> str:
    """One person for each N of `{{random_user_N}}`: the user where none speaks, else a guest."""
    people = list(dict.fromkeys(_RANDOM_USER.findall(block)))
    if not people:
        return block
    names = {number: f"Guest {number}" for number in people}
    if not _USER.search(block):
        names[people[0]] = "{{user}}"
    findings.add("random_user", "random users became the user and guests", where="definition")
    return _RANDOM_USER.sub(lambda found: names[found[1]], block)


def _backyard(text: str) -> str:
    """`{character}`, `{user}` and `#{user}:` as macros."""
    return _BACKYARD.sub(lambda f: "{{char}}" if f[1].lower() == "character" else "{{user}}", text)


def _messages(value: JsonValue) -> list[str]:
    items = value if isinstance(value, list) else []
    found = (_string(item.get("text")) for item in items if isinstance(item, dict))
    return [_backyard(text) for text in found if text.strip()]


def _backyard_lore(value: JsonValue) -> list[JsonValue]:
    entries: list[JsonValue] = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict):
            keys = [key.strip() for key in _string(item.get("key")).split(",")]
            entries.append(
                {
                    "keys": [key for key in keys if key],
                    "content": _backyard(_string(item.get("value"))),
                    "extensions": {},
                    "enabled": True,
                    "insertion_order": len(entries),
                    "use_regex": False,
                }
            )
    return entries


def _string(value: JsonValue) -> str:
    if value is not None and not isinstance(value, str):
        raise CardError("bad_byaf", "a text of the archive is none")
    return value or ""


_CONVERTERS: dict[str, Callable[[Mapping[str, JsonValue], Findings], dict[str, JsonValue]]] = {
    "pygmalion": from_pygmalion,
    "text-generation-webui": from_webui,
    "character_ai": from_cai,
}
