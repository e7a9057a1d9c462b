"""Models as OpenAI's clients see them: a persona, a persona on another backend, a raw backend."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import Refused
from gateway.openai_schema import RequestError
from personas.persona import PersonaNotFound
from personas.prompt import greetings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.ensemble import Ensemble
    from gateway.standby import Standby
    from personas.library import Library
    from personas.persona import JsonValue, Persona

__all__ = ["Voice", "Voices"]


@dataclass(frozen=True, slots=True)
class Voice:
    """Who replies: a persona through a backend, or (None) the backend alone."""

    persona: Persona | None
    standby: Standby


@dataclass(frozen=True, slots=True)
class Voices:
    """The models there are. `created` is what their entries say, in Unix seconds."""

    library: Library
    ensemble: Ensemble
    created: int

    def find(self, model: str) -> Voice:
        """The voice of `persona/<slug>`, `persona/<slug>@<backend>` or `backend/<name>`.

        Raises `RequestError` (`model_not_found`) with the nearest id there is.
        """
        kind, _, name = model.partition("/")
        try:
            if kind == "backend":
                return Voice(None, self.ensemble.get(name))
            if kind == "persona":
                slug, at, backend = name.partition("@")  # a slug has no @
                standby = self.ensemble.get(backend) if at else self.ensemble.default
                return Voice(self.library.get(slug), standby)
        except (PersonaNotFound, Refused):
            pass
        near = difflib.get_close_matches(model, [known for known, _ in self._all()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; GET /v1/models lists what there is"
        raise RequestError(
            f"there is no model {model[:80]!r}{hint}", param="model", code="model_not_found"
        )

    def entries(self) -> list[JsonValue]:
        """Every model as `GET /v1/models` lists it."""
        return [self.entry(model, voice) for model, voice in self._all()]

    def entry(self, model: str, voice: Voice) -> dict[str, JsonValue]:
        """One model; the keys after `owned_by` are ours, for people."""
        persona, standby = voice.persona, voice.standby
        entry: dict[str, JsonValue] = {
            "id": model,
            "object": "model",
            "created": self.created,
            "owned_by": "greenroom",
        }
        if standby.capabilities is not None:
            entry["context_length"] = standby.capabilities.context
        if persona is None:
            speaks = f"The backend {standby.backend.name} alone, without a character."
            return entry | {"name": standby.backend.name, "description": speaks}
        _, at, backend = model.partition("@")
        return entry | {
            "name": f"{persona.name} ({backend})" if at else persona.name,
            "description": persona.tagline,
            "avatar": f"/v1/personas/{persona.id}/avatar" if persona.avatar else None,
            "greetings": list(greetings(persona, user="You", conversation_id=None)),
        }

    def _all(self) -> Iterator[tuple[str, Voice]]:
        default = self.ensemble.default
        for persona in self.library.list():
            yield f"persona/{persona.id}", Voice(persona, default)
            for standby in self.ensemble:
                if standby is not default:
                    model = f"persona/{persona.id}@{standby.backend.name}"
                    yield model, Voice(persona, standby)
        for standby in self.ensemble:
            yield f"backend/{standby.backend.name}", Voice(None, standby)
