"""A chat as a value that goes through files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.api import Role
from personas.chatfile import ChatFile, branches, from_json, swipes, to_json
from personas.chats import read_chats
from personas.conversation import ChatMessage, Conversation
from personas.limits import ImportLimits
from personas.persona import CardError
from tests.personas.makers import tree

if TYPE_CHECKING:
    from personas.persona import JsonValue

LINES = b"""{"user_name": "Sam", "chat_metadata": {}}
{"name": "Ada", "is_user": false, "mes": "b", "swipes": ["a", "b"], "swipe_id": 1, "x": 1}
{"name": "Sam", "is_user": true, "is_system": true, "mes": "hidden"}
"""


def one(raw: bytes) -> ChatFile:
    (chat,) = read_chats(raw)
    return chat


def test_own_json() -> None:
    """Our own format holds everything: the tree, sampled tokens, the file it came from."""
    for chat in (ChatFile(tree()), one(LINES)):
        again = one(to_json(chat))
        assert again == replace(chat, findings=())
        assert to_json(again) == to_json(chat)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("conversation",), None),
        (("conversation", "head"), "nobody"),
        (("conversation", "user"), 3),
        (("conversation", "messages"), {}),
        (("conversation", "messages", 0, "parent"), "later"),
        (("conversation", "messages", 0, "role"), "bard"),
        (("conversation", "messages", 1, "id"), "g1"),
        (("conversation", "messages", 3, "sampled", "ids"), ["x"]),
        (("source", "lines"), None),
    ],
)
def test_own_json_is_strict(path: tuple[str | int, ...], value: JsonValue) -> None:
    """A chat of our own that is not whole is refused."""
    whole = json.loads(to_json(ChatFile(tree())))
    at = whole
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(CardError) as caught:
        from_json(whole, ImportLimits())
    assert caught.value.code == "bad_chat"


def test_branches() -> None:
    """Heads that together show all; candidates of one speaker count as shown."""
    heads = [branch.head for branch in branches(tree())]
    assert heads == ["a3", "a1"]
    rewound = branches(tree().rewind("u1"))
    assert rewound[0].head == "u1"
    assert {"a1", "a3"} <= {branch.head for branch in rewound}
    assert branches(Conversation("c", "p", "1", "u")) == ()


def test_branches_of_a_wide_tree() -> None:
    """Thousands of first messages by as many speakers take no time that grows with their square."""
    messages = [ChatMessage(str(n), None, Role.USER, str(n), "x") for n in range(5000)]
    wide = Conversation("c", "p", "1", "u", tuple(messages), "0")
    assert len(branches(wide)) == 5000


def test_swipes() -> None:
    """Only messages of one parent, role and name are each other's swipes."""
    groups = swipes(tree())
    assert [m.id for m in groups[None, Role.ASSISTANT, "Ada"]] == ["g1", "g2"]
    assert [m.id for m in groups["g2", Role.USER, "Sam"]] == ["u1", "u2"]
