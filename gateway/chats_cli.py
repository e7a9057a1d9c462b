"""`greenroom chats`: conversations in and out of a running server, which owns them."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from gateway.errors import StartError

if TYPE_CHECKING:
    import argparse
    import urllib.error

    from personas.persona import JsonValue

__all__ = ["add_parser", "run"]

ENDINGS = {"jsonl": ".jsonl", "json": ".json", "text": ".txt"}
SECONDS = 60.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `chats` and what is below it."""
    about = "Bring, list and take away conversations, through a running server."
    chats = commands.add_parser(
        "chats", help="bring and take away conversations", description=about
    )
    below = chats.add_subparsers(dest="chats", metavar="COMMAND", required=True)

    def command(name: str, says: str) -> argparse.ArgumentParser:
        made = below.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        made.add_argument(
            "--url",
            metavar="URL",
            default="http://127.0.0.1:8642/",
            help="address of the server (default %(default)s)",
        )
        return made

    command("list", "list the conversations, the newest first")
    bring = command(
        "import", "read a chat of SillyTavern, CAI Tools, text-generation-webui, or our own"
    )
    bring.add_argument("file", metavar="FILE", type=Path, help="the file")
    bring.add_argument("--persona", metavar="ID", required=True, help="whose conversation it is")
    export = command("export", "write a conversation as a file")
    export.add_argument("chat", metavar="CHAT", help="its id, as `list` and the page's address say")
    export.add_argument(
        "--as",
        dest="form",
        choices=[*ENDINGS],
        default="jsonl",
        help="SillyTavern's lines, our complete JSON, or text (default %(default)s)",
    )
    export.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="where to; - is standard output"
    )
    update = command("update", "let a conversation go on with its character as it is now")
    update.add_argument("chat", metavar="CHAT", help="its id")
    update.add_argument("--revision", metavar="REVISION", help="a kept revision, not the newest")


def run(args: argparse.Namespace) -> int:
    """Runs a command; returns its exit code. Raises `StartError`."""
    doing = {"list": _list, "import": _import, "export": _export, "update": _update}
    try:
        return doing[args.chats](args)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise StartError(f"{name}{error.strerror or error}") from error


def _list(args: argparse.Namespace) -> int:
    for chat in _rows(json.loads(_ask(args.url, "GET", "v1/chats"))):
        persona = chat.get("persona")
        name = persona.get("name") if isinstance(persona, dict) else ""
        newer = "  (the character has changed since)" if chat.get("newer") is True else ""
        print(f"{chat.get('id')}  {name} with {chat.get('user')}: {chat.get('preview')}{newer}")
    return 0


def _import(args: argparse.Namespace) -> int:
    raw = args.file.read_bytes()
    boundary = secrets.token_hex(16)
    name = quote(args.file.name)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + raw + f"\r\n--{boundary}--\r\n".encode()
    path = f"v1/chats?{urlencode({'persona': args.persona})}"
    kind = f"multipart/form-data; boundary={boundary}"
    for chat in _rows(json.loads(_ask(args.url, "POST", path, body, kind))):
        print(f"{chat.get('chat')}: {chat.get('messages')} messages ({chat.get('format')})")
        for finding in _rows({"data": chat.get("findings")}):
            print(f"  noticed    {finding.get('code')}: {finding.get('message')}", end=" ")
            print(f"({finding.get('where')})")
    return 0


def _export(args: argparse.Namespace) -> int:
    path = f"v1/chats/{quote(args.chat, safe='')}/export?{urlencode({'format': args.form})}"
    data = _ask(args.url, "GET", path)
    out = args.out or Path(args.chat + ENDINGS[args.form])
    if str(out) == "-":
        sys.stdout.buffer.write(data)
        return 0
    try:
        with out.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise StartError(f"{out} is there already") from error
    print(f"{out}: {len(data)} bytes")
    return 0


def _update(args: argparse.Namespace) -> int:
    query = f"?{urlencode({'revision': args.revision})}" if args.revision else ""
    path = f"v1/chats/{quote(args.chat, safe='')}/revision{query}"
    told = json.loads(_ask(args.url, "PUT", path))
    print(f"{args.chat} goes on with revision {told['revision']}")
    return 0


def _ask(url: str, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
    """The server's answer. Raises `StartError` when there is none, or a refusal."""
    import urllib.error
    import urllib.request

    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise StartError(f"{url!r} is not the address of a server")
    address = f"{parts.scheme}://{parts.netloc}/{path}"
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(address, body, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise StartError(_reason(error)) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise StartError(f"no greenroom server answers at {url} ({reason})") from error


def _reason(error: urllib.error.HTTPError) -> str:
    raw = error.read(1 << 16)
    try:
        told = json.loads(raw)["error"]
        return str(told["message"] if isinstance(told, dict) else told)
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}: {raw.decode(errors='replace')[:200]}"


def _rows(answer: dict[str, JsonValue]) -> list[dict[str, JsonValue]]:
    data = answer.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
