"""Images of any number of channels through the whole command, and what people see of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from methods import PIECES, tiny_words
from PIL import Image

import cli
from lightning_seg import ColorizationModule, CrossEntropyModule, LMPModule
from lightning_seg.errors import SetupError
from lightning_seg.networks import TimmEncoder, UNet
from lightning_seg.views import rgb_of


@pytest.fixture(scope="module")
def bands(tmp_path_factory) -> Path:
    """Four bands of 8 bits, the last of which alone tells the classes apart."""
    root, draw = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for split, count in {"train": 8, "val": 2, "test": 2}.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((64, 96), np.uint8)
            row, column = draw.integers(0, 40, 2)
            mask[row : row + 24, column : column + 40] = 1
            image = draw.integers(0, 100, (64, 96, 4), dtype=np.uint8)
            image[..., 3] += 120 * mask
            name = f"{split}{number}"
            options = {"photometric": "rgb", "extrasamples": ["unspecified"]}
            tifffile.imwrite(root / "images" / split / f"{name}.tif", image, **options)
            Image.fromarray(mask).save(root / "masks" / split / f"{name}.png")
    return root


def words(name: str, root: Path, output: Path) -> list[str]:
    kept = [word for word in tiny_words(name) if "image_size" not in word and "_size=8" not in word]
    return [
        *(word for word in kept if "val_size" not in word),
        "--data=FolderDataModule",
        f"--data.root={root}",
        "--data.class_names=[dark,bright]",
        "--data.channels=4",
        *(["--data.unlabeled_batch_size=1"] if name == "semi_adv" else []),
        f"--trainer.default_root_dir={output}",
    ]


@pytest.mark.parametrize("name", [name for name in PIECES if name != "colorization"])
def test_every_method_trains_on_four_bands(name: str, bands: Path, tmp_path: Path) -> None:
    given = [*words(name, bands, tmp_path), "--trainer.max_steps=2"]
    module = cli.main(["fit", *given]).model
    first = next(each for each in module.network.modules() if isinstance(each, torch.nn.Conv2d))
    assert (first.in_channels, module.image_mean.shape) == (4, (1, 4, 1, 1))
    assert all(each.isfinite().all() for each in module.network.parameters())


def test_the_fourth_band_is_seen_scored_and_predicted(bands: Path, tmp_path: Path) -> None:
    given = [
        *words("cross_entropy", bands, tmp_path),
        "--data.image_mean=[0.2,0.2,0.2,0.3]",
        "--data.image_std=[0.1,0.1,0.1,0.2]",
        "--data.picture_channels=[3,1,0]",
    ]
    fitted = cli.main(["fit", *given, "--trainer.max_steps=60", "--trainer.max_epochs=-1"])
    path = fitted.trainer.checkpoint_callback.best_model_path
    checkpoint = f"--ckpt_path={path}"
    tested = cli.main(["test", *given, checkpoint]).trainer.callback_metrics
    assert tested["test/miou"] > 0.8  # nothing else tells the classes apart
    cli.main(["predict", *given, checkpoint, f"--data.predict={bands}/images/test"])
    written = sorted((tmp_path / "predictions" / "masks").glob("*.png"))
    truth = [np.asarray(Image.open(bands / "masks" / "test" / each.name)) for each in written]
    found = [np.asarray(Image.open(each)) for each in written]
    assert np.mean(np.array(found) == np.array(truth)) > 0.9
    assert Image.open(next((tmp_path / "predictions" / "overlays").glob("*.jpg"))).mode == "RGB"
    stored = torch.load(path, weights_only=True)
    assert stored["hyper_parameters"]["image_mean"] == [0.2, 0.2, 0.2, 0.3]


def test_an_encoder_of_four_bands_is_handed_on(bands: Path, tmp_path: Path) -> None:
    jigsaw = [*words("jigsaw", bands, tmp_path / "jigsaw"), "--trainer.max_steps=1"]
    cli.main(["fit", *jigsaw])
    matching = [
        *words("mix_match", bands, tmp_path / "match"),
        f"--model.encoder.weights={tmp_path}/jigsaw/encoder.pt",
        "--data.patches.patch_size=[16,32]",
        "--data.patches.out_size=32",
    ]
    module = cli.main(["fit", *matching, "--trainer.max_steps=1", "--model.lr=0"]).model
    stem = torch.load(tmp_path / "jigsaw" / "encoder.pt")["state_dict"]
    found = module.encoder.bare.state_dict()
    name = next(name for name, each in stem.items() if each.ndim == 4)
    assert stem[name].shape[1] == 4
    assert torch.equal(found[name], stem[name])


def test_the_report_of_a_dataset_shows_the_chosen_bands(bands: Path, tmp_path: Path) -> None:
    given = ["check", "-c", "configs/data/folder.yaml", f"--data.root={bands}", "--data.channels=4"]
    given += ["--data.class_names=[dark,bright]", "--workers=0", f"--output={tmp_path}"]
    assert cli.main([*given, "--data.picture_channels=[3,3,3]"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    mean, _ = report["splits"]["train"]["mean_and_std"]
    assert mean[3] > mean[0] + 0.05
    assert any("--data.image_mean" in note or "image_mean=" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4, "input_mode": "gray"}, "gray is for RGB images, not for 4 channels"),
        ({"channels": 4, "image_mean": [0.1, 0.2]}, "2 values of image_mean for 4 channels"),
    ],
)
def test_settings_that_contradict_the_channels_are_refused(options, message) -> None:
    with pytest.raises(SetupError, match=message):
        CrossEntropyModule(
            UNet(2, "test_resnet", decoder_channels=[8] * 5), num_classes=2, **options
        )


def test_colorization_needs_colours() -> None:
    with pytest.raises(SetupError, match="the data has 4 channels"):
        ColorizationModule(TimmEncoder("test_resnet"), channels=4)


def test_bands_are_normalised_each_by_its_own_statistics() -> None:
    network = UNet(2, "test_resnet", decoder_channels=[8] * 5)
    mean, std = [0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.1, 0.2]
    module = LMPModule(network, num_classes=2, channels=4, image_mean=mean, image_std=std)
    image = torch.full((1, 4, 1, 1), 51, dtype=torch.uint8)  # 0.2
    expected = torch.tensor([0.2, 0.0, -1.0, -1.0])
    torch.testing.assert_close(module.normalize(image).flatten(), expected)
    # without statistics every band gets the mean of those of R, G and B
    plain = CrossEntropyModule(
        UNet(2, "test_resnet", decoder_channels=[8] * 5), num_classes=2, channels=4
    )
    torch.testing.assert_close(
        plain.image_mean.flatten(), plain.image_mean[:, :1].flatten().expand(4)
    )
    assert plain.image_mean[0, 0, 0, 0].item() == 0.5  # of test_resnet


def test_pictures_of_bands_are_stretched_between_their_quantiles() -> None:
    image = torch.zeros(5, 10, 10)
    image[2] = torch.arange(100).view(10, 10) / 1000  # of 0..1, the darkest tenth
    shown = rgb_of(image, [2, 2, 2])
    # the 2 % quantiles of 0..99 are 2 and 97
    assert shown[0, 0, 0].item() == 0
    assert shown[0, 5, 0].item() == pytest.approx((50 - 2) / (97 - 2), abs=1e-5)
    assert (shown.amax().item(), shown.shape) == (1, (3, 10, 10))
    grey = torch.randint(256, (1, 4, 5), dtype=torch.uint8)
    assert torch.equal(rgb_of(grey), grey.expand(3, 4, 5))
    rgb = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    assert rgb_of(rgb) is rgb
    assert torch.equal(rgb_of(rgb, [2, 1, 0]), rgb.flip(1))
