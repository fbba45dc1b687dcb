"""The assembler: an encoder, a head, perhaps an auxiliary head, logits at the input size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder


class EncoderHead(nn.Module):
    """A segmentation network made of an encoder and a head.

    Args:
        encoder: Returns a list of feature maps, shallow to deep.
        head: Takes that list and returns logits at any resolution, or a dict of them with the
            keys `out` and `aux`.
        aux_head: Like `head`, for the auxiliary logits of deep supervision. It runs in training
            mode only.

    Attributes:
        mean: Per-channel mean that the input is expected to be normalised with, RGB in [0, 1].
        std: Likewise the standard deviation.

    Shape:
        (B, 3, H, W) float, normalised -> dict with `out` (B, C, H, W) logits, and in training
        mode `aux` (B, C, H, W) where there is an auxiliary head. H and W are arbitrary:
        logits are resized bilinearly (align_corners=False) to the input size.
    """

    def __init__(
        self, encoder: TimmEncoder, head: nn.Module, aux_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head
        self.mean, self.std = encoder.mean, encoder.std

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits at the image's size."""
        features = self.encoder(image)
        found = self.head(features)
        logits = dict(found) if isinstance(found, Mapping) else {"out": found}
        if self.aux_head is not None and self.training:
            logits["aux"] = self.aux_head(features)
        if not self.training:
            logits.pop("aux", None)
        size = image.shape[-2:]
        return {name: resize(value, size) for name, value in logits.items()}


class OnMap(nn.Module):
    """Applies a module to one of the encoder's feature maps.

    Args:
        module: Takes a (B, C, H, W) tensor.
        index: Position in the list of maps, shallow to deep; negative counts from the deepest.
    """

    def __init__(self, module: nn.Module, index: int) -> None:
        super().__init__()
        self.module = module
        self.index = index

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return what the module makes of the chosen map."""
        return cast(Tensor, self.module(features[self.index]))


def resize(value: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) to (B, C, *size) by the project's one interpolation rule."""
    size = tuple(size)
    if tuple(value.shape[-2:]) == size:
        return value
    return F.interpolate(value, size=size, mode="bilinear", align_corners=False)


def require_batch(image_level: nn.Module, features: Tensor) -> None:
    """Stop a training step whose batch norm would see one value per channel.

    Args:
        image_level: The layers that work on globally pooled features.
        features: (B, C, H, W), the map that is pooled.

    Raises:
        SetupError: One image on this device, and a batch norm among the layers is training.
    """
    if features.shape[0] > 1:
        return
    for layer in image_level.modules():
        if layer.training and type(layer) is nn.BatchNorm2d:
            raise SetupError(
                "the network pools each image to one value per channel, which batch norm cannot "
                "normalise over a single image: 2 or more images per device (options: "
                "--data.batch_size and, for unlabelled ones, --data.unlabeled_batch_size), both "
                "kinds at once (--model.joint_forward true), --trainer.sync_batchnorm true, or "
                "--model.freeze_batch_norm all"
            )
