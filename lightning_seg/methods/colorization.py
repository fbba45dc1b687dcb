"""Colorization: an encoder learns without labels, by predicting the colours of grey images.

The encoder sees the grey values g = (R + G + B) / 3. All its feature maps are read at a few random
pixels and concatenated, which is a sparse hypercolumn, and a small head predicts the colours there.
By default a colour is a hue and a chroma, each in 32 bins. With N pixels and the head's weights W

    L = 1/N sum_i ( CE(chroma_i) + 5 chroma_i CE(hue_i) ) + lambda_head |W|^2

so that the hue of a pixel counts in proportion to its chroma.

G. Larsson, M. Maire, G. Shakhnarovich: Colorization as a Proxy Task for Visual Understanding (CVPR
2017, arXiv 1703.04044). `target: ABGrid` predicts bins of Lab's ab plane instead, as in R. Zhang,
P. Isola, A. A. Efros: Colorful Image Colorization (ECCV 2016, arXiv 1603.08511).

Differences from the authors' code: the encoders are timm's, with three equal channels of input and
all maps read; the ab grid is computed, and has 261 bins where the authors' file has 313.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_seg.errors import SetupError, require_range
from lightning_seg.losses.colorization import ColorTarget, HueChroma
from lightning_seg.networks.colorization import ColorizationNetwork
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.training.pretraining import (
    ImagePretrainingModule,
    counted_images,
    generators,
)
from lightning_seg.training.sharding import whole
from lightning_seg.views import ColorView, Views

_STRIDE = 4  # distance in pixels of the locations at which a picture's colours are predicted


class ColorizationModule(ImagePretrainingModule):
    """Training of an encoder on images without labels, always in `input_mode: gray`.

    Logs `loss` and `loss_color`, the loss without the penalty on the head's weights.

    Args:
        encoder: The encoder; all its feature maps are read.
        target: The prediction of a colour: `HueChroma` or `ABGrid`; None takes `HueChroma`.
        locations: Number of random pixels per image and step, at least 1.
        border: Smallest distance of such a pixel from the edge of the image in pixels, at least 0;
            at most a quarter of a side is used.
        width: Number of units of the hidden layer between hypercolumn and colours, at least 1.
        dropout: Share of the hidden units that is dropped in training, in [0, 0.99].
        init_std: Standard deviation of the initial weights of the hidden layer, 1e-4 in the
            authors' code; None takes PyTorch's initialisation.
        lambda_head: Weight of the squared weights of the head, at least 0.
        options: Arguments of `ImagePretrainingModule`, except `input_mode`.

    Raises:
        SetupError: A setting is out of range.
    """

    fixed_options = ("input_mode",)

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
        if (channels := options.get("channels", 3)) != 3:
            raise SetupError(
                f"colorization predicts the colours of RGB images, and the data has {channels} "
                "channels",
                option="data.channels 3",
            )
        super().__init__(network, input_mode="gray", **options)
        self.target = target
        self.locations = locations
        self.border = border
        self.lambda_head = lambda_head

    @property
    def encoder(self) -> TimmEncoder:
        """The encoder, without the head on top of it."""
        encoder: TimmEncoder = self.network.encoder  # type: ignore[assignment]
        return encoder

    def forward(self, image: Tensor, locations: Tensor) -> Tensor:
        """Return (B, K, outputs) logits of the colours at (B, K, 2) rows and columns in pixels."""
        logits: Tensor = self.network(self.normalize(image), locations)
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch of images; of a batch of groups, of its group `unlabeled`."""
        batch = batch.get("unlabeled", batch)
        image = batch["image"]
        color, _ = self.color_loss(image, self.draw(image), batch.get("valid"))
        penalty = whole(self.network.head_penalty())  # type: ignore[operator]
        loss = color + self.lambda_head * penalty
        self.log_training({"loss": loss, "loss_color": color.detach()}, batch)
        return loss

    def draw(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return (B, K, 2) random rows and columns in pixels.

        Args:
            image: (B, 3, H, W) images, of which only shape and device are used.
            generator: A generator on the CPU; None takes the global one of the image's device.
        """
        device = image.device if generator is None else generator.device
        drawn = torch.rand(len(image), self.locations, 2, generator=generator, device=device)
        places = []
        for axis, side in enumerate(image.shape[-2:]):
            border = min(self.border, side // 4)
            place = border + (drawn[..., axis] * (side - 2 * border)).long()
            # drawn < 1, but rounding may bring the product up to the length
            places.append(place.clamp(max=side - border - 1))
        return torch.stack(places, dim=-1).to(image.device)

    def color_loss(
        self, image: Tensor, locations: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss at some locations, and the number of those that count.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].
            locations: (B, K, 2) rows and columns in pixels.
            valid: (B, H, W) bool, False in the padding, which does not count; None counts all.
        """
        # (B, K, outputs) -> (B K, outputs), and the colours and the mask at the same places
        logits = self(image, locations).flatten(0, 1)
        rgb = _at(image, locations).flatten(0, 1)
        if valid is None:
            counted = torch.ones_like(rgb[:, 0], dtype=torch.bool)
        else:
            counted = _at(valid[:, None], locations).flatten()
        return self.target(logits, rgb, counted), counted.sum()

    @torch.no_grad()
    def recolored(self, image: Tensor) -> Tensor:
        """Return the images in the colours that the network predicts.

        Colours are predicted at every fourth pixel and interpolated between; grey values are exact.

        Args:
            image: (B, 3, H, W) RGB, uint8 in 0..255 or floating point in [0, 1].

        Returns:
            (B, 3, H, W) RGB in [0, 1].
        """
        gray = (image / 255 if not image.is_floating_point() else image).float().mean(1)
        height, width = image.shape[-2:]
        rows, columns = (
            torch.arange(0, side, _STRIDE, device=image.device) for side in (height, width)
        )
        # h x w places of the image -> (B, h w, 2) locations -> (B h w, outputs) logits
        grid = torch.cartesian_prod(rows, columns).expand(len(image), -1, -1)
        logits = self(image, grid).flatten(0, 1)
        at_grid = gray[:, rows][:, :, columns]
        colors = self.target.colors(logits, at_grid.flatten())
        # (B h w, 3) colours -> (B, 3, h, w) -> (B, 3, H, W) differences from grey
        tint = colors.view(len(image), len(rows), len(columns), 3).permute(0, 3, 1, 2)
        tint = F.interpolate(tint - at_grid[:, None], (height, width), mode="bilinear")
        return (gray[:, None] + tint).clamp(0, 1)

    # Validation

    def evaluation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the mean loss, at locations that depend on the id of each image alone."""
        image = batch["image"]
        drawn = [self.draw(image[:1], own) for own in generators(batch["id"])]
        valid = counted_images(batch).view(-1, 1, 1).expand(-1, *image.shape[-2:])
        self.mean_loss.update(*self.color_loss(image, torch.cat(drawn), valid))

    def views(self, batch: dict[str, Any]) -> Views:
        """Return the grey input, the predicted colours and the image."""
        image = batch["image"].float() / (1 if batch["image"].is_floating_point() else 255)
        return {
            "grey input": ColorView(image[0].mean(0).expand(3, -1, -1)),
            "prediction": ColorView(self.recolored(image)[0]),
            "image": ColorView(image[0]),
        }


def _at(maps: Tensor, locations: Tensor) -> Tensor:
    """Return the (B, K, C) values of (B, C, H, W) maps; uint8 becomes float in [0, 1]."""
    places = (locations[..., 0] * maps.shape[-1] + locations[..., 1])[:, None]
    found = maps.flatten(2).gather(2, places.expand(-1, maps.shape[1], -1)).transpose(1, 2)
    return found.float() / 255 if found.dtype == torch.uint8 else found
