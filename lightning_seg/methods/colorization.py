"""Colorization: an encoder learns what things are by guessing their colours.

It sees grey images, g = (R + G + B) / 3, and is asked for the colours of a few random pixels: its
feature maps are read there, one above the other, a sparse hypercolumn. By default the colour is
a hue and a chroma, both in 32 bins, and with their cross-entropies at location i

    L = 1/N sum_i ( CE(chroma_i) + 5 chroma_i CE(hue_i) ) + 1e-6 |W|^2

where hue means the less the greyer a pixel is, and W are the weights of the head.

G. Larsson, M. Maire, G. Shakhnarovich: Colorization as a Proxy Task for Visual Understanding (CVPR
2017, arXiv 1703.04044). `target: ABGrid` asks for bins of Lab's ab plane instead, as R. Zhang, P.
Isola, A. A. Efros: Colorful Image Colorization (ECCV 2016, arXiv 1603.08511).

Differences from the authors' code: timm's encoders, all of whose maps are read, with three equal
channels of input; the ab grid is made here, 261 bins for the published file's 313.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.errors import require_range
from lightning_seg.losses.colorization import ColorTarget, HueChroma
from lightning_seg.networks.colorization import ColorizationNetwork
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.training.pretraining import ImagePretrainingModule

_STRIDE = 4  # of the pixels that a picture is recoloured by


class ColorizationModule(ImagePretrainingModule):
    """Trains an encoder on images without labels, always in `input_mode: gray`.

    Args:
        encoder: All its maps are read.
        target: What to predict of a colour: `HueChroma`, which None takes, or `ABGrid`.
        locations: Random pixels of each image and step.
        border: Pixels from the image's edge that none is nearer to, in a small image a quarter
            of its side at most.
        width: Units of the hidden layer between hypercolumn and colours.
        dropout: Of these, in [0, 1).
        init_std: Standard deviation that the hidden layer's weights start with, 1e-4 in the
            authors' code; None takes PyTorch's own.
        lambda_head: Weight of the head's squared weights.
        options: Passed to `ImagePretrainingModule`.

    Raises:
        SetupError: Settings out of range.
    """

    headings = ("what it sees", "its guess", "the image")

    def __init__(
        self,
        encoder: TimmEncoder,
        *,
        target: ColorTarget | None = None,
        locations: int = 256,
        border: int = 32,
        width: int = 1024,
        dropout: float = 0.5,
        init_std: float | None = None,
        lambda_head: float = 1e-6,
        **options: Any,
    ) -> None:
        require_range(1, float("inf"), locations=locations, width=width)
        require_range(0, float("inf"), border=border, lambda_head=lambda_head)
        require_range(0, 0.99, dropout=dropout)
        target = HueChroma() if target is None else target
        network = ColorizationNetwork(encoder, target.outputs, width, dropout, init_std)
        super().__init__(network, input_mode="gray", **options)
        self.target = target
        self.locations = locations
        self.border = border
        self.lambda_head = lambda_head

    @property
    def encoder(self) -> TimmEncoder:
        """The network without its head."""
        encoder: TimmEncoder = self.network.encoder  # type: ignore[assignment]
        return encoder

    def forward(self, image: Tensor, locations: Tensor) -> Tensor:
        """Return (B, K, outputs) logits of the colours at (B, K, 2) rows and columns."""
        logits: Tensor = self.network(self.normalize(image), locations)
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of images, whatever labels it has."""
        batch = batch.get("unlabeled", batch)
        image = batch["image"]
        color, _ = self.color_loss(image, self.draw(image), batch.get("valid"))
        loss: Tensor = color + self.lambda_head * self.network.head_penalty()  # type: ignore[operator]
        self.log_training({"loss": loss, "loss_color": color.detach()}, batch)
        return loss

    def draw(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return (B, K, 2) random rows and columns of (B, 3, H, W) images.

        Args:
            image: Only its shape counts.
            generator: Of the CPU; None takes the global one of the image's device.
        """
        device = image.device if generator is None else generator.device
        drawn = torch.rand(len(image), self.locations, 2, generator=generator, device=device)
        places = []
        for axis, side in enumerate(image.shape[-2:]):
            border = min(self.border, side // 4)
            place = border + (drawn[..., axis] * (side - 2 * border)).long()
            # drawn < 1, but rounding may take the product up to the length
            places.append(place.clamp(max=side - border - 1))
        return torch.stack(places, dim=-1).to(image.device)

    def color_loss(
        self, image: Tensor, locations: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss at these locations, and how many of them count.

        Args:
            image: (B, 3, H, W) RGB, uint8 or in [0, 1].
            locations: (B, K, 2) rows and columns.
            valid: (B, H, W) bool, False where there is only padding.
        """
        logits = self(image, locations).flatten(0, 1)
        rgb = _at(image, locations).flatten(0, 1)
        if valid is None:
            counted = torch.ones_like(rgb[:, 0], dtype=torch.bool)
        else:
            counted = _at(valid[:, None], locations).flatten()
        return self.target(logits, rgb, counted), counted.sum()

    @torch.no_grad()
    def recolored(self, image: Tensor) -> Tensor:
        """Return (B, 3, H, W) RGB in [0, 1]: the images in the colours that the network guesses.

        Guessed at every fourth pixel; between them only the grey value is exact.

        Args:
            image: (B, 3, H, W) RGB, uint8 or in [0, 1].
        """
        gray = (image / 255 if not image.is_floating_point() else image).float().mean(1)
        height, width = image.shape[-2:]
        rows, columns = (
            torch.arange(0, side, _STRIDE, device=image.device) for side in (height, width)
        )
        grid = torch.cartesian_prod(rows, columns).expand(len(image), -1, -1)
        logits = self(image, grid).flatten(0, 1)
        at_grid = gray[:, rows][:, :, columns]
        colors = self.target.colors(logits, at_grid.flatten())
        tint = colors.view(len(image), len(rows), len(columns), 3).permute(0, 3, 1, 2)
        tint = F.interpolate(tint - at_grid[:, None], (height, width), mode="bilinear")
        return (gray[:, None] + tint).clamp(0, 1)

    # Validation

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Count a batch, at locations that are the same each time."""
        super().evaluation_step(batch, batch_idx)
        generator = torch.Generator().manual_seed(batch_idx)
        locations = self.draw(batch["image"], generator)
        self.mean_loss.update(*self.color_loss(batch["image"], locations))

    def row(self, image: Tensor, number: int) -> list[Tensor]:
        """Return what the network sees of an image, its guess, and the image."""
        gray = image.mean(1).expand(3, -1, -1)
        return [gray, self.recolored(image)[0], image[0]]


def _at(maps: Tensor, locations: Tensor) -> Tensor:
    """Return (B, K, C) values of (B, C, H, W) maps; uint8 becomes float in [0, 1]."""
    places = (locations[..., 0] * maps.shape[-1] + locations[..., 1])[:, None]
    found = maps.flatten(2).gather(2, places.expand(-1, maps.shape[1], -1)).transpose(1, 2)
    return found.float() / 255 if found.dtype == torch.uint8 else found
