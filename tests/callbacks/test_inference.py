"""One set of options for `validate`, `test` and `predict`, and the scores of the files."""

import json
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL_WORDS, quiet_trainer, scenes
from tiny import TinyNet

import cli
from datamodules import SyntheticScenesDataModule
from lightning_seg import ColorizationModule, CrossEntropyModule, SetupError, ShardedStrategy
from lightning_seg.callbacks import Inference
from lightning_seg.networks import LRASPP, TimmEncoder

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
OPTIONS = ["--inference.window=[20,24]", "--inference.overlap=0.3", "--inference.flip=true"]
OPTIONS += ["--inference.scales=[0.75,1]", "--inference.batch_size=3", "--inference.blend=gaussian"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    cli.main(["fit", *SMALL_WORDS, f"--trainer.default_root_dir={folder}", "--trainer.max_steps=2"])
    return next(folder.glob("checkpoints/*.ckpt"))


def run(verb: str, folder: Path, checkpoint: Path, *words: str):
    place = f"--trainer.default_root_dir={folder}"
    place = [place, "--data.test_size=5"]
    return cli.main([verb, *SMALL_WORDS, *place, f"--ckpt_path={checkpoint}", *words])


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.array(Image.open(path)) for path in (folder / "masks").iterdir()}


def test_the_scores_of_test_are_those_of_the_files_that_predict_writes(
    tmp_path, checkpoint
) -> None:
    run("predict", tmp_path, checkpoint, *OPTIONS, f"--predictions.output_dir={tmp_path / 'a'}")
    run("predict", tmp_path, checkpoint, f"--predictions.output_dir={tmp_path / 'whole'}")
    run("test", tmp_path, checkpoint, *OPTIONS, f"--scores.output_dir={tmp_path / 'scores'}")
    files, whole = masks(tmp_path / "a"), masks(tmp_path / "whole")
    data = SyntheticScenesDataModule(image_size=(32, 40), crop_size=24, test_size=5)
    data.setup("test")
    confusion = np.zeros((data.num_classes, data.num_classes), int)
    for example in (data.source("test")[number] for number in range(5)):
        valid = example.mask != 255
        np.add.at(confusion, (example.mask[valid], files[example.id][valid]), 1)
    written = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert written["confusion"] == confusion.tolist()
    assert any((files[name] != whole[name]).any() for name in files)  # the options did something


def trained() -> CrossEntropyModule:
    torch.manual_seed(0)
    return CrossEntropyModule(partial(TinyNet, dropout=0.0), num_classes=8, lr=0.01)


@contextmanager
def seen_sizes(network):
    sizes = set()
    hook = network.register_forward_hook(lambda _, args, __: sizes.add(tuple(args[0].shape[-2:])))
    yield sizes
    hook.remove()


def test_validations_of_fit_see_whole_images_unless_asked(tmp_path) -> None:
    seen = []
    for during_fit in (False, True):
        ours, inference = trained(), Inference(window=16, during_fit=during_fit)
        trainer = quiet_trainer(tmp_path, callbacks=[inference], max_epochs=1)
        with seen_sizes(ours.network) as sizes:
            trainer.fit(ours, scenes())
        seen.append(sizes)
        with seen_sizes(ours.network) as sizes:
            trainer.validate(ours, scenes(), verbose=False)
        assert sizes == {(16, 16)}
    assert seen == [{(24, 24), (32, 40)}, {(24, 24), (16, 16)}]


def test_without_options_a_module_sees_whole_images_again(tmp_path) -> None:
    ours = trained()
    quiet_trainer(tmp_path, callbacks=[Inference(flip=True)]).validate(
        ours, scenes(), verbose=False
    )
    assert ours.predictor.flip
    quiet_trainer(tmp_path, callbacks=[Inference()]).validate(ours, scenes(), verbose=False)
    assert ours.predictor.plain


def test_half_precision_scores_windows(tmp_path) -> None:
    found = []
    for precision in ("32-true", "bf16-mixed"):
        trainer = quiet_trainer(tmp_path, callbacks=[Inference(window=16)], precision=precision)
        found.append(trainer.validate(trained(), scenes(), verbose=False)[0]["val/loss"])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[1] != found[0]


def test_what_windows_do_not_fit_is_refused(tmp_path) -> None:
    small = CrossEntropyModule(partial(LRASPP, encoder="test_resnet"), num_classes=8)
    with pytest.raises(SetupError, match=r"smaller than the stride .*option: window="):
        quiet_trainer(tmp_path, callbacks=[Inference(window=4)]).validate(small, scenes())
    sharded = quiet_trainer(
        tmp_path, callbacks=[Inference(window=64)], strategy=ShardedStrategy(), devices=1
    )
    with pytest.raises(SetupError, match=r"whole network in each process"):
        Inference(window=64).setup(sharded, small, "validate")
    colors = ColorizationModule(encoder=TimmEncoder("test_resnet"))
    with pytest.raises(SetupError, match=r"predicts no class of each pixel"):
        Inference(window=64).setup(quiet_trainer(tmp_path), colors, "validate")
    Inference().setup(quiet_trainer(tmp_path), colors, "validate")
