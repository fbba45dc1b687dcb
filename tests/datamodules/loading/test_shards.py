"""Unlabelled images out of tar files."""

import io
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import png
from PIL import Image

from datamodules import DataError, SyntheticScenesDataModule, UnlabeledShards


def write_shards(folder: Path, sizes: tuple[int, ...]) -> None:
    """Write `{shard}-{number}.png` of one colour each, with a text beside every image."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(size):
                buffer = io.BytesIO()
                Image.new("RGB", (20, 18), (shard, number, 7)).save(buffer, "PNG")
                add(tar, f"{shard}-{number}.png", buffer.getvalue())
                add(tar, f"{shard}-{number}.txt", b"a caption")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def module(shards: UnlabeledShards, **options: object) -> SyntheticScenesDataModule:
    defaults: dict[str, object] = {
        "train_size": 4,
        "val_size": 1,
        "image_size": (32, 32),
        "crop_size": 16,
        "num_workers": 0,
        "batch_size": 1,
        "unlabeled_batch_size": 2,
        "iterations_per_epoch": 8,
        "seed": 0,
    }
    found = SyntheticScenesDataModule(unlabeled_shards=shards, **(defaults | options))
    found.setup("fit")
    return found


def ids(loader, epochs: int = 1) -> list[str]:
    return [name for _ in range(epochs) for batch in loader for name in batch["unlabeled"]["id"]]


def everything(sizes: tuple[int, ...]) -> set[str]:
    return {f"{shard}-{number}.png" for shard, size in enumerate(sizes) for number in range(size)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_shows_every_image_once_in_new_orders(tmp_path: Path, workers: int) -> None:
    sizes = (5, 5, 5, 5)
    write_shards(tmp_path / "a folder", sizes)
    shards = UnlabeledShards(str(tmp_path / "a folder/*.tar"), size=20)
    loader = module(
        shards, iterations_per_epoch=None, unlabeled_batch_size=5, num_workers=workers
    ).train_dataloader()
    assert len(loader) == 4
    passes = [ids(loader) for _ in range(3)]
    assert all(set(each) == everything(sizes) for each in passes)
    assert passes[0] != passes[1] != passes[2]


def test_batches_look_like_other_unlabelled_ones(tmp_path: Path) -> None:
    write_shards(tmp_path, (6,))
    loader = module(
        UnlabeledShards(str(tmp_path / "000.tar")), strong_augmentation="strong", crop_size=24
    ).train_dataloader()
    batch = next(iter(loader))["unlabeled"]
    assert batch["image"].shape == batch["image_strong"].shape == (2, 3, 24, 24)
    assert batch["image"].dtype == torch.uint8
    assert batch["valid"].shape == (2, 24, 24)
    assert set(batch) == {"image", "image_strong", "valid", "id", "skipped"}
    shown = batch["image"][0, 1][batch["valid"][0]]
    assert shown.unique().tolist() == [int(batch["id"][0].split("-")[1][:-4])]


@pytest.mark.parametrize(("shards", "ranks", "workers"), [(8, 2, 2), (3, 4, 1), (1, 2, 2)])
def test_ranks_and_workers_share_the_shards(
    tmp_path: Path, shards: int, ranks: int, workers: int
) -> None:
    """Consumers take the shards of one endless sequence in turn, however few shards there are."""
    write_shards(tmp_path, (2,) * shards)
    source = UnlabeledShards(str(tmp_path / "*.tar"))
    augmentation = module(source).augmentation
    consumers = ranks * workers
    rounds = 2 * shards  # each consumer reads so many shards
    counts: Counter[str] = Counter()
    for rank in range(ranks):
        stream = source.stream(
            augmentation,
            None,
            iterations=rounds * workers,
            seed=0,
            rank=rank,
            num_replicas=ranks,
            batch_size=2,
            num_workers=workers,
        )
        counts.update(name for batch in stream for name in batch["id"])
    assert set(counts) == everything((2,) * shards)
    assert set(counts.values()) == {rounds * consumers // shards}


@pytest.mark.parametrize("workers", [0, 3])
def test_a_killed_run_sees_what_it_would_have_seen(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, (5, 3, 7, 4))
    shards = UnlabeledShards(str(tmp_path / "*.tar"), group=2)
    options = {"num_workers": workers, "labeled_real_batch_size": workers}
    straight = ids(module(shards, **options).train_dataloader(), epochs=3)
    running = module(shards, **options).train_dataloader()
    ids(running)
    other = iter(running)
    for _ in range(3):
        next(other)
    state = running.state_dict()
    resumed = module(shards, **options).train_dataloader()
    resumed.load_state_dict(state)
    assert ids(resumed, epochs=2) == straight[22:]


@pytest.mark.parametrize(("before", "after"), [(3, 0), (0, 3), (3, 1)])
def test_another_number_of_workers_goes_on_near_where_it_was(
    tmp_path: Path, before: int, after: int
) -> None:
    write_shards(tmp_path, (4,) * 12)
    shards = UnlabeledShards(str(tmp_path / "*.tar"))
    running = module(shards, num_workers=before, iterations_per_epoch=12).train_dataloader()
    seen = set(ids(running))  # half of the images
    assert len(seen) == 24
    resumed = module(shards, num_workers=after, iterations_per_epoch=12).train_dataloader()
    with pytest.warns(UserWarning, match="some images come again"):
        resumed.load_state_dict(running.state_dict())
    rest = ids(resumed)
    # nothing is left out but for shards that were begun, which come again
    assert len(set(rest) - seen) >= 24 - 4 * 3


def test_corrupt_members_are_skipped_counted_and_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        add(tar, "good.png", buffer.getvalue())
        add(tar, "cut off.png", buffer.getvalue()[:400])
        add(tar, "text.jpg", b"no image")
        add(tar, "fine.png", buffer.getvalue())
    data = module(UnlabeledShards(str(tmp_path / "0.tar")))
    with pytest.warns(UserWarning, match="left out of") as told:
        batches = list(data.train_dataloader())
    names = {name for batch in batches for name in batch["unlabeled"]["id"]}
    assert names == {"good.png", "fine.png"}
    messages = " ".join(str(each.message) for each in told)
    assert "cut off.png" in messages
    assert "text.jpg" in messages
    assert "0.tar" in messages
    # 16 images of a shard with two good and two bad ones
    assert 12 <= sum(int(batch["unlabeled"]["skipped"].sum()) for batch in batches) <= 16


def test_a_shard_that_breaks_off_does_not_end_the_stream(tmp_path: Path) -> None:
    write_shards(tmp_path, (4, 4))
    first = tmp_path / "000.tar"
    first.write_bytes(first.read_bytes()[:2000])
    (tmp_path / "002.tar").write_bytes(b"no archive" * 200)
    shards = UnlabeledShards([str(tmp_path / f"00{number}.tar") for number in range(3)])
    with pytest.warns(UserWarning, match="cannot be read to its end"):
        names = set(ids(module(shards).train_dataloader()))
    assert {f"1-{number}.png" for number in range(4)} <= names


def test_what_lies_behind_damage_is_found_again(tmp_path: Path) -> None:
    write_shards(tmp_path, (8,))
    data = bytearray((tmp_path / "000.tar").read_bytes())
    with tarfile.open(tmp_path / "000.tar") as tar:
        second = tar.getmembers()[2].offset  # images and texts take turns
    data[second : second + 300] = b"\xff" * 300
    (tmp_path / "000.tar").write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"damaged before 0-1\.txt"):
        names = set(ids(module(UnlabeledShards(str(tmp_path / "*.tar"))).train_dataloader()))
    assert names == everything((8,)) - {"0-1.png"}


@pytest.mark.filterwarnings("error")
def test_two_archives_in_a_row_and_one_with_a_comment_are_not_damaged(tmp_path: Path) -> None:
    write_shards(tmp_path / "parts", (2, 3))
    parts = [path.read_bytes() for path in sorted((tmp_path / "parts").iterdir())]
    (tmp_path / "000.tar").write_bytes(b"".join(parts))
    comment = {"comment": "a global header " * 60}
    path = tmp_path / "001.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=comment) as tar:
        buffer = io.BytesIO()
        Image.new("RGB", (20, 18)).save(buffer, "PNG")
        add(tar, f"{'long' * 40}.png", buffer.getvalue())
    names = set(ids(module(UnlabeledShards(str(tmp_path / "*.tar"))).train_dataloader()))
    assert names == everything((2, 3)) | {f"{'long' * 40}.png"}


def test_one_good_shard_is_enough(tmp_path: Path) -> None:
    write_shards(tmp_path, (2, 1, 1, 1))
    for number in (1, 2, 3):
        (tmp_path / f"00{number}.tar").write_bytes(b"no archive")
    loader = module(UnlabeledShards(str(tmp_path / "*.tar")), iterations_per_epoch=20)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert set(ids(loader.train_dataloader())) == everything((2,))


def test_web_addresses_are_quoted() -> None:
    shards = UnlabeledShards("http://127.0.0.1:1/a folder/grün {0..1}.tar")
    assert shards.urls == [
        f"http://127.0.0.1:1/a%20folder/gr%C3%BCn%20{number}.tar" for number in range(2)
    ]


def test_shards_without_a_readable_image_are_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "text.jpg", b"no image")
    loader = module(UnlabeledShards(str(tmp_path / "0.tar"))).train_dataloader()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="no image could be read"),
    ):
        next(iter(loader))


def test_urls(tmp_path: Path) -> None:
    write_shards(tmp_path / "grün", (2, 2, 2))
    braces = UnlabeledShards(str(tmp_path / "grün/{000..001}.tar"))
    assert [Path(url).name for url in braces.urls] == ["000.tar", "001.tar"]
    piped = UnlabeledShards(f"pipe:cat '{tmp_path}/grün/002.tar'")
    assert set(ids(module(piped).train_dataloader())) == {"2-0.png", "2-1.png"}
    with pytest.raises(DataError, match=r"no shards at .*nothing.*\(option: urls=\)"):
        UnlabeledShards(str(tmp_path / "nothing-*.tar"))


def test_without_a_size_the_length_of_an_epoch_must_be_given(tmp_path: Path) -> None:
    write_shards(tmp_path, (2,))
    shards = UnlabeledShards(str(tmp_path / "*.tar"))
    with pytest.raises(
        DataError,
        match=r"how long is an epoch.*\(options: iterations_per_epoch=, size=, epoch=labeled\)",
    ):
        module(shards, iterations_per_epoch=None).train_dataloader()
    assert len(module(shards, iterations_per_epoch=None, epoch="labeled").train_dataloader()) == 4


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(DataError, match=r"lightning-seg\[shards\]"):
        UnlabeledShards(str(tmp_path / "*.tar"))


def test_deep_images_need_a_range(tmp_path: Path) -> None:
    grey = np.linspace(0, 60_000, 400).astype(np.uint16).reshape(20, 20)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(4):
            add(tar, f"{number}.png", png(grey, 16))
    shards = UnlabeledShards(str(tmp_path / "*.tar"))
    with pytest.raises(DataError, match=r"\d\.png has more than 8 bits.*image_range=\[0,65535\]"):
        next(iter(module(shards, unlabeled_batch_size=4).train_dataloader()))
    loader = module(shards, image_range=(0, 60_000), augmentation="crop").train_dataloader()
    images = torch.cat([batch["unlabeled"]["image"] for batch in loader])
    assert images.max() > 240


def test_a_glob_below_a_folder_with_brackets_and_a_pipe_among_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "d [1]", (2, 2))
    assert len(UnlabeledShards(str(tmp_path / "d [1]/*.tar")).urls) == 2
    os.mkfifo(tmp_path / "d [1]/pipe.tar")
    with pytest.raises(DataError, match=r"pipe\.tar is no file"):
        UnlabeledShards(str(tmp_path / "d [1]/*.tar"))
