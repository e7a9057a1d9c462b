"""What the gateway writes about itself, to stderr: structlog, as JSON lines or for a console."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

    from gateway.config import LogConfig

__all__ = ["configure", "redact"]

SECRET = frozenset({"api_key", "authorization", "cookie", "key", "password", "secret", "token"})
SAID = frozenset({"greeting", "messages", "prompt", "text"})


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Hides secrets at every level, and what people and personas say above debug."""
    hidden = SECRET if method == "debug" else SECRET | SAID
    return {k: "[redacted]" if k.lower() in hidden else v for k, v in event.items()}


def configure(config: LogConfig) -> None:
    """Sets up structlog and the standard library's logging for this process."""
    level = logging.getLevelNamesMapping()[config.level.upper()]
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    as_json: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=shared + ([structlog.dev.ConsoleRenderer()] if console else as_json),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=max(level, logging.WARNING), force=True)
