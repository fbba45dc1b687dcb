"""What only a CUDA device can show; skipped everywhere else."""

from pathlib import Path

import pytest
import torch
from methods import FOR_ENCODERS
from places import ROOT

import cli
from lightning_seg.losses import cross_entropy, loss_max_pooling, probability_gradient_loss
from lightning_seg.metrics import SegmentationMetrics, WeightedMean

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_loss_and_metrics_neither_wait_for_the_device_nor_differ_from_the_cpu() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 33, 40), torch.randint(0, 5, (2, 33, 40))
    target[:, :4] = 255
    expected = SegmentationMetrics(5)
    expected.update(logits.argmax(1), target)
    metrics, mean = SegmentationMetrics(5).cuda(), WeightedMean().cuda()
    on_device, there = logits.cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.update(on_device.max(1).indices, there)
        loss = cross_entropy(on_device, there)
        mean.update(loss, (there != 255).sum())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(metrics.counts.cpu(), expected.counts)
    torch.testing.assert_close(mean.compute().cpu(), cross_entropy(logits, target))


@pytest.mark.parametrize("p", [1.0, 1.05, 1.3, 1.7, 3.0, float("inf")])
def test_loss_max_pooling_neither_waits_for_the_device_nor_differs(p: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 64, 80), torch.randint(0, 5, (2, 64, 80))
    target[:, :9] = 255
    here, there = logits.clone().requires_grad_(), logits.cuda().requires_grad_()
    on_device = target.cuda()
    loss_max_pooling(here, target, p=p).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_max_pooling(there, on_device, p=p).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("form", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("void", ["strict", "reference", "nearest"])
def test_probability_gradients_do_not_differ_from_the_cpu(form: str, void: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 64, 80)
    target = torch.randint(0, 5, (2, 8, 10)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[:, 20:24, 30:50] = 255
    here, there = logits.clone().requires_grad_(), logits.cuda().requires_grad_()
    probability_gradient_loss(here, target, 5, void).backward()
    probability_gradient_loss(there, target.cuda(), 5, void, form=form).backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_every_precision_trains(precision: str, tmp_path: Path) -> None:
    words = ["--model.network=lightning_seg.networks.LRASPP", "--model.channels_last=true"]
    words += ["--model.network.encoder=mobilenetv3_small_050", "--trainer.max_steps=4"]
    words += ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.logger=false"]
    words += [f"--trainer.precision={precision}", f"--trainer.default_root_dir={tmp_path}"]
    run = cli.main(["fit", *words, "--data.train_size=32", "--data.val_size=4"])
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert run.trainer.callback_metrics["val/miou"].isfinite()


ADVERSARIES = [
    ["--model=ASMLModule"],
    ["--model=ASMLModule", "--model.order=simultaneous"],
    ["--model=SemiAdvModule", "--model.semi_start=2", "--data.labeled=1/2"],
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("method", ADVERSARIES, ids=lambda words: words[-1])
def test_two_players_train_without_waiting_for_the_device(
    precision: str,
    alone: bool,
    method: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*method, "--model.network=tiny.TinyNet", "--trainer.max_steps=6"]
    words += ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.logger=false"]
    words += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"]
    words += [f"--trainer.precision={precision}", "--data.crop_size=64", "--model.lr=0.01"]
    words += ["--data.train_size=32", "--data.val_size=4", "--data.batch_size=4"]
    if method[0].endswith("SemiAdvModule"):
        words += ["--data.unlabeled_batch_size=4", "--data.labeled_real_batch_size=4"]
    if not alone:
        words += ["--trainer.strategy=ddp", "--trainer.sync_batchnorm=true"]
    if precision != "16-mixed":  # a gradient scaler asks whether there was an overflow
        words += ["--trainer.callbacks=tiny.NoWaiting"]
    run = cli.main(["fit", *words])
    assert run.trainer.global_step == 6
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", FOR_ENCODERS)
def test_encoders_are_trained_without_waiting(method: str, precision: str, tmp_path: Path) -> None:
    words = ["-c", str(ROOT / f"configs/method/{method}.yaml"), "--model.encoder.name=resnet18"]
    words += ["--data.image_size=[96,96]", "--data.crop_size=96", "--data.batch_size=4"]
    words += ["--data.train_size=24", "--data.val_size=4", "--trainer.max_epochs=1"]
    words += ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.logger=false"]
    words += [f"--trainer.precision={precision}", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--trainer.callbacks=tiny.NoWaiting", "--trainer.log_every_n_steps=100"]
    run = cli.main(["fit", *words])
    assert run.trainer.global_step == 6
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert (tmp_path / "encoder.pt").is_file()
