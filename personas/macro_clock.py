"""Macros that tell the time, and the words that stand where nothing may change from turn to turn.

A clock in a text that is cached would end the cache at every turn, so there it becomes words that
are true whenever they are read.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NEUTRAL", "clock", "now_line"]

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_FORMAT = re.compile(r"datetimeformat\s*(?:::?|\s)\s*(.{1,200})", re.IGNORECASE | re.DOTALL)
_UTC = re.compile(r"time_utc\s*([+-]\d{1,2})|time\s*::\s*utc\s*([+-]\d{1,2})", re.IGNORECASE)
# moment.js, the part that cards use.
_PARTS = re.compile(r"\[[^\]]*\]|YYYY|YY|MMMM|MMM|MM|M|DD|D|dddd|ddd|HH|H|hh|h|mm|m|ss|s|A|a")

NEUTRAL: Mapping[str, str] = {
    "time": "the present time",
    "date": "today's date",
    "weekday": "today",
    "isotime": "the present time",
    "isodate": "today's date",
    "idle_duration": "a while",
    "idleduration": "a while",
    "lastmessage": "the last message",
    "lastusermessage": "the last message of {user}",
    "lastcharmessage": "the last reply",
}
"""What a volatile macro is where its value may not stand; `{user}` is the person's name."""


def clock(macro: str, now: datetime | None) -> str | None:
    """What a clock macro says; None when it is none, or a plain one and `now` is not known."""
    name = macro.lower()
    zone, written = _UTC.fullmatch(macro), _FORMAT.fullmatch(macro)
    if now is None:
        return NEUTRAL["time"] if zone or written else None
    if name in _CLOCKS:
        return _CLOCKS[name](now)
    if zone is not None:
        hours = max(-14, min(int(zone[1] or zone[2]), 14))
        return _time(now.astimezone(timezone(timedelta(hours=hours))))
    return _format(written[1].strip(), now) if written is not None else None


def now_line(now: datetime) -> str:
    """The time as one sentence for the end of a prompt."""
    return f"It is {_DAYS[now.weekday()]}, {_date(now)}, {_time(now)}."


def _time(now: datetime) -> str:
    return f"{now.hour:02}:{now.minute:02}"


def _date(now: datetime) -> str:
    return f"{now.day} {_MONTHS[now.month - 1]} {now.year}"


_CLOCKS: dict[str, Callable[[datetime], str]] = {
    "time": _time,
    "date": _date,
    "weekday": lambda now: _DAYS[now.weekday()],
    "isotime": _time,
    "isodate": lambda now: now.date().isoformat(),
}


def _format(pattern: str, now: datetime) -> str:
    half = now.hour % 12 or 12
    parts = {
        "YYYY": f"{now.year}",
        "YY": f"{now.year % 100:02}",
        "MMMM": _MONTHS[now.month - 1],
        "MMM": _MONTHS[now.month - 1][:3],
        "MM": f"{now.month:02}",
        "M": f"{now.month}",
        "DD": f"{now.day:02}",
        "D": f"{now.day}",
        "dddd": _DAYS[now.weekday()],
        "ddd": _DAYS[now.weekday()][:3],
        "HH": f"{now.hour:02}",
        "H": f"{now.hour}",
        "hh": f"{half:02}",
        "h": f"{half}",
        "mm": f"{now.minute:02}",
        "m": f"{now.minute}",
        "ss": f"{now.second:02}",
        "s": f"{now.second}",
        "A": "AM" if now.hour < 12 else "PM",
        "a": "am" if now.hour < 12 else "pm",
    }
    return _PARTS.sub(lambda found: parts.get(found[0], found[0][1:-1]), pattern)
