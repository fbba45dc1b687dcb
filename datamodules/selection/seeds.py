"""Where every random number of `datamodules` comes from: a seed, a stream and counters."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class RandomStream(IntEnum):
    """The purposes that random numbers are drawn for; no two of them share a sequence.

    The comment of each member names the counters that `derive_seed` and `generator` get with it.
    """

    LABELED = 1
    """Labelled images. Order: pass over the images. Example: epoch, step over all processes."""
    UNLABELED = 2
    """Images without labels, with the counters of `LABELED`."""
    LABELED_REAL = 3
    """The labelled images of the second labelled group, with the counters of `LABELED`."""
    SHARD_ORDER = 4
    """Order of the shards: pass over the shards."""
    SHARD_GROUP = 5
    """Order within a group of images: shard in the endless sequence, first image of the group."""
    SHARD_EXAMPLE = 6
    """Example of a shard: shard in the endless sequence, image within the shard."""
    SCALE = 7
    """Scale factor of a training crop. The seed is the example's; there are no counters."""
    CROP = 8
    """Place and flip of a training crop, from the example's seed."""
    STEPS_BEFORE_CROP = 9
    """Augmentation of the whole image, from the example's seed."""
    STEPS_AFTER_CROP = 10
    """Augmentation of the crop, from the example's seed."""
    STRONG_VIEW = 11
    """The strong view of an unlabelled crop, from the example's seed."""
    PATCHES = 12
    """Patches. Training: the example's seed, no counters. Evaluation: index of the example."""
    SCENE = 13
    """A drawn scene: number of the split, index of the scene."""


def derive_seed(seed: int, stream: RandomStream, *counters: int) -> int:
    """Return a seed in [0, 2**32) that depends on the arguments alone, on every machine.

    Args:
        seed: Seed of the run or of an example, at least 0.
        stream: Purpose of the numbers.
        counters: Where in the stream, each at least 0, such as epoch and step. Keys of different
            lengths give different seeds.

    Examples:
        >>> derive_seed(0, RandomStream.LABELED, 3, 5)
        2806301940
    """
    return int(_sequence(seed, stream, counters).generate_state(1)[0])


def generator(seed: int, stream: RandomStream, *counters: int) -> np.random.Generator:
    """Return a generator of random numbers for the key that `derive_seed` explains."""
    return np.random.default_rng(_sequence(seed, stream, counters))


def _sequence(seed: int, stream: RandomStream, counters: tuple[int, ...]) -> np.random.SeedSequence:
    # a spawn key, unlike a tuple as entropy: there (1, 2) and (1, 2, 0) would be one sequence
    return np.random.SeedSequence(seed, spawn_key=(stream, *counters))
