"""Which pictures are drawn when, where they go, and that training is as without them."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from offline_runs import offline_runs
from PIL import Image
from small_runs import Kept, quiet_trainer, scenes, tiny

from lightning_seg import (
    ASMLModule,
    CPGModule,
    CrossEntropyModule,
    LMPModule,
    SemiAdvModule,
    SetupError,
)
from lightning_seg.callbacks import RunMonitor, ValidationPictures
from lightning_seg.callbacks.drawing import Drawing, Example, image_miou, single_images
from lightning_seg.views import ColorView, Views


class Colored(CrossEntropyModule):
    """Its picture's colour tells the step."""

    def views(self, batch) -> Views:
        return {"image": ColorView(torch.full((3, 4, 6), self.global_step / 255))}


def always(every=1, **options) -> ValidationPictures:
    return ValidationPictures(every, max_time_share=1.0, **options)


def run(folder, callback, logger=False, steps=4, module=None, data=None, **options):
    options = {"limit_train_batches": 1, "max_epochs": steps, **options}
    callbacks = [] if callback is None else [callback]
    trainer = quiet_trainer(folder, callbacks=callbacks, logger=logger, **options)
    trainer.fit(tiny(CrossEntropyModule) if module is None else module, data or scenes())
    return trainer


def names(folder, kind="examples"):
    return sorted(file.name for file in folder.rglob(f"{kind}_*.png"))


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5]), (0, [])]
)
def test_pictures_of_every_nth_validation_and_the_last_become_files(tmp_path, every, steps):
    logger = CSVLogger(tmp_path, name="csv", version=0)
    run(tmp_path, always(every), logger, 5, tiny(Colored))
    files = sorted((tmp_path / "csv" / "version_0" / "pictures").glob("examples*"))
    assert [file.name for file in files] == [f"examples_{step:07d}.png" for step in steps]
    for step, file in zip(steps, files, strict=True):
        cell = np.asarray(Image.open(file))[40:60, 40:200]
        assert (np.abs(cell.astype(int) - step) <= 3).all()


@pytest.mark.parametrize("limit", [{"max_time_share": 0.0}, {"max_megabytes": 0.0}])
def test_a_spent_budget_leaves_the_first_and_the_last_validation(tmp_path, limit):
    callback = ValidationPictures(1, **{"max_time_share": 1.0, **limit})
    run(tmp_path, callback, steps=5)
    assert names(tmp_path) == ["examples_0000001.png", "examples_0000005.png"]


def test_a_budget_of_bytes_is_spread_over_the_training(tmp_path):
    free = always()
    run(tmp_path / "free", free, steps=12)
    each = free._bytes / 12
    callback = always(max_megabytes=6.5 * each / 1e6)
    run(tmp_path / "tight", callback, steps=12)
    steps = [int(name[9:16]) for name in names(tmp_path / "tight")]
    assert steps[0] == 1
    assert steps[-1] == 12
    assert 4 <= len(steps) <= 7
    assert max(np.diff(steps)) <= 5
    assert callback._bytes <= 6.5 * each


def test_the_same_images_are_shown_spread_over_the_validation_set(tmp_path):
    seen = []

    class Watching(CrossEntropyModule):
        def views(self, batch) -> Views:
            seen.append((batch["id"][0], batch["image"].clone(), batch["mask"].clone()))
            return {}

    data = scenes(val_size=12, val_batch_size=1)
    run(tmp_path, always(images=3), steps=2, module=tiny(Watching), data=data)
    assert [name for name, *_ in seen] == ["val_00000", "val_00004", "val_00008"] * 2
    for name, image, mask in seen:
        expected = data.source("val")[int(name[-5:])]
        np.testing.assert_array_equal(image[0].permute(1, 2, 0), expected.image)
        np.testing.assert_array_equal(mask[0], expected.mask)
        assert mask.dtype == torch.int64


def test_images_can_be_chosen_by_name(tmp_path):
    seen = []

    class Watching(CrossEntropyModule):
        def views(self, batch) -> Views:
            seen.append(batch["id"])
            return {}

    callback = always(ids=["val_00003", "val_00001"])
    data = scenes(val_size=5, val_batch_size=2)
    run(tmp_path, callback, steps=1, module=tiny(Watching), data=data)
    assert seen == [["val_00003"], ["val_00001"]]
    with pytest.raises(SetupError, match="val_9 is no image of the validation set, which has val"):
        run(tmp_path, always(ids=["val_9"]), steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_validations": -1}, "every_n_validations must be at least 0, not -1"),
        ({"images": 9}, "images"),
        ({"size": 8}, "size"),
        ({"max_time_share": 2}, "max_time_share"),
        ({"max_megabytes": -1}, "max_megabytes"),
        ({"ids": [str(i) for i in range(9)]}, "at most 8 images, not 9"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(SetupError, match=message):
        ValidationPictures(**options)


GROUPS = {"crop_size": 32, "labeled": "1/2", "unlabeled_batch_size": 2, "batch_size": 2}


@pytest.mark.parametrize("kind", [CrossEntropyModule, LMPModule, CPGModule, ASMLModule])
def test_a_training_with_pictures_equals_one_without(tmp_path, kind):
    compare(tmp_path, kind, {})


def test_so_does_that_of_two_players_with_unlabelled_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where splits are written
    compare(tmp_path, SemiAdvModule, GROUPS)


def compare(tmp_path, kind, data):
    found = []
    for callback in (None, always(), RunMonitor()):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        kept, module = Kept(), tiny(kind, dropout=0.5, freeze_batch_norm="encoder")
        for layer in module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.train()
        run(tmp_path, callback, kept, 3, module, scenes(**data), limit_train_batches=2)
        modes = [part.training for part in module.modules()]
        drawn = torch.rand(3).tolist(), random.random(), np.random.rand()
        rows = {
            step: {name: value for name, value in row.items() if name[:3] in ("tra", "val")}
            for step, row in kept.rows.items()
        }
        found.append((module.state_dict(), rows, modes, drawn))
    for other in found[1:]:
        assert other[1:] == found[0][1:]
        for name, value in found[0][0].items():
            assert torch.equal(other[0][name], value), name
    assert len(names(tmp_path)) == 3


def test_an_image_that_a_method_cannot_see_costs_one_line(tmp_path):
    class Small(CrossEntropyModule):
        def views(self, batch) -> Views:
            raise SetupError("the analyzer needs 99 pixels")

    with pytest.warns(UserWarning, match="val_00000 is not shown: the analyzer") as warned:
        run(tmp_path, always(images=1), steps=2, module=tiny(Small))
    assert len([each for each in warned if "is not shown" in str(each.message)]) == 1
    assert names(tmp_path) == []
    assert len(names(tmp_path, "hardest")) == 2


def slow_miou(labels: np.ndarray, mask: np.ndarray) -> float:
    valid = mask != 255
    found = []
    for index in set(mask[valid]) | set(labels[valid]):
        one, other = (labels == index) & valid, (mask == index) & valid
        found.append((one & other).sum() / (one | other).sum())
    return float(np.mean(found)) if found else float("nan")


def test_the_score_of_an_image_is_the_mean_over_its_classes():
    drawn = np.random.default_rng(0)
    labels, masks = drawn.integers(0, 5, (6, 7, 9)), drawn.integers(0, 5, (6, 7, 9))
    masks[0, :4], masks[1] = 255, 255
    masks[2] = labels[2]
    ours = image_miou(torch.from_numpy(labels), torch.from_numpy(masks), 5, 255)
    slow = [slow_miou(*each) for each in zip(labels, masks, strict=True)]
    np.testing.assert_allclose(ours, slow, equal_nan=True)
    assert np.isnan(ours[1])
    assert ours[2] == 1


def test_the_hardest_images_are_those_with_the_lowest_miou(tmp_path):
    scores = {}

    class Scoring(CrossEntropyModule):
        def validation_step(self, batch, batch_idx):
            found = super().validation_step(batch, batch_idx)
            for name, label, mask in zip(batch["id"], found["labels"], batch["mask"], strict=True):
                scores[name] = slow_miou(label.numpy(), mask.numpy())
            return found

    callback = always(images=3)
    data = scenes(val_size=11, val_batch_size=4)
    run(tmp_path, callback, steps=2, module=tiny(Scoring), data=data)
    ours = [(each.id, each.miou) for each in callback._hardest]
    slow = sorted(scores.items(), key=lambda pair: pair[1])[:3]
    assert [name for name, _ in ours] == [name for name, _ in slow]
    np.testing.assert_allclose([score for _, score in ours], [score for _, score in slow])
    assert names(tmp_path, "hardest") == ["hardest_0000001.png", "hardest_0000002.png"]


def test_patches_of_one_image_stay_together():
    batch = {"image": torch.zeros(5, 3, 2, 2), "label": torch.arange(5), "id": ["a"]}
    (part,) = single_images(batch)
    assert part["label"].tolist() == [0, 1, 2, 3, 4]
    batch = {"image": torch.zeros(2, 3, 2, 2), "mask": torch.zeros(2, 2, 2), "id": ["a", "b"]}
    assert [part["id"] for part in single_images(batch)] == [["a"], ["b"]]


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path):
    (tmp_path / "pictures").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="pictures are not written to") as warned:
        run(tmp_path, always(), steps=3)
    assert len([each for each in warned if "pictures" in str(each.message)]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["pictures"]


def test_an_untrained_check_and_a_fast_run_leave_no_pictures(tmp_path):
    run(tmp_path, always(), steps=1, limit_train_batches=0, num_sanity_val_steps=2)
    assert names(tmp_path) == []
    run(tmp_path, always(), fast_dev_run=True)
    assert names(tmp_path) == []


def test_tensorboard_gets_them(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="tb", version=0)
    run(tmp_path, always(), logger, 2)
    events = accumulator.EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"pictures/examples", "pictures/hardest"}
    shown = events.Images("pictures/examples")
    assert [each.step for each in shown] == [0, 1]  # as Lightning counts
    assert shown[0].width == 5 * 262 + 6


def test_masks_of_different_sizes_are_padded_to_one() -> None:
    """W&B warns of a list of images of several sizes, and shows it badly."""
    from lightning_seg.callbacks.picture_sinks import to_wandb

    examples = [
        Example(
            id=name,
            image=np.full((*size, 3), 9, np.uint8),
            masks={"truth": np.ones(size, np.uint8)},
            miou=0.5,
        )
        for name, size in (("a", (20, 30)), ("b", (24, 16)))
    ]
    logged = {}
    logger = SimpleNamespace(log_metrics=lambda content, step: logged.update(content))
    to_wandb(logger, Drawing(1, 0, {}, examples, [], ["x", "y"]))
    shown = logged["pictures/masks"]
    assert [each.image.size for each in shown] == [(30, 24), (30, 24)]
    for each, (height, width) in zip(shown, ((20, 30), (24, 16)), strict=True):
        mask = np.asarray(Image.open(each._masks["truth"]._path))
        assert (mask[:height, :width] == 1).all()
        assert (mask == 255).sum() == 24 * 30 - height * width


LONG = ["a, b", "x" * 300, *(f"c{index}" for index in range(6))]


def test_wandb_gets_masks_with_class_names_a_table_and_charts(tmp_path):
    data = scenes(val_size=3)
    module = tiny(CrossEntropyModule, class_names=LONG)
    logger = WandbLogger(save_dir=tmp_path, project="p", log_model=False)
    run(tmp_path, always(images=2), logger, 2, module, data)
    logger.experiment.finish()
    (read,) = offline_runs(tmp_path)
    keys = ["examples", "hardest", "masks", "hardest_images"]
    assert {f"pictures/{key}" for key in keys} <= read.keys
    for key in keys:
        assert [step for step, _ in read.values(f"pictures/{key}")] == [0, 1]
    _, shown = read.values("pictures/masks")[-1]
    assert shown["captions"] == ["val_00000", "val_00001"]
    for name, masks in zip(shown["captions"], shown["all_masks"], strict=True):
        expected = data.source("val")[int(name[-5:])]
        stored = np.asarray(Image.open(read.file(masks["truth"])))
        np.testing.assert_array_equal(stored, expected.mask)
        assert np.asarray(Image.open(read.file(masks["prediction"]))).max() < 8
    labels = read.config["_wandb"]["mask/class_labels"]
    wanted = {**{str(index): name for index, name in enumerate(LONG)}, "255": "void"}
    assert len(labels) >= 2
    for each in labels.values():
        assert each["value"] == wanted
    _, table = read.values("pictures/hardest_images")[-1]
    rows = json.loads(read.file(table).read_text())
    assert rows["columns"] == ["image id", "mIoU of the image", "picture"]
    assert [row[1] for row in rows["data"]] == sorted(row[1] for row in rows["data"])
    _, table = read.values("pictures/confusion_matrix_table")[-1]
    rows = json.loads(read.file(table).read_text())["data"]
    assert [row[0] for row in rows[::8]] == LONG
    counts = np.array([row[2] for row in rows]).reshape(8, 8)
    np.testing.assert_array_equal(counts, module.val_confusion)
    labelled = sum((data.source("val")[i].mask != 255).sum() for i in range(3))
    assert counts.sum() == labelled
    charts = read.config["_wandb"]["visualize"]
    assert charts["pictures/confusion_matrix"]["panel_config"]["panelDefId"].startswith(
        "wandb/confusion_matrix"
    )


def test_many_classes_are_reduced_to_the_frequent_ones(tmp_path):
    from lightning_seg.callbacks.picture_sinks import MOST_CLASSES, _charts

    drawn = np.random.default_rng(0).integers(0, 9, (171, 171))
    drawn[7:130] = 0
    drawn[5, 5] = 10**9
    classes = [f"n{index}" for index in range(171)]
    charts = _charts(drawn, classes)
    rows = charts["pictures/confusion_matrix"].table.data
    assert len(rows) == MOST_CLASSES**2
    shown = [row[0] for row in rows[::MOST_CLASSES]]
    assert shown == sorted(shown, key=lambda name: int(name[1:]))
    kept = {int(name[1:]) for name in shown}
    truth = drawn.sum(1)
    assert min(truth[list(kept)]) >= max(truth[[i for i in range(171) if i not in kept]])
    assert rows[shown.index("n5") * (MOST_CLASSES + 1)] == ["n5", "n5", 10**9]
    one = _charts(np.array([[0]]), ["only"])
    assert one["pictures/iou_of_classes"].table.data == []


def test_a_training_without_validations_or_images_draws_nothing(tmp_path):
    run(tmp_path, always(), steps=1, limit_val_batches=0, num_sanity_val_steps=2)
    run(tmp_path, always(images=0), steps=1)
    assert list(tmp_path.iterdir()) == []
