"""The command as a user types it."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from methods import FOR_ENCODERS, FOR_SEGMENTATION
from PIL import Image
from places import ROOT

import cli
from datamodules import DataError
from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.commands.verb_options import PARSERS
from lightning_seg.networks import LRASPP, TimmEncoder
from lightning_seg.networks.encoder_weights import WeightFile, save_encoder

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
NETWORKS = sorted(path.stem for path in (ROOT / "configs/network").glob("*.yaml"))
SMALL = [
    "--data.image_size=[64,96]",
    "--data.crop_size=64",
    "--data.train_size=4",
    "--data.val_size=3",
    "--data.test_size=3",
    "--data.batch_size=2",
    "--data.val_batch_size=2",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
LRASPP_NAMED = "--model.network=lightning_seg.networks.LRASPP"
TINY = ["--model.network=tiny.TinyNet", "--model.lr=0.01"]
SMALL_ENCODER = {
    "deeplab_v2": "resnet18",
    "deeplab_v3": "resnet18",
    "dinov2": "vit_tiny_patch16_224",
    "dinov3": "vit_tiny_patch16_224",
    "dpt": "vit_tiny_patch16_224",
    "fcn": "resnet18",
    "fcn8s": "vgg11",
    "hrnet_ocr": "hrnet_w18_small",
    "lraspp": "mobilenetv3_small_050",
    "pspnet": "resnet18",
    "unet": "mobilenetv3_small_050",
    "unet_small": "test_efficientnet",
}
NARROW_DPT = ["--model.network.fusion=16", "--model.network.widths=[8,8,8,8]"]
NARROW = {
    "fcn8s": ["--model.network.hidden=16"],
    **dict.fromkeys(["dpt", "dinov2", "dinov3"], NARROW_DPT),
}


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    return [*SMALL, f"--trainer.default_root_dir={tmp_path}"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_piece_prints_a_configuration_that_reads_back(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", str(config), "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    content = yaml.safe_load(printed)
    assert content["model"]["class_path"].startswith("lightning_seg.")
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", str(again), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == content


def test_pieces_compose_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = ["data/camvid", "network/lraspp", "method/cross_entropy"]
    printed = set()
    for order in ((0, 1, 2), (1, 2, 0), (2, 1, 0), (1, 0, 2)):
        words = [word for at in order for word in ("-c", f"{ROOT}/configs/{pieces[at]}.yaml")]
        with pytest.raises(SystemExit):
            cli.main(["fit", *words, "--data.root=/x", "--model.lr=0.5", "--print_config"])
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1
    content = yaml.safe_load(printed.pop())
    assert content["data"]["init_args"]["root"] == "/x"
    assert content["model"]["init_args"]["lr"] == 0.5
    assert content["model"]["init_args"]["lr_scheduler"]["class_path"].endswith("PolyLR")


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_runs_every_verb(network: str, small: list[str], tmp_path: Path) -> None:
    words = [
        "-c",
        f"{ROOT}/configs/network/{network}.yaml",
        f"--model.network.encoder={SMALL_ENCODER[network]}",
        *NARROW.get(network, []),
        *small,
    ]
    cli.main(["fit", *words])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    for verb in ("validate", "test", "predict"):
        cli.main([verb, *words, f"--ckpt_path={checkpoint}"])
    masks = sorted((tmp_path / "predictions/masks").glob("*.png"))
    assert [mask.stem for mask in masks] == [f"test_{index:05d}" for index in range(3)]
    assert {Image.open(mask).size for mask in masks} == {(96, 64)}


@pytest.mark.parametrize("method", FOR_SEGMENTATION)
def test_every_method_runs_every_verb(
    method: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where splits are written
    piece, labels = f"{ROOT}/configs/method/{method}.yaml", ["--data.labeled=1/2"]
    words = ["-c", piece, *TINY, *small, "--trainer.max_epochs=2"]
    run = cli.main(["fit", *words, *labels])
    assert run.trainer.global_step == 2
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    loaded = type(run.model).load_from_checkpoint(
        checkpoint, network=run.model.network, weights_only=True
    )
    for name, value in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    for verb in ("validate", "test", "predict"):
        cli.main([verb, *words, f"--ckpt_path={checkpoint}"])
    assert len(list((tmp_path / "predictions/masks").glob("*.png"))) == 3


@pytest.mark.parametrize("method", FOR_ENCODERS)
def test_what_trains_an_encoder_hands_it_over(
    method: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = ["--model.encoder.name=test_resnet", "--model.lr=0.01"]
    words = ["-c", f"{ROOT}/configs/method/{method}.yaml", *small, *encoder]
    if method == "jigsaw":
        words.append("--model.permutations=10")
    run = cli.main(["fit", *words, "-c", f"{ROOT}/configs/trainer/cpu.yaml", *small])
    assert run.trainer.global_step == 2
    assert run.trainer.checkpoint_callback.monitor == "val/loss"  # the piece's is val/miou
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    assert (tmp_path / "pictures" / "examples_0000002.png").is_file()
    loaded = type(run.model).load_from_checkpoint(
        checkpoint, encoder=TimmEncoder("test_resnet"), weights_only=True
    )
    for name, value in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for verb in ("validate", "test"):
        scores = cli.main([verb, *words, f"--ckpt_path={checkpoint}"]).trainer.callback_metrics
        assert scores[f"{verb[:3].replace('tes', 'test')}/loss"] > 0
    wrong = DataError if method == "mix_match" else SetupError
    with pytest.raises(wrong, match="predict"):
        cli.main(["predict", *words, f"--ckpt_path={checkpoint}"])
    file = tmp_path / "encoder.pt"
    network = [LRASPP_NAMED, "--model.network.encoder=test_resnet"]
    network += [f"--model.network.weights={file}", f"--trainer.default_root_dir={tmp_path}/tuned"]
    tuned = cli.main(["fit", *small, *network, "--model.lr=0"])
    assert tuned.model.input_mode == ("gray" if method == "colorization" else "rgb")
    ours, theirs = run.model.encoder.state_dict(), tuned.model.network.encoder.state_dict()
    for name, value in ours.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(theirs[name], value), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.patches=PatchMixer", "--model.network=tiny.TinyNet"], "learns from `mask`"),
        (
            [
                "--model=MixMatchModule",
                "--model.encoder=TimmEncoder",
                "--model.encoder.name=resnet18",
            ],
            "learns from `label`, and batches hold image, id, mask",
        ),
    ],
)
def test_data_of_the_wrong_kind_are_told(words: list[str], message: str, small: list[str]) -> None:
    with pytest.raises(SetupError, match=message):
        cli.main(["fit", *words, *small])


def test_an_encoders_file_is_no_checkpoint(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "encoder.pt"
    save_encoder(file, WeightFile({"a": torch.zeros(2)}))
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *small, *TINY, f"--ckpt_path={file}"])
    with pytest.raises(
        SystemExit, match=r"is no checkpoint of a training.*--model\.network\.weights"
    ):
        cli.run()


def test_no_setting_of_the_defaults_follows_to_other_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """jsonargparse keeps what the new class accepts, as if it had been asked for."""
    words = ["--data=CamVidDataModule", "--data.root=x", "--model.network=lightning_seg.networks."]
    contents = []
    for network in ("DeepLabV3", "HRNetOCR"):
        with pytest.raises(SystemExit):
            cli.main(["fit", *words[:2], words[2] + network, "--print_config"])
        contents.append(yaml.safe_load(capsys.readouterr().out))
    strides = [each["model"]["init_args"]["network"]["init_args"] for each in contents]
    assert [each["output_stride"] for each in strides] == [8, 32]
    assert contents[0]["data"]["init_args"]["crop_size"] is None


def test_the_command_alone_trains_on_the_embedded_data(small: list[str]) -> None:
    run = cli.main(["fit", *small])
    assert type(run.datamodule).__name__ == "SyntheticScenesDataModule"
    assert isinstance(run.model.network, LRASPP)


def test_the_data_names_the_models_classes(small: list[str]) -> None:
    run = cli.main(["fit", *TINY, *small])
    assert run.model.num_classes == 8
    assert run.model.class_names[5] == "pole"
    assert run.model.palette == run.datamodule.palette
    assert {"val/miou", "val/iou/pole"} <= run.trainer.callback_metrics.keys()


def test_a_command_made_checkpoint_loads_in_python(small: list[str], tmp_path: Path) -> None:
    encoder = "--model.network.encoder=mobilenetv3_small_050"
    words = [LRASPP_NAMED, encoder, "--model.lr=0.25"]
    run = cli.main(["fit", *words, *small])
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = CrossEntropyModule.load_from_checkpoint(path, weights_only=True)
    assert isinstance(loaded.network, LRASPP)
    assert loaded.lr == 0.25
    assert loaded.class_names == run.model.class_names
    for name, value in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_settings_come_from_the_command_not_the_checkpoint(
    small: list[str], tmp_path: Path
) -> None:
    cli.main(["fit", *TINY, *small])
    (path,) = tmp_path.rglob("*.ckpt")
    again = [*TINY, "--model.lambda_aux=0.125", *small, "--trainer.max_epochs=2"]
    assert cli.main(["fit", *again, f"--ckpt_path={path}"]).model.lambda_aux == 0.125


def test_a_checkpoint_needs_no_weight_file_any_more(small: list[str], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    words = [LRASPP_NAMED, "--model.network.encoder=mobilenetv3_small_050", *small]
    torch.save(LRASPP(8, "mobilenetv3_small_050").encoder.state_dict(), weights)
    words.append(f"--model.network.weights={weights}")
    cli.main(["fit", *words])
    weights.unlink()
    (path,) = tmp_path.rglob("*.ckpt")
    CrossEntropyModule.load_from_checkpoint(path)
    cli.main(["test", *words, f"--ckpt_path={path}"])


def test_the_table_is_printed_and_the_checkpoint_named(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog
) -> None:
    cli.main(["fit", *TINY, *small])
    printed = capsys.readouterr()
    for part in ("validation after 2 steps", "pole", "miou"):
        assert part in printed.out
    (path,) = tmp_path.rglob("*.ckpt")
    assert f"written: {path}" in printed.err + caplog.text


def test_checkpoints_that_cannot_be_written_end_a_run_before_its_first_step(
    small: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    saver = ["--trainer.callbacks=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}/file"]
    stepped = ["--trainer.callbacks+=tiny.RecordBatches", f"--trainer.callbacks.folder={tmp_path}"]
    words = ["--model.network=tiny.TinyNet", *small, *saver, *stepped]
    with pytest.raises(SetupError, match=r"checkpoints cannot be written .*default_root_dir"):
        cli.main(["fit", *words])
    assert not (tmp_path / "rank0.jsonl").exists()


def test_prediction_of_a_folder_without_masks(small: list[str], tmp_path: Path) -> None:
    cli.main(["fit", *TINY, *small])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    folder = tmp_path / "photos"
    for name, size in (("a.jpg", (33, 50)), ("b/ä.png", (64, 20))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, 50).save(folder / name)
    words = [f"--data.predict={folder}", f"--predictions.output_dir={tmp_path / 'out'}"]
    run = cli.main(
        ["predict", *TINY, *small, "--data.val_batch_size=1", *words, f"--ckpt_path={checkpoint}"]
    )
    assert Image.open(tmp_path / "out/masks/a.png").size == (33, 50)
    assert Image.open(tmp_path / "out/masks/b/ä.png").size == (64, 20)
    assert np.array(Image.open(tmp_path / "out/masks/a.png")).max() < 8
    assert run.trainer.predict_loop.predictions == []


def test_the_configuration_is_saved_beside_the_run(small: list[str], tmp_path: Path) -> None:
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    cli.main(["fit", *TINY, *small, *logger, "--model.lr=0.125"])
    (saved,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lr"] == 0.125
    before = saved.read_text()
    cli.main(["validate", "-c", str(saved), "--ckpt_path=untrained"])
    assert saved.read_text() == before
    assert cli.main(["fit", "-c", str(saved)]).model.lr == 0.125


def test_wandb_offline_gets_metrics_and_the_whole_configuration(
    small: list[str], tmp_path: Path
) -> None:
    import wandb

    piece = ["-c", f"{ROOT}/configs/logger/wandb.yaml", f"--trainer.logger.save_dir={tmp_path}"]
    small = [word for word in small if not word.startswith("--trainer.logger")]
    run = cli.main(["fit", *piece, *TINY, *small])
    try:
        config = run.trainer.logger.experiment.config["config"]
        assert config["model"]["init_args"]["lr"] == 0.01
        assert config["data"]["init_args"]["train_size"] == 4
    finally:
        wandb.finish()
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.lrr=1"], ["CrossEntropyModule", "'lrr' is not accepted", "did you mean lr"]),
        (["--data.crop_sise=1"], ["'crop_sise' is not accepted", "did you mean crop_size"]),
        (
            [LRASPP_NAMED, "--model.network.encodr=x"],
            ["'encodr' is not accepted", "did you mean encoder"],
        ),
        (["--model.network.encoder=resnet18"], ["'encoder' is not accepted", "name a class first"]),
        (["--trainer.max_epochs=abc"], ["trainer.max_epochs", "int", "abc"]),
        (["--model.network=lightning_seg.networks.Nothing"], ["has no attribute 'Nothing'"]),
        (["-c", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--trainer.precison=16"], ["unrecognized", "did you mean precision"]),
        (["--data.batch_size=two"], ["batch_size", "int", "two"]),
        (["--optimizer=SGD"], ["unrecognized arguments: --optimizer=SGD"]),
    ],
)
def test_an_unknown_option_is_one_short_message(
    words: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert len(message) < 700
    for part in told:
        assert part in message


def test_an_unknown_key_is_found_in_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trainer:\n  max_epochs: 1\n  presicion: 32\n")
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", str(path)])
    message = capsys.readouterr().err
    assert f"{path}, line 3" in message
    assert "did you mean precision" in message


def test_a_file_that_is_no_yaml_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: [1,\n")
    with pytest.raises(SystemExit):
        cli.main(["fit", f"--config={path}"])
    assert str(path) in capsys.readouterr().err


def test_an_unknown_encoder_suggests_one(small: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "cli.py", "fit", *small, LRASPP_NAMED, "--model.network.encoder=resnet5O"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "unknown encoder 'resnet5O'; did you mean resnet50" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_bad_mask_in_a_worker_is_one_message(write_dataset, small: list[str]) -> None:
    root = write_dataset({"train": 40, "val": 2})
    (bad,) = (root / "masks/train").glob("train_1.png")  # not among those tried beforehand
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(bad)
    words = [word for word in small if not word.startswith("--data")]
    data = ["--data=FolderDataModule", f"--data.root={root}", "--data.num_classes=3"]
    run = subprocess.run(
        [sys.executable, "cli.py", "fit", *data, "--data.num_workers=1", "--data.crop_size=24",
         LRASPP_NAMED, "--model.network.encoder=mobilenetv3_small_050", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith(f"error: mask {bad} holds 77")


def test_wrong_classes_for_a_checkpoint(small: list[str], tmp_path: Path, write_dataset) -> None:
    cli.main(["fit", *TINY, *small])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    words = [word for word in small if not word.startswith("--data")]
    data = ["--data=FolderDataModule", f"--data.root={write_dataset({'train': 2, 'val': 2})}"]
    with pytest.raises(SetupError, match="trained for 8 classes, the data has 3"):
        cli.main(
            ["test", *data, "--data.num_classes=3", *TINY, *words, f"--ckpt_path={checkpoint}"]
        )


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_a_data_error_stops_before_anything_is_written(logger: str, tmp_path: Path) -> None:
    words = ["-c", f"{ROOT}/configs/logger/{logger}.yaml", f"--trainer.logger.save_dir={tmp_path}"]
    words += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(DataError, match="does not exist"):
        cli.main(["fit", *TINY, *words, "--data=CamVidDataModule", "--data.root=/nowhere"])
    assert not list(tmp_path.iterdir())


def test_the_console_script_is_the_command() -> None:
    script = Path(sys.executable).with_name("lightning-seg")
    if not script.exists():
        pytest.skip("the package is not installed, only on the path")
    texts = [
        subprocess.run([*words, "--help"], cwd=ROOT, capture_output=True, text=True).stdout
        for words in ([str(script)], [sys.executable, "cli.py"])
    ]
    assert texts[0].replace("lightning-seg", "cli.py").split() == texts[1].split()


def test_cli_is_a_thin_shim() -> None:
    assert len((ROOT / "cli.py").read_text().splitlines()) <= 80


def test_help_imports_neither_timm_nor_albumentations_nor_wandb() -> None:
    code = (
        "import sys, cli\n"
        "try: cli.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'timm', 'albumentations', 'wandb', 'segmentation_models_pytorch'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.strip() == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "fit Train a network"),
        ([], 2, "error: a verb is missing: The verbs are check, compare,"),
        (["fitt"], 2, "error: there is no verb fitt: did you mean fit? The verbs are check,"),
        (["configs"], 0, "configs/network/lraspp.yaml"),
        (
            ["fit", "-c", "configs/network/unett.yaml"],
            2,
            "error: the configuration file configs/network/unett.yaml does not exist: did you mean "
            "configs/network/unet.yaml",
        ),
        (["test", "--config=mine.yaml"], 2, "mine.yaml does not exist: `configs` lists those of"),
        (["configs", "--copy=nothing"], 1, "no file or folder of configs/ (option: --copy)"),
        (["compare", "--help"], 0, "Say whether runs differ"),
        (["compare"], 2, "error: the following arguments are required: sides"),
        (["report", "run", "--nothing"], 2, "error: unrecognized arguments: --nothing"),
        (["export", "--size=3", "--ckpt_path=x"], 2, 'error: Parser key "size"'),
        (["app", "--port=x", "--ckpt_path=x"], 2, 'error: Parser key "port"'),
    ],
)
def test_what_needs_no_network_is_answered_before_torch_is_imported(
    words: list[str], code: int, said: str
) -> None:
    command = f"""import atexit, os, sys
sys.argv = ["cli.py", *{words}]
heavy = {{"torch", "lightning", "torchvision", "datamodules"}}
atexit.register(lambda: print("imported:", *sorted(heavy & sys.modules.keys())))
import cli
cli.run()
"""
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    printed = " ".join((run.stdout + run.stderr).split())
    assert run.returncode == code, printed
    assert said in printed
    assert run.stdout.strip().endswith("imported:")


def test_the_choices_of_export_are_those_of_the_functions() -> None:
    from lightning_seg.deployment.exporting import Precision
    from lightning_seg.deployment.segmenter import Output

    parser, _ = PARSERS["export"]
    kinds = {action.dest: getattr(action, "_typehint", None) for action in parser()._actions}
    assert set(get_args(kinds["precision"])) == set(get_args(Precision))
    assert set(get_args(kinds["returns"])) == set(get_args(Output))
