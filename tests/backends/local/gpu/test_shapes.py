"""What steps are padded to: few shapes, each with room for all that it is taken for."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import Message, Role, Sampling, Turn
from backends.local.gpu.shapes import Floor, Numbers, Shape, Shapes, shape_of, steps_of_every_shape
from backends.local.kernels.batch import Batch
from backends.local.kernels.pages import GroupTable
from backends.local.model import Decoder
from backends.local.model_config import ModelConfig
from backends.local.sampling import draw_rows
from backends.local.scheduler import Limits
from backends.local.testing import arena
from kvstore.host import HostTier
from kvstore.tiered import TieredStore
from tests.backends.local.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.local.checkpoint import LoadedModel
    from backends.local.kernels.batch import Drawing
    from backends.local.model_config import KVDtype
    from backends.local.sampling import Draw

TILE = 16


def batch(counts: list[int], lengths: list[int], widths: tuple[int, ...]) -> Batch:
    starts = [sum(counts[:b]) for b in range(len(counts) + 1)]

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    tables = []
    for width in widths:
        slots = torch.arange(len(counts) * width, dtype=torch.int32).view(-1, width) + 1
        tables.append(GroupTable(torch.empty(0), slots, ints([b + 5 for b in range(len(counts))])))
    return Batch(
        tokens=ints([100 + at for at in range(starts[-1])]),
        positions=ints(
            [at for n, end in zip(counts, lengths, strict=True) for at in range(end - n, end)]
        ),
        starts=ints(starts),
        lengths=ints(lengths),
        wanted=ints([end - 1 for end in starts[1:]]),
        tables=tuple(tables),
        end=max(lengths),
    )


@settings(max_examples=60)
@given(
    counts=st.lists(st.one_of(st.just(1), st.integers(1, 90)), min_size=1, max_size=20),
    floor=st.sampled_from([Floor(), Floor(64, 8, 32)]),
    width=st.integers(1, 40),
)
def test_a_step_lies_whole_in_its_shape(counts: list[int], floor: Floor, width: int) -> None:
    """Rows, sequences, tables and tiles; padding belongs to nobody."""
    step = batch(counts, [n + 7 for n in counts], (width, 3))
    shape = shape_of(step, [None, 100], TILE, floor)
    numbers = Numbers(shape, torch.device("cpu"))
    for _ in range(2):  # the second time over the first one's remains
        numbers.fill(step, TILE)
    rows, sequences = sum(counts), len(counts)
    assert shape.tokens >= rows
    assert numbers["tokens"].tolist()[:rows] == step.tokens.tolist()
    owners = [b for b, n in enumerate(counts) for _ in range(n)]
    assert numbers["owners"].tolist() == owners + [-1] * (shape.tokens - rows)
    starts = numbers["starts"].tolist()
    assert starts[: sequences + 1] == step.starts.tolist()
    assert set(starts[sequences:]) == {rows}
    for group, table in enumerate(step.tables):
        slots = numbers[f"slots{group}"].view(shape.sequences, -1)
        assert torch.equal(slots[:sequences, : table.slots.shape[1]], table.slots)
        assert torch.equal(numbers[f"first_page{group}"][:sequences], table.first_page)
    tiled = [(b, first) for b, n in enumerate(counts) if n > 1 for first in range(0, n, TILE)]
    found = list(zip(numbers["tile_owner"].tolist(), numbers["tile_first"].tolist(), strict=True))
    assert [pair for pair in found if pair[0] >= 0] == tiled


def test_decodes_of_any_length_share_few_shapes() -> None:
    """Up to the context that the floor stands for, one graph is replayed, and another one where a
    fourth of it is enough, down to 2,048 tokens."""
    for pages, widths in ((64, {64}), (128, {32, 128}), (512, {32, 128, 512})):
        shapes = {
            shape_of(
                batch([1] * 7, [length] * 7, (-(-length // 64), 3)),
                [None, 100],
                TILE,
                Floor(64, 8, pages),
            )
            for length in (1, 64, 500, 2048, 2049, 4096, 8192, pages * 64)
            if length <= pages * 64
        }
        assert {shape.widths[0] for shape in shapes} == widths
        assert len(shapes) == len(widths)


def test_small_prefills_share_a_shape() -> None:
    """A chunk of 2 tokens and one of 60, beside any number of decodes, are padded alike."""
    floor = Floor(64, 8, 64)
    shapes = {
        shape_of(batch(counts, [90] * len(counts), (2, 3)), [None, 100], TILE, floor)
        for counts in ([2], [60], [2, 1, 1], [1, 1, 50, 1])
    }
    assert len(shapes) == 1


class Noted:
    """Implements `Steps`: notes the shapes that a GPU would take, and answers at random."""

    kv_dtype: KVDtype = "float32"
    numerics = "none"
    device = "noted"
    row_budget = 1

    def __init__(self, config: ModelConfig, context: int) -> None:
        windows = [group.window for group in config.kv_layout().groups]
        self._shapes = Shapes(windows, TILE, context, graphed=True)
        self._random = torch.Generator().manual_seed(1)
        self._vocabulary = config.vocab_size
        self.taken: set[Shape] = set()

    def run(self, batch: Batch) -> torch.Tensor:
        self.taken.add(self._shapes.of(batch))
        return torch.rand(len(batch.wanted), self._vocabulary, generator=self._random)

    def draw(self, logits: torch.Tensor, draws: Sequence[Draw | None]) -> Drawing:
        tokens = draw_rows(logits.numpy(), draws)
        return lambda: tokens


def test_nothing_new_after_prepare(model: LoadedModel) -> None:
    """Turns of any length and company, cold, warm, in chunks: prepared shapes serve them all."""
    context, limits = 9000, Limits(max_running=11, step_tokens=700)
    config = ModelConfig.synthetic(vocab_size=model.config.vocab_size, windows=(128, None))
    steps = Noted(config, context)
    decoder = Decoder(config, steps)
    pool = arena(config, limits.max_running * context)
    decoder.prepare(pool, limits.max_running, limits.step_tokens, context)
    prepared = set(steps.taken)
    assert len(prepared) < 20
    rig = Rig(
        replace(model, config=config, decoder=decoder),
        limits=limits,
        context=context,
        device=pool,
        store=TieredStore(pool.layout, pool, HostTier(1 << 28)),
    )
    drawn = random.Random(5)
    for number in range(60):
        text = "word " * drawn.choice([1, 20, 63, 64, 130, 200])
        turn = Turn(
            id=f"t{number}",
            messages=(Message(Role.USER, text, "You"),),
            speaker="Guide",
            sampling=Sampling(temperature=0.0, max_tokens=drawn.choice([1, 3, 70, 200])),
            conversation=str(number % 7),
        )
        rig.submit(turn)
        for _ in range(drawn.choice([0, 1, 5, 40])):
            rig.engine.step()
    rig.drain()
    assert rig.engine.stats().finished == 60
    assert rig.engine.stats().cached_tokens > 0
    assert steps.taken == prepared


@given(sequences=st.integers(1, 700), tokens=st.integers(1, 9000), context=st.integers(200, 9000))
def test_few_shapes(sequences: int, tokens: int, context: int) -> None:
    """However large the steps, a server has some forty shapes; none is left out between."""
    made = list(steps_of_every_shape(sequences, max(tokens, sequences), context))
    assert len(made) <= 48
    assert len(made[0][0]) == sequences
    for counts, length in made:
        assert len(counts) <= sequences
        assert counts[0] + length < context
