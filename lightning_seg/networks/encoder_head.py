"""The assembler: an encoder, a head and perhaps an auxiliary head give logits at the input size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.numerics import resize


class EncoderHead(nn.Module):
    """A segmentation network made of an encoder and a head.

    Args:
        encoder: Returns a list of feature maps, from shallow to deep.
        head: Takes the list and returns logits at any resolution, or a dict of logits with the
            keys `out` and `aux`.
        aux_head: Takes the list and returns the auxiliary logits of deep supervision. It runs in
            training mode only. None adds no auxiliary head.

    Attributes:
        mean: Mean of the R, G and B of the input, in [0, 1], that the encoder was trained with.
        std: Standard deviation of the R, G and B of the input that the encoder was trained with.

    Shape:
        (B, 3, H, W) float, normalised with `mean` and `std` -> a dict with the logits `out`, and
        in training mode `aux` where the network has auxiliary logits, all (B, C, H, W). H and W
        are arbitrary: the image is filled up to a size that the encoder takes, and logits are
        resized to it bilinearly with `align_corners=False` and cropped.
    """

    def __init__(
        self, encoder: TimmEncoder, head: nn.Module, aux_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head
        self.mean, self.std = encoder.mean, encoder.std

    def forward(self, image: Tensor, full_size: bool = True) -> dict[str, Tensor]:
        """Return the logits at the size of the image.

        Args:
            image: (B, 3, H, W) float, normalised with `mean` and `std`.
            full_size: False returns logits at the size of the head, (B, C, h, w), for losses that
                upsample them block by block. An image that has to be filled up gives logits at the
                size of the image all the same, and so does a head whose logits are larger.

        Returns:
            (B, C, H, W) logits `out`, and in training mode `aux` where the network has them.
        """
        wanted = image.shape[-2:]
        if isinstance(self.encoder, TimmEncoder):
            image = self.encoder.pad(image)
        features = self.encoder(image)
        outputs = self.head(features)
        logits = dict(outputs) if isinstance(outputs, Mapping) else {"out": outputs}
        if self.aux_head is not None and self.training:
            logits["aux"] = self.aux_head(features)
        if not self.training:
            logits.pop("aux", None)
        size = image.shape[-2:]
        if not full_size and size == wanted:
            return {
                # a decoder may return a row or column more than an image of an odd size has
                name: value if _fits(value, size) else resize(value, size)
                for name, value in logits.items()
            }
        whole = {name: resize(value, size) for name, value in logits.items()}
        if size == wanted:
            return whole
        return {name: value[..., : wanted[0], : wanted[1]] for name, value in whole.items()}


def _fits(value: Tensor, size: Sequence[int]) -> bool:
    """Return whether (B, C, h, w) maps are no larger than a size (H, W)."""
    return value.shape[2] <= size[0] and value.shape[3] <= size[1]


class OnMap(nn.Module):
    """A module on one of the feature maps of an encoder.

    Args:
        module: Takes a (B, C, H, W) tensor.
        index: Position of the feature map in the list, from shallow to deep; negative numbers
            count from the deepest.
    """

    def __init__(self, module: nn.Module, index: int) -> None:
        super().__init__()
        self.module = module
        self.index = index

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the output of the module for the chosen feature map.

        Args:
            features: Feature maps from shallow to deep.
        """
        return cast(Tensor, self.module(features[self.index]))


def require_batch(image_level: nn.Module, features: Tensor) -> None:
    """Raise an error before batch norm gets a single value per channel in training.

    Args:
        image_level: The layers that take features pooled to one value per image and channel.
        features: (B, C, H, W), the feature map that is pooled.

    Raises:
        SetupError: The batch on this device is a single image, and one of the layers is a
            `BatchNorm2d` in training mode.
    """
    if features.shape[0] > 1:
        return
    for layer in image_level.modules():
        if layer.training and type(layer) is nn.BatchNorm2d:
            raise too_few_images()


def too_few_images() -> SetupError:
    """Return the error for batch norms that get a single value per channel in training."""
    return SetupError(
        "the network pools each image to one value per channel, which batch norm cannot "
        "normalise over a single image: it needs 2 or more images per device, "
        "SyncBatchNorm over several devices, or batch norm in evaluation mode",
        option=("data.batch_size", "trainer.sync_batchnorm true", "freeze_batch_norm all"),
    )
