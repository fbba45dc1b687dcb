"""What every method shares: the network, its input, evaluation, prediction, optimisation."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_seg.errors import SetupError
from lightning_seg.methods.checkpoints import (
    RandomState,
    keep_what_a_checkpoint_needs,
    require_same_tensors,
)
from lightning_seg.methods.finite import FiniteGuard
from lightning_seg.methods.optimization import (
    PolyLR,
    backbone_of,
    build_optimizer,
    with_schedule,
)
from lightning_seg.metrics import SegmentationMetrics, WeightedMean
from lightning_seg.networks import LRASPP

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SegmentationModule(L.LightningModule, ABC):
    """Base of all methods; a method adds its losses in `training_step`.

    Args:
        network: Makes the network from the number of classes, or is it. It takes normalised
            (B, 3, H, W) images and returns (B, C, H, W) logits, or a dict of them with `out` and,
            for deep supervision, `aux` (one tensor or a list). Where it has attributes `mean`
            and `std`, its input is normalised with these, else with ImageNet's. None takes
            `LRASPP` on a MobileNetV3 with random weights.
        num_classes: Number of classes C, void not counted.
        class_names: One name per class, for logs and tables.
        palette: One RGB colour in 0..255 per class, for pictures.
        ignore_index: Mask value of pixels that do not count.
        optimizer: Makes the optimizer from parameter groups.
        lr: Learning rate; None keeps the optimizer's own.
        lr_scheduler: Makes the schedule from the optimizer; None keeps the rate constant.
        lr_interval: Whether the schedule advances with every step or every epoch.
        backbone_lr_factor: Times the learning rate for the network's `encoder` or `backbone`.
        head_bias_lr_factor: Times the learning rate for biases outside the backbone.
        decay_all: Let weight decay act on all weights; False leaves out biases and norms.
        lambda_aux: Weight of the auxiliary logits' loss.
        freeze_batch_norm: Keep the running statistics of `encoder` or of `all` batch norms as
            they are and normalise by them in training; their scale and shift are still learnt.
        channels_last: Keep images and weights in channels-last memory order, which many
            convolutions prefer.
        compile_network: Compile the network with `torch.compile`; checkpoints stay the same.

    Raises:
        SetupError: Settings that contradict each other.
    """

    image_mean: Tensor
    image_std: Tensor
    loss: nn.Module
    """The loss of pixels, (B, C, H, W) logits and (B, H, W) class ids -> scalar; a method's own."""

    def __init__(
        self,
        network: Callable[[int], nn.Module] | None = None,
        *,
        num_classes: int,
        class_names: list[str] | None = None,
        palette: list[list[int]] | None = None,
        ignore_index: int = 255,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr: float | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "step",
        backbone_lr_factor: float = 1.0,
        head_bias_lr_factor: float = 1.0,
        decay_all: bool = True,
        lambda_aux: float = 0.4,
        freeze_batch_norm: Literal["none", "encoder", "all"] = "none",
        channels_last: bool = False,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        for name, values in {"class_names": class_names, "palette": palette}.items():
            if values is not None and len(values) != num_classes:
                raise SetupError(f"{len(values)} {name} for {num_classes} classes")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute .* is an instance of `nn.Module`")
            self.save_hyperparameters()
        keep_what_a_checkpoint_needs(self._hparams)
        self._hparams_initial = dict(self._hparams)

        build = LRASPP if network is None else network
        self.network = build if isinstance(build, nn.Module) else build(num_classes)
        self.num_classes = num_classes
        self.class_names = class_names or [f"class_{index}" for index in range(num_classes)]
        self.palette = palette
        self.ignore_index = ignore_index
        self.optimizer = optimizer
        self.lr = lr
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.backbone_lr_factor = backbone_lr_factor
        self.head_bias_lr_factor = head_bias_lr_factor
        self.decay_all = decay_all
        self.lambda_aux = lambda_aux
        self.freeze_batch_norm = freeze_batch_norm
        self.channels_last = channels_last
        self.compile_network = compile_network
        mean = getattr(self.network, "mean", IMAGENET_MEAN)
        std = getattr(self.network, "std", IMAGENET_STD)
        self.register_buffer("image_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.val_metrics = SegmentationMetrics(num_classes, ignore_index)
        self.test_metrics = SegmentationMetrics(num_classes, ignore_index)
        self.val_loss = WeightedMean()
        self.test_loss = WeightedMean()
        self._random_state = RandomState()
        self._guard = FiniteGuard()

        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile_network:
            self.network.compile()
        if freeze_batch_norm == "encoder" and backbone_of(self.network) is None:
            raise SetupError(
                f"freeze_batch_norm=encoder, but {type(self.network).__name__} has no `encoder` "
                "or `backbone` (option: --model.freeze_batch_norm all)"
            )
        self.train()

    # The network, from raw images to logits

    def normalize(self, image: Tensor) -> Tensor:
        """Bring images to the scale that the network's encoder was trained with.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
        """
        if not image.is_floating_point():
            image = image.float() / 255
        image = ((image - self.image_mean) / self.image_std).to(self.image_mean.dtype)
        return image.contiguous(memory_format=torch.channels_last) if self.channels_last else image

    def outputs(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Return all logits (B, C, H, W) of raw images, `out` (one) and `aux` (any number)."""
        found = self.network(self.normalize(image))
        if isinstance(found, Tensor):
            return {"out": [found], "aux": []}
        if not isinstance(found, Mapping) or "out" not in found:
            raise SetupError(
                f"{type(self.network).__name__} returned a {type(found).__name__}; expected "
                "logits (B, C, H, W), or a dict with them under `out`"
            )
        aux = found.get("aux", [])
        return {"out": [found["out"]], "aux": [aux] if isinstance(aux, Tensor) else list(aux)}

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C, H, W) logits of (B, 3, H, W) RGB images, uint8 or in [0, 1]."""
        return self.outputs(image)["out"][0]

    def train(self, mode: bool = True) -> SegmentationModule:
        """Switch between training and evaluation; frozen batch norms stay in evaluation."""
        super().train(mode)
        frozen = {"none": None, "encoder": backbone_of(self.network), "all": self.network}
        part = frozen[self.freeze_batch_norm]
        for layer in part.modules() if part is not None else ():
            if isinstance(layer, _BatchNorm):
                layer.eval()
        return self

    # Training

    @abstractmethod
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Train on one batch."""

    def supervised_losses(
        self, outputs: dict[str, list[Tensor]], target: Tensor
    ) -> dict[str, Tensor]:
        """Return `loss`, the total of the main and the weighted auxiliary losses, and its parts."""
        main: Tensor = self.loss(outputs["out"][0], target)
        if not outputs["aux"]:
            return {"loss": main}
        aux = torch.stack([self.loss(logits, target) for logits in outputs["aux"]]).sum()
        return {
            "loss": main + self.lambda_aux * aux,
            "loss_main": main.detach(),
            "loss_aux": aux.detach(),
        }

    def log_training(
        self, values: Mapping[str, Tensor], batch: dict[str, Any], other: Tensor | None = None
    ) -> None:
        """Log scalars of a training step as `train/<name>`, the loss on the progress bar too.

        Args:
            values: Scalars, of which `loss` must stay finite.
            batch: The labelled images.
            other: Another loss that must.

        Raises:
            NonFiniteLossError: A loss has become NaN or infinite, now or in a recent step.
        """
        size = len(batch["image"])
        watched = values["loss"] if other is None else values["loss"].detach() + other.detach()
        self._guard.watch(watched, self.trainer.global_step, batch["id"])
        self.log("train/loss", values["loss"].detach(), prog_bar=True, batch_size=size)
        others = {f"train/{name}": value for name, value in values.items() if name != "loss"}
        if others:
            self.log_dict(others, batch_size=size)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Log `data/skipped`, the samples that an epoch had to leave out, on all processes."""
        groups = [batch, *(part for part in batch.values() if isinstance(part, dict))]
        if counts := [group["skipped"].sum() for group in groups if "skipped" in group]:
            skipped = torch.stack(counts).sum().float()
            self.log(
                "data/skipped",
                skipped,
                on_step=False,
                on_epoch=True,
                reduce_fx="sum",
                sync_dist=True,
            )

    def logs_now(self) -> bool:
        """Tell whether this step's values reach the loggers: the time for what is costly."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create the optimizer and, where one is asked for, its schedule."""
        optimizer = build_optimizer(
            self.optimizer,
            self.network,
            self.lr,
            self.backbone_lr_factor,
            self.head_bias_lr_factor,
            self.decay_all,
        )
        return with_schedule(optimizer, self.lr_scheduler, self.lr_interval)

    def on_fit_start(self) -> None:
        """Silence Lightning's doubts about layers in evaluation mode where they are wanted."""
        if self.freeze_batch_norm != "none":
            warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start")

    def on_train_start(self) -> None:
        """Tell schedules how long the training is; not known before the loaders are there."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, PolyLR):
                config.scheduler.set_length(self.trainer.estimated_stepping_batches)

    # Evaluation and prediction

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count a validation batch."""
        self._evaluate(batch, self.val_metrics, self.val_loss)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count a test batch."""
        self._evaluate(batch, self.test_metrics, self.test_loss)

    def on_validation_epoch_end(self) -> None:
        """Log `val/miou`, `val/iou/<class>`, the accuracies and `val/loss`."""
        self._log_scores("val", self.val_metrics, self.val_loss)

    def on_test_epoch_end(self) -> None:
        """Log `test/miou`, `test/iou/<class>`, the accuracies and `test/loss`."""
        self._log_scores("test", self.test_metrics, self.test_loss)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return `labels`, (B, H, W) uint8 class ids at the images' own size, and their `id`s."""
        return {"id": batch["id"], "labels": _labels(self(batch["image"])).to(torch.uint8)}

    def _evaluate(
        self, batch: dict[str, Any], metrics: SegmentationMetrics, mean_loss: WeightedMean
    ) -> None:
        logits, target = self(batch["image"]), batch["mask"]
        metrics.update(_labels(logits), target)
        # a mean over pixels, whatever the batches; copies that even out processes have none
        labelled = (target != self.ignore_index).sum()
        mean_loss.update(self.loss(logits, target), labelled)

    def _log_scores(
        self, stage: str, metrics: SegmentationMetrics, mean_loss: WeightedMean
    ) -> None:
        scores = {"loss": mean_loss.compute(), **metrics.compute()}
        for each in (metrics, mean_loss):
            each.reset()
        iou, _ = scores.pop("iou"), scores.pop("accuracy")
        self.log(f"{stage}/miou", scores.pop("miou"), prog_bar=True, sync_dist=True)
        named = {f"{stage}/{name}": value for name, value in scores.items()}
        named |= {f"{stage}/iou/{name}": iou[i] for i, name in enumerate(self.class_names)}
        self.log_dict(named, sync_dist=True)  # all processes hold the same: it averages nothing

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the random state, so that a resumed run draws the same dropout masks."""
        self._guard.check()
        checkpoint["random_state"] = self._random_state.capture()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes or another network; keep its random state."""
        theirs = checkpoint.get("hyper_parameters", {}).get("num_classes", self.num_classes)
        if theirs != self.num_classes:
            raise SetupError(
                f"the checkpoint was trained for {theirs} classes, the data has "
                f"{self.num_classes} ({', '.join(self.class_names[:6])}, ...): use its data "
                "(options: --data, --ckpt_path)"
            )
        require_same_tensors(self.state_dict(), checkpoint["state_dict"])
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit":  # not when only weights are wanted
            self._random_state.keep(checkpoint.get("random_state"))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go on with the random state of the checkpoint, once."""
        self._random_state.restore()


def labeled_part(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the `labeled` group of a semi-supervised batch; any other batch as it is."""
    part: dict[str, Any] = batch.get("labeled", batch)
    return part


def _labels(logits: Tensor) -> Tensor:
    """Return the class of the largest logit, (B, C, H, W) -> (B, H, W) int64."""
    return logits.max(dim=1).indices  # argmax(1) takes ten times as long on CPUs
