"""Networks for images with another number of channels than the three of RGB."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError


def input_layers(network: nn.Module, channels: int = 3) -> list[nn.Conv2d]:
    """Return the convolutions that take images of so many channels.

    Args:
        network: A network, or the encoder of one.
        channels: Number of channels of the images.

    Returns:
        The first convolution, and others of the same number of input channels, where there are
        several stems. An empty list where the first convolution takes another number.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    if not layers or layers[0].in_channels != channels:
        return []
    return [layer for layer in layers if layer.in_channels == channels]


def adapt_input(network: nn.Module, channels: int, pretrained: bool) -> bool:
    """Let a network that takes RGB images take images of so many channels.

    Pretrained weights are adapted as timm adapts them: one channel gets the sum of the weights of
    R, G and B, and more channels get these weights in turn, times 3 / channels. Random weights are
    drawn anew with the same variance of the layer's output.

    Args:
        network: A network, or the encoder of one; changed in place.
        channels: Number of channels of the images, at least 1.
        pretrained: Whether the weights of the first layer are pretrained.

    Returns:
        Whether the network was changed; False where it takes so many channels already.

    Raises:
        SetupError: The network has no convolution that takes RGB images.

    Examples:
        >>> stem = nn.Conv2d(3, 8, 3)
        >>> adapt_input(stem, 5, pretrained=True)
        True
        >>> stem(torch.zeros(1, 5, 4, 4)).shape, torch.equal(stem.weight[:, 0], stem.weight[:, 3])
        (torch.Size([1, 8, 2, 2]), True)
    """
    if input_layers(network, channels):
        return False
    layers = input_layers(network)
    if not layers:
        raise SetupError(
            f"images have {channels} channels, and {type(network).__name__} has no first "
            "convolution of 3 channels that could be adapted: build it for images of so many "
            "channels",
            option=("network", "data.channels"),
        )
    for layer in layers:
        adapted = _adapted(layer.weight.detach(), channels, pretrained)
        layer.weight = nn.Parameter(adapted, requires_grad=layer.weight.requires_grad)
        layer.in_channels = channels
    return True


def take_channels(network: nn.Module, encoder: nn.Module | None, channels: int) -> None:
    """Let a network take images of so many channels, where it does not yet; see `adapt_input`.

    Args:
        network: The network, changed in place.
        encoder: Its encoder, which the images enter first; None where it has none.
        channels: Number of channels of the images, at least 1.

    Raises:
        SetupError: The encoder takes images of another number of channels and no RGB images.
    """
    part = network if encoder is None else encoder
    if channels != 3:
        adapt_input(part, channels, pretrained=getattr(encoder, "pretrained", True))
        return
    first = next((layer for layer in part.modules() if isinstance(layer, nn.Conv2d)), None)
    if hasattr(encoder, "pretrained") and first is not None and first.in_channels != 3:
        raise SetupError(
            f"the encoder takes images of {first.in_channels} channels, and those of the data are "
            "RGB",
            option=(f"data.channels {first.in_channels}", "network"),
        )


def statistic(values: Sequence[float], channels: int, name: str) -> Tensor:
    """Return (1, channels, 1, 1) with a mean or standard deviation of each channel.

    Args:
        values: One value per channel, or those of R, G and B, whose mean every channel gets.
        channels: Number of channels of the images.
        name: Name of the option that gives the values, for the error.

    Raises:
        SetupError: There is another number of values.
    """
    found = torch.tensor(values, dtype=torch.float32)
    if len(found) == 3 != channels:
        found = found.mean().expand(channels).clone()
    if len(found) != channels:
        raise SetupError(f"{len(found)} values of {name} for {channels} channels", option=name)
    return found.view(1, channels, 1, 1)


def _adapted(weight: Tensor, channels: int, pretrained: bool) -> Tensor:
    """Return the weight (O, channels, h, w) of a convolution for a weight (O, 3, h, w)."""
    if pretrained:
        from timm.models import adapt_input_conv

        adapted: Tensor = adapt_input_conv(channels, weight)
        return adapted
    scale = (3 / channels) ** 0.5
    shape = (weight.shape[0], channels, *weight.shape[2:])
    drawn = torch.randn(shape, dtype=weight.dtype, device=weight.device)
    return drawn.mul_(weight.std()).mul_(scale)
