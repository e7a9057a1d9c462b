"""Writes the vectors: `python -m tests.vectors.make`; `--check` only says what is out of date.

Inputs and claims are written by hand in `cases_*.py`. The other files are what our reader makes of
the inputs; they are written only where every claim holds of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backends.api import Role, Sampling
from personas import exporter
from personas.conversation import ChatMessage, Conversation
from personas.importer import ImportedBook, read_any
from personas.persona import CardError, PersonaError
from personas.prompt import Budget, Plan, greetings
from tests.vectors import cases_fields, cases_files, cases_lore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from personas.importer import Import
    from personas.persona import JsonValue, Persona
    from tests.vectors.pieces import Case

__all__ = ["CASES", "FOLDER", "expected", "failures", "files"]

FOLDER = Path(__file__).parent / "cards"
CASES: tuple[Case, ...] = (*cases_files.CASES, *cases_fields.CASES, *cases_lore.CASES)
USER, CHAT = "Wren", "vector"
_SURROGATE = re.compile("[\ud800-\udfff]")

Expected = dict[str, "JsonValue"]


def expected(case: Case) -> Expected:
    """What our reader makes of a case, by the name of the file that says so."""
    try:
        found = read_any(case.raw, filename=f"input.{case.ending}", with_avatar=False)
    except CardError as error:
        return {"error": {"code": error.code}}
    if isinstance(found, ImportedBook):
        return {"book": found.book, "report": {"findings": _findings(found)}}
    report = found.report
    return {
        "parse": {
            "container": found.container,
            "card": json.loads(exporter.to_json(found.persona)),
            "assets": [asset.path for asset in found.assets],
        },
        "report": {
            "executed": [*report.executed],
            "preserved": [*report.preserved],
            "dropped": [*report.dropped],
            "repaired": [*report.repaired],
            "findings": _findings(found),
        },
        "prompt": _prompt(found.persona, case),
    }


def _findings(found: Import) -> list[JsonValue]:
    return [{"code": each.code, "where": each.where} for each in found.findings]


def _prompt(persona: Persona, case: Case) -> dict[str, JsonValue]:
    """The greetings, and the prompt of the chat that begins with the first one."""
    told = greetings(persona, user=USER, conversation_id=CHAT)
    chat = Conversation(CHAT, persona.id, persona.revision, USER)
    lines = [*(f":{text}" for text in told[:1]), *case.says]
    for number, line in enumerate(lines):
        reply = line.startswith(":")
        role, name = (Role.ASSISTANT, persona.speaks_as) if reply else (Role.USER, USER)
        text = line.removeprefix(":")
        chat = chat.say(ChatMessage(str(number), chat.head, role, name, text))
    plan = Plan(persona, chat)
    costs = {text: len(text.split()) + 4 for text in plan.texts}
    try:
        turn = plan.render(
            turn_id="t", tenant="t", sampling=Sampling(), budget=Budget(case.context, 0, costs)
        ).turn
    except PersonaError as error:
        return {"greetings": [*told], "error": type(error).__name__}
    messages: list[JsonValue] = [
        {"role": m.role.value, "name": m.name, "text": m.text} for m in turn.messages
    ]
    return {"greetings": [*told], "messages": messages}


def failures(case: Case, made: Expected) -> Iterator[str]:
    """The claims that do not hold, one line each."""
    report, prompt = _object(made.get("report")), _object(made.get("prompt"))
    texts = [str(_object(m)["text"]) for m in _list(prompt.get("messages"))]
    whole = "\n".join(texts)
    codes = [_object(f)["code"] for f in _list(report.get("findings"))]
    parse = _object(made.get("parse"))
    refusal = _object(made.get("error")).get("code")
    if refusal is not None and not case.claims.keys() & {"error", "refused"}:
        yield f"was refused: {refusal}"
        return
    for claim, value in case.claims.items():
        match claim, value:
            case ("error", _):
                ok = refusal == value
            case ("refused", True):
                ok = refusal is not None
            case ("refused", list()):
                ok = refusal in value
            case ("readable", True):
                ok = "parse" in made
            case ("container", _):
                ok = parse.get("container") == value
            case ("assets", _):
                ok = parse.get("assets") == value
            case ("parse", dict()):
                data = _object(parse.get("card")).get("data")
                ok = all(_at(data, path) == wanted for path, wanted in value.items())
            case ("book", dict()):
                ok = all(_at(made.get("book"), path) == wanted for path, wanted in value.items())
            case (("executed" | "preserved" | "dropped" | "repaired"), list()):
                ok = all(path in _list(report.get(claim)) for path in value)
            case ("findings", list()):
                ok = all(code in codes for code in value)
            case ("clean", True):
                ok = not (codes or report.get("dropped") or report.get("repaired"))
            case ("said", list()):
                ok = all(str(text) in whole for text in value)
            case ("unsaid", list()):
                ok = "prompt" in made and not any(str(text) in whole for text in value)
            case ("once", list()):
                ok = all(whole.count(str(text)) == 1 for text in value)
            case ("spoken", list()):
                ok = all(value.count(text) == texts.count(str(text)) for text in value)
            case ("order", list()):
                at = [whole.find(str(text)) for text in value]
                ok = -1 not in at and at == sorted(at)
            case ("greetings", _):
                ok = prompt.get("greetings") == value
            case ("prompt_error", True):
                ok = prompt.get("error") == "PromptTooLong"
            case ("encodable", True):
                ok = _SURROGATE.search(whole) is None and "\0" not in whole
            case ("slug", True):
                ok = _slug(case) is not None
            case _:
                ok = False
        if not ok:
            yield f"{claim}: {value!r}"


def _slug(case: Case) -> str | None:
    """The name of the character's file, when it is one on every system."""
    found = read_any(case.raw, filename="input.json", with_avatar=False)
    assert not isinstance(found, ImportedBook)
    id = found.persona.id
    plain = re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", id) and id not in ("con", "nul")
    return id if plain else None


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _at(value: JsonValue, pointer: str) -> JsonValue:
    """What a JSON pointer (RFC 6901) names; a text of its own where there is nothing."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return f"(nothing at {pointer})"
    return value


def files(case: Case) -> dict[Path, bytes]:
    """Every file of a case. Raises `ValueError` for claims that do not hold."""
    made = expected(case)
    if wrong := list(failures(case, made)):
        raise ValueError(f"{case.name}: {'; '.join(wrong)}\n{_dump(made).decode()[:3000]}")
    told: dict[str, JsonValue] = {
        "what": case.what,
        "rows": [*case.rows],
        "says": [*case.says],
        "context": case.context,
        "claims": dict(case.claims),
    }
    folder = FOLDER / case.name
    written = {folder / f"input.{case.ending}": case.raw, folder / "case.json": _dump(told)}
    return written | {folder / f"{name}.json": _dump(value) for name, value in made.items()}


def _dump(value: JsonValue) -> bytes:
    # ASCII, so that lone surrogates survive and no editor changes anything.
    return json.dumps(value, indent=1).encode() + b"\n"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    wanted: dict[Path, bytes] = {}
    status = 0
    for case in CASES:
        try:
            wanted |= files(case)
        except ValueError as error:
            print(error)
            status = 1
    found = {path for path in FOLDER.glob("*/*") if path.is_file()}
    for path in sorted(found - wanted.keys()):
        print(f"{path.relative_to(FOLDER)}: no case has it")
        if not check and not status:
            path.unlink()
    for path, raw in wanted.items():
        if path in found and path.read_bytes() == raw:
            continue
        print(f"{path.relative_to(FOLDER)}: {'differs' if check else 'written'}")
        if check:
            status = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
    return status


if __name__ == "__main__":
    sys.exit(main())
