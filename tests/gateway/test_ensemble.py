"""gateway.ensemble: backends by name, and what becomes of a name that is not there."""

from __future__ import annotations

import pytest

from backends.scripted import ScriptedBackend
from gateway.ensemble import Ensemble
from gateway.errors import ErrorCode, Refused, StartError
from gateway.standby import Standby


def named(*names: str) -> Ensemble:
    standbys = []
    for name in names:
        backend = ScriptedBackend()
        backend.name = name
        standbys.append(Standby(backend))
    return Ensemble(standbys)


def test_in_order_with_a_default() -> None:
    """They keep their order, and the first one is the default."""
    ensemble = named("b", "a")
    assert [standby.backend.name for standby in ensemble] == ["b", "a"]
    assert ensemble.default is ensemble.get("b")


@pytest.mark.parametrize(("name", "nearest"), [("lokal", "local"), ("zzz", None), ("", None)])
def test_unknown_names_are_refused(name: str, nearest: str | None) -> None:
    """A name that is not there is refused with the nearest one; a name that a chat keeps is not."""
    ensemble = named("scripted", "local")
    with pytest.raises(Refused) as caught:
        ensemble.get(name)
    assert caught.value.code is ErrorCode.UNKNOWN_BACKEND
    assert caught.value.detail == {"nearest": nearest}
    assert ensemble.of(name) is ensemble.default
    assert ensemble.of("local") is ensemble.get("local")


def test_one_name_one_backend() -> None:
    """Two of one name would hide each other, so that is refused at start."""
    with pytest.raises(StartError, match="same name"):
        named("a", "b", "a")


async def test_only_the_used_ones_begin() -> None:
    """Nothing begins by itself, and all are closed together."""
    ensemble = named("a", "b")
    await ensemble.default.begin()
    assert [standby.begun for standby in ensemble] == [True, False]
    await ensemble.aclose()
