"""U-Net (2015, arXiv 1505.04597): any timm encoder, segmentation-models-pytorch's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead


class UNet(EncoderHead):
    """An encoder whose every map is handed to the decoder stage of the same resolution.

    Args:
        num_classes: Channels of the logits.
        encoder: A timm name; see `TimmEncoder` for the further options.
        decoder_channels: Width of the decoder stages, deep to shallow, one per encoder map.
        encoder_options: Passed to `TimmEncoder`.
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
    """The decoder and a 3x3 classifier.

    Args:
        in_channels: Channels of the encoder's maps, shallow to deep.
        num_classes: Channels of the logits.
        decoder_channels: Width of the decoder stages, deep to shallow; surplus ones are unused.
        upsampling: Factor from the shallowest map to the logits.

    Shape:
        Maps at rising strides -> logits at `upsampling` times the shallowest map's resolution.
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
                f"{depth} maps (option: --model.network.decoder_channels)"
            )
        widths = list(decoder_channels[:depth])
        self.decoder = UnetDecoder([0, *in_channels], widths, n_blocks=depth)
        self.classifier = SegmentationHead(widths[-1], num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits."""
        # of its first map the decoder reads only the size, which is that of its result
        height, width = (self.upsampling * side for side in features[0].shape[-2:])
        image = features[0].new_empty(1, 1, height, width)
        logits: Tensor = self.classifier(self.decoder([image, *features]))
        return logits
