"""The body of `POST /v1/chat/completions`, read strictly: honoured, refused by name, or neutral.

Source: the OpenAI API reference, "Create chat completion"; `top_k`, `min_p` and
`repetition_penalty` as in vLLM's server. Nothing is accepted and ignored: a field that changes
nothing here may only have a value that would change nothing there either.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from backends.api import Message, Role
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from personas.persona import JsonValue

__all__ = [
    "BODY_BYTES",
    "HONOURED",
    "MESSAGES",
    "NEUTRAL",
    "NEUTRAL_IN_MESSAGE",
    "ChatRequest",
    "ParameterFault",
    "RequestError",
    "parse",
    "table",
]

BODY_BYTES = 4 << 20
MESSAGES = 4096
"""The most that one request may have."""
NAME_CHARS = 64
SCOPE_CHARS = 512

HONOURED: Mapping[str, str] = MappingProxyType(
    {
        "model": "an id of `GET /v1/models`",
        "messages": f"at most {MESSAGES}; roles `system`, `developer`, `user`, `assistant`; "
        "content is a text or a list of text parts; `name` is the speaker",
        "stream": "server-sent events",
        "stream_options": "`include_usage`, with `stream` alone",
        "temperature": "0 to 5; 0 is greedy",
        "top_p": "above 0, to 1",
        "top_k": "tokens to draw from; 0 or -1 is off",
        "min_p": "0 to below 1",
        "repetition_penalty": "0.1 to 10",
        "seed": "0 to 2^63 - 1; the same seed, prompt and model give the same reply",
        "max_completion_tokens": "1 to 32768; a character takes at most half of the context",
        "max_tokens": "the older name of `max_completion_tokens`; given both, they must agree",
        "stop": "a text or up to 16, of 1 to 256 characters; never part of the reply",
        "n": "1",
        "metadata": "`chat_id`: names the conversation; no other key",
        "prompt_cache_key": "names the conversation where `metadata.chat_id` does not",
        "user": "names it together with the messages up to the first of the user, "
        "where neither of those two does",
    }
)
NEUTRAL: Mapping[str, tuple[JsonValue, ...]] = MappingProxyType(
    {
        "audio": ({},),
        "frequency_penalty": (0,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": ([], ["text"]),
        "moderation": (),
        "parallel_tool_calls": (False, True),
        "prediction": ({},),
        "presence_penalty": (0,),
        "prompt_cache_options": ({},),
        "prompt_cache_retention": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "safety_identifier": ("",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
)
"""Fields of OpenAI's that cannot be honoured, with the values beside null that ask for nothing."""
NEUTRAL_IN_MESSAGE: Mapping[str, tuple[JsonValue, ...]] = MappingProxyType(
    {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "reasoning_content": ("",),
        "refusal": ("",),
        "tool_call_id": (),
        "tool_calls": ([],),
    }
)
"""The same inside a message: what clients send back of a reply."""

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}

_Fields: TypeAlias = "dict[str, JsonValue]"


class ParameterFault(StrEnum):
    """The `code` of an error about a request's body."""

    UNKNOWN = "unknown_parameter"
    UNSUPPORTED = "unsupported_parameter"
    MISSING = "missing_required_parameter"
    INVALID = "invalid_value"
    TOO_LONG = "string_above_max_length"
    NOT_JSON = "invalid_json"


class RequestError(GatewayError):
    """A request that is refused. `param` is the path of a field such as `messages[2].content`."""

    def __init__(
        self, message: str, *, param: str | None, code: str = ParameterFault.INVALID
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = str(code)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that can be honoured. `sampling` has what it says of `backends.api.Sampling`.

    `scope` names the conversation for cached KV and for what a card draws once a chat; empty when
    the client said nothing about it.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    scope: str = ""
    sampling: Mapping[str, float | int | tuple[str, ...]] = field(default_factory=dict)


def parse(body: bytes) -> ChatRequest:
    """The request in a body. Raises `RequestError`."""
    try:
        fields: JsonValue = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "the body is not JSON", param=None, code=ParameterFault.NOT_JSON
        ) from error
    if not isinstance(fields, dict):
        raise RequestError(
            "the body is not a JSON object", param=None, code=ParameterFault.NOT_JSON
        )
    _refuse(fields, HONOURED, NEUTRAL)
    model = _checked(_required(fields.get("model"), "model"), "model", 256)
    if not model:
        raise _invalid("model", "an id of GET /v1/models")
    messages = _messages(fields)
    stream = _flag(fields, "stream")
    if _whole(fields, "n", 1, 128) not in (None, 1):
        raise _unsupported("n", "one reply a request; ask again for another")
    return ChatRequest(
        model,
        messages,
        stream,
        _include_usage(fields, stream),
        _scope(fields, messages),
        _sampling(fields),
    )


def table() -> str:
    """The fields as the Markdown tables of docs/clients.md."""
    lines = ["| field | what it may be |", "|---|---|"]
    lines += [f"| `{name}` | {says} |" for name, says in HONOURED.items()]
    lines += ["", "| refused | unless absent, null or |", "|---|---|"]
    rows = [*NEUTRAL.items()]
    rows += [(f"messages[].{name}", values) for name, values in NEUTRAL_IN_MESSAGE.items()]
    for name, values in rows:
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in values)
        lines.append(f"| `{name}` | {neutral or '–'} |")
    return "\n".join(lines)


def _refuse(
    fields: _Fields,
    honoured: Mapping[str, object],
    refused: Mapping[str, tuple[JsonValue, ...]],
    path: str = "",
) -> None:
    """Refuses unknown fields, then those that ask for what cannot be had."""
    for name in fields:
        if name not in honoured and name not in refused:
            near = difflib.get_close_matches(name[:64], [*honoured, *refused], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            said = _param(path, name)
            raise RequestError(
                f"unknown parameter {said!r}{hint}", param=said, code=ParameterFault.UNKNOWN
            )
    for name, value in fields.items():
        if value is not None and name in refused and value not in refused[name]:
            raise _unsupported(_param(path, name), "this server cannot honour it")


def _param(path: str, name: str) -> str:
    shown = name[:64].encode(errors="replace").decode()
    return f"{path}.{shown}" if path else shown


def _messages(fields: _Fields) -> tuple[Message, ...]:
    said = _required(fields.get("messages"), "messages")
    if not isinstance(said, list):
        raise _invalid("messages", "a list")
    if len(said) > MESSAGES:
        raise _invalid("messages", f"a list of at most {MESSAGES}")
    return tuple(_message(one, f"messages[{at}]") for at, one in enumerate(said))


def _message(said: JsonValue, path: str) -> Message:
    if not isinstance(said, dict):
        raise _invalid(path, "an object")
    _refuse(said, {"role": "", "content": "", "name": ""}, NEUTRAL_IN_MESSAGE, path)
    role = _required(said.get("role"), f"{path}.role")
    if role in ("tool", "function"):
        raise _unsupported(f"{path}.role", "there are no tools here")
    if not isinstance(role, str) or role not in ROLES:
        raise _invalid(f"{path}.role", "one of " + ", ".join(ROLES))
    content = said.get("content")
    if content is None and role == "assistant":
        content = ""  # as clients send back a reply that was stopped before its first word
    text = _content(_required(content, f"{path}.content"), f"{path}.content")
    name = _text(said, "name", NAME_CHARS, path) or None
    if name is not None and not (name.isprintable() and name == name.strip()):
        raise _invalid(f"{path}.name", "printable, without spaces around it")
    if ROLES[role] is Role.SYSTEM and name is not None:
        # Prompts show no speaker of a system message, so the text has to.
        return Message(Role.SYSTEM, f"{name}: {text}")
    return Message(ROLES[role], text, name)


def _content(said: JsonValue, path: str) -> str:
    """A text, or the texts of its parts in a row."""
    if not isinstance(said, list):
        return _checked(said, path, BODY_BYTES)
    texts = []
    for at, part in enumerate(said):
        here = f"{path}[{at}]"
        if not isinstance(part, dict):
            raise _invalid(here, "an object")
        kind = _required(part.get("type"), f"{here}.type")
        if kind != "text":
            raise _unsupported(f"{here}.type", "only parts of type 'text' can be read")
        _refuse(part, {"type": "", "text": ""}, {}, here)
        texts.append(_checked(_required(part.get("text"), f"{here}.text"), here, BODY_BYTES))
    return "".join(texts)


def _sampling(fields: _Fields) -> dict[str, float | int | tuple[str, ...]]:
    top_k = _whole(fields, "top_k", -1, 1 << 20)
    said = {
        "temperature": _number(fields, "temperature", 0.0, 5.0),
        "top_p": _number(fields, "top_p", 0.0, 1.0, above=True),
        "top_k": None if top_k is None else max(top_k, 0),
        "min_p": _number(fields, "min_p", 0.0, 1.0, below=True),
        "repetition_penalty": _number(fields, "repetition_penalty", 0.1, 10.0),
        "seed": _whole(fields, "seed", 0, 2**63 - 1),
        "max_tokens": _max_tokens(fields),
        "stop": _stop(fields),
    }
    return {name: value for name, value in said.items() if value is not None}


def _stop(fields: _Fields) -> tuple[str, ...] | None:
    said = fields.get("stop")
    if said is None:
        return None
    stops = said if isinstance(said, list) else [said]
    if len(stops) > 16:
        raise _invalid("stop", "at most 16 texts")
    texts = tuple(_checked(one, "stop", 256) for one in stops)
    if not all(texts):
        raise _invalid("stop", "without empty texts")
    return texts


def _include_usage(fields: _Fields, stream: bool) -> bool:
    said = fields.get("stream_options")
    if said is None:
        return False
    if not isinstance(said, dict):
        raise _invalid("stream_options", "an object")
    if not stream:
        raise _invalid("stream_options", "absent when 'stream' is not true")
    _refuse(said, {"include_usage": ""}, {"include_obfuscation": (False,)}, "stream_options")
    return _flag(said, "include_usage", "stream_options")


def _max_tokens(fields: _Fields) -> int | None:
    new = _whole(fields, "max_completion_tokens", 1, 32768)
    old = _whole(fields, "max_tokens", 1, 32768)
    if new is not None and old is not None and new != old:
        raise _invalid("max_tokens", "absent or equal to 'max_completion_tokens'")
    return old if new is None else new


def _scope(fields: _Fields, messages: tuple[Message, ...]) -> str:
    metadata = fields.get("metadata")
    chat_id = None
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise _invalid("metadata", "an object")
        for name in metadata:
            if name != "chat_id":
                raise _unsupported(_param("metadata", name), "nothing is stored here")
        chat_id = _text(metadata, "chat_id", SCOPE_CHARS, "metadata")
    key = _text(fields, "prompt_cache_key", SCOPE_CHARS)
    user = _text(fields, "user", SCOPE_CHARS)
    if chat_id or key or not user:
        return chat_id or key or ""
    first = next((i for i, m in enumerate(messages) if m.role is Role.USER), len(messages))
    opening = [[m.role.value, m.name, m.text] for m in messages[: first + 1]]
    return "user_" + hashlib.sha256(json.dumps([user, opening]).encode()).hexdigest()[:32]


def _number(
    fields: _Fields,
    name: str,
    low: float,
    high: float,
    *,
    above: bool = False,
    below: bool = False,
) -> float | None:
    """A number from `low` to `high`; `above` and `below` leave that end out."""
    value = fields.get(name)
    if value is None:
        return None
    ends = f"{'above' if above else 'from'} {low:g} {'to below' if below else 'to'} {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _invalid(name, f"a number {ends}")
    if not low <= value <= high or (above and value == low) or (below and value == high):
        raise _invalid(name, f"a number {ends}")
    return float(value)


def _whole(fields: _Fields, name: str, low: int, high: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _invalid(name, f"a whole number from {low} to {high}")
    return value


def _flag(fields: _Fields, name: str, path: str = "") -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise _invalid(_param(path, name), "true or false")
    return bool(value)


def _text(fields: _Fields, name: str, most: int, path: str = "") -> str | None:
    value = fields.get(name)
    return None if value is None else _checked(value, _param(path, name), most)


def _checked(value: JsonValue, path: str, most: int) -> str:
    """The value as a text that can be sent on: not too long, and no half of a character."""
    if not isinstance(value, str):
        raise _invalid(path, "a text")
    if len(value) > most:
        message = f"{path!r} has {len(value)} characters; the limit is {most}"
        raise RequestError(message, param=path, code=ParameterFault.TOO_LONG)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(path, "without half characters (surrogates)") from error
    return value


def _required(value: JsonValue, path: str) -> JsonValue:
    if value is None:
        raise RequestError(f"{path!r} is required", param=path, code=ParameterFault.MISSING)
    return value


def _invalid(path: str, wanted: str) -> RequestError:
    return RequestError(f"{path!r} must be {wanted}", param=path, code=ParameterFault.INVALID)


def _unsupported(path: str, why: str) -> RequestError:
    return RequestError(f"{path!r} is refused: {why}", param=path, code=ParameterFault.UNSUPPORTED)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
