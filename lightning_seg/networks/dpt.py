"""DPT: a pyramid and a decoder for plain vision transformers.

R. Ranftl, A. Bochkovskiy, V. Koltun: Vision Transformers for Dense Prediction (ICCV 2021, arXiv
2103.13413).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead


class DPT(EncoderHead):
    """A vision transformer whose maps of one stride become a pyramid, with a decoder on it.

    Four maps of the encoder, evenly spread over its depth, are resized to the strides 4, 8, 16 and
    32 by learnt layers, and fused from deep to shallow by the decoder of
    segmentation-models-pytorch. Encoders with four maps at rising strides work as well. Difference
    from the paper: the class token is not read.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        encoder: Name of a timm model; its further options are those of `TimmEncoder`.
        maps: Indices of four feature maps of the encoder, from shallow to deep; None spreads them
            over the blocks of a plain vision transformer, and takes the last four of others.
        widths: Channels of the four levels of the pyramid, each at least 1.
        fusion: Channels of the decoder, at least 1.
        encoder_options: Further keyword arguments of `TimmEncoder`.

    Raises:
        SetupError: `maps` or `widths` are not four, or the encoder has fewer maps.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, (B, C, H, W).
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vit_small_patch14_dinov2.lvd142m",
        maps: Sequence[int] | None = None,
        widths: Sequence[int] = (96, 192, 384, 768),
        fusion: int = 256,
        **encoder_options: Any,
    ) -> None:
        trunk = TimmEncoder(encoder, out_indices=maps or 4, **encoder_options)
        if not len(trunk.channels) == len(widths) == 4:
            raise SetupError(
                f"DPT takes four maps of the encoder and four widths, not {len(trunk.channels)} "
                f"and {len(widths)}",
                option=("maps", "widths", "encoder"),
            )
        super().__init__(
            trunk, DPTHead(trunk.channels, trunk.reductions, num_classes, widths, fusion)
        )
        # the deepest level has half the side of a plain transformer's maps
        deepest = max(trunk.reductions)
        plain = min(trunk.reductions) == deepest
        trunk.need_multiples_of(2 * deepest if plain else deepest)


class DPTHead(nn.Module):
    """Four maps become a pyramid, which is fused from deep to shallow and classified.

    Args:
        in_channels: Channels of the four maps.
        reductions: Input pixels per pixel of the four maps: equal, or 4, 8, 16 and 32.
        num_classes: Number of classes C.
        widths: Channels of the four levels.
        fusion: Channels of the decoder.

    Shape:
        Four (B, in_channels[i], h_i, w_i) maps -> (B, C, 8 h_0, 8 w_0) logits of a plain
        transformer, (B, C, 2 h_0, 2 w_0) of others.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        widths: Sequence[int],
        fusion: int,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

        # the factors between the levels matter, not the strides: patches of 14 count as 16
        plain = min(reductions) == max(reductions)
        self.decoder = DPTDecoder(
            encoder_out_channels=in_channels,
            encoder_output_strides=[16] * 4 if plain else [4, 8, 16, 32],
            readout="ignore",
            intermediate_channels=widths,
            fusion_channels=fusion,
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(fusion, fusion, 3, padding=1, bias=False),
            nn.BatchNorm2d(fusion),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(fusion, num_classes, 1),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the logits.

        Args:
            features: Four maps from shallow to deep.

        Returns:
            (B, C, 8 h, 8 w) or (B, C, 2 h, 2 w) logits for a first map of (h, w).
        """
        logits: Tensor = self.classifier(self.decoder(features, [None] * 4))
        return logits
