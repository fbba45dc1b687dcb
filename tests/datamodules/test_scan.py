"""Every defect is found and named; what is counted agrees with a count over the files."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    CamVidDataModule,
    DataError,
    FolderDataModule,
    SyntheticScenesDataModule,
    scan,
)
from datamodules.reading.sources import Example, FileSource, Source
from datamodules.scan import Report

CAMVID_VAL = [9.177, 25.962, 0.564, 28.953, 8.719, 16.336, 0.892, 3.078, 1.746, 0.651, 2.217]


def opened(root: Path, **options: object) -> FolderDataModule:
    return FolderDataModule(str(root), **{"num_classes": 3, **options})


def told(report: Report, split: str | None = None) -> list[str]:
    return [defect.message for defect in report.defects if split in (None, defect.split)]


def image_of(root: Path, name: str, suffix: str = ".png") -> Path:
    return root / "images" / name.split("_")[0] / f"{name}{suffix}"


def mask_of(root: Path, name: str) -> Path:
    return root / "masks" / name.split("_")[0] / f"{name}.png"


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def truncated_jpeg(root: Path) -> Path:
    path = image_of(root, "train_0")
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    cut(path.with_suffix(".jpg"))
    return path.with_suffix(".jpg")


def truncated_png(root: Path) -> Path:
    cut(image_of(root, "train_1"))
    return image_of(root, "train_1")


def text_named_png(root: Path) -> Path:
    image_of(root, "train_2").write_text("no picture\n")
    return image_of(root, "train_2")


def empty_file(root: Path) -> Path:
    image_of(root, "val_1").write_bytes(b"")
    return image_of(root, "val_1")


def truncated_mask(root: Path) -> Path:
    cut(mask_of(root, "train_3"))
    return mask_of(root, "train_3")


def other_size(root: Path) -> Path:
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(mask_of(root, "train_4"))
    return mask_of(root, "train_4")


def no_class(root: Path) -> Path:
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(mask_of(root, "train_5"))
    return mask_of(root, "train_5")


def coloured_mask(root: Path) -> Path:
    colors = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(colors).save(mask_of(root, "train_6"))
    return mask_of(root, "train_6")


def image_alone(root: Path) -> Path:
    mask_of(root, "train_7").unlink()
    return image_of(root, "train_7")


def mask_alone(root: Path) -> Path:
    image_of(root, "train_8").unlink()
    return mask_of(root, "train_8")


def copied_to_val(root: Path) -> Path:
    pixels = Image.open(image_of(root, "train_9"))
    pixels.save(image_of(root, "val_0", ".bmp"))
    image_of(root, "val_0").unlink()
    return image_of(root, "val_0", ".bmp")


def more_than_16_bits(root: Path) -> Path:
    image_of(root, "train_10").unlink()
    path = image_of(root, "train_10", ".tif")
    Image.fromarray(np.full((24, 32), 70000, np.int32)).save(path)
    return path


DEFECTS: list[Callable[[Path], Path]] = [
    truncated_jpeg,
    truncated_png,
    text_named_png,
    empty_file,
    truncated_mask,
    other_size,
    no_class,
    coloured_mask,
    image_alone,
    mask_alone,
    copied_to_val,
    more_than_16_bits,
]


@pytest.mark.parametrize("spoil", DEFECTS, ids=lambda spoil: spoil.__name__)
def test_a_defect_is_told_once_with_its_file(write_dataset, spoil: Callable[[Path], Path]) -> None:
    root = write_dataset({"train": 12, "val": 3})
    guilty = spoil(root)
    (message,) = told(scan(opened(root), workers=0))
    assert str(guilty) in message


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_all_defects_are_told_at_once(write_dataset, workers: int) -> None:
    root = write_dataset({"train": 12, "val": 3})
    guilty = [spoil(root) for spoil in DEFECTS]
    report = scan(opened(root), workers=workers)
    assert len(report.defects) == len(guilty)
    for path in guilty:
        assert sum(str(path) in message for message in told(report)) == 1, path
    assert len(report.splits["train"].source) == 10
    assert report.splits["train"].labeled == 2
    assert report.splits["val"].labeled == 2
    contents = [each.as_dict() for each in (report, scan(opened(root), workers=0))]
    for content in contents:
        for defect in content["defects"]:  # what Pillow calls a file in memory
            defect["message"] = re.sub(r" at 0x\w+", "", defect["message"])
    assert contents[0] == contents[1]


def test_an_image_and_its_mask_may_both_be_broken(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    guilty = [image_of(root, "train_1"), mask_of(root, "train_1")]
    for path in guilty:
        path.write_bytes(b"nothing")
    messages = told(scan(opened(root), workers=0))
    assert [str(path) in message for path, message in zip(guilty, messages, strict=True)] == [
        True
    ] * 2


def test_a_clean_dataset_is_counted_as_its_files_are(write_dataset) -> None:
    root = write_dataset({"train": 5, "val": 3, "test": 2}, values=(0, 1, 1, 1, 2, 255))
    Image.fromarray(np.full((24, 32), 2, np.uint8)).save(mask_of(root, "train_2"))
    report = scan(opened(root), workers=2)
    assert report.defects == []
    assert report.notes == []
    for name, split in report.splits.items():
        masks = [np.array(Image.open(path)) for path in (root / "masks" / name).iterdir()]
        assert len(split.source) == split.labeled == len(masks)
        whole = np.stack(masks)
        content = report.as_dict()["splits"][name]
        for index in range(3):
            assert content["pixels"][index] == (whole == index).sum()
            assert content["pixel_shares"][index] == pytest.approx((whole == index).mean())
            assert content["images_with"][index] == (whole == index).any((1, 2)).sum()
        assert content["void_pixels"] == (whole == 255).sum()
        assert content["void_share"] == pytest.approx((whole == 255).mean())
        assert content["height_width"] == {
            "smallest": [24, 32],
            "median": [24, 32],
            "largest": [24, 32],
        }


def test_sizes_are_ordered_by_area(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    for number, size in enumerate([(50, 10), (10, 60), (20, 20), (90, 90)]):
        write_dataset({"val": 1}, size=size)
        for path in (image_of(root, "val_0"), mask_of(root, "val_0")):
            path.rename(path.with_name(f"train_{number}.png").resolve())
            target = path.parents[1] / "train" / f"train_{number}.png"
            path.with_name(f"train_{number}.png").rename(target)
    write_dataset({"val": 1})
    split = scan(opened(root), workers=0).splits["train"]
    assert split.typical_sizes() == ((20, 20), (10, 60), (90, 90))
    assert len(split.sizes) == 4


def test_camvids_shares_are_those_of_its_readme(shared: Path) -> None:
    report = scan(CamVidDataModule(str(shared / "data/camvid")))
    assert report.defects == []
    assert [len(split.source) for split in report.splits.values()] == [367, 101, 233]
    shares = 100 * report.splits["val"].shares()
    np.testing.assert_allclose(shares[:11], CAMVID_VAL, atol=0.0006)
    assert shares[255] == pytest.approx(1.703, abs=0.0006)


def test_drawn_scenes_have_no_defects() -> None:
    data = SyntheticScenesDataModule(train_size=6, val_size=2, test_size=2, image_size=(32, 48))
    report = scan(data, workers=2)
    assert report.defects == []
    train = report.splits["train"]
    masks = np.stack([data.source("train")[index].mask for index in range(6)])
    assert (train.pixels == np.bincount(masks.ravel(), minlength=256)).all()
    assert [example.id for example in train.examples(3)] == [
        "train_00000",
        "train_00002",
        "train_00005",
    ]


def test_a_test_split_that_is_the_validation_split_is_left_out(write_dataset) -> None:
    report = scan(opened(write_dataset({"train": 2, "val": 2})), workers=0)
    assert list(report.splits) == ["train", "val"]
    assert report.defects == []


def test_lone_files_of_that_split_are_told_once(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 2})
    mask_of(root, "val_0").unlink()
    data = opened(root)
    (message,) = told(scan(data, workers=0), "val")
    assert str(image_of(root, "val_0")) in message
    assert data.skip_unpaired is False


def test_lone_files_that_are_to_be_skipped_are_no_defect(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 2})
    mask_of(root, "val_0").unlink()
    assert told(scan(opened(root, unpaired="skip"), workers=0)) == []


def test_a_split_that_is_missing_leaves_the_others(write_dataset) -> None:
    report = scan(opened(write_dataset({"train": 2})), workers=0)
    (message,) = told(report, "val")
    assert "split 'val' has no images" in message
    assert list(report.splits) == ["train"]
    assert report.splits["train"].labeled == 2


def test_an_empty_split_is_a_defect() -> None:
    data = SyntheticScenesDataModule(train_size=2, val_size=0, test_size=1, image_size=(32, 32))
    (message,) = told(scan(data, workers=0), "val")
    assert "split 'val' of SyntheticScenesDataModule has no images" in message


def test_no_split_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^folder .*nowhere does not exist[^\n]*$"):
        scan(opened(tmp_path / "nowhere"), workers=0)


def test_copies_within_a_split_are_a_note(write_dataset) -> None:
    root = write_dataset({"train": 3, "val": 1})
    image_of(root, "train_1").write_bytes(image_of(root, "train_0").read_bytes())
    report = scan(opened(root), workers=0)
    assert report.defects == []
    assert report.notes == ["train: images that come more than once: 1"]


def test_turned_images_with_equal_bytes_are_no_copies(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1}, size=(16, 16))
    pixels = np.arange(256, dtype=np.uint8)
    for name, shape in (("train_0", (8, 32)), ("val_0", (32, 8))):
        Image.fromarray(pixels.reshape(shape)).save(image_of(root, name))
        Image.fromarray(np.zeros(shape, np.uint8)).save(mask_of(root, name))
    assert scan(opened(root), workers=0).defects == []


def test_odd_but_usable_images_are_noted(write_dataset) -> None:
    root = write_dataset({"train": 4, "val": 2}, values=(0, 1))
    deep, plain, void = (image_of(root, f"train_{number}") for number in range(3))
    grey = np.random.default_rng(0).integers(0, 65536, (24, 32), dtype=np.uint16)
    Image.fromarray(grey).save(deep)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(plain)
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(mask_of(root, "train_2"))
    low = np.random.default_rng(0).integers(100, 130, (24, 32, 3), dtype=np.uint8)
    low_at = image_of(root, "val_1")
    Image.fromarray(low).save(low_at)
    report = scan(opened(root), workers=0)
    assert report.defects == []
    for part in (
        f"train: images of more than 8 bits a channel (1) hold {grey.min()}..{grey.max()}, which",
        f"train: images of a single colour (1): {plain}",
        f"train: images without a labelled pixel (1): {void}",
        "train: never holds class_2",
        f"val: images that use under 1/8 of the range from black to white (1): {low_at}",
    ):
        assert part in "\n".join(report.notes)


class Listed(Source):
    """Examples of one's own; a number in place of one raises an error that is no DataError."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def read(self, index: int, reduce: int = 1) -> Example:
        if self.examples[index].image.size == 0:
            raise KeyError("lost")
        return self.examples[index]


class Own(SyntheticScenesDataModule):
    """Hands out what it is given."""

    def __init__(self, sources: dict[str, Source], **options: object) -> None:
        super().__init__(**options)
        self.given = sources

    def source(self, split: str) -> Source:
        return self.given[split]


def test_a_source_of_ones_own_is_held_to_the_same_rules() -> None:
    rng = np.random.default_rng(0)

    def example(name: str, shape: tuple[int, int] = (4, 6), label: int = 0) -> Example:
        image = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        return Example(name, image, np.full(shape, label, np.uint8))

    train = Listed(
        [
            example("fine"),
            example("large", (5, 6)),
            example("eleven", label=11),
            Example("gone", np.zeros((0, 0, 3), np.uint8), None),
        ]
    )
    report = scan(Own({"train": train, "val": Listed([example("x")]), "test": Listed([])}), 0)
    assert [(defect.id, defect.split) for defect in report.defects[1:]] == [
        ("large", "train"),
        ("eleven", "train"),
        ("gone", "train"),
    ]
    for part in ("KeyError", "holds 11, expected 0..7", "large is", "split 'test'"):
        assert part in "\n".join(told(report))
    assert report.splits["train"].labeled == 1


def test_unlabelled_images_are_read_where_they_are_trained_on(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    extra = root / "more"
    extra.mkdir()
    buffer = io.BytesIO()
    Image.effect_noise((20, 20), 50).save(buffer, "PNG")
    (extra / "a.png").write_bytes(buffer.getvalue())
    (extra / "b.png").write_bytes(buffer.getvalue()[:200])
    (extra / "c.png").write_bytes(image_of(root, "train_0").read_bytes())
    report = scan(opened(root, unlabeled=str(extra), unlabeled_batch_size=1), workers=0)
    (message,) = told(report, "unlabeled")
    assert str(extra / "b.png") in message
    assert len(report.splits["unlabeled"].source) == 3
    assert report.splits["unlabeled"].labeled == 0
    assert "train and unlabeled: images that come more than once: 1" in report.notes
    with pytest.warns(UserWarning, match="nothing without"):
        idle = opened(root, unlabeled=str(extra))
    assert "unlabeled" not in scan(idle, workers=0).splits


def test_what_is_evaluated_must_not_be_among_the_unlabelled_images(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    extra = root / "more"
    extra.mkdir()
    Image.open(image_of(root, "val_0")).save(extra / "copy.bmp")
    report = scan(opened(root, unlabeled=str(extra), unlabeled_batch_size=1), workers=0)
    (message,) = told(report, "unlabeled")
    assert "the same image in two splits" in message
    assert "copy.bmp" in message


def test_every_bad_line_of_a_list_is_a_defect_and_the_rest_is_read(write_dataset) -> None:
    root = write_dataset({"train": 3, "val": 1})
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            for path in (root / kind / split).iterdir():
                path.rename(root / kind / path.name)
            (root / kind / split).rmdir()
    (root / "train.txt").write_text("train_0\nnobody\ntrain_1\nno one\n")
    (root / "val.txt").write_text("val_0\n")
    report = scan(opened(root), workers=0)
    assert len(told(report, "train")) == 2
    assert len(report.splits["train"].source) == 2


def test_a_wrong_list_of_labelled_images_is_told(write_dataset, tmp_path: Path) -> None:
    root = write_dataset({"train": 3, "val": 1})
    (tmp_path / "labeled.txt").write_text("train_0\nnobody\n")
    report = scan(opened(root, labeled=str(tmp_path / "labeled.txt")), workers=0)
    assert any("names nobody" in defect.message for defect in report.defects)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_jpeg_that_is_garbled_inside_is_a_defect(write_dataset, workers: int) -> None:
    root = write_dataset({"train": 3, "val": 1}, size=(120, 160))
    path = image_of(root, "train_1")
    Image.open(path).save(path.with_suffix(".jpg"), quality=95)
    path.unlink()
    data = bytearray(path.with_suffix(".jpg").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(value ^ 0x5A for value in data[middle : middle + 40])
    path.with_suffix(".jpg").write_bytes(bytes(data))
    (message,) = told(scan(opened(root), workers=workers), "train")
    assert "train_1.jpg is damaged: Corrupt JPEG data" in message


def test_two_files_of_one_name_leave_the_rest_to_be_read(write_dataset) -> None:
    root = write_dataset({"train": 3, "val": 1})
    path = image_of(root, "train_1")
    Image.open(path).save(path.with_suffix(".bmp"))
    report = scan(opened(root), workers=0)
    (message,) = told(report, "train")
    assert "same name but for their type" in message
    assert report.splits["train"].labeled == 3


def test_turned_images_are_noted(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    path = image_of(root, "train_0")
    turned = Image.open(path)
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.save(path, exif=exif)
    report = scan(opened(root), workers=0)
    assert report.defects == []
    assert any("EXIF" in note and "train_0" in note for note in report.notes)


def test_progress_is_told(write_dataset) -> None:
    seen: list[tuple[str, int, int]] = []
    scan(opened(write_dataset({"train": 3, "val": 1})), 0, lambda *step: seen.append(step))
    assert seen == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3), ("val", 1, 1)]


def test_images_without_masks_are_only_read(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 2})
    folder = root / "images/train"
    files = {path.stem: path for path in folder.iterdir()}
    report = scan(Own({"train": FileSource(files), "val": FileSource({}), "test": Listed([])}), 0)
    assert report.splits["train"].labeled == 0
    assert report.splits["train"].pixels.sum() == 0
    assert report.splits["train"].sizes == {(24, 32): 2}


def refused_by_fit(module: FolderDataModule) -> str:
    with pytest.raises(DataError) as error:
        module.setup("fit")
    return str(error.value)


def test_masks_of_0_and_255_are_refused_by_check_as_by_training(write_dataset) -> None:
    root = write_dataset({"train": 20, "val": 3}, values=(0, 255))
    for split in ("train", "val"):  # one mask of each split has the numbers 0 and 1
        Image.fromarray(np.eye(24, 32, dtype=np.uint8)).save(mask_of(root, f"{split}_1"))
    message = refused_by_fit(opened(root, num_classes=2))
    assert "holds 255 and no class but 0" in message
    found = told(scan(opened(root, num_classes=2), workers=0))
    assert len(found) == 19 + 2
    assert all("mask_values=[0,255], void=[255]" in each for each in found)
    assert scan(opened(root, num_classes=2, void=[255]), workers=0).defects == []


def test_what_is_refused_about_a_whole_split_is_a_defect(write_dataset) -> None:
    root = write_dataset({"train": 12, "val": 3}, values=(0, 255))
    assert "hold 0 and 255 and no other class" in refused_by_fit(opened(root))
    assert {defect.split for defect in scan(opened(root), workers=0).defects} == {"train", "val"}


def test_a_batch_of_validation_images_of_several_sizes_is_a_defect(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 2})
    Image.fromarray(np.zeros((30, 32, 3), np.uint8)).save(image_of(root, "val_1"))
    Image.fromarray(np.zeros((30, 32), np.uint8)).save(mask_of(root, "val_1"))
    assert scan(opened(root), workers=0).defects == []
    (message,) = told(scan(opened(root, val_batch_size=2), workers=0))
    assert "2 sizes cannot share a batch of 2 (option: val_batch_size=1)" in message


@pytest.mark.parametrize(
    ("values", "kind", "option"),
    [
        ((0, 4095), np.uint16, "image_range=[0,4095]"),
        ((3, 1000), np.uint16, "image_range=[0,1023]"),
        ((0, 200), np.int32, "image_range=[0,255]"),
        ((0, 16383), np.uint16, "image_range=[0,16383]"),
        ((0, 0.001), np.float32, "image_range=[0,0.001]"),
        ((0, 255), np.float32, "image_range=[0,255]"),
        ((0, 200.5), np.float32, "image_range=[0,255]"),
        ((-1000, 3000), np.int16, "image_range=[-1000,3000]"),
    ],
)
def test_images_of_an_unknown_range_are_refused_until_it_is_stated(
    write_dataset, values: tuple[float, float], kind: type, option: str
) -> None:
    root = write_dataset({"train": 3, "val": 2})
    rng = np.random.default_rng(0)
    for path in sorted((root / "images").rglob("*.png")):
        path.unlink()
        pixels = (values[0] + rng.random((24, 32)) * (values[1] - values[0])).astype(kind)
        pixels[0, :2] = values
        Image.fromarray(pixels).save(path.with_suffix(".tif"))
    assert option in refused_by_fit(opened(root))
    assert all(option.split("[")[0] in each for each in told(scan(opened(root), workers=0)))
    module = opened(root, image_range=values, num_workers=0, crop_size=16)
    module.setup("fit")
    image = next(iter(module.val_dataloader()))["image"]
    assert image.min() == 0
    assert image.max() == 255
    report = scan(opened(root, image_range=values), workers=0)
    assert report.defects == []
    assert f"hold {values[0]:g}..{values[1]:g}, of which" in "\n".join(report.notes)


def test_values_beyond_the_stated_range_are_clipped_and_noted(write_dataset) -> None:
    root = write_dataset({"train": 1, "val": 1})
    grey = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
    Image.fromarray(grey).save(image_of(root, "train_0"))
    report = scan(opened(root, image_range=(0, 500)), workers=0)
    assert any("hold 0..767, of which 0..500 become" in note for note in report.notes)
    assert any("values beyond are clipped" in note for note in report.notes)


def test_a_batch_without_unlabelled_images_is_a_defect_before_training(write_dataset) -> None:
    root = write_dataset({"train": 2, "val": 1})
    module = opened(root, unlabeled_batch_size=1)
    assert "there are no unlabelled images" in refused_by_fit(module)
    assert any("there are no unlabelled images" in each for each in told(scan(module, workers=0)))
