"""Unlabelled images streamed from tar shards: a million images need no million files."""

from __future__ import annotations

import glob
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
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.augmenting.steps import Augmentation, StrongView
from datamodules.errors import DataError
from datamodules.loading.dataset import training_item
from datamodules.reading.files import decode_image, is_image
from datamodules.reading.sources import Example

_URL = "%:/?#[]@!$&'()*+,;=~"  # what a web address may hold beside letters


class UnlabeledShards:
    """Images in WebDataset tar shards: every member whose name ends like an image's.

    Shards are taken in an order that changes with every pass, shared out over ranks and workers;
    within a shard, images are shuffled in groups. Only one group of encoded images is held in
    memory. What cannot be decoded is left out, warned of, and counted as `data/skipped`; a shard
    that breaks off counts once.

    Args:
        urls: Local paths, globs, or any URL that webdataset opens (`https:`, `s3:`, `pipe:`);
            braces count: `shards/{000..099}.tar`.
        size: Number of images in all shards, where an epoch is to be one pass over them.
        group: How many consecutive images of a shard are shuffled among themselves.

    Raises:
        DataError: No shards, or webdataset is not installed.
    """

    def __init__(self, urls: str | list[str], size: int | None = None, group: int = 256) -> None:
        if group < 1 or (size is not None and size < 1):
            raise DataError(f"UnlabeledShards: group ({group}) and size ({size}) must be positive")
        self.urls = _expand(urls)
        self.size = size
        self.group = group

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
            augmentation: Applied to every image.
            strong: Makes a second view.
            iterations: Batches of an epoch.
            seed: Of order and augmentation.
            rank: This process.
            num_replicas: Number of processes.
            loader_options: Of the DataLoader.
        """
        dataset = _ShardImages(self, augmentation, strong, seed, rank, num_replicas)
        return ShardStream(dataset, iterations, **loader_options)


class _Place(NamedTuple):
    """Where a worker is: a shard of its own sequence of shards, and a member of that."""

    shard: int = 0
    member: int = 0


class _ShardImages(IterableDataset[dict[str, Any]]):
    """Endless training items of one worker."""

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
        info = get_worker_info()
        number, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # the loader asks worker 0 first: it plays the one whose turn it was
        role = (number + self.turn) % workers
        consumer, consumers = self.rank * workers + role, self.num_replicas * workers
        place = self.places.get(consumer, _Place())
        hopeless: set[str] = set()  # shards without an image, as long as none has been found
        found = False
        skipped = 0
        problem = "it holds no image files"
        while True:
            # all consumers walk through one endless sequence of passes over the shards
            step = place.shard * consumers + consumer
            for member, name, data in self._members(step, place.member):
                seed = int(
                    np.random.SeedSequence((self.seed, 1, step, member)).generate_state(1)[0]
                )
                try:
                    if data is None:
                        raise DataError(name)
                    item = self._item(name, data, seed)
                except DataError as error:
                    warnings.warn(f"left out of {self._url(step)}: {error}", stacklevel=2)
                    skipped += 1
                    problem = str(error)
                    continue
                found = True
                following = torch.tensor([consumer, place.shard, member + 1])
                yield {**item, "skipped": skipped, "place": following}
                skipped = 0
            if not found and not place.member:
                hopeless.add(self._url(step))
                if len(hopeless) == len(self.shards.urls):
                    raise DataError(
                        f"no image could be read from {len(hopeless)} shards, the last of them "
                        f"{self._url(step)}: {problem}"
                    )
            place = _Place(place.shard + 1)

    def _url(self, step: int) -> str:
        turn, place = divmod(step, len(self.shards.urls))
        order = np.random.default_rng((self.seed, 1, turn)).permutation(len(self.shards.urls))
        return self.shards.urls[int(order[place])]

    def _members(self, step: int, first: int) -> Iterator[tuple[int, str, bytes | None]]:
        """Yield number, name and bytes of a shard's images, shuffled in groups, from a number on.

        Bytes are None, and the name a sentence, where the shard cannot be read on.
        """
        members = _read(self._url(step))
        begin = 0
        while group := list(islice(members, self.shards.group)):
            rng = np.random.default_rng((self.seed, 2, step, begin))
            order = rng.permutation(len(group))
            for offset, position in enumerate(order):
                if begin + offset >= first:
                    yield begin + offset, *group[position]
            begin += len(group)

    def _item(self, name: str, data: bytes, seed: int) -> dict[str, Any]:
        drawn = self.augmentation.draw(seed)
        image = decode_image(data, name)
        return training_item(
            Example(name, image, None), seed, drawn, self.augmentation, self.strong
        )


class ShardStream:
    """Batches of one rank in epochs; a checkpoint holds the place of every worker of every rank.

    A run that goes on with as many processes and workers sees just the images that it would have
    seen. With other numbers it begins with the first shard that was not finished: some images
    come again.

    Args:
        items: Endless items.
        iterations: Batches of an epoch.
        loader_options: Of the DataLoader.
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
        if self._batches is None:  # endless: the workers live as long as the stream
            workers = max(1, self.loader_options["num_workers"])
            self.items.places = {each: _Place(*at) for each, at in self._places.items()}
            self.items.turn = self._total % workers
            self._batches = iter(DataLoader(self.items, **self.loader_options))
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
        """Return the epoch, the batches handed out, and every worker's shard and member.

        Asked for on all processes, as Lightning does.
        """
        places = dict(self._places)
        if self.items.num_replicas > 1 and dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
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
        """Make the next iteration begin behind the batches that were handed out."""
        self.epoch, self._seen = state.get("epoch", self.epoch), state.get("seen", 0)
        self._total, self._places = state.get("total", 0), dict(state.get("places", {}))
        before, now = state.get("consumers", self._consumers), self._consumers
        if before != now:
            warnings.warn(
                f"the shards were read by {before} workers and are now by {now}: some images come "
                "again (option: --data.num_workers)",
                stacklevel=2,
            )
            steps = [self._places.get(each, (0, 0))[0] * before + each for each in range(before)]
            self._places = {
                each: (max(0, -(-(min(steps) - each) // now)), 0) for each in range(now)
            }
        self._running = False
        self._batches = None

    def close(self) -> None:
        """End the loader processes; the next iteration goes on where they were."""
        self._batches = None


def _read(url: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield name and bytes of a shard's images; a sentence and None where something is broken."""
    from webdataset.gopen import gopen

    damage: list[bytes] = []

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                if any(buf):  # zeros end an archive, also in front of a second one
                    damage.append(buf)
                raise

    try:
        # ignore_zeros: whatever is no header is passed over, what comes behind is found again
        with (
            gopen(url) as stream,
            tarfile.open(fileobj=stream, mode="r|*", ignore_zeros=True, tarinfo=Header) as tar,
        ):
            for member in tar:
                if damage:
                    damage.clear()
                    yield f"the shard is damaged in front of {member.name}", None
                if member.isfile() and is_image(member.name):
                    file = tar.extractfile(member)
                    yield member.name, b"" if file is None else file.read()
                tar.members = []  # type: ignore[attr-defined] # else it would keep them all
    except Exception as error:  # of the network, of a decompressor, of tarfile
        yield f"the shard cannot be read to its end: {error}", None


def _expand(urls: str | Sequence[str]) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError(
            "UnlabeledShards needs the package webdataset: pip install 'lightning-seg[shards]'"
        ) from error
    found: list[str] = []
    for each in [urls] if isinstance(urls, str) else urls:
        for url in expand_urls(each):
            local = os.path.expanduser(url)  # noqa: PTH111
            if ":" in url.split("/")[0] or Path(local).is_file():
                quoted = urllib.parse.quote(url, safe=_URL) if url.startswith("http") else url
                found.append(local if Path(local).is_file() else quoted)
            elif matches := sorted(glob.glob(local)):  # noqa: PTH207
                found += matches
            else:
                raise DataError(f"no shards at {url!r} (option: --data.unlabeled_shards)")
    if not found:
        raise DataError("UnlabeledShards: no shards are named (option: --data.unlabeled_shards)")
    return found
