from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from small_runs import SMALL_WORDS, needs_compiler
from tiny import TinyNet
from torch import nn

import cli
from datamodules import SyntheticScenesDataModule
from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.networks import LRASPP, TimmEncoder
from lightning_seg.networks.encoder_weights import WeightFile, save_encoder
from lightning_seg.training.optimization import PolyLR


def scenes(**options) -> SyntheticScenesDataModule:
    sizes = {"train_size": 8, "val_size": 3, "test_size": 3, "image_size": (32, 40)}
    defaults = {"crop_size": 24, "batch_size": 4, "num_workers": 0, "seed": 0}
    return SyntheticScenesDataModule(**{**sizes, **defaults, **options})


def trainer(folder: Path, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, **options})


def module(network: nn.Module | None = None, **options) -> CrossEntropyModule:
    torch.manual_seed(0)
    return CrossEntropyModule(network or TinyNet(8), num_classes=8, **options)


def test_fifty_steps_equal_a_plain_loop(tmp_path: Path) -> None:
    """The same network, images and optimizer without Lightning and without this module."""
    plain = {"optimizer": torch.optim.SGD, "channels_last": False}  # whose rounding differs
    ours = module(TinyNet(8, dropout=0.0), lr=0.05, **plain)
    net = TinyNet(8, dropout=0.0)
    net.load_state_dict(ours.network.state_dict())
    trainer(tmp_path, max_epochs=25, limit_val_batches=0).fit(ours, scenes())

    data = scenes()
    data.setup("fit")
    loader = data.train_dataloader()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    steps = 0
    for _ in range(25):
        for batch in loader:
            logits = net((batch["image"].float() / 255 - mean) / std)
            loss = F.cross_entropy(logits, batch["mask"], ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    assert steps == 50
    for name, value in net.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], value, rtol=0, atol=1e-6)


def test_bytes_and_unit_floats_are_the_same_image() -> None:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    ours = module().eval()
    torch.testing.assert_close(ours(image), ours(image.float() / 255))


def test_the_input_is_normalised_as_the_encoder_was_trained() -> None:
    ours = CrossEntropyModule(LRASPP(2, "tf_efficientnet_lite0"), num_classes=2)
    image = torch.tensor([0, 127.5, 255]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert ours.normalize(image / 255)[0, :, 0].tolist() == [[-1, 0, 1]] * 3


def test_auxiliary_losses_are_weighted() -> None:
    ours = module(TinyNet(8, aux=True, dropout=0.0), lambda_aux=0.3)
    batch = {
        "image": torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8),
        "mask": torch.randint(0, 8, (2, 8, 8)),
    }
    found = ours.network(ours.normalize(batch["image"]))
    parts = [F.cross_entropy(found[name], batch["mask"]) for name in ("out", "aux")]
    losses = ours.supervised_losses(ours.outputs(batch["image"]), batch["mask"])
    torch.testing.assert_close(losses["loss"], parts[0] + 0.3 * parts[1])
    torch.testing.assert_close(losses["loss_aux"], parts[1])


def test_a_network_that_returns_something_else_is_told() -> None:
    class Wrong(TinyNet):
        def forward(self, image):
            return (super().forward(image),)

    with pytest.raises(SetupError, match=r"Wrong returned a tuple; expected logits"):
        module(Wrong(8))(torch.zeros(1, 3, 8, 8))


def test_learning_rate_groups() -> None:
    ours = module(TinyNet(8, aux=True), lr=0.1, backbone_lr_factor=0.1, head_bias_lr_factor=2.0)
    groups = {
        group["name"]: group for group in ours.configure_optimizers()["optimizer"].param_groups
    }
    assert {name: group["lr"] for name, group in groups.items()} == {
        "backbone": pytest.approx(0.01),
        "head": pytest.approx(0.1),
        "head_bias": pytest.approx(0.2),
    }
    by_id = {id(parameter): name for name, parameter in ours.network.named_parameters()}
    names = {name: {by_id[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert names["backbone"] == {
        f"encoder.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    assert names["head"] == {"head.1.weight", "aux.weight"}
    assert names["head_bias"] == {"head.1.bias", "aux.bias"}


def test_weight_decay_may_leave_out_what_has_one_dimension() -> None:
    def decayed(groups):
        return torch.optim.SGD(groups, lr=0.5, weight_decay=0.25)

    rates = {"lr": 1.0, "backbone_lr_factor": 0.5, "head_bias_lr_factor": 2.0}
    ours = module(TinyNet(8), optimizer=decayed, decay_all=False, **rates)
    optimizer = ours.configure_optimizers()["optimizer"]
    groups = {
        group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    assert groups == {
        "backbone": (0.5, 0.25),
        "backbone_undecayed": (0.5, 0.0),
        "head": (1.0, 0.25),
        "head_bias_undecayed": (2.0, 0.0),
    }
    before = {name: value.detach().clone() for name, value in ours.named_parameters()}
    for weight in ours.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # without gradient only decay moves
    for name, value in ours.named_parameters():
        shrunk = 1 - (0.5 if "encoder" in name else 1.0) * 0.25 if value.ndim > 1 else 1
        torch.testing.assert_close(value.detach(), before[name] * shrunk)


def test_the_optimizers_own_rate_is_kept_without_lr() -> None:
    ours = module(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.7))
    assert [group["lr"] for group in ours.configure_optimizers()["optimizer"].param_groups] == [0.7]


@pytest.mark.parametrize(
    "option",
    [
        {"backbone_lr_factor": 0.1},
        {"freeze_batch_norm": "encoder"},
        {"freeze_batch_norm": "pretrained"},
    ],
)
def test_a_backbone_option_without_a_backbone_is_told(option: dict) -> None:
    with pytest.raises(SetupError, match=r"no.*encoder"):
        module(nn.Conv2d(3, 8, 1), **option).configure_optimizers()["optimizer"]


@pytest.mark.parametrize(("freeze", "frozen"), [("none", False), ("encoder", True), ("all", True)])
def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path, freeze: str, frozen: bool) -> None:
    ours = module(freeze_batch_norm=freeze)
    before = ours.network.encoder[1].running_mean.clone()
    scale = ours.network.encoder[1].weight.clone()
    trainer(tmp_path, max_epochs=2).fit(ours, scenes())
    assert torch.equal(ours.network.encoder[1].running_mean, before) == frozen
    assert not torch.equal(ours.network.encoder[1].weight, scale)


@pytest.mark.parametrize("weights", [False, True])
def test_the_piece_of_deeplab_v2_freezes_batch_norms_of_pretrained_weights_only(
    tmp_path: Path, weights: bool, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["-c", f"{ROOT}/configs/network/deeplab_v2.yaml", *SMALL_WORDS[:-1]]
    words += ["--model.network.encoder=test_resnet", "--model.network.uniform_dilation=false"]
    words += ["--data.crop_size=64", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--trainer.max_steps=1", "--trainer.enable_checkpointing=false"]
    if weights:
        torch.save(TimmEncoder("test_resnet").bare.state_dict(), tmp_path / "encoder.pth")
        words.append(f"--model.network.weights={tmp_path / 'encoder.pth'}")
    caplog.set_level("INFO")
    network = cli.main(["fit", *words]).model.network.train()
    norms = [each for each in network.encoder.modules() if isinstance(each, nn.BatchNorm2d)]
    seen = {int(each.num_batches_tracked) for each in norms}  # batches that changed the statistics
    assert seen == ({0} if weights else {1})
    line = "batch norms are not frozen, because the encoder starts from random weights"
    assert caplog.messages.count(line) == (not weights)


def test_a_resumed_training_keeps_what_the_weight_file_said(tmp_path: Path) -> None:
    encoder, file = TimmEncoder("test_resnet"), tmp_path / "encoder.pt"
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    save_encoder(file, WeightFile(encoder.bare.state_dict(), "test_resnet", "gray", mean, std))
    words = ["-c", f"{ROOT}/configs/network/deeplab_v2.yaml", *SMALL_WORDS[:-1]]
    words += ["--model.network.encoder=test_resnet", "--model.network.uniform_dilation=false"]
    words += ["--data.crop_size=64", f"--trainer.default_root_dir={tmp_path}"]
    words += [f"--model.network.weights={file}"]
    first = cli.main(["fit", *words, "--trainer.max_steps=1"])
    file.unlink()
    path = first.trainer.checkpoint_callback.best_model_path
    second = cli.main(["fit", *words, "--trainer.max_steps=2", f"--ckpt_path={path}"])
    assert second.trainer.global_step == 2
    for ours in (first.model, second.model):
        norms = [
            each for each in ours.network.encoder.modules() if isinstance(each, nn.BatchNorm2d)
        ]
        assert {int(each.num_batches_tracked) for each in norms} == {0}  # frozen in both
        assert ours.input_mode == "gray"
        assert ours.image_mean.flatten().tolist() == pytest.approx(mean)
        assert ours.image_std.flatten().tolist() == pytest.approx(std)
    other = ["--data.image_mean=[0.4,0.4,0.4]", "--data.image_std=[0.2,0.2,0.2]"]
    with pytest.raises(SetupError, match=r"normalised by image_mean \[0.1.*image_mean=null"):
        cli.main(["validate", *words, *other, f"--ckpt_path={path}"])


def test_poly_schedule_ends_at_zero_with_the_training(tmp_path: Path) -> None:
    rates = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, *_) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    ours = module(lr=0.1, lr_scheduler=lambda optimizer: PolyLR(optimizer, power=0.9))
    run = trainer(tmp_path, max_epochs=5, callbacks=[Record()], limit_val_batches=0)
    run.fit(ours, scenes())
    assert rates == pytest.approx([0.1 * (1 - t / 10) ** 0.9 for t in range(10)])
    assert run.optimizers[0].param_groups[0]["lr"] == 0


def test_poly_schedule_equals_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    ours = torch.optim.SGD([parameter], lr=0.5)
    theirs = torch.optim.SGD([parameter], lr=0.5)
    poly = PolyLR(ours, power=0.9, total_iters=7)
    reference = torch.optim.lr_scheduler.PolynomialLR(theirs, total_iters=7, power=0.9)
    for _ in range(9):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        for each in (ours, theirs, poly, reference):
            each.step()


def test_a_poly_schedule_needs_an_end(tmp_path: Path) -> None:
    ours = module(lr_scheduler=PolyLR)
    with pytest.raises(SetupError, match="max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(ours, scenes())


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_the_loss_of_an_evaluation_is_the_mean_over_all_labelled_pixels(
    tmp_path: Path, verb: str
) -> None:
    """Batches of 2, 1 and 1 images with 500, 7 and no labelled pixels."""
    torch.manual_seed(3)
    batches = []
    for images, labelled in ((2, 500), (1, 7), (1, 0)):
        mask = torch.full((images, 24, 32), 255)
        mask.view(-1)[:labelled] = torch.randint(8, (labelled,))
        image = torch.randint(256, (images, 3, 24, 32), dtype=torch.uint8)
        batches.append({"image": image, "mask": mask, "id": ["a"] * images})
    ours = module()
    run = trainer(tmp_path)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    (logged,) = getattr(run, verb)(ours, loader, verbose=False)
    ours.eval()
    with torch.no_grad():
        total = sum(
            F.cross_entropy(ours(each["image"]), each["mask"], ignore_index=255, reduction="sum")
            for each in batches
        )
    name = {"validate": "val/loss", "test": "test/loss"}[verb]
    assert logged[name] == pytest.approx(total.item() / 507, rel=1e-5)


def test_validation_scores_are_those_of_the_predictions(tmp_path: Path) -> None:
    data = scenes()
    ours = module(class_names=data.class_names)
    (logged,) = trainer(tmp_path).validate(ours, data, verbose=False)
    data.setup("validate")
    hits, union = torch.zeros(8), torch.zeros(8)
    ours.eval()
    with torch.no_grad():
        for batch in data.val_dataloader():
            valid = batch["mask"] != 255
            guess = ours(batch["image"]).argmax(1)
            for index in range(8):
                a, b = (guess == index) & valid, (batch["mask"] == index) & valid
                hits[index] += (a & b).sum()
                union[index] += (a | b).sum()
    iou = hits / union
    assert logged["val/miou"] == pytest.approx(iou.nanmean().item(), abs=1e-6)
    for name, value in zip(data.class_names, iou.tolist(), strict=True):
        assert logged[f"val/iou/{name}"] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_a_python_made_checkpoint_loads_safely(tmp_path: Path) -> None:
    ours, run = module(lr=0.3), trainer(tmp_path, max_epochs=1)
    run.fit(ours, scenes())
    run.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = CrossEntropyModule.load_from_checkpoint(
        tmp_path / "a.ckpt", network=TinyNet(8), weights_only=True
    )
    assert again.lr == 0.3
    assert again.num_classes == 8
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module(), scenes())
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = CrossEntropyModule(TinyNet(5), num_classes=5)
    with pytest.raises(SetupError, match="trained for 8 classes, the data has 5"):
        trainer(tmp_path).test(other, scenes(), ckpt_path=tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module(), scenes())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(SetupError, match=r"another network.*aux\.bias: \(8,\) here, absent"):
        trainer(tmp_path).test(
            module(TinyNet(8, aux=True)), scenes(), ckpt_path=tmp_path / "a.ckpt"
        )


def test_a_loaded_module_is_trained_with_the_seed_of_its_new_run(tmp_path: Path) -> None:
    """Only a run that is resumed takes the checkpoint's random state."""
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module(), scenes())
    run.save_checkpoint(tmp_path / "a.ckpt")
    states = []
    for seed in (1, 2):
        loaded = CrossEntropyModule.load_from_checkpoint(tmp_path / "a.ckpt", network=TinyNet(8))
        torch.manual_seed(seed)
        trainer(tmp_path, max_epochs=1).fit(loaded, scenes())
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)


@pytest.mark.parametrize(
    "options",
    [{"class_names": ["a"]}, {"palette": [[0, 0, 0]]}, {"class_weights": [1.0]}],
)
def test_lists_must_have_one_entry_per_class(options: dict) -> None:
    with pytest.raises(SetupError, match="for 8 classes"):
        module(**options)


@pytest.mark.parametrize(
    "option",
    [
        "channels_last",
        pytest.param("compile_network", marks=needs_compiler),
    ],
)
def test_channels_last_and_compile_change_speed_not_results(option: str) -> None:
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    plain, other = module().eval(), module(**{option: True}).eval()
    assert other.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(other(image), plain(image), rtol=1e-4, atol=1e-5)


def test_bf16_training_is_finite(tmp_path: Path) -> None:
    ours = module()
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed")
    run.fit(ours, scenes())
    assert run.callback_metrics["train/loss"].isfinite()
    assert all(parameter.isfinite().all() for parameter in ours.parameters())


def test_pure_bf16_takes_raw_images() -> None:
    ours = module().to(torch.bfloat16).eval()
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    assert ours(image).dtype == torch.bfloat16
