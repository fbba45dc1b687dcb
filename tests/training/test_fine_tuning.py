"""Fine-tuning of large encoders: frozen, with a learning rate for every layer, or with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import tiny
import torch
from cases import in_processes
from lightning.pytorch.callbacks import LearningRateMonitor
from methods import FOR_ENCODERS, FOR_SEGMENTATION, TWO_PLAYERS, tiny_words
from small_runs import Kept, fit, needs_compiler, quiet_trainer, scenes
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import cli
from lightning_seg import CrossEntropyModule, PolyLR, SemiAdvModule, SetupError
from lightning_seg.networks import DPT, FCN, LRASPP, LoRA, TimmEncoder, UNet
from lightning_seg.training.optimization import build_optimizer

VIT, RESNET = "test_vit", "resnet18"
DINO_WORDS = [
    "--model.network=lightning_seg.networks.DPT",
    "--model.network.encoder=vit_small_patch16_dinov3",
    "--model.network.options={depth: 4, embed_dim: 32, num_heads: 2}",
    "--model.network.widths=[8,8,8,8]",
    "--model.network.fusion=8",
]


def module(network=tiny.TinyNet, **options) -> CrossEntropyModule:
    torch.manual_seed(0)
    return CrossEntropyModule(network, num_classes=8, **options)


def state(part: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# A frozen encoder


@pytest.mark.parametrize("method", FOR_SEGMENTATION)
def test_a_frozen_encoder_keeps_every_bit_with_every_method(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny_words(method), "--model.freeze_encoder=true", "--trainer.max_steps=2"]
    words += ["--model.backbone_lr_factor=0.1", "--trainer.enable_checkpointing=false"]
    words += ["--trainer.callbacks+=tiny.WatchEncoder"]
    if method == "semi_adv":
        words += ["--model.ema_decay=0.5", "--model.semi_start=0", "--model.softmax_threshold=0"]
    ours = cli.main(["fit", *words]).model
    watch = next(each for each in ours.trainer.callbacks if hasattr(each, "passes"))
    parts = [ours.network, ours.teacher.mean] if method == "semi_adv" else [ours.network]
    for network in parts:
        for name, value in network.state_dict().items():
            assert torch.equal(value, watch.start[name]) == name.startswith("encoder"), name
    assert any(training for *_, training in watch.passes)
    assert all(not graph and modes == {False} for graph, modes, _ in watch.passes)
    optimizer, *_ = ours.trainer.optimizers
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert trained == {id(each) for each in ours.network.head.parameters()}


@pytest.mark.parametrize("frozen", [True, False])
def test_no_activation_of_a_frozen_encoder_is_kept(frozen: bool) -> None:
    ours = module(lambda classes: UNet(classes, RESNET), freeze_encoder=frozen)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        features = ours.network.encoder(ours.normalize(torch.zeros(2, 3, 64, 64)))
    assert bool(kept) != frozen
    assert {each.requires_grad for each in features} == {not frozen}


@needs_compiler
def test_a_compiled_network_with_a_frozen_encoder_trains_its_head(tmp_path: Path) -> None:
    ours = module(freeze_encoder=True, compile_network=True, lr=0.1)
    encoder, head = state(ours.network.encoder), state(ours.network.head)
    fit(ours, tmp_path)
    assert same(encoder, state(ours.network.encoder))
    assert not same(head, state(ours.network.head))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_two_processes_wait_for_no_gradient_of_a_frozen_encoder(tmp_path: Path) -> None:
    words = ["--model.freeze_encoder=true", "--trainer.max_steps=2", "--trainer.strategy=ddp"]
    words += ["--trainer.devices=2", "--trainer.enable_checkpointing=false"]
    words += [f"--trainer.default_root_dir={tmp_path}"]
    cases = {name: {"words": ["fit", *tiny_words(name), *words]} for name in ("lmp", *TWO_PLAYERS)}
    first, second = in_processes(2, tmp_path / "two", cases)
    for name in cases:
        assert first[name].get("global_step") == 2, first[name]
        assert first[name]["weights"].keys() == second[name]["weights"].keys()
        assert same(first[name]["weights"], second[name]["weights"])
        moved = {
            key for key, value in first[name]["start"].items()
            if key.startswith("network") and not torch.equal(value, first[name]["weights"][key])
        }  # fmt: skip
        assert moved
        assert all("head" in key for key in moved)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_frozen_encoder_of_random_weights_is_reported(
    pretrained: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    weights = tmp_path / "encoder.pth"
    torch.save(TimmEncoder("test_resnet").bare.state_dict(), weights)
    given = {"weights": str(weights)} if pretrained else {}
    ours = module(lambda count: LRASPP(count, "test_resnet", **given), freeze_encoder=True)
    fit(ours, tmp_path)
    line = "the frozen encoder has random weights, which no training will change"
    assert caplog.messages.count(line) == (not pretrained)
    total = sum(each.numel() for each in ours.network.parameters())
    head = total - sum(each.numel() for each in ours.network.encoder.parameters())
    assert f"LRASPP has {total:,} weights, of which {head:,} are trained" in caplog.messages


@pytest.mark.parametrize("method", FOR_ENCODERS)
def test_a_method_that_trains_an_encoder_does_not_freeze_it(method: str) -> None:
    words = [*tiny_words(method), "--model.freeze_encoder=true"]
    with pytest.raises(ValueError, match="trains an encoder for another training"):
        cli.main(["fit", *words])


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (nn.Conv2d(3, 8, 1), {"freeze_encoder": True}, "Conv2d has no `encoder`"),
        (
            lambda count: LRASPP(count, VIT),
            {"freeze_encoder": True, "checkpoint_activations": True},
            "keeps no activations",
        ),
        (
            lambda count: LRASPP(count, VIT, lora=LoRA()),
            {"freeze_encoder": True},
            "would freeze the adapters",
        ),
        (tiny.TinyNet, {"backbone_lr_decay": 0.0}, r"in \(0, 1\], not 0"),
        (tiny.TinyNet, {"backbone_lr_decay": 1.5}, r"in \(0, 1\], not 1.5"),
        (tiny.TinyNet, {"backbone_lr_decay": 0.5}, "is for encoders of timm"),
        (lambda count: UNet(count, "poolformer_s12"), {"backbone_lr_decay": 0.5}, "into layers"),
    ],
)
def test_what_cannot_be_is_one_sentence(network, options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        module(network, **options).configure_optimizers()


# A learning rate for every layer


def rates(ours: CrossEntropyModule) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by the names of the parameters."""
    made = ours.configure_optimizers()["optimizer"]
    names = {id(each): name for name, each in ours.network.named_parameters()}
    return {
        names[id(each)]: (group["lr"], group["weight_decay"])
        for group in made.param_groups
        for each in group["params"]
    }


def test_the_rates_of_a_transformer_by_hand() -> None:
    ours = module(
        lambda count: LRASPP(count, VIT, options={"depth": 3}),
        lr=0.8,
        backbone_lr_factor=0.5,
        backbone_lr_decay=0.5,
        head_bias_lr_factor=2.0,
        decay_all=False,
        optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
    )
    found = rates(ours)
    assert found.keys() == dict(ours.network.named_parameters()).keys()
    start = "encoder.model.model."
    table = {  # 0.8 * 0.5 * 0.5 ** (4 - k): n is 4, the stem and three blocks
        f"{start}cls_token": (0.025, 0.1),
        f"{start}pos_embed": (0.025, 0.1),
        f"{start}patch_embed.proj.weight": (0.025, 0.1),
        f"{start}patch_embed.proj.bias": (0.025, 0.0),
        f"{start}blocks.0.attn.qkv.weight": (0.05, 0.1),
        f"{start}blocks.0.norm1.weight": (0.05, 0.0),
        f"{start}blocks.1.mlp.fc1.weight": (0.1, 0.1),
        f"{start}blocks.2.mlp.fc2.weight": (0.2, 0.1),
        f"{start}blocks.2.mlp.fc2.bias": (0.2, 0.0),
    }
    for name, expected in table.items():
        assert found[name] == pytest.approx(expected), name
    for name, (rate, decay) in found.items():
        if not name.startswith("encoder"):
            assert rate == pytest.approx(1.6 if name.endswith("bias") else 0.8), name
            value = ours.network.get_parameter(name)
            assert decay == (0.1 if value.ndim > 1 else 0), name


def test_the_rates_of_a_residual_network_by_hand() -> None:
    found = rates(module(lambda count: LRASPP(count, RESNET), lr=1.0, backbone_lr_decay=0.9))
    # the stem and two blocks in each of four stages: n is 9
    layers = {"conv1": 0, "bn1": 0, "layer1.0": 1, "layer1.1": 2, "layer2.0": 3, "layer2.1": 4}
    layers |= {"layer3.0": 5, "layer3.1": 6, "layer4.0": 7, "layer4.1": 8}
    seen = set()
    for name, (rate, _) in found.items():
        inner = name.removeprefix("encoder.model.")
        for start, number in layers.items():
            if name != inner and inner.startswith(f"{start}."):
                assert rate == pytest.approx(0.9 ** (9 - number)), name
                seen.add(start)
        if not name.startswith("encoder."):
            assert rate == 1.0
    assert seen == layers.keys()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", RESNET, "convnext_atto"])
def test_the_layers_are_those_of_timms_own_groups(name: str) -> None:
    theirs = timm.create_model(name)
    names = {id(each): key.replace(".", "_") for key, each in theirs.named_parameters()}
    expected = {
        names[id(each)]: group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.75)
        for each in group["params"]
    }
    ours = module(lambda count: LRASPP(count, name), lr=1.0, backbone_lr_decay=0.75)
    bare = {id(each): key for key, each in ours.network.encoder.bare.named_parameters()}
    for group in ours.configure_optimizers()["optimizer"].param_groups:
        for each in group["params"]:
            if id(each) in bare:
                key = bare[id(each)].replace(".", "_")
                assert group["lr"] == pytest.approx(expected[key]), key


@pytest.mark.parametrize("options", [{}, {"backbone_lr_factor": 0.1, "decay_all": False}])
def test_a_decay_of_one_keeps_the_groups(options: dict) -> None:
    ours = module(lambda count: LRASPP(count, RESNET), lr=0.1, backbone_lr_decay=1.0, **options)
    found = ours.configure_optimizers()["optimizer"].param_groups
    factor, decay_all = options.get("backbone_lr_factor", 1.0), options.get("decay_all", True)
    before = build_optimizer(
        ours.optimizer, ours.network, 0.1, factor, decay_all=decay_all
    ).param_groups
    assert [group["name"] for group in found] == [group["name"] for group in before]
    for one, other in zip(found, before, strict=True):
        assert one["lr"] == other["lr"]
        assert all(a is b for a, b in zip(one["params"], other["params"], strict=True))


def test_the_schedule_and_the_logs_keep_the_layers_apart(tmp_path: Path) -> None:
    ours = module(
        lambda count: FCN(count, VIT, options={"depth": 2}, output_stride=32),
        lr=1.0,
        backbone_lr_decay=0.5,
        lr_scheduler=lambda made: PolyLR(made, power=1.0),
    )
    monitor = LearningRateMonitor("step")
    kept = Kept()
    quiet_trainer(tmp_path, logger=kept, callbacks=[monitor], max_steps=2, limit_val_batches=0).fit(
        ours, scenes()
    )
    logged = {
        name.rpartition("/")[2]: [row[name] for row in kept.rows.values() if name in row]
        for row in kept.rows.values()
        for name in row
        if name.startswith("lr-AdamW")
    }
    assert logged == {
        "backbone_layer_00": [0.125, 0.0625],
        "backbone_layer_01": [0.25, 0.125],
        "backbone_layer_02": [0.5, 0.25],
        "head": [1.0, 0.5],
        "head_bias": [1.0, 0.5],
    }


# Adapters


def test_adapters_train_are_kept_in_checkpoints_and_merged_into_the_encoders_file(
    tmp_path: Path,
) -> None:
    pytest.importorskip("peft")
    words = [word for word in tiny_words("cross_entropy") if not word.startswith("--model.network")]
    words += ["--model.network=lightning_seg.networks.LRASPP", "--model.lr=0.5"]
    words += [f"--model.network.encoder={VIT}", f"--trainer.default_root_dir={tmp_path}"]
    lora = ["--model.network.lora.rank=2", "--model.network.lora.targets=[qkv,fc1]"]
    steps = ["--trainer.max_steps=3", f"--encoder_file.path={tmp_path / 'encoder.pt'}"]
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    ours = cli.main(["fit", *words, *lora, *steps, *logger]).model
    (saved,) = tmp_path.rglob("config.yaml")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    again = CrossEntropyModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert same(state(ours), state(again))
    unsaved = ["--trainer.enable_checkpointing=false", f"--ckpt_path={checkpoint}"]
    cli.main(["validate", *words, *lora, *unsaved])
    other = [
        "--trainer.logger=false",
        "--encoder_file.path=null",
        f"--trainer.default_root_dir={tmp_path / 'other'}",
    ]
    read = cli.main(["fit", "-c", str(saved), *other, "--trainer.max_steps=1"]).model
    assert read.network.encoder.lora == LoRA(rank=2, targets=["qkv", "fc1"])

    names = [name for name, each in ours.network.encoder.named_parameters() if each.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert all(ours.network.encoder.get_parameter(name).any() for name in names)
    plain = TimmEncoder(VIT, (-3, -1), weights=str(tmp_path / "encoder.pt")).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(plain(image), ours.network.encoder.eval()(image), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# DINOv3


@pytest.mark.parametrize("method", TWO_PLAYERS)
@pytest.mark.parametrize(
    "more",
    [
        ["--model.freeze_encoder=true"],
        ["--model.backbone_lr_decay=0.8", "--model.network.lora.rank=2"],
    ],
    ids=["frozen", "adapted"],
)
def test_two_players_train_on_a_transformer_of_dinov3(
    method: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in tiny_words(method) if not word.startswith("--model.network")]
    words += [*DINO_WORDS, *more, "--trainer.max_steps=1", "--trainer.enable_checkpointing=false"]
    words += ["--trainer.limit_train_batches=1"]
    run = cli.main(["fit", *words])
    assert run.trainer.global_step == 1
    assert run.trainer.callback_metrics["val/loss"].isfinite()
    trained = [group["name"] for group in run.trainer.optimizers[0].param_groups]
    assert any("backbone" in name for name in trained) != run.model.freeze_encoder


def test_the_running_mean_of_an_adapted_network_is_a_copy(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    ours = SemiAdvModule(
        lambda count: DPT(
            count, VIT, maps=(0, 1, 2, 3), widths=(8, 8, 8, 8), fusion=8, lora=LoRA(rank=2),
            options={"depth": 4},
        ),
        num_classes=8,
        ema_decay=0.5,
    )  # fmt: skip
    assert not any(each.requires_grad for each in ours.teacher.parameters())
    assert any(each.requires_grad for each in ours.network.encoder.parameters())
    ids = {id(each) for each in ours.network.parameters()}
    assert not ids & {id(each) for each in ours.teacher.parameters()}
