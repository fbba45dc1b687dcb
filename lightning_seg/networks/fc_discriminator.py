"""The fully convolutional discriminator of adversarial semi-supervised segmentation."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_seg.errors import SetupError

SMALLEST = 32


class FCDiscriminator(nn.Module):
    """Tells for every place of a class map whether it is a label's or a prediction's.

    Five convolutions of 4x4 at stride 2, leaky ReLUs between them, no normalisation and no sigmoid:
    one logit for every 32x32 pixels, each of which has seen 94x94. 2,783,169 parameters for 21
    classes.

    W.-C. Hung, Y.-H. Tsai, Y.-T. Liou, Y.-Y. Lin, M.-H. Yang: Adversarial Learning for
    Semi-Supervised Semantic Segmentation (BMVC 2018, arXiv 1802.07934).

    Args:
        num_classes: Channels C of a class map.
        width: Channels of the first convolution; each of the next three doubles them.

    Example:
        >>> import torch
        >>> discriminator = FCDiscriminator(21)
        >>> sum(weight.numel() for weight in discriminator.parameters())
        2783169
        >>> discriminator(torch.rand(1, 21, 321, 321)).shape
        torch.Size([1, 1, 10, 10])
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = num_classes
        for after in (width, 2 * width, 4 * width, 8 * width):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, stride=2, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, 1, H // 32, W // 32) logits, large for labels, of (B, C, H, W) maps.

        Raises:
            SetupError: Maps of less than 32 x 32 pixels.
        """
        if min(maps.shape[-2:]) < SMALLEST:
            raise SetupError(
                f"FCDiscriminator needs maps of at least {SMALLEST}x{SMALLEST} pixels, not "
                f"{maps.shape[-2]}x{maps.shape[-1]} (option: --data.crop_size)"
            )
        scores: Tensor = self.layers(maps)
        return scores
