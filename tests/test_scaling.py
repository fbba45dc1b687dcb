"""The page on scaling: its model against numbers worked by hand, and that it shows the CSVs."""

from __future__ import annotations

import pytest
from benchmark_scripts import script

script("scaling")  # which the page's script imports, as from its own folder
page = script("scaling_page")


def test_an_all_reduce_moves_every_byte_twice_but_for_one_share() -> None:
    # 8 GPUs in a machine: 2 * 7/8 * 360 MB at 360 GB/s; two machines' worth at 40 GB/s
    assert page.all_reduce(360e6, 8) == pytest.approx(1.75e-3)
    assert page.all_reduce(40e6, 16) == pytest.approx(1.875e-3)


def test_computation_hides_the_exchange_but_for_the_last_bucket() -> None:
    flops = 989e12 * 0.35 * 30e-3  # 30 ms
    compute, waiting = page.step(flops, network=page.BUCKET + 40e6, opponent=0, calls=0, gpus=64)
    assert compute == pytest.approx(30e-3)
    assert waiting == pytest.approx(2 * 63 / 64 * 25 * 2**20 / 40e9)
    # 800 MB take 39.375 ms, of which a backward pass of 20 ms hides a part
    _, waiting = page.step(flops, network=page.BUCKET + 800e6, opponent=0, calls=0, gpus=64)
    assert waiting == pytest.approx(2 * 63 / 64 * 25 * 2**20 / 40e9 + 39.375e-3 - 20e-3)


def test_the_opponent_and_small_exchanges_are_not_hidden() -> None:
    alone = page.step(1e15, 0, 0, 0, 8)[1]
    assert alone == 0
    assert page.step(1e15, 0, 360e6, 3, 8)[1] == pytest.approx(1.75e-3 + 3 * 20e-6)
    assert page.step(1e15, 1e9, 1e9, 3, 1)[1] == 0  # a single GPU exchanges nothing


def test_the_page_shows_the_numbers_as_they_are() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "run: python benchmarks/scaling.py page"
