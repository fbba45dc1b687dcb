"""README and pages: commands parse, examples run, links lead somewhere."""

from __future__ import annotations

import contextlib
import csv
import re
import sys
from pathlib import Path

import pytest
import yaml
from documents import README, blocks, commands, own_images
from lightning.pytorch.cli import LightningCLI
from places import ROOT
from small_runs import fit
from tiny import TinyNet

import cli
from datamodules import ImageDataModule, SyntheticScenesDataModule, UnlabeledShards
from datamodules.augmenting.steps import PRESETS
from lightning_seg import SegmentationModule
from lightning_seg.commands.verb_options import PARSERS, app_parser

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = sorted((ROOT / "docs/methods").glob("*.md"))
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--data.num_workers=0",
    "--data.batch_size=2",
    "--data.crop_size=64",
]
SCENES = ["--data.train_size=4", "--data.val_size=2", "--data.image_size=[64,96]"]


def name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "extending"], ids=name)
def test_the_commands_of_a_page_parse(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # where no configs are: those of the package are found
    for verb, *words in commands(page.read_text()):
        if verb in ("check", "configs"):
            continue
        if verb in ("app", "compare", "report"):
            parser = app_parser if verb == "app" else PARSERS[verb][0]
            parser().parse_args(words)
            continue
        with contextlib.suppress(SystemExit):  # with an error nothing is printed
            cli.main([verb, *words, "--print_config"])
        assert "class_path: lightning_seg." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("page", METHODS, ids=name)
def test_a_methods_page_has_a_command_and_a_python_example(page: Path) -> None:
    assert commands(page.read_text())
    assert blocks("python", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 200


def test_every_piece_stands_in_the_readme() -> None:
    pieces = [path.stem for path in (ROOT / "configs").glob("*/*.yaml")]
    assert [piece for piece in pieces if f"`{piece}`" not in README] == []


def test_the_block_on_own_images_is_five_lines() -> None:
    (script,) = (each for each in blocks("sh") if "seg()" in each)
    assert len(script.strip().splitlines()) == 5  # tests/test_packaging.py runs it
    assert own_images(Path("a"), Path("b")) != script


def test_the_check_of_ones_own_images(
    write_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset({"train": 4, "val": 2}, values=(0, 1, 2, 3, 4))
    (words,) = (words for words in commands(README) if words[0] == "check")
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(root) if word == "/where/it/is" else word for word in words]) == 0
    assert {path.name for path in (tmp_path / "runs/check").iterdir()} == {
        "report.json",
        "class_shares.png",
        "contact_sheet.jpg",
    }


def test_the_yaml_examples_on_data_are_what_they_say(tmp_path: Path) -> None:
    page = (ROOT / "docs/data.md").read_text()
    shards, deeplab = (yaml.safe_load(each)["data"]["init_args"] for each in blocks("yaml", page))
    assert deeplab["augmentation"] == PRESETS["deeplab"]
    for number in ("0000", "0999"):
        (tmp_path / f"{number}.tar").touch()
    urls = shards["unlabeled_shards"]["init_args"]["urls"]
    assert urls.endswith("{0000..0999}.tar")
    shards["unlabeled_shards"]["init_args"]["urls"] = str(tmp_path / "{0000,0999}.tar")
    (tmp_path / "piece.yaml").write_text(yaml.safe_dump({"data": {"init_args": shards}}))
    run = LightningCLI(
        SegmentationModule,
        ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        args=[
            "--model=CrossEntropyModule",
            "--model.num_classes=8",
            "--data=SyntheticScenesDataModule",
            f"--config={tmp_path / 'piece.yaml'}",
        ],
    )
    assert isinstance(run.datamodule.shards, UnlabeledShards)
    assert len(run.datamodule.shards.urls) == 2


def test_the_yaml_of_the_page_on_losses_trains_and_logs_its_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks("yaml", (ROOT / "docs/losses.md").read_text())
    (tmp_path / "sum.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, *SCENES, "--model.network=tiny.TinyNet", "--model=CrossEntropyModule"]
    run = cli.main(["fit", *words, "-c", "sum.yaml", "--trainer.log_every_n_steps=1"])
    logged = run.trainer.callback_metrics
    by_hand = logged["train/loss_cross_entropy"] + 0.5 * logged["train/loss_dice"]
    assert logged["train/loss"].item() == pytest.approx(by_hand.item())


def test_the_python_of_the_readme_trains_and_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, _ = blocks("python")
    assert len(script.strip().splitlines()) <= 10
    limits = "limit_train_batches=1, limit_val_batches=1, limit_test_batches=1"
    short = script.replace("max_epochs=1", f"max_epochs=1, {limits}")
    assert short != script
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(short, "README.md", "exec"), names)
    assert 0 <= names["trainer"].callback_metrics["test/miou"] <= 1


@pytest.mark.parametrize("page", METHODS, ids=name)
def test_the_python_of_a_methods_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for script in blocks("python", page.read_text()):
        names: dict = {}
        exec(compile(script, str(page), "exec"), names)
        if "FoolingModule" in names:
            data = SyntheticScenesDataModule(train_size=4, crop_size=64, batch_size=2)
            module = names["FoolingModule"](TinyNet(8), num_classes=8, lr=0.01)
            fit(module, tmp_path, data, max_steps=2)
            assert module.trainer.global_step == 2
        if "match" in names:
            assert 0 <= names["match"] <= 8


def test_every_recipe_of_the_page_on_extending_works(
    write_dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The files are written as the page shows them, and its commands train two steps."""
    text = (ROOT / "docs/extending.md").read_text()
    files = [
        (re.match(r"# (\S+)\n", block)[1], block)
        for language in ("python", "yaml")
        for block in blocks(language, text)
    ]
    assert len(files) == 6
    for file, content in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    leaves = write_dataset({"train": 4, "val": 2}, (0, 128, 255), (64, 80), "{split}/{kind}")
    for split in ("train", "val"):
        (leaves / split / "images").rename(leaves / split / "photo")
        (leaves / split / "masks").rename(leaves / split / "label")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    runs = []
    for number, words in enumerate(commands(text)):
        own = [str(leaves) if word == "/where/leaves/are" else word for word in words]
        tiny = [] if any("network" in word for word in words) else ["--model.network=tiny.TinyNet"]
        if any("lraspp" in word for word in words):
            tiny = ["--model.network.encoder=mobilenetv3_small_050"]
        scenes = SCENES if "--data" not in words else []
        folder = f"--trainer.default_root_dir=runs/{number}"
        runs.append(cli.main([*own, *tiny, *SMALL, *scenes, folder]))
        assert runs[-1].trainer.global_step == 2
    assert [type(run.model).__name__ for run in runs][:3] == [
        "FocalModule",
        "FocalModule",
        "CPGModule",
    ]
    assert runs[0].model.gamma == 1.5
    assert type(runs[2].model.loss).__name__ == "FocalLoss"
    assert runs[3].model.network.layers[0].out_channels == 8
    assert type(runs[4].model.network).__name__ == "LinearNet"
    assert runs[5].datamodule.class_names == ["background", "leaf", "spot"]
    (optimizer,) = runs[6].trainer.optimizers
    assert type(optimizer).__name__ == "NesterovSGD"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * 3 / 5)
    import doctest

    assert doctest.testmod(sys.modules["my_package.losses"]).failed == 0
    for module in [each for each in sys.modules if each.startswith("my_package")]:
        monkeypatch.delitem(sys.modules, module)


def test_the_wrapper_and_the_yaml_of_the_page_on_networks_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/networks.md").read_text()
    (wrapper,), (network,) = blocks("python", text), blocks("yaml", text)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/wrapped.py").write_text(wrapper)
    (tmp_path / "unet.yaml").write_text(network)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["--model.network=my_package.wrapped.Mine", "--model.network.width=8"]
    for number, words in enumerate((own, ["-c", "unet.yaml"])):
        folder = f"--trainer.default_root_dir=runs/{number}"
        run = cli.main(["fit", *words, *SMALL, *SCENES, folder])
        assert run.trainer.global_step == 2
    for module in [each for each in sys.modules if each.startswith("my_package")]:
        monkeypatch.delitem(sys.modules, module)


def test_the_predictor_of_the_page_on_prediction_runs() -> None:
    (code,) = blocks("python", (ROOT / "docs/inference.md").read_text())
    names: dict[str, object] = {}
    exec(compile(code, "inference.md", "exec"), names)
    assert names["labels"].shape == (1, 300, 400)


def test_the_table_of_smaller_logits_is_that_of_the_measurement() -> None:
    with (ROOT / "benchmarks/results/smaller_logits.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs/losses.md").read_text()
    for cells in (rows[0].keys(), *(row.values() for row in rows)):
        assert f"| {' | '.join(cells)} |" in page


def test_the_table_of_self_training_is_that_of_the_measurement() -> None:
    with (ROOT / "benchmarks/results/self_training.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs/autolabel.md").read_text()
    names = list(dict.fromkeys((row["row"], row["steps"]) for row in rows))
    shown = [line for line in page.splitlines() if re.match(r"\| [\w .]+ \| (150|300) \|", line)]
    assert len(shown) == len(names)
    for name, steps in names:
        seeds = [row for row in rows if (row["row"], row["steps"]) == (name, steps)]
        assert len(seeds) == 3
        (line,) = (each for each in shown if each.startswith(f"| {name} | {steps} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
        columns = ("coverage", "true_coverage", "precision", "true_precision", "accuracy")
        for cell, column in zip(cells, columns, strict=False):
            values = [float(row[column]) for row in seeds if row[column]]
            assert cell == (f"{100 * sum(values) / 3:.1f}" if values else "")
        assert cells[5] == ", ".join(f"{100 * float(row['miou']):.1f}" for row in seeds)
        assert cells[6] == f"{100 * sum(float(row['miou']) for row in seeds) / 3:.1f}"
        assert cells[7] == f"{100 * sum(float(row['horse']) for row in seeds) / 3:.1f}"
