import mmap
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import FolderDataModule
from datamodules.reading.cache import DecodedCache
from datamodules.reading.decoding import read_image


def save(path: Path, value: int, size: int = 40) -> np.ndarray:
    image = np.random.default_rng(value).integers(0, 256, (size, size, 3)).astype(np.uint8)
    Image.fromarray(image).save(path)
    return image


def fill(folder: Path, path: Path, barrier, results) -> None:
    barrier.wait()
    for _ in range(20):
        array = DecodedCache(folder).get(path, lambda: read_image(path), "image")
    results.put(int(array.sum()))


def test_decodes_once_and_maps_afterwards(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", 1)
    calls = []

    def decode() -> np.ndarray:
        calls.append(1)
        return read_image(tmp_path / "a.png")

    cache = DecodedCache(tmp_path / "cache")
    for _ in range(3):
        assert np.array_equal(cache.get(tmp_path / "a.png", decode, "image"), image)
    assert len(calls) == 1
    found = cache.get(tmp_path / "a.png", decode, "image")
    assert isinstance(found.base, mmap.mmap)
    assert not found.flags.writeable


def test_arrays_have_the_values_shapes_and_orders_that_numpy_reads(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path / "cache")
    for number, array in enumerate(
        (
            np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
            np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
            np.arange(5, dtype=np.uint16),
            np.array(7, np.int64),
        )
    ):
        path = tmp_path / f"{number}.png"
        path.touch()
        cache.get(path, lambda array=array: array, "image")
        found = cache.get(path, pytest.fail, "image")
        (stored,) = (tmp_path / "cache").rglob("*.npy")
        expected = np.load(stored)
        assert np.array_equal(found, expected)
        assert (found.dtype, found.shape, found.strides) == (
            expected.dtype,
            expected.shape,
            expected.strides,
        )
        stored.unlink()


def test_few_arrays_are_open_and_none_is_pickled(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path / "cache")
    paths = [tmp_path / f"{number}.png" for number in range(140)]
    for value, path in enumerate(paths):
        path.touch()
        for _ in range(2):
            cache.get(path, lambda value=value: np.full((3, 3), value, np.uint8), "image")
    assert len(cache._open) == 128
    again = pickle.loads(pickle.dumps(cache))
    assert not again._open
    for value, path in enumerate(paths):
        assert again.get(path, pytest.fail, "image")[0, 0] == value


def test_an_array_whose_file_is_gone_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = save(path, 1)
    cache = DecodedCache(tmp_path / "cache")
    for _ in range(2):
        cache.get(path, lambda: read_image(path), "image")
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(cache.get(path, lambda: read_image(path), "image"), image)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1


def test_a_changed_file_is_decoded_anew_and_the_old_array_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cache = DecodedCache(tmp_path / "cache")
    save(path, 1)
    cache.get(path, lambda: read_image(path), "image")
    second = save(path, 2)
    os.utime(path, ns=(10**18, 10**18))
    assert np.array_equal(cache.get(path, lambda: read_image(path), "image"), second)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1


def test_another_decoder_gets_another_array(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path, 1)
    cache = DecodedCache(tmp_path / "cache")
    cache.get(path, lambda: np.zeros((2, 2), np.uint8), "zeros")
    assert cache.get(path, lambda: np.ones((2, 2), np.uint8), "ones").sum() == 4


def test_an_array_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = save(path, 1)
    cache = DecodedCache(tmp_path / "cache")
    cache.get(path, lambda: read_image(path), "image")
    (array,) = (tmp_path / "cache").rglob("*.npy")
    for length in (0, 60, 1000):
        array.write_bytes(array.read_bytes()[:length])
        assert np.array_equal(cache.get(path, lambda: read_image(path), "image"), image)


def test_several_processes_may_fill_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = save(path, 1, size=300)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=fill, args=(tmp_path / "cache", path, barrier, results))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    sums = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sums == [int(image.sum())] * 4
    assert len([each for each in (tmp_path / "cache").rglob("*") if each.is_file()]) == 1


def test_a_folder_that_cannot_be_written_is_told_and_done_without(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", 1)
    (tmp_path / "cache").write_text("a file in the way")
    cache = DecodedCache(tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"cache.*\(option: cache=\)"):
        found = cache.get(tmp_path / "a.png", lambda: read_image(tmp_path / "a.png"), "image")
    assert np.array_equal(found, image)


def test_batches_with_and_without_cache_are_equal(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 6, "val": 2})

    def batches(cache: str | None) -> list:
        module = FolderDataModule(
            str(root), num_classes=3, batch_size=2, crop_size=20, num_workers=0, cache=cache, seed=0
        )
        module.setup("fit")
        return [*module.train_dataloader(), *module.val_dataloader()]

    plain, first, second = batches(None), batches(str(tmp_path / "c")), batches(str(tmp_path / "c"))
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 16
    for other in (first, second):
        for one, two in zip(plain, other, strict=True):
            assert (one["image"] == two["image"]).all()
            assert (one["mask"] == two["mask"]).all()
