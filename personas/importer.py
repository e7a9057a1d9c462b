"""One entry for every file that an author may have: what it is, by its content, and what is in it.

The container gives JSON, `personas.card` reads that; `Findings` collects what was odd. Nothing is
written to disk and nothing is fetched.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from personas import charx, exif, foreign, pictures, png, worldinfo
from personas.archive import Archive, has_archive
from personas.card import ImportReport, read_card
from personas.jsontext import decode_text, load_json, unwrap_payload
from personas.limits import Finding, Findings, ImportLimits, Inflater
from personas.persona import CardError, Persona
from personas.yamltext import load_yaml

if TYPE_CHECKING:
    from personas.charx import Asset
    from personas.persona import JsonValue

__all__ = ["Import", "ImportedBook", "ImportedCard", "read_any", "read_picture"]

_KNOWN = (
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
)
_PAGE = re.compile(rb"\s*<(?:!doctype|!--|html|head|body|\?xml|svg)", re.IGNORECASE)
_REMOTE = re.compile(r"\]\(\s*<?(?:https?:)?//|<img\b", re.IGNORECASE)
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d")  # no file names on Windows
_YAML = (".yaml", ".yml")
_FATAL = frozenset({"encrypted", "too_large", "too_deep", "too_many_values", "inflate_bomb"})


@dataclass(frozen=True, slots=True)
class ImportedCard:
    """A persona and all that its file held.

    `avatar` is a PNG made anew from the file's picture; None without one that can be read, or when
    it was not asked for. `picture` is the picture as it came, for `pictures.reencode` later: never
    show it. `report` is about the card's fields, `findings` about everything else.
    """

    persona: Persona
    report: ImportReport
    container: str
    avatar: bytes | None = None
    picture: bytes | None = None
    assets: tuple[Asset, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportedBook:
    """A lorebook that came without a character, as a V3 `character_book`."""

    name: str
    book: dict[str, JsonValue]
    container: str
    findings: tuple[Finding, ...] = ()


Import: TypeAlias = ImportedCard | ImportedBook


@dataclass(slots=True)
class _Found:
    """What a container gave: a card's object and its JSON, or a picture with it."""

    container: str
    card: dict[str, JsonValue]
    text: bytes
    picture: bytes | None = None
    files: dict[str, bytes] | None = None


def read_any(
    raw: bytes,
    *,
    filename: str = "",
    id: str | None = None,
    limits: ImportLimits | None = None,
    with_avatar: bool = True,
) -> Import:
    """Reads a character or a lorebook from any file that programs for characters write.

    `filename` only names what has no name inside; `id` is the persona's, made from its name if
    None. `with_avatar` False leaves the picture undecoded. Raises `CardError`; its codes are those
    of the modules beside this one, and here `empty`, `too_large`, `unsupported`, `html_page`,
    `no_card`, `not_a_card`, `too_many_entries`.
    """
    reader = _Reader(raw, filename, limits or ImportLimits())
    found = reader.find()
    findings = reader.findings
    if worldinfo.is_book(found.card):
        book = worldinfo.book_from(found.card, findings)
        _check_book(book, reader.limits)
        written = book.get("name")
        name = written if isinstance(written, str) and written.strip() else _stem(filename)
        return ImportedBook(name, book, found.container, findings.done())
    kind = foreign.kind_of(found.card)
    if kind is not None:
        found.card = foreign.card_from(kind, found.card, findings)
        found.text = charx.dump(found.card)
        found.container = f"{kind} {found.container}"
    _check_lore(found.card, reader.limits)
    persona_id = id or _slug(_name(found.card)) or _slug(_stem(filename)) or "character"
    imported = read_card(found.text, id=persona_id, limits=reader.limits.card)
    assets = charx.name_assets(found.card, found.files or {}, findings)
    _remark(imported.persona, found.card, findings)
    picture = charx.main_icon(assets) or found.picture
    avatar = _avatar(picture, reader.limits, findings) if with_avatar else None
    persona = imported.persona
    if avatar is not None:
        persona = replace(persona, avatar=f"{persona_id}.png")
    return ImportedCard(
        persona=persona,
        report=imported.report,
        container=found.container,
        avatar=avatar,
        picture=picture,
        assets=assets,
        findings=findings.done(),
    )


def read_picture(raw: bytes, limits: ImportLimits | None = None) -> bytes | None:
    """The picture of a card's file as it came, and nothing else of it: never show it.

    Raises `CardError` where no card is found, as `read_any`.
    """
    reader = _Reader(raw, "", limits or ImportLimits())
    found = reader.find()
    assets = charx.name_assets(found.card, found.files or {}, reader.findings)
    return charx.main_icon(assets) or found.picture


class _Reader:
    """Finds the card in a file."""

    def __init__(self, raw: bytes, filename: str, limits: ImportLimits) -> None:
        self.raw = raw
        self.filename = filename
        self.limits = limits
        self.findings = Findings()
        self.inflater = Inflater(limits)

    def find(self) -> _Found:
        raw = self.raw
        if len(raw) > self.limits.file_bytes:
            message = f"the file has {len(raw)} bytes, more than {self.limits.file_bytes}"
            raise CardError("too_large", message)
        if not raw.strip(b" \t\r\n\0"):
            raise CardError("empty", "the file is empty")
        if raw.startswith(png.SIGNATURE):
            return self._png()
        if exif.is_jpeg(raw) or exif.is_webp(raw):
            return self._photo()
        for mark, what in _KNOWN:
            if raw.startswith(mark):
                raise CardError("unsupported", f"the file is {what}, which holds no card")
        if raw[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
            raise CardError("unsupported", "the file is an AVIF or HEIC picture, without a card")
        if _PAGE.match(raw):
            message = "the file is a web page: what was saved was a site's answer, not its card"
            raise CardError("html_page", message)
        if raw.startswith(b"PK") or (b"\0" in raw and has_archive(raw)):
            return self._archive()
        return self._text()

    def _png(self) -> _Found:
        chunks = png.read_chunks(self.raw, self.limits, self.findings)
        found = [*png.texts(chunks, self.limits, self.inflater, self.findings)]
        container = "apng" if any(chunk.type == b"acTL" for chunk in chunks) else "png"
        cards = [text for text in found if text.keyword == "ccv3"]
        cards += [text for text in found if text.keyword == "chara"]
        for keyword in ("ccv3", "chara"):
            count = sum(text.keyword == keyword for text in cards)
            if count > 1:
                message = f"{count} chunks {keyword}: the first that can be read counts"
                self.findings.add("duplicate_card", message, where=keyword)
        if not cards:
            if has_archive(self.raw):
                return self._archive()
            raise CardError("no_card", "the PNG has no card: no text chara or ccv3 in it")
        failed: CardError | None = None
        for text in cards:
            try:
                payload = unwrap_payload(text.body, self.findings, where=text.where)
                card, payload = load_json(payload, self.limits, self.findings)
            except CardError as error:
                if error.code in _FATAL:
                    raise
                self.findings.add(error.code, error.message, where=text.where)
                failed = failed or error
            else:
                return _Found(container, card, payload, self.raw, self._files(found))
        assert failed is not None
        raise failed

    def _files(self, found: list[png.Text]) -> dict[str, bytes]:
        """RisuAI's asset chunks, by path."""
        files: dict[str, bytes] = {}
        for text in found:
            if text.keyword in ("chara", "ccv3"):
                continue
            path = text.keyword[len("chara-ext-asset_") :].removeprefix(":")
            try:
                data = unwrap_payload(text.body, self.findings, where=text.where)
            except CardError as error:
                self.findings.add(error.code, error.message, where=text.where)
                continue
            if path in files:
                self.findings.add("duplicate_asset", "the first counts", where=text.where)
                continue
            files[path] = self.inflater.take(data, where=text.where)
        return files

    def _photo(self) -> _Found:
        kind = "jpeg" if exif.is_jpeg(self.raw) else "webp"
        if has_archive(self.raw):
            return self._archive()
        comment = exif.read_comment(self.raw, self.limits, self.findings)
        try:
            text = unwrap_payload(comment, Findings(), where="EXIF")
        except CardError as error:
            if error.code != "bad_base64":
                raise
            raise CardError("no_card", "the picture's EXIF comment is no card") from None
        card, text = load_json(text, self.limits, self.findings)
        return _Found(kind, card, text, self.raw)

    def _archive(self) -> _Found:
        archive = Archive(self.raw, self.limits, self.inflater, self.findings)
        picture = None
        if prefix := archive.prefix:
            self.findings.add("prefix", f"{len(prefix)} bytes before the archive were skipped")
            picture = prefix
        if charx.is_byaf(archive):
            card, files = charx.read_byaf(archive, self.limits, self.findings)
            return _Found("byaf", card, charx.dump(card), picture, files)
        text, files = charx.read_charx(archive, self.findings)
        card, text = load_json(text, self.limits, self.findings)
        return _Found("charx", card, text, picture, files)

    def _text(self) -> _Found:
        raw = self.raw.strip(b" \t\r\n") if self.raw[1:2] != b"\0" else self.raw
        if raw.startswith((b"rcc||", b"eyJ", b"ewo")):
            raw = unwrap_payload(raw, self.findings, where="file")
            self.findings.add("base64_file", "the file is base64 of JSON")
        text = decode_text(raw[: self.limits.json_bytes + 1])
        if text.lstrip().startswith(("{", "[")) and not foreign.is_definition(text[:4096]):
            try:
                card, raw = load_json(raw, self.limits, self.findings)
                return _Found("json", card, raw)
            except CardError as error:  # YAML has braces too
                if error.code != "bad_json" or not self.filename.lower().endswith(_YAML):
                    raise
        if foreign.is_definition(text):
            name = _stem(self.filename) or "Character"
            if len(text) > self.limits.yaml_bytes:
                message = f"the definition has more than {self.limits.yaml_bytes} characters"
                raise CardError("too_large", message)
            card = foreign.from_definition(text, name, self.findings)
            return _Found("character_ai text", card, charx.dump(card))
        value = load_yaml(text, self.limits)
        if not isinstance(value, dict):
            raise CardError("not_a_card", "the file is neither a card nor a lorebook known here")
        return _Found("yaml", value, charx.dump(value))


def _check_lore(card: dict[str, JsonValue], limits: ImportLimits) -> None:
    data = card.get("data")
    fields = data if isinstance(data, dict) else card
    _check_book(fields.get("character_book"), limits)
    extensions = fields.get("extensions")
    more = extensions.get("additional_lorebooks") if isinstance(extensions, dict) else None
    for book in more if isinstance(more, list) else []:
        _check_book(book, limits)


def _check_book(book: JsonValue, limits: ImportLimits) -> None:
    entries = book.get("entries") if isinstance(book, dict) else None
    if isinstance(entries, (list, dict)) and len(entries) > limits.lore_entries:
        message = f"the lorebook has {len(entries)} entries, more than {limits.lore_entries}"
        raise CardError("too_many_entries", message, where="character_book.entries")


def _avatar(picture: bytes | None, limits: ImportLimits, findings: Findings) -> bytes | None:
    """A picture that is broken costs the avatar; one that is a bomb costs the import."""
    if picture is None:
        return None
    try:
        return pictures.reencode(picture, limits)
    except CardError as error:
        if error.code != "bad_picture":
            raise
        findings.add(error.code, error.message, where="picture")
        return None


def _remark(persona: Persona, card: dict[str, JsonValue], findings: Findings) -> None:
    """What an author should know of a card that was read well."""
    spec, version = card.get("spec"), card.get("spec_version")
    if spec is not None or version is not None:
        known = {"chara_card_v2": "2.0", "chara_card_v3": "3.0"}.get(str(spec))
        if version != known:
            message = (
                f"spec {str(spec)[:40]!r} with version {str(version)[:40]!r} was read as it is"
            )
            findings.add("spec_version", message, where="spec_version")
    told = {
        "greeting": "\n".join((persona.greeting, *persona.alternate_greetings)),
        "description": persona.description,
        "examples": persona.examples,
        "creator_notes": persona.creator_notes,
    }
    for where, text in told.items():
        if _REMOTE.search(text):
            findings.add("not_fetched", "a remote picture or link is not fetched", where=where)
        if "\\n" in text and "\n" not in text:
            findings.add("escaped_newlines", "line breaks are written \\n; kept so", where=where)


def _name(card: dict[str, JsonValue]) -> str:
    data = card.get("data")
    name = data.get("name") if isinstance(data, dict) else card.get("name")
    return name if isinstance(name, str) else ""


def _stem(filename: str) -> str:
    name = filename.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _slug(name: str) -> str:
    """`Old Tom` becomes `old-tom`; letters of any script stay; never a name no file may have."""
    plain = unicodedata.normalize("NFKC", name[:200]).lower()
    slug = re.sub(r"[\W_]+", "-", plain).strip("-")[:60].rstrip("-")
    return f"{slug}-card" if _RESERVED.fullmatch(slug) else slug
