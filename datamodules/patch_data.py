"""The patches of any other data module's images, for Mix-and-Match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.augmenting.patches import PatchMixer
from datamodules.augmenting.steps import Step
from datamodules.base import SegmentationDataModule, Split
from datamodules.reading.sources import Source


class PatchDataModule(SegmentationDataModule):
    """Labelled patches of another data module's examples.

    In YAML pieces the option `patches`, which all data modules have, does the same.

    Args:
        images: Says where the examples come from and which classes they have; its own batch
            size, augmentation and so on do not count.
        patches_per_image: See `PatchMixer`, like the next six.
        patch_size: Smallest and largest side of a patch in the image, in pixels.
        out_size: Side in pixels that all patches are resized to.
        background_index: The class id of the background; None for data without.
        background_share: Share of the patches that background gets where there is any.
        max_overlap: How much of a candidate may be covered by those kept before it.
        legacy_overlap: Measure that as the authors' code.
        batch_size: Images per device and step; a batch has `patches_per_image` times as many
            patches.
        augmentation: See `SegmentationDataModule`; the authors crop and flip.
        options: Passed to `SegmentationDataModule`.

    Raises:
        DataError: An impossible option.

    Example:
        >>> from datamodules import SyntheticScenesDataModule
        >>> scenes = SyntheticScenesDataModule(train_size=4, val_size=1, image_size=(64, 96))
        >>> data = PatchDataModule(scenes, 5, (16, 32), 24, batch_size=2, num_workers=0, seed=0)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> tuple(batch["image"].shape), tuple(batch["label"].shape)
        ((10, 3, 24, 24), (10,))
    """

    def __init__(
        self,
        images: SegmentationDataModule,
        patches_per_image: int = 10,
        patch_size: tuple[int, int] = (64, 256),
        out_size: int = 128,
        background_index: int | None = 0,
        background_share: float = 0.1,
        max_overlap: float = 0.6,
        legacy_overlap: bool = False,
        batch_size: int = 40,
        augmentation: str | list[Step] = "crop_flip",
        **options: Any,
    ) -> None:
        mixer = PatchMixer(
            patches_per_image,
            patch_size,
            out_size,
            background_index,
            background_share,
            max_overlap,
            legacy_overlap,
        )
        super().__init__(batch_size=batch_size, augmentation=augmentation, patches=mixer, **options)
        self.images = images

    @property
    def class_names(self) -> list[str]:
        """Those of the images."""
        return self.images.class_names

    @property
    def palette(self) -> list[list[int]] | None:
        """That of the images."""
        return self.images.palette

    @property
    def dataset_name(self) -> str:
        """That of the images."""
        return self.images.dataset_name

    def source(self, split: Split) -> Source:
        """Return the examples of the images' split."""
        return self.images.source(split)

    def extra_images(self) -> dict[str, Path]:
        """Return those of the images."""
        return self.images.extra_images()

    def probe(self, source: Source) -> set[int]:
        """Decode a few examples, as the images' module does."""
        return self.images.probe(source)
