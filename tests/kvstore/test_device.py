"""The device's pool of pages as a tier, and as what sequences write to."""

from __future__ import annotations

import pytest
import torch

from kvstore.api import Block, BlockKey, Group, Layout, Scope
from kvstore.device import DeviceTier, slot_counts
from kvstore.testing import LAYOUT, TierContract, block, blocks, chain, got


def tier(slots: int = 64, layout: Layout = LAYOUT) -> DeviceTier:
    return DeviceTier(layout, {group.id: slots for group in layout.groups})


class TestContract(TierContract):
    @pytest.fixture
    def tier(self) -> DeviceTier:
        return tier()


def test_counts_make_room_for_chats() -> None:
    """Slots are shared out as chats need them; a pool too small for one is refused."""
    layout = Layout((Group(0, (5,), None, (512,)), Group(1, (0, 1, 2), 512, (512,))))
    counts = slot_counts(layout, 64 << 20)
    assert counts[0] > 4 * counts[1]
    used = sum(counts[g.id] * 64 * g.bytes_per_token for g in layout.groups)
    assert 0.95 * (64 << 20) < used <= 64 << 20
    with pytest.raises(ValueError, match="holds no chat"):
        slot_counts(layout, 1 << 20)


def test_a_short_block_is_the_whole_one_cut() -> None:
    """Written at the front of a page and read back, every run is in its place."""
    made = tier()
    of = chain(range(5))
    mine = block(BlockKey(of.key(5), 0, 1), of)
    (slot,) = made.take(1, 1) or []
    made.write(1, slot, 5, memoryview(mine.payload))
    assert bytes(made.payload(1, slot, 5)) == mine.payload
    page = made.pages[1][slot].numpy().reshape(3, 2, 8, 8)  # layers, K and V, tokens, bytes
    given = torch.frombuffer(bytearray(mine.payload), dtype=torch.uint8).reshape(3, 2, 5, 8)
    assert (page[:, :, :5] == given.numpy()).all()
    assert not page[:, :, 5:].any()


def test_append_copies_what_others_use() -> None:
    """Behind a page that somebody else uses a copy is written; alone, the page itself."""
    made = tier()
    of = chain(range(5))
    mine = block(BlockKey(of.key(5), 0, 0), of)
    (slot,) = made.take(0, 1) or []
    made.write(0, slot, 5, memoryview(mine.payload))
    made.publish([(mine.key, slot, mine.ids, mine.owner, False)])
    assert made.append_slot(0, slot, 5) == slot
    made.pin([mine.key])
    copy = made.append_slot(0, slot, 5)
    assert copy not in (None, slot)
    assert copy is not None
    assert bytes(made.payload(0, copy, 5)) == mine.payload
    assert got(made, [mine]) == [mine]


def test_room_takes_slots_and_gives_them_back() -> None:
    """A restore's buffers are pages; settled they hold the blocks, released they are free."""
    made = tier(slots=3)
    of = chain(range(13))
    wanted: list[Block] = [b for b in blocks(of) if b.key.group == 0]
    room = made.room()
    keys = [b.key for b in wanted]
    buffers = room.take(keys)
    assert buffers is not None
    assert room.take(keys) is not None  # the same slots again
    for buffer, each in zip(room.take(keys) or (), wanted, strict=True):
        buffer[:] = each.payload
    room.settle(keys)
    for each in wanted:
        payload = made.payload(0, room.slots[each.key], each.key.tokens)
        assert bytes(payload) == each.payload
    other = made.room()
    assert other.take([k.key for k in blocks(chain(range(50, 66))) if k.key.group == 0]) is None
    room.release(keys)
    assert made.take(0, 3) is not None


def test_purged_pages_are_overwritten() -> None:
    """Nothing of a deleted owner's bytes stays in a page that nobody uses."""
    made = tier()
    mine = blocks(chain(range(8)), owner=b"o" * 16)
    made.put(mine)
    made.purge(Scope(mine[0].key.prefix.space, b"o" * 16))
    assert not any(pages.any() for pages in made.pages.values())
