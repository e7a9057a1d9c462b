"""Whatever bytes come: a typed error or a result, in bounded time and memory.

Hypothesis draws the mutations, so that a failure is reported by the smallest seed that has it.
`python -m tests.personas.fuzz.atheris_run` looks deeper.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.personas.fuzz.mutations import mutated
from tests.personas.fuzz.targets import SEEDS, TARGETS, keys, lorebook, macros

# A mutated file of 64 KB takes some 10 ms, the worst 300. Processor time: busy cores do not count.
SECONDS = 5.0
# The process has some 120 MB before the first file; the limits of the targets allow 2 MB inflated.
MEGABYTES = 400
QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def bounded(name: str, raw: bytes) -> None:
    """Runs a target; fails when it takes too long or raises what it may not."""
    began = time.thread_time()
    TARGETS[name](raw)
    took = time.thread_time() - began
    assert took < SECONDS, f"{name}: {took:.1f} s for {len(raw)} bytes"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    """What the mutations begin with goes through, so that they begin with something."""
    for raw in SEEDS[name]:
        bounded(name, raw)


@pytest.mark.parametrize("name", TARGETS)
@given(st.integers(0, 2**32))
@QUICK
def test_mutations(name: str, seed: int) -> None:
    """Broken files of every kind end in a typed error, or are read."""
    bounded(name, mutated(SEEDS[name], random.Random(seed)))


@pytest.mark.parametrize("name", TARGETS)
@given(st.binary(max_size=400))
@settings(QUICK, max_examples=20)
def test_bytes(name: str, raw: bytes) -> None:
    """So does what was never a file."""
    bounded(name, raw)


NAMES = st.sampled_from(
    [
        *("char", "user", "random", "pick", "roll", "if", "/if", "else", "trim", "//", "setvar"),
        *("getvar", "addvar", "incvar", "reverse", "space", "time", "datetimeformat", "original"),
        *(
            "hidden_key",
            "comment",
            "outlet",
            "time_UTC+2",
            "description",
            "nothing",
            "IF !",
            " Char ",
        ),
    ]
)
PLAIN = st.text(alphabet="ab,:\\\n{}<>1d6+-!é ", max_size=8)


def _call(name: str, separator: str, arguments: list[str]) -> str:
    return "{{" + separator.join((name, *arguments)) + "}}"


def _block(condition: str, one: str, other: str) -> str:
    return f"{{{{if {condition}}}}}{one}{{{{else}}}}{other}{{{{/if}}}}"


SEPARATORS = st.sampled_from([":", "::", " ", " :: "])
MACROS = st.recursive(
    PLAIN | st.sampled_from(["<BOT>", "<user>", "{{", "}}", "{{{{", "{{/if}}", "{{else}}"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5).map("".join),
        st.builds(_call, NAMES, SEPARATORS, st.lists(inner, max_size=3)),
        st.builds(_block, inner, inner, inner),
    ),
    max_leaves=12,
)


@given(MACROS, st.sampled_from([1, 1, 1, 20, 300]))
@settings(QUICK, max_examples=80)
def test_macro_grammar(text: str, times: int) -> None:
    """Macros by their own grammar: the same twice, never much longer, in linear time."""
    began = time.thread_time()
    macros((text * times)[:30_000].encode(errors="replace"))
    assert time.thread_time() - began < SECONDS


ATOMS = st.sampled_from(
    [
        *"ab.^$",
        r"\b",
        r"\w",
        r"\d+",
        r"\pL",
        "[a-z]",
        "[^a]",
        "(?i)",
        "(?=a)",
        r"\1",
        r"\u00e9",
        "é",
        r"\Qa",
    ]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.builds(
            "({}){}".format, inner, st.sampled_from(["", *"*+?", "*?", "{2}", "{1,900}", "{,3}"])
        ),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("/{}/{}".format, inner, st.sampled_from(["", "i", "gims", "y", "q"])),
    ),
    max_leaves=10,
)


@given(st.lists(PATTERNS, min_size=1, max_size=12), st.text(alphabet="abé1 \n", max_size=60))
@settings(QUICK, max_examples=80)
def test_key_grammar(patterns: list[str], text: str) -> None:
    """Patterns by their own grammar run or are named, in a bounded time for a long text."""
    began = time.thread_time()
    keys("\n".join(patterns).encode() + b"\n\n" + (text * 100).encode())
    assert time.thread_time() - began < SECONDS


FIELDS = st.sampled_from(
    [
        *("keys", "secondary_keys", "content", "extensions", "constant", "selective", "position"),
        *("insertion_order", "use_regex", "depth", "group", "probability", "sticky", "role"),
        *("selectiveLogic", "match_whole_words", "delay_until_recursion", "entries"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(FIELDS, VALUES, max_size=8), max_size=5))
@QUICK
def test_lorebook_grammar(entries: list[object]) -> None:
    """Entries with values of any type in the fields that count."""
    lorebook(json.dumps({"entries": entries, "recursive_scanning": True}).encode())


def hunt(count: int, names: list[str], seed: int) -> None:
    """So many mutations of each target, in this process and with a bound for its memory."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    for name in names:
        for number in range(count):
            bounded(name, mutated(SEEDS[name], random.Random(seed + number)))
    assert peak_megabytes() < MEGABYTES, f"{peak_megabytes()} MB"


def peak_megabytes() -> int:
    """The most this program had at once; `ru_maxrss` would count what its parent had before."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def hunted(count: int, seed: int) -> None:
    """`hunt` in a process of its own: what it took at most is its own, and no other test's."""
    code = f"from tests.personas.fuzz.test_fuzz import hunt; hunt({count}, {[*TARGETS]}, {seed})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_memory() -> None:
    """Hundreds of broken files in one process stay within its memory."""
    hunted(30, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many(part: int) -> None:
    """Tens of thousands of broken files."""
    hunted(2_000, seed=1_000_000 * (part + 1))
