"""One place numbers the random streams and derives every seed."""

import os
import re
import subprocess
import sys
from itertools import pairwise, product

import pytest
from places import ROOT

from datamodules.selection.seeds import RandomStream, derive_seed, generator

MASK = 0xFFFFFFFF


def by_hand(seed: int, *key: int) -> int:
    """The first word of M. E. O'Neill's seed_seq_fe with 128 bits, for numbers below 2**32."""
    factor = 0x43B0D7E5

    def hashed(word: int) -> int:
        nonlocal factor
        word ^= factor
        factor = factor * 0x931E8875 & MASK
        word = word * factor & MASK
        return word ^ word >> 16

    def mixed(one: int, other: int) -> int:
        word = one * 0xCA01F9DD - other * 0x4973F715 & MASK
        return word ^ word >> 16

    pool = [hashed(word) for word in (seed, 0, 0, 0)]
    for source, target in product(range(4), range(4)):
        if source != target:
            pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in key:
        pool = [mixed(each, hashed(word)) for each in pool]
    word = (pool[0] ^ 0x8B51F9DD) * (0x8B51F9DD * 0x58F38DED & MASK) & MASK
    return word ^ word >> 16


KEYS = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (3, 5), (2**32 - 1,)]


def test_seeds_are_those_of_the_published_algorithm() -> None:
    for seed, stream, counters in product((0, 7, 2**32 - 1), RandomStream, KEYS):
        assert derive_seed(seed, stream, *counters) == by_hand(seed, stream, *counters)
    assert derive_seed(0, RandomStream.LABELED, 3, 5) == 2806301940


def test_no_two_keys_share_their_numbers() -> None:
    """Keys of other streams, of other lengths, and of another seed."""
    keys = list(product((0, 1, 2, 4, 12), RandomStream, KEYS))
    seeds = {derive_seed(seed, stream, *counters) for seed, stream, counters in keys}
    draws = {tuple(generator(s, stream, *counters).random(2)) for s, stream, counters in keys}
    assert len(seeds) == len(draws) == len(keys)


def test_streams_are_numbered_once_and_in_order() -> None:
    numbers = [member.value for member in RandomStream]
    assert len(RandomStream.__members__) == len(numbers)  # an alias would share its numbers
    assert numbers[0] == 1
    assert all(after == before + 1 for before, after in pairwise(numbers))


def test_other_processes_derive_the_same_seeds() -> None:
    program = (
        "from datamodules.selection.seeds import *\n"
        "print([derive_seed(5, stream, 2, 9) for stream in RandomStream])\n"
        "print([generator(5, stream).integers(1 << 62) for stream in RandomStream])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(number)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in (1, 2)
    }
    (lines,) = printed
    assert lines.splitlines()[0] == str([derive_seed(5, stream, 2, 9) for stream in RandomStream])


@pytest.mark.parametrize("call", [r"default_rng\(", r"SeedSequence\(", r"np\.random\.seed"])
def test_nothing_else_seeds_numpy(call: str) -> None:
    others = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "datamodules").rglob("*.py")
        if any(
            re.search(call, line) and not line.lstrip().startswith(">>>")
            for line in path.read_text().splitlines()
        )
    }
    assert others <= {"datamodules/selection/seeds.py"}
