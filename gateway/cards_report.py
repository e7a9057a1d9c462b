"""What the command and the HTTP routes both say of a character, and the files they hand out."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from personas import exporter
from personas.binding import bind
from personas.charx import Asset
from personas.drawing import rasterize
from personas.importer import ImportedCard, read_any
from personas.limits import Finding
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personas.importer import ImportedBook
    from personas.persona import JsonValue, Persona
    from personas.shelf import Entry

__all__ = ["FORMS", "Exported", "bound", "exported", "finding_json", "report_json"]

FORMS = {
    "v2": (".json", "application/json"),
    "v3": (".json", "application/json"),
    "png": (".png", "image/png"),
    "charx": (".charx", "application/zip"),
}
"""What a character can be exported as: the file's ending and its media type."""

_ICON = "assets/icon/images/main.png"


class Exported(NamedTuple):
    """A file for other programs; `findings` are what it cannot say."""

    data: bytes
    media_type: str
    filename: str
    findings: tuple[Finding, ...] = ()


def report_json(entry: Entry) -> dict[str, JsonValue]:
    """A character's import: its container, what became of each field, and what was noticed."""
    report = entry.report
    return {
        "persona": entry.persona.id,
        "name": entry.persona.name,
        "revision": entry.persona.revision,
        "container": entry.container,
        "report": {
            "executed": list(report.executed),
            "preserved": list(report.preserved),
            "dropped": list(report.dropped),
            "repaired": list(report.repaired),
        },
        "findings": [finding_json(finding) for finding in entry.findings],
    }


def finding_json(finding: Finding) -> JsonValue:
    """One finding as an object."""
    return {"code": finding.code, "where": finding.where, "message": finding.message}


def exported(entry: Entry, form: str, *, persona: Persona | None = None) -> Exported:
    """The character as a file in one of `FORMS`; `persona` is another revision of it.

    Reads and decodes the picture. Raises `OSError` and `CardError`.
    """
    persona = persona or entry.persona
    ending, media_type = FORMS[form]
    name = persona.id + ending
    if form == "v2":
        lost = exporter.losses(persona)
        return Exported(exporter.to_json(persona, version=2), media_type, name, lost)
    if form == "v3":
        return Exported(exporter.to_json(persona), media_type, name)
    picture, assets, findings = _files(entry)
    if form == "png":
        data = exporter.to_png(persona, picture, assets=assets)
        return Exported(data, media_type, name, findings)
    if picture is not None and not _has_icon(persona):
        persona, assets = _with_icon(persona, picture, assets)
    return Exported(exporter.to_charx(persona, assets), media_type, name, findings)


def bound(entry: Entry, book: ImportedBook) -> Exported:
    """The character with the lorebook, as a file for the library; with its picture, if it has one.

    Reads and decodes the picture. Raises `OSError` and `CardError`.
    """
    persona = bind(entry.persona, book)
    return exported(entry, "png" if entry.picture else "v3", persona=persona)


def _files(entry: Entry) -> tuple[bytes | None, tuple[Asset, ...], tuple[Finding, ...]]:
    """The character's picture and what else its file held."""
    imported = read_any(entry.file.read_bytes(), filename=entry.file.name, with_avatar=False)
    assets = imported.assets if isinstance(imported, ImportedCard) else ()
    if entry.picture is None:
        return None, assets, ()
    if entry.picture == entry.file:
        found = imported.picture if isinstance(imported, ImportedCard) else None
        return found, assets, ()
    if entry.picture.suffix.lower() == ".svg":
        try:
            return rasterize(entry.picture.read_bytes()), assets, ()
        except CardError as error:
            return None, assets, (Finding("no_picture", entry.picture.name, error.message),)
    return entry.picture.read_bytes(), assets, ()


def _has_icon(persona: Persona) -> bool:
    """Whether the card names a main icon of its own, and not just "the picture I came in"."""
    return any(_is_icon(asset) and not _is_default(asset) for asset in _listed(persona))


def _is_icon(asset: JsonValue) -> bool:
    return isinstance(asset, dict) and asset.get("type") == "icon" and asset.get("name") == "main"


def _is_default(asset: JsonValue) -> bool:
    uri = asset.get("uri") if isinstance(asset, dict) else None
    return isinstance(uri, str) and uri.startswith("ccdefault:")


def _listed(persona: Persona) -> list[JsonValue]:
    data = persona.card.get("data")
    listed = data.get("assets") if isinstance(data, dict) else None
    return listed if isinstance(listed, list) else []


def _with_icon(
    persona: Persona, picture: bytes, assets: Sequence[Asset]
) -> tuple[Persona, tuple[Asset, ...]]:
    """With the picture as the archive's main icon."""
    from personas.pictures import reencode

    icon: JsonValue = {"type": "icon", "name": "main", "uri": f"embeded://{_ICON}", "ext": "png"}
    data = persona.card.get("data")
    fields: dict[str, JsonValue] = dict(data) if isinstance(data, dict) else {}
    kept = [asset for asset in _listed(persona) if not (_is_icon(asset) and _is_default(asset))]
    fields["assets"] = [*kept, icon]
    card = MappingProxyType({**persona.card, "data": fields})
    made = Asset(_ICON, reencode(picture), "icon", "main")
    return replace(persona, card=card), (*assets, made)
