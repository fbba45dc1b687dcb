"""Networks of other libraries by their names: what they take and return is adapted to this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_seg.errors import SetupError
from lightning_seg.networks.encoder_head import too_few_images
from lightning_seg.networks.foreign import build, imported
from lightning_seg.networks.image_sizes import fill_up
from lightning_seg.networks.outputs import read_outputs
from lightning_seg.numerics import resize

_SIZES = (
    # the sides of the first image are no multiples of anything
    ((1, 1), (97, 133), False),
    ((32, 32), (96, 160), False),
    ((64, 64), (128, 192), False),
    ((128, 128), (128, 256), False),
)
"""Multiples that networks are tried on, each with a size of images; none is a fixed size."""


class NamedNetwork(nn.Module):
    """A network of another library, or a function that returns one, by its import path.

    The command builds one where the option `network` names a class or a function of
    segmentation-models-pytorch, torchvision or transformers, or one of yours that does not take the
    number of classes first. What it finds out: the argument that takes the number of classes
    (`num_classes`, `classes`, `num_labels`, ..., or a configuration of HuggingFace), the encoder,
    for learning rates and freezing, and the sizes of images that the network takes.

    Args:
        num_classes: Number of classes C, which is the number of channels of the logits.
        path: Import path of a `torch.nn.Module`, or of a function that is annotated to return one.
        arguments: Keyword arguments of the class or function. Those of a HuggingFace network are
            the options of its configuration, and `pretrained`, the name or folder of its weights.
            Weights are downloaded only where an argument asks for them.
        load_weights: Whether weights that the arguments ask for are loaded; False builds the same
            network with random ones, such as for a checkpoint, which brings the weights.

    Attributes:
        encoder: The network's encoder or backbone; None where none was found.
        origin: A sentence on the images' normalisation where weights do not say it; else None.
        multiple: Height and width in pixels to whose multiples images are filled up.
        fixed_size: Whether the network takes images of the size `multiple` only.

    Raises:
        SetupError: The network cannot be built or called, or returns other classes.

    Shape:
        (B, 3, H, W) normalised images -> a dict with the logits `out`, and `aux` where the network
        has auxiliary ones, all (B, C, H, W). Images are filled up at the right and at the bottom
        to sizes that the network takes, and logits are resized bilinearly and cropped.

    Examples:
        >>> network = NamedNetwork(
        ...     5, "segmentation_models_pytorch.Unet", {"encoder_name": "resnet18"}
        ... ).eval()
        >>> network(torch.zeros(1, 3, 50, 70))["out"].shape
        torch.Size([1, 5, 50, 70])
    """

    def __init__(
        self,
        num_classes: int,
        path: str,
        arguments: dict[str, Any] | None = None,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        self.path = path
        built = build(imported(path), path, num_classes, arguments or {}, load_weights)
        self.network = built.network
        self.origin = built.note
        if self.encoder is not None and built.pretrained:
            self.encoder.pretrained = True  # type: ignore[assignment]
        for name in ("mean", "std"):
            value = built.statistics.get(name, getattr(self.network, name, None))
            if value is not None:
                setattr(self, name, tuple(value))
        self.multiple, self.fixed_size = self._sizes(num_classes)

    @property
    def encoder(self) -> nn.Module | None:
        """The part of the network that may start from pretrained weights."""
        names = ("encoder", "backbone", getattr(self.network, "base_model_prefix", ""))
        parts = [getattr(self.network, name, None) for name in names if name]
        return next((part for part in parts if isinstance(part, nn.Module)), None)

    def _sizes(self, num_classes: int) -> tuple[tuple[int, int], bool]:
        """Find out by small images which sizes the network takes, and whether it works at all."""
        refused: Exception | None = None
        for multiple, size, fixed in (*_SIZES, *self._fixed_sizes()):
            try:
                found = self._try(size)
            except (AssertionError, RuntimeError, ValueError, IndexError, TypeError) as error:
                refused = error
                continue
            outputs = self._logits(found, size)
            counts = {each.shape[1] for each in [*outputs["out"], *outputs["aux"]]}
            if counts != {num_classes}:
                raise SetupError(
                    f"{self.path} returns logits of {', '.join(map(str, sorted(counts)))} classes, "
                    f"and the data has {num_classes}",
                    option="network",
                )
            self._tried = size
            return multiple, fixed
        raise SetupError(
            f"{self.path} takes no images of {_SIZES[0][1][0]}x{_SIZES[0][1][1]} pixels or of "
            f"multiples of 32, 64 or 128: {_first_line(refused)}",
            option="network",
        )

    def _fixed_sizes(self) -> Iterator[tuple[tuple[int, int], tuple[int, int], bool]]:
        """Yield the size that a transformer of HuggingFace or timm says it was built for."""
        given = [getattr(getattr(self.network, "config", None), "image_size", None)]
        given += [getattr(part, "img_size", None) for part in self.network.modules()]
        for side in given:
            size = (side, side) if isinstance(side, int) else side
            if isinstance(size, (tuple, list)) and len(size) == 2:
                yield (size[0], size[1]), (size[0], size[1]), True
                return

    def _try(self, size: tuple[int, int]) -> Any:
        """Return what the network returns for an empty image; nothing of its state changes."""
        modes = [(part, part.training) for part in self.network.modules()]
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return self.network.eval()(torch.zeros(1, 3, *size))
        finally:
            for part, training in modes:
                part.training = training

    def _logits(self, found: Any, size: tuple[int, ...] | torch.Size) -> dict[str, list[Tensor]]:
        if isinstance(found, (tuple, list)):  # such as the masks and labels of smp's
            found = next((each for each in found if _is_map(each)), found)
        if not isinstance(found, Mapping) and hasattr(found, "logits"):
            found = {"logits": found.logits}
        outputs = read_outputs(found, self.path, size)
        if not all(_is_map(each) for each in [*outputs["out"], *outputs["aux"]]):
            raise SetupError(
                f"{self.path} returns no maps (B, C, H, W) of logits", option="network"
            )
        return outputs

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Return the logits at the size of the image.

        Args:
            image: (B, 3, H, W) float, normalised with `mean` and `std`.

        Returns:
            (B, C, H, W) logits `out`, and a list of auxiliary logits `aux` where there are some.

        Raises:
            SetupError: The network has a fixed size, and the image is larger.
        """
        height, width = image.shape[-2:]
        if self.fixed_size and (height > self.multiple[0] or width > self.multiple[1]):
            raise SetupError(
                f"{self.path} takes images of at most {self.multiple[0]}x{self.multiple[1]} "
                f"pixels, not {height}x{width}: crops and validation images must not be larger",
                option=("data.crop_size", "image_size"),
            )
        filled = fill_up(image, self.multiple)
        size = filled.shape[-2:]
        try:
            found = self.network(filled)
        except (RuntimeError, ValueError) as error:
            if "more than 1 value per channel" in str(error):
                raise too_few_images() from error
            if size[0] >= self._tried[0] and size[1] >= self._tried[1]:
                raise
            raise SetupError(
                f"{self.path} works on images of {self._tried[0]}x{self._tried[1]} pixels, and "
                f"fails on {size[0]}x{size[1]}: {_first_line(error)}",
                option="data.crop_size",
            ) from error
        outputs = self._logits(found, size)
        whole = {
            name: [resize(each, size)[..., :height, :width] for each in found]
            for name, found in outputs.items()
        }
        return {"out": whole["out"][0], **({"aux": whole["aux"]} if whole["aux"] else {})}


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
