"""The network of colorization: an encoder, read at single pixels, and two linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.hypercolumn import read_at


class ColorizationNetwork(nn.Module):
    """An encoder, and two linear layers that guess a pixel's colour from its hypercolumn.

    Args:
        encoder: All its maps are read; each has to be (B, channels, rows, columns).
        outputs: Logits per location.
        width: Units of the hidden layer.
        dropout: Of these, in [0, 1).
        init_std: Standard deviation that the hidden layer's weights start with, and its biases
            with 0; 1e-4 in the code of Larsson et al. None takes PyTorch's own.

    Raises:
        SetupError: Settings out of range.

    Example:
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
        for name, value in (("outputs", outputs), ("width", width)):
            if value < 1:
                raise SetupError(f"{name} must be at least 1, not {value} (option: --model.{name})")
        if not 0 <= dropout < 1:
            raise SetupError(f"dropout must be in [0, 1), not {dropout} (option: --model.dropout)")
        if init_std is not None and not 0 < init_std < float("inf"):
            raise SetupError(
                f"init_std must be above 0 and finite, not {init_std} (option: --model.init_std)"
            )
        self.encoder = encoder
        hidden = nn.Linear(sum(encoder.channels), width)
        if init_std is not None:
            nn.init.normal_(hidden.weight, std=init_std)
            nn.init.zeros_(hidden.bias)
        self.head = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, image: Tensor, locations: Tensor) -> Tensor:
        """Return (B, K, outputs) logits.

        Args:
            image: (B, 3, H, W), normalised.
            locations: (B, K, 2) rows and columns in pixels, integers or floats.

        Raises:
            ValueError: Locations that do not fit.
        """
        height, width = image.shape[-2:]
        columns = read_at(self.encoder(image), (height, width), locations)
        logits: Tensor = self.head(columns)
        return logits

    def head_penalty(self) -> Tensor:
        """Return the sum of squares of the head's two weight matrices, without the biases."""
        matrices = [layer.weight for layer in self.head if isinstance(layer, nn.Linear)]
        return torch.stack([each.square().sum() for each in matrices]).sum()
