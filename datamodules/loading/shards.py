"""Unlabelled images from tar shards, for sets of more images than a file system likes."""

from __future__ import annotations

import math
import os
import tarfile
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.augmenting.steps import Augmentation, StrongView
from datamodules.errors import DataError, OptionError, some
from datamodules.loading.dataset import training_item
from datamodules.loading.loaders import QuietLoader
from datamodules.reading.decoding import USUAL, decode_image, unstated
from datamodules.reading.files import find_glob, is_image
from datamodules.reading.sources import Example
from datamodules.selection.seeds import RandomStream, derive_seed, generator
from lightning_seg.errors import require_range
from lightning_seg.processes import world_size

_URL = "%:/?#[]@!$&'()*+,;=~"  # characters of a web address besides letters and digits


class UnlabeledShards:
    """Images in WebDataset tar shards: every member whose name ends as an image's does.

    Ranks and workers share the shards, in an order that changes with every pass over them. Within
    a shard, images are shuffled in groups, so that a worker holds one group of encoded images in
    memory. An image that cannot be decoded is left out with a warning and counted in `skipped`,
    which is logged as `data/skipped`; a shard that cannot be read to its end counts once.

    Args:
        urls: Local paths, globs, or any URL that webdataset opens (`https:`, `s3:`, `pipe:`), one
            or several. Braces are expanded: `shards/{000..099}.tar`.
        size: Number of images in all shards, at least 1, where an epoch is one pass over them.
        group: Number of consecutive images of a shard that are shuffled together, at least 1;
            default chosen here.

    Attributes:
        reading: How images are read; the data module sets its own options.

    Raises:
        DataError: There are no such shards, or webdataset is not installed.
    """

    def __init__(self, urls: str | list[str], size: int | None = None, group: int = 256) -> None:
        require_range(1, math.inf, error=DataError, group=group)
        if size is not None:
            require_range(1, math.inf, error=DataError, size=size)
        self.urls = _expand(urls)
        self.size = size
        self.group = group
        self.reading = USUAL

    def known_size(self, *alternatives: str) -> int:
        """Return the number of images in all shards.

        Args:
            alternatives: Options that set the length of an epoch without it.

        Raises:
            DataError: The size was not given.
        """
        if self.size is None:
            raise DataError(
                "how long is an epoch? Shards do not say how many images they hold: give the "
                "number of batches of an epoch, or the number of images in the shards",
                option=("iterations_per_epoch", "size", *alternatives),
            )
        return self.size

    def stream(
        self,
        augmentation: Augmentation,
        strong: StrongView | None,
        iterations: int,
        seed: int,
        rank: int,
        num_replicas: int,
        **loader_options: Any,
    ) -> ShardStream:
        """Return the batches of one rank.

        Args:
            augmentation: Makes a training crop of every image.
            strong: Makes the second view of a crop; None makes none.
            iterations: Batches of an epoch, at least 1.
            seed: Seed of order and augmentation, at least 0.
            rank: Number of this process, in [0, num_replicas).
            num_replicas: Number of processes that share the shards.
            loader_options: Arguments of the DataLoader.
        """
        dataset = _ShardImages(self, augmentation, strong, seed, rank, num_replicas)
        return ShardStream(dataset, iterations, **loader_options)


class _Place(NamedTuple):
    """Where a consumer is: a shard of its own sequence of shards, and a member of the shard."""

    shard: int = 0
    member: int = 0


class _ShardImages(IterableDataset[dict[str, Any]]):
    """Endless training items of one worker.

    A consumer is one worker of one rank. All consumers take the shards of one endless sequence of
    passes in turn: of N consumers, consumer c reads the shards c, c + N, c + 2 N, ...
    """

    def __init__(
        self,
        shards: UnlabeledShards,
        augmentation: Augmentation,
        strong: StrongView | None,
        seed: int,
        rank: int,
        num_replicas: int,
    ) -> None:
        self.shards = shards
        self.augmentation = augmentation
        self.strong = strong
        self.seed = seed
        self.rank = rank
        self.num_replicas = num_replicas
        self.places: dict[int, _Place] = {}
        self.turn = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        consumer, consumers = self._consumer()
        place = self.places.get(consumer, _Place())
        failed: dict[str, str] = {}  # shards without a readable image, until one was read
        any_read = False
        skipped = 0
        while True:
            step = place.shard * consumers + consumer
            problem = "it holds no image files"
            for member, name, data in self._members(step, place.member):
                try:
                    item = self._item(name, data, step, member)
                except OptionError:
                    raise
                except DataError as error:
                    warnings.warn(f"left out of {self._url(step)}: {error}", stacklevel=2)
                    skipped += 1
                    problem = str(error)
                    continue
                any_read = True
                following = torch.tensor([consumer, place.shard, member + 1])
                yield {**item, "skipped": skipped, "place": following}
                skipped = 0
            if not any_read and not place.member:
                failed[self._url(step)] = problem
                self._require_images(failed)
            place = _Place(place.shard + 1)

    def _consumer(self) -> tuple[int, int]:
        """Return the number of this consumer and the number of consumers."""
        info = get_worker_info()
        number, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # a resumed loader asks worker 0 first, which takes the place of the worker whose turn it is
        role = (number + self.turn) % workers
        return self.rank * workers + role, self.num_replicas * workers

    def _require_images(self, failed: dict[str, str]) -> None:
        """Raise an error where no shard holds a readable image."""
        if len(failed) == len(set(self.shards.urls)):
            url, problem = list(failed.items())[-1]
            raise DataError(
                f"no image could be read from {len(failed)} shards, the last of them {url}: "
                f"{problem}",
                option="urls",
            )

    def _url(self, step: int) -> str:
        """Return the shard at a place of the endless sequence of passes."""
        turn, place = divmod(step, len(self.shards.urls))
        rng = generator(self.seed, RandomStream.SHARD_ORDER, turn)
        return self.shards.urls[int(rng.permutation(len(self.shards.urls))[place])]

    def _members(self, step: int, first: int) -> Iterator[tuple[int, str, bytes | None]]:
        """Yield number, name and bytes of a shard's images, shuffled in groups.

        Where the shard cannot be read, the bytes are None and the name is an error message.

        Args:
            step: Place of the shard in the endless sequence of passes.
            first: Number of the first image to yield.
        """
        members = _read(self._url(step))
        begin = 0
        while group := list(islice(members, self.shards.group)):
            rng = generator(self.seed, RandomStream.SHARD_GROUP, step, begin)
            for offset, position in enumerate(rng.permutation(len(group))):
                if begin + offset >= first:
                    yield begin + offset, *group[position]
            begin += len(group)

    def _item(self, name: str, data: bytes | None, step: int, member: int) -> dict[str, Any]:
        """Decode and augment an image; raise DataError with the name where there are no bytes."""
        if data is None:
            raise DataError(name)
        draw = self.augmentation.draw(
            derive_seed(self.seed, RandomStream.SHARD_EXAMPLE, step, member)
        )
        example = Example(name, self._decoded(data, name), None)
        return training_item(example, draw, self.augmentation, self.strong)

    def _decoded(self, data: bytes, name: str) -> NDArray[np.uint8]:
        image = decode_image(data, name, reading=self.shards.reading)
        if self.shards.reading.image_range is None and unstated(data, name, self.shards.reading):
            raise OptionError(
                f"{name} has more than 8 bits a channel and does not say which value is white",
                option="image_range [0,65535]",
            )
        return image


class ShardStream:
    """Batches of one rank in epochs; its state holds the place of every worker of every rank.

    A run that resumes with the same numbers of processes and workers reads exactly the images that
    it would have read without a stop. With other numbers it begins with the first shard that was
    not finished, so that some images come again.

    Args:
        items: Endless training items.
        iterations: Batches of an epoch, at least 1.
        loader_options: Arguments of the DataLoader.

    Attributes:
        epoch: The epoch of the running iteration, or of the next one where none is running.
        limit: Returns the largest number of batches that the trainer takes from an epoch.
    """

    limit: Callable[[], float] = staticmethod(lambda: math.inf)

    def __init__(self, items: _ShardImages, iterations: int, **loader_options: Any) -> None:
        self.items = items
        self.iterations = iterations
        self.loader_options = loader_options
        self.epoch = 0
        self._seen = 0
        self._total = 0
        self._running = False
        self._batches: Iterator[dict[str, Any]] | None = None
        self._places: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._running or self._seen >= min(len(self), self.limit()):
            self.epoch += 1
            self._seen = 0
        self._running = True
        if self._batches is None:  # the items are endless, so that one loader serves all epochs
            workers = max(1, self.loader_options["num_workers"])
            self.items.places = {each: _Place(*at) for each, at in self._places.items()}
            self.items.turn = self._total % workers
            self._batches = iter(QuietLoader(self.items, **self.loader_options))
        while self._seen < self.iterations:
            batch = next(self._batches)
            for consumer, shard, member in batch.pop("place").tolist():
                self._places[consumer] = (shard, member)
            self._seen += 1
            self._total += 1
            yield batch

    @property
    def _consumers(self) -> int:
        workers: int = self.loader_options["num_workers"]
        return self.items.num_replicas * max(1, workers)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many batches were returned, and every worker's shard and member.

        All processes must call this method together, as Lightning does.
        """
        places = dict(self._places)
        if self.items.num_replicas > 1 and world_size() > 1:
            gathered: list[Any] = [None] * world_size()
            dist.all_gather_object(gathered, places)
            places = {consumer: at for each in gathered for consumer, at in each.items()}
        return {
            "epoch": self.epoch,
            "seen": self._seen,
            "total": self._total,
            "places": places,
            "consumers": self._consumers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration begin after the batches that were returned."""
        self.epoch, self._seen = state.get("epoch", self.epoch), state.get("seen", 0)
        self._total, self._places = state.get("total", 0), dict(state.get("places", {}))
        before, now = state.get("consumers", self._consumers), self._consumers
        if before != now:
            warnings.warn(
                f"the shards were read by {before} workers and are now read by {now}: some images "
                "come again (option: num_workers=)",
                stacklevel=2,
            )
            steps = [self._places.get(each, (0, 0))[0] * before + each for each in range(before)]
            self._places = {
                each: (max(0, -(-(min(steps) - each) // now)), 0) for each in range(now)
            }
        self._running = False
        self._batches = None

    def close(self) -> None:
        """End the loader processes; the next iteration continues after the batches returned."""
        self._batches = None


def _read(url: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield name and bytes of a shard's images; an error message and None where it is damaged."""
    from webdataset.gopen import gopen

    damage: list[bytes] = []

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                if any(buf):  # zeros end an archive, and also stand between two archives in a row
                    damage.append(buf)
                raise

    try:
        # ignore_zeros: reading continues with the next valid header after bytes that are none
        with (
            gopen(url) as stream,
            tarfile.open(fileobj=stream, mode="r|*", ignore_zeros=True, tarinfo=Header) as tar,
        ):
            for member in tar:
                if damage:
                    damage.clear()
                    yield f"the shard is damaged before {member.name}", None
                if member.isfile() and is_image(member.name):
                    file = tar.extractfile(member)
                    yield member.name, b"" if file is None else file.read()
                tar.members = []  # type: ignore[attr-defined] # else it would keep all members
    except Exception as error:  # of the network, of a decompressor, of tarfile
        yield f"the shard cannot be read to its end: {error}", None


def _expand(urls: str | Sequence[str]) -> list[str]:
    """Return every shard that the paths, globs and URLs name, with web addresses quoted."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError(
            "UnlabeledShards needs the package webdataset: pip install 'lightning-seg[shards]'"
        ) from error
    shards: list[str] = []
    for each in [urls] if isinstance(urls, str) else urls:
        for url in expand_urls(each):
            local = os.path.expanduser(url)  # noqa: PTH111
            if ":" in url.split("/")[0] or Path(local).is_file():
                quoted = urllib.parse.quote(url, safe=_URL) if url.startswith("http") else url
                shards.append(local if Path(local).is_file() else quoted)
            elif matches := find_glob(Path(local))[1]:
                if odd := [str(path) for path in matches if not path.is_file()]:
                    raise DataError(f"{some(odd)} is no file, but a shard is one", option="urls")
                shards += map(str, matches)
            else:
                raise DataError(f"there are no shards at {url!r}", option="urls")
    if not shards:
        raise DataError("UnlabeledShards needs the name of a shard", option="urls")
    return shards
