"""gateway.cli: every command explains itself, and every error is one line."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main, parser

ROOT = Path(__file__).parents[2]


def commands(of: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """The commands below a parser, and below those as `cards import`."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in (of or parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found[name] = below
                found |= {f"{name} {rest}": each for rest, each in commands(below).items()}
    return found


def test_every_option_has_help() -> None:
    """No option and no command is without a text."""
    groups = {name.partition(" ")[0] for name in commands()}
    assert groups == {"run", "chat", "prepare", "cards", "chats", "kv"}
    for command in [parser(), *commands().values()]:
        assert command.description
        for action in command._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), action


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints name and version; no command prints the help and exits with 2."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("greenroom ")
    assert main([]) == 2
    out = capsys.readouterr().out
    for name in commands():
        assert name.partition(" ")[0] in out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["chat", "--persona", "maren", "--url", "http://127.0.0.1:9/"], "no greenroom server"),
        (["chat", "--persona", "maren", "--url", "ftp://x"], "not the address of a server"),
    ],
)
def test_chat_without_a_server(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`chat` says in one line that no server is there, and exits with 2."""
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert line in error


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("scripted", 0, "scripted is ready in "), ("scriptde", 2, "did you mean 'scripted'")],
)
def test_prepare(tmp_path: Path, name: str, code: int, said: str) -> None:
    """`prepare` starts the backend once and says that it is ready; a wrong name is one line."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "prepare", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "GREENROOM_BACKEND__NAME": name},
    )
    assert done.returncode == code
    assert said in (done.stderr if code else done.stdout)
    assert "Traceback" not in done.stderr


def test_help_is_light() -> None:
    """Making the command line loads none of the large libraries."""
    program = (
        "import sys, gateway.cli; gateway.cli.parser(); "
        "heavy = ('aiohttp', 'alembic', 'sqlalchemy', 'structlog', 'torch', 'websockets'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
