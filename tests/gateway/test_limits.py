"""gateway.limits: what is refused, and with which numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ErrorCode, Refused
from gateway.limits import check_live_turns, check_text


@given(st.text(max_size=30), st.integers(1, 20))
def test_text(text: str, most: int) -> None:
    """A text passes exactly when it has content and at most the limit of code points."""
    if text.strip() and len(text) <= most:
        check_text(text, most)
        return
    with pytest.raises(Refused) as caught:
        check_text(text, most)
    if text.strip():
        assert caught.value.code is ErrorCode.TEXT_TOO_LONG
        assert caught.value.detail == {"chars": len(text), "limit": most}
    else:
        assert caught.value.code is ErrorCode.EMPTY_TEXT


def test_live_turns() -> None:
    """The turn above the limit is refused and may be tried again."""
    check_live_turns(2, 3)
    with pytest.raises(Refused) as caught:
        check_live_turns(3, 3)
    assert caught.value.code is ErrorCode.RATE_LIMITED
    assert caught.value.retryable
