"""Builds timm models that return feature maps, and finds out which image sizes they take."""

from __future__ import annotations

import contextlib
import difflib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.image_sizes import takes

_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},  # vision transformers: the position table is resized
    {"strict_img_size": False},  # Swin transformers: windows are padded
    {},
)
"""Options by which families of models take images of any size; most families need none."""


def build(
    name: str,
    out_indices: Sequence[int] | int | None,
    output_stride: int,
    pretrained: bool,
    options: dict[str, Any],
) -> Any:
    """Build a timm model that returns feature maps.

    Args:
        name: Name of a timm model.
        out_indices: Indices of the feature maps to return; None returns all maps. A number spreads
            them over the blocks of a plain vision transformer, and returns all maps of others.
        output_stride: Input pixels per pixel of the deepest map: 8, 16 or 32. Families without
            dilated stages keep their own stride.
        pretrained: Download the weights from the model hub.
        options: Further keyword arguments of `timm.create_model`.

    Raises:
        SetupError: The name is unknown, or the model cannot be built with these options.
    """
    _require_known(name, output_stride)
    given: dict[str, Any] = dict(options)
    if out_indices is not None and not isinstance(out_indices, int):
        given["out_indices"] = tuple(out_indices)
    if name.startswith("hrnet"):
        # HRNetV2 concatenates the raw branches, not the widened ones of the classifier.
        given = {"feature_location": "", "out_indices": (1, 2, 3, 4), **given}
    try:
        model = _first_that_works(name, output_stride, pretrained, given)
    except (AssertionError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
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
    if isinstance(out_indices, int):
        _spread(model, out_indices)
    return model


def _require_known(name: str, output_stride: int) -> None:
    """Raise an error for a name that timm does not know, or a stride that no encoder has."""
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


def _first_that_works(name: str, stride: int, pretrained: bool, given: dict[str, Any]) -> Any:
    """Build a model with the options for any size and for the stride that its family knows."""
    import timm

    refused: Exception | None = None
    for more in _attempts(stride):
        words = {"pretrained": pretrained, "features_only": True, **more, **given}
        try:
            model: Any = timm.create_model(name, **words)
        except (AssertionError, TypeError, NotImplementedError, RuntimeError) as error:
            if not _refuses(error, more):
                raise
            refused = error
        else:
            return model
    assert refused is not None
    raise refused


def _refuses(error: Exception, tried: dict[str, Any]) -> bool:
    """Return whether an error is about options that were tried, and not about the user's own."""
    if any(option in str(error) for option in tried):
        return True
    # some families refuse a stride without naming it
    return "output_stride" in tried and isinstance(error, (AssertionError, NotImplementedError))


def _spread(model: Any, count: int) -> None:
    """Let a plain vision transformer return so many maps, evenly spread over its blocks."""
    from timm.models._features import FeatureGetterNet

    if isinstance(model, FeatureGetterNet):  # all of whose blocks were built
        info: Any = model.feature_info
        blocks = len(info.info)
        chosen: Any = [(i + 1) * blocks // count - 1 for i in range(count)]
        model.out_indices, info.out_indices = chosen, tuple(chosen)


def _attempts(output_stride: int) -> Iterator[dict[str, Any]]:
    """Yield options to try, those of the fewest families first."""
    for stride in [{"output_stride": output_stride}, {}] if output_stride != 32 else [{}]:
        for size in _ANY_SIZE:
            yield {**size, **stride}


def maps_of(model: Any, image: Tensor) -> list[Tensor]:
    """Return a model's feature maps as (B, C, h, w), also where the model has channels last."""
    maps: list[Tensor] = list(model(image))
    layout = getattr(model, "output_fmt", None)
    if layout is not None and str(getattr(layout, "value", layout)).upper() == "NHWC":
        return [each.permute(0, 3, 1, 2) for each in maps]
    return maps


def image_sizes(
    model: Any, built_for: int | tuple[int, int] | None = None
) -> tuple[tuple[int, int], bool]:
    """Find out by small images which sizes a model takes.

    Args:
        model: A model of timm that returns feature maps.
        built_for: The size that the model was built for, one number for squares; None takes that of
            its weights.

    Returns:
        Height and width that the sides of an image must be multiples of, (1, 1) for any size; and
        whether no other multiple than the size itself will do.
    """
    stride = int(max(model.feature_info.reduction()))
    tall, wide = model.pretrained_cfg.get("input_size", (3, 224, 224))[-2:]
    if built_for is not None:
        tall, wide = (built_for, built_for) if isinstance(built_for, int) else built_for
    tried = (
        # the sides of the first image are no multiples of anything
        ((1, 1), (2 * stride + stride // 2 + 1, 3 * stride + 5)),
        ((stride, stride), (2 * stride, 3 * stride)),
        ((tall, wide), (tall, 2 * wide)),
    )
    for multiple, size in tried:
        if takes(model, (1, 3, *size)):
            return multiple, False
    return (tall, wide), True


def layer_numbers(name: str, options: dict[str, Any]) -> dict[str, int]:
    """Return the layer that timm puts each parameter of a model into, 0 being the stem.

    Args:
        name: Name of a timm model.
        options: Keyword arguments of `timm.create_model`.

    Returns:
        Numbers by the names of the parameters, with `_` for every dot.

    Raises:
        SetupError: timm does not group the parameters of this model.
    """
    import timm
    from timm.models import group_parameters

    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # without memory
        try:
            model = timm.create_model(name, **options)
        except (TypeError, RuntimeError):  # options of models that return features
            model = timm.create_model(name)
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise SetupError(
            f"timm does not divide encoder {name!r} into layers, so that their learning rates "
            "cannot differ",
            option=("backbone_lr_decay 1", "backbone_lr_factor"),
        )
    found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return {name.replace(".", "_"): number for name, number in found.items()}


def converted(model: nn.Module, source: Mapping[str, Tensor], prefix: str | None) -> Any:
    """Return tensors with the names and sizes of timm, where timm knows another project's.

    These are DINOv2's and DINOv3's own files, among others, and tables of positions for images of
    another size.

    Args:
        model: The model of timm that is to receive the tensors.
        source: Tensors by name.
        prefix: The part of their names that precedes those of the model; None tries the common
            ones.

    Returns:
        The tensors of timm's conversion, or `source` where timm has none for this model.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    anchor = "patch_embed.proj.weight"
    starts = [name.removesuffix(anchor) for name in source if name.endswith(anchor)]
    if prefix is not None:
        starts = [start for start in starts if start.endswith(prefix)]
    if convert is None or not starts:
        return source
    start = min(starts, key=len)
    inner = {
        name.removeprefix(start): tensor
        for name, tensor in source.items()
        if name.startswith(start)
    }
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):  # some print
            found = convert(inner, model)
    except (AttributeError, AssertionError, KeyError, RuntimeError, TypeError, ValueError):
        return source  # whose names are compared as they are
    return {start + name: tensor for name, tensor in found.items()}


def make_dilation_uniform(model: nn.Module, name: str, required: bool = True) -> None:
    """Give the first block of every stage the dilation of the second block.

    Args:
        model: A model of timm that returns feature maps.
        name: Its name, for the error.
        required: Whether a model without such stages is an error; else it is left as it is.

    Raises:
        SetupError: The model is no ResNet, MobileNet or EfficientNet, and must be one.
    """
    stages = [getattr(model, stage, None) for stage in ("layer1", "layer2", "layer3", "layer4")]
    blocks = getattr(model, "blocks", None)  # of MobileNets and EfficientNets
    if isinstance(blocks, nn.Sequential) and isinstance(blocks[0], nn.Sequential):
        stages = [stage for stage in blocks if len(stage) > 1]  # type: ignore[arg-type]
    if not all(isinstance(stage, nn.Sequential) and len(stage) > 1 for stage in stages):
        if not required:
            return
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
