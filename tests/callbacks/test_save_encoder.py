"""The encoder's file: what is handed over, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_runs import quiet_trainer, scenes
from tiny import TinyNet

from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.callbacks import SaveEncoder
from lightning_seg.networks import FCN, LRASPP, TimmEncoder

network = partial(FCN, encoder="test_resnet", output_stride=32)


def trained(folder, path=None, **options) -> CrossEntropyModule:
    torch.manual_seed(0)
    ours = CrossEntropyModule(network, num_classes=8, lr=0.01, **options)
    trainer = quiet_trainer(folder, callbacks=[SaveEncoder(path)], max_steps=1, limit_val_batches=0)
    trainer.fit(ours, scenes())
    return ours


def states(*modules):
    return [each.state_dict() for each in modules]


def test_the_next_network_starts_with_the_same_encoder_and_another_head(tmp_path):
    file = tmp_path / "a" / "encoder.pt"
    first = trained(tmp_path, str(file), channels_last=True)
    torch.manual_seed(1)
    second = network(5, weights=str(file))
    theirs, ours = states(first.network.encoder, second.encoder)
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name  # running statistics too
    before = states(network(8).encoder)[0]
    assert any(not torch.equal(before[name], value) for name, value in theirs.items())
    heads = zip(first.network.head.parameters(), second.head.parameters(), strict=True)
    assert all(a.shape != b.shape or not torch.equal(a, b) for a, b in heads if a.ndim > 1)
    assert set(torch.load(file, weights_only=True)) == {
        "state_dict",
        "encoder",
        "input_mode",
        "mean",
        "std",
    }  # no optimizer, no schedule, no step


def test_what_matched_is_said(tmp_path, caplog):
    file = tmp_path / "encoder.pt"
    trained(tmp_path, str(file))
    origin = network(5, weights=str(file)).encoder.origin
    count = sum("num_batches" not in name for name in TimmEncoder("test_resnet").bare.state_dict())
    assert origin == f"encoder test_resnet: {count} of {count} tensors from {file}"
    assert network(5).encoder.origin is None
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in torch.load(file)["state_dict"].items()}}, file
    )
    assert network(5, weights=str(file)).encoder.origin.endswith("with the prefix 'module_'")


def test_nothing_is_written_unless_asked(tmp_path):
    trained(tmp_path)
    assert list(tmp_path.rglob("*.pt")) == []


def test_a_network_without_such_an_encoder_is_refused(tmp_path):
    ours = CrossEntropyModule(TinyNet, num_classes=8)
    trainer = quiet_trainer(tmp_path, callbacks=[SaveEncoder("e.pt")], max_steps=1)
    with pytest.raises(SetupError, match="CrossEntropyModule has no TimmEncoder"):
        trainer.fit(ours, scenes())


def test_another_encoder_is_refused_even_with_the_same_tensors(tmp_path):
    file = tmp_path / "encoder.pt"
    trained(tmp_path, str(file))
    with pytest.raises(SetupError, match=r"weights of encoder 'test_resnet', not of 'resnet18'"):
        LRASPP(5, encoder="resnet18", weights=str(file))
    content = torch.load(file)
    torch.save({**content, "encoder": "test_resnet.r160_in1k"}, file)
    network(5, weights=str(file))  # the same, trained otherwise


def test_images_are_normalised_as_in_the_training_of_the_encoder(tmp_path):
    file = tmp_path / "encoder.pt"
    trained(tmp_path, str(file))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    torch.save({**torch.load(file), "mean": mean, "std": std}, file)
    module = CrossEntropyModule(network(5, weights=str(file)), num_classes=5)
    image = torch.full((1, 3, 2, 2), 0.6)
    torch.testing.assert_close(module.normalize(image)[0, :, 0, 0], torch.tensor([1.0, 1.6, 2.4]))


def test_too_few_tensors_are_refused(tmp_path):
    file = tmp_path / "encoder.pt"
    trained(tmp_path, str(file))
    content = torch.load(file)
    names = [name for name in content["state_dict"] if "num_batches" not in name]
    for name in names[: len(names) // 15]:
        del content["state_dict"][name]
    torch.save(content, file)
    with pytest.raises(SetupError, match=r"9\d%, at least 95% must"):
        network(5, weights=str(file))


@pytest.mark.parametrize("mode", ["rgb", "gray"])
def test_input_mode_goes_with_the_encoder(tmp_path, mode):
    file = tmp_path / "encoder.pt"
    trained(tmp_path, str(file), input_mode=mode)
    start = partial(network, weights=str(file))
    follows = CrossEntropyModule(start, num_classes=8)
    assert follows.input_mode == mode
    image = torch.rand(1, 3, 16, 16)
    channels = follows.normalize(image) * follows.image_std + follows.image_mean
    wanted = image.mean(1, keepdim=True).expand_as(image) if mode == "gray" else image
    torch.testing.assert_close(channels, wanted)
    assert CrossEntropyModule(start, num_classes=8, input_mode="rgb").input_mode == "rgb"
    assert CrossEntropyModule(network, num_classes=8).input_mode == "rgb"


def test_input_mode_comes_back_with_a_checkpoint_that_needs_no_weights(tmp_path):
    file = tmp_path / "encoder.pt"
    ours = trained(tmp_path, str(file), input_mode="gray")
    ours.trainer.save_checkpoint(tmp_path / "a.ckpt")
    load = partial(CrossEntropyModule.load_from_checkpoint, tmp_path / "a.ckpt", network=network)
    assert load().input_mode == "gray"
    with pytest.raises(SetupError, match="was trained on gray images, not on rgb"):
        load(input_mode="rgb")


@pytest.mark.parametrize("where", ["folder", "file/below/a/file.pt"])
def test_a_place_that_cannot_be_written_is_reported_before_training(where, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    module = CrossEntropyModule(FCN(3, "test_resnet"), num_classes=3)
    saver = SaveEncoder(str(tmp_path / where))
    trainer = quiet_trainer(tmp_path, callbacks=[saver], max_steps=1)
    with pytest.raises(SetupError, match=r"cannot be written: .*option: encoder_file\.path="):
        saver.setup(trainer, module, "fit")  # what Lightning calls before all else
