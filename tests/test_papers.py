"""The pieces of whole runs: what they hold, and that each one starts."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from places import ROOT

import cli

PAPERS = ROOT / "configs/papers"


def merged(capsys: pytest.CaptureFixture[str], *pieces: str) -> dict[str, Any]:
    """The configuration of `fit` with these pieces."""
    words = [word for piece in pieces for word in ("-c", str(PAPERS / f"{piece}.yaml"))]
    with contextlib.suppress(SystemExit):
        cli.main(["fit", *words, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("run", ["semi_adv_voc", "semi_adv_cityscapes"])
def test_the_text_of_the_semi_supervised_paper_is_a_piece(run, capsys) -> None:
    """D on labelled images only, and no term of unlabelled images for 5,000 iterations."""
    code = merged(capsys, run)
    text = merged(capsys, run, "semi_adv_text")
    before, after = code["model"]["init_args"], text["model"]["init_args"]
    assert {name: value for name, value in after.items() if before[name] != value} == {
        "train_discriminator_on_unlabeled": False,
        "semi_start_adv": 5000,
    }
    assert before["train_discriminator_on_unlabeled"] is True
    assert (before["semi_start"], after["semi_start"]) == (5000, 5000)
    assert before["semi_start_adv"] == 0
    assert code["data"] == text["data"]
    assert code["trainer"] == text["trainer"]
