"""Trained networks as files for other programs, against the checkpoint's own results."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documents import blocks
from PIL import Image
from places import ROOT
from timm.layers import Conv2dSame
from torch import nn

import cli
import lightning_seg
from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.deployment.exporting import export_network
from lightning_seg.deployment.segmenter import Segmenter, load, load_module
from lightning_seg.networks import FCN, UNet


class PaddedAsInTensorFlow(nn.Module):
    """Two strided convolutions, upsampled to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv2dSame(3, 4, 3, stride=2), nn.ReLU(), Conv2dSame(4, 3, 5, stride=2)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(self.layers(image), image.shape[2:], mode="bilinear")


@torch.inference_mode()
def expected(model, image: np.ndarray) -> np.ndarray:
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    return model(batch).argmax(1)[0].numpy()


def test_a_checkpoint_is_loaded_as_a_plain_module(run) -> None:
    model, path, folder, image = run
    network = lightning_seg.load(path)
    assert isinstance(network, nn.Module)
    assert not network.training
    assert network.class_names == model.class_names
    for given in (image, Image.fromarray(image), folder / "photo.png", image / np.float32(255)):
        found = network.predict(given)
        assert (found.dtype, found.shape) == (np.uint8, (75, 98))
        assert np.mean(found != expected(model, image)) < 1e-3
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    shares = lightning_seg.load(path, "probabilities")(batch)
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 75, 98))
    torch.testing.assert_close(lightning_seg.load(path, "logits")(batch), model(batch))


def test_the_documented_lines_segment_a_photograph(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path, folder, image = run
    monkeypatch.chdir(tmp_path)
    Image.open(folder / "photo.png").save("photo.jpg", quality=100, subsampling=0)
    for place in ("runs/mine/checkpoints", "runs/checkpoints"):
        Path(place).mkdir(parents=True)
        shutil.copy(path, f"{place}/best.ckpt")
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/export.md")]
    scripts = [each for page in pages for each in blocks("python", page) if ".load(" in each]
    assert len(scripts) == 3
    for script in scripts:
        names: dict[str, Any] = {}
        exec(script, names)
        found = names.get("again", names["network"]).predict("photo.jpg")
        assert found.shape == (75, 98)
        assert np.mean(found != expected(model, image)) < 0.2  # JPEG changes some pixels


def test_exported_weights_are_read_back_without_the_checkpoint(run, tmp_path: Path) -> None:
    model, path, folder, image = run
    file = tmp_path / "model.safetensors"
    assert cli.main(["export", f"--ckpt_path={folder}", f"--output={file}"]) == 0
    again = load(file)
    assert np.array_equal(again.predict(image), load(path).predict(image))
    assert again.class_names == model.class_names
    assert again.palette == load(path).palette


def test_an_onnx_file_runs_without_torch_and_this_package(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path, folder, image = run
    file = tmp_path / "model.onnx"
    assert cli.main(["export", f"--ckpt_path={path}", f"--output={file}", "--size=[64,96]"]) == 0
    assert "takes uint8 images (B, 3, H, W) of any size" in capsys.readouterr().out
    script = next(
        each for each in blocks("python", (ROOT / "docs" / "export.md").read_text())
        if "InferenceSession" in each
    )  # fmt: skip
    hidden = dict.fromkeys(["torch", "lightning_seg", "onnx"])
    alone = f"import sys\nsys.modules.update({hidden})\n"
    words = [str(file), str(folder / "photo.png"), str(tmp_path / "mask.png")]
    done = subprocess.run(
        [sys.executable, "-c", alone + script, *words],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P"
    assert np.mean(np.asarray(mask) != expected(model, image)) < 1e-3
    names = [model.class_names[each] for each in np.unique(np.asarray(mask))]
    assert done.stdout.strip() == str(names)


def test_a_program_of_torch_takes_batches_of_any_size(run, tmp_path: Path) -> None:
    model, path, *_ = run
    file = tmp_path / "model.pt2"
    words = [f"--ckpt_path={path}", f"--output={file}", "--returns=logits", "--size=[64,96]"]
    assert cli.main(["export", *words]) == 0
    facts = {"facts.json": ""}
    module = torch.export.load(file, extra_files=facts).module()
    assert json.loads(facts["facts.json"])["class_names"] == model.class_names
    batch = torch.randint(256, (3, 3, 71, 50), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(module(batch), model(batch), atol=1e-4, rtol=1e-4)


def test_networks_that_fill_images_up_take_any_size_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FCN(3, "test_vit", output_stride=16)
    segmenter = Segmenter(CrossEntropyModule(network, num_classes=3), "logits")
    found = export_network(segmenter, tmp_path / "model.onnx", (64, 96))
    assert (found.any_size, found.difference < 1e-4) == (True, True)


def test_grey_input_and_another_order_of_classes_are_part_of_the_network() -> None:
    network = UNet(3, "test_resnet", decoder_channels=[16, 16, 8, 8, 8])
    module = CrossEntropyModule(network, num_classes=3, input_mode="gray").eval()
    module._channels = [2, 0, 1]
    image = torch.randint(256, (1, 3, 40, 50), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(Segmenter(module, "logits")(image), module(image))


def test_what_cannot_be_exported_is_one_sentence(run, tmp_path: Path) -> None:
    path = run[1]
    with pytest.raises(SetupError, match=r"must end in .onnx, .pt2, .safetensors"):
        cli.main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/model.h5"])
    with pytest.raises(SetupError, match="there is no checkpoint in"):
        cli.main(["export", f"--ckpt_path={tmp_path}", f"--output={tmp_path}/model.pt2"])
    with pytest.raises(SetupError, match="does not exist"):
        cli.main(["export", f"--ckpt_path={tmp_path}/a.ckpt", f"--output={tmp_path}/model.pt2"])
    words = [f"--ckpt_path={path}", f"--output={tmp_path}/m.pt2", "--precision=int8"]
    with pytest.raises(SetupError, match="keeps float32 weights"):
        cli.main(["export", *words])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(SetupError, match="cannot be read"):
        load(tmp_path / "other.safetensors")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "hyper_parameters": {}}, tmp_path / "python.ckpt")
    with pytest.raises(SetupError, match="it was trained in Python"):
        load_module(tmp_path / "python.ckpt")
    arguments = {"_class_path": "lightning_seg.JigsawModule"}
    torch.save({**content, "hyper_parameters": arguments}, tmp_path / "jigsaw.ckpt")
    with pytest.raises(SetupError, match="JigsawModule, which trains an encoder"):
        load_module(tmp_path / "jigsaw.ckpt")


def test_a_failed_comparison_leaves_no_file(run, tmp_path: Path, monkeypatch) -> None:
    from lightning_seg.deployment import exporting

    _, path, _, _ = run
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(SetupError, match=r"cannot be written as .pt2: its results differ by"):
        export_network(Segmenter(load_module(path), "logits"), tmp_path / "m.pt2", (32, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("precision", "most"), [("float16", 0.01), ("int8", 0.1)])
def test_smaller_weights_change_probabilities_a_little(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str, most: float
) -> None:
    import onnxruntime

    model, path, _, image = run
    sizes = {}
    for name in ("float32", precision):
        file = tmp_path / f"{name}.onnx"
        words = [f"--ckpt_path={path}", f"--output={file}", f"--precision={name}", "--size=[64,96]"]
        assert cli.main(["export", *words, "--returns=probabilities"]) == 0
        sizes[name] = file.stat().st_size
    assert sizes[precision] < 0.9 * sizes["float32"]
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        shares = model(batch).softmax(1).numpy()
    session = onnxruntime.InferenceSession(tmp_path / f"{precision}.onnx")
    found = session.run(None, {"image": batch.numpy()})[0]
    assert 0 < np.abs(found - shares).max() < most
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert float(said.rpartition(" ")[2]) > 0


def test_an_encoder_with_the_padding_of_tensorflow_takes_any_size(tmp_path: Path) -> None:
    from timm.layers.padding import get_same_padding

    from lightning_seg.networks.image_sizes import same_padding

    for size, kernel, stride, dilation in itertools.product(
        range(1, 30), (1, 2, 3, 5, 7), (1, 2, 3, 4), (1, 2)
    ):
        expected = get_same_padding(size, kernel, stride, dilation)
        assert same_padding(size, kernel, stride, dilation) == expected
    module = CrossEntropyModule(PaddedAsInTensorFlow(), num_classes=3)
    found = export_network(Segmenter(module, "logits"), tmp_path / "m.pt2", (33, 46))
    assert found.any_size
    assert get_same_padding.__module__ == "timm.layers.padding"  # as before
