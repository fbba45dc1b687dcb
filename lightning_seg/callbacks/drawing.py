"""The pictures of one validation: the images that are shown, and what is drawn of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_seg.errors import UserError
from lightning_seg.metrics.class_maps import class_maps, iou_counts, iou_of
from lightning_seg.training import MethodModule, SegmentationModule
from lightning_seg.views import VOID, ClassView, ColorView, Views, correctness, rgb_array, sheet


@dataclass
class Example:
    """One validation image with its class ids, reduced in size.

    Attributes:
        id: The name of the image.
        image: (h, w, 3) RGB.
        masks: (h, w) class ids by name, such as `truth` and `prediction`; 255 where void.
        miou: Mean IoU of the classes of this image alone, at its own size; NaN without labels.
    """

    id: str
    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    miou: float = math.nan


@dataclass
class Drawing:
    """The pictures of one validation.

    Attributes:
        step: The number of steps that were made.
        logged_step: The step of this validation's scores in the loggers.
        sheets: (H, W, 3) RGB pictures by name.
        examples: The images that are shown through the whole training.
        hardest: The images with the lowest mIoU, the lowest first.
        class_names: One name per class; empty for methods without classes.
        confusion: (C, C) pixels at [label, prediction]; None for methods without classes.
    """

    step: int
    logged_step: int
    sheets: dict[str, NDArray[np.uint8]]
    examples: list[Example]
    hardest: list[Example]
    class_names: list[str]
    confusion: Tensor | None = None


def draw(
    module: MethodModule,
    chosen: list[dict[str, Any]],
    hardest: list[Example],
    size: int,
    steps: tuple[int, int],
) -> Drawing:
    """Ask a module for its views, and draw them.

    Args:
        module: The module, in evaluation mode.
        chosen: Batches of one image each, from `single_images`.
        hardest: The images with the lowest mIoU.
        size: Longest side in pixels of the examples.
        steps: The number of steps that were made, and the step of the scores in the loggers.
    """
    names, rows, examples = list(module.class_names), [], []
    for kept in (each for each in chosen if "hidden" not in each):
        batch = _on_device(kept, module.device)
        try:
            views = module.views(batch)
        except UserError as error:  # a picture is no reason to end a training
            rank_zero_warn(f"{batch['id'][0]} is not shown: {error}")
            kept["hidden"] = True
            continue
        truth, found, image = (views.get(each) for each in ("truth", "prediction", "image"))
        masks = {heading: view for heading, view in views.items() if isinstance(view, ClassView)}
        miou = math.nan
        if isinstance(truth, ClassView) and isinstance(found, ClassView):
            miou = image_miou(found.labels[None], truth.labels[None], len(names), VOID)[0]
        rows.append(_with_captions(views, batch["id"][0], miou))
        if isinstance(image, ColorView):
            arrays = {heading: shrunk(view.ids, size) for heading, view in masks.items()}
            small = shrunk(rgb_array(image.image), size)
            examples.append(Example(batch["id"][0], small, arrays, miou))
    sheets = {"examples": sheet(rows, names, module.palette)} if any(rows) else {}
    if hardest:
        sheets["hardest"] = sheet([_views_of(each) for each in hardest], names, module.palette)
    for name, points in module.overviews().items():
        sheets[name] = points.picture(names, module.palette)
    return Drawing(*steps, sheets, examples, hardest, names, module.val_confusion)


def example_of(
    batch: dict[str, Any],
    labels: Tensor,
    index: int,
    miou: float,
    module: SegmentationModule,
    size: int,
) -> Example:
    """Return one image of a batch with truth and prediction.

    Args:
        batch: The batch, with `image`, `mask` and `id`.
        labels: (B, H, W) predicted class ids.
        index: The position of the image in the batch.
        miou: Its mean IoU.
        module: The module that predicted them.
        size: Longest side in pixels.
    """
    mask = batch["mask"][index]
    truth = mask.masked_fill(mask == module.ignore_index, VOID)
    found = {"truth": truth, "prediction": labels[index]}
    arrays = {name: each.to(torch.uint8).cpu().numpy() for name, each in found.items()}
    masks = {name: shrunk(each, size) for name, each in arrays.items()}
    image = rgb_array(module.picture(batch["image"][index]))
    return Example(batch["id"][index], shrunk(image, size), masks, miou)


def image_miou(labels: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> list[float]:
    """Return the mean IoU of each image over the classes that its mask or prediction has.

    Args:
        labels: (B, H, W) predicted class ids.
        masks: (B, H, W) class ids.
        num_classes: Number of classes C.
        ignore_index: The class id of void pixels in `masks`.

    Returns:
        B numbers in [0, 1]; NaN for an image without labelled pixels.

    Examples:
        Class 0 has an IoU of 1/2 and class 1 of 2/3.

        >>> image_miou(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]), 2, 255)
        [0.5833333333333333]
    """
    maps = class_maps(labels, masks, num_classes, ignore_index)
    counts = iou_counts(maps, num_classes, maps.valid, maps.valid, per_image=True)  # (B, C, 3)
    found: list[float] = iou_of(counts.double()).nanmean(1).tolist()
    return found


def single_images(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a batch into batches of one image, on the CPU; patches of an image stay together."""
    kept = {name: _on_cpu(value) for name, value in batch.items()}
    names = batch["id"]
    if len(names) != len(batch["image"]):
        return [kept]
    return [
        {name: value[index : index + 1] for name, value in kept.items() if len(value) == len(names)}
        for index in range(len(names))
    ]


def _on_cpu(value: Any) -> Any:
    # 16 bits hold every class id
    if isinstance(value, Tensor) and value.dtype == torch.int64:
        value = value.to(torch.int16)
    return value.to("cpu") if isinstance(value, Tensor) else value


def _on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    tensors = {name: each.to(device) for name, each in batch.items() if isinstance(each, Tensor)}
    whole = {
        name: each.long() if each.dtype == torch.int16 else each for name, each in tensors.items()
    }
    return {**batch, **whole}


def _with_captions(views: Views, name: str, miou: float) -> Views:
    """Write the name below the first view, and the mIoU below the prediction."""
    captioned = dict(views)
    first = next(iter(views), "")
    if isinstance(view := views.get(first), ColorView) and not view.caption:
        captioned[first] = replace(view, caption=name)
    if isinstance(view := views.get("prediction"), ClassView) and not math.isnan(miou):
        captioned["prediction"] = replace(view, caption=f"mIoU of this image: {miou:.3f}")
    return captioned


def _views_of(example: Example) -> Views:
    image = torch.from_numpy(example.image).permute(2, 0, 1)
    truth, found = (torch.from_numpy(each) for each in example.masks.values())
    views: Views = {
        "image": ColorView(image),
        "truth": ClassView(truth),
        "prediction": ClassView(found),
        "errors": correctness(found, truth, VOID),
    }
    return _with_captions(views, example.id, example.miou)


def shrunk(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Reduce an image, or class ids, so that its longest side has at most `size` pixels."""
    scale = size / max(picture.shape[:2])
    if scale >= 1:
        return picture
    shape = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    kind = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(shape, kind))
