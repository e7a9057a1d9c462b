"""Requests of OpenAI's clients are read strictly; what cannot be honoured is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Message, Role, Sampling
from gateway.openai_schema import (
    HONOURED,
    MESSAGES,
    NEUTRAL,
    NEUTRAL_IN_MESSAGE,
    ChatRequest,
    RequestError,
    parse,
    table,
)

DOC = Path(__file__).parents[2] / "docs" / "clients.md"
USER = {"role": "user", "content": "Hi"}
HELLO = {"model": "persona/maren", "messages": [USER]}


def ask(**more: object) -> ChatRequest:
    return parse(json.dumps(HELLO | more).encode())


def refused(**more: object) -> tuple[str | None, str]:
    """The field and the code of the refusal."""
    with pytest.raises(RequestError) as caught:
        ask(**more)
    assert caught.value.param is None or caught.value.param in caught.value.message
    return caught.value.param, caught.value.code


def test_the_least() -> None:
    """Model and messages are enough."""
    assert ask() == ChatRequest("persona/maren", (Message(Role.USER, "Hi"),))


def test_everything_that_is_honoured() -> None:
    """Every honoured field reaches the request."""
    asked = ask(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=7,
        max_completion_tokens=9,
        max_tokens=9,
        stop="END",
        n=1,
        metadata={"chat_id": "c1"},
        prompt_cache_key="k",
        user="u",
    )
    assert asked.stream
    assert asked.include_usage
    assert asked.scope == "c1"
    assert Sampling(**asked.sampling) == Sampling(  # type: ignore[arg-type]
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=7,
        max_tokens=9,
        stop=("END",),
    )


def test_null_is_absent() -> None:
    """Null in any field but the two that must be is as if it were not there."""
    fields = [*HONOURED, *NEUTRAL]
    assert ask(**{f: None for f in fields if f not in ("model", "messages")}) == ask()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_cannot_be_honoured(name: str) -> None:
    """Such a field is refused by name; the values that ask for nothing are taken."""
    for value in NEUTRAL[name]:
        assert ask(**{name: value}) == ask()
    assert refused(**{name: "something"}) == (name, "unsupported_parameter")
    assert refused(**{name: [1]}) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", sorted(NEUTRAL_IN_MESSAGE))
def test_what_cannot_be_honoured_in_a_message(name: str) -> None:
    """The same inside a message, so that a reply can be sent back as it came."""
    for value in (None, *NEUTRAL_IN_MESSAGE[name]):
        assert ask(messages=[{**USER, name: value}]) == ask()
    said = [USER, {**USER, name: [1]}]
    assert refused(messages=said) == (f"messages[1].{name}", "unsupported_parameter")


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temprature": None}, "temprature", "unknown_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"n": 0}, "n", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": "x" * 257}, "model", "string_above_max_length"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": [USER] * (MESSAGES + 1)}, "messages", "invalid_value"),
        ({"messages": [7]}, "messages[0]", "invalid_value"),
        ({"messages": [{"content": ""}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [{"role": "tool", "content": ""}]},
            "messages[0].role",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [USER | {"mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        ({"messages": [USER | {"name": " a"}]}, "messages[0].name", "invalid_value"),
        ({"messages": [USER | {"name": "a\nb"}]}, "messages[0].name", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages[0].content[0].x",
            "unknown_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"messages": [USER | {"content": "\ud83d"}]}, "messages[0].content", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"stream": True, "stream_options": {"x": 1}},
            "stream_options.x",
            "unknown_parameter",
        ),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_value"),
        ({"temperature": "warm"}, "temperature", "invalid_value"),
        ({"temperature": 5.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"min_p": 1}, "min_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stop": 7}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": "a" * 257}, "stop", "string_above_max_length"),
        ({"metadata": "c"}, "metadata", "invalid_value"),
        ({"metadata": {"other": "x"}}, "metadata.other", "unsupported_parameter"),
        ({"user": 7}, "user", "invalid_value"),
    ],
)
def test_wrong_values_are_named(more: dict[str, object], param: str, code: str) -> None:
    """A wrong value is refused, naming the field."""
    assert refused(**more) == (param, code)


def test_nearest() -> None:
    """An unknown field names the nearest there is."""
    with pytest.raises(RequestError, match="did you mean 'temperature'"):
        ask(temprature=1)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b"\xff", b'{"seed": NaN}', b"[" * 100_000, b'{"a":' * 5000]
)
def test_no_json(body: bytes) -> None:
    """What is no JSON object is refused as such."""
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert (caught.value.param, caught.value.code) == (None, "invalid_json")


def test_messages() -> None:
    """Parts of type text are joined; developer is system; an assistant may have said nothing."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = ask(
        messages=[
            {"role": "developer", "content": parts},
            {"role": "system", "name": "example_user", "content": "Hello."},
            {"role": "assistant", "content": None},
            {"role": "user", "content": "c", "name": "Tom"},
        ]
    )
    assert asked.messages == (
        Message(Role.SYSTEM, "ab"),
        Message(Role.SYSTEM, "example_user: Hello."),
        Message(Role.ASSISTANT, ""),
        Message(Role.USER, "c", "Tom"),
    )


def test_scope() -> None:
    """The first of three fields that is set names the conversation; a user has several."""
    later = [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "No."}]
    assert ask().scope == ""
    assert ask(user="u", prompt_cache_key="k").scope == "k"
    assert ask(user="u", prompt_cache_key="k", metadata={"chat_id": "c"}).scope == "c"
    assert ask(user="u", prompt_cache_key="", metadata={}).scope == ask(user="u").scope
    assert ask(user="u").scope == ask(user="u", messages=later).scope
    others = [ask(user="v"), ask(user="u", messages=later[1:]), ask(user="u", messages=[])]
    assert len({a.scope for a in (ask(user="u"), *others)}) == 4


@given(st.sampled_from(["top_k", "stop", "max_tokens"]), st.integers(1, 100))
def test_other_spellings(name: str, number: int) -> None:
    """top_k -1 is 0, one stop is a list of one, either name of max_tokens will do."""
    if name == "top_k":
        assert ask(top_k=-1) == ask(top_k=0)
        assert ask(top_k=number).sampling == {"top_k": number}
    elif name == "stop":
        assert ask(stop="a" * number) == ask(stop=["a" * number])
        assert ask(stop=[]).sampling == {"stop": ()}
    else:
        assert ask(max_tokens=number) == ask(max_completion_tokens=number)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
LIKELY = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(st.just(USER) | JSON, max_size=2)},
    optional={name: JSON for name in (*HONOURED, *NEUTRAL) if name not in ("model", "messages")},
)


@given(LIKELY | st.dictionaries(st.sampled_from([*HONOURED, *NEUTRAL, "other"]), JSON))
def test_any_object_parses_or_is_refused(body: dict[str, object]) -> None:
    """Whatever JSON arrives is a request that can be drawn and sent on, or a RequestError."""
    try:
        asked = parse(json.dumps(body).encode())
    except RequestError:
        return
    assert asked.model
    Sampling(**asked.sampling)  # type: ignore[arg-type]
    "".join(m.text + (m.name or "") for m in asked.messages).encode()


@given(st.binary(max_size=60))
def test_any_bytes(raw: bytes) -> None:
    """Whatever bytes arrive are refused or read."""
    with pytest.raises(RequestError):
        parse(raw)


@given(st.lists(st.sampled_from(sorted(NEUTRAL)), unique=True, max_size=6), st.data())
def test_neutral_values_together(names: list[str], data: st.DataObject) -> None:
    """Any mix of fields that ask for nothing changes nothing."""
    body = {name: data.draw(st.sampled_from([None, *NEUTRAL[name]])) for name in names}
    assert ask(**body) == ask()


def test_doc_has_the_tables() -> None:
    """docs/clients.md holds the tables of all fields exactly as the code would write them."""
    assert table() in DOC.read_text(encoding="utf-8")
