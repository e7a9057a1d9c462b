"""Vectors about lorebooks: what brings an entry in, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vectors.pieces import Case, book, card, dump, entry

if TYPE_CHECKING:
    from personas.persona import JsonValue

__all__ = ["CASES"]

_TAR = "The rope is tarred."
_EEL = "Eels hide below."


def _lore(
    name: str,
    what: str,
    entries: list[JsonValue],
    claims: dict[str, JsonValue],
    *,
    rows: tuple[int, ...] = (),
    says: tuple[str, ...] = ("Is that the rope?",),
    **knobs: JsonValue,
) -> Case:
    raw = dump(card(first_mes="Cold tonight.", character_book=book(*entries, **knobs)))
    return Case(name, what, rows, "json", raw, claims, says=says)


def _rope(**knobs: JsonValue) -> dict[str, JsonValue]:
    return entry(["rope"], _TAR, **knobs)


def _decorated(lines: str, *keys: str) -> dict[str, JsonValue]:
    return entry([*(keys or ("rope",))], f"{lines}\n{_TAR}")


_IN: dict[str, JsonValue] = {"said": [_TAR]}
_OUT: dict[str, JsonValue] = {"unsaid": [_TAR]}

CASES = (
    _lore("lore-key", "a key in the last message", [_rope()], _IN | {"clean": True}),
    _lore("lore-no-key", "no key in any message", [_rope()], _OUT, says=("The river?",)),
    _lore("lore-key-case", "keys match in any case", [entry(["ROPE"], _TAR)], _IN),
    _lore("lore-case-sensitive", "unless the entry says otherwise",
          [entry(["ROPE"], _TAR, case_sensitive=True)], _OUT),
    _lore("lore-disabled", "a disabled entry stays out", [_rope(enabled=False)], _OUT),
    _lore("lore-constant", "a constant entry needs no key", [_rope(constant=True)], _IN,
          says=("Hello.",)),
    _lore("lore-scan-depth", "only so many messages are searched",
          [entry(["cold"], _TAR)], _OUT, scan_depth=1),
    _lore("lore-scan-depth-2", "the greeting is one of them", [entry(["cold"], _TAR)], _IN,
          scan_depth=2),
    _lore("lore-stays", "what came in stays where it was, so that what follows stays cached",
          [_rope()], {"order": [_TAR, "The rope?", "And now?"]},
          says=("The rope?", ":Never late.", "Well.", ":Well.", "And now?"), scan_depth=1),
    _lore("lore-secondary", "selective: a second key must match too",
          [_rope(selective=True, secondary_keys=["tar"]),
           entry(["rope"], _EEL, selective=True, secondary_keys=["that"])],
          {"said": [_EEL], "unsaid": [_TAR]}),
    *(_lore(f"lore-logic-{logic}", f"SillyTavern's selectiveLogic {logic}",
            [_rope(selective=True, secondary_keys=["that", "tar"],
                   extensions={"selectiveLogic": logic})], claims)
      for logic, claims in ((0, _IN), (1, _IN), (2, _OUT), (3, _OUT))),
    _lore("lore-regex", "a key in slashes is a pattern", [entry(["/r.pe\\?/i"], _TAR)], _IN),
    _lore("lore-regex-broken", "a pattern that is none matches nothing",
          [entry(["("], _TAR, use_regex=True)], _OUT),
    _lore("lore-regex-backtracking", "a pattern that takes others for ever",
          [entry(["/(a+)+$/"], _TAR)], _OUT, rows=(15,), says=("a" * 5000 + "!",)),
    _lore("lore-regex-lookahead", "a pattern that no linear engine can run is kept and named",
          [entry(["/rope(?=\\?)/"], _TAR)],
          _OUT | {"preserved": ["data.character_book.entries.0.keys.0"]}, rows=(15,)),
    _lore("lore-whole-words", "whole words only",
          [entry(["rop"], _TAR, extensions={"match_whole_words": True}), entry(["rop"], _EEL)],
          {"said": [_EEL], "unsaid": [_TAR]}),
    _lore("lore-order", "lower insertion_order stands earlier",
          [entry(["rope"], "Second.", insertion_order=20),
           entry(["rope"], "First.", insertion_order=1)], {"order": ["First.", "Second."]}),
    _lore("lore-recursion", "an entry brings in another",
          [entry(["rope"], "The rope guards the eel."), entry(["eel"], _EEL)],
          {"said": [_EEL]}, recursive_scanning=True),
    _lore("lore-no-recursion", "not where the book does not scan so",
          [entry(["rope"], "The rope guards the eel."), entry(["eel"], _EEL)],
          {"unsaid": [_EEL]}, recursive_scanning=False),
    _lore("lore-cycle", "two entries that bring in each other, and one that brings in itself",
          [entry(["rope"], "A rope by the eel."), entry(["eel"], "An eel by ropes and eels.")],
          {"once": ["A rope by the eel.", "An eel by ropes and eels."]}, rows=(16,),
          recursive_scanning=True),
    _lore("lore-hidden-key", "a hidden key feeds recursion alone",
          [entry(["rope"], "Tarred.{{hidden_key:eel}}"), entry(["eel"], _EEL)],
          {"said": ["Tarred.", _EEL], "unsaid": ["hidden_key"]}, recursive_scanning=True),
    _lore("lore-exclude-recursion", "an entry that others cannot bring in",
          [entry(["rope"], "The rope guards the eel."),
           entry(["eel"], _EEL, extensions={"exclude_recursion": True})],
          {"unsaid": [_EEL]}, recursive_scanning=True),
    _lore("lore-positions", "positions as texts, numbers and nothing", [
        _rope(position=""), entry(["rope"], _EEL, position=1),
        entry(["rope"], "Deep.", position="in_chat", extensions={"depth": 0, "role": 0})],
        {"said": [_TAR, _EEL, "Deep."]}, rows=(2,)),
    _lore("lore-key-string", "`key` for `keys`, and keys as one comma string", [
        {"key": ["rope"], "content": _TAR, "enabled": True},
        {"keys": "eel, rope", "content": _EEL, "enabled": True}],
        {"said": [_TAR, _EEL]}, rows=(2,)),
    _lore("lore-order-string", "insertion_order as a string",
          [entry(["rope"], "Second.", insertion_order="20"),
           entry(["rope"], "First.", insertion_order="1")],
          {"order": ["First.", "Second."]}, rows=(3,)),
    _lore("lore-ids", "ids twice, as strings, missing and negative: nobody is lost",
          [_rope(id=1), entry(["rope"], _EEL, id=1), entry(["rope"], "Third.", id="1"),
           entry(["rope"], "Fourth.", id=-1), entry(["rope"], "Fifth.")],
          {"said": [_TAR, _EEL, "Third.", "Fourth.", "Fifth."]}, rows=(8,)),
    _lore("lore-many", "many entries, one of which matters",
          [*(entry([f"k{n}"], "No.", insertion_order=n) for n in range(400)), _rope()],
          _IN, rows=(14,)),
    _lore("lore-budget", "a token budget drops what has the lowest priority",
          [_rope(priority=1), entry(["rope"], "eel " * 12, priority=9)],
          {"unsaid": [_TAR]}, token_budget=17),
    _lore("lore-macros", "macros in an entry",
          [entry(["rope"], "{{char}} tars it for {{user}}.")],
          {"said": ["Ilse tars it for Wren."]}),
    _lore("lore-probability-0", "a chance of nothing",
          [_rope(extensions={"probability": 0, "useProbability": True})], _OUT),
    _lore("lore-delay", "not before the chat has so many messages",
          [_rope(extensions={"delay": 5})], _OUT),
    _lore("decorator-activate", "@@activate needs no key", [_decorated("@@activate", "none")],
          _IN | {"unsaid": ["@@"]}, says=("Hello.",)),
    _lore("decorator-dont-activate", "@@dont_activate stays out",
          [_decorated("@@dont_activate")], _OUT),
    _lore("decorator-unknown", "an unknown decorator is hidden and has no effect",
          [_decorated("@@sing loudly")], _IN | {"unsaid": ["@@", "sing"]}),
    _lore("decorator-fallback", "@@@ is tried where the line above is unknown",
          [_decorated("@@sing loudly\n@@@dont_activate")], _OUT),
    _lore("decorator-first-wins", "of two decorators of one name the first counts",
          [_decorated("@@activate_only_after 0\n@@activate_only_after 99")], _IN),
    _lore("decorator-after", "@@activate_only_after counts replies",
          [_decorated("@@activate_only_after 99")], _OUT),
    _lore("decorator-additional-keys", "@@additional_keys: one of them must match too",
          [_decorated("@@additional_keys tar"), entry(["rope"], f"@@additional_keys that\n{_EEL}")],
          {"said": [_EEL], "unsaid": [_TAR]}),
    _lore("decorator-exclude-keys", "@@exclude_keys: none of them may match",
          [_decorated("@@exclude_keys that")], _OUT),
    _lore("decorator-scan-depth", "@@scan_depth of one entry",
          [_decorated("@@scan_depth 1", "cold"), entry(["cold"], _EEL)],
          {"said": [_EEL], "unsaid": [_TAR]}),
    _lore("decorator-greeting", "@@is_greeting: only in a chat that began so",
          [_decorated("@@is_greeting 1"), entry(["rope"], f"@@is_greeting 0\n{_EEL}")],
          {"said": [_EEL], "unsaid": [_TAR]}),
    _lore("decorator-depth-role", "@@depth and @@role place the text among the messages",
          [_decorated("@@depth 0\n@@role user")], _IN),
)  # fmt: skip
