"""U-Net: any timm encoder with the decoder of segmentation-models-pytorch.

O. Ronneberger, P. Fischer, T. Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation
(2015, arXiv 1505.04597).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead


class UNet(EncoderHead):
    """An encoder and a decoder with a skip connection at every resolution.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        decoder_channels: Channels of the decoder stages from deep to shallow, one number per
            feature map of the encoder; surplus numbers are unused.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Raises:
        SetupError: `decoder_channels` has fewer numbers than the encoder has feature maps.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, (B, C, H, W).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet50.tv_in1k",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(encoder, **encoder_options)
        head = UNetHead(trunk.channels, num_classes, decoder_channels, min(2, trunk.reductions[0]))
        super().__init__(trunk, head)


class UNetHead(nn.Module):
    """The decoder of U-Net and a 3x3 classifier.

    Args:
        in_channels: Channels of the encoder's feature maps, from shallow to deep.
        num_classes: Number of classes C.
        decoder_channels: Channels of the decoder stages from deep to shallow, one number per
            feature map; surplus numbers are unused.
        upsampling: Factor from the side of the shallowest feature map to the side of the logits.

    Raises:
        SetupError: `decoder_channels` has fewer numbers than there are feature maps.

    Shape:
        Feature maps at rising strides, the first (B, in_channels[0], h, w) -> (B, C, upsampling *
        h, upsampling * w) logits.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        decoder_channels: Sequence[int],
        upsampling: int = 2,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.upsampling = upsampling
        depth = len(in_channels)
        if len(decoder_channels) < depth:
            raise SetupError(
                f"decoder_channels {tuple(decoder_channels)} has fewer stages than the encoder's "
                f"{depth} maps",
                option="decoder_channels",
            )
        widths = list(decoder_channels[:depth])
        self.decoder = UnetDecoder([0, *in_channels], widths, n_blocks=depth)
        self.classifier = SegmentationHead(widths[-1], num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the logits.

        Args:
            features: Feature maps from shallow to deep.

        Returns:
            (B, C, upsampling * h, upsampling * w) logits.
        """
        # Of its first map, an image, the decoder reads only the size, which its output has too.
        height, width = (self.upsampling * side for side in features[0].shape[-2:])
        image = features[0].new_empty(1, 1, height, width)
        logits: Tensor = self.classifier(self.decoder([image, *features]))
        return logits
