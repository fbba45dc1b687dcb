"""COCO-Stuff on all of COCO 2017 (Caesar, Uijlings, Ferrari 2018; arXiv 1612.03716)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from datamodules.errors import DataError
from datamodules.official import OfficialDataModule, Origin, pair
from datamodules.reading.mask_decoder import VOID, MaskDecoder
from datamodules.reading.sources import FileSource

THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
hydrant, street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
elephant, bear, zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted
plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush, hair brush
"""
STUFF = """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff,
dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower,
fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves,
light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete,
wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind,
window-other, wood
"""
NAMES = [name.strip() for name in f"{THINGS},{STUFF}".replace("\n", " ").split(",")]
NEVER_USED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
"""Stored ids of the 11 things of COCO that no image shows."""

ORIGIN = Origin(
    "COCO-Stuff",
    "train2017.zip and val2017.zip from https://cocodataset.org/#download and "
    "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff",
    """
    images/train2017/000000000009.jpg ...        (and val2017)
    annotations/train2017/000000000009.png ...   (and val2017)
    """,
)


class COCOStuffDataModule(OfficialDataModule):
    """COCO-Stuff, things and stuff: 118,287 training and 5,000 validation images.

    Masks store 0..181, and 255 for void.

    Args:
        root: Folder with `images` and `annotations`, or the folder that holds it as `cocostuff`,
            `coco_stuff164k` or `coco`. The images may also be in `train2017` and `val2017`
            directly below it, the masks in `stuffthingmaps_trainval2017`.
        num_ids: Number of classes. 171 has the classes that occur, 80 things and 91 stuff, in the
            order of their ids; 182 has the ids as they are stored, 11 of which occur nowhere.
        loader_options: Arguments of `OfficialDataModule`, such as `train`, and of
            `SegmentationDataModule`.

    Raises:
        DataError: Files are missing.
    """

    default_crop_size = (512, 512)
    default_scale = (0.5, 2.0)
    origin = ORIGIN

    def __init__(self, root: str, num_ids: Literal[171, 182] = 171, **loader_options: Any) -> None:
        super().__init__(root, **loader_options)
        if num_ids not in (171, 182):
            raise DataError(f"num_ids must be 171 or 182, not {num_ids}", option="num_ids")
        unused = NEVER_USED if num_ids == 171 else set()
        self.stored = [value for value in range(len(NAMES)) if value not in unused]
        self.decoder = MaskDecoder(self.stored, void=[VOID], fixed=True)

    @property
    def class_names(self) -> list[str]:
        """The class names of the official list."""
        return [NAMES[value] for value in self.stored]

    def split_files(self, split: Literal["train", "val"]) -> FileSource:
        """Return the examples of a split, with ids such as `000000000009`.

        Raises:
            DataError: Files are missing.
        """
        name = f"{split}2017"
        images_in = self._folder("images", "", name)
        masks_in = self._folder("annotations", "stuffthingmaps_trainval2017", name)
        images = ORIGIN.files(images_in)
        # without the files that mmsegmentation writes beside the masks
        masks = {
            key: path
            for key, path in ORIGIN.files(masks_in).items()
            if not key.endswith("_labelTrainIds")
        }
        where = f"{images_in} and {masks_in}"
        pairs = pair(images.keys() | masks.keys(), images, masks, where, self.skip_unpaired)
        return FileSource(pairs.images, pairs.masks, self.decoder)

    def _folder(self, usual: str, other: str, split: str) -> Path:
        """Return the folder of a split's images or masks, which has one of two names."""
        homes = [self.root, *(self.root / name for name in ("cocostuff", "coco_stuff164k", "coco"))]
        places = [home / kind / split for home in homes for kind in (usual, other)]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise ORIGIN.missing(places[0] if self.root.is_dir() else self.root)
        return found
