"""CHARX and BYAF archives: the card's JSON, and the files that came with it.

Sources: character-card-spec-v3 (CHARX; the scheme is `embeded://`, sic), Backyard Archive Format.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from personas import foreign
from personas.jsontext import load_json
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from personas.archive import Archive
    from personas.limits import Findings, ImportLimits
    from personas.persona import JsonValue

__all__ = [
    "Asset",
    "dump",
    "is_byaf",
    "main_icon",
    "name_assets",
    "read_byaf",
    "read_charx",
    "write_charx",
]

_EMBEDDED = re.compile(r"embedd?ed://(.+)|__asset[:_](.+)", re.DOTALL)
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that came with a card, untouched and not decoded.

    `type` and `name` are those of the card's `assets` list, empty for a file it does not name
    (RisuAI's `module.risum`, for one).
    """

    path: str
    data: bytes
    type: str = ""
    name: str = ""


def read_charx(archive: Archive, findings: Findings) -> tuple[bytes, dict[str, bytes]]:
    """The bytes of `card.json`, and every other file by its path beside it.

    Raises `CardError`: `no_card`, and those of `Archive.read`.
    """
    paths = [path for path in archive.paths if path.rpartition("/")[2].lower() == "card.json"]
    if not paths:
        raise CardError("no_card", "the zip file has no card.json and is no Backyard archive")
    path = min(paths, key=lambda each: (each.count("/"), each != "card.json"))
    folder = path[: -len("card.json")]
    if folder:
        findings.add("card_in_subfolder", f"the card lies in {folder}", where=path)
    if path != f"{folder}card.json":
        findings.add("name_case", f"card.json is written {path!r}", where=path)
    files = {
        other.removeprefix(folder): archive.read(other) for other in archive.paths if other != path
    }
    return archive.read(path), files


def is_byaf(archive: Archive) -> bool:
    """Whether an archive is Backyard's."""
    paths = archive.paths
    return "manifest.json" in paths and any(path.startswith("characters/") for path in paths)


def read_byaf(
    archive: Archive, limits: ImportLimits, findings: Findings
) -> tuple[dict[str, JsonValue], dict[str, bytes]]:
    """The first character of a Backyard archive as a V3 card, and the files beside the JSON.

    Raises `CardError`: `no_card`, and those of `load_json` and `Archive.read`.
    """

    def load(path: str) -> dict[str, JsonValue]:
        if path not in archive.paths:
            raise CardError("no_card", f"the archive has no {path}", where=path)
        read.add(path)
        return load_json(archive.read(path), limits, findings)[0]

    read: set[str] = set()
    manifest = load("manifest.json")
    characters = _strings(manifest.get("characters"))
    if not characters:
        raise CardError("no_card", "the archive's manifest names no character", where="characters")
    if len(characters) > 1:
        findings.add("more_characters", f"only the first of {len(characters)} characters is read")
    character = load(characters[0])
    scenarios = [load(path) for path in dict.fromkeys(_strings(manifest.get("scenarios")))]
    card = foreign.from_byaf(manifest, character, scenarios, findings)
    folder = characters[0].rpartition("/")[0] + "/"
    listed = character.get("images")
    assets: list[JsonValue] = []
    for image in listed if isinstance(listed, list) else []:
        path = image.get("path") if isinstance(image, dict) else None
        if isinstance(path, str):
            full = next((p for p in (folder + path, path) if p in archive.paths), None)
            if full is None:
                findings.add("asset_missing", "the archive has no such picture", where=path)
                continue
            name = "main" if not assets else f"picture {len(assets)}"
            ending = path.rpartition(".")[2]
            assets.append({"type": "icon", "uri": f"embeded://{full}", "name": name, "ext": ending})
    data = card["data"]
    if assets and isinstance(data, dict):
        data["assets"] = assets
    return card, {path: archive.read(path) for path in archive.paths if path not in read}


def name_assets(
    card: Mapping[str, JsonValue], files: Mapping[str, bytes], findings: Findings
) -> tuple[Asset, ...]:
    """The files with the types and names that the card gives them.

    Addresses on the network are findings: nothing is fetched.
    """
    data = card.get("data")
    listed = data.get("assets") if isinstance(data, dict) else None
    named: dict[str, tuple[str, str]] = {}
    for number, item in enumerate(listed if isinstance(listed, list) else []):
        where = f"data.assets.{number}"
        uri = item.get("uri") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(uri, str):
            findings.add("bad_asset", "an asset without a uri", where=where)
        elif found := _EMBEDDED.fullmatch(uri):
            path = found[1] or found[2]
            if path in files:
                named.setdefault(path, (str(item.get("type", "")), str(item.get("name", ""))))
            else:
                findings.add("asset_missing", f"no file for {uri[:80]}", where=where)
        elif uri.lower().startswith(("http:", "https:", "//", "ftp:", "file:")):
            findings.add("not_fetched", f"a remote asset is not fetched: {uri[:80]}", where=where)
    for path in files:
        if path not in named:
            findings.add("unnamed_file", "kept; the card names no such asset", where=path)
    return tuple(Asset(path, data, *named.get(path, ("", ""))) for path, data in files.items())


def main_icon(assets: Iterable[Asset]) -> bytes | None:
    """The bytes of the icon named `main`, else of the first icon."""
    icons = [asset for asset in assets if asset.type == "icon"]
    icons.sort(key=lambda asset: asset.name != "main")
    return icons[0].data if icons else None


def write_charx(card: bytes, assets: Iterable[Asset]) -> bytes:
    """A CHARX archive of a card's JSON and its files, the same bytes for the same input.

    Raises `CardError`: `bad_asset` for a path that is not plain.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("card.json", _EPOCH), card, zipfile.ZIP_DEFLATED)
        for asset in assets:
            parts = asset.path.split("/")
            if any(part in ("", ".", "..") for part in parts) or asset.path == "card.json":
                raise CardError("bad_asset", f"no path for an archive: {asset.path[:80]!r}")
            archive.writestr(zipfile.ZipInfo(asset.path, _EPOCH), asset.data)
    return out.getvalue()


def dump(card: Mapping[str, JsonValue]) -> bytes:
    """A card as JSON for the reader of cards."""
    return json.dumps(dict(card)).encode()


def _strings(value: JsonValue) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
