"""The pieces of whole runs: what they hold, and that each one starts."""

from __future__ import annotations

import contextlib
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import commands
from official_layouts import WRITERS
from places import ROOT

import cli
from lightning_seg import networks
from lightning_seg.callbacks import ComplementarySampling

PAPERS = ROOT / "configs/papers"
CHANGES = {"semi_adv_text", "semi_adv_full"}  # pieces that change another piece

# Numbers of the papers and of the authors' code, typed in by hand; the comment says where a number
# comes from. All other numbers of a recipe are reconstructed, and marked so in the recipe.
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}
POLY = {"model.lr_scheduler.power": 0.9}
LOSS_MAX_POOLING = {
    "model.network": "DeepLabV2 resnet101.tv_in1k",
    "data.sampling": "classes",
    "model.p": 1.7,  # paper, illustration of the weights
    "model.ratio": 0.3,  # mpl.pytorch, ratio of its example
    "model.network.rates": [6, 12, 18, 24],  # DeepLab v2, ASPP-L
    "data.scale": [0.5, 1.5],  # DeepLab v2
    "model.optimizer": {**SGD, "lr": 0.0025},  # DeepLab v2: 2.5e-4, times 10 in the head
    "model.backbone_lr_factor": 0.1,
    "model.head_bias_lr_factor": 2.0,  # DeepLab v2: times 20 for biases of the head
    **POLY,
}
PROBABILITY_GRADIENT = {
    "model.network": "DeepLabV3 resnet50.tv_in1k",  # paper, abstract
    "model.kernel_size": 3,  # authors' code, CPGLoss.py, default
    "model.void": "reference",  # authors' code, void is an all-zero vector
    "model.false_edges": 0.0,  # not the paper's
    "model.optimizer": SGD,  # MMSegmentation, schedule_40k and schedule_80k
    **POLY,
}
STRUCTURE_MATCHING = {
    "model.lambda_adv": 0.012,  # authors' script, adv_lambda 12e-3
    "model.lambda_rec": 1.0,  # authors' script, rec_lambda
    "model.margin": 0.8,  # authors' code, hinge
    "model.decay_all": False,  # authors' code, decay of kernels only
    "data.batch_size": 8,  # authors' script
    "model.optimizer.momentum": 0.9,
    "model.optimizer.weight_decay": 0.0005,
    "model.opponent_optimizer.momentum": 0.9,
    "model.opponent_optimizer.weight_decay": 0.0005,
    "model.opponent_lr_scheduler.power": 0.9,
    **POLY,
}
SEMI_SUPERVISION = {
    "model.network": "DeepLabV2 resnet101.tv_in1k",
    "model.network.rates": [6, 12, 18, 24],  # authors' code
    "model.lambda_adv": 0.01,  # authors' README, command
    "model.lambda_semi": 0.1,  # authors' README, command
    "model.lambda_semi_adv": 0.001,  # authors' code
    "model.t_semi": 0.2,  # authors' README, command
    "model.semi_start": 5000,  # authors' code
    "model.semi_start_adv": 0,  # authors' code
    "model.optimizer": {**SGD, "lr": 0.0025},  # authors' code: 2.5e-4, times 10 in the head
    "model.backbone_lr_factor": 0.1,
    "model.opponent_optimizer": {"lr": 0.0001, "betas": [0.9, 0.99]},  # authors' code
    "model.opponent_lr_scheduler.power": 0.9,
    **POLY,
}
PATCHES = {  # authors' code, prototxt of VGG-16 and the patch layer
    "model.encoder.name": "vgg16_bn.tv_in1k",
    "model.margin": 2.1,
    "model.sampler": "graph",
    "model.flatten": "map",
    "model.input_mode": "gray",
    "data.batch_size": 16,
    "data.crop_size": 512,
    "data.augmentation": "crop_flip",
    "data.patches.patches_per_image": 9,  # 144 nodes of 16 images
    "data.patches.out_size": 128,
    "data.patches.max_overlap": 0.6,
    "model.optimizer": SGD,
    "model.lr_scheduler": {"milestones": [6000], "gamma": 0.1},
    "trainer.max_steps": 8000,
}
FINE_TUNING = {  # authors' code, stage C
    "model.network": "FCN8s vgg16_bn.tv_in1k",
    "model.network.hidden": 4096,  # fc6 and fc7
    "model.input_mode": "gray",
    "model.freeze_batch_norm": "none",
    "data.crop_size": 512,
    "data.augmentation": "crop_flip",
    "data.batch_size": 6,
    "trainer.accumulate_grad_batches": 8,  # 6 images x 4 GPUs x iter_size 2 = 48
    "model.optimizer": SGD,
    "model.lr_scheduler": {"milestones": [24000, 36000, 40000], "gamma": 0.1},
    "trainer.max_steps": 42000,
}
VALUES: dict[str, dict[str, Any]] = {
    "lmp_voc": {
        **LOSS_MAX_POOLING,
        "data": "VOCDataModule",
        "data.crop_size": 321,  # DeepLab v2
        "data.batch_size": 10,  # DeepLab v2: 5 x iter_size 2
        "trainer.max_steps": 20000,  # DeepLab v2
    },
    "lmp_cityscapes": {**LOSS_MAX_POOLING, "data": "CityscapesDataModule"},
    "cpg_cityscapes": {
        **PROBABILITY_GRADIENT,
        "data": "CityscapesDataModule",
        "data.crop_size": [512, 1024],  # MMSegmentation, 4xb2-40k_cityscapes-512x1024
        "data.batch_size": 8,
        "trainer.max_steps": 40000,
    },
    "cpg_ade20k": {
        **PROBABILITY_GRADIENT,
        "data": "ADE20KDataModule",
        "data.crop_size": 512,  # MMSegmentation, 4xb4-80k_ade20k-512x512
        "data.batch_size": 16,
        "trainer.max_steps": 80000,
    },
    "cpg_coco_stuff": {
        **PROBABILITY_GRADIENT,
        "data": "COCOStuffDataModule",
        "data.num_ids": 171,
        "data.crop_size": 512,  # MMSegmentation, 4xb4-80k_coco-stuff164k-512x512
        "data.batch_size": 16,
        "trainer.max_steps": 80000,
    },
    "asml_weizmann_horse": {
        **STRUCTURE_MATCHING,
        "data": "WeizmannHorseDataModule",
        "model.network": "UNet resnet50.tv_in1k",
        "model.optimizer.lr": 0.01,  # authors' script
        "model.opponent_optimizer.lr": 0.01,  # authors' script, that of S times 1.0
    },
    "asml_voc": {
        **STRUCTURE_MATCHING,
        "data": "VOCDataModule",
        "model.network": "PSPNet resnet101.tv_in1k",
        "data.crop_size": 336,  # authors' code, default
        "data.scale": [0.5, 2.0],  # authors' code, option
    },
    "mix_match_proxy": {  # Larsson's code, ColorizeHypercolumn
        "data": "UnlabeledDataModule",
        "model.encoder.name": "vgg16_bn.tv_in1k",
        "model.target": {"bins": 32, "hue_weight": 5.0},
        "model.locations": 256,
        "model.border": 32,
        "model.width": 1024,
        "model.dropout": 0.5,
        "model.init_std": 0.0001,
        "model.lambda_head": 0.000001,
    },
    "mix_match_voc": {
        **PATCHES,
        "data": "VOCDataModule",
        "data.train": "trainaug",  # authors' lists, 10,582 images
        "data.patches.patch_size": [64, 256],
        "data.patches.background_index": 0,
        "data.patches.background_share": 0.1,
    },
    "mix_match_cityscapes": {
        **PATCHES,
        "data": "CityscapesDataModule",
        "data.patches.patch_size": [128, 128],
        "data.patches.background_index": None,
    },
    "finetune_voc": {**FINE_TUNING, "data": "VOCDataModule", "data.train": "trainaug"},
    "finetune_cityscapes": {**FINE_TUNING, "data": "CityscapesDataModule"},
    "semi_adv_voc": {
        **SEMI_SUPERVISION,
        "data": "VOCDataModule",
        "data.train": "trainaug",  # authors' list, 10,582 images
        "data.labeled": "1/8",
        "data.crop_size": 321,  # authors' code
        "data.augmentation": "crop",  # authors' command: neither scales nor mirroring
        "data.batch_size": 10,
        "data.unlabeled_batch_size": 10,
        "data.labeled_real_batch_size": 10,
        "model.reference_padding": True,  # authors' code
        "trainer.max_steps": 20000,  # authors' code
    },
    "semi_adv_cityscapes": {
        **SEMI_SUPERVISION,
        "data": "CityscapesDataModule",
        "data.labeled": "1/8",
    },
    "semi_adv_camvid": {
        "data": "CamVidDataModule",
        "data.labeled": "1/8",
        "model.network": "LRASPP tf_efficientnet_lite0",
        "model.lambda_adv": 0.01,
        "model.lambda_semi": 0.1,
        "model.lambda_semi_adv": 0.001,
        "model.t_semi": 0.2,
    },
}


def words_of(*pieces: str) -> list[str]:
    """The words that name pieces, those of the papers by their name alone."""
    places = [piece if "/" in piece else f"papers/{piece}" for piece in pieces]
    return [word for place in places for word in ("-c", f"{ROOT}/configs/{place}.yaml")]


def merged(capsys: pytest.CaptureFixture[str], *pieces: str) -> dict[str, Any]:
    """The configuration of `fit` with these pieces."""
    with contextlib.suppress(SystemExit):
        cli.main(["fit", *words_of(*pieces), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def found(config: dict[str, Any], key: str, like: object) -> Any:
    """The value of an option in the form of another: a class as its name and its encoder's."""
    value: Any = config
    for part in key.split("."):
        value = value.get("init_args", value)[part]
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    if isinstance(like, dict):
        return {name: value["init_args"][name] for name in like}
    names = [value["class_path"].rpartition(".")[2], value["init_args"].get("encoder")]
    return " ".join(filter(None, names))


@pytest.mark.parametrize("run", VALUES)
def test_a_run_holds_the_values_of_its_paper(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = merged(capsys, run)
    assert {key: found(config, key, value) for key, value in VALUES[run].items()} == VALUES[run]


def test_every_piece_is_checked_and_says_what_is_reconstructed() -> None:
    pieces = {path.stem: path.read_text() for path in PAPERS.glob("*.yaml")}
    assert VALUES.keys() | CHANGES == pieces.keys()
    for name, text in pieces.items():
        assert len(text.splitlines()[0]) <= 80, name
        assert "reconstructed" in text.lower() or name in CHANGES, name


def test_every_piece_stands_in_a_command_of_the_methods_pages() -> None:
    pages = (ROOT / "docs/methods").glob("*.md")
    words = {word for page in pages for line in commands(page.read_text()) for word in line}
    used = {Path(word).stem for word in words if word.startswith("configs/papers/")}
    assert used == VALUES.keys() | CHANGES


def test_a_network_piece_after_another_piece_takes_no_argument_of_its_network() -> None:
    """So that a recipe with another network of its paper is not a mixture of both.

    A piece therefore names every argument of its class that some piece names.
    """
    named = {path.stem: network_of(path) for path in (ROOT / "configs").glob("[mnp]*/*.yaml")}
    given = {name for network in named.values() for name in network.get("init_args", {})}
    given -= {"weights"}  # semi_adv_camvid's, which another encoder refuses
    shared = {"encoder", "output_stride", "uniform_dilation"}
    assert given > shared
    for piece in (ROOT / "configs/network").glob("*.yaml"):
        name = named[piece.stem]["class_path"].rpartition(".")[2]
        takes = shared | set(inspect.signature(getattr(networks, name)).parameters)
        assert named[piece.stem]["init_args"].keys() >= given & takes, piece


def network_of(piece: Path) -> dict[str, Any]:
    options = (yaml.safe_load(piece.read_text()).get("model") or {}).get("init_args", {})
    return options.get("network", {})


@pytest.mark.parametrize("run", ["semi_adv_voc", "semi_adv_cityscapes"])
def test_the_text_of_the_semi_supervised_paper_is_a_piece(run, capsys) -> None:
    """D on labelled images only, and no term of unlabelled images for 5,000 iterations."""
    code = merged(capsys, run)
    text = merged(capsys, run, "semi_adv_text")
    before, after = code["model"]["init_args"], text["model"]["init_args"]
    assert {name: value for name, value in after.items() if before[name] != value} == {
        "train_discriminator_on_unlabeled": False,
        "semi_start_adv": 5000,
    }
    assert before["train_discriminator_on_unlabeled"] is True
    assert (before["semi_start"], after["semi_start"]) == (5000, 5000)
    assert before["semi_start_adv"] == 0
    assert code["data"] == text["data"]
    assert code["trainer"] == text["trainer"]


@pytest.mark.parametrize("run", ["semi_adv_voc", "semi_adv_cityscapes"])
def test_the_rows_of_all_labels_differ_by_the_unlabelled_images(run, capsys) -> None:
    part, full = merged(capsys, run), merged(capsys, run, "semi_adv_full")
    for kind, changed in {
        "model": {"lambda_semi": 0.0, "lambda_semi_adv": 0.0},
        "data": {"labeled": None, "unlabeled_batch_size": 0},
        "trainer": {},
    }.items():
        before, after = (each[kind].get("init_args", each[kind]) for each in (part, full))
        assert {name: value for name, value in after.items() if before[name] != value} == changed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small dataset of every kind in its official layout."""
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in WRITERS}
    for kind, root in roots.items():
        WRITERS[kind](root)
    return roots


RESNET = ["--model.network.encoder=resnet18"]
DEEPLAB = ["--model.network.encoder=test_resnet", "--model.network.uniform_dilation=false"]
VGG = ["--model.network.encoder=vgg11_bn", "--model.network.hidden=16"]
ENCODER = ["--model.encoder.name=vgg11_bn"]
MIXED = [*ENCODER, "--data.patches.out_size=32"]
SMALL = {
    "lmp_voc": RESNET,
    "lmp_cityscapes": DEEPLAB,
    "cpg_cityscapes": RESNET,
    "cpg_cityscapes network/lraspp": ["--model.network.encoder=mobilenetv3_small_050"],
    "cpg_ade20k": RESNET,
    "cpg_ade20k network/hrnet_ocr": ["--model.network.encoder=hrnet_w18_small"],
    "cpg_coco_stuff": RESNET,
    "asml_weizmann_horse": RESNET,
    "asml_weizmann_horse network/fcn": RESNET,
    "asml_voc": RESNET,
    "asml_voc network/unet": RESNET,
    "asml_voc network/deeplab_v2": DEEPLAB,
    "mix_match_proxy": [*ENCODER, "--model.width=16"],
    "mix_match_voc": MIXED,
    "mix_match_cityscapes": MIXED,
    "finetune_voc": VGG,
    "finetune_cityscapes": VGG,
    "semi_adv_voc": DEEPLAB,
    "semi_adv_voc semi_adv_text": [*DEEPLAB, "--model.semi_start_adv=1"],
    "semi_adv_voc semi_adv_full": DEEPLAB,
    "semi_adv_cityscapes": [*DEEPLAB, "--data.labeled=1/2"],
    "semi_adv_camvid": [],
}
"""Pieces of a row, and the flags that make its network small."""
QUICK = [
    "--data.crop_size=64",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--data.iterations_per_epoch=2",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
]


def test_every_recipe_starts_in_the_test_below() -> None:
    assert {name for row in SMALL for name in row.split() if "/" not in name} == (
        VALUES.keys() | CHANGES
    )


@pytest.mark.parametrize("row", SMALL)
def test_every_run_of_a_paper_starts_on_its_dataset(
    row: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates and a validation on a small dataset in the official layout."""
    piece, *_ = row.split()
    (kind,) = (kind for kind in WRITERS if kind in piece)
    monkeypatch.chdir(tmp_path)  # where splits are written
    root = f"--data.{'images' if kind == 'proxy' else 'root'}={data[kind]}"
    words = [*words_of(*row.split()), root, *SMALL[row], *QUICK]
    if piece.startswith("semi_adv"):
        words += ["--data.labeled_real_batch_size=2", "--model.semi_start=1"]
        words += [] if "full" in row else ["--data.unlabeled_batch_size=2"]
    run = cli.main(["fit", *words, "--trainer.enable_checkpointing=false"])
    assert run.trainer.global_step == 2
    scores = run.trainer.callback_metrics
    assert scores["val/loss"].isfinite()
    if piece.startswith("lmp"):  # the classes are drawn, and weighed by the validation
        assert run.datamodule.sampling == "classes"
        assert any(isinstance(each, ComplementarySampling) for each in run.trainer.callbacks)


def test_the_recipes_of_mix_and_match_are_the_stages_of_a_pipeline(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage starts from the encoder of the stage before, and stays with grey images."""
    names = ["mix_match_proxy", "mix_match_voc", "finetune_voc"]
    monkeypatch.chdir(tmp_path)
    voc = f"--data.root={data['voc']}"
    words = ["--stages", *(str(PAPERS / f"{name}.yaml") for name in names), "--out", "runs"]
    words += [*QUICK, "--encoder=vgg11_bn", "--trainer.max_steps=1"]
    words += ["--stage", "1", f"--data.images={data['proxy']}", "--model.width=16"]
    words += ["--stage", "2", voc, "--data.patches.out_size=32"]
    words += ["--stage", "3", voc, "--model.network.hidden=16"]
    assert cli.main(["pipeline", *words]) == 0
    for before, name in pairwise(names):
        (config,) = (tmp_path / "runs" / name).rglob("config.yaml")
        assert f"runs/{before}/encoder.pt" in config.read_text()
