"""What a method's network gets of an image, and what people see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_weights import InputMode
from lightning_seg.networks.input_channels import statistic, take_channels
from lightning_seg.training.optimization import backbone_of
from lightning_seg.views import rgb_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized(image: Tensor, mean: Tensor, std: Tensor, gray: bool) -> Tensor:
    """Return images normalised channel by channel, in the dtype of the mean.

    Args:
        image: (..., channels, H, W), uint8 in 0..255 or floating point in [0, 1].
        mean: (1, channels, 1, 1) mean of each channel, in [0, 1].
        std: (1, channels, 1, 1) standard deviation of each channel, above 0.
        gray: Whether every channel is replaced by the mean of all channels first.

    Returns:
        (..., channels, H, W).
    """
    if not image.is_floating_point():
        image = image.float() / 255
    if gray:
        image = image.mean(-3, keepdim=True)
    return ((image - mean) / std).to(mean.dtype)


class ImageInput(L.LightningModule):
    """Normalises images for a network, whatever number of channels they have.

    Attributes:
        image_mean: (1, channels, 1, 1) mean of each channel, in [0, 1].
        image_std: (1, channels, 1, 1) standard deviation of each channel.
        input_mode: `rgb`, or `gray` where the network sees the mean of the channels.
    """

    network: nn.Module
    image_mean: Tensor
    image_std: Tensor
    input_mode: InputMode
    channels_last: bool
    picture_channels: list[int] | None

    def _take_input(
        self,
        network: nn.Module,
        input_mode: InputMode | None,
        channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        """Let a network take images of so many channels, and choose their normalisation.

        Args:
            network: The network; its first layer is changed where it takes another number.
            input_mode: `rgb` or `gray`; None takes the mode that the encoder was trained in.
            channels: Number of channels of the images, at least 1.
            mean: Mean of each channel; None takes the network's.
            std: Standard deviation of each channel; None takes the network's.

        Raises:
            SetupError: Two settings contradict each other.
        """
        if input_mode is not None:
            require_one_of("rgb", "gray", input_mode=input_mode)
        self.channels = channels
        self._asked_input_mode = input_mode
        self._asked_statistics = {"image_mean": mean, "image_std": std}
        self.input_mode = input_mode or self._trained_input_mode() or "rgb"
        if channels != 3 and self.input_mode == "gray":
            raise SetupError(
                f"input_mode gray is for RGB images, not for {channels} channels",
                option="input_mode rgb",
            )
        take_channels(network, backbone_of(network), channels)
        source = network if hasattr(network, "mean") else backbone_of(network)
        for name, given, usual in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
            values = getattr(source, name, usual) if given is None else given
            by_channel = statistic(values, channels, f"image_{name}")
            self.register_buffer(f"image_{name}", by_channel, persistent=False)

    def input_facts(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of the input, because a weight file may have said it.

        A run that goes on from a checkpoint does not read the weight file again.
        """
        return {
            "input_mode": self.input_mode,
            "image_mean": self.image_mean.flatten().tolist(),
            "image_std": self.image_std.flatten().tolist(),
            "pretrained": bool(getattr(backbone_of(self.network), "pretrained", False)),
        }

    def take_input_facts(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the input of the training that a checkpoint is of.

        Args:
            checkpoint: The checkpoint, with what `input_facts` returned; older ones have less.

        Raises:
            SetupError: Another input mode, mean or standard deviation was asked for.
        """
        mode = checkpoint.get("input_mode", "rgb")
        if self._asked_input_mode not in (None, mode):
            raise SetupError(
                f"the checkpoint was trained on {mode} images, not on {self._asked_input_mode} "
                "images",
                option="input_mode null",
            )
        self.input_mode = mode
        for name, asked in self._asked_statistics.items():
            trained = checkpoint.get(name)
            if trained is None:
                continue
            if asked is not None and not np.allclose(asked, trained):
                raise SetupError(
                    f"the checkpoint was trained on images normalised by {name} {trained}, not by "
                    f"{list(asked)}",
                    option=f"data.{name} null",
                )
            buffer: Tensor = getattr(self, name)
            buffer.copy_(buffer.new_tensor(trained).view_as(buffer))
        encoder = backbone_of(self.network)
        if encoder is not None and checkpoint.get("pretrained"):
            encoder.pretrained = True  # type: ignore[assignment]
            self.train(self.training)  # which batch norms are frozen may depend on it

    def normalize(self, image: Tensor) -> Tensor:
        """Return images normalised by the mean and standard deviation of the network's input.

        Args:
            image: (..., channels, H, W), uint8 in 0..255 or floating point in [0, 1].

        Returns:
            (..., channels, H, W) in the dtype of `image_mean`.
        """
        gray = self.input_mode == "gray"
        image = normalized(image, self.image_mean, self.image_std, gray)
        if not self.channels_last:
            return image
        # (..., channels, H, W) -> (N, channels, H, W), which alone have this memory order
        flat = image.reshape(-1, *image.shape[-3:]).contiguous(memory_format=torch.channels_last)
        return (
            flat.view(image.shape)
            if image.ndim <= 4
            else torch.unflatten(flat, 0, image.shape[:-3])
        )

    def picture(self, image: Tensor) -> Tensor:
        """Return the (..., 3, H, W) picture of (..., channels, H, W) images, for people."""
        return rgb_of(image, self.picture_channels)

    def _trained_input_mode(self) -> InputMode | None:
        modes = [
            each.input_mode for each in self.network.modules() if isinstance(each, TimmEncoder)
        ]
        return modes[0] if modes else None
