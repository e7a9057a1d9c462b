"""The values of the backend contract refuse what cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Message, Role, SampledTokens, Sampling, Turn
from backends.errors import BackendError, BackendErrorCode


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.0),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("max_tokens", 0),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
    ],
)
def test_sampling_names_the_field(field: str, value: object) -> None:
    """A value out of range is refused, naming its field."""
    with pytest.raises(ValueError, match=f"sampling.{field}"):
        Sampling(**{field: value})  # type: ignore[arg-type]


@given(st.floats(0, 5), st.integers(0, 1000), st.floats(0.01, 1), st.integers(1, 32768))
def test_sampling_takes_what_is_in_range(t: float, k: int, p: float, n: int) -> None:
    """Every value in range is taken as it is."""
    s = Sampling(temperature=t, top_k=k, top_p=p, max_tokens=n)
    assert (s.temperature, s.top_k, s.top_p, s.max_tokens) == (t, k, p, n)


def test_turn_refuses_uneven_sampled() -> None:
    """sampled is empty or as long as messages; stable lies inside."""
    messages = (Message(Role.USER, "hi"), Message(Role.ASSISTANT, "ho"))
    ids = SampledTokens("t", (1, 2))
    assert Turn("1", messages, "Mira", sampled=(None, ids)).sampled == (None, ids)
    with pytest.raises(ValueError, match="sampled"):
        Turn("1", messages, "Mira", sampled=(ids,))
    with pytest.raises(ValueError, match="stable"):
        Turn("1", messages, "Mira", stable=3)
    with pytest.raises(ValueError, match="shared"):
        Turn("1", messages, "Mira", stable=1, shared=2)
    assert Turn("1", messages, "Mira", stable=1, shared=1, persona="m@1").shared == 1


def test_error_keeps_fields() -> None:
    """A BackendError keeps its fields and says its code."""
    error = BackendError(BackendErrorCode.OVERLOADED, "full", retryable=True, detail={"queued": 9})
    assert (error.retryable, error.retry_after, error.detail) == (True, None, {"queued": 9})
    assert str(error) == "overloaded: full"
