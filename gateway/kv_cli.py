"""`greenroom kv`: what lies in the cache's folder, whether it is sound, and out with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.errors import BackendError
from gateway.errors import StartError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from gateway.config import Config

__all__ = ["add_parser", "run"]

DAMAGED = 1


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    add_common: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Adds `kv` and what is below it."""
    about = "Look into, check, shrink and delete the KV cache on this machine's disk."
    kv = commands.add_parser("kv", help="the cache of conversations on disk", description=about)
    below = kv.add_subparsers(dest="kv", metavar="COMMAND", required=True)

    def command(name: str, says: str) -> argparse.ArgumentParser:
        made = below.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        add_common(made)
        return made

    command("stats", "count blocks and bytes, also while a server runs")
    command("verify", "read every byte and compare it with its checksum")
    command("compact", "rewrite what is mostly deleted, and give the bytes back")
    purge = command("purge", "delete for good; a running server does this itself with each chat")
    what = purge.add_mutually_exclusive_group(required=True)
    what.add_argument("--conversation", metavar="CHAT", help="the cache of one conversation")
    what.add_argument("--persona", metavar="ID@REVISION", help="of one state of a character")
    what.add_argument("--all", action="store_true", help="of everybody, on this disk")


def run(args: argparse.Namespace, config: Config) -> int:
    """Runs the command; 0 done, 1 damage was found. Raises `StartError`."""
    commands = {"stats": _stats, "verify": _verify, "compact": _compact}
    try:
        if args.kv == "purge":
            return _purge(args, config.data.folder)
        return commands[args.kv](config.data.folder)
    except BackendError as error:
        raise StartError(error.message) from error


def _stats(data: Path) -> int:
    from backends.local import upkeep  # reads files: not needed to say --help

    found = upkeep.stats(data)
    for one in found.generations:
        sizes = f"{_size(one.payload_bytes)} of KV  {_size(one.disk_bytes)} on disk"
        print(f"{one.name}  {one.blocks:>8} blocks  {sizes}")
    print(
        f"{'all':<12}  {found.blocks:>8} blocks  in {found.spaces} spaces, of {found.owners} owners"
    )
    if found.in_use:
        print("a server is using it now")
    if found.purges_pending:
        print("a deletion was cut short; the next start finishes it")
    return 0


def _verify(data: Path) -> int:
    from backends.local import upkeep  # reads files: not needed to say --help

    report = upkeep.verify(data)
    for problem in report.problems:
        print(problem)
    print(f"{report.records} records are right, {report.damaged} are damaged")
    return 0 if report.is_clean else DAMAGED


def _compact(data: Path) -> int:
    from backends.local import upkeep  # reads files: not needed to say --help

    report = upkeep.compact(data)
    sizes = f"{_size(report.before)} before, {_size(report.after)} now"
    print(f"{report.rewritten} generations rewritten: {sizes}")
    return 0


def _purge(args: argparse.Namespace, data: Path) -> int:
    from backends.local import upkeep  # reads files: not needed to say --help
    from gateway.composing import TENANT

    kind = "conversation" if args.conversation else "persona"
    owner = None if args.all else f"{kind}:{args.conversation or args.persona}"
    print(f"{upkeep.purge(data, TENANT, owner)} blocks deleted")
    return 0


def _size(count: int) -> str:
    return f"{count / (1 << 20):8.1f} MiB"
