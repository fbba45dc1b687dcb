"""Where pictures go, and when."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from small_runs import quiet_trainer, scenes, tiny

from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.callbacks import ValidationPictures


class Drawing(CrossEntropyModule):
    """Its picture's colour tells the step."""

    def pictures(self):
        return {"step": np.full((4, 6, 3), self.global_step, np.uint8)}


def run(folder, callback, logger, steps=4, kind=Drawing):
    short = {"limit_train_batches": 1, "limit_val_batches": 1}
    trainer = quiet_trainer(folder, callbacks=[callback], logger=logger, max_epochs=steps, **short)
    trainer.fit(tiny(kind), scenes())


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5]), (0, [])]
)
def test_pictures_of_every_nth_validation_and_the_last_become_files(tmp_path, every, steps):
    logger = CSVLogger(tmp_path, name="csv", version=0)
    run(tmp_path, ValidationPictures(every), logger, 5)
    files = sorted((tmp_path / "csv" / "version_0" / "pictures").glob("*"))
    assert [file.name for file in files] == [f"step_{step:07d}.png" for step in steps]
    for step, file in zip(steps, files, strict=True):
        picture = np.asarray(Image.open(file))
        assert picture.shape == (4, 6, 3)
        assert (picture == step).all()


def test_tensorboard_gets_them(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, ValidationPictures(), TensorBoardLogger(tmp_path, name="tb", version=0), 2)
    events = accumulator.EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    assert [each.step for each in events.Images("val/step")] == [1, 2]
    assert (events.Images("val/step")[0].width, events.Images("val/step")[0].height) == (6, 4)


def test_a_module_without_pictures_is_left_alone(tmp_path):
    run(tmp_path, ValidationPictures(), False, 1, CrossEntropyModule)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_number_is_refused():
    with pytest.raises(SetupError, match="every_n_validations must be at least 0, not -1"):
        ValidationPictures(-1)
