"""A checkpoint keeps the names of its classes, and their order is not lost without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import quiet_trainer, scenes
from tiny import TinyNet

from lightning_seg import CrossEntropyModule, SetupError

NAMES = ["sky", "water", "grass", "road", "building", "pole", "sign", "boat"]
OTHER = [NAMES[7], NAMES[0], *NAMES[2:7], NAMES[1]]


def module(names: list[str] | None, **options) -> CrossEntropyModule:
    return CrossEntropyModule(TinyNet(8, aux=True), num_classes=8, class_names=names, **options)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, CrossEntropyModule]:
    trained = module(NAMES)
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(trained, scenes())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt", trained.eval()


def load(path: Path, names: list[str] | None, **options) -> CrossEntropyModule:
    loaded = module(names, **options)
    loaded.on_load_checkpoint(content := torch.load(path, weights_only=True))
    loaded.load_state_dict(content["state_dict"])
    return loaded.eval()


def test_another_order_is_refused(saved) -> None:
    with pytest.raises(SetupError, match=r"class 0 is 'sky' there and 'boat' here.*reorder"):
        load(saved[0], OTHER)


def test_classes_are_found_by_their_names(saved) -> None:
    path, trained = saved
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected, found = trained(image), load(path, OTHER, checkpoint_classes="reorder")(image)
    for place, name in enumerate(OTHER):
        assert torch.equal(found[:, place], expected[:, NAMES.index(name)])


def test_a_reordered_network_keeps_its_order_in_its_own_checkpoints(saved, tmp_path: Path) -> None:
    path, trained = saved
    again = module(OTHER, checkpoint_classes="reorder")
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(again, scenes(), ckpt_path=path)  # it is at its end already
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = trained(image)
    plain = load(tmp_path / "b.ckpt", OTHER)(image)
    back = load(tmp_path / "b.ckpt", NAMES, checkpoint_classes="reorder")(image)
    assert torch.equal(plain[:, 0], expected[:, 7])
    assert torch.equal(back, expected)


def test_other_names_for_the_same_classes(saved) -> None:
    path, trained = saved
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    german = ["Himmel", *NAMES[1:]]
    with pytest.raises(SetupError, match="checkpoint_classes=rename"):
        load(path, german)
    with pytest.raises(SetupError, match="the checkpoint has no class Himmel"):
        load(path, german, checkpoint_classes="reorder")
    assert torch.equal(load(path, german, checkpoint_classes="rename")(image), trained(image))


def test_data_without_names_say_nothing_of_the_order(saved) -> None:
    path, trained = saved
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(load(path, None)(image), trained(image))
