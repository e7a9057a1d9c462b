"""gateway.logs: neither secrets nor talk in the log."""

from __future__ import annotations

from gateway.logs import redact


def test_secrets_never() -> None:
    """Secrets are hidden at every level."""
    for level in ("debug", "info", "error"):
        hidden = redact(None, level, {"event": "e", "Token": "x", "api_key": "y", "n": 1})
        assert hidden == {"event": "e", "Token": "[redacted]", "api_key": "[redacted]", "n": 1}


def test_talk_only_in_debug() -> None:
    """What people say is visible at debug and hidden above."""
    said = {"event": "e", "text": "hello"}
    assert redact(None, "debug", dict(said)) == said
    assert redact(None, "info", dict(said)) == {"event": "e", "text": "[redacted]"}
