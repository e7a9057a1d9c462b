"""What an import refuses before it decodes anything, and what it says about what it read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from personas.card import CardLimits
from personas.persona import CardError

__all__ = ["Finding", "Findings", "ImportLimits", "Inflater"]


@dataclass(frozen=True, slots=True)
class ImportLimits:
    """Sizes are in bytes. Whatever is over a limit ends in `CardError`, undecoded.

    `ratio` is how many bytes a compressed one may become, asked only of results above
    `ratio_floor`: a short text of one repeated letter is no bomb. `inflated_bytes` is for all
    that one file holds.
    """

    file_bytes: int = 64 << 20
    json_bytes: int = 16 << 20
    json_depth: int = 64
    json_values: int = 1_000_000
    yaml_bytes: int = 256 << 10
    lore_entries: int = 10_000
    png_chunks: int = 20_000
    chunk_bytes: int = 32 << 20
    inflated_bytes: int = 128 << 20
    ratio: int = 200
    ratio_floor: int = 1 << 20
    zip_entries: int = 2_000
    zip_entry_bytes: int = 32 << 20
    zip_path: int = 512
    exif_entries: int = 512
    chat_messages: int = 100_000
    pixels: int = 32_000_000
    avatar_side: int = 1024

    @property
    def card(self) -> CardLimits:
        """The limits of the card's own JSON."""
        return CardLimits(size=self.json_bytes, depth=self.json_depth)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was not as it should be, or that was read as something else.

    `code` is stable, such as `bad_crc`; `where` names the chunk, member or field.
    """

    code: str
    where: str
    message: str


@dataclass(slots=True)
class Findings:
    """The findings of one import as they come; the first `most` are kept."""

    found: list[Finding] = field(default_factory=list)
    most: int = 200

    def add(self, code: str, message: str, *, where: str = "") -> None:
        """Appends one finding, unless there are `most` already."""
        if len(self.found) < self.most:
            self.found.append(Finding(code, where, message))

    def done(self) -> tuple[Finding, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(self.found))


class Inflater:
    """Inflates the compressed parts of one file within one budget for all of them."""

    def __init__(self, limits: ImportLimits) -> None:
        self._limits = limits
        self._left = limits.inflated_bytes

    def inflate(self, packed: bytes, *, where: str, most: int, raw: bool = False) -> bytes:
        """The bytes that `packed` stands for, at most `most`; `raw`: without a zlib header.

        Raises `CardError`: `inflate_bomb` above a limit, `bad_deflate` for a broken stream.
        Memory stays below the limit: the stream is cut off where it passes it.
        """
        limits = self._limits
        allowed = min(most, self._left, max(limits.ratio_floor, limits.ratio * len(packed)))
        stream = zlib.decompressobj(-15 if raw else 15)
        try:
            data = stream.decompress(packed, allowed + 1)
        except zlib.error as error:
            raise CardError(
                "bad_deflate", f"{where} cannot be inflated: {error}", where=where
            ) from None
        if len(data) > allowed:
            message = f"{where} inflates from {len(packed)} bytes to more than {allowed}"
            raise CardError("inflate_bomb", message, where=where)
        if not stream.eof:
            raise CardError("bad_deflate", f"{where} ends in the middle", where=where)
        self._left -= len(data)
        return data

    def take(self, data: bytes, *, where: str) -> bytes:
        """Counts bytes that were stored as they are. Raises `CardError`: `inflate_bomb`."""
        if len(data) > self._left:
            message = f"the file holds more than {self._limits.inflated_bytes} bytes"
            raise CardError("inflate_bomb", message, where=where)
        self._left -= len(data)
        return data
