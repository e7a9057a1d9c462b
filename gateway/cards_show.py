"""`greenroom cards` looks: lint, show and list, and what the other commands find and print with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import StartError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from gateway.config import Config
    from personas.card import ImportReport
    from personas.importer import ImportedBook
    from personas.library import Library
    from personas.limits import Finding, ImportLimits
    from personas.lint import Checked
    from personas.persona import Persona
    from personas.shelf import Entry

__all__ = [
    "REFUSED",
    "bytes_of",
    "entries_of",
    "find",
    "folder_of",
    "lint",
    "listing",
    "print_report",
    "show",
    "told",
    "wrap",
]

REFUSED = 1
"""The exit code when some of several files were refused, or lint found something."""
WIDTH = 96


def lint(args: argparse.Namespace, config: Config) -> int:
    """`lint`: all remarks and sizes of each card; 1 when one of them is not clean."""
    from gateway.counting import counter
    from personas.lint import check

    counting = counter(config.data.folder, config.engine.model)
    clean = True
    for who in args.who:
        entry = find(who, config)
        found = check(entry.persona, entry.report, counting.count, context=args.context)
        clean = clean and found.clean
        print(f"{entry.persona.name} ({who}): {'clean' if found.clean else 'see below'}")
        for remark in found.remarks:
            wrap(
                f"  {remark.level.value:<8} {remark.code:<20} ", f"{remark.where}: {remark.message}"
            )
        print(f"  tokens ({counting.says}):")
        for size in found.sizes:
            most = f" of {size.most}" if size.most is not None else ""
            over = "  <- over" if size.most is not None and size.tokens > size.most else ""
            print(f"    {size.tokens:>6}{most:<9} {size.where}{over}")
        stable = sum(line.tokens for line in found.prompt if line.stable)
        whole = sum(line.tokens for line in found.prompt)
        print(f"    {found.permanent:>6}          permanent text in every prompt")
        print(f"    {whole:>6}          first prompt, {stable} of it stay as they are")
        if args.prompt:
            _print_prompt(found)
    return 0 if clean else REFUSED


def _print_prompt(found: Checked) -> None:
    for line in found.prompt:
        kind = "stable" if line.stable else "tail"
        name = f" {line.message.name}" if line.message.name else ""
        print(f"--- {line.message.role.value}{name} · {line.tokens} tokens · {kind}")
        print(line.message.text)


def show(args: argparse.Namespace, config: Config) -> int:
    """`show`: a character's texts, or its first prompt."""
    from gateway.counting import counter
    from personas.lint import check

    entry = find(args.who, config)
    persona = entry.persona
    counting = counter(config.data.folder, config.engine.model)
    if args.prompt:
        _print_prompt(check(persona, entry.report, counting.count))
        return 0
    print(f"{persona.name} ({persona.id}, revision {persona.revision}, {entry.container})")
    wrap("  ", persona.tagline)
    wrap("  tags       ", ", ".join(persona.tags))
    wrap("  creator    ", f"{persona.creator} {persona.character_version}".strip())
    for name, text in _texts(persona):
        print(f"\n{name} ({counting.count(text)} tokens)")
        wrap("  ", text)
    for book in persona.lore:
        print(f"\nlorebook {book.name} ({len(book.entries)} entries)")
        for lore in book.entries:
            keys = "always" if lore.constant else ", ".join(lore.keys) or "no key"
            wrap("  ", f"{lore.name or lore.id} [{keys}] {' '.join(lore.content.split())}")
    print("\nimport")
    print_report(entry.report, entry.findings)
    return 0


def _texts(persona: Persona) -> Iterator[tuple[str, str]]:
    named = {
        "system prompt": persona.system_prompt,
        "description": persona.description,
        "personality": persona.personality,
        "scenario": persona.scenario,
        "greeting": persona.greeting,
    }
    named |= {f"greeting {n}": text for n, text in enumerate(persona.alternate_greetings, 2)}
    named |= {
        "examples": persona.examples,
        "post-history instructions": persona.post_history_instructions,
        "depth prompt": persona.depth_prompt.text if persona.depth_prompt else "",
        "creator notes (never in a prompt)": persona.creator_notes,
    }
    return ((name, text) for name, text in named.items() if text.strip())


def listing(args: argparse.Namespace, config: Config) -> int:
    """`list`: the characters that a search finds; 1 when it finds none."""
    library = _library(config)
    found = library.search(" ".join(args.words), args.tag)
    for persona in found:
        tags = f"  [{', '.join(persona.tags)}]" if persona.tags else ""
        print(f"{persona.id:<24} {persona.name}{tags}")
    for trouble in library.troubles:
        print(f"{trouble.file}: {told(trouble.message, trouble.where)}", file=sys.stderr)
    return 0 if found else REFUSED


def print_report(report: ImportReport, findings: Sequence[Finding]) -> None:
    """Prints what became of each field, and what else was noticed."""
    groups = {
        "executed": report.executed,
        "preserved": report.preserved,
        "dropped": report.dropped,
        "repaired": report.repaired,
    }
    for name, paths in groups.items():
        if paths:
            wrap(f"  {name:<10} ", ", ".join(path.removeprefix("data.") for path in paths))
    for finding in findings:
        wrap("  noticed    ", f"{finding.code}: {told(finding.message, finding.where)}")


def entries_of(book: ImportedBook) -> str:
    """What a lorebook alone is, in a few words."""
    listed = book.book.get("entries")
    count = len(listed) if isinstance(listed, (list, dict)) else 0
    return f"a lorebook of {count} entries, without a character"


def folder_of(config: Config) -> Path:
    """Where one's own cards are."""
    return config.data.folder / "personas"


def _library(config: Config) -> Library:
    from personas.library import Library

    folder = folder_of(config)
    return Library.open(folder if folder.is_dir() else None, config.import_limits())


def find(who: str, config: Config) -> Entry:
    """A file, where there is one of that name, else a character of the library."""
    path = Path(who)
    if not path.is_file():
        return _library(config).entry(who)
    from personas.importer import ImportedBook, read_any
    from personas.shelf import Entry

    limits = config.import_limits()
    imported = read_any(
        bytes_of(path, limits), filename=path.name, limits=limits, with_avatar=False
    )
    if isinstance(imported, ImportedBook):
        raise StartError(f"{who}: {entries_of(imported)}")
    picture = path if imported.picture else None
    return Entry(
        imported.persona, imported.report, imported.findings, imported.container, path, picture
    )


def bytes_of(path: Path, limits: ImportLimits) -> bytes:
    """A file, without taking more of it into memory than is allowed. Raises `CardError`."""
    from personas.persona import CardError

    most = limits.file_bytes
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise CardError("too_large", f"{path.name} has more than {most} bytes")
    return raw


def told(message: str, where: str) -> str:
    """The message, with where it is if it does not say so."""
    return f"{message} ({where})" if where and where not in message else message


def wrap(first: str, text: str) -> None:
    """Prints a text in lines of `WIDTH`, the first after `first`, the others below it."""
    import textwrap

    for paragraph in text.splitlines():
        lines = textwrap.wrap(
            paragraph, WIDTH, initial_indent=first, subsequent_indent=" " * len(first)
        )
        print("\n".join(lines))
        first = " " * len(first)
