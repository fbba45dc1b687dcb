"""The files of scores against the masks and predictions of the same images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import quiet_trainer, saved, scenes, tiny

from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.callbacks import ScoreFiles
from lightning_seg.scores import Scores, read_scores


def evaluated(folder: Path, verb: str = "test", **options) -> tuple[Path, CrossEntropyModule, dict]:
    module = tiny(CrossEntropyModule)
    trainer = quiet_trainer(folder, callbacks=[ScoreFiles(**options)])
    (logged,) = getattr(trainer, verb)(module, scenes(test_size=5, val_size=5), verbose=False)
    return folder / verb, module, logged


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_counts_are_those_of_every_image(tmp_path: Path, verb: str) -> None:
    folder, module, logged = evaluated(tmp_path, verb)
    found = read_scores(folder)
    data = scenes(test_size=5, val_size=5)
    data.setup(verb)
    seen = {}
    for batch in data.test_dataloader() if verb == "test" else data.val_dataloader():
        with torch.no_grad():
            labels = module.eval()(batch["image"]).argmax(1)
        for name, guess, truth in zip(batch["id"], labels, batch["mask"], strict=True):
            seen[name] = (guess.numpy(), truth.numpy())
    assert found.ids == sorted(seen)
    for place, name in enumerate(found.ids):
        guess, truth = seen[name]
        for index in range(8):
            expected = [
                ((guess == index) & (truth == index)).sum(),
                ((guess == index) & (truth != 255)).sum(),
                (truth == index).sum(),
            ]
            assert found.counts[place, 0, index].tolist() == expected
    stage = {"test": "test", "validate": "val"}[verb]
    for region, score in zip(found.regions, ["miou", *found.regions[1:]], strict=True):
        mean = np.nanmean(found.iou(region))
        assert logged[f"{stage}/{score}"] == pytest.approx(mean, abs=1e-6), region


def test_the_tables_hold_the_logged_scores(tmp_path: Path) -> None:
    folder, module, logged = evaluated(tmp_path)
    classes, images = rows(folder / "metrics.csv"), rows(folder / "images.csv")
    assert [row["class"] for row in classes] == [*module.class_names, "mean"]
    for row in classes[:-1]:
        score = logged[f"test/iou/{row['class']}"]
        expected = "" if np.isnan(score) else pytest.approx(score, abs=1e-6)
        assert (float(row["iou"]) if row["iou"] else "") == expected
    assert float(classes[-1]["boundary_iou"]) == pytest.approx(
        logged["test/boundary_iou"], abs=1e-6
    )
    assert [row["id"] for row in images] == read_scores(folder).ids
    summary = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    confusion = np.array(summary["confusion"])
    assert np.trace(confusion) / confusion.sum() == pytest.approx(logged["test/pixel_accuracy"])
    assert summary["scores"]["ece"] == pytest.approx(logged["test/ece"])
    bins = summary["calibration"]["bins"]
    assert sum(each["count"] for each in bins) == confusion.sum()
    assert (summary["method"], summary["network"]) == ("CrossEntropyModule", "TinyNet")


def test_pictures_hold_class_ids(tmp_path: Path) -> None:
    folder, _, _ = evaluated(tmp_path, pictures=2)
    shown = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["pictures"]
    assert len(shown) == 5  # two that are spread, and the best and worst of the others
    for entry in shown:
        truth = Image.open(folder / entry["truth"])
        assert truth.mode == "P"
        values, counts = np.unique(np.array(truth), return_counts=True)
        place = read_scores(folder).ids.index(entry["id"])
        expected = read_scores(folder).counts[place, 0, :, 2]
        assert {v: c for v, c in zip(values, counts, strict=True) if v != 255} == {
            index: count for index, count in enumerate(expected) if count
        }
    evaluated(tmp_path, pictures=0)
    assert not list((folder / "pictures").iterdir())


def test_scores_are_in_the_folder_of_the_run_that_was_trained(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 7\n")
    module = tiny(CrossEntropyModule)
    checkpoint = saved(module, tmp_path).replace(run / "checkpoints/best.ckpt")
    trainer = quiet_trainer(tmp_path / "elsewhere", callbacks=[ScoreFiles()])
    trainer.test(module, scenes(), ckpt_path=str(checkpoint), verbose=False)
    found = read_scores(run / "test")
    assert found.summary["seed"] == 7
    assert Path(found.summary["checkpoint"]) == checkpoint
    assert not (tmp_path / "elsewhere/test").exists()


def test_all_void_masks_have_rows_without_scores(tmp_path: Path) -> None:
    class VoidScenes(type(scenes())):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            batch["mask"] = torch.full_like(batch["mask"], 255)
            return batch

    data = VoidScenes(test_size=2, num_workers=0, image_size=(32, 40), crop_size=24)
    trainer = quiet_trainer(tmp_path, callbacks=[ScoreFiles()])
    trainer.test(tiny(CrossEntropyModule), data, verbose=False)
    found = rows(tmp_path / "test/images.csv")
    assert [(row["pixels"], row["iou"]) for row in found] == [("0", "")] * 2
    summary = json.loads((tmp_path / "test/metrics.json").read_text(encoding="utf-8"))
    assert summary["scores"]["miou"] is None


def test_a_test_step_of_a_users_own_leaves_no_files(tmp_path: Path) -> None:
    class Silent(CrossEntropyModule):
        def test_step(self, batch, batch_idx) -> None:
            super().test_step(batch, batch_idx)

    trainer = quiet_trainer(tmp_path, callbacks=[ScoreFiles()])
    trainer.test(tiny(Silent), scenes(test_size=2), verbose=False)
    assert not (tmp_path / "test").exists()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.warns(UserWarning, match="could not be written"):
        evaluated(tmp_path, output_dir=str(tmp_path / "taken"))


def test_the_number_of_pictures_is_checked() -> None:
    with pytest.raises(SetupError, match="pictures"):
        ScoreFiles(pictures=-1)


def test_files_keep_names_with_commas_and_absent_classes(tmp_path: Path) -> None:
    counts = np.zeros((1, 1, 2, 3), np.int64)
    counts[0, 0, 0] = [3, 4, 5]
    names = ['road, "main"', "x" * 300]
    Scores(["a, b"], ["iou"], counts, {"classes": names}).write(tmp_path)
    found = rows(tmp_path / "metrics.csv")
    assert [row["class"] for row in found] == [*names, "mean"]
    assert [row["iou"] for row in found] == ["0.500000", "", "0.500000"]
    again = read_scores(tmp_path)
    assert (again.ids, again.classes, again.counts.tolist()) == (["a, b"], names, counts.tolist())


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "no summary"])
def test_damaged_scores_are_refused(tmp_path: Path, damage: str) -> None:
    Scores(["a"], ["iou"], np.ones((1, 1, 2, 3), np.int64)).write(tmp_path)
    file = tmp_path / "counts.npz"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:80])
    elif damage == "foreign":
        np.savez(file, other=np.ones(3))
    else:
        (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(SetupError, match=str(tmp_path)):
        read_scores(tmp_path)
