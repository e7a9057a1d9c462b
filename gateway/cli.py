"""The command `greenroom`. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import cards_cli, chats_cli, kv_cli
from gateway.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.app import Server
    from gateway.config import Config

__all__ = ["main", "parser"]

USAGE = 2
"""The exit code of every error that is one line for people."""

FLAGS = {
    "host": "server.host",
    "port": "server.port",
    "data": "data.folder",
    "backend": "backend.name",
    "model": "engine.model",
}


def parser() -> argparse.ArgumentParser:
    """The command line, with a help text for every command and option."""
    top = argparse.ArgumentParser(
        prog="greenroom",
        description="Talk with characters: a WebSocket gateway, a local engine and a cache of "
        "conversations that outlives the restart.",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    run = commands.add_parser(
        "run", help="start the server and the page", description="Start the server and the page."
    )
    _add_common(run)
    run.add_argument(
        "--backend", metavar="NAME", help="backend that speaks: local, scripted or remote"
    )
    run.add_argument("--host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)")
    run.add_argument(
        "--port", metavar="PORT", type=int, help="port to listen on (default 8642; 0: a free one)"
    )

    chat = commands.add_parser(
        "chat",
        help="talk with a character in the terminal",
        description="Talk with a character in the terminal, through a running server. "
        "Ctrl-C stops a reply; /quit or Ctrl-D leaves; the conversation stays on the server.",
    )
    chat.add_argument(
        "--persona", metavar="NAME", required=True, help="id of the character, as on the page"
    )
    chat.add_argument(
        "--url",
        metavar="URL",
        default="http://127.0.0.1:8642/",
        help="address of the server (default %(default)s)",
    )
    chat.add_argument(
        "--user", metavar="NAME", default="You", help="your name in the talk (default %(default)s)"
    )
    chat.add_argument("--backend", metavar="NAME", help="backend that speaks in this chat")
    chat.add_argument("--resume", metavar="CHAT", help="go on with this conversation, by its id")

    prepare = commands.add_parser(
        "prepare",
        help="convert the model's weights ahead of the first run",
        description="Convert the model's weights into the data folder, so that the server "
        "starts fast. `run` does the same when it has to.",
    )
    _add_common(prepare)
    cards_cli.add_parser(commands, _add_common)
    chats_cli.add_parser(commands)
    kv_cli.add_parser(commands, _add_common)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="MODEL",
        help="packaged model, path of a Hugging Face folder, or synthetic:NAME",
    )
    command.add_argument(
        "--data", metavar="FOLDER", type=Path, help="folder for conversations, weights and cache"
    )
    command.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file with settings; see docs/config.md"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 2 one clear line on stderr."""
    top = parser()
    args = top.parse_args(argv)
    if args.version:
        from gateway.release import release

        print(release().replace("/", " "))
        return 0
    if args.command is None:
        top.print_help()
        return USAGE
    try:
        if args.command == "chat":
            from gateway.terminal import talk

            return asyncio.run(
                talk(args.url, args.persona, args.user, args.resume, backend=args.backend)
            )
        if args.command == "chats":
            return chats_cli.run(args)
        config = _configure(args)
        if args.command == "cards":
            return cards_cli.run(args, config)
        if args.command == "kv":
            return kv_cli.run(args, config)
        if args.command == "prepare":
            return asyncio.run(_prepare(config))
        return asyncio.run(_run(config))
    except StartError as error:
        print(f"greenroom: {error.message}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130


def _configure(args: argparse.Namespace) -> Config:
    from gateway import config, logs

    flags = {key: getattr(args, flag, None) for flag, key in FLAGS.items()}
    loaded = config.load(args.config, flags={k: v for k, v in flags.items() if v is not None})
    logs.configure(loaded.log)
    return loaded


async def _run(config: Config) -> int:
    from gateway.app import serve

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = await serve(config)
    announcing = asyncio.create_task(_announce(server))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({announcing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if announcing.done():
            announcing.result()
        await stopping
    finally:
        announcing.cancel()
        stopping.cancel()
        await server.stop()
    return 0


async def _announce(server: Server) -> None:
    """Waits for the backend, then shows the notice of its weights and, last, the address.

    Raises `StartError` when the backend can never start; one that may succeed later is tried
    again by the next turn.
    """
    standby = server.parts.ensemble.default
    await standby.begin()
    if standby.failure is not None and not standby.failure.retryable:
        raise StartError(standby.failure.message)
    if standby.failure is not None:
        print(f"The model did not start: {standby.failure.message}", flush=True)
    elif standby.capabilities is not None and standby.capabilities.notice:
        print(standby.capabilities.notice, flush=True)
    print(f"Greenroom is at {server.url}", flush=True)


async def _prepare(config: Config) -> int:
    from gateway.app import prepare

    model = await prepare(config)
    print(f"{model.model} is ready in {config.data.folder}", flush=True)
    return 0
