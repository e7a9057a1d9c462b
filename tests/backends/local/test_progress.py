"""The bar on a terminal and the lines elsewhere."""

from __future__ import annotations

import io

from backends.local.progress import TerminalProgress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_fills() -> None:
    """The bar is redrawn in place and ends full, with the time it took."""
    stream = Terminal()
    show = TerminalProgress(stream)
    for done in range(11):
        show("Converting", done, 10)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "100%" in text.rsplit("\r", 1)[1]
    assert "#" * 30 in text


def test_a_log_gets_a_line_at_the_start_and_at_the_end() -> None:
    """Without a terminal there is no control character and no flood."""
    stream = io.StringIO()
    show = TerminalProgress(stream)
    for done in range(11):
        show("Checking", done, 10)
    show("Converting", 0, 0)
    lines = stream.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "Checking ...", "Checking: done", "Converting ...", "Converting: done",
    ]  # fmt: skip
    assert "\r" not in stream.getvalue()
