"""The scheduler keeps its bounds, is fair, and holds nothing at the end."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.request import Request, State
from backends.local.scheduler import Full, Limits, Scheduler

if TYPE_CHECKING:
    from backends.local.scheduler import Plan


def start(scheduler: Scheduler) -> list[Request]:
    """Admits, without any restore."""
    admitted = list(scheduler.admit())
    for request in admitted:
        request.move(State.PREFILL)
    return admitted


def compute(plan: Plan) -> None:
    """Does what a plan says; token 0 is sampled everywhere."""
    for piece in plan.slices:
        assert piece.start == piece.request.computed_len
        piece.request.advance(piece.end - piece.start)
        if piece.request.pending_len == 0:
            piece.request.append(0)


def ids(plan: Plan) -> list[tuple[int, int, int]]:
    return [(s.request.id, s.start, s.end) for s in plan.slices]


def test_decode_first() -> None:
    """Decodes come first, then prefill fills the budget."""
    scheduler = Scheduler(Limits(max_running=3, step_tokens=8))
    scheduler.add(Request(1, "a", [1] * 4))
    start(scheduler)
    compute(scheduler.plan())
    scheduler.add(Request(2, "a", [1] * 20))
    start(scheduler)
    plan = scheduler.plan()
    assert ids(plan) == [(1, 4, 5), (2, 0, 7)]
    assert plan.token_count == 8


def test_round_robin_at_admission() -> None:
    """A tenant with many turns waiting does not push another one back."""
    scheduler = Scheduler(Limits(max_running=1))
    for i in range(4):
        scheduler.add(Request(i, "many", [1]))
    scheduler.add(Request(9, "one", [1]))
    order = []
    for _ in range(5):
        (request,) = scheduler.admit()
        order.append(request.id)
        scheduler.remove(request)
    assert order == [0, 9, 1, 2, 3]


def test_coming_back_wins_nothing() -> None:
    """A tenant that leaves and returns after each turn does not overtake one that waits."""
    scheduler = Scheduler(Limits(max_running=1))
    scheduler.add(Request(0, "quick", [1]))
    (running,) = scheduler.admit()
    scheduler.add(Request(1, "patient", [1]))
    scheduler.remove(running)
    scheduler.add(Request(2, "quick", [1]))
    assert [r.id for r in scheduler.admit()] == [1]


def test_round_robin_among_prefills() -> None:
    """A long prompt and a short one of another tenant take turns at the budget."""
    scheduler = Scheduler(Limits(max_running=3, step_tokens=4))
    scheduler.add(Request(1, "a", [1] * 100))
    scheduler.add(Request(2, "a", [1] * 100))
    scheduler.add(Request(3, "b", [1] * 3))
    start(scheduler)
    served = []
    for _ in range(3):
        plan = scheduler.plan()
        served.append([s.request.id for s in plan.slices])
        compute(plan)
    assert served == [[1], [3, 2], [3, 1]]


def test_loading_waits() -> None:
    """A request whose prefix is on the way takes a place but no tokens."""
    scheduler = Scheduler(Limits(max_running=1))
    scheduler.add(Request(1, "a", [1]))
    (request,) = scheduler.admit()
    request.move(State.LOADING)
    scheduler.add(Request(2, "a", [1]))
    assert scheduler.admit() == ()
    assert scheduler.plan().slices == ()


def test_full() -> None:
    """One more than max_queued is refused, and taking one out makes room again."""
    scheduler = Scheduler(Limits(max_queued=2))
    first = Request(1, "a", [1])
    scheduler.add(first)
    scheduler.add(Request(2, "b", [1]))
    with pytest.raises(Full, match="2 turns are waiting"):
        scheduler.add(Request(3, "c", [1]))
    scheduler.remove(first)
    scheduler.add(Request(3, "c", [1]))
    assert [r.id for r in scheduler.queued] == [2, 3]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_running": 0}, "max_running"),
        ({"max_queued": 0}, "max_queued"),
        ({"max_wait": 0.0}, "max_wait"),
        ({"max_running": 9, "step_tokens": 8}, "step_tokens"),
    ],
)
def test_limits_refused(fields: dict[str, int], named: str) -> None:
    """Limits that cannot hold are refused by name."""
    with pytest.raises(ValueError, match=named):
        Limits(**fields)


arrivals = st.tuples(
    st.just("arrive"),
    st.sampled_from("abc"),
    st.integers(1, 30),  # prompt tokens
    st.integers(1, 6),  # reply tokens
    st.booleans(),  # restored from the store
)
events = st.lists(
    st.one_of(arrivals, st.tuples(st.just("cancel"), st.integers(0, 40)), st.just(("step",))),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(events=events, max_running=st.integers(1, 4), extra=st.integers(0, 6))
def test_random_lives(events: list[tuple[object, ...]], max_running: int, extra: int) -> None:
    """Whatever arrives, is cancelled and ends: bounds hold, nobody is lost, everybody ends."""
    limits = Limits(max_running=max_running, max_queued=5, step_tokens=max_running + extra)
    scheduler = Scheduler(limits)
    everyone: dict[int, Request] = {}
    replies: dict[int, int] = {}
    restored: set[int] = set()
    waited: dict[int, int] = {}
    longest_wait = max(k * (max_running - k + 1) for k in range(1, max_running + 1))

    def step() -> None:
        for request in scheduler.running:
            if request.state is State.LOADING:
                request.restore(request.prompt_len // 2)
                request.move(State.PREFILL)
        for request in scheduler.admit():
            request.move(State.LOADING if request.id in restored else State.PREFILL)
        plan = scheduler.plan()
        assert plan.token_count <= limits.step_tokens
        assert len({s.request.id for s in plan.slices}) == len(plan.slices)
        served = {s.request.id for s in plan.slices}
        for request in scheduler.running:
            if request.state is State.DECODE:
                assert request.id in served
            if request.state in (State.DECODE, State.PREFILL):
                waited[request.id] = 0 if request.id in served else waited.get(request.id, 0) + 1
                # Tenants take turns, and within one its requests: k of one tenant wait for k
                # turns of it, each behind at most one of every other tenant.
                assert waited[request.id] <= longest_wait
        compute(plan)
        for piece in plan.slices:
            if len(piece.request.sampled) >= replies[piece.request.id]:
                piece.request.move(State.ENDED)
                scheduler.remove(piece.request)

    def check() -> None:
        assert len(scheduler.queued) <= limits.max_queued
        assert len(scheduler.running) <= limits.max_running
        held = [r.id for r in (*scheduler.queued, *scheduler.running)]
        alive = [r.id for r in everyone.values() if r.state is not State.ENDED]
        assert sorted(held) == sorted(alive)

    for event in events:
        match event:
            case ("arrive", str(tenant), int(prompt), int(reply), bool(stored)):
                request = Request(len(everyone), tenant, [1] * prompt)
                try:
                    scheduler.add(request)
                except Full:
                    continue
                everyone[request.id] = request
                replies[request.id] = reply
                if stored:
                    restored.add(request.id)
            case ("cancel", int(id)):
                if (found := everyone.get(id)) and found.state is not State.ENDED:
                    found.move(State.ENDED)
                    scheduler.remove(found)
            case _:
                step()
        check()
    for _ in range(2000):
        if not scheduler.queued and not scheduler.running:
            break
        step()
        check()
    assert all(r.state is State.ENDED for r in everyone.values())
    assert_empty(scheduler)


def assert_empty(scheduler: Scheduler) -> None:
    """Nothing of anybody is left."""
    assert scheduler.queued == scheduler.running == ()
    assert vars(scheduler)["_queues"] == vars(scheduler)["_request_served"] == {}
    assert vars(scheduler)["_tenant_served"] == vars(scheduler)["_tenant_admitted"] == {}


def test_ten_thousand_requests() -> None:
    """A long trace of arrivals, cancels, waits and ends leaves nothing held; all got an end."""
    chance = random.Random(4)
    limits = Limits(max_running=6, max_queued=20, step_tokens=64, max_wait=40.0)
    scheduler = Scheduler(limits)
    ends = dict.fromkeys(("spoken", "cancelled", "late", "refused"), 0)
    replies: dict[int, int] = {}
    now = 0.0

    def end(request: Request, how: str) -> None:
        request.move(State.ENDED)
        scheduler.remove(request)
        ends[how] += 1

    while len(replies) < 10_000 or scheduler.queued or scheduler.running:
        now += 1.0
        for _ in range(min(chance.choice((0, 0, 1, 3)), 10_000 - len(replies))):
            request = Request(
                len(replies), chance.choice("aaab"), [1] * chance.randint(1, 150), arrived=now
            )
            replies[request.id] = chance.randint(1, 8)
            try:
                scheduler.add(request)
            except Full:
                ends["refused"] += 1
        held = (*scheduler.queued, *scheduler.running)
        assert len(scheduler.running) <= limits.max_running
        assert len(scheduler.queued) <= limits.max_queued
        if held and chance.random() < 0.1:
            end(chance.choice(held), "cancelled")
        for request in scheduler.admit():
            request.move(State.PREFILL)
        for request in scheduler.late(now):
            end(request, "late")
        plan = scheduler.plan()
        assert plan.slices or not scheduler.running
        compute(plan)
        for piece in plan.slices:
            if len(piece.request.sampled) >= replies[piece.request.id]:
                end(piece.request, "spoken")
        assert all(now - request.arrived < limits.max_wait for request in scheduler.queued)
    assert sum(ends.values()) == 10_000
    assert all(ends.values()), ends
    assert_empty(scheduler)


def test_late() -> None:
    """Who waited its time out is named as long as it does not run; who runs never is."""
    scheduler = Scheduler(Limits(max_running=1, max_wait=10.0))
    first, second = Request(1, "a", [1], arrived=0.0), Request(2, "a", [1], arrived=5.0)
    scheduler.add(first)
    scheduler.add(second)
    start(scheduler)
    assert scheduler.late(14.9) == ()
    assert scheduler.late(15.0) == (second,)
