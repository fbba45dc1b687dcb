"""What the supervised methods share."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from methods import SUPERVISED
from small_runs import fit, tiny

from lightning_seg import SegmentationModule


@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_batch_without_labels_trains_nothing(
    tmp_path: Path, kind: type[SegmentationModule]
) -> None:
    ours = tiny(kind)
    before = deepcopy(ours.network.state_dict())
    _, kept = fit(ours, tmp_path, change=lambda batch: batch["mask"].fill_(255))
    assert kept.rows[0]["train/loss"] == 0
    assert all(math.isfinite(value) for value in kept.rows[0].values())
    for name, value in ours.network.named_parameters():
        assert torch.equal(value, before[name])
