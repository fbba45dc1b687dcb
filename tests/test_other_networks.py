"""Networks of other libraries on the command line: every method, every form, every verb."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from methods import FOR_SEGMENTATION, tiny_words
from torch import nn

import cli
from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.commands.parser import ReadableParser
from lightning_seg.networks import NamedNetwork

NETWORKS = {
    "smp": ["segmentation_models_pytorch.Unet", "encoder_name=resnet18"],
    "torchvision": ["torchvision.models.segmentation.lraspp_mobilenet_v3_large"],
    "transformers": [
        "transformers.SegformerForSemanticSegmentation",
        "hidden_sizes=[8,8,16,16]",
        "depths=[1,1,1,1]",
        "num_attention_heads=[1,1,2,2]",
        "decoder_hidden_size=16",
    ],
}


def words_of(network: str) -> list[str]:
    if network == "transformers":
        pytest.importorskip("transformers")
    path, *arguments = NETWORKS[network]
    return [f"--model.network={path}", *(f"--model.network.{each}" for each in arguments)]


def small(method: str, folder: Path, *more: str) -> list[str]:
    words = [word for word in tiny_words(method) if not word.startswith("--model.network")]
    return [*words, f"--trainer.default_root_dir={folder}", *more]


def piece(folder: Path, content: dict) -> str:
    path = folder / f"piece_{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    def network(*words: str) -> dict:
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", *words, "--print_config"])
        output = capsys.readouterr()
        assert stop.value.code == 0, output.err
        return yaml.safe_load(output.out)["model"]["init_args"]["network"]

    return network


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("mine_of_a_user")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", FOR_SEGMENTATION)
def test_every_method_trains_it_with_the_options_of_an_encoder(
    method: str, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where splits are written
    options = {
        "asml": ["--model.freeze_encoder=true"],
        "semi_adv": ["--model.freeze_encoder=true", "--model.ema_decay=0.5"],
    }.get(method, ["--model.backbone_lr_factor=0.5", "--model.freeze_batch_norm=encoder"])
    once = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1"]
    words = [*words_of(network), *options, *once, "--trainer.enable_checkpointing=false"]
    run = cli.main(["fit", *small(method, tmp_path, *words)])
    assert run.trainer.global_step == 1
    assert run.trainer.callback_metrics["val/loss"].isfinite()
    ours, optimizer = run.model.network, run.trainer.optimizers[0]
    assert isinstance(ours, NamedNetwork)
    groups = {group["name"]: group for group in optimizer.param_groups}
    encoder = {id(each) for each in ours.encoder.parameters()}
    if "freeze_encoder" in options[0]:
        assert not any(each.requires_grad for each in ours.encoder.parameters())
        held = {id(each) for group in groups.values() for each in group["params"]}
        assert not held & encoder
        run.model.train()
        assert ours.training
        assert not any(part.training for part in ours.encoder.modules())
    else:
        assert {id(each) for each in groups["backbone"]["params"]} == encoder
        norms = [each for each in ours.encoder.modules() if isinstance(each, nn.BatchNorm2d)]
        assert all(int(each.num_batches_tracked) == 0 for each in norms)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_saved_read_back_resumed_and_predicts(network: str, tmp_path: Path) -> None:
    words = small("cross_entropy", tmp_path, *words_of(network))
    run = cli.main(["fit", *words, "--trainer.max_epochs=1"])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["model"]["init_args"]["network"]["init_args"]["path"] == NETWORKS[network][0]
    loaded = CrossEntropyModule.load_from_checkpoint(checkpoint, weights_only=True)
    for name, value in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    again = ["-c", str(tmp_path / "config.yaml"), f"--ckpt_path={checkpoint}"]
    cli.main(["predict", *again, "--data.test_size=2"])
    assert len(list((tmp_path / "predictions/masks").glob("*.png"))) == 2
    assert cli.main(["fit", *again, "--trainer.max_epochs=2"]).trainer.current_epoch == 2


def test_all_forms_are_one_configuration(printed, tmp_path: Path) -> None:
    path = "segmentation_models_pytorch.FPN"
    in_yaml = {"class_path": path, "init_args": {"encoder_name": "resnet18", "decoder_dropout": 0}}
    whole = piece(tmp_path, {"model": {"init_args": {"network": in_yaml}}})
    name = piece(tmp_path, {"model": {"init_args": {"network": path}}})
    encoder = {"init_args": {"encoder_name": "resnet18"}}
    part = piece(tmp_path, {"model": {"init_args": {"network": encoder}}})
    dropout = "--model.network.decoder_dropout"
    expected = {
        "class_path": "lightning_seg.networks.NamedNetwork",
        "init_args": {
            "path": path,
            "arguments": {"encoder_name": "resnet18", "decoder_dropout": 0},
            "load_weights": True,
        },
    }
    for words in (
        ["-c", whole],
        ["-c", name, "-c", part, f"{dropout}=0"],
        ["-c", whole, dropout, "1", dropout, "0"],
        ["--model.network", path, "--model.network.encoder_name", "resnet18", dropout, "0"],
        [
            f"--model.network={path}",
            "--model.network.init_args.encoder_name=resnet18",
            dropout,
            "0",
        ],
        ["-c", "configs/network/unet.yaml", "-c", whole],
        ["-c", whole, "-c", "configs/network/unet.yaml", "-c", whole],
        [
            "--model.network=torchvision.models.segmentation.fcn_resnet50",
            "--model.network.aux_loss=true",
            *("-c", whole),
        ],
    ):
        assert printed(*words) == expected, words


def test_a_later_piece_or_flag_names_another_network(printed) -> None:
    other = ["--model.network=segmentation_models_pytorch.FPN", "--model.network.encoder_name=x"]
    back = printed(*other, "-c", "configs/network/unet.yaml")
    assert back == printed("-c", "configs/network/unet.yaml")
    named = printed(*other, "--model.network=lightning_seg.networks.UNet")
    assert named == printed("--model.network=lightning_seg.networks.UNet")


def test_a_network_that_takes_its_classes_first_is_built_as_before(printed) -> None:
    found = printed("--model.network=tiny.TinyNet", "--model.network.dropout=0.5")
    assert found["class_path"] == "tiny.TinyNet"
    assert found["init_args"]["dropout"] == 0.5


def test_a_function_of_the_user_takes_arguments(mine: ModuleType, tmp_path: Path) -> None:
    def my_net(classes: int, width: int = 4) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, classes, 1))

    mine.my_net = my_net
    words = ["--model.network=mine_of_a_user.my_net", "--model.network.width=7"]
    run = cli.main(["fit", *small("cross_entropy", tmp_path, *words, "--trainer.fast_dev_run=1")])
    assert run.model.network.network[0].out_channels == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segmentation_models_pytorch.Unett"], "did you mean Unet"),
        (
            ["segmentation_models_pytorch.Unet", "encodr_name=x"],
            r"'encodr_name'; did you mean encoder_name",
        ),
        (["torchvision.models.segmentation.fcn_resnet50", "aux_los=true"], "did you mean aux_loss"),
        (["mine_of_a_user.Wide"], "logits of 9 classes, and the data has 8"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_training(
    words: list[str], message: str, mine: ModuleType, tmp_path: Path
) -> None:
    class Wide(nn.Conv2d):
        def __init__(self, *, num_classes: int) -> None:
            super().__init__(3, num_classes + 1, 1)

    mine.Wide = Wide
    path, *arguments = words
    flags = [f"--model.network={path}", *(f"--model.network.{each}" for each in arguments)]
    with pytest.raises((SetupError, ValueError), match=message):
        cli.main(["fit", *small("cross_entropy", tmp_path, *flags)])
    assert ReadableParser.keys()


def test_an_own_network_of_other_classes_or_size_is_found_before_the_training(
    mine: ModuleType, tmp_path: Path
) -> None:
    class Wide(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, num_classes + 1, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer(image)

    class Half(Wide):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer(image)[:, :-1, ::2, ::2]

    for kind, message in ((Wide, r"returns \(\d, 9, .* for 8 classes"), (Half, "resize them")):
        kind.__module__, kind.__qualname__ = "mine_of_a_user", kind.__name__
        setattr(mine, kind.__name__, kind)
        words = small("cross_entropy", tmp_path, f"--model.network=mine_of_a_user.{kind.__name__}")
        words.append("--trainer.max_steps=1")
        with pytest.raises(SetupError, match=message):
            cli.main(["fit", *words, "--trainer.callbacks+=tiny.RecordBatches",
                      f"--trainer.callbacks.folder={tmp_path}"])  # fmt: skip
    assert not list(tmp_path.glob("rank*"))
