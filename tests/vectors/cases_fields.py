"""Vectors about the fields of a card and the macros in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vectors.pieces import Case, book, card, dump, entry, fields

if TYPE_CHECKING:
    from personas.persona import JsonValue

__all__ = ["CASES"]


def _spoken(name: str, what: str, spoken: str, *said: str, rows: tuple[int, ...] = (17,),
            unsaid: tuple[str, ...] = ()) -> Case:  # fmt: skip
    """A description with macros, and what of it must stand in the prompt."""
    claims: dict[str, JsonValue] = {"said": [*said], "unsaid": [*unsaid]}
    return Case(name, what, rows, "json", dump(card(description=spoken)), claims)


CASES = (
    Case("nulls", "null where a text or a book is due", (1,), "json",
         dump(card(character_book=None, mes_example=None, personality=None)),
         {"parse": {"/name": "Ilse"}, "said": ["keeps the ferry"], "unsaid": ["None", "null"],
          "repaired": ["data.mes_example", "data.personality"]}),
    Case("number-as-version", "character_version is a number", (3,), "json",
         dump(card(character_version=2)), {"repaired": ["data.character_version"]}),
    Case("no-name", "an empty name", (4,), "json", dump(card(name="")), {"readable": True}),
    Case("greetings-string", "alternate_greetings is one string", (5,), "json",
         dump(card(alternate_greetings="You again.")),
         {"greetings": ["Mind the rope, Wren.", "You again."],
          "repaired": ["data.alternate_greetings"]}),
    Case("greeting-empty", "no first message but others: the first of those", (5,), "json",
         dump(card(first_mes="", alternate_greetings=["You again.", "Cold?"])),
         {"greetings": ["You again.", "Cold?"], "said": ["You again."]}),
    Case("greetings", "alternates are candidates of the first message", (), "json",
         dump(card(alternate_greetings=["You again, {{user}}.", "Cold?"])),
         {"greetings": ["Mind the rope, Wren.", "You again, Wren.", "Cold?"], "clean": True,
          "unsaid": ["You again"]}),
    Case("tags-string", "tags are one comma string", (5,), "json",
         dump(card(tags="river, Night ,,ferry")), {"repaired": ["data.tags"]}),
    Case("v1-copies", "copies of V1 at the top that disagree: data counts", (6,), "json",
         dump(card("chara_card_v2", "2.0") | fields(name="Wrong", description="Wrong.")),
         {"parse": {"/name": "Ilse"}, "unsaid": ["Wrong"]}),
    Case("v3-called-v2", "fields of V3 under the name of V2", (6,), "json",
         dump(card("chara_card_v2", "2.0", nickname="Ferrywoman")),
         {"parse": {"/nickname": "Ferrywoman"}}),
    Case("v1-with-spec", "a spec, and all fields at the top", (6,), "json",
         dump(fields(spec="chara_card_v2", spec_version="2.0")),
         {"parse": {"/name": "Ilse"}, "said": ["keeps the ferry"]}),
    Case("lists-missing", "V3 without the lists it asks for", (7,), "json", dump(card()),
         {"clean": True}),
    *(Case(f"spec-version-{name}", f"a spec_version of {version!r}", (12,), "json",
           dump(card("chara_card_v3", version)),
           {"parse": {"/name": "Ilse"}, "findings": ["spec_version"]})
      for name, version in (("2", "2"), ("3", "3"), ("number", 3), ("3.1", "3.1"), ("4.0", "4.0"))),
    Case("surrogates", "half of a surrogate pair in a text", (11,), "json",
         dump(card(description="Half \ud83d and whole \U0001f6f6.")),
         {"said": ["\U0001f6f6"], "encodable": True}),
    Case("right-to-left", "text from right to left and combined emoji", (11,), "json",
         dump(card(description="\u05d0\u05d9\u05dc\u05d6\u05d4 \U0001f469\u200d\u2708\ufe0f")),
         {"said": ["\u05d0\u05d9\u05dc\u05d6\u05d4 \U0001f469\u200d\u2708\ufe0f"], "clean": True}),
    Case("crlf", "line ends of Windows", (11,), "json",
         dump(card(description="One.\r\nTwo.", mes_example="<START>\r\n{{user}}: A?\r\n"
                   "{{char}}: B.")), {"said": ["One.", "Two."], "spoken": ["A?", "B."]}),
    Case("escaped-newlines", "line breaks written as backslash n", (11,), "json",
         dump(card(description="One.\\nTwo.")), {"findings": ["escaped_newlines"]}),
    Case("nul", "a NUL in a text", (11,), "json", dump(card(description="One.\0Two.")),
         {"readable": True, "encodable": True}),
    *(Case(f"name-{kind}", f"a name {what}", (18,), "json", dump(card(name=name)),
           {"readable": True, "slug": True})
      for kind, what, name in (
          ("colon", "with a colon", "Ilse: the ferry"), ("newline", "of two lines", "Ilse\nLow"),
          ("slash", "with slashes", "../Ilse/Low"), ("reserved", "that is no file's", "CON"),
          ("long", "of 300 letters", "I" * 300))),
    Case("remote", "pictures on other servers", (19,), "json",
         dump(card(first_mes="![me](http://example.invalid/a.png) Mind the rope.",
                   assets=[{"type": "icon", "uri": "http://example.invalid/b.png",
                            "name": "main", "ext": "png"}])),
         {"findings": ["not_fetched"], "assets": []}),
    Case("too-long", "a description over the whole budget", (21,), "json",
         dump(card(description="word " * 500)), {"prompt_error": True}, context=200),
    Case("greeting-too-long", "a greeting over the whole budget", (21,), "json",
         dump(card(first_mes="word " * 500)), {"readable": True}, context=200),
    Case("examples-pruned", "examples go first when room is short", (21,), "json",
         dump(card(mes_example="<START>\n{{user}}: Late?\n{{char}}: " + "never " * 60)),
         {"unsaid": ["Late?"], "said": ["keeps the ferry", "Good evening."]}, context=110),
    Case("examples", "blocks of examples become turns", (), "json",
         dump(card(mes_example="<START>\n{{user}}: A?\n{{char}}: B.\n<START>\n{{user}}: C?\n"
                   "{{char}}: D.")), {"spoken": ["A?", "B.", "C?", "D."], "unsaid": ["<START>"]}),
    Case("system-prompt", "the card's system prompt, with the original in it", (), "json",
         dump(card(system_prompt="Speak of water. {{original}}")),
         {"said": ["Speak of water."], "unsaid": ["{{original}}"]}),
    Case("post-history", "instructions behind the history", (), "json",
         dump(card(post_history_instructions="Stay dry, {{char}}.")),
         {"order": ["Good evening.", "Stay dry, Ilse."]}),
    Case("depth-prompt", "a note so many messages before the end", (), "json",
         dump(card(extensions={"depth_prompt": {"prompt": "The fog is thick.", "depth": 1,
                                                "role": "system"}})),
         {"said": ["The fog is thick."], "executed": ["data.extensions.depth_prompt"]}),
    Case("creator-notes", "notes for people never reach the model", (), "json",
         dump(card(creator_notes="Use a big model.")), {"unsaid": ["big model"], "clean": True}),
    _spoken("macros-plain", "names in any case, with spaces", "{{Char}} {{ user }} <bot> <USER>",
            "Ilse Wren Ilse Wren"),
    _spoken("macros-unknown", "an unknown macro stays as it is", "See {{nonsense::x}}.",
            "See {{nonsense::x}}."),
    _spoken("macros-unclosed", "braces that are not closed stay", "A {{char and }} B.",
            "A {{char and }} B."),
    _spoken("macros-comment", "comments say nothing", "One{{// hidden}}{{comment:too}}.",
            "One", unsaid=("hidden", "too}}")),
    _spoken("macros-reverse", "reverse turns a text round", "{{reverse:abc}}", "cba"),
    _spoken("macros-random", "random takes one of its arguments", "Wind: {{random::east::east}}.",
            "Wind: east."),
    _spoken("macros-escaped-comma", "a comma may be escaped", "{{random:a\\,b,a\\,b}}", "a,b"),
    _spoken("macros-nested", "macros in macros", "{{reverse:{{reverse:{{char}}}}}}", "Ilse"),
    _spoken("macros-endless", "a macro that yields a macro is not expanded for ever",
            "{{reverse:}}rahc{{}} ok", "ok", rows=(16, 17)),
    Case("macros-of-the-user", "what the person writes is not expanded", (17,), "json",
         dump(card()), {"said": ["I am {{char}}."]}, says=("I am {{char}}.",)),
    Case("book-numbers", "numbers of a book as strings", (3,), "json",
         dump(card(character_book=book(entry(["rope"], "The rope is tarred.",
                                             insertion_order="5"), scan_depth="3",
                                       token_budget="500"))),
         {"said": ["The rope is tarred."]}, says=("The rope?",)),
)  # fmt: skip
