"""Macros: names, comments and choices frozen per chat."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.macro_clock import now_line
from personas.macros import draws, expand, tells_time

VALUES = {"char": "Ada", "user": "Bo"}


def fill(text: str, seed: str = "c1") -> str:
    return expand(text, VALUES, seed=seed)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{{char}} and {{user}}", "Ada and Bo"),
        ("{{ Char }} {{USER}}", "Ada Bo"),
        ("<BOT> <user> <Bot>", "Ada Bo Ada"),
        ("a{{// gone }}b", "ab"),
        ("a{{// {{user}} }}b", "ab"),
        ("{{unknown}} {{calc::1+1}} {{}}", "{{unknown}} {{calc::1+1}} {{}}"),
        ("{{char", "{{char"),
        ("{{char {{user}}", "{{char Bo"),
        ("char}} {user} {{{user}}}", "char}} {user} {Bo}"),
        ("{{random:one}}", "one"),
        ("{{random: one }}", "one"),
        ("{{pick::a::a}}", "a"),
        (r"{{random:a\,b}}", "a,b"),
        ("{{pick:{{user}}}}", "Bo"),
        ("{{outer {{user}}}}", "{{outer Bo}}"),
        ("{{roll:d1}} {{roll:1}} {{roll:3d1}} {{roll 1}}", "1 1 3 1"),
        ("{{roll:0}} {{roll:x}}", "{{roll:0}} {{roll:x}}"),
        ("{{random}}", "{{random}}"),
        ("{{randomly:a}}", "{{randomly:a}}"),
        ("no macro < here", "no macro < here"),
        ("<char> <GROUP> {{charIfNotGroup}}", "Ada Ada Ada"),
        ("{{roll:2d1+3}} {{roll::1d1-1}} {{roll:d%%}}", "5 0 {{roll:d%%}}"),
        ("{{roll:2d1+\t3}} {{roll:1d1 -\u00a0 1}}", "5 0"),
        ("{{reverse:Hello}} {{reverse:{{char}}}}", "olleH adA"),
        ("a{{comment: b}}c{{hidden_key:d}}e", "ace"),
        ("a\n\n{{trim}}\n\nb", "ab"),
        ("a{{newline}}b{{newline::2}}c{{space::2}}d{{noop}}e", "a\nb\n\nc  de"),
        ('{{banned "word"}}{{creatorNotes}}', ""),
        ("{{setvar::a::1}}{{incvar::a}}{{addvar::a::2}}{{getvar::a}}", "24"),
        ("{{setvar::a::x}}{{addvar::a::y}}{{getvar::a}}{{getvar::b}}", "xy"),
        ("{{decvar::n}}{{getvar::n}}", "-1-1"),
        ("{{setvar::a}}{{addvar::a}}", "{{setvar::a}}{{addvar::a}}"),
        ("{{if char}}yes{{else}}no{{/if}}", "yes"),
        ("{{if !char}}yes{{else}}no{{/if}}", "no"),
        ("{{if {{getvar::x}}}}yes{{/if}}.", "."),
        ("{{if 1}} {{if 0}}a{{else}}b{{/if}} c {{/if}}", "b c"),
        ("{{if 0}}{{setvar::a::1}}{{/if}}{{getvar::a}}.", "."),
        ("{{if 1}}open {{else}} {{/If", "{{if 1}}open {{else}} {{/If"),
        ("{{/if}}{{else}}", "{{/if}}{{else}}"),
        ("{{outlet::nobody}}", ""),
        ("{{time}}, {{date}}, {{weekday}}", "the present time, today's date, today"),
        ("{{time_UTC+2}} {{datetimeformat HH:mm}}", "the present time the present time"),
        ("{{lastUserMessage}}; {{idle_duration}}", "the last message of Bo; a while"),
    ],
)
def test_expand(text: str, expanded: str) -> None:
    """Each known macro is replaced, everything else stays."""
    assert fill(text) == expanded


def test_names_are_not_read_again() -> None:
    """A name that looks like a macro stays a name."""
    assert expand("{{user}}!", {"user": "{{char}}", "char": "Ada"}, seed="") == "{{char}}!"


def test_choices_differ() -> None:
    """Chats and places draw differently."""
    text = "{{pick:a,b,c,d,e,f,g,h}}{{pick:a,b,c,d,e,f,g,h}}"
    drawn = {fill(text, f"chat {i}") for i in range(40)}
    assert len(drawn) > 20
    assert any(pair[0] != pair[1] for pair in drawn)
    rolls = {fill("{{roll:d6}}", f"chat {i}") for i in range(100)}
    assert rolls == set("123456")


def test_frozen_across_processes() -> None:
    """The same chat draws the same in another process, whatever its hash seed."""
    text = "{{random:a,b,c,d}} {{pick:a,b,c,d}} {{roll:2d6}} {{roll:d20}}"
    program = f"from personas.macros import expand; print(expand({text!r}, {{}}, seed='c1'))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout.strip() == fill(text)


def test_clock() -> None:
    """With a clock its macros tell it, in whatever language the machine speaks."""
    now = datetime(2026, 11, 3, 17, 5, 9, tzinfo=UTC)
    for text, told in (
        ("{{time}} {{date}} {{weekday}}", "17:05 3 November 2026 Tuesday"),
        ("{{isotime}} {{ISOdate}}", "17:05 2026-11-03"),
        ("{{time_UTC-6}} {{time::UTC+9}}", "11:05 02:05"),
        (
            "{{datetimeformat dddd D MMM YY, h:mm:ss A [o'clock]}}",
            "Tuesday 3 Nov 26, 5:05:09 PM o'clock",
        ),
    ):
        assert expand(text, VALUES, seed="", now=now) == told
        assert tells_time(text)
    assert now_line(now) == "It is Tuesday, 3 November 2026, 17:05."
    assert not tells_time("the {{timer}} and {{char}}, in time")


def test_scan() -> None:
    """Hidden keys are there for those who look for lore, comments are not."""
    assert expand("a{{hidden_key:b}}{{// c}}{{comment:d}}", {}, seed="", scan=True) == "ab"


def test_variables() -> None:
    """Variables outlive a text where the caller keeps them."""
    kept: dict[str, str] = {}
    expand("{{setvar::mood::glad}}", {}, seed="", variables=kept)
    assert expand("{{getvar::mood}}", {}, seed="", variables=kept) == "glad"
    assert expand("{{getvar::mood}}", {}, seed="") == ""


def test_draws() -> None:
    """A text that may differ between chats says so, also where the macro is inside another."""
    assert draws("{{ Pick:a,b}}")
    assert draws("{{setvar::a::{{roll:d6}}}}")
    assert not draws("{{char}} has a random hat")


@pytest.mark.parametrize(
    "text",
    [
        "{{setvar::a::0123456789}}" + "{{setvar::a::{{getvar::a}}{{getvar::a}}}}" * 40,
        "{{addvar::a::x{{getvar::a}}}}" * 60,
        "{{description}}" * 10_000,
        "{{newline::999}}" * 10_000,
        "{{roll:99d6}}" * 50_000,
        "{{if 1}}" * 5_000 + "x" + "{{/if}}" * 5_000,
        "".join(f"{{{{setvar::v{n}::{'y' * 9_000}}}}}" for n in range(400)),
    ],
)
def test_bounded(text: str) -> None:
    """No text grows without bound, whatever its macros do to each other."""
    began = time.process_time()
    kept: dict[str, str] = {}
    grown = expand(text, {"description": "d" * 9_000}, seed="", variables=kept)
    assert len(grown) <= len(text) + (1 << 18)
    assert sum(map(len, kept.values())) <= 1 << 22
    assert time.process_time() - began < 10


MACROS = st.sampled_from(
    [
        *("{{", "}}", "{", "}", "char", "user", "<BOT>", "random:", "roll:d6", "a,b", "//", " "),
        *("é", "{{if ", "{{else}}", "{{/if}}", "{{trim}}", "setvar::a::", "getvar::a", "\n"),
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(MACROS, max_size=30).map("".join))
def test_any_text(text: str) -> None:
    """Any text expands, always to the same."""
    assert fill(text) == fill(text)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_macro_no_change(text: str) -> None:
    """A text without braces and angle brackets is returned as it is."""
    plain = text.replace("{", "").replace("<", "")
    assert fill(plain) == plain


@pytest.mark.parametrize(
    "piece",
    [
        "{{",
        "}}",
        "{{a}}",
        "{{random:",
        "{{random:a,b}}",
        "{{a" * 3 + "}}",
        "<BOT",
        "{{random" + " " * 9,
    ],
)
def test_linear(piece: str) -> None:
    """A long text of any pattern expands in seconds: a quadratic reader would take many minutes."""
    text = piece * (300_000 // len(piece))
    began = time.process_time()
    fill(text)
    assert time.process_time() - began < 10
