"""One conversation of 20 turns, with the KV store and without it: time to first token, same tokens.

Both runs are greedy and use the real engine process; a fresh tenant makes sure that nothing is
cached before the first turn.
"""

from __future__ import annotations

import secrets
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.api import Finished, Role, SampledTokens, Sampling, TextDelta, Usage
from backends.local.client import LocalBackend
from backends.local.settings import EngineSettings
from gateway.config import DataConfig
from personas.conversation import ChatMessage, Conversation
from personas.library import Library
from personas.prompt import Budget, prompt_texts, render

if TYPE_CHECKING:
    import argparse

    from backends.api import Backend
    from personas.persona import Persona

LINES = (
    "Good evening. Is there room for one more?",
    "I walked all day and the road was mud to the knee.",
    "What is that you are working on?",
    "I had a friend who did the same. He never finished anything.",
    "Do you ever think about leaving this place?",
    "Tell me about the worst night you remember.",
    "And how did you get through it?",
    "I am not sure I would have been so brave.",
    "Somebody told me there is a secret about you.",
    "You can trust me. I am only passing through.",
    "Fine, keep it. What should I know about the people here?",
    "Who is the one I should stay away from?",
    "Why? What did they do?",
    "That is a hard thing to forgive.",
    "Have you eaten yet today?",
    "I have bread and a little cheese, if you want to share.",
    "It is raining again. Listen to it.",
    "What would you do with one free day?",
    "I think I will sleep now. Wake me if anything happens.",
    "Good night, then. Thank you for the company.",
)


@dataclass(frozen=True, slots=True)
class Spoken:
    """One turn as measured."""

    text: str
    ids: SampledTokens | None
    usage: Usage
    ttft_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gemma-3-270m", help="packaged name or a folder")
    parser.add_argument(
        "--data", type=Path, default=DataConfig().folder / "bench", help="where weights and KV lie"
    )


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Runs both and compares; `identical` says that every reply has the same token ids."""
    reply_tokens = 12 if args.smoke else 60
    runs = {}
    for store in ("tiered", "none"):
        backend = LocalBackend(EngineSettings(data_dir=args.data, model=args.model, store=store))
        try:
            runs[store] = await converse(backend, reply_tokens)
        finally:
            await backend.aclose()
    warm, cold = runs["tiered"], runs["none"]
    later = warm[2:]
    shares = [t.usage.cached_tokens / t.usage.prompt_tokens for t in later]
    return {
        "ttft_warm_ms": round(statistics.median(t.ttft_ms for t in later), 1),
        "ttft_cold_ms": round(statistics.median(t.ttft_ms for t in cold[2:]), 1),
        "cached_token_share": round(
            sum(t.usage.cached_tokens for t in later) / sum(t.usage.prompt_tokens for t in later), 4
        ),
        "cached_token_share_lowest": round(min(shares), 4),
        "identical": [(t.text, t.ids) for t in warm] == [(t.text, t.ids) for t in cold],
        "turns": len(warm),
        "prompt_tokens_last": warm[-1].usage.prompt_tokens,
        "model": args.model,
    }


async def converse(backend: Backend, reply_tokens: int) -> list[Spoken]:
    """Speaks the twenty turns, each reply becoming part of the next prompt."""
    capabilities = await backend.start()
    persona = Library.shipped().list()[0]
    conversation = opened(persona)
    tenant = f"bench-{secrets.token_hex(8)}"
    spoken: list[Spoken] = []
    for number, line in enumerate(LINES):
        conversation = said(conversation, Role.USER, "You", line)
        texts = prompt_texts(persona, conversation)
        turn = render(
            persona,
            conversation,
            turn_id=f"turn-{number}",
            tenant=tenant,
            sampling=Sampling(temperature=0.0, max_tokens=reply_tokens),
            budget=Budget(
                capabilities.context,
                reply_tokens,
                dict(zip(texts, await backend.count(texts), strict=True)),
            ),
        )
        text = ""
        async for event in backend.stream(turn):
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Finished):
                spoken.append(Spoken(text, event.sampled, event.usage, event.timings.ttft_ms))
        conversation = said(conversation, Role.ASSISTANT, persona.speaks_as, text, spoken[-1].ids)
    return spoken


def opened(persona: Persona) -> Conversation:
    """A new conversation with the greeting in it."""
    empty = Conversation("bench", persona.id, persona.revision, "You")
    return said(empty, Role.ASSISTANT, persona.speaks_as, persona.greeting)


def said(
    conversation: Conversation,
    role: Role,
    name: str,
    text: str,
    ids: SampledTokens | None = None,
) -> Conversation:
    """The conversation with one more message at its end."""
    message_id = f"m{len(conversation.messages)}"
    return conversation.say(
        ChatMessage(message_id, conversation.head, role, name, text, sampled=ids)
    )
