"""Colour spaces against colorsys, OpenCV and the standards' formulas in numpy."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
import torch
from color_standards import reference_lab

from lightning_seg.losses.color_spaces import hue_chroma, lab_to_rgb, rgb_to_lab


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_hue_and_chroma_equal_colorsys():
    rgb = torch.rand(500, 3, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0]).double()] * 3)
    gray = torch.rand(20, 1).double().expand(-1, 3)
    rgb = torch.cat([rgb, corners, gray])
    hue, chroma = hue_chroma(rgb)
    for each, h, c in zip(rgb.tolist(), hue.tolist(), chroma.tolist(), strict=True):
        assert h == pytest.approx(colorsys.rgb_to_hsv(*each)[0], abs=1e-12)
        assert c == max(each) - min(each)
    assert (hue[-20:] == 0).all()


def test_hue_is_below_1_whatever_the_rounding():
    rgb = torch.tensor([[0.9, 0.1, 0.1 + 1e-8], [1.0, 0.0, 1e-12], [1.0, 1e-12, 0.0]])
    hue, _ = hue_chroma(rgb)
    assert hue.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert hue_chroma(rgb.half())[0].dtype == torch.float32


def test_lab_equals_the_standard():
    level = np.linspace(0, 1, 18)
    rgb = np.stack(np.meshgrid(level, level, level), -1).reshape(-1, 3)
    found = rgb_to_lab(torch.tensor(rgb)).numpy()
    assert np.abs(found - reference_lab(rgb)).max() < 0.02
    # OpenCV reads a table for floats: exact to half a unit
    theirs = cv2.cvtColor(rgb[None].astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    assert np.abs(found - theirs).max() < 0.6
    assert np.abs(found - theirs).mean() < 0.1


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((1.0, 1.0, 1.0), (100, 0, 0)),
        ((0.0, 0.0, 0.0), (0, 0, 0)),
    ],
)
def test_lab_of_the_corners(rgb, lab):
    assert rgb_to_lab(torch.tensor(rgb)).tolist() == pytest.approx(lab, abs=0.02)


def test_lab_and_back():
    rgb = torch.rand(1000, 3, dtype=torch.float64)
    rgb[:50] *= 0.05  # where the curves are lines
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-7)
    far = lab_to_rgb(torch.tensor([[50.0, 150.0, -150.0], [120.0, 0.0, 0.0], [0.0, 90.0, 90.0]]))
    assert far.isfinite().all()
    assert far.min() >= 0
    assert far.max() <= 1
    assert far[1].tolist() == pytest.approx([1, 1, 1])
