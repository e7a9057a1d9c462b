"""`greenroom cards`: authors bring, check, look at and take away characters, without a server.

A running server over the same data folder sees within seconds what is brought here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.cards_show import (
    REFUSED,
    bytes_of,
    entries_of,
    find,
    folder_of,
    lint,
    listing,
    print_report,
    show,
    told,
    wrap,
)
from gateway.errors import StartError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from gateway.config import Config
    from personas.limits import ImportLimits
    from personas.persona import JsonValue
    from personas.shelf import Entry, Shelf

__all__ = ["add_parser", "run"]

DETAILED = 5
"""Up to so many files each report is printed whole."""
ENDINGS = {"v2": ".json", "v3": ".json", "png": ".png", "charx": ".charx"}


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    add_common: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Adds `cards` and what is below it; `add_common` gives each the options of every command."""
    about = "Bring, check, look at and take away characters; see docs/cards.md."
    cards = commands.add_parser(
        "cards", help="bring, check and export characters", description=about
    )
    below = cards.add_subparsers(dest="cards", metavar="COMMAND", required=True)

    def command(name: str, says: str) -> argparse.ArgumentParser:
        made = below.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        add_common(made)
        return made

    bring = command("import", "read files or whole folders into the library")
    bring.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a file or a folder")
    bring.add_argument(
        "--replace",
        action="store_true",
        help="a character of a known id is a new revision of it, not a second one beside it",
    )
    bring.add_argument("--check", action="store_true", help="read and report, take nothing in")
    bring.add_argument("--report", metavar="FILE", type=Path, help="write the whole report as JSON")
    bring.add_argument(
        "-v", "--verbose", action="store_true", help="print every field, also of many files"
    )

    export = command("export", "write a character as a file that other programs read")
    export.add_argument("who", metavar="WHO", help="id of a character, or a file")
    export.add_argument(
        "--as",
        dest="form",
        choices=[*ENDINGS],
        default="v3",
        help="JSON of V2 or V3, a PNG that has both, or a CHARX archive (default %(default)s)",
    )
    export.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="where to; - is standard output"
    )
    export.add_argument("--force", action="store_true", help="write over a file that is there")

    bind = command("bind", "give a character lorebooks that came without one")
    bind.add_argument("who", metavar="ID", help="id of the character; a shipped one is copied")
    bind.add_argument("books", metavar="FILE", nargs="+", type=Path, help="a lorebook")

    lint = command("lint", "say what costs cache, has no effect or is too long")
    lint.add_argument("who", metavar="WHO", nargs="+", help="id of a character, or a file")
    lint.add_argument(
        "--context", metavar="TOKENS", type=int, default=4096, help="of the model (default 4096)"
    )

    lint.add_argument("--prompt", action="store_true", help="show the prompt of a first reply too")

    show = command("show", "show a character: texts, lorebook, and what its import said")
    show.add_argument("who", metavar="WHO", help="id of a character, or a file")
    show.add_argument("--prompt", action="store_true", help="show the prompt of a first reply")

    listed = command("list", "list the characters, or those that a search finds")
    listed.add_argument("words", metavar="WORD", nargs="*", help="in name, tags or texts")
    listed.add_argument("--tag", metavar="TAG", action="append", default=[], help="has this tag")

    new = command("new", "write a card to begin with")
    new.add_argument("name", metavar="NAME", help="the character's name")
    new.add_argument("-o", "--out", metavar="FILE", type=Path, help="where to (default NAME.json)")


def run(args: argparse.Namespace, config: Config) -> int:
    """Runs a command; returns its exit code. Raises `StartError`."""
    from personas.persona import PersonaError

    doing = {
        "import": _import,
        "export": _export,
        "bind": _bind,
        "lint": lint,
        "show": show,
        "list": listing,
        "new": _new,
    }
    try:
        return doing[args.cards](args, config)
    except PersonaError as error:
        raise StartError(error.message) from error
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise StartError(f"{name}{error.strerror or error}") from error


# --- import ---------------------------------------------------------------------------------


class _Outcome(NamedTuple):
    """What became of one file: `state` is `Added`'s, or read, lorebook, skipped or refused."""

    path: Path
    state: str
    entry: Entry | None = None
    code: str = ""
    message: str = ""


def _import(args: argparse.Namespace, config: Config) -> int:
    from personas.library import Library
    from personas.shelf import Shelf

    files = [*_files(args.paths)]
    if not files:
        raise StartError("no file that could hold a character is there")
    folder = folder_of(config)
    shelf = Shelf(folder, config.import_limits())
    taken = {persona.id for persona in Library.shipped().list()}
    if not args.check:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shelf.look()
    began = time.perf_counter()
    outcomes: list[_Outcome] = []
    progress = _Progress(len(files))
    for path in files:
        outcome = _bring(
            path,
            shelf,
            config.import_limits(),
            taken,
            replace=args.replace,
            check=args.check,
            named=path in args.paths,
        )
        outcomes.append(outcome)
        progress.clear()
        _print_outcome(outcome, whole=args.verbose or len(files) <= DETAILED)
        progress.show(len(outcomes))
    progress.clear()
    seconds = time.perf_counter() - began
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.state] = counts.get(outcome.state, 0) + 1
    if len(files) > 1:
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        print(f"{len(files)} files: {told} ({len(files) / max(seconds, 1e-9):.0f} files/s)")
    if args.report is not None:
        whole = {"files": [_json(outcome) for outcome in outcomes], "counts": counts}
        args.report.write_text(json.dumps(whole, indent=2, ensure_ascii=False), encoding="utf-8")
    return REFUSED if counts.get("refused") else 0


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Named files as they are; of folders those whose names end as cards' do, hidden ones not."""
    from personas.shelf import CARDS

    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise StartError(f"{path} is not there")
            yield path
            continue
        for root, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and name.lower().endswith(CARDS):
                    yield Path(root, name)


def _bring(
    path: Path,
    shelf: Shelf,
    limits: ImportLimits,
    taken: set[str],
    *,
    replace: bool,
    check: bool,
    named: bool,
) -> _Outcome:
    """`named`: a person asked for this very file, so that it must be a card."""
    from personas.importer import ImportedBook, read_any
    from personas.persona import CardError
    from personas.shelf import PICTURES, Entry

    try:
        raw = bytes_of(path, limits)
        if check:
            # Here the picture is read too: whoever checks wants to know about it now.
            imported = read_any(raw, filename=path.name, limits=limits)
            if isinstance(imported, ImportedBook):
                return _Outcome(path, "lorebook", message=entries_of(imported))
            found = Entry(
                imported.persona, imported.report, imported.findings, imported.container, path
            )
            return _Outcome(path, "read", found)
        # The picture is decoded when it is first shown.
        beside = next((p for e in PICTURES if (p := path.with_suffix(e)).is_file()), None)
        added = shelf.add(
            raw,
            path.name,
            replace_known=replace,
            taken=taken,
            with_avatar=False,
            beside=None if beside == path else beside,
        )
    except CardError as error:
        if error.code == "no_card" and not named:
            return _Outcome(path, "skipped", code=error.code, message="just a picture")
        return _Outcome(path, "refused", code=error.code, message=told(error.message, error.where))
    except OSError as error:
        return _Outcome(path, "refused", code="unreadable", message=error.strerror or str(error))
    return _Outcome(path, added.state, added.entry)


def _print_outcome(outcome: _Outcome, *, whole: bool) -> None:
    path, state, entry = outcome.path, outcome.state, outcome.entry
    if entry is None:
        code = f" ({outcome.code})" if outcome.code else ""
        print(f"{path}: {state}{code}: {outcome.message}")
        return
    names = f"as {entry.persona.id}" if state != "read" else f"well: {entry.persona.name}"
    print(f"{path}: {state} {names} ({entry.container})")
    if whole and state != "unchanged":
        print_report(entry.report, entry.findings)


def _json(outcome: _Outcome) -> dict[str, JsonValue]:
    line: dict[str, JsonValue] = {"file": str(outcome.path), "state": outcome.state}
    if outcome.entry is None:
        return line | {"code": outcome.code, "message": outcome.message}
    from gateway.cards_report import report_json

    return line | report_json(outcome.entry)


class _Progress:
    """A bar on a terminal's stderr; nothing anywhere else."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._shown = count > DETAILED and sys.stderr.isatty()
        self._began = time.perf_counter()

    def show(self, done: int) -> None:
        if self._shown:
            bar = "█" * (30 * done // self._count)
            rate = done / max(time.perf_counter() - self._began, 1e-9)
            line = f"\r{bar:·<30} {done}/{self._count}  {rate:.0f} files/s"
            print(line, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# --- export, new -----------------------------------------------------------------------------


def _export(args: argparse.Namespace, config: Config) -> int:
    from gateway.cards_report import exported

    entry = find(args.who, config)
    made = exported(entry, args.form)
    out = args.out or Path(entry.persona.id + ENDINGS[args.form])
    if str(out) == "-":
        sys.stdout.buffer.write(made.data)
        return 0
    _write(out, made.data, force=args.force)
    print(f"{out}: {entry.persona.name} as {args.form}, {len(made.data)} bytes")
    for finding in made.findings:
        wrap("  not told   ", told(finding.message, finding.where))
    return 0


def _bind(args: argparse.Namespace, config: Config) -> int:
    from gateway.cards_report import bound
    from personas.importer import ImportedBook, read_any
    from personas.library import Library

    limits, folder = config.import_limits(), folder_of(config)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = Library.open(folder, limits)
    for path in args.books:
        entry = library.entry(args.who)
        book = read_any(bytes_of(path, limits), filename=path.name, limits=limits)
        if not isinstance(book, ImportedBook):
            raise StartError(f"{path} is a character, not a lorebook")
        made = bound(entry, book)
        added = library.add(made.data, made.filename, replace_id=args.who)
        books = added.entry.persona.lore
        entries = sum(len(each.entries) for each in books)
        print(f"{path}: {args.who} has {len(books)} lorebooks with {entries} entries")
    return 0


def _new(args: argparse.Namespace, config: Config) -> int:
    from personas.shelf import slug
    from personas.starter import starter

    name = " ".join(args.name.split())
    if not slug(name):
        raise StartError(f"{args.name!r} has no letter and no digit to name a file after")
    out = args.out or Path(f"{slug(name)}.json")
    _write(out, starter(name), force=False)
    print(
        f"{out}: fill it in, then `greenroom cards lint {out}` and `greenroom cards import {out}`"
    )
    return 0


def _write(out: Path, data: bytes, *, force: bool) -> None:
    try:
        with out.open("wb" if force else "xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise StartError(f"{out} is there already") from error
