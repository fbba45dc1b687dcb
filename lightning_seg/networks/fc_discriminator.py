"""The fully convolutional discriminator of adversarial semi-supervised segmentation.

W.-C. Hung, Y.-H. Tsai, Y.-T. Liou, Y.-Y. Lin, M.-H. Yang: Adversarial Learning for Semi-Supervised
Semantic Segmentation (BMVC 2018, arXiv 1802.07934).
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.label_convolution import label_convolution

SMALLEST = 32
"""The smallest side, in pixels, of a map that yields a logit."""


class FCDiscriminator(nn.Module):
    """A classifier of places of a class map: labels against predictions.

    Five 4x4 convolutions of stride 2 with leaky ReLUs between them; there is no normalisation and
    no sigmoid. Each logit stands for 32x32 pixels and has a receptive field of 94x94. With 21
    classes the network has 2,783,169 parameters, as in the authors' code.

    Args:
        num_classes: Channels C of a class map.
        width: Channels of the first convolution, at least 1; each of the next three doubles them.

    Shape:
        (B, C, H, W) class probabilities or one-hot labels, or (B, H, W) class ids
        -> (B, 1, H // 32, W // 32) logits.

    Examples:
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
        """Return the logits, large where a map is taken for a label.

        Args:
            maps: (B, C, H, W) class probabilities or one-hot labels, at least 32x32 pixels; or
                (B, H, W) int64 class ids in [0, C], where C is void. Class ids give the logits of
                their one-hot vectors, which need not be made.

        Returns:
            (B, 1, H // 32, W // 32) logits.

        Raises:
            SetupError: The maps have less than 32x32 pixels.
        """
        if min(maps.shape[-2:]) < SMALLEST:
            raise SetupError(
                f"FCDiscriminator needs maps of at least {SMALLEST}x{SMALLEST} pixels, not "
                f"{maps.shape[-2]}x{maps.shape[-1]}",
                option="data.crop_size",
            )
        first, *others = self.layers
        if maps.is_floating_point():
            scores: Tensor = first(maps)
        else:
            assert isinstance(first, nn.Conv2d)
            scores = label_convolution(maps, first)
        for layer in others:
            scores = layer(scores)
        return scores
