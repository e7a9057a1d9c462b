"""Our reader of cards against four others, on every vector that they claim to support.

`python -m tests.vectors.crosscheck.harness` prints what differs; `--write` makes
`docs/cards-crosscheck.md` of it. Why they differ is written by hand, in `reasons.toml`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from personas import decorators, exporter
from personas.importer import ImportedCard, read_any
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from personas.persona import JsonValue

__all__ = ["Case", "Difference", "Reason", "cases", "differences", "missing", "reasons", "table"]

HERE = Path(__file__).parent
VECTORS = HERE.parent / "cards"
TABLE = HERE.parents[2] / "docs" / "cards-crosscheck.md"
PYTHON = ("tavern-card", "aichar")
NODE = ("character-card-utils", "ccardlib")
TEXTS = (
    *("name", "description", "personality", "scenario", "first_mes", "mes_example"),
    *("creator_notes", "system_prompt", "post_history_instructions", "creator"),
    "character_version",
)
FIELDS = (*TEXTS, "tags", "alternate_greetings", "nickname", "extensions", "character_book")
ALL = "(the whole)"
"""The field of a difference that is about reading the file at all."""
_ENTRY = (
    *("keys", "content", "extensions", "enabled", "insertion_order", "case_sensitive", "name"),
    *("priority", "id", "comment", "selective", "secondary_keys", "constant", "position"),
)
_EMPTY: tuple[JsonValue, ...] = (None, "", [], {}, {"extensions": {}, "entries": []})


@dataclass(frozen=True, slots=True)
class Case:
    """A vector: its file, and what our reader makes of it, or the code of its refusal."""

    name: str
    path: Path
    ours: ImportedCard | str

    @property
    def data(self) -> Mapping[str, JsonValue]:
        """The fields that we read, as our export writes them."""
        assert isinstance(self.ours, ImportedCard)
        data = json.loads(exporter.to_json(self.ours.persona))["data"]
        assert isinstance(data, dict)
        return data


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One field of one case that a library reads as something else than we do."""

    library: str
    case: str
    field: str
    theirs: str = ""
    ours: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about, without the values."""
        return self.library, self.case, self.field


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a library differs, for several differences; written by hand."""

    library: str
    why: str
    keys: tuple[tuple[str, str, str], ...]


def missing() -> str:
    """What has to be installed before anything can be compared; empty when all is there."""
    for module in ("tavern_card", "aichar"):
        if importlib.util.find_spec(module) is None:
            return f"the Python package {module} is not installed"
    if shutil.which("node") is None:
        return "node is not installed"
    if not (HERE / "node_modules").is_dir():
        return "run `npm ci --ignore-scripts` in tests/vectors/crosscheck"
    return ""


def cases(folder: Path = VECTORS) -> tuple[Case, ...]:
    """Every vector that is a character, or was meant as one."""
    found = []
    for path in sorted(folder.glob("*/input.*")):
        try:
            imported = read_any(path.read_bytes(), filename=path.name)
        except CardError as error:
            found.append(Case(path.parent.name, path, error.code))
        else:
            if isinstance(imported, ImportedCard):
                found.append(Case(path.parent.name, path, imported))
    return tuple(found)


def differences(found: Sequence[Case]) -> tuple[Difference, ...]:
    """Runs all four libraries and compares."""
    answers = _ask([sys.executable, "-m", f"{__package__}.python_libraries"], _for_python(found))
    more = _ask(["node", str(HERE / "libraries.mjs")], _for_node(found))
    out: list[Difference] = []
    for case in found:
        for library in PYTHON:
            if (answer := answers.get(f"{library} {case.name}")) is not None:
                out += _compared(library, case, answer[library])
        if (answer := more.get(case.name)) is not None:
            for library in NODE:
                out += _compared(library, case, answer[library])
        if isinstance(case.ours, ImportedCard):
            for id, _, expected in _exports(case):
                for library in NODE if "2 as" in id else NODE[1:]:
                    out += _compared(library, case, more[id][library], expected, id)
        for id, entry in _decorated(case):
            out += _decorators(case, entry, more[id]["ccardlib"], id.rpartition(" ")[2])
    return tuple(sorted(set(out)))


def _for_python(found: Sequence[Case]) -> Iterator[dict[str, JsonValue]]:
    """JSON and PNG for both, of aichar what has no wrapper around its fields; YAML for aichar."""
    endings = {"tavern-card": (".json", ".png"), "aichar": (".json", ".png", ".yaml")}
    for case in found:
        for library in PYTHON:
            if case.path.suffix in endings[library] and _claims(library, case):
                id = f"{library} {case.name}"
                yield {"id": id, "library": library, "path": str(case.path)}


def _claims(library: str, case: Case) -> bool:
    if isinstance(case.ours, str):
        return True
    kind = case.ours.container.rpartition(" ")[0]
    if library == "tavern-card":
        return kind in ("", "pygmalion")
    wrapped = isinstance(case.ours.persona.card.get("data"), dict)
    return kind in ("pygmalion", "text-generation-webui") or not wrapped


def _for_node(found: Sequence[Case]) -> Iterator[dict[str, JsonValue]]:
    """The npm libraries take decoded JSON: a JSON file's own, else what we found in a container."""
    for case in found:
        card = _decoded(case)
        if isinstance(card, dict):
            yield {"id": case.name, "card": card, "to": "v3"}
        if isinstance(case.ours, ImportedCard):
            for id, whole, _ in _exports(case):
                yield {"id": id, "card": whole, "to": "v2"}
        for id, entry in _decorated(case):
            known: list[JsonValue] = [*decorators.parse(entry).found]
            yield {"id": id, "content": entry, "known": known}


def _exports(case: Case) -> Iterator[tuple[str, JsonValue, Mapping[str, JsonValue]]]:
    """What we write, as V2 and V3, and the fields of V2 that others must find in it."""
    assert isinstance(case.ours, ImportedCard)
    v2: dict[str, JsonValue] = json.loads(exporter.to_json(case.ours.persona, version=2))
    data = v2["data"]
    assert isinstance(data, dict)
    of_v2 = {key: value for key, value in data.items() if key != "nickname"}
    yield f"{case.name}: our V2 as V2", v2, of_v2
    v3: JsonValue = json.loads(exporter.to_json(case.ours.persona))
    yield f"{case.name}: our V3 as V2", v3, of_v2


def _decoded(case: Case) -> JsonValue:
    """The JSON of a case; None where a reader of JSON refuses it, which says nothing of theirs."""
    if case.path.suffix == ".json":
        try:
            value: JsonValue = json.loads(case.path.read_bytes(), parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        return value
    if isinstance(case.ours, ImportedCard) and " " not in case.ours.container:
        return dict(case.ours.persona.card)
    return None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _decorated(case: Case) -> Iterator[tuple[str, str]]:
    """The texts of entries that have decorators."""
    book = case.data.get("character_book") if isinstance(case.ours, ImportedCard) else None
    entries = book.get("entries") if isinstance(book, dict) else None
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str) and content.lstrip().startswith("@@"):
            yield f"{case.name} {number}", content


def _ask(
    command: Sequence[str], asked: Iterable[dict[str, JsonValue]]
) -> dict[str, dict[str, dict[str, JsonValue]]]:
    """The answers by id; what ends the process is an error of its request, the rest is asked
    again."""
    waiting = [*asked]
    answers: dict[str, dict[str, dict[str, JsonValue]]] = {}
    while waiting:
        lines = "".join(json.dumps(each) + "\n" for each in waiting)
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        answers |= {str(each["id"]): each for each in told}
        waiting = waiting[len(told) :]
        if waiting:
            if not told and not answers:
                raise RuntimeError(f"{command[0]} does not run: {done.stderr[-2000:]}")
            broken = waiting.pop(0)
            ended: dict[str, JsonValue] = {"error": f"the process ended with {done.returncode}"}
            names = [str(broken["library"])] if "library" in broken else [*NODE]
            answers[str(broken["id"])] = dict.fromkeys(names, ended)
    return answers


def _compared(
    library: str,
    case: Case,
    answer: Mapping[str, JsonValue],
    ours: Mapping[str, JsonValue] | None = None,
    of: str = "",
) -> Iterator[Difference]:
    """`ours` are the fields of an export `of` the case, if it is about one."""
    theirs = answer.get("ok")
    within = f"{of.partition(': ')[2]}, " if of else ""
    if isinstance(case.ours, str):
        if theirs is not None:
            yield Difference(library, case.name, ALL, "reads it", f"refuses it: {case.ours}")
        return
    if not isinstance(theirs, dict):
        refused = f"refuses it: {answer.get('error')}"
        yield Difference(library, case.name, within + ALL, refused, "reads it")
        return
    inner = theirs.get("card", theirs)
    data = inner.get("data") if isinstance(inner, dict) else None
    assert isinstance(data, dict)
    ours = case.data if ours is None else ours
    for field in FIELDS:
        if field not in data and library == "aichar":
            continue  # it knows six fields and says nothing of the others
        if field == "nickname" and (of or library in ("tavern-card", "character-card-utils")):
            continue  # a field of V3, and what they give is V2
        one, other = data.get(field), ours.get(field)
        if field == "character_book":
            one, other = _of_v2(one), _of_v2(other)
        if not (one == other or (one in _EMPTY and other in _EMPTY)):
            yield Difference(library, case.name, within + field, _short(one), _short(other))


def _of_v2(book: JsonValue) -> JsonValue:
    """A lorebook with what V2 knows, and nothing that is null."""
    if not isinstance(book, dict) or not isinstance(entries := book.get("entries"), list):
        return book
    made: list[JsonValue] = [
        {key: each[key] for key in _ENTRY if each.get(key) is not None}
        for each in entries
        if isinstance(each, dict)
    ]
    kept = {key: value for key, value in book.items() if key != "entries" and value is not None}
    return {**kept, "entries": made}


def _decorators(
    case: Case, content: str, answer: Mapping[str, JsonValue], number: str
) -> Iterator[Difference]:
    """What the decorators of an entry are, and what is left of its text."""
    ours = decorators.parse(content)
    theirs = answer.get("ok")
    where = f"entries.{number} decorators"
    if not isinstance(theirs, dict):
        yield Difference("ccardlib", case.name, where, str(answer.get("error")), "reads them")
        return
    called = theirs["called"]
    names: list[JsonValue] = [*ours.found]
    if called != names:
        yield Difference("ccardlib", case.name, where, _short(called), _short(names))
    if theirs["content"] != ours.content:
        field = f"entries.{number} text"
        yield Difference(
            "ccardlib", case.name, field, _short(theirs["content"]), _short(ours.content)
        )


def _short(value: JsonValue) -> str:
    text = "nothing" if value in _EMPTY else json.dumps(value, ensure_ascii=False)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= 70 else text[:45] + " … " + text[-20:]


def reasons(path: Path = HERE / "reasons.toml") -> tuple[Reason, ...]:
    """The reasons of `reasons.toml`: `cases` are `case: field; field`, or cases of one `field`."""
    listed = tomllib.loads(path.read_text(encoding="utf-8")).get("reason", [])
    found = []
    for each in listed:
        keys = []
        for line in each["cases"]:
            case, _, fields = line.partition(":")
            names = (fields or each["field"]).split(";")
            keys += [(each["library"], case, name.strip()) for name in names]
        found.append(Reason(each["library"], " ".join(each["why"].split()), tuple(keys)))
    return tuple(found)


def table(found: Sequence[Case], differ: Sequence[Difference], why: Sequence[Reason]) -> str:
    """`docs/cards-crosscheck.md`. Raises `KeyError` for a reason without a difference."""
    by_key = {one.key: one for one in differ}
    lines = [(HERE / "introduction.md").read_text(encoding="utf-8").rstrip(), ""]
    lines += [
        "| library | cases given | read alike | read otherwise | read by one only | our exports |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for library in (*PYTHON, *NODE):
        given, exports = _asked(found, library)
        of = [one for one in differ if one.library == library and one.case in given]
        alone = {one.case for one in of if one.field == ALL}
        other = {one.case for one in of if ALL not in one.field and "our V" not in one.field}
        bad = {(one.case, one.field) for one in of if "our V" in one.field and ALL in one.field}
        taken = f"{exports - len(bad)} of {exports} taken" if exports else ""
        alike = len(given - alone - other)
        lines.append(
            f"| {library} | {len(given)} | {alike} | {len(other)} | {len(alone)} | {taken} |"
        )
    for library in (*PYTHON, *NODE):
        lines += ["", f"## {library}"]
        for reason in (each for each in why if each.library == library):
            lines += ["", reason.why, ""]
            lines += ["| field | theirs | ours | cases |", "|---|---|---|---|"]
            rows: dict[tuple[str, str, str], list[str]] = {}
            for one in (by_key[key] for key in reason.keys):
                rows.setdefault((one.field, one.theirs, one.ours), []).append(one.case)
            lines += [
                f"| {field} | {_cell(theirs)} | {_cell(ours)} | {', '.join(of)} |"
                for (field, theirs, ours), of in rows.items()
            ]
    return "\n".join(lines) + "\n"


def _asked(found: Sequence[Case], library: str) -> tuple[set[str], int]:
    """The cases that a library was given, and how many of our exports."""
    asked = [str(each["id"]) for each in _for_python(found)]
    if library in PYTHON:
        return {i.removeprefix(f"{library} ") for i in asked if i.startswith(f"{library} ")}, 0
    asked = [str(each["id"]) for each in _for_node(found) if "content" not in each]
    exports = [id for id in asked if ": our V" in id and (library == NODE[1] or "V2 as" in id)]
    return {id for id in asked if ": our V" not in id}, len(exports)


def _cell(text: str) -> str:
    plain = text.replace("|", "\\|")
    said = plain == "nothing" or plain.startswith(("reads", "refuses"))
    return plain if said else f"`{plain}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--folder", type=Path, default=VECTORS, help="where the vectors are")
    args = parser.parse_args()
    if lacking := missing():
        print(f"not compared: {lacking}")
        return 1
    found = cases(args.folder)
    differ, why = differences(found), reasons()
    told = {key for reason in why for key in reason.keys}
    for one in differ:
        if one.key not in told:
            print(f"no reason: {one.library} | {one.case}: {one.field} | {one.theirs} | {one.ours}")
    for key in sorted(told - {one.key for one in differ}):
        print(f"not so any more: {key[0]} | {key[1]}: {key[2]}")
    if args.write:
        TABLE.write_text(table(found, differ, why), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
