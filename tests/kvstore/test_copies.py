"""Pages that go through a stage are the pages; on a CUDA device also beside the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from kvstore.copies import Stage, gather, scatter
from kvstore.device import DeviceTier
from kvstore.testing import LAYOUT, blocks, chain

if TYPE_CHECKING:
    from kvstore.api import Block

PAGE_BYTES = {0: 64, 1: 192}


def arenas() -> dict[int, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return {
        group: torch.randint(0, 256, (9, size), dtype=torch.uint8, generator=drawn)
        for group, size in PAGE_BYTES.items()
    }


def test_there_and_back() -> None:
    """Pages gathered from some slots and scattered to others, a part of them, land there whole."""
    pages, before = arenas(), arenas()
    out = Stage({1: 3, 0: 2}, PAGE_BYTES, pinned=False)
    noted = out.place([(1, 0, 7), (0, 0, 4), (1, 1, 2), (1, 2, 5), (0, 1, 8)])
    for group, found in gather(out.places, noted, pages).items():
        out.pages(out.memory, group).copy_(found)
    assert bytes(out.page(1, 1)) == bytes(before[1][2].tolist())
    assert bytes(out.page(0, 1)) == bytes(before[0][8].tolist())
    noted = out.place([(1, 2, 0), (1, 0, 1), (0, 1, 3)])
    scatter(out, out.memory.clone(), noted, pages)
    for group, slot, source in ((1, 0, 5), (1, 1, 7), (0, 3, 8)):
        before[group][slot] = before[group][source]
    assert all(torch.equal(pages[group], before[group]) for group in pages)


@pytest.mark.gpu
def test_beside_the_steps() -> None:
    """Blocks settled on a device and brought back are the blocks, whole and short ones; a page may
    be written again at once."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    made = DeviceTier(LAYOUT, {group.id: 64 for group in LAYOUT.groups}, device="cuda")
    mine: list[Block] = blocks(chain(range(13)))
    keys = [block.key for block in mine]
    room = made.room()
    for buffer, block in zip(room.take(keys) or (), mine, strict=True):
        buffer[:] = block.payload
    room.settle(keys)
    leaving = made.payloads([(key.group, room.slots[key], key.tokens) for key in keys])
    for pages in made.pages.values():
        pages.zero_()
    assert [bytes(payload) for payload in leaving.payloads()] == [b.payload for b in mine]
    assert leaving.is_here
    room.release(keys)
