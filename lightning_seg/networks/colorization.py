"""The network of colorization: an encoder whose hypercolumns predict the colours of single pixels.

G. Larsson, M. Maire, G. Shakhnarovich: Colorization as a Proxy Task for Visual Understanding (CVPR
2017, arXiv 1703.04044).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_range
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.hypercolumn import read_at


class ColorizationNetwork(nn.Module):
    """An encoder, and a head of two linear layers on the hypercolumns of single pixels.

    Args:
        encoder: All its feature maps are read; each must be (B, channels, rows, columns).
        outputs: Number of logits per pixel, at least 1.
        width: Units of the hidden layer of the head, at least 1.
        dropout: Probability in [0, 1) of dropping a hidden unit in training.
        init_std: Standard deviation, above 0, of the initial weights of the hidden layer, whose
            biases then start at 0. The authors' code takes 1e-4. None keeps the initialisation of
            PyTorch.

    Raises:
        SetupError: An argument is out of its range.

    Shape:
        (B, 3, H, W) images and (B, K, 2) locations -> (B, K, outputs) logits.

    Examples:
        >>> network = ColorizationNetwork(TimmEncoder("resnet18"), outputs=64, width=16).eval()
        >>> network(torch.zeros(2, 3, 64, 96), torch.zeros(2, 5, 2)).shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        outputs: int,
        width: int = 1024,
        dropout: float = 0.5,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        require_range(1, math.inf, outputs=outputs, width=width)
        if not 0 <= dropout < 1:
            raise SetupError(f"dropout must be in [0, 1), not {dropout}", option="dropout")
        if init_std is not None and not 0 < init_std < math.inf:
            raise SetupError(
                f"init_std must be above 0 and finite, not {init_std}", option="init_std"
            )
        self.encoder = encoder
        hidden = nn.Linear(sum(encoder.channels), width)
        if init_std is not None:
            nn.init.normal_(hidden.weight, std=init_std)
            nn.init.zeros_(hidden.bias)
        self.head = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, image: Tensor, locations: Tensor) -> Tensor:
        """Return the logits at single pixels.

        Args:
            image: (B, 3, H, W), normalised with the mean and std of the encoder.
            locations: (B, K, 2) rows and columns in pixels, integers or floats.

        Returns:
            (B, K, outputs) logits.

        Raises:
            ValueError: The shape of the locations does not fit.
        """
        image = self.encoder.pad(image)
        height, width = image.shape[-2:]
        columns = read_at(self.encoder(image), (height, width), locations)  # (B, K, channels)
        logits: Tensor = self.head(columns)
        return logits

    def head_penalty(self) -> Tensor:
        """Return the sum of the squared weights of both layers of the head, a scalar.

        Biases are left out.
        """
        matrices = [layer.weight for layer in self.head if isinstance(layer, nn.Linear)]
        return torch.stack([each.square().sum() for each in matrices]).sum()
