"""Labels that a network gives to images, as files: against numpy on all pixels, and by hand."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from cases import TWO, in_processes
from PIL import Image
from places import ROOT
from small_runs import quiet_trainer
from tiny import ChannelNet, TinyNet
from torch.nn.functional import interpolate

import cli
from datamodules import DataError, FolderDataModule
from lightning_seg import CrossEntropyModule, SemiAdvModule, SetupError
from lightning_seg.callbacks import AutoLabels
from lightning_seg.callbacks.label_folder import own_names
from lightning_seg.commands.autolabel import student_words
from lightning_seg.training.prediction import softmax_log_odds

QUIET = [
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--model.network=tiny.ChannelNet",
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of random pixels, without masks."""
    rng, folder = np.random.default_rng(1), tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = rng.integers(0, 256, (20, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"new_{number}.png")
    return folder


def words_of(root: Path, photos: Path, output: Path, *words: str) -> list[str]:
    data = ["--data=FolderDataModule", f"--data.root={root}", f"--data.predict={photos}"]
    where = [f"--autolabel.output={output}", f"--trainer.default_root_dir={output.parent}"]
    values = [] if any("data.mask_values" in word for word in words) else ["--data.num_classes=3"]
    return ["autolabel", *data, *values, *QUIET, *where, "--ckpt_path=untrained", *words]


def autolabel(root: Path, photos: Path, output: Path, *words: str):
    return cli.main(words_of(root, photos, output, *words))


def expected(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return class ids and log-odds of the network's softmax, in float64."""
    logits = 4 * np.asarray(Image.open(path)).astype(float) / 255
    exponentials = np.exp(logits)
    probability = exponentials.max(-1) / exponentials.sum(-1)
    return logits.argmax(-1), np.log(probability / (1 - probability))


def mask(folder: Path, split: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "masks" / split / f"{name}.png"))


@pytest.mark.parametrize("words", [[], ["--autolabel.keep=0.3", "--autolabel.threshold=0.7"]])
def test_masks_thresholds_and_precision_are_those_of_numpy_on_all_pixels(
    write_dataset, photos: Path, tmp_path: Path, words: list[str]
) -> None:
    root = write_dataset({"train": 2, "val": 3})
    out = tmp_path / "new"
    autolabel(root, photos, out, *words)
    found = json.loads((out / "autolabel.json").read_text())
    keep, least = (0.3, math.log(0.7 / 0.3)) if words else (0.8, -math.inf)
    images = {path.stem: expected(path) for path in sorted(photos.iterdir())}
    every = [np.concatenate([each[at].ravel() for each in images.values()]) for at in (0, 1)]
    limits = []
    for number, row in enumerate(found["classes"]):
        own = np.sort(every[1][every[0] == number])[::-1]
        limits.append(max(own[math.ceil(keep * len(own)) - 1], least))
        assert row["threshold"] == pytest.approx(1 / (1 + math.exp(-limits[-1])), abs=0.00014)
        assert row["predicted"] == len(own)
        assert row["kept"] == pytest.approx((own >= limits[-1]).sum(), abs=3)
    for name, (labels, odds) in images.items():
        limit = np.array(limits)[labels]
        wanted = np.where(odds >= limit, labels, 255)
        clear = abs(odds - limit) > 0.0006  # a step of the codes
        assert clear.mean() > 0.99
        assert np.array_equal(mask(out, "train", name)[clear], wanted[clear])
        assert (out / f"images/train/{name}.png").samefile(photos / f"{name}.png")
    kept = right = 0
    for number in range(3):
        labels, odds = expected(root / f"images/val/val_{number}.png")
        chosen = odds >= np.array(limits)[labels]
        truth = np.asarray(Image.open(root / f"masks/val/val_{number}.png"))
        kept, right = kept + chosen.sum(), right + (chosen & (labels == truth)).sum()
    assert found["all"]["precision"] == pytest.approx(right / kept, abs=0.005)
    assert found["all"]["coverage"] == pytest.approx(kept / (3 * 24 * 32), abs=0.005)


def test_the_folder_is_a_training_set_whatever_the_labels_were_encoded_as(
    write_dataset, photos: Path, tmp_path: Path, caplog, capsys
) -> None:
    root = write_dataset({"train": 2, "val": 2}, values=(0, 128, 200))
    out = tmp_path / "new"
    autolabel(root, photos, out, "--data.mask_values=[0,128,200]", "--data.crop_size=16")
    ids = {0: 0, 128: 1, 200: 2}
    for split, number in (("train", 0), ("train", 1), ("val", 0)):
        stored = np.asarray(Image.open(root / f"masks/{split}/{split}_{number}.png"))
        wanted = np.vectorize(ids.get)(stored)
        assert np.array_equal(mask(out, split, f"{split}_{number}"), wanted)
    printed = capsys.readouterr()
    line = next(each for each in (printed.err + caplog.text).splitlines() if "written:" in each)
    assert "masks of 5 images without labels, 2 labelled training images" in line
    assert "2 validation images" in line
    assert "9 hard links" in line
    assert f"-c {out}/data.yaml --trainer.accelerator=cpu" in line
    for part in ("class_2", "threshold", "val: what the same thresholds keep"):
        assert part in printed.out
    data = FolderDataModule(str(out), num_classes=3, num_workers=0, crop_size=16)
    data.setup("fit")
    assert sorted(data.split_ids("train"))[:2] == ["new_0", "new_1"]
    assert len(data.split_ids("train")) == 7
    small = ["--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path}/student"]
    student = cli.main(["fit", *QUIET[1:], "-c", f"{out}/data.yaml", *small])
    assert student.datamodule.crop_size == (16, 16)
    assert not list(tmp_path.rglob(".part-*"))


def test_masks_of_two_classes_may_hold_one_of_them_and_void(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind, array in (("images", np.zeros((8, 8, 3))), ("masks", np.zeros((8, 8)))):
            (tmp_path / kind / split).mkdir(parents=True)
            array[:4] = 255
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / kind / split / "a.png")
    with pytest.raises(DataError, match="255"):
        FolderDataModule(str(tmp_path), num_classes=2).setup("fit")
    (tmp_path / "autolabel.json").write_text("{}")
    data = FolderDataModule(str(tmp_path), num_classes=2)
    data.setup("fit")
    assert data.source("train")[0].mask.tolist()[3:5] == [[255] * 8, [0] * 8]


def test_two_processes_write_what_one_writes(write_dataset, photos: Path, tmp_path: Path) -> None:
    root = write_dataset({"train": 3, "val": 2})
    outs = [tmp_path / name / "new" for name in ("one", "two")]
    for out, processes, extra in zip(outs, (1, 2), ([], TWO), strict=True):
        words = words_of(root, photos, out, "--data.val_batch_size=2", *extra)
        cases = {"only": {"words": words}}
        in_processes(processes, tmp_path / f"cases{processes}", cases, timeout=240)
    files = [sorted(path.relative_to(out) for path in out.rglob("*.*")) for out in outs]
    assert files[0] == files[1]
    assert len(files[0]) == 2 * (5 + 3 + 2) + 2
    for file in files[0]:
        if file.name != "data.yaml":
            assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes(), file


def test_the_unlabelled_images_of_a_training_are_taken_where_none_are_named(
    write_dataset, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root, out = write_dataset({"train": 6, "val": 2}), tmp_path / "new"
    words = [word for word in words_of(root, root, out) if "data.predict" not in word]
    with pytest.raises(DataError, match=r"no images without labels: name some"):
        cli.main(words)
    cli.main([*words, "--data.labeled=2"])
    images = json.loads((out / "autolabel.json").read_text())["images"]
    assert (images["autolabelled"], images["labelled_train"]) == (4, 2)
    (listed,) = tmp_path.glob("splits/**/labeled.txt")
    for name in listed.read_text().split():
        stored = np.asarray(Image.open(root / f"masks/train/{name}.png"))
        assert np.array_equal(mask(out, "train", name), stored)


def test_images_that_have_labels_are_left_out_and_names_stay_apart(
    write_dataset, photos: Path, tmp_path: Path, caplog, capsys
) -> None:
    root, out = write_dataset({"train": 2, "val": 2}), tmp_path / "new"
    (photos / "new_0.png").rename(photos / "train_0.png")  # another image of the same name
    (photos / "copy").symlink_to(root / "images/train")
    autolabel(root, photos, out)
    images = json.loads((out / "autolabel.json").read_text())["images"]
    assert (images["autolabelled"], images["have_labels"]) == (5, 2)
    assert np.array_equal(
        mask(out, "train", "train_0"), np.asarray(Image.open(root / "masks/train/train_0.png"))
    )
    assert mask(out, "train", "autolabelled/train_0").shape == (20, 30)
    assert "without 2 images that have labels already" in capsys.readouterr().err + caplog.text
    with pytest.raises(DataError, match="all 2 images have labels already"):
        autolabel(root, root / "images/val", tmp_path / "other")


def test_names_do_not_lead_out_of_the_folder_nor_collide() -> None:
    assert own_names(["/a/b", "../c", "d"], ["d"]) == ["a/b", "c", "autolabelled/d"]
    with pytest.raises(SetupError, match="two images would be called"):
        own_names(["d", "/d", "../d"], [])
    (long,) = own_names(["x/" + "a" * 300], [])
    assert len(long) < 255


def test_files_on_another_disk_are_linked_or_copied(
    write_dataset, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    def refuse(self, target) -> None:
        raise OSError("another disk")

    root = write_dataset({"train": 1, "val": 1})
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    autolabel(root, photos, tmp_path / "linked", "--autolabel.with_labeled=false")
    assert (tmp_path / "linked/images/train/new_0.png").readlink() == photos / "new_0.png"
    assert not (tmp_path / "linked/masks/val").exists()
    monkeypatch.setattr(Path, "symlink_to", refuse)
    autolabel(root, photos, tmp_path / "copied", "--autolabel.with_labeled=false")
    copy = tmp_path / "copied/images/train/new_0.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (photos / "new_0.png").read_bytes()


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    write_dataset, photos: Path, tmp_path: Path, caplog, capsys
) -> None:
    (photos / "new_2.png").write_text("no picture")
    (photos / "grey.png").write_bytes((photos / "new_1.png").read_bytes()[:70])
    root = write_dataset({"train": 1, "val": 2})
    with pytest.raises(SystemExit) as stopped:
        autolabel(root, photos, tmp_path / "new", "--data.val_batch_size=2")
    assert stopped.value.code == 1
    told = capsys.readouterr().err + caplog.text
    assert "not predicted: 2 images that could not be read" in told
    images = json.loads((tmp_path / "new/autolabel.json").read_text())["images"]
    assert (images["autolabelled"], images["not_read"]) == (4, 2)
    autolabel(root, photos, tmp_path / "skipped", "--data.on_bad_sample=skip")


def test_images_of_void_alone_are_left_out(write_dataset, photos: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(photos / "even.png")  # 1/3 each
    root = write_dataset({"train": 1, "val": 1})
    autolabel(root, photos, tmp_path / "new", "--autolabel.threshold=0.6")
    images = json.loads((tmp_path / "new/autolabel.json").read_text())["images"]
    assert (images["autolabelled"], images["all_void"]) == (5, 1)
    assert not (tmp_path / "new/images/train/even.png").exists()


def test_the_discriminators_confidence_is_that_of_a_direct_call(
    write_dataset, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    def grow(self, stage: str) -> None:  # an untrained one is nearly the same everywhere
        for weight in self.discriminator.parameters():
            weight.data *= 2

    monkeypatch.setattr(SemiAdvModule, "setup", grow)
    root, out = write_dataset({"train": 1, "val": 1}, size=(36, 40)), tmp_path / "new"
    for path in photos.iterdir():  # the discriminator's stride is 32
        Image.open(path).resize((170, 130), Image.Resampling.NEAREST).save(path)
    semi = ["--model=SemiAdvModule", "--autolabel.by=discriminator", "--autolabel.keep=0.4"]
    module = autolabel(root, photos, out, *semi).model
    labels, odds = [], []
    for path in sorted(photos.iterdir()):
        pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
        probabilities = (4 * pixels.float() / 255).softmax(1)
        scores = module.discriminator(probabilities)
        size = tuple(pixels.shape[-2:])  # as in the authors' code, with corners that are aligned
        scores = interpolate(scores, size, mode="bilinear", align_corners=True)
        labels.append(probabilities.argmax(1)[0].numpy())
        odds.append(scores[0, 0].detach().numpy())
    every = [np.concatenate([each.ravel() for each in found]) for found in (labels, odds)]
    limits = [np.quantile(every[1][every[0] == number], 0.6) for number in range(3)]
    for number in range(5):
        limit = np.array(limits)[labels[number]]
        clear = abs(odds[number] - limit) > 0.001
        wanted = np.where(odds[number] >= limit, labels[number], 255)
        assert clear.mean() > 0.9
        assert np.array_equal(mask(out, "train", f"new_{number}")[clear], wanted[clear])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--autolabel.keep=0"], r"keep must be in \(0, 1\], not 0"),
        (["--autolabel.keep=1.5"], r"keep must be in \(0, 1\], not 1.5"),
        (["--autolabel.threshold=1"], r"threshold must be in \[0, 1\), not 1"),
        (["--autolabel.threshold=-0.1"], r"threshold must be in \[0, 1\), not -0.1"),
        (["--autolabel.by=discriminator"], "CrossEntropyModule has no discriminator"),
        (
            ["--model=SemiAdvModule", "--model.lambda_adv=0", "--model.lambda_semi=0",
             "--model.lambda_semi_adv=0", "--autolabel.by=discriminator"],
            "no loss of this SemiAdvModule trains its discriminator",
        ),
        (["--autolabel.output={root}/more"], r"more lies in .*dataset, whose images are read"),
        (["--autolabel.output={photos}/more"], r"more lies in .*photos, whose images are read"),
        (["--autolabel.output={photos}"], r"photos exists and is not empty"),
        (["--autolabel.output={photos}/new_1.png"], r"new_1.png is a file, not a folder"),
        (["--autolabel.output=/proc/new"], r"labels cannot be written to /proc"),
        (["--ckpt_path={photos}"], r"there is no checkpoint in .*photos"),
        (["--ckpt_path=null"], "`autolabel` needs a checkpoint"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    write_dataset, photos: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    root = write_dataset({"train": 1, "val": 1})
    before = sorted(tmp_path.rglob("*"))
    given = [word.format(root=root, photos=photos) for word in words]
    with pytest.raises(SetupError, match=message):
        autolabel(root, photos, tmp_path / "new", *given)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_fails_or_is_killed_leaves_no_folder(
    write_dataset, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    root, out = write_dataset({"train": 1, "val": 1}), tmp_path / "new"

    def full(self, *args, **options) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(SetupError, match=r"cannot be written to .*: No space left on device"):
            autolabel(root, photos, out)
    assert not list(tmp_path.glob("*new*"))
    script = (
        "import os, signal\nfrom lightning_seg.callbacks.label_folder import LabelFolder\n"
        "LabelFolder.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"import cli\ncli.main({words_of(root, photos, out)!r})"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / ".part-new/masks/train/new_0.png").exists()
    autolabel(root, photos, out)
    assert (out / "autolabel.json").exists()
    assert not list(tmp_path.glob(".part-*"))


def test_more_classes_than_a_mask_can_hold_are_refused(tmp_path: Path) -> None:
    module = CrossEntropyModule(TinyNet(8), num_classes=8)
    data = SimpleNamespace(num_classes=256, setup_autolabel=None)
    with pytest.raises(SetupError, match=r"num_classes must be in \[1, 255\], not 256"):
        AutoLabels(str(tmp_path / "new")).prepare(SimpleNamespace(), module, data)


def test_labels_in_python(write_dataset, photos: Path, tmp_path: Path) -> None:
    root = write_dataset({"train": 2, "val": 1})
    data = FolderDataModule(str(root), num_classes=3, predict=str(photos), num_workers=0)
    module, labels = CrossEntropyModule(ChannelNet(3), num_classes=3), AutoLabels(keep=1.0)
    trainer = quiet_trainer(tmp_path, callbacks=[labels])
    labels.prepare(trainer, module, data)
    trainer.predict(module, data, return_predictions=False)
    assert labels.report["all"]["kept"] == 20 * (30 + 31 + 32 + 33 + 34)
    assert len(list((tmp_path / "autolabel/masks/train").iterdir())) == 7
    assert not (tmp_path / "autolabel/data.yaml").exists()
    (first, *_) = trainer.predict(module, data)  # an ordinary prediction again
    assert set(first) == {"id", "labels"}


def test_windows_and_copies_of_the_prediction_hold_for_labels(
    write_dataset, photos: Path, tmp_path: Path
) -> None:
    """A network that sees every pixel alone is the same in windows, also above `stream_above`."""
    root = write_dataset({"train": 1, "val": 1})
    autolabel(root, photos, tmp_path / "whole", "--autolabel.keep=null")
    options = ["--inference.window=16", "--inference.flip=true", "--inference.stream_above=100"]
    autolabel(root, photos, tmp_path / "windows", "--autolabel.keep=null", *options)
    for number in range(5):
        found = [mask(tmp_path / name, "train", f"new_{number}") for name in ("whole", "windows")]
        assert (found[0] == found[1]).mean() > 0.999  # equal but for rounding
        assert found[0].max() < 3


def test_log_odds_are_exact_where_the_probability_rounds_to_one() -> None:
    logits = torch.tensor([30.0, 2.0, 1.0]).view(1, 3, 1, 1)
    by_hand = 30 - math.log(math.exp(2) + math.exp(1))
    assert softmax_log_odds(logits).item() == pytest.approx(by_hand, abs=1e-5)
    assert softmax_log_odds(logits.bfloat16()).dtype == torch.float32


def test_the_next_command_keeps_network_and_method_and_takes_the_new_data() -> None:
    pairs = [["-c", "configs/data/voc.yaml"], ["--data.root", "/x"], ["--data=Mine"]]
    pairs += [["--model.lr", "0.1"], ["--autolabel.keep=1"], ["--ckpt_path", "best"]]
    pairs += [["--config=mine.yaml"], ["--inference.flip", "true"]]
    assert student_words(pairs, "new/data.yaml") == [
        "-c", "configs/data/voc.yaml", "--config=mine.yaml", "-c", "new/data.yaml",
        "--model.lr", "0.1",
    ]  # fmt: skip


def test_the_piece_resets_what_divided_the_images(write_dataset, photos, tmp_path) -> None:
    root = write_dataset({"train": 4, "val": 1})
    options = ["--data.unlabeled_batch_size=2", f"--data.splits_dir={tmp_path}/splits"]
    autolabel(root, photos, tmp_path / "new", "--data.labeled=2", *options)
    piece = yaml.safe_load((tmp_path / "new/data.yaml").read_text())
    arguments = piece["data"]["init_args"]
    assert (arguments["labeled"], arguments["unlabeled_batch_size"]) == (None, 0)
    assert arguments["class_names"] == ["class_0", "class_1", "class_2"]
    assert re.search(r"/new$", arguments["root"])
