"""The files that `fit` and `test` leave are what `report` and `compare` read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import SMALL_WORDS

import cli


def trained_and_tested(root: Path, seed: int) -> Path:
    """Return the folder of a short run."""
    words = [word for word in SMALL_WORDS if "logger" not in word]
    words += [f"--seed_everything={seed}", f"--trainer.default_root_dir={root}"]
    words += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={root}"]
    words += ["--trainer.logger.name=csv", "--trainer.max_epochs=2", "--model.lr=0.01"]
    words += ["--trainer.log_every_n_steps=1", "--data.test_size=6"]
    trainer = cli.main(["fit", *words]).trainer
    checkpoint = trainer.checkpoint_callback.best_model_path
    cli.main(["test", *words, f"--ckpt_path={checkpoint}"])
    return Path(checkpoint).parents[1]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_is_trained_tested_reported_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [trained_and_tested(tmp_path / str(seed), seed) for seed in (0, 1)]
    capsys.readouterr()
    assert cli.main(["report", str(runs[1]), f"--baseline={runs[0]}"]) == 0
    page = (runs[1] / "report.html").read_text(encoding="utf-8")
    assert "note:" not in capsys.readouterr().out  # nothing is missing
    assert "<h1>CrossEntropy on SyntheticScenes</h1>" in page
    for part in (
        "scores",
        "classes",
        "boundaries",
        "confusion",
        "reliability",
        "images",
        "training",
    ):
        assert f'<section id="{part}"' in page
    assert "seed_everything: 1" in page
    assert cli.main(["compare", *map(str, runs), f"--output={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "mIoU within 20" in printed
    assert "over 6 images" in printed
