"""What every method shares: the input of the network, optimization and checkpoints."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.networks.encoder import checkpoint_encoder
from lightning_seg.networks.encoder_weights import InputMode
from lightning_seg.signatures import ExplicitSignature
from lightning_seg.training.checkpoints import (
    RandomState,
    keep_what_a_checkpoint_needs,
    require_same_tensors,
    take_usual_order,
)
from lightning_seg.training.frozen_layers import (
    FrozenNorms,
    facts,
    freeze,
    keep_in_evaluation_mode,
    require_norms,
)
from lightning_seg.training.fused import prefer_fused
from lightning_seg.training.gradients import share_statistics
from lightning_seg.training.image_input import ImageInput
from lightning_seg.training.loss_guard import FiniteGuard
from lightning_seg.training.optimization import (
    PolyLR,
    build_optimizer,
    require_decay,
    with_schedule,
)
from lightning_seg.training.sharding import ShardedStrategy, require_strategy, shard
from lightning_seg.training.step_numbers import number_steps, step_is_logged
from lightning_seg.training.synchronized_norms import SynchronizedNorms
from lightning_seg.views import PointsView, Views


class MethodModule(ExplicitSignature, ImageInput, ABC):
    """Base of all methods: a network that learns by one `training_step`.

    Args:
        network: A module that takes normalised (B, channels, H, W) images. Images are normalised by
            `image_mean` and `image_std`, by the attributes `mean` and `std` of the network or of
            its encoder, or by ImageNet's, whichever comes first.
        optimizer: Function from parameter groups to an optimizer, such as a class of torch.optim.
        lr: Learning rate; None keeps the default of the optimizer.
        lr_scheduler: Function from the optimizer to a learning rate schedule; None keeps the
            learning rate constant.
        lr_interval: The schedule advances after every `step` or after every `epoch`.
        backbone_lr_factor: Factor on the learning rate of the network's `encoder` or `backbone`.
        backbone_lr_decay: Factor d in (0, 1] by which the learning rate falls from layer to layer
            of a timm encoder (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254). Of the layers
            k = 0 (the stem) to n - 1 (the deepest), as timm groups them, layer k has the learning
            rate lr * backbone_lr_factor * d^(n - k). The head, which would be layer n, has lr.
        head_bias_lr_factor: Factor on the learning rate of the biases outside the backbone.
        decay_all: Whether weight decay acts on all weights; False excludes biases and the scales
            of norms.
        freeze_encoder: Whether the network's `encoder` or `backbone` keeps its weights. It is in
            evaluation mode in training, too, no activation is kept for it, and the learning rates
            of the encoder have no effect.
        freeze_batch_norm: `encoder` or `all` batch norms keep their running statistics and
            normalise by them in training, too. Their scale and shift are still trained.
            `pretrained` is `encoder` where the encoder starts from pretrained weights, and `none`
            where its weights are random.
        input_mode: `rgb` shows the network images in colour, `gray` the mean of the channels,
            three times. None takes the mode that the encoder's weight file was trained in, and
            `rgb` without such a file.
        channels: Number of channels of the images. A network for RGB gets a first layer for so many
            channels; pretrained weights are adapted as timm does.
        image_mean: Mean of each channel, in [0, 1]; None takes the network's.
        image_std: Standard deviation of each channel, above 0; None takes the network's.
        picture_channels: The channels, from 0, that pictures show as red, green and blue, or a
            single one that they show in grey; None shows the first three, or the only one.
        channels_last: Whether images and weights are kept in channels-last memory order, which
            changes rounding only. Default chosen here: on one CPU thread a training step takes 0.82
            to 0.91 times the time with light encoders, and 0.95 to 1.02 times with heavy ones.
        across_ranks: Whether a mean in a loss is over the batches of all processes, so that they
            train as one process with all of these images. False takes the mean in each process, so
            that a process with few labelled pixels counts as much as one with many. The option sets
            `across_ranks` of the losses that a method is given, too. It makes no difference in a
            single process. Default chosen here: with six times as many labels in one of two
            processes, updates otherwise differ from those of one process by 37 to 64 % of their
            length, and an exchange takes 0.3 ms.
        compile_network: Whether the network is compiled by `torch.compile`. Checkpoints do not
            depend on it.
        checkpoint_activations: Whether the encoder keeps the activations between its blocks only,
            and computes those inside a block again in the backward pass, which saves memory and
            takes about a third more time. Its batch norms must be frozen.

    Attributes:
        needs: The key that a batch must hold for this method, the reason, and the option to change
            where the key is missing.
        trains_encoder: Whether the encoder is all that the method trains for.
        class_names: One name per class; empty for methods without classes.
        palette: One RGB colour in 0..255 per class; None takes those of PASCAL VOC.
        val_confusion: (C, C) int64 pixels of the last validation at [label, prediction], on the
            CPU; None before the first one, and for methods without classes.

    Raises:
        SetupError: Two settings contradict each other.
    """

    class_names: Sequence[str] = ()
    palette: Sequence[Sequence[int]] | None = None
    val_confusion: Tensor | None = None
    needs: tuple[str, str, str] | None = None
    trains_encoder = False

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr: float | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "step",
        backbone_lr_factor: float = 1.0,
        backbone_lr_decay: float = 1.0,
        head_bias_lr_factor: float = 1.0,
        decay_all: bool = True,
        freeze_encoder: bool = False,
        freeze_batch_norm: FrozenNorms = "none",
        input_mode: InputMode | None = None,
        across_ranks: bool = True,
        channels: int = 3,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        picture_channels: list[int] | None = None,
        channels_last: bool = True,
        compile_network: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute .* is an instance of `nn.Module`")
            self.save_hyperparameters()
        keep_what_a_checkpoint_needs(self._hparams, type(self))
        self._hparams_initial = dict(self._hparams)

        require_range(0, math.inf, backbone_lr_factor=backbone_lr_factor)
        require_range(0, math.inf, head_bias_lr_factor=head_bias_lr_factor)
        require_decay(backbone_lr_decay)
        if lr is not None:
            require_range(0, math.inf, lr=lr)
        self.network = network
        self.optimizer = optimizer
        self.lr = lr
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.backbone_lr_factor = backbone_lr_factor
        self.backbone_lr_decay = backbone_lr_decay
        self.head_bias_lr_factor = head_bias_lr_factor
        self.decay_all = decay_all
        self.freeze_encoder = freeze_encoder
        self.freeze_batch_norm: FrozenNorms = freeze_batch_norm
        self.across_ranks = across_ranks
        self.channels_last = channels_last
        self.compile_network = compile_network
        self._take_input(network, input_mode, channels, image_mean, image_std)
        self.picture_channels = picture_channels
        self._random_state = RandomState()
        self._guard = FiniteGuard()
        self._numbered = True  # whether Lightning's counter of steps is known to be right

        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile_network:
            self.network.compile()
        require_norms(self.network, freeze_batch_norm)
        if freeze_encoder:
            freeze(self.network, checkpoint_activations, type(self).__name__ * self.trains_encoder)
        self.train()
        if checkpoint_activations:
            checkpoint_encoder(self.network)

    def train(self, mode: bool = True) -> MethodModule:
        """Switch between training and evaluation mode; what is frozen stays in the latter."""
        super().train(mode)
        keep_in_evaluation_mode(self.network, self.freeze_encoder, self.freeze_batch_norm)
        return self

    # Training

    @abstractmethod
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Train on one batch."""

    def log_training(
        self, values: Mapping[str, Tensor], batch: dict[str, Any], other: Tensor | None = None
    ) -> None:
        """Log the scalars of a training step as `train/<name>`; the progress bar shows the loss.

        Args:
            values: Scalars by name. `loss` must stay finite.
            batch: The batch, with `image` and `id`.
            other: A second loss that must stay finite.

        Raises:
            NonFiniteLossError: One of the losses is NaN or infinite, in this or a recent step.
        """
        size = len(batch["image"])
        watched = values["loss"] if other is None else values["loss"].detach() + other.detach()
        self._guard.watch(watched, self.trainer.global_step, batch["id"])
        self.log("train/loss", values["loss"].detach(), prog_bar=True, batch_size=size)
        others = {f"train/{name}": value for name, value in values.items() if name != "loss"}
        if others:
            self.log_dict(others, batch_size=size)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Log `data/skipped`, the number of unusable samples in an epoch, over all processes."""
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

    # Pictures

    def views(self, batch: dict[str, Any]) -> Views:
        """Return what the method sees in one validation image, by the heading of each view.

        The pictures of a training show the views of a few images. The module is in evaluation mode
        and no gradient is recorded when it is asked.

        Args:
            batch: A batch of one image: `image` (1, channels, H, W), `id`, and `mask` (1, H, W)
                where the image has labels.
        """
        return {}

    def overviews(self) -> dict[str, PointsView]:
        """Return what the method saw in all images of the last validation, by name."""
        return {}

    def logs_now(self) -> bool:
        """Return whether the loggers get this step's values: only then are costly ones computed."""
        return step_is_logged(self.trainer)

    def setup(self, stage: str) -> None:
        """Let `sync_batchnorm` keep the activations of batch norms, and work on CPUs."""
        strategy = self.trainer.strategy
        if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
            strategy._layer_sync = SynchronizedNorms(strategy.root_device)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Create the optimizer and, unless `lr_scheduler` is None, its schedule."""
        optimizer = build_optimizer(
            self.optimizer,
            self.network,
            self.lr,
            1.0 if self.freeze_encoder else self.backbone_lr_factor,
            self.head_bias_lr_factor,
            self.decay_all,
            1.0 if self.freeze_encoder else self.backbone_lr_decay,
        )
        prefer_fused(optimizer, self._trainer)
        return with_schedule(optimizer, self.lr_scheduler, self.lr_interval)

    def configure_model(self) -> None:
        """Spread the weights over all processes where the strategy is `ShardedStrategy`."""
        if self._trainer is None:  # a checkpoint is loaded outside a run
            return
        strategy = self.trainer.strategy
        require_strategy(strategy)
        if isinstance(strategy, ShardedStrategy):
            assert self.device_mesh is not None
            self.network.to(memory_format=torch.contiguous_format)  # all that FSDP2 shards
            self.network = shard(self.network, strategy, self.device_mesh)

    def on_fit_start(self) -> None:
        """Report the network's size and the origin of its weights; set up the losses."""
        for loss in self.modules():  # those of the method, and one that it was given
            if isinstance(getattr(loss, "across_ranks", None), bool):
                setattr(loss, "across_ranks", self.across_ranks)  # noqa: B010
        resumed = self.trainer.ckpt_path is not None
        for line in facts(self.network, self.freeze_encoder, self.freeze_batch_norm, resumed):
            rank_zero_info(line)
        if self.input_mode != (self._trained_input_mode() or self.input_mode):
            rank_zero_info(
                f"the encoder was trained on {self._trained_input_mode()} images and now sees "
                f"{self.input_mode} images"
            )
        if self.freeze_batch_norm != "none" or self.freeze_encoder:
            self.expect_evaluation_mode()

    def expect_evaluation_mode(self) -> None:
        """Let some layers train in evaluation mode on purpose, without Lightning's warning."""
        warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start")

    def on_train_start(self) -> None:
        """Set the length of the schedules, which is known once the loaders are there."""
        self._numbered = False
        self._random_state.diverge()
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, PolyLR):
                config.scheduler.set_length(self.trainer.estimated_stepping_batches)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the random state, so that a resumed run draws the same random numbers."""
        self._guard.check()
        take_usual_order(checkpoint)
        checkpoint["random_state"] = self._random_state.capture()
        checkpoint |= self.input_facts()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise for a checkpoint of another network or input; keep its random state."""
        if "state_dict" in checkpoint:  # which ShardedStrategy has loaded by itself
            require_same_tensors(self.state_dict(), checkpoint["state_dict"])
        self.take_input_facts(checkpoint)
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit":  # not when only weights are wanted
            self._random_state.keep(checkpoint.get("random_state"))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the batch, and restore the random state of a checkpoint before the first one."""
        self._require_needs(batch)
        self._number(0)
        self._numbered = True
        self._random_state.restore()

    def on_validation_start(self) -> None:
        """Validate in all processes what a checkpoint holds, the statistics of the first one."""
        share_statistics(self)

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Check the batch, also in Lightning's check before training."""
        self._require_needs(batch)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._number(1)

    def _number(self, uncounted: int) -> None:
        if not self._numbered:  # before the first step of a training that was resumed
            number_steps(self.trainer, uncounted)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the batch."""
        self._require_needs(batch)

    def _require_needs(self, batch: dict[str, Any]) -> None:
        if self.needs is None:
            return
        key, reason, option = self.needs
        part = batch.get("labeled", batch)
        if "image" in part and key not in part:
            raise SetupError(
                f"{type(self).__name__} learns from `{key}`, and batches hold "
                f"{', '.join(part)}: {reason}",
                option=option,
            )
