"""What is admitted: pure decisions, no clock, no sockets."""

from __future__ import annotations

from gateway.errors import ErrorCode, Refused

__all__ = ["check_live_turns", "check_text"]


def check_text(text: str, most: int) -> None:
    """Refuses a message without content or of more than `most` characters (code points)."""
    if not text.strip():
        raise Refused(ErrorCode.EMPTY_TEXT, "the message is empty")
    if len(text) > most:
        raise Refused(
            ErrorCode.TEXT_TOO_LONG,
            f"the message has {len(text)} characters; the limit is {most}",
            detail={"chars": len(text), "limit": most},
        )


def check_live_turns(live: int, most: int) -> None:
    """Refuses one more turn when `most` are being spoken."""
    if live >= most:
        raise Refused(
            ErrorCode.RATE_LIMITED,
            f"{live} replies are being spoken; the limit is {most}",
            retryable=True,
            retry_after=1.0,
            detail={"live": live, "limit": most},
        )
