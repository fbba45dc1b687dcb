"""The arithmetic of labelled and unlabelled images."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from datamodules import DataError, FolderDataModule, SyntheticScenesDataModule
from datamodules.selection.label_splits import count_labeled, draw_split, read_split

IDS = [f"2007_{number:06d}" for number in range(10_582)]


@pytest.mark.parametrize(
    ("amount", "count"),
    [
        ("1/8", 1322),
        ("1/4", 2645),
        ("1/2", 5291),
        ("1/16", 661),
        (0.05, 529),
        (662, 662),
        ("1/1", 10_582),
        (1.0, 10_582),
        (1, 1),
        ("0.125", 1322),
        ("662", 662),
        (10_582, 10_582),
    ],
)
def test_amounts_of_voc(amount: object, count: int) -> None:
    assert count_labeled(amount, 10_582) == count


def test_shares_are_exact() -> None:
    """0.29 * 100 is 28.999... in floating point."""
    assert count_labeled(0.29, 100) == 29
    assert count_labeled("1/3", 3) == 1


@pytest.mark.parametrize(
    "amount", [0, -1, 101, "0/8", 1.5, "9/8", -0.5, "1/200", 0.001, "x", "1/0"]
)
def test_impossible_amounts(amount: object) -> None:
    with pytest.raises(DataError, match=r"labeled.*\(option: labeled=\S*\)"):
        count_labeled(amount, 100)


def test_the_choice_is_a_function_of_ids_amount_and_seed() -> None:
    split = draw_split(IDS, 1322, 0)
    assert split == draw_split(IDS[::-1], 1322, 0)
    assert split != draw_split(IDS, 1322, 1)
    assert not set(split.labeled) & set(split.unlabeled)
    assert sorted(split.labeled + split.unlabeled) == IDS
    ranked = sorted(IDS, key=lambda name: hashlib.sha256(f"0:{name}".encode()).digest())
    assert split.labeled == sorted(ranked[:1322])  # so on any machine
    assert set(split.labeled) < set(draw_split(IDS, 2645, 0).labeled)


def test_a_stratified_choice_shows_every_class() -> None:
    rng = np.random.default_rng(0)
    presence = rng.random((500, 12)) < 0.3
    presence[:, 10] = False
    presence[[17, 300], 10] = True  # two images show it
    presence[:, 11] = False  # nobody does
    ids = IDS[:500]
    for seed in range(5):
        split = draw_split(ids, 20, seed, presence)
        assert len(split.labeled) == 20
        rows = presence[[ids.index(name) for name in split.labeled]]
        assert rows.any(0).tolist() == [True] * 11 + [False]
        assert split == draw_split(ids, 20, seed, presence)
    plain = [draw_split(ids, 20, seed).labeled for seed in range(20)]
    assert any(not {ids[17], ids[300]} & set(each) for each in plain)  # luck alone would miss it
    with pytest.raises(
        DataError, match=r"labelled images are needed to show every class.*labeled="
    ):
        draw_split(ids, 1, 0, presence)


def scenes(tmp_path: Path, **options: object) -> SyntheticScenesDataModule:
    module = SyntheticScenesDataModule(
        train_size=16,
        val_size=2,
        image_size=(32, 40),
        crop_size=24,
        num_workers=0,
        batch_size=2,
        splits_dir=str(tmp_path / "splits"),
        **options,
    )
    module.setup("fit")
    return module


def test_lists_are_written_and_read_back(tmp_path: Path) -> None:
    module = scenes(tmp_path, labeled="1/8", split_seed=3)
    folder = tmp_path / "splits/syntheticscenes/1_8/seed3"
    labeled = (folder / "labeled.txt").read_text().split()
    unlabeled = (folder / "unlabeled.txt").read_text().split()
    assert [len(labeled), len(unlabeled)] == [2, 14]
    assert module.split == (labeled, unlabeled)
    seen = {name for batch in module.train_dataloader() for name in batch["id"]}
    assert seen == set(labeled)
    # a choice of one's own, in the same place and elsewhere
    mine = sorted(f"train_{number:05d}" for number in (4, 9))
    (folder / "labeled.txt").write_text("\n".join(mine))
    others = [f"train_{number:05d}" for number in range(16) if number not in (4, 9)]
    (folder / "unlabeled.txt").write_text("\n".join(others))
    assert scenes(tmp_path, labeled="1/8", split_seed=3).split.labeled == mine
    (tmp_path / "mine.txt").write_text("\n".join(mine))
    assert scenes(tmp_path, labeled=str(tmp_path / "mine.txt")).split == (mine, others)


def test_lists_of_another_dataset_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "splits/syntheticscenes/1_8/seed0"
    folder.mkdir(parents=True)
    (folder / "labeled.txt").write_text("horse\n")
    (folder / "unlabeled.txt").write_text("cow\n")
    with pytest.warns(UserWarning, match=r"left alone.*names horse"):
        module = scenes(tmp_path, labeled="1/8")
    assert (folder / "labeled.txt").read_text() == "horse\n"
    (other,) = folder.parent.glob("seed0-*")
    assert (other / "labeled.txt").read_text().split() == module.split.labeled
    with pytest.warns(UserWarning, match="left alone"):
        assert scenes(tmp_path, labeled="1/8").split == module.split


@pytest.mark.parametrize(
    ("labeled", "told"),
    [
        ("train_00000\nnobody\n", "names nobody"),
        ("", "names no images"),
        ("train_00003\n", "no list"),
    ],
)
def test_a_mistake_in_an_edited_list_is_an_error(tmp_path: Path, labeled: str, told: str) -> None:
    folder = tmp_path / "splits/syntheticscenes/1_8/seed0"
    folder.mkdir(parents=True)
    (folder / "labeled.txt").write_text(labeled)
    (folder / "unlabeled.txt").write_text("train_00001\n")
    with pytest.raises(DataError, match=rf"{told}.*delete"):
        scenes(tmp_path, labeled="1/8")
    assert (folder / "labeled.txt").read_text() == labeled


def test_an_edited_list_counts_whatever_its_length(tmp_path: Path) -> None:
    scenes(tmp_path, labeled="1/8")
    folder = tmp_path / "splits/syntheticscenes/1_8/seed0"
    labeled, unlabeled = (
        (folder / f"{name}.txt").read_text().split() for name in ("labeled", "unlabeled")
    )
    (folder / "labeled.txt").write_text("\n".join([*labeled, unlabeled[0]]))
    (folder / "unlabeled.txt").write_text("\n".join(unlabeled[1:]))
    assert set(scenes(tmp_path, labeled="1/8").split.labeled) == {*labeled, unlabeled[0]}


def test_a_folder_that_cannot_be_written_does_not_stop(tmp_path: Path) -> None:
    (tmp_path / "splits").write_text("a file in the way")
    with pytest.warns(UserWarning, match="could not be written"):
        assert len(scenes(tmp_path, labeled=2).split.labeled) == 2


def test_stratified_scenes_show_every_class(tmp_path: Path) -> None:
    module = scenes(tmp_path, labeled="1/2", stratified=True)
    seen = {
        int(label)
        for number in range(8)
        for label in np.unique(module._sources["train"][number].mask)
    }
    whole = module.source("train")
    there = {int(label) for number in range(16) for label in np.unique(whole[number].mask)}
    assert seen == there
    assert (tmp_path / "splits/syntheticscenes/1_2-stratified/seed0/labeled.txt").is_file()


@pytest.mark.parametrize(
    "lines",
    [
        ["train_0", "train_3"],
        ["images/train/train_0.png", "images/train/train_3.png"],
        ["images/train/train_0.png masks/train/train_0.png", "train_3.png masks/train/train_3.png"],
        ["/images/train/train_0.png,/masks/train/train_0.png", "train_3"],
    ],
)
def test_lists_in_the_fields_forms(write_dataset, tmp_path: Path, lines: list[str]) -> None:
    root = write_dataset({"train": 5, "val": 1})
    (tmp_path / "a list.txt").write_text("\n".join(lines) + "\n")
    module = FolderDataModule(
        str(root), num_classes=3, labeled=str(tmp_path / "a list.txt"), num_workers=0
    )
    module.setup("fit")
    assert module.split == (["train_0", "train_3"], ["train_1", "train_2", "train_4"])


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "told"),
    [
        ("a\nz\n", "", r"names z, which is no training image"),
        ("a\nb\na\n", "", "a more than once"),
        ("a\n", "b\na\n", "both name a"),
        ("\n", "b\n", "names no images"),
    ],
)
def test_wrong_lists(tmp_path: Path, labeled: str, unlabeled: str, told: str) -> None:
    (tmp_path / "labeled.txt").write_text(labeled)
    (tmp_path / "unlabeled.txt").write_text(unlabeled)
    with pytest.raises(DataError, match=told):
        read_split(tmp_path / "labeled.txt", dict.fromkeys("abc"))


def test_a_list_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist"):
        scenes(tmp_path, labeled=str(tmp_path / "nowhere.txt"))


def test_names_that_fit_several_images_are_refused() -> None:
    images = {"a/0": None, "b/0": None}
    path = Path(__file__).with_name("none.txt")
    from datamodules.selection.label_splits import _find

    with pytest.raises(DataError, match="fits"):
        _find("0", images, {"0": ["a/0", "b/0"]}, path)
    assert _find("b/0", images, {}, path) == "b/0"
